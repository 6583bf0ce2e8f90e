"""Queries with a filter, for programs: `POST /v1/records/query` in the form of the public SDK's `rich_query`.

A filter that no list of the index answers is held against every record that the principal may read, so a query has a
budget: what it reads and what it tests is counted in steps, and beyond it is refused, for a shorter answer would look
like a whole one.  It is read in the turns of the searches.  First only the rows of what was found are kept; then their
records are sent as those of any list.
"""

import json
from collections.abc import Generator, Iterable
from typing import Any, Final

from ..core import query as filters
from ..core.errors import SplError
from ..core.query import Cost, RecordFilter
from ..core.value import Json, dataclass, replace
from ..home.index import Row
from ..home.tables.lists import by_namespace
from ..net.routes import Request, Response
from .answers import field_error, members, positions
from .auth import Principal
from .lists import LIMIT_DEFAULT, LIST_END, SCAN_ROWS, Wanted, all_lists, answered, batches, pieces_of, thread_lists
from .services import Services

OFFSET_MAX: Final = 10_000
"""Rows before the first one wanted are kept, too, while records are sorted."""
QUERY_STEPS: Final = 20_000_000
"""Of one query: some 250,000 records of 200 bytes of body, in six to ten seconds of its turns."""
STEP_COST: Final = 10_000
"""What one turn takes: some milliseconds."""
ROW_COST: Final = 4
RECORD_COST: Final = 10
BYTES_PER_STEP: Final = 16

_MEMBERS: Final = {"filter": dict, "thread": str, "sort": dict, "limit": int, "offset": int, "explain": bool}


@dataclass(frozen=True, slots=True)
class _Asked:
    """One query: its filter, the index's lists that hold what it may find, and the part of it that is wanted.

    `order` is 1 or -1 for ascending and descending clocks, 0 for the order of arrival.
    """

    query: RecordFilter
    lists: tuple[str, ...]
    indexed: tuple[str, ...]
    order: int
    offset: int
    limit: int

    @property
    def count(self) -> int:
        """How many records are to be found."""
        return self.offset + self.limit


async def rich_query(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/records/query {filter, thread?, sort?: {clock: 1 or -1}, limit?, offset?, explain?}: a list of records.

    With `explain` the answer has a `plan`: the fields that the index answers, all fields, and what the query cost.
    """
    body = members(request, _MEMBERS)
    asked, cost = _asked(body, principal, services), Cost(QUERY_STEPS)
    wanted = Wanted(services.store, principal, positions(principal, services))
    rows = await services.searches.run(principal, _found(asked, wanted, cost))
    end = LIST_END
    if body.get("explain"):
        plan = {"indexed": asked.indexed, "fields": asked.query.fields(), "steps": cost.spent, "steps_max": cost.steps}
        end = b'],"plan":%b}' % json.dumps(plan, ensure_ascii=False).encode()
    return await answered(pieces_of(wanted, rows, asked.limit), principal, services, end)


async def search(request: Request, principal: Principal, services: Services) -> Response:
    """POST /v1/records/search: by meaning, which no part of this daemon can judge; the SDK reads 503 as `disabled`."""
    raise SplError("embeddings-disabled")


def _asked(body: dict[str, Any], principal: Principal, services: Services) -> _Asked:
    """Return the query in a request's body; raise "bad-field", which names what is not known."""
    if "filter" not in body:
        raise field_error("filter", "is missing; {} matches every record")
    wanted = body["filter"]
    if "thread" in body:
        wanted = {"$and": [{"thread": body["thread"]}, wanted]}
    query = filters.parse(wanted)
    limit = _between("limit", body.get("limit", LIMIT_DEFAULT), 1, services.limits.query_records)
    offset = _between("offset", body.get("offset", 0), 0, OFFSET_MAX)
    asked = _Asked(query, (), (), _order(body.get("sort", {})), offset, limit)
    thread, actor, namespace = map(query.fixed, ("thread", "actor", "namespace"))
    if thread is not None:
        return replace(asked, lists=tuple(thread_lists(thread, principal)), indexed=("thread",))
    if namespace is not None and actor is None:
        within = (by_namespace(namespace),) if principal.reaches(namespace) else ()
        return replace(asked, lists=within, indexed=("namespace",))
    every = tuple(all_lists(actor, principal, services))
    return replace(asked, lists=every, indexed=() if actor is None else ("actor",))


def _between(name: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise field_error(name, f"must be a number from {low} to {high}")
    return value


def _order(sort: Json) -> int:
    for name, order in sort.items():
        if name != "clock":
            raise field_error(
                "sort", f"cannot sort by {name[:40]!r}; records are sorted by clock, or by arrival without a sort"
            )
        if order not in (1, -1) or isinstance(order, bool):
            raise field_error("sort", "clock is 1, for the lowest first, or -1")
        return int(str(order))
    return 0


def _found(asked: _Asked, wanted: Wanted, cost: Cost) -> Generator[None, None, list[Row]]:
    """Return the rows of what was found, in the order asked for; yield between the steps."""
    kept, (low, high), seq, due = list[Row](), asked.query.clocks(), 0, STEP_COST
    while page := wanted.store.index.after_any(asked.lists, seq, SCAN_ROWS):
        seq = page[-1].seq
        cost.spend(ROW_COST * len(page))
        for batch in batches(row for row in wanted.rows(page) if low <= row.clock <= high):
            for row, item in wanted.forms(batch):
                cost.spend(RECORD_COST + row.length // BYTES_PER_STEP)
                if asked.query.holds({**item, "namespace": row.ns}, cost):
                    kept.append(row)
                if cost.spent >= due:
                    due = cost.spent + STEP_COST
                    yield
            if not asked.order and len(kept) >= asked.count:
                return kept[asked.offset : asked.count]
            if asked.order and len(kept) >= 2 * asked.count:
                kept = _first(kept, asked)
                low, high = (low, kept[-1].clock) if asked.order > 0 else (kept[-1].clock, high)
        if cost.spent >= due:
            due = cost.spent + STEP_COST
            yield
    return _first(kept, asked)[asked.offset :]


def _first(rows: Iterable[Row], asked: _Asked) -> list[Row]:
    """Return the rows that come first in the order asked for, as many as are to be found."""
    ordered = sorted(rows, key=lambda row: (row.clock, row.seq), reverse=asked.order < 0) if asked.order else list(rows)
    return ordered[: asked.count]
