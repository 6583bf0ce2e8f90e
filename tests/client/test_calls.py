"""Requests and answers as values: batches, pages, and answers that are not the daemon's."""

import json

import pytest

from spl.client import calls
from spl.client.calls import Pieces, WholeAnswer
from spl.client.dial import Where
from spl.client.errors import ClientError, PartialError
from spl.net.http1 import ResponseHead

FORM = {
    "object": "record", "id": "a" * 64, "thread": "t", "actor": "did:sync:user:a", "act": "KNOW", "clock": 1,
    "body": {"n": 1}, "parents": ["b" * 64], "data_type": "SCALAR", "judged_by": None, "sequence": 7,
    "vouched_by": "did:x", "newer": True,
}  # fmt: skip


def test_a_record_keeps_every_field_and_passes_over_newer_ones() -> None:
    record = calls.record_of(FORM)
    assert (record.id, record.clock, record.body, record.parents) == ("a" * 64, 1, {"n": 1}, ("b" * 64,))
    assert (record.sequence, record.vouched_by, record.judged_by) == (7, "did:x", None)
    with pytest.raises(ClientError, match="clock"):
        calls.record_of({name: value for name, value in FORM.items() if name != "clock"})


def test_many_records_become_requests_within_both_bounds() -> None:
    small = list(calls.batches({"n": n} for n in range(2 * calls.BATCH_RECORDS + 1)))
    assert [call.body.count(b"\n") + 1 for call in small] == [calls.BATCH_RECORDS, calls.BATCH_RECORDS, 1]
    large = list(calls.batches({"body": "x" * (calls.BATCH_BYTES // 3)} for _ in range(5)))
    assert [call.body.count(b"\n") + 1 for call in large] == [2, 2, 1]
    assert all(len(call.body) <= calls.BATCH_BYTES for call in large)
    assert list(calls.batches([])) == []


def test_a_batch_with_refusals_raises_and_says_which() -> None:
    call = next(iter(calls.batches([{"n": 1}, {"n": 2}])))
    refused = {"object": "error", "code": "BAD_FIELD", "message": "no", "hint": "yes"}
    with pytest.raises(PartialError, match="1 of 2") as found:
        call.decode(json.dumps(FORM).encode() + b"\n" + json.dumps(refused).encode() + b"\n")
    good, bad = found.value.results
    assert (good.sequence, bad.code, bad.hint, found.value.code) == (7, "bad-field", "yes", "bad-field")
    with pytest.raises(ClientError, match="1 of 2 records"):
        call.decode(json.dumps(FORM).encode())


@pytest.mark.parametrize("body", [b"[]", b"{", b'"x"', b"[" * 100_000])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(ClientError) as found:
        calls.object_of(body)
    assert found.value.code == "answer-malformed"


def test_what_cannot_be_json_never_leaves() -> None:
    for value in ({"x": {1, 2}}, {"x": float("nan")}):
        with pytest.raises(ClientError) as found:
            calls.post("/v1/x", value)
        assert found.value.code == "bad-json"


def test_a_target_is_escaped_and_a_header_cannot_be_smuggled() -> None:
    call = calls.get("/v1/x", thread="a b/ü&c", none=None)
    assert call.target == "/v1/x?thread=a%20b%2F%C3%BC%26c"
    with pytest.raises(Exception, match="control"):
        call.encoded(Where("x", authority="a"), "token\r\nx: y")


def test_an_answer_of_something_in_between_is_a_refusal_with_its_status() -> None:
    head = ResponseHead(502, {}, 4, False)
    with pytest.raises(ClientError) as found:
        calls.health().answer(head, b"<html>")
    assert (found.value.code, found.value.http_status) == ("peer-5xx", 502)


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_pieces_and_answers_do_not_depend_on_how_bytes_arrive(step: int) -> None:
    data = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    answer = WholeAnswer("GET")
    heads = [answer.feed(data[start : start + step]) for start in range(0, len(data), step)]
    assert (heads[-1] is answer.head, heads[:-1], answer.body) == (True, [None] * (len(heads) - 1), b"abcde")
    pieces, found = Pieces(), b""
    end = data.index(b"0\r\n\r\n")
    for start in range(0, end, step):
        found += b"".join(pieces.feed(data[start : min(start + step, end)]))
    assert found == b"abcde"
    with pytest.raises(ClientError, match="ended"):
        pieces.feed(data[end:])


def test_a_refusal_of_a_stream_is_bounded() -> None:
    pieces = Pieces()
    pieces.feed(b"HTTP/1.1 503 X\r\n\r\n")
    with pytest.raises(ClientError) as found:
        pieces.feed(b"x" * calls.REFUSAL_BYTES)
    assert found.value.http_status == 503
