"""What the daemon of canned answers says on its event stream: the n-th connection gets the n-th list of events."""

import json
from collections.abc import Callable
from typing import Any

from tests.cli.conftest import BOB, Call, Daemon

PAIR = "pair_0f9e8d7c"
EVENTS = ("GET", "/v1/events")


def a_row(pair_id: str = PAIR, **changed: Any) -> dict[str, Any]:
    return {
        "pair_id": pair_id, "peer_did": BOB, "state": "active", "state_detail": "", "mode": "polling", "reach": "both",
        "offline_since": None, "stalled": None, "findings": [], "last_sync_at": "2026-11-23T05:59:58.000Z",
        "inbound": {"clock": 4, "lag_records": 0}, "outbound": {"clock": 7, "lag_records": 0}, **changed,
    }  # fmt: skip


def snapshot(*rows: dict[str, Any], findings: tuple[dict[str, Any], ...] = ()) -> tuple[str, Any]:
    daemon = {"object": "daemon", "started_at": "2026-11-23T05:00:00.000Z", "findings": list(findings)}
    return "snapshot", {"daemon": daemon, "pairs": list(rows)}


def finding(code: str = "connect") -> dict[str, Any]:
    return {"code": code, "severity": "fail", "title": "no way", "fix": "spl serve", "pair_id": PAIR}


def streams(daemon: Daemon, *connections: list[tuple[str, Any]]) -> Callable[[Call], bytes]:
    """Have each connection to the event stream get its events and then end; those after the last get nothing."""
    left = list(connections)

    def answer(call: Call) -> bytes:
        events = left.pop(0) if left else []
        text = "".join(f"event: {name}\ndata: {json.dumps(value)}\n\n" for name, value in events).encode()
        return b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text)

    daemon.answers[EVENTS] = answer
    return answer
