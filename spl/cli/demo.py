"""`spl demo`: alice and bob, two throw-away instances, meet and agree; each step is a command that one can try."""

import shlex
import subprocess
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ..client.calls import quote
from ..core.errors import count
from .client import CtlError
from .command import FOUND_PROBLEMS, Command, Shell
from .out import Out
from .temporary import TemporaryDaemons, ended_by_signals

DEADLINE_S: Final = 60.0
ASKED_BY_HAND: Final = "202 Accepted"
_LOOK_AGAIN_S: Final = 0.1

BEFORE: Final = (
    ("alice", 'intend "ship the garden plan" --thread th_garden'),
    ("alice", 'know "the beds are four metres long" --thread th_garden'),
    ("bob", 'do "ordered the seeds" --thread th_garden'),
    ("bob", 'learn "peas want an early start" --thread th_seeds'),
)
APPROVAL: Final = (("bob", "aitl list"), ("bob", "aitl approve alice"))
AFTER: Final = (
    ("alice", 'know "the fence is up" --thread th_garden'),
    ("bob", 'know "the seeds came" --thread th_seeds'),
    ("alice", "sync bob"),
    ("bob", "sync alice"),
)
LOOK: Final = (
    ("alice", "federation list"),
    ("bob", "federation show alice"),
    ("alice", "status"),
    ("alice", "federation verify bob"),
)
"""Who types what, in the order of the story."""


class DemoDaemons(TemporaryDaemons):
    """Alice's daemon and Bob's."""

    names = ("alice", "bob")
    purpose = "demo"
    labelled = False


class Story:
    """Shows commands as if they were typed, and runs them."""

    def __init__(self, daemons: DemoDaemons, out: Out) -> None:
        self._daemons = daemons
        self._out = out

    def title(self, text: str) -> None:
        """Print what the next commands are about."""
        self._out.line()
        self._out.line(f"== {text}")

    def play(self, steps: tuple[tuple[str, str], ...]) -> None:
        """Run commands one after another.  Raises CtlError for one that fails."""
        for name, line in steps:
            with self._typed(name, line, as_typed=self._out.people) as lines:
                for text in lines:
                    self._out.line(text)

    def pair(self) -> None:
        """Have alice ask, and bob answer while her command waits.  Raises CtlError."""
        with self._typed("alice", f"federation pair {self._daemons.url('bob')}/") as lines:
            for text in lines:
                self._out.line(text)
                if ASKED_BY_HAND in text:
                    self._wait_for_request()
                    self.play(APPROVAL)
                    self._out.line()
                    self._out.line("(alice's command goes on)")

    @contextmanager
    def _typed(self, name: str, line: str, *, as_typed: bool = False) -> Iterator[Iterator[str]]:
        """Start a command and give the lines of its result, none if it prints to the terminal; it must end well."""
        self._out.line()
        self._out.line(f"{name}$ spl {line}")
        with subprocess.Popen(  # noqa: S603 - our own program, no shell
            self._daemons.command(name, *shlex.split(line)), env=self._daemons.environment(),
            stdin=subprocess.DEVNULL, stdout=None if as_typed else subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, encoding="utf-8",
        ) as process:  # fmt: skip
            assert process.stderr is not None
            yield (text.rstrip("\n") for text in process.stdout or ())
            said = process.stderr.read().strip()
        if process.returncode:
            raise CtlError("internal", f"{name}$ spl {line}: {said or process.returncode}")

    def _wait_for_request(self) -> None:
        """Return once bob's daemon has the request; it was answered, so it is on its disk."""
        end_s = time.monotonic() + DEADLINE_S
        while not self._daemons.ctl("bob").items("/v1/aitl"):
            if time.monotonic() > end_s:
                raise CtlError("timeout", "bob's daemon shows no request")
            time.sleep(_LOOK_AGAIN_S)


def _demo(args: Namespace, shell: Shell) -> int:
    out = shell.out
    with ended_by_signals(), DemoDaemons(shell.env, out.detail) as daemons:
        stage = Story(daemons, out)
        stage.title("two daemons, each with a home and an identity of its own")
        stage.play((("alice", "health"), ("bob", "health")))
        stage.title("records on both sides")
        stage.play(BEFORE)
        stage.title("pair: alice asks, bob approves")
        stage.pair()
        stage.title("more records, then sync by hand, each side from the other")
        stage.play(AFTER)
        stage.title("what the operators see, and the proof")
        stage.play(LOOK)
        stage.title("what both hold")
        ours, theirs = (holding(daemons, name) for name in daemons.names)
    for thread, act, text in ours.values():
        out.line(f"{thread:<10} {act:<7} {text}")
    out.line()
    if ours.keys() != theirs.keys():
        out.line(f"demo: FAILED, alice holds {count(len(ours), 'record')} and bob {len(theirs)}, and they differ")
        return FOUND_PROBLEMS
    out.line(f"demo: ok, both daemons hold the same {count(len(ours), 'record')}")
    return 0


def holding(daemons: TemporaryDaemons, name: str) -> dict[str, tuple[str, str, str]]:
    """Return what an instance holds: record id -> thread, act, text."""
    ctl, found = daemons.ctl(name), {}
    for thread in sorted(item["thread"] for item in ctl.items("/v1/threads")):
        for record in ctl.items(f"/v1/threads/{quote(thread)}/records"):
            found[record["id"]] = thread, record["act"], str(record["body"].get("text", ""))
    return found


TREE: Final = (
    Command(
        "demo",
        "Starts two daemons in a temporary folder, pairs them, syncs both ways and compares what both hold.\n"
        "It takes some ten seconds, needs no network, touches no other home and leaves nothing behind.",
        "spl demo",
        _demo,
        result=False,
        whose="nobody",
    ),
)
