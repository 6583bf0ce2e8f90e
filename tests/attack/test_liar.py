"""A daemon elsewhere that lies: no list of it is endless for who reads it, and what it sends fills no memory.

It stands behind a context or a URL, so whoever runs it chooses each byte.
"""

import asyncio
import io
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from spl.cli import live
from spl.cli import main as cli
from spl.cli.client import Ctl
from spl.client.blocking import Client
from spl.client.dial import at_url
from spl.client.errors import ClientError
from spl.client.waiting import AsyncClient
from tests.attack.adversary.server import EVENTS, Asked, Given, Server
from tests.cli.conftest import Stream
from tests.waiting import eventually

Answering = Callable[[Asked], Given]
WAY = "did:sync:instance:liar-0123456789abcdef01234567"


def listed(*items: object, **more: object) -> Given:
    """Return a list as a daemon answers it."""
    return Given(body=json.dumps({"object": "list", "data": items, **more}).encode())


def record(sequence: object) -> dict[str, object]:
    """Return a record's answer form."""
    return {
        "object": "record", "id": "0" * 64, "thread": "th_a", "actor": f"did:sync:user:{sequence}", "act": "KNOW",
        "clock": 1, "parents": [], "data_type": "SCALAR", "judged_by": None, "body": {"text": "x"},
        "sequence": sequence, "vouched_by": WAY,
    }  # fmt: skip


def since(asked: Asked, name: str = "since") -> int:
    """Return the position that a page is asked behind."""
    return int(parse_qs(urlsplit(asked.target).query).get(name, ["0"])[0])


THREADS = itertools.count()
LIES: dict[str, tuple[tuple[str, ...], Answering]] = {
    "the same page of threads": (("thread", "list"), lambda _: listed({"thread": "th_a", "records": 1})),
    "threads in a circle": (
        ("thread", "list"),
        lambda asked: listed({"thread": "th_b" if asked.target.endswith("th_a") else "th_a", "records": 1}),
    ),
    "threads without end": (
        ("thread", "list"), lambda _: listed({"thread": f"th_{next(THREADS)}", "records": 1, "pad": "x" * 100_000}),
    ),
    "threads without end behind a beginning": (
        ("thread", "records", "th_"), lambda asked: listed() if "/records?" in asked.target else listed({
            "thread": f"o_{next(THREADS)}", "records": 1, "pad": "x" * 100_000,
        }),
    ),
    "the same page of records": (("thread", "records", "th_a"), lambda _: listed(record(1))),
    "records that go back": (("thread", "show", "th_a"), lambda asked: listed(record(5 - since(asked)))),
    "positions that are none": (("thread", "show", "th_a"), lambda _: listed(record("1"))),
    "projections that stand still": (("federation", "projections", "bob"), lambda _: listed(next_after=0)),
    "empty projections without end": (
        ("federation", "projections", "bob"), lambda asked: listed(next_after=since(asked, "after") + 1),
    ),
}  # fmt: skip


@pytest.fixture
def lying() -> Iterator[Callable[[Answering], Server]]:
    """Return a maker of servers that answer as they are told."""
    made: list[Server] = []

    def maker(answering: Answering) -> Server:
        made.append(Server(answering))
        return made[-1]

    yield maker
    for each in made:
        each.close()


def spl(server: Server, home: Path, *words: str) -> tuple[int, str]:
    """Run a command against the liar; return its exit code and what it said on stderr."""
    out, err = Stream(False), Stream(False)
    env = {"SYNCROPEL_HOME": str(home), "HOME": str(home), "SPL_SERVE_URL": server.url, "SPL_TOKEN": "x"}
    return cli.run(list(words), env, io.BytesIO(b""), out, err), err.text


@pytest.mark.parametrize("lie", LIES)
def test_a_list_without_end_ends_with_the_reason(
    lie: str, lying: Callable[[Answering], Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spl.cli.threads.LIST_BYTES", 400_000)
    monkeypatch.setattr("spl.cli.grants.LIST_BYTES", 400_000)
    words, answering = LIES[lie]
    server = lying(answering)
    code, said = spl(server, tmp_path, *words)
    assert (code, "[answer-malformed]" in said) == (9, True), said
    assert "Traceback" not in said
    assert len(server.asked) <= 110


def test_no_page_of_the_client_comes_back(lying: Callable[[Answering], Server]) -> None:
    for positions in ((1, 1), (4, 3), (1, "2")):
        numbers = iter(positions)
        server = lying(lambda _, numbers=numbers: listed(record(next(numbers))))
        client = Client(server.url, token="x")
        with pytest.raises(ClientError, match=r"go on|no number"):
            list(client.records())
        client.close()


def test_no_page_of_the_waiting_client_comes_back(lying: Callable[[Answering], Server]) -> None:
    async def read(url: str) -> None:
        async with AsyncClient(url, token="x") as client:
            async for _ in client.records():
                pass

    with pytest.raises(ClientError, match="go on"):
        asyncio.run(read(lying(lambda _: listed(record(7))).url))


@pytest.mark.parametrize("beat", ["9" * 5000, "²", "-1", "x"])
def test_a_tail_takes_no_odd_position_of_a_heartbeat(lying: Callable[[Answering], Server], beat: str) -> None:
    event = json.dumps({"record": record(3), **record(3)})
    stream = f"event: heartbeat\nid: {beat}\ndata: {{}}\n\nevent: record.created\nid: 3\ndata: {event}\n\n".encode()
    server = lying(lambda _: Given(body=iter([stream]), media=EVENTS))
    client = Client(server.url, token="x")
    assert next(client.tail("th_a", after=0)).sequence == 3
    client.close()


def test_a_summed_thread_keeps_no_more_names_than_it_can_show(
    lying: Callable[[Answering], Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread of any length may have an actor a record."""
    monkeypatch.setattr("spl.cli.threads._COUNTED", 5)
    pages = [listed(*(record(n) for n in range(1, 10))), listed()]
    server = lying(lambda asked: pages[since(asked) > 0])
    out, err = Stream(False), Stream(False)
    env = {"SYNCROPEL_HOME": str(tmp_path), "HOME": str(tmp_path), "SPL_SERVE_URL": server.url, "SPL_TOKEN": "x"}
    assert cli.run(["thread", "show", "th_a", "-o", "json"], env, io.BytesIO(b""), out, err) == 0, err.text
    actors = json.loads(out.text)["data"]["actors"]
    assert (len(actors), sum(actors.values()), actors["(others)"]) == (6, 9, 4)


def test_events_wait_at_the_daemon_while_nobody_takes_them(lying: Callable[[Answering], Server]) -> None:
    """A monitor whose output stands still keeps few of them."""
    sent = itertools.count()

    def events() -> Iterator[bytes]:
        for number in sent:
            if number > 2000:
                return
            yield f"event: pair\ndata: {json.dumps({'pad': 'x' * 20_000})}\n\n".encode()

    server = lying(lambda _: Given(body=events(), media=EVENTS))
    ctl = Ctl(at_url(server.url, "", "url"), "x", lambda text: None)
    with live.Live(ctl) as found:
        eventually(lambda: found._queue.full(), "as many wait as may")
        assert found._queue.qsize() == live._WAITING
        taken: list[Any] = [found.next(30) for _ in range(live._WAITING + 5)]
        assert all(item is not None for item in taken)
