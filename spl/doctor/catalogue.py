"""The catalogue of findings: what can be wrong, how it shows in facts (`conditions.py`), and the one next step; pure.

A finding is explained by another one that it depends on, and then it is no problem of its own.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Final

from ..core.errors import CODES
from . import conditions as seen
from .conditions import IDENTITY, MANIFEST, REACH, STATE, TOKEN, Facts

INFO: Final = "info"
WARN: Final = "warn"
FAIL: Final = "fail"
LOCAL: Final = "local"
PEER: Final = "peer"
PATH: Final = "path"


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the catalogue; `code` is also in `errors.CODES`, where `spl help CODE` finds its meaning."""

    code: str
    severity: str
    depends_on: tuple[str, ...]
    patience: str
    """The limit that tells for how many seconds it is broken before it is shown; "" for none."""
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
    broken_s, limits = facts.get("broken_s", {}), seen.limits_of(facts)
    held: dict[str, tuple[Finding, str]] = {}
    for row in CATALOGUE:
        if row.patience and broken_s.get(row.code, inf) < getattr(limits, row.patience):
            continue
        evidence = row.evidence(facts)
        if evidence:
            held[row.code] = row, evidence
    return [
        Found(code, _severity(row, facts), row.side, row.title, evidence, row.fix(facts), _root(code, held))
        for code, (row, evidence) in held.items()
    ]


def problems(found: Iterable[Found]) -> list[Found]:
    """Return those that somebody must act on."""
    return [item for item in found if item.is_problem]


def _severity(row: Finding, facts: Facts) -> str:
    return FAIL if row.grave(facts) else row.severity


def _root(code: str, held: Mapping[str, tuple[Finding, str]]) -> str:
    """Return the code at the end of the chain of explanations, or "" when nothing that holds explains this one."""
    cause = next((item for item in held[code][0].depends_on if item in held), "")
    return _root(cause, held) or cause if cause else ""


def _next(code: str) -> Callable[[Facts], str]:
    return lambda facts: CODES[code].fix


def _at_peer(text: str) -> Callable[[Facts], str]:
    """Return a step for the peer's operator, addressed to the peer by name."""
    return lambda facts: f"on {facts.get('label') or 'the peer'}: {text}"


def _with_pair(command: str) -> Callable[[Facts], str]:
    """Return one of our own commands, given the pair."""
    return lambda facts: f"{command} {facts.get('pair_id', 'PAIR_ID')}"


# -- next steps

_TLS_STEP: Final = "fix the TLS chain (self-signed is refused); a private CA goes into tls.ca_file here"
_RENEW_STEP: Final = "renew the certificate, then SIGHUP to the daemon"
_BUFFER_STEP: Final = "switch off response buffering in the proxy (nginx: proxy_buffering off)"
_malformed_fix: Final = _at_peer("spl identity generate; look at what stands before the daemon")
_signature_fix: Final = _at_peer("spl identity generate (publishes anew), then retry here")
_mismatch_fix: Final = _at_peer("spl identity show; is this still the instance that you paired with?")
_age_fix: Final = _at_peer("spl identity generate (signs anew); compare both clocks")


def _missing_fix(facts: Facts) -> str:
    if facts.get("manifest_ours"):
        return _at_peer("spl identity generate")(facts)
    return _at_peer("let the proxy pass /.well-known/; curl http://localhost:9100/.well-known/syncropel there")(facts)


def _pending_fix(facts: Facts) -> str:
    step = f"spl aitl approve {facts.get('pair_id')}"
    return step if facts.get("waits_for") == "us" else _at_peer(step)(facts)


def _skip_fix(facts: Facts) -> str:
    pair_id = facts.get("pair_id")
    return f"upgrade the peer, then: spl federation pause {pair_id} && spl federation resume {pair_id}"


def _token_fix(facts: Facts) -> str:
    """Return who has to ask for a new token: whoever presents it."""
    step = _REFRESH(facts)
    return step if seen.is_theirs(facts) else _at_peer(step)(facts)


def _rules_fix(facts: Facts) -> str:
    step = "spl config list-permission-rules | grep federation"
    return f"{step}, then widen the rule or remove it" if facts.get("locking_rule") else _at_peer(step)(facts)


def _again_fix(facts: Facts) -> str:
    return f"spl federation pair {facts.get('url', 'URL')}/"


def _fork_fix(facts: Facts) -> str:
    pair_id = facts.get("pair_id", "PAIR_ID")
    return f"compare key words by voice, then: spl federation refresh {pair_id} --expect-key KEY"


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


def _gap_fix(code: str) -> Callable[[Facts], str]:
    def fix(facts: Facts) -> str:
        found = next(item for item in facts["gaps"] if item["code"] == code)
        return _at_peer(found["fix"])(facts) if found["at_peer"] else str(found["fix"])

    return fix


_STARTING: Final = ("config-invalid", "warming-up", "store-locked")
_REFRESH: Final = _with_pair("spl federation refresh")
_CAUSES: Final = (
    *IDENTITY, *REACH, *MANIFEST, "clock-skew", "handshake-401", "peer-4xx", "peer-5xx", "answer-malformed", *TOKEN,
    *STATE, "peer-rewound",
)  # fmt: skip
_STREAM: Final = ("stream-buffering", "stream-flapping")
_LASTING: Final = (
    *IDENTITY, *(code for code in REACH if code not in ("timeout", "disconnected")), *TOKEN[:2], *STATE[:2],
)  # fmt: skip
"""What explains a stream that does not last; that it breaks or is silent is how it shows."""

CATALOGUE: Final[tuple[Finding, ...]] = (
    Finding("daemon-down", FAIL, _STARTING, "", LOCAL, seen.down, _next("daemon-down")),
    Finding("warming-up", WARN, (), "", LOCAL, seen.warming, _next("warming-up")),
    Finding("store-locked", FAIL, (), "", LOCAL, seen.locked, _next("store-locked")),
    Finding("store-readonly", FAIL, (), "", LOCAL, seen.readonly, _next("store-readonly")),
    Finding("store-damaged", FAIL, (), "", LOCAL, seen.damaged, lambda facts: "spl store check --repair"),
    Finding("disk-low", WARN, (), "", LOCAL, seen.disk, _next("disk-low"), seen.disk_full),
    Finding("loop-blocked", WARN, (), "", LOCAL, seen.loop, _next("loop-blocked")),
    Finding("task-dead", FAIL, (), "", LOCAL, seen.dead, _next("task-dead")),
    Finding("config-invalid", FAIL, (), "", LOCAL, seen.config, _next("config-invalid")),
    Finding("identity-missing", FAIL, (), "", LOCAL, seen.no_identity, _next("identity-missing")),
    Finding("identity-cloned", FAIL, (), "", PEER, seen.said("manifest", "identity-cloned"), _next("identity-cloned")),
    Finding("identity-backup", WARN, (), "", LOCAL, seen.unsaved, _next("identity-backup")),
    Finding("clock-skew", WARN, (), "", PATH, seen.skew, _next("clock-skew"), seen.skew_fails),
    Finding("dns", FAIL, (), "failing_s", PATH, seen.failed("dns"), _next("dns")),
    Finding("connect", FAIL, (), "failing_s", PATH, seen.failed("connect"), _at_peer("spl serve, and open its port")),
    Finding("timeout", FAIL, _STREAM, "failing_s", PATH, seen.failed("timeout"), _next("timeout")),
    Finding("disconnected", FAIL, _STREAM, "failing_s", PATH, seen.failed("disconnected"), _next("disconnected")),
    Finding("address-refused", FAIL, (), "", PATH, seen.failed("address-refused"), _next("address-refused")),
    Finding("http-plain", FAIL, (), "", PATH, seen.failed("http-plain"), _next("http-plain")),
    Finding("tls-chain", FAIL, (), "", PATH, seen.failed("tls-chain"), _at_peer(_TLS_STEP)),
    Finding("tls-expiry", WARN, (), "", PEER, seen.tls_soon, _at_peer(_RENEW_STEP)),
    Finding("redirect", FAIL, (), "", PATH, seen.failed("redirect"), _next("redirect")),
    Finding("manifest-missing", FAIL, REACH, "", PEER, seen.said("manifest", "manifest-missing"), _missing_fix),
    Finding("manifest-differs-outside", FAIL, REACH, "", PATH, seen.outside, _next("manifest-differs-outside")),
    Finding("manifest-malformed", FAIL, REACH, "", PATH, seen.said("manifest", "manifest-malformed"), _malformed_fix),
    Finding("manifest-signature", FAIL, REACH, "", PEER, seen.said("manifest", "manifest-signature"), _signature_fix),
    Finding("manifest-did-mismatch", FAIL, REACH, "", PEER, seen.said("manifest", "manifest-did-mismatch"),
            _mismatch_fix),
    Finding("manifest-expired", FAIL, (*REACH, "clock-skew"), "", PEER, seen.said("manifest", "manifest-expired"),
            _age_fix),
    Finding("manifest-stale", FAIL, REACH, "", PATH, seen.said("manifest", "manifest-stale"), _next("manifest-stale")),
    Finding("chain-fork", FAIL, REACH, "", PEER, seen.said("manifest", "chain-fork"), _fork_fix),
    Finding("peer-version", FAIL, REACH, "", PEER, seen.said("manifest", "peer-version"), _next("peer-version")),
    Finding("handshake-401", FAIL, REACH, "", PEER, seen.endpoint, _rules_fix),
    Finding("peer-4xx", FAIL, REACH, "", PEER, seen.endpoint_strange, _at_peer("let the proxy pass /v1/ as it is")),
    Finding("peer-5xx", FAIL, REACH, "failing_s", PEER, seen.failed("peer-5xx"), _at_peer("spl doctor; spl logs")),
    Finding("answer-malformed", FAIL, REACH, "", PEER, seen.failed("answer-malformed"), _REFRESH),
    Finding("handshake-pending", WARN, ("handshake-401", *REACH), "", PEER, seen.pending, _pending_fix),
    Finding("reverse-unreachable", WARN, REACH, "", PATH, seen.reverse, _next("reverse-unreachable")),
    Finding("peer-revoked", FAIL, (), "", PEER, seen.revoked, _again_fix),
    Finding("token-expiring", WARN, (), "", PEER, seen.expiring, _token_fix),
    Finding("token-expired", FAIL, ("peer-revoked",), "", PEER, seen.expired, _token_fix),
    Finding("token-scope", FAIL, ("peer-revoked", "token-expired"), "", PEER, seen.scope, _REFRESH),
    Finding("auth-invalid", FAIL, ("peer-revoked", *TOKEN[:2], "clock-skew", *REACH), "", PEER, seen.refused, _REFRESH),
    Finding("peer-paused", WARN, ("peer-revoked",), "", PEER, seen.paused, _resume_fix),
    Finding("consent-missing", WARN, (*REACH, "peer-revoked"), "", PEER, seen.gap("consent-missing"),
            _gap_fix("consent-missing")),
    Finding("namespace-unmapped", WARN, ("peer-revoked",), "", LOCAL, seen.gap("namespace-unmapped"),
            _gap_fix("namespace-unmapped")),
    Finding("peer-rewound", FAIL, REACH, "", PEER, seen.failed("peer-rewound"), _at_peer("spl doctor")),
    Finding("cursor-stalled", FAIL, (*_CAUSES, "cursor-skip-suspect"), "", PATH, seen.stalled, _with_pair("spl sync")),
    Finding("cursor-skip-suspect", WARN, _CAUSES, "", PEER, seen.skipped, _skip_fix),
    Finding("stream-buffering", WARN, _LASTING, "", PATH, seen.buffered, _at_peer(_BUFFER_STEP)),
    Finding("stream-flapping", WARN, _LASTING, "", PATH, seen.flapping, _flapping_fix),
    Finding("queue-high", WARN, ("adapter-slow",), "queue_full_s", LOCAL, seen.queue, _next("queue-high")),
    Finding("adapter-slow", WARN, (), "", LOCAL, seen.slow, _next("adapter-slow")),
    Finding("rate-limited", WARN, (), "", PEER, seen.throttled, _next("rate-limited")),
    Finding("poll-interval-long", INFO, (), "", LOCAL, seen.poll_long, _interval_fix),
    Finding("pair-degraded", FAIL, (*_CAUSES, "cursor-stalled"), "", PEER, seen.degraded, _degraded_fix),
)  # fmt: skip
"""Every finding that this version can show, in the order in which people read them."""
