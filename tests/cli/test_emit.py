"""Emitting: what is sent, what is printed, and input of every shape."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spl.cli.emit import _batches, login
from spl.core.errors import SplError
from spl.core.limits import Limits
from tests.cli.conftest import Call, Daemon, Run, chunked, error

POST = ("POST", "/v1/records")


def stored(call: Call) -> dict[str, Any]:
    return {"object": "record", "id": "ab" * 32, "clock": 7, "sequence": 1, "vouched_by": "did:x", **call.json()}


def stored_each(call: Call) -> bytes:
    """Answer each line: those whose body says bad are refused."""
    results = []
    for number, line in enumerate(call.body.splitlines(), 1):
        record = json.loads(line)
        bad = record.get("body") == "bad"
        results.append(error("bad-field", "body: no object") if bad else {"id": f"{number:064x}", "clock": 0, **record})
    return chunked(*results)


@pytest.mark.parametrize("word", ["intend", "do", "know", "learn"])
def test_a_text_becomes_a_record_of_its_act(spl: Run, daemon: Daemon, word: str) -> None:
    daemon.answers[POST] = stored
    result = spl(word, "tag 1.2")
    sent = daemon.sent(*POST).json()
    assert result.code == 0
    assert result.out == f"{'ab' * 32}  {sent['thread']}  7\n"
    assert sent == {
        "act": word.upper(),
        "actor": f"did:sync:user:{login()}",
        "thread": sent["thread"],
        "body": {"kind": f"core.{word}", "text": "tag 1.2"},
    }
    assert sent["thread"].startswith("th_")
    assert len(bytes.fromhex(sent["thread"][3:])) == 32


def test_two_texts_without_a_thread_go_into_two_threads(spl: Run, daemon: Daemon) -> None:
    daemon.answers[POST] = stored
    spl("know", "a"), spl("know", "b")
    first, second = daemon.calls
    assert first.json()["thread"] != second.json()["thread"]


def test_flags_shape_the_record(spl: Run, daemon: Daemon) -> None:
    daemon.answers[POST] = stored
    body = '{"minutes": 4, "text": "other"}'
    result = spl(
        "know", "x", "--thread", "th_r", "--actor", "did:a", "--clock", "0", "--namespace", "music", "--body", body
    )
    assert daemon.sent(*POST).json() == {
        "act": "KNOW",
        "actor": "did:a",
        "thread": "th_r",
        "clock": 0,
        "body": {"kind": "core.know", "text": "other", "namespace": "music", "minutes": 4},
    }
    assert result.out == f"{'ab' * 32}  th_r  0\n"
    assert spl("know", "x", "--thread", "th_r", "-o", "json").data["id"] == "ab" * 32


@pytest.mark.parametrize("body", ["{", '{"a":1,"a":2}', '{"a":NaN}', "\udc80"])
def test_a_body_that_is_no_strict_json_is_refused_here(spl: Run, daemon: Daemon, body: str) -> None:
    result = spl("know", "x", "--body", body)
    assert result.code == 2
    assert "[bad-json]" in result.err
    assert daemon.calls == []


def test_on_a_narrow_terminal_id_thread_and_clock_stand_on_lines_of_their_own(spl: Run, daemon: Daemon) -> None:
    daemon.answers[POST] = stored
    result = spl("know", "x", "--thread", "th_" + "0" * 64, tty=True)
    assert result.out.splitlines() == [
        f"id                {'ab' * 32}",
        f"thread            th_{'0' * 64}",
        "clock             7",
    ]


def test_records_from_stdin_and_from_a_file(spl: Run, daemon: Daemon, tmp_path: Path) -> None:
    daemon.answers[POST] = stored_each
    lines = b'{"thread":"a","body":{}}\n\n  \n{"thread":"b","body":{}}'
    assert [line.split()[1:] for line in spl("emit", stdin=lines).out.splitlines()] == [["a", "0"], ["b", "0"]]
    assert {call.headers["content-type"] for call in daemon.calls} == {"application/x-ndjson"}
    file = tmp_path / "records.json"
    file.write_bytes(b'[\n  {"thread": "a", "body": {}},\n  {"thread": "b", "body": {}}\n]\n')
    assert spl("emit", "--file", str(file)).out == f"{1:064x}  a  0\n{2:064x}  b  0\n"
    assert [item["thread"] for item in spl("emit", "-o", "json", stdin=lines).data] == ["a", "b"]
    assert [json.loads(line)["thread"] for line in spl("emit", "-o", "jsonl", stdin=lines).out.splitlines()] == [
        "a",
        "b",
    ]


def test_one_refused_record_stops_nothing_and_gives_the_exit_code(spl: Run, daemon: Daemon) -> None:
    daemon.answers[POST] = stored_each
    lines = b'{"thread":"a","body":{}}\n{"thread":"b","body":"bad"}\n{"thread":"c","body":{}}\n'
    result = spl("emit", stdin=lines)
    assert result.code == 2
    assert [line.split()[1] for line in result.out.splitlines()] == ["a", "c"]
    assert result.err.startswith("error: body: no object [bad-field]\n  record    2\n")
    assert len(spl("emit", "-o", "jsonl", stdin=lines).out.splitlines()) == 3


def test_more_short_records_than_a_request_takes_go_in_several(spl: Run, daemon: Daemon) -> None:
    daemon.answers[POST] = stored_each
    most = Limits().page_records
    result = spl("emit", stdin=b'{"thread":"t"}\n' * (2 * most + 1))
    assert result.code == 0
    assert [call.body.count(b"\n") for call in daemon.calls] == [most, most, 1]


def test_fewer_answers_than_records_is_no_success(spl: Run, daemon: Daemon) -> None:
    daemon.answers[POST] = chunked()
    result = spl("emit", stdin=b'{"thread":"a"}\n')
    assert result.code == 9
    assert "1 record sent, 0 answered" in result.err


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "usage"),
        (b" \n\n", "usage"),
        (b"[]", "usage"),
        (b"[1]", "usage"),
        (b"{\n", "bad-json"),
        (b"3", "usage"),
        (b'{"a":1,\n"a":2}', "bad-json"),
        (b"\xff", "bad-json"),
    ],
)
def test_input_without_records_is_refused(spl: Run, daemon: Daemon, data: bytes, code: str) -> None:
    result = spl("emit", stdin=data)
    assert result.code == 2
    assert f"[{code}]" in result.err
    assert daemon.calls == []


def test_a_file_that_cannot_be_read_is_named(spl: Run) -> None:
    result = spl("emit", "--file", "/nonexistent/x")
    assert (result.code, result.err.splitlines()[0]) == (
        2,
        "error: cannot read /nonexistent/x: No such file or directory [usage]",
    )


class Trickle(io.BytesIO):
    """Hands out a fixed number of bytes a read, as a slow producer does."""

    def __init__(self, data: bytes, step: int) -> None:
        super().__init__(data)
        self.step = step

    def read1(self, size: int | None = -1) -> bytes:
        return self.read(self.step)


def test_input_is_the_same_however_it_is_cut() -> None:
    for data in (b'{"a":1}\n{"b":2}\n\n{"c":3}', b'{\n "a": 1\n}\n', b'[{"a":1},\n{"b":2}]'):
        whole = [json.loads(line) for batch in _batches(io.BytesIO(data)) for line in batch]
        for step in range(1, len(data)):
            assert [json.loads(line) for batch in _batches(Trickle(data, step)) for line in batch] == whole


def test_a_slow_producers_records_go_out_as_they_come() -> None:
    batches = _batches(Trickle(b'{"a":1}\n{"b":2}\n', 8))
    assert [next(batches), next(batches)] == [[b'{"a":1}'], [b'{"b":2}']]


@pytest.mark.parametrize("data", [lambda: b"x" * (9 << 20), lambda: b"[\n" + b'{"a":1},\n' * (1 << 20)])
def test_endless_input_is_refused_before_it_fills_memory(data: Callable[[], bytes]) -> None:
    with pytest.raises(SplError) as found:
        list(_batches(io.BytesIO(data())))
    assert found.value.code == "record-too-large"
