"""Mutants of one source text: each is one small fault that a reviewer could miss, and that a test must notice.

    comparison   < and <=, > and >=, == and !=, `in`, `is`, each against its other
    number       one more, one less; truth values turned
    logic        and, or; an operand left out; `not` left out
    sum          + and -, << and >>
    statement    a call, a store into an object, a raise, a return, a break or a continue left out
    code         the code of an error that is raised

Not mutated: texts, annotations, assertions, log lines, whether a field is in the repr or a zip strict, and the
constants of a module.  A bound's own value is a decision that a test takes from the constant; what is compared with it
is not.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_OPPOSITE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_SUMS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
_UNTOUCHED = (ast.Assert, ast.Import, ast.ImportFrom, ast.JoinedStr, ast.Global, ast.Nonlocal)

_Change = Callable[[ast.AST], None]


@dataclass(frozen=True)
class Mutant:
    """One fault: where it is (function and lines), what it does, and the change of the n-th node of the tree.

    `key` names it in `survivors.toml`, without line numbers, so that it holds while the file grows around it.
    """

    key: str
    line: int
    lines: range
    node: int
    change: _Change


def mutants(source: str) -> list[Mutant]:
    """Return the mutants of a module, in the order of its lines."""
    return _Finder(ast.parse(source)).found()


def applied(source: str, mutant: Mutant) -> ast.Module:
    """Return the tree of the module with the fault in it."""
    tree = ast.parse(source)
    mutant.change(list(ast.walk(tree))[mutant.node])
    return ast.fix_missing_locations(tree)


class _Finder:
    """Walks a tree; `where` is the function, `lines` the lines of the statement that is being looked at."""

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.numbers = {id(node): number for number, node in enumerate(ast.walk(tree))}
        self.where: list[str] = []
        self.lines = range(0)
        self.sites: list[tuple[str, int, range, int, _Change]] = []

    def found(self) -> list[Mutant]:
        self.block(self.tree, "body")
        seen: dict[str, int] = {}
        mutants = []
        for what, line, lines, node, change in self.sites:
            seen[what] = count = seen.get(what, 0) + 1
            mutants.append(Mutant(f"{what} #{count}" if count > 1 else what, line, lines, node, change))
        return mutants

    def add(self, node: ast.AST, what: str, change: _Change, line: int = 0) -> None:
        place = ".".join(self.where) or "module"
        self.sites.append((f"{place}: {what}", line or node.lineno, self.lines, self.numbers[id(node)], change))

    # -- statements

    def block(self, parent: ast.AST, name: str) -> None:
        items = getattr(parent, name)
        for number, item in enumerate(items):
            self.lines = _own_lines(item)
            is_end = isinstance(parent, ast.FunctionDef | ast.AsyncFunctionDef) and item is items[-1]
            if self.where and _is_removable(item) and not (is_end and _returns_nothing(item)):
                text = " ".join(ast.unparse(item).split())[:60]
                self.add(parent, f"without `{text}`", _without(name, number), item.lineno)
            self.statement(item)

    def statement(self, item: ast.stmt) -> None:
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            self.definition(item)
        elif isinstance(item, ast.Raise):
            self.raised(item)
        elif not (isinstance(item, _UNTOUCHED) or _is_log(item)):
            self.parts(item)

    def definition(self, item: "ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef") -> None:
        self.where.append(item.name)
        if not isinstance(item, ast.ClassDef):
            for default in (*item.args.defaults, *filter(None, item.args.kw_defaults)):
                self.expression(default)
        self.block(item, "body")
        self.where.pop()

    def raised(self, item: ast.Raise) -> None:
        call = item.exc
        if isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant):
            code = call.args[0]
            if isinstance(code.value, str) and " " not in code.value:
                self.add(code, f"code {code.value!r}", lambda node: setattr(node, "value", "mutated"))

    def parts(self, item: ast.AST) -> None:
        """Go through the fields of a statement or an expression in their order."""
        for name, value in ast.iter_fields(item):
            if name in ("annotation", "type_comment"):
                continue
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                self.block(item, name)
            else:
                for part in value if isinstance(value, list) else [value]:
                    if isinstance(part, ast.AST):
                        self.expression(part)

    # -- expressions

    def expression(self, node: ast.AST) -> None:
        if isinstance(node, _UNTOUCHED) or (isinstance(node, ast.keyword) and node.arg in ("repr", "strict")):
            return
        if self.where:
            for what, change in _changes(node):
                self.add(node, what, change)
        self.parts(node)


def _changes(node: ast.AST) -> Iterator[tuple[str, _Change]]:
    """Yield (what it does, how) for each mutant of one node."""
    text = ast.unparse(node)[:60] if isinstance(node, ast.expr) else ""
    if isinstance(node, ast.Compare):
        for number, operator in enumerate(node.ops):
            other = _OPPOSITE[type(operator)]
            yield f"`{text}` with {other.__name__}" + f" at {number}" * (len(node.ops) > 1), _compares(number, other)
    elif isinstance(node, ast.BoolOp):
        yield f"`{text}` with the other of and, or", _turn_logic
        for number, value in enumerate(node.values):
            yield f"`{text}` without `{ast.unparse(value)[:40]}`", _leaves_out(number)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield f"`{text}` turned", _turn_not
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _SUMS:
        other_sum = _SUMS[type(node.op)]
        yield f"`{text}` with {other_sum.__name__}", lambda node: setattr(node, "op", other_sum())
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield f"{node.value} turned", lambda node: setattr(node, "value", not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield f"{node.value} more by one", lambda node: setattr(node, "value", node.value + 1)
        if node.value:
            yield f"{node.value} less by one", lambda node: setattr(node, "value", node.value - 1)


def _compares(number: int, operator: type[ast.cmpop]) -> _Change:
    def change(node: ast.AST) -> None:
        node.ops[number] = operator()

    return change


def _leaves_out(number: int) -> _Change:
    def change(node: ast.AST) -> None:
        del node.values[number]
        if len(node.values) == 1:
            node.values.insert(0, ast.Constant(isinstance(node.op, ast.And)))

    return change


def _without(name: str, number: int) -> _Change:
    return lambda parent: getattr(parent, name).__setitem__(number, ast.Pass())


def _turn_logic(node: ast.AST) -> None:
    node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()


def _turn_not(node: ast.AST) -> None:
    """Make `not x` a `not not x`: the truth of x."""
    node.operand = ast.UnaryOp(ast.Not(), node.operand)


def _is_removable(item: ast.stmt) -> bool:
    """Return whether the module still runs without a statement, so that its absence says something."""
    if isinstance(item, ast.Expr):
        return isinstance(item.value, ast.Call | ast.Await) and not _is_log(item)
    if isinstance(item, ast.Assign):
        return all(isinstance(target, ast.Attribute | ast.Subscript) for target in item.targets)
    return isinstance(item, ast.Raise | ast.Return | ast.Break | ast.Continue | ast.AugAssign | ast.Delete)


def _returns_nothing(item: ast.stmt) -> bool:
    """Return whether a statement returns None or False, as a function does in its stead at its end."""
    value = item.value if isinstance(item, ast.Return) else ast.Constant(True)
    return value is None or (isinstance(value, ast.Constant) and (value.value is None or value.value is False))


def _is_log(item: ast.stmt) -> bool:
    return isinstance(item, ast.Expr) and ast.unparse(item).startswith("log.")


def _own_lines(item: ast.stmt) -> range:
    """Return the lines of a statement, without those of the blocks in it."""
    end = item.end_lineno or item.lineno
    body = getattr(item, "body", None) or getattr(item, "cases", None)
    if body:
        first = body[0]
        end = max(item.lineno, (first.lineno if isinstance(first, ast.stmt) else first.pattern.lineno) - 1)
    return range(item.lineno, end + 1)
