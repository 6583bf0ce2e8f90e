"""The catalogue of findings: what can be wrong, how it shows in facts, and the one next step; pure.

Facts are a plain mapping that the daemon gathers (`facts.py`) and `doctor.py` completes by asking the peer.  A fact
that nobody gathered is absent, and what rests on it is not found; so the same catalogue serves `status`, which asks
nobody, and `doctor`, which does.  The facts:

    daemon      daemon_down (text), holder {pid, since}, holder_s, config_error, readonly, damaged_lines, free_bytes,
                loop_lag_ms, dead_tasks [pair ids], identity (bool), published_fault (text), locking_rule (name)
    of a pair   pair_id, label, url, phase, reason, mode, poll_interval_ms, paused_by, ended_by_peer (bool),
                waits_for ("us", "peer" or ""), lag_records, unmoved (bool), overdue_s, scopes_missing, token_left_ms
                and own_token_left_ms (theirs for us, ours for them), queue_records,
                breaks (of the way, in ten minutes), reach (which way the pair runs: a word of `core/reach.py`)
    seen there  failure {code, message}: why the last attempt failed; manifest {code, message}, manifest_ours (bool:
                the peer's own daemon gave that answer), clock_ahead_ms, tls_days_left, endpoint_status,
                reverse {reached, code, message, url}, outside_fault (text), token_refused (text), throttled (bool),
                stream_first_s (None: nothing came)
    broken_s    code -> seconds since it began, for what heals by itself; what is not named counts as lasting

A finding is explained by another one that it depends on, and then it is no problem of its own.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .errors import CODES
from .reach import PEER_PUSHES, WE_PUSH

Facts = Mapping[str, Any]

INFO: Final = "info"
WARN: Final = "warn"
FAIL: Final = "fail"
LOCAL: Final = "local"
PEER: Final = "peer"
PATH: Final = "path"

SKEW_WARN_MS: Final = 30_000
SKEW_FAIL_MS: Final = 300_000
FREE_WARN_BYTES: Final = 1_000_000_000
FREE_FAIL_BYTES: Final = 100_000_000
LOOP_LAG_MS: Final = 1000
TLS_DAYS: Final = 14
TOKEN_LEFT_MS: Final = 7 * 86_400_000
QUEUE_RECORDS: Final = 50
FLAPS: Final = 4
POLL_LONG_MS: Final = 3_600_000
STARTING_S: Final = 60
TRANSIENT_S: Final = 30.0
STALLED_S: Final = 300.0
QUEUE_HIGH_S: Final = 60.0
SERVED: Final = frozenset({200, 405})
"""What the pair endpoint answers to a GET where nothing stands before it."""

REACH: Final = (
    "dns", "connect", "timeout", "disconnected", "tls-chain", "redirect", "address-refused", "http-plain",
)  # fmt: skip
IDENTITY: Final = ("identity-missing", "identity-cloned")
MANIFEST: Final = (
    "manifest-missing", "manifest-malformed", "manifest-signature", "manifest-did-mismatch", "manifest-expired",
    "manifest-stale", "chain-fork", "peer-version",
)  # fmt: skip
TOKEN: Final = ("token-expired", "token-scope", "auth-invalid")
STATE: Final = ("peer-paused", "peer-revoked", "handshake-pending")


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the catalogue; `code` is also in `errors.CODES`, where `spl help CODE` finds its meaning."""

    code: str
    severity: str
    depends_on: tuple[str, ...]
    visible_after_s: float
    side: str
    evidence: Callable[[Facts], str]
    """Returns what is seen, in one sentence; "" where the finding does not hold."""
    fix: Callable[[Facts], str]
    grave: Callable[[Facts], bool] = lambda facts: False
    """Tells whether a warning has become a failure."""

    @property
    def title(self) -> str:
        """What the code means, in one sentence."""
        return CODES[self.code].meaning


@dataclass(frozen=True, slots=True)
class Found:
    """A finding that holds: `evidence` is what was seen, `explained_by` the code that explains it, or ""."""

    code: str
    severity: str
    side: str
    title: str
    evidence: str
    fix: str
    explained_by: str = ""

    @property
    def is_problem(self) -> bool:
        """Whether somebody must act on it."""
        return not self.explained_by and self.severity != INFO


def findings(facts: Facts) -> list[Found]:
    """Return what holds, in the order of the catalogue; what another one explains names that one."""
    broken_s = facts.get("broken_s", {})
    held: dict[str, Finding] = {}
    seen: dict[str, str] = {}
    for row in CATALOGUE:
        if broken_s.get(row.code, row.visible_after_s) < row.visible_after_s:
            continue
        evidence = row.evidence(facts)
        if evidence:
            held[row.code], seen[row.code] = row, evidence
    return [
        Found(code, _severity(row, facts), row.side, row.title, seen[code], row.fix(facts), _root(code, held))
        for code, row in held.items()
    ]


def problems(found: Iterable[Found]) -> list[Found]:
    """Return those that somebody must act on."""
    return [item for item in found if item.is_problem]


def _severity(row: Finding, facts: Facts) -> str:
    return FAIL if row.grave(facts) else row.severity


def _root(code: str, held: Mapping[str, Finding]) -> str:
    """Return the code at the end of the chain of explanations, or "" when nothing that holds explains this one."""
    cause = next((item for item in held[code].depends_on if item in held), "")
    return _root(cause, held) or cause if cause else ""


# -- reading facts


def _said(name: str, code: str) -> Callable[[Facts], str]:
    """Return the evidence of a fault that another part named by its code: facts[name] is {code, message}."""

    def evidence(facts: Facts) -> str:
        fault = facts.get(name) or {}
        return str(fault.get("message") or CODES[code].meaning) if fault.get("code") == code else ""

    return evidence


def _failed(*codes: str) -> Callable[[Facts], str]:
    """Return the evidence that the last attempt failed so; a peer that pushes need not be dialled."""
    each = [_said("failure", code) for code in codes]

    def evidence(facts: Facts) -> str:
        pushed = facts.get("reach") == PEER_PUSHES and (facts.get("failure") or {}).get("code") in REACH
        return "" if pushed else next(filter(None, (said(facts) for said in each)), "")

    return evidence


def _next(code: str) -> Callable[[Facts], str]:
    return lambda facts: CODES[code].fix


def _at_peer(text: str) -> Callable[[Facts], str]:
    """Return a step for the peer's operator, addressed to the peer by name."""
    return lambda facts: f"on {facts.get('label') or 'the peer'}: {text}"


def _with_pair(command: str) -> Callable[[Facts], str]:
    """Return one of our own commands, given the pair."""
    return lambda facts: f"{command} {facts.get('pair_id', 'PAIR_ID')}"


def _span(ms: float) -> str:
    """Return a duration in its one telling unit."""
    seconds = abs(ms) / 1000
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size or (size == 60 and seconds >= 60):
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


# -- the daemon


def _down(facts: Facts) -> str:
    return str(facts.get("daemon_down") or "")


def _readonly(facts: Facts) -> str:
    return str(facts.get("readonly") or "")


def _config(facts: Facts) -> str:
    return str(facts.get("config_error") or "")


def _disk_full(facts: Facts) -> bool:
    return int(facts.get("free_bytes", FREE_WARN_BYTES)) < FREE_FAIL_BYTES


def _warming(facts: Facts) -> str:
    if "holder" not in facts or facts.get("holder_s", 0) >= STARTING_S:
        return ""
    return f"process {facts['holder']['pid']} opened this home {facts['holder_s']:.0f} s ago and does not answer yet"


def _locked(facts: Facts) -> str:
    if "holder" not in facts or facts.get("holder_s", 0) < STARTING_S:
        return ""
    holder = facts["holder"]
    return f"process {holder['pid']} holds this home since {holder['since']} and does not answer"


def _damaged(facts: Facts) -> str:
    count = facts.get("damaged_lines", 0)
    return f"{count} lines of the log are damaged and not served" if count else ""


def _disk(facts: Facts) -> str:
    free = facts.get("free_bytes", FREE_WARN_BYTES)
    return f"{free / 1e6:,.0f} MB free on the disk of the store" if free < FREE_WARN_BYTES else ""


def _loop(facts: Facts) -> str:
    lag_ms = facts.get("loop_lag_ms", 0)
    return (
        f"the daemon's event loop ran {lag_ms / 1000:.1f} s late within the last minute" if lag_ms > LOOP_LAG_MS else ""
    )


def _dead(facts: Facts) -> str:
    dead = facts.get("dead_tasks") or []
    return f"no task runs for {', '.join(dead[:5])}" if dead else ""


def _outside(facts: Facts) -> str:
    return str(facts.get("published_fault") or facts.get("outside_fault") or "")


def _no_identity(facts: Facts) -> str:
    return "" if facts.get("identity", True) else "this daemon can neither sign, nor publish, nor pair"


# -- the way to the peer


def _skew(facts: Facts) -> str:
    ahead_ms = facts.get("clock_ahead_ms", 0)
    if abs(ahead_ms) <= SKEW_WARN_MS:
        return ""
    word = "ahead of" if ahead_ms > 0 else "behind"
    return f"the peer's clock is {_span(ahead_ms)} {word} ours (warns at 30 s, refuses at 5 min)"


def _skew_fails(facts: Facts) -> bool:
    return abs(int(facts.get("clock_ahead_ms", 0))) > SKEW_FAIL_MS


def _tls_soon(facts: Facts) -> str:
    days = facts.get("tls_days_left", TLS_DAYS)
    return f"the peer's TLS certificate ends in {days} days" if days < TLS_DAYS else ""


def _missing_fix(facts: Facts) -> str:
    if facts.get("manifest_ours"):
        return _at_peer("spl identity generate")(facts)
    return _at_peer("let the proxy pass /.well-known/; curl http://localhost:9100/.well-known/syncropel there")(facts)


def _throttled(facts: Facts) -> str:
    return "the peer answers 429" if facts.get("throttled") else ""


def _endpoint(facts: Facts) -> str:
    if facts.get("locking_rule"):
        return f"our permission rule {facts['locking_rule']} refuses federation:pair, so nobody can pair with us"
    if facts.get("reason") == "handshake-401":
        return "peer rejected handshake: 401 Unauthorized"
    seen = _failed("handshake-401")(facts)
    status = facts.get("endpoint_status", 405)
    return seen or (f"the pair endpoint answers {status} without a bearer" if status in (401, 403) else "")


def _endpoint_strange(facts: Facts) -> str:
    status = facts.get("endpoint_status", 405)
    strange = status not in SERVED and status not in (401, 403, 429)
    return f"the pair endpoint answers a GET with {status}, not 405" if strange else ""


def _pending(facts: Facts) -> str:
    label = facts.get("label", "the peer")
    return {"us": f"{label} asks to pair", "peer": f"{label} has not decided on our request"}.get(
        facts.get("waits_for", ""), ""
    )


def _pending_fix(facts: Facts) -> str:
    step = f"spl aitl approve {facts.get('pair_id')}"
    return step if facts.get("waits_for") == "us" else _at_peer(step)(facts)


def _reverse(facts: Facts) -> str:
    reverse = facts.get("reverse")
    if not reverse or reverse.get("reached") or facts.get("reach") == WE_PUSH:
        return ""
    return f"{facts.get('label', 'the peer')} cannot reach {reverse['url']}: {reverse['message']} ({reverse['code']})"


# -- tokens and state


def _expiring(facts: Facts) -> str:
    for name, words in (("token_left_ms", "the peer's token for us"), ("own_token_left_ms", "our token for the peer")):
        if 0 < facts.get(name, 0) <= TOKEN_LEFT_MS:
            return f"{words} expires in {_span(facts[name])}"
    return ""


def _expired(facts: Facts) -> str:
    if facts.get("token_left_ms", 1) <= 0:
        return f"the peer's token for us expired {_span(facts['token_left_ms'])} ago, so each pull answers 401"
    if facts.get("own_token_left_ms", 1) <= 0:
        return f"our token for the peer expired {_span(facts['own_token_left_ms'])} ago, so it cannot pull from us"
    return ""


def _scope(facts: Facts) -> str:
    missing = facts.get("scopes_missing") or []
    if missing:
        return f"the peer's token for us lacks {', '.join(missing)}"
    return _failed("scope-forbidden")(facts)


def _refused(facts: Facts) -> str:
    return str(facts.get("token_refused") or "") or _failed("auth-invalid", "auth-required", "permission-denied")(facts)


def _paused(facts: Facts) -> str:
    return f"{facts.get('label', 'the peer')} paused the pair" if facts.get("paused_by") in ("peer", "both") else ""


def _revoked(facts: Facts) -> str:
    return f"{facts.get('label', 'the peer')} revoked the pair" if facts.get("ended_by_peer") else ""


# -- sync


def _stalled(facts: Facts) -> str:
    lag, overdue_s = facts.get("lag_records") or 0, facts.get("overdue_s") or 0
    if overdue_s > 0:
        return f"the last word of the peer is {_span(overdue_s * 1000)} overdue"
    return f"{lag} records wait on the peer and the cursor does not move; nothing is lost" if lag else ""


def _skipped(facts: Facts) -> str:
    lag = facts.get("lag_records") or 0
    if not (lag and facts.get("unmoved")):
        return ""
    return f"the peer counts {lag} records more than it hands out, also after a restart here"


def _skip_fix(facts: Facts) -> str:
    pair_id = facts.get("pair_id")
    return f"upgrade the peer, then: spl federation pause {pair_id} && spl federation resume {pair_id}"


def _buffered(facts: Facts) -> str:
    if "stream_first_s" not in facts or facts["stream_first_s"] is not None:
        return ""
    return "the stream opened and nothing of it arrived in time, not even the heartbeat that is sent at once"


def _flapping(facts: Facts) -> str:
    breaks = facts.get("breaks", 0)
    if facts.get("mode") != "continuous" or breaks < FLAPS:
        return ""
    return f"the stream broke {breaks} times within ten minutes"


def _queue(facts: Facts) -> str:
    waiting = facts.get("queue_records", 0)
    return f"{waiting} records wait between network and store" if waiting > QUEUE_RECORDS else ""


def _poll_long(facts: Facts) -> str:
    interval_ms = facts.get("poll_interval_ms", 0)
    if facts.get("mode") != "polling" or interval_ms <= POLL_LONG_MS:
        return ""
    return f"the pair polls every {_span(interval_ms)}, so news may be that old"


def _degraded(facts: Facts) -> str:
    return f"errors recur ({facts.get('reason') or 'unknown'})" if facts.get("phase") == "degraded" else ""


# -- next steps

_TLS_STEP: Final = "fix the TLS chain (self-signed is refused); a private CA goes into tls.ca_file here"
_BUFFER_STEP: Final = "switch off response buffering in the proxy (nginx: proxy_buffering off)"
_malformed_fix: Final = _at_peer("spl identity generate; look at what stands before the daemon")
_signature_fix: Final = _at_peer("spl identity generate (publishes anew), then retry here")
_mismatch_fix: Final = _at_peer("spl identity show; is this still the instance that you paired with?")
_age_fix: Final = _at_peer("spl identity generate (signs anew); compare both clocks")


def _rules_fix(facts: Facts) -> str:
    step = "spl config list-permission-rules | grep federation"
    return f"{step}, then widen the rule or remove it" if facts.get("locking_rule") else _at_peer(step)(facts)


def _again_fix(facts: Facts) -> str:
    return f"spl federation pair {facts.get('url', 'URL')}/"


def _resume_fix(facts: Facts) -> str:
    return _at_peer(f"spl federation resume {facts.get('pair_id')}")(facts)


def _degraded_fix(facts: Facts) -> str:
    # What degraded it is over when the peer takes our token again: the next success makes it active.
    command = "spl sync" if facts.get("token_taken") else "spl doctor"
    return f"{command} {facts.get('pair_id')}"


def _flapping_fix(facts: Facts) -> str:
    return f"raise the proxy's read timeout over 45 s, or: spl federation set-mode {facts.get('pair_id')} polling"


def _interval_fix(facts: Facts) -> str:
    return f"spl federation set-poll-interval {facts.get('pair_id')} 5m"


_STARTING: Final = ("config-invalid", "warming-up", "store-locked")
_REFRESH: Final = _with_pair("spl federation refresh")
_CAUSES: Final = (
    *IDENTITY, *REACH, *MANIFEST, "clock-skew", "handshake-401", "peer-4xx", "peer-5xx", "answer-malformed", *TOKEN,
    *STATE, "peer-rewound",
)  # fmt: skip

CATALOGUE: Final[tuple[Finding, ...]] = (
    Finding("daemon-down", FAIL, _STARTING, 0, LOCAL, _down, _next("daemon-down")),
    Finding("warming-up", WARN, (), 0, LOCAL, _warming, _next("warming-up")),
    Finding("store-locked", FAIL, (), 0, LOCAL, _locked, _next("store-locked")),
    Finding("store-readonly", FAIL, (), 0, LOCAL, _readonly, _next("store-readonly")),
    Finding("store-damaged", FAIL, (), 0, LOCAL, _damaged, _next("store-damaged")),
    Finding("disk-low", WARN, (), 0, LOCAL, _disk, _next("disk-low"), _disk_full),
    Finding("loop-blocked", WARN, (), 0, LOCAL, _loop, _next("loop-blocked")),
    Finding("task-dead", FAIL, (), 0, LOCAL, _dead, _next("task-dead")),
    Finding("config-invalid", FAIL, (), 0, LOCAL, _config, _next("config-invalid")),
    Finding("identity-missing", FAIL, (), 0, LOCAL, _no_identity, _next("identity-missing")),
    Finding("identity-cloned", FAIL, (), 0, PEER, _said("manifest", "identity-cloned"), _next("identity-cloned")),
    Finding("clock-skew", WARN, (), 0, PATH, _skew, _next("clock-skew"), _skew_fails),
    Finding("dns", FAIL, (), TRANSIENT_S, PATH, _failed("dns"), _next("dns")),
    Finding("connect", FAIL, (), TRANSIENT_S, PATH, _failed("connect"), _at_peer("spl serve, and open its port")),
    Finding("timeout", FAIL, (), TRANSIENT_S, PATH, _failed("timeout"), _next("timeout")),
    Finding("disconnected", FAIL, (), TRANSIENT_S, PATH, _failed("disconnected"), _next("disconnected")),
    Finding("address-refused", FAIL, (), 0, PATH, _failed("address-refused"), _next("address-refused")),
    Finding("http-plain", FAIL, (), 0, PATH, _failed("http-plain"), _next("http-plain")),
    Finding("tls-chain", FAIL, (), 0, PATH, _failed("tls-chain"), _at_peer(_TLS_STEP)),
    Finding("tls-expiry", WARN, (), 0, PEER, _tls_soon, _at_peer("renew the certificate, then SIGHUP to the daemon")),
    Finding("redirect", FAIL, (), 0, PATH, _failed("redirect"), _next("redirect")),
    Finding("manifest-missing", FAIL, REACH, 0, PEER, _said("manifest", "manifest-missing"), _missing_fix),
    Finding("manifest-differs-outside", FAIL, REACH, 0, PATH, _outside, _next("manifest-differs-outside")),
    Finding("manifest-malformed", FAIL, REACH, 0, PATH, _said("manifest", "manifest-malformed"), _malformed_fix),
    Finding("manifest-signature", FAIL, REACH, 0, PEER, _said("manifest", "manifest-signature"), _signature_fix),
    Finding("manifest-did-mismatch", FAIL, REACH, 0, PEER, _said("manifest", "manifest-did-mismatch"), _mismatch_fix),
    Finding("manifest-expired", FAIL, (*REACH, "clock-skew"), 0, PEER, _said("manifest", "manifest-expired"), _age_fix),
    Finding("manifest-stale", FAIL, REACH, 0, PATH, _said("manifest", "manifest-stale"), _next("manifest-stale")),
    Finding("chain-fork", FAIL, REACH, 0, PEER, _said("manifest", "chain-fork"), _next("chain-fork")),
    Finding("peer-version", FAIL, REACH, 0, PEER, _said("manifest", "peer-version"), _next("peer-version")),
    Finding("handshake-401", FAIL, REACH, 0, PEER, _endpoint, _rules_fix),
    Finding("peer-4xx", FAIL, REACH, 0, PEER, _endpoint_strange, _at_peer("let the proxy pass /v1/ as it is")),
    Finding("peer-5xx", FAIL, REACH, TRANSIENT_S, PEER, _failed("peer-5xx"), _at_peer("spl doctor; spl logs")),
    Finding("answer-malformed", FAIL, REACH, 0, PEER, _failed("answer-malformed"), _REFRESH),
    Finding("handshake-pending", WARN, ("handshake-401", *REACH), 0, PEER, _pending, _pending_fix),
    Finding("reverse-unreachable", WARN, REACH, 0, PATH, _reverse, _next("reverse-unreachable")),
    Finding("peer-revoked", FAIL, (), 0, PEER, _revoked, _again_fix),
    Finding("token-expiring", WARN, (), 0, PEER, _expiring, _REFRESH),
    Finding("token-expired", FAIL, ("peer-revoked",), 0, PEER, _expired, _REFRESH),
    Finding("token-scope", FAIL, ("peer-revoked", "token-expired"), 0, PEER, _scope, _REFRESH),
    Finding("auth-invalid", FAIL, ("peer-revoked", *TOKEN[:2], "clock-skew", *REACH), 0, PEER, _refused, _REFRESH),
    Finding("peer-paused", WARN, ("peer-revoked",), 0, PEER, _paused, _resume_fix),
    Finding("peer-rewound", FAIL, REACH, 0, PEER, _failed("peer-rewound"), _at_peer("spl doctor")),
    Finding("cursor-stalled", FAIL, _CAUSES, STALLED_S, PATH, _stalled, _with_pair("spl sync")),
    Finding("cursor-skip-suspect", WARN, _CAUSES, 0, PEER, _skipped, _skip_fix),
    Finding("stream-buffering", WARN, _CAUSES, 0, PATH, _buffered, _at_peer(_BUFFER_STEP)),
    Finding("stream-flapping", WARN, REACH, 0, PATH, _flapping, _flapping_fix),
    Finding("queue-high", WARN, (), QUEUE_HIGH_S, LOCAL, _queue, _next("queue-high")),
    Finding("rate-limited", WARN, (), 0, PEER, _throttled, _next("rate-limited")),
    Finding("poll-interval-long", INFO, (), 0, LOCAL, _poll_long, _interval_fix),
    Finding("pair-degraded", FAIL, (*_CAUSES, "cursor-stalled"), 0, PEER, _degraded, _degraded_fix),
)  # fmt: skip
"""Every finding that this version can show, in the order in which people read them."""
