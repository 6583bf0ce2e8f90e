"""Pushes as bytes: what was assembled comes back, and whatever else arrives is refused or left to the gate."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core.errors import SplError
from spl.core.limits import Limits
from spl.core.record import page
from spl.core.record.page import Page

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | TEXT, lambda inner: st.lists(inner, max_size=3))
HEAD: dict[str, Any] = {"since": "", "cursor": "c", "count": 1}


def body(head: object, *lines: object) -> bytes:
    return b"\n".join(json.dumps(line).encode() for line in (head, *lines))


@given(st.lists(st.tuples(st.dictionaries(TEXT, JSON, max_size=3), TEXT), max_size=4), st.booleans())
def test_what_is_assembled_comes_back(records: list[tuple[dict[str, Any], str]], again: bool) -> None:
    values, names = [value for value, _ in records], [ns for _, ns in records]
    item = Page(values, names, "to", True, {"state": "active", "clock": 7}, 0)
    found = page.decode_push(page.assemble_push("from", item, again=again, chains={"did:x": {}}), 10)
    assert (found.since, found.page.next_cursor, found.again, found.chains) == ("from", "to", again, {"did:x": {}})
    assert (found.page.values, found.page.ns, found.page.view) == (values, names, item.view)


def test_a_question_for_the_position_carries_nothing() -> None:
    asks = page.asking({"state": "active"})
    found = page.decode_push(page.assemble_push("", asks), 10)
    assert (found.since, found.page.next_cursor, found.page.count, found.again) == ("", "", 0, False)
    assert asks.has_more is found.page.has_more is page.PushBody("", asks).again is False
    assert (asks.size, found.page.view) == (0, {"state": "active"})


def test_a_push_may_be_as_large_as_allowed() -> None:
    head = HEAD | {"since": "s" * 4096, "cursor": "c" * 4096, "chains": {str(n): 1 for n in range(64)}, "count": 2}
    found = page.decode_push(body(head, {}, {}), 2)
    assert (found.since, found.page.next_cursor, len(found.chains)) == ("s" * 4096, "c" * 4096, 64)
    assert (found.again, found.page.count, found.page.has_more, found.page.view) == (False, 2, False, {})
    assert page.decode_push(body(HEAD | {"peer_view": 7}, {}), 1).page.view == {}
    assert page.body_bytes(Limits(page_bytes=70, record_bytes=7)) == 77


AN_ANSWER: dict[str, Any] = {"peer_view": {"state": "active"}, "results": [], "records": 0, "cursor": ""}


def test_the_answer_to_a_push_is_read() -> None:
    results = [{"code": "c" * 99}, {"code": "scope-violation"}, {"code": ""}, {"status": 200}, {"code": 7}]
    told = {**AN_ANSWER, "results": results, "records": 3, "cursor": "c" * 4096, "wanted": ["a" * 64, "x"]}
    found = page.push_answer(json.dumps(told).encode(), 2)
    assert (found.cursor, found.records, found.wanted) == ("c" * 4096, 3, ("a" * 64,))
    assert found.codes == {"c" * 40, "scope-violation", "7"}
    assert found.view == {"state": "active"}
    assert page.push_answer(json.dumps(AN_ANSWER).encode(), 0).wanted == ()


@pytest.mark.parametrize("changes", [
    {"peer_view": None}, {"peer_view": []}, {"results": None}, {"results": {}}, {"results": [7]}, {"records": True},
    {"records": "3"}, {"records": None}, {"wanted": {}}, {"wanted": "ab"}, {"wanted": ["a" * 64] * 3}, {"cursor": None},
    {"cursor": 7}, {"cursor": "c" * 4097},
])  # fmt: skip
def test_what_is_no_answer_to_a_push_is_refused(changes: dict[str, Any]) -> None:
    for told in ({**AN_ANSWER, **changes}, [changes], 7):
        with pytest.raises(SplError) as caught:
            page.push_answer(json.dumps(told).encode(), 2)
        assert caught.value.code == "answer-malformed"


@pytest.mark.parametrize(
    "line", [b"{", b"null", b"[]", b'"x"', b'{"env":{}}', b'{"env":{},"ns":"a","x":1}', b"[" * 50_000, b"\xff"]
)
def test_a_line_that_is_no_record_is_left_to_the_gate(line: bytes) -> None:
    found = page.decode_push(body(HEAD | {"count": 2}) + b"\n" + line + b"\n" + body({"ns": "a", "env": 1}), 10)
    assert (found.page.values, found.page.ns) == ([None, 1], [None, "a"])


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "bad-json"),
        (b"\n\n", "bad-json"),
        (b"{", "bad-json"),
        (b"[" * 50_000, "bad-json"),
        (b"[]", "bad-field"),
        (body({"since": "", "cursor": ""}), "bad-field"),
        (body(HEAD | {"more": 1}), "bad-field"),
        (body(HEAD), "bad-field"),
        (body(HEAD, {}, {}), "bad-field"),
        (body(HEAD | {"count": True}, {}), "bad-field"),
        (body(HEAD | {"count": 11}, *[{}] * 11), "bad-field"),
        (body(HEAD | {"cursor": ""}, {}), "bad-field"),
        (body(HEAD | {"cursor": "x" * 5000}, {}), "bad-field"),
        (body(HEAD | {"since": None}, {}), "bad-field"),
        (body(HEAD | {"since": "ä"}, {}), "bad-field"),
        (body(HEAD | {"again": 1}, {}), "bad-field"),
        (body(HEAD | {"chains": []}, {}), "bad-field"),
        (body(HEAD | {"chains": {str(n): 1 for n in range(65)}}, {}), "bad-field"),
    ],
)
def test_what_is_no_push_is_refused(data: bytes, code: str) -> None:
    with pytest.raises(SplError) as caught:
        page.decode_push(data, 10)
    assert caught.value.code == code


@given(st.binary(max_size=200))
def test_any_bytes_are_a_push_or_refused(data: bytes) -> None:
    try:
        page.decode_push(data, 10)
    except SplError as exc:
        assert exc.code in ("bad-json", "bad-field")


def test_each_record_has_its_own_result() -> None:
    good, bad, alien = ({"id": char * 64} for char in "abc")
    refused = {"b" * 64: "record-signature", "c" * 64: "scope-violation"}
    assert page.results([good, bad, alien], refused) == [
        {"id": "a" * 64, "status": 200},
        {"id": "b" * 64, "status": 422, "code": "record-signature"},
        {"id": "c" * 64, "status": 403, "code": "scope-violation"},
    ]
    [unnamed] = page.results([None], {})
    assert len(str(unnamed["id"])) == 64


def test_what_would_fill_the_memory_is_refused_before_it_is_built() -> None:
    """Seven MiB of empty lists take 27 times that; what honest records can be densest passes."""
    bomb = b'{"since":"","cursor":"c","count":1}\n{"ns":"default","env":[' + b"[]," * 2_400_000 + b"[]]}"
    for read in (
        lambda: page.decode_push(bomb, 10),
        lambda: page.decode(bomb, 10),
        lambda: page.gather([bomb], "", {}),
    ):
        with pytest.raises(SplError) as caught:
            read()
        assert "of memory" in caught.value.message
    dense = b'{"records":[{"a":[' + b"[1,2]," * 800_000 + b'[]]}],"ns":["x"],"next_cursor":"c","has_more":false}'
    assert page.decode(dense, 10).count == 1
