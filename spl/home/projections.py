"""Projections as they are read: what a peer claims of records that it does not share in full.

They are stored under their pair, apart from records.  Reading leaves out what is known better by now: a claim
whose record we hold, and one of a coarser level than the peer gives at present, because what it gave since the level
was raised says all that and more.  What was shown is not recalled: a claim stays when its grant is lowered or ends.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from ..core import consent
from ..core.consent import Inbound
from ..core.pair.pair import Pair
from ..core.record.levels import NAMES, STRUCTURAL
from ..core.value import Json, dataclass
from .log import Log
from .segments import PROJECTION
from .tables.lists import projections_of
from .views import Views

SCAN_ROWS_MAX: Final = 10_000  # looked at for one page; the next one goes on there
_CHUNK_ROWS: Final = 256


@dataclass(frozen=True, slots=True)
class Claim:
    """One projection; `id` is the record's at L1, else a pseudonym, and `ns` our namespace, `peer_ns` the peer's."""

    seq: int
    id: str
    level: int
    ns: str
    peer_ns: str
    by: str
    record: Mapping[str, Any]

    def to_json(self) -> Json:
        """Return the claim for people, marked as such, so that it is not taken for a record."""
        return {
            "object": "projection", "claimed_by": self.by, "id": self.id, "level": NAMES[self.level],
            "namespace": self.ns, "peer_namespace": self.peer_ns, "sequence": self.seq, **self.record,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Claims:
    """A page of claims, oldest first; `after` is where the next one begins, None at the end."""

    found: list[Claim]
    after: int | None


def read(
    store: Log, views: Views, pair: Pair, namespace: str, after: int, limit: int,
    reaches: Callable[[str], bool] = lambda ns: True,
) -> Claims:  # fmt: skip
    """Return up to `limit` claims of a pair with a higher seq, of one of our namespaces or all that the reader reaches.

    One call looks at 10,000 lines at most, so a page may hold few claims, or none, and still have a next one.
    """
    inbound = consent.inbound(pair, consent.grants_of(views.consents, pair), views.namespaces)
    found: list[Claim] = []
    for _ in range(0, SCAN_ROWS_MAX, _CHUNK_ROWS):
        rows = store.index.after(projections_of(pair.pair_id), after, _CHUNK_ROWS)
        mine = [row for row in rows if row.kind == PROJECTION and namespace in ("", row.ns) and reaches(row.ns)]
        for row, payload in store.read(mine):
            claim = _claim(row.seq, row.ns, payload)
            if _is_the_best(store, inbound, claim):
                if len(found) == limit:
                    return Claims(found, found[-1].seq)
                found.append(claim)
        if len(rows) < _CHUNK_ROWS:
            return Claims(found, None)
        after = rows[-1].seq
    return Claims(found, after)


def _claim(seq: int, ns: str, payload: bytes) -> Claim:
    value = json.loads(payload)
    mark = value["projection"]
    return Claim(seq, value["id"], NAMES.index(mark["level"]), ns, mark["ns"], mark["by"], value["record"])


def _is_the_best(store: Log, inbound: Mapping[str, Inbound], claim: Claim) -> bool:
    """Return whether nothing better is held, or was given since."""
    allowed = inbound.get(claim.peer_ns)
    if allowed is not None and claim.level > allowed.level:
        return False
    return claim.level != STRUCTURAL or store.index.find(claim.id, claim.ns) is None
