"""Namespaces: their names, their ancestors, and the registry as a fold.

A name has up to four segments of [a-z0-9][a-z0-9_-]*, 63 characters each, joined by "/".  A namespace is usable while
it and all above it are active; `default` always is.  The registry is a fold over `th_namespace_registry`.
"""

import re
from collections.abc import Mapping
from typing import Final

from ..errors import SplError
from ..value import dataclass, replace

DEFAULT: Final = "default"
SEGMENTS_MAX: Final = 4
"""Part of the form of a name."""
KIND_CREATE: Final = "syncropel.namespace.create.v1"
KIND_STATE: Final = "syncropel.namespace.state.v1"
KIND_SHARE: Final = "syncropel.namespace.share.v1"
KIND_DELETE: Final = "syncropel.namespace.delete.v1"
ACTIVE: Final = "active"
ARCHIVED: Final = "archived"

_SEGMENT: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")


class NamespaceError(SplError):
    """The name is malformed, or no usable namespace has it."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """One registered namespace; `shared`: pairs include it by default."""

    name: str
    active: bool = True
    shared: bool = False

    @property
    def state(self) -> str:
        """ "active" or "archived"."""
        return ACTIVE if self.active else ARCHIVED


REGISTRY_EMPTY: Final[Mapping[str, Namespace]] = {DEFAULT: Namespace(DEFAULT, shared=True)}


def check_name(name: object) -> str:
    """Return the name; raise NamespaceError "bad-field" if it is malformed."""
    segments = name.split("/") if isinstance(name, str) else []
    if not 1 <= len(segments) <= SEGMENTS_MAX or not all(_SEGMENT.match(part) for part in segments):
        raise NamespaceError(
            "bad-field", f"namespace {str(name)[:80]!r} is not up to {SEGMENTS_MAX} segments of a-z, 0-9, _ and -"
        )
    return str(name)


def usable(registry: Mapping[str, Namespace], name: str) -> str:
    """Return the name if it and all above it are active.

    Raises NamespaceError "namespace-rejected" naming the first ancestor that fails and the command that makes it.
    """
    if "/" not in name and (known := registry.get(name)) is not None and known.active:
        return name  # of most records
    segments = check_name(name).split("/")
    for depth in range(1, len(segments) + 1):
        ancestor = "/".join(segments[:depth])
        found = registry.get(ancestor)
        if found is None or not found.active:
            state = "does not exist" if found is None else "is archived"
            raise NamespaceError(
                "namespace-rejected", f"namespace {ancestor} {state}", hint=f"spl namespace create {ancestor}"
            )
    return name


def is_usable(registry: Mapping[str, Namespace], name: str) -> bool:
    """Return whether the namespace and all above it are active; False for a malformed name."""
    segments = name.split("/")
    above = (registry.get("/".join(segments[: depth + 1])) for depth in range(len(segments)))
    return all(found is not None and found.active for found in above)


def shareable(registry: Mapping[str, Namespace], name: str) -> bool:
    """Return whether pairs may agree on the namespace by default: it is shared, and usable."""
    return is_usable(registry, name) and registry[name].shared


def children(registry: Mapping[str, Namespace], name: str) -> list[Namespace]:
    """Return the namespaces below this one at any depth, by name."""
    return [registry[each] for each in sorted(registry) if each.startswith(f"{name}/")]


def fold(registry: Mapping[str, Namespace], body: Mapping[str, object]) -> Mapping[str, Namespace]:
    """Return the registry after one record body of `th_namespace_registry`; it skips unusable ones.

    `default` stays as it is, whatever a record says.
    """
    kind, name = body.get("kind"), body.get("name")
    if not isinstance(name, str) or name == DEFAULT:
        return registry
    found = registry.get(name)
    if kind == KIND_CREATE:
        return {**registry, name: Namespace(name, shared=body.get("shared") is True)}
    if found is None:
        return registry
    if kind == KIND_STATE and body.get("state") in (ACTIVE, ARCHIVED):
        return {**registry, name: replace(found, active=body["state"] == ACTIVE)}
    if kind == KIND_SHARE and isinstance(body.get("shared"), bool):
        return {**registry, name: replace(found, shared=body["shared"] is True)}
    if kind == KIND_DELETE:
        return {key: item for key, item in registry.items() if key != name}
    return registry
