"""The HTTP client: one request, or one event stream, to an address that was judged.

Nothing of it is trusted: answers are bounded in size and time, certificates are
always verified, and the address that was judged is the address that is dialled
(`dialer.py`).
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urljoin

from ..core.errors import SplError
from ..core.limits import Limits
from ..core.value import dataclass, field
from .address import ReachError, Url, parse_url
from .client_socket import PIECE_COST_BYTES, ClientSocket, MovingDeadline
from .deflate import CODING, Inflater
from .dialer import Dialer, DialPolicy, Resolve
from .heads import encode_request
from .http1 import UNBOUNDED, ResponseHead, WireError
from .sockets import Verifying
from .sse import MEDIA_TYPE, Event, EventParser

_TURN_BYTES: Final = 16 * 1024
"""Of an event stream, parsed in one turn of the loop: 16 KiB of empty lines take some 10 ms."""
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_REPEATABLE: Final = frozenset({"GET", "HEAD", "OPTIONS"})

Headers = Iterable[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Reply:
    """One whole answer; `address` is the IP address that gave it."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    address: str


class HttpClient:
    """Requests over at most one idle connection per origin and policy."""

    def __init__(self, limits: Limits, *, tls: Verifying | None, resolve: Resolve | None = None) -> None:
        """`tls` None refuses https; `resolve(host, port)` returns addresses in text."""
        self._limits = limits
        self._dialer = Dialer(tls, resolve)
        self._idle: dict[tuple[str, DialPolicy], ClientSocket] = {}
        self._closed = False

    async def fetch(
        self,
        method: str,
        url: str,
        *,
        headers: Headers = (),
        body: bytes = b"",
        timeout_s: float | None = None,
        answer_bytes: int | None = None,
        dial: DialPolicy,
        retry_safe: bool = False,
    ) -> Reply:
        """Return the answer, whatever its status; redirects of a GET are followed within the origin.

        A kept connection that ended before a byte of the answer is replaced once for
        GET, HEAD and `retry_safe` requests.  With `timeout_s` all of it ends by then,
        otherwise it goes on as long as bytes move.  Raises ReachError.
        """
        where = parse_url(url)
        limit = self._limits.answer_bytes if answer_bytes is None else answer_bytes
        fields, silence_s = tuple(headers), self._limits.answer_timeout_s
        try:
            async with asyncio.timeout(silence_s if timeout_s is None else timeout_s) as until:
                progress = MovingDeadline(until, silence_s) if timeout_s is None else None
                for _ in range(self._limits.redirects_count + 1):
                    reply = await self._fetch_once(method, where, fields, body, limit, dial, retry_safe, progress)
                    if method != "GET" or reply.status not in _REDIRECTS:
                        return reply
                    where = _redirected(where, reply)
        except TimeoutError as exc:
            raise ReachError("timeout", f"{where.origin} did not answer in time") from exc
        raise ReachError("redirect", f"{where.origin} redirects more than {self._limits.redirects_count} times")

    @asynccontextmanager
    async def stream(self, url: str, *, headers: Headers = (), dial: DialPolicy) -> AsyncIterator["EventStream"]:
        """Open an event stream for the time of the `async with`; it has a connection of its own.

        Raises ReachError; for another status than 200 "peer-4xx", "peer-5xx" or "answer-malformed" with `peer_status`
        and `peer_body`; for another media type "answer-malformed".
        """
        where = parse_url(url)
        asked = (("accept", MEDIA_TYPE), ("accept-encoding", CODING), ("cache-control", "no-cache"), *headers)
        sock: ClientSocket | None = None
        try:
            try:
                async with asyncio.timeout(self._limits.answer_timeout_s):
                    sock = await self._connect(where, dial)
                    head = await sock.ask(encode(where, "GET", asked), "GET", UNBOUNDED)
                    await self._check_stream(where, sock, head)
            except TimeoutError as exc:
                raise ReachError("timeout", f"{where.origin} did not open the stream in time") from exc
            opened = EventStream(sock, head, self._limits)
            try:
                yield opened
            finally:
                opened.close()
        finally:
            if sock is not None:
                sock.abort()

    async def close(self) -> None:
        """Close the idle connections; requests that run end by themselves."""
        self._closed = True
        idle, self._idle = list(self._idle.values()), {}
        for sock in idle:
            await sock.close(self._limits.linger_s)

    async def _fetch_once(
        self, method: str, where: Url, headers: Headers, body: bytes, limit: int, policy: DialPolicy, retry_safe: bool,
        progress: MovingDeadline | None,
    ) -> Reply:  # fmt: skip
        data = encode(where, method, headers, body)
        kept = self._take_idle((where.origin, policy))
        if kept is not None and await kept.is_quiet():
            try:
                return await self._exchange(kept, data, method, where, limit, policy, progress)
            except ReachError as exc:
                if exc.code != "disconnected" or kept.answered or not (retry_safe or method in _REPEATABLE):
                    raise
        return await self._exchange(await self._connect(where, policy), data, method, where, limit, policy, progress)

    async def _exchange(
        self, sock: ClientSocket, data: bytes, method: str, where: Url, limit: int, policy: DialPolicy,
        progress: MovingDeadline | None,
    ) -> Reply:  # fmt: skip
        """Send one request and read its answer; the connection is kept or ended here in any case."""
        kept, sock.progress = False, progress
        try:
            head = await sock.ask(data, method, limit)
            _check_coding(where, head)
            body = await sock.read_body()
            if head.keep_alive and not sock.parser.buffered:
                kept = self._keep((where.origin, policy), sock)
            return Reply(head.status, head.headers, body, sock.address)
        finally:
            if progress is not None:
                progress.end()
            sock.progress = None
            if not kept:
                sock.abort()

    async def _check_stream(self, where: Url, sock: ClientSocket, head: ResponseHead) -> None:
        if head.status in _REDIRECTS:
            raise ReachError("redirect", f"{where.origin} redirects its event stream")
        if head.status != 200 or _coding(head) != CODING:
            _check_coding(where, head)
        if head.status != 200:
            body = await sock.read_body(self._limits.handshake_bytes)
            code = "peer-5xx" if head.status >= 500 else "peer-4xx" if head.status >= 400 else "answer-malformed"
            text = f"{where.origin} answered {head.status}"
            raise ReachError(code, text, peer_status=head.status, peer_headers=head.headers, peer_body=body)
        if head.headers.get("content-type", "").partition(";")[0].strip().lower() != MEDIA_TYPE:
            raise ReachError("answer-malformed", f"{where.origin} sent no event stream")

    # -- connections

    def _take_idle(self, key: tuple[str, DialPolicy]) -> ClientSocket | None:
        sock = self._idle.pop(key, None)
        if sock is None:
            return None
        sock.expiry.cancel()
        return sock

    def _keep(self, key: tuple[str, DialPolicy], sock: ClientSocket) -> bool:
        if self._closed or key in self._idle:
            return False

        def expire() -> None:
            if self._idle.get(key) is sock:
                del self._idle[key]
            sock.abort()

        sock.expiry = asyncio.get_running_loop().call_later(self._limits.pool_idle_s, expire)
        self._idle[key] = sock
        return True

    async def _connect(self, where: Url, policy: DialPolicy) -> ClientSocket:
        """Return a fresh connection."""
        try:
            made = await self._dialer.connect(where, policy, self._limits.connect_timeout_s)
        except ReachError as exc:
            exc.reached = False
            raise
        return ClientSocket(self._limits, made.reader, made.writer, made.address, where.origin)


class EventStream:
    """An open event stream: iterate over it; `status` is 200, `address` the IP address of the source.

    Ends by StopAsyncIteration when the source ends it properly.  Raises ReachError
    "timeout" after `stream_silence_s` without a byte, "disconnected", "answer-malformed".

    A read is inflated and parsed as its events are taken, and other tasks get a turn every _TURN_BYTES: one read may
    become megabytes, and a source chooses what it sends.

    One timer serves many reads, since a deadline for each costs more: it looks how long the present one has waited.
    """

    def __init__(self, sock: ClientSocket, head: ResponseHead, limits: Limits) -> None:
        self.status = head.status
        self.headers = head.headers
        self.address = sock.address
        self._sock = sock
        self._silence_s = limits.stream_silence_s
        self._parser = EventParser(limits.event_bytes)
        self._inflater = Inflater() if _coding(head) == CODING else None
        self._plain: Iterator[bytes] = iter(())  # of the read that is being parsed
        self._ready: Iterator[Event] = iter(())  # of the piece that was parsed last
        self._turn_bytes = 0
        self._ended = False
        self._loop = asyncio.get_running_loop()
        self._reads_since: float | None = None  # when the read that waits began to
        self._timer: asyncio.TimerHandle | None = None
        self._is_late = False

    def close(self) -> None:
        """Read no more."""
        if self._timer is not None:
            self._timer.cancel()

    @property
    def retry_ms(self) -> int | None:
        """The reconnection delay that the source asked for last."""
        return self._parser.retry_ms

    def __aiter__(self) -> "EventStream":
        return self

    async def __anext__(self) -> Event:
        while (found := next(self._ready, None)) is None:
            if self._turn_bytes >= _TURN_BYTES:
                self._turn_bytes = 0
                await asyncio.sleep(0)
            try:
                plain = next(self._plain, None)
                if plain is not None:
                    self._turn_bytes += len(plain)
                    self._ready = iter(self._parser.feed(plain))
                    continue
            except WireError as exc:
                raise ReachError("answer-malformed", f"{self._sock.origin}: {exc.message}") from exc
            if self._ended:
                raise StopAsyncIteration
            await self._read()
        return found

    async def _read(self) -> None:
        """Wait for the next piece of the body."""
        self._reads_since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self._silence_s, self._look)
        try:
            piece = await self._sock.next()
        except ReachError:
            self._check_late()
            raise
        finally:
            self._reads_since = None
        self._check_late()
        self._turn_bytes += PIECE_COST_BYTES
        if isinstance(piece, bytes):
            self._plain = _cut(self._inflater.feed(piece) if self._inflater is not None else (piece,))
        else:
            self._ended = True

    def _look(self) -> None:
        """End the connection if the read that waits has waited too long."""
        self._timer = None
        if self._reads_since is None:
            return  # the next read sets a timer
        if (left_s := self._reads_since + self._silence_s - self._loop.time()) > 0:
            self._timer = self._loop.call_later(left_s, self._look)
        else:
            self._is_late = True
            self._sock.abort()

    def _check_late(self) -> None:
        if self._is_late:
            raise ReachError("timeout", f"{self._sock.origin} was silent for {self._silence_s:g} s")


def encode(where: Url, method: str, headers: Headers, body: bytes = b"") -> bytes:
    """Return the request's bytes with Host and Accept-Encoding.  Raises ReachError "url-invalid"."""
    fields = [("host", where.authority), *headers]
    if not any(name == "accept-encoding" for name, _ in fields):
        fields.append(("accept-encoding", "identity"))
    try:
        return encode_request(method, where.target, fields, body)
    except WireError as exc:
        raise ReachError("url-invalid", f"{where.origin}: {exc.message}") from exc


def _coding(head: ResponseHead) -> str:
    return head.headers.get("content-encoding", "identity").lower()


def _cut(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the pieces by at most _TURN_BYTES."""
    for piece in pieces:
        for start in range(0, len(piece), _TURN_BYTES):
            yield piece[start : start + _TURN_BYTES]


def _check_coding(where: Url, head: ResponseHead) -> None:
    if _coding(head) != "identity":
        raise ReachError("answer-malformed", f"{where.origin} encodes its answer though asked not to")


def _redirected(where: Url, reply: Reply) -> Url:
    """Return where a redirect leads.  Raises ReachError "redirect" for another origin."""
    target = reply.headers.get("location", "")
    try:
        found = parse_url(urljoin(where.origin + where.target, target.partition("#")[0]))
    except (ValueError, SplError) as exc:
        raise ReachError("redirect", f"{where.origin} redirects to no valid URL") from exc
    if not target or found.origin != where.origin:
        raise ReachError("redirect", f"{where.origin} redirects to {found.origin}")
    return found
