"""The rules at work: a denial leaves a line and a record, many of one kind leave few."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spl.core import canon, rules
from spl.core.identity import manifest
from spl.core.identity.did import Chain, did_of
from spl.core.identity.manifest import Manifest
from spl.core.keys import SecretKey
from spl.home.config import Config
from spl.home.disk import Disk
from spl.home.home import Home, open_home
from spl.home.policy import AUDIT_EVERY_S, AUDITS_PER_MINUTE, KINDS_MAX, THREAD_AUDIT, Policy
from spl.home.writes import Own

START_MS = 1_800_000_000_000
ASKED = {"namespaces": ["default"], "maps": [{"local": "theirs", "peer": "ours"}], "mode": "polling"}


class World:
    """A home with a policy over it and a clock that stands still."""

    def __init__(self, path: Path) -> None:
        self.now_ms = START_MS
        self.home: Home = open_home(path, Config(), disk=Disk(), progress=lambda done, total: None)
        self.home.adopt(self.home.vault.generate("alice"))
        self.policy = Policy(self.home.writer, resources=frozenset(), now_ms=lambda: self.now_ms)

    def add(self, kind: str, **members: object) -> None:
        future = self.home.writer.submit([Own(rules.THREAD, kind, {"priority": 0, "expression": "true", **members})])
        self.home.writer.commit_waiting()
        future.result(0)

    def denied(self, who: str = "tok_1", resource: str = "records:write", address: str = "10.0.0.1") -> str:
        facts = rules.request_facts(resource, address=address)
        return self.policy.allows(resource, facts, frozenset(), who).outcome

    def audits(self) -> list[dict[str, Any]]:
        """Return the bodies of the denials kept, after what waits is written."""
        while self.home.writer.commit_waiting():
            pass
        rows = self.home.store.index.after(f"t:{THREAD_AUDIT}", 0, 10_000)
        payloads = self.home.store.payloads(rows)
        return [canon.decode(payload)["record"]["body"] for payload in payloads]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    found = World(tmp_path / "h")
    yield found
    found.home.close()


def a_peer(label: str) -> Manifest:
    """Return the manifest of another instance."""
    key = SecretKey(label.encode().ljust(32, b"0"))
    document = manifest.build(
        Chain(did_of(label, key.public), key.public), key, b"s" * 32, url=f"https://{label}.example", namespaces=None,
        version="1", now_ms=START_MS, limits=Config().limits,
    )  # fmt: skip
    return manifest.from_json(document["federation_manifest"], Config().limits)


def test_a_denial_is_logged_and_audited(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.add(rules.KIND_PERMISSION, name="no", resource="records:*", action="deny")
    with caplog.at_level(logging.WARNING):
        assert world.denied() == "deny"
    assert [record.message for record in caplog.records] == ["policy.denied"]
    [audit] = world.audits()
    assert {name: value for name, value in audit.items() if name not in ("kind", "timestamp")} == {
        "resource": "records:write", "rule": "no", "action": "deny", "who": "tok_1", "address": "10.0.0.1",
        "repeated": 0, "fault": "",
    }  # fmt: skip
    assert audit["timestamp"].startswith("2027-01-15T")
    assert world.denied(resource="tokens:read") == "none"
    assert len(world.audits()) == 1, "what is not refused leaves nothing"


def test_the_same_denial_again_is_counted_and_not_written(world: World) -> None:
    world.add(rules.KIND_PERMISSION, name="no", resource="*", action="deny")
    for _ in range(500):
        assert world.denied() == "deny"
    assert [audit["repeated"] for audit in world.audits()] == [0]
    world.denied("tok_2")
    world.now_ms += AUDIT_EVERY_S * 1000
    world.denied()
    assert [(audit["who"], audit["repeated"]) for audit in world.audits()] == [
        ("tok_1", 0),
        ("tok_2", 0),
        ("tok_1", 499),
    ]


def test_denials_of_many_kinds_are_bounded_too(world: World) -> None:
    """A stranger has a new address for each request: records and memory stay bounded, and the verdict stands."""
    world.add(rules.KIND_PERMISSION, name="no", resource="*", action="deny")
    for number in range(KINDS_MAX + 500):
        assert world.denied(f"did_{number}", rules.HANDSHAKE, f"10.0.{number // 256}.{number % 256}") == "deny"
    assert len(world.audits()) == AUDITS_PER_MINUTE
    assert len(world.policy._repeats) <= KINDS_MAX


def test_a_new_did_from_the_same_address_is_no_new_kind(world: World) -> None:
    world.add(rules.KIND_PERMISSION, name="no", resource="*", action="deny")
    for number in range(100):
        world.denied(f"did_{number}", rules.HANDSHAKE)
    assert [audit["who"] for audit in world.audits()] == ["did_0"]


def test_a_denial_stands_when_its_record_cannot_be_written(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.add(rules.KIND_PERMISSION, name="no", resource="*", action="deny")
    world.home.writer.close()
    assert world.denied() == "deny"
    assert "policy.audit_lost" in [record.message for record in caplog.records]


def test_the_handshake_is_judged_by_what_the_peer_signed(world: World) -> None:
    bob, carol = a_peer("bob"), a_peer("carol")
    assert world.policy.permits(bob, ASKED, "10.0.0.1")
    assert not world.policy.grants(bob, ASKED, "10.0.0.1", ["default"])
    facts = rules.handshake_facts(bob, ASKED, "10.0.0.1")
    sample = rules.sample_facts(rules.HANDSHAKE)
    assert {name: set(item) for name, item in facts.items()} == {name: set(item) for name, item in sample.items()}
    assert facts["request"]["host"] == "bob.example"
    assert facts["request"]["maps"] == [{"local": "ours", "peer": "theirs"}]
    world.add(rules.KIND_PERMISSION, name="no", resource="federation:*", action="deny", expression=(
        f'request.initiator_did == "{bob.did}" && request.label == "bob" && size(request.words) > 10 && '
        'request.endpoint == "https://bob.example/v1/federation/pair" && peer.address == "10.0.0.1"'))  # fmt: skip
    assert not world.policy.permits(bob, ASKED, "10.0.0.1")
    assert world.policy.permits(bob, ASKED, "10.0.0.2")
    assert world.policy.permits(carol, ASKED, "10.0.0.1")
    world.add(rules.KIND_PERMISSION, name="need", resource="federation:pair", action="require:aitl_decide")
    assert not world.policy.permits(carol, ASKED, "10.0.0.1"), "a handshake holds no capability"
    assert [(audit["rule"], audit["who"]) for audit in world.audits()] == [("no", bob.did), ("need", carol.did)]


def test_a_rule_grants_its_own_namespaces(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bob, carol = a_peer("bob"), a_peer("carol")
    common = {"action": "auto_apply", "namespaces": ["music", "default"]}
    world.add(rules.KIND_AITL, name="bob", expression=f'request.initiator_did == "{bob.did}"', **common)
    world.add(rules.KIND_AITL, name="bad", expression="request.nothing", priority=3, **common)
    assert not world.policy.grants(bob, ASKED, "x", ["default", "salaries"])
    assert not world.policy.grants(carol, ASKED, "x", ["default"])
    told = [record.message for record in caplog.records]
    assert {"policy.rule_failed", "policy.auto_waits"} <= set(told)
    assert "policy.auto_apply" not in told, "it did not decide"
    assert world.policy.grants(bob, ASKED, "x", ["default"])
    assert world.policy.grants(bob, ASKED, "x", ["music", "default"])
    assert "policy.auto_apply" in [record.message for record in caplog.records]
    world.add(rules.KIND_AITL_REMOVED, name="bob")
    assert not world.policy.grants(bob, ASKED, "x", ["default"])


def test_a_stored_rule_that_leans_on_claims_approves_nobody(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Homes of an older version hold such rules: the request waits, and the log names the rule."""
    common = {"action": "auto_apply", "namespaces": ["default"]}
    world.add(rules.KIND_AITL, name="family", expression='request.host.endsWith(".example")', **common)
    world.add(rules.KIND_AITL, name="pattern", expression='request.initiator_did.matches("bob")', **common)
    world.add(rules.KIND_PERMISSION, name="old", resource="x:*", action="deny", expression="request.path.matches('a')")
    assert not world.policy.grants(a_peer("bob"), ASKED, "x", ["default"])
    failed = [line.fields["rule"] for line in caplog.records if line.message == "policy.rule_failed"]  # type: ignore[attr-defined]
    assert failed == ["family", "pattern"]
    caplog.clear()
    Policy(world.home.writer, resources=frozenset(), now_ms=lambda: START_MS)
    assert [line.fields["rule"] for line in caplog.records] == ["old", "family", "pattern"]  # type: ignore[attr-defined]
