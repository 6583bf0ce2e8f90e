"""The checks of `spl doctor`: which findings each answers for, and what it says when all is well; pure.

A check is skipped, and names the check to look at instead, if all its findings are explained by another finding or if
its facts could not be gathered because another check failed.
"""

from collections.abc import Callable, Sequence
from typing import Final

from ..core.errors import count, plural
from ..core.pair.modes import ON_DEMAND, POLLING
from ..core.presence import PEER_PUSHES, WE_PUSH
from ..core.value import dataclass
from ..core.when import age
from .catalogue import FAIL, Finding
from .conditions import MANIFEST, SKEW_WARN_MS, waiting
from .facts import Facts

OK: Final = "ok"
SKIP: Final = "skip"
DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report; `says` returns "" if its facts were not gathered, mostly because of `needs`."""

    name: str
    codes: tuple[str, ...]
    says: Callable[[Facts], str]
    needs: tuple[str, ...] = ()


def lines(checks: Sequence[Check], facts: Facts, found: Sequence[Finding]) -> list[dict[str, str]]:
    """Return {name, mark, text, code} for each check in order; one that does not apply has no line."""
    held = {item.code: item for item in found}
    check_of = {code: check.name for check in checks for code in check.codes}
    failed = {check_of[item.code] for item in found if item.severity == FAIL and item.code in check_of}
    rows: list[dict[str, str]] = []
    for check in checks:
        mine = [held[code] for code in check.codes if code in held]
        own = [item for item in mine if not item.explained_by]
        worst = next((item for item in own if item.severity == FAIL), own[0] if own else None)
        cause = next((name for name in check.needs if name in failed), "")
        text = check.says(facts)
        if worst is not None:
            rows.append(_row(check, worst.severity, worst.evidence, worst.code))
        elif mine:
            code = mine[0].explained_by
            rows.append(_row(check, SKIP, f"explained by: {check_of.get(code, code)}", mine[0].code))
        elif cause:
            rows.append(_row(check, SKIP, f"explained by: {cause}", ""))
        elif text:
            rows.append(_row(check, OK, text, ""))
    return rows


def _row(check: Check, mark: str, text: str, code: str) -> dict[str, str]:
    return {"name": check.name, "mark": mark, "text": text, "code": code}


def ago(seconds: float | None) -> str:
    """Return how long ago, "never" for None."""
    return "never" if seconds is None else age(max(0.0, seconds) * 1000)


# -- what the checks say when all is well


def _daemon(facts: Facts) -> str:
    if facts.pid is None:
        return ""
    return f"pid {facts.pid}, loop lag {facts.loop_lag_ms:.0f} ms, {count(facts.tasks_count, 'pair task')} alive"


def _store(facts: Facts) -> str:
    if facts.fsync_p99_ms is None or facts.free_bytes is None:
        return ""
    cut = facts.cut_bytes
    tail = f"a torn tail of {cut} bytes was cut at the start" if cut else "tail clean"
    return f"{tail}, fsync p99 {facts.fsync_p99_ms:.0f} ms, {facts.free_bytes / 1e9:,.1f} GB free"


def _identity(facts: Facts) -> str:
    return f"{facts.did}, key {facts.words}" if facts.did else ""


def _published(facts: Facts) -> str:
    if facts.published_same:
        return f"same bytes at {facts.published_url} as inside"
    if not facts.published_unseen:
        return ""
    return f"{facts.published_url} cannot be fetched from here ({facts.published_unseen}); a peer sees more"


def _rules(facts: Facts) -> str:
    return "" if facts.locking_rule is None else "no permission rule refuses every pair request"


def _clock(facts: Facts) -> str:
    ahead_ms = facts.clock_ahead_ms
    if ahead_ms is None:
        return ""
    word = "ahead" if ahead_ms >= 0 else "behind"
    return f"peer {abs(ahead_ms) / 1000:.1f} s {word} (limit {SKEW_WARN_MS // 1000} s)"


def _dns(facts: Facts) -> str:
    if not facts.addresses:
        return ""
    if facts.addresses == (facts.host,):
        return f"{facts.host} is an address"
    return f"{facts.host} → {', '.join(facts.addresses)}"


def _connect(facts: Facts) -> str:
    if facts.failure is not None and facts.reach == PEER_PUSHES:
        return f"cannot be dialled ({facts.failure.code}), and need not: the peer pushes and pulls by itself"
    return f"{facts.address} accepts" if facts.address else ""


def _tls(facts: Facts) -> str:
    if not facts.address:
        return ""
    days = facts.tls_days_left
    return "none: plain http, as allowed here" if days is None else f"chain valid, {count(days, 'day')} left"


def _manifest(facts: Facts) -> str:
    if not facts.manifest_held:
        return ""
    same = ", same bytes inside and outside" if facts.inside_same else ""
    return f"200, did and signature ok{same}"


def _protocol(facts: Facts) -> str:
    return f"we {facts.protocol_ours}, peer {facts.protocol_peer}" if facts.protocol_peer else ""


def _endpoint(facts: Facts) -> str:
    return "" if facts.endpoint_status is None else "POST /v1/federation/pair reachable without a bearer"


def _reverse(facts: Facts) -> str:
    seen = facts.reverse
    if seen is not None and seen.reached:
        return f"peer reaches {seen.url} in {seen.ms} ms"
    if facts.reach == WE_PUSH and seen is not None:
        return "the peer cannot dial us, and need not: we push and pull"
    return facts.reverse_unknown


def _token(facts: Facts) -> str:
    if facts.token_left_ms is None:
        return ""
    taken = "the peer takes it, " if facts.token_taken else ""
    return f"{taken}{count(facts.token_left_ms // DAY_MS, 'day')} left"


def _scopes(facts: Facts) -> str:
    return ", ".join(facts.scopes)


def _cursor(facts: Facts) -> str:
    if facts.clock is None or facts.phase == "establishing":
        return ""
    lag = facts.lag_records
    behind = "lag unknown" if lag is None else f"lagging by {lag} {plural(lag, 'record')}"
    return f"clock {facts.clock}, {behind}, confirmed {ago(facts.confirmed_s)}"


def _sends(facts: Facts) -> str:
    if facts.peer_acked is None or facts.peer_lag is None:
        return ""
    text = f"the peer has confirmed {facts.peer_acked:,} of {count(facts.peer_acked + facts.peer_lag, 'record')}"
    if facts.peer_lag and facts.peer_mode == ON_DEMAND:
        text += f"; it reads on demand. On {facts.label or 'the peer'}: spl sync {facts.pair_id}"
    if facts.peer_refuses:
        text += f"; some of what came it refused. On {facts.label}: spl federation show {facts.pair_id}"
    return text


def _stream(facts: Facts) -> str:
    return "open, and events arrive" if facts.stream_open else ""


def _mode(facts: Facts) -> str:
    if not facts.mode:
        return ""
    if facts.paused_by in ("us", "both"):
        return f"paused by us; go on with: spl federation resume {facts.pair_id}"
    every = f" every {facts.poll_interval_ms // 1000} s" if facts.mode == POLLING else ""
    return f"{facts.mode}{every}"


def _queue(facts: Facts) -> str:
    if facts.queue_max is None:
        return ""
    return f"{waiting(facts.queue_records)}, at most {facts.queue_max:,} in the last hour"


def _consent(facts: Facts) -> str:
    effect = "each in full effect" if not facts.peer_refuses else "and the peer does not take all that is sent"
    return f"{count(facts.grants_count, 'grant')}, {effect}" if facts.grants_count else ""


def _peer_view(facts: Facts) -> str:
    state = facts.peer_state
    if not state:
        return ""
    return f"peer: {state}, {'paused' if state == 'paused' else 'not paused'}, queue {facts.peer_queue}"


def _nothing(facts: Facts) -> str:
    return ""


DAEMON: Final = (
    Check("daemon", ("daemon-down", "warming-up", "store-locked", "config-invalid", "loop-blocked", "task-dead",
                     "program-replaced", "adapter-slow", "auth-off", "sink-unreachable", "sink-full", "sink-foreign",
                     "sink-auth", "sink-refused", "engine-gap"), _daemon),
    Check("store", ("store-readonly", "store-full", "store-damaged", "store-missing", "disk-low"), _store),
    Check("identity", ("identity-missing", "identity-backup"), _identity),
)  # fmt: skip
OURSELVES: Final = (
    *DAEMON,
    Check("published", ("manifest-differs-outside", "tls-chain", "foreign-answer"), _published),
    Check("rules", ("handshake-401",), _rules),
)  # fmt: skip
"""Without a pair: the daemon and what the world sees of it."""

_REACHED: Final = ("dns", "connect", "tls")

PAIR: Final = (
    *DAEMON,
    Check("clock", ("clock-skew",), _clock, _REACHED),
    Check("dns", ("dns",), _dns),
    Check("connect", ("connect", "no-route", "timeout", "disconnected", "address-refused", "http-plain"), _connect,
          ("dns",)),
    Check("tls", ("tls-chain", "tls-expiry"), _tls, ("dns", "connect")),
    Check("manifest", ("identity-cloned", "redirect", "foreign-answer", "manifest-differs-outside",
                       *(code for code in MANIFEST if code != "peer-version")), _manifest, _REACHED),
    Check("protocol", ("peer-version",), _protocol, (*_REACHED, "manifest")),
    Check("endpoint", ("handshake-401", "peer-4xx", "peer-5xx", "answer-malformed", "rate-limited"), _endpoint,
          _REACHED),
    Check("handshake", ("handshake-pending",), _nothing),
    Check("reverse", ("reverse-unreachable", "one-way"), _reverse, (*_REACHED, "token")),
    Check("token", ("peer-revoked", "token-expired", "token-expiring", "auth-invalid"), _token, _REACHED),
    Check("own-token", ("token-withdrawn",), _nothing),
    Check("scopes", ("token-scope",), _scopes, ("token",)),
    Check("cursor", ("home-set-back", "cursor-stalled", "cursor-skip-suspect", "peer-rewound", "pair-degraded"),
          _cursor, (*_REACHED, "token")),
    Check("sends", ("records-withheld", "peer-behind"), _sends, (*_REACHED, "token")),
    Check("stream-buffering", ("stream-buffering", "stream-flapping"), _stream, (*_REACHED, "token")),
    Check("mode", ("poll-interval-long",), _mode),
    Check("queue", ("queue-high", "intake-paused"), _queue),
    Check("consent", ("consent-missing", "namespace-unmapped"), _consent),
    Check("peer-view", ("peer-paused",), _peer_view, (*_REACHED, "token")),
)  # fmt: skip
"""For one pair, on the way to the peer and back."""
