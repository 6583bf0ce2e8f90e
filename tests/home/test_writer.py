"""The one door for writes: clocks, duplicates, atomic submissions, signatures, and who may write where."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spl.core import canon, keys
from spl.core.errors import SplError
from spl.core.keys import SecretKey
from spl.core.limits import Limits
from spl.core.record import batch, levels, namespace, record
from spl.core.record.record import Envelope, Sig
from spl.home.config import Config
from spl.home.disk import Disk
from spl.home.home import Home, open_home
from spl.home.views import THREAD_NAMESPACES
from spl.home.writes import (
    Arrive,
    Commit,
    Emit,
    Outcome,
    Own,
    Projected,
    Refuse,
    SavedPosition,
    size_of,
)

LIMITS = Limits()
ALICE = "did:sync:user:alice"
PEER = "did:sync:instance:peer-" + "0" * 24
PEER_KEY = SecretKey(b"p" * 32)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    ticks = itertools.count(1_700_000_000_000)
    found = open_home(
        tmp_path / "home",
        Config(),
        disk=Disk(),
        progress=lambda done, total: None,
        clock=lambda: next(ticks),
        random=lambda count: b"r" * count,
    )
    found.adopt(found.vault.generate("alice"))
    yield found
    found.close()


def value(thread: str = "th", **fields: Any) -> dict[str, Any]:
    return {"act": "KNOW", "actor": ALICE, "body": {"n": 1}, "thread": thread, **fields}


def write(home: Home, *items: Any) -> list[Outcome]:
    future = home.writer.submit(items)
    home.writer.commit_waiting()
    return future.result(timeout=0)


def refused(home: Home, *items: Any) -> str:
    before = home.store.last_seq
    with pytest.raises(SplError) as caught:
        write(home, *items)
    assert home.store.last_seq == before, "a refused submission stores nothing"
    return caught.value.code


def verified(home: Home, envelope: Envelope) -> bool:
    text = record.signed_text(envelope.id, envelope.record["judged_by"])
    key = home.vault.identity.chain.present  # type: ignore[union-attr]
    if envelope.sig.batch is None:
        return keys.verify(key, text, envelope.sig.value)
    root = batch.root_of(text, envelope.sig.batch)
    return keys.verify(key, batch.signed_text(envelope.sig.batch.size, root), envelope.sig.value)


def from_peer(n: int, clock: int = 0, thread: str = "th", by: str = PEER) -> Envelope:
    fields = record.check(value(thread, body={"peer": n}, clock=clock), LIMITS)
    id_, text = record.identify(fields, LIMITS)
    return record.seal(fields, id_, text, Sig(by, "zkey", PEER_KEY.sign(record.signed_text(id_, None))))


def test_a_clock_that_is_left_out_is_the_next_free_one(home: Home) -> None:
    clocks = [write(home, Emit(value(body={"n": n})))[0].envelope.record["clock"] for n in range(3)]  # type: ignore[union-attr]
    assert clocks == [0, 1, 2]
    write(home, Emit(value(clock=10)))
    assert write(home, Emit(value(clock=None)))[0].envelope.record["clock"] == 11  # type: ignore[union-attr]
    other = write(home, Emit(value(thread="other")))[0]
    assert other.envelope is not None
    assert other.envelope.record["clock"] == 0


@pytest.mark.parametrize("text", ["", "x" * 5000], ids=["small", "large"])
def test_the_size_of_an_own_record_covers_its_line(home: Home, text: str) -> None:
    """What a peer makes us append is charged by it."""
    item = Own(THREAD_NAMESPACES, "note", {"text": text})
    [outcome] = write(home, item)
    assert len(home.store.line(outcome.seq).payload) <= size_of(item) <= len(text) + 2000


def test_the_same_record_again_answers_as_before_and_stores_nothing(home: Home) -> None:
    first = write(home, Emit(value(clock=3)))[0]
    again = write(home, Emit(value(clock=3)))[0]
    assert (again.seq, again.fresh) == (first.seq, False)
    assert again.envelope is not None
    assert first.envelope is not None
    assert again.envelope.raw == first.envelope.raw
    assert home.store.last_seq == first.seq


def test_a_taken_clock_with_other_content_is_refused_by_name(home: Home) -> None:
    write(home, Emit(value(clock=3)))
    with pytest.raises(SplError) as caught:
        write(home, Emit(value(clock=3, body={"n": 2})))
    assert caught.value.code == "ingest-failed"
    assert caught.value.message == f"DuplicateClock: thread=th actor={ALICE} clock=3"


def test_a_taken_clock_is_noticed_within_one_write(home: Home) -> None:
    futures = home.writer.submit_all([[Emit(value(clock=3, body={"n": n}))] for n in range(2)])
    home.writer.commit_waiting()
    assert futures[0].result(0)[0].fresh
    with pytest.raises(SplError, match="DuplicateClock"):
        futures[1].result(0)


def test_a_peers_clocks_block_nobody(home: Home) -> None:
    write(
        home,
        Arrive(from_peer(1, clock=record.CLOCK_MAX), "default", "pair_1"),
        Arrive(from_peer(2), "default", "pair_1"),
    )
    assert write(home, Emit(value()))[0].envelope.record["clock"] == 0  # type: ignore[union-attr]


def test_past_the_last_clock_is_refused(home: Home) -> None:
    write(home, Emit(value(clock=record.CLOCK_MAX)))
    assert refused(home, Emit(value())) == "clock-exhausted"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"thread": "th_federation_pairs"}, "reserved-thread"),
        ({"thread": "th_audit_x"}, "reserved-thread"),
        ({"actor": PEER}, "actor-refused"),
        ({"body": {"namespace": "music"}}, "namespace-rejected"),
        ({"body": {"namespace": "Bad Name"}}, "bad-field"),
        ({"body": {"namespace": 7}}, "bad-field"),
        ({"act": "SHOUT"}, "bad-field"),
        ({"clock": -1}, "bad-field"),
        ({"clock": True}, "bad-field"),
        ({"clock": 1.5}, "bad-field"),
        ({"extra": 1}, "bad-field"),
        ({"parents": ["x"]}, "bad-field"),
        ({"parents": ["a" * 64, 1]}, "bad-field"),
        ({"parents": ["a" * 64, "a" * 64]}, "bad-field"),
        ({"thread": ""}, "bad-field"),
        ({"thread": "a" * 257}, "bad-field"),
        ({"actor": "alice"}, "bad-field"),
        ({"body": []}, "bad-field"),
        ({"judged_by": "x"}, "bad-field"),
        ({"body": {"x": "y" * 1024 * 1024}}, "record-too-large"),
        ({"body": {"x": float("nan")}}, "bad-json"),
    ],
)
def test_records_that_break_the_contract_are_refused(home: Home, fields: dict[str, Any], code: str) -> None:
    assert refused(home, Emit({**value(), **fields})) == code
    assert write(home, Emit(value()))[0].fresh


def test_parents_of_a_local_record_are_put_in_order(home: Home) -> None:
    found = write(home, Emit(value(parents=["b" * 64, "a" * 64])))[0].envelope
    assert found is not None
    assert found.record["parents"] == ["a" * 64, "b" * 64]


def test_a_submission_is_whole_or_not_at_all(home: Home) -> None:
    assert refused(home, Emit(value(clock=1)), Emit(value(thread="th_aitl"))) == "reserved-thread"
    assert write(home, Emit(value(clock=1, body={"n": 2})))[0].fresh, "the refused one took no clock"


def test_one_refusal_leaves_the_others_of_the_write_alone(home: Home) -> None:
    futures: list[Future[list[Outcome]]] = home.writer.submit_all(
        [[Emit(value())], [Emit(value(thread="th_aitl"))], [Emit(value(body={"n": 2}))]]
    )
    home.writer.commit_waiting()
    assert [future.exception(0) is None for future in futures] == [True, False, True]


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 200))
def test_every_record_of_a_write_verifies_alone(tmp_path_factory: pytest.TempPathFactory, count: int) -> None:
    """One is signed plainly, 2..64 together by their Merkle root, more in several trees."""
    home = open_home(tmp_path_factory.mktemp("h"), Config(), disk=Disk(), progress=lambda done, total: None)
    home.adopt(home.vault.generate("alice"))
    futures = home.writer.submit_all([[Emit(value(body={"n": n}))] for n in range(count)])
    home.writer.commit_waiting()
    found = [future.result(0)[0].envelope for future in futures]
    assert all(item is not None and verified(home, item) for item in found)
    assert all((item.sig.batch is None) == (count % 64 == 1 and n == count - 1) for n, item in enumerate(found) if item)
    assert len({item.id for item in found if item}) == count
    home.close()


def test_arrivals_are_kept_once_and_other_vouchers_beside(home: Home) -> None:
    first = write(home, Arrive(from_peer(1), "default", "pair_1"))[0]
    assert first.fresh
    assert not write(home, Arrive(from_peer(1), "default", "pair_2"))[0].fresh
    others = [PEER[:-1] + str(n) for n in range(1, 6)]
    for by in others:
        write(home, Arrive(from_peer(1, by=by), "default", "pair_2"))
    found = home.store.index.alternates(from_peer(1).id, "default")
    assert [row.voucher for row in found] == others[: LIMITS.vouchers_per_record]
    assert home.store.index.find(from_peer(1).id, "default").seq == first.seq  # type: ignore[union-attr]


def test_records_and_position_share_a_write_and_the_ledger_is_bounded(home: Home) -> None:
    outcomes = write(
        home,
        Arrive(from_peer(1), "default", "pair_1"),
        Refuse("pair_1", "f" * 64, "record-id"),
        SavedPosition("pair_1", "cursor", 2),
    )
    assert [item.seq for item in outcomes] == [outcomes[0].seq, outcomes[0].seq + 1, outcomes[0].seq + 2]
    assert home.views.positions["pair_1"].cursor == "cursor"
    assert home.views.refused == {"pair_1": 1}


@pytest.mark.parametrize("at_once", [1, 7, LIMITS.refused_per_pair + 9])
def test_a_full_ledger_names_each_cause_of_what_it_does_not_hold_once(home: Home, at_once: int) -> None:
    """However many come in one write, for what it adds is counted before it is folded."""
    most = LIMITS.refused_per_pair
    write(home, *(Refuse("pair_1", f"{number:064x}", "record-id") for number in range(most - 2)))
    more = [Refuse("pair_1", f"{number:064x}", f"code-{number % 2}", "music") for number in range(most - 2, 2 * most)]
    for at in range(0, 21 if at_once < most else len(more), at_once):
        write(home, *more[at : at + at_once])
    assert home.views.refused == {"pair_1": most}
    assert home.views.beyond == {"pair_1": {"code-0", "code-1"}}
    assert home.store.index.count("r:pair_1") == most + 2


def claimed(n: int, level: int = 1) -> levels.Projection:
    """Return a projection of a peer."""
    made = from_peer(n)
    shown = levels.content(made.record, made.id, level, "pair_1", b"s" * 32)
    raw = levels.project(shown, level, "music", "pair_1", PEER, "zkey", PEER_KEY)
    return levels.parse(canon.decode(raw), LIMITS)


def test_projections_are_stored_once_for_each_pair_and_level_beside_the_records(home: Home) -> None:
    commits: list[Commit] = []
    home.writer.listen(commits.append)
    one, two = claimed(1), claimed(1, 2)
    outcomes = write(
        home,
        Projected(one, "music", "pair_1"),
        Projected(one, "music", "pair_1"),
        Projected(two, "music", "pair_1"),
        Projected(one, "other", "pair_2"),
        Arrive(from_peer(1), "default", "pair_1"),
        SavedPosition("pair_1", "cursor", 4),
    )
    assert [item.fresh for item in outcomes] == [True, False, True, True, True, True]
    assert [write(home, Projected(one, "music", "pair_1"))[0].fresh, len(commits)] == [False, 1]
    index, [commit] = home.store.index, commits
    assert (commit.namespaces, commit.threads) == (frozenset({"default"}), frozenset({"th"}))
    assert [entry.kind for _, entry in commit.fresh] == ["rec"]
    assert (commit.last_seq, index.count("x:pair_1"), index.count("x:pair_2")) == (5, 2, 1)
    assert (index.tally("rec"), index.tally("proj"), index.count("n:default"), index.count("n:music")) == (1, 3, 1, 0)
    [row] = index.after("x:pair_2", 0, 9)
    assert (row.kind, row.ns, row.origin, home.store.payloads([row])) == ("proj", "other", "pair_2", [one.raw])


def test_a_refusal_keeps_the_namespace_that_it_came_from(home: Home) -> None:
    write(home, Refuse("pair_1", "f" * 64, "scope-violation", "music"), Refuse("pair_1", "e" * 64, "record-id"))
    rows = home.store.index.after("r:pair_1", 0, 9)
    assert [canon.decode(raw) for raw in home.store.payloads(rows)] == [
        {"pair": "pair_1", "id": "f" * 64, "code": "scope-violation", "ns": "music"},
        {"pair": "pair_1", "id": "e" * 64, "code": "record-id"},
    ]


def test_views_come_back_from_the_log(home: Home, tmp_path: Path) -> None:
    write(home, Own("th_namespace_registry", "syncropel.namespace.create.v1", {"name": "music"}))
    write(home, SavedPosition("pair_1", "cursor", 2), Refuse("pair_1", "f" * 64, "record-id"))
    before = home.views.namespaces, home.views.positions, home.views.refused
    home.close()
    home.lock.release()
    again = open_home(tmp_path / "home", Config(), disk=Disk(), progress=lambda done, total: None)
    assert (again.views.namespaces, again.views.positions, again.views.refused) == before
    again.close()
    open_home(tmp_path / "home", Config(), disk=Disk(), progress=lambda done, total: None).close()


def test_without_an_identity_nothing_is_signed(tmp_path: Path) -> None:
    home = open_home(tmp_path / "h", Config(), disk=Disk(), progress=lambda done, total: None)
    assert refused(home, Emit(value())) == "identity-missing"
    home.close()


def test_what_runs_after_a_write_is_measured_a_line(home: Home) -> None:
    assert home.writer.listeners.summary().count == 1
    home.writer.listen(lambda commit: None)
    write(home, Emit(value()), SavedPosition("pair_1", "cursor", 2))
    write(home, Refuse("pair_1", "f" * 64, "record-id"))
    told = home.writer.listeners.summary()
    assert (told.count, told.records) == (2, 3)
    assert home.writer.listeners._costs.keys() == {"views", "test_writer", "all"}


def test_listeners_hear_of_a_commit_after_it_is_durable(home: Home) -> None:
    heard = []
    stop = home.writer.listen(lambda commit: heard.append((commit, home.store.last_seq)))
    write(home, Emit(value()))
    [(commit, seq)] = heard
    assert (commit.last_seq, set(commit.namespaces), set(commit.threads)) == (seq, {"default"}, {"th"})
    assert len(commit.fresh) == 1
    stop()
    write(home, Emit(value(body={"n": 2})))
    assert len(heard) == 1


async def test_answers_for_a_loop_come_together_and_only_once_durable(home: Home) -> None:
    loop, calls = asyncio.get_running_loop(), list[Callable[[], None]]()
    futures: list[asyncio.Future[list[Outcome]]] = [loop.create_future() for _ in range(3)]
    given = [[Emit(value(body={"n": n}))] for n in (1, 2)]
    home.writer.submit_posted(list(zip([*given, [Emit({})]], futures, strict=True)), calls.append)
    before = home.store.last_seq
    home.writer.commit_waiting()
    assert (home.store.last_seq, len(calls), [future.done() for future in futures]) == (before + 2, 1, [False] * 3)
    [answer] = calls
    answer()
    assert [future.result()[0].seq for future in futures[:2]] == [before + 1, before + 2]
    with pytest.raises(SplError) as caught:
        await futures[2]
    assert caught.value.code == "bad-field"


def test_after_close_what_waits_is_written_and_no_more_is_taken(home: Home) -> None:
    future = home.writer.submit([Emit(value())])
    home.writer.close()
    home.writer.run()
    assert future.result(0)[0].fresh
    with pytest.raises(SplError) as caught:
        home.writer.submit([Emit(value())])
    assert caught.value.code == "shutting-down"


def test_a_writer_that_breaks_leaves_nobody_waiting(home: Home) -> None:
    """A fault of our own in what runs after a write: everybody is told, and nobody that it is stored."""

    def breaks(commit: Commit) -> None:
        raise RuntimeError("a fault that a test put here")

    home.writer.listen(breaks)
    items = [[Emit(value(body={"n": n}))] for n in range(home.writer.limits.commit_records + 1)]
    first, *_, last = home.writer.submit_all(items)
    with pytest.raises(RuntimeError):
        home.writer.run()
    for future in (first, last):
        fault = future.exception(timeout=0)
        assert isinstance(fault, SplError)
        assert fault.code == "internal"
    with pytest.raises(SplError) as caught:
        home.writer.submit(items[0])
    assert caught.value.code == "shutting-down"


def test_a_failed_sync_is_told_to_everybody_and_is_final(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from spl.home import disk

    def broken(self: disk.File) -> float:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(disk.File, "sync", broken)
    futures = home.writer.submit_all([[Emit(value())], [Emit(value(body={"n": 2}))]])
    home.writer.commit_waiting()
    assert {future.exception(0).code for future in futures} == {"store-readonly"}  # type: ignore[union-attr]
    monkeypatch.undo()
    assert refused(home, Emit(value())) == "store-readonly"
    assert home.store.index.count("t:th") == 0


def named(home: Home, *names: str) -> None:
    for name in names:
        write(home, Own(THREAD_NAMESPACES, namespace.KIND_CREATE, {"name": name}))


def test_a_record_that_another_namespace_holds_is_written_all_the_same(home: Home) -> None:
    """What came into one namespace neither swallows nor confirms what a client writes into another."""
    named(home, "vault")
    fields = record.check(value(body={"namespace": "vault"}, clock=0), LIMITS)
    id_, text = record.identify(fields, LIMITS)
    early = record.seal(fields, id_, text, Sig(PEER, "zkey", PEER_KEY.sign(record.signed_text(id_, None))))
    write(home, Arrive(early, "default", "pair_1"))
    made = write(home, Emit(value(body={"namespace": "vault"}, clock=0)))[0]
    assert (made.fresh, made.envelope.id) == (True, id_)  # type: ignore[union-attr]
    assert [(row.ns, row.own) for row in home.store.index.copies(id_)] == [("default", False), ("vault", True)]
    assert write(home, Arrive(early, "default", "pair_2"), Arrive(early, "vault", "pair_2"))[0].fresh is False
    assert [row.ns for row in home.store.index.alternates(id_, "vault")] == ["vault"]
    assert home.store.index.alternates(id_, "default") == []


def test_both_copies_may_come_in_one_write(home: Home) -> None:
    found = write(home, Arrive(from_peer(1), "a", "p"), Arrive(from_peer(1), "b", "p"), Arrive(from_peer(1), "a", "p"))
    assert [(outcome.seq, outcome.fresh) for outcome in found] == [(1, True), (2, True), (1, False)]


def test_clocks_are_those_of_one_namespace(home: Home) -> None:
    """The last clock of a thread ends it in the namespace that took it, and in no other."""
    named(home, "acme", "vault")
    acme, vault = {"namespace": "acme"}, {"namespace": "vault"}
    write(home, Emit(value(body=acme, clock=2**63 - 1)))
    assert refused(home, Emit(value(body={**acme, "n": 2}))) == "clock-exhausted"
    clocks = [write(home, Emit(value(body={**vault, "n": n})))[0].envelope.record["clock"] for n in range(2)]  # type: ignore[union-attr]
    assert clocks == [0, 1]
    write(home, Emit(value(body={**acme, "n": 3}, clock=0)))
    assert refused(home, Emit(value(body={**acme, "n": 4}, clock=0))) == "ingest-failed"


def test_below_the_floor_clients_and_peers_are_refused_and_the_operator_is_not(
    home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Reading goes on, and so does writing as soon as there is room again."""
    caplog.set_level("INFO", "spl.store")
    first = write(home, Emit(value()))[0]
    monkeypatch.setattr(Disk, "free_bytes", lambda self, folder: LIMITS.disk_floor_bytes - 1)
    for _ in range(2):
        assert refused(home, Emit(value(body={"n": 2}))) == "store-full"
        assert refused(home, Arrive(from_peer(1), "default", "pair_1"), SavedPosition("pair_1", "c", 1)) == "store-full"
    named(home, "music")
    assert "music" in home.views.namespaces
    assert home.store.line(first.seq).kind == "rec"
    monkeypatch.undo()
    assert write(home, Emit(value(body={"n": 2})))[0].fresh
    assert [line.message for line in caplog.records] == ["store.full", "store.room_again"]
