"""Consent: a fold that only rises, and two sides that agree on what crosses, never wider than both said."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spl.core import canon, consent
from spl.core.consent import ConsentError, Grant, Inbound, Outbound, PairGrants
from spl.core.errors import SplError
from spl.core.limits import Limits
from spl.core.pair.pair import Pair
from spl.core.record.namespace import Namespace
from tests.core.record.test_record import VALUES, code_of

LIMITS = Limits()
NAMES = ("default", "music", "x", "projects")
SPACES: Mapping[str, Namespace] = {name: Namespace(name) for name in (*NAMES, "projects/music")}
PAIR = "pair_00000001"


@dataclass(frozen=True)
class APair:
    """What consent reads of a pair."""

    pair_id: str = PAIR
    namespaces: tuple[str, ...] = ("default",)
    maps: tuple[tuple[str, str], ...] = ()
    peer_did: str = "did:bob"


def a_pair(*namespaces: str, maps: tuple[tuple[str, str], ...] = ()) -> Pair:
    return cast(Pair, APair(namespaces=namespaces or ("default",), maps=maps))


def record(grant: Grant, *, ours: bool = True, held: bool = True, pair_id: str = PAIR) -> dict[str, Any]:
    """Return the body of a record on th_consent."""
    kind = consent.KIND_GRANT if ours else consent.KIND_PEER_GRANT
    return {"kind": kind, **consent.grant_body(pair_id, grant, "2026-11-23T00:00:00.000Z", held=held)}


def folded(*bodies: Mapping[str, Any]) -> PairGrants:
    books: Mapping[str, PairGrants] = {}
    for body in bodies:
        books = consent.fold(books, body)
    return books.get(PAIR, PairGrants())


# -- the fold

GRANTS = st.builds(
    Grant, st.sampled_from(NAMES), st.sampled_from(NAMES), st.sampled_from([None, 0, 1, 2, 3]), st.integers(1, 5)
)


@given(st.lists(st.tuples(GRANTS, st.booleans()), max_size=12), st.randoms(use_true_random=False))
def test_the_newest_word_of_each_namespace_stands_whatever_the_order(words: list[Any], random: Any) -> None:
    unique = {(grant.namespace, grant.version, ours): record(grant, ours=ours) for grant, ours in words}
    bodies = list(unique.values())
    twice = bodies + bodies
    random.shuffle(twice)
    book = folded(*twice)
    assert book == folded(*bodies)
    for ours, held in ((True, book.ours), (False, book.theirs)):
        newest: dict[str, int] = {}
        for name, version, whose in unique:
            if whose is ours:
                newest[name] = max(version, newest.get(name, 0))
        assert {name: grant.version for name, grant in held.items()} == newest
    assert book.weight == sum(grant.version for grant in book.ours.values())
    assert book.weight_held == sum(grant.version for grant in book.theirs.values())


@given(st.dictionaries(st.sampled_from(["kind", "pair_id", "grant", "held"]), VALUES))
def test_no_body_makes_the_fold_raise(body: dict[str, Any]) -> None:
    books = {PAIR: PairGrants()}
    for kind in (consent.KIND_GRANT, consent.KIND_PEER_GRANT):
        assert consent.fold(books, {"pair_id": PAIR, **body, "kind": kind}) is books


def test_a_word_waits_until_the_peer_holds_that_very_one() -> None:
    first, second = Grant("music", "x", 1, 1), Grant("music", "x", 2, 2)
    book = folded(record(first, held=False))
    assert (book.waiting, dict(book.ours)) == ({"music"}, {"music": first})
    assert folded(record(first, held=False), record(first)).waiting == frozenset()
    late = folded(record(first, held=False), record(second, held=False), record(first))
    assert (late.waiting, late.ours["music"]) == ({"music"}, second), "that an older one arrived says nothing"
    assert folded(record(first), record(first, held=False)).waiting == frozenset()
    assert consent.acknowledged(late, {"music": 1}) == ()
    assert consent.acknowledged(late, {"music": 2}) == (second,)
    assert consent.acknowledged(late, {"music": "2"}) == consent.acknowledged(late, [2]) == ()
    assert consent.versions(late.ours) == {"music": 2}


def test_a_record_that_says_nothing_new_leaves_the_very_books_that_there_were() -> None:
    first = Grant("music", "x", 1, 1)
    for body, again in (
        (record(first, ours=False), record(first, ours=False)), (record(first), record(first)),
        (record(first, ours=False), record(Grant("music", "projects", 3, 1), ours=False)),
        (record(first, held=False), record(first, held=False)),
    ):  # fmt: skip
        books = consent.fold({}, body)
        assert consent.fold(books, again) is books


@pytest.mark.parametrize(
    "value",
    [
        7, {}, {"namespace": "a"}, {"namespace": "a", "maps": ["a", "b"], "level": "L1", "version": 1, "more": 1},
        {"namespace": "a", "maps": ["b", "a"], "level": "L1", "version": 1},
        {"namespace": "a", "maps": ["a"], "level": "L1", "version": 1},
        {"namespace": "a", "maps": ["a", "b", "c"], "level": "L1", "version": 1},
        {"namespace": "a", "maps": "ab", "level": "L1", "version": 1},
        {"namespace": "a", "maps": {"a": 1, "b": 2}, "level": "L1", "version": 1},
        {"namespace": "a", "maps": None, "level": "L1", "version": 1},
        {"namespace": "A", "maps": ["A", "b"], "level": "L1", "version": 1},
        {"namespace": "a", "maps": ["a", "../b"], "level": "L1", "version": 1},
        {"namespace": "a", "maps": ["a", "b"], "level": "L4", "version": 1},
        {"namespace": "a", "maps": ["a", "b"], "level": 1, "version": 1},
        {"namespace": "a", "maps": ["a", "b"], "level": "L1", "version": 0},
        {"namespace": "a", "maps": ["a", "b"], "level": "L1", "version": True},
        {"namespace": "a", "maps": ["a", "b"], "level": "L1", "version": 2**53 + 1},
        {"namespace": "a", "maps": ["a", "b"], "level": "L1", "version": 1.0},
    ],
)  # fmt: skip
def test_a_statement_of_another_form_is_refused(value: object) -> None:
    with pytest.raises(SplError) as caught:
        consent.read(value)
    assert code_of(caught) == "bad-field"


@given(GRANTS)
def test_a_statement_is_read_as_it_was_written(grant: Grant) -> None:
    for version in (grant.version, 1, 2**53):
        numbered = replace(grant, version=version)
        assert consent.read(numbered.to_json()) == numbered


def test_the_fold_takes_grants_of_a_pair_and_no_other_record() -> None:
    books: Mapping[str, PairGrants] = {}
    body = record(Grant("music", "x", 1, 1))
    for other in ({"kind": consent.KIND_SINK}, {"kind": None}, {"pair_id": 7}, {"pair_id": None}):
        assert consent.fold(books, {**body, **other}) is books
    assert list(consent.fold(books, body)) == [PAIR]


# -- what our operator says


def test_drafts_rise_and_are_refused_with_a_reason() -> None:
    pair, book = a_pair("default", "music"), folded(record(Grant("x", "y", 1, 4)))
    assert consent.draft(pair, book, "x", "z", 2, LIMITS) == Grant("x", "z", 2, 5)
    assert consent.draft(pair, book, "default", "default", None, LIMITS) == Grant("default", "default", None, 1)
    assert consent.draft(pair, book, "x", "default", 1, LIMITS).level == 1
    assert consent.draft(pair, book, "x", "y", None, LIMITS) == Grant("x", "y", None, 5)
    assert consent.draft(pair, book, "default", "default", 0, LIMITS) == Grant("default", "default", 0, 1)
    assert consent.draft(pair, book, "new", "new", 1, Limits(namespaces_per_pair=4)).version == 1
    few = Limits(namespaces_per_pair=3)
    for args, code in (
        (("default", "x", 1, LIMITS), "grant-conflict"), (("x", "default", 0, LIMITS), "grant-conflict"),
        (("new", "new", 1, few), "grant-conflict"), (("new", "new", None, LIMITS), "not-found"),
        (("Bad", "x", 1, LIMITS), "bad-field"), (("x", "a//b", 1, LIMITS), "bad-field"),
    ):  # fmt: skip
        with pytest.raises(SplError) as caught:
            consent.draft(pair, book, *args)
        assert code_of(caught) == code, args
    gone = folded(record(Grant("x", "y", None, 5)))
    with pytest.raises(ConsentError):
        consent.draft(pair, gone, "x", "y", None, LIMITS)


def test_all_statements_of_a_pair_fit_into_one_message() -> None:
    names = ["/".join(f"{n:02}" + "n" * 61 for _ in range(4)) for n in range(40)]
    book = folded(*(record(Grant(name, name, 1, 1)) for name in names))
    with pytest.raises(ConsentError) as caught:
        consent.draft(a_pair(), book, "x", "x", 1, LIMITS)
    assert code_of(caught) == "grant-conflict"
    few = folded(*(record(Grant(name, name, 1, 1)) for name in names[:19]))
    assert consent.draft(a_pair(), few, "x", "x", 1, LIMITS).version == 1


def test_all_statements_may_fill_their_message_to_the_last_byte() -> None:
    names = ["/".join(f"{n:02}" + "n" * 60 for _ in range(4)) for n in range(20)]
    book = folded(*(record(Grant(name, name, 1, 1)) for name in names))
    size = len(canon.encode(consent.statements([*book.ours.values(), Grant("x", "m", 1, 1)])))
    target = "m/" + "m" * 60 + "/" + "m" * 61
    assert size + len(target) - 1 == consent.STATEMENT_BYTES_MAX
    assert consent.draft(a_pair(), book, "x", target, 1, LIMITS).maps == target
    with pytest.raises(ConsentError):
        consent.draft(a_pair(), book, "x", f"{target}m", 1, LIMITS)


def test_the_usual_level() -> None:
    pair = a_pair("default")
    assert consent.usual_level(pair, "music", "music") == 0, "it joins those shared under their name"
    assert consent.usual_level(pair, "default", "default") == consent.usual_level(pair, "music", "x") == 1


# -- what the peer says


def test_news_is_what_rose_and_anything_older_is_stale() -> None:
    held, other = Grant("music", "x", 1, 2), Grant("x", "x", 3, 1)
    book = folded(record(held, ours=False))
    newer = Grant("music", "x", None, 3)
    assert consent.news(book, consent.statements([held]), LIMITS) == ()
    assert set(consent.news(book, consent.statements([newer, other]), LIMITS)) == {newer, other}
    for old in ([Grant("music", "x", 1, 1)], [Grant("music", "x", 2, 2)], [], [other]):
        with pytest.raises(ConsentError) as caught:
            consent.news(book, consent.statements(old), LIMITS)
        assert code_of(caught) == "consent-stale"
    many = [Grant(f"n{n}", "x", 1, 1).to_json() for n in range(65)]
    assert len(consent.news(PairGrants(), many[:64], LIMITS)) == 64
    for wrong in (None, {}, [held.to_json(), held.to_json()], [7], many):
        with pytest.raises(SplError) as caught:
            consent.news(book, wrong, LIMITS)
        assert code_of(caught) == "bad-field"


# -- both directions


def test_what_goes_out() -> None:
    grants = (
        Grant("music", "projects/music", 2, 1), Grant("x", "x", 0, 1), Grant("projects", "projects", None, 2),
        Grant("lost", "lost", 1, 1),
    )  # fmt: skip
    pair, book = a_pair("default"), folded(*map(record, grants))
    assert consent.outbound(pair, book, SPACES) == (
        Outbound("default", "default", 0),
        Outbound("music", "projects/music", 2),
        Outbound("x", "x", 1, wants_peer=True),
    )
    back = folded(*map(record, grants), record(Grant("x", "x", 0, 3), ours=False))
    assert Outbound("x", "x", 0) in consent.outbound(pair, back, SPACES)
    archived = {**SPACES, "music": Namespace("music", active=False), "projects": Namespace("projects", active=False)}
    assert [share.ns for share in consent.outbound(pair, book, archived)] == ["default", "x"]
    assert consent.inbound(a_pair("projects/music"), PairGrants(), archived) == {}, "its ancestor is archived"


def test_a_grant_only_lowers_what_was_agreed() -> None:
    for level, sent in ((0, 0), (1, 1), (3, 3)):
        book = folded(record(Grant("default", "default", level, 1)))
        assert consent.outbound(a_pair(), book, SPACES) == (Outbound("default", "default", sent),)
    assert consent.outbound(a_pair(), folded(record(Grant("default", "default", None, 1))), SPACES) == ()
    theirs = folded(record(Grant("default", "default", None, 1), ours=False))
    assert consent.inbound(a_pair(), theirs, SPACES) == {"default": Inbound("default", full=True)}


def test_where_both_grant_l0_the_peers_l1_comes_in_too() -> None:
    both = Grant("music", "x", 0, 1), Grant("x", "music", 0, 1)
    book = folded(record(both[0], held=False), record(both[1], ours=False))
    # The peer does not hold our word yet, and goes by its own alone: it sends at L1.
    assert consent.inbound(a_pair(), book, SPACES)["x"] == Inbound("music", full=True, level=1)
    coarser = folded(record(both[0]), record(Grant("x", "music", 2, 1), ours=False))
    assert consent.inbound(a_pair(), coarser, SPACES)["x"] == Inbound("music", full=False, level=2)


def test_what_waits_for_the_peer_goes_out_only_where_it_was_agreed_anyway() -> None:
    shared = (Outbound("default", "default", 0),)
    for grant, now, then in (
        (Grant("default", "default", 0, 2), shared, shared),
        (Grant("default", "default", 2, 2), (), (Outbound("default", "default", 2),)),
        (Grant("music", "x", 1, 1), shared, (*shared, Outbound("music", "x", 1))),
    ):
        assert consent.outbound(a_pair(), folded(record(grant, held=False)), SPACES) == now
        assert consent.outbound(a_pair(), folded(record(grant)), SPACES) == then


@pytest.mark.parametrize("back", [
    Grant("x", "music", 1, 1), Grant("x", "music", None, 1), Grant("x", "projects", 0, 1),
    Grant("default", "music", 0, 1),
])  # fmt: skip
def test_only_the_same_crossing_granted_back_in_full_makes_one_full(back: Grant) -> None:
    ours = record(Grant("music", "x", 0, 1))
    assert Outbound("music", "x", 1, wants_peer=True) in consent.outbound(
        a_pair("projects"), folded(ours, record(back, ours=False)), SPACES
    )
    both = folded(ours, record(Grant("x", "music", 0, 1), ours=False))
    assert Outbound("music", "x", 0) in consent.outbound(a_pair("projects"), both, SPACES)


def test_what_comes_in_full_has_a_place_here_whether_it_is_usable_or_not() -> None:
    books: Mapping[str, PairGrants] = {}
    for grant, ours in (
        (Grant("lost/a", "x", 0, 1), True), (Grant("x", "lost/a", 0, 1), False), (Grant("y", "b", 0, 1), False),
        (Grant("z", "c", 1, 1), False), (Grant("c", "z", 1, 1), True),
    ):  # fmt: skip
        books = consent.fold(books, record(grant, ours=ours))
    assert consent.crossings([a_pair("default")], books) == {
        ("did:bob", "default"): "default", ("did:bob", "x"): "lost/a"
    }  # fmt: skip
    assert consent.crossings([], books) == {}


def test_a_map_of_the_handshake_is_a_grant_of_each_side() -> None:
    pair = a_pair("default", maps=(("music", "x"),))
    book = consent.grants_of({}, pair)
    assert consent.outbound(pair, book, SPACES) == (Outbound("default", "default", 0), Outbound("music", "x", 1))
    assert consent.inbound(pair, book, SPACES)["x"] == Inbound("music", full=False, level=1)
    assert (consent.versions(book.ours), consent.versions(book.theirs)) == ({"music": 1}, {"x": 1})
    assert consent.draft(pair, book, "music", "x", 0, LIMITS).version == 2
    said = consent.fold({}, record(Grant("music", "x", None, 2)))
    assert [share.ns for share in consent.outbound(pair, consent.grants_of(said, pair), SPACES)] == ["default"]


@dataclass
class Side:
    """One instance: its book, and what its operator last said of each namespace."""

    book: PairGrants = field(default_factory=PairGrants)
    said: dict[str, Grant] = field(default_factory=dict)

    def take(self, *bodies: Mapping[str, Any]) -> None:
        for body in bodies:
            self.book = consent.fold({PAIR: self.book}, body)[PAIR]


OPS = st.lists(
    st.tuples(st.booleans(), st.sampled_from(["say", "hand over", "ack"]), st.sampled_from(NAMES),
              st.sampled_from(NAMES), st.sampled_from([None, 0, 1, 2, 3])),
    max_size=25,
)  # fmt: skip
MAPS = st.sampled_from([(), (("music", "x"),), (("x", "music"), ("music", "projects"))])


def turned(maps: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple((peer, local) for local, peer in maps)


def hand_over(one: Side, other: Side, pair: Pair) -> None:
    """Give the other side all statements of the first."""
    told = consent.statements(consent.grants_of({PAIR: one.book}, _seen(pair, False)).ours.values())
    for grant in consent.news(consent.grants_of({PAIR: other.book}, _seen(pair, True)), told, LIMITS):
        other.take(record(grant, ours=False))


def acknowledge(one: Side, other: Side, pair: Pair) -> None:
    """Tell the first side what the other holds of it."""
    held = consent.versions(consent.grants_of({PAIR: other.book}, _seen(pair, True)).theirs)
    one.take(*(record(grant) for grant in consent.acknowledged(one.book, held)))


def _seen(pair: Pair, other: bool) -> Pair:
    return a_pair(*pair.namespaces, maps=turned(pair.maps) if other else pair.maps)


@example([(True, "say", "music", "x", 0), (False, "say", "x", "music", 0)], ())
@given(OPS, MAPS)
def test_what_one_side_sends_is_what_the_other_accepts_and_both_said(ops: list[Any], maps: Any) -> None:
    """Words, hand-overs and acknowledgements in any order: nothing is sent that the peer does not yet know of."""
    pairs = (a_pair("default", maps=maps), a_pair("default", maps=turned(maps)))
    sides = (Side(), Side())
    for first, op, name, target, level in ops:
        one, other, pair = (sides[0], sides[1], pairs[0]) if first else (sides[1], sides[0], pairs[1])
        if op == "say":
            try:
                book = consent.grants_of({PAIR: one.book}, pair)
                grant = consent.draft(pair, book, name, target, level, LIMITS)
            except ConsentError:
                continue
            one.take(record(grant, held=False))
        elif op == "hand over":
            hand_over(one, other, pair)
        else:
            acknowledge(one, other, pair)
        for here, there in itertools.permutations((0, 1)):
            check(sides[here], sides[there], pairs[here], pairs[there], settled=False)
    for here, there in itertools.permutations((0, 1)):
        hand_over(sides[here], sides[there], pairs[here])
        acknowledge(sides[here], sides[there], pairs[here])
    for here, there in itertools.permutations((0, 1)):
        check(sides[here], sides[there], pairs[here], pairs[there], settled=True)


def check(source: Side, target: Side, pair: Pair, peer_pair: Pair, *, settled: bool) -> None:
    books = consent.grants_of({PAIR: source.book}, pair), consent.grants_of({PAIR: target.book}, peer_pair)
    shares = {share.ns: share for share in consent.outbound(pair, books[0], SPACES)}
    allowed = consent.inbound(peer_pair, books[1], SPACES)
    for name, share in shares.items():
        word, inlet = books[0].ours.get(name), allowed[name]
        assert word is not None or name in pair.namespaces
        assert word is None or word.level is not None, "a withdrawal holds at once"
        assert word is None or share.level >= word.level, "never finer than our word"
        crosses = name not in pair.namespaces
        assert inlet.ns == share.peer_ns == (word.maps if crosses and word else name)
        if share.level == 0 and crosses:
            assert word is not None
            assert word.level == 0
        # The peer's own word counts at once there, so between the two it may accept something else.
        known = not crosses or books[0].theirs.get(share.peer_ns) == books[1].ours.get(share.peer_ns)
        if settled or known:
            assert inlet.full if share.level == 0 else inlet.level == share.level
    if settled:
        gives = {name: share.level for name, share in shares.items()}
        takes = {
            name: 0 if inlet.full else inlet.level
            for name, inlet in allowed.items() if name not in pair.namespaces
        }  # fmt: skip
        assert takes == {name: level for name, level in gives.items() if name not in pair.namespaces}
        both = {name for name, level in gives.items() if level == 0 and name not in pair.namespaces}
        for name in both:
            mine = books[0].ours[name]
            theirs = books[1].ours[mine.maps]
            assert (theirs.level, theirs.maps) == (0, name), "L0 across namespaces takes both"
