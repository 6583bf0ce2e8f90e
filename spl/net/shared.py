"""What the connections of one server share: its limits and clocks, and what is made once for many requests.

The heads of plain answers differ in the length alone within one second, so they are kept for as long as the date holds.
"""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from ..core.limits import Limits
from .admission import Admission
from .heads import http_date
from .http1 import KnownHeads
from .routes import App, Response

_C = TypeVar("_C")


class Shared(Generic[_C]):
    """What all connections of one server share."""

    __slots__ = (
        "_begun", "_date", "_date_s", "admission", "app", "connections", "emptied", "known", "limits", "loop", "now_ms",
        "refused", "stopping", "tasks",
    )  # fmt: skip

    def __init__(
        self, app: App, limits: Limits, now_ms: Callable[[], int], tasks: asyncio.TaskGroup, admission: Admission
    ) -> None:
        self.app = app
        self.limits = limits
        self.now_ms = now_ms
        self.tasks = tasks
        self.admission = admission
        self.loop = asyncio.get_running_loop()
        self.connections: dict[_C, None] = {}  # in the order in which they came
        self.emptied = asyncio.Event()
        self.refused = 0
        """Connections without a free slot, which are answered 503."""
        self.stopping = False
        self.known = KnownHeads()
        self._date_s = -1
        self._date = ""
        self._begun: dict[tuple[int, str], bytes] = {}

    def date(self) -> str:
        """Return the Date header's value, made once a second."""
        now_s = self.now_ms() // 1000
        if now_s != self._date_s:
            self._date_s, self._date = now_s, http_date(now_s)
            self._begun.clear()
        return self._date

    def begun(self, status: int, content_type: str) -> bytes:
        """Return the head of a plain answer up to the number of Content-Length, made once a second."""
        date, kind = self.date(), (status, content_type)
        found = self._begun.get(kind)
        if found is None:
            whole = Response(status, b"", content_type).head(0, date, chunked=False, last=False)
            found = self._begun[kind] = whole.removesuffix(b"0\r\n\r\n")
        return found
