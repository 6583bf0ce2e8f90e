"""What the house rules of check.py look for in a syntax tree; nothing here reads a file."""

import ast
from collections.abc import Iterator
from typing import Final

import layers

FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)


def named_types(node: ast.stmt) -> Iterator[str]:
    """Yield the public class that a statement defines, or the alias of a type: a name in capitals and small letters."""
    if isinstance(node, ast.ClassDef):
        names = [node.name]
    elif isinstance(node, ast.Assign) and not ast.unparse(node.value).startswith("TypeVar("):
        names = [target.id for target in node.targets if isinstance(target, ast.Name) and not target.id.isupper()]
    else:
        return
    yield from (name for name in names if name[0].isupper())


def parameters(node: ast.ClassDef) -> int:
    """Return how many parameters the constructor takes; 0 for a value, a dataclass that is frozen or has no methods."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return len(item.args.posonlyargs) + len(item.args.args) + len(item.args.kwonlyargs) - 1
    dataclass = next((ast.unparse(line) for line in node.decorator_list if "dataclass" in ast.unparse(line)), "")
    if not dataclass or "frozen=True" in dataclass or not any(isinstance(item, FUNCTIONS) for item in node.body):
        return 0
    fields = (item for item in node.body if isinstance(item, ast.AnnAssign))
    return sum(item.value is None for item in fields)


def absolute_lines(tree: ast.AST) -> Iterator[int]:
    """Yield the lines that import from our package by its absolute name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            named = [node.module or ""]
        else:
            continue
        if any(name.partition(".")[0] == layers.PACKAGE for name in named):
            yield node.lineno


def literals(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from literals(node.body)
        yield from literals(node.orelse)


def swallows(node: ast.AST) -> str:
    """Return how an exception of any kind ends at this node; "" if none does."""
    if isinstance(node, ast.ExceptHandler):
        return "except Exception" if "Exception" in caught(node.type) else ""
    if not isinstance(node, FUNCTIONS) or node.name not in {"__exit__", "__aexit__"}:
        return ""
    values = [item.value for item in ast.walk(node) if isinstance(item, ast.Return)]
    return node.name if any(value and ast.unparse(value) not in {"None", "False"} for value in values) else ""


def eats_cancellation(node: ast.AST) -> bool:
    """Return whether the node is a catch-all that does not re-raise."""
    if not isinstance(node, ast.ExceptHandler) or isinstance(node.body[-1], ast.Raise):
        return False
    return not caught(node.type).isdisjoint({"", "BaseException"})


def caught(node: ast.expr | None) -> set[str]:
    """Return the names of the exceptions an except clause takes; {""} for a bare one."""
    if node is None:
        return {""}
    return {ast.unparse(item) for item in (node.elts if isinstance(node, ast.Tuple) else [node])}


def called(node: ast.expr) -> tuple[str, str]:
    """Return (function name, text of what it is called on) of a call."""
    if isinstance(node, ast.Attribute):
        return node.attr, ast.unparse(node.value)
    return (node.id, "") if isinstance(node, ast.Name) else ("", "")


def task_groups(tree: ast.AST) -> set[str]:
    """Return the last name of everything that a file binds to, or annotates as, a TaskGroup."""
    found: set[str] = set()
    for node in ast.walk(tree):
        target: ast.AST | str | None = None
        if isinstance(node, ast.withitem) and "TaskGroup(" in ast.unparse(node.context_expr):
            target = node.optional_vars
        elif isinstance(node, ast.arg) and node.annotation and "TaskGroup" in ast.unparse(node.annotation):
            target = node.arg
        elif isinstance(node, ast.AnnAssign) and "TaskGroup" in ast.unparse(node.annotation):
            target = node.target
        if target is not None:
            found.add((target if isinstance(target, str) else ast.unparse(target)).rpartition(".")[2])
    return found


def code_lines(text: str) -> set[int]:
    """Return the numbers of the lines that hold code: no blank lines, comments or docstrings."""
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            skipped.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(text.splitlines(), 1)
    return {number for number, line in lines if line.strip() and not line.lstrip().startswith("#")} - skipped


def is_number(node: ast.expr | None) -> bool:
    """Return whether an expression is made of numbers alone, such as 64 * KIB."""
    if node is None or not any(isinstance(each, ast.Constant | ast.Name) for each in ast.walk(node)):
        return False
    allowed = (ast.Constant, ast.BinOp, ast.Name, ast.UnaryOp, ast.operator, ast.unaryop, ast.expr_context)
    return all(
        isinstance(each, allowed) and not (isinstance(each, ast.Constant) and isinstance(each.value, str | bytes))
        for each in ast.walk(node)
    )
