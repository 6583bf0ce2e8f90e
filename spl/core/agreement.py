"""Which namespaces a handshake agrees on: what one side proposes, and what the other takes of it.

The initiator proposes the namespaces that its operator named, or `default` and all that it marked as shared.  The
responder agrees to those of them that are usable and shared here too; a private one only where the approver names it,
or a rule of automatic approval does.  What is left out is left out silently: the answer says what is agreed, never why.
A map is a crossing between two names, so neither of them may be agreed under its own name as well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from . import namespace
from .handshake import HandshakeError, Terms, check_terms
from .limits import Limits
from .namespace import DEFAULT, Namespace, NamespaceError

PRIVATE: Final = "private"
MISSING: Final = "missing"
ARCHIVED: Final = "archived"

Registry = Mapping[str, Namespace]
Maps = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Weighed:
    """What a responder would agree to unasked; `left_out` are (namespace, why), `unmapped` our names of its maps."""

    namespaces: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    unmapped: tuple[str, ...]


def propose(
    registry: Registry,
    named: Sequence[str],
    maps: Maps,
    *,
    mode: str,
    start: str,
    starts: Sequence[str],
    limits: Limits,
) -> Terms:
    """Return the terms that an initiator asks for; without named namespaces, all that it shares and does not map.

    Raises NamespaceError "namespace-rejected" for one that is not usable here, "bad-field"; HandshakeError "bad-field"
    for a name that is both shared and mapped, or mapped to itself.
    """
    crossing = {name for both in maps for name in both}
    shared = [name for name in registry if namespace.shareable(registry, name) and name not in crossing]
    shared.sort(key=lambda name: (name != DEFAULT, name))
    fields = {
        "namespaces": list(named or shared[: limits.namespaces_per_pair]),
        "maps": [{"local": local, "peer": peer} for local, peer in maps],
        "mode": mode,
        "start": start,
    }
    if not fields["namespaces"]:
        raise HandshakeError(
            "bad-field", "beside its maps a pair shares at least one namespace: name it by --namespace"
        )
    terms = check_terms(fields, limits, starts=starts)
    for name in (*terms.namespaces, *(local for local, _ in terms.maps)):
        namespace.usable(registry, name)
    return terms


def weigh(asked: Terms, registry: Registry) -> Weighed:
    """Return what of an initiator's terms would be agreed to unasked, and what not."""
    taken = tuple(name for name in asked.namespaces if namespace.shareable(registry, name))
    left_out = tuple((name, _why(registry, name)) for name in asked.namespaces if name not in taken)
    return Weighed(taken, left_out, tuple(ours for _, ours in asked.maps if not namespace.is_usable(registry, ours)))


def agree(asked: Terms, registry: Registry, *, named: Sequence[str] = (), maps: bool = True) -> Terms:
    """Return the terms that the approver agrees to: exactly the named namespaces, or all that both sides share.

    Without `maps` the crossings are dropped.  Raises NamespaceError "namespace-rejected" for a named or a mapped one
    that is not usable here, and when nothing is left; HandshakeError "bad-field" for one that was not asked for.
    """
    for name in named:
        if name not in asked.namespaces:
            raise HandshakeError("bad-field", f"namespace {name[:80]} is not among those asked for")
        namespace.usable(registry, name)
    weighed = weigh(asked, registry)
    if maps and weighed.unmapped:
        try:
            namespace.usable(registry, weighed.unmapped[0])
        except NamespaceError as exc:
            hint = f"{exc.hint}, or approve --without-maps"
            raise NamespaceError(exc.code, f"a map leads here: {exc.message}", hint=hint) from exc
    taken = tuple(dict.fromkeys(named)) or weighed.namespaces
    if not taken:
        name, why = weighed.left_out[0]
        raise NamespaceError(
            "namespace-rejected",
            f"nothing that they ask for is shared here: {name} is {why}",
            hint=fix_of(registry, name),
        )
    return replace(asked, namespaces=taken, maps=asked.maps if maps else ())


def common(asked: Terms, ours: Terms, registry: Registry) -> Terms | None:
    """Return what of the peer's terms our own request, seen from the peer, asked for too; None where that is nothing.

    A crossing that we did not ask for is our operator's to decide, and with it the whole request.
    """
    names = tuple(name for name in asked.namespaces if name in ours.namespaces and namespace.is_usable(registry, name))
    usable = all(namespace.is_usable(registry, local) for _, local in asked.maps)
    if not names or not usable or not set(asked.maps) <= set(ours.maps):
        return None
    return replace(asked, namespaces=names)


def fix_of(registry: Registry, name: str) -> str:
    """Return the command that lets pairs agree on a namespace left out, or makes what is missing above it."""
    if namespace.is_usable(registry, name):
        return f"spl namespace share {name}"
    parent = name.rpartition("/")[0]
    try:
        return f"spl namespace create --shared {name}" if not parent or namespace.usable(registry, parent) else ""
    except NamespaceError as exc:
        return exc.hint


def _why(registry: Registry, name: str) -> str:
    """Return the word for why a namespace is not agreed on unasked."""
    if namespace.is_usable(registry, name):
        return PRIVATE
    return ARCHIVED if name in registry else MISSING
