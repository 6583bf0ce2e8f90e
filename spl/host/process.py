"""The process of the daemon: its signals and how long a stop may take, open files, memory."""

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from types import FrameType
from typing import Any, Final

from ..core.event import event
from ..core.limits import KIB, Limits

log = logging.getLogger("spl.daemon")

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -8, -3, -1
"""Parameters of glibc's mallopt."""
BLOCK_BYTES: Final = 128 * KIB
DESCRIPTORS_MAX: Final = 65_536
"""More are never asked for; some systems allow a billion, and what is per descriptor must stay small."""
CUT_GRACE_S: Final = 2.0
YOUNG_OBJECTS: Final = 5000
GIVE_BACK_S: Final = 5.0
COLLECT_SHARE: Final = 1000
"""Of the time of a busy process its full collections take a part in so many: some ms each for a hundred pairs."""
BUSY_S: Final = 0.1
"""Processor time after which there may be pages to give back; an idle daemon takes minutes for it."""


def share_memory() -> None:
    """Have all threads allocate from one arena, and blocks of BLOCK_BYTES go back to the system as they are freed.

    With one arena for each thread, as glibc does it, what one thread freed serves no other: sixty unread snapshots took
    70 MiB instead of 24.  And it learns from the first large block that is freed to keep all up to that size: a body of
    megabytes left holes that no one else fits into.  Other C libraries have neither, and no such call.
    """
    mallopt = _of_libc("mallopt", "int", "int")
    for parameter, value in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, BLOCK_BYTES), (M_TRIM_THRESHOLD, BLOCK_BYTES)):
        mallopt(parameter, value)


def give_back() -> None:
    """Give pages that nothing uses back to the system, also those between pages in use.

    Takes 0.2 ms for the heap of a small daemon and 10 ms for 400 MB, in which nothing else is done.
    The C library does so by itself only at the end of its heap.  A start leaves 0.3 MiB of such pages, and 10,000
    records in one request 1.2 MiB.
    """
    _of_libc("malloc_trim", "size_t")(0)


def _of_libc(name: str, *kinds: str) -> Callable[..., object]:
    """Return a function of the C library that gives an int; where it has none, one that does nothing.

    By the part of cffi that libsodium is called by and so is loaded: to import ctypes takes 0.4 MiB.
    """
    try:
        cffi: Any = import_module("_cffi_backend")
        types = [cffi.new_primitive_type(kind) for kind in ("int", *kinds)]
        found: Callable[..., object] = cffi.load_library(None, 0).load_function(
            cffi.new_function_type(tuple(types[1:]), types[0], False), name
        )
    except (ImportError, AttributeError, OSError):
        return lambda *args: None
    return found


def collect_seldom() -> None:
    """Have the garbage collector look at young objects each YOUNG_OBJECTS, and not each 700.

    What records and requests leave behind is freed at once, so there is little to find; but 64 requests under way are
    3,000 objects, and to look at them in vain cost 5 us a record.
    """
    gc.set_threshold(YOUNG_OBJECTS)


def settle(loop: asyncio.AbstractEventLoop) -> None:
    """Have the garbage collector never look again at what the start made: some 20 ms of a full stop each time.

    From then on what bulk leaves unused is given back within GIVE_BACK_S.
    """
    gc.collect()
    gc.freeze()
    _keep_giving_back(loop, -BUSY_S, 0.0)


def _keep_giving_back(loop: asyncio.AbstractEventLoop, given_s: float, collect_s: float) -> None:
    """Give back if the process was busy since it did so at `given_s` of its time, and look again later.

    From `collect_s` on there may be a full collection before.  It also empties the interpreter's lists of tuples and
    numbers to use again, which grow to a MiB and lie between what stays: of pairs that were just made a fifth.

    The size of the process would not say so: what is freed between pages in use does not change it.
    """
    used_s = time.process_time()
    if used_s - given_s >= BUSY_S:
        if (began_s := loop.time()) >= collect_s:
            gc.collect()
            collect_s = began_s + COLLECT_SHARE * (loop.time() - began_s)
        give_back()
        given_s = used_s
    loop.call_later(GIVE_BACK_S, _keep_giving_back, loop, given_s, collect_s)


def raise_descriptors() -> int:
    """Raise the soft limit of open files to the hard one, at most DESCRIPTORS_MAX; return what is in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return DESCRIPTORS_MAX if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError):  # some systems have a lower bound that getrlimit does not show
        return soft
    return wanted


class StoppedError(Exception):
    """A stop signal came before the daemon could serve."""


class Watchdog:
    """A thread that waits for the first stop signal, and ends the process if the stop takes longer than `limit_s`.

    The signal handler only writes to a pipe, which is safe wherever it interrupts, also in a loop that never comes
    back.
    """

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.limit_s = Limits().shutdown_s + CUT_GRACE_S
        self._asked = False
        self._stopping = threading.Event()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._on_stop: Callable[[], object] = self._stopping.is_set

    def start(self) -> None:
        """Watch from now on, and handle the stop signals, also those that came before."""
        threading.Thread(target=self._watch, name="spl-watchdog", daemon=True).start()
        for number in STOP_SIGNALS:
            signal.signal(number, self.alarm)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def on_stop(self, act: Callable[[], object]) -> None:
        """Call `act`, which may be called twice, in the thread at the first alarm, or now if that has been."""
        self._on_stop = act
        if self._stopping.is_set():
            act()

    def check(self) -> None:
        """Raise StoppedError if a stop was asked for."""
        if self._asked:
            raise StoppedError

    def progress(self, done: int, total: int) -> None:
        """Say how far an opening is; raise StoppedError if a stop was asked for."""
        self.check()
        print(f"rebuilding the index: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB", file=sys.stderr, flush=True)

    def alarm(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Begin the stop; a signal handler, and harmless a second time."""
        self._asked = True
        with contextlib.suppress(BlockingIOError):  # the pipe is full of earlier alarms
            os.write(self._writer, b".")

    def _watch(self) -> None:
        os.read(self._reader, 1)
        self._stopping.set()
        self._on_stop()
        if self.ended.wait(self.limit_s):
            return
        log.error(**event("daemon.cut", after_s=self.limit_s, msg="the stop did not end in time"))
        logging.shutdown()
        os._exit(1)
