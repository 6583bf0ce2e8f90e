"""The catalogue: each finding has facts that produce it, and none of them holds for a daemon that is well."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core.errors import CODES
from spl.core.limits import Limits
from spl.core.presence import OFFLINE_S, TO_PEER, TO_US, OneWay
from spl.doctor import catalogue
from spl.doctor.catalogue import CATALOGUE, FAIL, INFO, WARN, Finding, problems
from spl.doctor.facts import Facts, Fault, GrantGap, LockHolder, ReverseReach, nothing, replace

WELL: dict[str, Any] = {
    "has_identity": True, "readonly": "", "damaged_lines": 0, "unsaved_s": 60.0,
    "free_bytes": 10**11, "loop_lag_ms": 3.0, "dead_tasks": (),
    "pair_id": "pair_0f9e8d7c", "label": "bob", "url": "https://bob.example", "phase": "active", "reason": "",
    "mode": "polling", "poll_interval_ms": 300_000, "paused_by": "", "ended_by_peer": False, "waits_for": "",
    "clock": 42, "lag_records": 0, "overdue_s": 0.0, "unmoved": False, "scopes_missing": (), "queue_records": 0,
    "token_left_ms": 61 * 86_400_000, "own_token_left_ms": 61 * 86_400_000, "clock_ahead_ms": 400, "tls_days_left": 61,
    "endpoint_status": 405,
    "reverse": ReverseReach(True, "u", 9), "broken_s": {},
}  # fmt: skip


def failure(code: str, message: str = "") -> dict[str, Any]:
    return {"failure": Fault(code, message)}


def manifest(code: str, message: str = "", **more: object) -> dict[str, Any]:
    return {"manifest": Fault(code, message), **more}


def sink(code: str) -> dict[str, Any]:
    return {
        "sink": "sink fan",
        "sink_fault": Fault(code, "as the test says", CODES[code].fix.replace("PAIR_ID", WELL["pair_id"])),
    }


GRANT = "spl federation grant pair_0f9e8d7c --namespace x --maps x,music --hash-level L0"
MAKE = "spl namespace create x && spl namespace create x/y"


def gap(code: str, namespace: str, missing: str, fix: str, *, at_peer: bool = False) -> dict[str, Any]:
    return {"gaps": (GrantGap(code, namespace, missing, fix, at_peer),)}


CASES: dict[str, dict[str, Any]] = {
    "daemon-down": {"daemon_down": "no daemon answers"},
    "warming-up": {"holder": LockHolder("7", "now", 5.0)},
    "store-locked": {"holder": LockHolder("7", "then", 600.0)},
    "store-readonly": {"readonly": "writing the log failed: No space left on device"},
    "store-full": {"full": "there is no room for the log: No space left on device"},
    "store-damaged": {"damaged_lines": 2},
    "store-missing": {"home_fault": Fault("store-missing", "there is no log")},
    "disk-low": {"free_bytes": 5 * 10**8},
    "program-replaced": {"replaced": True},
    "loop-blocked": {"loop_lag_ms": 2500.0},
    "task-dead": {"dead_tasks": ("pair_0f9e8d7c",)},
    "config-invalid": {"config_error": "config.toml:3: unknown key 'prot'"},
    "identity-missing": {"has_identity": False},
    "identity-cloned": manifest("identity-cloned", "https://bob.example answers with our own DID"),
    "home-set-back": {"set_back": "us"},
    "identity-backup": {"unsaved_s": 86_401.0},
    "auth-off": {"auth_off": True},
    "clock-skew": {"clock_ahead_ms": -31_000},
    "dns": failure("dns"),
    "connect": failure("connect", "bob.example at 203.0.113.7 port 443: Connection refused"),
    "no-route": failure("no-route", "bob.example at 203.0.113.7 port 443: Network is unreachable"),
    "timeout": failure("timeout"),
    "disconnected": failure("disconnected"),
    "address-refused": failure("address-refused"),
    "http-plain": failure("http-plain"),
    "tls-chain": failure("tls-chain", "self-signed certificate"),
    "tls-expiry": {"tls_days_left": 3},
    "redirect": failure("redirect"),
    "foreign-answer": failure("foreign-answer", "https://bob.example answers 502: 'nginx' in the peer's place"),
    "manifest-missing": manifest("manifest-missing"),
    "manifest-differs-outside": {"outside_fault": "other bytes"},
    "manifest-malformed": manifest("manifest-malformed"),
    "manifest-signature": manifest("manifest-signature", "manifest signature does not verify against advertised DID"),
    "manifest-did-mismatch": manifest("manifest-did-mismatch"),
    "manifest-expired": manifest("manifest-expired"),
    "manifest-stale": manifest("manifest-stale"),
    "chain-fork": manifest("chain-fork"),
    "peer-version": manifest("peer-version"),
    "handshake-401": {"endpoint_status": 401},
    "peer-4xx": {"endpoint_status": 404},
    "peer-5xx": failure("peer-5xx"),
    "answer-malformed": failure("answer-malformed"),
    "handshake-pending": {"phase": "establishing", "waits_for": "us"},
    "reverse-unreachable": {"reverse": ReverseReach(False, "https://a", 0, "connect", "Connection refused")},
    "one-way": {"one_way": OneWay(TO_PEER, 60.0, "connect")},
    "peer-revoked": {"ended_by_peer": True},
    "token-expiring": {"token_left_ms": 3 * 86_400_000, "token_due": True},
    "token-expired": {"token_left_ms": -7_200_000},
    "token-withdrawn": {"own_token_revoked": "tok_00000001", "label": "bob"},
    "token-scope": {"scopes_missing": ("federation:subscribe",)},
    "auth-invalid": {"token_refused": "the peer answers 401: the bearer token is unknown here"},
    "peer-paused": {"paused_by": "peer"},
    "consent-missing": gap("consent-missing", "music", "L0 behaves as L1 until bob grants it too", GRANT, at_peer=True),
    "namespace-unmapped": gap("namespace-unmapped", "x/y", "namespace x/y does not exist or is not active here", MAKE),
    "peer-rewound": failure("peer-rewound"),
    "intake-paused": {"intake_wait_s": 900.0},
    "cursor-stalled": {"lag_records": 138, "broken_s": {"cursor-stalled": 301.0}},
    "records-withheld": {"withheld": ("ab" * 32,)},
    "peer-behind": {"peer_lag": 5, "peer_behind_s": 61.0},
    "cursor-skip-suspect": {"lag_records": 3, "unmoved": True, "broken_s": {"cursor-stalled": 0.0}},
    "stream-buffering": {"mode": "continuous", "mute_s": 5.1},
    "stream-flapping": {"mode": "continuous", "breaks": 4},
    "queue-high": {"queue_records": 51},
    "adapter-slow": {"adapters_slow": "adapters take 40 ms a record (p99 of the last 5 min), views the most of it"},
    "sink-unreachable": sink("sink-unreachable"),
    "sink-full": sink("sink-full"),
    "sink-foreign": sink("sink-foreign"),
    "sink-auth": sink("sink-auth"),
    "sink-refused": sink("sink-refused"),
    "engine-gap": sink("engine-gap"),
    "rate-limited": {"throttled": True},
    "poll-interval-long": {"poll_interval_ms": 7_200_000},
    "pair-degraded": {"phase": "degraded", "reason": "internal"},
}
"""Code -> what in the facts of a healthy pair has to change for it to be found, and nothing else with it."""

PUBLISH = "spl identity generate; it keeps the key if there is one, and publishes the manifest"
REFRESH = "spl federation refresh pair_0f9e8d7c"
FIXES = {
    # The operator page's four ways for a pair to go wrong, and what it says to do.
    "manifest-missing": f"on bob: {PUBLISH}",
    "tls-chain": "on bob: fix the TLS chain (self-signed is refused); a private CA goes into tls.ca_file here",
    "manifest-signature": f"on bob: {PUBLISH}; then retry here",
    "handshake-401": "on bob: spl config list-permission-rules | grep federation",
    "token-scope": REFRESH,
    "token-expired": REFRESH,
    "peer-paused": "on bob: spl federation resume pair_0f9e8d7c",
    "cursor-stalled": "spl sync pair_0f9e8d7c",
    "cursor-skip-suspect": "upgrade the peer, then: "
    "spl federation pause pair_0f9e8d7c && spl federation resume pair_0f9e8d7c",
    # and others with a step of their own
    "consent-missing": f"on bob: {GRANT}",
    "namespace-unmapped": MAKE,
    "intake-paused": "spl federation resume pair_0f9e8d7c",
    "daemon-down": "spl serve",
    "handshake-pending": "spl aitl approve pair_0f9e8d7c",
    "peer-revoked": (
        "spl federation pair https://bob.example/; or accept the end: spl federation revoke pair_0f9e8d7c"
    ),
    "poll-interval-long": "spl federation set-poll-interval pair_0f9e8d7c 5m",
}


def findings(facts: dict[str, Any]) -> list[Finding]:
    """Return what holds with these facts; all others have their defaults."""
    return catalogue.findings(Facts(**facts))


def codes(facts: dict[str, Any]) -> list[str]:
    return [item.code for item in findings(facts)]


def test_a_daemon_that_is_well_has_no_finding() -> None:
    """Neither with all facts, nor with those of the daemon or of the pair alone, nor with none."""
    assert codes(WELL) == []
    assert codes({}) == []


@pytest.mark.parametrize("row", CATALOGUE, ids=lambda row: row.code)
def test_each_finding_has_facts_that_produce_it_and_only_it(row: Any) -> None:
    """It carries evidence and a next step; `spl help CODE` knows it."""
    found = findings({**WELL, **CASES[row.code]})
    assert [item.code for item in found] == [row.code]
    assert found[0].evidence
    assert found[0].fix
    assert found[0].fix == FIXES.get(row.code, found[0].fix)
    ours = "The request waits for your decision; the peer continues to ask."
    assert found[0].title == (ours if row.code == "handshake-pending" else CODES[row.code].meaning)
    assert (found[0].severity, found[0].explained_by) == (row.severity, "")


def test_what_is_known_by_the_code_alone_is_a_whole_fix() -> None:
    """It goes into the manual, where no pair is at hand."""
    assert catalogue.usual_fix("bad-json") == ""
    assert catalogue.usual_fix("peer-revoked").startswith("spl federation pair URL; or accept the end: ")
    assert catalogue.usual_fix("sink-full") == CODES["sink-full"].fix
    assert catalogue.usual_fix("consent-missing") == CODES["consent-missing"].fix


def test_patience_is_a_limit() -> None:
    """An operator may lower it."""
    patient = {row.code for row in CATALOGUE if row.patience_s is not None and row.patience_s(Limits()) > 0}
    assert patient == {
        "dns", "connect", "no-route", "timeout", "foreign-answer", "disconnected", "peer-5xx", "queue-high",
        "sink-unreachable", "engine-gap",
    }  # fmt: skip


def test_no_case_is_left_of_what_the_catalogue_lost() -> None:
    assert list(CASES) == [row.code for row in CATALOGUE]
    assert set(FIXES) <= set(CASES)


def test_what_a_finding_depends_on_is_in_the_catalogue_and_never_goes_round() -> None:
    rows = {row.code: row for row in CATALOGUE}

    def climb(code: str, below: tuple[str, ...]) -> None:
        assert code not in below
        for cause in rows[code].depends_on:
            climb(cause, (*below, code))

    for code in rows:
        climb(code, ())


def test_one_cause_explains_what_follows_from_it() -> None:
    """A token that expired is one problem, not four."""
    broken = {**CASES["token-expired"], **CASES["auth-invalid"], **CASES["cursor-stalled"], "phase": "degraded"}
    found = findings({**WELL, **broken})
    assert {item.code: item.explained_by for item in found} == {
        "token-expired": "", "auth-invalid": "token-expired", "cursor-stalled": "token-expired",
        "pair-degraded": "token-expired",
    }  # fmt: skip
    assert [item.code for item in problems(found)] == ["token-expired"]


def test_a_daemon_that_starts_or_cannot_start_is_not_merely_down() -> None:
    for cause in ("warming-up", "store-locked", "config-invalid"):
        found = findings({**CASES["daemon-down"], **CASES[cause]})
        assert [item.code for item in problems(found)] == [cause]


def test_what_heals_by_itself_shows_after_a_while() -> None:
    """Half a minute of refused connections is no news yet; a fact without a duration counts as lasting."""
    assert codes({**WELL, **failure("connect"), "broken_s": {"connect": 29.0}}) == []
    assert codes({**WELL, **failure("connect"), "broken_s": {"connect": 30.0}}) == ["connect"]
    assert codes({**WELL, "lag_records": 5, "broken_s": {"cursor-stalled": 44.0}}) == []
    hasty = {**WELL, **failure("connect"), "limits": Limits(failing_s=1.0), "broken_s": {"connect": 1.0}}
    assert codes(hasty) == ["connect"]


def test_a_stream_that_breaks_explains_its_own_failures() -> None:
    """What the last attempt met is how it shows; a peer that is gone explains the stream in turn."""
    for code in ("stream-flapping", "stream-buffering"):
        for word in ("disconnected", "timeout"):
            found = {item.code: item.explained_by for item in findings({**WELL, **CASES[code], **failure(word)})}
            assert found == {code: "", word: code}
        found = {item.code: item.explained_by for item in findings({**WELL, **CASES[code], **failure("connect")})}
        assert found == {code: "connect", "connect": ""}


def test_a_warning_can_become_a_failure() -> None:
    for facts, severity in (
        ({"clock_ahead_ms": 31_000}, WARN), ({"clock_ahead_ms": 301_000}, FAIL), ({"free_bytes": 5 * 10**8}, WARN),
        ({"free_bytes": 10**7}, FAIL), ({"poll_interval_ms": 7_200_000}, INFO),
    ):  # fmt: skip
        assert findings({**WELL, **facts})[0].severity == severity
    assert problems(findings({**WELL, "poll_interval_ms": 7_200_000})) == []


def test_what_was_withdrawn_may_be_back_with_a_lost_line() -> None:
    """A damaged header, or a place that is read again, takes nothing away."""
    [header], [lost] = (findings({**WELL, "damaged_lines": 1, "lines_lost": lost}) for lost in (False, True))
    assert (header.evidence, header.fix) == ("1 place of the log is damaged", "spl store check --repair")
    assert lost.evidence == f"{header.evidence}; tokens, pairs and grants that were withdrawn may be in force again"
    assert lost.fix.startswith(f"{header.fix}; then withdraw again what is back: spl token list; spl federation list; ")


def test_who_asks_for_a_new_token() -> None:
    """Whoever presents it: ours for the peer is renewed from there."""
    for facts in ({"own_token_left_ms": -1}, {"own_token_left_ms": 1, "own_token_due": True}):
        assert findings({**WELL, **facts})[0].fix == f"on bob: {REFRESH}"
    for facts in ({"token_left_ms": -1}, {"token_left_ms": 1, "token_due": True}):
        assert findings({**WELL, **facts})[0].fix == REFRESH


def test_a_token_that_the_peer_revoked_comes_back_only_by_its_operator() -> None:
    """A refresh is refused there until then."""
    revoked = {**WELL, **CASES["auth-invalid"], "token_revoked": True}
    assert findings(revoked)[0].fix == "on bob: spl token rotate pair_0f9e8d7c"


@pytest.mark.parametrize(
    ("status", "step"),
    [
        (502, "on bob: start the daemon: spl serve; or correct its address and port in the proxy"),
        (403, "on bob: let the proxy pass /v1/ and /.well-known/ without a login or filter of its own"),
        (404, "on bob: let the proxy pass /.well-known/ and /v1/ as they are, if this is the right URL"),
        (413, "on bob: raise the body limit of the proxy (nginx: client_max_body_size 8m)"),
    ],
)
def test_what_a_server_in_the_peers_place_answers_says_what_to_do(status: int, step: str) -> None:
    """And where the peer is now, if it has moved and left the address to another server."""
    foreign = findings({**WELL, "failure": Fault("foreign-answer", "", status=status)})[0]
    assert foreign.fix == f"{step}; if the peer has moved, give the URL in its status: {REFRESH} --url NEW-URL"


@pytest.mark.parametrize(
    ("url", "message", "command"),
    [
        ("https://bob.example", "bob.example at 203.0.113.7 port 443: refused", ": ip route get 203.0.113.7"),
        ("https://bob.example", "bob.example at 2001:db8::7 port 443: refused", ": ip route get 2001:db8::7"),
        ("http://203.0.113.9:9100", "", ": ip route get 203.0.113.9"),
        ("https://bob.example", "", ""),
        ("", "", ""),
    ],
)
def test_the_way_is_looked_up_to_the_address_that_was_dialled(url: str, message: str, command: str) -> None:
    """A name is nothing that `ip` takes."""
    [found] = findings({**WELL, "url": url, **failure("no-route", message)})
    assert found.fix == f"look at this machine's network{command}"


@pytest.mark.parametrize(("said", "own"), [
    ("404 not-found There is no such route", True), ("409 new-code", True),
    ("the peer answered 421 HOST_REFUSED: no", True), ("the peer answered 404", False), ("404", False), ("", False),
])  # fmt: skip
def test_a_refusal_with_a_code_comes_from_the_daemon_and_from_no_proxy(said: str, own: bool) -> None:
    (found,) = catalogue.findings(Facts(**{**WELL, **failure("peer-4xx", said or "refused")}))
    assert (found.code, "the proxy" in found.fix, "on bob: spl logs" in found.fix) == ("peer-4xx", not own, own)
    assert "the proxy" in catalogue.findings(Facts(**{**WELL, "endpoint_status": 404}))[0].fix


def test_a_peer_that_publishes_its_loopback_is_not_looked_for_at_our_own_daemon() -> None:
    there = {**WELL, **failure("address-refused"), "url": "http://127.0.0.1:9100", "own_url": "http://10.0.0.7:9100"}
    fix = "on bob: set public_url, or in a private network stop the daemon, then: spl serve --lan"
    assert findings(there)[0].fix == fix
    beside = {**there, "url": "http://127.0.0.1:9200"}
    typed = f"{REFRESH} --url http://127.0.0.1:9200"
    assert findings(beside)[0].fix == f"{fix}; if it runs on this machine: {typed}"
    assert findings({**beside, "own_url": "http://127.0.0.1:9100"})[0].fix == typed


def test_plain_http_is_refused_in_a_private_network_where_lan_was_left_out() -> None:
    plain = {**WELL, **failure("http-plain")}
    step = "on a network that you trust, stop the daemon, then: spl serve --lan; or use https"
    assert findings({**plain, "url": "http://192.168.1.20:9100"})[0].fix == step
    assert "--lan" not in findings({**plain, "url": "http://bob.example"})[0].fix


def test_our_loopback_is_no_address_for_a_peer_elsewhere() -> None:
    ours = {**WELL, **CASES["reverse-unreachable"], "own_url": "http://127.0.0.1:9100"}
    fix = "set public_url, or in a private network stop the daemon, then: spl serve --lan"
    assert findings({**ours, "url": "http://10.0.0.8:9100"})[0].fix == fix
    assert fix not in findings({**ours, "url": "http://localhost:9200"})[0].fix


def test_a_host_that_does_not_answer_may_be_off_or_have_moved() -> None:
    """Its own network says so; ours is looked at after that."""
    said = "bob.example at 192.168.1.7 port 9100: No route to host"
    [found] = findings({**WELL, **failure("no-route", said)})
    off = "see that the peer's machine is on and still has this address; if so, look at this machine's network"
    moved = f"if the peer has moved, give the URL in its status: {REFRESH} --url NEW-URL"
    assert found.fix == f"{off}: ip route get 192.168.1.7; {moved}"


def test_a_peer_that_takes_connections_and_answers_nothing_is_no_fault_of_the_network() -> None:
    hangs, silent = (findings({**WELL, "failure": Fault("timeout", reached=reached)})[0] for reached in (True, False))
    assert hangs.fix == "on bob: its daemon takes connections and hangs, or was stopped: spl status"
    moved = "spl federation refresh pair_0f9e8d7c --url NEW-URL"
    assert silent.fix == f"retry; check the network path; if the peer has moved, give the URL in its status: {moved}"


def test_what_redirects_stands_before_the_peer_or_shows_where_it_went() -> None:
    """The pair exists already, so nobody pairs again; where reads alone are redirected, it is what stands before it."""
    facts = {**WELL, "failure": Fault("redirect", "https://bob.example redirects to https://login.example")}
    assert findings(facts)[0].fix.endswith(f"the URL in its status: {REFRESH} --url NEW-URL")
    for reads in findings({**facts, "one_way": OneWay(TO_PEER, OFFLINE_S, "redirect", reads=True)}):
        assert reads.fix.startswith("on bob: let the proxy pass GET /v1/sync/"), reads.code


def test_each_side_of_a_broken_direction_is_told() -> None:
    """The one whose requests fail is told once that lasts; the one that is not asked, why, if the other says so."""
    ours = {**WELL, "one_way": OneWay(TO_PEER, OFFLINE_S, "timeout"), "reach": "peer-pushes"}
    assert codes(ours) == ["one-way"]
    assert codes({**ours, "one_way": OneWay(TO_PEER, OFFLINE_S - 1, "timeout")}) == []
    assert findings(ours)[0].fix.startswith(
        "retry; check the network path; if the peer has moved, give the URL in its status: spl federation refresh"
    )
    private = {**ours, "url": "http://10.0.0.8:9100", "one_way": OneWay(TO_PEER, 50.0, "address-refused")}
    assert findings(private)[0].fix == "spl federation refresh pair_0f9e8d7c --url http://10.0.0.8:9100"
    unasked = {**WELL, "reverse": None, "one_way": OneWay(TO_US, 50.0)}
    assert findings(unasked)[0].evidence == (
        "bob has not asked us for 50s, though it answers us; it used to ask every 20s"
    )
    told = findings({**unasked, "reach": "we-push", "one_way": OneWay(TO_US, 50.0, "foreign-answer")})[0]
    assert "it says that its requests to us fail (foreign-answer)" in told.evidence
    assert told.fix == "let the proxy before this daemon pass /v1/ and /.well-known/ to it"
    refused = findings(
        {**unasked, "one_way": OneWay(TO_US, 50.0, "address-refused"), "own_url": "http://10.0.0.7:9100"}
    )
    assert refused[0].fix == "on bob: spl federation refresh pair_0f9e8d7c --url http://10.0.0.7:9100"
    # What the doctor has just tried counts more.
    assert codes({**unasked, "reverse": ReverseReach(True, "u", 9)}) == []


def test_who_waits_for_whom() -> None:
    theirs = findings({**WELL, "phase": "establishing", "waits_for": "peer"})[0]
    assert theirs.fix == "on bob: spl aitl approve pair_0f9e8d7c"
    assert theirs.evidence == "bob has not decided on our request"


def test_a_side_that_need_not_be_dialled_is_no_problem() -> None:
    """Before a NAT one side cannot be reached, and serves or is served by push."""
    assert codes({**WELL, **failure("connect"), "reach": "peer-pushes"}) == []
    assert codes({**WELL, **failure("auth-invalid"), "reach": "peer-pushes"}) == ["auth-invalid"]
    assert codes({**WELL, **CASES["reverse-unreachable"], "reach": "we-push"}) == []


EAGER = Limits(stalled_s=0.0, backup_due_s=0.0, loop_late_s=0.0, check_s=0.0, disk_low_bytes=0)
PARTS = [WELL, *CASES.values(), *({name: value} for case in (WELL, *CASES.values()) for name, value in case.items())]


@given(st.lists(st.sampled_from(PARTS), max_size=8), st.sampled_from([Limits(), EAGER]))
def test_rows_that_are_not_looked_at_do_not_hold(parts: list[dict[str, Any]], limits: Limits) -> None:
    """Whatever is known at once, and in whichever form it was gathered."""
    told = {name: value for part in parts for name, value in part.items()}
    for facts in (Facts(**{"limits": limits, **told}), replace(nothing(limits), **told)):
        looked_at = {row.code for row in catalogue._may_hold(facts)}
        assert not [row.code for row in CATALOGUE if row.code not in looked_at and row.evidence(facts)]


def test_of_a_pair_that_is_well_few_rows_are_looked_at() -> None:
    assert len(catalogue._may_hold(Facts(**WELL))) < len(CATALOGUE) / 4


def test_a_finding_becomes_json_once_with_what_it_is_about() -> None:
    found = catalogue.died("sync", "ValueError: x")
    assert found.is_problem
    shown = found.of(pair_id="pair_1").to_json()
    assert shown == {
        "code": "task-dead", "severity": "fail", "side": "local", "fix": CODES["task-dead"].fix,
        "title": "sync died: ValueError: x", "meaning": CODES["task-dead"].meaning, "pair_id": "pair_1",
    }  # fmt: skip
    assert found.to_json() == {name: value for name, value in shown.items() if name != "pair_id"}
