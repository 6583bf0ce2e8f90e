"""Contexts: daemons elsewhere by name, which of them a command asks, and one row for each."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spl.cli import contexts as c
from spl.core.errors import SplError
from tests.cli.conftest import Daemon, Result, Run, error, serve
from tests.cli.test_status import STATUS


@contextmanager
def listening(daemon: Daemon) -> Iterator[str]:
    """Give the URL of a daemon of canned answers on a port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server, daemon))
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


class User:
    """Someone with a folder of settings, and with a home only if they name one."""

    def __init__(self, spl: Run, folder: Path) -> None:
        self._spl, self._folder = spl, folder
        self.file = folder / "config/spl/contexts.json"

    def run(self, *argv: str, code: int = 0, **env: str) -> Result:
        where = {"XDG_CONFIG_HOME": str(self._folder / "config"), "HOME": str(self._folder), "SYNCROPEL_HOME": ""}
        result = self._spl(*argv, env={**where, **env})
        assert result.code == code, (result.out, result.err)
        return result

    def add(self, name: str, url: str, *more: str) -> None:
        self.run("context", "add", name, "--url", url, *more)


@pytest.fixture
def user(spl: Run, tmp_path: Path) -> User:
    return User(spl, tmp_path)


@pytest.fixture
def hub() -> Iterator[tuple[Daemon, str]]:
    daemon = Daemon({("GET", "/v1/status"): {**STATUS, "attention": []}, ("GET", "/health"): {"did": "did:sync:x"}})
    with listening(daemon) as url:
        yield daemon, url


def test_the_file_is_the_users_alone_and_holds_no_token(user: User, tmp_path: Path) -> None:
    token = tmp_path / "hub.token"
    token.write_text("spl_home_sa_1_secret\n")
    user.add("hub", "https://hub.example", "--token-file", str(token))
    assert (user.file.stat().st_mode & 0o777, user.file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert "secret" not in user.file.read_text()
    listed = user.run("context", "ls", "-o", "json")
    assert "secret" not in listed.out
    row = listed.data[0]
    assert (row["name"], row["url"], row["selected"]) == ("hub", "https://hub.example", False)
    user.run("context", "add", "hub", "--url", "https://b.example", code=2)
    user.add("hub", "https://b.example", "--replace")
    assert user.run("context", "ls", "-o", "json").data[0]["url"] == "https://b.example"


@pytest.mark.parametrize("url", ["http://hub.example", "hub.example", "ftp://hub", "unix:run/spl.sock", "ssh:h x",
                                 "ssh:-oProxyCommand=x", "ssh:a@-b", "ssh:host:0", "ssh:h:70000",
                                 "https://u:p@hub.example"])  # fmt: skip
def test_a_url_that_could_not_work_is_refused(user: User, url: str) -> None:
    result = user.run("context", "add", "x", f"--url={url}", code=10 if url.startswith("http") else 2)
    assert "error: " in result.err
    assert not user.file.exists()


def test_a_command_asks_who_was_named_last_and_nearest(user: User, hub: tuple[Daemon, str], tmp_path: Path) -> None:
    daemon, url = hub
    token = tmp_path / "token"
    token.write_text("spl_home_sa_1_hub\n")
    user.add("hub", url, "--token-file", str(token))
    user.add("none-here", "unix:/nowhere/spl.sock")
    user.run("status", code=5)
    assert "context hub\n" in user.run("status", "--context", "hub").out
    assert daemon.sent("GET", "/v1/status").headers["authorization"] == "Bearer spl_home_sa_1_hub"
    user.run("--context", "hub", "status")
    user.run("status", SPL_CONTEXT="hub")
    user.run("status", "--home", str(tmp_path / "home"), SPL_CONTEXT="hub", code=5)
    user.run("context", "select", "hub")
    assert user.run("status", "-o", "json").data["context"] == "hub"
    user.run("status", SYNCROPEL_HOME=str(tmp_path / "home"), code=5)
    user.run("status", SPL_CONTEXT="none-here", code=5)
    user.run("status", "--context", "none-here", SPL_CONTEXT="hub", code=5)
    user.run("status", SPL_SERVE_URL="http://127.0.0.1:1", SPL_TOKEN="x", code=5)
    user.run("config", "set", "port", "9300", code=2)  # the file of another home than that of the daemon asked
    user.run("context", "none")
    user.run("status", code=5)
    user.run("status", "--context", "hub", "--home", str(tmp_path), code=2)
    assert "--context names a daemon" in user.run("logs", "--context", "hub", code=2).err


@pytest.mark.parametrize(("scope", "step"), [
    ("aitl:approve", "on its machine, with the scopes of the present token as well: "
     "spl token mint --scopes status:read,aitl:approve"),
    ("status:read", "on its machine: spl token mint --scopes status:read"),
    ("admin", "on its machine: spl token mint --scopes admin"),
])  # fmt: skip
def test_a_token_that_lacks_a_scope_is_replaced_by_one_that_holds_more(
    user: User, hub: tuple[Daemon, str], tmp_path: Path, scope: str, step: str
) -> None:
    daemon, url = hub
    token = tmp_path / "token"
    token.write_text("spl_home_sa_1_hub\n")
    user.add("hub", url, "--token-file", str(token))
    daemon.answers["GET", "/v1/aitl"] = (403, error("scope-forbidden", "no", scope=scope))
    said = " ".join(user.run("aitl", "list", "--context", "hub", code=4).err.split())
    assert f"fix {step} put its token into {token} docs" in said


def test_of_several_scopes_the_least_is_asked_for(user: User, hub: tuple[Daemon, str], tmp_path: Path) -> None:
    daemon, url = hub
    (tmp_path / "token").write_text("spl_home_sa_1_hub\n")
    user.add("hub", url, "--token-file", str(tmp_path / "token"))
    needs = error("scope-forbidden", "this needs the scope config:read or status:read", scope="config:read")
    daemon.answers["GET", "/v1/status"] = (403, needs)
    assert "--scopes status:read\n" in user.run("status", "--context", "hub", code=4).err


@pytest.mark.parametrize(
    ("url", "step"),
    [
        ("127.0.0.1:9100", "with its scheme: spl context add hub --url http://127.0.0.1:9100 --token-file"),
        ("hub.example:9100", "with its scheme: spl context add hub --url https://hub.example:9100 --token-file"),
        ("not a url", ""),
    ],
)
def test_a_url_without_a_scheme_is_told_which_one(user: User, tmp_path: Path, url: str, step: str) -> None:
    said = user.run("context", "add", "hub", "--url", url, "--token-file", str(tmp_path / "t"), code=2).err
    assert "the URL of a daemon is https://HOST:PORT" in said
    assert step in said
    assert ("through ssh, if it has no TLS: " in said) is url.startswith("hub.")


def test_no_token_of_the_environment_travels_to_a_context(user: User, hub: tuple[Daemon, str]) -> None:
    daemon, url = hub
    user.add("hub", url)
    user.run("status", "--context", "hub", SPL_TOKEN="spl_home_sa_1_mine")
    assert "authorization" not in daemon.calls[-1].headers


def test_a_context_that_is_not_there_or_lost_its_token_says_so(user: User, tmp_path: Path) -> None:
    assert "spl context ls" in user.run("status", "--context", "gone", code=6).err
    user.run("context", "select", "gone", code=6)
    user.run("context", "remove", "gone", code=6)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (tmp_path / "missing", fifo):
        refused = user.run("context", "add", "x", "--url", "https://h", "--token-file", str(path), code=4)
        assert str(path) in refused.err
    user.add("hub", "https://hub.example")
    user.run("context", "select", "hub")
    user.run("context", "remove", "hub")
    assert json.loads(user.file.read_text()) == {"selected": "", "contexts": {}}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"selected": "", "contexts": []}', '{"selected": 1, "contexts": {}}',
                                  '{"selected": "", "contexts": {"a": {"url": 1}}}',
                                  '{"selected": "", "contexts": {"a": {"x": ""}}}', "[" * 100_000,
                                  '{"selected": "", "contexts": {"a": null}}', "\xff"])  # fmt: skip
def test_a_damaged_file_is_named_and_stops_what_would_use_it(user: User, text: str) -> None:
    user.file.parent.mkdir(0o700, parents=True)
    user.file.touch(0o600)
    user.file.write_bytes(text.encode("latin-1"))
    for argv in (("context", "ls"), ("status",), ("status", "--all")):
        assert str(user.file) in user.run(*argv, code=78).err
    user.run("status", SYNCROPEL_HOME="/nowhere", code=5)  # this one does not


def test_what_others_could_write_is_not_believed(user: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user.add("hub", "https://hub.example")
    for path, mode in ((user.file, 0o600), (user.file.parent, 0o700)):
        path.chmod(mode | 0o020)
        assert f"chmod go-w {path}" in user.run("context", "ls", code=78).err
        path.chmod(mode)
    user.run("context", "ls")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    user.run("context", "ls", code=78)


def test_no_other_secret_goes_as_a_token(user: User, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("pypi-AgEIcHlwaS5vcmcCJDU\n")
    refused = user.run("context", "add", "x", "--url", "https://h", "--token-file", str(secret), code=4)
    assert "not the text of a token" in refused.err


def test_every_context_has_a_row(user: User, hub: tuple[Daemon, str]) -> None:
    """One that answers, one that refuses the token, one of another version, one that is gone; then exit 3."""
    daemon, url = hub
    shut, old = Daemon({("GET", "/v1/status"): (401, error("auth-invalid", "expired"))}), Daemon()
    odd = Daemon({("GET", "/v1/status"): {"object": "status"}})
    with listening(shut) as shut_url, listening(old) as old_url, listening(odd) as odd_url:
        for name, where in (("hub", url), ("shut", shut_url), ("old", old_url), ("odd", odd_url)):
            user.add(name, where)
        user.add("gone", "unix:/nowhere/spl.sock")
        result = user.run("status", "--all", "-o", "json", code=3)
        rows: dict[str, dict[str, Any]] = {row["context"]: row for row in result.data}
        assert {name: row["reachable"] for name, row in rows.items()} == {
            "hub": "ok", "shut": "unauthorized", "old": "old", "odd": "old", "gone": "unreachable",
        }  # fmt: skip
        assert (rows["hub"]["pairs"]["active"], rows["hub"]["error"]) == (10, None)
        assert rows["gone"]["code"] == "daemon-down"
        assert rows["shut"]["seen_at"] is None
        text = user.run("status", "--all", code=3).out
        assert "\n         cannot reach the daemon at unix:/nowhere/spl.sock [daemon-down]\n" in text
    for name in ("shut", "old", "odd", "gone"):
        user.run("context", "remove", name)
    user.run("status", "--all")
    daemon.answers["GET", "/v1/status"] = STATUS
    user.run("status", "--all")
    assert "token-expired" in user.run("status", "--all", "--check", code=3).out


def test_members_of_another_form_end_no_list(user: User, hub: tuple[Daemon, str]) -> None:
    user.add("hub", hub[1])
    with ExitStack() as stack:
        for name, value in (("pairs", "many"), ("attention", [{"code": 5}]), ("identity", "me")):
            daemon = Daemon({("GET", "/v1/status"): {**STATUS, name: value}})
            user.add(name, stack.enter_context(listening(daemon)))
        lines = user.run("status", "--all", code=3).out.splitlines()[1:]
    assert {line.split()[0]: line.split()[1] for line in lines if line[0] != " "} == {
        "attention": "ok", "hub": "ok", "identity": "old", "pairs": "old",
    }  # fmt: skip


@pytest.mark.parametrize(("path", "answer", "argv"), [
    ("/v1/status", {"object": "status", "identity": {}, "attention": [{}]}, ("status",)),
    ("/v1/sinks", {"object": "list", "data": [{}]}, ("sink", "list")),
    ("/v1/tokens", {"object": "list", "data": [{"scopes": 7}]}, ("token", "list")),
    ("/v1/namespaces", {"object": "list", "data": [{}]}, ("namespace", "list")),
])  # fmt: skip
def test_an_answer_of_another_form_is_one_error(
    user: User, hub: tuple[Daemon, str], path: str, answer: Any, argv: tuple[str, ...]
) -> None:
    daemon, url = hub
    user.add("hub", url)
    daemon.answers["GET", path] = answer
    said = user.run(*argv, "--context", "hub", code=9).err
    assert said.startswith("error: the daemon's answer ")
    assert "[answer-malformed]" in said
    assert "spl --context hub" not in said, "the version is that of this program"


@pytest.mark.parametrize("status", [None, [], {}, "x", {**STATUS, "pairs": None}, {**STATUS, "pairs": {"total": "x"}}])
def test_a_status_that_is_none_is_a_row(status: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c.Context, "ctl", lambda _: SimpleNamespace(get=lambda _: status))
    row = c.ask_all([c.Context("a", "unix:/x")], c._asked, 9)["a"]
    assert (row["reachable"], row["code"]) == (c.OLD, "answer-malformed")


def test_what_a_row_raises_is_its_own_and_its_texts_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    status = {**STATUS, "attention": [{"code": ["a"]}], "identity": {"did": "A" * 300_000}, "version": "\x9b31m"}
    answers = {"bad": RecursionError(), "good": status}

    def ask(context: c.Context) -> dict[str, Any]:
        if isinstance(answer := answers[context.name], Exception):
            raise answer
        return c._row(context, c.OK, None, answer)

    rows = c.ask_all([c.Context(name, "unix:/x") for name in answers], ask, 9)
    assert rows["bad"]["reachable"] == c.OLD
    assert rows["good"]["did"] == "A" * 80
    assert (rows["good"]["version"], rows["good"]["attention"]) == ("\\u009b31m", ["['a']"])


def test_a_daemon_that_is_gone_has_the_time_of_its_last_answer(user: User) -> None:
    with listening(Daemon({("GET", "/v1/status"): STATUS})) as url:
        user.add("hub", url)
        seen = user.run("status", "--all", "-o", "json").data[0]["answered_at"]
    row = user.run("status", "--all", "-o", "json", code=3).data[0]
    assert (row["answered_at"], row["seen_at"]) == (None, seen)


def test_without_contexts_there_is_nothing_to_ask(user: User) -> None:
    assert "spl context add" in user.run("status", "--all", code=2).err
    assert user.run("context", "ls").out == ""


def test_who_never_answers_holds_up_nobody() -> None:
    """More than are asked at once are silent: each ends by its own time, and the last is asked too."""
    held = threading.Event()

    def ask(context: c.Context) -> dict[str, Any]:
        if context.name != "last":
            held.wait()
        return {"context": context.name, "reachable": c.OK}

    names = [f"c{number}" for number in range(c.ROWS_AT_ONCE + 3)] + ["last"]
    try:
        rows = c.ask_all([c.Context(name, "unix:/x") for name in names], ask, 0.05)
    finally:
        held.set()
    assert list(rows) == names
    assert {row["reachable"] for name, row in rows.items() if name != "last"} == {c.UNREACHABLE}
    assert {row["code"] for name, row in rows.items() if name != "last"} == {"timeout"}


def test_places_of_urls() -> None:
    assert c.Context("a", "ssh:me@nas").where().ssh == "me@nas"
    assert c.Context("a", "ssh:nas:9300").where().port == 9300
    assert c.Context("a", "unix:/run/spl.sock").where().path == "/run/spl.sock"
    with pytest.raises(SplError):
        c.Context("a", "unix:").where()
