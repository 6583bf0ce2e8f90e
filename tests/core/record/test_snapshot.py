"""Snapshots as text: the header says what follows, and any other text is refused."""

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core.errors import SplError
from spl.core.identity.did import Chain, did_of, multibase
from spl.core.keys import SecretKey, b64
from spl.core.limits import Limits
from spl.core.record import record, snapshot
from spl.core.record.record import Envelope, Sig
from spl.core.record.snapshot import CHAINS_BYTES_MAX, SnapshotHeader

LIMITS = Limits()
EMPTY = hashlib.sha256().hexdigest()
KEY = SecretKey(b"k" * 32)


def an_envelope(n: int) -> Envelope:
    fields = record.check(
        {"act": "DO", "actor": "did:sync:user:a", "body": {"n": n}, "clock": n, "thread": "th"}, LIMITS
    )
    id_, text = record.identify(fields, LIMITS)
    return record.seal(fields, id_, text, Sig("did:x", "zkey", KEY.sign(record.signed_text(id_, None))))


@given(st.text(max_size=20), st.text(max_size=20).filter(lambda text: text.isprintable()), st.integers(0, 10**9))
def test_a_header_reads_back(instance: str, thread: str, count: int) -> None:
    chains = {thread: {"did": thread}} if count % 2 else {}
    sig = {"key": thread} if count % 3 else {}
    header = SnapshotHeader(instance.encode(errors="replace").decode(), thread, count, EMPTY, chains, sig)
    raw = header.encode()
    assert raw.endswith(b"}\n")
    assert raw.count(b"\n") == 1
    assert snapshot.header_of(raw[:-1]) == header


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{}", b"[]", b"{", b"\xff",
        SnapshotHeader("", "", 0, EMPTY).encode()[:-2],
        SnapshotHeader("", "", 0, EMPTY).encode().replace(b"-v1", b"-v9"),
        SnapshotHeader("", "", 0, EMPTY).encode().replace(b":0,", b":-1,"),
        SnapshotHeader("", "", 0, EMPTY).encode().replace(b":0,", b":true,"),
        SnapshotHeader("", "", 0, "abc").encode(),
        SnapshotHeader("", "", 0, EMPTY).encode().replace(b"null", b"7", 1),
        SnapshotHeader("", "", 0, EMPTY).encode().replace(b"{", b'{"more":1,'),
        SnapshotHeader("", "", 0, EMPTY).encode().replace(b"{", b'{"chains":[],'),
        SnapshotHeader("", "", 0, EMPTY).encode()[:-2] + b',"sig":[]}',
        SnapshotHeader("", "", 0, EMPTY).encode().replace(b'"thread":null', b'"thread":7'),
        SnapshotHeader("", "", 0, EMPTY).encode().replace(b":0,", b':"0",'),
    ],
)  # fmt: skip
def test_what_is_no_header_is_refused(raw: bytes) -> None:
    with pytest.raises(SplError) as caught:
        snapshot.header_of(raw)
    assert caught.value.code == "snapshot-malformed"


@given(st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), max_size=8), st.integers(1, 40))
def test_lines_are_the_same_however_they_arrive(lines: list[bytes], step: int) -> None:
    text = b"".join(line + b"\n" for line in lines)
    pieces = [text[at : at + step] for at in range(0, len(text), step)]
    assert list(snapshot.cut(pieces)) == lines
    assert list(snapshot.lines(lambda size, offset: text[offset : offset + size])) == lines


def test_a_line_without_end_is_refused() -> None:
    endless = iter(lambda: b"x" * 100_000, None)
    with pytest.raises(SplError) as caught:
        list(snapshot.cut(endless))
    assert caught.value.code == "snapshot-malformed"


def test_a_line_may_have_as_many_bytes_as_allowed() -> None:
    line = b"x" * snapshot.LINE_BYTES_MAX
    assert list(snapshot.cut([line])) == list(snapshot.cut([line, b"\n"])) == [line]
    with pytest.raises(SplError, match="a line is over"):
        list(snapshot.cut([line, b"x"]))


def test_a_header_is_that_of_the_instance_that_signed_it() -> None:
    chain = Chain(did_of("x", KEY.public), KEY.public)
    header = SnapshotHeader(chain.did, "th", 3, EMPTY, {"did:y": {}}).signed(KEY)
    assert header.is_by(chain) is True
    assert snapshot.header_of(header.encode()[:-1]).is_by(chain) is True
    other = SecretKey(b"o" * 32)
    signature = b64(other.sign(b"x"))
    for changed in (
        replace(header, count=4), replace(header, thread=""), replace(header, digest="a" * 64),
        replace(header, chains={}), replace(header, sig={}), replace(header, sig={"key": header.sig["key"]}),
        replace(header, sig={**header.sig, "value": 7}), replace(header, sig={**header.sig, "value": "!"}),
        replace(header, sig={**header.sig, "value": signature}), header.signed(other),
        replace(header, sig={**header.sig, "key": multibase(other.public)}),
    ):  # fmt: skip
        assert changed.is_by(chain) is False
    assert header.is_by(Chain(did_of("y", KEY.public), KEY.public)) is False


def test_of_a_damaged_file_each_line_is_used_that_is_a_record_in_a_known_place() -> None:
    """Behind a line that may have named its namespace, a record has no place that is known."""
    one, two, place = an_envelope(1).raw, an_envelope(2).raw, snapshot.placement("a")[:-1]
    cut_place, cut_record = b'{"namespace":7}', one[:-9]

    def used(*lines: bytes) -> list[tuple[int, bytes, str]]:
        return list(snapshot.sound(lines, LIMITS))

    assert used(one, place, two, one) == [(2, one, ""), (4, two, "a"), (5, one, "")]
    assert used(cut_record, one) == [(2, b"", ""), (3, one, "")]
    assert used(place, cut_record, one) == [(3, b"", ""), (4, one, "")]
    assert used(b"?", one, two) == [(2, b"", ""), (3, b"", ""), (4, two, "")]
    assert used(cut_place, one, two) == [(2, b"", ""), (3, b"", ""), (4, two, "")]
    assert used(cut_place, place, one) == [(2, b"", ""), (4, one, "a")]
    assert used(place, snapshot.placement("b")[:-1], one) == [(4, one, "b")]
    assert used(one + b" ") == [(2, b"", "")], "the bytes that were signed, and no others"


def test_a_record_is_shown_with_its_id_and_its_fields() -> None:
    one = an_envelope(1)
    fields = one.record
    for value in ({"id": one.id, "record": fields, "sig": {}}, {"id": one.id, **fields, "namespace": "a"}):
        assert snapshot.plain(value) == {"id": one.id, **fields}


def test_records_are_read_with_their_ids_checked() -> None:
    made = [an_envelope(n) for n in range(3)]
    text = SnapshotHeader("did:x", "th", 3, EMPTY).encode() + b"".join(one.raw + b"\n" for one in made)
    assert [one.raw for one in snapshot.records([text], LIMITS)] == [one.raw for one in made]
    for bad in (text[:-9], text.replace(b'"n":1', b'"n":7'), text + made[0].raw, text.rpartition(b"{")[0]):
        with pytest.raises(SplError) as caught:
            list(snapshot.records([bad], LIMITS))
        assert caught.value.code == "snapshot-malformed"


def test_a_line_of_a_namespace_holds_for_the_next_record() -> None:
    text = b"a\n" + snapshot.placement("org/music") + b"b\nc\n"
    assert [*snapshot.placed(text.splitlines())] == [(2, b"a", ""), (4, b"b", "org/music"), (5, b"c", "")]


@pytest.mark.parametrize("text", [
    snapshot.placement("a"), snapshot.placement("a") * 2 + b"x\n", b'{"namespace":"a","x":1}\nx\n',
    b'{"namespace":7}\nx\n', b'{"namespace":""}\nx\n', b'{"namespace":"A b"}\nx\n', b'{"namespace":"a"\nx\n',
])  # fmt: skip
def test_a_line_of_a_namespace_that_places_nothing_is_refused(text: bytes) -> None:
    with pytest.raises(SplError) as caught:
        [*snapshot.placed(text.splitlines())]
    assert caught.value.code == "snapshot-malformed"


def test_a_part_is_a_snapshot_of_what_is_wanted_with_the_chains_of_its_signers() -> None:
    """Its digest is the one that the whole one would have, and no chain of anybody else is in it."""
    found = [an_envelope(n) for n in range(4)]
    chains = {"did:x": {"did": "did:x"}, "did:other": {"did": "did:other"}}
    whole = [
        SnapshotHeader("did:x", "th", 4, EMPTY, chains).encode(),
        *(snapshot.placement("a") + one.raw + b"\n" for one in found),
    ]
    header, *rest = snapshot.part(whole, lambda one: one.record["clock"] in (1, 3), LIMITS)
    ids = sorted(found[n].id for n in (1, 3))
    digest = hashlib.sha256("".join(f"{each}\n" for each in ids).encode()).hexdigest()
    assert header == SnapshotHeader("did:x", "th", 2, digest, {"did:x": {"did": "did:x"}}).encode()
    assert rest == [whole[2], whole[4]]
    assert list(snapshot.part(whole, lambda one: False, LIMITS)) == [SnapshotHeader("did:x", "th", 0, EMPTY).encode()]


@pytest.mark.parametrize("fault", ["short", "changed", "no header"])
def test_no_part_is_made_of_what_is_no_whole_snapshot(fault: str) -> None:
    whole = SnapshotHeader("", "", 2, EMPTY).encode() + b"".join(an_envelope(n).raw + b"\n" for n in range(2))
    broken = {"short": whole[: whole.rindex(b"\n", 0, -1) + 1], "changed": whole.replace(b'"n":1', b'"n":7'),
              "no header": whole.partition(b"\n")[2]}[fault]  # fmt: skip
    with pytest.raises(SplError) as caught:
        list(snapshot.part([broken], lambda one: True, LIMITS))
    assert caught.value.code == "snapshot-malformed"


@pytest.mark.parametrize("parts", [b"[]", b"{}", b"0"])
def test_a_header_of_too_many_parts_is_refused_before_it_is_built(parts: bytes) -> None:
    chains = b'{"chains":{"a":[' + b",".join([parts] * snapshot.HEADER_SIGNS_MAX) + b"]},"
    with pytest.raises(SplError, match="parts") as caught:
        snapshot.header_of(SnapshotHeader("", "", 0, EMPTY).encode()[:-1].replace(b"{", chains, 1))
    assert caught.value.code == "snapshot-malformed"


def test_a_header_says_null_of_what_it_does_not_know_and_holds_for_its_lines() -> None:
    header = SnapshotHeader("", "", 2, EMPTY)
    assert json.loads(header.encode()) == {
        "count": 2, "digest": EMPTY, "format": snapshot.FORMAT, "instance": None, "thread": None
    }  # fmt: skip
    header.check(2, EMPTY)
    for count, digest in ((1, EMPTY), (3, EMPTY), (2, "a" * 64)):
        with pytest.raises(SplError) as caught:
            header.check(count, digest)
        assert caught.value.code == "snapshot-malformed"


def test_a_header_may_have_as_many_parts_as_allowed() -> None:
    def header(count: int) -> bytes:
        return SnapshotHeader("", "", 0, EMPTY, {"a": [{}, *[0] * count]}).encode()[:-1]

    parts = sum(map(header(0).count, (b"[", b"{", b",")))
    most = snapshot.HEADER_SIGNS_MAX - parts
    assert len(snapshot.header_of(header(most)).chains["a"]) == most + 1
    with pytest.raises(SplError, match="parts"):
        snapshot.header_of(header(most + 1))


def test_a_header_of_as_many_chains_as_it_has_room_for_reads_back() -> None:
    """The shortest ones, those of signers that never rotated, have the most parts a byte."""
    one = {"first_key": multibase(KEY.public), "rotations": list[str]()}
    dids = (f"{did_of('x', KEY.public)}{n:05}" for n in range(5500))
    made = {did: {"did": did, **one} for did in dids}
    header = SnapshotHeader("", "", 0, EMPTY, made)
    assert len(header.encode()) > CHAINS_BYTES_MAX * 3 // 4
    assert snapshot.header_of(header.encode()[:-1]) == header


def test_a_line_of_more_parts_than_a_record_has_bytes_is_refused_before_it_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = replace(LIMITS, record_bytes=100_000)
    fields = record.check(
        {"act": "DO", "actor": "did:sync:user:a", "body": {"l": [[]] * 33_000}, "clock": 1, "thread": "th"}, limits
    )
    text_only = record.check({**fields, "body": {"t": "," * 99_800}}, limits)
    for each in (fields, text_only):
        id_, text = record.identify(each, limits)
        largest = record.seal(each, id_, text, Sig("did:x", "zkey", KEY.sign(record.signed_text(id_, None)))).raw
        assert snapshot.envelope_of(largest, limits).raw == largest
    assert len(largest) > limits.record_bytes, "with its signature"
    monkeypatch.setattr(record, "parse", None)
    with pytest.raises(SplError) as caught:
        snapshot.envelope_of(b'{"id":"","record":[' + b"[]," * 60_000 + b"[]]}", limits)
    assert caught.value.code == "record-too-large"


def test_a_line_of_a_namespace_is_short() -> None:
    with pytest.raises(SplError, match="too long"):
        [*snapshot.placed([b'{"namespace":[' + b"[]," * 2_000 + b"[]]}", b"x"])]
    longest = b'{"namespace":"a"' + b"}".rjust(snapshot.SIG_BYTES_MAX - 16)
    assert [*snapshot.placed([longest, b"x"])] == [(3, b"x", "a")]
    with pytest.raises(SplError, match="too long"):
        [*snapshot.placed([longest + b" ", b"x"])]
