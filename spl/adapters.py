"""The adapters: what runs for each write once it is durable, one after the other on the writer's thread, and its cost.

The views come first, then whoever listens: the services that wake their readers.  Their time is part of what an emit
waits for, so none may block; what each takes a record is kept for five minutes, for `spl status`.
"""

from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from .core.recent import Costs

VIEWS: Final = "views"
ALL: Final = "all"

_C = TypeVar("_C")


class Adapters(Generic[_C]):
    """Those of one hub.  The writer's thread runs and measures them; any thread may ask.

    `steady_ns` is a clock that never jumps.  An adapter is named after the module of its callback.
    """

    def __init__(self, *, now_ms: Callable[[], int], steady_ns: Callable[[], int]) -> None:
        self._now_ms, self._steady_ns = now_ms, steady_ns
        self._listeners: tuple[tuple[str, Callable[[_C], None]], ...] = ()
        self._costs: dict[str, Costs] = {}
        self._mark_ns = self._sum_ns = 0

    def listen(self, callback: Callable[[_C], None]) -> Callable[[], None]:
        """Run `callback` for each write from now on.  Returns the way to stop it."""
        listener = (str(callback.__module__).rpartition(".")[2], callback)
        self._listeners = (*self._listeners, listener)

        def stop() -> None:
            self._listeners = tuple(item for item in self._listeners if item is not listener)

        return stop

    def begin(self) -> None:
        """Measure from here; a write begins."""
        self._mark_ns, self._sum_ns = self._steady_ns(), 0

    def passed(self, name: str, records: int) -> None:
        """Count the time since the last call as what this adapter took for so many records."""
        now_ns = self._steady_ns()
        took_ns, self._mark_ns = now_ns - self._mark_ns, now_ns
        self._sum_ns += took_ns
        self._count(name, took_ns, records)

    def tell(self, write: _C, records: int) -> None:
        """Run every listener for a write of so many records."""
        self._mark_ns = self._steady_ns()
        for name, callback in self._listeners:
            callback(write)
            self.passed(name, records)
        self._count(ALL, self._sum_ns, records)

    def summary(self) -> dict[str, Any]:
        """Return count, p99_ms (a record, all adapters together; None without records), records, and the slowest one.

        Of the last five minutes; `slowest` is the adapter of the highest p99, "" without records.
        """
        now_ms = self._now_ms()
        found = {name: costs.percentile_us(99, now_ms) for name, costs in self._costs.copy().items()}
        p99_us = found.pop(ALL, None)
        slowest = max(found, key=lambda name: found[name] or 0, default="")
        return {
            "count": len({VIEWS, *(name for name, _ in self._listeners)}),
            "p99_ms": None if p99_us is None else p99_us / 1000,
            "records": self._costs[ALL].records(now_ms) if ALL in self._costs else 0,
            "slowest": slowest if p99_us is not None else "",
        }

    def _count(self, name: str, took_ns: int, records: int) -> None:
        costs = self._costs.get(name)
        if costs is None:
            costs = self._costs[name] = Costs()
        costs.add(took_ns // (1000 * records), records, self._now_ms())
