"""The names under which the index finds lines: lists of seqs in order of arrival, and tallies.

No other file puts such a name together.  Two lists are of one namespace, which stands in their name before a NUL that
no name holds: the records of a thread, and those of an actor.  A reader of some namespaces only is answered from these
alone, so neither the cost nor the time of its answers shows what other namespaces hold.  Rejected: to filter the list
of the whole thread, by which a tenant counted the records of another one and was held up by them.  The list of the
whole thread stays for readers of all namespaces; actors have none, for those readers can merge the namespaces.
Cost: 16 bytes for each record, and for each thread of a namespace.
"""

import json
from typing import Final

from ...core.record.record import is_reserved
from ..segments import PROJECTION, Entry

THREADS: Final = "t:"
THREADS_IN: Final = "u:"
ACTORS: Final = "a:"
NAMESPACES: Final = "n:"
POSITIONS: Final = "p:"
DAYS: Final = "d:"
REFUSALS: Final = "r:"
PROJECTIONS: Final = "x:"
KINDS: Final = "k:"
"""First letters of the lists, by what one list is of."""
RECORDS: Final = "rec"
"""The tally of all records."""

_OF_PAIR: Final = {"pos": POSITIONS, "day": DAYS, "ref": REFUSALS, PROJECTION: PROJECTIONS}

LineFacts = tuple[str, str, str, str, bool]
"""Kind, namespace, origin, voucher, own: few combinations, many rows."""


def by_thread(thread: str) -> str:
    """Return the name of the list of a thread's records."""
    return THREADS + thread


def by_thread_in(ns: str, thread: str) -> str:
    """Return the name of the list of a thread's records in one namespace; reserved threads have none."""
    return f"{THREADS_IN}{ns}\0{thread}"


def by_actor(ns: str, actor: str) -> str:
    """Return the name of the list of an actor's records in one namespace; those of reserved threads are in ""."""
    return f"{ACTORS}{ns}\0{actor}"


def by_namespace(ns: str) -> str:
    """Return the name of the list of a namespace's records, those of reserved threads not among them."""
    return NAMESPACES + ns


def refusals_of(pair_id: str) -> str:
    """Return the name of the list of a pair's refused records."""
    return REFUSALS + pair_id


def projections_of(pair_id: str) -> str:
    """Return the name of the list of what a pair's peer showed us of records it does not share in full."""
    return PROJECTIONS + pair_id


def name_in(name: str) -> str:
    """Return the thread, namespace, pair or kind that a list is of."""
    return name[2:]


def all_of(prefix: str) -> str:
    """Return the name under which the first lines of all lists are found whose names begin so.

    That is the letter, and of THREADS_IN and ACTORS the namespace as well.
    """
    if prefix[:2] in (THREADS_IN, ACTORS):
        return "names:" + prefix[: prefix.index("\0") + 1]
    return "names:" + prefix[:2]


def vouched(ns: str, voucher: str) -> str:
    """Return the name of the tally of a namespace's records that this DID vouches for."""
    return f"v:{ns}:{voucher}"


def received(ns: str, pair_id: str) -> str:
    """Return the name of the tally of a namespace's records that came over this pair."""
    return f"o:{ns}:{pair_id}"


def received_vouched(ns: str, pair_id: str, voucher: str) -> str:
    """Return the name of the tally of those that came over this pair and this DID vouches for."""
    return f"ov:{ns}:{pair_id}:{voucher}"


def lists(entry: Entry) -> list[str]:
    """Return the names of the lists that a line belongs to."""
    kind = entry.kind
    if kind == "rec" and is_offered(entry):
        ns, thread = entry.ns, entry.thread
        return [by_thread(thread), by_thread_in(ns, thread), by_actor(ns, entry.actor), by_namespace(ns)]
    if kind == "rec":
        return [by_thread(entry.thread), by_actor("", entry.actor)]
    if kind == "alt":
        return []
    if kind in _OF_PAIR:
        return [_OF_PAIR[kind] + entry.pair]
    return [KINDS + kind]


def is_offered(entry: Entry) -> bool:
    """Return whether a record is in the list of its namespace; those of reserved threads never leave through sync."""
    return bool(entry.ns) and not is_reserved(entry.thread)


def tallies(kind: str, ns: str, origin: str, voucher: str) -> list[str]:
    """Return the names of the tallies of such lines; the first counts the lines that are not offered, too."""
    if kind == PROJECTION:
        return [PROJECTION]
    if kind != "rec":
        return []
    names = [RECORDS, vouched(ns, voucher)]
    return names if origin == "local" else [*names, received(ns, origin), received_vouched(ns, origin, voucher)]


def projection_name(pair: str, level: str, id_: str) -> str:
    """Return the name under which one projection is found."""
    return f"shown:{pair}:{level}:{id_}"


def clock_name(ns: str, actor: str, thread: str) -> str:
    """Return the name under which the clocks of an actor's records on a thread are kept."""
    return f"clock:{len(ns)}:{len(actor)}:{ns}{actor}{thread}"


def facts_name(facts: LineFacts) -> str:
    """Return the name under which the first line with these facts is found."""
    return "facts:" + json.dumps(facts)
