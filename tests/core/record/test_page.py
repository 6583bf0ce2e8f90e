"""A page is put together without decoding, and read without letting one bad envelope spoil the others."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core.errors import SplError
from spl.core.presence import REACH_WORDS
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


def test_the_longest_integer_is_read_exactly() -> None:
    assert page.decode_many(b"9" * 310) == int("9" * 310)


A_PAGE: dict[str, Any] = {"records": [{}, {}], "ns": ["a", "b"], "next_cursor": "c", "has_more": False}
IDS = [f"{n:064x}" for n in range(4)]


def read(records_max: int = 2, **changes: Any) -> page.Page:
    options = {name: changes.pop(name) for name in ("fetched", "names") if name in changes}
    kept = {name: value for name, value in {**A_PAGE, **changes}.items() if value is not ...}
    return page.decode(json.dumps(kept).encode(), records_max, **options)


@pytest.mark.parametrize("changes", [
    {"records": None}, {"records": {}}, {"records": [{}]}, {"records": [{}] * 3, "ns": ["a"] * 3}, {"ns": None},
    {"ns": "ab"}, {"ns": ["a"]}, {"ns": {"a": 1, "b": 2}}, {"next_cursor": ""}, {"next_cursor": None},
    {"next_cursor": ...}, {"next_cursor": "c" * 4097}, {"next_cursor": "é"}, {"next_cursor": ["c"]},
    {"has_more": None}, {"has_more": 1}, {"has_more": ...}, {"peer_view": []}, {"peer_view": None},
    {"names": True, "withheld": []}, {"names": True, "withheld": {IDS[0]: "a"}},
    {"names": True, "withheld": {"x": "a"}, "records": [], "ns": []},
    {"names": True, "withheld": {IDS[0]: 7}, "records": [], "ns": []},
    {"names": True, "withheld": {IDS[0]: "n" * 256}, "records": [], "ns": []},
])  # fmt: skip
def test_what_is_no_page_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SplError) as caught:
        read(**changes)
    assert caught.value.code == "answer-malformed"


def test_a_page_of_too_many_records_says_how_many_were_asked_for() -> None:
    with pytest.raises(SplError, match="holds 2 records, 1 were asked for"):
        read(records_max=1)


def test_a_page_may_be_as_large_as_it_was_asked_for() -> None:
    found = read(next_cursor="c" * 4096)
    assert (found.count, found.next_cursor, found.has_more, found.withheld) == (2, "c" * 4096, False, {})
    assert read(has_more=True).has_more is True
    assert read(fetched=True, next_cursor=...).next_cursor == "none", "records that were asked for by id"
    named = {IDS[0]: "n" * 255, IDS[1]: ""}
    assert read(names=True, withheld=named, records=[], ns=[]).withheld == named
    assert read(withheld=named).withheld == {}, "not asked for"


def test_an_answer_may_name_a_cursor() -> None:
    for cursor in ("", "c", "c" * 4096):
        assert page.cursor_in(json.dumps({"cursor": cursor}).encode()) == cursor
    assert page.cursor_in(b"{}") == page.cursor_in(b"[]") == ""
    for body in (b'{"cursor":7}', b'{"cursor":null}', b'{"cursor":"%b"}' % (b"c" * 4097), b"{"):
        with pytest.raises(SplError) as caught:
            page.cursor_in(body)
        assert caught.value.code == "answer-malformed"


def test_events_that_came_one_after_another_are_a_page() -> None:
    data = [page.with_ns(b'{"id":1}', "a", 5), page.with_ns(b'{"id":2}', "b"), page.with_ns(b'{"id":3}', "c", 6)]
    assert data[:2] == [b'{"id":1,"ns":"a","clock":5}', b'{"id":2,"ns":"b"}']
    found = page.gather(data, "cursor", {"head": 9, "clock": 1})
    assert (found.values, found.ns) == ([{"id": 1}, {"id": 2}, {"id": 3}], ["a", "b", "c"])
    assert (found.next_cursor, found.has_more, found.view) == ("cursor", False, {"head": 9, "clock": 6})
    assert found.size == sum(map(len, data))
    assert page.gather([b"{}"], "", {"clock": 1}).view == {"clock": 1}
    for wrong in ([b"{},{}"], [b"{}", b"7"], [b"[]"], [b"{}", b""]):
        with pytest.raises(SplError) as caught:
            page.gather(wrong, "", {})
        assert caught.value.code == "answer-malformed"


def test_the_memory_of_a_value_is_estimated_by_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 bytes for each list or object, 16 for each item, and the text."""
    data = b'{"a":[1,2],"b":{}}'
    for bytes_max, fits in ((len(data) + 3 * 64 + 2 * 16, True), (len(data) + 3 * 64 + 2 * 16 - 1, False)):
        monkeypatch.setattr(page, "BUILT_BYTES_MAX", bytes_max)
        if fits:
            assert page.decode_many(data) == {"a": [1, 2], "b": {}}
            with pytest.raises(SplError, match="first line"):
                page.decode_push(data, 1)
            continue
        for call in (lambda: page.decode_many(data), lambda: page.decode_push(data, 1)):
            with pytest.raises(SplError, match="of memory"):
                call()


def test_a_view_keeps_only_what_it_may_hold() -> None:
    most = dict.fromkeys(("head", "acked", "queue", "clock", "consent", "poll_ms", "asks_ms"), 2**63 - 1)
    assert page.read_view(most) == most
    least = dict.fromkeys(most, 0)
    assert page.read_view(least) == least
    told = {"reach": sorted(REACH_WORDS)[0], "unreached": "dns", "cloned": True, "readonly": True, "pauses": True,
            "refuses": True}  # fmt: skip
    assert page.read_view(told) == told
    for value in ([], {}, 7, None, "x", False, 1):
        assert page.read_view(dict.fromkeys(told, value)) == {}
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
