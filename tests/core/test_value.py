"""Dataclasses that take little memory behave as those of the standard library."""

import copy
import dataclasses
import pickle
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import pytest

from spl.core import value


class Spot(NamedTuple):
    """A tuple within a value."""

    x: int
    y: object


def classes(kit: Any) -> dict[str, Any]:
    """Return the same classes, made by one module or by the other."""
    # mypy takes no decorator that is a variable
    namespace: dict[str, Any] = {"kit": kit, "ClassVar": ClassVar, "__name__": __name__}
    exec(SOURCE, namespace)
    return {name: made for name, made in namespace.items() if isinstance(made, type)}


SOURCE = """
@kit.dataclass(frozen=True, slots=True)
class Plain:
    one: int
    two: str = "two"
    kind: ClassVar[str] = "k"

@kit.dataclass(frozen=True, slots=True)
class Child(Plain):
    two: str = "other"
    three: object = kit.field(default_factory=list, compare=False)
    kind: ClassVar[str] = "c"

@kit.dataclass(frozen=True, slots=True)
class Hidden:
    secret: bytes = kit.field(repr=False)
    seen: dict = kit.field(default_factory=dict, hash=False)
    kept: "int | None" = kit.field(default=None, compare=False, repr=False)

@kit.dataclass(frozen=True, slots=True)
class Empty:
    pass

@kit.dataclass(slots=True)
class Open:
    start: int
    made: list = kit.field(default_factory=list)
    end: int = kit.field(init=False)

    def __post_init__(self):
        self.end = self.start + 1

@kit.dataclass(frozen=True, kw_only=True)
class Named:
    last: int = 3
    first: int
    held: dict = kit.field(default_factory=dict)

@kit.dataclass(frozen=True, slots=True)
class Own:
    one: int
    def __repr__(self):
        return "mine"
    def __eq__(self, other):
        return True
    def __hash__(self):
        return 7
"""
OURS, STANDARD = classes(value), classes(dataclasses)
CALLS: tuple[tuple[str, tuple[object, ...], dict[str, object]], ...] = (
    ("Plain", (1,), {}), ("Plain", (1, "two"), {}), ("Plain", (2,), {"two": "x"}), ("Child", (1,), {}),
    ("Child", (1, "two", [2]), {}), ("Hidden", (b"s",), {}), ("Hidden", (b"s", {1: 2}, 5), {}), ("Empty", (), {}),
    ("Open", (4,), {}), ("Open", (4, [1]), {}), ("Named", (), {"first": 1}), ("Named", (), {"first": 1, "last": 2}),
    ("Own", (1,), {}), ("Own", (2,), {}),
)  # fmt: skip
REFUSED: tuple[tuple[str, tuple[object, ...], dict[str, object]], ...] = (
    ("Plain", (), {}), ("Plain", (1, 2, 3), {}), ("Plain", (1,), {"three": 3}), ("Named", (1,), {}),
    ("Empty", (1,), {}), ("Open", (1,), {"end": 3}),
)  # fmt: skip


def pairs() -> Iterator[tuple[Any, Any]]:
    """Yield each call's value as we make it and as the standard library does."""
    for name, args, named in CALLS:
        yield OURS[name](*args, **named), STANDARD[name](*args, **named)


def test_values_look_and_compare_as_those_of_the_standard_library() -> None:
    """Equal form, equal equality, hashes of the same and no others."""
    made = list(pairs())
    for ours, standard in made:
        assert repr(ours) == repr(standard)
        assert type(ours).__match_args__ == type(standard).__match_args__
        assert hasattr(ours, "__dict__") == hasattr(standard, "__dict__")
        assert (type(ours).__hash__ is None) == (type(standard).__hash__ is None)
        assert [ours == other for other, _ in made] == [standard == other for _, other in made]
        assert ours != standard or type(ours).__name__ == "Own"
    for ours, standard in made:
        assert _can_hash(ours) == _can_hash(standard)
        for other, _ in made:
            if type(ours) is type(other) and ours == other and type(ours).__name__ != "Own" and _can_hash(ours):
                assert hash(ours) == hash(other)


def _can_hash(found: object) -> bool:
    try:
        hash(found)
    except TypeError:
        return False
    return True


def test_wrong_arguments_are_refused() -> None:
    """Each call that the standard class refuses is refused, and the error names the class."""
    for name, args, named in REFUSED:
        for made in (OURS, STANDARD):
            with pytest.raises(TypeError, match=name):
                made[name](*args, **named)


def test_frozen_values_stay_as_they_are() -> None:
    """Nothing sets or deletes a field of a frozen value; an open one takes both."""
    for ours, _ in pairs():
        if type(ours).__name__ == "Open":
            ours.start = 9
            assert ours.start == 9
            continue
        for name in ("one", "first", "secret", "new"):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(ours, name, 1)
            with pytest.raises(dataclasses.FrozenInstanceError):
                delattr(ours, name)


def test_factories_make_a_new_value_each_time() -> None:
    """Two values never share what a factory made, and a default that could be shared is refused."""
    assert OURS["Open"](1).made is not OURS["Open"](1).made
    with pytest.raises(ValueError, match="default_factory"):
        value.dataclass(type("Shared", (), {"__annotations__": {"rows": list}, "rows": []}))


def test_replace_changes_what_it_is_given() -> None:
    """Ours and the standard one do the same, to both; the fields of `init=False` are computed again."""
    for name, args, named in CALLS:
        ours, standard = OURS[name](*args, **named), STANDARD[name](*args, **named)
        changes: dict[str, Any] = {"start": 7} if name == "Open" else {}
        expected = repr(dataclasses.replace(standard, **changes))
        assert repr(value.replace(ours, **changes)) == expected
        assert repr(dataclasses.replace(ours, **changes)) == expected
    assert value.replace(OURS["Plain"](1), one=3) == OURS["Plain"](3)
    with pytest.raises(TypeError):
        value.replace(OURS["Plain"](1), four=4)


def test_the_standard_library_takes_them_for_its_own() -> None:
    """`fields`, `asdict` and `is_dataclass` answer the same, and a standard class can be derived."""
    for ours, standard in pairs():
        assert dataclasses.is_dataclass(ours)
        seen = [[(f.name, f.init, f.repr, f.compare) for f in dataclasses.fields(each)] for each in (ours, standard)]
        assert seen[0] == seen[1]
        assert dataclasses.asdict(ours) == dataclasses.asdict(standard) == value.asdict(ours)
    base = OURS["Plain"]
    made = dataclasses.dataclass(frozen=True)(type("Derived", (base,), {"__annotations__": {"two": str}, "two": "z"}))
    assert made(5).two == "z"


def test_asdict_goes_into_what_holds_values() -> None:
    """Lists, tuples, named tuples and dicts."""
    plain, standard = OURS["Plain"](1), STANDARD["Plain"](1)
    ours = OURS["Child"](1, "x", [plain, (plain,), {"a": plain}, Spot(1, plain)])
    theirs = STANDARD["Child"](1, "x", [standard, (standard,), {"a": standard}, Spot(1, standard)])
    assert value.asdict(ours) == dataclasses.asdict(theirs)


def test_values_can_be_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """By copy, deepcopy and pickle, frozen ones too."""
    for ours, _ in pairs():
        monkeypatch.setitem(globals(), type(ours).__name__, type(ours))
        for again in (copy.copy(ours), copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            assert type(again) is type(ours)
            assert repr(again) == repr(ours)


def test_values_with_fields_match_patterns() -> None:
    """`match` takes a value apart by position."""
    match OURS["Plain"](1, "b"):
        case object(one=1, two=two):
            assert two == "b"
        case _:
            raise AssertionError
    assert OURS["Child"].kind == "c"
