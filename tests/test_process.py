"""The process of a daemon: a stop that hangs is ended, one that was asked for early is not lost."""

import subprocess
import sys

import pytest

from spl import process

START = (
    "import os, signal, threading; from spl.process import *;"
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


def test_pages_between_those_in_use_are_given_back() -> None:
    code = (
        "import sys; share_memory(); rss = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096;"
        "held = [b'x' * 100_000 for _ in range(400)]; held[::2] = [b''] * 200; before = rss(); give_back();"
        "print(before - rss() > 10_000_000, 'ctypes' in sys.modules)"
    )
    assert run(code).stdout.split() == [b"True", b"False"]
