"""Readers that ask for much and take nothing: what they asked for waits on the disk, not in the daemon's memory."""

import contextlib
import http.client
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pytest

from tests.attack.probes import (
    MIB,
    Make,
    assert_serving,
    dial,
    forget_peak,
    head,
    instances,
    peak_bytes,
    until,
)
from tests.e2e.harness import Answer, Instance

READERS: Final = 60
GROWTH_BYTES: Final = 32 * MIB
RECORDS: Final = 80
THREAD: Final = "th_big"
READING: Final = "records:read"
PAGES: Final = {
    "thread": (READING, f"/v1/threads/{THREAD}/records?limit=1000"),
    "actor": (READING, "/v1/records?actor=did:sync:user:served&limit=1000"),
    "all": (READING, "/v1/records?limit=1000"),
    "snapshot": (READING, f"/v1/threads/{THREAD}/snapshot"),
    "changes": ("federation:sync", "/v1/sync/changes?limit=1000"),
}
"""Name -> scope and target; each answers some megabytes."""
WATCH: Final = f"/v1/threads/{THREAD}/watch?since_clock=0"


@dataclass(frozen=True)
class Library:
    """A daemon that holds a thread of 8 MB; by scope a token of those who do not read, and one of those who do."""

    served: Instance
    lazy: dict[str, str]
    good: dict[str, str]

    def ask(self, scope: str, target: str) -> bytes:
        """Return the request of a reader that will not read."""
        return head("GET", target, authorization=f"Bearer {self.lazy[scope]}")

    def read(self, scope: str, target: str) -> Answer:
        """Return the whole answer, as another reader takes it that reads on."""
        return self.served.request("GET", target, headers={"authorization": f"Bearer {self.good[scope]}"})


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    """One daemon for all the readers."""
    with instances(tmp_path_factory.mktemp("reader")) as make:
        yield a_library(make)


def a_library(make: Make) -> Library:
    """Return a running daemon with the thread in it."""
    served = make("served").start()
    for _ in range(RECORDS // 20):
        served.emit(THREAD, 20, text="x" * 100_000)
    lazy, good = (
        {scope: served.run("token", "mint", "--scopes", scope).out.strip() for scope in ("federation:sync", READING)}
        for _ in range(2)
    )
    return Library(served, lazy, good)


def records_in(body: bytes) -> int:
    """Return how many of the thread's records an answer holds whole."""
    return body.count(b"x" * 100_000)


@pytest.mark.parametrize("page", PAGES)
def test_pages_that_nobody_takes_cost_no_memory(library: Library, page: str) -> None:
    """Sixty unread pages of megabytes raise the peak above that of one reader by a bound, and others are served."""
    served, (scope, target) = library.served, PAGES[page]
    before = library.read(scope, target)
    assert before.status == 200, before.body
    assert records_in(before.body) > 30, "the page is too small for this test"
    forget_peak(served)
    library.read(scope, target)
    usual = peak_bytes(served)
    with contextlib.ExitStack() as stack:
        for number in range(READERS):
            sock = stack.enter_context(dial(served.port, f"127.0.2.{number % 30 + 1}", receive_bytes=4096))
            sock.sendall(library.ask(scope, target))
        # Whatever the daemon does for one request after another, it did for those by the time this one has its answer.
        after = library.read(scope, target)
        grown = peak_bytes(served) - usual
        assert grown <= GROWTH_BYTES, f"{READERS} unread pages cost {grown / MIB:.0f} MiB"
        assert_serving(served, "127.0.0.3")
    assert (after.status, records_in(after.body)) == (200, records_in(before.body))


def test_watches_that_nobody_takes_cost_no_memory(library: Library) -> None:
    """The same for event streams that begin with a long history."""
    served = library.served
    forget_peak(served)
    with dial(served.port) as sock:
        sock.sendall(library.ask(READING, WATCH))
        until(sock, b"event: record.created", RECORDS - 1)  # all but the one of clock 0
    usual = peak_bytes(served)
    with contextlib.ExitStack() as stack:
        for number in range(READERS):
            sock = stack.enter_context(dial(served.port, f"127.0.2.{number % 30 + 1}", receive_bytes=4096))
            sock.sendall(library.ask(READING, WATCH))
        with dial(served.port) as sock:
            sock.sendall(head("GET", WATCH, authorization=f"Bearer {library.good[READING]}"))
            until(sock, b"event: record.created", RECORDS - 1)
        grown = peak_bytes(served) - usual
        assert grown <= GROWTH_BYTES, f"{READERS} unread streams cost {grown / MIB:.0f} MiB"
        assert_serving(served, "127.0.0.3")


@pytest.mark.parametrize("page", PAGES)
def test_a_slow_reader_gets_the_whole_page(library: Library, page: str) -> None:
    """Who takes its page late, while others leave theirs, gets it from the first byte to the last."""
    scope, target = PAGES[page]
    whole = records_in(library.read(scope, target).body)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(dial(library.served.port, receive_bytes=65536)) for _ in range(10)]
        for sock in socks:
            sock.sendall(library.ask(scope, target))
        answer = http.client.HTTPResponse(socks[0])
        answer.begin()
        body = answer.read()
    assert (answer.status, records_in(body)) == (200, whole)
