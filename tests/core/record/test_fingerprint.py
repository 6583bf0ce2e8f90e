"""Promises of the fingerprints: any two sets differ in exactly what is found, and no answer keeps the search going."""

import base64
import hashlib
import json
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
    Ranges,
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


def test_a_fingerprint_is_the_product_that_both_sides_compute() -> None:
    """Whatever makes them: key and name are added, and an empty part is one."""
    key, start = "0" * 30 + "10", bytes.fromhex("a1b2" + "c3" * 14)
    buckets = RangeBuckets(key)
    buckets.add([start])
    product = (16 + int.from_bytes(start)) % (2**128 + 51)
    parts = [(1).to_bytes(8)] * 16
    parts[0xA] = (product % 2**64).to_bytes(8)
    assert buckets.sums("") == b"".join(parts)
    found = Collector(buckets.key, "", 0)
    found.add(start)
    assert found.part(sums=True).sums == buckets.sums("")
    odd = Collector(buckets.key, "a1b2c", 0)
    last = bytes.fromhex("a1b2cf" + "c3" * 13)
    odd.add(last)
    product = (16 + int.from_bytes(last)) % (2**128 + 51)
    assert odd.part(sums=True).sums == (1).to_bytes(8) * 15 + (product % 2**64).to_bytes(8)


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


HEX = st.text("0123456789abcdef", max_size=4)
SETS = st.dictionaries(st.sampled_from(sorted(fingerprint.OPPOSITE)), st.lists(HEX, min_size=1, max_size=4).map(tuple))


@given(SETS, SETS, st.dictionaries(HEX, HEX, max_size=5))
def test_a_question_in_halves_asks_the_same(ranges: Ranges, names: Ranges, have: dict[str, str]) -> None:
    whole = Question(KEY, ranges, names, have)
    one, two = whole.halves()
    assert whole.size == sum(map(len, (*ranges.values(), *names.values()))) + len(have) == one.size + two.size
    for name in fingerprint.OPPOSITE:
        assert (*one.ranges.get(name, ()), *two.ranges.get(name, ())) == ranges.get(name, ())
        assert (*one.names.get(name, ()), *two.names.get(name, ())) == names.get(name, ())
    assert {**one.have, **two.have} == have
    assert one.key == two.key == KEY
    assert 0 <= one.size - two.size <= 3, "so each ends at a question of one"


def test_the_answers_to_the_halves_are_the_answer_to_the_question() -> None:
    a, b, c = (RangePart(names=(bytes([n]) * START_BYTES,)) for n in range(3))
    one = FingerprintAnswer({HELD: (a,)}, {HELD: {"x": 1}}, {HELD: {"0": ("a", "x")}}, ("1",))
    two = FingerprintAnswer({HELD: (b,), "shown": (c,)}, {HELD: {"y": 2}}, {"seen": {"1": ("b", "y")}}, ("2",))
    assert fingerprint.joined(one, two) == FingerprintAnswer(
        {HELD: (a, b), "shown": (c,)}, {HELD: {"x": 1, "y": 2}},
        {HELD: {"0": ("a", "x")}, "seen": {"1": ("b", "y")}}, ("1", "2"),
    )  # fmt: skip


def test_a_question_may_be_as_large_as_allowed_and_no_larger() -> None:
    name, ids = "a" * 32, [f"{n:064x}" for n in range(1001)]

    def asked(ranges: list[str], names: list[str], have: dict[str, object]) -> Question:
        value = {"key": KEY, "ranges": {HELD: ranges}, "names": {HELD: names}, "have": have}
        return question_of(json.dumps(value).encode())

    most = asked(["f" * 32] * 256, [name] * 1000, dict.fromkeys(ids[:1000], "0" * 32))
    assert most.size == 2256
    for more in (
        ([""] * 257, [], {}), ([], [name] * 1001, {}), ([], [], dict.fromkeys(ids, "")), (["f" * 33], [], {}),
        ([], ["f" * 31], {}), ([], ["f" * 33], {}), ([], [], {ids[0]: "0" * 33}), ([], [], {ids[0]: 7}),
        ([], [], {"x": ""}), (["F"], [], {}), ([7], [], {}),
    ):  # fmt: skip
        with pytest.raises(FingerprintError) as caught:
            asked(*more)  # type: ignore[arg-type]
        assert caught.value.code == "bad-field"


def test_an_answer_may_be_as_large_as_allowed_and_no_larger() -> None:
    id_, names = "ab" * 32, [name(n) for n in range(33)]
    question = Question(KEY, {HELD: ("",)}, have={id_: "00"})

    def read(text: object = "n", **members: object) -> FingerprintAnswer:
        return answer_of(json.dumps({"ranges": {HELD: [text]}, **members}).encode(), question)

    def listed(count: int, more: bytes = b"") -> str:
        return "n" + base64.b64encode(b"".join(names[:count]) + more).decode()

    assert read(listed(32)).parts[HELD] == (RangePart(names=tuple(names[:32])),)
    assert read("s" + base64.b64encode(bytes(128)).decode()).parts[HELD] == (RangePart(bytes(128)),)
    counts = {f"n{n}": 2**63 - 1 for n in range(1000)} | {"n0": 0}
    assert read(counts={HELD: counts}).counts == {HELD: counts}
    assert read(counts={HELD: {"n" * 300: 1}}).counts == {HELD: {"n" * 256: 1}}
    assert read(lacking=[id_]).lacking == (id_,)
    for text in (listed(33), listed(1, b"x"), "s" + base64.b64encode(bytes(127)).decode(), "", "s", None, ["n"], {}):
        with pytest.raises(FingerprintError):
            read(text)
    for lacking in ([id_, id_], [7], [None], [{}], ["x"], 7):
        with pytest.raises(FingerprintError):
            read(lacking=lacking)
    for wrong in ({"a": 2**63}, {"a": -1}, {"a": True}, {"a": "1"}, {**counts, "more": 1}, [], 7):
        with pytest.raises(FingerprintError):
            read(counts={HELD: wrong})
    for ranges in ([], ["n", "n"]):
        with pytest.raises(FingerprintError):
            answer_of(json.dumps({"ranges": {HELD: ranges}}).encode(), question)


def test_a_name_in_an_answer_is_a_whole_one_of_those_asked_for() -> None:
    id_ = "ab" * 32
    question = Question(KEY, names={HELD: (id_[:32],)})

    def read(start: str, value: object) -> FingerprintAnswer:
        return answer_of(json.dumps({"names": {HELD: {start: value}}}).encode(), question)

    assert read(id_[:32], [id_, "n" * 300]).names == {HELD: {id_[:32]: (id_, "n" * 256)}}
    for start, value in (
        (id_[:31], [id_, "a"]), (id_[:32], ["cd" * 32, "a"]), (id_[:32], [id_, 7]), (id_[:32], [id_[:63], "a"]),
        (id_[:32], [id_]), (id_[:32], 7), (id_[:32], [7, "a"]), (id_[:32], [id_, ["a"]]),
    ):  # fmt: skip
        with pytest.raises(FingerprintError):
            read(start, value)


def test_the_heads_of_a_range_are_the_first_bytes_of_its_names() -> None:
    buckets = RangeBuckets(KEY)
    buckets.add(bytes.fromhex(head).ljust(START_BYTES, b"x") for head in ("a1b2", "a1b2", "00ff", "a1c0"))
    assert buckets.heads("") == [bytes.fromhex(head) for head in ("00ff", "a1b2", "a1c0")]
    assert buckets.heads("a1") == [bytes.fromhex(head) for head in ("a1b2", "a1c0")]
    assert buckets.heads("a1b") == buckets.heads("a1b2") == buckets.heads("a1b277") == [bytes.fromhex("a1b2")]
    assert buckets.heads("b") == []
    assert (buckets.count("a1b2"), buckets.count("a1"), buckets.count("")) == (2, 3, 4)


def test_a_list_of_names_says_that_it_is_cut() -> None:
    for count, cut in ((1, False), (2, False), (3, True)):
        found = Collector(1, "", 2)
        for each in [name(n) for n in range(count)]:
            found.add(each)
        part = found.part(sums=False)
        assert (len(part.names), part.cut, found.count) == (min(count, 2), cut, count)
    whole = Collector(1, name(1).hex(), 2)
    for each in (name(1), name(2)):
        whole.add(each)
    assert whole.part(sums=False).names == (name(1),), "a range of all digits is one name"


def test_a_search_ends_after_as_many_ranges_as_allowed_and_before_a_name_is_split() -> None:
    sums = RangePart(b"\x01" * 128), RangePart(bytes(128))
    found = Search(10**6, asked_max=2)
    assert found.next() == ("",)
    found.take(("0", "1"), (sums[0],) * 2, (sums[0],) * 2)
    assert (found.next(), found.more) == ((), False)
    with pytest.raises(FingerprintError, match="without end"):
        found.take(("2",), sums[:1], sums[:1])
    found = Search(10**6)
    found.take(("f" * 31,), sums[:1], sums[1:])
    assert sorted(found.next(20)) == ["", *(f"{'f' * 31}{digit}" for digit in "0123456789abcdef")]
    with pytest.raises(FingerprintError, match="a single name"):
        found.take(("f" * 32,), sums[:1], sums[1:])


def test_a_search_that_found_enough_says_whether_there_is_more() -> None:
    sums = RangePart(b"\x01" * 128), RangePart(bytes(128))
    for found_max, more in ((1, True), (2, True), (3, False)):
        found = Search(found_max)
        theirs, ours = (RangePart(names=(bytes([n]) + bytes(15),)) for n in (0, 1))
        found.take(("f", "0"), (sums[0], theirs), (sums[1], ours))
        assert (found.theirs, found.ours) == (set(theirs.names), set(ours.names))
        assert (found.more, bool(found.next())) == (more, not more)
    found = Search(1)
    assert found.next() == ("",)
    found.take(("",), (RangePart(names=(bytes(16),)),), (RangePart(),))
    assert not found.more, "nothing is left open"
    found.take(("0",), (RangePart(),), (RangePart(cut=True),))
    assert found.more, "our own list was cut"
    found.take(("1",), (RangePart(),), (RangePart(),))
    assert found.more, "and so it is, whatever follows"


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
