"""README and manual: every command line is one that the product has, every link leads to a page."""

import re
import shlex
import tomllib

from spl.cli import main as cli
from spl.cli.command import Command, parser_of
from spl.cli.manual import TOPICS
from tests.pages import MANUAL, PAGES, README, ROOT, blocks

LINE = re.compile(r"^(?:[a-z]*\$ )?(?:[A-Z_]+=\S+ )*spl (.+)$", re.MULTILINE)


def command_lines() -> list[str]:
    found = [line for page in PAGES for block in blocks(page) for line in LINE.findall(block)]
    return [line.partition(" #")[0].strip() for line in found]


def test_the_pages_have_command_lines() -> None:
    assert len(command_lines()) > 60


def test_every_command_line_of_the_pages_parses() -> None:
    for line in command_lines():
        words = shlex.split(line.replace("[", "").replace("]", ""))
        words = words[: next((at for at, word in enumerate(words) if word in ("|", "<", ">")), None)]
        command, rest = cli.find(words)
        assert isinstance(command, Command), line
        parser_of(command).parse_args(rest)


def test_the_first_page_is_one() -> None:
    """It is read to the end, so it stays short; what does not fit belongs into the manual."""
    assert len(README.read_text().splitlines()) <= 160


def test_every_link_leads_to_a_page() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / target).is_file(), f"{page}: {target}"


def test_the_first_page_lists_every_topic() -> None:
    """Each with the summary that `spl help topics` prints."""
    text = README.read_text()
    assert {path.stem for path in MANUAL.glob("*.md")} == set(TOPICS)
    for topic in TOPICS:
        title = (MANUAL / f"{topic}.md").read_text().partition("\n")[0]
        assert f"| [{topic}](spl/manual/{topic}.md) | {title.partition(': ')[2]} |" in text


def test_the_manual_is_part_of_the_package() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["spl"]
    packed = {path for pattern in patterns for path in (ROOT / "spl").glob(pattern)}
    assert set(MANUAL.iterdir()) <= packed
