"""Every hint: each of its steps ends with a command that a shell takes as it stands, or has none."""

import ast
import os
import re
import shlex
from collections.abc import Iterator
from typing import Final

import pytest

from spl.cli import main as cli
from spl.cli.command import Command, parser_of
from spl.core.errors import CODES, steps
from spl.doctor import catalogue
from spl.doctor.facts import Facts
from tests.doctor.test_catalogue import CASES, WELL
from tests.pages import ROOT

ELSEWHERE: Final = frozenset({"completion.py", "manpages.py", "manual.py"})
"""Files whose texts are for shells and other programs."""
NOUNS: Final = "|".join(cli.PLACES)
OTHERS: Final = (
    "kill (?:-[A-Z0-9]+ )?x1|chmod go|ssh -L|ip route get|timedatectl set|chronyc makestep|(?:apt|pip) install"
)
COMMAND: Final = re.compile(rf"\b(?:spl (?:{NOUNS})\b(?! to )|{OTHERS})")
BEFORE: Final = ("", ": ", ":  ", "  ", "sudo ", "&& ", "| ")
"""What a command may stand behind: a colon, the gap of a column, or a command."""
SHELL: Final = re.compile(r" && | \| | < ")
UNKNOWN: Final = frozenset({"SIX", "WORDS", "DID", "NEW-URL", "URL", "FILE", "NAME", "TEXT", "MODE", "HOST"})
"""What only the operator knows, and what the text of a code leaves open for those who raise it."""
FILLED: Final = {"PAIR_ID": "pair_0f9e8d7c", "THREAD": "th_garden", "MODE": "polling", "CODE": "dns", "TOPIC": "pairs"}


def commands(hint: str) -> list[str]:
    """Return the commands of a hint; fail if one does not begin, end or read as the shell wants it."""
    found = []
    for step in steps(re.sub(r"`[^`]*`", "", hint)):
        first = COMMAND.search(step)
        if first is None:
            continue
        before, line = step[: first.start()], step[first.start() :]
        assert not re.search(r"\bor: $", before), f"a second way without its reason: {step}"
        for_peer = first[0].startswith("spl ") and re.search(
            r"\bthere: $|\bor there\b|\b(?:or|and|,) on the peer\b", before
        )
        assert not for_peer, f"a step for the peer begins with `on NAME`, or it gets our home: {step}"
        assert before == "" or before.endswith(BEFORE[1:]), f"words run into the command: {step}"
        bare = re.sub(r"'[^']*'", "x", re.sub(r" [<>] \S+$", "", line))
        assert not re.search(r"[()<>\[\]{}…]|[.,:]( |$)| {2}", bare), f"more than a command: {step}"
        found += [each for each in SHELL.split(line) if each.startswith("spl ")]
    return found


def check(hint: str) -> None:
    """Fail unless every command of a hint is one that the product has, with options that it has."""
    for line in commands(hint):
        words = [FILLED.get(word, word) for word in shlex.split(line)[1:]]
        command, rest = cli.find(words)
        if "--help" in words or not isinstance(command, Command):
            continue
        parser_of(command).parse_args(rest)


def hints() -> Iterator[tuple[str, str]]:
    """Yield (place, text) of each text of one line in the source that names a command: what is known is filled in."""
    for path in sorted((ROOT / "spl").rglob("*.py")):
        if path.name in ELSEWHERE:
            continue
        tree = ast.parse(path.read_text())
        parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in parts | docs:
                text = _text(node)
                if COMMAND.search(text) and "\n" not in text:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", text


def _text(node: ast.Constant | ast.JoinedStr) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return "".join(part.value if isinstance(part, ast.Constant) else "x1" for part in node.values)


@pytest.mark.parametrize("code", CODES)
def test_the_step_of_every_code_can_be_pasted(code: str) -> None:
    check(CODES[code].fix)


@pytest.mark.parametrize("code", CASES)
def test_the_fix_of_every_finding_can_be_pasted(code: str) -> None:
    """And what is known of the pair stands in it: no placeholder but for what only the operator knows."""
    for found in catalogue.findings(Facts(**{**WELL, **CASES[code]})):
        check(found.fix)
        for line in commands(found.fix):
            assert set(re.findall(r"\b[A-Z][A-Z_-]+\b", line)) <= UNKNOWN, line


def test_the_page_of_findings_is_the_catalogue() -> None:
    """What the page tells to do is what doctor tells, as `spl help CODE` has it; SPL_SCREENS=write writes it again."""
    rows = []
    for code in CASES:
        check(catalogue.usual_fix(code))
        fix = catalogue.usual_fix(code).replace("|", r"\|")
        rows.append(f"| `{code}` | {CODES[code].meaning} | {fix} |")
    text = "\n".join([
        "# Findings: each one, what it means, and its fix", "",
        "The fix is the general one: `spl status` and `spl doctor` print what helps the pair and home at hand, and go",
        "before this table where they differ; `spl help CODE` explains a code.",
        "", "| finding | what it means | fix |", "|---|---|---|", *rows, "",
    ])  # fmt: skip
    page = ROOT / "spl" / "manual" / "findings.md"
    if os.environ.get("SPL_SCREENS") == "write":
        page.write_text(text)
    assert page.read_text() == text


def test_every_text_of_the_source_that_names_a_command_keeps_it_whole() -> None:
    found = list(hints())
    assert len(found) > 150
    wrong = []
    for place, text in found:
        try:
            commands(text)
        except AssertionError as exc:
            wrong.append(f"{place}: {exc}")
    assert not wrong, "\n".join(wrong)
