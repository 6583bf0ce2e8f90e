"""Promises of what a log remembers of its losses: each once, none forgotten, and none made by a damaged file."""

import functools
import json
import shutil
from pathlib import Path

import pytest

from spl.home import recovery
from spl.home.index import Index
from spl.home.recovery import StoreError
from tests.store_kit import AT_MS, log_files, open_store, record


class EndedError(Exception):
    """An opening was ended."""


def test_what_an_opening_found_is_remembered_though_it_was_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index may cover the damage by then, and the next opening does not read there."""
    monkeypatch.setattr(recovery, "Index", functools.partial(Index, memory_rows=8))
    monkeypatch.setattr(recovery, "_BATCH_LINES", 8)
    store = open_store(tmp_path)
    store.append([record(n) for n in range(100)], AT_MS)
    store.close()
    [path] = log_files(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[5] = lines[5].replace(b'"id":"', b'"id":"?', 1)
    path.write_bytes(b"".join(lines))
    shutil.rmtree(tmp_path / "index")

    def end(done: int, total: int) -> None:
        if done > total // 2:
            raise EndedError

    with pytest.raises(EndedError):
        open_store(tmp_path, progress=end)
    for _ in range(2):
        store = open_store(tmp_path)
        assert [(place.seq, place.lines) for place in store.lost] == [(5, 1)]
        assert store.report.damaged == ()
        store.close()


@pytest.mark.parametrize("clean", [True, False])
def test_a_loss_that_is_found_again_is_one(tmp_path: Path, clean: bool) -> None:
    """Behind a shortened log nothing was written, so each opening reads its end again."""
    store = open_store(tmp_path)
    store.append([record(n) for n in range(9)], AT_MS)
    store.close()
    [path] = log_files(tmp_path)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-3]))
    for _ in range(3):
        store = open_store(tmp_path)
        assert [(place.seq, place.lines) for place in store.lost] == [(7, 3)]
        if clean:
            store.close()


@pytest.mark.parametrize("change", [{"seq": 1000}, {"seq": 10**15}, {"seq": -1}, {"segment": 10**9}])
def test_a_damaged_mark_of_a_clean_stop_makes_no_line_lost(tmp_path: Path, change: dict[str, int]) -> None:
    store = open_store(tmp_path)
    store.append([record(n) for n in range(9)], AT_MS)
    store.close()
    mark = json.loads((tmp_path / "clean").read_bytes())
    (tmp_path / "clean").write_text(json.dumps({**mark, **change}))
    store = open_store(tmp_path)
    assert (store.lost, store.last_seq) == ((), 9)


def test_a_mark_of_a_far_longer_log_is_asked_about(tmp_path: Path) -> None:
    """That is the disk of another day, or a damage: nothing is changed until the operator says so."""
    open_store(tmp_path).close()
    mark = json.loads((tmp_path / "clean").read_bytes())
    (tmp_path / "clean").write_text(json.dumps({**mark, "seq": 10**9, "segment": 10**9}))
    for _ in range(2):
        with pytest.raises(StoreError) as caught:
            open_store(tmp_path)
        assert (caught.value.code, f"rm {tmp_path / 'clean'}" in caught.value.hint) == ("store-damaged", True)
    (tmp_path / "clean").unlink()
    assert open_store(tmp_path).append([record(1)], AT_MS) == [1]


@pytest.mark.parametrize("rows", ["[" * 3000, "[[Infinity,1,1,1,1,1]]", "[[1,99,1,0,1,0]]", "[[1,1,1,-5,1,0]]"])
def test_what_is_remembered_and_cannot_be_is_nothing(tmp_path: Path, rows: str) -> None:
    open_store(tmp_path).close()
    (tmp_path / "lost").write_text(rows)
    (tmp_path / "settled").write_text(rows)
    assert open_store(tmp_path).lost == ()
