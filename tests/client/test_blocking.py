"""Both clients on a real daemon and against servers that misbehave."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spl.client import Client, ClientError, ForbiddenError, MissingError, PartialError, UnreachableError
from tests.client.conftest import Canned, Make, streamed, whole
from tests.client.test_follow import event
from tests.e2e.harness import ROOT, Instance

ACTOR = "did:sync:user:alice"


def test_what_a_program_does_in_a_day(client: Make, alice: Instance) -> None:
    ours = client(home=alice.home)
    assert ours.health()["status"] == "ok"
    first = ours.emit("th_a", ACTOR, {"kind": "x.y.z", "n": 0})
    assert (first.thread, first.body["n"], ours.record(first.id)) == ("th_a", 0, first)
    more = ours.emit_many({"thread": "th_a", "actor": ACTOR, "act": "KNOW", "body": {"n": n}} for n in range(1, 1200))
    assert [record.body["n"] for record in more] == list(range(1, 1200))
    assert [record.body["n"] for record in ours.records(thread="th_a")] == list(range(1200))
    assert [record.body["n"] for record in ours.records(thread="th_a", after=more[-3].sequence)] == [1198, 1199]
    assert [record.id for record in ours.query({"body.kind": "x.y.z"})] == [first.id]
    assert [thread["thread"] for thread in ours.threads()] == ["th_a"]
    assert ours.state("th_a")["records"] == 1200
    assert ours.pairs() == []
    assert ours.status()["object"] == "status"


def test_refusals_are_classes_with_codes(client: Make, alice: Instance) -> None:
    ours = client(alice.url, "wrong")
    with pytest.raises(ForbiddenError) as forbidden:
        ours.status()
    assert forbidden.value.code == "auth-invalid"
    ours = client(alice.url, alice.token)
    with pytest.raises(MissingError):
        ours.record("0" * 64)
    with pytest.raises(PartialError) as partial:
        ours.emit_many([{"thread": "th_a", "actor": ACTOR, "act": "KNOW", "body": {}}, {"thread": "th_a"}])
    good, bad = partial.value.results
    assert (good.thread, bad.code) == ("th_a", "bad-field")
    with pytest.raises(MissingError):
        ours.sync("nobody")
    ours.close()
    with pytest.raises(ClientError, match="closed"):
        ours.health()


def test_a_tail_survives_kill_9_and_gives_each_record_once(client: Make, alice: Instance) -> None:
    ours = client(home=alice.home)
    ours.emit("th_t", ACTOR, {"n": 0})
    seen: list[int] = []
    tail = ours.tail("th_t", after=0)
    for turn in range(3):
        ours.emit_many(
            {"thread": "th_t", "actor": ACTOR, "act": "KNOW", "body": {"n": 5 * turn + n}} for n in range(1, 6)
        )
        while len(seen) < 5 * turn + 6:
            seen.append(next(tail).body["n"])
        alice.kill()
        alice.start()
    assert seen == list(range(16))
    tail.close()


def test_a_tail_without_a_position_begins_now(client: Make, alice: Instance) -> None:
    ours = client(home=alice.home)
    ours.emit("th_t", ACTOR, {"n": 0})
    tail = ours.tail("th_t")
    heard: list[Any] = []
    thread = threading.Thread(target=lambda: heard.append(next(tail)))
    thread.start()
    turn = 0
    while thread.is_alive():  # the tail may not have asked for its begin yet
        turn += 1
        ours.emit("th_t", ACTOR, {"n": turn})
        thread.join(0.05)
    assert heard[0].body["n"] >= 1
    tail.close()


def test_close_ends_a_tail_of_another_thread(alice: Instance) -> None:
    ours = Client.from_home(alice.home)
    ours.emit("th_t", ACTOR, {"n": 0})
    tail = ours.tail("th_t", after=0)
    assert next(tail).body["n"] == 0
    rest: list[Any] = []
    thread = threading.Thread(target=lambda: rest.extend(tail))
    thread.start()
    ours.close()
    thread.join(30)
    assert not thread.is_alive()
    assert rest == []


def test_a_reading_is_sent_again_when_the_kept_connection_was_closed(
    client: Make, canned: Callable[..., Canned]
) -> None:
    server = canned(whole(200, b'{"a":1}'), whole(200, b'{"a":2}'))
    ours = client(server.url, "t")
    assert [ours.get("/v1/x")["a"], ours.get("/v1/x")["a"]] == [1, 2]
    assert b"authorization: Bearer t" in server.requests[0]


def test_a_writing_whose_answer_is_lost_is_not(client: Make, canned: Callable[..., Canned]) -> None:
    server = canned(b"", whole(200, b'{"a":2}'))
    ours = client(server.url, "t")
    with pytest.raises(UnreachableError) as found:
        ours.post("/v1/x")
    assert (found.value.code, len(server.requests)) == ("disconnected", 1)
    assert ours.post("/v1/x") == {"a": 2}


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"hello\r\n\r\n", "answer-malformed"),
        (b"hello", "disconnected"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}", "disconnected"),
        (whole(200, b"[1]"), "answer-malformed"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n", "answer-malformed"),
    ],
)
def test_bytes_of_a_stranger_are_refused(client: Make, canned: Callable[..., Canned], answer: bytes, code: str) -> None:
    with pytest.raises(ClientError) as found:
        client(canned(answer).url).health()
    assert found.value.code == code


def test_a_silent_server_is_a_timeout(client: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(UnreachableError) as found:
        client(f"http://127.0.0.1:{server.getsockname()[1]}", timeout_s=0.2).health()
    assert found.value.code == "timeout"
    assert "our own" not in str(found.value.facts), "a URL may lead anywhere"


def test_a_tail_goes_through_a_proxy_that_answers_502(client: Make, canned: Callable[..., Canned]) -> None:
    cut = streamed() + event(3)[:-7]
    server = canned(streamed() + event(2), whole(502, b"<html>"), cut, streamed() + event(3), whole(401, b"{}"))
    tail = client(server.url, "t").tail("th_t", after=0)
    assert [next(tail).sequence, next(tail).sequence] == [2, 3]
    with pytest.raises(ForbiddenError):
        next(tail)
    ids = [next(line for line in sent.split(b"\r\n") if line.startswith(b"last-event-id")) for sent in server.requests]
    assert ids == [b"last-event-id: 0", *[b"last-event-id: 2"] * 3, b"last-event-id: 3"]


def test_the_client_loads_no_loop_and_no_cryptography(tmp_path: Path) -> None:
    code = "import sys, spl.client; print([m for m in ('asyncio', 'ssl', 'nacl', 'uvloop') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout == "[]\n"


def test_a_sample_program_is_typed(tmp_path: Path) -> None:
    sample = tmp_path / "sample.py"
    sample.write_text(
        "from spl.client import AsyncClient, Client, Record\n"
        "def first(client: Client) -> Record:\n"
        "    return next(client.tail('th_x', after=0))\n"
        "async def count(client: AsyncClient) -> int:\n"
        "    return len([each.sequence async for each in client.records(thread='th_x')])\n"
    )
    done = subprocess.run([sys.executable, "-m", "mypy", "--strict", str(sample)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_example_of_the_manual_runs(alice: Instance) -> None:
    text = (ROOT / "spl/manual/programs.md").read_text()
    blocks = [block.partition("```")[0] for block in text.split("```python\n")[1:]]
    (example,) = [block for block in blocks if "spl.client" in block]
    env = {**os.environ, "SYNCROPEL_HOME": str(alice.home)}
    done = subprocess.run([sys.executable, "-c", example], env=env, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("not-found ")
