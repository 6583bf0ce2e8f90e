"""The check reads every byte of the log: each damage has its place, and a sound log has none."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spl.core import canon, keys
from spl.core.errors import SplError
from spl.core.limits import Limits
from spl.core.record import levels, record
from spl.home.check import StoreCheck, check_home, facts_of_home, opened
from spl.home.config import Config
from spl.home.disk import Disk, lock_home
from spl.home.home import Home, open_home
from spl.home.writes import Arrive, Emit, Projected
from tests.store_kit import log_files

LIMITS = Limits()


def filled(path: Path, count: int = 20, segment_bytes: int = 64 << 20) -> None:
    """Make a home with records, one a write, and close it."""
    home = open_home(path, Config(limits=Limits(segment_bytes=segment_bytes)), disk=Disk(), progress=lambda a, b: None)
    home.adopt(home.vault.generate("alice"))
    for n in range(count):
        emit(home, n)
    home.close()


def emit(home: Home, n: int) -> None:
    value = {"act": "DO", "actor": "did:sync:user:a", "thread": "th", "body": {"n": n}}
    future = home.writer.submit([Emit(value)])
    home.writer.commit_waiting()
    future.result(0)


def done(steps: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    *found, last = steps
    assert last["step"] == "done"
    return last, [step for step in found if step["step"] == "damage"]


def places(damages: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(item["segment"], item["offset"], item["seq"], item["lines"], item["what"]) for item in damages]


@pytest.mark.parametrize("segment_bytes", [64 << 20, 2000])
def test_a_sound_log_has_no_damage(tmp_path: Path, segment_bytes: int) -> None:
    filled(tmp_path, 20, segment_bytes)
    last, damages = done(check_home(tmp_path))
    assert damages == []
    assert (last["lines"], last["records"], last["damaged"]) == (20, 20, 0)
    assert last["segments"] == len(log_files(tmp_path / "store"))


def test_projections_are_counted_apart_and_judged_by_their_form(tmp_path: Path) -> None:
    """What could not have passed the gate is damage, however sound the line."""
    home = open_home(tmp_path, Config(), disk=Disk(), progress=lambda a, b: None)
    home.adopt(home.vault.generate("alice"))
    emit(home, 1)
    key = keys.SecretKey(b"p" * 32)
    made = {"act": "DO", "actor": "did:a", "thread": "th", "body": {}, "clock": 1, "data_type": "SCALAR", "parents": []}
    shown = levels.content(made, "a" * 64, 1, "pair_1", b"s")
    sound = levels.parse(canon.decode(levels.project(shown, 1, "music", "pair_1", "did:p", "zkey", key)), LIMITS)
    bad = replace(sound, id="b" * 64, raw=sound.raw.replace(b"a" * 64, b"b" * 64).replace(b"L2", b"L9"))
    for each in (sound, bad):
        home.writer.submit([Projected(each, "default", "pair_1")])
        home.writer.commit_waiting()
    home.close()
    home.lock.release()
    last, damages = done(check_home(tmp_path))
    assert (last["records"], last["projections"]) == (1, 2)
    assert [(item["what"], item["seq"]) for item in damages] == [("id", last["lines"])]
    assert facts_of_home(tmp_path)["projections_count"] == 2


@pytest.mark.parametrize("line", [0, 1, 9, 20])
def test_each_damaged_line_is_named_by_its_place(tmp_path: Path, line: int) -> None:
    filled(tmp_path)
    [segment] = log_files(tmp_path / "store")
    lines = segment.read_bytes().splitlines(keepends=True)
    offset = sum(map(len, lines[:line]))
    lines[line] = lines[line].replace(b'"', b"'", 1)
    segment.write_bytes(b"".join(lines))
    last, damages = done(check_home(tmp_path))
    assert places(damages) == [(1, offset, line or 1, 1 if line else 0, "line" if line else "header")]
    assert (last["damaged"], last["lines"]) == (1, 20 - bool(line))


def test_a_lost_segment_is_counted(tmp_path: Path) -> None:
    filled(tmp_path, 20, 2000)
    _, second, *_ = log_files(tmp_path / "store")
    second.unlink()
    last, damages = done(check_home(tmp_path))
    [damage] = damages
    assert last["lines"] + damage["lines"] == 20


def test_a_torn_tail_is_cut_and_said(tmp_path: Path) -> None:
    filled(tmp_path)
    [segment] = log_files(tmp_path / "store")
    (tmp_path / "store" / "clean").unlink()
    with segment.open("ab") as file:
        file.write(b'{"k":"rec"')
    steps = list(check_home(tmp_path))
    assert [step for step in steps if step["step"] == "opened"] == [{"step": "opened", "cut_bytes": 10}]
    _, damages = done(steps)
    assert damages == []


def test_the_check_beside_a_writer_ends_where_it_began(tmp_path: Path) -> None:
    filled(tmp_path)
    home = open_home(tmp_path, Config(), disk=Disk(), progress=lambda a, b: None)
    check = StoreCheck(home.store, tmp_path / "store", Disk())
    emit(home, 100)
    [segment] = log_files(tmp_path / "store")
    with segment.open("ab") as file:
        file.write(b'{"half a line')
    last, damages = done(check.run())
    assert (last["lines"], damages) == (20, [])
    home.lock.release()


def test_the_check_ends_at_the_next_line_once_the_store_stops(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    with opened(tmp_path) as (store, disk):
        check = StoreCheck(store, tmp_path / "store", disk)
        steps = check.run()
        store.stop()
        with pytest.raises(SplError) as caught:
            next(steps)
        assert (caught.value.code, check.lines) == ("shutting-down", 0)


def test_a_home_in_use_and_a_home_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(SplError) as caught:
        facts_of_home(tmp_path / "none")
    assert caught.value.exit_code == 6
    assert not (tmp_path / "none").exists()
    filled(tmp_path / "home")
    lock = lock_home(tmp_path / "home")
    with pytest.raises(SplError) as caught:
        list(check_home(tmp_path / "home"))
    assert caught.value.exit_code == 11
    lock.release()
    assert facts_of_home(tmp_path / "home")["records_count"] == 20


def hurt(path: Path, mark: bytes, bad: bytes) -> None:
    [segment] = log_files(path / "store")
    assert segment.read_bytes().count(mark) == 1
    segment.write_bytes(segment.read_bytes().replace(mark, bad))


@pytest.mark.parametrize("keep_index", [True, False])
def test_a_damage_counts_what_is_held_again(tmp_path: Path, keep_index: bool) -> None:
    """Nothing while the index still finds the damaged line; and all once the record has come back."""
    filled(tmp_path)
    home = open_home(tmp_path, Config(), disk=Disk(), progress=lambda a, b: None)
    [row] = home.store.index.after("t:th", 6, 1)
    envelope = record.parse(home.store.payloads([row])[0], LIMITS)
    home.close()
    home.lock.release()
    hurt(tmp_path, b'"n":6}', b'"n":#}')
    if not keep_index:
        shutil.rmtree(tmp_path / "store" / "index")
    home = open_home(tmp_path, Config(), disk=Disk(), progress=lambda a, b: None)
    check = StoreCheck(home.store, tmp_path / "store", Disk())
    last, [damage] = done(check.run())
    assert (damage["lines"], damage["held_lines"], last["held_lines"]) == (1, 0, 0)
    assert (check.still_lost(), check.fits_index()) == (1, not keep_index)
    for _ in home.store.reindex(bytes):
        pass
    home.writer.submit([Arrive(envelope, "default", "pair_1")])
    home.writer.commit_waiting()
    assert (check.still_lost(), check.fits_index()) == (0, True)
    home.close()
    home.lock.release()
    last, [damage] = done(check_home(tmp_path))
    assert (last["lost_lines"], last["held_lines"], damage["held_lines"]) == (1, 1, 1)


def test_places_beyond_those_named_count_as_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spl.home.check.DAMAGES_MAX", 2)
    filled(tmp_path)
    for n in (3, 6, 9, 12):
        hurt(tmp_path, b'"n":%d}' % n, b'"n":#}')
    home = open_home(tmp_path, Config(), disk=Disk(), progress=lambda a, b: None)
    check = StoreCheck(home.store, tmp_path / "store", Disk())
    last, damages = done(check.run())
    assert (last["damaged"], len(damages), check.still_lost()) == (4, 2, 4)
    home.close()
    home.lock.release()
