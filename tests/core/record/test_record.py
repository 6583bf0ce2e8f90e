"""Records: ids of the original system, refusals that name the field, an envelope that survives the wire unchanged."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from syncropel.hashing import record_id as sdk_record_id

from spl.core import canon
from spl.core.errors import SplError
from spl.core.keys import SecretKey
from spl.core.limits import Limits
from spl.core.record import batch, record

VECTORS = json.loads((Path(__file__).parent.parent.parent / "vectors/records.json").read_text())["record_ids"]
LIMITS = Limits()
ID = "0" * 64
KEY = SecretKey(bytes(range(32)))
SIG = record.Sig("did:sync:instance:a-1", "z6Mk", bytes(64))

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)
RECORDS = st.fixed_dictionaries({
    "act": st.sampled_from(sorted(record.ACTS)),
    "actor": TEXT.map("did:sync:user:".__add__),
    "body": st.dictionaries(TEXT.filter(lambda key: key != "namespace"), VALUES, max_size=4),
    "clock": st.integers(0, record.CLOCK_MAX),
    "data_type": st.sampled_from(sorted(record.DATA_TYPES)),
    "parents": st.sets(st.text("0123456789abcdef", min_size=64, max_size=64), max_size=3).map(sorted),
    "thread": TEXT,
})  # fmt: skip


def a_record(**changes: object) -> dict[str, Any]:
    """Return a valid record with the changes; a value of `...` takes the field away."""
    fields = {"act": "KNOW", "actor": "did:sync:user:a", "body": {"n": 1}, "clock": 0, "thread": "th_a", **changes}
    return {name: value for name, value in fields.items() if value is not ...}


def an_envelope(**changes: object) -> record.Envelope:
    """Return a sealed envelope of a valid record with the changes."""
    checked = record.check(a_record(**changes), LIMITS)
    return record.seal(checked, *record.identify(checked, LIMITS), SIG)


def code_of(exc: pytest.ExceptionInfo[SplError]) -> str:
    """Return the code of the refusal caught."""
    return exc.value.code


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_ids_are_those_of_the_original_system(vector: dict[str, Any]) -> None:
    """Each published vector's record has its id here and in the SDK, on both ways to an id."""
    value = vector["record"]
    assert record.record_id(value) == vector["id"] == sdk_record_id(value)
    assert record.identify({**value, "judged_by": None}, LIMITS)[0] == vector["id"]


@given(RECORDS)
def test_ids_agree_with_the_public_sdk(value: dict[str, Any]) -> None:
    """Whatever the record holds, our id is the SDK's over the same seven fields, judged or not."""
    expected = sdk_record_id(value)
    assert record.record_id(value) == expected
    for judge in (None, ID):
        found, text = record.identify({**value, "judged_by": judge}, LIMITS)
        assert found == expected
        assert text == canon.encode({**value, "judged_by": judge})


@given(RECORDS.filter(lambda value: value["thread"].isprintable() and value["thread"]), st.booleans())
def test_an_envelope_is_the_same_bytes_on_every_machine(value: dict[str, Any], spaced: bool) -> None:
    """Sealing, parsing and sealing again gives one text, whatever the spelling it arrived in."""
    value = {**value, "actor": "did:sync:user:a", "judged_by": None}
    envelope = record.seal(value, *record.identify(value, LIMITS), SIG)
    assert envelope.raw == canon.encode(json.loads(envelope.raw))
    foreign = json.dumps(json.loads(envelope.raw), indent=1 if spaced else None).encode()
    for data in (envelope.raw, foreign):
        parsed = record.parse(data, LIMITS)
        assert (parsed.id, parsed.raw, parsed.sig) == (envelope.id, envelope.raw, envelope.sig)


def test_an_envelope_carries_its_batch() -> None:
    """The place in a batch survives, and so does what it proves."""
    value = record.check(a_record(), LIMITS)
    own_id, text = record.identify(value, LIMITS)
    root, places = batch.tree([record.signed_text(own_id, None), b"other"])
    signed = KEY.sign(batch.signed_text(2, root))
    parsed = record.parse(record.seal(value, own_id, text, record.Sig("did:a", "z", signed, places[0])).raw, LIMITS)
    assert parsed.sig.batch == places[0]
    assert batch.root_of(record.signed_text(own_id, None), places[0]) == root


def test_defaults_are_filled_in_and_the_callers_value_stays() -> None:
    """A checked record has eight fields; the value passed in is not changed."""
    given_value = a_record()
    checked = record.check(given_value, LIMITS)
    assert checked == {**given_value, "data_type": "SCALAR", "judged_by": None, "parents": []}
    assert given_value == a_record()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("act", "know"), ("act", ""), ("act", None), ("act", 1), ("act", ["KNOW"]), ("act", ...),
        ("actor", "alice"), ("actor", ""), ("actor", None), ("actor", "did:" + "x" * 253), ("actor", "did:a b"),
        ("actor", "did:a\n"), ("actor", "did:a\u202e"), ("actor", {}), ("actor", ...),
        ("body", []), ("body", "text"), ("body", None), ("body", {"namespace": 1}), ("body", {"namespace": ""}),
        ("body", ...),
        ("clock", -1), ("clock", 2**63), ("clock", 1.0), ("clock", "1"), ("clock", True), ("clock", None),
        ("clock", ...),
        ("data_type", "scalar"), ("data_type", None), ("data_type", []),
        ("judged_by", ""), ("judged_by", "x" * 64), ("judged_by", ID.upper() + "A"), ("judged_by", 1),
        ("parents", None), ("parents", "x"), ("parents", [1]), ("parents", ["A" * 64]), ("parents", [ID, ID]),
        ("parents", ["f" * 64, ID]), ("parents", [f"{n:064x}" for n in range(1001)]), ("parents", {}),
        ("thread", ""), ("thread", "x" * 257), ("thread", "a\nb"), ("thread", "a\x00"), ("thread", 1), ("thread", None),
        ("thread", ...),
    ],
)  # fmt: skip
def test_a_bad_field_is_refused_by_name(field: str, value: object) -> None:
    """The refusal is `bad-field` and its sentence names the field."""
    with pytest.raises(record.RecordError) as caught:
        record.check(a_record(**{field: value}), LIMITS)
    assert code_of(caught) == "bad-field"
    assert field in caught.value.message


@pytest.mark.parametrize("value", [None, [], "x", 1, {**a_record(), "id": ID}, {**a_record(), "Act": "KNOW"}])
def test_what_is_no_record_or_has_more_fields_is_refused(value: object) -> None:
    """A record is an object with known fields only."""
    with pytest.raises(record.RecordError) as caught:
        record.check(value, LIMITS)
    assert code_of(caught) == "bad-field"


@pytest.mark.parametrize(
    "changes",
    [
        {"clock": record.CLOCK_MAX}, {"thread": "x" * 256}, {"thread": "Wörter und 日本"},
        {"actor": "did:" + "x" * 252}, {"parents": [f"{n:064x}" for n in range(1000)]}, {"judged_by": "f" * 64},
        {"body": {"namespace": "acme/web"}},
    ],
)  # fmt: skip
def test_the_bounds_are_inclusive(changes: dict[str, object]) -> None:
    """What stands exactly on a limit is taken."""
    record.check(a_record(**changes), LIMITS)


def test_a_record_over_the_size_limit_is_refused() -> None:
    """The limit counts the canonical bytes of the eight fields; one byte more is `record-too-large`."""
    value = record.check(a_record(), LIMITS)
    size = len(record.identify(value, LIMITS)[1])
    record.identify(value, Limits(record_bytes=size))
    with pytest.raises(record.RecordError) as caught:
        record.identify(value, Limits(record_bytes=size - 1))
    assert code_of(caught) == "record-too-large"


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        (("id",), ID, "record-id"), (("id",), None, "record-id"), (("id",), ..., "bad-field"),
        (("extra",), 1, "bad-field"), (("record",), [], "bad-field"), (("record", "clock"), 7, "record-id"),
        (("record", "judged_by"), ..., "bad-field"), (("record", "note"), "", "bad-field"),
        (("record", "act"), "SHOUT", "bad-field"), (("sig",), None, "bad-field"), (("sig",), {}, "bad-field"),
        (("sig", "by"), "", "bad-field"), (("sig", "by"), 1, "bad-field"), (("sig", "key"), "z" * 129, "bad-field"),
        (("sig", "value"), "", "bad-field"), (("sig", "value"), "AAAA", "bad-field"),
        (("sig", "value"), 1, "bad-field"),
        (("sig", "value"), base64.b64encode(bytes(64)).decode() + "\n", "bad-field"),
        (("sig", "value"), base64.b64encode(bytes(65)).decode(), "bad-field"),
        (("sig", "extra"), 1, "bad-field"), (("sig", "batch"), None, "bad-field"),
        (("sig", "batch"), {"index": 0, "size": 1, "path": []}, "bad-field"),
        (("sig", "batch"), {"index": 2, "size": 2, "path": []}, "bad-field"),
    ],
)  # fmt: skip
def test_an_envelope_of_another_form_is_refused(path: tuple[str, ...], value: object, code: str) -> None:
    """Every member is checked; a changed record no longer fits its id."""
    whole = json.loads(an_envelope().raw)
    inner = whole
    for name in path[:-1]:
        inner = inner[name]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    with pytest.raises(SplError) as caught:
        record.parse(json.dumps(whole).encode(), LIMITS)
    assert code_of(caught) == code


def test_judged_by_is_signed_though_not_hashed() -> None:
    """Two judges give one id and two texts to sign."""
    mine, other = an_envelope(judged_by=ID), an_envelope()
    assert mine.id == other.id
    assert record.signed_text(mine.id, ID) != record.signed_text(mine.id, None)
    assert record.signed_text(mine.id, None) == b"syncropel-record-v1\0" + mine.id.encode() + b"\0"


def test_reserved_threads_and_namespaces_are_told_apart() -> None:
    """Reserved are the six threads and every audit thread; a record without a namespace is in "default"."""
    assert len(record.RESERVED_THREADS) == 6
    assert all(map(record.is_reserved, [*record.RESERVED_THREADS, "th_audit_", "th_audit_federation_pairs"]))
    assert not any(map(record.is_reserved, ["th_audi", "th_federation_pairs2", "TH_CONSENT", ""]))
    assert record.namespace_of(a_record()) == "default"
    assert record.namespace_of(a_record(body={"namespace": "acme/web"})) == "acme/web"
    assert record.is_id(ID)
    assert not any(map(record.is_id, [ID[:-1], ID + "0", "g" * 64, "A" * 64, None, 0]))


@pytest.mark.parametrize("judge", [None, ID])
@pytest.mark.parametrize("look", ['","judged_by":null,"parents":[],', ',"judged_by":', '\\","judged_by":null'])
def test_text_that_looks_like_the_member_that_is_not_hashed_changes_nothing(look: str, judge: str | None) -> None:
    """The id is that of the seven fields, wherever else a record speaks of the eighth."""
    value = record.check(
        a_record(thread=f"th{look}", body={"a": {"b": look, "judged_by": None}}, judged_by=judge), LIMITS
    )
    found, text = record.identify(value, LIMITS)
    assert (found, text) == (record.record_id(value), canon.encode(value))


def test_a_namespace_that_is_no_text_is_the_default() -> None:
    found = [
        record.namespace_of({"body": body}) for body in ({}, {"namespace": ""}, {"namespace": 7}, {"namespace": "x"})
    ]
    assert found == ["default", "default", "default", "x"]


@pytest.mark.parametrize("space", [b"", b" "])
def test_an_envelope_may_be_two_levels_deeper_than_a_record(space: bytes) -> None:
    """In its canonical form and in any other."""
    body: dict[str, Any] = {}
    for _ in range(6):
        body = {"a": body}
    raw, depth = an_envelope(body=body).raw + space, 2 + 7
    assert record.parse(raw, Limits(nesting_levels=depth - 2)).raw == raw.strip()
    with pytest.raises(canon.CanonError):
        record.parse(raw, Limits(nesting_levels=depth - 3))


def test_signatures_name_their_signer_and_key_in_short_texts() -> None:
    value = json.loads(an_envelope().raw)

    def fault(**changes: object) -> str:
        try:
            record.from_json({**value, "sig": {**value["sig"], **changes}}, LIMITS)
        except SplError as exc:
            return exc.code
        return ""

    sound = [{"by": "x"}, {"by": "x" * 256}, {"key": "x"}, {"key": "x" * 128}]
    assert {fault(**changes) for changes in sound} == {""}
    bad = [{"by": ""}, {"by": "x" * 257}, {"key": ""}, {"key": "x" * 129}, {"by": 7}, {"key": 7}, {"key": ["x"]}]
    assert {fault(**changes) for changes in bad} == {"bad-field"}


@pytest.mark.parametrize("value", [None, 7, "x", []])
def test_what_is_no_object_is_no_envelope(value: object) -> None:
    with pytest.raises(SplError) as caught:
        record.from_json(value, LIMITS)
    assert code_of(caught) == "bad-field"
