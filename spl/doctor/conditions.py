"""What facts show: for each condition one sentence, or "" if it does not hold; pure.

A condition reads only `Facts` and thresholds, so a test needs no daemon, and `status` and `doctor` cannot disagree.
"""

from collections.abc import Callable
from math import inf
from typing import Final

from ..core.errors import CODES, count
from ..core.limits import QUEUE_RECORDS
from ..core.pair.modes import CONTINUOUS, POLLING
from ..core.presence import OFFLINE_S, PEER_PUSHES, TO_PEER, TO_US, WE_PUSH
from ..core.when import age, span
from .facts import Facts, Fault

Condition = Callable[[Facts], str]

SKEW_WARN_MS: Final = 30_000
SKEW_FAIL_MS: Final = 300_000
DISK_FULL_SHARE: Final = 10
TLS_DAYS: Final = 14
FLAPS: Final = 4
WITHHELD_NAMED: Final = 3
POLL_LONG_MS: Final = 3_600_000
STARTING_S: Final = 60
SERVED: Final = frozenset({200, 405})
"""What the pair endpoint answers to a GET if no proxy interferes."""

REACH: Final = (
    "dns", "connect", "no-route", "timeout", "disconnected", "tls-chain", "redirect", "address-refused", "http-plain",
)  # fmt: skip
IDENTITY: Final = ("identity-missing", "identity-cloned")
MANIFEST: Final = (
    "manifest-missing", "manifest-malformed", "manifest-signature", "manifest-did-mismatch", "manifest-expired",
    "manifest-stale", "chain-fork", "peer-version",
)  # fmt: skip
TOKEN: Final = ("token-expired", "token-scope", "auth-invalid")
REJECTED: Final = "rejected"
"""The reason of a request that the peer's operator did not want."""
STATE: Final = ("peer-paused", "peer-revoked", "handshake-pending")


def manifest_fault(code: str) -> Condition:
    """Return the condition that the peer's manifest has this fault."""
    return lambda facts: _said(facts.manifest, code)


def failed(*codes: str) -> Condition:
    """Return the condition that the last attempt failed with one of these; a peer that pushes need not be dialled."""

    def condition(facts: Facts) -> str:
        failure = facts.failure
        if failure is None or failure.code not in codes or (facts.reach == PEER_PUSHES and failure.code in REACH):
            return ""
        return _said(failure, failure.code)

    return condition


def sink(code: str) -> Condition:
    """Return the condition that a sink has this fault."""
    return lambda facts: f"{facts.sink}: {said}" if (said := _said(facts.sink_fault, code)) else ""


def _said(fault: Fault | None, code: str) -> str:
    return (fault.message or CODES[code].meaning) if fault is not None and fault.code == code else ""


# -- the daemon


def down(facts: Facts) -> str:
    return facts.daemon_down


def replaced(facts: Facts) -> str:
    return "what the daemon has not loaded yet is refused: the program's files were replaced" if facts.replaced else ""


def readonly(facts: Facts) -> str:
    return facts.readonly


def full(facts: Facts) -> str:
    return facts.full


def config(facts: Facts) -> str:
    return facts.config_error


def disk_full(facts: Facts) -> bool:
    free = facts.free_bytes
    return free is not None and free < facts.limits.disk_low_bytes // DISK_FULL_SHARE


def warming(facts: Facts) -> str:
    holder = facts.holder
    if holder is None or holder.held_s >= STARTING_S:
        return ""
    return f"process {holder.pid} opened this home {holder.held_s:.0f} s ago and does not answer yet"


def locked(facts: Facts) -> str:
    holder = facts.holder
    if holder is None or holder.held_s < STARTING_S:
        return ""
    return f"process {holder.pid} holds this home since {holder.since} and does not answer"


def damaged(facts: Facts) -> str:
    count = facts.damaged_lines
    if not count:
        return ""
    back = "; tokens, pairs and grants that were withdrawn may be in force again" if facts.lines_lost else ""
    return f"{count} {'place' if count == 1 else 'places'} of the log {'is' if count == 1 else 'are'} damaged{back}"


def after_damage(facts: Facts) -> str:
    """Return the step for a damaged log; a repair brings back no withdrawal, because no peer holds those."""
    again = "; then withdraw again what is back: spl token list; spl federation list; spl consent list"
    return "spl store check --repair" + (again if facts.lines_lost else "")


def disk(facts: Facts) -> str:
    free = facts.free_bytes
    if free is None or free >= facts.limits.disk_low_bytes:
        return ""
    return f"{free / 1e6:,.0f} MB free on the disk of the store"


def loop(facts: Facts) -> str:
    lag_s = facts.loop_lag_ms / 1000
    late = lag_s > facts.limits.loop_late_s
    return f"the daemon's event loop ran {lag_s:.1f} s late within the last minute" if late else ""


def dead(facts: Facts) -> str:
    return f"no sync task runs for {', '.join(facts.dead_tasks[:5])}" if facts.dead_tasks else ""


def outside(facts: Facts) -> str:
    return facts.published_fault or facts.outside_fault


def log_lacking(facts: Facts) -> str:
    return _said(facts.home_fault, "store-missing")


def no_identity(facts: Facts) -> str:
    lacking = _said(facts.home_fault, "identity-missing")
    if lacking:
        return lacking
    return "" if facts.has_identity else "this daemon can neither sign, nor publish, nor pair"


def cloned(facts: Facts) -> str:
    """A peer answers with our own DID, or two daemons use one identity in turn: a home and a copy of it."""
    if facts.cloned == "us":
        return f"{facts.label} was asked by two daemons with this identity within the last minute"
    if facts.cloned:
        return f"two daemons asked with the identity of {facts.label} within the last minute"
    return _said(facts.manifest, "identity-cloned")


def set_back(facts: Facts) -> str:
    """A home was replaced by an older copy of itself, or a peer's home was made again."""
    if not facts.set_back:
        return ""
    label = facts.label or "the peer"
    if facts.set_back == "us":
        return (
            f"this home was set back to an older copy: its log lacks what {label} had read; "
            "what peers hold comes back by itself, and nothing else does"
        )
    return f"{label} was set back to an older copy or made again: its log lacks what we had read; we give it back"


def unsaved(facts: Facts) -> str:
    return "identity was never exported with its present key" if facts.unsaved_s > facts.limits.backup_due_s else ""


# -- the way to the peer


def skew(facts: Facts) -> str:
    ahead_ms = facts.clock_ahead_ms or 0
    if abs(ahead_ms) <= SKEW_WARN_MS:
        return ""
    word = "ahead of" if ahead_ms > 0 else "behind"
    return f"the peer's clock is {span(abs(ahead_ms))} {word} ours (warns at 30 s, refuses at 5 min)"


def skew_fails(facts: Facts) -> bool:
    return abs(facts.clock_ahead_ms or 0) > SKEW_FAIL_MS


def tls_soon(facts: Facts) -> str:
    days = facts.tls_days_left
    return f"the peer's TLS certificate ends in {count(days, 'day')}" if days is not None and days < TLS_DAYS else ""


def throttled(facts: Facts) -> str:
    return "the peer answers 429" if facts.throttled else failed("rate-limited")(facts)


def endpoint(facts: Facts) -> str:
    if facts.locking_rule:
        return f"our permission rule {facts.locking_rule} refuses federation:pair, so no peer can pair with us"
    if facts.reason == "handshake-401":
        return "peer rejected handshake: 401 Unauthorized"
    seen, status = failed("handshake-401")(facts), facts.endpoint_status
    return seen or (f"the pair endpoint answers {status} without a bearer" if status in (401, 403) else "")


def endpoint_strange(facts: Facts) -> str:
    status = facts.endpoint_status
    strange = status is not None and status not in SERVED and status not in (401, 403, 429)
    return f"the pair endpoint answers a GET with {status}, not 405" if strange else failed("peer-4xx")(facts)


def pending(facts: Facts) -> str:
    if facts.waits_for == "us":
        return f"{facts.label or 'the peer'} asks to pair"
    return f"{facts.label or 'the peer'} has not decided on our request" if facts.waits_for == "peer" else ""


def reverse(facts: Facts) -> str:
    """The peer does not reach us: it says so, we notice, or it has just tried."""
    seen, way = facts.reverse, facts.one_way
    if seen is None and way is None:
        return ""
    label = facts.label or "the peer"
    if way is not None and way.direction == TO_US and way.reads:
        said = f"says that its requests to us have failed for {span(way.for_s * 1000)} ({way.code}), though some arrive"
        return f"{label} {said}" if way.for_s >= OFFLINE_S else ""
    if seen is None and way is not None and way.direction == TO_US:
        said = f"says that its requests to us fail ({way.code})" if way.code else "used to ask every 20s"
        return f"{label} has not asked us for {span(way.for_s * 1000)}, though it answers us; it {said}"
    if seen is None or seen.reached or (facts.reach == WE_PUSH and (way is None or way.direction != TO_US)):
        return ""
    why = f": {seen.message} ({seen.code})" if seen.message else ""
    return f"{label} cannot reach {seen.url}{why}"


def one_way(facts: Facts) -> str:
    """We do not reach a peer that still asks us."""
    way = facts.one_way
    if way is None or way.direction != TO_PEER or way.for_s < OFFLINE_S:
        return ""
    passed, label = span(way.for_s * 1000), facts.label or "the peer"
    if way.reads:
        return f"{label} answers our questions, and our reads from it have failed for {passed} ({way.code})"
    return f"{label} still asks us, and our requests to it have failed for {passed} ({way.code})"


def tls_chain(facts: Facts) -> str:
    """Our own certificate does not verify here, or the peer's does not."""
    return facts.published_tls or failed("tls-chain")(facts)


# -- tokens and state


def is_theirs(facts: Facts) -> bool:
    """Return whether the token that ends is the peer's for us; otherwise it is ours for the peer."""
    return facts.token_due or _over(facts.token_left_ms)


def expiring(facts: Facts) -> str:
    for left_ms, due, words in (
        (facts.token_left_ms, facts.token_due, "the peer's token for us"),
        (facts.own_token_left_ms, facts.own_token_due, "our token for the peer"),
    ):
        if due and left_ms is not None and left_ms > 0:
            return f"{words} expires in {span(left_ms)}"
    return ""


def expired(facts: Facts) -> str:
    ours, theirs = facts.own_token_left_ms, facts.token_left_ms
    if theirs is not None and theirs <= 0:
        return f"the peer's token for us expired {age(-theirs)}, so each pull answers 401"
    if ours is not None and ours <= 0:
        return f"our token for the peer expired {age(-ours)}, so it cannot pull from us"
    return ""


def withdrawn(facts: Facts) -> str:
    token = facts.own_token_revoked
    return f"{token} of {facts.label} is revoked here, so {facts.label} cannot read" if token else ""


def scope(facts: Facts) -> str:
    if facts.scopes_missing:
        return f"the peer's token for us lacks {', '.join(facts.scopes_missing)}"
    return failed("scope-forbidden")(facts)


def refused(facts: Facts) -> str:
    return facts.token_refused or failed("auth-invalid", "auth-required", "permission-denied")(facts)


def paused(facts: Facts) -> str:
    return f"{facts.label or 'the peer'} paused the pair" if facts.paused_by in ("peer", "both") else ""


def revoked(facts: Facts) -> str:
    did = "rejected the request" if facts.reason == REJECTED else "revoked the pair"
    return f"{facts.label or 'the peer'} {did}" if facts.ended_by_peer else ""


def waiting(records: int) -> str:
    """Return "1 record waits" or "5 records wait"."""
    return f"{count(records, 'record')} {'waits' if records == 1 else 'wait'}"


def _over(left_ms: int | None) -> bool:
    return left_ms is not None and left_ms <= 0


# -- sync


def stalled(facts: Facts) -> str:
    if facts.overdue_s > 0:
        return f"the last answer of the peer is {span(facts.overdue_s * 1000)} overdue"
    if facts.broken_s.get("cursor-stalled", inf) < facts.limits.stalled_s:
        return ""
    lag = facts.lag_records
    return f"{waiting(lag)} on the peer and the cursor does not move; nothing is lost" if lag else ""


def behind(facts: Facts) -> str:
    if facts.peer_readonly:
        waits = f"{waiting(facts.peer_lag)} here; " if facts.peer_lag else ""
        return f"{waits}the store of {facts.label or 'the peer'} takes no records now, as it says"
    if not facts.peer_lag or not facts.peer_behind_s:
        return ""
    label, passed = facts.label or "the peer", span(facts.peer_behind_s * 1000)
    return f"{waiting(facts.peer_lag)} here for {label}, which has confirmed nothing for {passed}"


def withheld(facts: Facts) -> str:
    if not facts.withheld and not facts.withheld_here:
        return ""
    label = facts.label or "the peer"
    ways = ((f"to {label}", facts.withheld), (f"from {label}", facts.withheld_here))
    return "; ".join(
        f"the way {way} does not carry {count(len(ids), 'record')}, even alone: {', '.join(ids[:WITHHELD_NAMED])}"
        f"{', ...' if ids[WITHHELD_NAMED:] else ''}"
        for way, ids in ways
        if ids
    )


def skipped(facts: Facts) -> str:
    lag = facts.lag_records
    if not (lag and facts.unmoved):
        return ""
    return f"the peer counts {count(lag, 'record')} more than it hands out, also after a restart here"


def buffered(facts: Facts) -> str:
    if facts.mute_s <= facts.limits.check_s:
        return ""
    return f"pages arrive, but no stream brought an event in {span(facts.mute_s * 1000)}, not even the first"


def flapping(facts: Facts) -> str:
    if facts.breaks < FLAPS or facts.mode != CONTINUOUS:
        return ""
    return f"the stream broke {facts.breaks} times within ten minutes"


def queue(facts: Facts) -> str:
    records = facts.queue_records
    return f"{waiting(records)} between network and store" if records > QUEUE_RECORDS else ""


def intake(facts: Facts) -> str:
    if not facts.intake_wait_s:
        return ""
    most = f"{facts.limits.intake_day_bytes:,} bytes within a day, all that a pair may"
    return f"{facts.label or 'the peer'} brought in {most}; intake resumes in {span(facts.intake_wait_s * 1000)}"


def auth_off(facts: Facts) -> str:
    return "auth.required is false: everybody on this machine is an administrator" if facts.auth_off else ""


def slow(facts: Facts) -> str:
    return facts.adapters_slow


def poll_long(facts: Facts) -> str:
    if facts.mode != POLLING or facts.poll_interval_ms <= POLL_LONG_MS:
        return ""
    return f"the pair polls every {span(facts.poll_interval_ms)}, so news may be that old"


def degraded(facts: Facts) -> str:
    return f"errors recur ({facts.reason or 'unknown'})" if facts.phase == "degraded" else ""


# -- consent


def gap(code: str) -> Condition:
    """Return the condition that grants of the pair lack something for their full effect."""

    def condition(facts: Facts) -> str:
        if not facts.gaps:
            return ""
        found = [item for item in facts.gaps if item.code == code]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        return f"{found[0].namespace}: {found[0].missing}{more}" if found else ""

    return condition
