"""The pages that users read: README, then the manual in the order of its topics."""

from collections.abc import Iterator
from pathlib import Path

from spl.cli.manual import TOPICS

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
MANUAL = ROOT / "spl" / "manual"
PAGES = (README, *(MANUAL / f"{topic}.md" for topic in TOPICS))


def text() -> str:
    """Return everything that the pages say."""
    return "".join(page.read_text() for page in PAGES)


def blocks(page: Path, language: str = "") -> Iterator[str]:
    """Yield the fenced blocks of a page that are marked as this language; unmarked ones are transcripts of a shell."""
    inside, lines = None, []
    for line in page.read_text().splitlines(keepends=True):
        if not line.startswith("```"):
            lines.append(line)
            continue
        if inside is None:
            inside = line[3:].strip()
        else:
            if inside == language:
                yield "".join(lines)
            inside = None
        lines = []
    assert inside is None, f"{page}: a fence is not closed"
