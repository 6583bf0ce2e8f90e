"""`dataclass` as the standard library has it, at a fifth of the memory.

The standard one compiles six methods for each class; the product has some 240 classes, and an idle daemon held 2 MiB of
methods that nobody calls, besides what compiling them cost each start.  Here a class gets one method of its own,
`__init__`, and shares the others.  Type checkers see the standard one.  Of its options those exist that the product
uses; `dataclasses.replace`, `fields` and the rest of the standard library take these classes for its own.

Facts, status and findings pass between modules as such values.  `Json` is the one name of a JSON object that we make,
and stands at the edge alone: what `to_json` and `to_body` return, the fields of a message before they are signed, the
members of a log line, a row that a route answers or a command prints.

Rejected: named tuples (equal to any tuple, and iterable by accident), `__slots__` and `__init__` by hand.

The standard module itself, and what it loads, is imported when it is first needed: a daemon never does.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from operator import attrgetter
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any, ClassVar, Final, get_origin

__all__ = ["Json", "asdict", "dataclass", "field", "replace"]

Json = dict[str, object]
"""A JSON object on its way out: its keys are those of a wire form, a stored body or an answer."""

MISSING: Final[Any] = object()
"""Stands for a default that was not given."""


class Given:
    """What `field(...)` says of a field; as the default of a parameter it stands for a new value of its factory."""

    __slots__ = ("compare", "default", "default_factory", "hash", "init", "repr")

    def __init__(
        self, *, default: Any = MISSING, default_factory: Any = MISSING, init: bool = True, repr: bool = True,
        compare: bool = True, hash: bool | None = None,
    ) -> None:  # fmt: skip
        self.default, self.default_factory = default, default_factory
        self.init, self.repr, self.compare = init, repr, compare
        self.hash = compare if hash is None else hash


class _Standard:
    """The standard library's view of a class, made when it first asks; one serves all classes."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, value: object, cls: Any) -> Any:
        standard, get_annotations = import_module("dataclasses"), import_module("inspect").get_annotations
        types = {name: kind for base in reversed(cls.__mro__) for name, kind in get_annotations(base).items()}
        rows = []
        for name, given in cls.__given__.items():
            parts = {part: getattr(given, part) for part in Given.__slots__}
            parts = {part: value for part, value in parts.items() if value is not MISSING}
            rows.append((name, types.get(name, Any), standard.field(**parts)))
        frozen, kw_only = cls.__setattr__ is _refuse_set, not cls.__match_args__
        made = standard.make_dataclass(cls.__name__, rows, init=False, frozen=frozen, kw_only=kw_only)
        found = getattr(made, self._name)
        setattr(cls, self._name, found)
        return found


_STANDARD: Final = {name: _Standard(name) for name in ("__dataclass_fields__", "__dataclass_params__")}
_SET: Final = {"set_": object.__setattr__, "Given": Given}
"""What every `__init__` may name."""


def _eq(self: Any, other: Any) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    compared = self.__compared__
    return compared(self) == compared(other)


def _hash(self: Any) -> int:
    return hash(tuple(getattr(self, name) for name, given in self.__given__.items() if given.hash))


@recursive_repr()
def _repr(self: Any) -> str:
    shown = [f"{name}={getattr(self, name)!r}" for name, given in self.__given__.items() if given.repr]
    return f"{self.__class__.__qualname__}({', '.join(shown)})"


def _refuse_set(self: object, name: str, value: object) -> None:
    raise import_module("dataclasses").FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_delete(self: object, name: str) -> None:
    raise import_module("dataclasses").FrozenInstanceError(f"cannot delete field {name!r}")


def _getstate(self: Any) -> list[object]:
    return [getattr(self, name) for name in self.__given__]


def _setstate(self: Any, state: list[object]) -> None:
    for name, value in zip(self.__given__, state, strict=True):
        object.__setattr__(self, name, value)


def _lean(cls: Any = None, /, *, frozen: bool = False, slots: bool = False, kw_only: bool = False) -> Any:
    """Return the class with the methods of a value; equal if of one class and equal in each compared field."""
    if cls is None:
        return lambda cls: _lean(cls, frozen=frozen, slots=slots, kw_only=kw_only)
    types = {name: kind for name, kind in cls.__annotations__.items() if not _is_shared(kind)}
    inherited: Mapping[str, Given] = getattr(cls, "__given__", {})
    given = {**inherited, **{name: _given(cls.__dict__.get(name, MISSING)) for name in types}}
    names = tuple(name for name, each in given.items() if each.init)
    compared = [name for name, each in given.items() if each.compare]
    made: dict[str, Any] = {
        "__init__": _init_of(cls, given, frozen=frozen, kw_only=kw_only),
        "__given__": given,
        "__match_args__": () if kw_only else names,
        "__compared__": attrgetter(*compared) if compared else type,
        **_STANDARD,
    }
    made |= {"__setattr__": _refuse_set, "__delattr__": _refuse_delete} if frozen else {}
    made |= {"__getstate__": _getstate, "__setstate__": _setstate} if frozen and slots else {}
    shared = {"__repr__": _repr, "__eq__": _eq, "__hash__": _hash if frozen else None}
    own = {name for name in shared if cls.__dict__.get(name) is not None}
    made |= {name: method for name, method in shared.items() if name not in own}
    if slots:
        return _slotted(cls, made, types, tuple(name for name in types if name not in inherited))
    for name in types:
        if isinstance(cls.__dict__.get(name), Given):
            delattr(cls, name)
    for name, each in given.items():
        if each.default is not MISSING:
            made[name] = each.default
    for name, part in made.items():
        setattr(cls, name, part)
    return cls


def _slotted(cls: Any, made: dict[str, Any], types: Mapping[str, object], slots: tuple[str, ...]) -> Any:
    """Return the class made again with slots, which it cannot be given later."""
    left = {"__dict__", "__weakref__", *types}
    parts = {name: part for name, part in cls.__dict__.items() if name not in left}
    again = type(cls)(cls.__name__, cls.__bases__, {**parts, **made, "__slots__": slots})
    again.__qualname__ = cls.__qualname__
    return again


def _is_shared(kind: object) -> bool:
    """Return whether an annotation is that of a class variable."""
    return kind is ClassVar or get_origin(kind) is ClassVar or (isinstance(kind, str) and kind.startswith("ClassVar"))


_PLAIN: Final = Given()


def _given(default: Any) -> Given:
    """Return what a class body says of a field; one value serves all fields without a default."""
    found = default if isinstance(default, Given) else _PLAIN if default is MISSING else Given(default=default)
    if found.default is not MISSING and found.default.__class__.__hash__ is None:
        raise ValueError(f"{found.default!r} would be shared by all values: use default_factory")
    return found


def _init_of(cls: type, given: Mapping[str, Given], *, frozen: bool, kw_only: bool) -> Callable[..., None]:
    """Return `__init__`, compiled for its names; defaults are set afterwards, so that all share one namespace."""
    parameters, body, defaults = [], [], {}
    for name, each in given.items():
        value = name
        if each.default_factory is not MISSING:
            value = f"{name}.default_factory() if {name}.__class__ is Given else {name}"
            defaults[name] = each
        elif each.default is not MISSING:
            defaults[name] = each.default
        elif not each.init:
            continue
        if not each.init:
            raise TypeError(f"{name}: a field that is no parameter has no default here")
        parameters.append(f"{name}=0" if name in defaults else name)
        body.append(f" set_(self, {name!r}, {value})" if frozen else f" self.{name} = {value}")
    if hasattr(cls, "__post_init__"):
        body.append(" self.__post_init__()")
    made: dict[str, Any] = {}
    head = ", ".join(["self", *["*"][: kw_only and len(parameters)], *parameters])
    exec("\n".join([f"def __init__({head}):", *body, " pass"]), _SET, made)  # noqa: S102 - names of our own classes
    init: Any = made["__init__"]
    init.__qualname__ = f"{cls.__qualname__}.__init__"
    if kw_only:
        init.__kwdefaults__ = defaults or None
    else:
        init.__defaults__ = tuple(defaults.values()) or None
    return init  # type: ignore[no-any-return]


def _replace(value: Any, /, **changes: Any) -> Any:
    """Return a value of the same class with these fields changed."""
    for name, given in value.__given__.items():
        if name not in changes and given.init:
            changes[name] = getattr(value, name)
    return value.__class__(**changes)


def _asdict(value: Any) -> Any:
    """Return the fields by name; values within it likewise, also those in lists, tuples and dicts."""
    if hasattr(value, "__given__"):
        return {name: _asdict(getattr(value, name)) for name in value.__given__}
    if isinstance(value, list | tuple):
        items = map(_asdict, value)
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return {key: _asdict(item) for key, item in value.items()} if isinstance(value, dict) else value


if TYPE_CHECKING:
    from dataclasses import asdict, dataclass, field, replace
else:
    dataclass, field, replace, asdict = _lean, Given, _replace, _asdict
