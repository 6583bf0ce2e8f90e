"""Promises of the log's files: lines come whole whatever the read size, few descriptors, readers are never cut off."""

import os
from pathlib import Path

import pytest

from spl.home import segments as module
from spl.home.disk import Disk
from spl.home.segments import LineError, Segments


def made(folder: Path, *parts: bytes) -> Segments:
    """Return segments 1, 2, … with these bytes."""
    for first, data in enumerate(parts, 1):
        (folder / f"{first:020d}.jsonl").write_bytes(data)
    return Segments(folder, Disk())


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 8, 1000])
def test_lines_are_the_same_for_every_read_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "_CHUNK_BYTES", chunk)
    segments = made(tmp_path, b"one\n\nthree\ntorn", b"", b"four\n")
    assert list(segments.lines(1, 0)) == [
        (1, 0, b"one", True),
        (1, 4, b"", True),
        (1, 5, b"three", True),
        (1, 11, b"torn", False),
        (3, 0, b"four", True),
    ]
    assert next(iter(segments.lines(1, 5))) == (1, 5, b"three", True)
    assert list(segments.lines(1, 99)) == [(3, 0, b"four", True)]
    assert list(segments.lines(3, 5)) == []


def test_only_whole_names_are_segments(tmp_path: Path) -> None:
    for name in ("1.jsonl", "x" * 20 + ".jsonl", "0" * 19 + "7.jsonl.tmp", "clean"):
        (tmp_path / name).write_bytes(b"")
    assert made(tmp_path, b"a\n").firsts == [1]


def test_few_descriptors_stay_open_and_a_reader_keeps_its_own(tmp_path: Path) -> None:
    segments = made(tmp_path, *[b"%d\n" % i * 3 for i in range(60)])
    before = len(os.listdir("/proc/self/fd"))
    reader = segments.lines(1, 0)
    assert next(reader)[2] == b"0"
    for first in segments.firsts:
        assert segments.read(first, 0, 1) == str(first - 1)[:1].encode()
    assert len(os.listdir("/proc/self/fd")) <= before + 17
    assert [next(reader)[2] for _ in range(3)] == [b"0", b"0", b"1"]


def test_reading_what_is_not_there_is_damage(tmp_path: Path) -> None:
    segments = made(tmp_path, b"abc\n")
    for first, offset, size in ((1, 2, 3), (1, 9, 1), (7, 0, 1)):
        with pytest.raises(LineError) as caught:
            segments.read(first, offset, size)
        assert caught.value.code == "store-damaged"


def test_segments_begin_and_drop(tmp_path: Path) -> None:
    segments = Segments(tmp_path, Disk())
    segments.begin("e" * 32, 1, "0" * 32)
    segments.begin("e" * 32, 5, "0" * 32)
    segments.open_last().write(b"line\n")
    assert [raw for _, _, raw, _ in segments.lines(5, 0)][1:] == [b"line"]
    segments.drop_last()
    assert segments.firsts == Segments(tmp_path, Disk()).firsts == [1]
    [header] = segments.headers()
    assert (header.seq, header.epoch) == (1, "e" * 32)
