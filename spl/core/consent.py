"""Consent: what each side of a pair agreed to share, of which namespace, under which name, at which hash level.

A *grant* is one side's statement on one of its namespaces: its name at the peer, and the hash level.  Versions only
rise, and a withdrawal is a version, so an old grant cannot be replayed.  Grants are records on `th_consent`: our own,
and the peer's as it handed them over; a `--map` agreed at the handshake counts as a grant at L1 of each side.

A grant of our operator takes effect at once on what we accept and on what we withhold.  What it opens or changes for
the peer takes effect when the peer holds our statement: before that, the peer would refuse the records, and they would
not be sent again.  So a grant is on `th_consent` twice: when it is made, and when the peer holds it (`held`).

    namespace            what goes to the peer
    agreed, no grant     everything (L0), under its own name
    agreed, with grant   what the grant says: it can only lower the level, or withdraw
    other, with grant    L1 to L3 as it says; L0 if the peer granted the same crossing back at L0, until then L1

`outbound` says what we may send, `inbound` what we accept; the filter at the source and the gate at the consumer use
nothing else.  Both require a usable local namespace, so an archived one is neither sent nor filled.

The grant report (`lines`, `agreed`) has a row for each grant: what it grants, what is in force, what is missing.
"""

from collections.abc import Iterable, Mapping
from itertools import accumulate
from types import MappingProxyType
from typing import Any, Final

from . import canon
from .errors import SplError
from .limits import KIB, Limits
from .pair.pair import Pair
from .record import namespace
from .record.levels import EXACT, NAMES, STRUCTURAL, level_of
from .record.namespace import Namespace
from .value import asdict, dataclass, field, replace

THREAD: Final = "th_consent"
KIND_GRANT: Final = "syncropel.consent.grant.v1"
KIND_PEER_GRANT: Final = "syncropel.consent.peer_grant.v1"
KIND_SINK: Final = "syncropel.consent.sink.v1"
"""A sink, which shares namespaces with the readers of what it fills; the newest record of a name counts."""
WITHDRAWN: Final = "none"
OUT: Final = "out"
IN: Final = "in"
MISSING: Final = "consent-missing"
UNMAPPED: Final = "namespace-unmapped"
STATEMENT_BYTES_MAX: Final = 16 * KIB
"""The size of all grants of one side in a message, beside a manifest."""

_VERSION_MAX: Final = 2**53
"""Up to here JSON numbers are exact in every language."""
_STATEMENT: Final = frozenset({"namespace", "maps", "level", "version"})


class ConsentError(SplError):
    """A grant that is malformed, out of date, or not for this pair."""


@dataclass(frozen=True, slots=True)
class Grant:
    """One side's statement on its own `namespace`: `maps` is the other side's name for it; level None: withdrawn."""

    namespace: str
    maps: str
    level: int | None
    version: int

    def to_json(self) -> dict[str, Any]:
        """Return {namespace, maps: [own, other's], level, version}."""
        maps = [self.namespace, self.maps]
        return {"namespace": self.namespace, "maps": maps, "level": level_name(self.level), "version": self.version}


GrantsByName = Mapping[str, Grant]
"""By the granting side's namespace."""


@dataclass(frozen=True, slots=True)
class PairGrants:
    """The grants of one pair, of both sides; `waiting`: those of ours that the peer does not hold yet."""

    ours: GrantsByName = field(default_factory=lambda: MappingProxyType({}))
    theirs: GrantsByName = field(default_factory=lambda: MappingProxyType({}))
    waiting: frozenset[str] = frozenset()

    @property
    def weight(self) -> int:
        """The sum of our versions: it rises with each grant, so a peer sees that it lacks one."""
        return sum(grant.version for grant in self.ours.values())

    @property
    def weight_held(self) -> int:
        """The sum of the peer's versions as we hold them."""
        return sum(grant.version for grant in self.theirs.values())


@dataclass(frozen=True, slots=True)
class Outbound:
    """What leaves one of our namespaces; `wants_peer`: at L0 as soon as the peer grants it back."""

    ns: str
    peer_ns: str
    level: int
    wants_peer: bool = False


@dataclass(frozen=True, slots=True)
class Inbound:
    """What may enter from one of the peer's namespaces, into ours named `ns`.

    `full`: records; `level`: projections of this level or a finer one, 0 for none.  `wants_us`: records as soon as we
    grant.
    """

    ns: str
    full: bool
    level: int = EXACT
    wants_us: bool = False


@dataclass(frozen=True, slots=True)
class GrantRow:
    """One grant: `direction` out is ours, in the peer's; `namespace` is ours in both.

    `granted` is the level stated, `level` the one in force, "none" for nothing; `missing` is what the grant lacks, in
    one sentence, `fix` the command, `at_peer` whether the peer must run it; `code` the finding it causes, or "".
    """

    direction: str
    namespace: str
    peer_namespace: str
    granted: str
    level: str
    version: int
    missing: str = ""
    fix: str = ""
    at_peer: bool = False
    code: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the row, with `maps` as the granting side wrote them."""
        maps = [self.namespace, self.peer_namespace]
        return {**asdict(self), "maps": maps if self.direction == OUT else maps[::-1]}


def read(value: object) -> Grant:
    """Return the grant in a statement {namespace, maps, level, version}; raise ConsentError "bad-field"."""
    if not isinstance(value, dict) or value.keys() != _STATEMENT:
        raise ConsentError("bad-field", f"a grant has the members {', '.join(sorted(_STATEMENT))}")
    name, maps, level, version = value["namespace"], value["maps"], value["level"], value["version"]
    if not isinstance(maps, list) or len(maps) != 2 or maps[0] != name:
        raise ConsentError("bad-field", "maps is [namespace, its name at the other side]")
    if type(version) is not int or not 1 <= version <= _VERSION_MAX:
        raise ConsentError("bad-field", "version is a number from 1")
    number = None if level == WITHDRAWN else level_of(level)
    return Grant(namespace.check_name(name), namespace.check_name(maps[1]), number, version)


def level_name(level: int | None) -> str:
    """Return "L0" to "L3", and "none" for a withdrawn grant."""
    return WITHDRAWN if level is None else NAMES[level]


def usual_level(pair: Pair, name: str, maps: str) -> int:
    """Return the level of a grant that names none: structural, but exact for a namespace that joins the agreed ones."""
    return EXACT if name == maps and name not in pair.namespaces else STRUCTURAL


def grant_body(pair_id: str, grant: Grant, at: str, *, held: bool) -> dict[str, Any]:
    """Return the body of a KIND_GRANT record: our statement, or that the peer `held` it by then."""
    return {"pair_id": pair_id, "grant": grant.to_json(), "held": held, "at": at}


def fold(by_pair: Mapping[str, PairGrants], body: Mapping[str, Any]) -> Mapping[str, PairGrants]:
    """Return the grants by pair_id after one record body of `th_consent`; it skips unusable ones."""
    kind, pair_id = body.get("kind"), body.get("pair_id")
    if kind not in (KIND_GRANT, KIND_PEER_GRANT) or not isinstance(pair_id, str):
        return by_pair
    try:
        grant = read(body.get("grant"))
    except SplError:
        return by_pair
    grants = by_pair.get(pair_id, PairGrants())
    after = (
        _received(grants, grant) if kind == KIND_PEER_GRANT else _granted(grants, grant, body.get("held") is not False)
    )
    return by_pair if after is grants else {**by_pair, pair_id: after}


def grants_of(by_pair: Mapping[str, PairGrants], pair: Pair) -> PairGrants:
    """Return the grants of a pair, including those that its maps imply."""
    grants = by_pair.get(pair.pair_id, PairGrants())
    if not pair.maps:
        return grants
    ours = {local: Grant(local, peer, STRUCTURAL, 1) for local, peer in pair.maps}
    theirs = {peer: Grant(peer, local, STRUCTURAL, 1) for local, peer in pair.maps}
    return PairGrants(
        MappingProxyType({**ours, **grants.ours}), MappingProxyType({**theirs, **grants.theirs}), grants.waiting
    )


def draft(pair: Pair, grants: PairGrants, name: str, maps: str, level: int | None, limits: Limits) -> Grant:
    """Return our next grant for a namespace; level None withdraws.

    Raises ConsentError "grant-conflict" when the namespace is agreed and `maps` names another, when `maps` is agreed
    and would be entered at L0 from another, or when the pair has as many grants as a statement holds; "not-found"
    when there is nothing to withdraw; "bad-field" for a malformed name.
    """
    name, maps = namespace.check_name(name), namespace.check_name(maps)
    held = grants.ours.get(name)
    if maps != name and name in pair.namespaces:
        raise ConsentError("grant-conflict", f"namespace {name} is shared with this pair under its own name")
    if maps != name and maps in pair.namespaces and level == EXACT:
        raise ConsentError("grant-conflict", f"{maps} is shared with this pair, so {name} enters it at L1 to L3 only")
    if level is None and name not in pair.namespaces and (held is None or held.level is None):
        raise ConsentError(
            "not-found", f"nothing of namespace {name} is granted to this pair", hint=f"spl consent list {pair.pair_id}"
        )
    grant = Grant(name, maps, level, held.version + 1 if held is not None else 1)
    every = {*pair.namespaces, *grants.ours, name}
    size = len(canon.encode(statements({**grants.ours, name: grant}.values())))
    if len(every) > limits.namespaces_per_pair or size > STATEMENT_BYTES_MAX:
        raise ConsentError("grant-conflict", f"a pair shares at most {limits.namespaces_per_pair} namespaces")
    return grant


def news(grants: PairGrants, values: object, limits: Limits) -> tuple[Grant, ...]:
    """Return those of a peer's statements that we do not hold yet; it sends all of its grants each time.

    Raises ConsentError "bad-field", and "consent-stale" for a version before the one that we hold, another grant of
    the same version, or none: the statement is replayed, contradicts another, or is one of a home that was rolled back.
    """
    if not isinstance(values, list) or len(values) > limits.namespaces_per_pair:
        raise ConsentError("bad-field", f"grants is a list of at most {limits.namespaces_per_pair}")
    told = [read(value) for value in values]
    found = {grant.namespace: grant for grant in told}
    if len(found) != len(told):
        raise ConsentError("bad-field", "a namespace is granted twice")
    for name, held in grants.theirs.items():
        grant = found.get(name)
        if grant is None or grant.version < held.version or (grant.version == held.version and grant != held):
            raise ConsentError("consent-stale", f"we hold version {held.version} for namespace {name}")
    return tuple(grant for name, grant in found.items() if grants.theirs.get(name) != grant)


def acknowledged(grants: PairGrants, held: object) -> tuple[Grant, ...]:
    """Return those of our grants that waited and that the peer, by the versions that it reports, holds now."""
    if not isinstance(held, dict):
        return ()
    return tuple(grants.ours[name] for name in sorted(grants.waiting) if held.get(name) == grants.ours[name].version)


def versions(grants: GrantsByName) -> dict[str, int]:
    """Return the version of each grant by namespace, as we tell the other side what we hold."""
    return {name: grant.version for name, grant in sorted(grants.items())}


def outbound(pair: Pair, grants: PairGrants, registry: Mapping[str, Namespace]) -> tuple[Outbound, ...]:
    """Return what we may send to the peer, at most one share a namespace, by name."""
    shares = []
    for name in sorted({*pair.namespaces, *grants.ours}):
        grant = grants.ours.get(name)
        if not namespace.is_usable(registry, name) or (grant is not None and grant.level is None):
            continue
        if name in grants.waiting and not (name in pair.namespaces and grant is not None and grant.level == EXACT):
            continue
        if name in pair.namespaces:
            shares.append(Outbound(name, name, grant.level or EXACT if grant is not None else EXACT))
        elif grant is not None and grant.level is not None:
            wants = grant.level == EXACT and not _answers(grants.theirs.get(grant.maps), grant)
            shares.append(Outbound(name, grant.maps, STRUCTURAL if wants else grant.level, wants))
    return tuple(shares)


def inbound(pair: Pair, grants: PairGrants, registry: Mapping[str, Namespace]) -> Mapping[str, Inbound]:
    """Return what we accept from the peer, by the peer's namespace."""
    found: dict[str, Inbound] = {}
    for name in pair.namespaces:
        theirs = grants.theirs.get(name)
        level = theirs.level if theirs is not None and theirs.level is not None else EXACT
        found[name] = Inbound(name, full=True, level=level)
    for name, theirs in grants.theirs.items():
        if name in found or theirs.level is None:
            continue
        full = theirs.level == EXACT and _answers(grants.ours.get(theirs.maps), theirs)
        # Until the peer holds our statement it uses its own alone, so its L1 is accepted if we grant too.
        found[name] = Inbound(theirs.maps, full, theirs.level or STRUCTURAL, theirs.level == EXACT and not full)
    return {name: each for name, each in found.items() if namespace.is_usable(registry, each.ns)}


def crossings(pairs: Iterable[Pair], by_pair: Mapping[str, PairGrants]) -> dict[tuple[str, str], str]:
    """Return (peer DID, its namespace) -> ours for what comes in full, whether ours is usable or not."""
    found = {}
    for pair in pairs:
        grants = grants_of(by_pair, pair)
        names = {*pair.namespaces, *(grant.maps for grant in grants.theirs.values())}
        every = {part: Namespace(part) for name in names for part in accumulate(name.split("/"), "{}/{}".format)}
        allowed = inbound(pair, grants, every)
        found.update({(pair.peer_did, name): each.ns for name, each in allowed.items() if each.full})
    return found


def statements(grants: Iterable[Grant]) -> list[dict[str, Any]]:
    """Return grants as they are handed over, by namespace."""
    return [grant.to_json() for grant in sorted(grants, key=lambda each: each.namespace)]


def lines(pair: Pair, grants: PairGrants, registry: Mapping[str, Namespace], label: str) -> tuple[GrantRow, ...]:
    """Return a row for each grant of either side, ours first, by namespace; `label` is the peer's label."""
    return (
        *(_ours(pair, grants, registry, label, grant) for _, grant in sorted(grants.ours.items())),
        *(_theirs(pair, grants, registry, grant) for _, grant in sorted(grants.theirs.items())),
    )


def agreed(pair: Pair, grants: PairGrants, registry: Mapping[str, Namespace]) -> tuple[GrantRow, ...]:
    """Return two rows for each namespace shared under its own name without a grant."""
    usable = [name for name in pair.namespaces if namespace.is_usable(registry, name)]
    return (
        *(GrantRow(OUT, name, name, "L0", "L0", 0) for name in usable if name not in grants.ours),
        *(GrantRow(IN, name, name, "L0", "L0", 0) for name in usable if name not in grants.theirs),
    )


def command(pair_id: str, name: str, maps: str, level: int) -> str:
    """Return the command that grants."""
    name_of_level = level_name(level)
    return f"spl federation grant {pair_id} --namespace {name} --maps {name},{maps} --hash-level {name_of_level}"


def creation(registry: Mapping[str, Namespace], name: str) -> str:
    """Return the commands that make a namespace usable, those above it first."""
    segments = name.split("/")
    above = ["/".join(segments[: depth + 1]) for depth in range(len(segments))]
    lacking = [each for each in above if (found := registry.get(each)) is None or not found.active]
    return " && ".join(f"spl namespace create {each}" for each in lacking)


def _received(grants: PairGrants, grant: Grant) -> PairGrants:
    before = grants.theirs.get(grant.namespace)
    if before is not None and before.version >= grant.version:
        return grants
    return replace(grants, theirs=MappingProxyType({**grants.theirs, grant.namespace: grant}))


def _granted(grants: PairGrants, grant: Grant, held: bool) -> PairGrants:
    name, before = grant.namespace, grants.ours.get(grant.namespace)
    if before is None or before.version < grant.version:
        waiting = grants.waiting - {name} if held else grants.waiting | {name}
        return replace(grants, ours=MappingProxyType({**grants.ours, name: grant}), waiting=waiting)
    if held and before == grant and name in grants.waiting:
        return replace(grants, waiting=grants.waiting - {name})
    return grants


def _answers(other: Grant | None, grant: Grant) -> bool:
    """Return whether the other side granted the same crossing back at L0."""
    return other is not None and other.level == EXACT and (other.namespace, other.maps) == (grant.maps, grant.namespace)


def _ours(pair: Pair, grants: PairGrants, registry: Mapping[str, Namespace], label: str, grant: Grant) -> GrantRow:
    share = next((item for item in outbound(pair, grants, registry) if item.ns == grant.namespace), None)
    level = level_name(share.level if share is not None else None)
    found = _row(OUT, grant, level)
    if grant.namespace in grants.waiting:
        return _lacking(found, f"{label} does not hold it yet", f"spl federation refresh {pair.pair_id}", code=MISSING)
    if grant.level is not None and not namespace.is_usable(registry, grant.namespace):
        return _lacking(found, f"{grant.namespace} is not active here", creation(registry, grant.namespace))
    if share is not None and share.wants_peer:
        fix = command(pair.pair_id, grant.maps, grant.namespace, EXACT)
        return _lacking(found, f"L0 behaves as L1 until {label} grants it too", fix, at_peer=True, code=MISSING)
    return found


def _theirs(pair: Pair, grants: PairGrants, registry: Mapping[str, Namespace], grant: Grant) -> GrantRow:
    allowed = inbound(pair, grants, registry).get(grant.namespace)
    level = None
    if allowed is not None and grant.level is not None:
        level = EXACT if allowed.full and grant.level == EXACT else allowed.level
    found = _row(IN, grant, level_name(level))
    if grant.level is not None and not namespace.is_usable(registry, grant.maps):
        lacks = f"namespace {grant.maps} does not exist or is not active here"
        return _lacking(found, lacks, creation(registry, grant.maps), code=UNMAPPED)
    if allowed is not None and allowed.wants_us:
        fix = command(pair.pair_id, grant.maps, grant.namespace, EXACT)
        return _lacking(found, "L0 behaves as L1 until we grant it too", fix)
    return found


def _row(direction: str, grant: Grant, level: str) -> GrantRow:
    local, peer = (grant.namespace, grant.maps) if direction == OUT else (grant.maps, grant.namespace)
    return GrantRow(direction, local, peer, level_name(grant.level), level, grant.version)


def _lacking(row: GrantRow, missing: str, fix: str, *, at_peer: bool = False, code: str = "") -> GrantRow:
    return GrantRow(
        row.direction, row.namespace, row.peer_namespace, row.granted, row.level, row.version, missing, fix,
        at_peer, code,
    )  # fmt: skip
