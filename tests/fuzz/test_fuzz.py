"""Parsers under inputs from fixed seeds: no exception but their own, bounded work, and what is read once reads again.

An input depends on its seed and the corpus alone.  `tools/fuzz` runs others, for as long as one likes.  A file in the
corpus of a target is checked as it stands, too; one whose name begins with `found-` broke a promise once.
"""

from pathlib import Path
from random import Random

import pytest

from tests.fuzz.run import TARGETS
from tests.fuzz.target import CORPUS

COUNTS = {"manifest": 600, "log": 350, "expression": 2000}
PARTS = 2
"""So that two workers share a target."""


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_holds_its_promises(name: str, part: int) -> None:
    target = TARGETS[name]
    corpus = target.corpus()
    count = COUNTS.get(name, 3000) // PARTS
    for seed in range(part * count, (part + 1) * count):
        target.run(seed, corpus)


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_corpus_itself_holds(path: Path) -> None:
    target, data = TARGETS[path.parent.name], path.read_bytes()
    target.corpus()
    for seed in range(20):
        target.check(data, Random(seed))
    target.count(data)


def test_each_target_has_a_corpus_and_none_is_left_over() -> None:
    assert {path.name for path in CORPUS.iterdir()} == TARGETS.keys()
