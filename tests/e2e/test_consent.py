"""Consent across namespaces between real daemons, by the page's own command: what crosses, and at which level."""

import json
from typing import Any

import pytest

from tests.e2e.conftest import Make
from tests.e2e.harness import Instance
from tests.waiting import eventually

BOB = "did:sync:instance:bob"
PAGE = f"federation grant {BOB} --namespace music --maps music,projects/music --hash-level L1".split()
SECRET = "the melody nobody may hear"


def create(instance: Instance, *names: str) -> None:
    for name in names:
        instance.run("namespace", "create", name)


def claims(instance: Instance, pair_id: str) -> list[dict[str, Any]]:
    answer = instance.api("GET", f"/v1/federation/pairs/{pair_id}/projections?limit=1000")
    assert answer.status == 200, answer.body
    return list(answer.json["data"])


def grants(instance: Instance, pair_id: str) -> list[tuple[str, str, str, str, int]]:
    """Return (direction, ours, the peer's, level that holds, version) of each grant."""
    return [
        (item["direction"], item["namespace"], item["peer_namespace"], item["level"], item["version"])
        for item in instance.pair(pair_id)["grants"]
    ]


def heal(fix: str, alice: Instance, bob: Instance, *, here: Instance) -> None:
    """Run a fix as an operator would: "on bob: ..." at bob, every command of it."""
    where, _, rest = fix.rpartition(": ") if fix.startswith("on ") else ("", "", fix)
    instance = {"on alice": alice, "on bob": bob, "": here}[where]
    for command in rest.split(" && "):
        instance.run(*command.removeprefix("spl ").split())


@pytest.fixture
def pair(alice: Instance, bob: Instance, pair_id: str) -> str:
    """A continuous pair of two that know their namespaces."""
    create(alice, "music")
    create(bob, "projects", "projects/music")
    for one in (alice, bob):
        one.run("federation", "set-mode", pair_id, "continuous")
    return pair_id


def test_the_pages_grant_sends_projections_and_no_word_of_the_bodies(alice: Instance, bob: Instance, pair: str) -> None:
    """What the namespace holds already, and what comes; withdrawn, nothing more; granted again, the rest follows."""
    alice.emit("th_songs", 3, namespace="music", text=SECRET)
    granted = alice.run(*PAGE)
    assert granted.out == f"{pair}  granted: music -> bob:projects/music (L1)\n"
    assert "guessed from its id" in granted.err
    assert "guessed" not in alice.run(*PAGE, "--quiet").err
    assert grants(alice, pair) == [("out", "music", "projects/music", "L1", 1)]
    assert grants(bob, pair) == [("in", "projects/music", "music", "L1", 1)]
    assert "grants            music -> bob:projects/music (L1)\n" in alice.run("federation", "show", BOB).out
    assert "projects/music <- alice:music (L1)" in bob.run("federation", "show", pair).out
    eventually(lambda: len(claims(bob, pair)) == 3, "the three arrive as projections")
    late = alice.emit("th_songs", 1, namespace="music", text=SECRET)
    eventually(lambda: late[0] in {item["id"] for item in claims(bob, pair)}, "a later one follows on the stream")
    assert SECRET not in json.dumps(claims(bob, pair))
    assert bob.records("th_songs") == []
    assert bob.pair(pair)["refused_records"] == 0

    withdrawn = alice.run("federation", "revoke-grant", BOB, "--namespace", "music")
    assert withdrawn.out == f"{pair}  withdrawn: music\n"
    assert alice.run("federation", "revoke-grant", BOB, "--namespace", "music").out.endswith(
        "already withdrawn: music\n"
    )
    hidden = alice.emit("th_songs", 1, namespace="music", text=SECRET)
    mark = alice.emit("th_mark")
    eventually(lambda: bob.records("th_mark"), "the default namespace goes on")
    assert bob.records("th_mark")[0]["id"] == mark[0]
    assert len(claims(bob, pair)) == 4
    alice.run(*PAGE)
    eventually(
        lambda: hidden[0] in {item["id"] for item in claims(bob, pair)}, "granted again, what was held back comes"
    )
    assert grants(bob, pair) == [("in", "projects/music", "music", "L1", 3)]


def test_exact_sharing_takes_both_and_each_is_told_what_is_missing(alice: Instance, bob: Instance, pair: str) -> None:
    """At L0 by one side projections, as at L1; the finding's own fix makes them records."""
    sent = alice.emit("th_songs", 2, namespace="music", text=SECRET)
    one = alice.run(*PAGE[:-1], "L0")
    back = f"federation grant {pair} --namespace projects/music --maps projects/music,music --hash-level L0"
    assert "! L0 behaves as L1 until bob grants it too" in one.err
    assert f"fix       on bob: spl {back}" in one.err
    eventually(lambda: len(claims(bob, pair)) == 2, "projections as at L1")
    assert bob.records("th_songs") == []
    [row] = [item for item in alice.data("consent", "list", BOB) if item["namespace"] == "music"]
    assert (row["granted"], row["level"], row["code"]) == ("L0", "L1", "consent-missing")
    status = alice.run("status", "--check", code=3)
    assert "consent-missing" in status.out
    found = alice.run("doctor", pair, "-o", "json", code=3)
    fixes = {item["code"]: item["fix"] for item in found.data["problems"]}
    assert fixes == {"consent-missing": f"on bob: spl {back}"}
    assert "we grant it too" in bob.run("federation", "show", pair).out
    heal(fixes["consent-missing"], alice, bob, here=alice)
    eventually(lambda: {item["id"] for item in bob.records("th_songs")} == set(sent), "they come as records")
    assert {item["body"]["text"] for item in bob.records("th_songs")} == {SECRET}
    assert "consent-missing" not in alice.run("doctor", pair, code=None).out
    there = bob.emit("th_back", 1, namespace="projects/music")
    eventually(lambda: [item["id"] for item in alice.records("th_back")] == there, "and the other way")


def test_a_grant_into_nothing_is_found_and_its_fix_heals(alice: Instance, bob: Instance, pair: str) -> None:
    alice.run("federation", "grant", BOB, "--namespace", "music", "--maps", "music,archive/songs")
    [item] = bob.run("doctor", pair, "-o", "json", code=3).data["problems"]
    assert item["code"] == "namespace-unmapped"
    assert item["fix"] == "spl namespace create archive && spl namespace create archive/songs"
    heal(item["fix"], alice, bob, here=bob)
    assert "namespace-unmapped" not in bob.run("doctor", pair, code=None).out
    sent = alice.emit("th_songs", 1, namespace="music", text=SECRET)
    eventually(lambda: sent[0] in {item["id"] for item in claims(bob, pair)}, "it has a place now")


def test_an_unreachable_peer_gets_the_grant_when_it_is_back(alice: Instance, bob: Instance, pair: str) -> None:
    alice.emit("th_songs", 2, namespace="music", text=SECRET)
    bob.stop()
    late = alice.run(*PAGE)
    assert "! bob has not received the grant yet" in late.err
    assert grants(alice, pair) == [("out", "music", "projects/music", "none", 1)]
    listed = alice.run("consent", "list", pair, "-o", "json").data
    assert [item["missing"] for item in listed if item["version"]] == ["bob does not hold it yet"]
    alice.stop()
    alice.start()
    bob.start()
    eventually(lambda: len(claims(bob, pair)) == 2, "handed over, then sent")
    assert bob.pair(pair)["refused_records"] == 0
    eventually(lambda: grants(alice, pair) == [("out", "music", "projects/music", "L1", 1)], "known to be held")


def test_what_is_shared_under_its_name_is_only_lowered_and_restored(alice: Instance, bob: Instance, pair: str) -> None:
    lowered = alice.run("federation", "grant", BOB, "--namespace", "default", "--hash-level", "L2")
    assert "--hash-level L0 restores that" in lowered.err
    hidden = alice.emit("th_plain", 1, text=SECRET)
    eventually(lambda: [item["level"] for item in claims(bob, pair)] == ["L2"], "as shapes only")
    assert claims(bob, pair)[0]["id"] != hidden[0]
    assert bob.records("th_plain") == []
    there = bob.emit("th_there")
    eventually(lambda: [item["id"] for item in alice.records("th_there")] == there, "bob's own sharing is as before")
    refused = alice.run("federation", "grant", BOB, "--namespace", "default", "--maps", "default,music", code=7)
    assert "[grant-conflict]" in refused.err
    alice.run("federation", "grant", BOB, "--namespace", "default", "--hash-level", "L0")
    eventually(lambda: [item["id"] for item in bob.records("th_plain")] == hidden, "in full again")
    refused = alice.run("federation", "grant", BOB, "--namespace", "nowhere", code=4)
    assert "spl namespace create nowhere" in refused.err
    assert alice.run("federation", "grant", "did:sync:instance:eve", "--namespace", "music", code=6)


def test_a_namespace_joins_in_full_when_both_sides_grant_it(alice: Instance, bob: Instance, pair: str) -> None:
    create(bob, "music")
    sent = alice.emit("th_songs", 1, namespace="music", text=SECRET)
    assert "(L0)" in alice.run("federation", "grant", BOB, "--namespace", "music").out
    assert "L0 behaves as L1" in alice.run("federation", "show", BOB).out
    bob.run("federation", "grant", pair, "--namespace", "music", "--maps", "music,music")
    eventually(lambda: [item["id"] for item in bob.records("th_songs")] == sent, "in full")
    assert "L0 behaves" not in alice.run("federation", "show", BOB).out


def test_a_map_of_the_handshake_ends_as_a_grant_of_both_sides(make: Make) -> None:
    alice, bob = make("alice").start(), make("bob").start()
    create(alice, "music")
    create(bob, "projects", "projects/music")
    alice.emit("th_songs", 2, namespace="music", text=SECRET)
    bob.emit("th_notes", 1, namespace="projects/music", text=SECRET)
    alice.run("federation", "pair", bob.url, "--map", "music:projects/music", "--wait", "0s", code=8)
    [request] = eventually(lambda: bob.data("aitl", "list"), "bob has the request")
    bob.run("aitl", "approve", request["id"])
    eventually(lambda: alice.pairs("active") and bob.pairs("active"), "active")
    eventually(lambda: len(claims(bob, request["id"])) == 2, "music arrives as projections")
    alice.run("sync", request["id"])
    assert [item["thread"] for item in claims(alice, request["id"])] == ["th_notes"]
    assert sorted(grants(alice, request["id"])) == [
        ("in", "music", "projects/music", "L1", 1), ("out", "music", "projects/music", "L1", 1),
    ]  # fmt: skip
    assert bob.records("th_songs") == alice.records("th_notes") == []
