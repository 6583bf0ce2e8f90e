"""The names of the index's lists and tallies."""

from typing import Final

from ..core.record.record import is_reserved
from .segments import PROJECTION, Entry

_OF_PAIR: Final = {"pos": "p:", "ref": "r:", PROJECTION: "x:"}


def lists(entry: Entry) -> list[str]:
    """Return the names of the lists that a line belongs to."""
    kind = entry.kind
    if kind == "rec":
        names = [f"t:{entry.thread}", f"a:{entry.actor}"]
        return [*names, f"n:{entry.ns}"] if is_offered(entry) else names
    if kind == "alt":
        return []
    if kind in _OF_PAIR:
        return [_OF_PAIR[kind] + entry.pair]
    return [f"k:{kind}"]


def is_offered(entry: Entry) -> bool:
    """Tell whether a record is in an n: list; those of reserved threads never leave through sync."""
    return bool(entry.ns) and not is_reserved(entry.thread)


def has_start(entry: Entry) -> bool:
    """Tell whether the start of a line's id stands in its row: where what two sides hold is compared."""
    return entry.kind == PROJECTION or (entry.kind == "rec" and is_offered(entry))


def tallies(kind: str, ns: str, origin: str, voucher: str) -> list[str]:
    """Return the names of the tallies of such lines; the first counts the lines that are not offered, too."""
    if kind == PROJECTION:
        return [PROJECTION]
    if kind != "rec":
        return []
    names = ["rec", f"v:{ns}:{voucher}"]
    return names if origin == "local" else [*names, f"o:{ns}:{origin}", f"ov:{ns}:{origin}:{voucher}"]


def clock_name(actor: str, thread: str) -> str:
    """Return the name under which the clocks of an actor's records on a thread are kept."""
    return f"clock:{len(actor)}:{actor}{thread}"


def shown_name(pair: str, level: str, id_: str) -> str:
    """Return the name under which one projection is found."""
    return f"shown:{pair}:{level}:{id_}"
