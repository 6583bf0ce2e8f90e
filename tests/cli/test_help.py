"""`spl help`: every code and every command can be asked for."""

import pytest

from spl.core.errors import CODES, steps
from tests.cli.conftest import Run


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_explained(spl: Run, code: str) -> None:
    result = spl("help", code)
    assert result.code == 0
    for text in (code, str(CODES[code].exit), CODES[code].meaning, *steps(CODES[code].fix)):
        assert text in result.out
    assert spl("help", code.upper().replace("-", "_")).out == result.out


def test_a_code_that_is_a_finding_has_what_doctor_tells(spl: Run) -> None:
    """Beside the step of the error, if that is another."""
    assert "as a finding      spl federation refresh PAIR_ID" in spl("help", "auth-invalid").out
    assert "as a finding" not in spl("help", "daemon-down").out


def test_all_codes_in_one_list(spl: Run) -> None:
    lines = spl("help", "codes").out.splitlines()
    assert [line.split()[0] for line in lines] == list(CODES)


def test_a_commands_page(spl: Run) -> None:
    assert spl("help", "federation", "pair").out == spl("federation", "pair", "--help").out
    assert spl("help", "federation").out == spl("federation", "--help").out


@pytest.mark.parametrize(
    ("word", "near"),
    [("tokn", "token"), ("network", "networks"), ("securty", "security"), ("tls-chains", "tls-chain")],
)
def test_unknown_topics(spl: Run, word: str, near: str) -> None:
    """A command is nearest first, then a topic or a code."""
    result = spl("help", word)
    assert result.code == 2
    assert f"Did you mean '{near}'?" in result.err
