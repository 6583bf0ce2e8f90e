"""Commands as values."""

import pytest

from spl.cli.command import Command, UsageError, gist, parser_of


def test_the_gist_of_a_concept_is_its_first_part() -> None:
    assert gist("Shows\nall: this.\nAnd that.") == "Shows all."
    assert gist("Sets v1.2 to go; later.") == "Sets v1.2 to go."


def test_a_command_without_result_takes_no_form_of_output() -> None:
    parser = parser_of(Command("x", "A. B.", "spl x", lambda args, shell: 0, result=False))
    with pytest.raises(UsageError) as found:
        parser.parse_args(["-o", "json"])
    assert found.value.hint == "spl x --help"
    assert parser.parse_args(["--home", "/h"]).home == "/h"
