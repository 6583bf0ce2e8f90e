"""Every line of the log is an event with fields, so that `spl logs event=NAME` finds it."""

import ast
import logging
import re
from pathlib import Path

import pytest

from spl.core.event import event

SPL = Path(__file__).parent.parent.parent / "spl"
LEVELS = frozenset({"debug", "info", "warning", "error", "exception", "critical", "log"})
NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)+")


def test_an_event_is_what_a_logging_call_takes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "spl.test"):
        logging.getLogger("spl.test").info(**event("token.renewed", pair="pair_1", ms=4))
    [line] = caplog.records
    assert line.getMessage() == "token.renewed"
    assert line.__dict__["fields"] == {"pair": "pair_1", "ms": 4}


def test_every_logging_call_writes_an_event() -> None:
    """A call with a text of its own could not be found by its event; each name has a noun and a past tense."""
    calls, names = 0, set[str]()
    for path in sorted(SPL.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"log.{level}" for level in LEVELS}:
                calls += 1
                assert "**event(" in ast.unparse(node), f"{path.name}:{node.lineno} logs without event()"
            elif (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "event"
                and isinstance(node.args[0], ast.Constant)
            ):
                names.add(node.args[0].value)
    assert calls > 40
    assert not [name for name in names if not NAME.fullmatch(name)]
