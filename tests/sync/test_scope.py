"""Who may see what: rows of a scope, ids that are found, ranges known to be empty, and counts in agreement."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from spl.core.consent import Outbound
from spl.core.record.cursor import lane_key
from spl.core.record.filter import OPEN, PairFilter
from spl.home.index import Index, Row
from spl.home.tables.lists import by_namespace, by_thread_in
from spl.sync.scope import EmptyRanges, LogView, Scope, find

SHARES = {ns: Outbound(ns, ns, 0) for ns in "ab"}
SCOPE = Scope(SHARES, (OPEN,), frozenset({"pair_1"}), "did:peer", "did:us")
RULE = PairFilter(thread_rule='record.thread == "shown"')
OWN_ONLY = PairFilter(relay=False)
FILTERS = (OPEN, OWN_ONLY, RULE, PairFilter(thread_allow=("shown",), relay=False))
Fact = tuple[str, str, str, int, str]  # namespace, origin, voucher, size, thread


@dataclass
class Rows:
    """An index over a list of rows: the queries that an offer asks, answered by viewing at all."""

    rows: list[Row] = field(default_factory=list)
    threads: list[str] = field(default_factory=list)
    looked: int = 0

    @property
    def covered(self) -> int:
        return len(self.rows)

    def after(self, name: str, seq: int, limit: int) -> list[Row]:
        return self.after_any([name], seq, limit)

    def after_any(self, names: Sequence[str], seq: int, limit: int) -> list[Row]:
        rows = zip(self.rows, self.threads, strict=True)
        found = [
            row for row, thread in rows
            if row.seq > seq and not {by_namespace(row.ns), by_thread_in(row.ns, thread)}.isdisjoint(names)
        ][:limit]  # fmt: skip
        self.looked += len(found)
        return found

    def count(self, name: str) -> int:
        return len(self.after(name, 0, 10**9))

    def tally(self, name: str) -> int:
        kind, ns, *rest = name.split(":", 2)
        tests: dict[str, Callable[[Row], bool]] = {
            "v": lambda row: row.voucher == rest[0],
            "o": lambda row: row.origin == rest[0],
            "ov": lambda row: rest[0] == f"{row.origin}:{row.voucher}",
        }
        return sum(row.ns == ns and tests[kind](row) for row in self.rows)

    def read(self, rows: Sequence[Row]) -> list[tuple[Row, bytes]]:
        return [(row, json.dumps({"record": {"thread": self.threads[row.seq - 1]}}).encode()) for row in rows]


def rows_of(facts: Sequence[Fact]) -> Rows:
    rows = [Row(seq, "rec", 1, 0, size, ns, origin, voucher, False, 0)
            for seq, (ns, origin, voucher, size, _) in enumerate(facts, 1)]  # fmt: skip
    return Rows(rows, [fact[4] for fact in facts])


def view_of(index: Rows, scope: Scope = SCOPE, last_seq: int = 10**9, *, whole: bool = False) -> LogView:
    return LogView(cast(Index, index), index.read, scope, last_seq, EmptyRanges(), whole)


def wanted(view: LogView, index: Rows) -> list[int]:
    """Return what a reading must give, by the definition."""
    scope = view.scope
    return [
        row.seq
        for row, thread in zip(index.rows, index.threads, strict=True)
        if row.ns in scope.shares
        and row.seq > scope.floor
        and scope.filter.admits({"thread": thread}, row.voucher != scope.own_did)
        and (view.whole or (row.origin not in scope.origins and row.voucher != scope.peer_did))
    ]


ORIGINS = ["local", "pair_1", "pair_2"]
VOUCHERS = ["did:us", "did:peer", "did:other"]
FACTS = st.lists(
    st.tuples(
        st.sampled_from("abc"), st.sampled_from(ORIGINS), st.sampled_from(VOUCHERS), st.integers(1, 100),
        st.sampled_from(["shown", "hidden"]),
    ),
    max_size=60,
)  # fmt: skip


def test_the_key_of_a_full_lane_is_that_of_older_cursors() -> None:
    assert SCOPE.key("a") == lane_key("a")


def test_ids_below_l1_are_not_found() -> None:
    class Named(Rows):
        def copies(self, id_: str) -> Iterator[Row]:
            return (row for row in self.rows if str(row.seq) == id_)

    facts: list[Fact] = [(ns, "local", "did:us", 1, thread) for ns in "abc" for thread in ("shown", "hidden")]
    made = rows_of(facts)
    index = Named(made.rows, made.threads)
    for level, expected in ((0, ["1", "3"]), (1, ["1", "3"]), (2, ["3"]), (3, ["3"])):
        shares = {"a": Outbound("a", "a", level), "b": Outbound("b", "b", 0)}
        view = view_of(index, replace(SCOPE, shares=shares, filters=(RULE,)))
        assert [str(row.seq) for row in find(view, [str(n) for n in range(9)])] == expected


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=6), st.integers(0, 9))
def test_blanks_join_and_never_reach_beyond_what_was_noted(notes: list[tuple[int, int]], place: int) -> None:
    blanks, empty = EmptyRanges(), set[int]()
    for low, high in notes:
        blanks.note("k", low, high)
        empty |= set(range(low + 1, high + 1))
    beyond = blanks.beyond("k", place)
    assert beyond >= place
    assert set(range(place + 1, beyond + 1)) <= empty
    assert blanks.beyond("other", place) == place


def test_blanks_are_bounded() -> None:
    blanks = EmptyRanges()
    for number in range(2000):
        blanks.note(f"k{number}", 1, 2)
        blanks.note("one", number * 3, number * 3 + 1)
    assert blanks.beyond("k0", 1) == 1
    assert blanks.beyond("k1999", 1) == 2
    assert blanks.beyond("one", 1999 * 3) == 1999 * 3 + 1
