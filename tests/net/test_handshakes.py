"""How many TLS handshakes are under way: in all, for each source, and who is next."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator

import pytest

from spl.core.limits import Limits
from spl.net.address import Proxies
from spl.net.handshakes import HURRY, SHARE, Handshakes, begun
from tests.net.conftest import Authority, Serve
from tests.waiting import DEADLINE_S, turns, until

FAR = "192.0.2.7"


class Callers:
    """Tasks that handshake until they are told to end."""

    def __init__(self, handshakes: Handshakes, tasks: asyncio.TaskGroup) -> None:
        self.handshakes, self.tasks = handshakes, tasks
        self.inside: list[str] = []
        self.ends: dict[str, asyncio.Event] = {}
        self.made: dict[str, asyncio.Task[None]] = {}

    async def call(self, name: str, address: str) -> None:
        """Begin one, and let it go as far as it may."""
        self.ends[name] = asyncio.Event()
        self.made[name] = self.tasks.create_task(self._run(name, address))
        await turns(3)

    async def end(self, name: str) -> None:
        """End one in order."""
        self.ends[name].set()
        await turns(3)

    async def _run(self, name: str, address: str) -> None:
        with self.handshakes.turn(address) as turn:
            await turn.free
            self.inside.append(name)
            try:
                await self.ends[name].wait()
            finally:
                self.inside.remove(name)


@contextlib.asynccontextmanager
async def calling(count: int, share: int, *proxies: str) -> AsyncIterator[Callers]:
    async with asyncio.TaskGroup() as tasks:
        callers = Callers(Handshakes(Proxies(proxies), count, share), tasks)
        yield callers
        assert not callers.handshakes.are_waited_for
        for end in callers.ends.values():
            end.set()
    assert not callers.inside


async def test_a_source_has_its_share_and_holds_up_no_other() -> None:
    async with calling(3, 2) as callers:
        for name in ("a1", "a2", "a3"):
            await callers.call(name, "192.0.2.1")
        assert callers.inside == ["a1", "a2"]
        await callers.call("b1", "192.0.2.2")
        assert callers.inside == ["a1", "a2", "b1"]
        await callers.end("b1")
        assert callers.inside == ["a1", "a2"]
        await callers.end("a1")
        assert callers.inside == ["a2", "a3"]


async def test_the_source_with_the_fewest_is_next() -> None:
    async with calling(3, 2) as callers:
        for name, address in (("a1", "1"), ("a2", "1"), ("b1", "2"), ("b2", "2"), ("b3", "2"), ("c1", "3")):
            await callers.call(name, f"192.0.2.{address}")
        assert callers.inside == ["a1", "a2", "b1"]
        for over, then in (("a1", "c1"), ("a2", "b2"), ("b1", "b3")):
            await callers.end(over)
            assert callers.inside[-1] == then


async def test_a_trusted_proxy_has_no_share() -> None:
    async with calling(4, 1, "192.0.2.0/24") as callers:
        for name in ("a1", "a2", "a3"):
            await callers.call(name, FAR)
        assert len(callers.inside) == 3


async def test_who_gives_up_takes_no_turn() -> None:
    """While it waits, and in the moment in which its turn comes."""
    async with calling(1, 1) as callers:
        for name in ("a", "b", "c", "d"):
            await callers.call(name, FAR)
        callers.made["b"].cancel()
        await turns(3)
        callers.ends["a"].set()
        callers.made["c"].cancel()
        await turns(5)
        assert callers.inside == ["d"]


async def test_handshakes_have_a_fifth_of_their_time_while_others_wait() -> None:
    async with calling(1, 1) as callers:
        await callers.call("a", FAR)
        began = asyncio.get_running_loop().time()
        callers.handshakes.hurry(began + 100, 10.0)
        await turns(3)
        assert callers.inside == ["a"]
        await callers.call("b", FAR)
        callers.handshakes.hurry(0.0, 10.0)
        await turns(3)
        assert callers.inside == ["a"]
        callers.handshakes.hurry(began + 10.0 / HURRY, 10.0)
        await turns(5)
        assert callers.inside == ["b"]


async def test_a_socket_has_begun_with_its_first_byte_or_its_end() -> None:
    for act in (lambda sock: sock.send(b"\x16"), lambda sock: sock.close()):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            async with asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(begun(ours))
                await turns(3)
                assert not waiting.done()
                act(theirs)
            assert not asyncio.get_running_loop().remove_reader(ours)


class Counted(ssl.SSLContext):
    """A context that counts the connections that it was used for."""

    made = 0

    def wrap_bio(self, *args: object, **named: object) -> ssl.SSLObject:
        type(self).made += 1
        return super().wrap_bio(*args, **named)  # type: ignore[arg-type]


@pytest.mark.parametrize(("sent", "most"), [(b"", 0), (b"\x16\x03\x01\x02\x00\x01", SHARE)], ids=["silent", "half"])
async def test_what_strangers_cost_at_a_tls_listener(
    serve: Serve, authority: Authority, sent: bytes, most: int
) -> None:
    """Silent ones cost a socket each, half hellos no more than their source's share; and others get in."""
    context = Counted(ssl.PROTOCOL_TLS_SERVER)
    authority.ca.issue_cert("127.0.0.1").configure_cert(context)
    Counted.made = 0
    async with serve(Limits(head_timeout_s=100 * DEADLINE_S, shutdown_s=0.2), tls=context) as server:
        strangers = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(4 * SHARE)]
        for sock in strangers:
            sock.sendall(sent)
        await until(lambda: server.server._admission.taken == len(strangers) and Counted.made == most)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", server.port, local_addr=("127.0.0.2", 0),
            ssl=ssl.create_default_context(cafile=authority.ca_file),
        )  # fmt: skip
        writer.write(b"GET /here/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        assert Counted.made == most + 1
        writer.close()
        for sock in strangers:
            sock.close()
