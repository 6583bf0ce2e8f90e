"""The flags of `spl serve` reach the daemon; --lan opens it to a private network, and says so."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from spl.cli import serve
from spl.cli.command import UsageError
from spl.cli.out import Out
from spl.core.errors import SplError
from spl.daemon import ServeOptions
from tests.cli.conftest import Run, Stream

Opened = Callable[..., tuple[ServeOptions, str]]


def test_serve_passes_its_flags_on(spl: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "spl.cli.serve", raising=False)
    seen: list[dict[str, object]] = []
    daemon = ModuleType("spl.daemon")
    daemon.run, daemon.ServeOptions = lambda options: seen.append(options) or 0, dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spl.daemon", daemon)
    assert spl("serve", "--host", "[::1]", "--port", "0", "--insecure-localhost", "--log-format", "json").code == 0
    monkeypatch.delitem(sys.modules, "spl.cli.serve", raising=False)
    assert seen == [
        {"home": home, "host": "::1", "port": 0, "public_url": None, "insecure_localhost": True, "log_format": "json"}
    ]


def test_a_start_that_fails_says_that_it_made_a_home(spl: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(options: ServeOptions) -> int:
        options.home.mkdir(exist_ok=True)
        raise SplError("listen-failed", "the port is taken")

    monkeypatch.setattr(serve, "run", fail)
    fresh = str(home.parent / "fresh")
    assert (
        "~/fresh was made and has no identity yet: SYNCROPEL_HOME=~/fresh spl init" in spl("serve", "--home", fresh).err
    )
    assert "was made" not in spl("serve", "--home", fresh).err


@pytest.fixture
def opened(home: Path, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Return what --lan makes of a configuration and of flags, and what it prints."""
    monkeypatch.setattr(serve, "lan_address", lambda: "192.168.1.20")

    def run(config: str = "", **flags: object) -> tuple[ServeOptions, str]:
        (home / "config.toml").write_text(config)
        stderr = Stream(tty=False)
        options = serve.opened(ServeOptions(home, **flags), Out(Stream(tty=False), stderr, {}, lambda: 0))  # type: ignore[arg-type]
        return options, stderr.text

    return run


def test_lan_listens_everywhere_and_publishes_the_address_of_the_network(opened: Opened) -> None:
    options, told = opened("port = 9300\n")
    assert (options.host, options.public_url, options.allow_http) == ("0.0.0.0", "http://192.168.1.20:9300", "private")
    assert "port 9300 of every address of this machine, by plain http" in told
    assert "spl federation pair http://192.168.1.20:9300/" in told
    assert "which you approve or reject" in told


def test_lan_keeps_what_flags_and_file_say_more_exactly(opened: Opened) -> None:
    options, told = opened(
        '[federation]\nallow_http = true\napproval = "auto"\n', host="10.0.0.7", public_url="http://alice.lan:9100"
    )
    assert (options.host, options.public_url, options.allow_http) == ("10.0.0.7", "http://alice.lan:9100", None)
    assert "of 10.0.0.7, by plain http" in told
    assert "without asking you" in told
    assert opened(host="fd00::7")[0].public_url == "http://[fd00::7]:9100"


@pytest.mark.parametrize(
    ("flags", "text"), [({"host": "127.0.0.1"}, "contradict"), ({"port": 0}, "a port that peers can know")]
)
def test_lan_refuses_what_opens_nothing(opened: Opened, flags: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        opened(**flags)


NOT_AT_START = {
    *(
        "email",
        "calendar",
        "http",
        "urllib.request",
        "platform",
        "secrets",
        "random",
        "tempfile",
        "zoneinfo",
        "sqlite3",
    ),
    *(
        "multiprocessing",
        "spl.core.query",
        "spl.api.queries",
        "spl.api.watch",
        "spl.api.snapshots",
        "spl.api.namespaces",
    ),
    *("spl.api.metrics", "spl.api.events", "spl.api.rules", "spl.sync.engine"),
}
"""What takes memory in every daemon if one import too many leads to it."""


def test_a_daemon_begins_without_what_it_may_never_need() -> None:
    """All commands but `serve` are among it."""
    code = "import sys, spl.cli.main, spl.cli.serve; print(*sys.modules)"
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert not loaded & NOT_AT_START
    commands = {name for name in loaded if name.startswith("spl.cli.")}
    assert commands <= {f"spl.cli.{name}" for name in ("main", "serve", "command", "client", "out", "fit", "context")}
