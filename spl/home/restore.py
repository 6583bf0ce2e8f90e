"""Restoring a snapshot: what is new of it goes in, all or nothing.

The whole file is verified before anything is stored; then what is new is submitted to the writer, chunk by chunk.  The
log tells what came in before a crash, so a second try goes on.  Rejected: verifying and storing line by line, which
leaves half of a forged file behind.

A file that a disk damaged is refused whole, unless the caller skips what is damaged: count and digest of the header
then prove nothing, ids and signatures still prove each line.

Nothing holds the file in memory: ids are sorted on disk (`IdDigest`), an upload is a file without a name.

A restore belongs to a token, from the first piece of an upload to its end: one at a time each, three of them for those
that are no operator's, and one place more that only an operator takes.  An upload that others wait for gives way after
a minute without a piece.  They run beside each other; what two of them bring is stored once, as of two peers.
Rejected: one at a time for all, because one tenant's restores then kept out everybody's.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..core import consent
from ..core.errors import SplError
from ..core.event import event
from ..core.gate import Gate, Roots, Trust
from ..core.identity.did import Chain
from ..core.limits import MIB, Limits
from ..core.pair.pair import Pair
from ..core.record import namespace, record
from ..core.record.record import Envelope
from ..core.record.snapshot import Read, SnapshotError, SnapshotHeader, header_of, lines, malformed, placed, sound
from .disk import Disk, File, IdDigest, scratch
from .log import Entry, Log, Row
from .views import THREAD_NAMESPACES, THREAD_PAIRS, Views
from .views import load as load_views
from .writer import Writer
from .writes import Arrive, Commit

log = logging.getLogger("spl.store")

ORIGIN: Final = "restore"
RESTORES_MAX: Final = 4
RESTORES_OF_OTHERS_MAX: Final = 3
"""Of those whose token is no operator's: they never take the last place."""
UPLOAD_IDLE_MS: Final = 600_000
UPLOAD_WAITED_MS: Final = 60_000
BOUND_BYTES: Final = 1024 * MIB
"""What a token that is bound to namespaces may send; four files of `restore_bytes` would fill most disks."""
SHOWN: Final = 10
SUBMIT_TRIES: Final = 300
SUBMIT_AGAIN_S: Final = 0.1
COMMIT_TIMEOUT_S: Final = 120.0
FOLDER: Final = "run"

_Ways = Mapping[tuple[str, str], str]
"""See `consent.crossings`."""


@dataclass(frozen=True, slots=True)
class Rights:
    """What the caller may restore: reserved threads, and which namespaces."""

    admin: bool
    reaches: Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Refusal:
    """One line that may not be restored; `number` counts from 1, the header's."""

    number: int
    code: str
    text: str


@dataclass(slots=True)
class Plan:
    """What the first pass found."""

    header: SnapshotHeader
    new: int = 0
    known: int = 0
    bytes: int = 0
    """Of the new ones."""
    refused: Counter[str] = field(default_factory=Counter)
    refusals: list[Refusal] = field(default_factory=list)
    """The first ten."""
    damaged: int = 0
    """Lines that were passed over, or are missing."""
    damaged_lines: list[int] = field(default_factory=list)
    """The numbers of the first ten that were passed over."""
    pairs: Mapping[str, Pair] = field(default_factory=dict)
    """All pairs, as they stand once the file is restored."""

    def pass_over(self, number: int) -> None:
        """Count one damaged line."""
        self.damaged += 1
        if len(self.damaged_lines) < SHOWN:
            self.damaged_lines.append(number)

    def refuse(self, number: int, exc: SplError) -> None:
        """Count one refused line."""
        self.refused[exc.code] += 1
        if len(self.refusals) < SHOWN:
            self.refusals.append(Refusal(number, exc.code, exc.message))


@dataclass(frozen=True, slots=True)
class Uploader:
    """Who restores: the id of a token, "" without one, whether it is an operator's, or bound to namespaces."""

    token: str
    admin: bool
    bound: bool = False


OPERATOR: Final = Uploader("", admin=True)


@dataclass(slots=True)
class _Upload:
    name: str
    file: File
    size: int
    touched_ms: int


class Restorer:
    """Restores into one home.  Blocks on the disk; callable from any thread.

    `pool` is where restores run, so that long ones take no thread that short reads need.
    """

    def __init__(self, writer: Writer, home: Path, disk: Disk, limits: Limits, *, now_ms: Callable[[], int]) -> None:
        self.writer, self.limits = writer, limits
        self._home, self._folder, self._disk, self._now_ms = home, home / FOLDER, disk, now_ms
        self._roots = Roots(limits.verified_roots)
        self._uploads: dict[Uploader, _Upload] = {}
        self._running: set[Uploader] = set()
        self._places = threading.Lock()
        self.pool = ThreadPoolExecutor(RESTORES_MAX, "spl-restore")

    def add(self, owner: Uploader, upload: str, at: int, data: bytes) -> int:
        """Append a piece to an upload, which begins with a piece at 0, and return its size in bytes.

        An upload is a file without a name, so a crash leaves nothing of it.  Idle for 10 minutes it is forgotten when
        another begins, and a token's next one replaces it at once, so that an interrupted client can begin again.
        Raises SnapshotError "snapshot-upload", "overloaded", "body-too-large", "home-unusable".
        """
        most = min(self.limits.restore_bytes, BOUND_BYTES) if owner.bound else self.limits.restore_bytes
        with self._places:
            now_ms = self._now_ms()
            if at == 0:
                self._make_place(owner, now_ms)
                file = scratch(self._disk, self._folder, "restore")
                self._uploads[owner] = _Upload(upload, file, 0, now_ms)
            item = self._uploads.get(owner)
            if item is None or item.name != upload or item.size != at:
                raise SnapshotError("snapshot-upload", f"no piece is expected at {at}")
            if at + len(data) > most:
                raise SnapshotError("body-too-large", f"a restore has at most {most} bytes")
            self._check_room(len(data))
            item.file.pwrite(data, at)
            item.size, item.touched_ms = at + len(data), now_ms
            return item.size

    def take(self, owner: Uploader, upload: str) -> Read:
        """Return the reader of a complete upload and forget it; raise SnapshotError "snapshot-upload"."""
        with self._places:
            item = self._uploads.get(owner)
            if item is not None and item.name == upload:
                del self._uploads[owner]
        if item is None or item.name != upload:
            raise SnapshotError("snapshot-upload", "there is no such upload")
        return item.file.pread

    def run(
        self, read: Read, rights: Rights, *, dry_run: bool, skip_damaged: bool = False, owner: Uploader = OPERATOR,
        prepare: Callable[[Collection[Pair]], object] = len,
    ) -> Plan:  # fmt: skip
        """Verify the snapshot and, unless `dry_run`, store what is new; return what there was to do.

        With `skip_damaged` lines that are no records are passed over, and count and digest of the header do not matter.
        `prepare` gets the pairs as they will be, before any is stored: their secrets come first.
        Raises SnapshotError "overloaded", "snapshot-malformed", and without `dry_run` the first refusal with the facts
        line and refused; then nothing is stored.
        """
        with self._place(owner):
            plan, places = self._verify(read, rights, skip_damaged)
            if dry_run:
                return plan
            if plan.refusals:
                first = plan.refusals[0]
                text = f"line {first.number}: {first.text}; nothing was restored"
                raise SnapshotError(first.code, text, line=first.number, refused=plan.refused.total())
            self._check_room(2 * plan.bytes)
            if plan.pairs != self.writer.views.pairs:
                prepare(plan.pairs.values())
            self._store(read, places, skip_damaged)
            fields = {"records": plan.header.count, "new": plan.new, "thread": plan.header.thread or "all"}
            log.info(**event("store.restored", **fields, damaged=plan.damaged))
            return plan

    @contextmanager
    def _place(self, owner: Uploader) -> Iterator[None]:
        with self._places:
            if owner in self._running:
                raise SnapshotError("overloaded", "another restore of this token is running")
            self._make_place(owner, self._now_ms())
            self._running.add(owner)
        try:
            yield
        finally:
            with self._places:
                self._running.discard(owner)

    def _make_place(self, owner: Uploader, now_ms: int) -> None:
        """Forget uploads that are idle, and one more if there is no place for this token; raise "overloaded" then."""
        self._uploads = {
            who: item for who, item in self._uploads.items() if now_ms - item.touched_ms < UPLOAD_IDLE_MS
        }  # fmt: skip
        held = (self._uploads.keys() | self._running) - {owner}
        plain = {each for each in held if not each.admin}
        if len(held) < RESTORES_MAX and (owner.admin or len(plain) < RESTORES_OF_OTHERS_MAX):
            return
        sent = {who: self._uploads[who].touched_ms for who in plain - self._running}
        oldest = min(sent, key=sent.__getitem__, default=None)
        if oldest is None or now_ms - sent[oldest] < UPLOAD_WAITED_MS:
            raise SnapshotError("overloaded", "other restores are under way")
        del self._uploads[oldest]

    def _verify(self, read: Read, rights: Rights, skip_damaged: bool) -> tuple[Plan, "_Places"]:
        if self.writer.signer is None:
            raise SnapshotError("identity-missing")
        found = lines(read)
        plan = Plan(header_of(next(found, b"")))
        judge = _Judge(self.writer, self.limits, rights, plan.header, self._roots)
        ids = IdDigest(self._disk, self._folder)
        for number, raw, place in sound(found, self.limits) if skip_damaged else placed(found):
            self.writer.store.check_open()
            if not raw:
                plan.pass_over(number)
                continue
            try:
                envelope, fresh = judge.judge(raw, place)
            except SplError as exc:
                if exc.status >= 500:
                    raise  # a fault of this daemon says nothing about the record
                plan.refuse(number, exc)
                continue
            ids.add(envelope.id)
            plan.new, plan.known = plan.new + fresh, plan.known + (not fresh)
            plan.bytes += len(envelope.raw) * fresh
        if not plan.refusals:
            digest, twice = ids.finish()
            if twice:
                raise malformed(f"record {twice} stands twice")
            if not skip_damaged:
                plan.header.check(ids.count, digest)
            plan.damaged = max(plan.damaged, plan.header.count - ids.count)
        plan.pairs = judge.views.pairs
        return plan, judge.places_at_end()

    def _store(self, read: Read, places: "_Places", skip_damaged: bool) -> None:
        """Submit to the writer what is not held, chunk by chunk; each is durable before the next is sent."""
        unsubscribe = self.writer.listen(self._reload)
        try:
            for chunk in self._chunks(read, places, skip_damaged):
                self.writer.store.check_open()
                self._submit(chunk)
        finally:
            unsubscribe()

    def _chunks(self, read: Read, places: "_Places", skip_damaged: bool) -> Iterator[list[Arrive]]:
        chunk: list[Arrive] = []
        size = 0
        source = lines(read)
        next(source)
        for _, raw, place in sound(source, self.limits) if skip_damaged else placed(source):
            if not raw:
                continue
            envelope = record.parse(raw, self.limits)
            if places.row_of(envelope, place) is not None:
                continue
            ns = places.ns_of(envelope, place)
            chunk.append(Arrive(envelope, ns, ORIGIN))
            size += len(envelope.raw)
            if len(chunk) >= self.limits.commit_records or size >= self.limits.commit_bytes // 2:
                yield chunk
                chunk, size = [], 0
        if chunk:
            yield chunk

    def _submit(self, chunk: list[Arrive]) -> None:
        """Submit a chunk and wait until it is durable; a full write queue is tried again for 30 s."""
        for attempt in range(SUBMIT_TRIES):
            try:
                self.writer.submit(chunk).result(COMMIT_TIMEOUT_S)
                return
            except SplError as exc:
                if exc.code != "overloaded" or attempt + 1 == SUBMIT_TRIES:
                    raise
            threading.Event().wait(SUBMIT_AGAIN_S)

    def _reload(self, commit: Commit) -> None:
        """Load the views again after restored records of reserved threads; runs on the writer's thread."""
        if any(record.is_reserved(thread) for thread in commit.threads):
            views = self.writer.views
            self.writer.views = load_views(self.writer.store, views.did, views.limits)

    def _check_room(self, size: int) -> None:
        """Raise SnapshotError "home-unusable" unless `size` bytes fit above the floor of free bytes."""
        free = self._disk.free_bytes(self._home)
        needed = size + self.limits.disk_floor_bytes
        if free < needed:
            text = f"the restore needs {needed} bytes of disk, and fewer are free"
            raise SnapshotError("home-unusable", text, hint="make room, then restore again")


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the lines of one file belong in this home, as far as `ways` are known.

    What the file itself says about it (`place`) counts only in our own file, for the namespaces of another instance are
    not ours, and never for what we signed, which is held where it names.
    """

    store: Log
    own_did: str
    ours: bool
    ways: _Ways
    rights: Rights

    def says(self, envelope: Envelope, place: str) -> str:
        """Return `place` if it counts, else ""."""
        return place if self.ours and envelope.sig.by != self.own_did else ""

    def ns_of(self, envelope: Envelope, place: str) -> str:
        """Return the namespace: the one the file says, or the record crossed to or names; "" if reserved."""
        if record.is_reserved(envelope.record["thread"]):
            return ""
        named = record.namespace_of(envelope.record)
        return self.says(envelope, place) or self.ways.get((envelope.sig.by, named), named)

    def row_of(self, envelope: Envelope, place: str) -> Row | None:
        """Return what the log holds of a line in its namespace, or else the very bytes in another one.

        The other counts only unless the file says where the line belongs, and within the caller's reach: a file from
        before a record's way was lost, or that says nothing, must not store it a second time where it does not belong.
        """
        ns, rows = self.ns_of(envelope, place), list(self.store.index.copies(envelope.id))
        found = next((row for row in rows if row.ns == ns), None)
        if found is not None or not ns or self.says(envelope, place):
            return found
        within = (row for row in rows if row.ns and self.rights.reaches(row.ns))
        return next((row for row in within if self.store.payload(row) == envelope.raw), None)


class _Judge:
    """Judges for each line whether it may be restored.

    `views` are the live ones of the start, into which what this instance itself signed is folded as it is verified.
    """

    def __init__(self, writer: Writer, limits: Limits, rights: Rights, header: SnapshotHeader, roots: Roots) -> None:
        assert writer.signer is not None
        self._own: Chain = writer.signer.chain
        self._store, self._limits, self._rights, self._roots = writer.store, limits, rights, roots
        self._thread, self._ours, self._now_ms = header.thread, header.instance == self._own.did, writer.now_ms()
        self.views: Views = writer.views
        self._stale = False
        self._refresh()

    def judge(self, raw: bytes, place: str) -> tuple[Envelope, bool]:
        """Return (envelope, whether it is new here); raise SplError by what refuses it.

        `place` is the namespace that the file says.  Bytes that the log holds, within the caller's reach, were verified
        when they came, and may stay where they are.
        """
        envelope = record.parse(raw, self._limits)
        if self._stale and envelope.sig.by != self._own.did:
            self._refresh()
        self._check_form(envelope)
        ns, row = self._places.ns_of(envelope, place), self._places.row_of(envelope, place)
        reached = row is not None and (not row.ns or self._rights.reaches(row.ns))
        if reached and row is not None and self._store.payload(row) == envelope.raw:
            return envelope, False
        if ns:
            self._check_namespace(envelope, ns)
        code = self._gate.signature_code(envelope)
        if code:
            raise SnapshotError(code, f"no signature of {envelope.sig.by} that counts here", signer=envelope.sig.by)
        self._learn(envelope)
        return envelope, row is None

    def places_at_end(self) -> _Places:
        """Return where the lines belong once all that the file says of pairs is known."""
        self._refresh()
        return self._places

    def _check_form(self, envelope: Envelope) -> None:
        value, by = envelope.record, envelope.sig.by
        thread, actor = value["thread"], value["actor"]
        if self._thread and thread != self._thread:
            raise malformed(f"a record of thread {thread[:80]} in a snapshot of {self._thread[:80]}")
        if actor.startswith(record.INSTANCE_PREFIX) and actor != by:
            raise SnapshotError("actor-refused")
        if record.is_reserved(thread):
            if not self._rights.admin:
                raise SnapshotError("scope-forbidden", f"thread {thread} needs the scope admin", scope="admin")
            if by != self._own.did:
                raise SnapshotError("reserved-thread", f"thread {thread} takes only what {self._own.did} signed")

    def _check_namespace(self, envelope: Envelope, ns: str) -> None:
        """Refuse what may not be stored in a namespace.

        A record that names another one of ours, and has no way into this one, must be within the caller's reach there
        too: the gate would not let it in (see gate.py).
        """
        named = record.namespace_of(envelope.record)
        strays = self._crossed.get((envelope.sig.by, named), named) != ns and named in self.views.namespaces
        for name in (ns, named) if strays else (ns,):
            if not self._rights.reaches(name):
                raise SnapshotError("scope-forbidden", f"the token does not reach namespace {name}")
        namespace.usable(self.views.namespaces, ns)

    def _learn(self, envelope: Envelope) -> None:
        """Fold a verified record of our own reserved threads; those of pairs may hold chains that the gate lacks."""
        thread = envelope.record["thread"]
        if not record.is_reserved(thread):
            return
        entry = Entry(kind="rec", payload=envelope.raw, thread=thread, voucher=envelope.sig.by)
        self.views = self.views.folded(entry, envelope.record, 0, 0)
        self._stale = self._stale or thread in (THREAD_PAIRS, THREAD_NAMESPACES, consent.THREAD)

    def _refresh(self) -> None:
        self._gate = self._new_gate()
        self._crossed = consent.crossings(self.views.pairs.values(), self.views.consents)
        self._places = _Places(self._store, self._own.did, self._ours, self._crossed, self._rights)
        self._stale = False

    def _new_gate(self) -> Gate:
        # The operator's backup holds what was taken in once, so a retired key counts in it, however long ago it was
        # retired.  In a tenant's file it proves nothing: a thief of the key could have written it today.
        now_ms = 0 if self._rights.admin else self._now_ms
        trust = Trust(self._own, peer_did="", pins=self.views.pins, now_ms=now_ms)
        return Gate(
            pair_id="", inbound={}, actors=frozenset(), trust=trust, crossings={}, registry={},
            roots=self._roots, limits=self._limits,
        )  # fmt: skip
