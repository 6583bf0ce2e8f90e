"""Taking a snapshot: a thread, or everything, as it stands up to one sequence; judging the lines of one.

Two passes over the same lines: the first counts the ids and digests them in order, for the header; the second gives the
stored bytes.  Both stop at the sequence that was the last at the start, so what arrives meanwhile is in neither.  What
the disk damaged is in neither, too, and is named: a snapshot that says nothing is whole.  Damage that comes between the
passes ends the second one early, and the file is no snapshot then.

Nothing holds the file in memory: ids are sorted on disk (`IdDigest`), pieces are handed out as they are read.

`Judge` says of each line of a file whether it may be restored, and `Places` where it belongs.  Chains that the file of
an operator brings count as if a relay had shown them: what contradicts a pinned one teaches nothing.
"""

import json
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, Final

from ..core import canon, consent
from ..core.errors import SplError
from ..core.gate import Gate, Roots, Trust
from ..core.identity.did import Chain, chain_from_json
from ..core.identity.pins import KIND_CHAIN, pin_body
from ..core.limits import Limits
from ..core.record import namespace, record
from ..core.record.record import Envelope
from ..core.record.snapshot import CHAINS_BYTES_MAX, SnapshotError, SnapshotHeader, envelope_of, malformed, placement
from ..core.value import dataclass
from .disk import Disk, IdDigest
from .log import Entry, LineError, Log, Row
from .tables.lists import by_thread, by_thread_in
from .tables.rows import in_pieces
from .views import THREAD_NAMESPACES, THREAD_PAIRS, Views
from .writer import Writer
from .writes import Own, Signer

ROWS: Final = 500
STEP_RECORDS: Final = 100
PIECE_BYTES: Final = 64 * 1024
"""Read and handed out at once: a client that does not take the next piece keeps no more than that in memory."""

_ID_CHARS: Final = 64
_ID_AT: Final = len('{"id":"')
_SIG: Final = b',"sig":{'  # no string in JSON holds bare quotes
_BY: Final = b'"by":"'

_Ways = Mapping[tuple[str, str], str]
"""See `consent.crossings`."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The header, and the pieces of whole lines of about 64 KiB, to be read once.

    `damaged` are the first seqs of all places in the log of which lines are lost, ascending: what they held may belong
    here, and is left out.
    """

    header: bytes
    damaged: tuple[int, ...]
    pieces: Iterator[bytes]


def take(
    store: Log, disk: Disk, folder: Path, *, views: Views, instance: str, thread: str,
    namespaces: Collection[str] = (), signer: Signer | None = None,
) -> Generator[None, None, Snapshot]:  # fmt: skip
    """Return a snapshot once the first pass is done, of which each step takes STEP_RECORDS records.

    `thread` "" takes all, reserved ones too.  Of a thread only what stands in `namespaces` is read, if there are any: a
    thread that does not exist, or has nothing in them, gives an empty snapshot after the same work.  `folder` is where
    many ids are sorted; the pairs in `views` say which records find their namespace again by themselves, and the pins
    hold the key chains of the signers, beside that of `signer`, which signs the header.
    Raises LineError "overloaded", StoreError "shutting-down".
    """
    upto, ids, signers = store.last_seq, IdDigest(disk, folder), dict[str, None]()
    for number, (payload, _, _) in enumerate(_held(store, thread, upto, namespaces), 1):
        ids.add(payload[_ID_AT : _ID_AT + _ID_CHARS].decode())
        signers[_signer(payload)] = None
        if number % STEP_RECORDS == 0:
            yield
    digest, _ = ids.finish()
    damaged = {place.seq for place in store.lost} | {seq for seq in store.index.reader.left_out if seq <= upto}
    own = signer.chain if signer is not None else None
    header = SnapshotHeader(instance, thread, ids.count, digest, _chains(signers, views, own))
    pieces = _pieces(_held(store, thread, upto, namespaces), ids.count, views)
    text = (header.signed(signer.key) if signer is not None else header).encode()
    return Snapshot(text, tuple(sorted(damaged)), pieces)


def _signer(payload: bytes) -> str:
    """Return who signed a stored envelope: `by` is the first member of `sig` beside a batch, which holds no text."""
    by = payload.index(_BY, payload.rindex(_SIG)) + len(_BY)
    return payload[by : payload.index(b'"', by)].decode(errors="replace")


def _chains(signers: Iterable[str], views: Views, own: Chain | None) -> dict[str, Any]:
    """Return the key chains of the signers that are known, as far as a header has room."""
    found, size = dict[str, Any](), 0
    for did in signers:
        chain = own if own is not None and own.did == did else views.pins.chain(did)
        if chain is None:
            continue
        value = chain.to_json()
        size += len(canon.encode(value)) + len(did)
        if size > CHAINS_BYTES_MAX:
            break
        found[did] = value
    return found


def _pieces(records: Iterator[tuple[bytes, str, str]], count: int, views: Views) -> Iterator[bytes]:
    """Yield the lines of the second pass; raise LineError "store-damaged" if it has not as many as the first."""
    ways = consent.crossings(views.pairs.values(), views.consents)
    piece, found = bytearray(), 0
    for payload, ns, origin in records:
        found += 1
        if ns:
            pair = views.pairs.get(origin)
            piece += _placement(payload, ns, ways, pair.peer_did if pair else "")
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
    if found != count:
        raise LineError("store-damaged", f"{count - found} records were damaged while the snapshot was taken")


def _placement(payload: bytes, ns: str, ways: _Ways, peer_did: str) -> bytes:
    """Return the line that says where a record is held; b"" if a restore finds that namespace without it.

    A way proves nothing about a record that did not come over it (`peer_did` brought it): its pair may be younger.
    """
    value = json.loads(payload)
    by, named = value["sig"]["by"], record.namespace_of(value["record"])
    found = ways.get((by, named), named) == ns and (named == ns or by == peer_did)
    return b"" if found else placement(ns)


def _held(store: Log, thread: str, upto: int, namespaces: Collection[str]) -> Iterator[tuple[bytes, str, str]]:
    """Yield (envelope, namespace, origin) of what is stored up to a sequence, in order of arrival.

    What several namespaces hold comes once, as the first holds it.  The namespace is "" where there is no doubt about
    it: our own records are in the one that they name, and those of reserved threads in none.
    """
    if not thread:
        expected = 1
        for line in store.scan(1):
            store.check_open()
            _leave_out(store, range(expected, min(line.seq, upto + 1)))
            if line.seq > upto:
                return
            expected = line.seq + 1
            if line.kind == "rec" and _is_first(store, line.payload, line.seq):
                yield line.payload, "" if line.own else line.ns, line.origin
        _leave_out(store, range(expected, upto + 1))
        return
    names = [by_thread_in(ns, thread) for ns in namespaces] or [by_thread(thread)]
    seq = 0
    while page := store.index.after_any(names, seq, ROWS):
        store.check_open()
        rows = [row for row in page if row.seq <= upto]
        for few in in_pieces(rows, PIECE_BYTES, ROWS):
            store.check_open()
            # Popping lets go of each payload as it is handed out: a generator that a slow reader leaves suspended
            # would otherwise keep all of them.
            held = list(store.read(few))[::-1]
            while held:
                row, _ = held[-1]
                if _is_first(store, held[-1][1], row.seq, namespaces):
                    yield held.pop()[1], "" if row.own else row.ns, row.origin
                else:
                    held.pop()
        seq = page[-1].seq
        if seq >= upto:
            return


def _is_first(store: Log, payload: bytes, seq: int, namespaces: Collection[str] = ()) -> bool:
    copies = store.index.copies(payload[_ID_AT : _ID_AT + _ID_CHARS].decode(errors="replace"), namespaces)
    return next((row.seq for row in copies), seq) == seq


def _leave_out(store: Log, seqs: range) -> None:
    """Leave lines that the log does not hold out of the index, if it is older than the damage."""
    for seq in seqs:
        if store.index.place(seq) is not None:
            store.index.reader.leave_out(seq)


# -- judging the lines of one that is to be restored


@dataclass(frozen=True, slots=True)
class Rights:
    """What the caller may restore: reserved threads, which namespaces, what keys signed that `retired` long ago.

    The last an operator asks for, of a file whose way it knows.
    """

    admin: bool
    reaches: Callable[[str], bool]
    retired: bool = False


@dataclass(frozen=True, slots=True)
class Places:
    """Where the lines of one file belong in this home, as far as `ways` are known.

    What the file itself says about it (`place`) counts only in our own file, for the namespaces of another instance are
    not ours, and never for what we signed, which is held where it names.
    """

    store: Log
    own_did: str
    ours: bool
    selects: bool
    """Whether what stands in the own threads of another DID's daemon is left out."""
    ways: _Ways
    rights: Rights
    compromised: Set[tuple[str, str]] = frozenset()
    """Signers and keys of theirs whose lines are left out."""

    def leaves_out(self, envelope: Envelope) -> bool:
        """Return whether a line is about the daemon of another DID, in an operator's file of all its threads."""
        return self.selects and envelope.sig.by != self.own_did and record.is_reserved(envelope.record["thread"])

    def passes_over(self, envelope: Envelope) -> bool:
        """Return whether nothing of a line is stored, although the file as a whole is."""
        return self.leaves_out(envelope) or (envelope.sig.by, envelope.sig.key) in self.compromised

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


class Judge:
    """Judges for each line whether it may be restored.

    `views` are the live ones of the start, into which what this instance itself signed is folded as it is verified.
    """

    def __init__(
        self, writer: Writer, limits: Limits, rights: Rights, header: SnapshotHeader, roots: Roots, *, is_whole: bool
    ) -> None:
        """`is_whole`: count and digest of the header will be compared with the lines, so it may stand for them."""
        assert writer.signer is not None
        self._own: Chain = writer.signer.chain
        self._store, self._limits, self._rights, self._roots = writer.store, limits, rights, roots
        self._thread, self._ours, self._now_ms = header.thread, header.instance == self._own.did, writer.now_ms()
        self.views: Views = writer.views
        self._learnt = self._chains(header) if rights.admin else {}
        self._whole_by = self._signer_of(header) if is_whole else ""
        self._used: dict[str, None] = {}
        self.compromised = set[tuple[str, str]]()
        """Signers and keys of theirs of which lines were left out, for nobody vouches for them."""
        self.lacking: dict[str, None] = {}
        """Namespaces that records need and that are not here."""
        self._stale = False
        self._refresh()

    def _chains(self, header: SnapshotHeader) -> dict[str, Chain]:
        """Return the key chains of the file that say more than the pinned ones, as far as there is room for them."""
        found, pins = dict[str, Chain](), self.views.pins
        for did, value in header.chains.items():
            try:
                chain = chain_from_json(value, self._limits)
            except SplError:
                continue
            more = chain.did == did != self._own.did and not pins.code_of(chain) and pins.chain(did) != chain
            if more and (did in pins.by_did or len(pins.by_did) + len(found) < self._limits.chains_count):
                found[did] = chain
        return found

    def _signer_of(self, header: SnapshotHeader) -> str:
        """Return who signed the header of an operator's file, "" if nobody did whose present key is known."""
        did = header.instance
        chain = self._own if did == self._own.did else self._learnt.get(did) or self.views.pins.chain(did)
        return did if self._rights.admin and chain is not None and header.is_by(chain) else ""

    def pins(self) -> list[Own]:
        """Return what pins the chains of the file under which something was verified."""
        return [Own(THREAD_PAIRS, KIND_CHAIN, pin_body(self._learnt[did])) for did in self._used]

    def judge(self, raw: bytes, place: str) -> tuple[Envelope, bool | None]:
        """Return (envelope, whether it is new here, None if it is left out); raise SplError by what refuses it.

        `place` is the namespace that the file says.  Bytes that the log holds, within the caller's reach, were verified
        when they came, and may stay where they are.
        """
        envelope = envelope_of(raw, self._limits)
        if self._stale and envelope.sig.by != self._own.did:
            self._refresh()
        if self._places.leaves_out(envelope):
            return envelope, None
        self._check_form(envelope)
        ns, row = self._places.ns_of(envelope, place), self._places.row_of(envelope, place)
        reached = row is not None and (not row.ns or self._rights.reaches(row.ns))
        if reached and row is not None and self._store.payload(row) == envelope.raw:
            return envelope, False
        if ns:
            self._check_namespace(envelope, ns)
        code = self._gate.signature_code(envelope)
        if code and self._rights.admin and self._gate.is_compromised(envelope):
            self.compromised.add((envelope.sig.by, envelope.sig.key))
            return envelope, None
        if code:
            raise SnapshotError(code, f"no signature of {envelope.sig.by} that counts here", signer=envelope.sig.by)
        if envelope.sig.by in self._learnt:
            self._used[envelope.sig.by] = None
        self._learn(envelope)
        return envelope, row is None

    def places_at_end(self) -> Places:
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
        try:
            namespace.usable(self.views.namespaces, ns)
        except SplError:
            self.lacking[ns] = None
            raise

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
        # What we signed as a whole has such lines if this home had another DID before; else they were put into it.
        selects = not self._thread and self._rights.admin and (not self._ours or self._whole_by == self._own.did)
        self._places = Places(
            self._store, self._own.did, self._ours, selects, self._crossed, self._rights, self.compromised
        )  # fmt: skip
        self._stale = False

    def _new_gate(self) -> Gate:
        # A file that we signed as a whole holds what we held once, so a retired key counts in it, however long ago it
        # was retired, and in another's file that one's own.  Anywhere else it proves nothing, for the thief of the key
        # could have written it today.
        all_count = self._whole_by == self._own.did or (self._rights.admin and self._rights.retired)
        pins = self.views.pins
        for chain in self._learnt.values():
            pins = pins.seen(chain)
        now_ms = 0 if all_count else self._now_ms
        trust = Trust(self._own, peer_did="", pins=pins, now_ms=now_ms, whole_by=self._whole_by)
        return Gate(
            pair_id="", inbound={}, actors=frozenset(), trust=trust, crossings={}, registry={},
            roots=self._roots, limits=self._limits,
        )  # fmt: skip
