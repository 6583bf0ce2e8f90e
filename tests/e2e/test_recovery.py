"""The operator page's whole-pair recovery, literally; and restores that are killed, repeated, refused."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import AUTO, Make
from tests.e2e.findings import attention, named
from tests.e2e.harness import Instance
from tests.waiting import eventually


def shell(instance: Instance, line: str) -> str:
    """Run a line of the page in a shell in which `spl` is the command; return what it printed."""
    script = f'spl() {{ {shlex.quote(sys.executable)} -m spl "$@"; }}\n{line}\n'
    ran = subprocess.run(
        ["bash", "-c", script], env=instance.environment(), timeout=120, check=True, stdout=subprocess.PIPE
    )
    return ran.stdout.decode()


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def pair_record(path: Path, pair_id: str) -> str:
    """Return the id of the newest record of the pair in a snapshot, as an operator picks it."""
    _, *envelopes = lines(path)
    found = [item for item in envelopes if item["record"]["body"].get("pair_id") == pair_id]  # type: ignore[index]
    return str(found[-1]["id"])


def test_the_whole_pair_procedure(alice: Instance, bob: Instance, pair_id: str, tmp_path: Path) -> None:
    """Pause, snapshot both sides, compare the two pair records, revoke, pair again."""
    local, theirs = tmp_path / "local-pairs.snap.jsonl", tmp_path / "bob-pairs.snap.jsonl"
    before = tmp_path / "before.snap.jsonl"
    shell(bob, f"spl thread snapshot th_federation_pairs > {before}")

    alice.run("federation", "pause", pair_id)
    shell(alice, f"spl thread snapshot th_federation_pairs --pair bob > {local}")
    eventually(lambda: bob.pairs()[0]["state"] == "paused", "bob was told")
    shell(bob, f"spl thread snapshot th_federation_pairs --pair {pair_id} > {theirs}")
    header = lines(local)[0]
    assert (header["instance"], header["thread"]) == (alice.did, "th_federation_pairs")
    assert header["count"] == len(lines(local)) - 1
    assert not alice.run("thread", "restore", "--dry-run", str(local)).err, "a part is a snapshot as well"

    mine, other = pair_record(local, pair_id), pair_record(theirs, pair_id)
    done = alice.run("debug", "thread-diff", mine, other)
    assert (done.out, "agree" in done.err) == ("", True), "bob answered while paused, and both have the pause"

    old = pair_record(before, pair_id)
    done = alice.run("debug", "thread-diff", mine, old, "--from", str(before), code=3)
    assert len(done.out.splitlines()) == 2
    assert "pair_pause.v1" in done.out
    assert "! B lacks it" in done.out
    done = alice.run("debug", "thread-diff", str(local), str(before), "-o", "json", code=3)
    assert [(row["only_in"], row["kind"], row["by"]) for row in done.data] == [("A", "pair_pause.v1", alice.did)]
    alice.run("debug", "thread-diff", str(local), str(theirs))
    done = alice.run("debug", "thread-diff", mine, "0" * 64, code=6)
    assert bob.did in done.err

    alice.run("federation", "revoke", pair_id)
    eventually(lambda: bob.pairs()[0]["state"] == "revoked", "bob was told")
    alice.run("debug", "thread-diff", mine, other)
    bob.end()
    assert alice.run("debug", "thread-diff", mine, other, code=6).err.count("connect") == 1
    bob.start()
    alice.run("federation", "pair", bob.url)
    assert alice.pairs("active")[0]["pair_id"] != pair_id


def test_a_thread_moves_to_a_new_home_with_its_ids(alice: Instance, make: Make, tmp_path: Path) -> None:
    """All threads restored into an empty home with the same keys: same records, same pairs; twice is once."""
    bob = make("bob", AUTO).start()
    bob.emit("th_bob", 20)
    pair_id = alice.paired(bob.url)
    ids = alice.emit("th_work", 30)
    alice.run("namespace", "create", "org")
    alice.emit("th_org", 3, namespace="org")
    everything = tmp_path / "all.snap.jsonl"
    shell(alice, f"spl thread snapshot --all > {everything}")
    held = alice.holding()
    assert held["th_work"] == frozenset(ids)
    alice.end()
    copy = make("copy", bare=True)
    (alice.home / "keys").rename(copy.home / "keys")
    assert "[store-missing]" in copy.run("serve", code=12).err
    copy.run("init", "--new-log")
    copy.start()
    plan = copy.data("thread", "restore", "--dry-run", str(everything))
    assert (plan["new"], plan["refused"]) == (plan["records"], 0)
    assert copy.data("thread", "list") == []
    assert copy.run("thread", "restore", str(everything)).out.count("restored") == 1
    assert copy.holding() == held
    eventually(lambda: copy.pair(pair_id)["state"] == "active", "its token came out of the pair log")
    copy.run("sync", pair_id)
    again = json.loads(shell(copy, f"spl thread restore -o json < {everything}"))["data"]
    assert (again["new"], again["known"]) == (0, plan["records"])
    copy.end()
    copy.start()
    assert copy.holding() == held
    assert copy.pair(pair_id)["state"] == "active"


def log_bytes(instance: Instance) -> int:
    return sum(path.stat().st_size for path in (instance.home / "store").glob("*.jsonl"))


@pytest.mark.parametrize("moment", ["sending", "storing"])
def test_a_killed_restore_is_finished_by_the_next(alice: Instance, tmp_path: Path, moment: str) -> None:
    """SIGKILL while the file is sent or stored; the same command again ends whole, and the store checks clean."""
    for n in range(6):
        alice.emit(f"th_{n}", 1000, pad="x" * 1000)
    everything = tmp_path / "all.snap.jsonl"
    shell(alice, f"spl thread snapshot --all > {everything}")
    held = alice.holding()
    alice.end()
    for path in (alice.home / "store").rglob("*"):
        if path.is_file():
            path.unlink()
    alice.run("init", "--new-log")
    alice.start()
    ran = subprocess.Popen(
        [sys.executable, "-m", "spl", "thread", "restore", str(everything)], env=alice.environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    if moment == "storing":
        eventually(lambda: log_bytes(alice) > 1_000_000 or ran.poll() is not None, "the first chunk")
    alice.kill()
    ran.wait(60)
    alice.start()
    plan = alice.data("thread", "restore", str(everything))
    assert plan["new"] + plan["known"] == plan["records"]
    assert alice.holding() == held
    assert "every hash and id holds" in alice.run("store", "check").out
    assert alice.stop() == 0
    assert "every hash and id holds" in alice.run("store", "check").out


def test_check_names_damage_by_segment_and_offset(alice: Instance) -> None:
    """One bit of one line: exit 3, the place, and everything else is still served; with and without a daemon."""
    alice.emit("th_work", 20)
    assert alice.stop() == 0
    [segment] = sorted((alice.home / "store").glob("*.jsonl"))
    data = bytearray(segment.read_bytes())
    at = data.index(b'"n":7')
    start = data.rindex(b"\n", 0, at) + 1
    data[at + 4] ^= 1
    segment.write_bytes(data)
    for start_first in (False, True):
        if start_first:
            alice.start()
        found = alice.run("store", "check", "-o", "json", code=3).data
        assert [(item["offset"], item["lines"], item["what"]) for item in found["damages"]] == [(start, 1, "line")]
    assert alice.data("store", "stats")["records_count"] >= 20


@pytest.mark.parametrize("mode", ["polling", "continuous"])
def test_an_old_copy_of_a_home_gets_back_what_it_lost(alice: Instance, bob: Instance, pair_id: str, mode: str) -> None:
    """The peer notices that the log was set back, finds its place again, and gives back what the copy had lost."""
    for side in (alice, bob):
        side.run("federation", "set-mode", pair_id, mode)
        side.run("federation", "set-poll-interval", pair_id, "1s")
    alice.emit("th_a", 3)
    bob.emit("th_b", 3)
    eventually(lambda: alice.holding() == bob.holding() and "th_b" in alice.holding(), "both hold all")
    assert bob.stop() == 0
    copy = bob.home.with_name("old-copy")
    shutil.copytree(bob.home, copy)
    bob.start()
    lost = bob.emit("th_b", 4)
    eventually(lambda: set(lost) <= alice.holding()["th_b"], "alice has what bob will lose")
    bob.kill()
    shutil.rmtree(bob.home)
    copy.rename(bob.home)
    bob.start()
    fresh = bob.emit("th_b", 2)
    eventually(lambda: set(fresh) <= alice.holding()["th_b"], "alice found her place in bob's log again")
    eventually(lambda: set(lost) <= bob.holding()["th_b"], "bob got his own records back")
    assert alice.holding() == bob.holding()
    assert len(alice.pairs("active")) == len(bob.pairs("active")) == 1
    for side, text in ((alice, "bob was set back"), (bob, "this home was set back")):
        found = eventually(lambda: named(attention(side), "home-set-back"), "it is told")  # noqa: B023
        assert text in str(found)
        side.run(*shlex.split(found["fix"].removeprefix("spl ")))
        assert not named(attention(side), "home-set-back")


def test_a_home_made_again_from_its_key_gets_its_own_records_back(
    alice: Instance, bob: Instance, pair_id: str, make: Make, tmp_path: Path
) -> None:
    """Alice's disk is gone; with the exported identity and a new pair her own records come back without a command."""
    mine, theirs = alice.emit("th_a", 3), bob.emit("th_b", 3)
    alice.run("sync", pair_id)
    bob.run("sync", pair_id)
    assert set(mine) <= bob.holding()["th_a"]
    alice.run("identity", "rotate")
    key = tmp_path / "alice.identity"
    alice.run("identity", "export", "--out", str(key))
    alice.kill()
    again = make("again", bare=True)
    again.run("identity", "import", str(key))
    again.run("init")
    again.start()
    again.run("federation", "pair", bob.url)
    eventually(lambda: set(mine) <= again.holding().get("th_a", set()), "her own records")
    eventually(lambda: set(theirs) <= again.holding().get("th_b", set()), "bob's records")
    shown = eventually(
        lambda: again.data("federation", "show", again.pairs("active")[0]["pair_id"])["compared"], "it says so"
    )
    assert (shown["missing_here_records"], shown["missing_there_records"]) == (0, 0)
