"""A thread that is followed across connections, without I/O: where to go on, what to deliver, when to try again.

The daemon numbers what it sends by sequence and repeats nothing behind the number that it is given, and it shows no
record before it is on its disk.  So each record is delivered once, in order, whatever ends a connection.
"""

import os
import time
from typing import Any, Final

from ..core.backoff import Backoff
from ..core.limits import Limits
from ..net.sse import Event, EventParser
from .calls import Call, Record, object_of, quote, record_of
from .errors import ClientError, UnreachableError, fault

SILENCE_S: Final = 45.0
"""Three heartbeats: a connection that is silent for longer is not one any more."""
FIRST_WAIT_S: Final = 0.1
LAST_WAIT_S: Final = 5.0
"""Between two connections, doubled from the first to the last."""
_DIGITS: Final = 20


class Follow:
    """The state of one tail; `connected` and `failed` tell it what became of a connection."""

    def __init__(self, thread: str, after: int, patience_s: float | None) -> None:
        self.after = after
        """The sequence of the last record delivered, or that of a later heartbeat."""
        self._thread = thread
        self._patience_s = patience_s
        self._parser = EventParser(Limits().event_bytes)
        self._lost_s: float | None = None
        self._backoff = Backoff(os.urandom, FIRST_WAIT_S, LAST_WAIT_S)

    def call(self) -> Call[dict[str, Any]]:
        """Return the request that opens the stream."""
        return Call("GET", f"/v1/threads/{quote(self._thread)}/watch", object_of)

    def headers(self) -> tuple[tuple[str, str], ...]:
        """Return the headers that say where to go on."""
        return (("accept", "text/event-stream"), ("last-event-id", str(self.after)))

    def connected(self) -> None:
        """Begin to read a new connection."""
        self._parser = EventParser(Limits().event_bytes)

    def feed(self, data: bytes) -> list[Record]:
        """Return the records in what arrived; raise ClientError when the daemon ends the stream for good."""
        self._lost_s = None
        self._backoff.reset()
        found = []
        for event in self._parser.feed(data):
            if event.name == "record.created":
                record = _record(event)
                if record.sequence <= self.after:
                    raise fault(
                        "position-unknown",
                        f"the daemon's log ends before {self.after}, so it is not the one that was followed",
                        hint="read the thread from its begin: after=0",
                    )
                self.after = record.sequence
                found.append(record)
            elif event.name == "heartbeat" and event.id.isdecimal() and len(event.id) < _DIGITS:
                self.after = max(self.after, int(event.id))
            elif event.name == "error":
                # The token ended, or what it may read.
                raise fault("auth-invalid", str(_decoded(event).get("message") or "the daemon ended the stream"))
        return found

    def failed(self, error: ClientError) -> float:
        """Return how many seconds to wait before the next connection; raise `error` if that would not help."""
        if not isinstance(error, UnreachableError) and error.http_status < 500:
            raise error
        now_s = time.monotonic()
        self._lost_s = now_s if self._lost_s is None else self._lost_s
        if self._patience_s is not None and now_s - self._lost_s >= self._patience_s:
            raise error
        return self._backoff.failed()


def _record(event: Event) -> Record:
    form = _decoded(event)
    inner = form.get("record")
    if not isinstance(inner, dict):
        raise fault("answer-malformed", "the daemon sent an event without a record")
    return record_of({**inner, **form})


def _decoded(event: Event) -> dict[str, Any]:
    return object_of(event.data)
