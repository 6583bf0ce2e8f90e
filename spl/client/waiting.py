"""The client for asyncio: the methods of `Client`, to be awaited."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar

from ..net.http1 import ResponseHead
from . import calls
from .calls import KEPT_IDLE_S, READ_BYTES, Call, Pieces, Record, WholeAnswer
from .dial import AtDaemon, Where, faults, tls_context, tls_fault, unix_address
from .errors import ClientError, fault
from .follow import SILENCE_S, Follow

_T = TypeVar("_T")
_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class AsyncClient(AtDaemon):
    """One daemon, for one event loop.  Tasks may share a client: their requests take turns."""

    def _begin(self, where: Where, token: str, timeout_s: float) -> None:
        super()._begin(where, token, timeout_s)
        self._lock = asyncio.Lock()
        self._kept: _Streams | None = None
        self._used_s = 0.0
        self._tails: set[asyncio.StreamWriter] = set()
        self._closed = asyncio.Event()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection; tails in other tasks end."""
        self._closed.set()
        for writer in list(self._tails):
            writer.close()
        async with self._lock:
            self._drop()

    async def health(self) -> dict[str, Any]:
        """Return {status, did, version, uptime_s, …}."""
        return await self.ask(calls.health())

    async def status(self) -> dict[str, Any]:
        """Return the whole daemon on one page, as `spl status -o json` shows it."""
        return await self.get("/v1/status")

    async def emit(
        self, thread: str, actor: str, body: Mapping[str, object], *,
        act: str = "KNOW", parents: Iterable[str] = (), clock: int | None = None,
    ) -> Record:  # fmt: skip
        """Write a record and return it once it is on the daemon's disk, as `Client.emit` does."""
        return await self.ask(calls.emit(calls.draft(thread, actor, body, act, parents, clock)))

    async def emit_many(self, records: Iterable[Mapping[str, object]]) -> list[Record]:
        """Write records and return them once all are on disk; raises PartialError if some are refused."""
        return [record for call in calls.batches(records) for record in await self.ask(call)]

    async def record(self, record_id: str) -> Record:
        """Return one record; MissingError if it is unknown or out of the token's reach."""
        return await self.ask(calls.record(record_id))

    async def records(
        self, *, thread: str | None = None, actor: str | None = None, kind: str | None = None, after: int = 0
    ) -> AsyncIterator[Record]:
        """Yield the records behind a sequence, in order of arrival, read page by page."""
        while page := await self.ask(calls.page(after, thread=thread, actor=actor, kind=kind)):
            for record in page:
                yield record
            after = calls.later(page[-1].sequence, after)

    async def query(self, filter: Mapping[str, object], **question: object) -> list[Record]:
        """Return the records that a filter holds of."""
        return await self.ask(calls.query({"filter": filter, **question}))

    async def threads(self, after: str = "") -> list[dict[str, Any]]:
        """Return up to a hundred threads, those after a name."""
        return await self.ask(calls.items("/v1/threads", after=after))

    async def state(self, thread: str) -> dict[str, Any]:
        """Return what a thread folds to."""
        return await self.get(f"/v1/threads/{calls.quote(thread)}/state")

    async def pairs(self) -> list[dict[str, Any]]:
        """Return every pair, as `spl federation list -o json` shows them."""
        return await self.ask(calls.items("/v1/federation/pairs"))

    async def sync(self, pair: str) -> dict[str, Any]:
        """Sync with a peer now; return what was moved."""
        return await self.post(f"/v1/federation/pairs/{calls.quote(pair)}/sync")

    async def get(self, path: str, **query: object) -> dict[str, Any]:
        """Return the object of any route; `spl help http` lists them."""
        return await self.ask(calls.get(path, **query))

    async def post(self, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Send an object to any route and return what it answers."""
        return await self.ask(calls.post(path, body or {}))

    async def delete(self, path: str) -> dict[str, Any]:
        """Return the object that a DELETE of any route answers."""
        return await self.ask(calls.delete(path))

    async def tail(
        self, thread: str, *, after: int | None = None, patience_s: float | None = None
    ) -> AsyncIterator[Record]:
        """Yield the records of a thread as they arrive, for ever, as `Client.tail` does."""
        if after is None:
            after = max((record.sequence for record in await self.ask(calls.newest(thread))), default=0)
        follow = Follow(thread, after, patience_s)
        while not self._closed.is_set():
            try:
                async for record in self._followed(follow):
                    yield record
            except ClientError as exc:
                if self._closed.is_set():
                    return
                with suppress(TimeoutError):
                    async with asyncio.timeout(follow.failed(exc)):
                        await self._closed.wait()

    async def ask(self, call: Call[_T]) -> _T:
        """Return the value of one call."""
        if self._closed.is_set():
            raise fault("disconnected", "the client is closed")
        async with self._lock:
            if self._kept and (time.monotonic() - self._used_s > KEPT_IDLE_S or self._kept[0].at_eof()):
                self._drop()
            fresh = self._kept is None
            try:
                return call.answer(*await self._exchange(call))
            except ClientError as exc:
                # A kept connection may have been closed while it was idle; a reading may be sent again.
                if fresh or not call.is_reading or exc.code != "disconnected" or exc.http_status:
                    raise
            return call.answer(*await self._exchange(call))

    async def _exchange(self, call: Call[_T]) -> tuple[ResponseHead, bytes]:
        with faults(self._where, self._timeout_s):
            keep = False
            try:
                async with asyncio.timeout(self._timeout_s):
                    self._kept = self._kept or await _dial(self._where)
                    reader, writer = self._kept
                    writer.write(call.encoded(self._where, self._token))
                    await writer.drain()
                    answer = WholeAnswer(call.method)
                    while (head := answer.feed(await reader.read(READ_BYTES))) is None:
                        pass
                keep = head.keep_alive
            finally:
                self._used_s = time.monotonic()
                if not keep:
                    self._drop()
        return head, answer.body

    async def _followed(self, follow: Follow) -> AsyncIterator[Record]:
        """Yield the records of one connection; raise ClientError at its end."""
        follow.connected()
        pieces = Pieces()
        with faults(self._where, SILENCE_S):
            async with asyncio.timeout(self._timeout_s):
                reader, writer = await _dial(self._where)
            self._tails.add(writer)
            try:
                writer.write(follow.call().encoded(self._where, self._token, follow.headers()))
                while True:
                    async with asyncio.timeout(SILENCE_S):
                        data = await reader.read(READ_BYTES)
                    for piece in pieces.feed(data):
                        for record in follow.feed(piece):
                            yield record
            finally:
                self._tails.discard(writer)
                writer.close()

    def _drop(self) -> None:
        if self._kept is not None:
            self._kept[1].close()
            self._kept = None


async def _dial(where: Where) -> _Streams:
    """Return a connection to the daemon; raise ClientError as `dial` does."""
    try:
        if where.path:
            address, folder = unix_address(where.path)
            try:
                return await asyncio.open_unix_connection(address)
            finally:
                if folder >= 0:
                    os.close(folder)
        context = tls_context(where) if where.is_tls else None
        return await asyncio.open_connection(where.host, where.port, ssl=context)
    except PermissionError as exc:
        raise fault("home-unusable", f"no permission to open {where.name}") from exc
    except OSError as exc:
        raise tls_fault(where, exc) or fault("daemon-down", f"cannot reach the daemon at {where.name}") from exc
