"""Completion in real shells: what TAB offers, and that it starts no process."""

import io
import os
import pty
import re
import select
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from spl.cli import main as cli
from spl.cli.completion import SHELLS
from tests.cli.conftest import Run

WORDS = re.compile(r"[\w./-]+")
CASES = {
    ("spl", "fed"): {"federation"},
    ("spl", "federation", "set-re"): {"set-relay"},
    ("spl", "federation", "set-relay", "bob", ""): {"on", "off"},
    ("spl", "federation", "set-mode", "bob", "po"): {"polling"},
    ("spl", "-o", "json", "federation", "show", ""): {"bob", "pair_0b"},
    ("spl", "federation", "show", "bo"): {"bob"},
    ("spl", "status", "--out"): {"--output"},
    ("spl", "status", "-o", "js"): {"json", "jsonl"},
    ("spl", "status", "-o", "json", "--qu"): {"--quiet"},
    ("spl", "help", "fede"): {"federation"},
    ("spl", "help", "recov"): {"recovery"},
    ("spl", "help", "manifest-si"): {"manifest-signature"},
    ("spl", "version", ""): set(),
    ("spl", "completion", ""): set(SHELLS),
    ("spl", "federation", "show", "bob", ""): set(),
    ("spl", "nonsense", "more", ""): set(),
    ("spl", "--context", ""): {"hub", "contexts"},
    ("spl", "status", "--context", "h"): {"hub"},
    ("spl", "context", "select", "h"): {"hub"},
    ("spl", "--context", "hub", "sta"): {"status"},
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    (folder / "home" / "run").mkdir(parents=True)
    (folder / "home" / "run" / "pairs.list").write_text("bob\npair_0b\n")
    for name in ("hub", "contexts"):
        env = {"HOME": str(folder)}
        out = io.StringIO()
        assert cli.run(["context", "add", name, "--url", "http://127.0.0.1:9100"], env, None, out, out) == 0  # type: ignore[arg-type]
    for shell in SHELLS:
        with (folder / shell).open("w") as file:
            assert cli.run(["completion", shell], {}, None, file, file) == 0  # type: ignore[arg-type]
    return folder


def offered(shell: str, folder: Path, words: tuple[str, ...]) -> set[str]:
    """Return what a shell offers for these words, with nothing in its PATH."""
    program = shutil.which(shell)
    assert program is not None, f"{shell} is not installed"
    source = {
        "bash": 'source "$1"; shift; compopt() { :; }; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _spl;'
        ' printf "%s\\n" "${COMPREPLY[@]}"',
        "zsh": 'compdef() { :; }; compadd() { shift; local w; for w in "$@"; do [[ $w == $words[CURRENT]* ]] &&'
        ' print -r -- $w; done; }; source "$1"; shift; words=("$@"); CURRENT=$#; _spl',
        "fish": "source $argv[1]; complete -C (string join ' ' -- $argv[2..-1])",
    }[shell]
    options = {"bash": ["--norc", "-c"], "zsh": ["-f", "-c"], "fish": ["--no-config", "-c"]}[shell]
    end = ["sh"] if shell in ("bash", "zsh") else []
    env = {"PATH": "/nowhere", "HOME": str(folder), "SYNCROPEL_HOME": str(folder / "home"), "TERM": "dumb"}
    done = subprocess.run(
        [program, *options, source, *end, str(folder / shell), *words], env=env, capture_output=True, text=True
    )
    assert (done.returncode in (0, 1), done.stderr) == (True, "")
    return {line.partition("\t")[0] for line in done.stdout.splitlines() if line}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_offers_what_fits(shell: str, scripts: Path) -> None:
    for words, expected in CASES.items():
        assert offered(shell, scripts, words) == expected, words


def test_fish_sees_the_home_before_the_command(scripts: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "pairs.list").write_text("carol\n")
    assert offered("fish", scripts, (f"SYNCROPEL_HOME={tmp_path}", "spl", "federation", "show", "")) == {"carol"}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_sound_and_runs_nothing(shell: str, scripts: Path) -> None:
    assert subprocess.run([shell, "-n", str(scripts / shell)], capture_output=True, text=True).stderr == ""
    text = (scripts / shell).read_text()
    assert "$(" not in text.replace("$((", "") or shell == "fish"
    quoted = r"'(?:\\.|[^'\\\n])*'" if shell == "fish" else r"'[^'\n]*'"
    assert "`" not in re.sub(quoted, "", text)


def test_every_command_and_every_option_is_known(scripts: Path) -> None:
    for noun in cli.PLACES:
        assert noun in offered("bash", scripts, ("spl", noun[:-1])), noun
    assert {"--reason", "--block"} <= offered("bash", scripts, ("spl", "federation", "revoke", "bob", "--"))


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_tab_on_a_terminal_completes(shell: str, scripts: Path) -> None:
    ready = "autoload -U compinit; compinit -u -D; " if shell == "zsh" else "bind 'set enable-bracketed-paste off'; "
    options = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"]}[shell]
    pid, terminal = pty.fork()
    if pid == 0:
        env = {**os.environ, "TERM": "dumb", "PS1": "> ", "SYNCROPEL_HOME": str(scripts / "home")}
        os.execvpe(shell, [shell, *options], env)
    try:
        shown = "spl() { printf '[%s]' \"$@\"; }"
        os.write(terminal, f"{ready}source {scripts / shell}; {shown}; printf '%s%s\\n' rea dy\n".encode())
        _read(terminal, b"ready\r\n")
        os.write(terminal, b"spl federation sho\tbo\t\n")
        _read(terminal, b"[federation][show][bob]")
        if shell == "zsh":  # bash hides from a completion what stands before the command
            other = scripts / "other" / "run"
            other.mkdir(parents=True, exist_ok=True)
            (other / "pairs.list").write_text("carol\n")
            os.write(terminal, f"SYNCROPEL_HOME={other.parent} spl federation show c\t\n".encode())
            _read(terminal, b"[federation][show][carol]")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


def _read(terminal: int, until: bytes) -> bytes:
    seen = b""
    while until not in seen:
        assert select.select([terminal], [], [], 30)[0], seen
        seen += os.read(terminal, 4096)
    return seen


def test_an_unknown_shell_is_refused(spl: Run) -> None:
    assert spl("completion", "tcsh").code == 2
