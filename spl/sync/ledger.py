"""What was refused of the records of each pair, and when it is worth asking for again.

The log keeps the list (`Refuse` lines); this file keeps what one process must know beside it.  The list is asked for
once per process, after a chain was learnt, and after the inbound rules changed, until the peer has given what it has.
A peer that pushes is told the ids in its answers, the same ones until it has answered them: an answer may be lost, or
the peer may leave before it acts on it.  Rejected: to ask again at every pull, because what is refused for good then
travels for ever.

It holds limits.refused_per_pair ids.  In a full one, a line without an id says that more was refused for that cause;
comparisons find which records these are.

What a pull passed over, because the way does not carry it, stands in the same lines under a code of its own: it is
fetched with each comparison, and asked for in no other way, or it would fail what is asked for beside it.  Of two lines
with one id the later one counts.

Beside the ledger stands what our pushes passed over.  That list is kept in the vault, so that it is shown and tried
after a restart too; each comparison corrects it.
"""

import asyncio
import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

from ..core.backoff import Backoff
from ..core.consent import Inbound
from ..core.errors import SplError
from ..core.gate import SCOPE_VIOLATION
from ..core.limits import Limits
from ..core.record.levels import NAMES, STRUCTURAL
from ..core.record.record import is_id
from ..core.value import dataclass, field
from ..home.index import Row
from ..home.tables.lists import refusals_of
from ..home.vault import Vault
from ..home.writer import Writer
from ..home.writes import Refuse
from .peer import WITHHELD, WITHHELD_NOTE

WANTED_ANSWERS_MAX: Final = 8
"""Consecutive push answers that may request the same ids."""

TRIES_MAX: Final = 3
"""Pushes of a single record that fail before it is passed over, unless its size is refused."""
WITHHELD_MAX: Final = 900
"""Of one pair, as many as a secret holds.  Beyond it a push fails at the next one, as a peer may refuse all we have."""
AGAIN_S: Final = 60.0
AGAIN_MAX_S: Final = 3600.0

InboundByName = Mapping[str, Inbound]
"""What a pair may bring in, by the peer's name of the namespace."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """What was refused and is still lacking: ids to ask for, oldest first, and the peer's namespaces to read again.

    From L2 on a projection has a pseudonym, by which nothing can be asked for.  `awaited` are those of the ids that are
    no longer out of scope here.  `withheld` did not come through, and was not refused.
    """

    ids: list[str]
    namespaces: list[str]
    awaited: frozenset[str]
    withheld: tuple[str, ...] = ()


@dataclass(slots=True)
class _Debt:
    """What this process knows of the refused records of one pair."""

    had: bool = False
    """The ledger was not empty when this reading began."""
    owed: bool = False
    """Refused records may be sound now, or the peer may give them again: a chain, a level."""
    inbound: InboundByName | None = None
    """What the pair could bring in when the ledger was last asked for; None before the first time."""
    owings: int = 0
    """How often that was said."""
    asked: tuple[str, ...] = ()
    tried: set[str] = field(default_factory=set)
    """Ids that a pushing peer was told, and answered with what it has of them."""
    answers: int = 0


@dataclass(slots=True)
class _Named:
    """The lines of a pair under WITHHELD by id, up to the line `seq`; `count` is how many the ledger had then."""

    count: int = 0
    seq: int = 0
    entries: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(slots=True)
class _Passed:
    """What the way to one peer does not carry."""

    again: Backoff
    tries: dict[str, int] = field(default_factory=dict)
    """How often a record failed as the only one of a push."""
    ids: set[str] = field(default_factory=set)
    saved: frozenset[str] = frozenset()
    """What of it is on the disk."""
    due_s: float = 0.0


class Withheld:
    """Records that the way to a peer does not carry even alone; they are tried again from time to time."""

    def __init__(self, vault: Vault, random_bytes: Callable[[int], bytes]) -> None:
        self._vault, self._random_bytes = vault, random_bytes
        self._passed: dict[str, _Passed] = {}
        for name in vault.names(WITHHELD_NOTE):
            passed = self._of(name.removeprefix(WITHHELD_NOTE))
            passed.ids = set(filter(is_id, (vault.get(name) or "").split()))
            passed.saved = frozenset(passed.ids)

    async def save(self, pair_id: str) -> None:
        """Keep the list of a pair on the disk; if the disk refuses, the next comparison finds it again."""
        passed = self._passed.get(pair_id)
        if passed is None or passed.ids == passed.saved:
            return
        ids, name = frozenset(passed.ids), WITHHELD_NOTE + pair_id
        with suppress(SplError):
            if ids:
                await asyncio.to_thread(self._vault.put, name, "\n".join(sorted(ids)))
            else:
                await asyncio.to_thread(self._vault.delete, name)
            passed.saved = ids

    def ids(self, pair_id: str) -> tuple[str, ...]:
        """Return what is withheld from a pair, ascending."""
        passed = self._passed.get(pair_id)
        return tuple(sorted(passed.ids)) if passed is not None else ()

    def failed(self, pair_id: str, id_: str, *, for_size: bool) -> bool:
        """Count a push of this record alone that failed; return whether it may be passed over.

        It may if it was tried often enough, or its size was refused, and there is room for it.
        """
        passed = self._of(pair_id)
        passed.tries[id_] = passed.tries.get(id_, 0) + 1
        has_room = id_ in passed.ids or len(passed.ids) < WITHHELD_MAX
        return has_room and (for_size or passed.tries[id_] >= TRIES_MAX)

    def add(self, pair_id: str, id_: str) -> None:
        """Record that a record was passed over."""
        self._of(pair_id).ids.add(id_)

    def end(self, pair_id: str, ids: Iterable[str]) -> None:
        """Record that these records arrived, or are not offered any more."""
        passed = self._passed.get(pair_id)
        if passed is not None:
            for id_ in ids:
                passed.ids.discard(id_)
                passed.tries.pop(id_, None)

    def settle(self, pair_id: str, lacking: Container[str]) -> None:
        """Record what the peer lacks, by a comparison: anything else is withheld no longer."""
        self.end(pair_id, [id_ for id_ in self.ids(pair_id) if id_ not in lacking])

    def due(self, pair_id: str, now_s: float) -> tuple[str, ...]:
        """Return what is to be tried again now; the first time is a minute away, later ones up to an hour."""
        passed = self._passed.get(pair_id)
        if passed is None or not passed.ids:
            if passed is not None and not passed.saved:
                del self._passed[pair_id]
            return ()
        first = not passed.again.attempt
        if not first and now_s < passed.due_s:
            return ()
        passed.due_s = now_s + passed.again.failed()
        return () if first else self.ids(pair_id)

    def _of(self, pair_id: str) -> _Passed:
        return self._passed.setdefault(pair_id, _Passed(Backoff(self._random_bytes, AGAIN_S, AGAIN_MAX_S)))


class RefusedLedger:
    """The refused records of all pairs; `pool` reads the log."""

    def __init__(self, writer: Writer, limits: Limits, pool: ThreadPoolExecutor) -> None:
        self._writer, self._limits, self._pool = writer, limits, pool
        self._debts: dict[str, _Debt] = {}
        self._named: dict[str, _Named] = {}

    def begin(self, pair_id: str) -> None:
        """Record that a reading of the peer starts."""
        self._debt(pair_id).had = self.holds(pair_id)

    def holds(self, pair_id: str) -> bool:
        """Return whether anything of the pair was ever refused."""
        return bool(self._writer.views.refused.get(pair_id))

    def is_full(self, pair_id: str) -> bool:
        """Return whether nothing more that is refused of the pair is kept."""
        return self._writer.views.refused.get(pair_id, 0) >= self._limits.refused_per_pair

    def owe(self, pair_id: str) -> None:
        """Record that the peer may give refused records again, or that they may be sound now."""
        debt = self._debt(pair_id)
        debt.owed, debt.owings = True, debt.owings + 1

    def owings(self, pair_id: str) -> int:
        """Return how often `owe` was said: what is said while a debt is paid is another debt."""
        return self._debt(pair_id).owings

    def owes(self, pair_id: str, inbound: InboundByName) -> bool:
        """Return whether refused records are worth asking for under these rules."""
        debt = self._debt(pair_id)
        return debt.owed or (debt.had and debt.inbound != inbound)

    def withheld(self, pair_id: str, inbound: InboundByName) -> tuple[str, ...]:
        """Return the ids of what the way from the peer did not carry, and we still lack; at most WITHHELD_MAX.

        Each of the ledger's lines is read once: a peer whose records are refused one by one adds a thousand.
        """
        count, named = self._writer.views.refused.get(pair_id, 0), self._named.setdefault(pair_id, _Named())
        if named.count != count:
            rows = self._rows(pair_id, named.seq)
            for each in self._entries(rows):
                named.entries.pop(each["id"], None)
                if each["code"] == WITHHELD and len(named.entries) < WITHHELD_MAX:
                    named.entries[each["id"]] = each
            named.count, named.seq = count, rows[-1].seq if rows else named.seq
        return tuple(id_ for id_, each in named.entries.items() if not self._holds(each, inbound))

    async def passed(self, pair_id: str, inbound: InboundByName, names: Mapping[str, str]) -> list[Refuse]:
        """Return the lines for what a page only named, by the peer's namespaces, as far as we do not know it."""
        ledger, index = await self.read(pair_id, inbound), self._writer.store.index
        known = {*ledger.ids, *ledger.withheld}
        return [
            Refuse(pair_id, id_, WITHHELD, ns)
            for id_, ns in names.items()
            if id_ not in known and ns in inbound and index.find(id_, inbound[ns].ns) is None
        ]

    async def read(self, pair_id: str, inbound: InboundByName) -> Ledger:
        """Return what was refused of a pair and is still lacking."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._read, pair_id, inbound)

    def settle(self, pair_id: str, inbound: InboundByName, *, owed: bool = False) -> None:
        """Record that the ledger was asked for under these rules; `owed`: the peer may give more later."""
        debt = self._debt(pair_id)
        debt.inbound, debt.owed, debt.asked, debt.answers = inbound, owed, (), 0
        debt.tried.clear()

    def answered(self, pair_id: str) -> None:
        """Record that a pushing peer sent what it has of the ids that it was told."""
        debt = self._debt(pair_id)
        debt.tried.update(debt.asked)
        debt.answers = 0

    async def wanted(self, pair_id: str, inbound: InboundByName) -> tuple[str, ...]:
        """Return the ids that a pushing peer is asked for; settle the ledger when there are no more."""
        if not self.owes(pair_id, inbound):
            return ()
        debt = self._debt(pair_id)
        lacking = (await self.read(pair_id, inbound)).ids
        ids = [id_ for id_ in lacking if id_ not in debt.tried][: self._limits.fetch_ids]
        debt.answers += 1
        if not ids or debt.answers > WANTED_ANSWERS_MAX:
            self.settle(pair_id, inbound)
            return ()
        debt.asked = tuple(ids)
        return debt.asked

    def _read(self, pair_id: str, inbound: InboundByName) -> Ledger:
        index = self._writer.store.index
        ids, namespaces, awaited, withheld = list[str](), dict[str, None](), set[str](), list[str]()
        for id_, entry in {each["id"]: each for each in self._entries(self._rows(pair_id, 0))}.items():
            ns = entry.get("ns", "")
            projected = any(index.has_projection(pair_id, level, id_) for level in NAMES[STRUCTURAL:])
            if projected or self._holds(entry, inbound):
                continue
            if entry["code"] == WITHHELD:
                withheld.append(id_)
                continue
            enters = entry["code"] == SCOPE_VIOLATION and ns in inbound
            if enters and inbound[ns].level > STRUCTURAL:
                namespaces[ns] = None
                continue
            ids.append(id_)
            if enters:
                awaited.add(id_)
        return Ledger(ids, list(namespaces), frozenset(awaited), tuple(withheld))

    def _rows(self, pair_id: str, after: int) -> list[Row]:
        """Return the lines of a pair that follow one."""
        name, index = refusals_of(pair_id), self._writer.store.index
        return index.after(name, after, index.count(name))

    def _entries(self, rows: Sequence[Row]) -> Iterator[dict[str, str]]:
        """Return what lines say."""
        return (each for each in map(json.loads, self._writer.store.payloads(rows)) if each["id"])

    def _holds(self, entry: Mapping[str, str], inbound: InboundByName) -> bool:
        """Return whether we hold the record of a line in a namespace that it would enter."""
        ns = entry.get("ns", "")
        entered = [inbound[ns]] if ns in inbound else inbound.values()
        return any(self._writer.store.index.find(entry["id"], each.ns) is not None for each in entered)

    def _debt(self, pair_id: str) -> _Debt:
        return self._debts.setdefault(pair_id, _Debt())
