"""Text becomes HTML in one place, and stays text there."""

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from spl.ui.markup import PLOT_HEIGHT, TEXT_CHARS_MAX, bars, joined, moment, tag, text


class Read(HTMLParser):
    """What a browser makes of it: elements with attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.said = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.said += data


@given(st.text(max_size=120), st.text(max_size=120))
def test_whatever_the_text_it_is_text(word: str, value: str) -> None:
    """No text makes an element, an attribute or an end."""
    read = Read(tag("p", word, tag("b", word), title=value, data_more_=value))
    assert [name for name, _ in read.elements] == ["p", "b"]
    assert read.elements[0][1].keys() == {"title", "data-more"}
    assert read.said == 2 * Read(text(word)).said
    assert "<" not in text(word) + text(value)


def test_a_hostile_name_is_shown_and_hides_nothing() -> None:
    read = Read(tag("p", "<img src=x onerror=alert(1)>‮gnp.exe" + "a" * 1000, class_='x" onclick="y'))
    assert read.elements == [("p", {"class": 'x" onclick="y'})]
    assert read.said.startswith("<img src=x onerror=alert(1)>\\u202egnp.exe")
    assert len(read.said) < TEXT_CHARS_MAX + 10
    assert read.said.endswith("…")


def test_markup_is_not_escaped_twice_and_none_is_nothing() -> None:
    assert joined(tag("b", "a&b"), None, "<", 3) == "<b>a&amp;b</b>&lt;3"
    assert tag("input", hidden=True, title=None, class_=False) == "<input hidden></input>"


def test_a_time_is_its_age() -> None:
    at = "2026-11-23T06:10:11.000Z"
    assert Read(moment(at, 1795414211000 + 125_000)).said == "2m ago"
    assert Read(moment(None, 0)).said == "never"


def test_a_plot_says_its_numbers_and_keeps_inside_its_box() -> None:
    """Each known value above zero has a bar, each unknown one a dot; zero has neither."""
    read = Read(bars([None, 0, 1, 10_000], "records behind"))
    names = [attributes.get("class") for _, attributes in read.elements]
    assert names == ["plotted", "plot", "axis", "bar", "hole", "sub"]
    assert read.said == "max 10,000"
    shown = dict(read.elements[1][1])
    assert shown["aria-label"] == "records behind, by the minute, last 4 minutes: at the end 10,000, at most 10,000"
    path = read.elements[3][1]["d"] or ""
    heights = [float(piece.split("h")[0]) for piece in path.split("v-")[1:]]
    assert heights == [1.5, PLOT_HEIGHT - 2]
    assert [attributes.get("class") for _, attributes in Read(bars([0, 0], "x")).elements] == [
        "plotted",
        "plot",
        "axis",
    ]
