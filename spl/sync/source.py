"""Where a pair's reading of our log stands: whether it is served now, its scope, its lanes and its sealed cursor.

What pages (`changes.py`) and streams (`stream.py`) have in common.  Any thread may ask.

A look takes nothing newer than the last commit that was told of (`last_seq`), and its scope is read after that.  So a
record that was written after a withdrawal never goes out: whoever may see the record has seen the withdrawal.

What a peer confirmed is kept in memory only: it decides nothing here, and after a restart the peer's next ack tells
it again.
"""

import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from ..core import consent
from ..core.consent import Outbound
from ..core.errors import SplError
from ..core.identity.did import multibase
from ..core.keys import AEAD_NONCE_BYTES
from ..core.limits import Limits
from ..core.pair.pair import Pair, Phase
from ..core.record import cursor as cursors
from ..core.record import levels
from ..core.record.cursor import Cursor, Lane
from ..core.record.filter import OPEN
from ..core.record.levels import EXACT
from ..home.index import Row
from ..home.segments import LineError
from ..home.vault import Vault
from ..home.writer import WriteError, Writer
from . import lanes as offer
from .lanes import Counts, EmptyRanges, LaneScan, LogView, Scope


class FeedError(SplError):
    """The feed does not answer this: state of the pair, cursor, or a parameter."""


@dataclass(frozen=True, slots=True)
class Query:
    """What a peer asks for; `thread` and `namespace` narrow it to a reading of its own, with cursors of its own.

    `reads`: the namespaces of a token that our operator minted for no pair; its id stands in the place of the pair's.
    """

    since: str = ""
    limit: int = 0
    feed: str = "normal"
    thread: str = ""
    namespace: str = ""
    resync: bool = False
    pushed: bool = False
    """We read it ourselves, to push it: says nothing of what the peer's own reading did."""
    reads: tuple[str, ...] = ()


class Source:
    """Our side of all pairs' readings.

    `queue_records` tells how many records of a peer wait in our own intake, `reach` which way a pair runs.
    """

    def __init__(
        self,
        writer: Writer,
        vault: Vault,
        limits: Limits,
        *,
        random_bytes: Callable[[int], bytes],
        queue_records: Callable[[str], int],
        last_seq: Callable[[], int],
        reach: Callable[[str], str] = lambda pair_id: "",
    ) -> None:
        """`last_seq` gives the end of the last commit that listeners were told of."""
        self.writer = writer
        self.vault = vault
        self.limits = limits
        self.shown = OutgoingForm(writer, vault)
        self.counts = Counts()
        self.last_seq = last_seq
        self.acked: dict[str, tuple[int, int]] = {}
        """Pair -> (records confirmed, when in Unix ms)."""
        self.doubted: set[str] = set()
        """Pairs whose peer must begin again; see `trust`."""
        self._random_bytes = random_bytes
        self._queue_records = queue_records
        self._reach = reach
        self._blanks: dict[str, EmptyRanges] = {}
        self._scopes: dict[str, tuple[tuple[Any, ...], Scope]] = {}

    def pair(self, pair_id: str) -> Pair:
        """Return the pair when we answer its pulls now.

        Raises FeedError "pair-unknown", "pair-paused", "pair-revoked", "pair-state-conflict", with `peer_view`.
        """
        pair = self.writer.views.pairs.get(pair_id)
        if pair is None:
            raise FeedError("pair-unknown")
        if not pair.serve_allowed:
            codes = {Phase.PAUSED: "pair-paused", Phase.REVOKED: "pair-revoked"}
            code = codes.get(pair.phase, "pair-state-conflict")
            raise FeedError(code, peer_view=self.peer_view(pair_id))
        return pair

    def scope(self, pair: Pair, namespace: str = "") -> Scope:
        """Return what the pair may read now; kept until what it is made of is replaced."""
        views = self.writer.views
        made_of = (pair, views.consents, views.namespaces, views.pairs, views.did)
        kept = self._scopes.get(pair.pair_id)
        if kept is None or any(one is not other for one, other in zip(kept[0], made_of, strict=True)):
            _, consents, registry, pairs, own_did = made_of
            shares = consent.outbound(pair, consent.book_of(consents, pair), registry)
            kept = self._scopes[pair.pair_id] = made_of, offer.scope_of(pair, shares, pairs, own_did)
        found = kept[1]
        return found if not namespace else replace(found, shares=_only(found.shares, namespace))

    def scope_now(self, pair_id: str, query: Query) -> Scope:
        """Return what this reading may see now; raise what `pair` raises."""
        if not query.reads:
            return self.scope(self.pair(pair_id), query.namespace)
        shares = {ns: Outbound(ns, ns, EXACT) for ns in query.reads}
        chosen = _only(shares, query.namespace) if query.namespace else shares
        return Scope(chosen, (OPEN,), frozenset(), "", self.writer.views.did)

    def look(self, pair_id: str, query: Query) -> LogView:
        """Return the look at the log as it is now that a reading takes; raise what `pair` raises."""
        last_seq = self.last_seq()  # before the scope
        return self.at(pair_id, self.scope_now(pair_id, query), last_seq)

    def at(self, pair_id: str, scope: Scope, last_seq: int) -> LogView:
        """Return a look of this scope up to `last_seq`, which must have been read before the scope."""
        blanks = self._blanks.setdefault(pair_id, EmptyRanges())
        return LogView(self.writer.store.index, self.writer.store.payloads, scope, last_seq, blanks)

    def open(self, pair_id: str, query: Query) -> tuple[LogView, Cursor | None]:
        """Return the look to take and the opened cursor, None at the very start.

        Raises FeedError as `pair` does, "cursor-reset" when the log behind the cursor is another one, CursorError.
        """
        look = self.look(pair_id, query)
        if not query.since:
            return replace(look, whole=query.resync), None
        cursor = self._unsealed(pair_id, query.since)
        if cursor.epoch != self.writer.store.epoch or not self._is_ours(cursor):
            raise FeedError("cursor-reset", peer_view=self.peer_view(pair_id))
        return replace(look, whole=cursor.whole), cursor

    def trust(self, pair_id: str, cursor: Cursor | None, resync: bool) -> None:
        """Return when a reading may go on from this cursor.

        A peer whose log was set back still holds our cursor of before, and would never see again what it lost: it is
        refused until a whole reading begins, as "cursor-invalid" ("cursor-reset" would send us back to its start in
        turn).
        """
        if pair_id not in self.doubted:
            return
        if cursor is None:
            if resync:
                self.doubted.discard(pair_id)
        elif not cursor.whole:
            raise FeedError("cursor-invalid", "begin again: your log was set back", peer_view=self.peer_view(pair_id))

    def readings(self, look: LogView, query: Query, cursor: Cursor | None) -> list[LaneScan]:
        """Return the lanes of a reading where its cursor left them."""
        known = cursor.by_key() if cursor is not None else {}
        return offer.lanes_through(look, known, query.thread, bool(query.namespace))

    def next(
        self, pair_id: str, since: str, before: Cursor | None, readings: Sequence[LaneScan], whole: bool
    ) -> tuple[str, Cursor]:
        """Return the cursor, sealed and open, of a reading that came this far from `before`, sealed as `since`.

        One that moved nothing gets the very text it was asked with, so the peer need not save it.
        """
        held = lanes_held(readings, before)
        stands = before is not None and set(held) == set(before.lanes) and whole == before.whole
        if before is not None and stands and self._is_sealed_for(pair_id, since):
            return since, before
        # The newest line that this reading went past: only a log set back behind it can have lost what was read.
        seq, run = self._run_at(max((lane.position for lane in held), default=0), before)
        cursor = Cursor(self.writer.store.epoch, seq, run, held, whole)
        return self.seal(pair_id, cursor), cursor

    def seal(self, pair_id: str, cursor: Cursor) -> str:
        """Return the cursor's text for the pair."""
        return cursors.seal(cursor, self.vault.cursor_key(), self._random_bytes(AEAD_NONCE_BYTES), pair_id)

    def head(self, pair_id: str) -> int | None:
        """Return how many records the pair is offered; None while they are being counted."""
        last_seq, pair = self.last_seq(), self.writer.views.pairs.get(pair_id)
        return self.counts.head(pair_id, self.at(pair_id, self.scope(pair), last_seq)) if pair is not None else 0

    def told(self, pair_id: str) -> int | None:
        """Return the same for the peer: as of when it was last known, None only before it was known at all."""
        last_seq, pair = self.last_seq(), self.writer.views.pairs.get(pair_id)
        return self.counts.told(pair_id, self.at(pair_id, self.scope(pair), last_seq)) if pair is not None else 0

    def count(self, pair_id: str) -> bool:
        """Count on what the pair is offered, for some ms; return whether that is all.  For a thread."""
        last_seq, pair = self.last_seq(), self.writer.views.pairs.get(pair_id)
        if pair is None or not pair.serve_allowed:
            return True
        return self.counts.advance(pair_id, self.at(pair_id, self.scope(pair), last_seq))

    def peer_view(self, pair_id: str, query: Query | None = None) -> dict[str, object]:
        """Return how we see the pair, for the peer: state, reason, head, acked, queue, consent, and reach if known.

        `head` is None while it is counted for the first time.  Who reads by a token of its own (`query.reads`) gets
        the same form.
        """
        pair = self.writer.views.pairs.get(pair_id)
        if query is not None and query.reads:
            head = offer.head(self.writer.store.index, self.scope_now(pair_id, replace(query, namespace="")))
            return {"state": str(Phase.ACTIVE), "reason": "", "head": head, "acked": None, "queue": 0}
        if pair is None:
            return {"state": "unknown", "reason": "", "head": 0, "acked": None, "queue": 0}
        acked, _ = self.acked.get(pair_id, (None, None))
        reach, weight = self._reach(pair_id), consent.book_of(self.writer.views.consents, pair).weight
        return {
            "state": str(pair.phase),
            "reason": pair.reason,
            "head": self.told(pair_id) if pair.serve_allowed else 0,
            "acked": acked,
            "queue": self._queue_records(pair_id),
            **({"consent": weight} if weight else {}),
            **({"reach": reach} if reach else {}),
        }

    def _unsealed(self, pair_id: str, text: str) -> Cursor:
        key, pair = self.vault.cursor_key(), self.writer.views.pairs.get(pair_id)
        try:
            return cursors.open_(text, key, pair_id)
        except cursors.CursorError:
            if pair is None or not pair.inherits:
                raise
            # The first request of a pair that superseded another comes with that one's position.
            return cursors.open_(text, key, pair.inherits)

    def _is_sealed_for(self, pair_id: str, text: str) -> bool:
        try:
            cursors.open_(text, self.vault.cursor_key(), pair_id)
        except cursors.CursorError:
            return False
        return True

    def _is_ours(self, cursor: Cursor) -> bool:
        try:
            return self.writer.store.run_at(cursor.run_seq) == cursor.run
        except LineError as exc:
            # A damaged line says nothing about the log around it, and the epoch agrees.
            return exc.code == "store-damaged"

    def _run_at(self, seq: int, before: Cursor | None) -> tuple[int, str]:
        """Return a line up to `seq` and the running hash there; the place before where that line is damaged."""
        try:
            return seq, self.writer.store.run_at(seq)
        except LineError:
            return (before.run_seq, before.run) if before is not None else (0, self.writer.store.run_at(0))


def lanes_held(readings: Sequence[LaneScan], before: Cursor | None) -> tuple[Lane, ...]:
    """Return the lanes of the next cursor.

    Those that consent or a rule took away keep their place, the farthest first, as long as there is room: they tell
    what was given already.
    """
    lanes = {reading.key: reading.lane() for reading in readings}
    kept = [lane for lane in (before.lanes if before is not None else ()) if lane.key not in lanes]
    kept.sort(key=lambda lane: (-lane.position, lane.key))
    return (*lanes.values(), *kept)[: cursors.LANES_MAX]


def clock_of(readings: Sequence[LaneScan]) -> int:
    """Return how many records in scope lie up to where the lanes are."""
    return sum(reading.count for reading in readings)


def _only(shares: Mapping[str, Outbound], namespace: str) -> Mapping[str, Outbound]:
    return {ns: share for ns, share in shares.items() if ns == namespace}


SIGNERS_MAX: Final = 4096


_SECRET: Final = b"syncropel-pseudonym-key-v1"


class OutgoingForm:
    """The wire form of rows; used in the feed's threads."""

    def __init__(self, writer: Writer, vault: Vault) -> None:
        self.writer = writer
        self.vault = vault
        self._signers: dict[str, set[str]] = {}

    def payloads(self, pair_id: str, scope: Scope, rows: Sequence[Row]) -> list[bytes]:
        """Return what goes out for the rows, each at the level of its namespace; raise HubError "identity-missing"."""
        stored = self.writer.store.payloads(rows)
        self.note(pair_id, scope, rows)
        if all(scope.shares[row.ns].level == EXACT for row in rows):
            return stored
        return [self._shown(pair_id, scope, row, raw) for row, raw in zip(rows, stored, strict=True)]

    def note(self, pair_id: str, scope: Scope, rows: Sequence[Row]) -> None:
        """Remember whose records the pair is given in full."""
        if scope.tallied:
            return  # the index knows
        given = {row.voucher for row in rows if scope.shares[row.ns].level == EXACT}
        signers = self._signers.setdefault(pair_id, set())
        if len(signers) + len(given) > SIGNERS_MAX:
            # Whoever got records of those before has asked; these are asked for next.
            self._signers[pair_id] = given
        else:
            signers.update(given)

    def knows(self, pair_id: str, scope: Scope, did: str) -> bool:
        """Tell whether the pair may see records of this signer in full, as far as that is known."""
        full = [ns for ns, share in scope.shares.items() if share.level == EXACT]
        if did == scope.own_did:
            return True
        if not scope.tallied:
            return bool(full) and did in self._signers.get(pair_id, ())
        return scope.filter.relay and any(self.writer.store.index.tally(f"v:{ns}:{did}") for ns in full)

    def _shown(self, pair_id: str, scope: Scope, row: Row, raw: bytes) -> bytes:
        share = scope.shares[row.ns]
        if share.level == EXACT:
            return raw
        signer = self.writer.signer
        if signer is None:
            raise WriteError("identity-missing")
        value = json.loads(raw)
        content = levels.content(value["record"], value["id"], share.level, pair_id, self._secret())
        key_text = multibase(signer.chain.present)
        return levels.project(content, share.level, share.ns, pair_id, signer.chain.did, key_text, signer.key)

    def pseudonym(self, pair_id: str, record_id: str) -> str:
        """Return what a record id is called at L2 and L3 towards this pair."""
        return levels.pseudonym(self._secret(), pair_id, record_id)

    def _secret(self) -> bytes:
        """Return what pseudonyms are made with: of the key of cursors, yet not that key."""
        return hmac.digest(self.vault.cursor_key(), _SECRET, "sha256")
