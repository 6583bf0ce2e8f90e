"""The one door for writes: everything that is stored passes here, in groups that share one write and one fdatasync.

Callers submit items and get a future; the writer (a thread in the daemon, a plain call in tests) takes what is queued,
checks it, gives clocks, signs, appends, folds it into the views, notifies the listeners, and only then answers.  So a
record is never announced before it is durable.  A submission is atomic and ordered: one refused item refuses all of it,
and refuses nothing else.

Each item becomes a line to append (`_NewLine`), a record to sign first (`_Draft`), or what makes it unnecessary: it is
stored already (`_Known`), or equal to an earlier item of the same write (`_Repeat`).

Records are known per namespace, and so are clocks: what one namespace holds must neither confirm, swallow nor block
what is written in another, because its readers may not read the other.  Rejected: one table of ids, which answers a
guess about a record of a namespace that the writer cannot read.

No lock around the checks: the writer is the only one that changes the log or the views.  Measured: signing alone takes
30 us a record and a sync 0.1 to 10 ms, so one write serves all that wait.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, NamedTuple

from ..core import canon
from ..core.errors import SplError
from ..core.event import event
from ..core.identity.did import multibase
from ..core.limits import Limits
from ..core.record import batch, namespace, record
from ..core.record.filter import fields_of
from ..core.record.levels import NAMES
from ..core.record.record import Envelope, Sig
from ..core.value import dataclass, field
from .commit_queue import CommitQueue, Post, Soon, Submission, Waiter, answer
from .log import Entry, Log
from .segments import PROJECTION
from .views import Views
from .writes import (
    LOCAL,
    VIEWS,
    Arrive,
    Commit,
    Emit,
    Hop,
    Item,
    Listeners,
    OnWrite,
    Outcome,
    Own,
    Projected,
    Refuse,
    Signer,
    queued,
)

log = logging.getLogger("spl.store")

CLOCKS_MAX: Final = 4096
"""Rows of clocks whose next one is remembered; the writer alone changes it, so the memory is never wrong."""


class WriteError(SplError):
    """The write is refused; nothing of its submission was stored."""


_Key = tuple[str, ...]
"""What tells a line from others: (namespace, id) of an envelope, (pair, level, id) of a projection, () of the rest."""

_Clocks = tuple[str, str, str]
"""The namespace, actor and thread that share one row of clocks."""


class _Known(NamedTuple):
    """An item that is stored already, or that nothing is to be stored of."""

    outcome: Outcome


class _Repeat(NamedTuple):
    """An item equal to an earlier one of the same write."""

    key: _Key


class _Draft(NamedTuple):
    """A record of this daemon's clients or its own, checked, with its clock and id, still to be signed."""

    key: _Key
    record: dict[str, Any]
    text: bytes
    id: str
    ns: str


class _NewLine(NamedTuple):
    """A line to append."""

    key: _Key
    entry: Entry
    record: Mapping[str, Any] | None = None
    envelope: Envelope | None = None


_Prepared = _Known | _Repeat | _Draft | _NewLine


@dataclass(slots=True)
class _Overlay:
    """What the items before this one in the same write will have changed."""

    keys: set[_Key] = field(default_factory=set)
    next_clocks: dict[_Clocks, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    taken: set[tuple[_Clocks, int]] = field(default_factory=set)

    def copy(self) -> "_Overlay":
        return _Overlay(set(self.keys), dict(self.next_clocks), dict(self.refused), set(self.taken))


class Writer:
    """Writes for one home.  `signer` is replaced when an identity is made or rotated."""

    def __init__(
        self, store: Log, views: Views, limits: Limits, *, signer: Signer | None, now_ms: Callable[[], int]
    ) -> None:
        self.store = store
        self.views = views
        self.limits = limits
        self.signer = signer
        self.now_ms = now_ms
        self._queue: CommitQueue[Item, Outcome] = CommitQueue(limits, steady_s=time.monotonic)
        self.listeners: Listeners[Commit] = Listeners(now_ms=now_ms, steady_ns=time.perf_counter_ns)
        self._clocks: dict[_Clocks, int] = {}
        self._is_full = False

    def submit(self, items: Sequence[Item]) -> "Future[list[Outcome]]":
        """Queue one submission; its future gives an Outcome an item once durable, or raises why it was refused.

        Raises QueueError "overloaded" if its principal has its part of limits.waiting_writes or waiting_bytes,
        "shutting-down" after close.
        """
        return self.submit_all([items])[0]

    def submit_all(self, submissions: Sequence[Sequence[Item]]) -> "list[Future[list[Outcome]]]":
        """Queue many submissions that share a write as far as the commit limits allow; each is answered alone."""
        futures: list[Future[list[Outcome]]] = [Future() for _ in submissions]
        self._queue.put([queued(items, future, None) for items, future in zip(submissions, futures, strict=True)])
        return futures

    def submit_posted(
        self, submissions: Sequence[tuple[Sequence[Item], Waiter[Outcome]]], post: Post, soon: Soon | None = None
    ) -> None:
        """Do as `submit_all`; answers are awaited on the thread that `post` calls on; `soon` as in CommitQueue.put."""
        self._queue.put([queued(items, awaited, post) for items, awaited in submissions], soon)

    def listen(self, callback: OnWrite[Commit]) -> Callable[[], None]:
        """Call back after each commit, on the writer's thread; it must not block.  Return what unsubscribes it."""
        return self.listeners.listen(callback)

    def run(self) -> None:
        """Write until `close`; the daemon's writer thread.

        If it dies, pending submissions fail with "internal", and no more are taken.
        """
        tell: Callable[[], object] = tuple
        try:
            while works := self._queue.take(True, tell):
                hops = list[Hop]()
                tell = partial(answer, works, hops)
                self._commit(works, hops)
        finally:
            tell()  # harmless a second time
            answer(self._queue.abandon())

    def close(self) -> None:
        """Take no more submissions; those that are queued are written before `run` returns."""
        self._queue.close()

    def commit_waiting(self) -> bool:
        """Write what is queued, up to the commit limits; return False if nothing was."""
        works, hops = self._queue.take(False), list[Hop]()
        try:
            if found := bool(works):
                self._commit(works, hops)
        finally:
            # Whatever broke: no submission may stay pending for ever, and none may look stored.
            answer(works, hops)
        return found

    def _commit(self, works: Sequence[Submission[Item, Outcome]], hops: list[Hop]) -> None:
        accepted = self._accept(works)
        prepared = [item for _, group in accepted for item in group]
        try:
            signed = self._sign([item for item in prepared if isinstance(item, _Draft)])
            lines = [signed[item.key] if isinstance(item, _Draft) else item for item in prepared]
            lines_new = [item for item in lines if isinstance(item, _NewLine)]
            commit = self._append(lines_new) if lines_new else None
        except SplError as exc:
            for work, _ in accepted:
                work.found = exc
            return
        if commit is not None:
            self.listeners.notify(commit, commit.last_seq - commit.first_seq + 1, hops)
        outcomes = _outcomes(lines, commit.first_seq if commit else 0)
        for work, group in accepted:
            work.found = [next(outcomes) for _ in group]

    def _accept(
        self, works: Sequence[Submission[Item, Outcome]]
    ) -> list[tuple[Submission[Item, Outcome], list[_Prepared]]]:
        """Return the submissions that may be written, with their items prepared; the others get their refusal."""
        overlay, accepted, full = _Overlay(), [], self._check_room()
        for work in works:
            if not work.is_awaited():
                continue
            state = overlay.copy() if len(work.items) > 1 else overlay
            try:
                if full and any(isinstance(item, Emit | Arrive | Projected) for item in work.items):
                    raise WriteError("store-full", full)
                prepared = [self._prepare(item, state) for item in work.items]
            except SplError as exc:
                work.found = exc
                continue
            overlay = state
            accepted.append((work, prepared))
        return accepted

    def _check_room(self) -> str:
        """Return why records from clients and peers are refused for now, empty while they are taken.

        The daemon's own lines are tried as long as there is any room: an operator must be able to revoke a pair.
        """
        full = self.store.full
        if bool(full) != self._is_full:
            self._is_full = bool(full)
            log.warning(**event("store.full", reason=full)) if full else log.info(**event("store.room_again"))
        return full

    def _prepare(self, item: Item, overlay: _Overlay) -> _Prepared:
        match item:
            case Emit():
                return self._prepare_emit(item.record, overlay)
            case Own(thread, kind, body):
                return self._prepare_own(thread, kind, body, overlay)
            case Arrive():
                return self._prepare_arrival(item, overlay)
            case Projected():
                return self._prepare_projection(item, overlay)
            case Refuse():
                return self._prepare_refusal(item, overlay)
            case _:  # a position, or the bytes of a day
                body = item.body()
                return _NewLine((), Entry(kind=item.KIND, payload=canon.encode(body), pair=item.pair), body)

    def _prepare_emit(self, value: Mapping[str, Any], overlay: _Overlay) -> _Prepared:
        signer = self._signer()
        given = dict(value)
        if isinstance(given.get("parents"), list) and all(isinstance(item, str) for item in given["parents"]):
            given["parents"] = sorted(given["parents"])
        free = given.get("clock") is None
        if free:
            given["clock"] = 0
        checked = record.check(given, self.limits)
        if record.is_reserved(checked["thread"]):
            raise WriteError("reserved-thread", f"thread {checked['thread']} is the daemon's own")
        actor = checked["actor"]
        if actor.startswith(record.INSTANCE_PREFIX) and actor != signer.chain.did:
            raise WriteError("actor-refused", "an instance is vouched for by itself only")
        ns = namespace.usable(self.views.namespaces, record.namespace_of(checked))
        return self._prepare_local(checked, free, ns, overlay)

    def _prepare_own(self, thread: str, kind: str, body: Mapping[str, Any], overlay: _Overlay) -> _Prepared:
        value = {
            "act": "KNOW",
            "actor": self._signer().chain.did,
            "body": {**body, "kind": kind},
            "clock": 0,
            "thread": thread,
        }
        return self._prepare_local(record.check(value, self.limits), True, "", overlay)

    def _prepare_local(self, checked: dict[str, Any], free: bool, ns: str, overlay: _Overlay) -> _Prepared:
        clocks = ns, checked["actor"], checked["thread"]
        if free:
            checked["clock"] = self._clock_next(clocks, overlay)
        clock = checked["clock"]
        id_, text = record.identify(checked, self.limits)
        key = ns, id_
        if key in overlay.keys:
            return _Repeat(key)
        row = self.store.index.find(id_, ns)
        stored = None if row is None else self.store.payload(row)
        if row is not None and stored is not None:
            return _Known(Outcome(row.seq, record.parse(stored, Limits()), False))
        if (clocks, clock) in overlay.taken or self._is_taken(clocks, clock):
            raise WriteError("ingest-failed", f"DuplicateClock: thread={clocks[2]} actor={clocks[1]} clock={clock}")
        overlay.keys.add(key)
        overlay.taken.add((clocks, clock))
        overlay.next_clocks[clocks] = max(overlay.next_clocks.get(clocks, 0), clock + 1)
        return _Draft(key, checked, text, id_, ns)

    def _prepare_arrival(self, item: Arrive, overlay: _Overlay) -> _Prepared:
        envelope, ns, kind = item.envelope, item.ns, "rec"
        key = ns, envelope.id
        if key in overlay.keys:
            return _Repeat(key)
        row = self.store.index.find(envelope.id, ns)
        if row is not None:
            vouchers = [row.voucher, *(other.voucher for other in self.store.index.alternates(envelope.id, ns))]
            if envelope.sig.by in vouchers or len(vouchers) > self.limits.vouchers_per_record:
                return _Known(Outcome(row.seq, envelope, False))
            kind = "alt"
        own = self.signer is not None and envelope.sig.by == self.signer.chain.did
        overlay.keys.add(key)
        return _line(key, kind, envelope, item.origin, ns, own)

    def _prepare_projection(self, item: Projected, overlay: _Overlay) -> _Prepared:
        """Return the line of a projection, which is identified by pair, level and id and is no record."""
        shown, level = item.projection, NAMES[item.projection.level]
        key = item.pair, level, shown.id
        if key in overlay.keys:
            return _Repeat(key)
        if self.store.index.has_projection(*key):
            return _Known(Outcome(0, None, False))
        overlay.keys.add(key)
        entry = Entry(PROJECTION, shown.raw, item.pair, item.ns, id=shown.id, pair=item.pair, level=level)
        return _NewLine(key, entry)

    def _prepare_refusal(self, item: Refuse, overlay: _Overlay) -> _Prepared:
        """Return the line of a refusal; in a full ledger the first of each code says that there are more of it."""
        pair, id_, code, ns = item.pair, item.id, item.code, item.ns
        count, key = self.views.refused.get(pair, 0) + overlay.refused.get(pair, 0), _Key()
        if count < self.limits.refused_per_pair:
            overlay.refused[pair] = overlay.refused.get(pair, 0) + 1
        else:
            id_, ns, key = "", "", (pair, "refused", code)
            if key in overlay.keys:
                return _Repeat(key)
            if code in self.views.beyond.get(pair, ()):
                return _Known(Outcome(0, None, False))
            overlay.keys.add(key)
        body = {"pair": pair, "id": id_, "code": code, **({"ns": ns} if ns else {})}
        return _NewLine(key, Entry(kind="ref", payload=canon.encode(body), pair=pair, id=id_), body)

    def _clock_next(self, clocks: _Clocks, overlay: _Overlay) -> int:
        """Return the next free clock; raise WriteError "clock-exhausted" behind the last one."""
        found = max(self._clock_stored(clocks), overlay.next_clocks.get(clocks, 0))
        if found > record.CLOCK_MAX:
            raise WriteError("clock-exhausted")
        return found

    def _is_taken(self, clocks: _Clocks, clock: int) -> bool:
        return clock < self._clock_stored(clocks) and self.store.index.taken(*clocks, clock) is not None

    def _clock_stored(self, clocks: _Clocks) -> int:
        """Return the clock after the highest of our own stored ones; the index is asked once, then we know better."""
        if clocks not in self._clocks:
            if len(self._clocks) >= CLOCKS_MAX:
                self._clocks.clear()
            found = self.store.index.clock_next(*clocks)
            self._clocks[clocks] = record.CLOCK_MAX + 1 if found is None else found
        return self._clocks[clocks]

    def _signer(self) -> Signer:
        if self.signer is None:
            raise WriteError("identity-missing")
        return self.signer

    def _sign(self, drafts: Sequence[_Draft]) -> dict[_Key, _NewLine]:
        """Return the signed lines by key: a lone draft signed by itself, 2..64 that are alike under one Merkle root.

        A batch tells its size, and hashes of its other records.  So it holds only what no filter can tell apart: a
        peer or a tenant that may see one of them may see them all.
        """
        alike: dict[tuple[str, ...], list[_Draft]] = {}
        for draft in drafts:
            alike.setdefault(tuple(fields_of(draft.record, draft.ns, "").values()), []).append(draft)
        parts = [
            part[at : at + batch.SIZE_MAX] for part in alike.values() for at in range(0, len(part), batch.SIZE_MAX)
        ]
        return {line.key: line for part in parts for line in self._seal(part)}

    def _seal(self, group: Sequence[_Draft]) -> list[_NewLine]:
        signer = self._signer()
        key = multibase(signer.chain.present)
        texts = [record.signed_text(draft.id, draft.record.get("judged_by")) for draft in group]
        if len(group) == 1:
            sigs = [Sig(signer.chain.did, key, signer.key.sign(texts[0]))]
        else:
            root, places = batch.tree(texts)
            value = signer.key.sign(batch.signed_text(len(group), root))
            sigs = [Sig(signer.chain.did, key, value, place) for place in places]
        return [
            _line(draft.key, "rec", record.seal(draft.record, draft.id, draft.text, sig), LOCAL, draft.ns, True)
            for draft, sig in zip(group, sigs, strict=True)
        ]

    def _append(self, lines: Sequence[_NewLine]) -> Commit:
        """Return what the lines made visible, once they are durable and folded into the views."""
        entries, at_ms = [line.entry for line in lines], self.now_ms()
        seqs = self.store.append(entries, at_ms)
        self.listeners.begin()
        views = self.views
        for line, seq in zip(lines, seqs, strict=True):
            entry = line.entry
            views = views.folded(entry, line.record, at_ms, seq)
            if entry.own and (clocks := (entry.ns, entry.actor, entry.thread)) in self._clocks:
                self._clocks[clocks] = max(self._clocks[clocks], entry.clock + 1)
        self.views = views
        self.listeners.measure(VIEWS, len(entries))
        fresh = tuple([(seq, entry) for seq, entry in zip(seqs, entries, strict=True) if entry.kind == "rec"])
        namespaces = frozenset([entry.ns for _, entry in fresh if entry.ns])
        threads, size = frozenset([entry.thread for _, entry in fresh]), sum([len(entry.payload) for _, entry in fresh])
        return Commit(seqs[0], seqs[-1], self.store.last_run, at_ms, namespaces, threads, fresh, size)


def _line(key: _Key, kind: str, envelope: Envelope, origin: str, ns: str, own: bool) -> _NewLine:
    """Return the line of an envelope."""
    value, by = envelope.record, envelope.sig.by
    entry = Entry(
        kind, envelope.raw, origin, ns, own, envelope.id, value["thread"], value["actor"], value["clock"], by
    )  # fmt: skip
    return _NewLine(key, entry, value, envelope)


def _outcomes(prepared: Sequence[_Known | _Repeat | _NewLine], seq: int) -> Iterator[Outcome]:
    """Yield what became of each item; the first line that was appended has this sequence."""
    stored: dict[_Key, Outcome] = {}
    for item in prepared:
        if isinstance(item, _NewLine):
            stored[item.key] = outcome = Outcome(seq, item.envelope, True)
            yield outcome
            seq += 1
        elif isinstance(item, _Known):
            yield item.outcome
        else:
            yield stored[item.key]._replace(fresh=False)
