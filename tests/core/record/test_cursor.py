"""A cursor says what it said, to its sealer alone, and never to another pair."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core.keys import aead_open, aead_seal
from spl.core.record import cursor as cursors
from spl.core.record.cursor import Cursor, CursorError, Lane, lane_key, open_, seal

KEY = bytes(range(32))
NONCE = bytes(24)
PAIR = "pair_a1b2c3d4"
NUMBERS = st.integers(0, 2**63 - 1)
LANES = st.lists(
    st.builds(Lane, st.binary(min_size=12, max_size=12).map(bytes.hex), NUMBERS, NUMBERS),
    max_size=cursors.LANES_MAX,
    unique_by=lambda lane: lane.key,
)
NAMES = st.text("0123456789abcdef", max_size=64)


@given(
    epoch=NAMES, run_seq=NUMBERS, run=NAMES, lanes=LANES, whole=st.booleans(), nonce=st.binary(min_size=24, max_size=24)
)
def test_what_is_sealed_is_what_opens(
    epoch: str, run_seq: int, run: str, lanes: list[Lane], whole: bool, nonce: bytes
) -> None:
    cursor = Cursor(epoch, run_seq, run, tuple(sorted(lanes, key=lambda lane: lane.key)), whole)
    text = seal(cursor, KEY, nonce, PAIR)
    assert open_(text, KEY, PAIR) == cursor
    assert len(text) <= cursors.TEXT_CHARS_MAX
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def test_equal_cursors_seal_to_equal_text_in_any_lane_order() -> None:
    one, two = Lane(lane_key("a"), 5, 2), Lane(lane_key("b"), 9, 4)
    assert seal(Cursor("e", 9, "r", (one, two)), KEY, NONCE, PAIR) == seal(
        Cursor("e", 9, "r", (two, one)), KEY, NONCE, PAIR
    )


def test_length_does_not_tell_positions() -> None:
    lengths = {
        len(seal(Cursor("e", seq, "r", (Lane(lane_key("a"), seq, seq),)), KEY, NONCE, PAIR))
        for seq in (0, 1, 255, 10**6, 2**62)
    }
    assert len(lengths) == 1


def test_cursor_is_bound_to_its_pair_and_key() -> None:
    text = seal(Cursor("e", 1, "r"), KEY, NONCE, PAIR)
    for key, pair in ((KEY, "pair_other000"), (bytes(32), PAIR)):
        with pytest.raises(CursorError) as caught:
            open_(text, key, pair)
        assert caught.value.code == "cursor-invalid"


@given(st.data())
def test_every_changed_byte_is_noticed(data: st.DataObject) -> None:
    text = seal(Cursor("epoch", 77, "run", (Lane(lane_key("default"), 77, 3),)), KEY, NONCE, PAIR)
    place = data.draw(st.integers(0, len(text) - 2))
    other = data.draw(st.sampled_from("ABCXYZabcxyz019-_").filter(lambda char: char != text[place]))
    with pytest.raises(CursorError):
        open_(text[:place] + other + text[place + 1 :], KEY, PAIR)


def sealed(packed: bytes) -> str:
    return base64.urlsafe_b64encode(aead_seal(KEY, NONCE, packed, PAIR.encode())).rstrip(b"=").decode()


def test_lengths_are_few_and_the_next_one_is_taken_only_where_it_must_be() -> None:
    """192 bytes hold 4 lanes and names of 67 digits; beyond 64 lanes with short names, multiples of 64."""

    def length(lanes: int, epoch: int, run: int) -> int:
        made = tuple(Lane(f"{n:024x}", n, n) for n in range(lanes))
        cursor = Cursor("e" * epoch, 1, "f" * run, made)
        text = seal(cursor, KEY, NONCE, PAIR)
        assert open_(text, KEY, PAIR) == cursor
        return len(text)

    def chars(packed: int) -> int:
        return -(-(packed + 40) * 4 // 3)

    assert (length(4, 33, 34), length(4, 34, 34)) == (chars(192), chars(384))
    assert (length(64, 122, 122), length(64, 128, 128)) == (chars(2112), chars(2112))


def test_a_cursor_may_have_as_many_characters_as_allowed() -> None:
    packed = base64.urlsafe_b64decode(seal(Cursor("e", 1, "r"), KEY, NONCE, PAIR) + "==")
    plain = aead_open(KEY, packed, PAIR.encode())
    assert plain is not None
    longest = sealed(plain.ljust(3032, b"\0"))
    assert len(longest) == cursors.TEXT_CHARS_MAX
    assert open_(longest, KEY, PAIR) == Cursor("e", 1, "r")
    for other in (sealed(plain.ljust(3033, b"\0")), sealed(b"\2" + plain[1:])):
        with pytest.raises(CursorError):
            open_(other, KEY, PAIR)


def test_a_lane_begins_at_nothing_and_is_found_by_its_key() -> None:
    one, two = Lane(lane_key("a")), Lane(lane_key("b"), 9, 4)
    assert (one.position, one.count) == (0, 0)
    cursor = Cursor("e", 9, "r", (one, two))
    assert cursor.by_key() == {one.key: one, two.key: two}
    assert cursor.whole is False
    assert lane_key("a") == lane_key("a", 0, "")


@pytest.mark.parametrize("text", ["\ud800", "", "x", "é" * 8, "A" * 5000, "AAAA", "===", "a b c d", "\n" * 40])
def test_hostile_text_is_refused(text: str) -> None:
    with pytest.raises(CursorError) as caught:
        open_(text, KEY, PAIR)
    assert caught.value.code == "cursor-invalid"


def test_no_other_characters_may_stand_between_those_of_a_cursor() -> None:
    text = seal(Cursor("e", 1, "r"), KEY, NONCE, PAIR)
    for more in ("!!!!", "\n\n\n\n", "    ", "===="):
        with pytest.raises(CursorError):
            open_(text[:8] + more + text[8:], KEY, PAIR)


@given(st.binary(max_size=200))
def test_sealed_nonsense_is_refused_not_crashed_on(packed: bytes) -> None:
    """Only our own key seals, yet an older or newer version's bytes may stand inside."""
    try:
        assert isinstance(open_(sealed(packed), KEY, PAIR), Cursor)
    except CursorError as exc:
        assert exc.code == "cursor-invalid"


def test_lane_keys_differ_by_each_part() -> None:
    keys = {lane_key("a"), lane_key("b"), lane_key("a", 1), lane_key("a", 0, "thread:x"), lane_key("a/0")}
    assert len(keys) == 5
