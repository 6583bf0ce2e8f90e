"""Make the stored pair of homes: two daemons that paired, worked and stopped, as their version leaves them.

    python -m tests.homes.make FOLDER        (from the root of the tree; FOLDER must not exist)

It leaves `alice.tar.gz`, `bob.tar.gz` and `held.json`, which says what a later version must find in them.  The homes
in `0.1.0/` were made once and are never made anew: they are old on purpose.  A version that writes something new adds a
folder beside them, made by its own code, and `tests/e2e/test_old_home.py` opens all.  The commands below may have to
follow the product then; the stored homes need not.
The note `secrets/log-epoch` and the files `store/lost` and `store/*.foreign` came without a folder: a home that has
none is opened as before, and gets them when there is something to say; their forms are held by `tests/home`.

The keys and tokens inside are throw-away: they were made for this and open nothing.  The two know each other by
fixed ports.  What is in them: a revoked pair and its successor; shared namespaces, a crossing at L1 and one that bob
archived, with a record that he refused for it; batches and single signatures; a rotated key; rules of all kinds; a
pattern in a rule; tokens; saved positions.
"""

import gzip
import io
import json
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.e2e.harness import Instance
from tests.homes import holdings
from tests.waiting import eventually

PORTS: Final = {"alice": 9471, "bob": 9472}
LEFT_OUT: Final = frozenset({"run", "logs", "lock"})
LONG: Final = ("--ttl", "3650d")
ODD: Final[list[dict[str, Any]]] = [
    {"body": {"text": 'tab\t "quote" \\ bell\u0007 é 漢 🎈', "big": 1e21, "small": 1e-07, "zero": -0.0}},
    {"body": {"deep": [[[{"x": [None, True, 7]}]]], "": "empty name"}, "data_type": "DISTRIBUTION"},
    {"body": {"large": 12345678901234567890123456789, "third": 0.1}, "data_type": "REFERENCE"},
    {"body": {}, "data_type": "VOID"},
]


def main(folder: Path) -> None:
    """Make both homes and write them down."""
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as top, _running(Path(top)) as (alice, bob):
        _earlier_pair(alice, bob)
        pair_id = _pair(alice, bob)
        _records(alice, bob, pair_id)
        _rotation(alice, bob, pair_id)
        _rules(alice, bob, pair_id)
        tokens = _tokens(alice)
        _refusal(alice, bob, pair_id)
        found: dict[str, Any] = {
            "made_ms": time.time_ns() // 1_000_000,
            "pair_id": pair_id,
            "tokens": tokens,
            "alice": holdings.held(alice),
            "bob": holdings.held(bob),
        }
        for one in (alice, bob):
            code = one.stop()
            assert code == 0, f"{one.name} ended with {code}"
            pack(one.home, folder / f"{one.name}.tar.gz")
        (folder / "held.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def _running(top: Path) -> Iterator[tuple[Instance, Instance]]:
    made: list[Instance] = []
    try:
        for name, port in PORTS.items():
            one = Instance(name, top / name / "home", port=port)
            one.home.mkdir(parents=True, mode=0o700)
            made.append(one)
            one.configure(f'port = {port}\n[federation]\napproval = "manual"\npoll_interval = "10m"\n')
            one.run("init", "--label", name)
            one.start()
        yield made[0], made[1]
    finally:
        for one in made:
            one.end()


def _approved(alice: Instance, bob: Instance, *words: str) -> str:
    """Let alice ask and bob approve; return the id of the pair once it is active on both sides."""
    alice.run("federation", "pair", bob.url, "--wait", "0s", *words, code=8)
    [request] = eventually(lambda: bob.data("aitl", "list"), "bob is asked")
    bob.run("aitl", "approve", request["id"])
    eventually(lambda: alice.pairs("active") and bob.pairs("active"), "both are active")
    return str(request["id"])


def _earlier_pair(alice: Instance, bob: Instance) -> None:
    pair_id = _approved(alice, bob)
    alice.emit("th_first", 3, text="before the end of the first pair")
    bob.run("sync", pair_id)
    alice.run("federation", "revoke", pair_id, "--reason", "a fresh start")
    eventually(lambda: bob.pairs("revoked"), "the end reaches bob")


def _pair(alice: Instance, bob: Instance) -> str:
    for one in (alice, bob):
        for name in ("garden", "old"):
            one.run("namespace", "create", name, "--shared")
    for one, name in ((alice, "music"), (alice, "acme"), (bob, "projects"), (bob, "projects/music")):
        one.run("namespace", "create", name)
    pair_id = _approved(alice, bob, "--backfill", "--map", "music:projects/music")
    alice.run("federation", "set-mode", pair_id, "continuous")
    return pair_id


def _records(alice: Instance, bob: Instance, pair_id: str) -> None:
    parents = alice.emit("th_garden", 6, namespace="garden", text="tomatoes")
    alice.emit("th_orders_may", 8, order={"total": 12.5, "kind": "seeds"})
    bob.emit("th_orders_june", 4, order={"total": 0.1})
    bob.emit("th_notes", 9, text="from bob")
    for one in (alice, bob):
        one.emit("th_both", 5, text=f"from {one.name}", kind="note")
    alice.emit("th_songs", 4, namespace="music", text="a melody", operation="sing", input_shape="SCORE")
    bob.emit("th_back", 2, namespace="projects/music", text="an answer")
    alice.emit("th_invoices", 2, namespace="acme", text="not shared")
    alice.emit("th_old", 3, namespace="old")
    alice.run("intend", "ship the plan", "--thread", "th_plan")
    alice.run("know", "the fence is up", "--thread", "th_plan", "--body", '{"kind": "garden.note"}')
    for fields in (*ODD, {"body": {"text": "judged"}, "parents": sorted(parents[:3]), "judged_by": parents[0]}):
        value = {"act": "LEARN", "actor": "did:sync:agent:odd", "thread": "th_odd", **fields}
        answer = alice.api("POST", "/v1/records", value)
        assert answer.status == 200, answer.body
    bob.run("sync", pair_id)
    alice.run("sync", pair_id)
    eventually(lambda: len(bob.records("th_odd")) == 5 and len(alice.records("th_both")) == 10, "both hold all")
    eventually(lambda: len(holdings.claims(bob, pair_id)) == 4, "bob has the projections")
    eventually(lambda: len(holdings.claims(alice, pair_id)) == 2, "alice has the projections")


def _rotation(alice: Instance, bob: Instance, pair_id: str) -> None:
    alice.run("identity", "rotate")
    alice.emit("th_rotated", 3, text="under the second key")
    alice.emit("th_rotated", 1, text="alone under the second key")
    bob.run("federation", "refresh", pair_id)
    bob.run("sync", pair_id)
    eventually(lambda: len(bob.records("th_rotated")) == 4, "bob holds what the second key signed")


def _rules(alice: Instance, bob: Instance, pair_id: str) -> None:
    not_ours = 'principal.kind != "local" && !("admin" in principal.scopes)'
    alice.run("config", "add-permission-rule", "no-mint", "--resource", "tokens:write", "--action", "deny",
              "--priority", "5", "--expression", not_ours)  # fmt: skip
    alice.run("config", "add-fold-rule", "spent", "--thread", "th_orders_*", "--fold", "sum", "--field", "order.total")
    alice.run("config", "add-fold-rule", "who", "--thread", "th_both", "--fold", "set", "--field", "text")
    bob.run("config", "add-fold-rule", "many", "--thread", "th_*", "--fold", "count", "--priority", "1")
    bob.run("config", "add-fold-rule", "gone", "--thread", "th_*", "--fold", "first", "--priority", "9")
    bob.run("config", "remove-fold-rule", "gone")
    bob.run("config", "add-aitl-rule", "friends", "--action", "auto_apply", "--priority", "2",
            "--expression", f'request.initiator_did == "{alice.did}" && size(request.maps) == 0')  # fmt: skip
    bob.run("config", "add-aitl-rule", "old-pattern", "--action", "auto_apply", "--namespace", "garden",
            "--expression", 'request.initiator_did == "did:sync:instance:dave-0123456789abcdef01234567"')  # fmt: skip
    bob.run("federation", "thread-allow", pair_id, "th_notes", "th_orders_june", "th_both", "th_back")


def _tokens(alice: Instance) -> dict[str, str]:
    """Return the texts of two tokens: a tenant's, and one that is revoked."""
    mint = ("token", "mint", "--scopes", "records:read,records:write", "--namespace", "acme", *LONG)
    texts = {name: alice.run(*mint, "--label", name).out.strip() for name in ("tenant", "dead")}
    [dead] = [token["token_id"] for token in alice.data("token", "list") if token["label"] == "dead"]
    alice.run("token", "revoke", dead)
    return texts


def _refusal(alice: Instance, bob: Instance, pair_id: str) -> None:
    """Leave a record in bob's ledger of refused ones: alice emits for a namespace that he has archived."""
    bob.run("namespace", "archive", "old")
    alice.emit("th_old", 1, namespace="old", text="too late")
    bob.run("sync", pair_id)
    eventually(lambda: bob.pair(pair_id)["refused_records"] == 1, "bob refused one")
    alice.run("sync", pair_id)
    for one in (alice, bob):
        assert [pair["state"] for pair in one.pairs() if pair["pair_id"] == pair_id] == ["active"]


def pack(home: Path, path: Path) -> None:
    """Write a stopped home as an archive; equal homes give equal bytes."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for item in sorted(home.rglob("*")):
            name = item.relative_to(home)
            if name.parts[0] in LEFT_OUT:
                continue
            entry = archive.gettarinfo(item, name.as_posix())
            entry.mtime = entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            archive.addfile(entry, io.BytesIO(item.read_bytes()) if item.is_file() else None)
    path.write_bytes(gzip.compress(packed.getvalue(), mtime=0))


def unpack(path: Path, home: Path) -> None:
    """Lay a stored home out in a folder, with the modes that it had."""
    home.mkdir(parents=True, mode=0o700)
    with tarfile.open(path) as archive:
        archive.extractall(home, filter="tar")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.homes.make FOLDER")
    main(Path(sys.argv[1]))
