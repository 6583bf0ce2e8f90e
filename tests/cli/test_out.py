"""What reaches stdout and stderr: safe for a terminal, whole for a pipe."""

import io
import json
import re

from hypothesis import given
from hypothesis import strategies as st

from spl.cli import out as o
from spl.cli.fit import size
from spl.cli.out import Out, clean, label_of, short_did
from spl.core.errors import SplError
from spl.core.when import ms_of
from tests.cli.conftest import ALICE, BOB, NOW, Stream

DRIVING = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\u3164\ufe00-\ufe0f\U000e0000-\U000e0fff]"
)


def an_out(
    *, tty: bool = False, form: str = "table", encoding: str = "utf-8", **env: str
) -> tuple[Out, Stream, Stream]:
    stdout, stderr = Stream(tty, encoding), Stream(tty, encoding)
    return Out(stdout, stderr, env, lambda: ms_of(NOW), form), stdout, stderr


UNSEEN = st.text(
    st.sampled_from("a\x1b\x07\n\x85\x9b\xad\u200b\u200d\u202e\u2028\u2066\ufeff\U000e0041\u3164\ufe0f\U000e0100")
)


@given(st.text() | UNSEEN)
def test_no_text_drives_a_terminal(text: str) -> None:
    out, stdout, stderr = an_out()
    out.line(text)
    out.table(("A", "B"), [(text, text)], below=[text])
    out.card([("label", text)]), out.row([("label", text)]), out.marked(text, o.RED, text)
    out.note(text), out.warn(text), out.progress(text), out.json_line(text)
    out.failure(SplError("usage", text, evidence=text))
    for shown in (stdout.text, stderr.text):
        assert not DRIVING.search(shown.replace("\n", ""))


@given(st.text() | UNSEEN)
def test_json_carries_every_text_unchanged(text: str) -> None:
    out, stdout, _ = an_out(form="json")
    assert out.data("s/1", [text], lambda: None)
    assert json.loads(stdout.text)["data"] == [text]
    assert "\x9b" not in stdout.text
    assert "\x1b" not in stdout.text


def test_clean_writes_controls_out() -> None:
    assert clean("a\x1b[2Jb\x9b\u202ec\n") == "a\\x1b[2Jb\\x9b\\u202ec\\x0a"
    assert clean("käse ✓") == "käse ✓"
    assert clean("a\u200b\ufeff\u2028b\U000e0041") == "a\\u200b\\ufeff\\u2028b\\U000e0041"


def test_a_narrow_terminal_loses_columns_from_the_right_and_never_wraps() -> None:
    rows = [("aaaa", "bbbbbb", "cc"), ("a", "b", "c")]
    for width, lines in (
        (14, ["ONE   TWO", "aaaa  bbbbbb", "a     b"]),
        (16, ["ONE   TWO     X", "aaaa  bbbbbb  cc", "a     b       c"]),
        (3, ["ONE", "aaaa", "a"]),
    ):
        out, stdout, _ = an_out(COLUMNS=str(width))
        out.table(("ONE", "TWO", "X"), rows)
        assert stdout.text.splitlines() == lines


def test_what_matters_stays_longest_on_a_narrow_terminal() -> None:
    """The state of a pair is dropped after everything else, and the words of a record are cut rather than dropped."""
    row = ("pair_1", "did:sync:instance:bob", "degraded", "polling")
    heads = {16: ["ID", "STATE"], 22: ["ID", "DID", "STATE"], 36: ["ID", "DID", "STATE", "MODE"]}
    for width, titles in heads.items():
        out, stdout, _ = an_out(COLUMNS=str(width))
        out.table(("ID", "DID", "STATE", "MODE"), [row], keep=("ID", "STATE", "DID"))
        assert stdout.text.splitlines()[0].split() == titles
        assert max(map(len, stdout.text.splitlines())) <= width
    out, stdout, _ = an_out(COLUMNS="24")
    out.table(("SEQ", "ACT", "BODY"), [("1", "KNOW", "the fence is up and painted")], keep=("SEQ", "BODY"))
    assert stdout.text.splitlines()[1] == "1    the fence is up an…"


def test_a_help_page_wraps_its_prose_and_never_its_example() -> None:
    text = "usage: x\n\n  a list " + "of many words " * 8 + "\n\nexample:\n  spl " + "word " * 20
    out, stdout, _ = an_out(COLUMNS="50")
    out.page(text)
    *prose, example = stdout.text.rstrip("\n").split("\n")
    assert max(map(len, prose)) <= 50
    assert example == "  spl " + "word " * 20
    out, stdout, _ = an_out()
    out.page(text)
    assert stdout.text == text + "\n"


def test_long_cells_are_cut_before_a_column_is_dropped() -> None:
    """What room there is goes to all of them, and none of it to blanks; states and ids stay whole."""
    rows = [("pair_a1b2c3d4", "x" * 30, "establishing, offline 2m", "y" * 15, "z" * 40)]
    titles = ("PAIR ID", "ONE", "STATE", "TWO", "THREE")
    for width, cut in ((200, 0), (120, 1), (100, 2)):
        out, stdout, _ = an_out(COLUMNS=str(width))
        out.table(titles, rows, keep=("PAIR ID", "STATE"))
        head, row = stdout.text.splitlines()
        assert head.split() == ["PAIR", "ID", "ONE", "STATE", "TWO", "THREE"]
        assert row.count("…") == cut
        assert len(row) == (width if cut else 130)
    out, stdout, _ = an_out(COLUMNS="20")
    out.table(titles, rows, keep=("STATE",))
    assert stdout.text.splitlines()[1] == "establishing, offline 2m", "a state is not cut"


def test_instances_are_labels_on_a_narrow_terminal() -> None:
    alike = "did:sync:instance:bob-0123456789abcdef01234567"
    for did, shown in (("did:sync:instance:bob", "bob"), (alike, "bob-0123456789abc…")):
        out, stdout, _ = an_out(COLUMNS="30")
        out.table(("ID", "PEER DID", "STATE"), [("x", did, "active")], keep=("ID", "STATE"))
        assert stdout.text.splitlines()[1].split() == ["x", shown, "active"]


def test_an_empty_table_prints_what_to_do_about_it() -> None:
    for tty in (True, False):
        out, stdout, stderr = an_out(tty=tty)
        out.table(("ONE",), [], none="nothing yet: spl know TEXT")
        assert (stdout.text, stderr.text) == ("", "nothing yet: spl know TEXT\n")


def test_a_card_goes_on_below_itself_and_keeps_words_and_commands_whole() -> None:
    out, stdout, _ = an_out(COLUMNS="40")
    out.card([
        ("state", "active since 2h ago, and well"), ("id", "a" * 30), ("fix", "spl federation refresh bob"),
        ("", "spl federation show bob bob"), ("at:", "one two three four five six seven"), ("value", "  x " * 9),
    ])  # fmt: skip
    assert stdout.text.splitlines() == [
        "state             active since 2h ago,", "                  and well",
        "id                " + "a" * 30,
        "fix               spl federation refresh bob", "                  spl federation show bob bob",
        "at: one two three four five six seven",
        "value               x   x   x   x   x", "                    x   x   x   x",
    ]  # fmt: skip
    out, stdout, _ = an_out(COLUMNS="40")
    out.marked("ok", o.GREEN, "clock      peer 0.0 s ahead (limit 30 s), and more")
    assert stdout.text.splitlines() == ["  ok  clock      peer 0.0 s ahead (limit", "                 30 s), and more"]


def test_colours_only_on_a_terminal_that_has_them_and_after_padding() -> None:
    row = ("x", "active", "end")
    for env, expected in (
        ({}, "x  \x1b[32mactive\x1b[0m    end"),
        ({"NO_COLOR": "1"}, "x  active    end"),
        ({"TERM": "dumb"}, "x  active    end"),
    ):
        out, stdout, _ = an_out(tty=True, COLUMNS="80", **env)
        out.table(("A", "STATE", "C"), [row, ("y", "degraded", "e")], {"STATE": o.state_paint})
        assert stdout.text.splitlines()[1] == expected
    out, stdout, _ = an_out()
    out.table(("A", "STATE", "C"), [row], {"STATE": o.state_paint})
    assert "\x1b" not in stdout.text


def test_marks_have_ascii_forms_where_utf8_is_missing() -> None:
    out, stdout, _ = an_out(encoding="ascii")
    out.line("✓ ✗ ! · → ü")
    assert stdout.text == "ok FAIL ! - -> ?\n"
    out, stdout, _ = an_out(encoding="latin-1")
    out.line("ü")
    assert stdout.text == "ü\n"


def test_an_error_is_what_evidence_why_fix_docs() -> None:
    out, stdout, stderr = an_out()
    out.failure(
        SplError(
            "manifest-signature",
            "it does not verify.",
            hint="on bob: spl identity generate",
            url="https://bob.example",
            why="the peer rotated",
            names=["a", "b"],
            left_ms=3,
        )
    )
    assert stdout.text == ""
    assert stderr.text == (
        "error: it does not verify [manifest-signature]\n"
        "  url       https://bob.example\n"
        "  names     a, b\n"
        "  left ms   3\n"
        "  why       the peer rotated\n"
        "  fix       on bob: spl identity generate\n"
        "  docs      spl help manifest-signature\n"
    )


def test_a_message_goes_on_below_itself_on_a_terminal_and_a_command_never() -> None:
    out, _, stderr = an_out(tty=True, COLUMNS="60")
    prose = "it takes no more records until the daemon restarts on a sound disk"
    out.failure(SplError("store-readonly", prose, hint="spl federation refresh PAIR --url http://192.168.1.20:9100/"))
    assert stderr.text == (
        "error: it takes no more records until the daemon restarts on\n"
        "  a sound disk [store-readonly]\n"
        "  why       A disk sync failed; nothing is acknowledged\n"
        "            until the daemon restarts on a sound disk.\n"
        "  fix       spl federation refresh PAIR --url http://192.168.1.20:9100/\n"
        "  docs      spl help store-readonly\n"
    )
    out, _, stderr = an_out(COLUMNS="60")
    out.warn(f"! {prose}")
    assert stderr.text == f"! {prose}\n"


def test_quiet_drops_talk_and_keeps_warnings_and_errors() -> None:
    out, _, stderr = an_out(tty=True, COLUMNS="80")
    out.quiet = True
    out.note("n"), out.hint("h"), out.detail("d"), out.progress("p"), out.warn("w"), out.failure(SplError("usage", "e"))
    assert stderr.text == "w\nerror: e [usage]\n"


def test_hints_go_to_people_only() -> None:
    out, _, stderr = an_out()
    out.hint("h"), out.note("n")
    assert stderr.text == "n\n"


def test_progress_is_redrawn_for_people_and_said_once_to_pipes() -> None:
    for tty, expected in ((False, "left 2\nnext\n"), (True, "\r\x1b[Kleft 2\r\x1b[Kleft 1\r\x1b[Knext\n")):
        out, _, stderr = an_out(tty=tty, COLUMNS="80")
        out.progress("left 2"), out.progress("left 1"), out.warn("next")
        out.end()
        assert stderr.text == expected


def test_a_result_erases_the_line_that_was_drawn_before_it() -> None:
    """Both streams are one terminal, where the result would otherwise go on after the state."""
    both = Stream(True)
    out = Out(both, both, {"COLUMNS": "80", "NO_COLOR": "1"}, lambda: ms_of(NOW))
    for show in (out.line, lambda text: out.table((text,), [("cell",)]), lambda text: out.marked("ok", o.GREEN, text)):
        both.seek(0), both.truncate()
        out.progress("waiting"), show("done")
        assert both.text.startswith("\r\x1b[Kwaiting\r\x1b[K"), both.text
        assert "done" in both.text


def test_a_state_that_takes_several_rows_is_erased_whole() -> None:
    """A terminal of 40 columns shows 90 characters on three rows, and the cursor stands on the last of them."""
    both = Stream(True)
    out = Out(both, both, {"COLUMNS": "40", "NO_COLOR": "1"}, lambda: ms_of(NOW))
    out.progress("a" * 90), out.progress("b" * 40), out.progress("c"), out.line("done")
    pieces = [f"\r\x1b[K{'a' * 90}", f"\x1b[2A\r\x1b[J{'b' * 40}", "\r\x1b[Kc", "\r\x1b[Kdone\n"]
    assert both.text == "".join(pieces)


def test_times_are_relative_to_people_and_exact_elsewhere() -> None:
    then, soon = "2026-11-23T05:59:58.000Z", "2026-11-23T06:03:10.000Z"
    people, pipe, wide = an_out(tty=True)[0], an_out()[0], an_out(tty=True, form="wide")[0]
    assert (people.ago(then), pipe.ago(then), wide.ago(then)) == ("2s ago", then, then)
    assert (people.ago(None), pipe.ago(None)) == ("never", "never")
    assert people.ago(soon) == "in 3m"
    assert (people.until(soon), pipe.until(soon), people.until(then)) == ("in 3m10s", f"at {soon}", "now")
    assert (people.left(soon), pipe.left(soon)) == ("3m left", f"until {soon}")
    assert people.left("2027-02-21T05:59:00.000Z") == "90d left", "of ninety days, a minute after"
    assert (people.left(then), pipe.left(then)) == ("EXPIRED", f"EXPIRED {then}")


def test_sizes() -> None:
    assert [size(n) for n in (0, 999, 41_200_000, 18_200_000_000, 999_999)] == [
        "0 B",
        "999 B",
        "41.2 MB",
        "18.2 GB",
        "1.0 MB",
    ]


def test_dids_are_short_to_people_where_no_two_look_alike() -> None:
    other = BOB[:-1] + "0"
    assert short_did(BOB) == "did:sync:instance:bob"
    assert label_of(BOB) == "bob"
    assert short_did("did:web:x-0123456789abcdef01234567") == "did:web:x-0123456789abcdef01234567"
    people, pipe = an_out(tty=True)[0], an_out()[0]
    assert people.dids([ALICE, BOB]) == {ALICE: "did:sync:instance:alice", BOB: "did:sync:instance:bob"}
    assert people.dids([BOB, other]) == {BOB: BOB, other: other}
    assert pipe.dids([ALICE]) == {ALICE: ALICE}


def test_a_row_that_is_too_long_becomes_a_card() -> None:
    for width, expected in (
        ("20", "id                i\nthread            tttttttttttttttttttt\n"),
        ("80", "i  tttttttttttttttttttt\n"),
    ):
        out, stdout, _ = an_out(COLUMNS=width)
        out.row([("id", "i"), ("thread", "t" * 20)])
        assert stdout.text == expected


def test_a_stream_without_a_width_counts_as_a_pipe() -> None:
    out = Out(io.StringIO(), io.StringIO(), {"COLUMNS": "+5"}, lambda: 0)
    assert out._columns is None
