"""What a thread comes to: the value of the fold rule that covers it."""

import asyncio
from typing import Final

from ..auth import Principal
from ..core import fold, record
from ..core.errors import SplError
from ..core.fold import FoldRule
from ..net.routes import Request, Response
from ..states import Standing
from .answers import is_admin, json_response
from .services import Services

PIECES_MAX: Final = 8000
"""Read for one request: two million records, some fifteen seconds; whoever asks again goes on from there."""


async def of_thread(request: Request, principal: Principal, services: Services) -> Response:
    """GET /v1/threads/{thread}/state: {fold, field, rule, value, complete, records, sequence}.

    Of the records that the token may read, up to the newest one when asked.  An unknown thread, an empty one, and one
    whose records lie outside the token's namespaces answer the same.  The daemon's own threads are for admin.
    """
    thread = request.params["thread"]
    rule = fold.rule_for(services.views.fold_rules, thread)
    reserved = record.is_reserved(thread)
    found = Standing(fold.begin(rule))
    if not reserved or is_admin(principal):
        namespaces = frozenset[str]() if reserved else frozenset(principal.namespaces)
        found = await _read(services, thread, rule, namespaces)
    value = fold.value_of(rule, found.state, services.states.body_at)
    return json_response({
        "object": "state", "thread": thread, "fold": rule.fold, "field": rule.field or None, "rule": rule.name or None,
        "value": value, "complete": fold.is_complete(found.state), "records": found.records,
        "sequence": found.sequence,
    })  # fmt: skip


async def _read(services: Services, thread: str, rule: FoldRule, namespaces: frozenset[str]) -> Standing:
    """Return the state of now; raise "overloaded" where that takes more than one request may have."""
    to_seq = services.store.last_seq
    for _ in range(PIECES_MAX):
        found = await asyncio.wrap_future(services.states.read_on(thread, rule, namespaces, to_seq))
        if found.read_seq >= to_seq:
            return found
    raise SplError("overloaded", "the thread is not yet read to its end", hint="ask again: what was read is kept")
