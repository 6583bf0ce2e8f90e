"""When pulls run, what is told of them, and that one pair's fault is nobody else's."""

import asyncio
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spl.core import when
from spl.core.errors import SplError
from spl.core.pair.pair import Phase
from spl.core.presence import STREAM_BACKOFF_MAX_S
from spl.net.client import Reply
from tests.nodes import LIMITS, Network, Node, join, nodes
from tests.waiting import DEADLINE_S, turns, until

PAIR = "pair_00000001"


def _another_log(node: Node, epoch: str) -> None:
    """Let a node's store say that it is another one, as a re-created home does."""
    object.__setattr__(node.home.store, "epoch", epoch)


async def test_a_source_with_another_log_resets_the_reader(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.emit("1")
        await bob.sync.pull(PAIR)
        _another_log(alice, "f" * 32)
        sent = alice.emit("2")
        assert await bob.sync.pull(PAIR) == 1
        assert sent.id in bob.ids()
        assert bob.sync.status(PAIR).last_error is None


async def test_one_thread_read_to_its_end_confirms_nothing_of_the_others(tmp_path: Path) -> None:
    """What waits on other threads is as unknown as before, so the age of the last word stays."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.emit("1", thread="th_one")
        alice.emit("2", thread="th_two")
        await bob.sync.pull(PAIR, "th_one")
        assert bob.sync.status(PAIR).last_sync_at is None
        await bob.sync.pull(PAIR)
        assert bob.sync.status(PAIR).last_sync_at is not None


async def test_more_than_three_resets_an_hour_are_reported(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.emit("1")
        await bob.sync.pull(PAIR)
        for n in range(3):
            _another_log(alice, f"{n}" * 32)
            await bob.sync.pull(PAIR)
        _another_log(alice, "f" * 32)
        with pytest.raises(SplError) as caught:
            await bob.sync.pull(PAIR)
        assert caught.value.code == "peer-rewound"
        error = bob.sync.status(PAIR).last_error
        assert error is not None
        assert error.code == "peer-rewound"


@pytest.mark.parametrize(
    ("down", "error_class"),
    [
        ("connect", "CONNECT_REFUSED"),
        ("timeout", "TIMEOUT"),
        ("dns", "DNS_FAILURE"),
        ("tls-chain", "TLS"),
        ("disconnected", "CONNECT_REFUSED"),
    ],
)
async def test_errors_are_classed_and_five_in_a_row_are_trouble(tmp_path: Path, down: str, error_class: str) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.network.down = down
        for attempt in range(1, 6):
            assert not bob.watched.heard
            with pytest.raises(SplError):
                await bob.sync.pull(PAIR)
            status = bob.sync.status(PAIR)
            assert status.attempt == attempt
            assert status.last_error.kind == error_class  # type: ignore[index]
            assert status.next_attempt_at is not None
        assert bob.watched.heard == [("trouble", PAIR, down)]
        bob.change_pair(PAIR, phase=Phase.DEGRADED)
        alice.network.down = ""
        await bob.sync.pull(PAIR)
        assert bob.watched.heard == [("trouble", PAIR, down), ("success", PAIR, "")]
        assert bob.sync.status(PAIR).attempt == 0


@pytest.mark.parametrize(
    ("status", "body", "error_class", "code", "heard"),
    [
        (401, {"code": "AUTH_INVALID", "message": "no"}, "AUTH", "auth-invalid", 1),
        (403, {"code": "SCOPE_FORBIDDEN"}, "AUTH", "scope-forbidden", 1),
        (403, {}, "HTTP_4XX", "foreign-answer", 0),
        (403, {"code": "NAMESPACE_REJECTED"}, "AUTH", "auth-invalid", 1),
        (404, {"code": "NOT_FOUND"}, "HTTP_4XX", "peer-4xx", 0),
        (429, {"code": "RATE_LIMITED"}, "HTTP_4XX", "rate-limited", 0),
        (500, {"code": "STORE_READONLY"}, "HTTP_5XX", "peer-5xx", 0),
        (502, "<html>", "HTTP_5XX", "foreign-answer", 0),
    ],
)
async def test_refusals_of_the_peer_are_classed(
    tmp_path: Path, status: int, body: Any, error_class: str, code: str, heard: int
) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.network.change = lambda path, reply: Reply(status, {}, json.dumps(body).encode(), "x")
        with pytest.raises(SplError) as caught:
            await bob.sync.pull(PAIR)
        assert caught.value.code == code
        assert bob.sync.status(PAIR).last_error.kind == error_class  # type: ignore[index]
        assert len(bob.watched.heard) == heard


@pytest.mark.parametrize(("phase", "code"), [(Phase.PAUSED, "pair-paused"), (Phase.REVOKED, "pair-revoked")])
async def test_a_peer_that_paused_or_revoked_says_so_and_that_is_no_error(
    tmp_path: Path, phase: Phase, code: str
) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.change_pair(PAIR, phase=phase, serve_allowed=False, reason="upgrade")
        with pytest.raises(SplError) as caught:
            await bob.sync.pull(PAIR)
        assert caught.value.code == code
        assert bob.watched.heard == [("peer-state", PAIR, str(phase))]
        status = bob.sync.status(PAIR)
        assert (status.last_error, status.attempt) == (None, 0)
        assert status.peer_view["reason"] == "upgrade"  # type: ignore[index]


@pytest.mark.parametrize("code", ["pair-paused", "pair-revoked"])
async def test_a_state_that_comes_without_a_view_is_backed_off_from_as_any_failure(tmp_path: Path, code: str) -> None:
    """What stands before the peer may say it, or a peer that is no daemon of ours."""
    body = json.dumps({"object": "error", "code": code, "message": "x"}).encode()
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        bob.sync._random_bytes = lambda size: b"\xff" * size
        join(alice, bob, mode="continuous")
        alice.network.change = lambda path, reply: Reply(409, {}, body, "x")
        waits_s = list[float]()
        for attempt in range(1, 7):
            await failing(bob, 1)
            status = bob.sync.status(PAIR)
            assert (status.attempt, status.last_error and status.last_error.code) == (attempt, code)
            waits_s.append(bob.sync._wait_s(bob.pair(PAIR), bob.sync._state(PAIR), 0.0) or 0.0)
        assert waits_s[-1] > 10 * waits_s[0]
        bob.change_pair(PAIR, phase=Phase.PAUSED, sync_allowed=False)
        await failing(bob, 1)  # our own refusal is no failure
        assert bob.sync.status(PAIR).attempt == 6


@pytest.mark.parametrize(
    ("phase", "code"),
    [(Phase.PAUSED, "pair-paused"), (Phase.REVOKED, "pair-revoked"), (Phase.ESTABLISHING, "pair-state-conflict")],
)
async def test_a_pair_of_ours_that_may_not_sync_asks_nothing(tmp_path: Path, phase: Phase, code: str) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        bob.change_pair(PAIR, phase=phase, sync_allowed=False)
        with pytest.raises(SplError) as caught:
            await bob.sync.pull(PAIR)
        assert caught.value.code == code
        assert not alice.network.log
        assert not bob.watched.heard


async def test_pulls_of_one_pair_join_the_next_that_starts(tmp_path: Path) -> None:
    """The first may have read past the place of a record that its peer took meanwhile; one more is enough for all."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.emit("x")
        alice.network.gate.clear()
        async with asyncio.TaskGroup() as tasks:
            pulls = [tasks.create_task(bob.sync.pull(PAIR)) for _ in range(4)]
            await turns()
            alice.network.gate.set()
        assert [pull.result() for pull in pulls] == [1, 1, 1, 1]
        assert alice.network.log.count(("GET", "/v1/sync/changes")) == 2


async def test_a_pull_brings_what_the_peer_took_after_a_running_one_had_read(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.emit("1")
        later: list[str] = []
        pulls: list[asyncio.Task[int]] = []

        def read(path: str, reply: Reply) -> Reply:
            if not later:
                later.append(alice.emit("2").id)
                pulls.append(asyncio.create_task(bob.sync.pull(PAIR)))
            return reply

        alice.network.change = read
        assert await bob.sync.pull(PAIR) == 1
        assert await pulls[0] == 2
        assert later[0] in bob.ids()


async def test_who_joined_goes_on_when_the_first_is_cancelled(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.emit("x")
        alice.network.gate.clear()
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(bob.sync.pull(PAIR))
            await turns()
            second = tasks.create_task(bob.sync.pull(PAIR))
            await turns()
            first.cancel()
            alice.network.gate.set()
        assert second.result() == 1


async def run_until(node: Node, done: Callable[[], bool]) -> None:
    """Run a node's sync until something is so; each commit and answer gives it a chance to become so."""
    stop = asyncio.Event()
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(node.sync.run(stop))
        await until(done)
        stop.set()


async def test_a_polling_pair_is_pulled_at_once_and_shows_its_next_attempt(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.emit("x")
        await run_until(bob, lambda: bob.ids() == alice.ids() and bob.sync.status(PAIR).last_sync_at is not None)
        assert bob.sync.status(PAIR).next_attempt_at is not None


async def test_short_intervals_poll_again_and_changes_count_at_once(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        sent = [alice.emit("1").id]

        def second() -> bool:
            if bob.ids() == sent and len(sent) == 1:
                # An hour would pass before the next poll, were it not for the change.
                sent.append(alice.emit("2").id)
                bob.change_pair(PAIR, poll_interval_ms=1)
                bob.sync._rouse()
            return bob.ids() == sorted(sent) and len(sent) == 2

        await run_until(bob, second)


async def test_on_demand_pairs_wait_to_be_asked(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob", "carol") as (alice, bob, carol):
        join(alice, bob, "pair_0000000a", mode="on-demand")
        join(carol, bob, "pair_0000000b")
        alice.emit("x")
        sent = carol.emit("y")
        await run_until(bob, lambda: bob.ids() == [sent.id])
        assert bob.sync.status("pair_0000000a").next_attempt_at is None
        assert await bob.sync.pull("pair_0000000a") == 1


async def test_contact_from_the_peer_ends_the_backoff_and_never_wakes_the_healthy(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.emit("x")
        alice.network.down = "connect"

        def healed() -> bool:
            if alice.network.down and bob.sync.status(PAIR).attempt:
                alice.network.down = ""
                bob.sync.wake(PAIR)
                # What it asks of us shows nothing of the way to it: only its answer ends the failures.
                assert bob.sync.status(PAIR).attempt
            return bob.ids() == alice.ids() and not bob.sync.status(PAIR).attempt

        await run_until(bob, healed)
        bob.sync.wake(PAIR)
        due = bob.sync.status(PAIR).next_attempt_at
        assert when.ms_of(due) > bob.now_ms() + 60_000


async def test_a_fault_in_one_pair_leaves_the_others_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with nodes(tmp_path, "alice", "bob", "carol") as (alice, bob, carol):
        join(alice, bob, "pair_0000000a")
        join(carol, bob, "pair_0000000b")
        sent = carol.emit("y")
        real = bob.sync.puller.run

        async def broken(pair: Any, *rest: Any) -> int:
            if pair.pair_id == "pair_0000000a":
                raise ZeroDivisionError
            return await real(pair, *rest)

        monkeypatch.setattr(bob.sync.puller, "run", broken)
        await run_until(bob, lambda: bob.ids() == [sent.id] and "sync.task_died" in caplog.text)


async def test_status_counts_as_the_source_does(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        assert (bob.sync.status(PAIR).clock, bob.sync.status(PAIR).lag_records) == (0, None)
        for n in range(4):
            alice.emit(f"{n}")
        await bob.sync.pull(PAIR)
        assert (bob.sync.status(PAIR).clock, bob.sync.status(PAIR).lag_records) == (4, 0)
        assert alice.feed.offered(PAIR).lag_records == 0
        alice.emit("5")
        offered = alice.feed.offered(PAIR)
        assert (offered.head, offered.acked, offered.lag_records) == (5, 4, 1)
        assert offered.acked_at is not None


@settings(max_examples=12)
@given(st.lists(st.tuples(st.sampled_from("ABC"), st.sampled_from(["emit", "pull", "fail", "thread"])), max_size=25))
def test_any_order_of_events_ends_in_the_same_records(steps: list[tuple[str, str]]) -> None:
    asyncio.run(_converge(steps))


async def _converge(steps: list[tuple[str, str]]) -> None:
    """Three instances in a row; whatever they did before, a few undisturbed rounds make them equal."""
    with tempfile.TemporaryDirectory() as folder:
        async with nodes(Path(folder), "a", "b", "c", limits=replace(LIMITS, queue_records=4)) as (a, b, c):
            ab, bc = join(a, b, "pair_000000ab"), join(b, c, "pair_000000bc")
            pulls = {"A": [(a, ab)], "B": [(b, ab), (b, bc)], "C": [(c, bc)]}
            network: Network = a.network
            for number, (who, what) in enumerate(steps):
                node = pulls[who][0][0]
                if what == "emit":
                    node.emit(f"{number}", thread=f"th{number % 3}")
                    continue
                network.down = "disconnected" if what == "fail" else ""
                for each, pair_id in pulls[who]:
                    try:
                        await each.sync.pull(pair_id, "th1" if what == "thread" else "")
                    except SplError as exc:
                        assert exc.code == "disconnected"
            network.down = ""
            for _ in range(3):
                for each, pair_id in [pull for some in pulls.values() for pull in some]:
                    await each.sync.pull(pair_id)
            assert a.ids() == b.ids() == c.ids()
            assert len(a.ids()) == sum(what == "emit" for _, what in steps)
            assert not any(node.home.views.refused for node in (a, b, c))


async def failing(node: Node, times: int) -> None:
    for _ in range(times):
        with pytest.raises(SplError):
            await node.sync.pull(PAIR)


async def test_after_an_outage_a_continuous_pair_dials_again_within_its_backoff(tmp_path: Path) -> None:
    """Contact from before the outage proves no NAT: else each side would wait a poll interval for the other."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob, mode="continuous", poll_interval_ms=3_600_000)
        await bob.sync.pull(PAIR)
        bob.sync.wake(PAIR)
        alice.network.down = "connect"
        await failing(bob, LIMITS.errors_until_degraded)
        status = bob.sync.status(PAIR)
        assert status.attempt == LIMITS.errors_until_degraded
        assert status.next_attempt_ms is not None
        assert status.next_attempt_ms - bob.now_ms() <= STREAM_BACKOFF_MAX_S * 1000
        assert bob.watched.heard == [("trouble", PAIR, "connect")]


async def test_what_was_mended_is_tried_at_once_and_is_no_contact(tmp_path: Path) -> None:
    """A manifest that we fetched shows that we reach the peer, and nothing of its way to us."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.network.down = "connect"
        await failing(bob, 3)
        bob.sync.retry(PAIR)
        assert bob.sync._wait_s(bob.pair(PAIR), bob.sync._state(PAIR), 0.0) == 0.0
        assert bob.reaches.presence(PAIR).contact_s is None
        bob.sync.wake(PAIR)
        assert bob.reaches.presence(PAIR).contact_s is not None


@pytest.mark.parametrize(("down", "after"), [("timeout", ["success"] * 2), ("tls-chain", ["trouble"])])
async def test_a_degraded_pair_on_demand_recovers_if_the_peer_pushes_and_only_the_way_failed(
    tmp_path: Path, down: str, after: list[str]
) -> None:
    """It is asked for a sign of life, and while it is in contact that shows that the peer is behind a NAT."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob, mode="on-demand")
        alice.network.down = down
        await failing(bob, LIMITS.errors_until_degraded)
        bob.sync.wake(PAIR)
        await failing(bob, 1)  # the trouble may not be durable yet
        bob.change_pair(PAIR, phase=Phase.DEGRADED)
        await failing(bob, 1)
        assert [what for what, *_ in bob.watched.heard] == ["trouble", *after]


async def test_a_continuous_pair_that_is_served_by_push_is_dialled_again_twice_a_minute(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob, mode="continuous", poll_interval_ms=3_600_000)
        alice.network.down = "timeout"
        await failing(bob, 1)
        bob.sync.wake(PAIR)
        await failing(bob, LIMITS.errors_until_degraded - 1)
        assert bob.reaches.word(PAIR) == "peer-pushes"
        status = bob.sync.status(PAIR)
        assert (status.attempt, status.last_error) == (0, None)
        assert status.next_attempt_ms is not None
        assert status.next_attempt_ms - bob.now_ms() <= STREAM_BACKOFF_MAX_S * 1000


@pytest.mark.parametrize("mode", ["continuous", "polling"])
async def test_a_peer_that_goes_on_to_say_that_it_paused_is_asked_ever_less_often(tmp_path: Path, mode: str) -> None:
    """Each answer also has us ask for the peer's signed word, and while that does not come, the pair stays active."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        bob.sync._random_bytes = lambda size: b"\xff" * size
        join(alice, bob, mode=mode, poll_interval_ms=1)
        alice.change_pair(PAIR, phase=Phase.PAUSED, serve_allowed=False)
        waits_s = list[float]()
        for _ in range(12):
            await failing(bob, 1)
            line = bob.sync._state(PAIR)
            waits_s.append(bob.sync._wait_s(bob.pair(PAIR), line, 0.0) or 0.0)
        assert waits_s[-1] > STREAM_BACKOFF_MAX_S / 2 > 10 * waits_s[0]
        assert (bob.sync.status(PAIR).attempt, bob.sync.status(PAIR).last_error) == (0, None)
        bob.sync.wake(PAIR)
        assert bob.sync._wait_s(bob.pair(PAIR), line, 0.0) == 0.0


async def test_a_stop_that_meets_a_failing_pull_ends_the_task(tmp_path: Path) -> None:
    """The pull's error and the cancellation come in the same turn of the loop."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.network.down = "connect"
        alice.network.gate.clear()
        stop = asyncio.Event()
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
            group.create_task(bob.sync.run(stop))
            await until(lambda: bob.sync._states and bob.sync._states[PAIR].running)
            stop.set()
            alice.network.gate.set()
