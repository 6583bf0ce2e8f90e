"""Searches take turns: nobody's number of searches holds up another principal by more than a step."""

import asyncio
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from spl.api import searches as module
from spl.api.auth import Kind, Principal
from spl.api.searches import BULK_WRITES, WORKERS, Searches
from spl.core.errors import SplError
from tests.waiting import DEADLINE_S, turns, until

ACME, VAULT, SHOP = (Principal(Kind.TOKEN, token_id=f"tok_{name}") for name in ("acme", "vault", "shop"))


class Gate:
    """Steps that wait until the test lets them go, and what was done in which order."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.begun: list[str] = []

    def held(self, name: str) -> str:
        self.begun.append(name)
        assert self.open.wait(DEADLINE_S)
        return name

    def step(self, name: str) -> str:
        self.begun.append(name)
        return name


@contextmanager
def gate() -> Iterator[Gate]:
    made = Gate()
    try:
        yield made
    finally:
        made.open.set()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread, so that the order of turns is the order of steps."""
    monkeypatch.setattr(module, "WORKERS", 1)


@pytest.mark.usefixtures("alone")
async def test_principals_are_served_round_robin() -> None:
    searches = Searches()
    with gate() as gated:
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:

            def begin(principal: Principal, work: Callable[[str], str], name: str) -> None:
                tasks.create_task(searches.step(principal, work, name))

            begin(ACME, gated.held, "acme 0")
            await until(lambda: gated.begun)
            for n in range(1, 60):
                begin(ACME, gated.step, f"acme {n}")
            await turns(2)
            begin(VAULT, gated.step, "vault 1")
            for n in (1, 2):
                begin(SHOP, gated.step, f"shop {n}")
            await turns(2)
            gated.open.set()
    assert gated.begun[:7] == ["acme 0", "acme 1", "vault 1", "shop 1", "acme 2", "shop 2", "acme 3"]
    assert len(gated.begun) == 63


async def test_one_principal_has_one_step_under_way() -> None:
    """Whatever it asks for, the other threads stay free for others."""
    searches = Searches()
    with gate() as gated:
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            mine = [tasks.create_task(searches.step(ACME, gated.held, f"acme {n}")) for n in range(2 * WORKERS)]
            await until(lambda: gated.begun)
            assert await searches.step(VAULT, gated.step, "vault") == "vault"
            assert gated.begun == ["acme 0", "vault"]
            gated.open.set()
        assert [task.result() for task in mine] == [f"acme {n}" for n in range(2 * WORKERS)]


async def test_queries_leave_a_thread_to_all_other_steps() -> None:
    """However many principals query, and whatever one step of theirs takes."""
    searches = Searches()
    with gate() as gated:

        def query(name: str) -> Generator[None, None, str]:
            gated.held(name)
            yield
            return name

        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            mine = [tasks.create_task(searches.run(who, query(who.token_id))) for who in (ACME, VAULT)]
            await until(lambda: gated.begun)
            assert await searches.step(SHOP, gated.step, "shop") == "shop"
            gone = tasks.create_task(searches.run(SHOP, query("gone")))
            await turns(2)
            gone.cancel()
            await turns(2)
            assert await searches.step(SHOP, gated.step, "again") == "again"
            assert gated.begun == [ACME.token_id, "shop", "again"]
            gated.open.set()
        assert [task.result() for task in mine] == [ACME.token_id, VAULT.token_id]


@pytest.mark.usefixtures("alone")
async def test_a_step_that_was_given_up_is_not_made() -> None:
    searches = Searches()
    with gate() as gated:
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            tasks.create_task(searches.step(ACME, gated.held, "acme"))
            await until(lambda: gated.begun)
            gone = tasks.create_task(searches.step(VAULT, gated.step, "gone"))
            await turns(2)
            gone.cancel()
            await turns(2)
            last = tasks.create_task(searches.step(SHOP, gated.step, "shop"))
            gated.open.set()
            assert await last == "shop"
    assert gated.begun == ["acme", "shop"]


async def test_a_client_that_goes_while_its_step_is_made_leaves_its_turn_to_others() -> None:
    searches = Searches()
    with gate() as gated:
        async with asyncio.timeout(DEADLINE_S):
            task = asyncio.ensure_future(searches.step(ACME, gated.held, "acme 0"))
            await until(lambda: gated.begun)
            task.cancel()
            gated.open.set()
            assert await searches.step(ACME, gated.step, "acme 1") == "acme 1"


async def test_an_error_reaches_the_one_who_asked() -> None:
    searches = Searches()
    with pytest.raises(ZeroDivisionError):
        await searches.step(ACME, partial(divmod, 1), 0)
    assert await searches.step(ACME, divmod, 7, 2) == (3, 1)


async def test_work_that_yields_is_made_by_turns() -> None:
    def counting() -> Generator[None, None, int]:
        for _ in range(3):
            made.append(threading.current_thread().name)
            yield
        return len(made)

    made: list[str] = []
    assert await Searches().run(ACME, counting()) == 3
    assert not {threading.current_thread().name} & set(made)


async def test_the_end_of_the_daemon_ends_them_at_once() -> None:
    """Neither those that wait for their turn nor the next step of one that was under way are made."""
    searches = Searches()
    with gate() as gated:
        async with asyncio.timeout(DEADLINE_S):
            tasks = [asyncio.ensure_future(searches.step(ACME, gated.held, f"acme {n}")) for n in range(9)]
            await until(lambda: gated.begun)
            searches.close()
            for task in tasks[1:]:
                with pytest.raises(SplError) as caught:
                    await task
                assert caught.value.code == "shutting-down"
            with pytest.raises(SplError):
                await searches.step(VAULT, gated.step, "vault")
            gated.open.set()
            assert await tasks[0] == "acme 0"
    assert gated.begun == ["acme 0"]


async def test_a_principal_has_so_many_writes_of_many_records_under_way() -> None:
    """Those of others do not wait for them, nor for one whose client went."""
    searches, going_on, begun = Searches(), asyncio.Event(), list[str]()

    async def write(principal: Principal) -> None:
        async with searches.bulk(principal):
            begun.append(principal.token_id)
            await going_on.wait()

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        mine = [tasks.create_task(write(ACME)) for _ in range(60)]
        await turns(5)
        assert len(begun) == BULK_WRITES
        tasks.create_task(write(VAULT))
        await turns(5)
        assert begun[BULK_WRITES:] == [VAULT.token_id]
        mine[0].cancel()
        mine[40].cancel()
        await turns(5)
        assert begun.count(ACME.token_id) == BULK_WRITES + 1
        going_on.set()
    assert begun.count(ACME.token_id) == 59
    assert searches._bulk == {}
