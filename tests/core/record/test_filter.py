"""Filters: what passes, that a mistake sends less, and that equal filters are told by their digests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core.errors import SplError
from spl.core.limits import Limits
from spl.core.record import filter as filters
from spl.core.record.filter import OPEN, PairFilter, fields_of

LIMITS = Limits()
RECORD = {"thread": "th_a", "actor": "did:x", "act": "KNOW", "data_type": None, "body": {"kind": "note", "n": 1}}
FIELDS = fields_of(RECORD, "music", "did:sync:instance:bob")


def test_the_fields_are_texts_also_where_a_record_has_none() -> None:
    assert FIELDS == {
        "thread": "th_a", "actor": "did:x", "act": "KNOW", "data_type": "", "namespace": "music", "kind": "note",
        "voucher": "did:sync:instance:bob",
    }  # fmt: skip
    assert fields_of({**RECORD, "data_type": "SCALAR"}, "", "")["data_type"] == "SCALAR"
    assert fields_of({"thread": "t", "body": "text"}, "", "")["kind"] == ""
    assert fields_of({"thread": "t", "body": {"kind": 7}}, "", "")["kind"] == ""
    assert set(FIELDS) == set(filters.FIELDS)
    assert fields_of(dict.fromkeys(RECORD), "", "") == fields_of({}, "", "") == dict.fromkeys(filters.FIELDS, "")


@pytest.mark.parametrize(("found", "passes"), [
    (OPEN, True), (PairFilter(relay=False), True), (PairFilter(thread_allow=("th_a",)), True),
    (PairFilter(thread_allow=("th_b",)), False), (PairFilter(thread_rule='record.thread == "th_a"'), True),
    (PairFilter(thread_rule='record.thread == "th_b"'), False),
    (PairFilter(thread_allow=("th_b",), thread_rule='record.kind == "note"'), True),
    (PairFilter(thread_allow=("th_a",), thread_rule="false"), True),
    (PairFilter(thread_rule="record.nothing == 1"), False), (PairFilter(thread_rule="record.thread"), False),
    (PairFilter(thread_rule="what is this"), False),
    (PairFilter(thread_rule='record.namespace == "music" && record.voucher.endsWith("bob")'), True),
])  # fmt: skip
def test_a_record_passes_by_its_thread_or_by_the_rule(found: PairFilter, passes: bool) -> None:
    assert found.admits(FIELDS, relayed=False) is passes
    assert found.admits(FIELDS, relayed=True) is (passes and found.relay)
    assert found.reads_records is bool(found.thread_allow or found.thread_rule)


def test_a_costly_rule_is_false_and_ends() -> None:
    rule = " || ".join(['record.thread.contains("zz")'] * 100)
    long = {**FIELDS, "thread": "y" * 60_000}
    assert not PairFilter(thread_rule=rule).admits(long, relayed=False)


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
some = st.builds(
    PairFilter, st.booleans(), st.lists(texts, max_size=3).map(tuple), st.sampled_from(["", "true", "false"])
)


@given(some, some)
def test_equal_filters_have_equal_digests_and_others_not(one: PairFilter, other: PairFilter) -> None:
    assert (one.digest == other.digest) is (one == other)
    assert (one.digest == "") is (one == OPEN)
    assert len(one.digest) in (0, filters.DIGEST_HEX)


def test_threads_are_kept_once_and_sorted() -> None:
    assert filters.check_threads(["b", "a", "b"], LIMITS) == ("a", "b")


def test_as_many_threads_as_allowed_may_be_named_with_as_many_characters() -> None:
    names = tuple(f"t{n:03}" for n in range(filters.THREADS_MAX))
    assert filters.check_threads(names, LIMITS) == names
    assert filters.check_threads(["x" * LIMITS.thread_chars], LIMITS) == ("x" * 256,)


def test_threads_are_named_and_taken_back_one_by_one() -> None:
    one = filters.allowing(OPEN, ["b"], LIMITS)
    assert one == PairFilter(thread_allow=("b",))
    both = filters.allowing(one, ["a", "b"], LIMITS)
    assert both == PairFilter(thread_allow=("a", "b"))
    assert filters.allowing(both, ["a", "other"], LIMITS, remove=True) == one
    assert filters.allowing(OPEN, ["a"], LIMITS, remove=True) == OPEN
    with pytest.raises(SplError) as caught:
        filters.allowing(both, ["a", "b"], LIMITS, remove=True)
    assert (caught.value.code, "the last thread" in caught.value.message) == ("bad-field", True)
    ruled = PairFilter(thread_allow=("a",), thread_rule="false")
    assert filters.allowing(ruled, ["a"], LIMITS, remove=True) == PairFilter(thread_rule="false")


def test_what_changed_of_a_filter_is_told_and_nothing_else() -> None:
    named = PairFilter(relay=False, thread_allow=("a",))
    assert filters.changes(OPEN, named) == {"relay": False, "thread_allow": ["a"]}
    assert filters.changes(named, named) == {}


@pytest.mark.parametrize("threads", [
    [""], ["a\n"], ["x" * 257], ["th_federation_pairs"], ["th_audit_x"], [f"t{i}" for i in range(257)],
])  # fmt: skip
def test_threads_that_never_sync_or_are_too_many_are_refused(threads: list[str]) -> None:
    with pytest.raises(SplError) as caught:
        filters.check_threads(threads, LIMITS)
    assert caught.value.code == "bad-field"


@pytest.mark.parametrize(("text", "code", "at"), [
    ("record.thread ==", "rule-syntax", "1:17"), ('record.thred == "a"', "rule-type", "1:7"),
    ('record.thread == "" || record.thred == "a"', "rule-type", "1:30"), ("record.thread", "rule-type", "1:7"),
    ("has(record.body)", "rule-type", "1:1"), ('thread == "a"', "rule-type", "1:1"), ("1", "rule-type", "1:1"),
    ("namespace", "rule-syntax", "1:1"),
])  # fmt: skip
def test_a_rule_that_cannot_work_is_refused_with_the_place(text: str, code: str, at: str) -> None:
    with pytest.raises(SplError) as caught:
        filters.check_rule(text)
    assert (caught.value.code, caught.value.facts["at"]) == (code, at)


def test_a_good_rule_is_returned_as_it_is() -> None:
    text = 'record.thread.startsWith("th_") && record.data_type != "image/png"'
    assert filters.check_rule(text) == text
    text = '[{"a": "x"}].exists(each, each.a == record.thread || has(each.b))'
    assert filters.check_rule(text) == text, "only a record has these fields and no others"


def test_a_stored_rule_that_cannot_be_read_lets_nothing_pass_and_says_so() -> None:
    """Homes of an older version may hold one with `matches`."""
    old = PairFilter(thread_rule="record.thread.matches('^th_')")
    assert not old.admits(fields_of({"thread": "th_a"}, "default", "did:x"), relayed=False)
    assert "there is no function 'matches'" in str(old.report()["fault"])
    assert "fault" not in PairFilter(thread_rule="true").report()
    assert "fault" not in OPEN.report()
    assert filters.fault_of(OPEN) == filters.fault_of(PairFilter(thread_rule="true")) == ""
