"""The one door for writes: everything that is stored passes here, in groups that share one write and one fdatasync.

Callers submit items and get a future; the writer (a thread in the daemon, a plain call in tests) takes all that wait,
checks them, gives clocks, signs, appends, folds them into the views, wakes listeners, and only then answers.  So
nobody is told of a record before it is durable.  A submission is atomic in order: one refused item refuses it whole,
and refuses nothing else.

No lock around the checks: the writer is the only one that changes store or views.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from ..core import canon
from ..core.errors import SplError
from ..core.identity.did import multibase
from ..core.limits import Limits
from ..core.recent import Costs
from ..core.record import batch, namespace, record
from ..core.record.filter import facts_of
from ..core.record.levels import NAMES
from ..core.record.record import Envelope, Sig
from .commit_queue import Answer, CommitQueue, Post, Submission, answer
from .log import Entry, Log
from .segments import PROJECTION
from .views import Views
from .writes import LOCAL, Arrive, Commit, Emit, Item, Outcome, Own, Projected, Refuse, SavedPosition, Signer

log = logging.getLogger("spl.store")

CLOCKS_MAX: Final = 4096
"""(actor, thread) whose next clock is remembered; the writer alone changes it, so the memory is never wrong."""


class WriteError(SplError):
    """The write is refused; nothing of its submission was stored."""


@dataclass(slots=True)
class _Slot:
    """One item on its way: what to append, or what is held already."""

    entry: Entry | None = None
    held: Outcome | None = None
    same_as: "_Slot | None" = None
    record: dict[str, Any] | None = None
    text: bytes = b""
    id: str = ""
    envelope: Envelope | None = None
    ns: str = ""
    seq: int = 0


@dataclass(slots=True)
class _Overlay:
    """What the items before this one in the same write will have changed."""

    ids: dict[str, _Slot] = field(default_factory=dict)
    clocks: dict[tuple[str, str], int] = field(default_factory=dict)
    taken: dict[tuple[str, str, int], str] = field(default_factory=dict)

    def copy(self) -> "_Overlay":
        return _Overlay(dict(self.ids), dict(self.clocks), dict(self.taken))


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
        self._clocks: dict[tuple[str, str], int] = {}

    def submit(self, items: Sequence[Item]) -> "Future[list[Outcome]]":
        """Queue one submission; its future gives an Outcome an item once durable, or raises why it was refused.

        Raises DeskError "overloaded" at limits.waiting_writes, "shutting-down" after close.
        """
        return self.submit_all([items])[0]

    def submit_all(self, submissions: Sequence[Sequence[Item]]) -> "list[Future[list[Outcome]]]":
        """Queue many submissions that share a write as far as limits.commit_records allows; each answers alone."""
        futures: list[Future[list[Outcome]]] = [Future() for _ in submissions]
        self._queue.put(
            [Submission(tuple(items), future, None) for items, future in zip(submissions, futures, strict=True)]
        )
        return futures

    def submit_posted(self, submissions: Sequence[tuple[Sequence[Item], Answer[Outcome]]], post: Post) -> None:
        """Queue submissions as `submit_all` does, whose answers are awaited on the thread that `post` calls on."""
        self._queue.put([Submission(tuple(items), awaited, post) for items, awaited in submissions])

    def listen(self, callback: Callable[[Commit], None]) -> Callable[[], None]:
        """Call back after each commit, on the writer's thread; it must not block.  Returns the way to stop it."""
        return self.listeners.listen(callback)

    def run(self) -> None:
        """Write until `close`; the daemon's writer thread.

        Should a fault of our own end it before, whoever waits is told "internal", and nothing more is taken.
        """
        try:
            while self.commit_waiting(block=True):
                pass
        finally:
            answer(self._queue.abandon())

    def close(self) -> None:
        """Take no more; what waits is written before `run` returns."""
        self._queue.close()

    def commit_waiting(self, block: bool = False) -> bool:
        """Write what waits, up to the commit limits; False when there was nothing (with `block`: closed and empty)."""
        works = self._queue.take(block)
        try:
            if works:
                self._commit(works)
        finally:
            # Whatever broke, nobody may wait for ever, and nobody may think that it is stored.
            answer(works)
        return bool(works)

    def _commit(self, works: Sequence[Submission[Item, Outcome]]) -> None:
        overlay, accepted = _Overlay(), []
        for work in works:
            if not work.is_awaited():
                continue
            state = overlay.copy() if len(work.items) > 1 else overlay
            try:
                slots = [self._prepare(item, state) for item in work.items]
            except SplError as exc:
                work.found = exc
                continue
            overlay = state
            accepted.append((work, slots))
        slots = [slot for _, group in accepted for slot in group]
        try:
            self._sign([slot for slot in slots if slot.record is not None and slot.entry is None and not slot.same_as])
            commit = self._append([slot for slot in slots if slot.entry is not None])
        except SplError as exc:
            for work, _ in accepted:
                work.found = exc
            return
        if commit is not None:
            self.listeners.tell(commit, commit.last_seq - commit.first_seq + 1)
        for work, group in accepted:
            work.found = [_outcome(slot) for slot in group]

    def _prepare(self, item: Item, overlay: _Overlay) -> _Slot:
        match item:
            case Emit(value):
                return self._prepare_emit(value, overlay)
            case Own(thread, kind, body):
                return self._prepare_own(thread, kind, body, overlay)
            case Arrive():
                return self._prepare_arrival(item, overlay)
            case Projected():
                return self._prepare_showing(item, overlay)
            case SavedPosition(pair, cursor, count):
                body = {"pair": pair, "cursor": cursor, "count": count}
                return _Slot(entry=Entry(kind="pos", payload=canon.encode(body), pair=pair))
            case Refuse(pair, id_, code, ns):
                if self.views.refused.get(pair, 0) >= self.limits.refused_per_pair:
                    return _Slot(held=Outcome(0, None, False))
                body = {"pair": pair, "id": id_, "code": code, **({"ns": ns} if ns else {})}
                return _Slot(entry=Entry(kind="ref", payload=canon.encode(body), pair=pair, id=id_))

    def _prepare_emit(self, value: Mapping[str, Any], overlay: _Overlay) -> _Slot:
        signer = self._signer()
        given = dict(value)
        if isinstance(given.get("parents"), list) and all(isinstance(item, str) for item in given["parents"]):
            given["parents"] = sorted(given["parents"])
        free = given.get("clock") is None
        checked = record.check({**given, "clock": 0 if free else given["clock"]}, self.limits)
        if record.is_reserved(checked["thread"]):
            raise WriteError("reserved-thread", f"thread {checked['thread']} is the daemon's own")
        actor = checked["actor"]
        if actor.startswith(record.INSTANCE_PREFIX) and actor != signer.chain.did:
            raise WriteError("actor-refused", "nobody vouches for an instance other than itself")
        ns = namespace.usable(self.views.namespaces, record.namespace_of(checked))
        return self._prepare_local(checked, free, ns, overlay)

    def _prepare_own(self, thread: str, kind: str, body: Mapping[str, Any], overlay: _Overlay) -> _Slot:
        value = {
            "act": "KNOW",
            "actor": self._signer().chain.did,
            "body": {**body, "kind": kind},
            "clock": 0,
            "thread": thread,
        }
        return self._prepare_local(record.check(value, self.limits), True, "", overlay)

    def _prepare_local(self, checked: dict[str, Any], free: bool, ns: str, overlay: _Overlay) -> _Slot:
        actor, thread = checked["actor"], checked["thread"]
        if free:
            next_ = self._clock_next(actor, thread, overlay)
            if next_ is None:
                raise WriteError("clock-exhausted")
            checked["clock"] = next_
        id_, text = record.identify(checked, self.limits)
        held = self._held(id_, overlay)
        if held is not None:
            return held
        clock = checked["clock"]
        taken: object = overlay.taken.get((actor, thread, clock))
        if taken is None and clock < self._clock_stored(actor, thread):
            taken = self.store.index.taken(actor, thread, clock)
        if taken is not None:
            raise WriteError("ingest-failed", f"DuplicateClock: thread={thread} actor={actor} clock={clock}")
        slot = _Slot(record=checked, text=text, id=id_, ns=ns)
        overlay.ids[id_] = slot
        overlay.taken[actor, thread, clock] = id_
        overlay.clocks[actor, thread] = max(overlay.clocks.get((actor, thread), 0), clock + 1)
        return slot

    def _prepare_arrival(self, item: Arrive, overlay: _Overlay) -> _Slot:
        envelope = item.envelope
        kind = "rec"
        earlier = overlay.ids.get(envelope.id)
        if earlier is not None:
            return _Slot(same_as=earlier)
        row = self.store.index.find(envelope.id)
        if row is not None:
            vouchers = [row.voucher, *(other.voucher for other in self.store.index.alternates(envelope.id))]
            if envelope.sig.by in vouchers or len(vouchers) > self.limits.vouchers_per_record:
                return _Slot(held=Outcome(row.seq, envelope, False))
            kind = "alt"
        value = envelope.record
        own = self.signer is not None and envelope.sig.by == self.signer.chain.did
        entry = Entry(
            kind=kind,
            payload=envelope.raw,
            origin=item.origin,
            ns=item.ns,
            own=own,
            id=envelope.id,
            thread=value["thread"],
            actor=value["actor"],
            clock=value["clock"],
            voucher=envelope.sig.by,
        )
        slot = _Slot(entry=entry, record=value, id=envelope.id, envelope=envelope, ns=item.ns)
        overlay.ids[envelope.id] = slot
        return slot

    def _prepare_showing(self, item: Projected, overlay: _Overlay) -> _Slot:
        """Return the slot of a projection, which is told apart by pair, level and id and is no record."""
        shown, level = item.projection, NAMES[item.projection.level]
        key = f"{item.pair}:{level}:{shown.id}"
        earlier = overlay.ids.get(key)
        if earlier is not None:
            return _Slot(same_as=earlier)
        if self.store.index.has_projection(item.pair, level, shown.id):
            return _Slot(held=Outcome(0, None, False))
        entry = Entry(PROJECTION, shown.raw, item.pair, item.ns, id=shown.id, pair=item.pair, level=level)
        slot = overlay.ids[key] = _Slot(entry=entry)
        return slot

    def _held(self, id_: str, overlay: _Overlay) -> _Slot | None:
        earlier = overlay.ids.get(id_)
        if earlier is not None:
            return _Slot(same_as=earlier)
        row = self.store.index.find(id_)
        if row is None:
            return None
        return _Slot(held=Outcome(row.seq, record.parse(self.store.payloads([row])[0], Limits()), False))

    def _clock_next(self, actor: str, thread: str, overlay: _Overlay) -> int | None:
        found = max(self._clock_stored(actor, thread), overlay.clocks.get((actor, thread), 0))
        return found if found <= record.CLOCK_MAX else None

    def _clock_stored(self, actor: str, thread: str) -> int:
        """Return the clock after the highest of our own stored ones; the index is asked once, then we know better."""
        key = actor, thread
        if key not in self._clocks:
            if len(self._clocks) >= CLOCKS_MAX:
                self._clocks.clear()
            found = self.store.index.clock_next(actor, thread)
            self._clocks[key] = record.CLOCK_MAX + 1 if found is None else found
        return self._clocks[key]

    def _signer(self) -> Signer:
        if self.signer is None:
            raise WriteError("identity-missing")
        return self.signer

    def _sign(self, slots: Sequence[_Slot]) -> None:
        """Sign local records: one alone plainly, 2..64 of one write that are alike under one Merkle root.

        A batch tells its size, and hashes of its other records.  So it holds only what no filter can tell apart: a
        peer or a tenant that may see one of them may see them all.
        """
        alike: dict[tuple[str, ...], list[_Slot]] = {}
        for slot in slots:
            alike.setdefault(tuple(facts_of(slot.record or {}, slot.ns, "").values()), []).append(slot)
        for part in alike.values():
            for start in range(0, len(part), batch.SIZE_MAX):
                self._seal(part[start : start + batch.SIZE_MAX])

    def _seal(self, group: Sequence[_Slot]) -> None:
        signer = self._signer()
        key = multibase(signer.chain.present)
        texts = [record.signed_text(slot.id, (slot.record or {}).get("judged_by")) for slot in group]
        if len(group) == 1:
            sigs = [Sig(signer.chain.did, key, signer.key.sign(texts[0]))]
        else:
            root, places = batch.tree(texts)
            value = signer.key.sign(batch.signed_text(len(group), root))
            sigs = [Sig(signer.chain.did, key, value, place) for place in places]
        for slot, sig in zip(group, sigs, strict=True):
            value_ = slot.record or {}
            slot.envelope = record.seal(value_, slot.id, slot.text, sig)
            slot.entry = Entry(
                kind="rec",
                payload=slot.envelope.raw,
                origin=LOCAL,
                ns=slot.ns,
                own=True,
                id=slot.id,
                thread=value_["thread"],
                actor=value_["actor"],
                clock=value_["clock"],
                voucher=sig.by,
            )

    def _append(self, slots: Sequence[_Slot]) -> Commit | None:
        entries = [slot.entry for slot in slots if slot.entry is not None]
        if not entries:
            return None
        at_ms = self.now_ms()
        seqs = self.store.append(entries, at_ms)
        self.listeners.begin()
        views = self.views
        for slot, seq in zip(slots, seqs, strict=True):
            slot.seq = seq
            if slot.entry is not None:
                views = views.folded(slot.entry, slot.record, at_ms)
                place = slot.entry.actor, slot.entry.thread
                if slot.entry.own and place in self._clocks:
                    self._clocks[place] = max(self._clocks[place], slot.entry.clock + 1)
        self.views = views
        self.listeners.passed(VIEWS, len(entries))
        fresh = tuple((seq, entry) for seq, entry in zip(seqs, entries, strict=True) if entry.kind == "rec")
        return Commit(
            seqs[0],
            seqs[-1],
            self.store.last_run,
            at_ms,
            frozenset(entry.ns for _, entry in fresh if entry.ns),
            frozenset(entry.thread for _, entry in fresh),
            fresh,
            sum(len(entry.payload) for _, entry in fresh),
        )


def _outcome(slot: _Slot) -> Outcome:
    if slot.same_as is not None:
        return Outcome(slot.same_as.seq, slot.same_as.envelope, False)
    return slot.held or Outcome(slot.seq, slot.envelope, True)


VIEWS: Final = "views"


ALL: Final = "all"


_C = TypeVar("_C")


class Listeners(Generic[_C]):
    """Those of one hub.  The writer's thread runs and measures them; any thread may ask.

    `steady_ns` is a clock that never jumps.  An adapter is named after the module of its callback.
    """

    def __init__(self, *, now_ms: Callable[[], int], steady_ns: Callable[[], int]) -> None:
        self._now_ms, self._steady_ns = now_ms, steady_ns
        self._listeners: tuple[tuple[str, Callable[[_C], None]], ...] = ()
        self._costs: dict[str, Costs] = {}
        self._mark_ns = self._sum_ns = 0

    def listen(self, callback: Callable[[_C], None]) -> Callable[[], None]:
        """Run `callback` for each write from now on.  Returns the way to stop it."""
        listener = (str(callback.__module__).rpartition(".")[2], callback)
        self._listeners = (*self._listeners, listener)

        def stop() -> None:
            self._listeners = tuple(item for item in self._listeners if item is not listener)

        return stop

    def begin(self) -> None:
        """Measure from here; a write begins."""
        self._mark_ns, self._sum_ns = self._steady_ns(), 0

    def passed(self, name: str, records: int) -> None:
        """Count the time since the last call as what this adapter took for so many records."""
        now_ns = self._steady_ns()
        took_ns, self._mark_ns = now_ns - self._mark_ns, now_ns
        self._sum_ns += took_ns
        self._count(name, took_ns, records)

    def tell(self, write: _C, records: int) -> None:
        """Run every listener for a write of so many records."""
        self._mark_ns = self._steady_ns()
        for name, callback in self._listeners:
            callback(write)
            self.passed(name, records)
        self._count(ALL, self._sum_ns, records)

    def summary(self) -> dict[str, Any]:
        """Return count, p99_ms (a record, all adapters together; None without records), records, and the slowest one.

        Of the last five minutes; `slowest` is the adapter of the highest p99, "" without records.
        """
        now_ms = self._now_ms()
        found = {name: costs.percentile_us(99, now_ms) for name, costs in self._costs.copy().items()}
        p99_us = found.pop(ALL, None)
        slowest = max(found, key=lambda name: found[name] or 0, default="")
        return {
            "count": len({VIEWS, *(name for name, _ in self._listeners)}),
            "p99_ms": None if p99_us is None else p99_us / 1000,
            "records": self._costs[ALL].records(now_ms) if ALL in self._costs else 0,
            "slowest": slowest if p99_us is not None else "",
        }

    def _count(self, name: str, took_ns: int, records: int) -> None:
        costs = self._costs.get(name)
        if costs is None:
            costs = self._costs[name] = Costs()
        costs.add(took_ns // (1000 * records), records, self._now_ms())
