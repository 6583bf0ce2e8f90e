"""`spl init` says what it made and what it kept."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.cli.test_identity import ALICE, IDENTITY


@pytest.fixture
def created(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the next `init` makes; its arguments are kept in the module."""
    names: list[str] = []
    module = ModuleType("spl.home.home")

    def init_home(path: Path, label: str, *, new_log: bool) -> dict[str, Any]:
        module.seen = path, label  # type: ignore[attr-defined]
        facts = {name: value for name, value in IDENTITY.items() if name != "manifest"}
        return {"home": str(path), **facts, "created": names}

    module.init_home = init_home  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spl.home.home", module)
    monkeypatch.delitem(sys.modules, "spl.cli.init", raising=False)
    return names


def test_init_names_what_is_new_and_what_was_kept(spl: Run, home: Path, created: list[str]) -> None:
    created += ["config", "identity", "token"]
    result = spl("init", "--label", "alice", env={"HOME": str(home.parent)})
    assert result.code == 0
    assert result.out.startswith(f"Home ~/{home.name}: created config, identity, token.\ndid               {ALICE}\n")
    assert sys.modules["spl.home.home"].seen == (home, "alice")  # type: ignore[attr-defined]
    created.clear()
    (home / "keys").mkdir(parents=True, exist_ok=True)
    (home / "keys" / "identity.json").touch()
    again = spl("init", "--label", "other", tty=True, env={"HOME": "/"})
    assert again.out.splitlines()[0].endswith(": created nothing.")
    assert again.out.splitlines()[1] == "Kept as before: config, identity, token."
    assert "keeps its label alice" in again.err
    assert again.err.endswith(f"hint: start the daemon with: SYNCROPEL_HOME={home} spl serve\n")


def test_init_for_programs(spl: Run, created: list[str]) -> None:
    created += ["token"]
    data = spl("init", "-o", "json").data
    assert (data["created"], data["kept"], data["did"]) == (["token"], ["config", "identity"], ALICE)
