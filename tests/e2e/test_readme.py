"""The transcripts of README and manual, replayed: a shell runs each command line as written, on real daemons.

Only places are replaced (the peer's URL, a pair id, a port); HOME is a folder of the test, and a prompt names the
operator.  If a transcript shows output, the output must read the same, without DIDs, ids, words and ages.
"""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e.conftest import AUTO, Make
from tests.e2e.harness import ROOT, Instance
from tests.pages import PAGES, README
from tests.pages import blocks as fenced
from tests.waiting import DEADLINE_S, eventually

PROMPT = re.compile(r"(?:([a-z]*)\$ )?((?:[A-Z_]+=\S+ )*spl .*|TOKEN=.*|curl .*)")
LABEL = re.compile(r"(?<!--label) (?:alice|bob)\b")
"""A label as the name of the pair."""
FOLLOWS = (" -f", "spl monitor")
"""Parts of command lines that run until they are stopped."""
ELSEWHERE = (
    " serve", "federation soak", "spl top", "spl init", "spl aitl", "127.0.0.1:9200", "192.168.", "bob.identity",
    "restore bob.jsonl",
)  # fmt: skip
"""Parts of command lines that start daemons, need a terminal, or have a test of their own; a soak runs for minutes."""
FINDS = {"debug thread-diff": 3, "doctor": 3, "federation verify": 3, "config test-permission": 4}
"""Commands that have an exit code of their own when they find something."""


@dataclass
class Step:
    """One command line and the output that the page shows under it."""

    who: str
    line: str
    shown: list[str] = field(default_factory=list)


def blocks(*pages: Path) -> list[list[Step]]:
    """Return the steps of every block that has commands, of these pages or all."""
    found = []
    for text in (block for page in pages or PAGES for block in fenced(page)):
        steps: list[Step] = []
        for line in text.replace("\\\n", " ").splitlines():
            prompt = PROMPT.fullmatch(line)
            if prompt:
                command = re.sub(r"\s{2,}#.*|\s+\[[^\]]*\]", "", prompt[2])
                steps.append(Step(prompt[1] or "alice", command))
            elif steps:
                steps[-1].shown.append(line)
        if steps:
            found.append(steps)
    return found


def plain(text: str) -> list[str]:
    """Return the lines of an output without the parts that differ from run to run."""
    for pattern, word in (
        (r"did:sync:instance:([a-z]+)(-[0-9a-f]{24})?", r"did:\1"),
        (r"pair_[0-9a-f]{8}", "PAIR"),
        (r"https?://[^\s)]+", "URL"),
        (r"\([0-9,]+ records?\)", "(N records)"),
        (r"\b[0-9.]+ ?(ms|s|m|h|d)\b( ago| left)?", "AGE"),
        (r"just now|[0-9-]+T[0-9:.]+Z", "AGE"),
        (r"(key: |: )[a-z]+( [a-z]+){5}$", r"\1WORDS"),
        (r"[ \t]+", " "),
    ):
        text = re.sub(pattern, word, text, flags=re.MULTILINE)
    return [line.strip() for line in text.splitlines() if line.strip()]


class Stage:
    """Two operators and their shells, and a pair that is made again after a command has ended it."""

    def __init__(self, folder: Path, alice: Instance, bob: Instance) -> None:
        self.folder, self.alice, self.bob = folder, alice, bob
        self.shell: dict[str, str] = {}
        tool = folder / "bin" / "spl"
        tool.parent.mkdir()
        tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m spl "$@"\n')
        tool.chmod(0o700)

    def pair_id(self) -> str:
        """Return the live pair's id, after pairing if there is none."""
        if not (live := self._live()):
            self.alice.run("federation", "pair", self.bob.url, "--backfill")
            live = self._live()
        return str(live[0]["pair_id"])

    def _live(self) -> list[dict[str, object]]:
        return [pair for pair in self.alice.pairs() if pair["state"] != "revoked"]

    def play(self, step: Step) -> str:
        """Run a step as written and return its output."""
        operator = self.bob if step.who == "bob" else self.alice
        line = step.line.replace("https://bob.example/", self.bob.url)
        line = line.replace("127.0.0.1:9100", f"127.0.0.1:{operator.port}")
        line = line.replace("http://127.0.0.1:9200/", self.bob.url)
        if re.search(r"\bPAIR\b|pair_[0-9a-f]{8}", line):
            line = re.sub(r"\bPAIR\b|pair_[0-9a-f]{8}", self.pair_id(), line)
        elif LABEL.search(line):
            self.pair_id()
        elif "federation pair" in line and self._live():
            self.alice.run("federation", "revoke", self.pair_id())
        set_ = re.fullmatch(r"(\w+)=(\$\(.*\))", line)
        if set_:
            line = f"echo -n {set_[2]}"
        follows = any(words in line for words in FOLLOWS)
        if follows:
            line = f"timeout 1 {line}"
        env = {**operator.environment(), **self.shell, "PYTHONPATH": str(ROOT)}
        env["PATH"] = f"{self.folder / 'bin'}:{env['PATH']}"
        ran = subprocess.run(
            ["bash", "-c", line], env=env, cwd=self.folder, capture_output=True, timeout=DEADLINE_S, check=False
        )
        found = {code for words, code in FINDS.items() if words in line}
        allowed = {124} if follows else {0} | found
        assert ran.returncode in allowed, f"{line}\n{ran.stdout.decode()}\n{ran.stderr.decode()}"
        if set_:
            self.shell[set_[1]] = ran.stdout.decode()
        return ran.stdout.decode()


@pytest.fixture
def stage(make: Make, tmp_path: Path) -> Stage:
    """Alice, and bob who approves by himself, both running, with a thread or two."""
    alice, bob = make("alice").start(), make("bob", AUTO).start()
    alice.emit("th_garden", 3)
    bob.emit("th_garden", 12)
    return Stage(tmp_path, alice, bob)


def steps_of(word: str) -> list[Step]:
    """Return the steps of the first block that has this word in a command."""
    return next(steps for steps in blocks() if any(word in step.line for step in steps))


def test_a_pairing_without_an_operator_reads_as_shown(stage: Stage) -> None:
    """The headline command, line by line, if the peer approves by itself."""
    [step] = next(steps for steps in blocks() if any("200 OK" in line for line in steps[0].shown))
    assert plain(stage.play(step)) == plain("\n".join(step.shown))


def test_one_machine_leads_to_an_active_pair_as_shown(make: Make, tmp_path: Path) -> None:
    """The first page from the record to the end: what alice sees while she waits, and what bob does meanwhile."""
    alice, bob = make("alice").start(), make("bob").start()
    stage = Stage(tmp_path, alice, bob)
    intend, pair = steps_of("federation pair http://127.0.0.1:9200/")
    listed, approved = steps_of("aitl list")
    end = next(block for block in fenced(README) if block.rstrip().endswith("Pair active."))
    stage.play(intend)
    with ThreadPoolExecutor(1) as terminal:
        asked = terminal.submit(stage.play, pair)
        eventually(lambda: bob.data("aitl", "list"), "the request is there")
        assert plain(stage.play(listed)) == plain("\n".join(listed.shown))
        stage.play(approved)
        shown = "\n".join([*(line for line in pair.shown if "waiting for approval" not in line), end])
        assert plain(asked.result(DEADLINE_S)) == plain(shown)
    for step in steps_of("spl sync alice"):
        assert stage.play(step)
    assert alice.holding()["th_garden"] == bob.holding()["th_garden"]


def test_approval_by_hand_reads_as_shown(make: Make, tmp_path: Path) -> None:
    """Bob's list shows who asks, with the key words; his approval makes the pair."""
    alice, bob = make("alice").start(), make("bob").start()
    stage = Stage(tmp_path, alice, bob)
    alice.run("federation", "pair", bob.url, "--wait", "0s", code=8)
    listed, approved = steps_of("aitl approve pair_")
    assert plain(stage.play(listed)) == plain("\n".join(listed.shown))
    stage.play(approved)
    eventually(lambda: alice.pairs("active"), "the pair is active")


def test_the_first_steps_work_in_a_fresh_home(make: Make, tmp_path: Path) -> None:
    """`init` and `serve` as they stand, for both homes of the page."""
    fresh = make("alice", bare=True)
    fresh.home.rmdir()
    stage = Stage(tmp_path, fresh, make("bob", bare=True))
    for steps in (steps_of("spl init --label alice"), steps_of("SYNCROPEL_HOME=")):
        init, serve = steps
        stage.play(init)
        port = re.search(r"--port (\d+)", serve.line)
        assert serve.line.endswith("spl serve" if port is None else f"spl serve --port {port[1]}")
    fresh.start()
    assert fresh.did.startswith("did:sync:instance:alice-")


def playable(page: Path) -> list[Step]:
    """Return the steps of a page without those that other tests have, that serve, and the soak."""
    steps = [step for steps in blocks(page) for step in steps]
    return [step for step in steps if not any(word in step.line for word in ELSEWHERE)]


@pytest.mark.parametrize("page", [page for page in PAGES if playable(page)], ids=lambda page: page.stem)
def test_every_other_command_line_does_what_it_says(stage: Stage, page: Path) -> None:
    """Each page by itself, block after block, on two instances that are paired."""
    stage.pair_id()
    for step in playable(page):
        if "theirs.jsonl" in step.line:
            stage.play(Step("bob", "spl thread snapshot th_federation_pairs --pair alice > theirs.jsonl"))
        stage.play(step)


def test_most_command_lines_are_played() -> None:
    assert sum(len(playable(page)) for page in PAGES) > 50
