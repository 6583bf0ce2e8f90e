"""The command tree: find the command, import its file alone, run it, turn errors into exit codes.

A client command starts in a few tens of milliseconds because the table below names files, and a file is imported when
its command is called.
"""

import importlib
import os
import re
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from io import BufferedIOBase
from textwrap import wrap
from types import ModuleType
from typing import Final, NamedTuple, TextIO, cast

from ..core.errors import CODES, SplError
from .command import INTERRUPTED, VALUED, Command, Group, Shell, UsageError, help_of, parser_of
from .out import Out


class CommandPlace(NamedTuple):
    """The file of a first word, its line in `spl help`, and whether a second word follows."""

    file: str
    summary: str
    group: bool = False


PLACES: Final[Mapping[str, CommandPlace]] = {
    "demo": CommandPlace("demo", "Watch two throw-away daemons pair and sync."),
    "init": CommandPlace("init", "Create the home folder, identity and admin token."),
    "serve": CommandPlace("serve", "Run the daemon."),
    "status": CommandPlace("status", "Show the state of the daemon and what needs attention."),
    "doctor": CommandPlace("doctor", "Find what is wrong and how to fix it."),
    "monitor": CommandPlace("monitor", "Print each change of a pair as it happens."),
    "top": CommandPlace("monitor", "Show every pair, redrawn in place."),
    "ui": CommandPlace("ui", "Open the daemon's page in a browser."),
    "logs": CommandPlace("logs", "Read this home's log, filtered."),
    "health": CommandPlace("status", "Check that the daemon answers."),
    "identity": CommandPlace("identity", "Generate, show and verify this instance's identity.", group=True),
    "federation": CommandPlace("federation", "Pair with other instances and manage the pairs.", group=True),
    "sync": CommandPlace("sync", "Sync with paired instances now."),
    "wait": CommandPlace("wait", "Wait until the daemon, a pair or both sides are ready.", group=True),
    "aitl": CommandPlace("aitl", "Decide requests that wait for a person, such as pair requests.", group=True),
    "intend": CommandPlace("emit", "Emit a record of an intention."),
    "do": CommandPlace("emit", "Emit a record of an action."),
    "know": CommandPlace("emit", "Emit a record of a fact."),
    "learn": CommandPlace("emit", "Emit a record of a lesson."),
    "emit": CommandPlace("emit", "Emit records written as JSON."),
    "thread": CommandPlace("threads", "List, snapshot and restore threads and their records.", group=True),
    "store": CommandPlace("storage", "Check the log on disk and show its size.", group=True),
    "debug": CommandPlace("debug", "Compare records, threads and snapshots.", group=True),
    "namespace": CommandPlace("namespaces", "Create and list namespaces, which separate tenants.", group=True),
    "consent": CommandPlace("grants", "List what is shared across pairs, and at which level.", group=True),
    "sink": CommandPlace("sink", "Send records into a stream engine, for any number of readers.", group=True),
    "token": CommandPlace("tokens", "Mint, list and revoke access tokens.", group=True),
    "config": CommandPlace("settings", "Show and set the configuration; add, list and remove rules.", group=True),
    "install-service": CommandPlace("service", "Run the daemon under systemd."),
    "context": CommandPlace("contexts", "Name daemons elsewhere, and choose which one commands ask.", group=True),
    "completion": CommandPlace("completion", "Print the script that completes commands in a shell."),
    "api": CommandPlace("api", "Send any request to the daemon and print its answer."),
    "help": CommandPlace("help", "Explain a command, a topic of the manual or an error code."),
    "version": CommandPlace("help", "Print the version."),
}
"""The first words, in the order of `spl help`."""

ALIASES: Final[Mapping[str, str]] = {"decisions": "aitl"}

_STOP: Final = "Ctrl-C in the terminal of the daemon ends it, and so does SIGTERM; its process id: spl health"
_MEANT: Final[Mapping[str, str]] = {
    "stop": _STOP, "restart": f"{_STOP}; then: spl serve", "start": "spl serve", "run": "spl serve",
    "unpair": "spl federation revoke PAIR", "connect": "spl federation pair URL",
    "pairs": "spl federation list", "peers": "spl federation list", "ls": "spl federation list",
    "backup": "spl thread snapshot --all > FILE",
}  # fmt: skip
"""What people try that have used other daemons."""
_SAME: Final[Mapping[str, str]] = {"ls": "list", "list": "ls"}
_VERBS: Final[Mapping[str, str]] = {
    "remove": "remove revoke delete", "rm": "remove revoke delete", "delete": "remove revoke delete archive",
    "add": "add create mint pair grant", "create": "add mint pair", "new": "create mint add pair", "mint": "add create",
    "status": "list ls show", "info": "show", "get": "show", "describe": "show", "stop": "pause", "start": "resume",
    "accept": "approve", "deny": "reject", "use": "select", "unpair": "revoke", "connect": "pair",
}  # fmt: skip
"""Words that other programs use -> the verbs here, of which those of the noun are meant."""
_BROKEN_PIPE = 141
_BEGINNING_CHARS = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; the console entry."""
    words = [_utf8(word) for word in (sys.argv[1:] if argv is None else argv)]
    _open_streams()
    if _next_word(words)[1] == "serve":
        # Importing the daemon takes half a second, in which a signal would end it without a word.  Held back here,
        # signals reach the handlers that it installs.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
    try:
        return run(words, os.environ, cast(BufferedIOBase, sys.stdin.buffer), sys.stdout, sys.stderr)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return _BROKEN_PIPE  # the reader of the result went away
    finally:
        _drop_unwritten()


def run(argv: list[str], env: Mapping[str, str], stdin: BufferedIOBase, stdout: TextIO, stderr: TextIO) -> int:
    """Run one command line against these streams and return its exit code."""
    out = Out(stdout, stderr, env, now_ms)
    try:
        try:
            return _run(argv, env, stdin, out)
        except ModuleNotFoundError as exc:
            raise SplError("dependency-missing", f"the Python package {exc.name} is not installed") from exc
        finally:
            out.end()
    except SplError as exc:
        out.failure(exc)
        return exc.exit_code


def find(argv: list[str]) -> tuple[Command | Group | None, list[str]]:
    """Return the command that the words name (None without words), and the rest of the command line.

    Common options may stand before and between the words.  Raises UsageError for unknown words and options.
    """
    before, noun, rest = _next_word(argv)
    if noun is None:
        return None, before
    noun = ALIASES.get(noun, noun)
    if noun not in PLACES:
        raise _unknown(noun, _next_word(rest)[1] or "")
    entry = _entries(noun)[noun]
    if isinstance(entry, Command):
        return entry, before + rest
    between, verb, rest = _next_word(rest)
    if verb is None:
        return entry, before + between
    for command in entry.commands:
        if command.name in (f"{noun} {verb}", f"{noun} {_SAME.get(verb, verb)}"):
            return command, before + between + rest
    raise _unknown(f"{noun} {verb}")


def load(name: str) -> ModuleType:
    """Return a module of the package, such as "cli.sync"; imported at the first call."""
    return importlib.import_module(f"{__package__.rpartition('.')[0]}.{name}")


def now_ms() -> int:
    """Return the time in Unix milliseconds."""
    return time.time_ns() // 1_000_000


def _run(argv: list[str], env: Mapping[str, str], stdin: BufferedIOBase, out: Out) -> int:
    try:
        entry, rest = find(["version", *argv[1:]] if argv[:1] in (["--version"], ["-V"]) else argv)
    except UsageError:
        _shell(_said(argv, "--home"), _said(argv, "--context"), env, stdin, out)
        raise
    if entry is None and rest and not _asks_help(rest):
        raise UsageError("usage", f"there is no command beside '{rest[0]}'", hint="all commands: spl help")
    if entry is None or _asks_help(rest) or (isinstance(entry, Group) and not rest):
        out.page(overview() if entry is None else help_of(entry))
        return 0
    if isinstance(entry, Group):
        verbs = ", ".join(command.name.rpartition(" ")[2] for command in entry.commands)
        raise UsageError("usage", f"'{entry.name}' needs a command: {verbs}", hint=f"spl {entry.name} --help")
    args = parser_of(entry).parse_args(rest)
    if entry.result:
        out.form, out.quiet, out.verbose = args.output, args.quiet, args.verbose
    shell = _shell(args.home or "", args.context or "", env, stdin, out)
    if entry.name == "help":
        out.pasted = str
    try:
        return entry.run(args, shell)
    except SplError as exc:
        _fill(exc, entry, args, shell)
        raise
    except (KeyError, TypeError, AttributeError) as exc:
        if not shell.distant:
            raise  # the daemon of this home is of our own version: a defect, to be seen whole
        raise _of_another_form(exc) from exc


def _fill(exc: SplError, entry: Command, args: Namespace, shell: Shell) -> None:
    """Put into the next step of an error what this command line knows, so that it can be pasted."""
    pair = getattr(args, "pair", None)
    exc.hint = re.sub(r"\bPAIR_ID\b", lambda _: pair or "PAIR_ID", exc.hint)
    if exc.code == "store-locked" and str(pid := exc.facts.get("pid", "")).isdigit():
        hint: str = load("cli.client").stopped_hint(int(str(pid)))
        exc.hint = hint or f"for another home: export SYNCROPEL_HOME=DIR; to stop the one that runs: kill {pid}"
    if exc.hint == CODES["pair-revoked"].fix and pair:
        exc.hint = f"why, and how to pair again: spl federation show {pair}"
    if entry.name == "federation pair" and exc.code in ("url-invalid", "connect", "tls-chain"):
        exc.hint = re.sub(": (?=https?://)", ": spl federation pair ", exc.hint)
    if exc.code in ("auth-required", "auth-invalid", "scope-forbidden") and shell.context is not None:
        lacks = "status:read" if "status:read" in exc.message else exc.facts.get("scope")  # of several the least
        exc.hint = shell.context.token_step(str(lacks or "status:read"))
    if exc.code == "manifest-did-mismatch" and (url := getattr(args, "url", None)):
        exc.hint = exc.hint.replace("pair URL", f"pair {url}")
        if entry.name == "federation refresh":
            exc.hint = f"another instance answers at {url}: give the URL that `spl status` shows at {pair}"
    if exc.code == "auth-invalid" and entry.name == "federation set-token":
        mint = "spl token mint --scopes federation:sync,federation:subscribe --pair PAIR_ID"
        exc.hint = f"on the peer, with the id in `spl federation list`: {mint}; then give here the text that it prints"
    if exc.code in ("pair-unknown", "not-found") and (named := pair or getattr(args, "id", None)):
        exc.hint = load("cli.paste").own_name(shell, named) or exc.hint
    load("cli.paste").with_start(exc, shell)


def _of_another_form(exc: Exception) -> SplError:
    """Return the error of an answer that a command cannot use, from a daemon elsewhere: its version is not ours."""
    what = f"lacks {exc}" if isinstance(exc, KeyError) else f"has a member of another form: {exc}"
    why = "It is of another version, or something else answers in its place."
    hint = "bring both sides to one version; this one: spl version"
    return SplError("answer-malformed", f"the daemon's answer {what}", hint=hint, why=why)


def _shell(home: str, context: str, env: Mapping[str, str], stdin: BufferedIOBase, out: Out) -> Shell:
    """Return what a command works with; from now on `out` names its home or context in what is to be pasted."""
    shell = Shell(
        home, env, out, stdin, now_ms=now_ms, random_bytes=os.urandom, load=load, context=context,
    )  # fmt: skip
    out.pasted = lambda text: load("cli.paste").pasted(text, shell) if "spl " in text else text
    return shell


def _said(argv: Sequence[str], option: str) -> str:
    """Return what a line that is not understood gives a common option, "" if nothing."""
    for word, after in zip(argv, [*argv[1:], ""], strict=True):
        if word.partition("=")[0] == option:
            return word.partition("=")[2] or after
    return ""


def _utf8(word: str) -> str:
    """Return an argument as UTF-8, also if the locale is another one; bytes that are not UTF-8 stay as they came."""
    try:
        return os.fsencode(word).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return word


def _open_streams() -> None:
    """Open closed standard streams on /dev/null.

    Otherwise Python has no stream there at all, and the next file that is opened, such as the log of records, would
    get descriptor 1 or 2 and with it whatever a library prints.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            found = os.open(os.devnull, os.O_RDWR)
            if found != number:
                os.dup2(found, number)
                os.close(found)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - as long as we run


def _drop_unwritten() -> None:
    """Drop output that cannot be written, so that the interpreter does not try again at exit and change the code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def overview() -> str:
    """Return the page of `spl help`: every command with its summary."""
    width = max(map(len, PLACES))
    rows = [f"  {noun:<{width}}  {summary}" for noun, (_, summary, _) in PLACES.items()]
    return "\n".join([
        "usage: spl COMMAND [options]", "",
        "An instance keeps records in threads and syncs them with the instances that it is paired with.",
        "One daemon (`spl serve`) does the work; the other commands ask it.", "",
        "commands:", *rows, "",
        "`spl COMMAND --help` explains a command, `spl help CODE` an error code, `spl help TOPIC` a topic:", "",
        *wrap(" ".join(load("cli.manual").TOPICS), 78, initial_indent="  ", subsequent_indent="  "), "",
        "example:", "  spl init", "",
    ])  # fmt: skip


def _entries(noun: str) -> dict[str, Command | Group]:
    tree: tuple[Command | Group, ...] = load(f"cli.{PLACES[noun].file}").TREE
    return {entry.name: entry for entry in tree}


def _next_word(argv: list[str]) -> tuple[list[str], str | None, list[str]]:
    """Return (the options before the first word, the word, the rest)."""
    at = 0
    while at < len(argv) and argv[at].startswith("-") and argv[at] != "--":
        at += 2 if argv[at] in VALUED else 1
    if at >= len(argv) or argv[at] == "--":
        return argv, None, []
    return argv[:at], argv[at], argv[at + 1 :]


def _asks_help(rest: list[str]) -> bool:
    options = rest[: rest.index("--")] if "--" in rest else rest
    return "-h" in options or "--help" in options


def _unknown(words: str, verb: str = "") -> UsageError:
    """Return the error for unknown words; it names the nearest command if one is near.

    A verb without its noun is near (`pair` means `federation pair`), a misspelt one less so than a misspelt noun; the
    beginning of a noun (`fed`) is as near as one wrong letter.  Of equally near ones the first of `spl help` is named.
    If a noun is near, `verb` is the word that was given after it.  Another program's verb means that of the noun, a
    part (`federation mode`) the only one that has it, and a verb after the wrong noun (`federation sync`) the only
    command that ends with it.
    """
    names = list(PLACES)
    for noun in [noun for noun, place in PLACES.items() if place.group]:
        group = _entries(noun)[noun]
        assert isinstance(group, Group)
        names += [command.name for command in group.commands]
    if words in _MEANT:
        return UsageError("usage", f"unknown command '{words}'", hint=_MEANT[words])
    noun, _, last = words.rpartition(" ")
    same = [name for each in _VERBS.get(last, "").split() if (name := f"{noun} {each}") in names]
    parts = [name for name in names if name.startswith(f"{noun} ") and last in name.rpartition(" ")[2].split("-")]
    ends = [name for name in names if last in (name, name.rpartition(" ")[2])]
    if noun and (only := same[:1] or next((each for each in (parts, ends) if len(each) == 1), [])):
        return UsageError("usage", f"unknown command '{words}'. Did you mean '{only[0]}'?")
    ranked = []
    for name in [name for name in names if name.startswith(f"{noun} ")] if noun else names:
        cost = _distance(words, name.rpartition(" ")[2])
        begun = 1 if len(last) >= _BEGINNING_CHARS and name.startswith(words) else len(words)
        ranked.append((min(_distance(words, name), cost + (cost > 0), begun), name))
    cost, name = min(ranked, key=lambda item: item[0])
    if cost > max(1, len(last) // 3):
        every = f"its commands: spl {noun} --help" if noun else "all commands: spl help"
        return UsageError("usage", f"unknown command '{words}'", hint=every)
    whole = next((each for each in (f"{name} {verb}", f"{name} {_SAME.get(verb, verb)}") if each in names), name)
    return UsageError("usage", f"unknown command '{words}'. Did you mean '{whole}'?")


def _distance(a: str, b: str) -> int:
    """Return the number of single-character edits between two words; two neighbours that are swapped count as one."""
    above, row = list[int](), list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        higher, above, row = above, row, [i]
        for j, y in enumerate(b, 1):
            cost = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (x != y))
            swapped = i > 1 and j > 1 and (x, y) == (b[j - 2], a[i - 2])
            row.append(min(cost, higher[j - 2] + 1) if swapped else cost)
    return row[-1]
