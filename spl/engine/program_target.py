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

from ..core.limits import MIB
from .protocol import EngineError, said
from .pump import SinkState
from .reader import LogReader, StoredRecord
from .sinks import EXEC, Sink

PUT_S: Final = 60.0
"""How long a batch may take to be confirmed."""
LINE_BYTES_MAX: Final = 4096  # what a program answers is an id
LINE_COST: Final = 64
"""What a line counts beside its bytes."""
PRINTED_MAX: Final = 4 * MIB
"""What a program may print for a batch, beside PRINTED_A_BYTE for each byte of it."""
PRINTED_A_BYTE: Final = 64  # one that shows records prettily is no flood
LINES_A_TURN: Final = 64
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
        data, done, places = b"".join(record.body + b"\n" for record in records), 0, dict[str, list[int]]()
        for at in reversed(range(len(records))):
            places.setdefault(f"{run.word} {records[at].id}", []).append(at)  # an id may stand there twice
        allowed = run.printed + PRINTED_MAX + PRINTED_A_BYTE * len(data)
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(run.write(data))
            if not self.target.confirms:
                writing.add_done_callback(lambda _: run.finish())
            while run.printed <= allowed and (line := await run.line()) is not None:
                waiting = places.get(line, [])
                while waiting and waiting[-1] < done:
                    waiting.pop()
                if not waiting:
                    continue  # a program may print what it likes beside
                done = waiting.pop() + 1
                self.target.confirms, self.target.place = True, records[done - 1].seq
                if done == len(records) and not run.finished:
                    return
            if run.printed > allowed:
                writing.cancel()
        if run.printed > allowed:
            raise EngineError("sink-refused", f"the program printed {run.printed} bytes or so for one batch")
        code, text = await run.ended()
        self._run = None
        if code:
            raise EngineError("sink-refused", f"the program ended with status {code}", said=text)
        if done < len(records) and self.target.confirms:
            text = f"the program ended before it confirmed {len(records) - done} of its records"
            raise EngineError("sink-refused", text)
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
        self.printed = 0
        """What it printed, each line with its cost."""
        self._lines, self._said = 0, ""

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
        """Return the next line of its output, None at the end; others run between lines that come at once."""
        assert self._process.stdout is not None
        self._lines += 1
        if self._lines % LINES_A_TURN == 0:
            await asyncio.sleep(0)
        try:
            raw = await self._process.stdout.readuntil(b"\n")
        except asyncio.IncompleteReadError as exc:
            raw = exc.partial
        except asyncio.LimitOverrunError as exc:
            await self._process.stdout.readexactly(exc.consumed)
            self.printed += LINE_COST + exc.consumed
            return ""  # too long for an id
        self.printed += LINE_COST + len(raw)
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
            # If it printed more than we read, the pipe stands still, and its end would not be seen.
            self._process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]


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
