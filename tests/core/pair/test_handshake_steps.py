"""The steps of the handshake have their numbers in one place; code, manual and README use these and no others."""

import re
from pathlib import Path
from typing import Final

import pytest

from spl.core.pair import handshake

ROOT: Final = Path(__file__).parents[3]
_STEP: Final = re.compile(r"^ {4,9}([1-9][a-z]?)  (\w+)", re.MULTILINE)
_NAMED: Final = re.compile(r"(?:[Ss]teps? |\()([1-9][a-z]?(?:(?:, | and | or | to )(?:step )?[1-9][a-z]?)*)\b")
_INLINE: Final = re.compile(r"  # (?:step )?([1-9][a-z]?(?:, [1-9][a-z]?)*)\b|\bIn ([1-9][a-z]) |, as ([1-9][a-z]) ")


def numbered() -> dict[str, str]:
    """Return number -> the word after it, of the list in the docstring of core/pair/handshake."""
    assert handshake.__doc__
    return dict(_STEP.findall(handshake.__doc__))


def used(path: str) -> set[str]:
    """Return the numbers of steps that a file names."""
    text = (ROOT / path).read_text()
    found = _NAMED.findall(text) + ["".join(groups) for groups in _INLINE.findall(text)]
    return {number for each in found for number in re.findall(r"[1-9][a-z]?", each)}


def test_the_list_has_four_messages_and_what_each_leads_to() -> None:
    steps = numbered()
    assert {number: word for number, word in steps.items() if number.isdigit()} == {
        "1": "request", "2": "poll", "3": "grant", "4": "confirm"
    }  # fmt: skip
    parts = [number for number in steps if not number.isdigit()]
    assert parts == [*(f"1{letter}" for letter in "abcdefg"), *(f"3{letter}" for letter in "abcd"), "4a", "4b"]


@pytest.mark.parametrize(
    ("path", "least"),
    [
        ("spl/pairing/initiator.py", {"1", "2", "3", "3c", "3d", "4", "4b"}),
        ("spl/pairing/responder.py", {"1", "1a", "1b", "1c", "1d", "1e", "1f", "1g", "2", "3", "4", "4a"}),
        ("spl/pairing/machine.py", {"3a", "3b", "3c", "3d", "4a", "4b"}),
        ("spl/manual/http.md", {"1", "2", "3", "4"}),
        ("README.md", {"1", "2", "3", "4"}),
    ],
)
def test_each_side_names_its_steps_by_these_numbers(path: str, least: set[str]) -> None:
    assert least <= used(path) <= set(numbered())


def test_the_manual_tells_the_four_messages_by_number_and_name() -> None:
    rows = re.findall(r"^\| ([1-9][a-z]?) (\w+) \|", (ROOT / "spl/manual/pairs.md").read_text(), re.MULTILINE)
    assert dict(rows) == {number: word for number, word in numbered().items() if number.isdigit()}
