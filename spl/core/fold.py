"""Fold rules: the state of a thread, one value computed from its records.

    fold     takes                     value
    latest   the body, or its field    that of the last record that has it; null before there is one
    first    the body, or its field    that of the first record that has it
    count    records                   how many there are; with a field, how many have it
    sum      a field                   the exact sum of its numbers, in decimal; values that are no numbers are skipped
    set      a field                   its distinct values, ordered by their canonical text, at most SET_MEMBERS_MAX

A rule assigns a fold to threads; without a rule it is `latest` of the body.  The rule of the highest
priority comes first, among equals the one whose name sorts first; the first that covers the thread decides.

First and last mean order of arrival here, never clocks: writers choose their clocks, and a peer that wrote 2^63-1 once
would keep `latest` for ever.  `count` and `sum`, and `set` while it is complete, are equal on all instances.

A state is small whatever the records hold: of `latest` and `first` it is the sequence of their record.
"""

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from . import canon
from .rules import RuleError, covers, named
from .value import Json, dataclass

KIND_FOLD: Final = "syncropel.policy.fold_rule.v1"
KIND_FOLD_REMOVED: Final = "syncropel.policy.fold_rule_removed.v1"
THREAD_CHARS_MAX: Final = 256  # as of the name of a thread
FIELD_CHARS_MAX: Final = 256  # 16 levels of 15 characters; it is read for each record
FIELD_LEVELS_MAX: Final = 16
"""Each level is one more look into each body."""
SET_MEMBERS_MAX: Final = 1000  # they are held for each thread
SET_BYTES_MAX: Final = 64 * 1024
"""A set that would grow beyond either keeps what it has and is no longer complete."""

_FIELD: Final = re.compile(r"[^.]+(\.[^.]+)*\Z")
_MISSING: Final = object()


@dataclass(frozen=True, slots=True)
class Members:
    """The state of `set`: canonical texts, their size, and whether all that came had room."""

    texts: frozenset[bytes] = frozenset()
    size_bytes: int = 0
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Sum:
    """The state of `sum`: digits / 10**decimals, exactly."""

    digits: int = 0
    decimals: int = 0


FoldState = int | Sum | Members
"""Of `latest` and `first` the sequence of a record, 0 for none; of `count` how many."""


@dataclass(frozen=True, slots=True)
class Fold:
    """One fold: its start value, and `step(state, sequence, value)`."""

    start: FoldState
    step: Callable[[Any, int, Any], FoldState]
    needs_field: bool = False


@dataclass(frozen=True, slots=True)
class FoldRule:
    """One fold rule; `thread` as a pattern in which `*` stands for any characters, `field` a dotted path or ""."""

    name: str
    thread: str
    fold: str
    field: str
    priority: int

    def to_body(self) -> Json:
        """Return the record body that adds the rule."""
        return {name: getattr(self, name) for name in ("name", "thread", "fold", "field", "priority")}

    @property
    def reads_bodies(self) -> bool:
        """Whether a step looks into the record's body."""
        return bool(self.field)


FoldRules = Mapping[str, FoldRule]
"""Rules by name, in the order in which they are asked."""

DEFAULT: Final = FoldRule("", "*", "latest", "", 0)


def fold_rule(fields: Mapping[str, Any]) -> FoldRule:
    """Return the rule {name, thread, fold, field?, priority?}; raise RuleError "bad-field"."""
    name, priority = named(fields)
    thread, fold, field = fields.get("thread"), fields.get("fold"), fields.get("field", "")
    if not isinstance(thread, str) or not 1 <= len(thread) <= THREAD_CHARS_MAX or not thread.isprintable():
        raise RuleError("bad-field", f"thread: must have 1 to {THREAD_CHARS_MAX} characters, * for any")
    if not isinstance(fold, str) or fold not in FOLDS:
        raise RuleError("bad-field", f"fold: must be one of {' '.join(FOLDS)}")
    if not isinstance(field, str) or (field and not _is_path(field)):
        raise RuleError("bad-field", f"field: must be a path such as order.total, of at most {FIELD_LEVELS_MAX} names")
    if FOLDS[fold].needs_field and not field:
        raise RuleError("bad-field", f"field: {fold} needs one")
    return FoldRule(name, thread, fold, field, priority)


def fold_rules(rules: FoldRules, body: Mapping[str, Any]) -> FoldRules:
    """Return the fold rules after one record body of `th_engine_config`; it skips unusable ones."""
    kind, name = body.get("kind"), body.get("name")
    if not isinstance(name, str):
        return rules
    if kind == KIND_FOLD_REMOVED:
        return {key: rule for key, rule in rules.items() if key != name}
    if kind != KIND_FOLD:
        return rules
    try:
        rule = fold_rule(body)
    except RuleError:
        return rules
    ordered = sorted({**rules, name: rule}.values(), key=lambda item: (-item.priority, item.name))
    return {item.name: item for item in ordered}


def rule_for(rules: FoldRules, thread: str) -> FoldRule:
    """Return the first rule that covers the thread, DEFAULT without one."""
    return next((rule for rule in rules.values() if covers(rule.thread, thread)), DEFAULT)


def begin(rule: FoldRule) -> FoldState:
    """Return the state of no records."""
    return FOLDS[rule.fold].start


def step(rule: FoldRule, state: FoldState, sequence: int, body: Mapping[str, Any]) -> FoldState:
    """Return the state after one more record; sequences rise.  Without `reads_bodies` the body may be empty."""
    value = _drawn(body, rule.field)
    return state if value is _MISSING else FOLDS[rule.fold].step(state, sequence, value)


def value_of(rule: FoldRule, state: FoldState, body_at: Callable[[int], Mapping[str, Any]]) -> Any:
    """Return the JSON value that a state stands for; `body_at(sequence)` gives the body of a record."""
    if isinstance(state, Members):
        return [json.loads(text) for text in sorted(state.texts)]
    if isinstance(state, Sum):
        return _number(state)
    if rule.fold == "count":
        return state
    value = _drawn(body_at(state), rule.field) if state else None
    return None if value is _MISSING else value


def is_complete(state: FoldState) -> bool:
    """Return whether the state covers all records; only a `set` that ran out of room does not."""
    return not isinstance(state, Members) or state.complete


def _drawn(body: Mapping[str, Any], field: str) -> Any:
    """Return the value of a body's field, the body itself without a field, _MISSING if the body lacks it."""
    value: Any = body
    for name in field.split(".") if field else ():
        if not isinstance(value, dict) or name not in value:
            return _MISSING
        value = value[name]
    return value


def _first(state: int, sequence: int, value: Any) -> int:
    return state or sequence


def _add(state: Sum, sequence: int, value: Any) -> Sum:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return state
    digits, decimals = (value, 0) if isinstance(value, int) else _decimal(value)
    most = max(state.decimals, decimals)
    return Sum(state.digits * 10 ** (most - state.decimals) + digits * 10 ** (most - decimals), most)


def _decimal(value: float) -> tuple[int, int]:
    """Return a float as (digits, decimals) of the decimal that it is written as, so that 0.1 + 0.2 is 0.3.

    The module `decimal` would do it too, and take 350 KiB of every daemon.
    """
    text, _, exponent = repr(value).partition("e")
    whole, _, fraction = text.partition(".")
    digits, decimals = int(whole + fraction), len(fraction) - int(exponent or 0)
    return (digits, decimals) if decimals >= 0 else (digits * 10**-decimals, 0)


def _join(state: Members, sequence: int, value: Any) -> Members:
    text = canon.encode(value)
    if text in state.texts:
        return state
    size = state.size_bytes + len(text)
    if len(state.texts) >= SET_MEMBERS_MAX or size > SET_BYTES_MAX:
        return state if not state.complete else Members(state.texts, state.size_bytes, False)
    return Members(state.texts | {text}, size, state.complete)


def _number(found: Sum) -> int | float:
    """Return a sum as JSON: an integer if it is whole, else the nearest float; beyond floats, the whole part."""
    unit: int = 10**found.decimals
    whole, rest = divmod(abs(found.digits), unit)
    if rest:
        with suppress(OverflowError):
            return found.digits / unit
    return whole if found.digits >= 0 else -whole


def _is_path(field: str) -> bool:
    return len(field) <= FIELD_CHARS_MAX and field.count(".") < FIELD_LEVELS_MAX and bool(_FIELD.match(field))


FOLDS: Final[Mapping[str, Fold]] = {
    "latest": Fold(0, lambda state, sequence, value: sequence),
    "first": Fold(0, _first),
    "count": Fold(0, lambda state, sequence, value: int(state) + 1),
    "sum": Fold(Sum(), _add, needs_field=True),
    "set": Fold(Members(), _join, needs_field=True),
}
