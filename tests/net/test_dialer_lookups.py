"""Lookups of names: a few at a time, one for each name, none of which outlives its use or holds up another name."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from spl.net.dialer import Resolver
from tests.waiting import turns, until


class Names:
    """The system's lookup, which for some names hangs until the test ends."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go = threading.Event()

    def look_up(
        self, host: str, port: int, **_: object
    ) -> list[tuple[object, object, object, object, tuple[str, int]]]:
        self.asked.append(host)
        if host.startswith("hangs"):
            self.go.wait(30)
        if host.endswith("nowhere"):
            raise socket.gaierror(socket.EAI_NONAME, "not known")
        return [(None, None, None, None, ("192.0.2.7", port))]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    found = Names()
    monkeypatch.setattr(socket, "getaddrinfo", found.look_up)
    yield found
    found.go.set()


async def test_a_name_that_hangs_holds_one_slot_however_often_it_is_dialled(names: Names) -> None:
    resolver, loop = Resolver(), asyncio.get_running_loop()
    waiting = [loop.create_task(resolver.resolve("hangs.example", 443)) for _ in range(50)]
    await until(lambda: names.asked)
    assert await resolver.resolve("bob.example", 443) == ["192.0.2.7"]
    assert names.asked == ["hangs.example", "bob.example"]
    for task in waiting[1:]:
        task.cancel()
    await turns(3)
    names.go.set()
    assert await waiting[0] == ["192.0.2.7"], "a caller that left cancelled nobody else's lookup"


async def test_a_lookup_that_ended_is_made_again_by_the_next_caller(names: Names) -> None:
    resolver = Resolver()
    for _ in range(2):
        with pytest.raises(OSError, match="not known"):
            await resolver.resolve("nowhere", 443)
    assert names.asked == ["nowhere", "nowhere"]


async def test_names_that_hang_are_few_at_a_time_and_the_next_waits(names: Names) -> None:
    resolver, loop = Resolver(), asyncio.get_running_loop()
    waiting = [loop.create_task(resolver.resolve(f"hangs-{number}", 443)) for number in range(12)]
    await until(lambda: len(names.asked) == 8)
    late = loop.create_task(resolver.resolve("bob.example", 443))
    await turns(5)
    assert len(names.asked) == 8
    names.go.set()
    assert await late == ["192.0.2.7"]
    for task in waiting:
        with suppress(OSError):
            await task
