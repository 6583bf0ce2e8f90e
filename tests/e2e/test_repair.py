"""Damaged lines between real daemons: everything else is served, and what they held comes back from a pair by id."""

import shutil
from pathlib import Path

import pytest

from tests.e2e.conftest import AUTO, Make
from tests.e2e.findings import Faulty, House, attention, named, told
from tests.e2e.harness import Instance
from tests.waiting import eventually

THREAD = "th_release"


def damage(instance: Instance, mark: bytes, *, keep_index: bool) -> None:
    """Flip a byte of the stored line that holds this text, as a bad disk does, and start the daemon again."""
    instance.stop()
    hits = 0
    for path in sorted((instance.home / "store").glob("*.jsonl")):
        data = path.read_bytes()
        hits += data.count(mark)
        path.write_bytes(data.replace(mark, mark[:-1] + b"#"))
    assert hits == 1
    if not keep_index:
        shutil.rmtree(instance.home / "store" / "index")
    instance.start()


def converged(alice: Instance, bob: Instance, pair_id: str) -> list[str]:
    """Emit at both sides until both hold all of it; return the ids of alice's.

    From then on nothing is fetched or compared unasked.
    """
    for side in (alice, bob):
        side.run("federation", "set-mode", pair_id, "on-demand")
    ids = alice.emit(THREAD, 40, note="shared")
    bob.emit("th_by_bob", 5)
    for side in (alice, bob):
        side.run("sync", pair_id)
    assert alice.holding() == bob.holding()
    return ids


@pytest.mark.parametrize("keep_index", [True, False])
@pytest.mark.parametrize("loser", ["alice", "bob"])
@pytest.mark.parametrize("mark", [b'"n":17,', b'"id":"%b'])
def test_a_damaged_record_comes_back_with_its_id(
    alice: Instance, bob: Instance, pair_id: str, keep_index: bool, loser: str, mark: bytes
) -> None:
    """Whoever lost it, wherever its line was hit, and whether or not the index was made before the damage."""
    ids = converged(alice, bob, pair_id)
    hurt, sound = (alice, bob) if loser == "alice" else (bob, alice)
    everything = sound.holding()
    damage(hurt, mark.replace(b"%b", ids[17][:20].encode()), keep_index=keep_index)
    assert {record["id"] for record in hurt.records(THREAD)} == set(ids) - {ids[17]}
    hurt.emit("th_goes_on")
    done = hurt.run("store", "check", code=3)
    assert "1 damaged place; everything else is served" in done.err
    assert done.out.splitlines()[1].split()[3:5] == ["1", "0"]
    done = hurt.run("store", "check", "--repair")
    assert f"{pair_id}  {'bob' if loser == 'alice' else 'alice'}: 1 record fetched" in done.out
    assert "✓ 1 lost line recovered, nothing is missing any more" in done.out
    sound.run("sync", pair_id)
    assert hurt.holding() == sound.holding()
    assert {thread: found for thread, found in hurt.holding().items() if thread in everything} == everything
    for _ in range(2):
        done = hurt.run("store", "check")
        assert "1 damaged place, and nothing is missing any more" in done.out
        assert done.out.splitlines()[1].split()[3:5] == ["1", "1"]
        assert len(hurt.records(THREAD)) == 40
        assert [row["records"] for row in hurt.data("thread", "list") if row["thread"] == THREAD] == [40]
        assert "store-damaged" not in hurt.run("doctor", code=None).out
        assert hurt.data("federation", "verify", pair_id)["equal"]
        assert hurt.run("store", "check", "--repair").out.endswith("nothing is lost, so nothing was fetched\n")
        hurt.stop()
        hurt.start()


@pytest.mark.parametrize("bad", [b'"n":1"', b'"n":19', b'"n":1\n'])
def test_a_byte_that_is_hit_while_the_daemon_runs_stops_nothing(
    alice: Instance, bob: Instance, pair_id: str, bad: bytes
) -> None:
    """A quote, another letter, a line feed in the segment that is written: said, left out, and fetched again."""
    ids = converged(alice, bob, pair_id)
    [segment] = (alice.home / "store").glob("*.jsonl")
    with segment.open("r+b") as file:
        file.seek(segment.read_bytes().index(b'"n":17,'))
        file.write(bad)
    kept = [each for each in ids if each != ids[17]]
    assert [record["id"] for record in alice.records(THREAD)] == kept
    told(alice, "store-damaged")
    done = alice.run("thread", "snapshot", THREAD, code=3)
    assert done.out.count("\n") == 40
    assert "the log is damaged at sequence" in done.err
    assert alice.run("federation", "verify", pair_id, "-o", "json", code=3).data["missing_here"][0]["id"] == ids[17]
    assert alice.run("store", "check", "--repair").out.count("recovered, nothing is missing any more") == 1
    assert {record["id"] for record in alice.records(THREAD)} == set(ids)
    assert alice.run("thread", "snapshot", THREAD).out.count("\n") == 41
    assert not named(attention(alice), "store-damaged")
    alice.run("store", "check")


def test_a_sector_that_cannot_be_read_is_damage_and_no_end(house: House) -> None:
    """While the daemon runs, and when it starts without its index: named, and fetched from who has it."""
    bob = house("bob", AUTO).start()
    alice = house("alice", "", Faulty, fault="bad-sector").start()
    pair_id = alice.paired(bob.url)
    ids = converged(alice, bob, pair_id)
    with alice.at_fault():
        served = [record["id"] for record in alice.records(THREAD)]
        assert 0 < len(served) < len(ids)
        told(alice, "store-damaged")
        assert "everything else is served" in alice.run("store", "check", code=3).err
        alice.stop()
        shutil.rmtree(alice.home / "store" / "index")
        alice.start()
        told(alice, "store-damaged")
        assert "✓ nothing is missing" in alice.run("store", "check", "--repair").out
        assert {record["id"] for record in alice.records(THREAD)} == set(ids)
        assert not named(attention(alice), "store-damaged")


def test_what_no_peer_was_given_stays_lost(alice: Instance, bob: Instance, pair_id: str) -> None:
    converged(alice, bob, pair_id)
    alice.run("namespace", "create", "private")
    alice.run("know", "nobody else's", "--thread", "th_private", "--namespace", "private")
    damage(alice, b"nobody else's", keep_index=True)
    done = alice.run("store", "check", "--repair", code=3)
    assert f"{pair_id}  bob: 0 records fetched" in done.out
    assert "1 of 1 lost lines could not be recovered" in done.err
    again = alice.run("store", "check", "--repair", "-o", "json", code=3).data
    assert (again["repaired"]["lost"], again["repaired"]["still_lost"]) == (1, 1)


def test_a_repair_needs_the_daemon_and_the_peer(alice: Instance, bob: Instance, pair_id: str, tmp_path: Path) -> None:
    converged(alice, bob, pair_id)
    damage(bob, b'"n":17,', keep_index=True)
    alice.stop()
    done = bob.run("store", "check", "--repair", code=3)
    assert f"{pair_id}  alice: nothing fetched: " in done.out
    assert "[connect]" in done.out
    bob.stop()
    done = bob.run("store", "check", "--repair", code=5)
    assert "[daemon-down]" in done.err
    assert "then again: SYNCROPEL_HOME=~/home spl store check --repair" in done.err
    assert bob.run("store", "check", code=3).out.count("\n") == 2
    bob.start()
    alice.start()
    eventually(lambda: bob.run("store", "check", "--repair", code=None).code == 0, "alice is asked again")


def test_a_home_without_pairs_says_so(make: Make) -> None:
    carol = make("carol").start()
    carol.emit(THREAD, 3)
    damage(carol, b'"n":1}', keep_index=False)
    done = carol.run("store", "check", "--repair", code=3)
    assert "no pair may sync now" in done.err
    assert "withdrawn by these lines are in force again" in done.err
    assert "that were withdrawn may be in force again" in told(carol, "store-damaged")["title"]
