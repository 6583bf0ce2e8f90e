"""Facts for the catalogue of findings that need no network: of the daemon, of a pair, and of a home without daemon."""

import os
import time
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any, Final

from .config import ConfigError
from .core import bearer, when
from .core.did import label_of
from .core.errors import CODES, SplError
from .core.finding import MANIFEST
from .core.pair import Pair
from .core.standing import Asked, Degraded, Requested, Waiting
from .disk import Disk, DiskError, lock_home
from .home import SOCKET, read_config
from .pulse import Pulse
from .store import Store
from .vault import Vault

NEEDED_SCOPES: Final = ("federation:sync", "federation:subscribe")
REVOKED_BY_PEER: Final = "revoked by peer"
OVERDUE_INTERVALS: Final = 2
OVERDUE_S: Final = 60.0
ENDED_SHOWN_MS: Final = 86_400_000
_ABOUT_THE_MANIFEST: Final = frozenset({*MANIFEST, "identity-cloned"})


def daemon_facts(store: Store, vault: Vault, pulse: Pulse) -> dict[str, Any]:
    """Return what the running daemon knows about itself."""
    stats = store.stats()
    return {
        "identity": vault.identity is not None,
        "readonly": store.readonly,
        "damaged_lines": len(store.report.damaged),
        "cut_bytes": store.report.cut_bytes,
        "free_bytes": stats["free_bytes"],
        "fsync_p99_ms": stats["sync_p99_ms"],
        "loop_lag_ms": pulse.loop_lag_ms,
        "dead_tasks": pulse.dead(),
        "pid": os.getpid(),
    }


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


def is_shown(pair: Pair, pairs: Mapping[str, Pair], now_ms: int) -> bool:
    """Tell whether `status` looks at the pair: those that live, and for a day one that the peer ended."""
    if not pair.ended:
        return True
    recent = now_ms - pair.since_ms < ENDED_SHOWN_MS
    again = any(other.peer_did == pair.peer_did and not other.ended for other in pairs.values())
    return recent and not again and pair.reason.startswith(REVOKED_BY_PEER)


def pair_facts(
    pair: Pair,
    status: Mapping[str, Any],
    pulse: Pulse,
    trouble: SplError | None,
    *,
    unmoved: bool,
    way: str,
    uptime_s: float,
    now_ms: int,
) -> dict[str, Any]:
    """Return what the daemon knows about a pair without asking the peer.

    `trouble` is the last error of a handshake on its way; `unmoved`: a pull of this process ended well and yet the
    saved position is older than the process; `way` is a word of `core/reach.py`.
    """
    return {
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
        "breaks": (status.get("stream") or {}).get("breaks", 0),
        "queue_records": status["queue_records"],
        **_token_facts(pair, now_ms),
        **_failure_facts(pair, status, trouble),
        **_cursor_facts(pair, status, pulse, uptime_s, now_ms),
        "unmoved": unmoved,
    }


def confirmed_ms(status: Mapping[str, Any]) -> int | None:
    """Return when the peer last told, to the end, what it holds for us; None before it ever did."""
    text = status["last_sync_at"]
    return when.ms_of(text) if text else None


def _waits_for(pair: Pair) -> str:
    if isinstance(pair.state, Asked):
        return "us"
    return "peer" if isinstance(pair.state, Requested | Waiting) else ""


def _token_facts(pair: Pair, now_ms: int) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if not pair.live:
        return facts
    if pair.issued_by_us is not None:
        facts["own_token_left_ms"] = pair.issued_by_us.expires_at_ms - now_ms
    if pair.issued_to_us is not None:
        held = frozenset(pair.issued_to_us.scopes)
        facts["token_left_ms"] = pair.issued_to_us.expires_at_ms - now_ms
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


def _cursor_facts(pair: Pair, status: Mapping[str, Any], pulse: Pulse, uptime_s: float, now_ms: int) -> dict[str, Any]:
    """Return lag and standstill, and for how long what heals by itself has lasted."""
    # What degraded the pair has lasted, whatever this process has seen of it.
    failing_s = inf if isinstance(pair.state, Degraded) else pulse.failing_s(pair.pair_id)
    stalled_s = pulse.stalled_s(pair.pair_id)
    interval_s = pair.poll_interval_ms / 1000 if pair.mode == "polling" else 0.0
    at_ms = confirmed_ms(status)
    facts: dict[str, Any] = {"lag_records": None, "confirmed_s": None if at_ms is None else (now_ms - at_ms) / 1000}
    lasting = dict.fromkeys(("dns", "connect", "timeout", "disconnected", "peer-5xx"), failing_s)
    lasting["queue-high"] = pulse.full_s(pair.pair_id)
    if pair.mode == "on-demand" or not pair.sync_allowed:
        return {**facts, "broken_s": lasting}
    facts["lag_records"] = status["lag_records"]
    lasting["cursor-stalled"] = stalled_s if stalled_s >= OVERDUE_INTERVALS * interval_s else 0.0
    lasting["cursor-skip-suspect"] = stalled_s
    if pair.mode == "polling" and not status["attempt"]:
        silent_s = uptime_s if at_ms is None else min(uptime_s, (now_ms - at_ms) / 1000)
        facts["overdue_s"] = max(0.0, silent_s - OVERDUE_INTERVALS * interval_s - OVERDUE_S)
        if facts["overdue_s"]:
            del lasting["cursor-stalled"]
    return {**facts, "broken_s": lasting}
