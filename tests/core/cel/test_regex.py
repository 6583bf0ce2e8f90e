"""Patterns: what `re` would find, in steps that grow with the text and no faster."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core.cel.regex import INSTRUCTIONS_MAX, PatternFault, compile_pattern

ATOMS = st.sampled_from(
    ["a", "b", ".", "[ab]", "[^a]", "[a-c]", r"\d", r"\w", r"\W", r"\.", "é", r"\-", "[b-]", r"[\d-]", "^", "$"]
)
REPEATS = st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,2}", "{0}", "{1,}"])
PATTERNS = st.recursive(
    st.tuples(ATOMS.filter(lambda atom: atom not in "^$"), REPEATS).map("".join) | ATOMS,
    lambda inner: (
        st.lists(inner, max_size=3).map("".join)
        | st.tuples(st.lists(inner, min_size=1, max_size=3).map("|".join), REPEATS).map(
            lambda both: f"({both[0]}){both[1]}"
        )
    ),
    max_leaves=6,
)
TEXTS = st.text("ab.1é-\n", max_size=8)
BAD = [
    "*", "a**", "a*?", "a{", "a{x}", "a{2", "a{3,2}", "a{101}", "(", ")", "(a", "a)", "[", "[]", "[]a]", "[a",
    "[b-a]", "[a-\\d]", "[[:alpha:]]", "\\", "\\1", "\\b", "\\p", "(?i)a", "(?=a)", "(?P<x>a)", "|*", "]", "}",
    "x" * 257, "(" * 17 + ")" * 17, "(((a{99}){99}){99}){99}", "((((){99}){99}){99}){99}", "(a|b){0,99}" * 20,
]  # fmt: skip


def found(pattern: str, text: str) -> tuple[bool, int]:
    """Return whether the pattern is found, and the steps that it took."""
    steps: list[int] = []
    return compile_pattern(pattern).search(text, steps.append), sum(steps)


@given(PATTERNS, TEXTS)
def test_it_finds_what_re_finds(pattern: str, text: str) -> None:
    """Python's engine is the oracle; `$` is its `\\Z`, and a fresh one may not carry a repeat of an assertion."""
    try:
        mine = found(pattern, text)[0]
    except PatternFault:
        return
    theirs = re.sub(r"(?<!\\)\$", r"\\Z", pattern)
    assert mine == bool(re.search(theirs, text, re.ASCII))


@pytest.mark.parametrize("pattern", BAD)
def test_what_the_subset_lacks_is_refused_with_its_place(pattern: str) -> None:
    with pytest.raises(PatternFault) as caught:
        compile_pattern(pattern)
    assert 0 <= caught.value.at <= len(pattern)
    assert str(caught.value)


@given(st.text("ab()[]{}*+?|^$\\.,-0123456789:dwsé", max_size=40))
def test_any_text_is_a_pattern_or_refused(text: str) -> None:
    try:
        pattern = compile_pattern(text)
    except PatternFault:
        return
    assert len(pattern.program) <= INSTRUCTIONS_MAX + 300
    pattern.search("ab" * 50, lambda steps: None)


@pytest.mark.parametrize(
    "pattern", ["(a*)*b", "(a|a)*b", "a*a*a*a*a*b", "(a+)+$b", "(.*)*(.*)*b", "a{0,99}b", "(a?){50}a{50}b"]
)
def test_steps_grow_with_the_text_and_no_faster(pattern: str) -> None:
    """Never more than twice the program's length for each character, and twice the text costs about twice as much."""
    program = len(compile_pattern(pattern).program)
    (_, short), (_, long) = found(pattern, "a" * 500), found(pattern, "a" * 1000)
    assert long <= 1001 * program * 2
    assert long < 2.2 * short


def test_classes_are_ascii_and_the_end_is_the_end() -> None:
    assert not found(r"\w", "é")[0]
    assert not found(r"\d", "٣")[0]
    assert not found("a$", "a\n")[0]
    assert found(r"^\s+$", " \t\r\n\f")[0]
    assert not found(".", "\n")[0]
