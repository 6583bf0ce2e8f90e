"""Promises of the shared sets: which lines are in them, and that every way of looking at a set sees the same one."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spl.core.consent import Outbound
from spl.core.record.filter import OPEN, PairFilter
from spl.core.record.fingerprint import DEPTH, HELD, LISTED_MAX, OPPOSITE, SEEN, SHOWN, START_BYTES, RangePart
from spl.home.index import Row
from spl.home.log import Log
from spl.home.segments import PROJECTION, Entry
from spl.sync.compare.holdings import Holdings, PairTerms, SetScan
from spl.sync.scope import Scope
from spl.sync.source import OutgoingForm
from tests.store_kit import AT_MS, open_store, record

KEY, PAIR, US, PEER, OTHER = "12" * 16, "pair_1", "did:sync:instance:me", "did:peer", "did:other"


OPEN_SCOPE = Scope({"default": Outbound("default", "default", 0)}, (OPEN,), frozenset({PAIR}), PEER, US)


class Backwards:
    """Names an id by its digits in reverse."""

    def pseudonym(self, pair_id: str, record_id: str) -> str:
        return record_id[::-1]


def shared(store: Log, scope: Scope = OPEN_SCOPE, received: Mapping[str, str] | None = None) -> PairTerms:
    taken = {"default": "default"} if received is None else received
    return PairTerms(scope, taken, store.last_seq, cast(OutgoingForm, Backwards()), PAIR)


def stored(folder: Path, *entries: Entry) -> Log:
    store = open_store(folder)
    store.append(entries, AT_MS)
    return store


def starts(store: Log, terms: PairTerms, name: str = HELD) -> list[str]:
    return [start.hex() for piece in SetScan(store, terms, name).pieces() for start in piece]


def start_of(entry: Entry) -> str:
    return entry.id[: 2 * START_BYTES]


def row_of(store: Log, entry: Entry) -> Row:
    row = store.index.find(entry.id, entry.ns)
    assert row is not None
    return row


OWN, THEIRS, RELAYED = record(1), record(2, origin="pair_2", voucher=PEER), record(3, origin=PAIR, voucher=OTHER)
THIRD, ELSEWHERE = record(4, origin="pair_2", voucher=OTHER), record(5, ns="secret")
RESERVED, ALSO = record(6, thread="th_audit_x", origin="restore"), record(7, kind="alt")
ALL = (OWN, THEIRS, RELAYED, THIRD, ELSEWHERE, RESERVED, ALSO)


@pytest.mark.parametrize(
    ("scope", "received", "expected"),
    [
        (OPEN_SCOPE, None, (OWN, THEIRS, RELAYED, THIRD)),
        (replace(OPEN_SCOPE, filters=(PairFilter(relay=False),)), None, (OWN, THEIRS, RELAYED)),
        (replace(OPEN_SCOPE, floor=1), None, (THEIRS, RELAYED, THIRD)),
        (replace(OPEN_SCOPE, floor=100), None, (THEIRS, RELAYED)),
        (replace(OPEN_SCOPE, filters=(PairFilter(thread_allow=("th_1",)),)), None, (OWN, THEIRS, RELAYED, THIRD)),
        (replace(OPEN_SCOPE, filters=(PairFilter(thread_allow=("th_0",)),)), None, (THEIRS, RELAYED)),
        (
            replace(OPEN_SCOPE, filters=(PairFilter(thread_rule="record.voucher == 'did:other'"),)),
            None,
            (THEIRS, RELAYED, THIRD),
        ),
        (replace(OPEN_SCOPE, shares={}), None, (THEIRS, RELAYED)),
        (replace(OPEN_SCOPE, shares={"default": Outbound("default", "default", 1)}), {}, ()),
        (replace(OPEN_SCOPE, shares={}), {}, ()),
    ],
)
def test_held_is_what_we_offer_and_what_came_from_the_peer(
    tmp_path: Path, scope: Scope, received: Mapping[str, str] | None, expected: Sequence[Entry]
) -> None:
    store = stored(tmp_path / "store", *ALL)
    terms = shared(store, scope, received)
    assert sorted(starts(store, terms)) == sorted(map(start_of, expected))
    rows = [row_of(store, entry) for entry in ALL if entry.kind == "rec"]
    held = {row.seq for row in rows if terms.holds(store, HELD, row)}
    assert held == {row_of(store, entry).seq for entry in expected} | held & {row_of(store, RESERVED).seq}
    own = {row.seq for row in rows if terms.offers(store, row)} - {row_of(store, RESERVED).seq}
    assert own <= held
    counts = Holdings(store, terms, KEY).counts(HELD)
    assert counts == ({"default": len(expected)} if expected else {})


def projection(number: int, level: str = "L1", pair: str = PAIR) -> Entry:
    id_ = record(number).id
    payload = json.dumps({"id": id_, "projection": {"level": level}}, separators=(",", ":")).encode()
    return Entry(PROJECTION, payload, pair, "default", id=id_, pair=pair, level=level)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_shown_and_seen_are_the_two_ends_of_projections(tmp_path: Path, level: int) -> None:
    """By the names that they travel under: the id at L1, a pseudonym beyond; what the peer has itself is not shown."""
    seen, others = projection(8), projection(9, pair="pair_2")
    store = stored(tmp_path / "store", *ALL, seen, others)
    terms = shared(store, replace(OPEN_SCOPE, shares={"default": Outbound("default", "music", level)}))
    names = [entry.id if level == 1 else entry.id[::-1] for entry in (OWN, THIRD)]
    assert starts(store, terms, SHOWN) == [name[: 2 * START_BYTES] for name in names]
    assert starts(store, terms, SEEN) == [start_of(seen)]
    held = Holdings(store, terms, KEY)
    held.prepare()
    assert (held.counts(SHOWN), held.counts_for_peer(SHOWN)) == ({"default": 2}, {"music": 2})
    found = held.find(SHOWN, start_of(OWN))
    assert (found and found[1]) == (OWN.id if level == 1 else None), (
        "who guesses an id behind a pseudonym learns nothing"
    )
    assert held.find(SHOWN, start_of(THEIRS)) is None


def test_what_came_after_the_terms_is_in_no_set(tmp_path: Path) -> None:
    store = stored(tmp_path / "store", OWN)
    terms = shared(store)
    store.append([THIRD], AT_MS)
    held = Holdings(store, terms, KEY)
    assert starts(store, terms) == [start_of(OWN)]
    assert held.find(HELD, start_of(THIRD)) is None
    assert not terms.offers(store, row_of(store, THIRD))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 300), st.lists(st.text("0123456789abcdef", max_size=DEPTH + 2), min_size=1, max_size=20))
def test_a_range_is_answered_alike_from_buckets_and_from_the_log(
    tmp_path_factory: pytest.TempPathFactory, count: int, ranges: list[str]
) -> None:
    """In sums where many names stand, by them where few do, and either way for the side that asks."""
    entries = [record(number) for number in range(count)]
    store = stored(tmp_path_factory.mktemp("store"), *entries)
    held, names = Holdings(store, shared(store), KEY), [bytes.fromhex(start_of(entry)) for entry in entries]
    for digits, part in zip(ranges, held.parts(HELD, ranges), strict=True):
        expected = sorted(name for name in names if name.hex().startswith(digits))
        assert bool(part.sums) == (len(expected) > LISTED_MAX)
        if not part.sums:
            assert sorted(part.names) == expected
        (sums,) = held.parts(HELD, [digits], [RangePart(sums=bytes(128))])
        (listed,) = held.parts(HELD, [digits], [RangePart()])
        assert (sorted(listed.names), listed.cut) == (expected, False)
        for at, digit in enumerate("0123456789abcdef"):
            within = [int.from_bytes(name) for name in expected if name.hex().startswith(digits + digit)]
            product = math.prod(int(KEY, 16) + number for number in within) % (2**128 + 51)
            assert sums.sums[8 * at : 8 * at + 8] == (product % 2**64).to_bytes(8)


def test_every_set_has_an_opposite() -> None:
    assert {OPPOSITE[OPPOSITE[name]] == name for name in OPPOSITE} == {True}
