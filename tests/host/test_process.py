"""The process of a daemon: a stop that hangs is ended, one that was asked for early is not lost."""

import subprocess
import sys
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest

from spl.host import process

START = (
    "import os, signal, threading; from spl.host.process import *;"
    "dog = Watchdog(); dog.start(); stop = threading.Event(); dog.on_stop(stop.set);"
)


def run(code: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([sys.executable, "-c", START + code], capture_output=True, timeout=60)


def test_a_stop_that_hangs_is_ended() -> None:
    done = run("dog.limit_s = 0.2; os.kill(os.getpid(), signal.SIGTERM); threading.Event().wait()")
    assert done.returncode == 1


def test_a_stop_that_ends_in_time_is_left_alone() -> None:
    code = "os.kill(os.getpid(), signal.SIGTERM); stop.wait(); dog.ended.set(); os._exit(7)"
    assert run(code).returncode == 7


def test_a_stop_before_anybody_listens_is_not_lost() -> None:
    watchdog = process.Watchdog()
    watchdog.alarm()
    with pytest.raises(process.StoppedError):
        watchdog.check()
    with pytest.raises(process.StoppedError):
        watchdog.progress(1, 2)


def test_the_soft_limit_of_files_is_raised() -> None:
    code = (
        "import resource; hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1];"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard));"
        "print(raise_descriptors(), resource.getrlimit(resource.RLIMIT_NOFILE)[0], min(hard, DESCRIPTORS_MAX))"
    )
    said, soft, wanted = map(int, run(code).stdout.split())
    assert said == soft == wanted


def test_what_the_start_made_is_not_looked_at_again() -> None:
    code = (
        "import asyncio, gc; collect_seldom(); settle(asyncio.new_event_loop());"
        "print(gc.get_freeze_count() > 1000, gc.get_threshold()[0], gc.isenabled())"
    )
    assert run(code).stdout.split() == [b"True", str(process.YOUNG_OBJECTS).encode(), b"True"]


def test_memory_is_given_back_at_the_end_of_the_start_and_after_work_only(monkeypatch: pytest.MonkeyPatch) -> None:
    used_s, given, later = [0.05], list[float](), list[tuple[object, ...]]()
    monkeypatch.setattr(process.time, "process_time", lambda: used_s[0])
    monkeypatch.setattr(process, "give_back", lambda: given.append(used_s[0]))
    loop: Any = SimpleNamespace(call_later=lambda delay_s, call, *args: later.append((call, *args)), time=lambda: 1.0)
    process._keep_giving_back(loop, -process.BUSY_S, inf)
    for used_s[0] in (0.06, 0.1, 0.3, 0.35, 0.45):
        call, *args = later.pop()
        call(*args)  # type: ignore[operator]
    assert given == [0.05, 0.3, 0.45]
    assert len(later) == 1


def test_a_full_collection_takes_a_thousandth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_s, collected, later = [1.0], list[float](), list[tuple[object, ...]]()

    def collect() -> None:
        collected.append(clock_s[0])
        clock_s[0] += 0.02

    monkeypatch.setattr(process.time, "process_time", lambda: clock_s[0])
    monkeypatch.setattr(process.gc, "collect", collect)
    monkeypatch.setattr(process, "give_back", lambda: None)
    loop: Any = SimpleNamespace(call_later=lambda _, call, *args: later.append((call, *args)), time=lambda: clock_s[0])
    process._keep_giving_back(loop, -process.BUSY_S, 0.0)
    for clock_s[0] in (6.0, 11.0, 16.0, 22.0, 27.0):
        call, *args = later.pop()
        call(*args)  # type: ignore[operator]
    assert collected == [1.0, 22.0]


def test_pages_between_those_in_use_are_given_back() -> None:
    code = (
        "import sys; share_memory(); rss = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096;"
        "held = [b'x' * 100_000 for _ in range(400)]; held[::2] = [b''] * 200; before = rss(); give_back();"
        "print(before - rss() > 10_000_000, 'ctypes' in sys.modules)"
    )
    assert run(code).stdout.split() == [b"True", b"False"]
