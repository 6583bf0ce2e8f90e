"""Promises of the fingerprints: any two sets differ in exactly what is found, and no answer keeps the search going."""

import hashlib
import tracemalloc
from bisect import bisect_left, bisect_right
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spl.core.errors import SplError
from spl.core.record import fingerprint
from spl.core.record.fingerprint import (
    DEPTH,
    HELD,
    LISTED_MAX,
    RANGES_MAX,
    START_BYTES,
    Collector,
    FingerprintAnswer,
    FingerprintError,
    Question,
    RangeBuckets,
    RangePart,
    Search,
    answer_of,
    question_of,
)

KEY = "0123456789abcdef" * 2


class Side:
    """One set in memory, which answers as the product's side does over a log."""

    def __init__(self, names: set[bytes], key: str = KEY) -> None:
        self.names, self.buckets = sorted(names), RangeBuckets(key)
        self.buckets.add(names)

    def parts(self, ranges: tuple[str, ...], theirs: tuple[RangePart, ...] = ()) -> tuple[RangePart, ...]:
        return tuple(self.part(digits, theirs[at] if theirs else None) for at, digits in enumerate(ranges))

    def part(self, digits: str, like: RangePart | None) -> RangePart:
        few = len(digits) >= DEPTH or self.buckets.count(digits) <= LISTED_MAX
        if len(digits) < DEPTH and (not few if like is None else bool(like.sums)):
            return RangePart(self.buckets.sums(digits))
        found = Collector(self.buckets.key, digits, LISTED_MAX if like is None else 10**6)
        first = bisect_left(self.names, bytes.fromhex(digits.ljust(2 * START_BYTES, "0")))
        last = bisect_right(self.names, bytes.fromhex(digits.ljust(2 * START_BYTES, "f")))
        for each in self.names[first:last]:
            found.add(each)
        return found.part(sums=found.count > LISTED_MAX if like is None else bool(like.sums))


def search(ours: Side, theirs: Side, found_max: int = 10**6) -> tuple[Search, int]:
    """Return the search at its end, and the bytes that it took."""
    found, size = Search(found_max), 0
    while ranges := found.next():
        question = Question(KEY, {HELD: ranges})
        body = question.encode()
        answer = FingerprintAnswer({HELD: theirs.parts(question_of(body).ranges[HELD])}, {}, {}, ()).encode()
        size += len(body) + len(answer)
        parts = answer_of(answer, question).parts[HELD]
        found.take(ranges, parts, ours.parts(ranges, parts))
    return found, size


def name(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()[:START_BYTES]


NUMBERS = st.integers(0, 400)
NEAR = st.integers(0, 2**12).map(lambda number: bytes(START_BYTES - 2) + number.to_bytes(2))
"""Names that agree in all but their last digits, as nobody but an attacker makes them."""


@settings(deadline=None, max_examples=60)
@given(st.sets(NUMBERS), st.sets(NUMBERS), st.sets(NEAR, max_size=80), st.sets(NEAR, max_size=80))
@example(set(), set(range(400)), set(), set())
@example(set(), set(), set(), {bytes(START_BYTES - 1) + bytes([number]) for number in range(80)})
def test_any_two_sets_differ_in_exactly_what_is_found(
    ours: set[int], theirs: set[int], near_ours: set[bytes], near_theirs: set[bytes]
) -> None:
    one, two = set(map(name, ours)) | near_ours, set(map(name, theirs)) | near_theirs
    found, _ = search(Side(one), Side(two))
    assert (found.theirs, found.ours, found.more) == (two - one, one - two, False)


def test_the_cost_is_that_of_the_difference() -> None:
    names = set(map(name, range(100_000)))
    whole = Side(names)
    equal, none_bytes = search(whole, Side(names))
    assert (equal.theirs, equal.ours) == (set(), set())
    assert none_bytes < 400
    lost = set(Random(5).sample(sorted(names), 10))
    found, ten_bytes = search(Side(names - lost), whole)
    assert found.theirs == lost
    assert ten_bytes < 12 * 1024


def test_a_search_ends_at_its_limit_and_says_so() -> None:
    names = set(map(name, range(30_000)))
    found, _ = search(Side(set(map(name, range(4000)))), Side(names), found_max=100)
    assert found.more
    assert 100 <= len(found.theirs) < 10_000
    assert found.theirs <= names


def test_equal_sets_have_equal_fingerprints_in_any_order_and_under_one_key_only() -> None:
    names = [name(number) for number in range(3000)]
    one, two, other = RangeBuckets(KEY), RangeBuckets(KEY), RangeBuckets("f" * 32)
    one.add(names)
    two.add(reversed(names[:1000]))
    two.add(names[1000:])
    other.add(names)
    assert one.sums("") == two.sums("") != other.sums("")
    assert one.count("") == 3000
    assert sum(one.count(digit) for digit in "0123456789abcdef") == 3000


def test_sets_whose_sums_and_xors_agree_are_told_apart() -> None:
    """The attack on plain sums: a + d and b - d in the place of a and b."""
    a, b, d = 3 << 100, 3 << 90, 1 << 20
    one, two = {number.to_bytes(START_BYTES) for number in (a, b)}, {n.to_bytes(START_BYTES) for n in (a + d, b - d)}
    assert sum(map(int.from_bytes, one)) == sum(map(int.from_bytes, two))
    left, right = Collector(12345, "", 0), Collector(12345, "", 0)
    for at, bit in (one, left), (two, right):
        for each in at:
            bit.add(each)
    assert left.part(sums=True) != right.part(sums=True)


def test_the_modulus_is_prime() -> None:
    prime = fingerprint._PRIME
    odd, twos = prime - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 42):
        power = pow(base, odd, prime)
        seen = {power} | {power := power * power % prime for _ in range(twos)}
        assert power == 1 or prime - 1 in seen
        assert pow(base, prime - 1, prime) == 1


def test_a_peer_whose_sums_never_agree_is_found_out_at_the_last_digit() -> None:
    side, found, dice = Side(set(map(name, range(50)))), Search(10**6), Random(7)

    def ask_on() -> None:
        while ranges := found.next():
            parts = tuple(RangePart(dice.randbytes(128)) for _ in ranges)
            found.take(ranges, parts, side.parts(ranges, parts))

    with pytest.raises(FingerprintError, match="a single name") as caught:
        ask_on()
    assert caught.value.code == "answer-malformed"


def test_no_peer_is_asked_for_ever() -> None:
    """One that never agrees, and keeps us from getting deep, is left after so many ranges."""
    found, asked = Search(10**9, asked_max=5000), list[str]()

    def ask_on() -> None:
        while ranges := found.next():
            asked.extend(ranges)
            shallow = tuple(digits[:20] for digits in ranges)
            found.take(shallow, (RangePart(b"\x01" * 128),) * len(ranges), (RangePart(bytes(128)),) * len(ranges))

    with pytest.raises(FingerprintError, match="without end"):
        ask_on()
    assert len(asked) <= 5000 + RANGES_MAX


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{}", b'{"key":"12"}', b'{"key":"%s","more":1}' % KEY.encode(),
        b'{"key":"%s","ranges":{"all":[""]}}' % KEY.encode(), b'{"key":"%s","ranges":{"held":["x"]}}' % KEY.encode(),
        b'{"key":"%s","ranges":{"held":["%s0"]}}' % (KEY.encode(), KEY.encode()),
        b'{"key":"%s","ranges":{"held":"abc"}}' % KEY.encode(), b'{"key":"%s","ranges":["a"]}' % KEY.encode(),
        b'{"key":"%s","ranges":{"held":[%s]}}' % (KEY.encode(), b",".join([b'"a"'] * 257)),
        b'{"key":"%s","names":{"held":["abc"]}}' % KEY.encode(), b'{"key":"%s","have":{"a":"b"}}' % KEY.encode(),
        b'{"key":"%s","have":["a"]}' % KEY.encode(),
    ],
)  # fmt: skip
def test_a_malformed_question_is_refused(body: bytes) -> None:
    with pytest.raises(SplError) as caught:
        question_of(body)
    assert caught.value.code in ("bad-json", "bad-field")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{}", b'{"ranges":{"held":[]}}', b'{"ranges":{"held":["s"]}}', b'{"ranges":{"held":[7]}}',
        b'{"ranges":{"held":["x"]}}', b'{"ranges":{"held":["n!"]}}', b'{"ranges":{"held":["nAAAA"]}}',
        b'{"ranges":{"held":["n"]},"counts":{"held":{"a":-1}}}', b'{"ranges":{"held":["n"]},"counts":7}',
        b'{"ranges":{"held":["n"]},"lacking":["%s"]}' % (b"a" * 64),
        b'{"ranges":{"held":["n"]},"lacking":[7]}', b'{"ranges":{"held":["n"]},"lacking":[{}]}',
    ],
)  # fmt: skip
def test_a_malformed_answer_is_refused(body: bytes) -> None:
    question, found = Question(KEY, {HELD: ("",)}), Search(10)
    ranges = found.next()
    with pytest.raises(FingerprintError) as caught:
        found.take(ranges, answer_of(body, question).parts[HELD], (RangePart(),))
    assert caught.value.code == "answer-malformed"


def test_names_outside_the_range_asked_for_are_refused() -> None:
    found = Search(10)
    with pytest.raises(FingerprintError, match="outside"):
        found.take(("ff",), (RangePart(names=(bytes(START_BYTES),)),), (RangePart(),))


def test_an_answer_keeps_to_the_question() -> None:
    id_ = "ab" * 32
    question = Question(KEY, names={HELD: (id_[:32],)}, have={id_: "00"})
    whole = FingerprintAnswer({}, {}, {HELD: {id_[:32]: (id_, "default")}}, (id_,))
    assert answer_of(whole.encode(), question) == FingerprintAnswer(
        {}, {}, {HELD: {id_[:32]: (id_, "default")}}, (id_,)
    )
    for other in (Question(KEY, have={id_: "00"}, names={HELD: ("cd" * 16,)}),):
        with pytest.raises(FingerprintError):
            answer_of(whole.encode(), other)


def test_a_mark_needs_the_very_envelope_and_the_key() -> None:
    marks = {fingerprint.mark_of(key, envelope) for key in (KEY, "e" * 32) for envelope in (b"one", b"two")}
    assert len(marks) == 4
    assert fingerprint.is_key(KEY)
    assert not any(map(fingerprint.is_key, ("", KEY[1:], KEY.upper(), 7, None)))


def test_a_set_is_the_same_however_its_names_come_and_a_small_one_is_small() -> None:
    """Many names make lists of all buckets out of the few; one more than the bound does so between two parts."""
    names = [hashlib.sha256(bytes(2) + n.to_bytes(4)).digest()[:START_BYTES] for n in range(20_000)]
    many = RangeBuckets(KEY)
    many.add(names)
    tracemalloc.start()
    pieces = RangeBuckets(KEY)
    pieces.add(names[:50])
    assert tracemalloc.get_traced_memory()[1] < 40_000
    tracemalloc.stop()
    few = RangeBuckets(KEY)
    few.add(reversed(names[:50]))
    assert [few.sums(digits) for digits in ("", "0", "a1")] == [pieces.sums(digits) for digits in ("", "0", "a1")]
    for at in range(50, len(names), 999):
        pieces.add(names[at : at + 999])
    for digits in ("", "0", "7", "f", "a1", "0ff"):
        assert (many.sums(digits), many.count(digits)) == (pieces.sums(digits), pieces.count(digits))
