"""Codes: one form each, a status and an exit code from the tables, a meaning and a next step for people."""

import json
import re
import shlex

import pytest

from spl.cli.out import clean
from spl.core.errors import CODES, SplError, cli_code, http_code, printable, steps

EXITS = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 78}


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_complete(code: str) -> None:
    """It has its kebab-case form, a known exit code, an HTTP status, a sentence and a next step."""
    entry = CODES[code]
    assert re.fullmatch(r"[a-z]+[a-z0-9]*(-[a-z0-9]+)*", code)
    assert entry.exit in EXITS
    assert 400 <= entry.status <= 599 or code in ("handshake-pending", "pair-completing")
    assert entry.meaning.endswith(".")
    assert entry.meaning[0].isupper()
    assert entry.fix
    assert not entry.fix.endswith(".")


@pytest.mark.parametrize("code", CODES)
def test_the_wire_and_the_command_line_say_the_same_word(code: str) -> None:
    """UPPER_SNAKE there, kebab-case here, and back."""
    assert re.fullmatch(r"[A-Z0-9_]+", http_code(code))
    assert cli_code(http_code(code)) == code


def test_an_error_fills_in_from_the_registry() -> None:
    """Sentence and hint default to the code's; what the raiser knows better wins."""
    plain, told = (
        SplError("not-found"),
        SplError("not-found", "no pair pair_1", hint="spl federation list", pair_id="pair_1"),
    )
    assert (plain.message, plain.hint) == (CODES["not-found"].meaning, CODES["not-found"].fix)
    assert (told.message, told.hint, str(told)) == ("no pair pair_1", "spl federation list", "no pair pair_1")
    assert (told.status, told.exit_code) == (404, 6)


def test_the_json_form_is_the_wires() -> None:
    """object, type, code, message, hint, then facts; the type tells whose fault it is."""
    found = SplError("not-found", "no pair pair_1", hint="look", pair_id="pair_1").to_json()
    assert json.loads(json.dumps(found)) == {
        "object": "error",
        "type": "invalid_request",
        "code": "NOT_FOUND",
        "message": "no pair pair_1",
        "hint": "look",
        "pair_id": "pair_1",
    }
    assert SplError("internal").to_json()["type"] == "api_error"


@pytest.mark.parametrize("path", ["/tmp/a; b", "/tmp/it's; b", "'; '", 'say "a; b"', "\n; ", "/tmp/plain"])
def test_a_step_ends_outside_quotes_only(path: str) -> None:
    """A path in quotes stays one word of its command; an apostrophe opens no quotes."""
    command = f"SYNCROPEL_HOME={shlex.quote(path)} spl serve"
    told = f"look at this machine's network; start the peers' daemon: {command}; it's the last"
    assert steps(told) == ["look at this machine's network", f"start the peers' daemon: {command}", "it's the last"]
    assert shlex.split(steps(told)[1].partition(": ")[2]) == [f"SYNCROPEL_HOME={path}", "spl", "serve"]


def test_a_code_outside_the_registry_cannot_be_raised() -> None:
    """A misspelt code is our own mistake and shows at once."""
    with pytest.raises(KeyError):
        SplError("no-such-code")


@pytest.mark.parametrize(
    "char", "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180f\u2800\u3164\ufe00\ufe0f\uffa0\U000e0100\U000e01ef\u200b"
)
def test_what_shows_nothing_is_written_out_everywhere(char: str) -> None:
    """Else a name of a peer looks like another one, in the log, on the wire or in a terminal."""
    assert printable(f"al{char}ice") == "al" + json.dumps(char)[1:-1] + "ice"
    assert printable(f"{char}") != char
    assert clean(f"al{char}ice").isascii()


def test_what_is_seen_stays() -> None:
    for text in ("käse ✓ 日本 한글 ᠮᠣᠩ ក", "😀", ""):
        assert printable(text) == clean(text) == text
