"""What a token may read: the records of its namespaces, and of what lies outside of them not even that it exists."""

import asyncio

from ..auth import Principal
from ..core import fold
from ..index import Row
from ..states import Standing
from .answers import is_admin
from .services import Services


def may_read(row: Row, principal: Principal) -> bool:
    """Tell whether the principal may read a record; those of the daemon's own threads have no namespace."""
    return principal.reaches(row.ns) or (not row.ns and is_admin(principal))


async def standing(services: Services, thread: str, principal: Principal) -> Standing:
    """Return how many records of a thread the token may read, and the sequence of the newest of them.

    For a token that is bound to namespaces; read off the loop, and from where the last such question ended.
    """
    to_seq, found = services.store.last_seq, Standing(fold.begin(fold.DEFAULT), read_seq=-1)
    names = frozenset(principal.namespaces)
    while found.read_seq < to_seq:
        found = await asyncio.wrap_future(services.states.read_on(thread, fold.DEFAULT, names, to_seq))
    return found
