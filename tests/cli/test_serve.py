"""The flags of `spl serve` reach the daemon."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.cli.conftest import Run


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
