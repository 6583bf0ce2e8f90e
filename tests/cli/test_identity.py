"""Identity commands: through the daemon where one runs, on the home where none does."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from spl.core.errors import SplError
from tests.cli.conftest import ALICE, BOB, Daemon, Run, error

IDENTITY: dict[str, Any] = {
    "object": "identity",
    "did": ALICE,
    "label": "alice",
    "public_key": "z6Mk1",
    "words": "otter plum nine coal fern wax",
    "created_at": "2026-11-23T05:59:58.000Z",
    "rotations": 0,
    "manifest": {
        "signed_at": "2026-11-23T05:59:58.000Z",
        "expires_at": "2026-11-30T05:59:58.000Z",
        "url": "http://127.0.0.1:9100/x",
    },
}
MISSING = (409, error("identity-missing", "This daemon has no identity"))
ROUTE = "/v1/identity"


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Stands in for what works on the home itself."""
    module = ModuleType("spl.home.home")
    module.calls = []  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spl.home.home", module)
    return module  # type: ignore[return-value]


def test_show_through_the_daemon(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", ROUTE] = IDENTITY
    assert (
        spl("identity", "show", tty=True).out
        == f"""\
did               {ALICE}
key               otter plum nine coal fern wax
public key        z6Mk1
created           2s ago
rotations         0
manifest          http://127.0.0.1:9100/x, signed 2s ago, 7d left
"""
    )
    assert spl("identity", "show", "-o", "json").data == IDENTITY


def test_without_identity_nothing_on_stdout_and_6(spl: Run, daemon: Daemon, home: Path) -> None:
    daemon.answers["GET", ROUTE] = MISSING
    result = spl("identity", "show", env={"HOME": "/"})
    assert (result.code, result.out) == (6, "")
    assert f"  fix       SYNCROPEL_HOME={home} spl identity generate\n" in result.err
    refused = spl("identity", "verify", env={"HOME": "/"})
    assert refused.code == 7
    assert f"  fix       SYNCROPEL_HOME={home} spl identity generate\n" in refused.err


def test_without_daemon_the_home_answers(spl: Run, home: Path, setup: ModuleType) -> None:
    setup.show_identity = lambda path: IDENTITY if path == home else None  # type: ignore[attr-defined]
    assert spl("identity", "show", "-o", "json").data == IDENTITY
    setup.show_identity = lambda path: None  # type: ignore[attr-defined]
    assert spl("identity", "show").code == 6


def test_a_question_makes_no_home(spl: Run, home: Path) -> None:
    result = spl("identity", "show", "--home", str(home / "none"))
    assert (result.code, result.out) == (6, "")
    assert not (home / "none").exists()


def test_a_locked_home_exits_11(spl: Run, setup: ModuleType) -> None:
    def locked(path: Path) -> None:
        raise SplError("store-locked", "another process holds this home", pid=4121)

    setup.show_identity = locked  # type: ignore[attr-defined]
    result = spl("identity", "show")
    assert result.code == 11
    assert "  pid       4121\n" in result.err


def test_a_distant_daemon_that_is_down_is_not_replaced_by_the_home(spl: Run, setup: ModuleType) -> None:
    assert spl("identity", "show", env={"SPL_SERVE_URL": "http://127.0.0.1:1"}).code == 5


def test_generate_through_the_daemon(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", ROUTE] = MISSING
    daemon.answers["POST", ROUTE] = IDENTITY
    result = spl("identity", "generate", "--label", "alice")
    assert (result.code, result.err) == (0, "")
    assert daemon.sent("POST", ROUTE).json() == {"label": "alice", "force": False}
    spl("identity", "generate", "--force")
    assert daemon.sent("POST", ROUTE).json() == {"force": True}


def test_generate_keeps_and_force_says_what_breaks(spl: Run, daemon: Daemon) -> None:
    daemon.answers["GET", ROUTE] = IDENTITY
    daemon.answers["POST", ROUTE] = IDENTITY
    kept = spl("identity", "generate", "--label", "other")
    assert kept.code == 0
    assert "kept the existing identity" in kept.err
    assert "a label cannot change" in kept.err
    daemon.answers["POST", ROUTE] = {**IDENTITY, "did": BOB}
    forced = spl("identity", "generate", "--force", "-q")
    assert forced.err.startswith(f"! {ALICE} is replaced: its pairs no longer work")
    assert daemon.sent("POST", ROUTE).json() == {"label": "alice", "force": True}, (
        "the label does not become the host's name"
    )


def test_generate_and_verify_without_daemon(spl: Run, home: Path, setup: ModuleType) -> None:
    setup.show_identity = lambda path: None  # type: ignore[attr-defined]
    setup.generate_identity = lambda path, label, force: setup.calls.append((path, label, force)) or IDENTITY  # type: ignore[attr-defined]
    assert spl("identity", "generate", "--label", "alice").out.startswith(f"did               {ALICE}\n")
    assert spl("identity", "generate", "--force").code == 0
    assert setup.calls == [(home, "alice", False), (home, "", True)]
    setup.show_identity = lambda path: IDENTITY  # type: ignore[attr-defined]
    setup.verify_identity = lambda path: {**IDENTITY, "verified": True}  # type: ignore[attr-defined]
    assert spl("identity", "verify").out == f"✓ {ALICE}: the keys certify the DID\n"


def test_verify_checks_what_the_daemon_publishes(spl: Run, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.answers["GET", ROUTE] = IDENTITY
    daemon.answers["GET", "/.well-known/syncropel"] = {"m": 1}
    daemon.answers["GET", "/.well-known/did.json"] = {"d": 1}
    seen: list[Any] = []

    def verify(document: bytes, did_document: bytes, **options: Any) -> SimpleNamespace:
        seen.append((document, did_document, options["strict"], options["expect_did"], options["expect_key"]))
        return SimpleNamespace(did=ALICE)

    module = ModuleType("spl.core.identity.manifest")
    module.verify = verify  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spl.core.identity.manifest", module)
    assert spl("identity", "verify").out == f"✓ {ALICE}: the published manifest and DID document verify\n"
    assert seen == [(b'{"m": 1}', b'{"d": 1}', True, ALICE, "z6Mk1")]


def test_rotate_export_and_import_through_the_daemon(spl: Run, daemon: Daemon, tmp_path: Path) -> None:
    daemon.answers["GET", ROUTE] = IDENTITY
    daemon.answers["POST", f"{ROUTE}/rotate"] = {**IDENTITY, "rotations": 1}
    result = spl("identity", "rotate", "--compromised")
    assert daemon.sent("POST", f"{ROUTE}/rotate").json() == {"compromised": True}
    assert "peers are told now" in result.err
    daemon.answers["POST", f"{ROUTE}/export"] = {**IDENTITY, "identity": "keys"}
    path = tmp_path / "copy"
    result = spl("identity", "export", "--out", str(path))
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("keys", 0o600)
    assert "keys" not in result.out
    assert spl("identity", "export", "--out", str(path)).code == 2
    assert spl("identity", "export", "--out", str(tmp_path / "no" / "folder")).code == 2
    daemon.answers["POST", f"{ROUTE}/import"] = IDENTITY
    assert spl("identity", "import", str(path), "--force").code == 0
    assert daemon.sent("POST", f"{ROUTE}/import").json() == {"identity": "keys", "force": True}
    assert spl("identity", "import", str(tmp_path / "none")).code == 2
