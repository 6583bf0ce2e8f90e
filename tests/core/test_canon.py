"""Canonical JSON: one text per value, the public SDK's text, and no way in for anything that has two readings."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from syncropel.canonical import canonical_json

from spl.core import canon

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)

BAD_JSON = [
    b"", b" ", b"{", b"[1,]", b'{"a":1,}', b"{'a':1}", b"nul", b"1 2", b"[1]x", b"01", b"+1", b".5", b"1.", b"0x10",
    b"NaN", b"Infinity", b"-Infinity", b"[NaN]", b"1e400", b"-1e400",
    b'{"a":1,"a":1}', b'{"a":{"b":1,"b":2}}', b'{"a":1,"\\u0061":2}',
    b'"\\ud800"', b'"\\udc00\\ud800"', b'{"\\ud800":1}', b'"\xed\xa0\x80"', b'"\xff"', b"\xef\xbb\xbf{}",
    b'"\\x"', b'"\n"', b'"\x00"', "{}".encode("utf-16"), b"1" * 311, b"-" + b"1" * 311,
    b"[" * 65 + b"]" * 65, b'{"a":' * 65 + b"1" + b"}" * 65, b"[" * 200_000, b"[" * 200_000 + b"]" * 200_000,
    b'{"a":' * 200_000,
]  # fmt: skip


def plain(value: Any) -> Any:
    """Return the value with integral floats as ints, by a walk of the test's own."""
    if isinstance(value, float) and value == int(value):
        return int(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


@given(VALUES)
@example({"n": 1.0, "m": -0.0, "e": 1e21, "t": 1e-07, "b": 1e16, "x": 1.7976931348623157e308, "d": 5e-324})
@example({"é": "\u2028\x7f", "e\u0301": '\x00\x1f\b\f\n\r\t"\\/', "\U0001f600": "\uffff"})
@example({"10": 1, "9": 2, "Z": 3, "_": 4, "z": 5, "": 6, "\uffff": 7, "\U00010000": 8})
def test_the_text_is_the_public_sdks(value: Any) -> None:
    """The SDK is the oracle: equal text, so equal ids, for all that it accepts."""
    assert canon.encode({"v": value}).decode() == canonical_json({"v": value})


@given(VALUES)
def test_text_and_value_go_both_ways(value: Any) -> None:
    """Decoding the text gives the value with exact integers, and encoding that gives the text again."""
    text = canon.encode(value)
    assert canon.decode(text) == plain(value) == canon.decode_canonical(text)
    assert canon.encode(canon.decode(text)) == text


@given(VALUES, st.sampled_from([None, 1, "\t"]), st.booleans())
def test_other_spellings_of_a_value_lead_to_its_one_text(value: Any, indent: Any, escaped: bool) -> None:
    """Whitespace, escapes and order of keys do not matter; the fast way refuses a spelling or reads it alike."""
    foreign = json.dumps(value, indent=indent, ensure_ascii=escaped).encode()
    assert canon.encode(canon.decode(foreign)) == canon.encode(value)
    if canon.decode_canonical(foreign) is not None:
        assert foreign == canon.encode(value)


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:.0123456789eE+-truefalsn\\u ').map(str.encode))
def test_arbitrary_bytes_decode_or_are_refused_with_one_code(data: bytes) -> None:
    """Nothing but CanonError comes out, and the two decoders never disagree."""
    try:
        value = canon.decode(data)
    except canon.CanonError as exc:
        assert exc.code == "bad-json"
        assert canon.decode_canonical(data) is None
        return
    quick = canon.decode_canonical(data)
    assert quick is None or (quick == value and canon.encode(value) == data)


@pytest.mark.parametrize("data", BAD_JSON, ids=lambda data: repr(data[:24]))
def test_what_is_not_strict_json_is_refused(data: bytes) -> None:
    """Each form of the corpus is `bad-json` on the strict way and not taken on the fast one."""
    with pytest.raises(canon.CanonError) as caught:
        canon.decode(data)
    assert caught.value.code == "bad-json"
    assert canon.decode_canonical(data) is None


@pytest.mark.parametrize("data", [b"1.0", b"1e+16", b"-0.0", b"1e5", b"-0", b'{"b":1,"a":2}', b"[1, 2]", b'"\\u0061"'])
def test_the_fast_way_takes_canonical_text_only(data: bytes) -> None:
    """Valid JSON in another spelling is left to the strict way."""
    assert canon.decode_canonical(data) is None
    canon.decode(data)


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), "\ud800", {"\udfff": 1}, {"a": 1, 2: 3}, {(1,): 1}, object, b"x", {1, 2}],
    ids=repr,
)
def test_what_has_no_canonical_form_is_not_encoded(value: object) -> None:
    """NaN, lone surrogates, foreign types and keys of mixed types are refused."""
    with pytest.raises(canon.CanonError) as caught:
        canon.encode(value)
    assert caught.value.code == "bad-json"


def test_the_bounds_are_exact() -> None:
    """310 digits and 64 levels pass; a caller's own bound holds too, on both ways."""
    digits = b"1" * canon.INTEGER_DIGITS_MAX
    assert canon.decode(b"-" + digits) == -int(digits)
    assert canon.decode(b"[" * 64 + b"]" * 64) == canon.decode_canonical(b"[" * 64 + b"]" * 64)
    for way in (canon.decode, canon.decode_canonical):
        assert way(b'{"a":[{}]}', 3) == {"a": [{}]}
    with pytest.raises(canon.CanonError):
        canon.decode(b'{"a":[{}]}', 2)
    assert canon.decode_canonical(b'{"a":[{}]}', 2) is None
    assert canon.decode(b'"[[[[{{{{"', 1) == "[[[[{{{{"
    deep_and_wide, flat = b"[" * 64 + b"]" * 63 + b",[]]", b"[" + b",".join([b"[]"] * 100) + b"]"
    for text in (deep_and_wide, flat):
        assert canon.decode(text) == canon.decode_canonical(text) == json.loads(text)


def test_the_room_of_floats_is_exact() -> None:
    for number, digits in [(0.0, 1), (9.0, 1), (-9.0, 1), (10.0, 2), (1e15, 16)]:
        room = canon._Room(0)
        for _ in range(canon.GROWTH_FREE_DIGITS // digits):
            assert room.exact(number) == int(number)
        with pytest.raises(ValueError, match="far longer"):
            room.exact(number)


@pytest.mark.parametrize(("data", "reason"), [(b"[" * 200_000, "nested too deep"), (b'"\xff"', "not UTF-8")])
def test_a_refusal_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(canon.CanonError, match=reason):
        canon.decode(data)


@pytest.mark.parametrize("text", ["1e300", "-1E300", "1.0e+300"])
def test_floats_do_not_make_a_text_fifty_times_as_long(text: str) -> None:
    """Some are fine, as each has its exact integer; thousands are refused, read strictly, as an envelope or written."""
    some, many = f"[{','.join([text] * 10)}]".encode(), f"[{','.join([text] * 5000)}]".encode()
    assert canon.encode(canon.decode(some)) == canon.encode([int(1e300) * (-1 if text[0] == "-" else 1)] * 10)
    for refused in (lambda: canon.decode(many), lambda: canon.encode([float(text)] * 5000)):
        with pytest.raises(canon.CanonError, match="far longer"):
            refused()
    assert canon.decode_canonical(many.replace(text.encode(), b"1e+300")) is None
    assert canon.decode(b"[" + b",".join([b"1e21"] * 5000) + b"]") == [10**21] * 5000


@given(st.recursive(st.text(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner)))
@example({"a": "\ud800", "\udfff": ['"\ud800\\"']})
def test_any_value_can_be_told_also_with_surrogates_alone(value: Any) -> None:
    assert json.loads(canon.told(value)) == json.loads(json.dumps(value))
