"""Promises of reconcile: what differs is found and repaired, at the cost of the difference, and nothing else shows."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spl.core.consent import KIND_GRANT, KIND_PEER_GRANT, Grant
from spl.core.consent import THREAD as THREAD_CONSENT
from spl.core.errors import SplError
from spl.core.pair.pair import Phase
from spl.core.record import fingerprint
from spl.core.record.fingerprint import HELD, OPPOSITE, Question, Search
from spl.core.record.record import Envelope
from spl.home.writes import Arrive, Emit, Own
from spl.net.client import Reply
from spl.sync.compare import reconcile
from spl.sync.peer import FINGERPRINTS, RECORDS
from tests.nodes import Node, join, nodes
from tests.store_kit import set_views

KEY = "5a" * 16


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Node, Node, str]]:
    async with nodes(tmp_path, "ann", "ben") as (ann, ben):
        yield ann, ben, join(ann, ben)


def emit_many(node: Node, count: int, ns: str = "", thread: str = "th") -> list[Envelope]:
    body = {"namespace": ns} if ns else {}
    items = [Emit({"act": "DO", "actor": f"did:sync:user:{node.name}", "thread": thread, "body": {**body, "n": n}})
             for n in range(count)]  # fmt: skip
    made = [outcome.envelope for outcome in node.write(*items)]
    return [envelope for envelope in made if envelope is not None]


def bring(node: Node, pair_id: str, *envelopes: Envelope, ns: str = "default") -> None:
    """Store records as if the pair had delivered them."""
    node.write(*(Arrive(envelope, ns, pair_id) for envelope in envelopes))


def grant(one: Node, two: Node, pair_id: str, ns: str, maps: str, level: int | None, version: int = 1) -> None:
    """Let a node grant a namespace, its peer being told."""
    body = {"pair_id": pair_id, "grant": Grant(ns, maps, level, version).to_json()}
    one.write(Own(THREAD_CONSENT, KIND_GRANT, body))
    two.write(Own(THREAD_CONSENT, KIND_PEER_GRANT, body))


def ids(found: Any) -> list[str]:
    return [item["id"] for item in found]


async def asked(node: Node, pair_id: str, question: Question) -> fingerprint.FingerprintAnswer:
    return fingerprint.answer_of(await node.fingerprints.answer(pair_id, question.encode()), question)


async def test_both_directions_are_compared_in_one_go(pair: tuple[Node, Node, str]) -> None:
    ann, ben, pair_id = pair
    shared = emit_many(ann, 40)
    bring(ben, pair_id, *shared)
    lost, unread = ann.emit("ben lacks it"), ben.emit("ann lacks it")
    report: Any = (await ann.reconcile.verify(pair_id)).to_json()
    assert (report["equal"], report["complete"], report["repaired"]) == (False, True, None)
    assert ids(report["missing_here"]) == [unread.id]
    assert ids(report["missing_there"]) == [lost.id]
    row = {"namespace": "default", "here_records": 41, "there_records": 41, "missing_here": 1, "missing_there": 1}
    assert report["namespaces"] == [row]
    report = (await ben.reconcile.verify(pair_id)).to_json()
    assert (ids(report["missing_here"]), ids(report["missing_there"])) == ([lost.id], [unread.id])


async def test_repair_brings_both_sides_what_they_lack(pair: tuple[Node, Node, str]) -> None:
    """Records that the cursor went past, or that a side lost: pulled here, pushed there, and then both are equal."""
    ann, ben, pair_id = pair
    emit_many(ann, 60)
    emit_many(ben, 60)
    await ann.sync.pull(pair_id)
    await ben.sync.pull(pair_id)
    skipped = emit_many(ben, 3, thread="th_2")
    missed = emit_many(ann, 5, thread="th_2")
    report: Any = (await ann.reconcile.verify(pair_id, repair=True)).to_json()
    assert report["equal"]
    assert report["repaired"] == {"fetched_records": 3, "pushed_records": 5}
    assert ann.ids() == ben.ids()
    assert len(ann.ids()) == 128
    assert {envelope.id for envelope in (*skipped, *missed)} <= set(ben.ids())
    again: Any = (await ben.reconcile.verify(pair_id)).to_json()
    assert (again["equal"], again["questions"]) == (True, 1)


async def test_a_side_gets_its_own_records_back(pair: tuple[Node, Node, str], tmp_path: Path) -> None:
    ann, ben, pair_id = pair
    made = emit_many(ann, 10)
    await ben.sync.pull(pair_id)
    async with nodes(tmp_path / "again", "cleo") as (cleo,):
        # A home put back from an old copy: the same peer, without the records.
        cleo.network.nodes |= {"ben": ben}
        ben.network.nodes["cleo"] = cleo
        other = join(cleo, ben, "pair_00000002")
        report: Any = (await cleo.reconcile.verify(other, repair=True)).to_json()
        assert report["equal"]
        assert set(cleo.ids()) == {envelope.id for envelope in made}


async def test_the_side_that_can_dial_repairs_both(pair: tuple[Node, Node, str]) -> None:
    """One side is behind a NAT: all questions and all records go over connections that it opens."""
    ann, ben, pair_id = pair
    ann.network.walled = {"ann"}
    emit_many(ann, 4)
    theirs = emit_many(ben, 4)
    with pytest.raises(SplError) as caught:
        await ben.reconcile.verify(pair_id)
    assert caught.value.code == "connect"
    report: Any = (await ann.reconcile.verify(pair_id, repair=True)).to_json()
    assert report["repaired"]["fetched_records"] == len(theirs)
    ann.reaches.heard(pair_id, {"reach": "peer-pushes"})
    await ann.push.push(pair_id)  # who never read from us has no place to go on from yet
    lost = ann.emit("not sent")
    report = (await ann.reconcile.verify(pair_id, repair=True)).to_json()
    assert (report["equal"], ann.ids()) == (True, ben.ids())
    assert lost.id in ben.ids()


async def test_the_cost_is_that_of_the_difference(pair: tuple[Node, Node, str]) -> None:
    ann, ben, pair_id = pair
    made = [envelope for at in range(10) for envelope in emit_many(ann, 300, thread=f"th_{at}")]
    bring(ben, pair_id, *(envelope for at, envelope in enumerate(made) if at % 1000))
    report: Any = (await ben.reconcile.verify(pair_id)).to_json()
    assert len(report["missing_here"]) == 3
    assert report["questions"] < 6
    assert report["received_bytes"] + report["sent_bytes"] < 6000
    bring(ben, pair_id, *made)
    report = (await ben.reconcile.verify(pair_id)).to_json()
    assert (report["equal"], report["questions"]) == (True, 1)
    assert report["received_bytes"] + report["sent_bytes"] < 500


async def test_more_than_is_listed_is_repaired_in_turns(
    pair: tuple[Node, Node, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, ben, pair_id = pair
    monkeypatch.setattr(reconcile, "FOUND_MAX", 50)
    next_ = Search.next
    monkeypatch.setattr(Search, "next", lambda self: next_(self, 4))
    for at in range(4):
        emit_many(ben, 500, thread=f"th_{at}")
    report: Any = (await ann.reconcile.verify(pair_id)).to_json()
    assert (report["equal"], report["complete"]) == (False, False)
    assert 0 < len(report["missing_here"]) <= 2000
    report = (await ann.reconcile.verify(pair_id, repair=True)).to_json()
    assert (report["equal"], report["repaired"]["fetched_records"]) == (True, 2000)


async def test_what_is_refused_is_named_and_tried_again(pair: tuple[Node, Node, str]) -> None:
    ann, ben, pair_id = pair
    made = ben.emit("by somebody whom the pair is narrowed to leave out", actor="did:sync:user:eve")
    ann.change_pair(pair_id, actors=("did:sync:user:ben",))
    assert await ann.sync.pull(pair_id) == 0
    report: Any = (await ann.reconcile.verify(pair_id, repair=True)).to_json()
    assert report["missing_here"] == [{"id": made.id, "namespace": "default", "refused": "scope-violation"}]
    assert not report["equal"]
    assert ann.home.views.refused[pair_id] == 1
    ann.change_pair(pair_id, actors=())
    report = (await ann.reconcile.verify(pair_id, repair=True)).to_json()
    assert (report["equal"], ann.ids()) == (True, [made.id])


async def test_what_repair_finds_refused_goes_into_the_ledger(pair: tuple[Node, Node, str]) -> None:
    ann, ben, pair_id = pair
    ben.emit("from eve", actor="did:sync:user:eve")
    ann.change_pair(pair_id, actors=("did:sync:user:ben",))
    for _ in range(2):
        await ann.reconcile.verify(pair_id, repair=True)
        assert ann.home.views.refused[pair_id] == 1


async def test_what_arrives_meanwhile_is_no_difference(pair: tuple[Node, Node, str]) -> None:
    ann, ben, pair_id = pair
    late, early = ben.emit("on its way"), ann.emit("on its way there")

    def arrive(path: str, reply: Reply) -> Reply:
        if path == FINGERPRINTS:
            bring(ann, pair_id, late)
            bring(ben, pair_id, early)
        return reply

    ann.network.change = arrive
    report: Any = (await ann.reconcile.verify(pair_id)).to_json()
    assert (report["equal"], report["missing_here"], report["missing_there"]) == (True, [], [])


async def test_what_the_pair_does_not_share_is_in_no_sum_and_no_answer(pair: tuple[Node, Node, str]) -> None:
    """Other namespaces, hidden threads, others' records without relay: the answers are those of a home without them."""
    ann, ben, pair_id = pair
    for node in (ann, ben):
        node.share("secret")
        node.change_pair(pair_id, relay=False)
    seen = ben.emit("seen")
    question = Question(KEY, ranges=dict.fromkeys(OPPOSITE, ("", "a", "ab12")), names={HELD: (seen.id[:32],)})
    before = await asked(ben, pair_id, question)
    hidden = [ben.emit("hidden", ns="secret", thread="th_x"), ann.emit("another's")]
    stranger = "pair_other"
    ben.write(Arrive(ann.emit("by ann"), "secret", stranger))
    ben.write(Own(THREAD_CONSENT, KIND_GRANT, {"pair_id": stranger, "grant": Grant("secret", "x", 0, 1).to_json()}))
    assert await asked(ben, pair_id, question) == before
    marks = {each.id: fingerprint.mark_of(KEY, each.raw) for each in hidden}
    nothing = Question(KEY, names={HELD: tuple(sorted(each.id[:32] for each in hidden))}, have=marks)
    answer = await asked(ben, pair_id, nothing)
    assert set(answer.lacking) == set(marks)
    assert answer.names[HELD] == {}


async def test_nobody_probes_for_records_by_their_ids(pair: tuple[Node, Node, str]) -> None:
    """Whether we hold a record is told only to who shows its very envelope."""
    _, ben, pair_id = pair
    made = ben.emit("secret")
    marks = dict.fromkeys((made.id, "ab" * 32), "00" * 16)
    answer = await asked(ben, pair_id, Question(KEY, have=marks))
    assert set(answer.lacking) == set(marks)
    answer = await asked(ben, pair_id, Question(KEY, have={made.id: fingerprint.mark_of(KEY, made.raw)}))
    assert answer.lacking == ()


async def test_records_without_relay_and_under_a_rule_are_no_difference(pair: tuple[Node, Node, str]) -> None:
    """What a side does not offer is not missed, and what it got from elsewhere does not look lost."""
    ann, ben, pair_id = pair
    ben.change_pair(pair_id, relay=False)
    kept = replace(ben.pair(pair_id).filters[0], thread_allow=("th_open",))
    ben.change_pair(pair_id, filters=(kept,))
    opened = ben.emit("open", thread="th_open")
    ben.emit("closed", thread="th_closed")
    report: Any = (await ann.reconcile.verify(pair_id)).to_json()
    assert (ids(report["missing_here"]), report["missing_there"]) == ([opened.id], [])
    assert report["namespaces"][0]["there_records"] == 1
    report = (await ann.reconcile.verify(pair_id, repair=True)).to_json()
    assert (report["equal"], ann.ids()) == (True, [opened.id])


async def test_a_pair_that_starts_in_the_present_compares_from_there(pair: tuple[Node, Node, str]) -> None:
    ann, ben, pair_id = pair
    emit_many(ben, 30)
    ben.change_pair(pair_id, start="present", start_seq=ben.home.store.last_seq)
    new = ben.emit("new")
    report: Any = (await ann.reconcile.verify(pair_id)).to_json()
    assert ids(report["missing_here"]) == [new.id]
    assert report["namespaces"][0]["there_records"] == 1


@pytest.mark.parametrize("level", [1, 2, 3])
async def test_projections_are_compared_by_the_names_that_they_travel_under(
    pair: tuple[Node, Node, str], level: int
) -> None:
    ann, ben, pair_id = pair
    ben.share("music")
    ann.share("records")
    grant(ben, ann, pair_id, "music", "records", level)
    made = emit_many(ben, 50, ns="music")
    await ann.sync.pull(pair_id)
    report: Any = (await ann.reconcile.verify(pair_id)).to_json()
    assert (report["equal"], report["beyond_offer"]) == (True, 0)
    assert {"namespace": "records", "here_records": 50, "there_records": 50, "missing_here": 0,
            "missing_there": 0} in report["namespaces"]  # fmt: skip
    other: Any = (await ben.reconcile.verify(pair_id)).to_json()
    assert other["equal"]
    last = ben.emit("one more", ns="music")
    report = (await ann.reconcile.verify(pair_id)).to_json()
    assert report["equal"] is False
    assert (ids(report["missing_here"]), report["nameless_here"]) == (([last.id], 0) if level == 1 else ([], 1))
    assert last.id not in str(report) or level == 1
    report = (await ann.reconcile.verify(pair_id, repair=True)).to_json()
    assert report["equal"]
    assert len(made) + 1 == ann.home.store.index.count(f"x:{pair_id}")


async def test_a_namespace_that_was_withdrawn_leaves_the_comparison(pair: tuple[Node, Node, str]) -> None:
    ann, ben, pair_id = pair
    emit_many(ben, 20)
    grant(ben, ann, pair_id, "default", "default", None)
    report: Any = (await ann.reconcile.verify(pair_id)).to_json()
    assert (report["equal"], report["missing_here"]) == (True, [])


async def test_what_both_hold_and_the_pair_does_not_share_is_only_counted(pair: tuple[Node, Node, str]) -> None:
    """As after pairing again from the present: neither side offers it, so nothing is said of who holds it."""
    ann, ben, pair_id = pair
    emit_many(ann, 2)
    await ben.sync.pull(pair_id)
    for node in (ann, ben):
        node.change_pair(pair_id, start="present", start_seq=node.home.store.last_seq)
    for node in (ann, ben):
        report: Any = (await node.reconcile.verify(pair_id)).to_json()
        assert (report["equal"], report["missing_here"], report["missing_there"]) == (True, [], [])
        assert report["beyond_offer"] == (2 if node is ben else 0)
    assert ann.ids() == ben.ids()


async def test_a_scope_that_changes_between_two_questions_is_reckoned_anew(pair: tuple[Node, Node, str]) -> None:
    ann, ben, pair_id = pair
    emit_many(ben, 20)
    question = Question(KEY, ranges={HELD: ("",)})
    assert (await asked(ben, pair_id, question)).counts[HELD] == {"default": 20}
    ben.emit("later")
    assert (await asked(ben, pair_id, question)).counts[HELD] == {"default": 20}, "one comparison sees one moment"
    grant(ben, ann, pair_id, "default", "default", None)
    assert (await asked(ben, pair_id, question)).counts[HELD] == {}


async def test_a_resumed_pair_gets_what_the_cursor_went_past(pair: tuple[Node, Node, str]) -> None:
    ann, ben, pair_id = pair
    emit_many(ben, 20)
    await ann.sync.pull(pair_id)
    ann.emit("mine")
    ben.emit("skipped")
    assert (await ann.reconcile.mend(pair_id))[1].fetched == 1
    assert len(ann.ids()) == 22
    assert len(ben.ids()) == 21, "mending sends nothing"
    assert (await ann.reconcile.mend(pair_id))[1].fetched == 0


@pytest.mark.parametrize(("phase", "code"), [(Phase.PAUSED, "pair-paused"), (Phase.REVOKED, "pair-revoked")])
async def test_a_pair_at_rest_is_neither_compared_nor_answered(
    pair: tuple[Node, Node, str], phase: Phase, code: str
) -> None:
    ann, ben, pair_id = pair
    ben.change_pair(pair_id, phase=phase, serve_allowed=False, sync_allowed=False)
    for node in (ann, ben):
        with pytest.raises(SplError) as caught:
            await node.reconcile.verify(pair_id)
        assert caught.value.code == code


@pytest.mark.parametrize(
    "lie",
    [
        b"", b"{}", b'{"ranges":{}}', b'{"ranges":{"held":["n"],"shown":["n"],"seen":["x"]}}',
        b'{"ranges":{"held":["s%s"],"shown":["n"],"seen":["n"]}}' % (b"A" * 171 + b"="),
    ],
)  # fmt: skip
async def test_a_peer_that_lies_ends_the_comparison_with_a_code(pair: tuple[Node, Node, str], lie: bytes) -> None:
    ann, _, pair_id = pair
    ann.emit("x")

    def change(path: str, reply: Reply) -> Reply:
        return replace(reply, body=lie) if path == FINGERPRINTS and reply.status == 200 else reply

    ann.network.change = change
    with pytest.raises(SplError) as caught:
        await ann.reconcile.verify(pair_id)
    assert caught.value.code == "answer-malformed"


async def test_a_peer_whose_records_never_come_ends_the_repair(pair: tuple[Node, Node, str]) -> None:
    """It offers what it does not hand out: the repair gains nothing and stops, the difference stands."""
    ann, ben, pair_id = pair
    made = ben.emit("kept back")

    def change(path: str, reply: Reply) -> Reply:
        empty = json.dumps({"records": [], "ns": [], "has_more": True}).encode()
        return replace(reply, body=empty) if path == RECORDS else reply

    ann.network.change = change
    report: Any = (await ann.reconcile.verify(pair_id, repair=True)).to_json()
    assert (report["equal"], ids(report["missing_here"])) == (False, [made.id])


async def test_a_comparison_asks_again_what_was_refused_for_its_rate(
    pair: tuple[Node, Node, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, ben, pair_id = pair
    emit_many(ben, 3)
    monkeypatch.setattr(reconcile, "PAY_WAIT_S", 0.001)
    busy = iter([True, True])

    def change(path: str, reply: Reply) -> Reply:
        if path == FINGERPRINTS and next(busy, False):
            return Reply(429, {}, b'{"code":"RATE_LIMITED"}', "x")
        return reply

    ann.network.change = change
    report: Any = (await ann.reconcile.verify(pair_id)).to_json()
    assert (len(report["missing_here"]), report["complete"]) == (3, True)


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(("ann", "ben", "ann to ben", "ben to ann", "both by a hub")), max_size=120))
def test_after_a_repair_both_hold_the_union(tmp_path_factory: pytest.TempPathFactory, steps: list[str]) -> None:
    """Whatever was written and delivered, in whichever order: the report is exact, and the repair makes it equal."""

    async def run() -> None:
        async with nodes(tmp_path_factory.mktemp("world"), "ann", "ben") as (ann, ben):
            pair_id = join(ann, ben)
            held: dict[str, set[str]] = {"ann": set(), "ben": set()}
            for number, step in enumerate(steps):
                made = (ben if step.startswith("ben") else ann).emit(str(number))
                held[step[:3] if step != "both by a hub" else "ann"].add(made.id)
                if " to " in step or "hub" in step:
                    other = ann if step.startswith("ben") else ben
                    bring(other, pair_id if " to " in step else "pair_hub", made)
                    held[other.name].add(made.id)
            report: Any = (await ann.reconcile.verify(pair_id)).to_json()
            assert set(ids(report["missing_here"])) == held["ben"] - held["ann"]
            assert set(ids(report["missing_there"])) == held["ann"] - held["ben"]
            await ben.sync.pull(pair_id)  # so that ann may push: ben's place is known
            report = (await ann.reconcile.verify(pair_id, repair=True)).to_json()
            assert report["equal"]
            assert set(ann.ids()) == set(ben.ids()) == held["ann"] | held["ben"]

    asyncio.run(run())


async def test_the_repair_of_a_busy_pair_ends_with_a_verdict_about_when_it_began(pair: tuple[Node, Node, str]) -> None:
    """Both sides write between any two requests: what came after the comparison is no part of it."""
    ann, ben, pair_id = pair
    ann.emit("read before")
    await ben.sync.pull(pair_id)
    emit_many(ann, 30)
    emit_many(ben, 30)
    fetch = ann.network.fetch

    async def busy(*arguments: Any, **options: Any) -> Reply:
        await asyncio.to_thread(ben.emit, "meanwhile")
        await asyncio.to_thread(ann.emit, "meanwhile")
        return await fetch(*arguments, **options)

    ann.network.fetch = busy  # type: ignore[method-assign]
    report: Any = (await ann.reconcile.verify(pair_id, repair=True)).to_json()
    assert (report["missing_here"], report["missing_there"], report["complete"]) == ([], [], True)
    assert report["as_of"]
    assert report["questions"] < 20
    assert ann.ids() != ben.ids(), "they went on writing"


async def test_a_repair_ends_whatever_the_peer_gives_bit_by_bit(
    pair: tuple[Node, Node, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, ben, pair_id = pair
    emit_many(ben, 3)
    monkeypatch.setattr(reconcile, "REPAIR_S", 0.2)
    fetch = ann.network.fetch

    async def slow(method: str, url: str, **options: Any) -> Reply:
        if url.endswith(RECORDS):
            await asyncio.Event().wait()
        return await fetch(method, url, **options)

    ann.network.fetch = slow  # type: ignore[assignment]
    for repair in (ann.reconcile.verify(pair_id, repair=True), ann.reconcile.mend(pair_id)):
        with pytest.raises(SplError) as caught:
            await repair
        assert caught.value.code == "timeout"
    ann.network.fetch = fetch  # type: ignore[method-assign]
    monkeypatch.undo()
    await ann.reconcile.mend(pair_id)
    assert ann.ids() == ben.ids()


async def test_what_a_repair_refuses_counts_as_brought_in(pair: tuple[Node, Node, str]) -> None:
    """Lines of the ledger are intake like any others, and stop with it."""
    ann, ben, pair_id = pair
    emit_many(ben, 20)
    set_views(ann.home, blocked=frozenset({ben.did}))
    before = ann.ingest.budget.brought(pair_id)
    charged: list[int] = []
    charge = ann.ingest.budget.charge
    ann.ingest.budget.charge = lambda pair_id, size: charged.append(size) or charge(pair_id, size)  # type: ignore
    await ann.reconcile.verify(pair_id, repair=True)
    assert ann.home.views.refused[pair_id] == 20
    assert sum(charged) >= 20 * 512
    assert before == 0


async def test_what_our_retired_key_signed_comes_back_only_at_our_operators_word(tmp_path: Path) -> None:
    """The thief of the key would write it just like this, and have a peer bring it."""
    async with nodes(tmp_path, "ann", "ben", "cleo") as (ann, ben, cleo):
        cleo.home.writer.signer = ann.home.writer.signer
        [made] = emit_many(cleo, 1)
        ann.home.vault.rotate("retired")
        pair_id = join(ann, ben)
        bring(ben, pair_id, made)
        await ann.sync.pull(pair_id)
        report: Any = (await ann.reconcile.verify(pair_id, repair=True)).to_json()
        assert [item.get("refused") for item in report["missing_here"]] == ["key-retired"]
        report = (await ann.reconcile.verify(pair_id, repair=True, accept_retired=True)).to_json()
        assert report["equal"]
        assert made.id in ann.ids()
