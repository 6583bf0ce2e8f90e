"""The rules at work: each decision reads the rules in the views, and each denial is logged and audited.

Denials of one kind (who, what, by which rule) leave one log line and one record on `th_audit_permissions` in
AUDIT_EVERY_S, with the number of those since the last; and there are at most AUDITS_PER_MINUTE of all kinds.  So a
caller that is refused cannot fill the disk by asking again, under whatever name.

Stored rules that this version cannot evaluate count as failed and are named in the log at each start.

Used on the event loop and on the pairing service's thread.
"""

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from typing import Any, Final

from ..core import rules, when
from ..core.errors import SplError
from ..core.event import event
from ..core.identity.manifest import Manifest
from ..core.recent import Repeats
from ..core.record.filter import fault_of
from ..core.rules import AitlRule, Decision, PermissionRule
from .writer import Writer
from .writes import Outcome, Own

log = logging.getLogger("spl.policy")

THREAD_AUDIT: Final = "th_audit_permissions"
KIND_DENIED: Final = "syncropel.policy.permission_denied.v1"
AUDIT_EVERY_S: Final = 60
AUDITS_PER_MINUTE: Final = 60
KINDS_MAX: Final = 1024  # decisions that are told apart while they repeat

_Kind = tuple[str, str, str]


class Policy:
    """Applies the rules.  `resources` are all that a rule may guard."""

    def __init__(self, writer: Writer, *, resources: frozenset[str], now_ms: Callable[[], int]) -> None:
        self.writer, self.resources, self.now_ms = writer, resources, now_ms
        self._lock = threading.Lock()
        self._repeats = Repeats(AUDIT_EVERY_S, KINDS_MAX, AUDITS_PER_MINUTE)
        self._name_faults()

    def allows(self, resource: str, facts: Mapping[str, Any], capabilities: frozenset[str], who: str) -> Decision:
        """Return the decision of the permission rules; log and audit a denial under the name `who`."""
        verdict = rules.decide(self.writer.views.rules, resource, facts, capabilities)
        if verdict.outcome == rules.DENY:
            self._denied(resource, verdict, who, str(facts["peer"]["address"]))
        return verdict

    def permits(self, peer: Manifest, asked: Mapping[str, Any], address: str) -> bool:
        """Return whether the permission rules let a peer ask for a pair; it holds no capability."""
        if not self.writer.views.rules:
            return True
        facts = rules.handshake_facts(peer, asked, address)
        return self.allows(rules.HANDSHAKE, facts, frozenset(), peer.did).outcome != rules.DENY

    def grants(self, peer: Manifest, asked: Mapping[str, Any], address: str, names: Collection[str]) -> bool:
        """Return whether a rule of automatic approval grants this peer all of these namespaces."""
        if not self.writer.views.aitl_rules:
            return False
        rule, failed = rules.applies(self.writer.views.aitl_rules, rules.handshake_facts(peer, asked, address))
        for name in failed:
            log.warning(**event("policy.rule_failed", rule=name, peer=peer.did))
        if rule is None:
            return False
        beyond = sorted(set(names) - set(rule.namespaces))
        if beyond:
            log.info(**event("policy.auto_waits", rule=rule.name, peer=peer.did, beyond=",".join(beyond)))
            return False
        log.info(**event("policy.auto_apply", rule=rule.name, peer=peer.did))
        return True

    def _name_faults(self) -> None:
        """Log every stored rule that counts as failed because this version cannot evaluate it."""
        views = self.writer.views
        stored: list[PermissionRule | AitlRule] = [*views.rules.values(), *views.aitl_rules.values()]
        for rule in stored:
            fault = rules.fault_of(rule)
            if fault:
                log.warning(**event("policy.rule_unusable", rule=rule.name, reason=fault))
        for pair in views.pairs.values():
            fault = fault_of(pair.filter) if not pair.ended else ""
            if fault:
                log.warning(**event("policy.thread_rule_unusable", pair=pair.pair_id, reason=fault))

    def _denied(self, resource: str, verdict: Decision, who: str, address: str) -> None:
        """Log and audit a denial, unless one of its kind was written just now."""
        repeated = self._due((address if resource == rules.HANDSHAKE else who, resource, verdict.rule))
        if repeated is None:
            return
        body = {
            "timestamp": when.text_of(self.now_ms()), "resource": resource, "rule": verdict.rule,
            "action": verdict.action, "who": who, "address": address, "fault": verdict.fault, "repeated": repeated,
        }  # fmt: skip
        log.warning(**event("policy.denied", **({key: body[key] for key in body if key != "timestamp"})))
        try:
            self.writer.submit([Own(THREAD_AUDIT, KIND_DENIED, body)]).add_done_callback(_written)
        except SplError as exc:
            log.warning(**event("policy.audit_lost", code=exc.code))

    def _due(self, kind: _Kind) -> int | None:
        """Return how many of the kind were only counted since the last written one; None to count this one only.

        A new DID costs a peer nothing, so denials of the handshake count by address.
        """
        with self._lock:
            return self._repeats.due(kind, self.now_ms() / 1000)


def _written(done: "Future[list[Outcome]]") -> None:
    """Log that the record of a denial was not written; the denial stands."""
    fault = done.exception()
    if fault is not None:
        log.warning(**event("policy.audit_lost", code=getattr(fault, "code", "internal")))
