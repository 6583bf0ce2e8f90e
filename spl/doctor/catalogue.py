"""The catalogue of findings: what can be wrong, the condition that shows it, and the one next step; pure.

A finding that another one explains is no problem of its own: `depends_on` lists the possible causes, and the reader is
shown the first of a chain.  One broken certificate would otherwise read as eight problems.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from math import inf
from operator import attrgetter
from typing import Final, cast

from ..core.errors import CODES
from ..core.limits import Limits
from ..core.value import Json, dataclass
from ..core.value import replace as changed
from ..net.address import LAN_STEP, foreign_step, is_address, kind_of, listen_step, parse_url, route_step
from . import conditions as seen
from .conditions import IDENTITY, MANIFEST, REACH, STATE, TOKEN, Condition
from .facts import Facts, Fault, replace

INFO: Final = "info"
WARN: Final = "warn"
FAIL: Final = "fail"
LOCAL: Final = "local"
PEER: Final = "peer"
PATH: Final = "path"


@dataclass(frozen=True, slots=True)
class FindingKind:
    """One row of the catalogue; `code` is also in `errors.CODES`, where `spl help CODE` finds its meaning."""

    code: str
    severity: str
    depends_on: tuple[str, ...]
    patience_s: Callable[[Limits], float] | None
    """The limit for which it must have lasted before it is shown."""
    side: str
    evidence: Condition
    fix: Callable[[Facts], str]
    grave: Callable[[Facts], bool] = lambda facts: False
    """Returns whether a warning has become a failure."""

    @property
    def title(self) -> str:
        """What the code means, in one sentence."""
        return CODES[self.code].meaning


@dataclass(frozen=True, slots=True)
class Finding:
    """A kind of finding that holds now: `evidence` is what was seen, `explained_by` the code of its cause or ""."""

    code: str
    severity: str
    side: str
    title: str
    evidence: str
    fix: str
    explained_by: str = ""
    about: tuple[tuple[str, str], ...] = ()
    """The pair or the sink that it concerns, where that does not stand around it: ("pair_id", id), ("sink", name)."""

    def of(self, **about: str) -> "Finding":
        """Return it as one of this pair or sink."""
        return changed(self, about=tuple(about.items()))

    def to_json(self) -> Json:
        """Return it for people and programs; `title` is what was seen, `meaning` what that is."""
        return {
            "code": self.code, "severity": self.severity, "side": self.side, "fix": self.fix, "title": self.evidence,
            "meaning": self.title, **dict(self.about),
        }  # fmt: skip

    @property
    def is_problem(self) -> bool:
        """Whether it needs an action."""
        return not self.explained_by and self.severity != INFO


def findings(facts: Facts) -> list[Finding]:
    """Return what holds, in the order of the catalogue, each with the finding that explains it."""
    held: dict[str, tuple[FindingKind, str]] = {}
    for row in _may_hold(facts):
        evidence = row.evidence(facts)
        if not evidence:
            continue
        if row.patience_s is None or facts.broken_s.get(row.code, inf) >= row.patience_s(facts.limits):
            held[row.code] = row, evidence
    return [
        Finding(code, _severity(row, facts), *_whose(row, facts), evidence, row.fix(facts), _root(code, held))
        for code, (row, evidence) in held.items()
    ]


def _may_hold(facts: Facts) -> tuple[FindingKind, ...]:
    """Return the rows of which a fact was gathered that their condition reads first; no other row can hold.

    A condition that shows nothing of facts that nobody gathered takes the same way, and shows nothing, as long as
    those that it reads on this way are the same.  Of a pair that is well some ten rows are left of seventy.
    """
    may = 0
    for name, value in facts.__dict__.items():
        read = _ROWS_OF_FACT.get(name)
        if read is not None and value != read[0]:
            may |= read[1]
    return _rows_of(may)


@lru_cache(maxsize=256)
def _rows_of(bits: int) -> tuple[FindingKind, ...]:
    return tuple(row for number, row in enumerate(CATALOGUE) if bits >> number & 1)


class _Reading:
    """Facts that nobody gathered, and which of them were read."""

    def __init__(self) -> None:
        self.names = set[str]()

    def __getattr__(self, name: str) -> object:
        self.names.add(name)
        return _NOTHING[name]


def _rows_of_facts() -> dict[str, tuple[object, int]]:
    """Return by a fact's name its value if nobody gathered it, and as bits which rows read it first.

    Thresholds alone make no condition hold.
    """
    found: dict[str, int] = {}
    for number, row in enumerate(CATALOGUE):
        reading = _Reading()
        assert not row.evidence(cast(Facts, reading)), row.code
        for name in reading.names - {"limits"}:
            found[name] = found.get(name, 0) | 1 << number
    return {name: (_NOTHING[name], bits) for name, bits in found.items()}


def _whose(row: FindingKind, facts: Facts) -> tuple[str, str]:
    """Return the side that a finding concerns, and what it means; a request waits for either side."""
    if row.code == "handshake-pending" and facts.waits_for == "us":
        return LOCAL, "The request waits for your decision; the peer continues to ask."
    return row.side, row.title


def usual_fix(code: str) -> str:
    """Return the fix of a finding of which no more is known than its code; "" if no finding has the code."""
    fault = Fault(code, "", CODES[code].fix)
    facts = Facts(pair_id="PAIR_ID", token_due=True, failure=fault, sink="sink NAME", sink_fault=fault)
    return next((row.fix(facts) for row in CATALOGUE if row.code == code), "")


def problems(found: Iterable[Finding]) -> list[Finding]:
    """Return the findings that need an action."""
    return [item for item in found if item.is_problem]


def sink_problems(limits: Limits, name: str, fault: Fault, since_s: float, **about: str) -> list[Finding]:
    """Return the findings on a sink, or on the engine of a pair, that moves nothing since then."""
    facts = Facts(limits=limits, sink=name, sink_fault=fault, broken_s={fault.code: since_s})
    return [item.of(**about) for item in problems(findings(facts))]


def died(service: str, error: str) -> Finding:
    """Return the finding on a service of the daemon that crashed."""
    code = CODES["task-dead"]
    return Finding("task-dead", FAIL, LOCAL, code.meaning, f"{service} died: {error}", code.fix)


def _severity(row: FindingKind, facts: Facts) -> str:
    return FAIL if row.grave(facts) else row.severity


def _root(code: str, held: Mapping[str, tuple[FindingKind, str]]) -> str:
    """Return the code at the end of the chain of causes, or "" if nothing that holds explains this one."""
    cause = next((item for item in held[code][0].depends_on if item in held), "")
    return _root(cause, held) or cause if cause else ""


def _next(code: str) -> Callable[[Facts], str]:
    return lambda facts: CODES[code].fix


def _at_peer(text: str) -> Callable[[Facts], str]:
    """Return steps for the peer's operator, the first and each command addressed to the peer by name."""
    return lambda facts: re.sub("^|(?<=; )(?=spl )", f"on {facts.label or 'the peer'}: ", text)


def _with_pair(command: str, rest: str = "") -> Callable[[Facts], str]:
    """Return one of our own commands, given the pair."""
    return lambda facts: f"{command} {facts.pair_id or 'PAIR_ID'}{rest}"


def _sink_fix(facts: Facts) -> str:
    """Return the step that the fault of a sink comes with, given the sink."""
    fault = facts.sink_fault
    step = fault.hint if fault is not None else ""
    return re.sub(r"\bNAME\b", facts.sink.removeprefix("sink ") or "NAME", step or CODES["sink-unreachable"].fix)


def _withheld_fix(facts: Facts) -> str:
    """Return where a larger body must be let through, and how to send what waits for it."""
    what = "the time for an answer" if facts.withheld_here and not facts.withheld else "the body limit"
    setting = "client_max_body_size 8m" if what == "the body limit" else "proxy_read_timeout 300s"
    step = f"raise {what} of the proxy at {facts.url or 'the peer'} (nginx: {setting})"
    return f"{step}, then: {_REPAIR(facts)}"


def _home_fix(code: str) -> Callable[[Facts], str]:
    """Return the step that the fault of a home comes with, or that of the code."""

    def fix(facts: Facts) -> str:
        fault = facts.home_fault
        return fault.hint if fault is not None and fault.code == code and fault.hint else CODES[code].fix

    return fix


_failing_s, _queue_full_s = attrgetter("failing_s"), attrgetter("queue_full_s")

# -- next steps

_REFRESH: Final = _with_pair("spl federation refresh")
_REPAIR: Final = _with_pair("spl federation verify", " --repair")

_TLS_STEP: Final = "fix the TLS chain (self-signed is refused); a private CA goes into tls.ca_file here"
_OWN_TLS_STEP: Final = (
    "put the whole chain into tls.certificate, then SIGHUP; a private CA goes into tls.ca_file here and at every peer"
)
_LISTEN_STEP: Final = "set public_url, or in a private network stop the daemon, then: spl serve --lan"
_RENEW_STEP: Final = "renew the certificate, then SIGHUP to the daemon"
_READS_STEP: Final = "let the proxy pass GET /v1/sync/ with its query and its whole answer; look into its log"
_BUFFER_STEP: Final = "switch off response buffering in the proxy (nginx: proxy_buffering off)"
_PUBLISH: Final = "spl identity generate; it keeps the key if there is one, and publishes the manifest"
_malformed_fix: Final = _at_peer(f"{_PUBLISH}; look at what stands before the daemon")
_signature_fix: Final = _at_peer(f"{_PUBLISH}; then retry here")
_age_fix: Final = _at_peer(f"{_PUBLISH}; compare both clocks")


def _moved(step: Callable[[Facts], str]) -> Callable[[Facts], str]:
    """Return a step, and what to do if the peer has another address now."""
    moved = "if the peer has moved, give the URL in its status"
    return lambda facts: f"{step(facts)}; {moved}: {_REFRESH(facts)} --url NEW-URL"


_CLONED: Final = _next("identity-cloned")
_stranger_fix: Final = _moved(_at_peer("spl status; does it run at that address, and is it still the same instance?"))


def _foreign_fix(facts: Facts) -> str:
    step = foreign_step(facts.failure.status if facts.failure is not None else 0)
    return _moved(_at_peer(step))(facts) if facts.pair_id else step


def _connect_fix(facts: Facts) -> str:
    return _moved(_at_peer(listen_step(parse_url(facts.url or "https://bob.example/"))))(facts)


def _refusal_fix(facts: Facts) -> str:
    """Return the step against a refusal: with a code of a daemon, as `404 not-found`, it comes from the peer itself."""
    said = facts.failure.message if facts.failure is not None and facts.failure.code == "peer-4xx" else ""
    if re.match(r"(the peer answered )?[0-9]{3} ([a-z][a-z0-9-]*( |$)|[A-Z_]+:)", said):
        return _at_peer("spl doctor; spl logs; if the versions differ, upgrade the older side")(facts)
    return _at_peer("let the proxy pass /v1/ as it is")(facts)


def _of_reads(step: Callable[[Facts], str]) -> Callable[[Facts], str]:
    """Return a step, or what to do where questions are answered and reads alone fail."""
    return lambda facts: _at_peer(_READS_STEP)(facts) if facts.one_way and facts.one_way.reads else step(facts)


def _timeout_fix(facts: Facts) -> str:
    if facts.failure is not None and facts.failure.reached:
        return _at_peer("its daemon takes connections and hangs, or was stopped: spl status")(facts)
    return _moved(_next("timeout"))(facts)


def _route_fix(facts: Facts) -> str:
    """Return how to see the way to the address that was dialled, if that is known: `ip` takes no names."""
    said = facts.failure.message if facts.failure is not None else ""
    named = [*re.findall(r"(\S+) port \d+: ", said), parse_url(facts.url).host if facts.url else ""]
    step = route_step(next(filter(is_address, named), ""), said)
    return step if step.startswith(CODES["no-route"].fix) else _moved(lambda _: step)(facts)


def _private_fix(facts: Facts) -> str:
    """Return how to allow the address that the peer publishes: an operator types it."""
    url = facts.newer_url or facts.url
    host = parse_url(url).host if facts.pair_id and url else ""
    if host and not is_address(host):
        return f"correct what {host} resolves to; if a private address is right: {_REFRESH(facts)} --url {url}"
    typed = f"{_REFRESH(facts)} --url {url}"
    if kind_of(host) == "loopback" and facts.own_url:
        listen = _at_peer(_LISTEN_STEP)(facts)
        if parse_url(facts.own_url).port == parse_url(url).port:
            return listen  # the URL is that of this daemon
        if not _is_here(facts.own_url):
            return f"{listen}; if it runs on this machine: {typed}"
    return typed if kind_of(host) else CODES["address-refused"].fix  # any other address is never dialled


def _plain_fix(facts: Facts) -> str:
    """Return the step where plain http is refused: in a private network most often --lan was left out of a start."""
    near = bool(facts.url) and kind_of(parse_url(facts.url).host)
    return f"{LAN_STEP}; or use https" if near else CODES["http-plain"].fix


def _own_way_fix(facts: Facts) -> str:
    """Return the step against what keeps our requests from the peer."""
    code = facts.one_way.code if facts.one_way is not None else ""
    seen_last = facts.failure if facts.failure is not None and facts.failure.code == code else Fault(code)
    row = next((row for row in CATALOGUE if row.code == code), None)
    return row.fix(replace(facts, failure=seen_last)) if row is not None else f"spl doctor {facts.pair_id}"


def _tls_fix(facts: Facts) -> str:
    return _OWN_TLS_STEP if facts.published_tls else _at_peer(_TLS_STEP)(facts)


def _pending_fix(facts: Facts) -> str:
    step = f"spl aitl approve {facts.pair_id}"
    return step if facts.waits_for == "us" else _at_peer(step)(facts)


def _skip_fix(facts: Facts) -> str:
    return f"upgrade the peer, then: spl federation pause {facts.pair_id} && spl federation resume {facts.pair_id}"


def _token_fix(facts: Facts) -> str:
    """Return the step for the side that presents the token: it has to ask for a new one."""
    step = _REFRESH(facts)
    return step if seen.is_theirs(facts) else _at_peer(step)(facts)


def _refused_fix(facts: Facts) -> str:
    return _at_peer(f"spl token rotate {facts.pair_id}")(facts) if facts.token_revoked else _REFRESH(facts)


def _rules_fix(facts: Facts) -> str:
    step = "spl config list-permission-rules | grep federation"
    rule = facts.locking_rule
    if not rule:
        return _at_peer(step)(facts)
    return f"{step}; then widen {rule}; to remove it instead: spl config remove-permission-rule {rule}"


def _again_fix(facts: Facts) -> str:
    again = f"spl federation pair {f'{facts.url}/' if facts.url else 'URL'}"
    return f"{again}; or accept the end: spl federation revoke {facts.pair_id}" if facts.pair_id else again


def _fork_fix(facts: Facts) -> str:
    return CODES["chain-fork"].fix.replace("spl federation pair URL", _REFRESH(facts))


def _degraded_fix(facts: Facts) -> str:
    # If the peer accepts our token again, the cause is gone and the next success makes the pair active.
    command = "spl sync" if facts.token_taken else "spl doctor"
    return f"{command} {facts.pair_id}"


def _gap_fix(code: str) -> Callable[[Facts], str]:
    def fix(facts: Facts) -> str:
        found = next((item for item in facts.gaps if item.code == code), None)
        if found is None:
            return CODES[code].fix
        return _at_peer(found.fix)(facts) if found.at_peer else found.fix

    return fix


def _is_here(url: str) -> bool:
    return bool(url) and (parse_url(url).host == "localhost" or kind_of(parse_url(url).host) == "loopback")


def _reverse_fix(facts: Facts) -> str:
    way = facts.one_way
    if way is not None and way.code == "foreign-answer":
        return "let the proxy before this daemon pass /v1/ and /.well-known/ to it"
    if way is not None and way.reads:
        return _READS_STEP.replace("the proxy", "the proxy before this daemon", 1)
    if _is_here(facts.own_url) and facts.url and not _is_here(facts.url):
        return _LISTEN_STEP  # at the peer, our URL is its own daemon
    if way is not None and way.code == "address-refused" and facts.own_url:
        return _at_peer(f"{_REFRESH(facts)} --url {facts.own_url}")(facts)
    moved = f"; if this daemon moved: {_at_peer(f'{_REFRESH(facts)} --url {facts.own_url}')(facts)}"
    return CODES["reverse-unreachable"].fix + (moved if facts.own_url else "")


_STARTING: Final = ("config-invalid", "warming-up", "store-locked", "store-missing", "identity-missing")
_CAUSES: Final = (
    *IDENTITY, *REACH, "foreign-answer", "one-way", *MANIFEST, "clock-skew", "handshake-401", "peer-4xx", "peer-5xx",
    "answer-malformed", *TOKEN, *STATE, "peer-rewound",
)  # fmt: skip
_STREAM: Final = ("stream-buffering", "stream-flapping")
_LASTING: Final = (
    *IDENTITY, *(code for code in REACH if code not in ("timeout", "disconnected")), *TOKEN[:2], *STATE[:2],
)  # fmt: skip
"""What explains a stream that does not last; that it breaks or is silent is how it shows."""

CATALOGUE: Final[tuple[FindingKind, ...]] = (
    FindingKind("daemon-down", FAIL, _STARTING, None, LOCAL, seen.down, _next("daemon-down")),
    FindingKind("warming-up", WARN, (), None, LOCAL, seen.warming, _next("warming-up")),
    FindingKind("store-locked", FAIL, (), None, LOCAL, seen.locked, _next("store-locked")),
    FindingKind("store-readonly", FAIL, (), None, LOCAL, seen.readonly, _next("store-readonly")),
    FindingKind("store-full", FAIL, (), None, LOCAL, seen.full, _next("store-full")),
    FindingKind("store-damaged", FAIL, (), None, LOCAL, seen.damaged, seen.after_damage),
    FindingKind("store-missing", FAIL, (), None, LOCAL, seen.log_lacking, _home_fix("store-missing")),
    FindingKind("disk-low", WARN, (), None, LOCAL, seen.disk, _next("disk-low"), seen.disk_full),
    FindingKind("program-replaced", WARN, (), None, LOCAL, seen.replaced, _next("program-replaced")),
    FindingKind("loop-blocked", WARN, (), None, LOCAL, seen.loop, _next("loop-blocked")),
    FindingKind("task-dead", FAIL, (), None, LOCAL, seen.dead, _next("task-dead")),
    FindingKind("config-invalid", FAIL, (), None, LOCAL, seen.config, _next("config-invalid")),
    FindingKind("identity-missing", FAIL, (), None, LOCAL, seen.no_identity, _home_fix("identity-missing")),
    FindingKind("identity-cloned", FAIL, (), None, PEER, seen.cloned,
                lambda facts: (_CLONED if facts.manifest is None else _moved(_CLONED))(facts)),
    FindingKind("home-set-back", WARN, (), None, PEER, seen.set_back, _REPAIR),
    FindingKind("identity-backup", WARN, (), None, LOCAL, seen.unsaved, _next("identity-backup")),
    FindingKind("auth-off", WARN, (), None, LOCAL, seen.auth_off, _next("auth-off")),
    FindingKind("clock-skew", WARN, (), None, PATH, seen.skew, _next("clock-skew"), seen.skew_fails),
    FindingKind("dns", FAIL, (), _failing_s, PATH, seen.failed("dns"), _next("dns")),
    FindingKind("connect", FAIL, (), _failing_s, PATH, seen.failed("connect"), _connect_fix),
    FindingKind("no-route", FAIL, (), _failing_s, LOCAL, seen.failed("no-route"), _route_fix),
    FindingKind("timeout", FAIL, _STREAM, _failing_s, PATH, seen.failed("timeout"), _of_reads(_timeout_fix)),
    FindingKind("disconnected", FAIL, _STREAM, _failing_s, PATH, seen.failed("disconnected"),
                _of_reads(_next("disconnected"))),
    FindingKind("address-refused", FAIL, (), None, PATH, seen.failed("address-refused"), _private_fix),
    FindingKind("http-plain", FAIL, (), None, PATH, seen.failed("http-plain"), _plain_fix),
    FindingKind("tls-chain", FAIL, (), None, PATH, seen.tls_chain, _tls_fix),
    FindingKind("tls-expiry", WARN, (), None, PEER, seen.tls_soon, _at_peer(_RENEW_STEP)),
    FindingKind("redirect", FAIL, (), None, PATH, seen.failed("redirect"), _of_reads(_foreign_fix)),
    FindingKind("foreign-answer", FAIL, REACH, _failing_s, PATH, seen.failed("foreign-answer"), _foreign_fix),
    FindingKind("manifest-missing", FAIL, REACH, None, PEER, seen.manifest_fault("manifest-missing"),
                _at_peer(_PUBLISH)),
    FindingKind("manifest-differs-outside", FAIL, REACH, None, PATH, seen.outside, _next("manifest-differs-outside")),
    FindingKind("manifest-malformed", FAIL, REACH, None, PATH, seen.manifest_fault("manifest-malformed"),
                _malformed_fix),
    FindingKind("manifest-signature", FAIL, REACH, None, PEER, seen.manifest_fault("manifest-signature"),
                _signature_fix),
    FindingKind("manifest-did-mismatch", FAIL, REACH, None, PEER, seen.manifest_fault("manifest-did-mismatch"),
                _stranger_fix),
    FindingKind("manifest-expired", FAIL, (*REACH, "clock-skew"), None, PEER, seen.manifest_fault("manifest-expired"),
                _age_fix),
    FindingKind("manifest-stale", FAIL, REACH, None, PATH, seen.manifest_fault("manifest-stale"),
                _next("manifest-stale")),
    FindingKind("chain-fork", FAIL, REACH, None, PEER, seen.manifest_fault("chain-fork"), _fork_fix),
    FindingKind("peer-version", FAIL, REACH, None, PEER, seen.manifest_fault("peer-version"), _next("peer-version")),
    FindingKind("handshake-401", FAIL, REACH, None, PEER, seen.endpoint, _rules_fix),
    FindingKind("peer-4xx", FAIL, REACH, None, PEER, seen.endpoint_strange, _refusal_fix),
    FindingKind("peer-5xx", FAIL, REACH, _failing_s, PEER, seen.failed("peer-5xx"),
                _moved(_at_peer("spl doctor; spl logs"))),
    FindingKind("answer-malformed", FAIL, REACH, None, PEER, seen.failed("answer-malformed"), _REFRESH),
    FindingKind("handshake-pending", WARN, ("handshake-401", *REACH), None, PEER, seen.pending, _pending_fix),
    FindingKind("reverse-unreachable", WARN, (*REACH, "clock-skew"), None, PATH, seen.reverse, _reverse_fix),
    FindingKind("one-way", WARN, (*REACH, "foreign-answer"), None, PATH, seen.one_way, _own_way_fix),
    FindingKind("peer-revoked", FAIL, (), None, PEER, seen.revoked, _again_fix),
    FindingKind("token-expiring", WARN, (), None, PEER, seen.expiring, _token_fix),
    FindingKind("token-expired", FAIL, ("peer-revoked",), None, PEER, seen.expired, _token_fix),
    FindingKind("token-withdrawn", WARN, ("peer-revoked",), None, LOCAL, seen.withdrawn,
                _with_pair("spl token rotate")),
    FindingKind("token-scope", FAIL, ("peer-revoked", "token-expired"), None, PEER, seen.scope, _REFRESH),
    FindingKind("auth-invalid", FAIL, ("peer-revoked", *TOKEN[:2], "clock-skew", *REACH, "identity-cloned",
                "manifest-did-mismatch"), None, PEER, seen.refused, _refused_fix),
    FindingKind("peer-paused", WARN, ("peer-revoked",), None, PEER, seen.paused,
                lambda facts: _at_peer(f"spl federation resume {facts.pair_id}")(facts)),
    FindingKind("consent-missing", WARN, (*REACH, "peer-revoked"), None, PEER, seen.gap("consent-missing"),
                _gap_fix("consent-missing")),
    FindingKind("namespace-unmapped", WARN, ("peer-revoked",), None, LOCAL, seen.gap("namespace-unmapped"),
                _gap_fix("namespace-unmapped")),
    FindingKind("peer-rewound", FAIL, REACH, None, PEER, seen.failed("peer-rewound"), _at_peer("spl doctor")),
    FindingKind("intake-paused", WARN, (), None, LOCAL, seen.intake, _with_pair("spl federation resume")),
    FindingKind("cursor-stalled", FAIL, (*_CAUSES, "intake-paused", "cursor-skip-suspect"), None, PATH, seen.stalled,
                _with_pair("spl sync")),
    FindingKind("records-withheld", WARN, (), None, PATH, seen.withheld, _withheld_fix),
    FindingKind("peer-behind", WARN, (*_CAUSES, "reverse-unreachable", "token-withdrawn", "records-withheld"), None,
                PEER, seen.behind, _at_peer("spl doctor")),
    FindingKind("cursor-skip-suspect", WARN, (*_CAUSES, "intake-paused"), None, PEER, seen.skipped, _skip_fix),
    FindingKind("stream-buffering", WARN, _LASTING, None, PATH, seen.buffered, _at_peer(_BUFFER_STEP)),
    FindingKind("stream-flapping", WARN, _LASTING, None, PATH, seen.flapping,
                lambda facts: CODES["stream-flapping"].fix.replace("PAIR_ID", facts.pair_id)),
    FindingKind("queue-high", WARN, ("adapter-slow",), _queue_full_s, LOCAL, seen.queue, _next("queue-high")),
    FindingKind("adapter-slow", WARN, (), None, LOCAL, seen.slow, _next("adapter-slow")),
    FindingKind("sink-unreachable", FAIL, (), _failing_s, PATH, seen.sink("sink-unreachable"), _sink_fix),
    FindingKind("sink-full", FAIL, (), None, PATH, seen.sink("sink-full"), _sink_fix),
    FindingKind("sink-foreign", FAIL, (), None, PATH, seen.sink("sink-foreign"), _sink_fix),
    FindingKind("sink-auth", FAIL, (), None, PATH, seen.sink("sink-auth"), _sink_fix),
    FindingKind("sink-refused", FAIL, (), None, PATH, seen.sink("sink-refused"), _sink_fix),
    FindingKind("engine-gap", WARN, (), _failing_s, PATH, seen.sink("engine-gap"), _sink_fix),
    FindingKind("rate-limited", WARN, (), None, PEER, seen.throttled, _next("rate-limited")),
    FindingKind("poll-interval-long", INFO, (), None, LOCAL, seen.poll_long,
                _with_pair("spl federation set-poll-interval", " 5m")),
    FindingKind("pair-degraded", FAIL, (*_CAUSES, "cursor-stalled"), None, PEER, seen.degraded, _degraded_fix),
)  # fmt: skip
"""Every finding that this version can show, in the order in which people read them."""

_NOTHING: Final[Mapping[str, object]] = Facts().__dict__
_ROWS_OF_FACT: Final = _rows_of_facts()
