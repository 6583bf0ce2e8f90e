"""What pages and streams to a peer have in common: is it served now, its scope, its cursor, and the form of records.

Every reading takes the end of the last announced commit first (`last_seq`) and its scope after that.  A record written
after a withdrawal therefore never goes out: a view that reaches the record has a scope that knows of the withdrawal.
The other order would need a lock between the writer and all readers.

A cursor is sealed with our key and holds the log's running hash beside its lanes (`core/record/cursor.py`), so we keep
no state for a reader, and notice a log that was replaced.  What a peer confirmed is kept in memory: it decides
nothing here, and after a restart the peer's next ack brings it again.

Records go out as the stored bytes (`OutgoingForm`), without being parsed, or as projections of the granted level.

Any thread may ask.
"""

import hmac
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from ..core import consent
from ..core.consent import Outbound
from ..core.errors import SplError
from ..core.identity.did import Chain, multibase
from ..core.keys import AEAD_NONCE_BYTES
from ..core.limits import Limits
from ..core.pair.modes import POLLING
from ..core.pair.pair import Pair, Phase
from ..core.pair.state import IN_TOUCH, known, refusal_code
from ..core.presence import ASK_S, PEER_PUSHES
from ..core.record import cursor as cursors
from ..core.record import levels
from ..core.record.cursor import Cursor
from ..core.record.filter import OPEN
from ..core.record.levels import EXACT
from ..core.value import Json, dataclass, replace
from ..home.index import Row
from ..home.segments import LineError
from ..home.tables.lists import vouched
from ..home.vault import Vault
from ..home.writer import WriteError, Writer
from .lanes import LaneScan, lanes_through, next_lanes
from .notify import RecentCommits
from .reach import PEER_CLONED, Reaches
from .rollback import OURS, Rollbacks
from .scope import Counts, EmptyRanges, LogView, Scope, scope_of, tally

log = logging.getLogger("spl.federation")

SEALED_MAX: Final = 256  # sealing takes 7 us; the oldest goes
NONCES: Final = 64
"""Drawn at once: to ask the system for one costs a stream as much as its event's head."""
SIGNERS_MAX: Final = 4096
"""Signers remembered for each pair whose scope the index does not count."""
ASKS_MS: Final = int(1.1 * ASK_S * 1000)
_PSEUDONYM_KEY: Final = b"syncropel-pseudonym-key-v1"


class FeedError(SplError):
    """The changes feed refuses a request: state of the pair, cursor, or a parameter."""


class Credential(Protocol):
    """What a reader was let in by; it may end while a page or stream is still being sent."""

    def holds(self) -> bool:
        """Return whether the reader may still be sent records."""


class _OurOwn:
    """The credential of what we read ourselves, which always holds."""

    def holds(self) -> bool:
        return True


OUR_OWN: Final = _OurOwn()


@dataclass(frozen=True, slots=True)
class Query:
    """What a peer asks for; `thread` and `namespace` narrow it to a separate reading, with separate cursors.

    `reads`: the namespaces of a token that our operator minted for no pair; the token's id then replaces the pair's.
    """

    since: str = ""
    limit: int = 0
    feed: str = "normal"
    thread: str = ""
    namespace: str = ""
    resync: bool = False
    pushed: bool = False
    """Whether we read in order to push; this shows nothing about the peer's own reading."""
    reads: tuple[str, ...] = ()
    names: bool = False
    """Whether a record in full is only named, as the way does not carry it; for a page of one record."""


class Source:
    """Our side of all pairs' readings."""

    def __init__(
        self, writer: Writer, vault: Vault, limits: Limits, reaches: Reaches, recent: RecentCommits, *,
        random_bytes: Callable[[int], bytes],
    ) -> None:  # fmt: skip
        """`recent` ends with the last commit that was announced to listeners; `reaches` goes into the peer's view."""
        self.writer = writer
        self.vault = vault
        self.limits = limits
        self.outgoing = OutgoingForm(writer, vault)
        self.counts = Counts()
        self.reaches = reaches
        self.acked: dict[str, tuple[int, int]] = {}
        """Pair -> (records confirmed, when in Unix ms)."""
        self.rollbacks = Rollbacks(vault)
        self._random_bytes = random_bytes
        self._recent = recent
        self._nonces: list[bytes] = []
        self._sealed: dict[tuple[str, str], Cursor] = {}
        self._sealed_before = self._sealed
        """The last cursors that were sealed, as an ack brings one back within milliseconds; any thread may add."""
        self.empty: dict[str, EmptyRanges] = {}
        self._scopes: tuple[tuple[object, ...], dict[str, tuple[Pair, Scope]]] = ((None,) * 4, {})
        """Those made of the present values, by pair; one that kept the values of its own day kept all pairs of it."""

    def last_seq(self) -> int:
        """Return the end of the last commit that was announced; a reading takes it before its scope."""
        return self._recent.state[1]

    def chain(self, did: str) -> Chain | None:
        """Return the key chain of a signer, as we know it."""
        identity = self.vault.identity
        if identity is not None and identity.did == did:
            return identity.chain
        return self.writer.views.pins.chain(did)

    def pair(self, pair_id: str) -> Pair:
        """Return a pair whose pulls we answer now.

        Raises PairError "pair-unknown", FeedError "pair-paused", "pair-revoked", "pair-state-conflict" (with
        `peer_view`).
        """
        pair = known(self.writer.views.pairs, pair_id)
        if not pair.serve_allowed:
            raise FeedError(refusal_code(pair), peer_view=self.peer_view(pair_id))
        return pair

    def scope(self, pair: Pair, namespace: str = "") -> Scope:
        """Return what the pair may read now; computed again once a value that it depends on is replaced."""
        views = self.writer.views
        made_of = (views.consents, views.namespaces, views.pairs, views.did)
        scopes = self._scopes
        if any(one is not other for one, other in zip(scopes[0], made_of, strict=True)):
            scopes = self._scopes = made_of, {}
        kept = scopes[1].get(pair.pair_id)
        if kept is None or kept[0] is not pair:
            shares = consent.outbound(pair, consent.grants_of(views.consents, pair), views.namespaces)
            kept = scopes[1][pair.pair_id] = pair, scope_of(pair, shares, views.pairs, views.did)
        found = kept[1]
        return found if not namespace else replace(found, shares=_only(found.shares, namespace))

    def scope_now(self, pair_id: str, query: Query) -> Scope:
        """Return what this reading may see now.  Raises as `pair` does."""
        if not query.reads:
            return self.scope(self.pair(pair_id), query.namespace)
        shares = {ns: Outbound(ns, ns, EXACT) for ns in query.reads}
        chosen = _only(shares, query.namespace) if query.namespace else shares
        return Scope(chosen, (OPEN,), frozenset(), "", self.writer.views.did)

    def view(self, pair_id: str, query: Query) -> LogView:
        """Return the log as this reading may see it now.  Raises as `pair` does."""
        last_seq = self.last_seq()  # before the scope
        return self.view_at(pair_id, self.scope_now(pair_id, query), last_seq)

    def view_at(self, pair_id: str, scope: Scope, last_seq: int) -> LogView:
        """Return the view of this scope up to `last_seq`, which must have been read before the scope."""
        empty = self.empty.get(pair_id)
        if empty is None:
            pair, empty = self.writer.views.pairs.get(pair_id), EmptyRanges()
            empty = empty if pair is not None and pair.ended else self.empty.setdefault(pair_id, empty)
        return LogView(self.writer.store.index, self.writer.store.read, scope, last_seq, empty)

    def open(self, pair_id: str, query: Query) -> tuple[LogView, Cursor | None]:
        """Return the view of a reading and its opened cursor, None at the very start.

        Raises as `pair` does, FeedError "cursor-reset" if the log behind the cursor is another one, CursorError.
        """
        view = self.view(pair_id, query)
        if not query.since:
            plain = not (query.thread or query.namespace or query.reads)
            lost = plain and (pair_id in self.rollbacks or self._was_paired(pair_id))
            return replace(view, whole=query.resync or lost), None
        cursor = self._unsealed(pair_id, query.since)
        if cursor.epoch != self.writer.store.epoch or not self._is_ours(cursor):
            if cursor.epoch == self.writer.store.epoch and not query.reads:
                self.rollbacks.note_set_back(pair_id, OURS)
            raise FeedError("cursor-reset", peer_view=self.peer_view(pair_id))
        return replace(view, whole=cursor.whole), cursor

    def check_rollback(self, pair_id: str, cursor: Cursor | None, text: str) -> None:
        """Refuse a cursor, sealed as `text`, issued before the peer's log was rolled back, as "cursor-invalid"."""
        if not self.rollbacks.allows(pair_id, cursor, text):
            raise FeedError(
                "cursor-invalid", "begin again: your log was rolled back", peer_view=self.peer_view(pair_id)
            )

    def scans(self, view: LogView, query: Query, cursor: Cursor | None) -> list[LaneScan]:
        """Return the lanes of a reading where its cursor left them."""
        known = cursor.by_key() if cursor is not None else {}
        return lanes_through(view, known, query.thread, bool(query.namespace))

    def next_cursor(
        self, pair_id: str, since: str, before: Cursor | None, scans: Sequence[LaneScan], whole: bool
    ) -> tuple[str, Cursor]:
        """Return the cursor, sealed and open, of a reading that came this far from `before`, sealed as `since`.

        If no lane moved, it is the very text of the request, so the peer need not save it.
        """
        lanes = next_lanes(scans, before)
        unmoved = before is not None and set(lanes) == set(before.lanes) and whole == before.whole
        if before is not None and unmoved and self._is_sealed_for(pair_id, since):
            return since, before
        # The newest line that this reading passed: only a log rolled back behind it can have lost what was read.
        seq, run = self._run_at(max((lane.position for lane in lanes), default=0), before)
        cursor = Cursor(self.writer.store.epoch, seq, run, lanes, whole)
        return self.seal(pair_id, cursor), cursor

    def seal(self, pair_id: str, cursor: Cursor) -> str:
        """Return the cursor's text for the pair."""
        text = cursors.seal(cursor, self.vault.cursor_key(), self._nonce(), pair_id)
        if len(self._sealed) >= SEALED_MAX:
            self._sealed, self._sealed_before = {}, self._sealed
        self._sealed[pair_id, text] = cursor
        return text

    def _nonce(self) -> bytes:
        """Return random bytes that were never used; any thread may ask."""
        try:
            return self._nonces.pop()
        except IndexError:
            drawn = self._random_bytes(NONCES * AEAD_NONCE_BYTES)
            first, *others = (drawn[at : at + AEAD_NONCE_BYTES] for at in range(0, len(drawn), AEAD_NONCE_BYTES))
            self._nonces += others
            return first

    def head(self, pair_id: str) -> int | None:
        """Return how many records the pair is offered; None until all are counted."""
        last_seq, pair = self.last_seq(), self.writer.views.pairs.get(pair_id)
        return (
            self.counts.present(pair_id, self.view_at(pair_id, self.scope(pair), last_seq)) if pair is not None else 0
        )

    def last_head(self, pair_id: str) -> int | None:
        """Return the same as last known, None before the first count.

        This is what the peer is told: a None while rows are counted would reveal that rows arrived, hidden ones too.
        """
        last_seq, pair = self.last_seq(), self.writer.views.pairs.get(pair_id)
        if pair is None:
            return 0
        return self.counts.last_known(pair_id, self.view_at(pair_id, self.scope(pair), last_seq))

    def count(self, pair_id: str) -> bool:
        """Count for some milliseconds what the pair is offered; return whether the count is complete.  For a thread."""
        last_seq, pair = self.last_seq(), self.writer.views.pairs.get(pair_id)
        if pair is None or not pair.serve_allowed:
            return True
        return self.counts.advance(pair_id, self.view_at(pair_id, self.scope(pair), last_seq))

    def peer_view(self, pair_id: str, query: Query | None = None) -> Json:
        """Return how we see the pair, for the peer (core/record/page.py).

        `head` is None while it is counted for the first time.  A reader with its own token (`query.reads`) gets the
        same form.
        """
        pair = self.writer.views.pairs.get(pair_id)
        if query is not None and query.reads:
            head = tally(self.writer.store.index, self.scope_now(pair_id, replace(query, namespace="")))
            return {"state": str(Phase.ACTIVE), "reason": "", "head": head, "acked": None, "queue": 0}
        if pair is None:
            return {"state": "unknown", "reason": "", "head": 0, "acked": None, "queue": 0}
        acked, _ = self.acked.get(pair_id, (None, None))
        reach, trouble = self.reaches.word(pair_id), self.reaches.trouble(pair_id)
        weight = consent.grants_of(self.writer.views.consents, pair).weight
        return {
            "state": str(pair.phase),
            "reason": pair.reason,
            "head": self.last_head(pair_id) if pair.serve_allowed else 0,
            "acked": acked,
            "queue": self.reaches.queue_records(pair_id),
            **({"consent": weight} if weight else {}),
            **({"refuses": True} if self.writer.views.refused.get(pair_id) else {}),
            "mode": pair.mode,
            **({"poll_ms": pair.poll_interval_ms} if pair.mode == POLLING else {}),
            **({"asks_ms": ASKS_MS} if pair.phase in IN_TOUCH and reach != PEER_PUSHES else {}),
            **({"reach": reach} if reach else {}),
            **trouble,
            **({"pauses": True} if pair.paused_by in ("us", "both") else {}),
            **({"cloned": True} if self.reaches.cloned(pair_id) == PEER_CLONED else {}),
            **({"readonly": True} if self.writer.store.readonly or self.writer.store.full else {}),
        }

    def _was_paired(self, pair_id: str) -> bool:
        """Return whether another pair with this peer came before, so that we may hold what it lost.

        A peer that has such a pair and reads from the start restored an older home, or made one again from its key.
        """
        pairs = self.writer.views.pairs
        pair = pairs.get(pair_id)
        return pair is not None and any(
            other.peer_did == pair.peer_did for other in pairs.values() if other.pair_id != pair_id
        )

    def _unsealed(self, pair_id: str, text: str) -> Cursor:
        if (sealed := self._sealed.get((pair_id, text)) or self._sealed_before.get((pair_id, text))) is not None:
            return sealed
        key, pair = self.vault.cursor_key(), self.writer.views.pairs.get(pair_id)
        try:
            return cursors.open_(text, key, pair_id)
        except cursors.CursorError:
            if pair is None or not pair.inherits:
                raise
            # The first request of a pair that superseded another carries the older pair's position.
            return cursors.open_(text, key, pair.inherits)

    def _is_sealed_for(self, pair_id: str, text: str) -> bool:
        if (pair_id, text) in self._sealed or (pair_id, text) in self._sealed_before:
            return True
        try:
            cursors.open_(text, self.vault.cursor_key(), pair_id)
        except cursors.CursorError:
            return False
        return True

    def _is_ours(self, cursor: Cursor) -> bool:
        try:
            run = self._recent.run_at(cursor.run_seq) or self.writer.store.run_at(cursor.run_seq)
            return run == cursor.run
        except LineError as exc:
            # A damaged line proves nothing about the log around it, and the epoch agrees.
            return exc.code == "store-damaged"

    def _run_at(self, seq: int, before: Cursor | None) -> tuple[int, str]:
        """Return `seq` and the running hash there, or what `before` has if that line is damaged."""
        try:
            return seq, self.writer.store.run_at(seq)
        except LineError:
            return (before.run_seq, before.run) if before is not None else (0, self.writer.store.run_at(0))


class OutgoingForm:
    """The form in which rows go out to a pair; used in the feed's threads.

    An envelope that the disk damaged is left out: sending it would make the whole page unreadable for the peer, which
    asks for that page without end and never gets what is behind.
    """

    def __init__(self, writer: Writer, vault: Vault) -> None:
        self.writer = writer
        self.vault = vault
        self._signers: dict[str, set[str]] = {}

    def envelopes(self, pair_id: str, scope: Scope, rows: Sequence[Row]) -> list[tuple[Row, bytes]]:
        """Return what goes out for the rows, each at its namespace's level, without damaged ones.

        Raises WriteError "identity-missing".
        """
        self.note_signers(pair_id, scope, rows)
        found = list(self.writer.store.read(rows))
        if all(scope.shares[row.ns].level == EXACT for row in rows):
            return found
        return [(row, self._projected(pair_id, scope, row, raw)) for row, raw in found]

    def note_signers(self, pair_id: str, scope: Scope, rows: Sequence[Row]) -> None:
        """Record whose records the pair is given in full."""
        if scope.tallied:
            return  # the index has that
        given = {row.voucher for row in rows if scope.shares[row.ns].level == EXACT}
        signers = self._signers.setdefault(pair_id, set())
        if len(signers) + len(given) > SIGNERS_MAX:
            # A peer asks for a chain right after the records, so the older signers are no longer needed.
            self._signers[pair_id] = given
        else:
            signers.update(given)

    def may_see_signer(self, pair_id: str, scope: Scope, did: str) -> bool:
        """Return whether the pair may see records of this signer in full, as far as that is known."""
        full = [ns for ns, share in scope.shares.items() if share.level == EXACT]
        if did == scope.own_did:
            return True
        if not scope.tallied:
            return bool(full) and did in self._signers.get(pair_id, ())
        return scope.filter.relay and any(self.writer.store.index.tally(vouched(ns, did)) for ns in full)

    def pseudonym(self, pair_id: str, record_id: str) -> str:
        """Return the name that a record id has towards this pair at L2 and L3."""
        return levels.pseudonym(self._secret(), pair_id, record_id)

    def _projected(self, pair_id: str, scope: Scope, row: Row, raw: bytes) -> bytes:
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

    def _secret(self) -> bytes:
        """Return the key of pseudonyms: derived from the key of cursors, and not equal to it."""
        return hmac.digest(self.vault.cursor_key(), _PSEUDONYM_KEY, "sha256")


def _only(shares: Mapping[str, Outbound], namespace: str) -> Mapping[str, Outbound]:
    return {ns: share for ns, share in shares.items() if ns == namespace}
