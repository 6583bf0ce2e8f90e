"""A page is put together without decoding, and read without letting one bad envelope spoil the others."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core.errors import SplError
from spl.core.record import page

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=3), max_size=5), st.booleans())
def test_what_is_assembled_is_read_back(values: list[dict[str, Any]], more: bool) -> None:
    raw = [json.dumps(value).encode() for value in values]
    data = page.assemble(raw, ["default"] * len(raw), next_cursor="abc", has_more=more, peer_view={"head": 3})
    found = page.decode(data, 5)
    assert (found.values, found.ns) == (values, ["default"] * len(values))
    assert (found.next_cursor, found.has_more, found.view, found.size) == ("abc", more, {"head": 3}, len(data))


@given(st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_page_or_refused_with_one_code(data: bytes) -> None:
    try:
        page.decode(data, 10)
    except SplError as exc:
        assert exc.code == "answer-malformed"


@pytest.mark.parametrize("text", [b"1" * 311, b"-" + b"1" * 311, b"1" * 5000])
def test_endless_integers_become_no_number(text: bytes) -> None:
    found = page.decode_many(b"[1," + text + b"]")
    assert found[0] == 1
    assert math.isnan(found[1])


def test_a_view_keeps_only_what_it_may_hold() -> None:
    hostile = {"state": "s" * 999, "reason": 7, "head": -1, "acked": True, "queue": 2**63, "clock": 5, "extra": {}}
    assert page.read_view(hostile) == {"state": "s" * 200, "clock": 5}
    assert page.read_view({"consent": 7}) == {"consent": 7}
    assert page.read_view({"consent": "7"}) == page.read_view({"consent": True}) == {}


def test_the_texts_of_a_view_are_printable() -> None:
    """What stands in them is shown by programs and terminals."""
    found = page.read_view({"state": "\ud800x", "reason": "\x1b[2J" * 100, "mode": "polling"})
    assert found["state"] == "\\ud800x"
    assert len(found["reason"]) == 200
    assert found["mode"] == "polling"
    assert all(text.isprintable() for text in found.values())
