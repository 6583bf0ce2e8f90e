"""A peer that cannot dial us ends with the same records as one that can, and lets in nothing more."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spl.core.errors import SplError
from spl.core.identity.did import multibase
from spl.core.keys import SecretKey
from spl.core.pair.pair import Phase
from spl.core.record import page, record
from spl.core.record.page import Page
from spl.core.record.record import Sig
from spl.net.address import ReachError
from spl.net.client import Reply
from spl.sync.peer import OUT
from tests.nodes import LIMITS, Node, join, nodes
from tests.waiting import DEADLINE_S, turns, until

PAIR = "pair_00000001"
PUSHED = ("POST", "/v1/sync/records")


def walled(laptop: Node, server: Node, **options: Any) -> None:
    """Pair the two; the server cannot dial the laptop."""
    join(laptop, server, PAIR, **options)
    laptop.network.walled = {laptop.name}


async def round_trip(laptop: Node) -> int:
    """Pull and push, as one poll of the laptop or `spl sync` there does; return what was new to the server."""
    await laptop.sync.pull(PAIR)
    return await laptop.push.push(PAIR)


async def found_out(laptop: Node, server: Node) -> None:
    """Let the server try until it knows that there is no way to the laptop, and the laptop hear of it."""
    for _ in range(LIMITS.errors_until_degraded):
        await laptop.sync.pull(PAIR)
        with pytest.raises(SplError):
            await server.sync.pull(PAIR)
    await laptop.sync.pull(PAIR)


def signed(key: SecretKey, by: str, **fields: Any) -> dict[str, Any]:
    """Return the envelope of a record under any key and name."""
    value = {"act": "DO", "actor": "did:sync:user:x", "thread": "th", "body": {"n": 1}, "clock": 1, **fields}
    checked = record.check(value, LIMITS)
    id_, text = record.identify(checked, LIMITS)
    sig = Sig(by, multibase(key.public), key.sign(record.signed_text(id_, None)))
    found: dict[str, Any] = json.loads(record.seal(checked, id_, text, sig).raw)
    return found


async def test_both_end_with_the_same_records_though_one_cannot_dial(tmp_path: Path) -> None:
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        walled(laptop, server)
        for n in range(5):
            laptop.emit(f"a{n}")
            server.emit(f"b{n}")
        assert await round_trip(laptop) == 5
        assert laptop.ids() == server.ids()
        assert len(server.ids()) == 10
        laptop.emit("later")
        assert await round_trip(laptop) == 1
        assert laptop.ids() == server.ids()
        row = server.home.store.index.last("n:default")
        assert row is not None
        assert row.origin == PAIR


async def test_the_first_push_needs_no_failure_of_the_peer_before(tmp_path: Path) -> None:
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        walled(laptop, server)
        laptop.emit("1")
        stop = asyncio.Event()
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            tasks.create_task(laptop.push.run(stop))
            await laptop.sync.pull(PAIR)
            await until(lambda: laptop.ids() == server.ids())
            stop.set()
        assert not server.watched.heard


async def test_failures_while_the_peer_keeps_in_touch_degrade_nothing(tmp_path: Path) -> None:
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        walled(laptop, server)
        assert (laptop.push.reach(PAIR), server.push.reach(PAIR)) == ("both", "both")
        await found_out(laptop, server)
        assert (laptop.push.reach(PAIR), server.push.reach(PAIR)) == ("we-push", "peer-pushes")
        assert laptop.sync.status(PAIR).peer_view["reach"] == "peer-pushes"  # type: ignore[index]
        status = server.sync.status(PAIR)
        assert (status.last_error, status.attempt) == (None, 0)
        assert not server.watched.heard


async def test_a_pair_degraded_before_contact_recovers_with_it(tmp_path: Path) -> None:
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        walled(laptop, server)
        for _ in range(LIMITS.errors_until_degraded):
            with pytest.raises(SplError):
                await server.sync.pull(PAIR)
        assert server.watched.heard == [("trouble", PAIR, "connect")]
        server.change_pair(PAIR, phase=Phase.DEGRADED)
        await laptop.sync.pull(PAIR)
        with pytest.raises(SplError):
            await server.sync.pull(PAIR)
        assert server.watched.heard == [("trouble", PAIR, "connect"), ("success", PAIR, "")]


async def test_when_the_wall_falls_it_pulls_again_and_the_push_ends(tmp_path: Path) -> None:
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        walled(laptop, server)
        await found_out(laptop, server)
        laptop.emit("pushed")
        assert await round_trip(laptop) == 1
        laptop.network.walled = set()
        laptop.emit("pulled")
        before = server.home.store.last_seq
        assert await server.sync.pull(PAIR) == 1
        # One record and one position: it went on where the push had ended.
        assert server.home.store.last_seq == before + 2
        await laptop.sync.pull(PAIR)
        assert (laptop.push.reach(PAIR), server.push.reach(PAIR)) == ("both", "both")
        count = laptop.network.log.count(PUSHED)
        laptop.emit("theirs to fetch")
        assert await round_trip(laptop) == 0
        assert laptop.network.log.count(PUSHED) == count


async def test_who_can_be_dialled_gets_no_records_twice(tmp_path: Path) -> None:
    """Right after the handshake nobody knows yet; the peer's position tells before anything is sent."""
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        join(laptop, server, PAIR)
        laptop.emit("1")
        assert await server.sync.pull(PAIR) == 1
        assert await laptop.push.push(PAIR) == 0
        assert laptop.network.log.count(PUSHED) == 1
        assert laptop.push.reach(PAIR) == "both"


async def test_the_receiver_owns_the_position(tmp_path: Path) -> None:
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        walled(laptop, server)
        laptop.emit("1")
        await round_trip(laptop)
        saved = server.home.views.positions[PAIR].cursor
        for since in ("", "elsewhere", saved[:-1]):
            item = Page([], [], "new", False, {}, 0)
            with pytest.raises(SplError) as caught:
                await server.push.receive(PAIR, page.assemble_push(since, item))
            value = caught.value.to_json()
            assert (caught.value.status, value["code"], value["cursor"]) == (409, "PUSH_POSITION", saved)
            assert value["peer_view"] == server.feed.peer_view(PAIR)
        assert server.home.views.positions[PAIR].cursor == saved


async def test_a_sender_that_forgot_or_errs_is_put_right(tmp_path: Path) -> None:
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        walled(laptop, server)
        for wrong in (None, "", "nonsense"):
            sent = laptop.emit(f"{wrong}")
            laptop.push._state(PAIR).position = wrong
            before = server.home.store.last_seq
            assert await round_trip(laptop) == 1
            assert sent.id in server.ids()
            assert server.home.store.last_seq == before + 2
        assert laptop.ids() == server.ids()


async def test_a_lost_answer_costs_a_question_and_no_record(tmp_path: Path) -> None:
    async with nodes(tmp_path, "laptop", "server", limits=replace(LIMITS, page_bytes=4000)) as (laptop, server):
        walled(laptop, server)
        for n in range(40):
            laptop.emit(f"{n}")
        count = [0]

        def cut(path: str, reply: Reply) -> Reply:
            count[0] += path == PUSHED[1]
            return replace(reply, body=b"{") if path == PUSHED[1] and count[0] == 3 else reply

        laptop.network.change = cut
        with pytest.raises(SplError) as caught:
            await round_trip(laptop)
        assert caught.value.code == "answer-malformed"
        assert laptop.push.status(PAIR).last_error.code == "answer-malformed"  # type: ignore[union-attr]
        held = len(server.ids())
        assert 0 < held < 40
        assert await round_trip(laptop) == 40 - held
        assert laptop.ids() == server.ids()
        assert laptop.push.status(PAIR).last_error is None


async def test_both_sides_start_again_without_loss(tmp_path: Path) -> None:
    async with nodes(tmp_path, "laptop", "server", limits=replace(LIMITS, page_bytes=2000)) as (laptop, server):
        walled(laptop, server)
        for n in range(10):
            laptop.emit(f"{n}")
        down = [0]

        def crash(path: str, reply: Reply) -> Reply:
            down[0] += path == PUSHED[1]
            if path == PUSHED[1] and down[0] >= 3:
                raise ReachError("disconnected", "the test says so")
            return reply

        laptop.network.change = crash
        with pytest.raises(SplError):
            await round_trip(laptop)
        held = len(server.ids())
        laptop.network.change = lambda path, reply: reply
        for node in (laptop, server):
            node.close()
        again = [Node(node.name, tmp_path / node.name, laptop.network) for node in (laptop, server)]
        try:
            join(again[0], again[1], PAIR)
            assert await round_trip(again[0]) == 10 - held
            assert again[0].ids() == again[1].ids()
        finally:
            for node in (laptop, server):
                node.close = lambda: None  # type: ignore[method-assign]
            for node in again:
                node.close()


async def test_the_same_push_twice_changes_nothing(tmp_path: Path) -> None:
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        walled(laptop, server)
        sent = laptop.emit("1")
        item = Page([json.loads(sent.raw)], ["default"], "place", False, {"clock": 1}, 0)
        data = page.assemble_push("", item)
        answer = await server.push.receive(PAIR, data)
        assert (answer["records"], answer["results"]) == (1, [{"id": sent.id, "status": 200}])
        seq = server.home.store.last_seq
        with pytest.raises(SplError) as caught:
            await server.push.receive(PAIR, data)
        assert (caught.value.code, caught.value.facts["cursor"]) == ("push-position", "place")
        again = await server.push.receive(PAIR, page.assemble_push("place", item))
        assert (again["records"], again["results"]) == (0, [{"id": sent.id, "status": 200}])
        assert server.home.store.last_seq == seq


async def test_pushes_at_once_go_one_after_the_other(tmp_path: Path) -> None:
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        walled(laptop, server)
        laptop.emit("1")
        async with asyncio.TaskGroup() as tasks:
            pushes = [tasks.create_task(laptop.push.push(PAIR)) for _ in range(4)]
        assert sum(push.result() for push in pushes) == 1
        assert server.home.store.index.count("n:default") == 1


def _in_place(change: Callable[[dict[str, Any]], object]) -> Callable[[Node, dict[str, Any]], Any]:
    def apply(laptop: Node, line: dict[str, Any]) -> Any:
        change(line)
        return line

    return apply


def _well_signed(**fields: Any) -> Callable[[Node, dict[str, Any]], Any]:
    """Return what puts a record in the line's place that the laptop itself signed."""
    ns = fields.pop("ns", "default")
    return lambda laptop, line: {"ns": ns, "env": signed(laptop.key, laptop.did, **fields)}


LIES: dict[str, tuple[int, str, Callable[[Node, dict[str, Any]], Any]]] = {
    "no id of the record": (422, "record-id", _in_place(lambda line: line["env"]["record"].update(clock=99))),
    "no signature": (422, "bad-field", _in_place(lambda line: line["env"].pop("sig"))),
    "another signature": (
        422,
        "record-signature",
        _in_place(lambda line: line["env"]["sig"].update(value="A" * 86 + "==")),
    ),
    "an unknown signer": (
        422,
        "chain-unknown",
        _in_place(lambda line: line["env"]["sig"].update(by="did:sync:instance:mallory-" + "0" * 24)),
    ),
    "no record": (422, "bad-field", lambda laptop, line: {"ns": "default", "env": 7}),
    "no line": (422, "bad-field", lambda laptop, line: ["x"]),
    "a reserved thread": (403, "scope-violation", _well_signed(thread="th_federation_pairs")),
    "another namespace": (403, "scope-violation", _well_signed(ns="secret", body={"namespace": "secret"})),
    "a false namespace": (403, "scope-violation", _well_signed(body={"namespace": "secret"})),
    "another instance": (403, "scope-violation", _well_signed(actor="did:sync:instance:bob-" + "1" * 24)),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_lie_is_refused_by_itself_and_the_rest_stands(tmp_path: Path, lie: str) -> None:
    status, code, spoil = LIES[lie]
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        walled(laptop, server)
        sent = [laptop.emit(f"{n}") for n in range(3)]
        values = [json.loads(each.raw) for each in sent]
        head, *lines = page.assemble_push("", Page(values, ["default"] * 3, "place", False, {}, 0)).split(b"\n")
        lines[1] = json.dumps(spoil(laptop, json.loads(lines[1]))).encode()
        answer = await server.push.receive(PAIR, b"\n".join([head, *lines]))
        first, second, third = answer["results"]  # type: ignore[misc]
        assert (first, third) == tuple({"id": sent[n].id, "status": 200} for n in (0, 2))
        assert (second["status"], second["code"]) == (status, code)
        assert (answer["records"], answer["cursor"]) == (2, "place")
        assert server.ids() == sorted((sent[0].id, sent[2].id))
        assert server.home.views.refused == {PAIR: 1}
        assert not server.home.store.index.count("t:th_federation_pairs")


@pytest.mark.parametrize(("phase", "code"), [(Phase.PAUSED, "pair-paused"), (Phase.REVOKED, "pair-revoked")])
async def test_a_pair_at_rest_takes_nothing_and_says_so(tmp_path: Path, phase: Phase, code: str) -> None:
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        walled(laptop, server)
        laptop.emit("1")
        server.change_pair(PAIR, phase=phase, sync_allowed=False, reason="upgrade")
        with pytest.raises(SplError) as caught:
            await laptop.push.push(PAIR)
        assert caught.value.code == code
        assert laptop.watched.heard == [("peer-state", PAIR, str(phase))]
        assert server.ids() == []


async def test_what_we_paused_is_not_pushed(tmp_path: Path) -> None:
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        walled(laptop, server)
        laptop.emit("1")
        laptop.change_pair(PAIR, phase=Phase.PAUSED, sync_allowed=False, serve_allowed=False)
        assert await laptop.push.push(PAIR) == 0
        assert not laptop.network.log
        assert server.ids() == []


async def test_nothing_outside_the_agreement_is_pushed(tmp_path: Path) -> None:
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        walled(laptop, server)
        laptop.share("org")
        laptop.emit("private", ns="org")
        sent = laptop.emit("shared")
        assert await round_trip(laptop) == 1
        assert server.ids() == [sent.id]
        assert not server.home.views.refused


async def test_a_log_set_back_is_pushed_from_its_start(tmp_path: Path) -> None:
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        walled(laptop, server)
        laptop.emit("1")
        await round_trip(laptop)
        object.__setattr__(laptop.home.store, "epoch", "f" * 32)
        laptop.emit("2")
        assert await round_trip(laptop) == 1
        assert laptop.ids() == server.ids()


async def test_relayed_records_bring_their_signers_chains(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "laptop", "server") as (alice, laptop, server):
        join(alice, laptop, "pair_0000000a")
        walled(laptop, server)
        sent = alice.emit("through the laptop")
        await laptop.sync.pull("pair_0000000a")
        assert await round_trip(laptop) == 1
        assert server.ids() == [sent.id]
        assert server.home.views.pins.chain(alice.did) == alice.chain
        assert ("GET", "/v1/sync/chains") not in server.network.log


async def test_what_was_refused_for_want_of_a_chain_is_sent_again_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(tmp_path, "alice", "laptop", "server") as (alice, laptop, server):
        join(alice, laptop, "pair_0000000a")
        walled(laptop, server)
        alice.emit("1")
        await laptop.sync.pull("pair_0000000a")
        monkeypatch.setattr(page, "CHAINS_MAX", 0)
        for _ in range(3):
            assert await round_trip(laptop) == 0
        assert server.home.views.refused == {PAIR: 1}
        monkeypatch.undo()
        alice.emit("2")
        await laptop.sync.pull("pair_0000000a")
        assert await round_trip(laptop) == 2
        assert server.ids() == alice.ids()
        assert server.home.views.refused == {PAIR: 1}


async def test_both_sides_count_what_was_pushed(tmp_path: Path) -> None:
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        walled(laptop, server)
        for n in range(3):
            laptop.emit(f"{n}")
        await round_trip(laptop)
        status = server.sync.status(PAIR)
        assert (status.clock, status.lag_records) == (3, 0)
        assert status.last_sync_at is not None
        assert laptop.push.status(PAIR).last_push_ms is not None
        assert (laptop.feed.offered(PAIR).acked, laptop.feed.offered(PAIR).lag_records) == (3, 0)


async def test_a_slow_way_up_gets_smaller_pages(tmp_path: Path) -> None:
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        walled(laptop, server)
        await round_trip(laptop)
        for n in range(9):
            laptop.emit(f"{n}")
        portion = laptop.peers.portion(PAIR, OUT)
        portion.limit = 8
        laptop.network.down = "timeout"
        for left in (4, 2, 1, 1):
            with pytest.raises(SplError):
                await laptop.push.push(PAIR)
            assert portion.limit == left
        laptop.network.down = ""
        assert await laptop.push.push(PAIR) == 9


async def test_continuous_pairs_push_each_commit_they_share(tmp_path: Path) -> None:
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        walled(laptop, server, mode="continuous")
        await found_out(laptop, server)
        stop, sent = asyncio.Event(), list[str]()
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            tasks.create_task(laptop.push.run(stop))
            await turns()
            for n in range(3):
                sent.append(laptop.emit(f"{n}").id)
                await until(lambda: server.ids() == sorted(sent))
            stop.set()


async def test_a_push_that_fails_is_tried_again(tmp_path: Path) -> None:
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        walled(laptop, server)
        await found_out(laptop, server)
        laptop.emit("1")
        laptop.network.down = "connect"
        stop = asyncio.Event()
        async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
            tasks.create_task(laptop.push.run(stop))
            laptop.push._call(PAIR)
            await until(lambda: laptop.push.status(PAIR).last_error)
            laptop.network.down = ""
            await until(lambda: server.ids() == laptop.ids())
            stop.set()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"null",
        b"{}",
        b'{"cursor":"x","results":[],"records":0,"wanted":[]}',
        b'{"cursor":7,"results":[],"records":0,"wanted":[],"peer_view":{}}',
        b'{"cursor":"x","results":{},"records":0,"wanted":[],"peer_view":{}}',
        b'{"cursor":"x","results":[],"records":"0","wanted":[],"peer_view":{}}',
        b'{"cursor":"x","results":[],"records":0,"wanted":' + b"[" + b"1," * 2000 + b"1]" + b',"peer_view":{}}',
        b'{"cursor":"' + b"x" * 5000 + b'","results":[],"records":0,"wanted":[],"peer_view":{}}',
    ],
)
async def test_nonsense_instead_of_an_answer_is_an_error_and_nothing_else(tmp_path: Path, answer: bytes) -> None:
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        walled(laptop, server)
        laptop.emit("1")
        laptop.network.change = lambda path, reply: Reply(200, {}, answer, "x")
        with pytest.raises(SplError) as caught:
            await laptop.push.push(PAIR)
        assert caught.value.code == "answer-malformed"


async def test_a_peer_that_puts_us_elsewhere_without_end_is_an_error(tmp_path: Path) -> None:
    async with nodes(tmp_path, "laptop", "server") as (laptop, server):
        walled(laptop, server)
        laptop.emit("1")
        count = iter(range(1000))

        def elsewhere(path: str, reply: Reply) -> Reply:
            form = {"object": "error", "code": "PUSH_POSITION", "message": "no", "cursor": f"x{next(count)}"}
            return Reply(409, {}, json.dumps(form).encode(), "x")

        laptop.network.change = elsewhere
        with pytest.raises(SplError) as caught:
            await laptop.push.push(PAIR)
        assert caught.value.code == "push-position"
        assert laptop.network.log.count(PUSHED) < 20


async def test_a_push_over_its_size_is_refused_unread(tmp_path: Path) -> None:
    async with nodes(tmp_path, "laptop", "server", limits=replace(LIMITS, page_bytes=50, record_bytes=50)) as (
        _,
        server,
    ):
        join(_, server, PAIR)
        with pytest.raises(SplError) as caught:
            await server.push.receive(PAIR, b"x" * 101)
        assert (caught.value.code, caught.value.status) == ("body-too-large", 413)
