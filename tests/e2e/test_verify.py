"""Proof of convergence between real daemons: what one side lost is found, named and brought back."""

import json
import shutil
from pathlib import Path

import pytest

from tests.e2e.harness import Instance
from tests.waiting import eventually

THREAD = "th_release"


def lose(instance: Instance, *marks: bytes) -> None:
    """Damage the stored lines that hold these bytes, as a bad disk does, and start the daemon again."""
    instance.stop()
    for path in sorted((instance.home / "store").glob("*.jsonl")):
        data = path.read_bytes()
        for mark in marks:
            data = data.replace(mark, mark[:-1] + b"#")
        path.write_bytes(data)
    shutil.rmtree(instance.home / "store" / "index")
    instance.start()


def share(alice: Instance, bob: Instance, pair_id: str, count: int) -> list[str]:
    """Emit records at alice until bob holds them; return their ids."""
    ids = alice.emit(THREAD, count, note="shared")
    bob.run("sync", pair_id)
    assert [record["id"] for record in bob.records(THREAD)] == ids
    return ids


def test_lost_records_are_found_named_and_fetched(alice: Instance, bob: Instance, pair_id: str) -> None:
    ids = share(alice, bob, pair_id, 400)
    bob.emit("th_by_bob", 5)
    alice.run("sync", pair_id)
    done = bob.run("federation", "verify", pair_id)
    assert done.out.splitlines()[-1] == f"{pair_id}  equal: each side holds everything that the other offers"
    assert done.out.splitlines()[1].split() == ["default", "405", "405", "0", "0"]
    lose(bob, b'"n":17,', b'"n":111,', b'"n":398,')
    lost = {ids[17], ids[111], ids[398]}
    done = bob.run("federation", "verify", pair_id, code=3)
    assert "missing here, offered by alice:" in done.out
    assert all(id_ in done.out for id_ in lost)
    done = alice.run("federation", "verify", pair_id, "-o", "json", code=3)
    assert {item["id"] for item in done.data["missing_there"]} == lost
    assert done.data["missing_here"] == []
    assert done.data["sent_bytes"] + done.data["received_bytes"] < 16 * 1024
    done = bob.run("federation", "verify", pair_id, "--repair")
    assert "repaired: 3 records fetched, 0 sent to alice" in done.out
    assert {record["id"] for record in bob.records(THREAD)} == set(ids)
    assert alice.data("federation", "verify", pair_id)["equal"]


def test_the_side_that_holds_them_brings_them_back(alice: Instance, bob: Instance, pair_id: str) -> None:
    ids = share(alice, bob, pair_id, 40)
    lose(bob, b'"n":3,', b'"n":30,')
    done = alice.run("federation", "verify", pair_id, "--repair")
    assert "repaired: 0 records fetched, 2 sent to bob" in done.out
    assert {record["id"] for record in bob.records(THREAD)} == set(ids)


@pytest.mark.parametrize("pauser", ["alice", "bob"])
def test_pause_and_resume_is_a_resync_of_both_sides(alice: Instance, bob: Instance, pair_id: str, pauser: str) -> None:
    """Whoever paused: what the cursors went past is fetched again, in the background."""
    ids = share(alice, bob, pair_id, 40)
    lose(bob, b'"n":3,', b'"n":30,')
    one, other = (alice, bob) if pauser == "alice" else (bob, alice)
    one.run("federation", "pause", pair_id)
    eventually(lambda: other.pairs("paused"), "the other side knows")
    assert "[pair-paused]" in one.run("federation", "verify", pair_id, code=7).err
    one.run("federation", "resume", pair_id)
    eventually(lambda: {record["id"] for record in bob.records(THREAD)} == set(ids), "bob holds them again")


def test_verify_says_what_hinders_it(alice: Instance, bob: Instance, pair_id: str, tmp_path: Path) -> None:
    bob.stop()
    assert "[connect]" in alice.run("federation", "verify", pair_id, code=9).err
    bob.start()
    bob.run("federation", "revoke", pair_id)
    assert "[pair-revoked]" in bob.run("federation", "verify", pair_id, code=7).err
    assert alice.run("federation", "verify", "pair_00000000", code=6).out == ""
    log = (alice.home / "logs" / "spl.log").read_text()
    assert "verify.done" not in log
    assert json.loads((bob.run("federation", "show", pair_id, "-o", "json")).out)["data"]["state"] == "revoked"
