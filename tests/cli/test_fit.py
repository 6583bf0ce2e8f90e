"""What a narrow terminal holds: promises of columns, of texts and of help pages, for any width."""

from hypothesis import given
from hypothesis import strategies as st

from spl.cli import fit
from spl.cli.fit import GAP

WIDTHS = st.dictionaries(st.sampled_from(["STATE", "ONE", "TWO", "PAIR ID", "BODY"]), st.integers(7, 90), min_size=1)


@given(widths=WIDTHS, keep=st.permutations(["STATE", "BODY"]), columns=st.integers(1, 200))
def test_columns_fit_and_go_by_worth(widths: dict[str, int], keep: list[str], columns: int) -> None:
    """None is wider than it needs, none that is cut is a state, and if one is cut no room is left over."""
    order = [*(title for title in keep if title in widths), *(title for title in widths if title not in keep)]
    room = fit.fitting(widths, [title for title in keep if title in widths], columns)
    assert list(room) == [title for title in widths if title in order[: len(room)]], (
        "the first by worth, in their order"
    )
    assert all(room[title] <= widths[title] for title in room)
    assert all(room[title] == widths[title] for title in room if title in fit.UNCUT)
    whole = sum(room.values(), len(GAP) * (len(room) - 1))
    assert whole <= columns or len(room) == 1
    if len(room) == len(widths) and any(room[title] < widths[title] for title in room):
        assert whole == columns or whole > columns - len(room) or len(room) == 1


@given(text=st.text(alphabet="ab -", max_size=200), first=st.integers(0, 30), columns=st.integers(20, 120))
def test_a_text_keeps_its_words_and_its_width(text: str, first: int, columns: int) -> None:
    """A line is wider than the terminal if it is one word, or if the terminal is narrower than any column of text."""
    lines = fit.wrapped(text, first, 18, columns)
    assert " ".join(lines).split() == text.split()
    most = max(columns, 18 + len(text) - len(text.lstrip()) + fit.CUT_CHARS)
    for line in [" " * first + lines[0], *lines[1:]]:
        assert len(line.rstrip()) <= most or len(line.split()) <= 1
    assert fit.wrapped(text, first, 18, None) == [text]


def test_a_command_stands_on_a_line_of_its_own() -> None:
    text = "diary, which is private: spl namespace share diary"
    assert fit.wrapped(text, 18, 18, 50) == ["diary, which is private:", " " * 18 + "spl namespace share diary"]
    assert fit.wrapped(text, 18, 18, 100) == [text]


def test_a_page_is_set_anew_where_it_is_too_wide_and_nowhere_else() -> None:
    text = (
        "usage: spl x [options]\n\nOne line of prose that was broken\nsomewhere by its author.\nAnd more.\n\n"
        "commands:\n  one    Does this and that, and what else there is.\n  three  Short.\n\n"
        "example:\n  spl x " + "y" * 60 + "\n"
    )
    assert list(fit.page(text, 100)) == text.removesuffix("\n").split("\n")
    assert list(fit.page(text, 40)) == [
        "usage: spl x [options]", "", "One line of prose that was broken", "somewhere by its author.", "And more.", "",
        "commands:", "  one    Does this and that, and what", "         else there is.", "  three  Short.", "",
        "example:", "  spl x " + "y" * 60,
    ]  # fmt: skip
    wide = "Prose of an author who broke it at a hundred\ncharacters or so.\nAnd more.\n"
    assert list(fit.page(wide, 40)) == ["Prose of an author who broke it at a", "hundred characters or so. And more."]


@given(text=st.text(alphabet="a\u5b57\u0301\uff21\u05d0", max_size=60), width=st.integers(2, 40))
def test_a_cell_is_cut_by_the_columns_that_it_takes(text: str, width: int) -> None:
    """A wide character takes two, an accent none; as much is kept as fits before the sign of the cut."""
    shown = fit.cut(text, width)
    assert fit.columns_of(shown) <= width
    if fit.columns_of(text) <= width:
        assert shown == text
    else:
        assert shown.endswith("…")
        assert text.startswith(shown[:-1])
        assert fit.columns_of(shown) >= width - 1
