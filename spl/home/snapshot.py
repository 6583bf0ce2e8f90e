"""Snapshots: taking a thread or everything as it stands up to one sequence, and restoring what is new of one.

Taking makes two passes over the same lines: the first counts the ids and digests them in order, for the header; the
second gives the stored bytes.  Both stop at the sequence that was the last at the start, so what arrives meanwhile is
in neither.  The bytes are the log's: whether they are still sound is what `spl store check` asks.

Restoring verifies the whole file before it stores anything, and then submits what is new to the writer, chunk by chunk;
the log tells what came in before a crash, so a second try goes on.  Rejected: verifying and storing line by line, which
leaves half of a forged file behind.

Neither holds the file in memory: ids are sorted on disk (`IdDigest`), an upload is a file without a name.
"""

import hashlib
import heapq
import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ..core import consent
from ..core.errors import SplError
from ..core.event import event
from ..core.gate import Gate, Roots, Trust
from ..core.identity.did import Chain
from ..core.limits import Limits
from ..core.pair.pair import Pair
from ..core.record import namespace, record
from ..core.record.record import Envelope
from ..core.record.snapshot import Read, SnapshotError, SnapshotHeader, header_of, lines, malformed
from .disk import Disk, File
from .index import by_thread
from .log import Entry, Log, Row
from .views import THREAD_NAMESPACES, THREAD_PAIRS, Views
from .views import load as load_views
from .writer import Writer
from .writes import Arrive, Commit

log = logging.getLogger("spl.store")

ROWS: Final = 500
PIECE_BYTES: Final = 64 * 1024
"""Read and handed out at once: a client that does not take the next piece keeps no more than that in memory."""
RUN_IDS: Final = 65_536
SPOOL_NAME: Final = "snapshot-ids"
ORIGIN: Final = "restore"
UPLOADS_MAX: Final = 4
UPLOAD_IDLE_MS: Final = 600_000
SHOWN: Final = 10
SUBMIT_TRIES: Final = 300
SUBMIT_AGAIN_S: Final = 0.1
COMMIT_TIMEOUT_S: Final = 120.0
FOLDER: Final = "run"

_ID_BYTES: Final = 32
_READ_IDS: Final = 256
_ID_AT: Final = len('{"id":"')

MayRead = Callable[[Row], bool]


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
    pairs: Mapping[str, Pair] = field(default_factory=dict)
    """All pairs, as they stand once the file is restored."""

    def refuse(self, number: int, exc: SplError) -> None:
        """Count one refused line."""
        self.refused[exc.code] += 1
        if len(self.refusals) < SHOWN:
            self.refusals.append(Refusal(number, exc.code, exc.message))


class IdDigest:
    """The digest over ids in ascending order: sorted runs in an unlinked file, merged at the end.

    Memory: one run of ids, and 8 KiB for each run written.
    """

    def __init__(self, disk: Disk, folder: Path, run_ids: int = RUN_IDS) -> None:
        self._disk, self._folder, self._run_ids = disk, folder, run_ids
        self._run: list[bytes] = []
        self._spool: File | None = None
        self._counts: list[int] = []
        self.count = 0

    def add(self, record_id: str) -> None:
        """Take one id, in any order."""
        self._run.append(bytes.fromhex(record_id))
        self.count += 1
        if len(self._run) >= self._run_ids:
            self._flush()

    def finish(self) -> tuple[str, str]:
        """Return (digest, an id that came twice or "")."""
        found, before, twice = hashlib.sha256(), b"", ""
        for raw in heapq.merge(sorted(self._run), *(self._read(number) for number in range(len(self._counts)))):
            if raw == before:
                twice = raw.hex()
            found.update(raw.hex().encode() + b"\n")
            before = raw
        return found.hexdigest(), twice

    def _flush(self) -> None:
        if self._spool is None:
            self._spool = scratch(self._disk, self._folder, SPOOL_NAME)
        self._spool.pwrite(b"".join(sorted(self._run)), sum(self._counts) * _ID_BYTES)
        self._counts.append(len(self._run))
        self._run = []

    def _read(self, number: int) -> Iterator[bytes]:
        assert self._spool is not None
        at, left = sum(self._counts[:number]), self._counts[number]
        while left:
            count = min(left, _READ_IDS)
            data = self._spool.pread(count * _ID_BYTES, at * _ID_BYTES)
            yield from (data[start : start + _ID_BYTES] for start in range(0, len(data), _ID_BYTES))
            at, left = at + count, left - count


def take(
    store: Log, disk: Disk, folder: Path, *, instance: str, thread: str, may_read: MayRead = lambda row: True
) -> Iterator[bytes]:
    """Yield a snapshot: the header, then pieces of whole lines of about 64 KiB.

    `thread` "" takes all, reserved ones too, and asks no `may_read`.  A thread that does not exist, or of which nothing
    may be read, gives an empty snapshot.  `folder` is where many ids are sorted.  Raises LineError "store-damaged".
    """
    upto, ids = store.last_seq, IdDigest(disk, folder)
    for payload in _payloads(store, thread, upto, may_read):
        ids.add(payload[_ID_AT : _ID_AT + 2 * _ID_BYTES].decode())
    digest, _ = ids.finish()
    yield SnapshotHeader(instance, thread, ids.count, digest).encode()
    piece = bytearray()
    for payload in _payloads(store, thread, upto, may_read):
        piece += payload
        piece += b"\n"
        # While this generator waits for its reader, its own names must hold nothing: neither the last payload nor the
        # piece, which the list hands over.  It costs up to 2 MiB a reader otherwise.
        del payload
        if len(piece) >= PIECE_BYTES:
            held = [bytes(piece)]
            piece.clear()
            yield held.pop()
    if piece:
        yield bytes(piece)


def scratch(disk: Disk, folder: Path, name: str) -> File:
    """Return a new file that has no name any more: it goes with its last user, however that ends."""
    disk.mkdir(folder)
    path = folder / name
    file = disk.create(path)
    disk.unlink(path)
    return file


@dataclass(slots=True)
class _Upload:
    file: File
    size: int
    touched_ms: int


class Restorer:
    """Restores into one home.  Blocks on the disk; callable from any thread, one restore at a time."""

    def __init__(self, writer: Writer, home: Path, disk: Disk, limits: Limits, *, now_ms: Callable[[], int]) -> None:
        self.writer, self.limits = writer, limits
        self._home, self._folder, self._disk, self._now_ms = home, home / FOLDER, disk, now_ms
        self._roots = Roots(limits.verified_roots)
        self._uploads: dict[str, _Upload] = {}
        self._turn = threading.Lock()
        self._uploading = threading.Lock()

    def add(self, upload: str, at: int, data: bytes) -> int:
        """Append a piece to an upload, which begins with a piece at 0, and return its size in bytes.

        An upload is a file without a name, so a crash leaves nothing of it.  Idle for 10 minutes it is forgotten.
        Raises SnapshotError "snapshot-upload", "overloaded", "body-too-large", "home-unusable".
        """
        with self._uploading:
            now_ms = self._now_ms()
            fresh = {name: item for name, item in self._uploads.items() if now_ms - item.touched_ms < UPLOAD_IDLE_MS}
            self._uploads = fresh
            if at == 0:
                if len(fresh) >= UPLOADS_MAX and upload not in fresh:
                    raise SnapshotError("overloaded", f"{UPLOADS_MAX} restores are being sent already")
                fresh[upload] = _Upload(scratch(self._disk, self._folder, "restore"), 0, now_ms)
            item = fresh.get(upload)
            if item is None or item.size != at:
                raise SnapshotError("snapshot-upload", f"no piece is expected at {at}")
            if at + len(data) > self.limits.restore_bytes:
                raise SnapshotError("body-too-large", f"a restore has at most {self.limits.restore_bytes} bytes")
            self._check_room(len(data))
            item.file.pwrite(data, at)
            item.size, item.touched_ms = at + len(data), now_ms
            return item.size

    def take(self, upload: str) -> Read:
        """Return the reader of a complete upload and forget it; raise SnapshotError "snapshot-upload"."""
        with self._uploading:
            item = self._uploads.pop(upload, None)
        if item is None:
            raise SnapshotError("snapshot-upload", "there is no such upload")
        return item.file.pread

    def run(
        self, read: Read, rights: Rights, *, dry_run: bool, prepare: Callable[[Collection[Pair]], object] = len
    ) -> Plan:
        """Verify the snapshot and, unless `dry_run`, store what is new; return what there was to do.

        `prepare` gets the pairs as they will be, before any is stored: their secrets come first.
        Raises SnapshotError "snapshot-malformed", and without `dry_run` the first refusal with the facts line and
        refused; then nothing is stored.
        """
        if not self._turn.acquire(blocking=False):
            raise SnapshotError("overloaded", "another restore is running")
        try:
            plan, ways = self._verify(read, rights)
            if dry_run:
                return plan
            if plan.refusals:
                first = plan.refusals[0]
                text = f"line {first.number}: {first.text}; nothing was restored"
                raise SnapshotError(first.code, text, line=first.number, refused=plan.refused.total())
            self._check_room(2 * plan.bytes)
            if plan.pairs != self.writer.views.pairs:
                prepare(plan.pairs.values())
            self._store(read, ways)
            fields = {"records": plan.header.count, "new": plan.new, "thread": plan.header.thread or "all"}
            log.info(**event("store.restored", **fields))
            return plan
        finally:
            self._turn.release()

    def _verify(self, read: Read, rights: Rights) -> tuple[Plan, "_Ways"]:
        if self.writer.signer is None:
            raise SnapshotError("identity-missing")
        found = lines(read)
        plan = Plan(header_of(next(found, b"")))
        judge = _Judge(self.writer, self.limits, rights, plan.header.thread, self._roots)
        ids = IdDigest(self._disk, self._folder)
        for number, raw in enumerate(found, 2):
            try:
                envelope, fresh = judge.judge(raw)
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
            plan.header.check(ids.count, digest)
        plan.pairs = judge.views.pairs
        return plan, consent.crossings(judge.views.pairs.values(), judge.views.consents)

    def _store(self, read: Read, ways: "_Ways") -> None:
        """Submit to the writer what is not held, chunk by chunk; each is durable before the next is sent."""
        unsubscribe = self.writer.listen(self._reload)
        try:
            for chunk in self._chunks(read, ways):
                self._submit(chunk)
        finally:
            unsubscribe()

    def _chunks(self, read: Read, ways: "_Ways") -> Iterator[list[Arrive]]:
        chunk: list[Arrive] = []
        size = 0
        source = lines(read)
        next(source)
        for raw in source:
            envelope = record.parse(raw, self.limits)
            ns = _ns_of(envelope, ways)
            if self.writer.store.index.find(envelope.id, ns) is not None:
                continue
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
            text = f"the restore needs {needed} bytes of disk, {free} are free"
            raise SnapshotError("home-unusable", text, hint="make room, then restore again")


def _payloads(store: Log, thread: str, upto: int, may_read: MayRead) -> Iterator[bytes]:
    """Yield the stored envelopes up to a sequence, in order of arrival; one that several namespaces hold, once."""
    if not thread:
        for line in store.scan(1):
            if line.seq > upto:
                return
            if line.kind == "rec" and _is_first(store, line.payload, line.seq, lambda row: True):
                yield line.payload
        return
    seq = 0
    while page := store.index.after(by_thread(thread), seq, ROWS):
        rows = [row for row in page if row.kind == "rec" and row.seq <= upto and may_read(row)]
        for few in _small(rows):
            # Popping lets go of each payload as it is handed out: a generator that a slow reader leaves suspended
            # would otherwise keep all of them.
            held = store.payloads(few)[::-1]
            for row in few:
                if _is_first(store, held[-1], row.seq, may_read):
                    yield held.pop()
                else:
                    held.pop()
        seq = page[-1].seq
        if seq >= upto:
            return


def _small(rows: list[Row]) -> Iterator[list[Row]]:
    """Yield the rows by at most PIECE_BYTES, or one."""
    few: list[Row] = []
    size = 0
    for row in rows:
        if few and size + row.length > PIECE_BYTES:
            yield few
            few, size = [], 0
        few.append(row)
        size += row.length
    if few:
        yield few


def _is_first(store: Log, payload: bytes, seq: int, may_read: MayRead) -> bool:
    copies = store.index.copies(payload[_ID_AT : _ID_AT + 2 * _ID_BYTES].decode(errors="replace"))
    return next((row.seq for row in copies if may_read(row)), seq) == seq


_Ways = Mapping[tuple[str, str], str]
"""See `consent.crossings`."""


def _ns_of(envelope: Envelope, ways: _Ways) -> str:
    """Return the namespace that a restored record belongs to: the one that it crossed to or names, "" if reserved."""
    if record.is_reserved(envelope.record["thread"]):
        return ""
    named = record.namespace_of(envelope.record)
    return ways.get((envelope.sig.by, named), named)


class _Judge:
    """Judges for each line whether it may be restored.

    `views` are the live ones of the start, into which what this instance itself signed is folded as it is verified.
    """

    def __init__(self, writer: Writer, limits: Limits, rights: Rights, thread: str, roots: Roots) -> None:
        assert writer.signer is not None
        self._own: Chain = writer.signer.chain
        self._store, self._limits, self._rights, self._thread, self._roots = writer.store, limits, rights, thread, roots
        self.views: Views = writer.views
        self._stale = False
        self._refresh()

    def judge(self, raw: bytes) -> tuple[Envelope, bool]:
        """Return (envelope, whether it is new here); raise SplError by what refuses it.

        Bytes that the log holds were verified when they came.
        """
        envelope = record.parse(raw, self._limits)
        if self._stale and envelope.sig.by != self._own.did:
            self._refresh()
        self._check_place(envelope)
        row = self._store.index.find(envelope.id, _ns_of(envelope, self._crossed))
        if row is not None and self._store.payloads([row]) == [envelope.raw]:
            return envelope, False
        code = self._gate.signature_code(envelope)
        if code:
            text = "is not known here" if code == "chain-unknown" else "does not hold"
            raise SnapshotError(code, f"the signature by {envelope.sig.by} {text}", signer=envelope.sig.by)
        self._learn(envelope)
        return envelope, row is None

    def _check_place(self, envelope: Envelope) -> None:
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
            return
        ns = _ns_of(envelope, self._crossed)
        if not self._rights.reaches(ns):
            raise SnapshotError("scope-forbidden", f"the token does not reach namespace {ns}")
        namespace.usable(self.views.namespaces, ns)

    def _learn(self, envelope: Envelope) -> None:
        """Fold a verified record of our own reserved threads; those of pairs may hold chains that the gate lacks."""
        thread = envelope.record["thread"]
        if not record.is_reserved(thread):
            return
        entry = Entry(kind="rec", payload=envelope.raw, thread=thread, voucher=envelope.sig.by)
        self.views = self.views.folded(entry, envelope.record, 0)
        self._stale = self._stale or thread in (THREAD_PAIRS, THREAD_NAMESPACES, consent.THREAD)

    def _refresh(self) -> None:
        self._gate = self._new_gate()
        self._crossed = consent.crossings(self.views.pairs.values(), self.views.consents)
        self._stale = False

    def _new_gate(self) -> Gate:
        # A snapshot holds what was taken in once, so a retired key counts in it, however long ago it was retired.
        trust = Trust(self._own, peer_did="", pins=self.views.pins)
        return Gate(
            pair_id="", inlets={}, actors=frozenset(), trust=trust, crossings={}, registry={}, roots=self._roots,
            limits=self._limits,
        )  # fmt: skip
