"""Throw-away daemons for a soak: three processes with homes of their own in one temporary folder, gone at the end.

`a` and `b` are the pair.  `c` asks `a` to pair with it, again and again, because the load needs approval requests: each
is a request, an approval by a's operator, a handshake and a revocation, as people do it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from ..core.errors import count
from .client import JSON, Ctl, CtlError, open_ctl, quote, refusal
from .logs import filters_of, newest
from .pair import PAIRS
from .soak_driver import Target

NAMES: Final = ("a", "b", "c")
READY_S: Final = 30.0
STOP_S: Final = 8.0
DRAIN_S: Final = 15.0
ASK_MS: Final = 20_000
FAULT_LINES: Final = 5

_LOOK_AGAIN_S: Final = 0.05
_ROOT: Final = Path(__file__).resolve().parent.parent.parent
_SAID_BYTES: Final = 500


class Daemons:
    """The daemons; a context manager, so that they end with the soak, whatever ends that."""

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
        self.pair_id = ""

    def __enter__(self) -> "Daemons":
        self._folder = Path(tempfile.mkdtemp(prefix="spl-soak-"))
        try:
            for name in NAMES:
                self._start(name)
            self.pair_id = self._pair()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def target(self) -> Target:
        """Return the pair of a and b, driven at a."""
        sides = tuple((name, self._ctls[name].kept) for name in ("a", "b"))
        return Target(
            self.pair_id, "default", sides, "queue_records", DRAIN_S, approve=self.approve, dead=self.dead,
        )  # fmt: skip

    def dead(self) -> Sequence[str]:
        """Return the names of the daemons that ended."""
        return [name for name, process in self._processes.items() if process.poll() is not None]

    def approve(self) -> None:
        """Make c ask, a's operator approve, both finish the handshake, and c revoke the pair.  Raises CtlError."""
        pair_id = self._agreed("c", "a", from_now=True)
        self._ctls["c"].post(f"{PAIRS}/{quote(pair_id)}/revoke", {"reason": "the soak asks again"})

    def differences(self, threads: Sequence[str]) -> list[str]:
        """Return the differences between the sets of a and b on these threads; [] if they are equal."""
        found = []
        for thread in threads:
            ours, theirs = (self._digest(name, thread) for name in ("a", "b"))
            if ours != theirs:
                found.append(
                    f"thread {thread} has {count(ours[0], 'record')} on a, {theirs[0]:,} on b, and they differ"
                )
        return found

    def log_lines(self) -> list[str]:
        """Return the last warnings and errors of federation in the logs of a and b, whose homes are removed."""
        filters = filters_of(["level=warning", "target=syncropel_engine::federation"])
        lines = {name: newest(str(self._folder / name / "logs"), FAULT_LINES, filters) for name in ("a", "b")}
        return [f"{name}: {line}" for name, found in lines.items() for line in found]

    # -- inside

    def _start(self, name: str) -> None:
        home = self._folder / name
        home.mkdir(mode=0o700)
        self._trace(f"daemon {name} at {home}")
        made = subprocess.run(  # noqa: S603 - our own program, no shell
            [*self._spl("init", home), "--label", f"soak-{name}"], env=self._env, capture_output=True, check=False
        )
        if made.returncode:
            raise CtlError("home-unusable", f"the temporary daemon {name}: {_last_line(made.stderr)}")
        with (self._folder / f"{name}.out").open("wb") as out:
            # A session of its own: Ctrl-C reaches the soak alone, which then ends its daemons in order.
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

    def _pair(self) -> str:
        """Pair a with b, in continuous mode on both sides."""
        pair_id = self._agreed("a", "b")
        for name in ("a", "b"):
            path = f"{PAIRS}/{quote(pair_id)}"
            self._ctls[name].post(f"{path}/mode", {"mode": "continuous"})
        return pair_id

    def _agreed(self, asking: str, asked: str, **more: object) -> str:
        """Return a new pair of two daemons.

        The request is approved by hand, as that is what lets the other side dial an address of this machine.
        """
        pair_id, approved = "", False
        for step in self._steps(asking, {"url": self._url(asked), "wait_ms": ASK_MS, **more}):
            pair_id = str(step.get("pair_id", pair_id))
            if pair_id and not approved and step["step"] == "waiting":
                self._ctls[asked].post(f"/v1/aitl/{quote(pair_id)}/decide", {"decision": "approve"})
                approved = True
            if step["step"] == "active":
                return pair_id
        raise CtlError("handshake-pending", "a request that was approved did not become a pair")

    def _steps(self, name: str, body: Mapping[str, object]) -> Any:
        """Yield the steps of a handshake; raise the refusal that ends it."""
        for step in self._ctls[name].lines(PAIRS, json.dumps(body).encode(), JSON, ASK_MS / 1000 + 10):
            if step["step"] == "error":
                raise refusal(step["error"])
            yield step

    def _url(self, name: str) -> str:
        return str(self._ctls[name].get("/health")["url"])

    def _digest(self, name: str, thread: str) -> tuple[int, str]:
        """Return (how many records a thread has, digest over their sorted ids)."""
        pieces = self._ctls[name].stream(f"/v1/threads/{quote(thread)}/snapshot")
        text = b""
        while b"\n" not in text and (piece := next(pieces, b"")):
            text += piece
        head = json.loads(text.partition(b"\n")[0])
        return int(head["count"]), str(head["digest"])

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


def _last_line(output: bytes) -> str:
    return (output.decode(errors="replace").strip().splitlines() or ["it printed nothing"])[-1][-_SAID_BYTES:]
