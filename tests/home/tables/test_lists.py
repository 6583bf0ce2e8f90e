"""Every line stands in the lists of its kind and in no other."""

import pytest

from spl.core.record import record as core_record
from spl.home.segments import Entry
from spl.home.tables.lists import clock_name, lists, projection_name, tallies
from tests.store_kit import note, record, shown


@pytest.mark.parametrize(("entry", "names"), [
    (record(1, ns="org", thread="th", actor="did:a"), ["t:th", "u:org\0th", "a:org\0did:a", "n:org"]),
    (record(1, ns="", thread="th", actor="did:a"), ["t:th", "a:\0did:a"]),
    (record(1, ns="org", thread="th_consent", actor="did:a"), ["t:th_consent", "a:\0did:a"]),
    (record(1, kind="alt"), []),
    (shown(1, "pair_7"), ["x:pair_7"]),
    (note("pos", pair="pair_7"), ["p:pair_7"]),
    (note("ref", pair="pair_7"), ["r:pair_7"]),
    (note("odd"), ["k:odd"]),
])  # fmt: skip
def test_lists_of_a_line(entry: Entry, names: list[str]) -> None:
    assert lists(entry) == names


def test_no_reserved_thread_is_offered() -> None:
    for thread in [*core_record.RESERVED_THREADS, "th_audit_federation_pairs"]:
        assert not any(name.startswith("n:") for name in lists(record(1, thread=thread)))


def test_tallies_count_records_by_origin_and_projections_apart() -> None:
    assert tallies("rec", "org", "local", "did:v") == ["rec", "v:org:did:v"]
    assert tallies("rec", "org", "pair_1", "did:v") == [
        "rec", "v:org:did:v", "o:org:pair_1", "ov:org:pair_1:did:v",
    ]  # fmt: skip
    assert tallies("proj", "org", "pair_1", "") == ["proj"]
    assert tallies("alt", "org", "pair_1", "did:v") == tallies("pos", "", "local", "") == []


def test_names_of_keys_do_not_run_into_each_other() -> None:
    assert len({clock_name(*parts) for parts in (("ab", "c", "d"), ("a", "bc", "d"), ("a", "b", "cd"))}) == 3
    assert projection_name("pair_1", "L1", "x") != projection_name("pair_1", "L2", "x")
