"""A target: one parser, its corpus, and what must hold for any bytes that it is given."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from random import Random

from .dice import changed, steps_of

CORPUS = Path(__file__).with_name("corpus")
COUNTED_EVERY = 20
"""Counting the lines that run makes a run twenty times as slow."""


class Target(ABC):
    """`check` raises AssertionError, or what the parser should not have raised, if a promise does not hold."""

    name: str
    words: Sequence[bytes] = ()
    steps: tuple[int, int] = (4000, 12)
    """Lines that may run for an input: so many, and so many more for each byte."""

    def corpus(self) -> list[bytes]:
        """Return the texts that inputs are made of."""
        return [path.read_bytes() for path in sorted((CORPUS / self.name).iterdir())]

    def draw(self, corpus: Sequence[bytes], dice: Random) -> bytes:
        """Return the input of a seed."""
        return changed(corpus, self.words, dice)

    @abstractmethod
    def check(self, data: bytes, dice: Random) -> None:
        """See that everything promised holds for this input."""

    @abstractmethod
    def parse(self, data: bytes) -> None:
        """Do only what the product does with this input, for its work to be counted."""

    def run(self, seed: int, corpus: Sequence[bytes]) -> None:
        """Check one input, and the work that it costs if it is one of those."""
        dice = Random(f"{self.name} {seed}")
        data = self.draw(corpus, dice)
        try:
            self.check(data, dice)
            if seed % COUNTED_EVERY == 0:
                self.count(data)
        except BaseException as exc:
            exc.add_note(f"again: tools/fuzz --seed {seed} {self.name}\ninput: {data[:2000]!r}")
            raise

    def count(self, data: bytes) -> None:
        """See that the work for an input grows with its length alone."""
        first, each = self.steps
        steps = steps_of(lambda: self.parse(data))
        assert steps <= first + each * len(data), f"{steps} lines run for {len(data)} bytes"
