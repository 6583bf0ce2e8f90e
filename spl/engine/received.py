"""How far a reader of the engine has come in our feed, by the ids of the last records that it holds.

Our cursors are sealed, so a reader of a stream cannot make one: it names the last record that it has of each namespace,
all before it being held, and gets the cursor that a pull would have led to.  An id shows nothing to somebody who does
not have the record, and no sequence goes out.  A reader that names a false id loses records only for itself.
"""

from collections.abc import Mapping
from typing import Any, Final

from ..core.record.levels import EXACT
from ..core.record.record import is_id
from ..home.tables.lists import by_namespace
from ..sync.lanes import LaneScan
from ..sync.scope import SCAN_ROWS, LogView, Steps, tally_of
from ..sync.source import Query, Source

BEHIND_ROWS: Final = 4096
"""A reader that is no further behind is counted from the end, which takes as many rows; others from where they were."""
SCANS_MAX: Final = 10
"""Of SCAN_ROWS each in one answer; the next one goes on from there."""
TRIES: Final = 3


def reached(source: Source, pair_id: str, since: str, received: Mapping[str, Any]) -> Steps[str]:
    """Return the cursor that `since` becomes with what was received: the peer's last record id of each namespace.

    A namespace that the pair does not share in full, or an unknown id, changes nothing.  Reads the log, and yields
    between steps of some milliseconds.  Raises as `Source.open` does.
    """
    view, cursor = source.open(pair_id, Query(since=since))
    if cursor is None or cursor.whole or pair_id in source.rollbacks:
        return since
    scans, scope = source.scans(view, Query(since=since), cursor), view.scope
    names = {scope.key(ns): ns for ns, share in scope.shares.items() if share.level == EXACT}
    for scan in scans:
        ns = names.get(scan.key, "")
        id_ = received.get(ns)
        row = view.index.find(id_, ns) if ns and isinstance(id_, str) and is_id(id_) else None
        if row is not None and scan.sent_to < row.seq <= view.last_seq and scope.admits(row):
            yield from _move(view, scan, ns, row.seq)
    return source.next_cursor(pair_id, since, cursor, scans, False)[0]


def _move(view: LogView, scan: LaneScan, ns: str, seq: int) -> Steps[None]:
    """Move a lane on to a row, with the count of the records up to it."""
    yield
    if view.scope.tallied and (count := _count_from_end(view, ns, seq)) is not None:
        scan.sent_to, scan.count = seq, count
        return
    at = scan.sent_to
    for _ in range(SCANS_MAX):
        rows = view.after(scan.lists, at, SCAN_ROWS)
        for row, visible, _ in view.judged(rows):
            if row.seq > seq:
                return
            if visible:
                scan.sent_to, scan.count = row.seq, scan.count + view.scope.counts(row)
        if not rows:
            return
        at = rows[-1].seq
        yield


def _count_from_end(view: LogView, ns: str, seq: int) -> int | None:
    """Return how many records lie up to a row, by those behind it; None if those are many, or more come meanwhile."""
    scope = view.scope
    for _ in range(TRIES):
        total = tally_of(view.index, scope, ns)
        rows = view.index.after(by_namespace(ns), seq, BEHIND_ROWS + 1)
        if len(rows) > BEHIND_ROWS:
            return None
        if total == tally_of(view.index, scope, ns):
            return total - sum(scope.admits(row) and scope.counts(row) for row in rows)
    return None
