"""The grammar of the rule language: from text to a tree, each fault with its line and column.

A subset of CEL (the Common Expression Language), whose expressions mean here what they mean there:

    expr     or [ "?" or ":" expr ]
    or       and { "||" and }
    and      compare { "&&" compare }
    compare  unary [ ( "==" | "!=" | "<" | "<=" | ">" | ">=" | "in" ) unary ]
    unary    { "!" } member | "-" number
    member   primary { "." name [ "(" … ")" ] | "[" expr "]" }
    primary  null | true | false | number | text | name | "(" expr ")" | "[" … "]" | "{" text ":" expr, … "}"

    size(x)  has(a.b)  x.size()  x.startsWith(y)  x.endsWith(y)  x.contains(y)
    x.exists(name, expr)  x.all(name, expr)

Left out of CEL: arithmetic, conversions, bytes, unsigned numbers, comments, macros that build lists, and `matches`: a
regular expression whose cost is bounded needs an engine of its own, larger than the rest of the language, and rules
compare whole names, prefixes and suffixes.  Comparisons do not chain.
"""

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, NoReturn

from ..errors import SplError
from ..value import dataclass

SOURCE_CHARS_MAX: Final = 4096
"""Part of the language: a stored rule must be readable on each instance that folds it."""
NESTING_LEVELS_MAX: Final = 32
"""The parser recurses once a level."""
INT_BOUND: Final = 2**63
WINDOW_CHARS: Final = 72
"""Of the source shown under an error: it fits a terminal."""
METHODS: Final = {"size": 0, "startsWith": 1, "endsWith": 1, "contains": 1}
MACROS: Final = ("exists", "all")
COMPARING: Final = ("==", "!=", "<", "<=", ">", ">=", "in")
RESERVED: Final = frozenset(
    "as break const continue else false for function if import in let loop null package namespace return true var "
    "void while".split()
)
"""Words of CEL that are not names; after a dot only true, false, null and in are refused, as in CEL."""
NO_MATCHES: Final = "instead of matches use ==, in, startsWith, endsWith or contains, joined with && and ||"

_WORDS: Final[dict[str, bool | None]] = {"true": True, "false": False, "null": None}
_TOKEN: Final = re.compile(
    r"""(?P<space>[ \t\r\n]+)
    |(?P<number>0x[0-9A-Fa-f]+(?![\w.])|[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![\w.]))
    |(?P<raw>[rR](?:"[^"\n]*"|'[^'\n]*'))
    |(?P<text>"(?:[^"\\\n]|\\[^\n])*"|'(?:[^'\\\n]|\\[^\n])*')
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<sign>&&|\|\||[<>=!]=|[<>!?:.,()\[\]{}-])""",
    re.VERBOSE,
)
_ESCAPE: Final = re.compile(r"\\(x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|[0-3][0-7]{2}|[abfnrtv\\?\"'`])|\\")
_ESCAPES: Final = dict(zip("abfnrtv", "\a\b\f\n\r\t\v", strict=True))
_SURROGATES: Final = range(0xD800, 0xE000)
_LAST: Final = 0x10FFFF


class ExprError(SplError):
    """An expression that cannot be read or evaluated; facts `at` (line:column), `source` and `caret`.

    Codes: rule-syntax, rule-type, rule-cost.
    """


@dataclass(frozen=True, slots=True)
class Node:
    """One node of the tree.

    kind      value                    parts
    literal   the value
    name      the name
    field     the field's name         what it is a field of
    has       the field's name         what it is a field of
    index                              what is looked into, the key
    list                               the items
    map       the keys, a tuple        the values
    not                                the operand
    && ||                              two or more operands
    compare   the operator             both operands
    choice                             test, then, else
    call      the function             what it is called on, arguments
    exists    the variable             the list, the body
    all       the variable             the list, the body
    """

    kind: str
    at: int
    value: Any = None
    parts: "tuple[Node, ...]" = ()


@dataclass(frozen=True, slots=True)
class Expr:
    """A parsed expression: its text, its tree, and the names that it expects from outside."""

    text: str
    root: Node
    names: frozenset[str]


def parse(text: str) -> Expr:
    """Return the expression; raise ExprError "rule-syntax" with line and column for what the grammar lacks.

    At most SOURCE_CHARS_MAX characters, and a tree of at most NESTING_LEVELS_MAX levels.
    """
    if len(text) > SOURCE_CHARS_MAX:
        raise ExprError("rule-syntax", f"an expression has at most {SOURCE_CHARS_MAX} characters")
    root = _Descent(text).whole()
    layer: tuple[Node, ...] = (root,)
    depth = 0
    while layer:
        depth += 1
        if depth > NESTING_LEVELS_MAX:
            raise fault("rule-syntax", f"nested deeper than {NESTING_LEVELS_MAX} levels", text, layer[0].at)
        layer = tuple(part for node in layer for part in node.parts)
    return Expr(text, root, frozenset(_names(root, frozenset())))


def fault(code: str, message: str, text: str, at: int, hint: str = "") -> ExprError:
    """Return the error at an offset of the text, with that line and a caret under the place."""
    before = text[:at].split("\n")
    column = len(before[-1])
    line = "".join(char if char.isprintable() else " " for char in text.split("\n")[len(before) - 1])
    start = max(0, min(column - WINDOW_CHARS // 2, len(line) - WINDOW_CHARS))
    window = line[start : start + WINDOW_CHARS]
    place = f"{len(before)}:{column + 1}"
    caret = " " * (column - start) + "^"
    return ExprError(code, f"{message}, at {place}", hint=hint, at=place, source=window, caret=caret)


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


def _tokens(text: str) -> Iterator[_Token]:
    """Yield the tokens without the space between them, and an `end`; raise ExprError "rule-syntax"."""
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise fault("rule-syntax", _why_no_token(text[at]), text, at)
        if found.lastgroup != "space":
            yield _Token(str(found.lastgroup), found[0], at)
        at = found.end()
    yield _Token("end", "", at)


def _why_no_token(char: str) -> str:
    if char in "\"'":
        return "the text has no closing quote on its line"
    if char.isascii() and char.isdigit():
        return "numbers are written 7, 0x7f, 7.5 or 7e3"
    if char in "=&|":
        return f"a single {char} is no operator; write {char}{char}"
    return f"{char!r} is not part of the language"


def _names(node: Node, bound: frozenset[str]) -> Iterator[str]:
    """Yield the names that no macro around them binds."""
    if node.kind == "name" and node.value not in bound:
        yield node.value
    inner = bound | {node.value} if node.kind in MACROS else bound
    for number, part in enumerate(node.parts):
        yield from _names(part, inner if number else bound)


class _Descent:
    """Recursive descent over the tokens; one method a line of the grammar."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = tuple(_tokens(text))
        self.next, self.levels = 0, 0

    def whole(self) -> Node:
        node = self.expr()
        if self.token.kind != "end":
            self.fail(f"{self.token.text!r} does not belong here")
        return node

    def expr(self) -> Node:
        self.levels += 1
        if self.levels > NESTING_LEVELS_MAX:
            self.fail(f"nested deeper than {NESTING_LEVELS_MAX} levels")
        test = self.joined("||")
        at = self.token.at
        if self.taken("?"):
            yes = self.joined("||")
            self.expect(":")
            test = Node("choice", at, parts=(test, yes, self.expr()))
        self.levels -= 1
        return test

    def joined(self, sign: str) -> Node:
        """Parse the operands of || or && into one node, so that a long row of them is not a deep tree."""
        at = self.token.at
        parts = [self._operand(sign)]
        while self.taken(sign):
            parts.append(self._operand(sign))
        return parts[0] if len(parts) == 1 else Node(sign, at, parts=tuple(parts))

    def _operand(self, sign: str) -> Node:
        return self.joined("&&") if sign == "||" else self.compare()

    def compare(self) -> Node:
        left = self.unary()
        token = self.token
        if not self._compares(token):
            return left
        self.next += 1
        node = Node("compare", token.at, token.text, (left, self.unary()))
        if self._compares(self.token):
            self.fail("comparisons do not chain; join two of them with &&")
        return node

    @staticmethod
    def _compares(token: _Token) -> bool:
        return token.text in COMPARING

    def unary(self) -> Node:
        signs = []
        while self.taken("!"):
            signs.append(self.tokens[self.next - 1].at)
        at = self.token.at
        if self.taken("-"):
            if self.token.kind != "number":
                self.fail("a minus stands before a number only; there is no arithmetic")
            node = Node("literal", at, self.number(negative=True))
        else:
            node = self.member()
        for at in reversed(signs):
            node = Node("not", at, parts=(node,))
        return node

    def member(self) -> Node:
        node = self.primary()
        while True:
            at = self.token.at
            if self.taken("["):
                node = Node("index", at, parts=(node, self.expr()))
                self.expect("]")
            elif self.taken("."):
                token = self.token
                if token.kind != "name" or token.text in (*_WORDS, "in"):
                    self.fail("a name is missing after the dot")
                self.next += 1
                node = self.call(token, node) if self.taken("(") else Node("field", at, token.text, (node,))
            else:
                return node

    def call(self, function: _Token, on: Node) -> Node:
        """Parse a method's arguments; its ( is taken."""
        if function.text in MACROS:
            return self.macro(function, on)
        if function.text not in METHODS:
            known = ", ".join((*METHODS, *MACROS))
            hint = NO_MATCHES if function.text == "matches" else ""
            self.fail(f"there is no function {function.text!r}; there are {known}", function, hint=hint)
        arguments = self.items(")")
        if len(arguments) != METHODS[function.text]:
            self.fail(f"{function.text} takes {METHODS[function.text]} in its parentheses", function)
        return Node("call", function.at, function.text, (on, *arguments))

    def macro(self, function: _Token, on: Node) -> Node:
        token = self.token
        if token.kind != "name" or token.text in RESERVED:
            self.fail(f"{function.text} takes a name for the item, then an expression: x.{function.text}(i, i == 1)")
        self.next += 1
        self.expect(",")
        body = self.expr()
        self.expect(")")
        return Node(function.text, function.at, token.text, (on, body))

    def primary(self) -> Node:
        token = self.token
        match token.kind:
            case "number":
                return Node("literal", token.at, self.number())
            case "text" | "raw":
                return Node("literal", token.at, self.string())
            case "name":
                return self.word()
        if self.taken("("):
            node = self.expr()
            self.expect(")")
            return node
        if self.taken("["):
            return Node("list", token.at, parts=self.items("]"))
        if self.taken("{"):
            return self.mapping(token.at)
        return self.fail("a value is missing" if token.kind == "end" else f"{token.text!r} begins no value")

    def word(self) -> Node:
        token = self.token
        self.next += 1
        if token.text in _WORDS:
            return Node("literal", token.at, _WORDS[token.text])
        if self.taken("("):
            return self.function(token)
        if token.text in RESERVED:
            self.fail(f"{token.text!r} is a reserved word", token)
        return Node("name", token.at, token.text)

    def function(self, token: _Token) -> Node:
        """Parse size(x) or has(a.b); the ( is taken."""
        if token.text not in ("size", "has"):
            self.fail(f"there is no function {token.text!r}; standing alone there are size and has", token)
        arguments = self.items(")")
        if len(arguments) != 1:
            self.fail(f"{token.text} takes 1 in its parentheses", token)
        if token.text == "size":
            return Node("call", token.at, "size", arguments)
        if arguments[0].kind != "field":
            self.fail("has asks for a field, as in has(request.label)", token)
        return Node("has", token.at, arguments[0].value, arguments[0].parts)

    def items(self, end: str) -> tuple[Node, ...]:
        """Parse expressions between commas up to the closing sign, which is taken too."""
        parts: list[Node] = []
        while not self.taken(end):
            if parts:
                self.expect(",")
            parts.append(self.expr())
        return tuple(parts)

    def mapping(self, at: int) -> Node:
        keys: list[str] = []
        parts: list[Node] = []
        while not self.taken("}"):
            if keys:
                self.expect(",")
            if self.token.kind not in ("text", "raw"):
                self.fail("the keys of a map are texts in quotes")
            keys.append(self.string())
            self.expect(":")
            parts.append(self.expr())
        if len(set(keys)) < len(keys):
            raise fault("rule-syntax", "the map has a key twice", self.text, at)
        return Node("map", at, tuple(keys), tuple(parts))

    def number(self, negative: bool = False) -> int | float:
        token = self.token
        self.next += 1
        text, sign = token.text, -1 if negative else 1
        if text.startswith("0x") or text.isdigit():
            value = sign * int(text, 16 if text.startswith("0x") else 10)
            if not -INT_BOUND <= value < INT_BOUND:
                self.fail("whole numbers have at most 64 bits", token)
            return value
        real = sign * float(text)
        if abs(real) == float("inf"):
            self.fail("the number is out of range", token)
        return real

    def string(self) -> str:
        token = self.token
        self.next += 1
        if token.kind == "raw":
            return token.text[2:-1]

        def plain(found: re.Match[str]) -> str:
            escape = found[1] or ""
            if not escape:
                self.fail("this escape is not known; a backslash itself is written \\\\", token, found.start() + 1)
            if escape[0] not in "xuU01234567":
                return _ESCAPES.get(escape, escape)
            code = int(escape[1:], 16) if escape[0] in "xuU" else int(escape, 8)
            if code > _LAST or code in _SURROGATES:
                self.fail("this escape names no character", token, found.start() + 1)
            return chr(code)

        return _ESCAPE.sub(plain, token.text[1:-1])

    @property
    def token(self) -> _Token:
        return self.tokens[self.next]

    def taken(self, sign: str) -> bool:
        """Consume the sign if it is the next token, and return whether it was."""
        found = self.token.text == sign
        self.next += found
        return found

    def expect(self, sign: str) -> None:
        if not self.taken(sign):
            self.fail(f"{sign!r} is missing" + (f" before {self.token.text!r}" if self.token.text else ""))

    def fail(self, message: str, token: _Token | None = None, offset: int = 0, hint: str = "") -> NoReturn:
        raise fault("rule-syntax", message, self.text, (token or self.token).at + offset, hint)
