"""The filter of a pair: our operator's choice of which of the agreed records we send.

A record passes when `relay` allows it (off: only records that this instance signed), and when no threads are named and
there is no rule, or its thread is named, or the rule is true of it.  A rule that cannot be evaluated is false, so a
mistake sends less and never more.  Each rule sees one record:

    record.thread  record.actor  record.act  record.namespace  record.data_type  record.kind  record.voucher

All are texts: `namespace` is the record's namespace here, `kind` is that of its body or "", and
`voucher` is the DID of the instance that signed it.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final

from .. import canon, keys
from ..cel.evaluate import Budget, Expr, ExprError, evaluate, parse
from ..cel.grammar import Node, fault
from ..errors import SplError
from ..limits import Limits
from ..value import Json, dataclass, replace
from .record import is_reserved

THREADS_MAX: Final = 256
"""Named threads stand in the record of the pair; a rule is shorter than more of them."""
FILTERS_MAX: Final = 8
"""How many filters of a pair are remembered: what an earlier one let through is not sent again under a later one."""
RULE_STEPS: Final = 2000
"""What a rule may cost for one record: about a millisecond."""
DIGEST_HEX: Final = 24
FIELDS: Final = ("thread", "actor", "act", "namespace", "data_type", "kind", "voucher")
_COMPILED_MAX: Final = 1024
"""One rule for each of limits.pairs_count pairs."""


class FilterError(SplError):
    """A thread that cannot be named in a filter, or too many: "bad-field"; a rule raises ExprError."""


@dataclass(frozen=True, slots=True)
class PairFilter:
    """One filter; the default one lets everything pass."""

    relay: bool = True
    thread_allow: tuple[str, ...] = ()
    thread_rule: str = ""

    @property
    def digest(self) -> str:
        """24 hex digits over what the filter says, "" for the one that lets everything pass."""
        if self == OPEN:
            return ""
        return keys.digest(canon.encode(self.to_json()))[:DIGEST_HEX]

    @property
    def reads_records(self) -> bool:
        """Whether its verdict needs the fields of the record; otherwise who signed it decides alone."""
        return bool(self.thread_allow or self.thread_rule)

    def admits(self, fields: Mapping[str, str], relayed: bool) -> bool:
        """Return whether a record with these FIELDS passes; `relayed`: another instance signed it."""
        if relayed and not self.relay:
            return False
        if not self.reads_records or fields["thread"] in self.thread_allow:
            return True
        rule = _compiled(self.thread_rule) if self.thread_rule else None
        if rule is None:
            return False
        try:
            return evaluate(rule, {"record": fields}, Budget(RULE_STEPS))
        except ExprError:
            return False

    def to_json(self) -> Json:
        """Return {relay, thread_allow, thread_rule}."""
        return {"relay": self.relay, "thread_allow": list(self.thread_allow), "thread_rule": self.thread_rule}

    def report(self) -> Json:
        """Return `to_json`, and `fault` if the rule cannot be read."""
        fault = fault_of(self)
        return {**self.to_json(), "fault": fault} if fault else self.to_json()


OPEN: Final = PairFilter()


def fields_of(record: Mapping[str, Any], namespace: str, voucher: str) -> dict[str, str]:
    """Return the FIELDS of a stored record: its own, its namespace here, and who signed it."""
    get, body = record.get, record.get("body")
    kind = body.get("kind") if isinstance(body, dict) else None
    return {
        "thread": str(get("thread") or ""), "actor": str(get("actor") or ""), "act": str(get("act") or ""),
        "data_type": str(get("data_type") or ""), "namespace": namespace,
        "kind": kind if isinstance(kind, str) else "", "voucher": voucher,
    }  # fmt: skip


def allowing(found: PairFilter, threads: Sequence[str], limits: Limits, *, remove: bool = False) -> PairFilter:
    """Return the filter with these threads named as well, or no more.

    Raises FilterError "bad-field" also if the last one would go and there is no rule: that would open everything.
    """
    given = check_threads(threads, limits)
    if not remove:
        return replace(found, thread_allow=check_threads([*found.thread_allow, *given], limits))
    left = tuple(thread for thread in found.thread_allow if thread not in given)
    if found.thread_allow and not left and not found.thread_rule:
        raise FilterError(
            "bad-field", "that is the last thread named, and without one everything agreed is sent",
            hint="name another thread first; or carry every thread: spl federation thread-allow PAIR_ID --clear",
        )  # fmt: skip
    return replace(found, thread_allow=left)


def changes(before: PairFilter, after: PairFilter) -> Json:
    """Return what differs in `after`, as the members of a record body."""
    old = before.to_json()
    return {name: value for name, value in after.to_json().items() if value != old[name]}


def check_threads(threads: Sequence[str], limits: Limits) -> tuple[str, ...]:
    """Return the threads once each, sorted; raise FilterError "bad-field" for one that never syncs, or too many."""
    for thread in threads:
        if not 1 <= len(thread) <= limits.thread_chars or not thread.isprintable():
            raise FilterError("bad-field", f"{thread[:80]!r} is no thread id: 1 to {limits.thread_chars} characters")
        if is_reserved(thread):
            raise FilterError("bad-field", f"{thread} is reserved and never leaves through sync")
    found = tuple(sorted(set(threads)))
    if len(found) > THREADS_MAX:
        raise FilterError("bad-field", f"a pair names at most {THREADS_MAX} threads; use thread-rule")
    return found


def fault_of(found: PairFilter) -> str:
    """Return why the filter's stored rule cannot be read and so lets nothing pass, "" for a sound one."""
    try:
        if found.thread_rule:
            parse(found.thread_rule)
    except ExprError as exc:
        return f"this version cannot read the thread rule, so it lets nothing pass: {exc.message}"
    return ""


def check_rule(text: str) -> str:
    """Return the text of a rule that parses and asks only for what a record has.

    Raises ExprError "rule-syntax", "rule-type" with the place.
    """
    expr = parse(text)
    for node in _nodes(expr.root):
        asks = node.kind in ("field", "has") and (node.parts[0].kind, node.parts[0].value) == ("name", "record")
        if asks and node.value not in FIELDS:
            message = f"a record has no {node.value!r} here; it has {', '.join(FIELDS)}"
            raise fault("rule-type", message, text, node.at)
    evaluate(expr, {"record": dict.fromkeys(FIELDS, "")}, Budget(RULE_STEPS))
    return text


@lru_cache(_COMPILED_MAX)
def _compiled(text: str) -> Expr | None:
    """Return a stored rule parsed, None for what this version cannot read."""
    with suppress(ExprError):
        return parse(text)
    return None


def _nodes(root: Node) -> list[Node]:
    """Return the tree's nodes, the root first."""
    found = [root]
    for node in found:
        found.extend(node.parts)
    return found
