"""Steps are taken one at a time, and what follows them is kept until the service starts it."""

import asyncio
import threading
from pathlib import Path

import pytest

from spl.core.pair import steps
from spl.pairing import stepper as stepper_module
from spl.pairing.stepper import Changes
from spl.sync.supervise import wait
from tests.pair_world import paired, two


async def test_a_change_is_not_missed_between_looking_and_waiting() -> None:
    changes = Changes()
    event = changes.next
    changes.notify()
    await wait(event, 3600)
    assert changes.next is not event
    assert not changes.next.is_set()


async def test_steps_are_taken_one_at_a_time(tmp_path: Path) -> None:
    """A second step does not begin before the first has ended, though the loop goes on meanwhile."""
    async with two(tmp_path) as (_, a, _b):
        running, overlaps, both = 0, 0, threading.Event()

        def work(seconds: float) -> None:
            nonlocal running, overlaps
            running += 1
            overlaps += running > 1
            both.wait(seconds)
            running -= 1

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(a.pairing.stepper.do(work, 0.01))
        assert overlaps == 0


async def test_the_effects_of_a_step_are_taken_once(tmp_path: Path) -> None:
    async with paired(tmp_path) as (_, a, _b, pair_id):
        stepper = a.pairing.stepper
        changed = stepper.changes.next
        _, effects = await stepper.do(lambda: a.pairing.pairs.take(a.alive[0], steps.Pause()))
        stepper.follow(pair_id, effects)
        assert changed.is_set()
        assert [effect for _, effect in stepper.take_effects()] == list(effects)
        assert stepper.take_effects() == []


async def test_an_effect_that_finds_no_room_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with two(tmp_path) as (_, a, _b):
        monkeypatch.setattr(stepper_module, "JOBS_MAX", 2)
        for number in range(3):
            a.pairing.stepper.follow(f"pair_{number}", [steps.Resync()])
        assert [pair_id for pair_id, _ in a.pairing.stepper.take_effects()] == ["pair_1", "pair_2"]
    [line] = [record for record in caplog.records if record.message == "pairing.queue_overflowed"]
    assert line.fields["dropped"] == "pair_0"  # type: ignore[attr-defined]


async def test_the_thread_of_the_steps_ends_with_the_service(tmp_path: Path) -> None:
    async with two(tmp_path) as (_, a, _b):
        thread = await a.pairing.stepper.do(threading.current_thread)
        await a.end()
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()
        a.start()
