"""The route table: one place decides what exists, and every part of a target is decoded once."""

import asyncio
import gc
import weakref
from collections.abc import Callable
from io import TextIOBase
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core.errors import SplError
from spl.net.routes import HttpError, Later, Response, Route, RouteTable, decode_segment, parse_query


def nothing() -> None:
    """Stand in for a handler."""


TABLE = RouteTable(
    [
        Route("GET", "/v1/threads", nothing, "records:read"),
        Route("POST", "/v1/threads", nothing, "records:write", body_bytes=10),
        Route("GET", "/v1/threads/{thread}/records", nothing, "records:read"),
        Route("GET", "/v1/threads/{thread}/records/{id}", nothing, "records:read"),
        Route("POST", "/v1/threads/restore", nothing, "admin"),
        Route("DELETE", "/v1/threads/{id}", nothing, "admin"),
    ]
)


def code_of(method: str, path: str) -> str:
    with pytest.raises(HttpError) as caught:
        TABLE.match(method, path)
    return caught.value.code


def test_match() -> None:
    route, params = TABLE.match("GET", "/v1/threads/th%2Fa%20b/records/1")
    assert route.path == "/v1/threads/{thread}/records/{id}"
    assert params == {"thread": "th/a b", "id": "1"}
    assert TABLE.match("POST", "/v1/threads/restore")[0].scope == "admin"
    assert TABLE.match("HEAD", "/v1/threads")[0].method == "GET"
    assert TABLE.match("GET", "/v1/threads/restore/records")[1] == {"thread": "restore"}


@pytest.mark.parametrize(
    "path", ["/", "", "/v1", "/v1/threads/", "/v1//records", "/v1/threads//records", "/V1/threads", "/v1/threads/a/b/c"]
)
def test_not_found(path: str) -> None:
    assert code_of("GET", path) == "not-found"


def test_method_not_allowed_names_what_is() -> None:
    with pytest.raises(HttpError) as caught:
        TABLE.match("PUT", "/v1/threads")
    assert caught.value.code == "method-not-allowed"
    assert caught.value.allow == ("GET", "HEAD", "OPTIONS", "POST")
    with pytest.raises(HttpError) as caught:
        TABLE.match("OPTIONS", "*")
    assert caught.value.allow == ("DELETE", "GET", "HEAD", "OPTIONS", "POST")
    assert code_of("HEAD", "/v1/threads/a") == "method-not-allowed"


@pytest.mark.parametrize("segment", ["%", "%4", "%zz", "%+1", "%ff", "%c3", "%00", "%0a", "%7F", "a%C0%AFb"])
def test_a_segment_is_utf8_text(segment: str) -> None:
    assert code_of("GET", f"/v1/threads/{segment}/records") == "bad-request"


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1))
def test_a_segment_is_decoded_once(text: str) -> None:
    assert decode_segment(quote(text, safe="")) == text
    assert decode_segment(quote(quote(text, safe=""), safe="")) == quote(text, safe="")


@given(st.dictionaries(st.text(min_size=1), st.text(), max_size=5))
def test_a_query_is_read_as_written(query: dict[str, str]) -> None:
    try:
        assert parse_query(urlencode(query)) == query
    except HttpError as exc:
        assert exc.code == "token-in-query"


@pytest.mark.parametrize("text", ["a", "a&b=1", "=1", "a=1&", "&", "a=1&a=2", "a=1&%61=2", "a=%", "a=%ff", "a=1&&b=2"])
def test_a_query_is_strict(text: str) -> None:
    with pytest.raises(HttpError) as caught:
        parse_query(text)
    assert caught.value.code == "bad-field"


@pytest.mark.parametrize("text", ["token=x", "access_token=x", "a=1&API_KEY=x", "%74oken=x", "bearer="])
def test_a_token_in_the_query_is_refused(text: str) -> None:
    with pytest.raises(HttpError) as caught:
        parse_query(text)
    assert caught.value.code == "token-in-query"
    assert "=x" not in caught.value.message


def test_a_route_stands_once() -> None:
    with pytest.raises(AssertionError):
        RouteTable([Route("GET", "/a/{b}", nothing, "x"), Route("GET", "/a/{c}", nothing, "x")])


def test_a_route_that_ends_with_a_name_is_found_as_any_other() -> None:
    table = RouteTable(
        [
            Route("GET", "/v1/records/{id}", nothing, "a"),
            Route("GET", "/v1/{id}/{x}", nothing, "b"),
            Route("POST", "/v1/records/query", nothing, "c"),
        ]
    )
    assert table.match("GET", "/v1/records/a%20b") == (table.routes[0], {"id": "a b"})
    assert table.match("HEAD", "/v1/records/a") == (table.routes[0], {"id": "a"})
    assert table.match("GET", "/v1/other/a") == (table.routes[1], {"id": "other", "x": "a"})
    for method, path, code in (
        ("PUT", "/v1/records/a", "method-not-allowed"), ("GET", "/v1/records/", "not-found"),
        ("GET", "/v1/records/query", "method-not-allowed"), ("POST", "/v1/records/a", "method-not-allowed"),
        ("GET", "/v1/records/%zz", "bad-request"), ("GET", "/v1/records/a/b", "not-found"),
    ):  # fmt: skip
        with pytest.raises(HttpError) as caught:
            table.match(method, path)
        assert caught.value.code == code


async def test_an_answer_given_later_is_taken_once_and_never_from_inside_the_call() -> None:
    loop, taken = asyncio.get_running_loop(), list[Callable[[], Response]]()
    before = Later[bytes](lambda body: Response(body=body))
    before.set_result(b"before")
    before.then(taken.append, loop)
    assert (taken, before.done(), before.cancelled()) == ([], True, False)
    after = Later[bytes](lambda body: Response(body=body))
    after.then(taken.append, loop)
    await asyncio.sleep(0)
    assert not after.done()
    after.set_result(b"after")
    assert [make().body for make in taken] == [b"before", b"after"]


async def test_an_answer_given_later_may_be_awaited() -> None:
    later = Later[bytes](lambda body: Response(body=body))
    asyncio.get_running_loop().call_soon(later.set_result, b"1")
    assert (await later).body == b"1"
    refused = Later[bytes](lambda body: Response(body=body))
    refused.set_exception(SplError("overloaded"))
    with pytest.raises(SplError):
        await refused


async def test_what_was_answered_is_freed_at_once_and_not_by_the_next_collection() -> None:
    later, taken = Later[TextIOBase](lambda text: Response()), list[Callable[[], Response]]()
    later.then(taken.append, asyncio.get_running_loop())
    result = TextIOBase()
    freed = weakref.ref(result)
    gc.disable()
    try:
        later.set_result(result)
        taken.pop()()
        del later, result
        assert freed() is None
    finally:
        gc.enable()
