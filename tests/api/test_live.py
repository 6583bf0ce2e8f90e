"""Event streams for programs: each ends with an event that says why."""

from unittest.mock import Mock

import pytest

from spl.api.answers import Permit
from spl.api.live import last_event, sse_event
from spl.sync.notify import Notifier


def _permit(holds: bool) -> Permit:
    permit = Mock(spec=Permit)
    permit.holds.return_value = holds
    return permit


@pytest.mark.parametrize(
    ("stopping", "holds", "wanted"),
    [
        (False, True, b""),
        (True, True, b"event: server_shutdown\n"),
        (True, False, b"event: server_shutdown\n"),
        (False, False, b"event: error\n"),
    ],
)
def test_a_stream_ends_with_its_reason(stopping: bool, holds: bool, wanted: bytes) -> None:
    notifier = Mock(spec=Notifier, stopping=stopping)
    found = last_event(notifier, _permit(holds))
    assert found.startswith(wanted)
    assert bool(found) == bool(wanted)


def test_an_event_is_one_line_of_data_whatever_it_holds() -> None:
    found = sse_event("pair", {"label": "a\nb\u2028c\u0085d"}, 7)
    assert found.count(b"\ndata:") == 1
    assert b"id: 7\n" in found
    assert len(found.decode().splitlines()) == found.count(b"\n")


def test_an_event_is_written_whatever_a_peer_said() -> None:
    assert b'{"state":"\\ud800"}' in sse_event("pair", {"state": "\ud800"})
