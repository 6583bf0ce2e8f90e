"""The values of the pair machine: its states, a request, and a pair; no behaviour but reading.

Five phases are what people see; within them each state is a class of its own, so that the tables of legal steps
(`steps.STEPS`) and usable records (`pair.RULES`) need no flags.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, ClassVar, Final

from .. import canon, when
from ..errors import SplError
from ..identity.did import Chain, label_of
from ..identity.manifest import Manifest
from ..record.filter import PairFilter
from ..value import Json, dataclass, field

STARTS: Final = ("beginning", "present")
SUPERSEDED: Final = "superseded"
RENEW_SHARE: Final = 12


class PairError(SplError):
    """The pair does not allow this; codes pair-state-conflict, bad-field."""


class Phase(StrEnum):
    """The five words that people see."""

    ESTABLISHING = "establishing"
    ACTIVE = "active"
    PAUSED = "paused"
    DEGRADED = "degraded"
    REVOKED = "revoked"


IN_TOUCH: Final = frozenset({Phase.ACTIVE, Phase.PAUSED, Phase.DEGRADED})
"""Phases in which each side asks the other for signs of life: whether a peer is there is a fact of its own."""


@dataclass(frozen=True, slots=True)
class State:
    """Where a pair stands; `reason` is the code or text that brought it here, if one did."""

    reason: str = ""

    phase: ClassVar[Phase] = Phase.ESTABLISHING
    detail: ClassVar[str] = ""
    live: ClassVar[bool] = False
    """Our token may authenticate the peer."""
    syncs: ClassVar[bool] = False
    """We pull from the peer."""
    serves: ClassVar[bool] = False
    """We answer the peer's pulls."""


@dataclass(frozen=True, slots=True)
class Requested(State):
    """Initiator: our request is durable; whether it was sent or arrived is open."""

    detail: ClassVar[str] = "requested"


@dataclass(frozen=True, slots=True)
class Waiting(State):
    """Initiator: the peer holds our request for its operator."""

    detail: ClassVar[str] = "waiting for approval by the peer"


@dataclass(frozen=True, slots=True)
class Answered(State):
    """Initiator: granted, both tokens known; the peer has not taken our confirmation yet."""

    detail: ClassVar[str] = "confirming"
    live: ClassVar[bool] = True
    serves: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Asked(State):
    """Responder: a request waits for our operator."""

    detail: ClassVar[str] = "waiting for our approval"


@dataclass(frozen=True, slots=True)
class Approved(State):
    """Responder: granted; the initiator has not confirmed yet."""

    detail: ClassVar[str] = "approved, waiting for confirmation"
    live: ClassVar[bool] = True
    serves: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Active(State):
    """Live, in its mode."""

    phase: ClassVar[Phase] = Phase.ACTIVE
    live: ClassVar[bool] = True
    syncs: ClassVar[bool] = True
    serves: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class PausedByUs(State):
    """Our operator stopped it; we neither pull nor serve."""

    phase: ClassVar[Phase] = Phase.PAUSED
    detail: ClassVar[str] = "paused"
    live: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class PausedByPeer(State):
    """The peer told us so, signed; only it can resume."""

    phase: ClassVar[Phase] = Phase.PAUSED
    detail: ClassVar[str] = "paused by peer"
    live: ClassVar[bool] = True
    serves: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class PausedByBoth(State):
    """Both paused; both must resume."""

    phase: ClassVar[Phase] = Phase.PAUSED
    detail: ClassVar[str] = "paused by both"
    live: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Degraded(State):
    """Errors recur; each next success makes it active again."""

    phase: ClassVar[Phase] = Phase.DEGRADED
    live: ClassVar[bool] = True
    syncs: ClassVar[bool] = True
    serves: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Revoking(State):
    """Our tokens are dead and the decision is final; the peer is being told."""

    phase: ClassVar[Phase] = Phase.REVOKED
    detail: ClassVar[str] = "telling the peer"


@dataclass(frozen=True, slots=True)
class Revoked(State):
    """Terminal; rejected, expired and superseded requests end here with their reason, and what was said with it."""

    note: str = ""
    by_us: bool = False
    """Our operator revoked it, so only the operator lets this peer in again."""
    paused_by_us: bool = False
    """It ended while our operator had it paused."""

    phase: ClassVar[Phase] = Phase.REVOKED


@dataclass(frozen=True, slots=True)
class TokenRef:
    """A token by name; `hash` only of one that we issued; `since_ms`: the time of the record that names it."""

    token_id: str
    scopes: tuple[str, ...]
    expires_at_ms: int
    hash: str = ""
    since_ms: int = 0

    def renew_at_ms(self, renew_s: float) -> int:
        """Return from when on a new one is asked for: `renew_s` before the end, or after 11/12 of a shorter life."""
        life_ms = max(0, self.expires_at_ms - self.since_ms)
        return self.expires_at_ms - min(int(renew_s * 1000), life_ms // RENEW_SHARE)

    def to_json(self) -> Json:
        """Return {token_id, scopes, expires_at, hash}."""
        return {
            "token_id": self.token_id,
            "scopes": list(self.scopes),
            "expires_at": when.text_of(self.expires_at_ms),
            "hash": self.hash,
        }


@dataclass(frozen=True, slots=True)
class Proposal:
    """What one side asked of the other, as both keep it.

    `maps` are (local, peer) as the initiator wrote them; `start` is "" where the initiator has no wish; `sealed` is the
    initiator's token for the responder, sealed to it; `url` is what the initiator's operator typed; on the responder
    the endpoint, if the request came from that very address, else "".
    """

    pair_id: str
    nonce: str
    manifest: Mapping[str, Any]
    """The other side's federation_manifest; {} in a pair, which has the newest."""
    namespaces: tuple[str, ...]
    maps: tuple[tuple[str, str], ...]
    mode: str
    start: str
    endpoint: str
    token: TokenRef
    sealed: str
    digest: str = ""
    url: str = ""
    strict: bool = True
    actors: tuple[str, ...] = ()
    source: str = ""
    """Responder: the IPv4 address or IPv6 /64 that the request came from, for it counts against that for a day."""

    def to_json(self) -> Json:
        """Return the members of a pair_init or of a responder's pair_pending body."""
        return {
            "pair_id": self.pair_id,
            "nonce": self.nonce,
            "manifest": dict(self.manifest),
            "namespaces": list(self.namespaces),
            "maps": maps_to_json(self.maps),
            "mode": self.mode,
            "start": self.start,
            "endpoint": self.endpoint,
            "token": self.token.to_json(),
            "sealed": self.sealed,
            "digest": self.digest,
            "url": self.url,
            "strict": self.strict,
            "actors": list(self.actors),
            **({"source": self.source} if self.source else {}),
        }


@dataclass(frozen=True, slots=True)
class Pair:
    """One pair as the records tell it."""

    proposal: Proposal
    initiator: bool
    peer: Manifest
    """The peer's manifest as last verified; its key chain is pinned."""
    state: State
    namespaces: tuple[str, ...]
    """Asked for while establishing, agreed from the genesis on; the same name on both sides."""
    maps: tuple[tuple[str, str], ...]
    """(ours, theirs)."""
    mode: str
    poll_interval_ms: int
    start: str
    start_seq: int
    """Our log's last sequence at the genesis; with start "present" the peer gets nothing up to it."""
    issued_to_us: TokenRef | None
    issued_by_us: TokenRef | None
    answer: bytes | None
    """The responder's signed answer, {message, signature} in canonical form, its token sealed to the initiator."""
    actors: tuple[str, ...]
    filters: tuple[PairFilter, ...]
    """What we send of what was agreed: the present filter, then the earlier ones, newest first, 8 at most."""
    inherits: str
    """The pair that this one superseded, whose positions it goes on from."""
    peer_said_ms: int
    """issued_at of the peer's last signed word on its state that changed ours."""
    created_at_ms: int
    since_ms: int
    fetched_at_ms: int
    steps: int
    transitions: tuple[tuple[int, str, str, str], ...]
    """(at_ms, from, to, reason), oldest first, the last 20."""
    carrier: Mapping[str, str] = field(default_factory=dict)
    """Where records come from in mode engine; `engine/carriers.py` reads it."""

    @property
    def pair_id(self) -> str:
        """`pair_` and 8 hex digits, the same on both sides."""
        return self.proposal.pair_id

    @property
    def nonce(self) -> str:
        """The nonce that the pair_id was made of."""
        return self.proposal.nonce

    @property
    def peer_did(self) -> str:
        """The peer's DID."""
        return self.peer.did

    @property
    def url(self) -> str:
        """The peer's base URL, without trailing slash, as its manifest names it."""
        return self.peer.url

    @property
    def answered(self) -> Mapping[str, Any]:
        """The message of `answer`, decoded each time; {} before there is one."""
        return canon.decode(self.answer)["message"] if self.answer is not None else {}

    @property
    def manifest(self) -> Mapping[str, Any]:
        """The peer's federation_manifest as last verified."""
        return self.peer.raw

    @property
    def chain(self) -> Chain:
        """The peer's pinned key chain."""
        return self.peer.chain

    @property
    def filter(self) -> PairFilter:
        """What we send of what was agreed, at present."""
        return self.filters[0]

    @property
    def phase(self) -> Phase:
        """The word that people see."""
        return self.state.phase

    @property
    def reason(self) -> str:
        """The code or text that brought the pair to its state, "" for none."""
        return self.state.reason

    @property
    def live(self) -> bool:
        """Whether our token for the peer may authenticate it: from our genesis to the revocation."""
        return self.state.live

    @property
    def sync_allowed(self) -> bool:
        """Whether we pull."""
        return self.state.syncs

    @property
    def serve_allowed(self) -> bool:
        """Whether we answer its pulls."""
        return self.state.serves

    @property
    def paused_by(self) -> str:
        """Who paused: "us", "peer", "both", or "" when it is not paused."""
        return _PAUSERS.get(type(self.state), "")

    @property
    def ended(self) -> bool:
        """Whether the pair is revoked, or as good as."""
        return self.state.phase is Phase.REVOKED

    @property
    def ended_by_us(self) -> bool:
        """Whether our operator revoked it."""
        return isinstance(self.state, Revoking) or (isinstance(self.state, Revoked) and self.state.by_us)


def known(pairs: Mapping[str, Pair], pair_id: str) -> Pair:
    """Return the pair of this id; raise PairError "pair-unknown"."""
    pair = pairs.get(pair_id)
    if pair is None:
        raise no_pair(pair_id)
    return pair


def no_pair(ref: str) -> PairError:
    """Return the error "pair-unknown" of an id, label or DID that fits no pair here."""
    return PairError("pair-unknown", f"no pair {ref[:80]!r}")


def refusal_code(pair: Pair) -> str:
    """Return the code that refuses what the pair's state does not allow."""
    return _REFUSALS.get(pair.phase, "pair-state-conflict")


def resuming(pair: Pair) -> str:
    """Return the command after which a pair may sync, on the side that it waits for; "" if there is none."""
    if isinstance(pair.state, Asked):
        return f"spl aitl approve {pair.pair_id}"
    if pair.phase is Phase.ESTABLISHING:
        return f"spl wait pair {pair.pair_id} --state active"
    command = f"spl federation resume {pair.pair_id}"
    return {"peer": f"on {label_of(pair.peer_did)}: {command}", "": ""}.get(pair.paused_by, command)


def maps_to_json(maps: tuple[tuple[str, str], ...]) -> list[dict[str, str]]:
    """Return [{local, peer}]."""
    return [{"local": local, "peer": peer} for local, peer in maps]


def maps_from_json(value: object) -> tuple[tuple[str, str], ...]:
    """Return the (local, peer) tuples of [{local, peer}]; raise PairError "bad-field"."""
    if not isinstance(value, list):
        raise PairError("bad-field", "maps is a list")
    maps = []
    for item in value:
        if not isinstance(item, dict) or item.keys() != {"local", "peer"}:
            raise PairError("bad-field", 'each map is {"local": namespace, "peer": namespace}')
        local, peer = item["local"], item["peer"]
        if not isinstance(local, str) or not isinstance(peer, str):
            raise PairError("bad-field", "a map names two namespaces")
        maps.append((local, peer))
    return tuple(maps)


_REFUSALS: Final = {Phase.PAUSED: "pair-paused", Phase.REVOKED: "pair-revoked"}
_PAUSERS: Final[Mapping[type[State], str]] = {PausedByUs: "us", PausedByPeer: "peer", PausedByBoth: "both"}
