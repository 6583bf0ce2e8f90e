"""Evaluating expressions of the rule language over facts; the grammar is in grammar.py.

Facts are JSON values under names.  As in CEL: a missing field and a value of the wrong type are errors, and `has(a.b)`
tests for a field; `&&`, `||`, `exists` and `all` ignore an error if the other operands decide; whole and fractional
numbers compare by value, and values of two types are unequal, not an error.

Only `exists` and `all` loop, over lists in the facts or the text.  Each node visited, each item and each sixteen
characters that an operation may read is a step, and an evaluation that exceeds its Budget of steps fails: 20,000 steps
take some ten milliseconds.  Equal facts give equal answers.  The folder imports nothing but core.errors, so that it
can be vendored alone.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

from .grammar import Expr, ExprError, Node, fault, parse

__all__ = ["Budget", "Expr", "ExprError", "evaluate", "parse"]

STEPS_MAX: Final = 20_000  # of one expression: some 10 ms
CHARS_PER_STEP: Final = 16

Bindings = Mapping[str, Any]

_NUMBERS: Final = frozenset({"int", "double"})
_ORDERED: Final = frozenset({"bool", "string"})
_KINDS: Final = {bool: "bool", int: "int", float: "double", str: "string", list: "list", tuple: "list", dict: "map"}


class Budget:
    """The steps that are left; one Budget for all the expressions of a decision bounds the decision."""

    def __init__(self, steps: int = STEPS_MAX) -> None:
        self.steps, self.left = steps, steps


def evaluate(expr: Expr, facts: Bindings, budget: Budget | None = None) -> bool:
    """Return the value of the expression over the facts.

    Raises ExprError "rule-type" (a missing field, a wrong type, a result that is not true or false) and "rule-cost".
    """
    return _Run(expr.text, budget or Budget()).truth(expr.root, facts)


class _Run:
    """One evaluation: a method for each kind of node."""

    def __init__(self, text: str, budget: Budget) -> None:
        self.text, self.budget = text, budget

    def value(self, node: Node, scope: Bindings) -> Any:
        self.spend(1, node)
        return _VISITS[node.kind](self, node, scope)

    def truth(self, node: Node, scope: Bindings) -> bool:
        value = self.value(node, scope)
        if not isinstance(value, bool):
            raise self.fault(node, f"this is {_a(value)}, and must be true or false")
        return value

    def spend(self, steps: int, node: Node) -> None:
        self.budget.left -= steps
        if self.budget.left < 0:
            message = f"the expression costs more than {self.budget.steps} steps"
            raise fault("rule-cost", message, self.text, node.at)

    def spend_text(self, text: str, node: Node) -> None:
        self.spend(len(text) // CHARS_PER_STEP, node)

    def fault(self, node: Node, message: str) -> ExprError:
        return fault("rule-type", message, self.text, node.at)

    # -- nodes

    def literal(self, node: Node, scope: Bindings) -> Any:
        return node.value

    def name(self, node: Node, scope: Bindings) -> Any:
        if node.value not in scope:
            raise self.fault(node, f"there is no {node.value!r} here; there is {', '.join(sorted(scope)) or 'nothing'}")
        return scope[node.value]

    def field(self, node: Node, scope: Bindings) -> Any:
        return self.looked_up(node, self.mapping(node, scope), node.value)

    def has(self, node: Node, scope: Bindings) -> bool:
        return node.value in self.mapping(node, scope)

    def index(self, node: Node, scope: Bindings) -> Any:
        within, key = (self.value(part, scope) for part in node.parts)
        kinds = _kind(within), _kind(key)
        if kinds == ("map", "string"):
            return self.looked_up(node, within, key)
        if kinds != ("list", "int"):
            raise self.fault(node, f"{_a(within)} is not indexed by {_a(key)}")
        if not 0 <= key < len(within):
            raise self.fault(node, f"the index is outside the list of {len(within)}")
        return within[key]

    def items(self, node: Node, scope: Bindings) -> Any:
        return [self.value(part, scope) for part in node.parts]

    def members(self, node: Node, scope: Bindings) -> Any:
        return {key: self.value(part, scope) for key, part in zip(node.value, node.parts, strict=True)}

    def negation(self, node: Node, scope: Bindings) -> bool:
        return not self.truth(node.parts[0], scope)

    def logic(self, node: Node, scope: Bindings) -> bool:
        return self.fold(node.kind == "||", (partial(self.truth, part, scope) for part in node.parts))

    def choice(self, node: Node, scope: Bindings) -> Any:
        test, yes, no = node.parts
        return self.value(yes if self.truth(test, scope) else no, scope)

    def compare(self, node: Node, scope: Bindings) -> bool:
        left, right = (self.value(part, scope) for part in node.parts)
        if node.value in ("==", "!="):
            return self.equal(left, right, node) is bool(node.value == "==")
        if node.value == "in":
            return self.contained(left, right, node)
        kinds = {_kind(left), _kind(right)}
        if not kinds <= _NUMBERS and not (len(kinds) == 1 and kinds <= _ORDERED):
            raise self.fault(node, f"{node.value} does not order {_a(left)} and {_a(right)}")
        if isinstance(left, str):
            self.spend_text(left, node)
        return bool(_ORDER[node.value](left, right))

    def macro(self, node: Node, scope: Bindings) -> bool:
        items = self.value(node.parts[0], scope)
        if _kind(items) != "list":
            raise self.fault(node, f"{node.kind} goes over a list, and this is {_a(items)}")

        def test(item: Any) -> Callable[[], bool]:
            self.spend(1 + len(scope), node)
            return lambda: self.truth(node.parts[1], {**scope, node.value: item})

        return self.fold(node.kind == "exists", (test(item) for item in items))

    def call(self, node: Node, scope: Bindings) -> Any:
        values = [self.value(part, scope) for part in node.parts]
        if node.value == "size":
            if _kind(values[0]) not in ("string", "list", "map"):
                raise self.fault(node, f"{_a(values[0])} has no size")
            return len(values[0])
        for value in values:
            self.text_of(value, node)
        whole, piece = values
        if node.value == "contains":
            return piece in whole
        begins = node.value == "startsWith"
        return bool(whole.startswith(piece) if begins else whole.endswith(piece))

    # -- what they share

    def fold(self, decisive: bool, tests: Iterable[Callable[[], bool]]) -> bool:
        """Return `decisive` if a test gives it, even if others fail; else its opposite, or raise the first failure."""
        failed: ExprError | None = None
        for test in tests:
            try:
                if test() is decisive:
                    return decisive
            except ExprError as exc:
                if exc.code == "rule-cost":
                    raise
                failed = failed or exc
        if failed is not None:
            raise failed
        return not decisive

    def mapping(self, node: Node, scope: Bindings) -> Mapping[str, Any]:
        """Return the map whose field the node reads."""
        value = self.value(node.parts[0], scope)
        if not isinstance(value, dict):
            raise self.fault(node, f"{_a(value)} has no fields")
        return value

    def looked_up(self, node: Node, within: Mapping[str, Any], key: str) -> Any:
        self.spend_text(key, node)
        if key not in within:
            raise self.fault(node, f"there is no field {key[:40]!r}; has(…) asks for one that may be missing")
        return within[key]

    def text_of(self, value: Any, node: Node) -> str:
        if not isinstance(value, str):
            raise self.fault(node, f"{node.value} takes texts, and this is {_a(value)}")
        self.spend_text(value, node)
        return value

    def equal(self, left: Any, right: Any, node: Node) -> bool:
        """Return whether two values are equal; recursion is bounded, as accepted JSON nests 64 levels at most."""
        self.spend(1, node)
        kind, other = _kind(left), _kind(right)
        if kind in _NUMBERS and other in _NUMBERS:
            return bool(left == right)
        if kind != other:
            return False
        if kind == "list":
            return len(left) == len(right) and all(
                self.equal(one, two, node) for one, two in zip(left, right, strict=True)
            )
        if kind == "map":
            return len(left) == len(right) and all(
                key in right and self.equal(item, right[key], node) for key, item in left.items()
            )
        if kind == "string":
            self.spend_text(left, node)
        return bool(left == right)

    def contained(self, item: Any, within: Any, node: Node) -> bool:
        kind = _kind(within)
        if kind == "list":
            return any(self.equal(item, other, node) for other in within)
        if kind == "map" and isinstance(item, str):
            self.spend_text(item, node)
            return item in within
        also = "; for texts there is contains" if kind == "string" else ""
        raise self.fault(node, f"in asks a list or a map by text, and this asks {_a(within)}{also}")


def _kind(value: Any) -> str:
    return "null" if value is None else _KINDS.get(type(value), "value of another kind")


def _a(value: Any) -> str:
    kind = _kind(value)
    return kind if kind == "null" else f"{'an' if kind == 'int' else 'a'} {kind}"


_ORDER: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "<": lambda left, right: left < right,
    "<=": lambda left, right: left <= right,
    ">": lambda left, right: left > right,
    ">=": lambda left, right: left >= right,
}
_VISITS: Final[Mapping[str, Callable[[_Run, Node, Bindings], Any]]] = {
    "literal": _Run.literal,
    "name": _Run.name,
    "field": _Run.field,
    "has": _Run.has,
    "index": _Run.index,
    "list": _Run.items,
    "map": _Run.members,
    "not": _Run.negation,
    "&&": _Run.logic,
    "||": _Run.logic,
    "compare": _Run.compare,
    "choice": _Run.choice,
    "call": _Run.call,
    "exists": _Run.macro,
    "all": _Run.macro,
}
