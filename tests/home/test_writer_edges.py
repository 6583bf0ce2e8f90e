"""The writer where something is the first, the last or the same again: clocks, equal items, full ledgers."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from spl.core.errors import SplError
from spl.core.limits import Limits
from spl.core.record import record
from spl.home import writer as writers
from spl.home.config import Config
from spl.home.disk import Disk
from spl.home.home import Home, open_home
from spl.home.writer import Writer
from spl.home.writes import VIEWS, Arrive, Emit, Listeners, Outcome, Projected, Refuse
from tests.home.test_writer import claimed, from_peer, refused, value, write
from tests.store_kit import log_files

LIMITS = Limits()


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Home]:
    """Return a home without an identity."""
    found = open_home(tmp_path / "home", Config(), disk=Disk(), progress=lambda done, total: None)
    yield found
    found.close()


@pytest.fixture
def named(bare: Home) -> Home:
    bare.adopt(bare.vault.generate("alice"))
    return bare


def clocks(outcomes: list[Outcome]) -> list[int]:
    return [outcome.envelope.record["clock"] for outcome in outcomes if outcome.envelope]


def test_a_thread_writes_until_the_writer_is_closed(named: Home) -> None:
    thread = threading.Thread(target=named.writer.run)
    thread.start()
    try:
        for n in range(5):
            assert named.writer.submit([Emit(value(body={"n": n}))]).result(30)[0].fresh
    finally:
        named.writer.close()
        thread.join(30)


def test_nothing_waiting_is_told_from_something(named: Home) -> None:
    assert not named.writer.commit_waiting()
    named.writer.submit([Emit(value())])
    assert named.writer.commit_waiting()
    assert not named.writer.commit_waiting()


def test_what_its_caller_gave_up_is_not_written(named: Home) -> None:
    before = named.store.last_seq
    given_up, other = named.writer.submit_all([[Emit(value())], [Emit(value(body={"n": 2}))]])
    assert given_up.cancel()
    named.writer.commit_waiting()
    assert (other.result(0)[0].seq, named.store.last_seq) == (before + 1, before + 1)


def test_a_refused_submission_leaves_nothing_to_the_next_one_of_its_write(named: Home) -> None:
    spoilt, sound = named.writer.submit_all([[Emit(value(clock=1)), Emit(value(thread="th_aitl"))],
                                             [Emit(value(clock=1))]])  # fmt: skip
    named.writer.commit_waiting()
    assert isinstance(spoilt.exception(0), SplError)
    assert sound.result(0)[0].fresh


def test_a_clock_of_elsewhere_moves_none_that_was_given_out_here(named: Home) -> None:
    write(named, Emit(value()))
    write(named, Arrive(from_peer(1, clock=100), "default", "pair_1"))
    assert clocks(write(named, Emit(value(body={"n": 2})))) == [1]


@pytest.mark.parametrize("together", [True, False])
def test_equal_records_of_one_write_are_stored_once(named: Home, together: bool) -> None:
    item, before = Emit(value(clock=3)), named.store.last_seq
    futures = named.writer.submit_all([[item, item]] if together else [[item], [item]])
    named.writer.commit_waiting()
    first, second = (outcome for future in futures for outcome in future.result(0))
    assert (first.seq, first.fresh) == (before + 1, True)
    assert second == first._replace(fresh=False)


def test_clocks_that_are_left_out_of_one_write_follow_each_other(named: Home) -> None:
    assert clocks(write(named, *(Emit(value(body={"n": n})) for n in range(3)))) == [0, 1, 2]


def test_the_very_last_clock_is_given_out_and_none_behind_it_also_after_a_restart(named: Home) -> None:
    write(named, Emit(value(clock=record.CLOCK_MAX - 1)))
    assert clocks(write(named, Emit(value(body={"n": 2})))) == [record.CLOCK_MAX]
    assert refused(named, Emit(value(body={"n": 3}))) == "clock-exhausted"
    old = named.writer
    again = Writer(named.store, old.views, LIMITS, signer=old.signer, now_ms=old.now_ms)
    future = again.submit([Emit(value(body={"n": 3}))])
    again.commit_waiting()
    fault = future.exception(0)
    assert isinstance(fault, SplError)
    assert fault.code == "clock-exhausted"


def test_clocks_of_many_threads_are_right_with_little_memory(named: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "CLOCKS_MAX", 2)
    for n in range(3):
        for thread in ("a", "b", "c", "d"):
            assert clocks(write(named, Emit(value(thread, body={"n": n})))) == [n]
            assert len(named.writer._clocks) <= 2


def test_an_instance_may_be_named_by_itself(named: Home) -> None:
    assert named.vault.identity is not None
    assert write(named, Emit({**value(), "actor": named.vault.identity.did}))[0].fresh


def test_a_record_whose_stored_bytes_were_damaged_is_written_again(named: Home) -> None:
    first = write(named, Emit(value(body={"n": 7}, clock=3)))[0]
    [path] = log_files(Path(named.store._folder))
    path.write_bytes(path.read_bytes().replace(b'"body":{"n":7}', b'"body":{"n":8}'))
    again = write(named, Emit(value(body={"n": 7}, clock=3)))[0]
    assert (again.fresh, again.seq) == (True, first.seq + 1)


def test_what_arrives_at_a_home_without_an_identity_is_nobodys_own(bare: Home) -> None:
    outcome = write(bare, Arrive(from_peer(1), "default", "pair_1"))[0]
    assert outcome.fresh
    row = bare.store.index.find(from_peer(1).id, "default")
    assert row is not None
    assert not row.own


def test_what_arrives_with_our_own_signature_is_our_own(named: Home) -> None:
    assert named.vault.identity is not None
    ours = from_peer(1, by=named.vault.identity.did)
    write(named, Arrive(ours, "default", "restore"), Arrive(from_peer(2), "default", "restore"))
    rows = [named.store.index.find(each.id, "default") for each in (ours, from_peer(2))]
    assert [row is not None and row.own for row in rows] == [True, False]


def test_what_is_known_already_says_that_it_is_not_new(named: Home) -> None:
    item = Projected(claimed(1), "music", "pair_1")
    assert write(named, item)[0].fresh
    assert write(named, item) == [Outcome(0, None, False)]


def test_a_ledger_takes_as_many_as_it_may_hold_also_at_once(named: Home) -> None:
    most = 3
    named.writer.limits = replace(LIMITS, refused_per_pair=most)
    items = [Refuse("pair_1", f"{number:064x}", "record-id") for number in range(most + 2)]
    write(named, *items)
    assert named.store.index.count("r:pair_1") == most + 1, "and one line that says that there are more"
    assert write(named, Refuse("pair_1", "f" * 64, "record-id")) == [Outcome(0, None, False)]
    assert named.store.index.count("r:pair_1") == most + 1


def test_the_time_between_two_writes_is_no_cost_of_what_runs_after_them(named: Home) -> None:
    steady_ns = [0]
    named.writer.listeners = Listeners(now_ms=lambda: 1000, steady_ns=lambda: steady_ns[0])
    for n in range(3):
        write(named, Emit(value(body={"n": n})))
        steady_ns[0] += 10**9
    assert named.writer.listeners.p99_us()[VIEWS] == 0
