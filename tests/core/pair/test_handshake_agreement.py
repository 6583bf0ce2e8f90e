"""What a handshake agrees on: never more than was asked for, than is usable, than somebody shared or named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core.errors import SplError
from spl.core.limits import Limits
from spl.core.pair import handshake
from spl.core.pair.handshake import Registry, Terms
from spl.core.pair.state import STARTS
from spl.core.record import namespace
from spl.core.record.namespace import REGISTRY_EMPTY

LIMITS = Limits(namespaces_per_pair=8)
NAMES = ("default", "music", "music/jazz", "org", "books")


def a_registry(*shared: str, private: tuple[str, ...] = (), archived: tuple[str, ...] = ()) -> Registry:
    registry = REGISTRY_EMPTY
    for name in (*shared, *private, *archived):
        body = {"kind": namespace.KIND_CREATE, "name": name, "shared": name in shared}
        registry = namespace.fold(registry, body)
    for name in archived:
        registry = namespace.fold(registry, {"kind": namespace.KIND_STATE, "name": name, "state": "archived"})
    return registry


def asked(*names: str, maps: tuple[tuple[str, str], ...] = ()) -> Terms:
    return Terms(names, maps, "polling", "")


def propose(registry: Registry, *named: str, maps: tuple[tuple[str, str], ...] = ()) -> Terms:
    return handshake.propose(registry, named, maps, mode="polling", start="", starts=("", *STARTS), limits=LIMITS)


def code_and_hint(call: object) -> tuple[str, str]:
    with pytest.raises(SplError) as caught:
        call()  # type: ignore[operator]
    return caught.value.code, caught.value.hint


def test_unnamed_the_initiator_proposes_default_and_all_that_it_shares() -> None:
    registry = a_registry("music", "org", private=("diary",), archived=("old",))
    assert propose(registry).namespaces == ("default", "music", "org")
    assert propose(registry, "diary").namespaces == ("diary",)
    assert propose(a_registry("org", "music")).namespaces == ("default", "music", "org"), "whatever came first"
    many = a_registry(*(f"n{i}" for i in range(20)))
    assert len(propose(many).namespaces) == 8
    assert propose(many).namespaces[0] == "default"


def test_the_initiators_own_names_must_be_usable() -> None:
    registry = a_registry(archived=("old",))
    assert code_and_hint(lambda: propose(registry, "nowhere")) == ("namespace-rejected", "spl namespace create nowhere")
    assert code_and_hint(lambda: propose(registry, "old")) == ("namespace-rejected", "spl namespace create old")
    assert code_and_hint(lambda: propose(registry, maps=(("old", "x"),)))[0] == "namespace-rejected"


@pytest.mark.parametrize(("named", "maps"), [
    (("music",), (("music", "projects/music"),)), (("default", "music"), (("org", "music"),)),
    ((), (("music", "music"),)), ((), (("music", "a"), ("music", "b"))), ((), (("music", "a"), ("org", "a"))),
    ((), (("default", "x"),)),
])  # fmt: skip
def test_a_name_is_shared_or_crosses_once(named: tuple[str, ...], maps: tuple[tuple[str, str], ...]) -> None:
    registry = a_registry(private=("music", "org"))
    assert code_and_hint(lambda: propose(registry, *named, maps=maps))[0] == "bad-field"


def test_the_name_that_is_both_shared_and_mapped_is_the_one_named() -> None:
    registry = a_registry(private=("music", "org"))
    for local, peer, name in (("music", "a", "music"), ("org", "music", "music"), ("org", "default", "default")):
        with pytest.raises(SplError, match=f"namespace {name} is both"):
            propose(registry, "default", "music", maps=((local, peer),))
    with pytest.raises(SplError, match="at least one namespace: name it by --namespace"):
        propose(registry, maps=(("default", "x"),))


def test_a_map_to_itself_names_the_option_that_is_meant() -> None:
    registry = a_registry(private=("music",))
    assert "--namespace music" in code_and_hint(lambda: propose(registry, maps=(("music", "music"),)))[1]


def test_what_is_mapped_is_not_proposed_under_its_own_name_as_well() -> None:
    registry = a_registry("music", "org")
    assert propose(registry, maps=(("music", "org"),)).namespaces == ("default",)


def test_what_is_left_out_says_why_and_how_to_let_it_in() -> None:
    registry = a_registry("music", private=("diary",), archived=("old",))
    terms = asked("default", "music", "diary", "old", "nowhere", "no/where", maps=(("a", "music"), ("b", "gone")))
    weighed = handshake.weigh(terms, registry)
    assert weighed.namespaces == ("default", "music")
    assert weighed.left_out == (
        ("diary", "private"), ("old", "archived"), ("nowhere", "missing"), ("no/where", "missing"),
    )  # fmt: skip
    assert weighed.unmapped == ("gone",)
    assert handshake.fix_of(registry, "music/new") == "spl namespace create --shared music/new"
    assert [handshake.fix_of(registry, name) for name, _ in weighed.left_out] == [
        "spl namespace share diary", "spl namespace create --shared old", "spl namespace create --shared nowhere",
        "spl namespace create no",
    ]  # fmt: skip


def test_a_named_one_must_be_asked_for_and_usable() -> None:
    registry = a_registry("music", private=("diary",), archived=("old",))
    terms = asked("default", "diary", "old")
    assert handshake.agree(terms, registry).namespaces == ("default",)
    assert handshake.agree(terms, registry, named=("diary", "diary")).namespaces == ("diary",)
    assert code_and_hint(lambda: handshake.agree(terms, registry, named=("music",)))[0] == "bad-field"
    assert code_and_hint(lambda: handshake.agree(terms, registry, named=("old",)))[0] == "namespace-rejected"


def test_what_cannot_be_agreed_on_names_the_first_fix() -> None:
    registry = a_registry("music")
    nothing = "namespace-rejected", "spl namespace create --shared nowhere"
    assert code_and_hint(lambda: handshake.agree(asked("nowhere", "nobody"), registry)) == nothing
    leads = asked("music", maps=(("a", "gone"), ("b", "lost")))
    assert code_and_hint(lambda: handshake.agree(leads, registry)) == (
        "namespace-rejected", "spl namespace create gone; or approve --without-maps",
    )  # fmt: skip
    assert handshake.agree(leads, registry, maps=False) == asked("music")
    crossing = asked("default", maps=(("a", "music"),))
    assert handshake.agree(crossing, registry) == crossing


some_names = st.lists(st.sampled_from(NAMES), max_size=5, unique=True).map(tuple)
registries = st.tuples(some_names, some_names, some_names).map(
    lambda kinds: a_registry(*kinds[0], private=kinds[1], archived=kinds[2])
)


@given(registries, some_names.filter(bool), some_names, some_names)
def test_no_agreement_holds_more_than_was_asked_for_and_usable_and_wanted_here(
    registry: Registry, names: tuple[str, ...], named: tuple[str, ...], ours: tuple[str, ...]
) -> None:
    terms = asked(*names)
    try:
        found = handshake.agree(terms, registry, named=named)
    except SplError as exc:
        assert exc.code in ("namespace-rejected", "bad-field")
    else:
        assert found.namespaces
        assert set(found.namespaces) <= set(names)
        assert terms.covers(found)
        assert all(namespace.is_usable(registry, name) for name in found.namespaces)
        assert all(registry[name].shared or name in named for name in found.namespaces)
        assert not named or set(found.namespaces) == set(named)
    both = handshake.common(terms, asked(*ours), registry)
    wanted = {name for name in names if name in ours and namespace.is_usable(registry, name)}
    assert (set(both.namespaces) if both else set()) == wanted
    assert (both is None) is (not wanted)


def test_a_crossing_that_we_did_not_ask_for_is_for_the_operator() -> None:
    registry = a_registry("music")
    crossing = asked("default", maps=(("a", "music"),))
    assert handshake.common(crossing, asked("default"), registry) is None
    assert handshake.common(crossing, asked("default", maps=(("a", "music"),)), registry) == crossing
    assert handshake.common(crossing, asked("default", maps=(("a", "music"),)), REGISTRY_EMPTY) is None
    assert handshake.common(asked("default"), crossing, registry) == asked("default")
