"""Facts that need no network: of the daemon, of a pair, and of a home without a daemon.

Each function returns `known` with more facts filled in, so a misspelt fact is a type error.
"""

import os
import time
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Final

from ..core import consent, when
from ..core.consent import PairGrants
from ..core.errors import CODES, SplError
from ..core.identity import bearer
from ..core.identity.did import label_of
from ..core.limits import Limits
from ..core.pair.modes import ON_DEMAND, POLLING
from ..core.pair.pair import Pair
from ..core.pair.state import Asked, Degraded, Requested, Waiting
from ..core.pair.status import PairStatus
from ..core.presence import PEER_PUSHES
from ..core.record.namespace import Namespace
from ..core.value import dataclass
from ..core.version import SOCKET
from ..home.config import ConfigError
from ..home.disk import Disk, DiskError, lock_home
from ..home.home import BACK, keys_lacking, log_lacking, read_config
from ..home.log import Log
from ..home.vault import Vault
from ..home.writes import ListenerSummary
from ..host.program import is_replaced
from ..sync.changes import OfferedStatus
from .conditions import MANIFEST, REJECTED
from .facts import Facts, Fault, GrantGap, LockHolder, replace
from .health import HealthSampler

NEEDED_SCOPES: Final = ("federation:sync", "federation:subscribe")
REVOKED_BY_PEER: Final = "revoked by peer"
OVERDUE_INTERVALS: Final = 2
PEER_INTERVALS: Final = 3
HEALING: Final = ("dns", "connect", "no-route", "timeout", "disconnected", "foreign-answer", "peer-5xx")
"""Failures that mostly pass without an action; they count after `limits.failing_s`."""
ENDED_SHOWN_MS: Final = 86_400_000
ADAPTERS_MS: Final = 25
"""A record, at p99: what the spike of the reference's soak, 37 records a second, leaves them."""
ADAPTERS_RECORDS: Final = 200
"""With fewer records one slow moment of the machine would be the p99."""
_ABOUT_THE_MANIFEST: Final = frozenset({*MANIFEST, "identity-cloned"})


@dataclass(frozen=True, slots=True)
class PairContext:
    """What the services know of a pair now, and `own_url`, the address that we publish.

    `trouble` is the last error of a handshake under way; `unmoved` as in `Facts`; `reach` is a word of
    `sync/reach.py`; `uptime_s` how long this process has run.
    """

    status: PairStatus
    offered: OfferedStatus
    trouble: SplError | None
    reach: str
    unmoved: bool
    uptime_s: float
    now_ms: int
    own_url: str = ""
    troubled_s: float = 0.0
    """For how long the attempts of that handshake have failed."""
    revoked: str = ""
    """The id of our token for the peer, if it is revoked."""
    newer_url: str = ""
    """Where the peer says it is by a manifest that waits for its hour."""
    stranger: SplError | None = None
    """That another daemon answered in the peer's place when its manifest was fetched last."""


def daemon_facts(store: Log, vault: Vault, health: HealthSampler, limits: Limits, now_ms: int) -> Facts:
    """Return what the running daemon knows about itself."""
    stats = store.stats()
    return Facts(
        limits=limits,
        has_identity=vault.identity is not None,
        unsaved_s=_unsaved_s(vault, now_ms),
        home_fault=Fault("store-missing", store.gone, BACK) if store.gone else None,
        replaced=is_replaced(),
        readonly=store.readonly,
        full=store.full,
        damaged_lines=len(store.lost) + len(store.index.reader.left_out),
        lines_lost=any(place.lines for place in store.lost),
        cut_bytes=store.report.cut_bytes,
        free_bytes=stats.free_bytes,
        fsync_p99_ms=stats.sync_p99_ms,
        loop_lag_ms=health.loop_lag_ms,
        dead_tasks=tuple(health.dead()),
        pid=os.getpid(),
    )


def adapters_slow(told: ListenerSummary) -> str:
    """Return what is wrong with the adapters by their own summary; "" if they keep up with the reference."""
    p99_ms = told.p99_ms or 0
    if p99_ms <= ADAPTERS_MS or told.records < ADAPTERS_RECORDS:
        return ""
    return f"adapters take {p99_ms:,.0f} ms a record (p99 of the last 5 min), {told.slowest} the most of it"


def home_facts(path: Path) -> Facts:
    """Return why no daemon answers at a home, from its files: a bad configuration, or a process that holds it."""
    known = with_config(Facts(daemon_down=f"no daemon answers at {path / SOCKET}"), path)
    if not path.is_dir():
        return known
    try:
        lock_home(path).release()
        lacking = log_lacking(path, Disk()) or keys_lacking(path, Disk())
        fault = Fault(lacking.code, lacking.message, lacking.hint) if lacking else None
        return replace(known, free_bytes=Disk().free_bytes(path), home_fault=fault)
    except DiskError as exc:
        if exc.code != "store-locked":
            return replace(known, config_error=exc.message)
        since = str(exc.facts["started_at"])
        held_s = max(0.0, time.time() - when.ms_of(since) / 1000)
        return replace(known, holder=LockHolder(str(exc.facts["pid"]), since, held_s))


def with_config(known: Facts, path: Path) -> Facts:
    """Add the fault in the configuration on disk, which the next start or reload would meet."""
    try:
        read_config(path, Disk(), {})
    except (ConfigError, DiskError) as exc:
        return replace(known, config_error=exc.message)
    return known


def is_watched(pair: Pair, pairs: Mapping[str, Pair], now_ms: int) -> bool:
    """Return whether `status` looks at the pair: any that has not ended, and for a day one that the peer ended.

    A request that no operator here had agreed to when it was withdrawn was no pair: a stranger made it.
    """
    if not pair.ended:
        return True
    if not pair.initiator and pair.answer is None:
        return False
    if now_ms - pair.since_ms >= ENDED_SHOWN_MS or not _ended_by_peer(pair):
        return False
    return not any(other.peer_did == pair.peer_did and not other.ended for other in pairs.values())


def _ended_by_peer(pair: Pair) -> bool:
    return pair.reason.startswith(REVOKED_BY_PEER) or (pair.initiator and pair.reason == REJECTED)


def with_pair(known: Facts, pair: Pair, health: HealthSampler, context: PairContext) -> Facts:
    """Add what the daemon knows about a pair without asking the peer."""
    if pair.ended:  # nothing else about it can be wrong any more
        return replace(
            known, own_url=context.own_url, pair_id=pair.pair_id, label=label_of(pair.peer_did), url=pair.url,
            phase=str(pair.phase), reason=pair.reason, ended_by_peer=_ended_by_peer(pair),
        )  # fmt: skip
    status, stream = context.status, context.status.stream
    known = replace(
        known,
        own_url=context.own_url, pair_id=pair.pair_id, label=label_of(pair.peer_did), url=pair.url,
        newer_url=context.newer_url,
        phase=str(pair.phase), reason=pair.reason,
        mode=pair.mode,
        poll_interval_ms=pair.poll_interval_ms,
        paused_by=pair.paused_by,
        waits_for=_waits_for(pair),
        reach=context.reach,
        peer_mode=str(status.peer_view.get("mode", "")),
        peer_refuses=status.peer_view.get("refuses") is True,
        peer_readonly=status.peer_view.get("readonly") is True and pair.serve_allowed,
        cloned=status.cloned,
        one_way=status.one_way,
        clock_ahead_ms=status.skew_ms,
        clock=status.clock,
        unmoved=context.unmoved,
        stream_open=stream is not None and stream.state == "open",
        breaks=stream.breaks if stream is not None else 0,
        mute_s=health.mute_s(pair.pair_id),
        withheld_here=status.withheld,
        queue_records=status.queue_records,
        queue_max=status.queue_max,
        intake_wait_s=status.intake.wait_s,
        overdue_s=_overdue_s(pair, health, context, known.limits),
        own_token_revoked=context.revoked,
    )  # fmt: skip
    known = _with_peer_lag(known, pair, health, context.offered)
    known = _with_tokens(known, pair, context.now_ms)
    known = _with_failure(known, pair, context)
    return _with_lag(known, pair, health, context)


def with_consent(known: Facts, pair: Pair, grants: PairGrants, registry: Mapping[str, Namespace]) -> Facts:
    """Add how many grants there are across a pair, and what those lack that have a finding."""
    if pair.ended or not (grants.ours or grants.theirs):
        return known  # with no row, and no gap
    rows = consent.lines(pair, grants, registry, label_of(pair.peer_did))
    given = [row for row in rows if row.granted != consent.WITHDRAWN or row.code]
    gaps = (GrantGap(row.code, row.namespace, row.missing, row.fix, row.at_peer) for row in given if row.code)
    return replace(known, grants_count=len(given), gaps=tuple(gaps))


def _unsaved_s(vault: Vault, now_ms: int) -> float:
    identity = vault.identity
    if identity is None or vault.exported():
        return 0.0
    rotations = identity.chain.rotations
    made_ms = rotations[-1].at_ms if rotations else identity.created_at_ms
    return (now_ms - made_ms) / 1000


def _waits_for(pair: Pair) -> str:
    if isinstance(pair.state, Asked):
        return "us"
    return "peer" if isinstance(pair.state, Requested | Waiting) else ""


def _with_tokens(known: Facts, pair: Pair, now_ms: int) -> Facts:
    if not pair.live:
        return known
    ours, theirs, renew_s = pair.issued_by_us, pair.issued_to_us, known.limits.token_renew_s
    held = frozenset(theirs.scopes) if theirs is not None else frozenset()
    is_whole = held.issuperset(NEEDED_SCOPES)
    given = NEEDED_SCOPES if is_whole else tuple(scope for scope in NEEDED_SCOPES if bearer.holds(held, scope))
    lacking = () if theirs is None or is_whole else tuple(scope for scope in NEEDED_SCOPES if scope not in given)
    return replace(
        known,
        own_token_left_ms=None if ours is None else ours.expires_at_ms - now_ms,
        own_token_due=ours is not None and now_ms >= ours.renew_at_ms(renew_s),
        token_left_ms=None if theirs is None else theirs.expires_at_ms - now_ms,
        token_due=theirs is not None and now_ms >= theirs.renew_at_ms(renew_s),
        scopes=given,
        scopes_missing=lacking,
    )


def _with_failure(known: Facts, pair: Pair, context: PairContext) -> Facts:
    """Add why the last attempt failed: what this process met, otherwise the reason in the pair's record."""
    error, trouble = context.status.last_error, context.trouble
    if context.stranger is not None and isinstance(pair.state, Degraded) and (error is None or error.status):
        trouble = context.stranger  # whose refusals of our token say nothing
    if trouble is not None:
        failure = Fault(trouble.code, trouble.message)
    elif error and context.status.attempt:
        failure = Fault(error.code, error.message, reached=error.reached, status=error.status)
    elif isinstance(pair.state, Degraded) and pair.reason in CODES:
        failure = Fault(pair.reason)
    else:
        return known
    manifest = failure if failure.code in _ABOUT_THE_MANIFEST else None
    return replace(known, token_revoked=error is not None and error.revoked, failure=failure, manifest=manifest)


def _with_lag(known: Facts, pair: Pair, health: HealthSampler, context: PairContext) -> Facts:
    """Add lag and standstill, and for how long what heals by itself has lasted."""
    # A degraded pair failed for long enough, whatever this process has seen of it; a peer that does not answer has
    # been gone since it last answered, which is before the first failure.
    status = context.status
    unanswered_s = max(status.unanswered_s, status.unread_s) if status.unreached else 0.0
    failing_s = max(health.failing_s(pair.pair_id), unanswered_s, context.troubled_s)
    failing_s = inf if isinstance(pair.state, Degraded) else failing_s
    at_ms = status.last_sync_ms
    lasting = {**dict.fromkeys(HEALING, failing_s), "queue-high": health.full_s(pair.pair_id)}
    confirmed_s = None if at_ms is None else (context.now_ms - at_ms) / 1000
    if pair.mode == ON_DEMAND or not pair.sync_allowed:
        return replace(known, confirmed_s=confirmed_s, broken_s=lasting)
    stalled_s, least_s = health.stalled_s(pair.pair_id), OVERDUE_INTERVALS * _interval_s(pair, context.reach)
    lasting["cursor-stalled"] = stalled_s if stalled_s >= least_s else 0.0
    # Only a read that found them waiting shows that records are skipped; the peer may have counted these since.
    unmoved = known.unmoved and confirmed_s is not None and stalled_s >= confirmed_s
    return replace(
        known, confirmed_s=confirmed_s, broken_s=lasting, lag_records=status.lag_records, unmoved=unmoved,
    )  # fmt: skip


def _with_peer_lag(known: Facts, pair: Pair, health: HealthSampler, offered: OfferedStatus) -> Facts:
    """Add how far the peer is with what we offer.

    It may take as long as a stream may be silent, and three of its own intervals; of a peer that never read twice the
    interval is unknown, and one that reads on demand takes as long as its operator likes: nothing is said of either.
    """
    if not pair.serve_allowed:
        return known
    behind_s, interval_s = health.behind_s(pair.pair_id), offered.interval_s
    allowed_s = (
        inf
        if interval_s is None or known.peer_mode == ON_DEMAND
        else max(known.limits.stream_silence_s, PEER_INTERVALS * interval_s)
    )
    late_s = behind_s if behind_s > allowed_s else 0.0
    return replace(
        known, withheld=offered.withheld, set_back=offered.set_back, peer_acked=offered.acked,
        peer_lag=offered.lag_records, peer_behind_s=late_s,
    )  # fmt: skip


def _interval_s(pair: Pair, reach: str) -> float:
    """Return the seconds between two answers of the peer while all is well; 0 if a stream brings them."""
    return pair.poll_interval_ms / 1000 if pair.mode == POLLING or reach == PEER_PUSHES else 0.0


def _overdue_s(pair: Pair, health: HealthSampler, context: PairContext, limits: Limits) -> float:
    """Return by how much the peer's answer is overdue, if no error explains it and nothing comes in meanwhile.

    A stream brings an event each heartbeat and is given up when it is silent; other ways bring one each interval.
    """
    if pair.mode == ON_DEMAND or not pair.sync_allowed or context.status.attempt:
        return 0.0
    at_ms = context.status.last_sync_ms
    since_ms = pair.since_ms if at_ms is None else max(at_ms, pair.since_ms)
    silent_s = min(context.uptime_s, (context.now_ms - since_ms) / 1000, health.still_s(pair.pair_id))
    allowed_s = OVERDUE_INTERVALS * _interval_s(pair, context.reach) + limits.stream_silence_s + limits.heartbeat_s
    return max(0.0, silent_s - allowed_s)
