"""Namespaces: their names, their ancestors, and the registry as a fold.

A name has up to four segments of [a-z0-9][a-z0-9_-]*, 63 characters each, joined by "/".  A namespace is usable while
it and all above it are active; `default` always is.  The registry is a fold over `th_namespace_registry`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from .errors import SplError

DEFAULT: Final = "default"
SEGMENTS_MAX: Final = 4
KIND_CREATE: Final = "syncropel.namespace.create.v1"
KIND_STATE: Final = "syncropel.namespace.state.v1"
KIND_SHARE: Final = "syncropel.namespace.share.v1"

_SEGMENT: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")


class NamespaceError(SplError):
    """The name is malformed, or no usable namespace has it."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """One registered namespace; `shared`: pairs may agree on it without being asked by name."""

    name: str
    active: bool = True
    shared: bool = False


REGISTRY_EMPTY: Final[Mapping[str, Namespace]] = {DEFAULT: Namespace(DEFAULT, shared=True)}


def check_name(name: object) -> str:
    """Return the name; raise NamespaceError "bad-field" when it is malformed."""
    segments = name.split("/") if isinstance(name, str) else []
    if not 1 <= len(segments) <= SEGMENTS_MAX or not all(_SEGMENT.match(part) for part in segments):
        raise NamespaceError(
            "bad-field", f"namespace {str(name)[:80]!r} is not up to {SEGMENTS_MAX} segments of a-z, 0-9, _ and -"
        )
    return str(name)


def usable(registry: Mapping[str, Namespace], name: str) -> str:
    """Return the name when it and all above it are active.

    Raises NamespaceError "namespace-rejected" naming the first ancestor that fails and the command that makes it.
    """
    segments = check_name(name).split("/")
    for depth in range(1, len(segments) + 1):
        ancestor = "/".join(segments[:depth])
        found = registry.get(ancestor)
        if found is None or not found.active:
            state = "does not exist" if found is None else "is not active"
            raise NamespaceError(
                "namespace-rejected", f"namespace {ancestor} {state}", hint=f"spl namespace create {ancestor}"
            )
    return name


def fold(registry: Mapping[str, Namespace], body: Mapping[str, object]) -> Mapping[str, Namespace]:
    """Return the registry after one record body of `th_namespace_registry`; what it cannot use it skips."""
    kind, name = body.get("kind"), body.get("name")
    if not isinstance(name, str):
        return registry
    found = registry.get(name)
    if kind == KIND_CREATE:
        return {**registry, name: Namespace(name, shared=body.get("shared") is True)}
    if found is None:
        return registry
    if kind == KIND_STATE and body.get("state") in ("active", "archived"):
        return {**registry, name: replace(found, active=body["state"] == "active")}
    if kind == KIND_SHARE and isinstance(body.get("shared"), bool):
        return {**registry, name: replace(found, shared=body["shared"] is True)}
    return registry
