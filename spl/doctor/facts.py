"""Facts for the catalogue of findings that need no network: of the daemon, of a pair, and of a home without daemon."""

import os
import time
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any, Final

from ..core import consent, when
from ..core.consent import PairGrants
from ..core.errors import CODES, SplError
from ..core.identity import bearer
from ..core.identity.did import label_of
from ..core.limits import Limits
from ..core.pair.pair import Pair
from ..core.pair.state import Asked, Degraded, Requested, Waiting
from ..core.record.namespace import Namespace
from ..core.record.page import PEER_PUSHES
from ..home.config import ConfigError
from ..home.disk import Disk, DiskError, lock_home
from ..home.home import SOCKET, read_config
from ..home.log import Log
from ..home.vault import Vault
from .conditions import MANIFEST
from .health import HealthSampler

NEEDED_SCOPES: Final = ("federation:sync", "federation:subscribe")
REVOKED_BY_PEER: Final = "revoked by peer"
OVERDUE_INTERVALS: Final = 2
HEALING: Final = ("dns", "connect", "timeout", "disconnected", "peer-5xx")
"""Failures that mostly pass by themselves; they count after `limits.failing_s`."""
ENDED_SHOWN_MS: Final = 86_400_000
ADAPTERS_MS: Final = 25
"""A record, at p99: what the spike of the reference's soak, 37 records a second, leaves them."""
ADAPTERS_RECORDS: Final = 200
"""Of fewer records one slow moment of the machine would be the p99."""
_ABOUT_THE_MANIFEST: Final = frozenset({*MANIFEST, "identity-cloned"})


def daemon_facts(store: Log, vault: Vault, health: HealthSampler, limits: Limits, now_ms: int) -> dict[str, Any]:
    """Return what the running daemon knows about itself."""
    stats = store.stats()
    return {
        "limits": limits,
        "identity": vault.identity is not None,
        **_backup_facts(vault, now_ms),
        "readonly": store.readonly,
        "damaged_lines": len(store.lost),
        "cut_bytes": store.report.cut_bytes,
        "free_bytes": stats["free_bytes"],
        "fsync_p99_ms": stats["sync_p99_ms"],
        "loop_lag_ms": health.loop_lag_ms,
        "dead_tasks": health.dead(),
        "pid": os.getpid(),
    }


def adapters_slow(told: Mapping[str, Any]) -> str:
    """Return what is wrong with the adapters as they sum themselves up; "" where they keep up with the reference."""
    p99_ms = told["p99_ms"] or 0
    if p99_ms <= ADAPTERS_MS or told["records"] < ADAPTERS_RECORDS:
        return ""
    return f"adapters take {p99_ms:,.0f} ms a record (p99 of the last 5 min), {told['slowest']} the most of it"


def _backup_facts(vault: Vault, now_ms: int) -> dict[str, Any]:
    """Return for how many seconds there has been a signing key that no copy was made of, if so."""
    identity = vault.identity
    if identity is None or vault.exported():
        return {}
    rotations = identity.chain.rotations
    made_ms = rotations[-1].at_ms if rotations else identity.created_at_ms
    return {"unsaved_s": (now_ms - made_ms) / 1000}


def home_facts(path: Path) -> dict[str, Any]:
    """Return why no daemon answers at a home, as far as its files tell: bad configuration, or somebody holds it."""
    facts: dict[str, Any] = {"daemon_down": f"no daemon answers at {path / SOCKET}", **config_facts(path)}
    if not path.is_dir():
        return facts
    try:
        lock_home(path).release()
        facts["free_bytes"] = Disk().free_bytes(path)
    except DiskError as exc:
        if exc.code != "store-locked":
            return {**facts, "config_error": exc.message}
        since = str(exc.facts["started_at"])
        facts["holder"] = {"pid": exc.facts["pid"], "since": since}
        facts["holder_s"] = max(0.0, time.time() - when.ms_of(since) / 1000)
    return facts


def config_facts(path: Path) -> dict[str, Any]:
    """Return the fault in the configuration on disk, which the next start or reload would meet."""
    try:
        read_config(path, Disk(), {})
    except (ConfigError, DiskError) as exc:
        return {"config_error": exc.message}
    return {}


def has_projection(pair: Pair, pairs: Mapping[str, Pair], now_ms: int) -> bool:
    """Tell whether `status` looks at the pair: those that live, and for a day one that the peer ended."""
    if not pair.ended:
        return True
    recent = now_ms - pair.since_ms < ENDED_SHOWN_MS
    again = any(other.peer_did == pair.peer_did and not other.ended for other in pairs.values())
    return recent and not again and pair.reason.startswith(REVOKED_BY_PEER)


def pair_facts(
    pair: Pair,
    status: Mapping[str, Any],
    health: HealthSampler,
    trouble: SplError | None,
    *,
    unmoved: bool,
    way: str,
    limits: Limits,
    uptime_s: float,
    now_ms: int,
) -> dict[str, Any]:
    """Return what the daemon knows about a pair without asking the peer.

    `trouble` is the last error of a handshake on its way; `unmoved`: a pull of this process ended well and yet the
    saved position is older than the process; `way` is a word of `sync/reach.py`.
    """
    return {
        "limits": limits,
        "pair_id": pair.pair_id,
        "label": label_of(pair.peer_did),
        "url": pair.url,
        "phase": str(pair.phase),
        "reason": pair.reason,
        "mode": pair.mode,
        "poll_interval_ms": pair.poll_interval_ms,
        "paused_by": pair.paused_by,
        "ended_by_peer": pair.ended and pair.reason.startswith(REVOKED_BY_PEER),
        "waits_for": _waits_for(pair),
        "clock": status["clock"],
        "reach": way,
        "stream": status["stream"],
        "breaks": (status["stream"] or {}).get("breaks", 0),
        "mute_s": health.mute_s(pair.pair_id),
        "queue_records": status["queue_records"],
        "queue_max": status["queue_max"],
        **_token_facts(pair, limits, now_ms),
        **_failure_facts(pair, status, trouble),
        **_cursor_facts(pair, status, health, way, now_ms),
        **_overdue_facts(pair, status, health, way, limits, uptime_s, now_ms),
        "unmoved": unmoved,
    }


def consent_facts(pair: Pair, book: PairGrants, registry: Mapping[str, Namespace]) -> dict[str, Any]:
    """Return how many grants stand across a pair, and what those lack that a finding tells of."""
    if pair.ended:
        return {}
    lines = consent.lines(pair, book, registry, label_of(pair.peer_did))
    standing = [line for line in lines if line.granted != consent.WITHDRAWN or line.code]
    return {"grants_count": len(standing), "gaps": [line.to_json() for line in standing if line.code]}


def confirmed_ms(status: Mapping[str, Any]) -> int | None:
    """Return when the peer last told, to the end, what it holds for us; None before it ever did."""
    text = status["last_sync_at"]
    return when.ms_of(text) if text else None


def _waits_for(pair: Pair) -> str:
    if isinstance(pair.state, Asked):
        return "us"
    return "peer" if isinstance(pair.state, Requested | Waiting) else ""


def _token_facts(pair: Pair, limits: Limits, now_ms: int) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if not pair.live:
        return facts
    if pair.issued_by_us is not None:
        facts["own_token_left_ms"] = pair.issued_by_us.expires_at_ms - now_ms
        facts["own_token_due"] = now_ms >= pair.issued_by_us.renew_at_ms(limits.token_renew_s)
    if pair.issued_to_us is not None:
        held = frozenset(pair.issued_to_us.scopes)
        facts["token_left_ms"] = pair.issued_to_us.expires_at_ms - now_ms
        facts["token_due"] = now_ms >= pair.issued_to_us.renew_at_ms(limits.token_renew_s)
        facts["scopes"] = [scope for scope in NEEDED_SCOPES if bearer.holds(held, scope)]
        facts["scopes_missing"] = [scope for scope in NEEDED_SCOPES if not bearer.holds(held, scope)]
    return facts


def _failure_facts(pair: Pair, status: Mapping[str, Any], trouble: SplError | None) -> dict[str, Any]:
    """Return why the last attempt failed: this process's own word, else the reason in the pair's record."""
    failure: dict[str, Any] = {}
    error = status["last_error"]
    if trouble is not None:
        failure = {"code": trouble.code, "message": trouble.message}
    elif error and status["attempt"]:
        failure = {"code": error["code"], "message": error["message"]}
    elif isinstance(pair.state, Degraded) and pair.reason in CODES:
        failure = {"code": pair.reason, "message": ""}
    if not failure:
        return {}
    manifest = {"manifest": failure} if failure["code"] in _ABOUT_THE_MANIFEST else {}
    return {"failure": failure, **manifest}


def _interval_s(pair: Pair, way: str) -> float:
    """Return the seconds between two words of the peer while all is well; 0 where a stream brings them."""
    return pair.poll_interval_ms / 1000 if pair.mode == "polling" or way == PEER_PUSHES else 0.0


def _cursor_facts(
    pair: Pair, status: Mapping[str, Any], health: HealthSampler, way: str, now_ms: int
) -> dict[str, Any]:
    """Return lag and standstill, and for how long what heals by itself has lasted."""
    # What degraded the pair has lasted, whatever this process has seen of it.
    failing_s = inf if isinstance(pair.state, Degraded) else health.failing_s(pair.pair_id)
    stalled_s, at_ms = health.stalled_s(pair.pair_id), confirmed_ms(status)
    facts: dict[str, Any] = {"lag_records": None, "confirmed_s": None if at_ms is None else (now_ms - at_ms) / 1000}
    lasting = dict.fromkeys(HEALING, failing_s)
    lasting["queue-high"] = health.full_s(pair.pair_id)
    facts["broken_s"] = lasting
    if pair.mode == "on-demand" or not pair.sync_allowed:
        return facts
    lasting["cursor-stalled"] = stalled_s if stalled_s >= OVERDUE_INTERVALS * _interval_s(pair, way) else 0.0
    return {**facts, "lag_records": status["lag_records"]}


def _overdue_facts(
    pair: Pair, status: Mapping[str, Any], health: HealthSampler, way: str, limits: Limits, uptime_s: float, now_ms: int
) -> dict[str, Any]:
    """Return by how much the peer's word is overdue, where no error tells why and nothing comes in meanwhile.

    A stream brings a word each heartbeat and is given up when it is silent; other ways bring one each interval.
    """
    if pair.mode == "on-demand" or not pair.sync_allowed or status["attempt"]:
        return {}
    at_ms = confirmed_ms(status)
    since_ms = pair.since_ms if at_ms is None else max(at_ms, pair.since_ms)
    silent_s = min(uptime_s, (now_ms - since_ms) / 1000, health.still_s(pair.pair_id))
    allowed_s = OVERDUE_INTERVALS * _interval_s(pair, way) + limits.stream_silence_s + limits.heartbeat_s
    return {"overdue_s": max(0.0, silent_s - allowed_s)}
