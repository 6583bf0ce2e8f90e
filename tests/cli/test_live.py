"""The event stream over restarts: said once that the daemon is gone, and everything again when it is back."""

from pathlib import Path

import pytest

from spl.cli.client import CtlError, open_ctl
from spl.cli.live import DOWN, Live, rows_of
from spl.core.errors import SplError
from tests.cli.conftest import Daemon, error
from tests.cli.live_daemon import EVENTS, PAIR, a_row, snapshot, streams
from tests.waiting import DEADLINE_S


def live(home: Path) -> Live:
    return Live(open_ctl(str(home), {}, lambda text: None))


def test_a_daemon_that_comes_back_tells_everything_again(home: Path, daemon: Daemon) -> None:
    streams(daemon, [snapshot(a_row())], [], [], [snapshot(a_row(state="paused"))])
    with live(home) as found:
        seen = [found.next(DEADLINE_S) for _ in range(3)]
    assert [item[0] for item in seen if item] == ["snapshot", DOWN, "snapshot"]
    assert seen[2] is not None
    assert rows_of(seen[2][1])[PAIR]["state"] == "paused"


def test_the_end_of_a_credential_and_of_a_wait(home: Path, daemon: Daemon) -> None:
    streams(daemon, [("error", {"code": "revoked", "message": "over"})])
    with live(home) as found, pytest.raises(CtlError, match="over"):
        found.next(DEADLINE_S)
    daemon.answers[EVENTS] = (403, error("scope-forbidden", "no"))
    with live(home) as found, pytest.raises(CtlError, match="no"):
        found.next(DEADLINE_S)


@pytest.mark.parametrize("text", [b"event: pair\ndata: {\n\n", b":\n" * 40_000], ids=["no JSON", "no event"])
def test_what_is_no_event_stream_of_a_daemon_ends_the_wait(home: Path, daemon: Daemon, text: bytes) -> None:
    head = b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(text)
    daemon.answers[EVENTS] = lambda call: head + text
    with live(home) as found, pytest.raises(SplError) as caught:
        found.next(DEADLINE_S)
    assert caught.value.code == "answer-malformed"


def test_a_nudge_ends_a_wait(home: Path) -> None:
    with live(home) as found:
        assert found.next(DEADLINE_S) is not None  # that there is no daemon
        found.nudge()
        assert found.next(DEADLINE_S) is None
        assert found.next(0.0) is None
