"""Restoring a snapshot: what is new of it goes in, all or nothing.

The whole file is verified before anything is stored; then what is new is submitted to the writer, chunk by chunk.  The
log tells what came in before a crash, so a second try goes on.  Rejected: verifying and storing line by line, which
leaves half of a forged file behind.

A file that a disk damaged is refused whole, unless the caller skips what is damaged: count and digest of the header
then prove nothing, ids and signatures still prove each line.

Nothing holds the file in memory: ids are sorted on disk (`IdDigest`), an upload is a file without a name.

What a key signed that was retired long ago is restored from a file that this instance signed as a whole, with its
present key, or the key's owner did its own; from another file only where the operator says so.

The key chains in the file of an operator are pinned as if a relay had shown them, so a home that never met the signers
takes their records; a tenant's file teaches nothing.  Of a full backup of another instance, or of this home when it had
another identity, the daemon's own threads are left out, for they say nothing about this one; and of an operator's file
for which neither we nor the signer vouch, what a compromised key signed, named and counted: one stolen key must not
keep a whole backup out.

A restore belongs to a token, from the first piece of an upload to its end: one at a time each, three of them for those
that are no operator's, and one place more that only an operator takes.  An upload that others wait for gives way after
a minute without a piece.  They run beside each other; what two of them bring is stored once, as of two peers.
Rejected: one at a time for all, because one tenant's restores then kept out everybody's.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ..core.errors import SplError
from ..core.event import event
from ..core.gate import Roots
from ..core.limits import MIB, Limits
from ..core.pair.pair import Pair
from ..core.record import record
from ..core.record.record import Envelope
from ..core.record.snapshot import Read, SnapshotError, SnapshotHeader, header_of, lines, malformed, placed, sound
from ..core.value import dataclass, field
from .disk import Disk, File, IdDigest, scratch
from .snapshot import Judge, Places, Rights
from .views import load as load_views
from .writer import Writer
from .writes import Arrive, Commit, Item, Own

log = logging.getLogger("spl.store")

ORIGIN: Final = "restore"
RESTORES_MAX: Final = 4  # each holds a thread and a file on the disk
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
    left_out: Counter[str] = field(default_factory=Counter)
    """How many lines of which of the other daemon's own threads."""
    compromised: Counter[str] = field(default_factory=Counter)
    """How many lines by a compromised key of which signer were left out, for nobody vouches for them."""
    lacking: dict[str, None] = field(default_factory=dict)
    """Namespaces that are not here, and that records of the file need."""
    pins: Sequence[Own] = ()
    """Key chains of the file that its records need."""
    pairs: Mapping[str, Pair] = field(default_factory=dict)
    """All pairs, as they stand once the file is restored."""

    def pass_over(self, number: int) -> None:
        """Count one damaged line."""
        self.damaged += 1
        if len(self.damaged_lines) < SHOWN:
            self.damaged_lines.append(number)

    def leave_out(self, envelope: Envelope, compromised: Set[tuple[str, str]]) -> None:
        """Count one line that is left out, by its signer if it is for a compromised key."""
        sig = envelope.sig
        if (sig.by, sig.key) in compromised:
            self.compromised[sig.by] += 1
        else:
            self.left_out[envelope.record["thread"]] += 1

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
                hint = _hint(first.code, plan)
                raise SnapshotError(first.code, text, hint=hint, line=first.number, refused=plan.refused.total())
            self._check_room(2 * plan.bytes)
            if plan.pairs != self.writer.views.pairs:
                prepare(plan.pairs.values())
            self._store(read, plan, places, skip_damaged)
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

    def _verify(self, read: Read, rights: Rights, skip_damaged: bool) -> tuple[Plan, Places]:
        if self.writer.signer is None:
            raise SnapshotError("identity-missing")
        found = lines(read)
        plan = Plan(header_of(next(found, b"")))
        judge = Judge(self.writer, self.limits, rights, plan.header, self._roots, is_whole=not skip_damaged)
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
            if fresh is None:
                plan.leave_out(envelope, judge.compromised)
                continue
            plan.new, plan.known = plan.new + fresh, plan.known + (not fresh)
            plan.bytes += len(envelope.raw) * fresh
        if not plan.refusals:
            digest, twice = ids.finish()
            if twice:
                raise malformed(f"record {twice} stands twice")
            if not skip_damaged:
                plan.header.check(ids.count, digest)
            plan.damaged = max(plan.damaged, plan.header.count - ids.count)
        plan.pairs, plan.pins, plan.lacking = judge.views.pairs, judge.pins(), judge.lacking
        return plan, judge.places_at_end()

    def _store(self, read: Read, plan: Plan, places: Places, skip_damaged: bool) -> None:
        """Submit to the writer what is not held, chunk by chunk; each is durable before the next is sent."""
        unsubscribe = self.writer.listen(self._reload)
        try:
            if plan.pins:
                self._submit(plan.pins)
            for chunk in self._chunks(read, places, skip_damaged):
                self.writer.store.check_open()
                self._submit(chunk)
        finally:
            unsubscribe()

    def _chunks(self, read: Read, places: Places, skip_damaged: bool) -> Iterator[list[Arrive]]:
        chunk: list[Arrive] = []
        size = 0
        source = lines(read)
        next(source)
        for _, raw, place in sound(source, self.limits) if skip_damaged else placed(source):
            if not raw:
                continue
            envelope = record.parse(raw, self.limits)
            if places.passes_over(envelope) or places.row_of(envelope, place) is not None:
                continue
            ns = places.ns_of(envelope, place)
            chunk.append(Arrive(envelope, ns, ORIGIN))
            size += len(envelope.raw)
            if len(chunk) >= self.limits.commit_records or size >= self.limits.commit_bytes // 2:
                yield chunk
                chunk, size = [], 0
        if chunk:
            yield chunk

    def _submit(self, chunk: Sequence[Item]) -> None:
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


def _hint(code: str, plan: Plan) -> str:
    """Return what to do about a file that is refused, where more is known than the code says."""
    if code == "namespace-rejected":
        return "; ".join(f"spl namespace create {name}" for name in list(plan.lacking)[:SHOWN])
    if code == "key-retired":
        return "if the file was in no other hands than yours: spl thread restore --accept-retired FILE"
    if code == "chain-unknown":
        return "take the snapshot again, with this version and by an admin, or pair with the signer first"
    return ""
