"""`tools/crash`: records through a hub, while daemons are killed and lose their power; then nothing may be missing.

Two laptops write and know only the hub.  In the middle of the load one of the three dies, by SIGKILL or with what a
power cut takes (`power.py`), and starts again; and so on.  At the end all three must hold the same records, each once,
and among them every one that was acknowledged to whoever wrote it.
"""

import argparse
import http.client
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.e2e.harness import Instance
from tests.waiting import eventually

from .power import SIDE, cut

BATCH = 25
THREADS = 40
SETTLED_S = 600.0
ACTOR = "did:sync:user:a"


class Powered(Instance):
    """A daemon whose home may lose its power."""

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "tests.crash.power", *words]

    @property
    def side(self) -> Path:
        """Where the journal of its writes is."""
        return Path(self.env[SIDE])


@dataclass
class Load:
    """What both laptops write, up to `allowed` acknowledged records in all."""

    allowed: int = 0
    acknowledged: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    ended: bool = False
    more: threading.Condition = field(default_factory=threading.Condition)

    def write(self, instance: Instance) -> None:
        """Emit batches, each on one thread, while more are allowed; the daemon may be gone at any time."""
        number = 0
        while self._waits():
            number += 1
            values = [
                {"act": "DO", "actor": ACTOR, "thread": f"th_{instance.name}_{number % THREADS}",
                 "body": {"n": n, "of": number, "pad": "x" * 120}}
                for n in range(BATCH)
            ]  # fmt: skip
            try:
                answer = instance.request(
                    "POST", "/v1/records", "\n".join(map(json.dumps, values)).encode(),
                    {"authorization": f"Bearer {instance.token}", "content-type": "application/x-ndjson"},
                )  # fmt: skip
                results = [json.loads(line) for line in answer.body.splitlines()]
            except (OSError, http.client.HTTPException, ValueError):
                time.sleep(0.05)
                continue
            with self.more:
                self.acknowledged += [each["id"] for each in results if each["object"] == "record"]
                self.refused += [str(each.get("code")) for each in results if each["object"] != "record"]

    def allow(self, count: int) -> None:
        with self.more:
            self.allowed = count
            self.more.notify_all()

    def end(self) -> None:
        with self.more:
            self.ended = True
            self.more.notify_all()

    def _waits(self) -> bool:
        with self.more:
            self.more.wait_for(lambda: self.ended or len(self.acknowledged) < self.allowed)
            return not self.ended


@dataclass(frozen=True)
class Storm:
    """How much: records in all, deaths by SIGKILL, deaths of power."""

    records: int
    kills: int
    cuts: int
    seed: int = 0

    def run(self, folder: Path, tell: Callable[[str], None]) -> dict[str, Any]:
        """Live through it; return its figures.  Raises AssertionError for a promise that did not hold."""
        dice = Random(f"storm {self.seed}")
        hub, *laptops = nodes = [made(folder, name) for name in ("hub", "ann", "ben")]
        try:
            for laptop in laptops:
                pair_id = laptop.paired(hub.url, backfill=True)
                for side in (hub, laptop):
                    side.run("federation", "set-mode", pair_id, "continuous")
            load = Load()
            writers = [threading.Thread(target=load.write, args=(laptop,), daemon=True) for laptop in laptops]
            for writer in writers:
                writer.start()
            start = time.monotonic()
            lost = self._strike(nodes, load, dice, tell)
            load.allow(self.records)
            eventually(lambda: len(load.acknowledged) >= self.records, "all are acknowledged", SETTLED_S)
            load.end()
            for writer in writers:
                writer.join(60)
            loaded_s = time.monotonic() - start
            held = _settled(nodes)
            missing = set(load.acknowledged) - held
            assert not missing, f"{len(missing)} acknowledged records are lost, {sorted(missing)[:3]}"
            assert not load.refused, load.refused[:3]
            return {
                "acknowledged": len(load.acknowledged), "held": len(held), "kills": self.kills, "cuts": self.cuts,
                "writes_lost": lost, "loaded_s": round(loaded_s), "took_s": round(time.monotonic() - start),
            }  # fmt: skip
        finally:
            for node in nodes:
                node.end()

    def _strike(self, nodes: list[Powered], load: Load, dice: Random, tell: Callable[[str], None]) -> int:
        """Let one node after the other die in the middle of the load; return what the cuts took."""
        deaths = ["kill"] * self.kills + ["cut"] * self.cuts
        dice.shuffle(deaths)
        each, lost = self.records // (len(deaths) + 1), 0
        for number, death in enumerate(deaths, 1):
            load.allow(number * each)
            due = number * each - dice.randint(1, max(1, each // 2))
            eventually(lambda due=due: len(load.acknowledged) >= due, f"{due} are acknowledged", SETTLED_S)
            node = dice.choice(nodes)
            node.kill()
            if death == "cut":
                lost += cut(node.home, node.side, dice)
            node.start()
            tell(f"{number} {death} {node.name}: {len(load.acknowledged)} acknowledged, {lost} writes lost")
        return lost


def made(folder: Path, name: str, **environment: str) -> Powered:
    """Return a daemon that runs in a new home below the folder."""
    home = folder / name / "home"
    home.mkdir(mode=0o700, parents=True)
    node = Powered(name, home, env={SIDE: str(folder / name / "power"), **environment}, published=True)
    node.configure('[federation]\napproval = "auto"\n')
    node.run("init", "--label", name)
    return node.start()


def _settled(nodes: list[Powered]) -> set[str]:
    """Return the ids that all nodes hold, once they hold the same, each once in its thread."""

    def counts(node: Powered) -> dict[str, int]:
        threads = node.api("GET", "/v1/threads?limit=10000").json["data"]
        return {item["thread"]: item["records"] for item in threads}

    eventually(lambda: all(counts(node) == counts(nodes[0]) for node in nodes), "all hold as many", SETTLED_S)
    found = []
    for node in nodes:
        ids = [record["id"] for thread in counts(node) for record in node.records(thread)]
        assert len(ids) == len(set(ids)), f"{node.name} holds a record twice"
        found.append(set(ids))
    assert found[0] == found[1] == found[2]
    return found[0]


def main() -> int:
    """Run one storm; return the exit code."""
    parser = argparse.ArgumentParser(prog="tools/crash", description="Kill daemons under load; nothing may be lost.")
    parser.add_argument("--records", type=int, default=5000, metavar="N")
    parser.add_argument("--kills", type=int, default=20, metavar="N")
    parser.add_argument("--cuts", type=int, default=4, metavar="N", help="power cuts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        storm = Storm(options.records, options.kills, options.cuts, options.seed)
        figures = storm.run(Path(folder), lambda line: print(line, flush=True))
    print(json.dumps(figures))
    print(
        f"{figures['acknowledged']:,} acknowledged records over {options.kills} kills and {options.cuts} power cuts: "
        "none lost, none doubled, all sides equal"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
