"""What is seen in facts, for each finding one sentence or "" where it does not hold; pure.

Facts are a plain mapping that the daemon gathers (`facts.py`) and `doctor.py` completes by asking the peer.  A fact
that nobody gathered is absent, and what rests on it is not found; so the same catalogue serves `status`, which asks
nobody, and `doctor`, which does.  The facts:

    daemon      daemon_down (text), holder {pid, since}, holder_s, config_error, readonly, damaged_lines, free_bytes,
                loop_lag_ms, dead_tasks [pair ids], identity (bool), unsaved_s (age of a key that was never exported),
                published_fault and adapters_slow (texts), locking_rule (name), limits (Limits: where thresholds stand)
    of a pair   pair_id, label, url, phase, reason, mode, poll_interval_ms, paused_by, ended_by_peer (bool),
                waits_for ("us", "peer" or ""), lag_records, unmoved (bool), overdue_s, scopes_missing, token_left_ms
                and own_token_left_ms (theirs for us, ours for them), token_due and own_token_due (a new one is due),
                queue_records, gaps [{code, namespace, missing, fix, at_peer}] (of grants: consent.py), grants_count,
                stream {state, last_event_at}, breaks (of the way, in ten minutes), mute_s (how long streams bring
                nothing), reach (which way the pair runs: a word of `sync/reach.py`)
    seen there  failure {code, message}: why the last attempt failed; manifest {code, message}, manifest_ours (bool:
                the peer's own daemon gave that answer), clock_ahead_ms, tls_days_left, endpoint_status,
                reverse {reached, code, message, url}, outside_fault (text), token_refused (text), throttled (bool)
    broken_s    code -> seconds since it began, for what heals by itself; what is not named counts as lasting
"""

from collections.abc import Callable, Mapping
from math import inf
from typing import Any, Final

from ..core.errors import CODES
from ..core.limits import Limits
from ..core.record.page import PEER_PUSHES, WE_PUSH

Facts = Mapping[str, Any]
Evidence = Callable[[Facts], str]

SKEW_WARN_MS: Final = 30_000
SKEW_FAIL_MS: Final = 300_000
DISK_FULL_SHARE: Final = 10
TLS_DAYS: Final = 14
QUEUE_RECORDS: Final = 50
FLAPS: Final = 4
POLL_LONG_MS: Final = 3_600_000
STARTING_S: Final = 60
_DEFAULTS: Final = Limits()
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


def limits_of(facts: Facts) -> Limits:
    """Return where the thresholds stand: as configured, or the defaults."""
    found = facts.get("limits")
    return found if isinstance(found, Limits) else _DEFAULTS


def said(name: str, code: str) -> Evidence:
    """Return the evidence of a fault that another part named by its code: facts[name] is {code, message}."""

    def evidence(facts: Facts) -> str:
        fault = facts.get(name) or {}
        return str(fault.get("message") or CODES[code].meaning) if fault.get("code") == code else ""

    return evidence


def failed(*codes: str) -> Evidence:
    """Return the evidence that the last attempt failed so; a peer that pushes need not be dialled."""
    each = [said("failure", code) for code in codes]

    def evidence(facts: Facts) -> str:
        pushed = facts.get("reach") == PEER_PUSHES and (facts.get("failure") or {}).get("code") in REACH
        return "" if pushed else next(filter(None, (said(facts) for said in each)), "")

    return evidence


def _span(ms: float) -> str:
    """Return a duration in its one telling unit."""
    seconds = abs(ms) / 1000
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size or (size == 60 and seconds >= 60):
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


# -- the daemon


def down(facts: Facts) -> str:
    return str(facts.get("daemon_down") or "")


def readonly(facts: Facts) -> str:
    return str(facts.get("readonly") or "")


def config(facts: Facts) -> str:
    return str(facts.get("config_error") or "")


def disk_full(facts: Facts) -> bool:
    return bool(disk(facts)) and int(facts["free_bytes"]) < limits_of(facts).disk_low_bytes // DISK_FULL_SHARE


def warming(facts: Facts) -> str:
    if "holder" not in facts or facts.get("holder_s", 0) >= STARTING_S:
        return ""
    return f"process {facts['holder']['pid']} opened this home {facts['holder_s']:.0f} s ago and does not answer yet"


def locked(facts: Facts) -> str:
    if "holder" not in facts or facts.get("holder_s", 0) < STARTING_S:
        return ""
    holder = facts["holder"]
    return f"process {holder['pid']} holds this home since {holder['since']} and does not answer"


def damaged(facts: Facts) -> str:
    count = facts.get("damaged_lines", 0)
    return f"{count} places of the log are damaged and not served" if count else ""


def disk(facts: Facts) -> str:
    free, low = facts.get("free_bytes", inf), limits_of(facts).disk_low_bytes
    return f"{free / 1e6:,.0f} MB free on the disk of the store" if free < low else ""


def loop(facts: Facts) -> str:
    lag_s = facts.get("loop_lag_ms", 0) / 1000
    late = lag_s > limits_of(facts).loop_late_s
    return f"the daemon's event loop ran {lag_s:.1f} s late within the last minute" if late else ""


def dead(facts: Facts) -> str:
    dead = facts.get("dead_tasks") or []
    return f"no task that lasts runs for {', '.join(dead[:5])}" if dead else ""


def outside(facts: Facts) -> str:
    return str(facts.get("published_fault") or facts.get("outside_fault") or "")


def no_identity(facts: Facts) -> str:
    return "" if facts.get("identity", True) else "this daemon can neither sign, nor publish, nor pair"


def unsaved(facts: Facts) -> str:
    due = facts.get("unsaved_s", 0) > limits_of(facts).backup_due_s
    return "identity was never exported" if due else ""


# -- the way to the peer


def skew(facts: Facts) -> str:
    ahead_ms = facts.get("clock_ahead_ms", 0)
    if abs(ahead_ms) <= SKEW_WARN_MS:
        return ""
    word = "ahead of" if ahead_ms > 0 else "behind"
    return f"the peer's clock is {_span(ahead_ms)} {word} ours (warns at 30 s, refuses at 5 min)"


def skew_fails(facts: Facts) -> bool:
    return abs(int(facts.get("clock_ahead_ms", 0))) > SKEW_FAIL_MS


def tls_soon(facts: Facts) -> str:
    days = facts.get("tls_days_left", TLS_DAYS)
    return f"the peer's TLS certificate ends in {days} days" if days < TLS_DAYS else ""


def throttled(facts: Facts) -> str:
    return "the peer answers 429" if facts.get("throttled") else failed("rate-limited")(facts)


def endpoint(facts: Facts) -> str:
    if facts.get("locking_rule"):
        return f"our permission rule {facts['locking_rule']} refuses federation:pair, so nobody can pair with us"
    if facts.get("reason") == "handshake-401":
        return "peer rejected handshake: 401 Unauthorized"
    seen = failed("handshake-401")(facts)
    status = facts.get("endpoint_status", 405)
    return seen or (f"the pair endpoint answers {status} without a bearer" if status in (401, 403) else "")


def endpoint_strange(facts: Facts) -> str:
    status = facts.get("endpoint_status", 405)
    strange = status not in SERVED and status not in (401, 403, 429)
    return f"the pair endpoint answers a GET with {status}, not 405" if strange else failed("peer-4xx")(facts)


def pending(facts: Facts) -> str:
    label = facts.get("label", "the peer")
    return {"us": f"{label} asks to pair", "peer": f"{label} has not decided on our request"}.get(
        facts.get("waits_for", ""), ""
    )


def reverse(facts: Facts) -> str:
    reverse = facts.get("reverse")
    if not reverse or reverse.get("reached") or facts.get("reach") == WE_PUSH:
        return ""
    return f"{facts.get('label', 'the peer')} cannot reach {reverse['url']}: {reverse['message']} ({reverse['code']})"


# -- tokens and state


def is_theirs(facts: Facts) -> bool:
    """Tell whether the token that ends is the peer's for us; else it is ours for the peer."""
    return bool(facts.get("token_due")) or facts.get("token_left_ms", 1) <= 0


def expiring(facts: Facts) -> str:
    for name, words in (("token", "the peer's token for us"), ("own_token", "our token for the peer")):
        if facts.get(f"{name}_due") and facts[f"{name}_left_ms"] > 0:
            return f"{words} expires in {_span(facts[f'{name}_left_ms'])}"
    return ""


def expired(facts: Facts) -> str:
    if facts.get("token_left_ms", 1) <= 0:
        return f"the peer's token for us expired {_span(facts['token_left_ms'])} ago, so each pull answers 401"
    if facts.get("own_token_left_ms", 1) <= 0:
        return f"our token for the peer expired {_span(facts['own_token_left_ms'])} ago, so it cannot pull from us"
    return ""


def scope(facts: Facts) -> str:
    missing = facts.get("scopes_missing") or []
    if missing:
        return f"the peer's token for us lacks {', '.join(missing)}"
    return failed("scope-forbidden")(facts)


def refused(facts: Facts) -> str:
    return str(facts.get("token_refused") or "") or failed("auth-invalid", "auth-required", "permission-denied")(facts)


def paused(facts: Facts) -> str:
    return f"{facts.get('label', 'the peer')} paused the pair" if facts.get("paused_by") in ("peer", "both") else ""


def revoked(facts: Facts) -> str:
    return f"{facts.get('label', 'the peer')} revoked the pair" if facts.get("ended_by_peer") else ""


# -- sync


def stalled(facts: Facts) -> str:
    lag, overdue_s = facts.get("lag_records") or 0, facts.get("overdue_s") or 0
    if overdue_s > 0:
        return f"the last word of the peer is {_span(overdue_s * 1000)} overdue"
    if facts.get("broken_s", {}).get("cursor-stalled", inf) < limits_of(facts).stalled_s:
        return ""
    return f"{lag} records wait on the peer and the cursor does not move; nothing is lost" if lag else ""


def skipped(facts: Facts) -> str:
    lag = facts.get("lag_records") or 0
    if not (lag and facts.get("unmoved")):
        return ""
    return f"the peer counts {lag} records more than it hands out, also after a restart here"


def buffered(facts: Facts) -> str:
    mute_s = facts.get("mute_s", 0.0)
    if mute_s <= limits_of(facts).check_s:
        return ""
    return f"pages arrive, but of a stream nothing in {_span(mute_s * 1000)}, not even what is sent at once"


def flapping(facts: Facts) -> str:
    breaks = facts.get("breaks", 0)
    if facts.get("mode") != "continuous" or breaks < FLAPS:
        return ""
    return f"the stream broke {breaks} times within ten minutes"


def queue(facts: Facts) -> str:
    waiting = facts.get("queue_records", 0)
    return f"{waiting} records wait between network and store" if waiting > QUEUE_RECORDS else ""


def slow(facts: Facts) -> str:
    return str(facts.get("adapters_slow") or "")


def poll_long(facts: Facts) -> str:
    interval_ms = facts.get("poll_interval_ms", 0)
    if facts.get("mode") != "polling" or interval_ms <= POLL_LONG_MS:
        return ""
    return f"the pair polls every {_span(interval_ms)}, so news may be that old"


def degraded(facts: Facts) -> str:
    return f"errors recur ({facts.get('reason') or 'unknown'})" if facts.get("phase") == "degraded" else ""


# -- consent


def gap(code: str) -> Evidence:
    """Return the evidence that grants of the pair lack something for their full effect."""

    def evidence(facts: Facts) -> str:
        found = [item for item in facts.get("gaps") or [] if item["code"] == code]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        return f"{found[0]['namespace']}: {found[0]['missing']}{more}" if found else ""

    return evidence
