"""All addresses of a name are tried, each judged before it is dialled; the first that is up wins, the others close."""

import asyncio
import contextlib
import gc
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from spl.net import dialer, sockets
from spl.net.address import ReachError, parse_url
from spl.net.dialer import Dialer, DialPolicy, _allowed, interleaved
from spl.net.sockets import Verifying, client_trust
from tests.net.conftest import Authority, full_queue
from tests.waiting import until

LOCAL = DialPolicy(allow_private=True)
DEADLINE_S = 30.0


@dataclass
class Peer:
    """Listeners on one port of several loopback addresses; `connected` are the connections that were accepted."""

    port: int
    silent: str = ""
    connected: list[asyncio.StreamWriter] = field(default_factory=list)
    ended: int = 0

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected.append(writer)
        with contextlib.suppress(OSError):
            await reader.read()
        self.ended += 1
        writer.close()


@contextlib.asynccontextmanager
async def peer(*answering: str, silent: str = "", tls: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
    async with contextlib.AsyncExitStack() as stack:
        made = Peer(0)
        for address in answering or ("127.0.0.1",):
            server = await asyncio.start_server(made.accept, address, made.port, ssl=tls)
            stack.push_async_callback(server.wait_closed)
            stack.callback(server.close)
            made.port = server.sockets[0].getsockname()[1]
        if silent:
            stack.enter_context(full_queue(silent, made.port))
        yield made
        for writer in made.connected:
            writer.transport.abort()


def dialer_of(*addresses: str, tls: Verifying | None = None) -> Dialer:
    async def resolve(host: str, port: int) -> list[str]:
        return list(addresses)

    return Dialer(tls, resolve)


async def connect(made: Dialer, port: int, policy: DialPolicy = LOCAL, timeout_s: float = DEADLINE_S) -> str:
    """Return the address that a connection to `localhost` came to; the connection is closed again."""
    scheme = "https" if made._tls else "http"
    won = await made.connect(parse_url(f"{scheme}://localhost:{port}/"), policy, timeout_s)
    won.writer.transport.abort()
    return won.address


async def refusal(made: Dialer, port: int, policy: DialPolicy = LOCAL, timeout_s: float = DEADLINE_S) -> ReachError:
    with pytest.raises(ReachError) as caught:
        await connect(made, port, policy, timeout_s)
    return caught.value


async def test_a_first_address_that_does_not_answer_is_passed_over() -> None:
    async with peer("127.0.0.1", silent="127.0.0.2") as made:
        assert await connect(dialer_of("127.0.0.2", "127.0.0.1"), made.port) == "127.0.0.1"


async def test_a_first_address_that_refuses_is_passed_over_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialer, "STAGGER_S", 10 * DEADLINE_S)
    async with peer("127.0.0.1") as made:
        assert await connect(dialer_of("127.0.0.3", "127.0.0.1"), made.port) == "127.0.0.1"


async def test_an_address_of_a_family_that_the_kernel_lacks_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    made_socket = socket.socket

    def without_ipv6(family: int, *args: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return made_socket(family, *args)

    async with peer("127.0.0.1") as made:
        monkeypatch.setattr(sockets.socket, "socket", without_ipv6)
        assert await connect(dialer_of("::1", "127.0.0.1"), made.port) == "127.0.0.1"
        refused = await refusal(dialer_of("::1"), made.port)
    assert (refused.code, "not supported" in refused.message) == ("connect", True)


async def test_a_certificate_of_one_address_does_not_stop_the_others(
    authority: Authority, issue: Callable[..., tuple[object, object]]
) -> None:
    wrong = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    wrong.load_cert_chain(*map(str, issue("other.example")))
    trusting = client_trust(authority.ca_file)
    async with peer("127.0.0.1", tls=authority.server) as made:
        server = await asyncio.start_server(made.accept, "127.0.0.2", made.port, ssl=wrong)
        async with server:
            assert await connect(dialer_of("127.0.0.2", "127.0.0.1", tls=trusting), made.port) == "127.0.0.1"
            refused = await refusal(dialer_of("127.0.0.2", "127.0.0.3", tls=trusting), made.port)
    assert (refused.code, "127.0.0.3" in refused.message) == ("tls-chain", True)


async def test_of_two_connections_the_second_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both attempts are held until both are connected, so that both would win."""
    real, held, both = dialer.dial, [], asyncio.Event()

    async def waits(address: str, *args: object) -> object:
        streams = await real(address, *args)  # type: ignore[arg-type]
        held.append(address)
        if len(held) == 2:
            both.set()
        await both.wait()
        return streams

    monkeypatch.setattr(dialer, "dial", waits)
    monkeypatch.setattr(dialer, "STAGGER_S", 0.0)
    async with peer("127.0.0.1", "127.0.0.2") as made:
        where = parse_url(f"http://localhost:{made.port}/")
        won = await dialer_of("127.0.0.1", "127.0.0.2").connect(where, LOCAL, DEADLINE_S)
        await until(lambda: made.ended == 1)
        assert not won.writer.transport.is_closing()
        won.writer.transport.abort()
        await until(lambda: made.ended == 2)


async def test_each_address_is_judged_before_any_is_dialled() -> None:
    """A forbidden address beside an allowed one is left out, wherever it stands; alone it is the error."""
    async with peer("127.0.0.1", "127.0.0.2") as made:
        assert await connect(dialer_of("169.254.169.254", "127.0.0.1", "224.0.0.1"), made.port) == "127.0.0.1"
        assert (await refusal(dialer_of("169.254.169.254", "10.0.0.1"), made.port)).code == "http-plain"
        refused = await refusal(dialer_of("127.0.0.1", "127.0.0.2"), made.port, DialPolicy())
        assert refused.code == "address-refused"
        assert refused.addresses == ("127.0.0.1", "127.0.0.2")
        assert len(made.connected) <= 1


async def test_the_error_names_each_address_that_was_tried() -> None:
    async with peer("127.0.0.1", silent="127.0.0.2") as made:
        refused = await refusal(dialer_of("127.0.0.3", "127.0.0.4"), made.port)
        assert refused.code == "connect"
        assert all(f"127.0.0.{n} port {made.port}: Connection refused" in refused.message for n in (3, 4))
        late = await refusal(dialer_of("127.0.0.3", "127.0.0.2"), made.port, timeout_s=3.0)
    assert late.code == "timeout"
    assert "127.0.0.3 port" in late.message
    assert "127.0.0.2: no answer" in late.message


@pytest.mark.parametrize("allow_private", [True, False])
async def test_nothing_is_left_of_a_failed_attempt(allow_private: bool) -> None:
    """A peer that is down is dialled for ever, and the collector looks seldom: no error may hold its own frames."""
    refused = dialer_of("127.0.0.1") if allow_private else dialer_of("10.0.0.1")
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            with contextlib.suppress(ReachError):
                await refused.connect(parse_url("http://x:1"), DialPolicy(allow_private, True), 5)
        assert not [each for each in gc.get_objects() if type(each) is dialer._Race]
    finally:
        gc.enable()


def test_the_families_take_turns_in_the_order_of_the_resolver() -> None:
    assert interleaved(["::1", "::2", "::3", "10.0.0.1"]) == ["::1", "10.0.0.1", "::2", "::3"]
    assert interleaved(["10.0.0.1", "10.0.0.2", "::1", "::2", "::3"]) == ["10.0.0.1", "::1", "10.0.0.2", "::2", "::3"]
    assert interleaved(["::1"]) == ["::1"]


def test_plain_http_to_a_private_network_alone() -> None:
    """Between laptops in one room; the internet stays closed, and the refusal says how to open the room."""
    where = parse_url("http://peer.example/")
    for allow_http, allowed in ((False, []), ("private", ["10.0.0.1"]), (True, ["10.0.0.1", "8.8.8.8"])):
        policy = DialPolicy(allow_private=True, allow_http=allow_http)  # type: ignore[arg-type]
        for address in ("10.0.0.1", "8.8.8.8"):
            if address in allowed:
                assert _allowed(where, [address], policy) == [address]
                continue
            with pytest.raises(ReachError) as caught:
                _allowed(where, [address], policy)
            assert caught.value.code == "http-plain"
            assert ("--lan" in caught.value.hint) == (address == "10.0.0.1")
