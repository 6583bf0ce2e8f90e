"""The operator page's commands as an operator types them, with their literal output."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import AUTO, Make
from tests.e2e.harness import Done, Instance
from tests.waiting import eventually

HAPPY = """\
Pairing with DID (URL) ...
  ✓ manifest fetched + signature verified
  ✓ POST /v1/federation/pair → 200 OK
  ✓ peer token persisted (federation:sync, federation:subscribe)
  ✓ recorded on th_federation_pairs (pair_id: PAIR_ID)
  ✓ initial sync cursor advanced (12 records)

Pair active.
"""
STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def masked(text: str, instance: Instance, pair_id: str) -> str:
    """Return the text with DID, URL and pair id of the peer replaced."""
    return text.replace(instance.did, "DID").replace(instance.url, "URL").replace(pair_id, "PAIR_ID")


def test_pair_prints_the_pages_lines_byte_by_byte(alice: Instance, bob: Instance) -> None:
    """Discover, verify, handshake, persist, sync: one command, and stdout is the page's."""
    bob.emit("th_work", 12)
    done = alice.run("federation", "pair", bob.url)
    pair_id = alice.pairs("active")[0]["pair_id"]
    assert re.fullmatch("pair_[0-9a-f]{8}", pair_id)
    assert masked(done.out, bob, pair_id) == HAPPY
    assert len(alice.records("th_work")) == 12


def test_list_shows_the_five_columns(alice: Instance, bob: Instance, pair_id: str) -> None:
    """PAIR ID, PEER DID, STATE, MODE, LAST SYNC; the same facts with their names in JSON."""
    head, row = alice.run("federation", "list").out.splitlines()
    assert re.split(r"\s{2,}", head) == ["PAIR ID", "PEER DID", "STATE", "MODE", "LAST SYNC"]
    assert re.split(r"\s{2,}", row)[:4] == [pair_id, bob.did, "active", "polling"]
    assert re.fullmatch(STAMP, re.split(r"\s{2,}", row)[4])
    [data] = alice.data("federation", "list")
    assert (data["pair_id"], data["peer_did"], data["state"], data["mode"]) == (pair_id, bob.did, "active", "polling")
    assert (data["poll_interval_ms"], data["initiator"], data["namespaces"]) == (300_000, True, ["default"])


def test_json_output_is_an_envelope(alice: Instance, bob: Instance, pair_id: str) -> None:
    """schema, generated_at, instance, data; jsonl is one line an element."""
    whole = json.loads(alice.run("federation", "list", "-o", "json").out)
    assert list(whole) == ["schema", "generated_at", "instance", "data"]
    assert whole["instance"] == alice.did
    assert whole["schema"].endswith("/1")
    assert [
        json.loads(line)["pair_id"] for line in alice.run("federation", "list", "-o", "jsonl").out.splitlines()
    ] == [pair_id]


def test_show_names_cursor_manifest_and_token_ids(alice: Instance, bob: Instance, pair_id: str) -> None:
    """The page's line of the cursor stands in it byte by byte; bearers stand nowhere."""
    bob.emit("th_work", 3)
    alice.run("sync", pair_id)
    out = alice.run("federation", "show", pair_id).out
    assert re.search(r"^last_sync_cursor: clock=3, lagging by 0 records$", out, re.MULTILINE)
    for fact in (
        pair_id,
        bob.did,
        "active",
        "polling",
        f"{bob.url}v1/federation/pair",
        "federation:sync,federation:subscribe",
    ):
        assert fact in out
    assert len(re.findall(r"\btok_[0-9a-f]{8}\b", out)) == 2
    assert "spl_" not in out
    detail = alice.data("federation", "show", pair_id)
    assert detail["last_sync_cursor"] == {"clock": 3, "lag_records": 0}
    assert {token["direction"] for token in detail["tokens"]} == {"issued to us", "issued by us"}
    assert not set(json.dumps(detail).split('"')) & {alice.token, bob.token}


@pytest.mark.parametrize("name", ["whole", "prefix", "did", "short"])
def test_a_pair_has_four_names(alice: Instance, bob: Instance, pair_id: str, name: str) -> None:
    """Pair id, unique prefix of one, peer DID, and the DID without its fingerprint."""
    ref = {"whole": pair_id, "prefix": pair_id[:9], "did": bob.did, "short": bob.did.rpartition("-")[0]}[name]
    assert alice.data("federation", "show", ref)["pair_id"] == pair_id


def test_pause_stops_sync_and_resume_goes_on(alice: Instance, bob: Instance, pair_id: str) -> None:
    """Both sides say who paused; nothing is lost; pausing twice is no error."""
    alice.run("federation", "pause", pair_id)
    assert alice.data("federation", "show", pair_id)["state"] == "paused"
    assert "already_paused" in alice.run("federation", "pause", pair_id).out
    bob.emit("th_work", 5)
    refused = bob.run("sync", pair_id, code=None)
    assert refused.code == 7, refused
    assert "[pair-paused]" in refused.err
    eventually(lambda: bob.pairs()[0]["state"] == "paused", "bob sees the pause")
    assert "by peer" in json.dumps(bob.pairs()[0])
    assert alice.records("th_work") == []
    alice.run("federation", "resume", pair_id)
    alice.run("sync", pair_id)
    assert len(alice.records("th_work")) == 5
    bob.run("sync", pair_id)
    assert [alice.pairs()[0]["state"], bob.pairs()[0]["state"]] == ["active", "active"]


def test_revoke_is_final_on_both_sides(alice: Instance, bob: Instance, pair_id: str) -> None:
    """The peer hears of it; the pair stays in the list for audit; nothing brings it back but a new one."""
    alice.run("federation", "revoke", pair_id)
    assert alice.pairs()[0]["state"] == "revoked"
    eventually(lambda: bob.pairs()[0]["state"] == "revoked", "bob sees the revocation")
    refused = alice.run("federation", "resume", pair_id, code=7)
    assert re.match(r"error: .*\[pair-(revoked|state-conflict)\]", refused.err)
    alice.run("sync", pair_id, code=7)
    alice.run("federation", "pair", bob.url)
    assert sorted(pair["state"] for pair in alice.pairs()) == ["active", "revoked"]
    assert alice.pairs("active")[0]["pair_id"] == bob.pairs("active")[0]["pair_id"] != pair_id


def test_modes_and_intervals(alice: Instance, pair_id: str) -> None:
    """on-demand and back to polling; the interval is kept and shown; nonsense is refused as usage."""
    alice.run("federation", "set-mode", pair_id, "on-demand")
    assert alice.pairs()[0]["mode"] == "on-demand"
    alice.run("federation", "set-mode", pair_id, "polling")
    alice.run("federation", "set-poll-interval", pair_id, "30s")
    assert (alice.pairs()[0]["mode"], alice.pairs()[0]["poll_interval_ms"]) == ("polling", 30_000)
    alice.run("federation", "set-poll-interval", pair_id, "soon", code=2)
    alice.run("federation", "set-poll-interval", pair_id, "10ms", code=2)
    alice.run("federation", "set-mode", pair_id, "telepathy", code=2)
    assert alice.pairs()[0]["poll_interval_ms"] == 30_000


def test_polling_brings_records_without_a_command(alice: Instance, bob: Instance, pair_id: str) -> None:
    """With an interval of a second, what bob emits reaches alice by itself, and the other way round."""
    for instance in (alice, bob):
        instance.run("federation", "set-poll-interval", pair_id, "1s")
    bob.emit("th_work", 4)
    alice.emit("th_work", 3)
    eventually(lambda: len(alice.records("th_work")) == len(bob.records("th_work")) == 7, "all seven on both")
    assert alice.holding() == bob.holding()


def test_one_thread_can_be_synced_alone(alice: Instance, bob: Instance, pair_id: str) -> None:
    """`spl sync <thread> from <peer>` brings that thread; the rest comes with the next sync of the pair."""
    for side in (alice, bob):
        side.run("federation", "set-mode", pair_id, "on-demand")
        side.compared(pair_id)
        side.run("sync", pair_id)  # after it no poll of before is on its way any more
    bob.emit("th_one", 2)
    bob.emit("th_two", 2)
    alice.run("sync", "th_one", "from", bob.did)
    assert len(alice.records("th_one")) == 2
    assert alice.records("th_two") == []
    alice.run("sync")
    assert alice.holding() == bob.holding()


def test_a_minted_token_is_shown_once_and_can_be_revoked(alice: Instance) -> None:
    """The page's scopes; stdout is the token alone; after revoke it opens nothing."""
    minted = alice.run("token", "mint", "--scopes", "federation:sync,federation:subscribe").out
    assert re.fullmatch(r"spl_[a-z0-9_]+_sa_[0-9a-f]+_[A-Za-z0-9_-]+\n", minted)
    text = alice.run("token", "mint", "--scopes", "records:read").out.strip()
    assert alice.api("GET", "/v1/records", token=text).status == 200
    [token] = [item for item in alice.data("token", "list") if item["scopes"] == ["records:read"]]
    assert text not in alice.run("token", "list", "-o", "json").out
    alice.run("token", "revoke", token["token_id"])
    assert alice.api("GET", "/v1/records", token=text).code == "AUTH_INVALID"
    alice.run("token", "mint", "--scopes", "everything", code=2)


def test_identity_without_and_with_a_daemon(make: Make) -> None:
    """Show exits 6 before there is one; generate makes it and keeps it, and a running daemon publishes."""
    carol = make("carol", bare=True)
    none = carol.run("identity", "show", code=6)
    assert none.out == ""
    assert "spl identity generate" in none.err
    carol.start()
    missing = carol.get("/.well-known/syncropel")
    assert (missing.status, missing.code) == (404, "MANIFEST_MISSING")
    assert carol.run("know", "x", "--thread", "th_a", code=7).err.startswith("error:")
    carol.run("identity", "generate", "--label", "carol")
    did = carol.data("identity", "show")["did"]
    assert re.fullmatch(r"did:sync:instance:carol-[0-9a-f]{24}", did)
    manifest = carol.get("/.well-known/syncropel").json
    assert manifest["did"] == did
    carol.run("identity", "generate", "--label", "other")
    assert carol.data("identity", "show")["did"] == did
    assert (
        carol.get("/.well-known/syncropel").json["federation_manifest"]["signature"]["signed_at"]
        > (manifest["federation_manifest"]["signature"]["signed_at"])
    )
    carol.run("identity", "verify")
    carol.stop()
    assert carol.data("identity", "show")["did"] == did
    carol.run("identity", "verify")


def test_curl_gets_the_manifest(bob: Instance) -> None:
    """The page's check: JSON with did, pair_endpoint and a signature; the endpoint proves its reach by 405."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")

    def curl(*words: str) -> str:
        return subprocess.run(
            ["curl", "--silent", "--show-error", *words], capture_output=True, text=True, check=True
        ).stdout

    manifest = json.loads(curl("-H", "cache-control: no-cache", f"{bob.url}.well-known/syncropel"))
    assert manifest["did"] == bob.did
    assert manifest["pair_endpoint"] == f"{bob.url}v1/federation/pair"
    assert manifest["signature"] == manifest["federation_manifest"]["signature"]["signature"] or manifest["signature"]
    head = curl("--head", f"{bob.url}.well-known/syncropel").lower()
    assert head.startswith("http/1.1 200")
    assert "cache-control: no-cache" in head
    reach = curl("--include", manifest["pair_endpoint"])
    assert reach.startswith("HTTP/1.1 405")
    assert re.search(r"^allow: .*POST", reach, re.MULTILINE | re.IGNORECASE)
    assert curl(f"{bob.url}.well-known/syncropel") == curl("-H", "host: localhost", f"{bob.url}.well-known/syncropel")


def test_records_from_the_command_line(alice: Instance) -> None:
    """intend, do, know, learn and emit; threads are listed with what they hold."""
    for act, text in (("intend", "ship"), ("do", "dig"), ("know", "dug"), ("learn", "slow")):
        alice.run(act, text, "--thread", "th_cli", "--actor", "did:sync:user:alice")
    record = {"act": "PUT", "actor": "did:sync:user:alice", "thread": "th_cli", "body": {"kind": "music.catalog.track"}}
    alice.run("emit", stdin=json.dumps(record).encode())
    data = alice.data("thread", "records", "th_cli")
    assert [item["act"] for item in data] == ["INTEND", "DO", "KNOW", "LEARN", "PUT"]
    assert [item["clock"] for item in data] == [data[0]["clock"] + n for n in range(5)]
    assert {item["vouched_by"] for item in data} == {alice.did}
    [thread] = alice.data("thread", "list")
    assert (thread["thread"], thread["records"]) == ("th_cli", 5)
    shown = alice.run("thread", "show", "th_cli").out
    assert "th_cli" in shown


def test_help_explains_every_command_and_code(make: Make) -> None:
    """Two sentences and an example that runs, without a daemon; a typing slip gets a suggestion."""
    carol = make("carol", bare=True)
    page = carol.run("help").out
    for noun in ("serve", "identity", "federation", "sync", "aitl", "token"):
        assert re.search(rf"^\s+{noun}\b", page, re.MULTILINE)
    assert "example" in carol.run("federation", "pair", "--help").out
    assert "spl identity generate" in carol.run("help", "manifest-signature").out
    slip: Done = carol.run("federation", "lst", code=2)
    assert slip.err.startswith("error: unknown command 'federation lst'. Did you mean 'federation list'? [usage]")


def test_status_counts_pairs_and_records(alice: Instance, bob: Instance, pair_id: str) -> None:
    """One page for the whole daemon; --check is quiet when nothing needs attention."""
    alice.emit("th_work", 2)
    data = alice.data("status")
    assert data["identity"]["did"] == alice.did
    assert (data["pairs"]["total"], data["pairs"]["active"]) == (1, 1)
    assert data["store"]["records"] >= 2
    assert alice.did in alice.run("status").out
    assert alice.run("health").out.startswith("ok")


def test_a_flag_makes_the_identity_on_the_way(make: Make, bob: Instance) -> None:
    """pair refuses without an identity, with the hint; --auto-generate-identity makes one and pairs."""
    carol = make("carol", bare=True).start()
    refused = carol.run("federation", "pair", bob.url, code=7)
    assert "[identity-missing]" in refused.err
    assert "spl identity generate" in refused.err
    assert carol.run("federation", "pair", bob.url, "--auto-generate-identity").out.endswith("\nPair active.\n")


def test_pins_hold(make: Make, alice: Instance, bob: Instance) -> None:
    """--expect-did and --expect-key take the peer that is meant and refuse any other before anything is sent."""
    key = bob.data("identity", "show")["public_key"]
    for flags in (("--expect-did", alice.did), ("--expect-key", alice.data("identity", "show")["public_key"])):
        refused = alice.run("federation", "pair", bob.url, *flags, code=10)
        assert "[manifest-did-mismatch]" in refused.err
    assert bob.pairs() == []
    alice.run("federation", "pair", bob.url, "--expect-did", bob.did, "--expect-key", key)


def test_two_call_each_other_at_once(make: Make) -> None:
    """Crossing requests end as one pair, the same on both sides."""
    one, two = make("one").start(), make("two").start()
    first, second = one.steps(two.url, wait_ms=30_000), two.steps(one.url, wait_ms=30_000)
    for steps in (first, second):
        assert next(steps)["step"] == "manifest"
    for steps in (first, second):
        list(steps)
    eventually(lambda: one.pairs("active") and two.pairs("active"), "one pair active on both sides")
    assert [pair["pair_id"] for pair in one.pairs("active")] == [pair["pair_id"] for pair in two.pairs("active")]
    assert len(one.pairs("active", "establishing")) == len(two.pairs("active", "establishing")) == 1


def test_two_homes_as_init_leaves_them_dial_each_other(tmp_path: Path) -> None:
    """No public_url, approval by policy: a request from its own endpoint's address shows where the peer is."""
    sides = [Instance(name, tmp_path / name / "home") for name in ("alice", "bob")]
    try:
        for side in sides:
            side.home.mkdir(parents=True, mode=0o700)
            side.run("init", "--label", side.name)
        alice, bob = sides[0].start(), sides[1].configure(AUTO).start()
        assert "Pair active." in alice.run("federation", "pair", bob.url).out
        alice.run("know", "the gate is open", "--thread", "th_gate")
        assert " fetched" in bob.run("sync", "alice").out
        assert len(bob.records("th_gate")) == 1  # a poll of its own may have been first
    finally:
        for side in sides:
            side.end()


def test_a_live_pair_is_not_made_twice(alice: Instance, bob: Instance, pair_id: str) -> None:
    """Asking again is a state conflict and changes nothing; one's own daemon is refused as a peer."""
    refused = alice.run("federation", "pair", bob.url, code=7)
    assert "[pair-exists]" in refused.err
    assert [pair["pair_id"] for pair in alice.pairs()] == [pair_id]
    assert "[identity-cloned]" in alice.run("federation", "pair", alice.url, code=7).err


def test_auto_and_closed(make: Make, alice: Instance) -> None:
    """federation.approval = closed refuses with its code and stores nothing."""
    carol = make("carol", AUTO.replace("auto", "closed")).start()
    refused = alice.run("federation", "pair", carol.url, code=4)
    assert "[handshake-closed]" in refused.err
    assert carol.pairs() == []
    assert alice.pairs("active", "establishing") == []
