"""The manual: every topic can be read, from a folder or a zip file, as Markdown or set to a terminal's width."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from spl.cli.main import PLACES
from spl.cli.manual import TOPICS, page, rendered, summary
from spl.core.errors import CODES
from tests.cli.conftest import Run
from tests.pages import ROOT

BOTH = {"consent"}
"""Topics that are commands too: `spl help` prints the topic, which shows the commands at work, and names --help."""


@pytest.mark.parametrize("topic", TOPICS)
def test_a_pipe_gets_the_page_as_it_is(spl: Run, topic: str) -> None:
    assert spl("help", topic).out == page(topic)
    assert page(topic).startswith("# ")
    assert summary(topic)


@pytest.mark.parametrize("columns", [40, 80, 100])
@pytest.mark.parametrize("topic", TOPICS)
def test_a_terminal_gets_prose_that_fits(spl: Run, topic: str, columns: int) -> None:
    """Only what stands in a fence, and a single word, may be wider; no word is lost."""
    lines = spl("help", topic, tty=True, env={"COLUMNS": str(columns)}).out.splitlines()
    fenced = [line for block in page(topic).split("```")[1::2] for line in block.splitlines()]
    wide = [line for line in lines if len(line) > columns and line[2:] not in fenced and " " in line.strip("- ")]
    assert wide == []
    assert not [line for line in lines if line.startswith(("#", "```", "|"))]
    words = "".join(page(topic).replace("\\|", "|").split())
    assert len("".join(lines)) > len(words) * 0.8


def test_a_table_that_fits_has_columns_and_one_that_does_not_is_a_list() -> None:
    text = "| a | what it is |\n|---|---|\n| `x\\|y` | one two three four five six seven eight nine ten |\n"
    assert list(rendered(text, 80)) == ["A      WHAT IT IS", "`x|y`  one two three four five six seven eight nine ten"]
    assert list(rendered(text, 40)) == ["`x|y`", "    one two three four five six seven", "    eight nine ten"]


def test_a_fence_is_shown_as_it_is() -> None:
    """Two blanks in, so that it stands out; nothing is wrapped, and nothing in it is taken for a title or table."""
    line = "x" * 60
    assert list(rendered(f"```\n# no title\n\n{line}\n```\n", 40)) == ["  # no title", "", f"  {line}"]


def test_a_link_names_the_command_that_follows_it() -> None:
    assert list(rendered("See [modes](modes.md), **now**.", 80)) == ["See modes (spl help modes), now."]


def test_topics_are_listed(spl: Run) -> None:
    assert [line.split()[0] for line in spl("help", "topics").out.splitlines()] == list(TOPICS)
    listed = spl("help").out.split()
    assert all(topic in listed for topic in TOPICS)


def test_no_topic_hides_a_command_or_a_code(spl: Run) -> None:
    assert set(TOPICS) & set(PLACES) == BOTH
    assert not set(TOPICS) & set(CODES)
    assert "spl consent --help" in spl("help", "consent", tty=True).err


def test_the_manual_is_read_from_a_zip_file_too(tmp_path: Path) -> None:
    packed = tmp_path / "spl.zip"
    with zipfile.ZipFile(packed, "w") as target:
        for path in (ROOT / "spl").rglob("*"):
            if path.suffix in (".py", ".md"):
                target.write(path, path.relative_to(ROOT))
    code = "import spl.cli.main as cli; assert 'spl.zip' in cli.__file__; raise SystemExit(cli.main(['help', 'pairs']))"
    env = {**os.environ, "PYTHONPATH": str(packed), "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout == page("pairs")
