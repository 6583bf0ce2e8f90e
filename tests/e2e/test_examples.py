"""The example that ends each help page, run as printed by a shell: on a fresh pair whose peer is named bob.

Only the folder for temporary files is another one.  What an example needs, such as a request that waits, is there.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from spl.cli import main
from spl.cli.command import Command, Group
from tests.e2e.conftest import AUTO, House
from tests.e2e.harness import ROOT, Instance
from tests.waiting import DEADLINE_S, eventually

ELSEWHERE: Final = {
    "init": "makes the home, which is there",
    "serve": "runs until it is stopped",
    "demo": "has a test of its own",
    "identity generate": "refused, because there is an identity",
    "identity import": "is for an empty home",
    "federation": "is that of federation pair",
    "federation pair": "is played with the pages",
    "federation soak": "runs for minutes",
    "sink test": "asks a server, as tests/engine does",
    "federation set-carrier": "asks a server, as tests/engine does",
    "top": "needs a terminal",
}
"""Examples that are not run here, and why."""
FINDS: Final = {
    "status": {0, 3},
    "doctor": {0, 3},
    "debug thread-diff": {0, 3},
    "debug": {0, 3},
    "config test-permission": {0, 4},
    "federation verify": {0, 3},
}
"""Commands that exit otherwise when they find something."""
LAST: Final = ("token revoke", "federation revoke")


def entries() -> dict[str, Command | Group]:
    """Return every command and group by its words."""
    found: dict[str, Command | Group] = {}
    for noun in main.PLACES:
        for entry in main._entries(noun).values():
            found[entry.name] = entry
            found.update({each.name: each for each in entry.commands} if isinstance(entry, Group) else {})
    return found


@dataclass
class Stage:
    """Two daemons and a folder in which alice's shell runs."""

    alice: Instance
    bob: Instance
    folder: Path

    def play(self, name: str) -> None:
        """Run the lines of an example."""
        for line in entries()[name].example.split("\n"):
            text = f'spl() {{ "{sys.executable}" -m spl "$@"; }}; ' + line.replace("/tmp/", f"{self.folder}/")
            env = {**self.alice.environment(), "PYTHONPATH": str(ROOT)}
            done = subprocess.run(
                ["bash", "-c", text], env=env, cwd=self.folder, capture_output=True, timeout=DEADLINE_S, check=False
            )
            allowed = FINDS.get(name, {0})
            assert done.returncode in allowed, f"{line}: {done.returncode}\n{done.stdout!r}\n{done.stderr.decode()}"

    def ask(self) -> None:
        """Let bob ask alice for a pair, which waits for her."""
        eventually(lambda: not self.bob.pairs("establishing"), "bob knows that he was rejected")
        self.bob.run("federation", "pair", self.alice.url, "--wait", "0s", code=8)
        eventually(lambda: self.alice.api("GET", "/v1/aitl").json["data"], "the request waits at alice")


@pytest.fixture(scope="module")
def stage(house: House, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """A pair that alice approved, after she rejected the first request."""
    return Stage(house("alice", "").start(), house("bob", AUTO).start(), tmp_path_factory.mktemp("shell"))


def prepared(stage: Stage) -> dict[str, Callable[[], Any]]:
    """Return what is done before an example: what its page takes for granted."""
    pair = "federation:sync,federation:subscribe"
    token, there = stage.folder / "token.txt", stage.folder / "bob-pairs.snap.jsonl"
    return {
        "aitl show": stage.ask,
        "aitl approve": stage.ask,
        "federation set-token": lambda: token.write_text(
            stage.bob.run("token", "mint", "--scopes", pair, "--pair", stage.bob.pairs("active")[0]["pair_id"]).out
        ),
        "federation grant": lambda: stage.alice.run("namespace", "create", "music"),
        "federation projections": lambda: stage.alice.run("namespace", "create", "projects"),
        "wait": lambda: stage.bob.run("sync"),  # or bob fetches what alice wrote when its time comes
        "wait caught-up": lambda: stage.bob.run("sync"),
        "debug": lambda: there.write_text(stage.bob.run("thread", "snapshot", "th_federation_pairs").out),
    }


def test_examples_run_as_printed_on_a_fresh_pair(stage: Stage) -> None:
    """In the order of the help, but what ends something comes last, and requests are decided first."""
    names = [name for name in entries() if name not in ELSEWHERE]
    first = ["namespace", *(name for name in names if name.startswith("namespace ")), "aitl", "aitl list", "aitl show",
             "aitl reject", "aitl approve"]  # fmt: skip
    rest = [name for name in names if name not in first and name not in LAST]
    before = prepared(stage)
    for name in [*first, *rest, *LAST]:
        if name in before:
            before[name]()
        stage.play(name)
        if name == "aitl approve":
            eventually(lambda: stage.alice.pairs("active"), "the pair is active at alice")
            eventually(lambda: stage.bob.pairs("active"), "the pair is active at bob")
