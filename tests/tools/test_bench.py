"""The table of what was measured: each row comes from a bench that is there, and `all` writes no other."""

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench"


@pytest.fixture
def all_() -> ModuleType:
    spec = spec_from_loader("bench_all", SourceFileLoader("bench_all", str(BENCH / "all")))
    assert spec is not None
    assert spec.loader is not None
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def test_each_row_has_a_bench_and_a_name_of_its_own(all_: ModuleType) -> None:
    keys = [entry[:2] for entry in all_.ROWS]
    assert len(set(keys)) == len(keys)
    assert {name for _, name in keys} <= {path.stem for path in BENCH.glob("*.py")}


def test_the_page_holds_rows_that_a_run_writes_anew(
    all_: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "speed.md"
    text = all_.PAGE.read_text()
    page.write_text(text)
    figures = {"emit_per_s": 1, "arrive_per_s": 2345, "cpu_here_us": 67.8, "cpu_there_us": 9.1}
    machine = {"cores": 3, "cpu": "abacus", "python": "3.99.1", "load": 0.1}
    monkeypatch.setattr(all_, "PAGE", page)
    monkeypatch.setattr(all_, "run", lambda name: (figures, machine))
    monkeypatch.setattr(sys, "argv", ["all", "singles"])
    all_.main()
    rows = [line for line in page.read_text().splitlines() if "`singles.py`" in line]
    assert [line.split(" | ")[4] for line in rows] == ["2,345", "68 us", "9 us"]
    assert "3 cores of abacus, Python 3.99.1" in page.read_text()
    names = {entry[0] for entry in all_.ROWS}
    start = text.index(all_.HEAD)
    assert {line[2:].partition(" | ")[0] for line in text[start:].partition("\n\n")[0].splitlines()[2:]} <= names
