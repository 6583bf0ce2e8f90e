"""What damaged lines leave behind: whether what they held is held elsewhere, as far as their bytes still tell.

A record's id stands at the start of its envelope and is the hash of the record behind it, so one damaged place leaves
at least one of the two.  Of bytes that tell neither nobody can say what was lost, and they count as lost for good.
"""

import json
import re
from typing import Final

from .core import record
from .core.errors import SplError
from .core.levels import NAMES
from .index import Index
from .recover import Damage
from .segments import Segments

_NOT_MISSED: Final = re.compile(rb'\{"k":"(?:pos|ref)",')
"""Positions and refusals: sync reads on from an earlier place, and judges anew what is offered again."""
# In canonical JSON "env" never follows "run", so no record can hold these bytes.
_STATED: Final = re.compile(rb',"run":".{32}","(env|body)":\{"id":"([0-9a-f]{64})",')
_RECORD: Final = re.compile(rb'"record":(\{.*\}),"sig":\{', re.DOTALL)
_FROM: Final = re.compile(rb'"from":"([^"]*)"')


def held_lines(index: Index, segments: Segments, damage: Damage) -> int:
    """Return how many of the lines lost at a place are held elsewhere, or are not missed; none where the index is old.

    That is an index made before the damage: what it finds may be the damaged lines themselves.
    """
    if not damage.lines or index.place(damage.seq) is not None:
        return 0
    held = 0
    for segment, at, raw, _ in segments.lines(damage.segment, damage.offset):
        if (segment, at) >= damage.end:
            break
        held += _held_in(index, damage, raw)
    return min(held, damage.lines)


def _held_in(index: Index, damage: Damage, raw: bytes) -> int:
    """Return how many lines in these bytes without line feed, mostly one, are not lost."""
    if _NOT_MISSED.match(raw):
        return 1
    held = 0
    for member, id_ in _STATED.findall(raw):
        held += _is_held(index, damage, id_.decode()) if member == b"env" else _is_shown(index, raw, id_.decode())
    return held or _is_held(index, damage, _computed_id(raw))


def _is_held(index: Index, damage: Damage, id_: str) -> bool:
    row = index.find(id_)
    return row is not None and not damage.seq <= row.seq < damage.seq + damage.lines


def _is_shown(index: Index, raw: bytes, id_: str) -> bool:
    pair = _FROM.search(raw)
    return pair is not None and any(index.is_shown(pair[1].decode("utf-8", "replace"), level, id_) for level in NAMES)


def _computed_id(raw: bytes) -> str:
    """Return the id of the record in a line, "" where it cannot be read."""
    found = _RECORD.search(raw)
    try:
        return record.record_id(json.loads(found[1])) if found else ""
    except (ValueError, KeyError, TypeError, RecursionError, SplError):
        return ""
