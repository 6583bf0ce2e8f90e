"""`spl context`: names for daemons elsewhere, and `spl status --all`, which asks every one of them.

A context holds where a daemon is and which file holds its token, never the token.  They stand in one file of the user,
and only `spl context select` makes one apply to commands that name no daemon; `spl context none` takes that back.
"""

import fcntl
import json
import os
import re
import stat
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from shlex import quote
from typing import Any, Final

from ..client.dial import Where, at_url
from ..core.errors import CODES, SplError, printable
from ..core.value import asdict, dataclass, replace
from ..core.when import text_of
from .client import Ctl, CtlError
from .command import FOUND_PROBLEMS, Command, Group, Shell, UsageError, arg, path_of_contexts

ROWS_AT_ONCE: Final = 32
ROW_S: Final = 5.0
"""How long a daemon of `status --all` may take, whatever it sends meanwhile."""
OK, UNREACHABLE, UNAUTHORIZED, OLD = "ok", "unreachable", "unauthorized", "old"

_BYTES_MAX: Final = 256 * 1024
_TOKEN_BYTES: Final = 4096
_TEXT_CHARS: Final = 80
_CONTEXTS_MAX: Final = 500
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_SSH: Final = re.compile(r"ssh:((?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9][A-Za-z0-9.-]*)(?::([0-9]{1,5}))?")
_PORT: Final = 9100
_ACCESS_EXIT: Final = 4
_FORMS: Final = "https://HOST:PORT, http:// to this machine, unix:/PATH of a socket, or ssh:HOST[:DAEMON-PORT]"


@dataclass(frozen=True, slots=True)
class Context:
    """One daemon elsewhere: where it is, the files with its token and its authorities, when it last answered."""

    name: str
    url: str
    token_file: str = ""
    ca_file: str = ""
    seen_at: str = ""

    def ctl(self, trace: Callable[[str], None] = lambda _: None) -> Ctl:
        """Return the client for it; nothing is dialled.  Raises CtlError for a bad URL or token file."""
        return Ctl(self.where(), self._token(), trace)

    def where(self) -> Where:
        """Return the place that the URL names."""
        name = f"{self.url} (context {self.name})"
        if self.url.startswith("unix:/"):
            return Where(name, self.url.removeprefix("unix:"))
        if self.url.startswith("ssh:"):
            found = _SSH.fullmatch(self.url)
            port = int(found[2] or _PORT) if found else 0
            if found is None or not 0 < port < 65536:
                raise UsageError("usage", f"{self.url[:80]} is not ssh:[USER@]HOST[:PORT]")
            return Where(name, host="127.0.0.1", port=port, authority=f"127.0.0.1:{port}", ssh=found[1])
        if not self.url.startswith(("https://", "http://")):
            raise UsageError("usage", f"the URL of a daemon is {_FORMS}", hint=self._likely())
        return replace(at_url(self.url, self.ca_file, "the URL"), name=name)

    def _likely(self) -> str:
        """Return the command with a scheme, if that is all that the URL lacks: http to this machine, else https."""
        for url in (f"http://{self.url}", f"https://{self.url}"):
            with suppress(CtlError):
                at_url(url)
                by_ssh = f"; through ssh, if it has no TLS: {self._added('ssh:HOST')}" if url[4] == "s" else ""
                return f"with its scheme: {self._added(url)}{by_ssh}"
        return ""

    def _added(self, url: str, more: str = "") -> str:
        """Return the command that names this context by a URL."""
        files = (("--token-file", self.token_file), ("--ca-file", self.ca_file))
        given = "".join(f" {option} {quote(path)}" for option, path in files if path)
        return f"spl context add {self.name} --url {quote(url)}{given}{more}"

    def _token(self) -> str:
        if not self.token_file:
            return ""
        try:
            with open(_regular(self.token_file), encoding="ascii") as file:
                text = file.read(_TOKEN_BYTES).strip()
            if not text.startswith("spl_"):  # any other secret stays here
                raise OSError(0, "not the text of a token")
            return text
        except (OSError, UnicodeDecodeError) as exc:
            reason = getattr(exc, "strerror", None) or "not the text of a token"
            message = f"the token file of context {self.name}: {self.token_file}: {reason}"
            raise CtlError("auth-required", message, hint=self.token_step("status:read")) from exc

    def token_step(self, scope: str) -> str:
        """Return how to get a token that holds the scope, and how to give it to this context.

        It replaces the one in the file, so it also gets what that holds, which only its daemon knows, and what
        `status` needs: otherwise the next command would ask for yet another one.
        """
        file = self.token_file or "FILE"
        scopes = scope if scope == "admin" else ",".join(dict.fromkeys(("status:read", scope)))
        present = ", with the scopes of the present token as well" if self.token_file and scopes != scope else ""
        mint = f"on its machine{present}: spl token mint --scopes {scopes}; put its token into {quote(file)}"
        named = self._added(self.url, " --token-file FILE --replace")
        return mint if self.token_file else f"{mint}, then here: {named}"


def _regular(path: str) -> int:
    """Return a descriptor of a file; raise OSError for what is none, such as a FIFO that nobody writes into."""
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(0, "not a regular file")
    return number


@dataclass(frozen=True, slots=True)
class Contexts:
    """What the file holds: contexts by name, and the name of the selected one, "" for none."""

    named: Mapping[str, Context]
    selected: str = ""

    def get(self, name: str) -> Context:
        """Return a context; raise SplError "not-found"."""
        if name not in self.named:
            raise SplError("not-found", f"there is no context {name[:80]!r}", hint="spl context ls")
        return self.named[name]


def read(env: Mapping[str, str]) -> Contexts:
    """Return what the user's file holds, nothing without one.  Raises SplError "config-invalid"."""
    path = path_of_contexts(env)
    try:
        with open(_regular(path), "rb") as file:
            for each, found in (
                (path, os.fstat(file.fileno())),
                (os.path.dirname(path), os.stat(os.path.dirname(path))),
            ):
                if found.st_uid != os.geteuid() or found.st_mode & 0o022:
                    text = f"{path}: others than you can change {each}, and so where your tokens go"
                    raise SplError(
                        "config-invalid", text, hint=f"look at it, then: chmod go-w {each}; chown $USER {each}"
                    )
            form = json.loads(file.read(_BYTES_MAX + 1))
        rows = {name: Context(name, **row) for name, row in form["contexts"].items()}
        texts = [text for row in rows.values() for text in asdict(row).values()]
        if not all(isinstance(text, str) for text in [form["selected"], *texts]):
            raise TypeError
        return Contexts(rows, form["selected"] if form["selected"] in rows else "")
    except FileNotFoundError:
        return Contexts({})
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as exc:
        reason = getattr(exc, "strerror", None) or "it is not what spl wrote"
        raise SplError("config-invalid", f"{path}: {reason}", hint=f"move it away: mv {path} {path}.bad") from exc


@contextmanager
def _changing(shell: Shell) -> Iterator[Callable[[Contexts], None]]:
    """Give what stores contexts, while no other process changes them; the file is the user's alone."""
    path = Path(path_of_contexts(shell.env))
    disk = shell.load("home.disk")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as exc:
        raise disk.unusable(path, exc) from exc

    def store(found: Contexts) -> None:
        rows = {name: {k: v for k, v in asdict(row).items() if v and k != "name"} for name, row in found.named.items()}
        text = json.dumps({"selected": found.selected, "contexts": rows}, indent=2) + "\n"
        try:
            disk.Disk().replace_atomic(path, text.encode())
        except OSError as exc:
            raise disk.unusable(path, exc) from exc

    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield store
    finally:
        os.close(folder)


def _add(args: Namespace, shell: Shell) -> int:
    if _NAME.fullmatch(args.name) is None:
        raise UsageError("usage", "the name of a context has letters, digits, '.', '_' and '-', and at most 63")
    files = [os.path.abspath(os.path.expanduser(path)) if path else "" for path in (args.token_file, args.ca_file)]
    made = Context(args.name, args.url, *files)
    made.ctl()  # refuses what could never work
    with _changing(shell) as store:
        found = read(shell.env)
        if args.name in found.named and not args.replace:
            raise UsageError("usage", f"there is a context {args.name} already: give --replace to change it")
        if len(found.named) >= _CONTEXTS_MAX:
            raise UsageError("usage", f"there are {_CONTEXTS_MAX} contexts, which is the most")
        store(replace(found, named={**found.named, args.name: made}))
    shell.out.line(f"context {args.name} is {args.url}")
    shell.out.hint(f"try it: spl status --context {args.name}; use it always: spl context select {args.name}")
    return 0


def _list(args: Namespace, shell: Shell) -> int:
    found = read(shell.env)
    rows = [{**asdict(row), "selected": name == found.selected} for name, row in sorted(found.named.items())]
    if not shell.out.data("spl.contexts/1", rows, lambda: None):
        cells = [
            (str(row["name"]), str(row["url"]), "selected" if row["selected"] else "-", str(row["token_file"] or "-"))
            for row in rows
        ]
        none = "no contexts yet: spl context add NAME --url URL"
        shell.out.table(("NAME", "URL", "SELECTED", "TOKEN FILE"), cells, keep=("NAME", "URL", "SELECTED"), none=none)
    return 0


def _select(args: Namespace, shell: Shell) -> int:
    with _changing(shell) as store:
        found = read(shell.env)
        store(replace(found, selected=found.get(args.name).name))
    shell.out.line(f"commands that name no daemon now ask {found.get(args.name).url}; undo: spl context none")
    _say_what_goes_first(shell)
    return 0


def _say_what_goes_first(shell: Shell) -> None:
    for name in ("SPL_SERVE_URL", "SPL_CONTEXT", "SYNCROPEL_HOME", "STATE_DIRECTORY"):
        if shell.env.get(name):
            shell.out.warn(f"! {name} is set here, and goes before the selected context")


def _none(args: Namespace, shell: Shell) -> int:
    with _changing(shell) as store:
        store(replace(read(shell.env), selected=""))
    shell.out.line("no context is selected: commands ask the daemon of the home")
    return 0


def _remove(args: Namespace, shell: Shell) -> int:
    with _changing(shell) as store:
        found = read(shell.env)
        gone = found.get(args.name)
        left = {name: row for name, row in found.named.items() if name != args.name}
        store(Contexts(left, "" if found.selected == args.name else found.selected))
    kept = f"; its token is still in {gone.token_file}" if gone.token_file else ""
    shell.out.line(f"context {args.name} is removed{kept}")
    return 0


def fleet(args: Namespace, shell: Shell) -> int:
    """Print a row for every context, those that do not answer included; return 3 if one is not ok."""
    found = read(shell.env)
    if not found.named:
        raise UsageError("usage", "there are no contexts to ask", hint="spl context add NAME --url URL")
    rows = list(ask_all([row for _, row in sorted(found.named.items())], _asked, ROW_S).values())
    with suppress(SplError), _changing(shell) as store:
        seen = {row["context"]: row["answered_at"] for row in rows if row["answered_at"]}
        now = read(shell.env)
        store(replace(now, named={n: replace(c, seen_at=seen.get(n, c.seen_at)) for n, c in now.named.items()}))
    if not shell.out.data("spl.fleet/1", rows, lambda: None):
        shell.out.table(
            ("CONTEXT", "REACHABLE", "PAIRS", "ATTENTION", "SEEN", "INSTANCE"), [_cells(row, shell) for row in rows],
            below=[_why(row) for row in rows], keep=("CONTEXT", "REACHABLE", "ATTENTION"),
        )  # fmt: skip
        if silent := [row["context"] for row in rows if row["reachable"] != OK]:
            shell.out.hint(f"hint: what to do about it: spl status --context {silent[0]}")
    wrong = any(row["reachable"] != OK or (args.check and row["attention"]) for row in rows)
    return FOUND_PROBLEMS if wrong else 0


def _cells(row: Mapping[str, Any], shell: Shell) -> tuple[str, ...]:
    seen = shell.out.ago(row["answered_at"] or row["seen_at"])
    if row["reachable"] != OK:
        return row["context"], row["reachable"], "-", "-", seen, "-"
    pairs, wrong = row["pairs"], row["attention"]
    total, active = pairs.get("total", 0) - pairs.get("revoked", 0), pairs.get("active", 0)
    return (
        row["context"], OK, f"{active}/{total} active", ", ".join(dict.fromkeys(wrong)) or "-", seen,
        f"{row['did'] or 'no identity'}, spl {row['version']}",
    )  # fmt: skip


def _why(row: Mapping[str, Any]) -> str:
    """Return why a daemon did not answer, without the name that its row begins with; "" if it did."""
    said = str(row["error"]).replace(f" (context {row['context']})", "")
    return "" if row["reachable"] == OK else f"{said} [{row['code']}]"


def ask_all(
    contexts: list[Context], ask: Callable[[Context], dict[str, Any]], row_s: float
) -> dict[str, dict[str, Any]]:
    """Return a row for each context, in their order; one that takes longer than `row_s` is not waited for.

    Threads that still wait for a daemon then end with the process: they hold nothing that has to be closed in order.
    """
    answers: SimpleQueue[tuple[str, dict[str, Any]]] = SimpleQueue()
    waiting, ends, rows = list(reversed(contexts)), dict[str, float](), dict[str, dict[str, Any]]()
    known = {context.name: context for context in contexts}

    def run(context: Context) -> None:
        try:
            row = ask(context)
        except (
            SplError,
            ArithmeticError,
            AttributeError,
            LookupError,
            MemoryError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as exc:  # what one daemon sent ends no other's row
            row = _row(context, OLD, SplError("answer-malformed", f"its status is not read: {type(exc).__name__}"))
        answers.put((context.name, row))

    while waiting or ends:
        while waiting and len(ends) < ROWS_AT_ONCE:
            context = waiting.pop()
            ends[context.name] = time.monotonic() + row_s
            threading.Thread(target=run, args=(context,), daemon=True).start()
        try:
            name, row = answers.get(timeout=max(0.0, min(ends.values()) - time.monotonic()))
        except Empty:
            for name in [name for name, end_s in ends.items() if end_s <= time.monotonic()]:
                del ends[name]
                late = SplError("timeout", f"no answer within {row_s:g} s")
                rows[name] = _row(known[name], UNREACHABLE, late)
        else:
            if ends.pop(name, None) is not None:
                rows[name] = row
    return {context.name: rows[context.name] for context in contexts}


def _asked(context: Context) -> dict[str, Any]:
    try:
        status = context.ctl().get("/v1/status")
        row = _row(context, OK, None, status)
        if not status or not all(type(row["pairs"].get(name, 0)) is int for name in ("total", "active", "revoked")):
            raise TypeError("numbers of pairs")
        return row
    except SplError as exc:
        is_old = exc.code in ("not-found", "answer-malformed")
        state = UNAUTHORIZED if CODES[exc.code].exit == _ACCESS_EXIT else OLD if is_old else UNREACHABLE
        return _row(context, state, exc)
    except (KeyError, TypeError, AttributeError) as exc:
        return _row(context, OLD, SplError("answer-malformed", f"its status lacks {_text(exc)}"))


def _text(value: object) -> str | None:
    return None if value is None else printable(str(value))[:_TEXT_CHARS]


def _row(
    context: Context, reachable: str, error: SplError | None, status: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    known = status or {}
    identity = (known["identity"] if status else None) or {}
    return {
        "context": context.name, "url": context.url, "reachable": reachable,
        "code": error.code if error else None, "error": error.message if error else None,
        "fix": error.hint if error else None,
        "answered_at": text_of(time.time_ns() // 1_000_000) if status else None, "seen_at": context.seen_at or None,
        "did": _text(identity.get("did")), "version": _text(known["version"]) if status else None,
        "uptime_s": known["uptime_s"] if status else None, "pairs": {**known["pairs"]} if status else None,
        "attention": [_text(item["code"]) for item in known["attention"]] if status else None,
    }  # fmt: skip


_NAME_ARG: Final = arg("name", metavar="NAME", help="the name of a context")

TREE: Final = (
    Group(
        "context",
        "A context names a daemon elsewhere: its URL, and the file that holds a token for it.\n"
        "--home and --context go before SPL_SERVE_URL, SPL_CONTEXT and SYNCROPEL_HOME, and those before the selected\n"
        "context.",
        "spl context ls",
        (
            Command(
                "context add",
                "Names a daemon: over https, over http to this machine, over a socket, or over `ssh -W`.\n"
                "The token stays in its file, which is read at each command. Nothing is dialled.",
                "spl context add hub --url http://127.0.0.1:9100 --replace",
                _add,
                (
                    _NAME_ARG,
                    arg("--url", required=True, metavar="URL", help=_FORMS),
                    arg("--token-file", metavar="FILE",
                        help="a file with a token that `spl token mint` printed there (for unix: none is needed)"),
                    arg("--ca-file", metavar="FILE",
                        help="certificates of a private authority (default: the system's)"),
                    arg("--replace", action="store_true", help="change the context if there is one of this name"),
                ),
                whose="nobody",
            ),
            Command("context ls", "Lists the contexts. None of them is dialled.", "spl context ls", _list,
                    whose="nobody"),
            Command(
                "context select",
                "Makes commands that name no daemon ask this one. `spl context none` takes it back.",
                "spl context select hub",
                _select,
                (_NAME_ARG,),
                whose="nobody",
            ),
            Command(
                "context none",
                "Selects no context. Commands ask the daemon of the home again.",
                "spl context none",
                _none,
                whose="nobody",
            ),
            Command("context remove", "Removes a context. The file of its token stays.", "spl context remove hub",
                    _remove, (_NAME_ARG,), whose="nobody"),
        ),
    ),
)  # fmt: skip
