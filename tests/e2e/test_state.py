"""States of threads on real daemons: the literal commands, a restart, a peer; and what adapters cost."""

import json
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.findings import told
from tests.e2e.harness import Instance

ORDER = "th_orders_may"


@dataclass
class Slow(Instance):
    """An instance whose adapters are slow while its switch is there (faults.py)."""

    @property
    def switch(self) -> Path:
        return self.home.parent / "fault"

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "SPL_FAULT": str(self.switch)}

    def command(self, *words: str) -> list[str]:
        command = super().command(*words)
        return [*command[:2], "tests.e2e.faults", "slow-adapter", *words]


def order(alice: Instance, total: object) -> None:
    alice.run("do", "bought", "--thread", ORDER, "--body", json.dumps({"order": {"total": total}}))


def test_a_rule_holds_at_once_and_after_a_restart(alice: Instance) -> None:
    """No command of it needs a restart, and none changes a record."""
    alice.run("thread", "state", ORDER, code=6)
    for total in (0.1, 0.2, "free"):
        order(alice, total)
    assert alice.data("thread", "state", ORDER)["value"]["order"] == {"total": "free"}
    add = ("config", "add-fold-rule", "spent", "--thread", "th_orders_*", "--field", "order.total", "--fold")
    alice.run(*add, "sum")
    assert alice.data("thread", "state", ORDER)["value"] == 0.3
    order(alice, 10)
    assert alice.data("thread", "state", ORDER)["value"] == 10.3
    alice.stop()
    alice.start()
    assert "sum of order.total (rule spent)" in alice.run("thread", "state", ORDER).out
    assert alice.data("thread", "state", ORDER)["value"] == 10.3
    alice.run(*add, "set")
    assert alice.data("thread", "state", ORDER)["value"] == ["free", 0.1, 0.2, 10]
    assert "spent  th_orders_*  set" in alice.run("config", "list-fold-rules").out
    alice.run("config", "remove-fold-rule", "spent")
    assert alice.data("thread", "state", ORDER)["rule"] is None
    assert alice.data("thread", "state", ORDER)["records"] == 4


def test_a_peers_highest_clock_does_not_hold_the_latest(alice: Instance, bob: Instance, pair_id: str) -> None:
    """What arrives here after it is later; sums and counts are equal on both sides."""
    last = {"act": "KNOW", "actor": "did:sync:user:bob", "thread": ORDER, "clock": 2**63 - 1, "body": {"n": 5}}
    assert bob.api("POST", "/v1/records", last).status == 200
    alice.run("sync", pair_id)
    assert alice.data("thread", "state", ORDER)["value"] == {"n": 5}
    alice.emit(ORDER)
    assert alice.data("thread", "state", ORDER)["value"] == {"n": 0}
    bob.run("sync", pair_id)
    for side in (alice, bob):
        for fold, value in (("count", 2), ("sum", 5), ("set", [0, 5])):
            side.run("config", "add-fold-rule", "r", "--thread", "*", "--fold", fold, "--field", "n")
            assert side.data("thread", "state", ORDER)["value"] == value
    alice.run("config", "remove-fold-rule", "r")
    assert bob.data("config", "list-fold-rules")[0]["name"] == "r", "rules stay on their own instance"


def test_slow_adapters_are_a_finding(tmp_path: Path) -> None:
    """They show what a record costs while all is well; slowed down, status and doctor say so with the next step."""
    slow = Slow("slow", tmp_path / "slow" / "home")
    slow.home.mkdir(parents=True, mode=0o700)
    slow.run("init", "--label", "slow")
    try:
        slow.start()
        slow.emit("th", 200)
        assert any(line.startswith("adapters ") for line in slow.run("status", "--check").out.splitlines())
        slow.switch.touch()
        for _ in range(5):
            slow.emit("th")
        slow.switch.unlink()
        found = told(slow, "adapter-slow")
        assert found["severity"] == "warn"
        assert "views the most of it" in found["title"]
        assert found["fix"].endswith("spl status -o json")
        assert slow.run("status", "--check", "-o", "json", code=3).data["adapters"]["slowest"] == "views"
        assert "adapter-slow" in slow.run("doctor", code=3).out
    finally:
        slow.end()
