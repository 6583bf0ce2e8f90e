"""The life of a pair between real daemons: rotated keys, moved endpoints, expiring tokens, pauses, and the end."""

import json
import stat
from pathlib import Path

from spl.core.when import ms_of
from tests.e2e.conftest import AUTO, Make
from tests.e2e.harness import Instance, free_port
from tests.waiting import eventually

SHORT = "[limits]\ntoken_ttl_s = 48.0\n"
WAYS = ("issued to us", "issued by us")


def in_step(alice: Instance, bob: Instance, state: str) -> None:
    """Return when both sides show a pair in this state."""
    for instance in (alice, bob):
        eventually(lambda one=instance: one.pairs(state), f"{state} at {instance.name}")


def synced(alice: Instance, bob: Instance, thread: str) -> None:
    """Emit on one side, sync on the other, and see it there; both ways."""
    for source, reader in ((alice, bob), (bob, alice)):
        ids = source.emit(f"{thread}_{source.name}", 2)
        reader.run("sync")
        assert [record["id"] for record in reader.records(f"{thread}_{source.name}")] == ids


def tokens(instance: Instance, pair_id: str) -> dict[str, str]:
    return {token["direction"]: token["token_id"] for token in instance.pair(pair_id)["tokens"]}


def test_a_rotated_identity_goes_on_syncing(alice: Instance, bob: Instance, pair_id: str) -> None:
    """bob rotates twice; alice shows the new key at once, and with bob's rotation missed, after refresh."""
    before = bob.data("identity", "show")
    after = bob.data("identity", "rotate")
    assert (after["did"], after["rotations"]) == (before["did"], 1)
    assert after["words"] != before["words"]
    eventually(lambda: alice.pair(pair_id)["peer_words"] == after["words"], "alice knows the new key")
    synced(alice, bob, "th_one")
    bob.run("identity", "verify")
    alice.stop()
    last = bob.data("identity", "rotate", "--compromised")
    alice.start()
    alice.run("federation", "refresh", pair_id)
    assert alice.pair(pair_id)["peer_words"] == last["words"]
    in_step(alice, bob, "active")
    synced(alice, bob, "th_two")


def test_an_identity_rotated_without_a_daemon_is_told_at_the_start(
    alice: Instance, bob: Instance, pair_id: str
) -> None:
    bob.stop()
    after = bob.data("identity", "rotate")
    bob.start()
    eventually(lambda: alice.pair(pair_id)["peer_words"] == after["words"], "alice knows the new key")
    synced(alice, bob, "th_one")


def test_export_and_import_carry_an_identity_to_a_new_home(make: Make, bob: Instance, tmp_path: Path) -> None:
    """With and without a daemon; nobody else can read the file; another identity is not overwritten unasked."""
    path = tmp_path / "bob.identity"
    bob.run("identity", "export", "--out", str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "exists" in bob.run("identity", "export", "--out", str(path), code=2).err
    refused = bob.api("POST", "/v1/identity/export", {})
    assert (refused.status, refused.code) == (403, "SCOPE_FORBIDDEN")
    did = bob.did
    bob.stop()
    fresh = make("fresh", bare=True)
    assert fresh.data("identity", "import", str(path))["did"] == did
    running = make("running").start()
    assert "[identity-exists]" in running.run("identity", "import", str(path), code=7).err
    assert running.data("identity", "import", str(path), "--force")["did"] == did
    assert running.get("/.well-known/syncropel").json["did"] == did
    bad = tmp_path / "bad"
    bad.write_text("{}")
    assert "[identity-damaged]" in running.run("identity", "import", str(bad), code=None).err


def test_a_peer_that_moved_to_another_port_is_found(alice: Instance, bob: Instance, pair_id: str) -> None:
    """bob says where he is when he starts; the pair is the same and nothing is lost."""
    bob.stop()
    bob.port = free_port()
    bob.start()
    eventually(lambda: alice.pair(pair_id)["url"] == bob.url.rstrip("/"), "alice knows the new place")
    alice.run("federation", "refresh", pair_id)
    in_step(alice, bob, "active")
    synced(alice, bob, "th_one")
    assert f":{bob.port}/v1/federation/pair" in alice.pair(pair_id)["manifest"]["pair_endpoint"]


def test_tokens_are_renewed_across_their_expiry(make: Make) -> None:
    """Lives of 48 s: after their end both sides still sync, with other tokens, and nobody was ever refused."""
    alice, bob = make("alice", SHORT).start(), make("bob", AUTO + SHORT).start()
    pair_id = alice.paired(bob.url)
    first = tokens(alice, pair_id)

    def renewed() -> bool:
        ours, theirs = tokens(alice, pair_id), tokens(bob, pair_id)
        return all(ours[one] == theirs[other] != first[one] for one, other in (WAYS, WAYS[::-1]))

    eventually(renewed, "both tokens are renewed, and each side has the other's", 120.0)
    for instance, old in ((alice, first["issued by us"]), (bob, first["issued to us"])):
        eventually(lambda one=instance, old=old: one.data("token", "info", old)["state"] != "live", "its life is over")
    synced(alice, bob, "th_one")
    for instance in (alice, bob):
        assert not [item for item in instance.pair(pair_id)["transitions"] if item["to"] == "degraded"]


def test_token_commands(alice: Instance, bob: Instance, pair_id: str) -> None:
    """rotate, info by id and by text, and a token that the peer minted by hand."""
    before = tokens(alice, pair_id)
    rotated = alice.run("token", "rotate", pair_id).out
    assert tokens(alice, pair_id)["issued to us"] in rotated
    eventually(lambda: tokens(alice, pair_id)["issued by us"] != before["issued by us"], "bob took a new token")
    synced(alice, bob, "th_one")
    minted = bob.run("token", "mint", "--scopes", "federation:sync,federation:subscribe", "--pair", pair_id).out
    assert alice.run("token", "info", "--stdin", stdin=minted.encode(), code=6).out == ""
    alice.run("federation", "set-token", pair_id, stdin=minted.encode())
    info = alice.run("token", "info", "--stdin", "-o", "json", stdin=minted.encode()).data
    assert (info["direction"], info["pair_id"], info["state"]) == ("issued to us", pair_id, "live")
    assert tokens(bob, pair_id)["issued by us"] == tokens(alice, pair_id)["issued to us"] == info["token_id"]
    assert bob.data("token", "info", info["token_id"])["pair_id"] == pair_id
    synced(alice, bob, "th_two")
    wrong = minted.strip()[:-1] + ("0" if minted.strip()[-1] != "0" else "1")
    refused = alice.run("federation", "set-token", pair_id, stdin=wrong.encode(), code=4)
    assert "[auth-invalid]" in refused.err
    assert wrong not in refused.err
    alice.run("federation", "set-token", pair_id, code=2)
    plain = alice.data("token", "mint", "--scopes", "records:read")
    new = alice.data("token", "rotate", plain["token_id"])
    assert alice.api("GET", "/v1/threads", token=plain["token"]).status == 401
    assert alice.api("GET", "/v1/threads", token=new["token"]).status == 200
    assert alice.run("token", "rotate").out.startswith(f"{pair_id}  rotated")


def test_a_pause_by_either_side_is_seen_on_both(alice: Instance, bob: Instance, pair_id: str) -> None:
    """Also by a side that was down when the other paused; only the pauser resumes; nothing is lost."""
    for one, other in ((alice, bob), (bob, alice)):
        one.run("federation", "pause", pair_id)
        eventually(lambda other=other: other.pairs("paused"), "the other side knows")
        assert "paused (by peer)" in other.run("federation", "show", pair_id).out
        assert "[pair-paused]" in other.run("federation", "resume", pair_id, code=7).err
        ids = one.emit(f"th_by_{one.name}", 3)
        one.run("federation", "resume", pair_id)
        in_step(alice, bob, "active")
        other.run("sync", pair_id)
        assert [record["id"] for record in other.records(f"th_by_{one.name}")] == ids
    bob.kill()
    known = alice.pair(pair_id)
    alice.stop()
    alice.start()
    now = alice.pair(pair_id)
    assert now["last_sync_at"] >= known["last_sync_at"], "a restart takes back nothing that was known"
    assert ms_of(now["heard_at"]) >= ms_of(known["heard_at"]) - 1000
    alice.run("federation", "pause", pair_id)
    bob.start()
    eventually(lambda: bob.pairs("paused"), "bob learns it when he is back")
    alice.run("federation", "resume", pair_id, "--resync")
    in_step(alice, bob, "active")
    synced(alice, bob, "th_after")


def test_revoked_offline_then_online_and_paired_again(alice: Instance, bob: Instance, pair_id: str) -> None:
    """The peer that was down is refused, asks why, and ends its side; a new pair starts at the present position."""
    alice.emit("th_old", 2)
    bob.run("sync", pair_id)
    bob.kill()
    done = alice.run("federation", "revoke", pair_id, "--reason", "laptop sold")
    assert "revoked" in done.out
    assert alice.pairs("revoked")
    missed = alice.emit("th_missed", 2)
    bob.start()
    eventually(lambda: bob.pairs("revoked"), "bob learns it")
    assert "laptop sold" in json.dumps(bob.pair(pair_id))
    again = alice.run("federation", "pair", bob.url)
    assert "Pair active." in again.out
    new = alice.pairs("active")[0]["pair_id"]
    assert new != pair_id
    ids = alice.emit("th_new", 2)
    bob.run("sync", new)
    assert [record["id"] for record in bob.records("th_new")] == ids
    assert bob.records("th_missed") == []
    alice.run("federation", "revoke", new)
    eventually(lambda: not bob.pairs("active"), "bob was told")
    alice.run("federation", "pair", bob.url, "--backfill")
    bob.run("sync")
    assert [record["id"] for record in bob.records("th_missed")] == missed


def test_a_blocked_signer_is_refused_through_a_hub(make: Make, alice: Instance, bob: Instance) -> None:
    """Without --block, revoke names the hub; with it what bob signed no longer arrives through carol."""
    carol = make("carol", AUTO).start()
    for one, other in ((alice, bob), (alice, carol), (bob, carol)):
        one.run("federation", "pair", other.url)
    named = alice.run("federation", "revoke", bob.did)
    assert f"carol ({alice.pairs('active')[0]['pair_id']})" in named.err
    bob.emit("th_before", 1)
    carol.run("sync")
    alice.run("sync")
    assert len(alice.records("th_before")) == 1
    alice.run("federation", "revoke", bob.did, "--block")
    bob.emit("th_after", 1)
    carol.emit("th_carol", 1)
    carol.run("sync")
    alice.run("sync")
    assert len(carol.records("th_after")) == 1
    assert alice.records("th_after") == []
    assert len(alice.records("th_carol")) == 1


def test_a_fork_degrades_the_pair_until_the_operator_names_the_key(
    alice: Instance, bob: Instance, pair_id: str, tmp_path: Path
) -> None:
    path = tmp_path / "bob.identity"
    bob.run("identity", "export", "--out", str(path))
    first = bob.data("identity", "rotate")
    eventually(lambda: alice.pair(pair_id)["peer_words"] == first["words"], "alice knows the first successor")
    bob.stop()
    (bob.home / "keys" / "identity.json").unlink()
    bob.run("identity", "import", str(path))
    second = bob.data("identity", "rotate")
    bob.start()
    eventually(lambda: alice.pairs("degraded"), "alice sees the fork")
    assert alice.pair(pair_id)["reason"] == "chain-fork"
    assert "[chain-fork]" in alice.run("federation", "refresh", pair_id, code=10).err
    alice.run("federation", "refresh", pair_id, "--expect-key", second["words"])
    in_step(alice, bob, "active")
    synced(alice, bob, "th_one")
