"""`spl logs`: filters, rotated files, both formats, and following; no daemon anywhere."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from spl.cli.logs import Filter, filters_of, follow, newest, parse
from spl.core.errors import SplError
from tests.cli.conftest import Run

FED = "syncropel_engine::federation"


def line(n: int, level: str = "info", target: str = FED, event: str = "sync.pulled") -> str:
    return f'ts=2026-11-23T06:00:{n:02}.000Z level={level} target={target} event={event} n={n} msg="line {n}"'


@pytest.fixture
def folder(home: Path) -> Path:
    (home / "logs").mkdir()
    return home / "logs"


def write(path: Path, *lines: str) -> None:
    with path.open("a") as file:
        file.writelines(text + "\n" for text in lines)


def test_the_pages_filter(spl: Run, folder: Path) -> None:
    """target= selects federation; level means at least; a star takes any rest."""
    other = line(2, "error", "syncropel_engine::http", "http.exhausted")
    write(folder / "spl.log", line(1), other, line(3, "warning", event="sync.failed"))
    assert spl("logs", f"target={FED}").out.splitlines() == [line(1), line(3, "warning", event="sync.failed")]
    assert spl("logs", "level=warning", f"target={FED}").out.splitlines() == [line(3, "warning", event="sync.failed")]
    assert spl("logs", "event=sync.*").out.count("\n") == 2
    assert spl("logs", "n=2").out == other + "\n"
    assert spl("logs", "-n", "1").out == line(3, "warning", event="sync.failed") + "\n"
    assert spl("logs", "-n", "0").out == ""


def test_rotated_files_are_read_as_far_back_as_needed(folder: Path) -> None:
    """Newest last; a file longer than one block is read backwards without a break."""
    write(folder / "spl.log.2", *(line(n % 60) + "x" * 500 for n in range(300)))
    write(folder / "spl.log.1", line(58))
    write(folder / "spl.log", line(59))
    assert newest(str(folder), 2, []) == [line(58), line(59)]
    every = newest(str(folder), 10_000, [])
    assert len(every) == 302
    assert every[0].startswith(line(0))
    assert [text.partition(" n=")[2][:2].strip() for text in every[:5]] == ["0", "1", "2", "3", "4"]


def test_json_lines_and_json_output(spl: Run, folder: Path) -> None:
    value = {"ts": "2026-11-23T06:00:00.000Z", "level": "info", "target": FED, "event": "pair.activated", "msg": "x y"}
    write(folder / "spl.log", json.dumps(value), line(1))
    assert spl("logs", "event=pair.activated", "-o", "json").data == [value]
    assert [json.loads(text)["event"] for text in spl("logs", "-o", "jsonl").out.splitlines()] == [
        "pair.activated",
        "sync.pulled",
    ]


def test_members_of_a_line() -> None:
    assert parse('a=1 b="x \\"y\\" z" c=') == {"a": "1", "b": 'x "y" z', "c": ""}
    assert parse("no members here") == {"msg": "no members here"}
    assert parse("{broken") == {"msg": "{broken"}
    assert parse("[1]") == {"msg": "[1]"}
    assert not Filter("level", "info").takes({"level": "debug"})
    assert not Filter("event", "a").takes({})


@pytest.mark.parametrize("word", ["level", "level=loud", "=x", "event="])
def test_a_filter_that_is_none(spl: Run, word: str) -> None:
    with pytest.raises(SplError):
        filters_of([word])
    assert spl("logs", word).code == 2


def test_without_a_log(spl: Run) -> None:
    result = spl("logs", tty=True)
    assert (result.code, result.out) == (0, "")
    assert "no log at" in result.err
    assert spl("logs", "-n", "-1").code == 2


def test_what_steers_a_terminal_is_written_out(spl: Run, folder: Path) -> None:
    write(folder / "spl.log", "event=x msg=\x1b[2Jgone")
    assert "\x1b" not in spl("logs").out


def test_following_goes_on_after_a_rotation(folder: Path) -> None:
    """Half a line waits for its rest; the old file is read to its end before the new one is opened."""
    log = folder / "spl.log"
    write(log, line(1))

    def happen() -> Iterator[None]:
        write(log, line(2), line(3, "debug"))
        yield
        with log.open("a") as file:
            file.write(line(4)[:20])
        yield
        with log.open("a") as file:
            file.write(line(4)[20:] + "\n")
        yield
        write(log, line(5))
        log.rename(folder / "spl.log.1")
        write(log, line(6))
        yield
        raise KeyboardInterrupt

    script, seen = happen(), list[str]()

    def run() -> None:
        for text in follow(str(folder), filters_of(["level=info"]), lambda: next(script)):
            seen.append(text)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert seen == [line(2), line(4), line(5), line(6)]


def test_a_terminal_gets_short_lines_and_warnings_whole(spl: Run, folder: Path) -> None:
    """How long ago, the level in its colour, what happened, instances by their labels; the rest of a line is cut."""
    peer = "did:sync:instance:bob-0123456789abcdef01234567"
    facts = f"peer={peer} url=http://bob.example/ " + " ".join(f"n{n}={n}" for n in range(20))
    write(folder / "spl.log", *(f"{line(1, level)} {facts}" for level in ("info", "error")), "no line of ours")
    info, error, other = spl("logs", tty=True, env={"COLUMNS": "60", "NO_COLOR": ""}).out.splitlines()
    assert info == "   in 1s  info     line 1  n=1  peer=bob  url=http://bob.ex…"
    assert len(info) == 60
    assert error.startswith("\x1b[31m   in 1s  error  \x1b[0m  line 1  n=1  peer=bob  url=http://bob.example/  n0=0")
    assert error.endswith("n19=19")
    assert other == "no line of ours"
    wide = spl("logs", "-o", "wide", tty=True).out.splitlines()
    assert wide[0] == f"{line(1)} {facts}"


def test_nothing_that_passes_is_said(spl: Run, folder: Path) -> None:
    write(folder / "spl.log", line(1))
    result = spl("logs", "level=error")
    assert (result.code, result.out, result.err) == (0, "", f"no line of {folder} passes\n")
