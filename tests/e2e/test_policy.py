"""Rules between real daemons: the lock-out of the handshake as the operator's page tells it, and approval by rule."""

import json

from tests.e2e.conftest import AUTO, Make
from tests.e2e.harness import Instance
from tests.waiting import eventually

AUDIT = "th_audit_permissions"
RULE = ("add-permission-rule", "bearers-only", "--resource", "federation:pair", "--action", "require:record_write")


def audited(instance: Instance) -> list[dict[str, object]]:
    """Return the bodies of the denials that an instance kept."""
    return [item["body"] for item in instance.data("thread", "records", AUDIT)]


def test_a_rule_locks_out_the_handshake_and_its_removal_lets_it_in(make: Make) -> None:
    """401 in the page's words, the rule in `list-permission-rules | grep federation`, and after its removal a pair."""
    alice, bob = make("alice").start(), make("bob", AUTO).start()
    added = bob.run("config", *RULE, "--priority", "10", "--expression", "true")
    assert added.out == "bearers-only  added\n"
    assert "no instance can pair with this one: bearers-only" in added.err

    refused = alice.run("federation", "pair", bob.url, code=4)
    lines = refused.err.splitlines()
    assert lines[0] == "error: peer rejected handshake: 401 Unauthorized [handshake-401]"
    assert lines[1:3] == [
        "  why       a permission rule on the peer protects federation:pair",
        "  fix       on the peer: spl config list-permission-rules | grep federation",
    ]
    assert not bob.pairs()
    assert bob.data("aitl", "list", "--all") == []
    eventually(
        lambda: AUDIT in {item["thread"] for item in bob.api("GET", "/v1/threads?reserved=1").json["data"]}, "audit"
    )
    [denied] = audited(bob)
    assert denied["resource"] == "federation:pair"
    assert (denied["rule"], denied["who"]) == ("bearers-only", alice.did)
    assert "event=policy.denied" in (bob.home / "logs/spl.log").read_text()

    found = [line for line in bob.run("config", "list-permission-rules").out.splitlines() if "federation" in line]
    assert [line.split() for line in found] == [
        ["bearers-only", "federation:pair", "require:record_write", "10", "true"]
    ]
    verdict = bob.run("config", "test-permission", "federation:pair", "--scopes", "admin", code=4)
    assert verdict.out == "deny  bearers-only (require:record_write)\n"

    bob.stop()
    bob.start()
    alice.run("federation", "pair", bob.url, code=4)
    assert bob.run("config", "remove-permission-rule", "bearers-only").out == "bearers-only  removed\n"
    assert "Pair active." in alice.run("federation", "pair", bob.url).out


def test_a_rule_denies_one_peer_and_no_other(make: Make) -> None:
    alice, carol, bob = make("alice").start(), make("carol").start(), make("bob", AUTO).start()
    bob.run("config", "add-permission-rule", "no-carol", "--resource", "federation:*", "--action", "deny",
            "--expression", 'request.resource == "federation:pair" && request.label.startsWith("carol")')  # fmt: skip
    assert "401 Unauthorized" in carol.run("federation", "pair", bob.url, code=4).err
    assert "Pair active." in alice.run("federation", "pair", bob.url).out


def test_a_rule_approves_what_it_covers_and_leaves_the_rest_to_the_operator(make: Make) -> None:
    """Manual approval, but alice is let in at once for `default`; carol, and alice for more, wait for bob."""
    alice, carol, bob = make("alice").start(), make("carol").start(), make("bob").start()
    expression = f'request.initiator_did == "{alice.did}" && request.host == "127.0.0.1" && size(request.maps) == 0'
    added = bob.run("config", "add-aitl-rule", "friends", "--action", "auto_apply", "--expression", expression)
    assert added.out == "friends  added (grants at most default)\n"
    alice.run("namespace", "create", "music")
    bob.run("namespace", "create", "music")

    more = alice.run(
        "federation", "pair", bob.url, "--namespace", "default", "--namespace", "music", "--wait", "0s", code=8
    )
    assert "still pending" in more.err
    [waiting] = eventually(lambda: bob.data("aitl", "list"), "alice waits")
    assert waiting["namespaces"] == ["default", "music"]
    bob.run("aitl", "reject", waiting["id"])
    eventually(lambda: [pair["state"] for pair in alice.data("federation", "list")] == ["revoked"], "rejected at alice")

    assert "Pair active." in alice.run("federation", "pair", bob.url).out
    assert bob.data("aitl", "list") == []
    carol.run("federation", "pair", bob.url, "--wait", "0s", code=8)
    [waiting] = eventually(lambda: bob.data("aitl", "list"), "carol waits")
    assert waiting["from"] == carol.did
    bob.run("aitl", "approve", waiting["id"])
    eventually(lambda: [pair["state"] for pair in carol.data("federation", "list")] == ["active"], "active at carol")
    assert bob.run("config", "remove-aitl-rule", "friends").out == "friends  removed\n"


def test_scopes_are_narrowed_by_rules_and_the_operator_is_never_locked_out_of_them(make: Make) -> None:
    bob = make("bob").start()
    token = bob.run("token", "mint", "--scopes", "records:read,records:write").out.strip()
    record = {"act": "DO", "actor": "did:sync:user:b", "thread": "th", "body": {}}
    bob.run("config", "add-permission-rule", "all", "--resource", "*", "--action", "deny",
            "--expression", 'request.resource != "federation:pair"')  # fmt: skip
    for path, value in (("/v1/records", record), ("/v1/threads/x/records", None)):
        answer = bob.api("POST" if value else "GET", path, value, token)
        assert (answer.status, answer.code) == (403, "PERMISSION_DENIED")
    assert bob.get("/health").status == 200
    refused = bob.run("status", code=4)
    assert "permission-denied" in refused.err
    assert bob.api("GET", "/v1/config/permission-rules").status == 403, (
        "over TCP the rule holds for the configuration too"
    )
    bob.run("config", "remove-permission-rule", "all")
    assert bob.api("POST", "/v1/records", record, token).status == 200
    assert json.loads(bob.run("status", "-o", "json").out)["data"]["object"] == "status"
