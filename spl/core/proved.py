"""Whether a rule of automatic approval depends on facts that the asker cannot choose.

No peer is dialled before approval, so the label, the URL and the namespaces in a pair request are the asker's own
claims: a rule that they alone satisfy lets any stranger in.  What a request proves is its DID and the six words of its
key, which its signature covers, and the address of its connection.

`is_proved` walks the expression and asks of every way to make it true whether a comparison of a proved fact with
constants stands on it: one operand of `&&`, each operand of `||`.  It is cautious: what it does not recognise proves
nothing, so `request.initiator_did != ""` does not pass although it names the DID.  A prefix of a DID is its label,
which the asker chooses, and a prefix of the words is found by trying keys, so of both only whole values count; of an
address, a prefix of whole parts does.  Trying the rule out over made-up requests was rejected: it never ends with a
proof.
"""

from collections.abc import Mapping
from typing import Final

from .cel.grammar import Expr, Node

WHOLE: Final = frozenset({"request.initiator_did", "request.words"})
ADDRESS: Final = frozenset({"request.peer.address", "peer.address"})

_Constants = Mapping[str, bool]
"""Variable of a macro -> whether every item that it stands for is a constant."""


def is_proved(expr: Expr) -> bool:
    """Return whether the expression can be true only through a proved fact."""
    return _proved(expr.root, True, {})


def _proved(node: Node, wanted: bool, bound: _Constants) -> bool:
    """Return whether the node has the value `wanted` only through a proved fact."""
    match node.kind:
        case "literal":
            return node.value is not wanted
        case "not":
            return _proved(node.parts[0], not wanted, bound)
        case "&&" | "||":
            # With `wanted` each operand of && must hold, so one proof is enough; of || any one may hold.
            enough = any if (node.kind == "&&") is wanted else all
            return enough(_proved(part, wanted, bound) for part in node.parts)
        case "choice":
            test, yes, no = node.parts
            return (_proved(yes, wanted, bound) or _proved(test, True, bound)) and (
                _proved(no, wanted, bound) or _proved(test, False, bound)
            )
        case "exists" | "all":
            return _proved_macro(node, wanted, bound)
        case "compare":
            return _proved_comparison(node, wanted, bound)
        case "call":
            return wanted and _is_prefix_of_address(node, bound)
    return False


def _proved_macro(node: Node, wanted: bool, bound: _Constants) -> bool:
    """Return whether an item must pass a proved test; `all` over a list that may be empty tests nothing."""
    items, body = node.parts
    inner = {**bound, node.value: _is_constant(items, bound)}
    tests_some = (node.kind == "exists") is wanted or (items.kind == "list" and bool(items.parts))
    return tests_some and _proved(body, wanted, inner)


def _proved_comparison(node: Node, wanted: bool, bound: _Constants) -> bool:
    left, right = node.parts
    facts = WHOLE | ADDRESS
    if (node.value, wanted) in (("==", True), ("!=", False)):
        return (_path(left, bound) in facts and _is_constant(right, bound)) or (
            _path(right, bound) in facts and _is_constant(left, bound)
        )
    return node.value == "in" and wanted and _path(left, bound) in facts and _is_constant(right, bound)


def _is_prefix_of_address(node: Node, bound: _Constants) -> bool:
    """Return whether whole parts of an address are compared: "10.1." is a network, "10.1" begins 10.19 too."""
    if node.value != "startsWith" or _path(node.parts[0], bound) not in ADDRESS:
        return False
    prefix = node.parts[1]
    return prefix.kind == "literal" and isinstance(prefix.value, str) and prefix.value.endswith((".", ":"))


def _is_constant(node: Node, bound: _Constants) -> bool:
    """Return whether no fact of the request has a part in the value."""
    if node.kind == "name":
        return bound.get(node.value, False)
    return node.kind in ("literal", "list", "map", "index") and all(_is_constant(part, bound) for part in node.parts)


def _path(node: Node, bound: _Constants) -> str:
    """Return "request.words" for that field however it is written, "" for what is no field of a fact.

    A variable of a macro may have the name of a fact, and stands for an item then.
    """
    if node.kind == "name":
        return "" if node.value in bound else str(node.value)
    if node.kind == "field":
        name = node.value
    elif node.kind == "index" and node.parts[1].kind == "literal" and isinstance(node.parts[1].value, str):
        name = node.parts[1].value
    else:
        return ""
    within = _path(node.parts[0], bound)
    return f"{within}.{name}" if within else ""
