"""SIGKILL at any moment: what was acknowledged is there, and a handshake ends as one pair with one id on both sides."""

import http.client
import json
import threading
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import AUTO, Make
from tests.e2e.harness import Instance
from tests.waiting import eventually

STEPS = ("manifest", "verified", "posted", "token", "recorded", "synced", "active")
EMITTERS = 4


def burst(instance: Instance, acknowledged: list[str], enough: threading.Event, count: int) -> None:
    """Emit one record a request until the daemon is gone; keep the ids that it acknowledged."""
    connection = http.client.HTTPConnection("127.0.0.1", instance.port, timeout=30)
    headers = {"authorization": f"Bearer {instance.token}", "content-type": "application/json"}
    thread = threading.current_thread().name
    try:
        for n in range(1_000_000):
            record = {"act": "KNOW", "actor": "did:sync:user:a", "thread": thread, "body": {"n": n, "pad": "x" * 200}}
            connection.request("POST", "/v1/records", json.dumps(record), headers)
            answer = connection.getresponse()
            value = json.loads(answer.read())
            assert answer.status == 200, value
            acknowledged.append(value["id"])
            if len(acknowledged) >= count:
                enough.set()
    except (OSError, http.client.HTTPException):
        return
    finally:
        connection.close()


def kill_in_a_burst(instance: Instance, count: int) -> list[str]:
    """Kill the daemon in a burst, once `count` records are acknowledged; return all acknowledged ids."""
    acknowledged: list[str] = []
    enough = threading.Event()
    emitters = [
        threading.Thread(target=burst, args=(instance, acknowledged, enough, count), name=f"th_burst_{n}")
        for n in range(EMITTERS)
    ]
    for emitter in emitters:
        emitter.start()
    assert enough.wait(60), "the burst stalled"
    instance.kill()
    for emitter in emitters:
        emitter.join(60)
    return acknowledged


def test_every_acknowledged_record_survives_and_reaches_the_peer(alice: Instance, bob: Instance, pair_id: str) -> None:
    """Three kills in bursts, each with a restart; then both hold the same, and nothing acknowledged is missing."""
    acknowledged: list[str] = []
    for count in (50, 150, 300):
        acknowledged += kill_in_a_burst(alice, count)
        alice.start()
        held = frozenset().union(*alice.holding().values())
        assert held >= set(acknowledged)
    bob.run("sync", pair_id)
    assert frozenset().union(*bob.holding().values()) >= set(acknowledged)
    assert alice.holding() == bob.holding()
    assert len(set(acknowledged)) == len(acknowledged) >= 500


@pytest.mark.parametrize("side", ["source", "consumer"])
def test_a_kill_during_sync_loses_and_doubles_nothing(make: Make, side: str) -> None:
    """Killed while pages move, the next sync goes on from the saved position; the sets end equal."""
    alice, bob = make("alice").start(), make("bob", AUTO).start()
    pair_id = alice.paired(bob.url)
    for batch in range(4):
        bob.emit(f"th_{batch}", 1500, pad="x" * 300)
    victim = bob if side == "source" else alice
    syncing = threading.Thread(target=alice.run, args=("sync", pair_id), kwargs={"code": None})
    syncing.start()
    eventually(lambda: len(alice.records("th_0")) > 0 or not syncing.is_alive(), "the first page")
    victim.kill()
    syncing.join(60)
    victim.start()
    alice.run("sync", pair_id)
    assert alice.holding() == bob.holding()
    assert sum(map(len, alice.holding().values())) == 6000


def settled(alice: Instance, bob: Instance) -> str:
    """Wait until both have the same one pair active and return its id; ask again where nothing was kept."""
    if not alice.pairs("establishing", "active", "degraded"):
        done = alice.run("federation", "pair", bob.url, code=None)
        assert done.code in (0, 7, 8), done
    for instance in (alice, bob):
        eventually(lambda one=instance: one.pairs("active"), f"active at {instance.name}")
    [ours], [theirs] = alice.pairs("active"), bob.pairs("active")
    assert ours["pair_id"] == theirs["pair_id"]
    assert alice.pairs("establishing") == bob.pairs("establishing") == []
    return str(ours["pair_id"])


def converged(alice: Instance, bob: Instance, pair_id: str) -> None:
    """Emit on both sides, sync, and compare: credentials of both directions work."""
    alice.emit("th_after", 2, by="alice")
    bob.emit("th_after", 2, by="bob")
    for instance in (alice, bob):
        instance.run("sync", pair_id)
    assert alice.holding() == bob.holding()
    assert len(alice.records("th_after")) == 4


def until(steps: Iterator[dict[str, object]], name: str) -> bool:
    """Read steps up to the one named; False when they end before it."""
    return any(step["step"] == name for step in steps)


@pytest.mark.parametrize("victim", ["alice", "bob"])
@pytest.mark.parametrize("step", STEPS)
def test_a_handshake_killed_at_any_step_heals(make: Make, step: str, victim: str) -> None:
    """Either side dies when a step shows; after its restart the pair is active, one and the same on both sides."""
    alice, bob = make("alice").start(), make("bob", AUTO).start()
    bob.emit("th_before", 3)
    steps = alice.steps(bob.url, wait_ms=20_000)
    assert until(steps, step), f"the handshake ended before {step!r}"
    dead = alice if victim == "alice" else bob
    dead.kill()
    dead.start()
    list(steps)
    pair_id = settled(alice, bob)
    converged(alice, bob, pair_id)
    assert len(alice.records("th_before")) == 3


@pytest.mark.parametrize("victim", ["alice", "carol"])
@pytest.mark.parametrize("moment", ["asked", "approved"])
def test_a_handshake_by_hand_killed_heals(make: Make, moment: str, victim: str) -> None:
    """The request outlives a kill of either side, before the approval and right after it, under its own id."""
    alice, carol = make("alice").start(), make("carol").start()
    assert until(alice.steps(carol.url, wait_ms=30_000), "waiting")
    [pair] = alice.pairs("establishing")
    dead = alice if victim == "alice" else carol
    if moment == "asked":
        dead.kill()
        dead.start()
        carol.run("aitl", "approve", pair["pair_id"])
    else:
        carol.run("aitl", "approve", pair["pair_id"])
        dead.kill()
        dead.start()
    assert settled(alice, carol) == pair["pair_id"]
    converged(alice, carol, pair["pair_id"])


def test_a_stop_is_clean_and_quick(alice: Instance, bob: Instance, pair_id: str) -> None:
    """SIGTERM: exit 0, and the next start finds everything, the pair included."""
    alice.emit("th_work", 10)
    assert alice.stop() == 0
    alice.start()
    assert len(alice.records("th_work")) == 10
    assert alice.pairs("active")[0]["pair_id"] == pair_id
    converged(alice, bob, pair_id)


@pytest.mark.parametrize("harm", ["lost", "damaged", "cut"])
def test_an_index_is_rebuilt_from_the_log(alice: Instance, harm: str) -> None:
    """Whatever happens to its files between two runs, every record is found again."""
    ids = alice.emit("th_work", 200)
    assert alice.stop() == 0
    files = [path for path in (alice.home / "store/index").rglob("*") if path.is_file()]
    assert files
    for path in files:
        data = path.read_bytes()
        if harm == "lost":
            path.unlink()
        else:
            path.write_bytes(data[: len(data) // 2] + (b"" if harm == "cut" else bytes(len(data) - len(data) // 2)))
    alice.start()
    assert [record["id"] for record in alice.records("th_work")] == ids
    assert alice.api("GET", f"/v1/records/{ids[77]}").json["body"]["n"] == 77
