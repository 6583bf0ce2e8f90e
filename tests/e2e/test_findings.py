"""Findings about a pair: a fault between real daemons, the code that they give it, and what mends it.

Daemons are shared where a fault leaves nothing behind; each test ends with a pair that is well again.
"""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any

import pytest

from spl.core import when
from spl.core.errors import SplError
from spl.doctor.catalogue import CATALOGUE
from tests.e2e import test_ailing, test_consent, test_doctor, test_home, test_links, test_recovery, test_state
from tests.e2e.conftest import AUTO
from tests.e2e.findings import HERE, Faulty, House, World, attention, finds, named, report, seen, told
from tests.e2e.harness import free_port
from tests.e2e.proxy import CUT, HOLD, MANIFEST, MUTE, Proxy, Reply, answer, hang_up
from tests.engine import test_carrier as carriers
from tests.engine import test_jetstream_target as sinks
from tests.waiting import eventually

DID_DOCUMENT = "/.well-known/did.json"
BUFFERING_FIX = "on bob: switch off response buffering in the proxy (nginx: proxy_buffering off)"
CHANGES = "/v1/sync/changes"
MOVED = "if the peer has moved, give the URL in its status: spl federation refresh {pair} --url NEW-URL"
PUBLISH = "on bob: spl identity generate; it keeps the key if there is one, and publishes the manifest"
PASSES = "let the proxy pass /.well-known/ and /v1/ as they are, if this is the right URL"
START = "start the daemon: spl serve; or correct its address and port in the proxy"
UPGRADE = "if the versions differ, upgrade the older side"
OWN_FAULT = json.dumps(SplError("overloaded").to_json()).encode()
NOT_FOUND = json.dumps(SplError("not-found").to_json()).encode()

BESIDE = {
    "sink-unreachable": sinks.test_a_server_that_was_stopped_or_killed_gets_the_rest,
    "sink-auth": sinks.test_credentials_and_tls_are_checked,
    "sink-full": sinks.test_a_full_stream_goes_on_once_it_has_room,
    "sink-foreign": sinks.test_another_writer_stops_the_sink_until_the_operator_passes_it_over,
    "engine-gap": carriers.test_a_gap_is_a_finding_until_the_peer_closes_it,
    "sink-refused": sinks.test_a_server_that_answers_wrongly_is_named_and_the_log_goes_on,
    "store-locked": test_doctor.test_a_home_whose_daemon_does_not_answer,
    "daemon-down": test_doctor.test_a_home_whose_daemon_does_not_answer,
    "config-invalid": test_doctor.test_our_own_daemon,
    "identity-missing": test_doctor.test_our_own_daemon,
    "store-missing": test_home.test_keys_without_their_log_are_not_taken_for_a_new_home,
    "store-damaged": test_doctor.test_our_own_daemon,
    "identity-cloned": test_doctor.test_our_own_home_twice,
    "home-set-back": test_recovery.test_an_old_copy_of_a_home_gets_back_what_it_lost,
    "connect": test_doctor.test_a_peer_that_is_down,
    "tls-chain": test_doctor.test_a_certificate_that_nobody_vouches_for,
    "tls-expiry": test_doctor.test_a_certificate_that_nobody_vouches_for,
    "manifest-missing": test_doctor.test_a_peer_without_identity_and_one_with_another,
    "manifest-did-mismatch": test_doctor.test_a_peer_without_identity_and_one_with_another,
    "manifest-differs-outside": test_doctor.test_what_a_proxy_does_to_a_peer,
    "handshake-401": test_doctor.test_a_rule_that_locks_out_every_handshake,
    "reverse-unreachable": test_doctor.test_a_side_that_the_peer_cannot_reach,
    "token-withdrawn": test_doctor.test_a_token_that_its_own_side_revoked,
    "token-expired": test_doctor.test_a_token_that_expired,
    "peer-paused": test_doctor.test_a_peer_that_paused_and_then_revoked,
    "peer-revoked": test_doctor.test_a_peer_that_paused_and_then_revoked,
    "consent-missing": test_consent.test_exact_sharing_takes_both_and_each_is_told_what_is_missing,
    "namespace-unmapped": test_consent.test_a_grant_into_nothing_is_found_and_its_fix_heals,
    "adapter-slow": test_state.test_slow_adapters_are_a_finding,
}
"""Code -> the test in a file beside this one that has a real daemon find it."""
LEFT = {
    "one-way": "a way must be broken for a minute and more: tests/core/test_presence, test_catalogue, the fault table"
}
"""Code -> why no test of a real daemon waits for it, and what tests it instead."""


# -- the way to the peer


def redirected(reply: Reply) -> Reply:
    return Reply(302, {"location": "http://127.0.0.1:1/"}, b"")


@finds("disconnected", "redirect", "manifest-malformed", "foreign-answer", "peer-5xx", "rate-limited")
@pytest.mark.parametrize(
    ("code", "change", "fix"),
    [
        ("disconnected", hang_up, "retry; check the network path"),
        ("redirect", redirected, f"on bob: {PASSES}; if the peer has moved"),
        ("manifest-malformed", answer(200, b"{}"), f"{PUBLISH}; look at what stands before"),
        ("peer-5xx", answer(503, OWN_FAULT), "on bob: spl doctor; on bob: spl logs"),
        ("foreign-answer", answer(503), "on bob: start the daemon: spl serve; or correct"),
        ("foreign-answer", answer(200), "on bob: let the proxy pass /.well-known/ and /v1/"),
        ("rate-limited", answer(429), "wait for the Retry-After seconds"),
    ],
)
def test_what_stands_between_answers_in_the_peers_place(world: World, code: str, change: Any, fix: str) -> None:
    """The doctor fetches the manifest itself, and what it gets is the finding; gone with the fault."""
    world.proxy.changes = {MANIFEST: change}
    assert world.seen(code)["fix"].startswith(fix)
    world.proxy.heal()
    world.well()


@finds("peer-4xx", "answer-malformed", "rate-limited", "peer-5xx")
@pytest.mark.parametrize(
    ("code", "change", "fix"),
    [
        ("foreign-answer", answer(404), f"on bob: {PASSES}; {MOVED}"),
        ("foreign-answer", answer(502), f"on bob: {START}; {MOVED}"),
        ("peer-4xx", answer(404, NOT_FOUND), f"on bob: spl doctor; on bob: spl logs; {UPGRADE}"),
        ("rate-limited", answer(429), "wait for the Retry-After seconds"),
        ("answer-malformed", answer(200, b'{"records":[]}'), "spl federation refresh {pair}"),
        ("peer-5xx", answer(503, OWN_FAULT), f"on bob: spl doctor; on bob: spl logs; {MOVED}"),
    ],
)
def test_pages_that_are_none(world: World, code: str, change: Any, fix: str) -> None:
    """Polls fail, so status has it by itself; show no longer says that all is well."""
    world.proxy.changes = {CHANGES: change}
    assert world.told(code)["fix"] == fix.format(pair=world.pair_id)
    assert "caught up\n" not in world.alice.run("federation", "show", world.pair_id).out
    world.proxy.heal()
    world.well()


@finds("clock-skew")
@pytest.mark.parametrize(("ahead_s", "severity"), [(60, "warn"), (-600, "fail")])
def test_clocks_apart(world: World, ahead_s: int, severity: str) -> None:
    """The peer's clock stands in its answers: by a minute a warning, by ten a failure."""
    ahead = timedelta(seconds=ahead_s)

    def late(reply: Reply) -> Reply:
        date = parsedate_to_datetime(reply.headers["date"]) + ahead
        changed = replace(reply, headers={**reply.headers, "date": format_datetime(date, usegmt=True)})
        time = reply.json.get("time")
        return (
            changed.with_json({**reply.json, "time": when.text_of(when.ms_of(time) + ahead_s * 1000)})
            if time
            else changed
        )

    world.proxy.changes = {MANIFEST: late, "/check": late}
    found = world.seen("clock-skew")
    assert found["severity"] == severity
    assert ("ahead of" if ahead_s > 0 else "behind") in found["title"]
    assert "ours" in found["title"]
    world.proxy.heal()
    world.well()


@finds("timeout")
def test_a_peer_that_hangs(world: World) -> None:
    """Its process is stopped: connections are taken and nothing is answered.  Never "caught up" meanwhile."""
    assert world.bob.process is not None
    os.kill(world.bob.process.pid, signal.SIGSTOP)
    try:
        assert world.told("timeout")["fix"].startswith("on bob: its daemon takes connections and hangs, or was stopped")
        assert named(report(world.alice, world.pair_id)["problems"], "timeout")
        assert "caught up\n" not in world.alice.run("federation", "show", world.pair_id).out
    finally:
        os.kill(world.bob.process.pid, signal.SIGCONT)
    world.well()


# -- documents


@finds("manifest-signature", "manifest-stale")
def test_a_cache_that_keeps_old_documents(world: World) -> None:
    """After a rotation a proxy goes on giving what was before: of two documents one, or both."""
    old = {path: answer(200, world.bob.get(path).body) for path in (MANIFEST, DID_DOCUMENT)}
    world.bob.run("identity", "rotate")
    world.alice.run("federation", "refresh", world.pair_id)
    world.proxy.changes = {MANIFEST: old[MANIFEST]}
    found = world.seen("manifest-signature")
    assert found["title"] == "manifest signature does not verify against advertised DID"
    assert found["fix"] == f"{PUBLISH}; then retry here"
    world.proxy.changes = old
    assert world.seen("manifest-stale")["fix"] == "a cache or an attacker replays it; check the network path"
    world.proxy.heal()
    world.mend(found["fix"])
    world.well()


@finds("manifest-expired")
def test_a_manifest_past_its_end(world: World) -> None:
    """A cache gives out one that was valid for a second."""
    world.bob.stop()
    world.bob.configure(f"{AUTO}[limits]\nmanifest_ttl_s = 1\n").start()
    held = world.bob.get(MANIFEST).body
    world.proxy.changes = {MANIFEST: answer(200, held)}
    assert world.seen("manifest-expired")["fix"] == f"{PUBLISH}; compare both clocks"
    world.bob.stop()
    world.bob.configure(AUTO).start()
    world.proxy.heal()
    world.mend("on bob: spl identity generate")
    world.well()


@finds("peer-version")
def test_a_peer_of_another_time(world: World) -> None:
    """Its manifest speaks a protocol that we do not; upgraded, the pair goes on."""
    world.bob.stop()
    world.bob.fault = "other-version"
    world.bob.start()
    assert world.seen("peer-version")["fix"] == "upgrade the older side"
    world.bob.stop()
    world.bob.fault = ""
    world.bob.start()
    world.well()


@finds("chain-fork")
def test_a_home_that_was_copied_before_its_key_was_rotated(world: World, house: House) -> None:
    """Two successors of one key: alice holds to the one she saw first, until her operator says which."""
    world.bob.stop()
    other = house("other", "", Faulty, port=world.bob.port)
    shutil.rmtree(other.home)
    shutil.copytree(world.bob.home, other.home, ignore=shutil.ignore_patterns("run"))
    other.run("identity", "rotate")
    world.bob.start()
    world.bob.run("identity", "rotate")
    world.alice.run("federation", "refresh", world.pair_id)
    world.bob.stop()
    other.start(*world.bob.flags)
    fix = world.seen("chain-fork")["fix"]
    assert fix.endswith(f"by voice, then: spl federation refresh {world.pair_id} --expect-key 'SIX WORDS'")
    world.bob = other
    world.mend(fix.replace("SIX WORDS", other.data("identity", "show")["words"]))
    world.well()


# -- tokens


@finds("auth-invalid")
def test_a_token_that_the_peer_revoked(world: World) -> None:
    """Bob's operator revoked it: a refresh is refused until that operator rotates it, as the finding says."""
    [token] = [item for item in world.alice.pair(world.pair_id)["tokens"] if item["direction"] == "issued to us"]
    world.proxy.statuses = {"/renew": 503}
    world.bob.run("token", "revoke", token["token_id"])
    fix = world.told("auth-invalid")["fix"]
    assert fix == f"on bob: spl token rotate {world.pair_id}"
    world.proxy.heal()
    world.alice.run("federation", "refresh", world.pair_id, code=4)
    world.mend(fix)
    world.well()


@finds("token-scope")
def test_a_peer_to_whom_our_scopes_do_not_suffice(world: World) -> None:
    """It answers 403 and names the scope; with its leave, or a new token, the pair goes on."""
    refusal = json.dumps({"object": "error", "code": "SCOPE_FORBIDDEN", "scope": "federation:sync"}).encode()
    world.proxy.changes = {CHANGES: answer(403, refusal)}
    fix = world.told("token-scope")["fix"]
    assert fix == f"spl federation refresh {world.pair_id}"
    world.proxy.heal()
    world.mend(fix)
    world.well()


@finds("token-expiring")
def test_a_token_near_its_end_that_could_not_be_renewed(house: House) -> None:
    """85 days later: both daemons live on, and a proxy lets no renewal pass."""
    port = free_port()
    proxy = Proxy(port)
    hal = house("hal", AUTO, Faulty, port=port).start("--public-url", proxy.url)
    iris = house("iris", "", Faulty).start()
    pair_id = iris.paired(proxy.url)
    proxy.statuses = {"/renew": 503}
    for each in (hal, iris):
        each.stop()
        each.fault = "85-days-later"
        each.start()
    found = told(iris, "token-expiring")
    assert (found["fix"], found["severity"]) == (f"spl federation refresh {pair_id}", "warn")
    assert "expires in 4d" in found["title"]
    proxy.heal()
    for each in (iris, hal):  # each asks for the token that it presents
        each.run(*found["fix"].split()[1:])
    assert not named(attention(iris), "token-expiring")
    proxy.end()
    for each in (hal, iris):
        each.stop()


@finds("handshake-pending")
def test_a_request_that_nobody_has_decided(world: World, house: House) -> None:
    """Both sides say who has to, and each says it with the command that does it."""
    gina = house("gina", "").start()
    *_, last = world.alice.steps(gina.url, wait_ms=0)
    pair_id = last["pair_id"]
    assert world.told("handshake-pending")["fix"] == f"on gina: spl aitl approve {pair_id}"
    fix = told(gina, "handshake-pending")["fix"]
    assert seen(gina, "handshake-pending", pair_id)["fix"] == fix == f"spl aitl approve {pair_id}"
    gina.run(*fix.split()[1:])
    eventually(lambda: not attention(world.alice) and not attention(gina), "the pair is made")
    world.alice.run("federation", "revoke", pair_id)
    gina.stop()


@finds("pair-degraded")
def test_what_degraded_a_pair_is_over_and_nobody_tried_again(world: World) -> None:
    """On demand nothing is tried by itself: all is well on the way, and one sync makes the pair active."""
    world.alice.run("federation", "set-mode", world.pair_id, "on-demand")
    busy = json.dumps({"object": "error", "code": "INTERNAL", "message": "not now"}).encode()
    world.proxy.changes = {CHANGES: answer(503, busy)}

    def degraded() -> bool:
        world.alice.run("sync", world.pair_id, code=9)
        return bool(world.alice.pairs("degraded"))

    eventually(degraded, "the pair is degraded")
    world.proxy.heal()
    fix = world.seen("pair-degraded")["fix"]
    assert fix == f"spl sync {world.pair_id}"
    world.mend(fix)
    world.alice.run("federation", "set-mode", world.pair_id, "polling")
    world.well()


# -- the cursor


@finds("cursor-stalled")
def test_records_that_wait_while_the_cursor_stands_still(world: World) -> None:
    """The peer says that there is more and hands out nothing."""

    def empty(reply: Reply) -> Reply:
        view = {**reply.json["peer_view"], "head": reply.json["peer_view"]["head"] + 138}
        return reply.with_json({**reply.json, "peer_view": view})

    def stalled() -> dict[str, Any]:
        done = world.alice.run("status", "--check", "-o", "json", code=None)
        return named(done.data["attention"], "cursor-stalled") if done.code == 3 else {}

    # What Bob asks by himself, past the proxy, says the truth, and the finding goes until the next pages.
    world.proxy.changes = {CHANGES: empty}
    found = eventually(stalled, "status has cursor-stalled")
    assert found["fix"] == f"spl sync {world.pair_id}"
    eventually(lambda: "lagging by 138 records" in world.alice.run("federation", "show", world.pair_id).out, "a lag")
    world.proxy.heal()
    world.mend(f"spl sync {world.pair_id}")
    world.well()


@finds("cursor-skip-suspect")
def test_a_source_that_skips_a_record(world: World) -> None:
    """An older source: one record never comes and nothing says so but the count, also after a restart."""
    gone = list[str]()

    def skips(reply: Reply) -> Reply:
        page = reply.json
        view = {name: value for name, value in page["peer_view"].items() if name != "clock"}
        gone.extend([item["id"] for item in page["records"]][: 1 - len(gone)])  # the first, whatever page it is in
        kept = [item for item in page["records"] if item["id"] not in gone]
        return reply.with_json({**page, "records": kept, "ns": page["ns"][: len(kept)], "peer_view": view})

    world.proxy.changes = {CHANGES: skips}
    sent = world.bob.emit("th_skipped", 2)
    eventually(lambda: len(world.alice.records("th_skipped")) == 1, "one of two came")
    world.alice.stop()
    world.alice.start()
    fix = world.told("cursor-skip-suspect")["fix"]
    assert fix == (
        f"upgrade the peer, then: spl federation pause {world.pair_id} && spl federation resume {world.pair_id}"
    )
    assert "caught up" not in world.alice.run("federation", "show", world.pair_id).out
    world.proxy.heal()
    world.mend(fix)
    eventually(lambda: {item["id"] for item in world.alice.records("th_skipped")} == set(sent), "what was skipped came")
    world.well()


@finds("peer-rewound")
def test_a_peer_whose_log_is_set_back_again_and_again(world: World) -> None:
    """It refuses each cursor that it gave; after three new beginnings in an hour that is a finding."""
    refusal = json.dumps({"object": "error", "code": "CURSOR_RESET", "message": "another log"}).encode()
    world.proxy.changes = {CHANGES: answer(409, refusal)}
    assert world.told("peer-rewound")["fix"] == "on bob: spl doctor"
    world.proxy.heal()
    world.mend("on bob: spl doctor")
    world.mend(world.told("home-set-back")["fix"])
    world.well()


# -- streams and modes


@pytest.fixture(params=[HOLD, MUTE, CUT])
def streaming(world: World, request: pytest.FixtureRequest) -> Iterator[World]:
    """The shared world with a continuous pair behind a proxy that does this to streams."""
    world.proxy.flow = request.param
    world.alice.run("federation", "set-mode", world.pair_id, "continuous")
    yield world
    world.proxy.heal()
    world.alice.run("federation", "set-mode", world.pair_id, "polling")


@finds("stream-buffering", "stream-flapping")
def test_what_proxies_do_to_streams(streaming: World) -> None:
    """One holds them back, even what is sent at once, one swallows heartbeats, one cuts them after each event."""
    code, fix = {
        HOLD: ("stream-buffering", BUFFERING_FIX),
        MUTE: ("stream-buffering", BUFFERING_FIX),
        CUT: ("stream-flapping", f"spl federation set-mode {streaming.pair_id} polling"),
    }[streaming.proxy.flow]
    assert streaming.told(code)["fix"].endswith(fix)
    assert streaming.seen(code)["fix"].endswith(fix)
    if code == "stream-flapping":
        streaming.mend(fix)  # with the proxy as it is
    else:
        streaming.proxy.heal()
        streaming.alice.run("federation", "set-mode", streaming.pair_id, "polling")
        streaming.alice.run("federation", "set-mode", streaming.pair_id, "continuous")
    streaming.well()


@finds("poll-interval-long")
def test_a_long_interval_is_said_and_is_no_problem(world: World) -> None:
    """News may be two hours old: information, so the doctor exits 0."""
    world.alice.run("federation", "set-poll-interval", world.pair_id, "2h")
    out = world.alice.run("doctor", world.pair_id).out
    assert "  info  mode              the pair polls every 2h" in out
    world.alice.run("federation", "set-poll-interval", world.pair_id, "1s")


def test_every_finding_is_produced_by_a_real_daemon() -> None:
    """A new one needs a test here, or in a file beside this one."""
    for each in (test_ailing, test_links):
        assert each.__name__, "imported, its tests have entered themselves"
    assert {row.code for row in CATALOGUE} - set(BESIDE) - set(HERE) == set(LEFT)
