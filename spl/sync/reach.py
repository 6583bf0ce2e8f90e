"""What this process learns of each peer while it runs: is it there, which way the pair runs, its last view of the pair.

Three words say which way a pair runs, the same in `show`, in the peer's view and on the wire: `both`, `we-push`,
`peer-pushes`; "" as long as this process does not know.  If a side fails to dial a peer (connection refused, timeout,
name) that keeps in touch, the peer is behind a NAT: the side says `peer-pushes` in each answer, and the peer that reads
this says `we-push`.

Contact proves a NAT only if it is later than the first failure of the streak, and for CONTACT_FRESH_S: after an outage
of seconds both sides had been in touch shortly before, and each would otherwise wait for the other to dial.  A failed
question has to prove it, too: reads alone fail where a proxy cuts them.  Of the way nothing outlives the process: a new
one finds out again, and meanwhile a redundant push is recognised by its position.  When a peer was last heard, when it
answered, and why we do not reach it, does (`KnownPeers`).

A polling pair is read every five minutes and one on demand when its operator likes; without more, a peer that is gone
would be called active for as long.  So a side that has had no answer of the peer for ASK_S sends the smallest request
there is, the ack of the position that it holds anyway, with its view of the pair; the answer is the peer's view.  Each
side asks by itself (core/presence.py), and both learn the lag of both directions.  A question costs each side under a
millisecond and some 1,200 bytes on the wire.  A connection kept open for it was rejected: it would hold 30 KiB of TLS
state a pair on both sides to save that handshake.

One value for all pairs, shared by the services; used on the event loop only.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Set
from typing import Any, Final, Protocol

from ..core.errors import SplError
from ..core.event import event
from ..core.identity.did import label_of
from ..core.pair.pair import Pair
from ..core.pair.status import NO_ANSWER, LastError, PairStatus, class_of
from ..core.presence import (
    ASK_S,
    BOTH,
    CONTACT_FRESH_S,
    OFFLINE_S,
    PAUSE_S,
    PEER_PUSHES,
    TO_US,
    WE_PUSH,
    Known,
    OneWay,
    OwnBeat,
    Presence,
    known_in,
    known_text,
)
from ..core.value import Json, dataclass, field
from ..home.vault import SECRET_BYTES_MAX, Vault
from ..net.address import ReachError
from .peer import STATE_CODES, SyncError
from .rollback import Rollbacks

log = logging.getLogger("spl.federation")
KNOWN_NAME: Final = "peers-known"
KNOWN_EVERY_S: Final = 30.0  # the note in the vault is written once in so long at most, and at the stop

UNREACHED: Final = frozenset({"CONNECT_REFUSED", "TIMEOUT", "DNS_FAILURE"})  # only "not reachable"

PROCESSES_MAX: Final = 8
"""Processes of a peer that are remembered: one that comes back after another shows that both run."""
CLONED_S: Final = 2.5 * ASK_S
"""How long a peer counts as running twice after its requests last came from two processes in turn: each asks twice."""
SAYS_S: Final = 1.3 * ASK_S
"""A peer that says for so long that its requests fail asked meanwhile: what failed before is forgotten by then."""
RETURNS_MIN: Final = 3
"""A request that was held up on the way while its process was restarted makes two: its own and the new process's."""
PEER_CLONED: Final = "peer"
OUR_CLONED: Final = "us"


class KnownPeers:
    """What was known last of the peers: one note for all of them, without those that do not fit."""

    def __init__(self, vault: Vault, rollbacks: Rollbacks, now_ms: Callable[[], int]) -> None:
        self._vault, self._rollbacks, self._saved, self._next_s = vault, rollbacks, dict[str, Known](), 0.0
        self._saving: asyncio.Future[None] | None = None
        try:
            found = known_in(vault.get(KNOWN_NAME) or "{}", now_ms())
            self._saved = {key: known for key, known in found.items() if known.code in ("", *NO_ANSWER)}
        except SplError as exc:
            log.warning(**event("sync.known_unreadable", code=exc.code))

    def get(self, pair_id: str) -> Known:
        """Return what was known of a pair's peer."""
        return self._saved.get(pair_id) or Known()

    def error(self, pair_id: str) -> LastError | None:
        """Return the failure of a peer that was offline."""
        code, at_ms = self.get(pair_id).code, self.get(pair_id).failed_ms
        return LastError(code, SplError(code).message, at_ms, class_of(code)) if code else None

    def is_due(self, now_s: float, lost: Set[str]) -> bool:
        """Return whether the note calls other peers out of reach than those `lost`, and may be written again."""
        is_changed = lost != {key for key, known in self._saved.items() if known.code}
        return (is_changed or self._rollbacks.has_unsaved) and now_s >= self._next_s and self._saving is None

    def start_save(self, now_s: float, found: Mapping[str, PairStatus]) -> None:
        """Have the note of these pairs written in a thread."""
        self._next_s, loop = now_s + KNOWN_EVERY_S, asyncio.get_running_loop()
        self._saving = loop.run_in_executor(None, self.save, found)
        self._saving.add_done_callback(self._is_saved)

    def _is_saved(self, _: object) -> None:
        self._saving = None

    def save(self, found: Mapping[str, PairStatus]) -> None:
        """Write what is known of these pairs, those out of reach first; what the disk refuses is logged.

        Blocks on it.
        """
        self._rollbacks.save()
        known = dict[str, Known]()
        for pair_id, status in sorted(found.items(), key=lambda item: not item[1].lost_code):
            at_ms = (status.last_error.at_ms if status.last_error else status.heard_ms) or 0
            why = (status.lost_code, at_ms, status.answered_ms) if status.lost_code and status.heard_ms else ()
            known[pair_id] = Known(status.heard_ms, status.last_sync_ms, *why)
        try:
            if known != self._saved:
                self._vault.put(KNOWN_NAME, known_text(known, SECRET_BYTES_MAX))
                self._saved = known
        except SplError as exc:
            log.warning(**event("sync.known_unsaved", code=exc.code, error=str(exc)))


class Backlog(Protocol):
    """What waits here of one peer, and the most that did since it was last looked at."""

    records: int
    peak: int


class Reader(Protocol):
    """A pull or stream of one peer; its backlog while it runs."""

    queue: Backlog | None


class Watcher(Protocol):
    """The service that turns what is learnt of a peer into records: pairing."""

    def on_trouble(self, pair_id: str, code: str) -> None:
        """Errors recur, or the peer refused our credentials."""

    def on_success(self, pair_id: str) -> None:
        """A degraded pair synced."""

    def on_peer_state(self, pair_id: str, view: Mapping[str, Any]) -> None:
        """The peer answered that it paused or revoked the pair; a bare status, so ask for its signed word."""

    def on_view(self, pair_id: str, view: Mapping[str, Any]) -> None:
        """The peer told its view of the pair."""


class Pusher(Protocol):
    """The service that sends records to peers that cannot dial us."""

    def on_reached(self, pair_id: str) -> None:
        """We reached a peer that needs our push, or may need it."""


@dataclass(slots=True)
class _Way:
    """What is known of one pair."""

    failures: int = 0
    failing_s: float = 0.0
    """When the first failure of the streak was."""
    presence: Presence = field(default_factory=Presence)
    since_failure: bool = False
    """The peer was in touch since the first failure of the streak, by order: the clock of a loop may stand still."""
    served: bool = False
    reached: bool = False
    peer: str = ""
    view: Mapping[str, Any] = field(default_factory=dict)
    told_ms: int | None = None
    """When the peer told `view`."""
    says_ms: int | None = None
    """Since when each view that it tells says that its requests fail."""
    unread_ms: int = 0
    """When `presence.unread_s` was, by the clock that a peer is told."""
    reader: Reader | None = None
    processes: tuple[str, ...] = ()
    """Processes that asked, the newest last; a proof names its process."""
    returns_s: tuple[float, ...] = ()
    """When the process that asked was one that another had followed already."""


_UNMET: Final = _Way()
"""Stands for a pair of which this process knows nothing: one value, only looked at, as a status asks it ten times."""


class Reaches:
    """What this process knows of its peers."""

    def __init__(self, failures_max: int, now_ms: Callable[[], int]) -> None:
        """`failures_max` failures in a row make a pair unreachable (limits.errors_until_degraded)."""
        self._failures_max, self._now_ms = failures_max, now_ms
        self._own = OwnBeat()
        self._uncounted_s: float | None = None
        self.ways: dict[str, _Way] = {}
        self._pushers: tuple[Pusher, ...] = ()
        self._watchers: tuple[Watcher, ...] = ()

    def watch(self, watcher: Watcher) -> None:
        """Tell this service from now on what is learnt of peers."""
        self._watchers = (*self._watchers, watcher)

    def add_pusher(self, pusher: Pusher) -> None:
        """Tell this service from now on of each peer that we reach and that needs our push, or may need it."""
        self._pushers = (*self._pushers, pusher)

    def contact(self, pair_id: str, now_s: float, process: str = "") -> None:
        """Record that a process of the peer opened an authenticated connection; `now_s` is any steady clock."""
        way = self._way(pair_id)
        way.presence.contact_s = now_s
        way.since_failure = True
        if process and (not way.processes or process != way.processes[-1]):
            if process in way.processes:
                way.returns_s = (*way.returns_s, now_s)[-RETURNS_MIN:]
            way.processes = (*(each for each in way.processes if each != process), process)[-PROCESSES_MAX:]
        if way.returns_s and now_s > way.returns_s[-1] + CLONED_S:
            way.returns_s = ()

    def arrived(self, pair_id: str) -> None:
        """Record that a request by a token of this pair arrived and was refused: the way to us is open."""
        if pair_id in self.ways:
            self.ways[pair_id].presence.refused_s = asyncio.get_running_loop().time()

    def cloned(self, pair_id: str) -> str:
        """Return whose identity two daemons use at once: PEER_CLONED, OUR_CLONED as the peer says, or ""."""
        way = self.ways.get(pair_id, _UNMET)
        if len(way.returns_s) == RETURNS_MIN:
            return PEER_CLONED
        return OUR_CLONED if way.view.get("cloned") else ""

    def presence(self, pair_id: str) -> Presence:
        """Return when the peer was heard; what is recorded there counts."""
        return self._way(pair_id).presence

    def seen(self, pair_id: str) -> Presence:
        """Return the same, to be looked at only: nothing is kept of a pair that is only listed."""
        return self.ways.get(pair_id, _UNMET).presence

    def waits(self, pair_id: str, now_s: float, known: Known) -> None:
        """Record, the first time, that we wait for the peer, of which a process before knew this."""
        presence = self.presence(pair_id)
        if presence.waited_s is None:
            presence.resume(now_s, self._now_ms(), known)

    def unreached(self, pair_id: str) -> str:
        """Return why our requests to the peer fail, for the peer; "" if they do not, or need not arrive."""
        way = self.ways.get(pair_id, _UNMET)
        return way.presence.unreached(served=way.served)

    def lost_code(self, pair_id: str, now_s: float) -> str:
        """Return why the peer has answered nothing for OFFLINE_S, "" if it has, or need not."""
        code, passed_s = self.unreached(pair_id), self.seen(pair_id).unanswered_s(now_s)
        return code if code in NO_ANSWER and passed_s >= OFFLINE_S else ""

    def unread(self, pair_id: str, code: str, began_s: float, now_s: float) -> None:
        """Record that a read that began then did not arrive, and why."""
        if self.was_stopped(now_s):
            return
        way = self._way(pair_id)
        way.presence.unread(code, began_s)
        way.unread_ms = self._now_ms() - int((now_s - (way.presence.unread_s or began_s)) * 1000)

    def trouble(self, pair_id: str) -> Json:
        """Return for the peer why our requests fail, if they do, and for how long if only reads do."""
        way = self.ways.get(pair_id, _UNMET)
        if way.served or not way.presence.is_unread:
            return {"unreached": code} if (code := self.unreached(pair_id)) else {}
        return {"unreached": way.presence.unread_code, "unread_ms": max(0, self._now_ms() - way.unread_ms)}

    def one_way(self, pair_id: str, now_s: float, *, reads: bool) -> OneWay | None:
        """Return which direction alone is broken; None if both work, or neither does (`reads`: core/presence.py)."""
        way, pushed = self.ways.get(pair_id, _UNMET), self.word(pair_id) == WE_PUSH
        found = way.presence.one_way(now_s, way.view, served=way.served, pushed=pushed, reads=reads)
        if found is not None or way.says_ms is None or not way.presence.is_fresh(now_s):
            return found
        # Its requests arrive, and it goes on to say that they fail: so its reads do, or our answers to all of them.
        now_ms, code = self._now_ms(), str(way.view.get("unreached", ""))
        if "unread_ms" in way.view:
            return OneWay(TO_US, (way.view["unread_ms"] + now_ms - (way.told_ms or now_ms)) / 1000, code, reads=True)
        said_s = (now_ms - way.says_ms) / 1000 - SAYS_S
        return OneWay(TO_US, OFFLINE_S + said_s, code, reads=True) if said_s >= 0 else None

    def beat(self, now_s: float, next_s: float, uncounted_s: float = 0.0) -> bool:
        """Record that this daemon runs and says so again in `next_s`; after a pause of its own it waits from the start.

        Return whether there was one; `uncounted_s` is what the machine slept so far without its clock counting it.
        """
        before_s, self._uncounted_s = self._uncounted_s, uncounted_s
        asleep_s = 0.0 if before_s is None else uncounted_s - before_s
        paused = self._own.beat(now_s, next_s, asleep=asleep_s > PAUSE_S)
        for way in self.ways.values() if paused else ():
            way.presence.slept(now_s, max(0.0, asleep_s))
        return paused

    def was_stopped(self, now_s: float) -> bool:
        """Return whether a failure of this moment may be one of this daemon, which did not run."""
        return self._own.was_stopped(now_s)

    def answered(self, pair_id: str, view: Mapping[str, Any]) -> None:
        """Record that we dialled the peer and it answered; `view` is its view of the pair."""
        way = self._way(pair_id)
        way.failures, way.served, way.reached = 0, False, True
        self.heard(pair_id, view)

    def reached(self, pair_id: str, view: Mapping[str, Any]) -> None:
        """Record that we read from the peer; what it lacks is pushed if it needs our push, or may need it."""
        self.answered(pair_id, view)
        if self.may_push(pair_id):
            for pusher in self._pushers:
                pusher.on_reached(pair_id)

    def heard(self, pair_id: str, view: Mapping[str, Any]) -> None:
        """Record the peer's view of the pair, its own word on reach included if it has one."""
        way = self._way(pair_id)
        way.peer = str(view.get("reach", "")) or way.peer
        if view:
            way.view, way.told_ms = view, self._now_ms()
            way.says_ms = (way.says_ms or way.told_ms) if "unreached" in view else None
        for watcher in self._watchers:
            watcher.on_view(pair_id, view)

    def stopped(self, pair_id: str, view: Mapping[str, Any]) -> None:
        """Record that the peer refused a request because it paused or revoked the pair."""
        self.heard(pair_id, view)
        for watcher in self._watchers:
            watcher.on_peer_state(pair_id, view)

    def refused(self, pair_id: str, exc: SyncError) -> None:
        """Record what the refusal of one of our requests tells of the peer's view, if it does."""
        if exc.view is not None and exc.code in STATE_CODES:
            self.stopped(pair_id, exc.view)
        elif exc.view is not None:
            self.heard(pair_id, exc.view)

    def failed(self, pair_id: str, kind: str, now_s: float, *, asked: bool = True) -> bool:
        """Record a failure of this class; return whether the peer serves us by push, so that it is no trouble.

        It does if it was in touch since the first failure of the streak and during the last CONTACT_FRESH_S, and once
        a question failed, too (`asked`).
        """
        way = self._way(pair_id)
        if kind not in UNREACHED:
            way.failures, way.served = 0, False
            return False
        if not way.failures:
            way.failing_s, way.since_failure = now_s, False
        way.failures += 1
        way.reached = False
        way.served = (asked or way.served) and self._may_serve(way, way.failures, now_s)
        return way.served

    def may_serve(self, pair_id: str, now_s: float) -> bool:
        """Return whether one more failure shows that the peer serves us by push, if questions fail, too."""
        way = self._way(pair_id)
        return not way.served and self._may_serve(way, way.failures + 1, now_s)

    def _may_serve(self, way: _Way, failures: int, now_s: float) -> bool:
        return way.since_failure and way.presence.is_fresh(now_s) and failures >= self._failures_max

    def forbidden(self, pair_id: str, now_s: float) -> bool:
        """Record that the peer names an address that we do not dial; return whether it may serve us by push.

        There was no way to it at any time, so contact from before counts, and nothing has to fail first.  A peer that
        is not in touch for CONTACT_FRESH_S leaves the pair without any way.
        """
        way = self._way(pair_id)
        if not way.failures:
            way.failing_s = now_s
        way.failures += 1
        way.reached = False
        contact_s = way.presence.contact_s
        since_s = way.failing_s if contact_s is None else max(contact_s, way.failing_s)
        way.served = now_s <= since_s + CONTACT_FRESH_S
        return way.served

    def troubled(self, pair_id: str, code: str) -> None:
        """Tell the watchers that errors recur, or that the peer refused our credentials."""
        for watcher in self._watchers:
            watcher.on_trouble(pair_id, code)

    def recovered(self, pair_id: str) -> None:
        """Tell the watchers that a degraded pair synced."""
        for watcher in self._watchers:
            watcher.on_success(pair_id)

    def track(self, pair_id: str, reader: Reader) -> None:
        """Have the reader's backlog counted for this pair."""
        self._way(pair_id).reader = reader

    def word(self, pair_id: str) -> str:
        """Return how the pair runs as far as we know: one of REACH_WORDS or ""; this is what the peer is told."""
        way = self.ways.get(pair_id, _UNMET)
        if way.served:
            return PEER_PUSHES
        if way.peer == PEER_PUSHES:
            return WE_PUSH
        return BOTH if way.reached else ""

    def may_push(self, pair_id: str) -> bool:
        """Return whether the peer needs our push, or has not said yet that it reaches us."""
        way = self.ways.get(pair_id, _UNMET)
        return way.peer in ("", PEER_PUSHES) and not way.served

    def view(self, pair_id: str) -> Mapping[str, Any]:
        """Return the peer's last view of the pair, {} before the first contact of this process."""
        return self.ways.get(pair_id, _UNMET).view

    def told_ms(self, pair_id: str) -> int | None:
        """Return when the peer told its last view of the pair."""
        return self.ways.get(pair_id, _UNMET).told_ms

    def queue_records(self, pair_id: str) -> int:
        """Return how many of the peer's records wait here between network and store."""
        reader = self.ways.get(pair_id, _UNMET).reader
        queue = reader.queue if reader is not None else None
        return queue.records if queue is not None else 0

    def _way(self, pair_id: str) -> _Way:
        return self.ways.get(pair_id) or self.ways.setdefault(pair_id, _Way())


def error_of(exc: SplError, kind: str, now_ms: int) -> LastError:
    """Return a failure of this class as what is shown of it."""
    status, revoked = getattr(exc, "peer_status", 0), isinstance(exc, SyncError) and exc.revoked
    return LastError(exc.code, exc.message, now_ms, kind, revoked, isinstance(exc, ReachError) and exc.reached, status)


def with_way(reach: str, pair: Pair, error: SplError, command: str) -> SplError:
    """Return the error of a request to a peer; if it did not arrive, as only the peer can dial, with what to do there.

    One that the peer answered, or that we refused ourselves, has its own next step.
    """
    if reach != PEER_PUSHES or class_of(error.code) not in UNREACHED:
        return error
    hint = f"on {label_of(pair.peer_did)}: {command}"
    return SplError(error.code, f"{error.message}; the peer opens the connections of this pair", hint=hint)
