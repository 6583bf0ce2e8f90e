"""Positions for bound tokens: exact both ways, without order or gaps to count by, and only those that were shown."""

import json
import random
from itertools import pairwise

import pytest

from spl.core.record.position import PLAIN, SHOWN_MAX, PositionError, Positions, positions_of

SECRET = bytes(range(32))
ACME = positions_of(SECRET, ["acme"])
SEQS = [1, 2, 3, 4095, 4096, 10**6, 2**40 - 1, *random.Random(52).sample(range(1, 2**40), 300)]


@pytest.mark.parametrize("positions", [ACME, PLAIN, positions_of(SECRET, ["acme", "other"])])
def test_each_position_is_read_back_as_its_sequence(positions: Positions) -> None:
    shown = [positions.shown(seq) for seq in SEQS]
    assert [positions.seq_of(number) for number in shown] == SEQS
    assert len(set(shown)) == len(set(SEQS))
    assert positions.shown(0) == positions.seq_of(0) == 0


def test_a_position_is_an_integer_that_json_carries_exactly() -> None:
    shown = [ACME.shown(seq) for seq in SEQS]
    assert all(0 < number <= SHOWN_MAX < 2**53 for number in shown)
    assert [int(float(json.dumps(number))) for number in shown] == shown


def test_the_order_of_the_log_is_not_that_of_the_positions() -> None:
    """Of neighbours as many fall as rise, and no distance repeats."""
    shown = [ACME.shown(seq) for seq in range(1, 1001)]
    steps = [b - a for a, b in pairwise(shown)]
    assert 400 < sum(step > 0 for step in steps) < 600
    assert len(set(steps)) == len(steps)


def test_a_number_that_was_never_shown_is_refused() -> None:
    """Twelve bits tell: of four thousand numbers one passes."""
    drawn = random.Random(7)
    refused = 0
    for number in [*range(1, 1001), *(drawn.randrange(1, SHOWN_MAX) for _ in range(3000))]:
        try:
            ACME.seq_of(number)
        except PositionError as exc:
            assert exc.code == "position-unknown"
            assert "since=0" in exc.hint
            refused += 1
    assert refused > 3980
    for number in (-1, SHOWN_MAX + 1, 2**63 - 1):
        with pytest.raises(PositionError):
            ACME.seq_of(number)


def test_other_namespaces_and_other_homes_have_other_positions() -> None:
    names = ["acme", "web"], ["acmeweb"]
    others = [positions_of(b"x" * 32, ["acme"]), *(positions_of(SECRET, each) for each in names)]
    assert len({positions.shown(77) for positions in (ACME, *others, PLAIN)}) == 5
    assert positions_of(SECRET, ["b", "a", "b"]) == positions_of(SECRET, ["a", "b"])


@pytest.mark.parametrize(("mask", "seq"), [(5 << 12, 5), (5 << 12 | 1, 5), (0xFFF, 2**40 - 1)])
def test_every_sequence_has_a_number_also_at_the_ends(mask: int, seq: int) -> None:
    """The one whose number would be 0, the begin, takes the number that 0 leaves free; and the first and the last."""

    class Shifted(Positions):
        """A permutation that is easy to see through."""

        __slots__ = ()

        def _mixed(self, value: int) -> int:
            return value ^ mask

        _unmixed = _mixed

    shifted = Shifted(b"k" * 32)
    seqs = [each for each in (seq - 1, seq, seq + 1) if each < 2**40]
    assert [shifted.seq_of(shifted.shown(each)) for each in seqs] == seqs
    assert 0 not in [shifted.shown(each) for each in seqs]
    assert shifted.shown(seq) == {5 << 12: mask, 5 << 12 | 1: 1, 0xFFF: SHOWN_MAX}[mask]


@pytest.mark.parametrize("low", [1, 2, 2048, 4095])
def test_each_of_the_twelve_bits_tells_a_number_that_was_never_shown(low: int) -> None:
    with pytest.raises(PositionError):
        ACME.seq_of(ACME._mixed(77 << 12 | low))


def test_the_key_is_not_shown() -> None:
    assert repr(ACME) == "Positions()"
