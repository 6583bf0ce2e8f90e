"""What the signed statements of a pair's peer change: whether it pauses, and whether we doubt it, at a bounded rate.

Budgets let a peer send 600 messages a minute for ever, and each change is two records and a line.  So a change beyond
CHANGES_MAX waits in memory for its turn, one in CHANGE_EVERY_S, and the last statement replaces one that waits: what
counts is where the peer stands.  A restart loses it and asks all peers where they stand.  A doubt beyond the same
bound is dropped, because the message behind it is refused in any case.

Renewals are bounded in tokens.py, grants in grants.py, manifests in machine.py.  Whatever they append counts as brought
in by the pair (sync/budget.py), but only grants and synced records are refused for that.  Rejected: to refuse every
message while intake is paused, because a pair at its limit must still pause, revoke and renew.

Blocks on the disk, except where a method says otherwise; runs on the thread of the steps.
"""

from collections.abc import Mapping
from typing import Any, Final

from ..core import when
from ..core.backoff import Buckets
from ..core.identity import message
from ..core.pair import handshake, steps
from ..core.pair.modes import ENGINE, MODES
from ..core.pair.pair import ESTABLISHED, Pair
from ..core.pair.steps import Effect
from ..core.value import dataclass
from .machine import REVOKED, Pairs, by_peer, unconfirmed

CHANGES_MAX: Final = 8  # each is a record that a peer causes
CHANGE_EVERY_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A statement that waits for its turn, by the steady clock."""

    state: str
    said_ms: int
    due_ms: int


class PeerStatements:
    """The statements of the peers of all pairs."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        count = pairs.limits.pairs_count
        self._changes = Buckets(CHANGES_MAX, 1 / CHANGE_EVERY_S, count)
        self._doubts = Buckets(CHANGES_MAX, 1 / CHANGE_EVERY_S, count)
        """Apart from the changes: the thief of a retired key can cause doubt, and must not delay the owner's words."""
        self._said_ms: dict[str, int] = {}
        self._waiting: dict[str, _Waiting] = {}

    def hear(self, pair: Pair, fields: Mapping[str, Any]) -> tuple[Pair, tuple[Effect, ...]]:
        """Return pair and effects after the state that the peer's message states; only its latest statement counts."""
        said_ms = message.issued_at_ms(fields)
        if said_ms <= max(self._said_ms.get(pair.pair_id, 0), pair.peer_said_ms):
            return pair, ()
        self._said_ms[pair.pair_id] = said_ms
        return self.learn(pair, fields.get("state"), said_ms, handshake.reason_of(fields))

    def learn(self, pair: Pair, state: object, said_ms: int, reason: str) -> tuple[Pair, tuple[Effect, ...]]:
        """Return pair and effects after the peer's signed state: an end at once, a pause or its end in its turn."""
        if pair.ended:
            return pair, ()
        if state in handshake.ENDED:
            note = reason if state == "rejected" and reason != state else ""
            end = steps.End(str(state) if state != REVOKED else by_peer(reason), note)
            return self.pairs.take(pair, end, brought=True)
        change = _change(pair, state, said_ms)
        if state in ("paused", "active"):
            self._waiting.pop(pair.pair_id, None)
        if change is None:
            return pair, ()
        wait_s = self._changes.take(pair.peer_did, self.pairs.steady_ms() / 1000)
        if wait_s:
            due_ms = self.pairs.steady_ms() + int(wait_s * 1000) + 1
            self._waiting[pair.pair_id] = _Waiting(str(state), said_ms, due_ms)
            return pair, ()
        return self.pairs.take(pair, change, brought=True)

    def follow(self, pair: Pair, fields: Mapping[str, Any], after_ms: int) -> Pair:
        """Return the pair in the mode that its peer asks us to fetch in; as it is if that is none or one too many.

        Each is a record, so it counts with the other changes; also of the mode that it has, for its date: a message
        that was captured is not later than `after_ms`, the last date that a record keeps, and changes nothing.
        """
        mode, said_ms = fields["mode"], message.issued_at_ms(fields)
        if mode not in MODES or pair.mode == ENGINE or type(pair.state) not in ESTABLISHED or said_ms <= after_ms:
            return pair
        if self._changes.take(pair.peer_did, self.pairs.steady_ms() / 1000):
            return pair
        return self.pairs.take(pair, steps.Configure({"mode": mode, "said_at": when.text_of(said_ms)}), brought=True)[0]

    def doubt(self, pair: Pair, code: str) -> None:
        """Mark a pair as degraded whose peer shows what does not verify, or fails; one too many changes nothing."""
        now_s = self.pairs.steady_ms() / 1000
        if not self._doubts.wait_s(pair.peer_did, now_s) and self.pairs.doubt(pair, code):
            self._doubts.take(pair.peer_did, now_s)

    def take_waiting(self) -> list[tuple[str, tuple[Effect, ...]]]:
        """Take the statements whose turn has come; return (pair id, effects) of each."""
        now_ms, found = self.pairs.steady_ms(), list[tuple[str, tuple[Effect, ...]]]()
        for pair_id, each in list(self._waiting.items()):
            pair = self.pairs.get(pair_id)
            if pair is None or pair.ended:
                del self._waiting[pair_id]
            elif each.due_ms <= now_ms:
                found.append((pair_id, self.learn(pair, each.state, each.said_ms, "")[1]))
        return found

    def next_s(self) -> float:
        """Return the seconds until a statement is due, infinite if none waits; for any thread."""
        times = [each.due_ms for each in list(self._waiting.values())]
        return max(0.0, (min(times) - self.pairs.steady_ms()) / 1000) if times else float("inf")


def _change(pair: Pair, state: object, said_ms: int) -> steps.PeerPause | steps.PeerResume | None:
    """Return the event of the peer's state, None if it says what we hold or nothing about pauses."""
    if state == "paused" and pair.paused_by in ("", "us") and pair.live and not unconfirmed(pair):
        return steps.PeerPause(said_ms)
    if state == "active" and pair.paused_by in ("peer", "both"):
        return steps.PeerResume(said_ms)
    return None
