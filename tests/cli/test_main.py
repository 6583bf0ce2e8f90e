"""The command tree: help, unknown words, exit codes, what a client command imports."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from spl.cli import main as cli
from spl.cli.command import Command, Group, indented, parser_of
from spl.core.errors import CODES
from tests.cli.conftest import Daemon, Run, child, chunked, error, listed

FORBIDDEN = ("asyncio", "ssl", "nacl", "http.client", "urllib.request", "uvloop", "sqlite3", "logging")
OFFLINE = {"serve", "init"}


@pytest.fixture(autouse=True)
def _stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for the daemon, whose own tests are elsewhere."""
    daemon = ModuleType("spl.daemon")
    daemon.run, daemon.ServeOptions = lambda options: 0, dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spl.daemon", daemon)


def entries() -> list[Command | Group]:
    found: list[Command | Group] = []
    for noun in cli.PLACES:
        entry, _ = cli.find([noun])
        assert entry is not None
        found.append(entry)
        if isinstance(entry, Group):
            found += entry.commands
    return found


def test_every_command_has_a_page_of_two_sentences_and_an_example(spl: Run) -> None:
    names = [entry.name for entry in entries()]
    assert len(names) == len(set(names)) > 30
    for entry in entries():
        result = spl(*entry.name.split(), "--help")
        assert result.code == 0, entry.name
        assert result.err == ""
        assert f"usage: spl {entry.name}" in result.out
        assert len(re.findall(r"[.;](\s|\Z)", entry.concept)) >= 2, entry.concept
        assert result.out.endswith(f"{indented(entry.example)}\n")
        assert max(map(len, entry.concept.splitlines())) <= 115


@pytest.mark.parametrize("width", [40, 80])
def test_every_page_fits_the_terminal(spl: Run, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """All but the example, which is to be pasted, and words and rows of a table that cannot be broken."""
    monkeypatch.setenv("COLUMNS", str(width))
    wide = []
    for entry in entries():
        page, _, _ = spl(*entry.name.split(), "--help", tty=True, env={"COLUMNS": str(width)}).out.partition(
            "\nexample:"
        )
        wide += [(entry.name, line) for line in page.splitlines() if len(line) > width and " " in line.strip()]
    assert not wide


def test_every_example_parses() -> None:
    for entry, line in [(each, line) for each in entries() for line in each.example.splitlines()]:
        words = shlex.split(re.sub(r"<\((.*)\)", r"\1", line))
        words = words[words.index("spl") + 1 :]
        words = words[: next((at for at, word in enumerate(words) if word in "|<>"), None)]
        command, rest = cli.find(words)
        assert isinstance(command, Command)
        assert command is entry or isinstance(entry, Group), entry.name
        parser_of(command).parse_args(rest)


def test_without_words_the_overview_lists_every_noun(spl: Run) -> None:
    for argv in ([], ["--help"], ["help"], ["-h"]):
        result = spl(*argv)
        assert result.code == 0
        for noun in cli.PLACES:
            assert f"\n  {noun} " in result.out


@pytest.mark.parametrize(
    ("line", "near"),
    [
        ("federation lst", "federation list"),
        ("fedration", "federation"),
        ("pair", "federation pair"),
        ("aitl aprove", "aitl approve"),
        ("statsu", "status"),
        ("list", "federation list"),
        ("fed", "federation"),
        ("fed list", "federation list"),
        ("fed nothing", "federation"),
        ("tread snapshot th_garden", "thread snapshot"),
        ("federation sync", "sync"),
        ("federation approve", "aitl approve"),
        ("sink status", "sink list"),
        ("inti", "init"),
        ("hlep", "help"),
        ("fed ls", "federation list"),
        ("federation lits", "federation list"),
        ("federation mode", "federation set-mode"),
        ("federation remove", "federation revoke"),
        ("federation status", "federation list"),
        ("token delete", "token revoke"),
        ("context rm", "context remove"),
    ],
)
def test_unknown_words_name_the_nearest_command(spl: Run, line: str, near: str) -> None:
    result = spl(*line.split())
    assert result.code == 2
    assert result.out == ""
    unknown = line if line.split()[0] in cli.PLACES else line.split()[0]
    assert result.err == f"error: unknown command '{unknown}'. Did you mean '{near}'? [usage]\n"


@pytest.mark.parametrize("noun", [noun for noun, place in cli.PLACES.items() if place.group])
def test_a_noun_alone_shows_its_commands(spl: Run, noun: str) -> None:
    assert (spl(noun).code, spl(noun).out) == (0, spl(noun, "--help").out)


def test_a_list_has_two_names(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/federation/pairs"] = listed()
    assert spl("federation", "ls").err == spl("federation", "list").err != ""
    assert spl("context", "list", "--help").out == spl("context", "ls", "--help").out


def test_the_daemons_own_name_means_another_daemon(spl: Run, daemon: Daemon) -> None:
    """Mostly the export of its home is missing in this terminal."""
    for argv in (("federation", "show", "alice"), ("aitl", "approve", "alice"), ("doctor", "alice")):
        said = spl(*argv).err
        assert "alice is itself the daemon that was asked (~/.syncro)" in said, said
        assert "for that of another home first: export SYNCROPEL_HOME=DIR" in said
    assert "itself" not in spl("federation", "show", "bob").err


def test_another_instance_at_a_url_is_no_matter_of_keys(spl: Run, daemon: Daemon) -> None:
    wrong = (422, error("manifest-did-mismatch", "the peer is carol, not bob"))
    daemon.answers["POST", "/v1/federation/pairs/bob/refresh"] = wrong
    daemon.answers["POST", "/v1/federation/pairs"] = wrong
    refreshed = " ".join(spl("federation", "refresh", "bob", "--url", "http://127.0.0.1:9200/").err.split())
    assert (
        "another instance answers at http://127.0.0.1:9200/: give the URL that `spl status` shows at bob" in refreshed
    )
    paired = spl("federation", "pair", "http://127.0.0.1:9200/").err
    assert "spl federation pair http://127.0.0.1:9200/ --expect-did DID" in paired


def test_help_names_no_daemon_where_none_is_asked(spl: Run) -> None:
    for words, options in (("status", "--home --context"), ("serve", "--home"), ("demo", ""), ("completion", "")):
        page = spl(words, "--help").out
        assert {each for each in ("--home", "--context") if f"{each} " in page.rpartition("common options:")[2]} == set(
            options.split()
        ), words
    assert spl("--context", "none-such", "version").code == 0


def test_words_near_nothing_point_to_help(spl: Run) -> None:
    assert "its commands: spl federation --help" in spl("federation", "frobnicate").err
    result = spl("frobnicate")
    assert (result.code, result.err) == (
        2,
        "error: unknown command 'frobnicate' [usage]\n  fix       all commands: spl help\n",
    )


@pytest.mark.parametrize(
    "line",
    [
        "federation -o json",
        "federation pair",
        "status extra",
        "health -o xml",
        "health --unknown",
        "federation pair u --wait 5x",
        "federation pair u --backfill --from-now",
        "federation pair u --map music",
        "sync a b",
        "sync a of b",
        "token mint --scopes ,",
        "know",
        "know x --clock one",
        "know x --body [1]",
        "thread records t --limit 0",
        "help no such",
        "--nonsense",
    ],
)
def test_wrong_usage_exits_2_and_asks_no_daemon(spl: Run, line: str) -> None:
    result = spl(*line.split())
    assert result.code == 2, result.err
    assert "[usage]" in result.err
    assert result.out == ""


def test_common_options_stand_anywhere(spl: Run, daemon: Daemon, home: Path) -> None:
    daemon.answers["GET", "/v1/federation/pairs"] = listed()
    elsewhere = {"SYNCROPEL_HOME": "/nonexistent"}
    for line in (
        "--home {} -o json federation list",
        "federation -o json --home {} list",
        "federation list --home={} -ojson",
    ):
        result = spl(*line.format(home).split(), env=elsewhere)
        assert result.code == 0, result.err
        assert result.data == []


def test_no_daemon_exits_5_with_the_socket_and_the_fix(spl: Run) -> None:
    result = spl("federation", "list", env={"SYNCROPEL_HOME": "/srv/x/.syncro", "HOME": "/srv/x"})
    assert result.code == 5
    assert result.err == (
        "error: cannot reach the daemon at ~/.syncro/run/spl.sock [daemon-down]\n"
        "  fix       spl init && spl serve\n"
        "  docs      spl help daemon-down\n"
    )


@pytest.mark.parametrize(
    ("folder", "logged", "fix"),
    [
        (".syncro", "", "spl serve"),
        (".syncro", "event=daemon.listening port=9100 url=http://127.0.0.1:9349 pid=1", "spl serve"),
        ("bob's", "", "SYNCROPEL_HOME=~/'bob'\"'\"'s' spl serve"),
        ("bob", "event=daemon.listening port=9200 url=https://b.example", "SYNCROPEL_HOME=~/bob spl serve --port 9200"),
        ("bob", '"event": "daemon.listening", "port": 9300, "url":', "SYNCROPEL_HOME=~/bob spl serve --port 9300"),
    ],
)
def test_what_starts_the_daemon_names_its_home_and_its_last_port(
    spl: Run, tmp_path: Path, folder: str, logged: str, fix: str
) -> None:
    path = tmp_path / folder / "logs" / "spl.log"
    path.parent.mkdir(parents=True)
    path.write_text(f"event=daemon.listening port=9400 url=http://127.0.0.1:9400\nx\n{logged}\n" if logged else "")
    env = {"SYNCROPEL_HOME": str(tmp_path / folder), "HOME": str(tmp_path)}
    begun = fix.replace("spl serve", f"spl init && {fix.partition('spl serve')[0]}spl serve")
    assert f"  fix       {begun}\n" in spl("federation", "list", env=env).err  # made by a daemon that could not listen
    (tmp_path / folder / "keys").mkdir()
    (tmp_path / folder / "keys" / "identity.json").touch()
    for words in (("federation", "list"), ("wait", "daemon", "--timeout", "10ms")):
        assert f"  fix       {fix}\n" in spl(*words, env=env).err


def test_alias_decisions(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/aitl"] = listed()
    assert spl("decisions", "list", "-o", "json").data == []


def test_a_client_command_imports_nothing_heavy(daemon: Daemon, home: Path) -> None:
    daemon.answers["GET", "/v1/federation/pairs"] = listed()
    script = (
        "import sys; before = set(sys.modules)\n"
        "from spl.cli.main import main\n"
        "assert main(['federation', 'list', '-q']) == 0\n"
        f"heavy = [name for name in {FORBIDDEN!r} if name in sys.modules and name not in before]\n"
        "others = [name for name in sys.modules if name.startswith('spl.cli.')]\n"
        "print(heavy, sorted(others))"
    )
    process = child("-c", script, home=home, stdout=subprocess.PIPE)
    out, err = process.communicate(timeout=30)
    assert err == b""
    files = [
        "client",
        "command",
        "federation",
        "fit",
        "grants",
        "main",
        "out",
        "pair",
        "pair_page",
        "rules",
        "soak",
        "soak_plan",
        "verify",
    ]
    assert out.decode() == f"[] {[f'spl.cli.{name}' for name in files]}\n"


@pytest.mark.parametrize("line", ["help auth-invalid", "help pairs", "help codes", "help federation pair"])
def test_help_imports_nothing_heavy(home: Path, line: str) -> None:
    """Nor what may be missing: `dependency-missing` can be asked for, too."""
    script = (
        "import sys; before = set(sys.modules)\n"
        "from spl.cli.main import main\n"
        f"assert main({line.split()!r}) == 0\n"
        f"print([name for name in {FORBIDDEN!r} if name in sys.modules and name not in before])"
    )
    out, err = child("-c", script, home=home, stdout=subprocess.PIPE).communicate(timeout=30)
    assert (out.decode().splitlines()[-1], err) == ("[]", b"")


def test_a_broken_pipe_exits_141_quietly(daemon: Daemon, home: Path) -> None:
    records = [{"thread": f"th_{i}", "records": 1, "last_at": None} for i in range(5000)]
    daemon.answers["GET", "/v1/threads?limit=500"] = listed(*records)
    daemon.answers["GET", "/v1/threads?limit=500&after=th_4999"] = listed()
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = child("-m", "spl", "thread", "list", home=home, stdout=write_end)
    os.close(write_end)
    assert process.communicate(timeout=30)[1] == b""
    assert process.returncode == 141


def test_an_interrupt_exits_130_quietly(daemon: Daemon, home: Path) -> None:
    daemon.answers["POST", "/v1/federation/pairs"] = lambda call: os.kill(process.pid, signal.SIGINT) or chunked()
    process = child("-m", "spl", "federation", "pair", "http://127.0.0.1:1/", home=home, stdout=subprocess.PIPE)
    assert process.communicate(timeout=30) == (b"", b"")
    assert process.returncode == 130


HUGE = "9" * 400
NUMBERS = [
    ("logs -n", (HUGE, "-1", "nan", "1_0", "٣")),
    ("thread records t --limit", (HUGE, "0", "-5", "1e3", "inf")),
    ("thread records t --since", (HUGE, "-1", "nan")),
    ("federation projections bob --limit", (HUGE, "0")),
    ("know x --clock", (HUGE, "-1", str(2**63), "nan")),
    ("serve --port", (HUGE, "-1", "65536")),
    ("config add-fold-rule r --thread t --fold sum --priority", (HUGE, "nan", "1000001")),
    ("federation pair u --wait", ("9999999d", "25h", "-1s", "nan", HUGE)),
    ("federation set-poll-interval bob", ("9999999d", "0s", "31d", "inf")),
    ("token mint --scopes admin --ttl", ("9999999d", "0s", "-1d", "nan")),
    ("federation soak --scale", ("nan", "inf", "0", "-1", HUGE)),
    ("federation soak --window", ("steady=nan", "steady=inf", "steady=-1", f"steady={HUGE}")),
]


@pytest.mark.parametrize(("line", "value"), [(line, value) for line, values in NUMBERS for value in values])
def test_a_number_out_of_bounds_is_refused_and_asks_no_daemon(spl: Run, line: str, value: str) -> None:
    *words, last = line.split()
    argv = [*words, f"{last}={value}"] if last.startswith("--") else [*words, last, value]
    result = spl(*argv)
    assert result.code == 2, result.err
    assert "[usage]" in result.err
    assert len(result.err) < 400


CLOSED = ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"]


@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize(("line", "code"), [("version", 0), ("federation list", 5), ("emit", 2), ("--nonsense", 2)])
def test_closed_standard_streams_change_no_exit_code(home: Path, closed: str, line: str, code: int) -> None:
    command = f'"{sys.executable}" -m spl {line} {closed}'
    env = {**os.environ, "SYNCROPEL_HOME": str(home)}
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, check=False, timeout=30)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr


def test_a_file_that_is_opened_never_becomes_a_standard_stream(home: Path) -> None:
    """Descriptor 2 of a daemon without stderr would otherwise be its log, and a library's print would end up there."""
    script = "from spl.cli.main import main; main(['version']); import os; print(os.open('/dev/null', 0))"
    command = f'"{sys.executable}" -c "{script}" <&- 2>&-'
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=False, timeout=30)
    assert int(done.stdout.split()[-1]) > 2


def test_a_full_disk_under_the_output_is_one_line_and_exit_1(home: Path) -> None:
    for words in (["version"], ["help", "codes"]):
        for names in (["stdout"], ["stdout", "stderr"]):
            with open("/dev/full", "w") as full:
                argv = [sys.executable, "-m", "spl", *words]
                done = subprocess.run(argv, check=False, timeout=30, **dict.fromkeys(names, full))  # type: ignore[call-overload]
            assert done.returncode == 1, (words, names)
    with open("/dev/full", "w") as full:
        process = child("-m", "spl", "version", home=home, stdout=full)
    err = process.communicate(timeout=30)[1].decode()
    assert err.startswith("error: the output cannot be written: No space left on device [output-failed]\n")
    assert "Traceback" not in err


def test_a_missing_package_is_named(home: Path) -> None:
    script = "import sys; sys.modules['nacl'] = None\nfrom spl.cli.main import main\nsys.exit(main(['init']))"
    process = child("-c", script, home=home, stdout=subprocess.PIPE)
    err = process.communicate(timeout=30)[1].decode()
    assert process.returncode == 78
    assert "[dependency-missing]" in err
    assert "nacl" in err.splitlines()[0]
    assert "Traceback" not in err


def test_without_a_home_folder_the_command_says_what_to_set(spl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "relative"):
        monkeypatch.setenv("HOME", value)
        result = spl("federation", "list", env={"SYNCROPEL_HOME": "", "HOME": value})
        assert result.code == 78, result.err
        assert "set SYNCROPEL_HOME or HOME to an absolute path" in result.err
        assert spl("version", env={"SYNCROPEL_HOME": "", "HOME": value}).code == 0
    result = spl("federation", "list", env={"SYNCROPEL_HOME": "~nobody-of-this-name/x"})
    assert result.code == 78


def test_a_relative_home_in_a_removed_folder(spl: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    result = spl("federation", "list", env={"SYNCROPEL_HOME": "home"})
    assert result.code == 78
    assert "the current folder was removed" in result.err


def test_arguments_are_utf8_whatever_the_locale(daemon: Daemon, home: Path) -> None:
    """In a C locale Python hands over bytes as lone surrogates, which no JSON can carry."""
    daemon.answers["POST", "/v1/records"] = {"id": "i", "thread": "t", "clock": 1}
    env = {**os.environ, "SYNCROPEL_HOME": str(home), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    argv = [sys.executable, "-m", "spl", "know", "käse"]
    assert subprocess.run(argv, env=env, check=False, capture_output=True, timeout=30).returncode == 0
    assert daemon.sent("POST", "/v1/records").json()["body"]["text"] == "käse"


@pytest.mark.parametrize(("word", "step"), [("stop", "spl health"), ("restart", "spl serve"), ("start", "spl serve")])
def test_a_word_of_other_daemons_gets_what_it_means_here(spl: Run, word: str, step: str) -> None:
    refused = spl(word)
    assert (refused.code, "Did you mean" in refused.err) == (2, False)
    assert refused.err.endswith(f"{step}\n")
    for argv in ((word, "--home", "/srv/b"), ("--home=/srv/b", word)):
        assert spl(*argv, env={"HOME": "/"}).err.endswith(f"SYNCROPEL_HOME=/srv/b {step}\n")
    assert spl(word, env={"HOME": "/", "SYNCROPEL_HOME": "/srv/c"}).err.endswith(f"SYNCROPEL_HOME=/srv/c {step}\n")


def test_what_a_revoked_pair_was_is_shown_by_the_pair_that_was_named(spl: Run, daemon: Daemon) -> None:
    """What the peer thinks of the pair is for programs."""
    refused = {**error("pair-revoked", "over", peer_view={"head": 0}), "hint": CODES["pair-revoked"].fix}
    daemon.answers["GET", "/v1/federation/pairs/bob"] = (409, refused)
    said = spl("federation", "show", "bob").err
    assert "  fix       why, and how to pair again: spl federation show bob\n" in said
    assert "peer view" not in said


def test_a_daemon_whose_program_was_replaced_is_named_by_its_process(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", "/v1/status"] = (503, error("program-replaced", "the files were replaced"))
    said = " ".join(spl("status").err.split())
    assert f"stop the daemon, which loses nothing: kill {os.getpid()} then: " in said
