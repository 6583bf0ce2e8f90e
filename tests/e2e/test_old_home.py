"""Homes that an older version left behind open, keep all they hold, and go on syncing with the present version.

The stored pairs lie in tests/homes, one folder a version, with what must be found in them.  The two sides know each
other by fixed ports, so those must be free here, and two runs on one machine take turns.  Credentials age: tokens end
after 90 days and manifests after 7, so the clock of the daemons is set to the day after the making, and to years after
it, besides today.
"""

import json
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import READY_S, ROOT, Instance
from tests.homes import holdings, make
from tests.waiting import eventually

HOMES = ROOT / "tests" / "homes"
HEAL_S = 120.0
"""Long enough for some attempts of looking after the pair; the side that starts first does not reach the other."""
TURN_S = 600.0
"""Long enough for another run to end the test that it is in."""
DAY_MS = 86_400_000
AGES = {"the day after": DAY_MS, "years later": 4 * 366 * DAY_MS, "today": 0}
"""How long after the making the daemons' clock stands; 0: as the machine's."""


@dataclass
class Old:
    """A stored pair of homes, laid out; nothing runs yet."""

    alice: Instance
    bob: Instance
    stored: dict[str, Any]

    @property
    def pair_id(self) -> str:
        """The id of the live pair."""
        return str(self.stored["pair_id"])

    def start(self) -> "Old":
        """Start both at once, as after a common outage, and wait until both take writes."""
        both = (self.alice, self.bob)
        for one in both:
            eventually(lambda one=one: is_free(one.port), f"port {one.port}, which a stored home is bound to, is free")
            one.launch()
        for one in both:
            eventually(one.is_ready, f"{one.name} is ready", READY_S)
            admit(one)
        return self


@pytest.fixture(params=sorted(path.parent.name for path in HOMES.glob("*/held.json")))
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Old]:
    """Both homes of a version, each time afresh."""
    folder = HOMES / request.param
    sides = []
    for name, port in make.PORTS.items():
        make.unpack(folder / f"{name}.tar.gz", tmp_path / name / "home")
        sides.append(Instance(name, tmp_path / name / "home", port=port))
    with alone():
        yield Old(*sides, json.loads((folder / "held.json").read_text()))
        for one in sides:
            one.end()


@contextmanager
def alone() -> Iterator[None]:
    """Hold the port before those of the homes, so that another run on this machine waits for its turn."""
    with socket.socket() as sock:
        eventually(lambda: is_bound(sock, min(make.PORTS.values()) - 1), "no other run has these homes open", TURN_S)
        yield


def is_bound(sock: socket.socket, port: int) -> bool:
    """Bind the socket to this port of 127.0.0.1 if it is free, and return whether it was."""
    try:
        sock.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


def is_free(port: int) -> bool:
    """Return whether a daemon can listen on this port now."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return is_bound(sock, port)


def admit(instance: Instance) -> None:
    """Give the harness an admin token that lives now; the local socket needs none to mint it."""
    minted = instance.run("token", "mint", "--scopes", "admin", "--ttl", "1d", "--label", "harness").out
    (instance.home / "token").write_text(minted)


def set_clock(old: Old, after_ms: int) -> None:
    """Let the processes of both live so long after the making; 0 leaves them the machine's clock."""
    if after_ms:
        ahead_ms = old.stored["made_ms"] + after_ms - time.time_ns() // 1_000_000
        for one in (old.alice, old.bob):
            one.env["PYTHONPATH"] = f"{HOMES / 'clock'}:{ROOT}"
            one.env["SPL_TEST_CLOCK_AHEAD_MS"] = str(ahead_ms)


def lost(instance: Instance, stored: dict[str, Any]) -> list[str]:
    """Return what the instance does not say any more of what was stored; rules with `matches` must be named only."""
    now, envelopes = holdings.held(instance), holdings.envelopes(instance)
    found = []
    for thread, before in stored["threads"].items():
        lines = envelopes.get(thread, [])
        kept = lines[: len(before["ids"])] if holdings.is_reserved(thread) else lines
        if holdings.digest(kept) != before:
            found.append(f"thread {thread} is not as it was: {len(before['ids'])} records then, {len(lines)} now")
    rules = {name: rule for name, rule in stored["aitl-rules"].items() if ".matches(" not in rule["expression"]}
    return found + holdings.lost({**stored, "threads": {}, "aitl-rules": rules}, now)


def active(old: Old) -> None:
    """Wait until the pair is active and each side holds a token of the other that lives."""
    for one in (old.alice, old.bob):
        eventually(lambda one=one: is_well(one.pair(old.pair_id)), f"active at {one.name}, its tokens live", HEAL_S)


def is_well(pair: dict[str, Any]) -> bool:
    """Return whether the pair is active, and its tokens of both directions live."""
    return pair["state"] == "active" and [token["state"] for token in pair["tokens"]] == ["live", "live"]


def emit(instance: Instance, thread: str, **body: object) -> str:
    """Emit a record at the next clock of its actor, and return its id."""
    own = [record for record in instance.records(thread) if record["actor"] == f"did:sync:user:{instance.name}"]
    [id_] = instance.emit(thread, **body)
    [record] = [record for record in instance.records(thread) if record["id"] == id_]
    assert record["clock"] == len(own), "clocks go on from the stored ones"
    return id_


def holds(instance: Instance, thread: str, id_: str) -> bool:
    """Return whether the instance holds this record on the thread."""
    return any(record["id"] == id_ for record in instance.records(thread))


@pytest.mark.parametrize("age", AGES)
def test_an_old_pair_goes_on(old: Old, age: str) -> None:
    """Nothing stored is missing or changed, new records travel both ways, and both sides are proved to be equal."""
    set_clock(old, AGES[age])
    alice, bob = (old.alice, old.bob)
    old.start()
    active(old)
    for one in (alice, bob):
        assert lost(one, old.stored[one.name]) == [], f"at {one.name}"
        one.run("store", "check")

    late = old.stored["alice"]["threads"]["th_old"]["ids"][-1]
    bob.run("namespace", "create", "old")
    hers = [emit(alice, "th_both", text="later"), emit(alice, "th_garden", namespace="garden")]
    song = emit(alice, "th_songs", namespace="music", text="a new melody")
    his = emit(bob, "th_both", text="later")
    withheld = emit(bob, "th_withheld", text="no thread that bob lets out")
    bob.run("sync", old.pair_id)
    eventually(lambda: holds(bob, "th_both", hers[0]) and holds(bob, "th_garden", hers[1]), "alice's records arrive")
    eventually(lambda: song in {claim["id"] for claim in holdings.claims(bob, old.pair_id)}, "her song is claimed")
    eventually(lambda: holds(alice, "th_both", his), "bob's record arrives by the stream")
    bob.run("federation", "verify", old.pair_id, "--repair")
    assert holds(bob, "th_old", late), "what bob refused, the repair fetches now that its namespace is active again"
    assert not holds(alice, "th_withheld", withheld)
    assert not holds(bob, "th_songs", song)
    for one in (alice, bob):
        assert one.data("federation", "verify", old.pair_id)["equal"]
        assert "event=sync.reset" not in (one.home / "logs" / "spl.log").read_text(), "the saved positions hold"
    for one in (alice, bob):
        assert one.stop() == 0
        one.run("store", "check")


def test_the_rules_and_tokens_of_an_old_home_still_decide(old: Old, tmp_path: Path) -> None:
    """A tenant's token reaches its namespace alone, a revoked one nothing, and a rule out of date approves nobody."""
    set_clock(old, DAY_MS)
    alice, bob = old.alice, old.bob
    old.start()
    tenant, dead = old.stored["tokens"]["tenant"], old.stored["tokens"]["dead"]
    seen = alice.api("GET", "/v1/threads/th_invoices/records", token=tenant).json["data"]
    assert [record["id"] for record in seen] == old.stored["alice"]["threads"]["th_invoices"]["ids"]
    assert alice.api("GET", "/v1/threads/th_garden/records", token=tenant).json["data"] == []
    assert alice.api("GET", "/v1/threads", token=dead).status == 401
    verdict = alice.run("config", "test-permission", "tokens:write", "--facts", '{"principal": {"kind": "token"}}',
                        "--scopes", "config:read", "-o", "json", code=4).data  # fmt: skip
    assert (verdict["verdict"], verdict["rule"]) == ("deny", "no-mint")

    record = alice.records("th_orders_may")[3]
    fields = {name: record[name] for name in ("act", "actor", "thread", "body", "clock", "data_type", "parents")}
    again = alice.api("POST", "/v1/records", fields)
    assert (again.status, again.json["id"]) == (200, record["id"]), "a stored record is known by the same id"

    said = bob.run("config", "list-aitl-rules").out + bob.run("doctor", code=None).out
    for rule in old.stored["bob"]["aitl-rules"]:
        assert rule in said
    carol = Instance("carol", tmp_path / "carol" / "home", env=dict(bob.env))
    carol.home.mkdir(parents=True, mode=0o700)
    carol.run("init", "--label", "carol")
    try:
        carol.start()
        carol.run("federation", "pair", bob.url, "--wait", "0s", code=8)
        [waiting] = eventually(lambda: bob.data("aitl", "list"), "carol waits for bob")
        assert waiting["from"] == carol.did
    finally:
        carol.end()


@pytest.mark.parametrize("name", sorted(make.PORTS))
def test_an_old_home_opens_without_its_index(old: Old, name: str) -> None:
    """The log alone says everything, saved positions and refused records too, with no peer to ask."""
    set_clock(old, DAY_MS)
    one = old.alice if name == "alice" else old.bob
    shutil.rmtree(one.home / "store" / "index")
    eventually(lambda: is_free(one.port), f"port {one.port}, which a stored home is bound to, is free")
    one.start()
    admit(one)
    assert lost(one, old.stored[name]) == []
    assert one.stop() == 0
    one.run("store", "check")
