"""Throw-away daemons: processes with homes of their own in one temporary folder, gone at the end."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, Self

from .client import Ctl, CtlError, open_ctl

READY_S: Final = 30.0
STOP_S: Final = 8.0

_LOOK_AGAIN_S: Final = 0.05
_ROOT: Final = Path(__file__).resolve().parent.parent.parent
_SAID_BYTES: Final = 500
_END_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)


class TemporaryDaemons:
    """The daemons, by name; a context manager, so that they end with the command, whatever ends that."""

    names: Sequence[str] = ()
    purpose = ""
    """Stands before the name of the folder, and before the label of each instance if `labelled`."""
    labelled = True

    def __init__(self, env: Mapping[str, str], trace: Callable[[str], None]) -> None:
        # The configuration of the operator's own daemon must not reach these.
        own = {name: value for name, value in env.items() if not name.startswith(("SPL_", "SYNCROPEL_"))}
        path = os.pathsep.join(filter(None, (str(_ROOT), env.get("PYTHONPATH", ""))))
        loop = {"SPL_LOOP": env["SPL_LOOP"]} if "SPL_LOOP" in env else {}
        self._env = {**own, **loop, "PYTHONPATH": path}
        self._trace = trace
        self._folder = Path()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ctls: dict[str, Ctl] = {}

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix=f"spl-{self.purpose}-"))
        try:
            for name in self.names:
                self._start(name)
            self.begin()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def begin(self) -> None:
        """Do what stands before the work, once all of them serve."""

    def home(self, name: str) -> Path:
        """Return the home of a daemon."""
        return self._folder / name

    def environment(self) -> dict[str, str]:
        """Return the environment of their processes."""
        return dict(self._env)

    def command(self, name: str, *words: str) -> list[str]:
        """Return the command line of `spl WORDS` for the home of a daemon."""
        first, *rest = words
        return [*self._spl(first, self.home(name)), *rest]

    def ctl(self, name: str) -> Ctl:
        """Return the client of a daemon."""
        return self._ctls[name]

    def url(self, name: str) -> str:
        """Return where a daemon listens."""
        return str(self._ctls[name].get("/health")["url"])

    def dead(self) -> Sequence[str]:
        """Return the names of the daemons that ended."""
        return [name for name, process in self._processes.items() if process.poll() is not None]

    # -- inside

    def _start(self, name: str) -> None:
        home = self._folder / name
        home.mkdir(mode=0o700)
        self._trace(f"daemon {name} at {home}")
        made = subprocess.run(  # noqa: S603 - our own program, no shell
            [*self._spl("init", home), "--label", f"{self.purpose}-{name}" if self.labelled else name],
            env=self._env,
            capture_output=True,
            check=False,
        )
        if made.returncode:
            raise CtlError("home-unusable", f"the temporary daemon {name}: {_last_line(made.stderr)}")
        with (self._folder / f"{name}.out").open("wb") as out:
            # A session of its own: Ctrl-C reaches the command alone, which then ends its daemons in order.
            self._processes[name] = subprocess.Popen(  # noqa: S603 - our own program, no shell
                [*self._spl("serve", home), "--port", "0"],
                env=self._env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        self._ctls[name] = open_ctl(str(home), {}, self._trace)
        self._wait_ready(name)

    def _spl(self, command: str, home: Path) -> list[str]:
        return [sys.executable, "-m", __package__.partition(".")[0], command, "--home", str(home)]

    def _wait_ready(self, name: str) -> None:
        end_s = time.monotonic() + READY_S
        while True:
            try:
                self._ctls[name].get("/health/ready")
                return
            except CtlError as exc:
                if self._processes[name].poll() is not None or time.monotonic() > end_s:
                    said = _last_line((self._folder / f"{name}.out").read_bytes())
                    raise CtlError("daemon-down", f"the temporary daemon {name} does not serve: {said}") from exc
            time.sleep(_LOOK_AGAIN_S)

    def _end(self) -> None:
        """End the daemons, by force if they do not end by themselves, and remove their homes."""
        # A second Ctrl-C must not leave daemons running; this takes seconds at most.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        end_s = time.monotonic() + STOP_S
        for process in self._processes.values():
            try:
                process.wait(max(0.0, end_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
        signal.signal(signal.SIGINT, before)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the `with` as Ctrl-C does, so that the temporary daemons end too.

    Only the first one does: a second must not interrupt the end of the daemons.
    """

    def end(number: int, frame: FrameType | None) -> None:
        for each in _END_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in _END_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _last_line(output: bytes) -> str:
    return (output.decode(errors="replace").strip().splitlines() or ["it printed nothing"])[-1][-_SAID_BYTES:]
