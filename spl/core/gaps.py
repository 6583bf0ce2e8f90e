"""What is granted across a pair, line by line, with what each grant lacks for its full effect, and who can help."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from . import consent, namespace
from .consent import Book, Grant
from .levels import EXACT
from .namespace import Namespace
from .pair import Pair

OUT: Final = "out"
IN: Final = "in"
MISSING: Final = "consent-missing"
UNMAPPED: Final = "namespace-unmapped"


@dataclass(frozen=True, slots=True)
class Line:
    """One grant: `direction` out is ours, in the peer's; `namespace` is ours in both.

    `granted` is what was said, `level` what it comes to now, "none" for nothing; `missing` is what it lacks, in one
    sentence, `fix` the command, `at_peer` whether that is the peer's to run; `code` the finding that it makes, or "".
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
        """Return the line, with `maps` as the granting side wrote them."""
        maps = [self.namespace, self.peer_namespace]
        return {**asdict(self), "maps": maps if self.direction == OUT else maps[::-1]}


def lines(pair: Pair, book: Book, registry: Mapping[str, Namespace], label: str) -> tuple[Line, ...]:
    """Return a line for each grant of either side, ours first, by namespace; `label` is what people call the peer."""
    return (
        *(_ours(pair, book, registry, label, grant) for _, grant in sorted(book.ours.items())),
        *(_theirs(pair, book, registry, grant) for _, grant in sorted(book.theirs.items())),
    )


def agreed(pair: Pair, book: Book, registry: Mapping[str, Namespace]) -> tuple[Line, ...]:
    """Return two lines for each namespace shared under its own name, where no grant says more."""
    usable = [name for name in pair.namespaces if namespace.is_usable(registry, name)]
    return (
        *(Line(OUT, name, name, "L0", "L0", 0) for name in usable if name not in book.ours),
        *(Line(IN, name, name, "L0", "L0", 0) for name in usable if name not in book.theirs),
    )


def command(pair_id: str, name: str, maps: str, level: int) -> str:
    """Return the command that grants."""
    said = consent.level_name(level)
    return f"spl federation grant {pair_id} --namespace {name} --maps {name},{maps} --hash-level {said}"


def creation(registry: Mapping[str, Namespace], name: str) -> str:
    """Return the commands that make a namespace usable, those above it first."""
    segments = name.split("/")
    above = ["/".join(segments[: depth + 1]) for depth in range(len(segments))]
    lacking = [each for each in above if (found := registry.get(each)) is None or not found.active]
    return " && ".join(f"spl namespace create {each}" for each in lacking)


def _ours(pair: Pair, book: Book, registry: Mapping[str, Namespace], label: str, grant: Grant) -> Line:
    share = next((item for item in consent.outbound(pair, book, registry) if item.ns == grant.namespace), None)
    level = consent.level_name(share.level if share is not None else None)
    found = _line(OUT, grant, level)
    if grant.namespace in book.waiting:
        return _lacking(found, f"{label} does not hold it yet", f"spl federation refresh {pair.pair_id}", code=MISSING)
    if grant.level is not None and not namespace.is_usable(registry, grant.namespace):
        return _lacking(found, f"{grant.namespace} is not active here", creation(registry, grant.namespace))
    if share is not None and share.wants_peer:
        fix = command(pair.pair_id, grant.maps, grant.namespace, EXACT)
        return _lacking(found, f"L0 behaves as L1 until {label} grants it too", fix, at_peer=True, code=MISSING)
    return found


def _theirs(pair: Pair, book: Book, registry: Mapping[str, Namespace], grant: Grant) -> Line:
    inlet = consent.inbound(pair, book, registry).get(grant.namespace)
    level = None
    if inlet is not None and grant.level is not None:
        level = EXACT if inlet.full and grant.level == EXACT else inlet.level
    found = _line(IN, grant, consent.level_name(level))
    if grant.level is not None and not namespace.is_usable(registry, grant.maps):
        lacks = f"namespace {grant.maps} does not exist or is not active here"
        return _lacking(found, lacks, creation(registry, grant.maps), code=UNMAPPED)
    if inlet is not None and inlet.wants_us:
        fix = command(pair.pair_id, grant.maps, grant.namespace, EXACT)
        return _lacking(found, "L0 behaves as L1 until we grant it too", fix)
    return found


def _line(direction: str, grant: Grant, level: str) -> Line:
    local, peer = (grant.namespace, grant.maps) if direction == OUT else (grant.maps, grant.namespace)
    return Line(direction, local, peer, consent.level_name(grant.level), level, grant.version)


def _lacking(line: Line, missing: str, fix: str, *, at_peer: bool = False, code: str = "") -> Line:
    return Line(
        line.direction, line.namespace, line.peer_namespace, line.granted, line.level, line.version, missing, fix,
        at_peer, code,
    )  # fmt: skip
