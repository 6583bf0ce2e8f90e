"""Records into a program: one envelope a line on its standard input; what it confirms, it prints.

A line of its output (standard and error output are one) confirms a record and all before it if it is the word in the
program's environment variable SPL_CONFIRM, a space and the record's id.  The word is another one in each run and stands
in no record, so nobody who wrote a record confirms one by a text that the program prints.  A program that prints no
such line, such as `kcat -P`, confirms by its end: after each batch its input is closed, and exit status 0 confirms all
that it was given.  Anything else confirms what its lines confirmed, and the rest goes to the next run.  A crash of ours
repeats what was confirmed since the position was last saved.

The program gets no secrets: its environment is PATH, HOME, LANG and SPL_CONFIRM, no shell reads the command, and it
runs in a process group of its own, which ends with the session.  It has the rights of the daemon, so it is named on
this machine only.
"""

import asyncio
import os
import shlex
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

from .protocol import EngineError, said
from .pump import SinkState
from .reader import LogReader, StoredRecord
from .sinks import EXEC, Sink

PUT_S: Final = 60.0
"""How long a batch may take to be confirmed."""
LINE_BYTES_MAX: Final = 4096  # what a program answers is an id
ENDS_S: Final = 1.0


class ProgramTarget:
    """The program of one sink; `confirms` once a line of its output confirmed a record."""

    def __init__(self, sink: Sink, reader: LogReader, state: SinkState) -> None:
        self.sink, self.reader, self.state = sink, reader, state
        self.place: int | None = None
        self.confirms = False

    async def open(self) -> "ProgramSession":
        """Return a session; the program starts with the first records."""
        return ProgramSession(self)


class ProgramSession:
    """Runs of the program, one after the other."""

    def __init__(self, target: ProgramTarget) -> None:
        self.target = target
        self._run: _Run | None = None

    async def listen(self) -> None:
        """Do nothing: the output is read while records are put."""
        await asyncio.Event().wait()

    async def resume(self) -> int:
        """Return the position: that of this process, else the saved one, else where the sink begins."""
        target = self.target
        if target.place is None:
            saved = target.reader.saved(target.sink)
            target.place = target.sink.after if saved is None else min(saved[0], target.reader.last_seq)
        return target.place

    async def put(self, records: Sequence[StoredRecord]) -> None:
        """Write records and return when the program confirmed them.  Raises EngineError."""
        for part in _apart(records) if self.target.confirms else (records,):
            run = self._run = self._run or await _start(shlex.split(self.target.sink.url.removeprefix(EXEC)))
            try:
                async with asyncio.timeout(PUT_S):
                    await self._deliver(run, part)
            except TimeoutError as exc:
                self.target.confirms = False  # the operator may have replaced it: the next run may confirm by its end
                raise EngineError("sink-unreachable", f"the program confirms nothing within {PUT_S:g} s") from exc

    async def _deliver(self, run: "_Run", records: Sequence[StoredRecord]) -> None:
        waiting = [f"{run.word} {record.id}" for record in records]
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(run.write(b"".join(record.body + b"\n" for record in records)))
            if not self.target.confirms:
                writing.add_done_callback(lambda _: run.finish())
            while (line := await run.line()) is not None:
                if line not in waiting:
                    continue  # a program may print what it likes beside
                del waiting[: waiting.index(line) + 1]  # of an id that stands there twice, the first
                self.target.confirms, self.target.place = True, records[-len(waiting) - 1].seq
                if not waiting and not run.finished:
                    return
        self._run = None
        code, text = await run.ended()
        if code:
            raise EngineError("sink-refused", f"the program ended with status {code}", said=text)
        if waiting and self.target.confirms:
            raise EngineError("sink-refused", f"the program ended before it confirmed {len(waiting)} of its records")
        self.target.place = records[-1].seq

    async def close(self) -> None:
        """End the program."""
        if self._run is not None:
            await self._run.kill()


class _Run:
    """One process."""

    def __init__(self, process: asyncio.subprocess.Process, word: str) -> None:
        self._process, self.word = process, word
        self.finished = False
        self._said = ""

    async def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(OSError, RuntimeError):  # its end says why; uvloop raises the latter
            self._process.stdin.write(data)
            await self._process.stdin.drain()

    def finish(self) -> None:
        """Close its input."""
        assert self._process.stdin is not None
        self.finished = True
        self._process.stdin.close()

    async def line(self) -> str | None:
        """Return the next line of its output, None at the end."""
        assert self._process.stdout is not None
        try:
            raw = await self._process.stdout.readuntil(b"\n")
        except asyncio.IncompleteReadError as exc:
            raw = exc.partial
        except asyncio.LimitOverrunError as exc:
            await self._process.stdout.readexactly(exc.consumed)
            return ""  # too long for an id
        if raw:
            self._said = raw.decode("utf-8", "replace").strip()
        return self._said if raw else None

    async def ended(self) -> tuple[int, str]:
        """Return its status and the last line that it printed, once it ended."""
        return await self._process.wait(), said(self._said)

    async def kill(self) -> None:
        """End its process group; at once if we are cancelled meanwhile, as at a stop."""
        try:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            with suppress(TimeoutError):
                async with asyncio.timeout(ENDS_S):
                    await self._process.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


def _apart(records: Sequence[StoredRecord]) -> Iterator[Sequence[StoredRecord]]:
    """Yield parts in which no id stands twice, as one of two namespaces does: a confirmation names one record only."""
    start, ids = 0, set[str]()
    for at, record in enumerate(records):
        if record.id in ids:
            yield records[start:at]
            start = at
            ids.clear()
        ids.add(record.id)
    yield records[start:]


async def _start(words: list[str]) -> _Run:
    word = os.urandom(16).hex()
    env = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ} | {"SPL_CONFIRM": word}
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=pipe,
            stdout=pipe,
            stderr=asyncio.subprocess.STDOUT,
            env=env,
            cwd="/",
            start_new_session=True,
            limit=LINE_BYTES_MAX,
        )
    except OSError as exc:
        raise EngineError("sink-unreachable", f"the program cannot be started: {exc.strerror or exc}") from exc
    return _Run(process, word)
