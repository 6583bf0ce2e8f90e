"""The grammar: what parses, and for all else the line and column of the fault."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spl.core.cel.grammar import NESTING_LEVELS_MAX, SOURCE_CHARS_MAX, ExprError, Node, parse

GOOD = [
    "true", " null ", "a", "a.b.c", 'a["b"][0]', "-1", "0x1F", "1.5e-3", "2e3", '"\\u00e9\\x41\\101\\n\\\\"',
    r"r'\d'", "[]", "[1,2]", "{}", '{"a":1,\'b\':[2]}', "!a", "!!a", "a==1", "a!=1", "a<1", "a<=1", "a>1", "a>=1",
    'a in ["x"]', "a && b && c", "a || b && c", "a ? b : c", "a ? b : c ? d : e", "size(a)", "a.size()", "has(a.b)",
    'a.startsWith("x")', 'a.endsWith(b)', 'a.contains("x")', "a.exists(x, x == 1)",
    "a.all(x, b.exists(y, x == y))", "(a)", "a\n&& b", "a.package", "_a1", "-9223372036854775808",
    "9223372036854775807", "'in' == '('", "a == '=='", "'\\U0010ffff'",
]  # fmt: skip
BAD = [
    ("", "1:1"), ("   ", "1:4"), ("a b", "1:3"), ("a ==", "1:5"), ("a = b", "1:3"), ("a & b", "1:3"), ("a +b", "1:3"),
    ("(a", "1:3"), ("a)", "1:2"), ("[1", "1:3"), ("[,]", "1:2"), ("[1,]", "1:4"), ("{1:2}", "1:2"),
    ('{"a" 1}', "1:6"), ('{"a":1,"a":2}', "1:1"), ('"x', "1:1"), ("'x\n'", "1:1"), ('"\\q"', "1:2"),
    ('"ab\\ud800"', "1:4"), ('"\\U00110000"', "1:2"), ("1u", "1:1"), ("1.", "1:1"), ("1e999", "1:1"),
    ("9223372036854775808", "1:1"), ("-9223372036854775809", "1:2"), ("- a", "1:3"), ("a.1", "1:3"), ("a.", "1:3"),
    ("a.true", "1:3"), ("a.in", "1:3"), ("٣", "1:1"), ("a.b(1)", "1:3"), ("f(a)", "1:1"), ("size()", "1:1"),
    ("size(a, b)", "1:1"),
    ("has(a)", "1:1"), ('has(a["b"])', "1:1"), ("a.size(1)", "1:3"), ("a.startsWith()", "1:3"),
    ('a.matches("^b")', "1:3"), ("a.exists(1, true)", "1:10"), ("a.exists(x)", "1:11"),
    ("a.all(true, true)", "1:7"), ("as", "1:1"), ("a.exists(in, true)", "1:10"), ("a < b < c", "1:7"),
    ("a == b in c", "1:8"), ("a ? b", "1:6"), ("a &&\n  && b", "2:3"), ("é", "1:1"), ("a // b", "1:3"),
    ('b"x"', "1:2"), ("a\x00", "1:2"), ("!", "1:2"),
]  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_the_language_parses(text: str) -> None:
    assert parse(text).text == text


@pytest.mark.parametrize(("text", "place"), BAD)
def test_a_fault_has_line_column_and_a_caret(text: str, place: str) -> None:
    with pytest.raises(ExprError) as caught:
        parse(text)
    assert caught.value.code == "rule-syntax"
    assert caught.value.facts["at"] == place
    assert caught.value.message.endswith(f"at {place}")
    caret, source = str(caught.value.facts["caret"]), str(caught.value.facts["source"])
    assert caret.strip() == "^"
    assert len(caret) == int(place.split(":")[1])
    assert source == text.split("\n")[int(place[0]) - 1].replace("\x00", " ")


def test_the_caret_of_a_long_line_stays_on_the_screen() -> None:
    with pytest.raises(ExprError) as caught:
        parse("a == " + '"x" + ' * 200)
    with pytest.raises(ExprError) as far:
        parse("a || " * 300 + "=")
    for exc in (caught.value, far.value):
        assert len(str(exc.facts["source"])) <= 72
        assert len(str(exc.facts["caret"])) <= len(str(exc.facts["source"])) + 1
    assert str(far.value.facts["source"])[len(str(far.value.facts["caret"])) - 1] == "="


@pytest.mark.parametrize(("text", "said"), [
    ('"x', "no closing quote"), ("'x", "no closing quote"), ("1u", "numbers are written"), ("a = b", "single = is no"),
    ("a & b", "write &&"), ("a | b", "write ||"), ("é", "'é' is not part"), ("٣", "'٣' is not part"),
    ("a;", "';' is not part"), ("", "a value is missing"), ("a == )", "')' begins no value"), ("(a", "')' is missing"),
    ("(a]", "')' is missing before ']'"), ("a b", "'b' does not belong here"),
])  # fmt: skip
def test_a_fault_says_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(ExprError) as caught:
        parse(text)
    assert said in caught.value.message


def test_the_place_of_a_fault_is_in_the_middle_of_a_long_line_or_at_its_end() -> None:
    for before, after, column in ((20, 200, 20), (100, 200, 36), (100, 36, 36), (100, 20, 51), (10, 10, 10)):
        text = "a" * before + "%" + "b" * after
        with pytest.raises(ExprError) as caught:
            parse(text)
        source, caret = str(caught.value.facts["source"]), str(caught.value.facts["caret"])
        assert (source[column], caret) == ("%", " " * column + "^"), (before, after)
        assert len(source) == min(72, len(text))


def test_numbers_and_texts_have_the_value_that_is_written() -> None:
    for text, value in (
        ("0x1F", 31), ("-7", -7), ("007", 7), ("1.5e-3", 0.0015), ("2E3", 2000.0), ("-0x10", -16), ("-1.5", -1.5),
        (r"r'\d\'", "\\d\\"), (r"R'x'", "x"), (r"'\101\x41\u0041\U00000041'", "AAAA"), (r"'\n\t\\\'\?'", "\n\t\\'?"),
        (r"'\U0010ffff'", "\U0010ffff"), (r"'\377'", "\xff"), ("''", ""),
    ):  # fmt: skip
        assert parse(text).root.value == value


def test_a_tree_may_have_as_many_levels_as_allowed() -> None:
    assert parse("!" * (NESTING_LEVELS_MAX - 1) + "a").root.kind == "not"
    with pytest.raises(ExprError, match="nested deeper"):
        parse("!" * NESTING_LEVELS_MAX + "a")


@pytest.mark.parametrize("text", [
    "(" * 40 + "a" + ")" * 40, "!" * 40 + "a", "[" * 40 + "]" * 40, "a" + ".b" * 40, "a" + "[0]" * 40,
    "size(" * 40 + "a" + ")" * 40, "a ? b : " * 40 + "c", "a" + ".exists(x, x" * 40 + ")" * 40,
    "[" + "1," * 1000 + "(" * 1000, '{"a":' * 40 + "1" + "}" * 40,
    "(" * 2000, "!" * 4000 + "a", "[" * 4096, "a[" * 2000,
])  # fmt: skip
def test_nesting_is_bounded(text: str) -> None:
    with pytest.raises(ExprError) as caught:
        parse(text)
    assert "nested deeper" in caught.value.message


def test_long_rows_are_not_deep_and_length_is_bounded() -> None:
    parse(" || ".join(["a"] * 700))
    parse(" && ".join(["!a"] * 500))
    parse("[" + ",".join(["1"] * 2000) + "]")
    parse("(" * (NESTING_LEVELS_MAX - 1) + "a" + ")" * (NESTING_LEVELS_MAX - 1))
    parse("a" + " " * (SOURCE_CHARS_MAX - 1))
    with pytest.raises(ExprError, match="at most 4096"):
        parse("a" * (SOURCE_CHARS_MAX + 1))


PIECES = st.sampled_from([
    "a", "b.c", "1", "-1", "1.5", "0x1F", "'x'", '"y"', r"r'\d'", "null", "true", "in", "has(", "size(", ".exists(",
    ".all(x,", "==", "!=", "<", ">=", "&&", "||", "!", "?", ":", "(", ")", "[", "]", "{", "}", ",", ".",
    "\\", "é", "\n", "=", "'z",
])  # fmt: skip


@given(st.lists(PIECES, max_size=30).map(" ".join) | st.text(max_size=60))
@example("a.exists(x, a.exists(x, x")
def test_any_text_parses_or_is_refused_in_form(text: str) -> None:
    """Never another error, never a fault outside the text."""
    try:
        expr = parse(text)
    except ExprError as exc:
        assert exc.code == "rule-syntax"
        line, column = map(int, str(exc.facts["at"]).split(":"))
        assert 1 <= line <= text.count("\n") + 1
        assert 1 <= column <= len(text) + 1
    else:
        assert parse(text) == expr


def test_names_are_those_that_no_macro_binds() -> None:
    expr = parse("a.exists(x, x == y && b.all(y, x == y)) || has(c.d) || x")
    assert expr.names == {"a", "b", "c", "x", "y"}
    assert parse("a.all(x, x)").names == {"a"}
    assert parse("x.all(x, x)").names == {"x"}
    assert parse('["a"].all(x, x == "a")').names == set()


def test_and_binds_tighter_than_or() -> None:
    expr = parse("a || b && !c == d")
    assert expr.root.kind == "||"
    assert [part.kind for part in expr.root.parts] == ["name", "&&"]
    assert expr.root.parts[1].parts[1].parts[0] == Node("not", 10, parts=(Node("name", 11, "c"),)), "! before =="


def test_matches_is_refused_with_what_to_write_instead() -> None:
    with pytest.raises(ExprError) as caught:
        parse('request.label.matches("^b")')
    assert "there is no function 'matches'" in caught.value.message
    assert "startsWith, endsWith or contains" in caught.value.hint
