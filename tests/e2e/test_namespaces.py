"""Namespaces between two real daemons: what a handshake agrees on, what a pair's filter lets through, and tenants."""

import json

import pytest

from tests.e2e.conftest import Make
from tests.e2e.harness import Instance
from tests.waiting import eventually


@pytest.fixture
def carol(make: Make) -> Instance:
    """A running daemon that approves by hand, as is the default."""
    return make("carol").start()


def asked(alice: Instance, carol: Instance, *words: str) -> str:
    """Let alice ask carol without waiting, and return the pair id once carol has the request."""
    alice.run("federation", "pair", carol.url, "--wait", "0s", *words, code=8)
    [request] = eventually(lambda: carol.data("aitl", "list"), "carol has the request")
    return str(request["id"])


def active(pair_id: str, *instances: Instance) -> None:
    for one in instances:
        eventually(lambda one=one: [pair for pair in one.pairs("active") if pair["pair_id"] == pair_id], one.name)


def numbers(instance: Instance, thread: str) -> list[int]:
    return sorted(record["body"]["n"] for record in instance.records(thread))


def test_a_pair_shares_what_both_marked_and_a_private_one_where_the_approver_names_it(
    alice: Instance, carol: Instance
) -> None:
    """The page's default is default alone; the answers before the approval are the same whatever exists at carol."""
    for name in ("music", "books"):
        alice.run("namespace", "create", name, "--shared")
    alice.run("namespace", "create", "diary")
    carol.run("namespace", "create", "music", "--shared")
    carol.run("namespace", "create", "books")
    for ns in ("default", "music", "books", "diary"):
        alice.emit(f"th_{ns}", 2, namespace=ns)
    pair_id = asked(alice, carol)
    shown = carol.run("aitl", "show", pair_id)
    assert "default, books, music" in shown.out
    assert "default, music\n" in shown.out
    assert "books, which is private: SYNCROPEL_HOME=~/home spl namespace share books" in shown.out
    assert carol.data("aitl", "show", pair_id)["agrees"]["start"] == "beginning"
    assert carol.data("aitl", "show", pair_id)["agrees"]["left_out"] == [
        {"namespace": "books", "why": "private", "fix": "spl namespace share books"}
    ]
    done = carol.run("aitl", "approve", pair_id)
    assert "default, music\n" in done.out
    active(pair_id, alice, carol)
    assert alice.pair(pair_id)["namespaces"] == carol.pair(pair_id)["namespaces"] == ["default", "music"]
    eventually(lambda: carol.records("th_default") and carol.records("th_music"), "default and music arrive")
    assert [len(carol.records(f"th_{ns}")) for ns in ("default", "music", "books", "diary")] == [2, 2, 0, 0]
    found = alice.data("namespace", "show", "music")
    assert [(pair["pair_id"], pair["level"]) for pair in found["pairs"]] == [(pair_id, "L0")]
    refused = alice.run("namespace", "delete", "music", code=7)
    assert "[namespace-in-use]" in refused.err
    alice.run("federation", "revoke", pair_id)
    eventually(lambda: not carol.pairs("active"), "the end reaches carol")
    again = asked(alice, carol)
    carol.run("aitl", "approve", again, "--namespace", "books")
    active(again, alice, carol)
    assert alice.pair(again)["namespaces"] == carol.pair(again)["namespaces"] == ["books"]


def test_what_is_not_there_is_refused_by_whoever_names_it(alice: Instance, carol: Instance) -> None:
    refused = alice.run("federation", "pair", carol.url, "--namespace", "music", code=4)
    assert "namespace music does not exist [namespace-rejected]" in refused.err
    assert "spl namespace create music" in refused.err
    assert alice.pairs() == carol.pairs() == []
    alice.run("namespace", "create", "music")
    refused = alice.run("federation", "pair", carol.url, "--map", "music:music", code=2)
    assert "--namespace music" in refused.err
    refused = alice.run("federation", "pair", carol.url, "--namespace", "music", "--map", "music:x", code=2)
    assert "both shared under its own name and mapped" in refused.err
    pair_id = asked(alice, carol, "--namespace", "music")
    for fix, hint in (
        ((), "spl namespace create --shared music"),
        (("--namespace", "music"), "spl namespace create music"),
    ):
        refused = carol.run("aitl", "approve", pair_id, *fix, code=4)
        assert "[namespace-rejected]" in refused.err
        assert hint in refused.err
        assert carol.data("aitl", "show", pair_id)["status"] == "pending"
    carol.run("namespace", "create", "--shared", "music")
    carol.run("aitl", "approve", pair_id)
    active(pair_id, alice, carol)
    assert carol.pair(pair_id)["namespaces"] == ["music"]


@pytest.mark.parametrize("maps", [True, False])
def test_a_map_is_approved_with_its_names_or_dropped(alice: Instance, carol: Instance, maps: bool) -> None:
    alice.run("namespace", "create", "music")
    pair_id = asked(alice, carol, "--map", "music:projects/music")
    refused = carol.run("aitl", "approve", pair_id, code=4)
    assert "namespace projects does not exist" in refused.err
    assert "--without-maps" in refused.err
    if maps:
        carol.run("namespace", "create", "projects")
        carol.run("namespace", "create", "projects/music")
        carol.run("aitl", "approve", pair_id)
    else:
        carol.run("aitl", "approve", pair_id, "--without-maps")
    active(pair_id, alice, carol)
    assert alice.pair(pair_id)["maps"] == ([{"local": "music", "peer": "projects/music"}] if maps else [])
    assert carol.pair(pair_id)["maps"] == ([{"local": "projects/music", "peer": "music"}] if maps else [])


def test_filters_narrow_what_is_sent_at_once_and_across_a_restart(alice: Instance, bob: Instance, pair_id: str) -> None:
    def sync(expected: list[int], thread: str) -> None:
        bob.run("sync", pair_id)
        assert numbers(bob, thread) == expected

    alice.run("federation", "thread-allow", pair_id, "th_a")
    for n in (1, 2):
        for thread in ("th_a", "th_b"):
            alice.api("POST", "/v1/records", {"act": "KNOW", "actor": "did:sync:user:a", "thread": thread,
                                              "body": {"n": n}})  # fmt: skip
    sync([1, 2], "th_a")
    sync([], "th_b")
    done = alice.run("federation", "thread-rule", pair_id, 'record.thread == "th_b" && record.actor.endsWith(":a")')
    assert "sent from now on: all that is shared, of threads th_a or where record.thread" in done.err
    sync([1, 2], "th_b")
    alice.stop()
    alice.start()
    assert "of threads th_a or where" in alice.run("federation", "show", pair_id).out
    alice.run("federation", "thread-allow", pair_id, "th_a", "--remove")
    alice.run("federation", "set-relay", pair_id, "off")
    alice.emit("th_a")
    alice.emit("th_b")
    bob.run("sync", pair_id)
    assert (len(bob.records("th_a")), len(bob.records("th_b"))) == (2, 2), "the actor of the last one ends otherwise"
    bad = alice.run("federation", "thread-rule", pair_id, "record.thread ==", code=2)
    assert "at 1:17" in bad.err
    alice.run("federation", "thread-rule", pair_id, "--clear")
    alice.run("federation", "set-relay", pair_id, "on")
    bob.run("sync", pair_id)
    assert bob.holding()["th_a"] == alice.holding()["th_a"]
    assert bob.holding()["th_b"] == alice.holding()["th_b"]


def test_the_example_of_tenants_runs(alice: Instance) -> None:
    """Line by line as `spl namespace --help` shows it; then the tenant's token writes and reads its own alone."""
    assert "Several tenants need no second instance" in alice.run("namespace", "--help").out
    alice.run("namespace", "create", "acme")
    token = alice.run(
        "token", "mint", "--scopes", "records:read,records:write", "--namespace", "acme", "--label", "acme"
    ).out.strip()
    alice.run("know", "Paid in May", "--thread", "th_invoices", "--body", '{"namespace": "acme"}')
    shown = alice.run("namespace", "show", "acme").out
    assert "records" in shown
    assert "records:read,records:write  acme" in shown
    alice.emit("th_invoices")
    seen = alice.api("GET", "/v1/threads/th_invoices/records", token=token)
    assert [record["body"]["namespace"] for record in seen.json["data"]] == ["acme"]
    value = {"act": "KNOW", "actor": "did:sync:user:t", "thread": "th_t", "body": {"namespace": "acme"}}
    assert alice.api("POST", "/v1/records", value, token).status == 200
    assert alice.api("POST", "/v1/records", {**value, "body": {}}, token).status == 403
    alice.run("namespace", "archive", "acme")
    refused = alice.run("know", "x", "--thread", "th", "--body", json.dumps({"namespace": "acme"}), code=4)
    assert "namespace acme is archived [namespace-rejected]" in refused.err
    assert "spl namespace create acme" in refused.err
    alice.run("namespace", "create", "acme")
    alice.run("know", "x", "--thread", "th", "--body", json.dumps({"namespace": "acme"}))
