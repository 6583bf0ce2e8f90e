"""Event streams for programs: how each begins, how an event is written, and what ends a stream."""

from collections.abc import AsyncIterator
from typing import Final

from ..core import canon
from ..core.value import Json
from ..net.routes import Response
from ..net.sse import MEDIA_TYPE, encode_event, one_line
from ..sync.notify import Notifier
from ..sync.stream import RETRY_AFTER_MS
from .answers import Permit
from .peers import STREAM_HEADERS

OPENING: Final = b"retry: %d\n\n" % RETRY_AFTER_MS
"""How long a browser waits before it connects again."""


def streamed(events: AsyncIterator[bytes], headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """Return the answer that sends those events."""
    return Response(body=events, content_type=MEDIA_TYPE, headers=(*STREAM_HEADERS, *headers))


def sse_event(name: str, value: Json, seq: int | None = None) -> bytes:
    """Return one event; `seq` becomes its id."""
    return encode_event(name, one_line(canon.told(value)), "" if seq is None else str(seq))


def last_event(notifier: Notifier, permit: Permit) -> bytes:
    """Return the event to end the stream with, as the daemon stops or the credential ended; b"" while it goes on."""
    if notifier.stopping:
        return sse_event("server_shutdown", {"retry_after_ms": RETRY_AFTER_MS})
    if not permit.holds():
        return sse_event("error", {"code": "revoked", "message": "the credential does not hold any more"})
    return b""
