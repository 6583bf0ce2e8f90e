"""A connection to a NATS server: dialled, verified, signed in, with one inbox, and every wait under a deadline.

    dial -> INFO -> TLS -> CONNECT, SUB _INBOX_<name>.>, PING -> PONG: the credentials were taken

`listen` reads for as long as the connection lives and must run beside its users: it answers the server's PING, sends
our own, and hands each message to the task that waits for it.  A server that is silent for SILENCE_S although it was
asked is gone, which is how one is noticed that was stopped and not killed.

Nothing reconnects here: what was in flight is unknown then, and only the owner knows how to go on.

TLS is verified always; without it only a server on this machine is spoken to.  Between INFO and TLS nothing may come:
bytes that somebody put there would be read as if they had come through TLS.  `read` takes all that is buffered, and
`start_tls` is called before the loop runs again.
"""

import asyncio
import json
import re
import ssl
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from typing import Final

from ..core.errors import CODES
from ..core.limits import MIB
from ..core.value import Json, dataclass, field
from ..core.version import VERSION
from ..net.address import ReachError, Url, is_loopback
from ..net.dialer import Dialer, DialPolicy
from ..net.sockets import hang_up
from .credentials import Credentials
from .protocol import (
    Delivery,
    EngineError,
    NatsParser,
    Received,
    ServerError,
    ServerInfo,
    headers_of,
    published,
    said,
)  # fmt: skip

PORT: Final = 4222
OPEN_S: Final = 10.0
ANSWER_S: Final = 10.0
ASK_S: Final = 10.0
SILENCE_S: Final = 25.0
"""After ASK_S without a byte the server is asked, after this it is gone: a finding shows it within 45 s."""
LINGER_S: Final = 1.0
MESSAGE_BYTES_MAX: Final = 12 * MIB
"""A stored message comes back in base64: 4/3 of the 8 MiB that a server can be set to take, and its headers."""
BUFFER_BYTES: Final = 256 * 1024
WAITING_MAX: Final = 1024  # messages that nobody took yet; what was asked for is fewer
WAITING_BYTES_MAX: Final = 32 * MIB  # of those messages together
IDLE_EVENTS_MAX: Final = 256  # a second, of those that give nothing to anybody: a server sends a few a minute
IDLE_EVENTS_A_TURN: Final = 16

_URL: Final = re.compile(r"(nats|tls)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?/?")
_SIGNED_OUT: Final = ("authorization", "authentication", "permissions violation", "account")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server is and what we show it; `always_tls` also on this machine."""

    host: str
    port: int
    always_tls: bool
    credentials: Credentials | None = field(default=None, repr=False)
    context: ssl.SSLContext | None = field(default=None, repr=False)
    """Verifies the server; None if there is to be no TLS."""

    @property
    def where(self) -> str:
        """Host and port for people."""
        return f"{self.host} port {self.port}"


def endpoint_of(text: str) -> tuple[str, int, bool]:
    """Return (host, port, whether it says tls) of nats://HOST[:PORT] or tls://HOST[:PORT].

    Raises EngineError "sink-invalid"; a user or password in it is refused, since it would be stored and shown.
    """
    found = _URL.fullmatch(text)
    port = int(found[3] or PORT) if found else 0
    if found is None or not 0 < port < 65536:
        raise EngineError("sink-invalid", "the URL is nats://HOST:PORT or tls://HOST:PORT, without user and password")
    return found[2].strip("[]").lower(), port, found[1] == "tls"


class Nats:
    """One open connection.  `inbox` is where answers and messages to us go; all under it are ours."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, info: ServerInfo, parser: NatsParser,
        inbox: str,
    ) -> None:  # fmt: skip
        self.info = info.fields
        self.inbox = inbox
        self._reader, self._writer, self._parser = reader, writer, parser
        self._asked: dict[str, asyncio.Future[Delivery]] = {}
        self._waiting: deque[Delivery] = deque()
        self._waiting_bytes = 0
        self._news = asyncio.Event()
        self._numbers = count(1)
        self._ponged = asyncio.Event()
        self._idle_events, self._idle_since_s = 0, 0.0
        self._ended: EngineError | None = None

    @property
    def payload_max(self) -> int:
        """The largest message, headers included, that the server takes."""
        value = self.info.get("max_payload")
        return value if type(value) is int and 0 < value <= 64 * MIB else MIB

    @property
    def version(self) -> str:
        """The server's version, for people."""
        return said(str(self.info.get("version", ""))[:40])

    async def listen(self) -> None:
        """Read until the connection ends.  Raises EngineError "sink-unreachable", "sink-auth", "sink-refused"."""
        try:
            while True:
                while (event := self._parser.next()) is not None:
                    await self._take(event)
                self._parser.feed(await self._received())
        except EngineError as exc:
            self._ended = exc.bare()
            self._news.set()
            for future in self._asked.values():
                if not future.done():
                    future.set_exception(exc.bare())
                    future.exception()  # the caller may have gone
            raise

    async def request(self, subject: str, body: bytes = b"") -> Delivery:
        """Return the answer to a message.  Raises EngineError "sink-unreachable", "sink-refused"."""
        reply = f"{self.inbox}.r{next(self._numbers)}"
        future: asyncio.Future[Delivery] = asyncio.get_running_loop().create_future()
        self._asked[reply] = future
        try:
            async with asyncio.timeout(ANSWER_S):
                await self.send((published(subject, reply, b"", body),))
                found = await future
        except TimeoutError as exc:
            raise EngineError("sink-unreachable", f"no answer to {subject[:60]} within {ANSWER_S:g} s") from exc
        finally:
            del self._asked[reply], future  # which holds what ended it, and that holds this frame
        if found.head and headers_of(found.head)[0] == 503:
            raise EngineError("sink-refused", "the server has no JetStream for us", hint="start it with --jetstream")
        return found

    async def send(self, pieces: Sequence[bytes]) -> None:
        """Send messages; a server that takes none for ANSWER_S is gone."""
        if self._ended is not None:
            raise self._ended.bare()
        try:
            async with asyncio.timeout(ANSWER_S):
                self._writer.writelines(pieces)
                await self._writer.drain()
        except TimeoutError as exc:
            raise EngineError("sink-unreachable", "the server takes no bytes") from exc
        except (OSError, RuntimeError) as exc:
            raise EngineError("sink-unreachable", "the connection ended") from exc

    async def next(self, timeout_s: float) -> Delivery | None:
        """Return the next message that answers no request, None after `timeout_s`; raises what ended the connection."""
        if not self._waiting:
            if self._ended is not None:
                raise self._ended.bare()
            self._news.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._news.wait()
            if not self._waiting:
                if self._ended is not None:
                    raise self._ended.bare()
                return None
        found = self._waiting.popleft()
        self._waiting_bytes -= found.size
        return found

    @property
    def waiting(self) -> int:
        """How many messages `next` gives without waiting."""
        return len(self._waiting)

    async def close(self) -> None:
        """End the connection."""
        await hang_up(self._writer, LINGER_S)

    async def sign_in(self, options: Json) -> None:
        """Send CONNECT and wait until the server took it."""
        connect = f"CONNECT {json.dumps(options)}\r\nSUB {self.inbox}.> 1\r\nPING\r\n"
        await self.send((connect.encode(),))
        while not self._ponged.is_set():
            event = self._parser.next()
            if event is None:
                self._parser.feed(await self._bytes())
            elif isinstance(event, Delivery):
                raise EngineError("sink-refused", "the server sends messages before it took our credentials")
            else:
                await self._take(event)

    async def _take(self, event: Received) -> None:
        match event:
            case "PING":
                await self._idle()
                await self.send((b"PONG\r\n",))
            case "PONG":
                self._ponged.set()
                await self._idle()
            case ServerError(text):
                lowered = text.lower()
                code = "sink-auth" if any(word in lowered for word in _SIGNED_OUT) else "sink-unreachable"
                raise EngineError(code, f"the server says: {text}")
            case Delivery(subject=subject) if (future := self._asked.get(subject)) is not None:
                if future.done():
                    await self._idle()
                else:
                    future.set_result(event)
            case Delivery():
                self._waiting.append(event)
                self._waiting_bytes += event.size
                if len(self._waiting) > WAITING_MAX or self._waiting_bytes > WAITING_BYTES_MAX:
                    raise EngineError("sink-refused", "the server sends what was not asked for")
                self._news.set()
            case _:
                await self._idle()

    async def _idle(self) -> None:
        """Count an event that gives nothing to anybody: others run between them, and too many end the connection."""
        now_s = asyncio.get_running_loop().time()
        if now_s >= self._idle_since_s + 1.0:
            self._idle_events, self._idle_since_s = 0, now_s
        self._idle_events += 1
        if self._idle_events > IDLE_EVENTS_MAX:
            raise EngineError("sink-refused", f"the server sends more than {IDLE_EVENTS_MAX} idle lines a second")
        if self._idle_events % IDLE_EVENTS_A_TURN == 0:
            await asyncio.sleep(0)

    async def _received(self) -> bytes:
        """Return the next bytes; ask a silent server whether it is there."""
        try:
            async with asyncio.timeout(ASK_S):
                return await self._bytes()
        except TimeoutError:
            await self.send((b"PING\r\n",))
        try:
            async with asyncio.timeout(SILENCE_S - ASK_S):
                return await self._bytes()
        except TimeoutError as exc:
            raise EngineError("sink-unreachable", f"the server is silent for {SILENCE_S:g} s") from exc

    async def _bytes(self) -> bytes:
        try:
            data = await self._reader.read(BUFFER_BYTES)
        except OSError as exc:
            raise EngineError("sink-unreachable", "the connection ended") from exc
        if not data:
            raise EngineError("sink-unreachable", "the server closed the connection")
        return data


async def connect(endpoint: Endpoint, dialer: Dialer, inbox: str) -> Nats:
    """Return a connection that the server took our credentials on; its `listen` is the caller's to run.

    Raises EngineError "sink-unreachable", "sink-auth", "sink-refused".
    """
    where = Url("http", endpoint.host, endpoint.port, endpoint.where, "/")
    policy = DialPolicy(allow_private=True, allow_http=True)  # our operator named the server
    try:
        dialled = await dialer.connect(where, policy, OPEN_S)
    except ReachError as exc:  # whose other steps are for a peer
        hint = CODES[exc.code].fix if exc.code in ("dns", "no-route") else ""
        raise EngineError("sink-unreachable", exc.message, hint=hint) from exc
    try:
        async with asyncio.timeout(OPEN_S):
            info, parser = await _greeting(dialled.reader)
            plain = not endpoint.always_tls and is_loopback(dialled.address) and not info.fields.get("tls_required")
            if not plain:
                await _secure(endpoint, dialled.writer, info)
            opened = Nats(dialled.reader, dialled.writer, info, parser, inbox)
            await opened.sign_in(_options(endpoint, info, secure=not plain))
            return opened
    except TimeoutError as exc:
        dialled.writer.transport.abort()
        raise EngineError("sink-unreachable", f"{endpoint.where} did not greet within {OPEN_S:g} s") from exc
    except BaseException:
        dialled.writer.transport.abort()
        raise


async def _greeting(reader: asyncio.StreamReader) -> tuple[ServerInfo, NatsParser]:
    parser = NatsParser(MESSAGE_BYTES_MAX)
    while (event := parser.next()) is None:
        try:
            data = await reader.read(BUFFER_BYTES)
        except OSError as exc:
            raise EngineError("sink-unreachable", "the connection ended") from exc
        if not data:
            raise EngineError("sink-unreachable", "the server closed the connection")
        parser.feed(data)
    if isinstance(event, ServerError):
        raise EngineError("sink-unreachable", f"the server says: {event.text}")
    if not isinstance(event, ServerInfo) or parser.pending:
        raise EngineError("sink-refused", "the server does not begin with INFO, so it speaks another protocol")
    if event.fields.get("headers") is not True:
        raise EngineError("sink-refused", "the server takes no headers", hint="use a nats-server from 2.2 on")
    return event, parser


async def _secure(endpoint: Endpoint, writer: asyncio.StreamWriter, info: ServerInfo) -> None:
    if not (info.fields.get("tls_required") or info.fields.get("tls_available")):
        hint = "set tls in its configuration; without TLS only a server on this machine is used"
        raise EngineError("sink-unreachable", f"{endpoint.where} offers no TLS", hint=hint)
    if endpoint.context is None:
        raise EngineError("sink-unreachable", "this client was made without TLS")
    try:
        await writer.start_tls(endpoint.context, server_hostname=endpoint.host)
    except ssl.SSLCertVerificationError as exc:
        hint = "trust a private CA with --ca FILE"
        text = f"{endpoint.host}: certificate refused: {exc.verify_message}"
        raise EngineError("sink-unreachable", text, hint=hint) from exc
    except (ssl.SSLError, OSError) as exc:
        hint = "look at tls in its configuration, and into its log"
        raise EngineError("sink-unreachable", f"{endpoint.host}: TLS failed", hint=hint) from exc


def _options(endpoint: Endpoint, info: ServerInfo, *, secure: bool) -> Json:
    """Return what CONNECT says; the nonce is signed only for a server that asks for it."""
    options: Json = {
        "verbose": False, "pedantic": False, "echo": False, "tls_required": secure, "name": "spl", "lang": "spl",
        "version": VERSION, "protocol": 1, "headers": True, "no_responders": True,
    }  # fmt: skip
    nonce = info.fields.get("nonce")
    if endpoint.credentials is None:
        return options
    if not isinstance(nonce, str) or not 0 < len(nonce) <= 256:
        return options  # a server without users, which takes everybody
    if not nonce.isascii():
        raise EngineError("sink-refused", "the server gives its nonce in another form")
    return {**options, **endpoint.credentials.answer(nonce)}
