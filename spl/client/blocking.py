"""The client for programs with threads: one kept connection for requests, and one of its own for each tail."""

import select
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar

from ..net.http1 import ResponseHead
from . import calls
from .calls import KEPT_IDLE_S, READ_BYTES, Call, Pieces, Record, WholeAnswer
from .dial import AtDaemon, Where, dial, faults
from .errors import ClientError, fault
from .follow import SILENCE_S, Follow

_T = TypeVar("_T")


class Client(AtDaemon):
    """One daemon.  Threads may share a client: their requests take turns.  Every method raises ClientError."""

    def _begin(self, where: Where, token: str, timeout_s: float) -> None:
        super()._begin(where, token, timeout_s)
        self._lock = threading.Lock()
        self._kept: socket.socket | None = None
        self._used_s = 0.0
        self._tails: set[socket.socket] = set()
        self._closed = threading.Event()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection; tails in other threads end."""
        self._closed.set()
        for sock in list(self._tails):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._drop()

    def health(self) -> dict[str, Any]:
        """Return {status, did, version, uptime_s, …}."""
        return self.ask(calls.health())

    def status(self) -> dict[str, Any]:
        """Return the whole daemon on one page, as `spl status -o json` shows it."""
        return self.get("/v1/status")

    def emit(
        self, thread: str, actor: str, body: Mapping[str, object], *,
        act: str = "KNOW", parents: Iterable[str] = (), clock: int | None = None,
    ) -> Record:  # fmt: skip
        """Write a record and return it once it is on the daemon's disk.

        After "timeout" or "disconnected" it may be there all the same: with a `clock` of the caller's, a second
        attempt is refused instead of written twice.
        """
        return self.ask(calls.emit(calls.draft(thread, actor, body, act, parents, clock)))

    def emit_many(self, records: Iterable[Mapping[str, object]]) -> list[Record]:
        """Write records given as {"thread", "actor", "act", "body", …}, in order; return them once all are on disk.

        Raises PartialError if some are refused; the others are written.
        """
        return [record for call in calls.batches(records) for record in self.ask(call)]

    def record(self, record_id: str) -> Record:
        """Return one record; MissingError if it is unknown or out of the token's reach."""
        return self.ask(calls.record(record_id))

    def records(
        self, *, thread: str | None = None, actor: str | None = None, kind: str | None = None, after: int = 0
    ) -> Iterator[Record]:
        """Yield the records behind a sequence, in order of arrival, read page by page."""
        while page := self.ask(calls.page(after, thread=thread, actor=actor, kind=kind)):
            yield from page
            after = calls.later(page[-1].sequence, after)

    def query(self, filter: Mapping[str, object], **question: object) -> list[Record]:
        """Return the records that a filter holds of; `spl help programs` has its language and the other members."""
        return self.ask(calls.query({"filter": filter, **question}))

    def threads(self, after: str = "") -> list[dict[str, Any]]:
        """Return up to a hundred threads, those after a name."""
        return self.ask(calls.items("/v1/threads", after=after))

    def state(self, thread: str) -> dict[str, Any]:
        """Return what a thread folds to."""
        return self.get(f"/v1/threads/{calls.quote(thread)}/state")

    def pairs(self) -> list[dict[str, Any]]:
        """Return every pair, as `spl federation list -o json` shows them."""
        return self.ask(calls.items("/v1/federation/pairs"))

    def sync(self, pair: str) -> dict[str, Any]:
        """Sync with a peer now; return what was moved."""
        return self.post(f"/v1/federation/pairs/{calls.quote(pair)}/sync")

    def get(self, path: str, **query: object) -> dict[str, Any]:
        """Return the object of any route; `spl help http` lists them."""
        return self.ask(calls.get(path, **query))

    def post(self, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Send an object to any route and return what it answers."""
        return self.ask(calls.post(path, body or {}))

    def delete(self, path: str) -> dict[str, Any]:
        """Return the object that a DELETE of any route answers."""
        return self.ask(calls.delete(path))

    def tail(self, thread: str, *, after: int | None = None, patience_s: float | None = None) -> Iterator[Record]:
        """Yield the records of a thread as they arrive, for ever: each once, in order, also across restarts.

        `after` is a sequence, 0 for the whole thread; without it, what comes from now on.  A daemon that is away for
        longer than `patience_s` raises UnreachableError; without a bound it is waited for.
        """
        if after is None:
            after = max((record.sequence for record in self.ask(calls.newest(thread))), default=0)
        follow = Follow(thread, after, patience_s)
        while not self._closed.is_set():
            try:
                yield from self._followed(follow)
            except ClientError as exc:
                if self._closed.wait(0) or self._closed.wait(follow.failed(exc)):
                    return

    def ask(self, call: Call[_T]) -> _T:
        """Return the value of one call."""
        if self._closed.is_set():
            raise fault("disconnected", "the client is closed")
        with self._lock:
            if self._kept and (time.monotonic() - self._used_s > KEPT_IDLE_S or _is_readable(self._kept)):
                self._drop()
            fresh = self._kept is None
            try:
                return call.answer(*self._exchange(call))
            except ClientError as exc:
                # A kept connection may have been closed while it was idle; a reading may be sent again.
                if fresh or not call.is_reading or exc.code != "disconnected" or exc.http_status:
                    raise
            return call.answer(*self._exchange(call))

    def _exchange(self, call: Call[_T]) -> tuple[ResponseHead, bytes]:
        with faults(self._where, self._timeout_s):
            sock, keep = self._kept or dial(self._where, self._timeout_s), False
            self._kept = sock
            try:
                sock.sendall(call.encoded(self._where, self._token))
                answer = WholeAnswer(call.method)
                while (head := answer.feed(sock.recv(READ_BYTES))) is None:
                    pass
                keep = head.keep_alive
            finally:
                self._used_s = time.monotonic()
                if not keep:
                    self._drop()
        return head, answer.body

    def _followed(self, follow: Follow) -> Iterator[Record]:
        """Yield the records of one connection; raise ClientError at its end."""
        follow.connected()
        pieces = Pieces()
        with faults(self._where, SILENCE_S), dial(self._where, self._timeout_s) as sock:
            self._tails.add(sock)
            try:
                sock.settimeout(SILENCE_S)
                sock.sendall(follow.call().encoded(self._where, self._token, follow.headers()))
                while True:
                    for piece in pieces.feed(sock.recv(READ_BYTES)):
                        yield from follow.feed(piece)
            finally:
                self._tails.discard(sock)

    def _drop(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None


def _is_readable(sock: socket.socket) -> bool:
    """Return whether an idle connection has something to read, which is its end."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
