"""What the connections of one server share: its limits and clocks, and what is made once for many requests.

The heads of plain answers differ in the length alone within one second, so they are kept for as long as the date holds.
"""

import asyncio
import errno
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from ..core.errors import SplError
from ..core.limits import Limits
from ..core.value import replace
from .admission import Admission
from .heads import http_date
from .http1 import KnownHeads, RequestHead
from .routes import App, HttpError, Response

_C = TypeVar("_C")
FORWARDED: Final = "x-forwarded-for"


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

    def refusal(self, error: SplError, head: RequestHead | None) -> Response:
        """Return the app's form of an error, with Allow if the error has it."""
        allow = error.allow if isinstance(error, HttpError) else ()
        if not allow:
            return self.app.refuse(error, head)
        header = ("allow", ", ".join(allow))
        if head is not None and head.method == "OPTIONS":
            return Response(204, headers=(header,))
        response = self.app.refuse(error, head)
        return replace(response, headers=(*response.headers, header))

    def client_of(self, peer: str, head: RequestHead) -> str:
        """Return the address of the client behind a connection; a proxy's word counts if it is trusted."""
        forwarded = head.headers.get(FORWARDED)
        return peer if forwarded is None else self.admission.proxies.client_of(peer, forwarded)


def error_of(exc: Exception) -> SplError:
    """Return what the client is told of a failure; a lack of descriptors passes and is no defect."""
    if isinstance(exc, SplError):
        return exc
    if isinstance(exc, OSError) and exc.errno in (errno.EMFILE, errno.ENFILE):
        return SplError("overloaded", "the daemon cannot open another file for now")
    return SplError("internal")
