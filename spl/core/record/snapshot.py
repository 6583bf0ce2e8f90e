"""A snapshot as text: one header line, then stored envelopes as they stand in the log, one a line.

    {"count":2,"digest":H,"format":"syncropel-snapshot-v1","instance":DID,"thread":"th_x"}
    {"id":…,"record":{…},"sig":{…}}
    {"namespace":"a"}
    {"id":…,"record":{…},"sig":{…}}
    …

The header also has `chains`, the key chains of those who signed the records by DID, if any are known: with them a home
that never met the signers verifies the file.  And `sig`, the signature of the instance under its present key over all
else in the header: that it held these ids when the file was taken.  No record proves its own age, so this alone tells
old records under a retired key from what the thief of that key signs today.

A line of `namespace` stands before a record that the instance holds in another namespace than the one it names, as far
as its pairs do not say so anyway: a relayed record crossed into other names on its way.  It holds for the next line.

`instance` is null if the source has no identity, `thread` null for all threads.  The digest is the SHA-256 over the
ids in ascending order, 64 hex digits and a line feed each, so `sort | sha256sum` gives it too.  Envelopes of other
vouchers for the same id are left out: one line an id.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Final

from .. import canon, keys
from ..errors import SplError
from ..identity.did import Chain, multibase
from ..limits import MIB, Limits
from ..value import dataclass, field, replace
from . import namespace, record
from .record import Envelope

FORMAT: Final = "syncropel-snapshot-v1"
DAMAGED_HEADER: Final = "spl-damaged"
"""Header of an answer that holds a snapshot: the first damaged places of the log, by sequence, if there are any."""
LINE_BYTES_MAX: Final = 2 * MIB
"""Twice the largest record, so that its signature fits as well."""
MEMBERS: Final = frozenset({"count", "digest", "format", "instance", "thread"})
CHAINS: Final = "chains"
SIG: Final = "sig"
CHAINS_BYTES_MAX: Final = MIB
"""Of all key chains in a header: half a line, and thousands of signers."""

HEADER_SIGNS_MAX: Final = CHAINS_BYTES_MAX // 16
"""Of brackets, braces and commas in a header: a chain has one in some forty bytes."""
SIG_BYTES_MAX: Final = 4096
"""More than a line has beside its record, and than a line that names a namespace has as a whole."""

_READ_BYTES: Final = 256 * 1024
_PLACE: Final = b'{"namespace":'
_RECORD: Final = b'{"id":"'

Read = Callable[[int, int], bytes]
"""(size, offset) -> up to `size` bytes from the offset; fewer only at the end."""


class SnapshotError(SplError):
    """The text is no whole snapshot, or a line of it may not be restored."""


@dataclass(frozen=True, slots=True)
class SnapshotHeader:
    """The first line; `instance` and `thread` are "" if the text has null."""

    instance: str
    thread: str
    count: int
    digest: str
    chains: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    """Key chains by DID, as they are written; the code that uses one verifies it."""
    sig: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), repr=False)
    """{key, value}, as it is written; nothing is known of it before `is_by`."""

    def encode(self) -> bytes:
        """Return the line with its line feed."""
        return canon.encode(self._bare() | ({SIG: {**self.sig}} if self.sig else {})) + b"\n"

    def signed(self, key: keys.SecretKey) -> "SnapshotHeader":
        """Return the header signed by this key."""
        return replace(self, sig={"key": multibase(key.public), "value": keys.b64(key.sign(self._text()))})

    def is_by(self, chain: Chain) -> bool:
        """Return whether the instance of this chain signed the header under its present key."""
        if self.instance != chain.did or self.sig.get("key") != multibase(chain.present):
            return False
        with suppress(keys.KeyFault):
            return keys.verify(chain.present, self._text(), keys.unb64(self.sig.get("value"), 64))
        return False

    def _text(self) -> bytes:
        return FORMAT.encode() + b"\0" + canon.encode(self._bare())

    def _bare(self) -> dict[str, Any]:
        chains = {CHAINS: {**self.chains}} if self.chains else {}
        return {
            "count": self.count, "digest": self.digest, "format": FORMAT, "instance": self.instance or None,
            "thread": self.thread or None, **chains,
        }  # fmt: skip

    def check(self, count: int, digest: str) -> None:
        """Raise SnapshotError "snapshot-malformed" unless number and digest of the lines are those of the header."""
        if count != self.count:
            raise malformed(f"the header counts {self.count} records, and {count} follow")
        if digest != self.digest:
            raise malformed("the ids that follow are not those that the header's digest names")


def header_of(raw: bytes) -> SnapshotHeader:
    """Return the header in a first line without its line feed; raise SnapshotError "snapshot-malformed"."""
    if _signs(raw) > HEADER_SIGNS_MAX:
        raise malformed(f"the first line has over {HEADER_SIGNS_MAX:,} parts, and no header has as many")
    try:
        value = canon.decode(raw)
    except canon.CanonError as exc:
        raise malformed(f"the first line is no header: {exc.message}") from exc
    if not isinstance(value, dict) or value.keys() - {CHAINS, SIG} != MEMBERS or value["format"] != FORMAT:
        raise malformed(f"the first line is no header of format {FORMAT}")
    instance, thread = value["instance"] or "", value["thread"] or ""
    if not (isinstance(instance, str) and isinstance(thread, str)):
        raise malformed("instance and thread in the header are texts or null")
    if type(value["count"]) is not int or value["count"] < 0 or not record.is_id(value["digest"]):
        raise malformed("count and digest in the header are a number and 64 hex digits")
    chains, sig = value.get(CHAINS, {}), value.get(SIG, {})
    if not (isinstance(chains, dict) and isinstance(sig, dict)):
        raise malformed("chains and sig in the header are objects")
    return SnapshotHeader(instance, thread, value["count"], value["digest"], chains, sig)


def envelope_of(raw: bytes, limits: Limits) -> Envelope:
    """Return the envelope in a line, as `record.parse` does.

    A line of more parts than the text of a record has bytes is refused before it is built: objects take up to twenty
    times the memory of their text.
    """
    if len(raw) > limits.record_bytes and _signs(raw) > limits.record_bytes + SIG_BYTES_MAX:
        raise SnapshotError("record-too-large", f"more parts than a record of {limits.record_bytes:,} bytes has")
    return record.parse(raw, limits)


def lines(read: Read) -> Iterator[bytes]:
    """Yield the lines of a file without their line feeds; the last one may lack its own.

    Raises SnapshotError "snapshot-malformed" for a line that no record can have.
    """
    return cut(_pieces(read))


def cut(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of bytes that arrive in pieces; see `lines`."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
        if len(rest) > LINE_BYTES_MAX:
            raise malformed(f"a line is over {LINE_BYTES_MAX} bytes")
    if rest:
        yield rest


def placement(ns: str) -> bytes:
    """Return the line, with its line feed, that says which namespace holds the record after it."""
    return canon.encode({"namespace": ns}) + b"\n"


def placed(found: Iterable[bytes]) -> Iterator[tuple[int, bytes, str]]:
    """Yield (number, envelope, the namespace that the line before it names or "") of the lines behind the header.

    Raises SnapshotError "snapshot-malformed" for a line that names a namespace and no record, or no namespace.
    """
    ns = ""
    for number, raw in enumerate(found, 2):
        if not raw.startswith(_PLACE):
            yield number, raw, ns
            ns = ""
        elif ns:
            raise malformed(f"line {number}: the line before it names a namespace, too")
        else:
            ns = _namespace_in(raw, number)
    if ns:
        raise malformed("the last line names a namespace, and no record follows")


def sound(found: Iterable[bytes], limits: Limits) -> Iterator[tuple[int, bytes, str]]:
    """Yield what `placed` does for the lines of a damaged file, with b"" for each line that is not used.

    That is one that is no record of its id, and one behind a line that may have named its namespace.
    """
    ns, is_known = "", True
    for number, raw in enumerate(found, 2):
        if raw.startswith(_PLACE):
            try:
                ns, is_known = _namespace_in(raw, number), True
            except SnapshotError:
                yield number, b"", ""
                ns, is_known = "", False
            continue
        is_sound = is_known and _is_record(raw, limits)
        yield number, raw if is_sound else b"", ns if is_sound else ""
        ns, is_known = "", raw.startswith(_RECORD)


def _is_record(raw: bytes, limits: Limits) -> bool:
    with suppress(SplError):
        return envelope_of(raw, limits).raw == raw
    return False


def records(pieces: Iterable[bytes], limits: Limits) -> Iterator[Envelope]:
    """Yield the envelopes of a snapshot, each id recomputed and their number checked at the end; signatures are not.

    For inspection.  Raises SnapshotError "snapshot-malformed".
    """
    found = cut(pieces)
    header, count = header_of(next(found, b"")), 0
    for number, raw, _ in placed(found):
        try:
            yield envelope_of(raw, limits)
        except SplError as exc:
            raise malformed(f"line {number}: {exc.message}") from exc
        count += 1
    header.check(count, header.digest)


def part(pieces: Iterable[bytes], wants: Callable[[Envelope], bool], limits: Limits) -> Iterator[bytes]:
    """Yield the lines of a snapshot of fewer records: those of a whole one that are wanted, with their signers' chains.

    What is wanted has to fit into memory.  Raises SnapshotError "snapshot-malformed".
    """
    found = cut(pieces)
    header = header_of(next(found, b""))
    count, kept, texts, signers = 0, list[str](), list[bytes](), set[str]()
    for number, raw, ns in placed(found):
        count += 1
        try:
            envelope = envelope_of(raw, limits)
        except SplError as exc:
            raise malformed(f"line {number}: {exc.message}") from exc
        if wants(envelope):
            kept.append(envelope.id)
            signers.add(envelope.sig.by)
            texts.append((placement(ns) if ns else b"") + raw + b"\n")
    header.check(count, header.digest)
    ids = "".join(f"{each}\n" for each in sorted(kept))
    chains = {did: chain for did, chain in header.chains.items() if did in signers}
    yield SnapshotHeader(header.instance, header.thread, len(kept), keys.digest(ids.encode()), chains).encode()
    yield from texts


def plain(envelope: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of the API's form, or an envelope's, as its eight fields and its id."""
    fields = envelope.get("record", envelope)
    return {"id": envelope["id"], **{name: fields[name] for name in sorted(record.FIELDS)}}


def malformed(text: str) -> SnapshotError:
    """Return the error for text that is no whole snapshot."""
    return SnapshotError("snapshot-malformed", text)


def _signs(raw: bytes) -> int:
    return raw.count(b"[") + raw.count(b"{") + raw.count(b",")


def _namespace_in(raw: bytes, number: int) -> str:
    if len(raw) > SIG_BYTES_MAX:
        raise malformed(f"line {number} is too long for a namespace")
    try:
        value = canon.decode(raw)
        if isinstance(value, dict) and value.keys() == {"namespace"}:
            return namespace.check_name(value["namespace"])
    except SplError as exc:
        raise malformed(f"line {number}: {exc.message}") from exc
    raise malformed(f"line {number} names more than a namespace")


def _pieces(read: Read) -> Iterator[bytes]:
    at = 0
    while data := read(_READ_BYTES, at):
        yield data
        at += len(data)
