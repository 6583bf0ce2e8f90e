"""The steps of the pair machine: events, effects, and the table that says which event moves which state.

`decide` is pure; the diagram stands in `pair.py`.  Effects come in the order of their running: what is appended goes
into one submission, the rest is done once that is durable.
"""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from .. import when
from ..value import dataclass
from .pair import ESTABLISHED, ESTABLISHING, PREFIX, apply
from .state import (
    Active,
    Answered,
    Approved,
    Asked,
    Degraded,
    Pair,
    PairError,
    PausedByBoth,
    PausedByPeer,
    PausedByUs,
    Proposal,
    Requested,
    Revoking,
    TokenRef,
    Waiting,
)

# -- events: what happened


@dataclass(frozen=True, slots=True)
class Begin:
    """Our operator asked a peer."""

    proposal: Proposal
    poll_interval_ms: int


@dataclass(frozen=True, slots=True)
class Ask:
    """A peer asked us; its request was verified."""

    proposal: Proposal
    poll_interval_ms: int


@dataclass(frozen=True, slots=True)
class Park:
    """The peer said, signed, that its operator must decide."""


@dataclass(frozen=True, slots=True)
class Agree:
    """The peer's signed answer came; its token for us is stored.  `position`: our log's last sequence."""

    answer: Mapping[str, Any]
    token: TokenRef
    position: int


@dataclass(frozen=True, slots=True)
class Approve:
    """Our operator, or the policy, approved; `answer` is signed and holds our new token, sealed."""

    answer: Mapping[str, Any]
    token: TokenRef
    position: int


@dataclass(frozen=True, slots=True)
class Confirm:
    """The initiator's confirmation was taken; `inherits` is the pair that this one supersedes, if any."""

    inherits: str = ""


@dataclass(frozen=True, slots=True)
class Pause:
    """Our operator paused."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Resume:
    """Our operator resumed."""


@dataclass(frozen=True, slots=True)
class PeerPause:
    """The peer said, signed at `said_at_ms`, that it paused."""

    said_at_ms: int


@dataclass(frozen=True, slots=True)
class PeerResume:
    """The peer said, signed at `said_at_ms`, that it goes on."""

    said_at_ms: int


@dataclass(frozen=True, slots=True)
class Degrade:
    """Errors recur; `code` is the last one's."""

    code: str


@dataclass(frozen=True, slots=True)
class Recover:
    """A sync succeeded."""


@dataclass(frozen=True, slots=True)
class Configure:
    """Our operator changed settings: mode, poll_interval_ms, actors, relay; or the peer the mode, signed `said_at`."""

    changes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ManifestChange:
    """A newer manifest of the peer was verified; `pinned`: the operator named its key."""

    manifest: Mapping[str, Any]
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class TokenChange:
    """A token was replaced by a new one; `minted`: of ours, and known to `th_api_tokens` already."""

    by_us: bool
    token: TokenRef
    minted: bool = False


@dataclass(frozen=True, slots=True)
class Revoke:
    """Our operator revoked, or withdrew its request."""

    reason: str


@dataclass(frozen=True, slots=True)
class Told:
    """The peer was told of our revocation, or could not be reached in time."""


@dataclass(frozen=True, slots=True)
class End:
    """It is over at once: rejected, expired, superseded, or revoked by the peer, signed.  `note` is for our records."""

    reason: str
    note: str = ""


PairEvent = (
    Begin | Ask | Park | Agree | Approve | Confirm | Pause | Resume | PeerPause | PeerResume | Degrade | Recover
    | Configure | ManifestChange | TokenChange | Revoke | Told | End
)  # fmt: skip


# -- effects: what to do


@dataclass(frozen=True, slots=True)
class Append:
    """A record on `th_federation_pairs`."""

    kind: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Audit:
    """A record for people on `th_audit_federation_pairs`."""

    transition: str
    reason: str


@dataclass(frozen=True, slots=True)
class Mint:
    """A record on `th_api_tokens` that makes a token of ours known; `namespaces` are what it may read."""

    token: TokenRef
    namespaces: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KillTokens:
    """A record on `th_api_tokens` that ends all tokens of the pair."""


@dataclass(frozen=True, slots=True)
class DropSecrets:
    """Forget the token that the peer issued to us."""


@dataclass(frozen=True, slots=True)
class TellPeer:
    """Send our signed state to the peer; best effort, except that a revocation waits for it for a few seconds."""


@dataclass(frozen=True, slots=True)
class FirstSync:
    """Pull what the shared namespaces hold."""


@dataclass(frozen=True, slots=True)
class Resync:
    """Compare in the background what both sides should hold: what the cursor skipped is fetched then."""


@dataclass(frozen=True, slots=True)
class EndOthers:
    """End every other pair with this peer as superseded, and take over the positions of the one inherited."""

    inherits: str


Effect = Append | Audit | Mint | KillTokens | DropSecrets | TellPeer | FirstSync | Resync | EndOthers
_Move = tuple[str, dict[str, Any], tuple[Effect, ...]]
"""Short kind of the body, its own members, and the further effects."""


def decide(pair: Pair | None, event: PairEvent, now_ms: int) -> tuple[Pair, tuple[Effect, ...]]:
    """Return the next pair and what to do; refuse what STEPS lacks as PairError "pair-state-conflict"."""
    step = STEPS.get((type(None if pair is None else pair.state), type(event)))
    if step is None:
        state = f"{pair.phase} ({pair.state.detail or type(pair.state).__name__.lower()})" if pair else "unknown"
        raise PairError("pair-state-conflict", f"{type(event).__name__.lower()} is not possible: the pair is {state}")
    kind, members, effects = step(pair, event)
    if pair is not None:
        members = {"pair_id": pair.pair_id, "peer_did": pair.peer_did, **members}
    body = {**members, "step": pair.steps + 1 if pair else 1, "at": when.text_of(now_ms)}
    after = apply(pair, {**body, "kind": PREFIX + kind})
    moved = pair is None or pair.phase is not after.phase or pair.state.detail != after.state.detail
    transition = f"{pair.phase if pair else 'none'} -> {after.phase}" if moved else kind
    return after, (Append(PREFIX + kind, body), Audit(transition, str(body.get("reason", ""))), *effects)


def _begin(_: Pair | None, event: Any) -> _Move:
    members = {"peer_did": event.proposal.manifest["daemon"]["did"], **event.proposal.to_json()}
    return "pair_init.v1", {**members, "poll_interval_ms": event.poll_interval_ms}, ()


def _ask(_: Pair | None, event: Any) -> _Move:
    _kind, members, effects = _begin(None, event)
    return "pair_pending.v1", members, effects


def _park(pair: Pair, event: Park) -> _Move:
    return "pair_pending.v1", {}, ()


def _grant(pair: Pair, event: Agree) -> _Move:
    """Our token went with our request; it may authenticate from the genesis on, so only now it is minted."""
    assert pair.issued_by_us is not None
    mint = Mint(pair.issued_by_us, tuple(event.answer["message"]["namespaces"]))
    return "pair.genesis.v1", _agreed(event), (mint,)


def _approve(pair: Pair, event: Approve) -> _Move:
    return "pair.genesis.v1", _agreed(event), (Mint(event.token, tuple(event.answer["message"]["namespaces"])),)


def _agreed(event: Agree | Approve) -> dict[str, Any]:
    return {"answer": dict(event.answer), "token": event.token.to_json(), "position": event.position}


def _confirm(pair: Pair, event: Confirm) -> _Move:
    members = {"inherits": event.inherits} if event.inherits else {}
    return "pair_active.v1", members, (EndOthers(event.inherits), FirstSync())


def _pause(pair: Pair, event: Pause) -> _Move:
    return "pair_pause.v1", {"by": "us", "reason": event.reason}, (TellPeer(),)


def _resume(pair: Pair, event: Resume) -> _Move:
    return "pair_resume.v1", {"by": "us"}, (TellPeer(), *_goes_on(pair, PausedByUs))


def _peer_pause(pair: Pair, event: PeerPause) -> _Move:
    return "pair_pause.v1", {"by": "peer", "said_at": when.text_of(event.said_at_ms)}, ()


def _peer_resume(pair: Pair, event: PeerResume) -> _Move:
    said = {"by": "peer", "said_at": when.text_of(event.said_at_ms)}
    return "pair_resume.v1", said, _goes_on(pair, PausedByPeer)


def _goes_on(pair: Pair, state: type) -> tuple[Effect, ...]:
    """Return what follows once neither side pauses the pair; the first of two to resume waits for the other."""
    return (Resync(),) if type(pair.state) is state else ()


def _degrade(pair: Pair, event: Degrade) -> _Move:
    return "pair_degraded.v1", {"reason": event.code}, ()


def _recover(pair: Pair, event: Recover) -> _Move:
    return "pair_recovered.v1", {}, ()


def _configure(pair: Pair, event: Configure) -> _Move:
    return "pair_config.v1", dict(event.changes), ()


def _manifest_change(pair: Pair, event: ManifestChange) -> _Move:
    pinned = {"pinned": True} if event.pinned else {}
    return "peer_manifest_changed.v1", {"manifest": dict(event.manifest), **pinned}, ()


def _token_change(pair: Pair, event: TokenChange) -> _Move:
    change = "issued by us" if event.by_us else "issued to us"
    mint = (Mint(event.token, pair.namespaces),) if event.by_us and not event.minted else ()
    return "pair_token.v1", {"change": change, "token": event.token.to_json()}, mint


def _revoke(pair: Pair, event: Revoke) -> _Move:
    return "pair_token.v1", {"change": "revoked", "reason": event.reason}, (KillTokens(), DropSecrets(), TellPeer())


def _told(pair: Pair, event: Told) -> _Move:
    return "pair.revoke.v1", {"reason": pair.reason}, ()


def _end(pair: Pair, event: End) -> _Move:
    kind = "pair_rejected.v1" if type(pair.state) in ESTABLISHING else "pair.revoke.v1"
    note = {"note": event.note} if event.note else {}
    return kind, {"reason": event.reason, **note}, (KillTokens(), DropSecrets())


def _rows(states: Iterable[type], event: type, step: Callable[..., _Move]) -> dict[tuple[type, type], Any]:
    return {(state, event): step for state in states}


STEPS: Final[Mapping[tuple[type, type], Callable[..., _Move]]] = MappingProxyType(
    {
        **_rows([type(None)], Begin, _begin),
        **_rows([type(None)], Ask, _ask),
        **_rows([Requested], Park, _park),
        **_rows([Requested, Waiting], Agree, _grant),
        **_rows([Asked], Approve, _approve),
        **_rows([Answered, Approved], Confirm, _confirm),
        **_rows([Active, Degraded, PausedByPeer], Pause, _pause),
        **_rows([PausedByUs, PausedByBoth], Resume, _resume),
        **_rows([Active, Degraded, PausedByUs], PeerPause, _peer_pause),
        **_rows([PausedByPeer, PausedByBoth], PeerResume, _peer_resume),
        **_rows([Active, Degraded], Degrade, _degrade),
        **_rows([Degraded], Recover, _recover),
        **_rows(ESTABLISHED, Configure, _configure),
        **_rows(ESTABLISHED | ESTABLISHING - {Asked}, ManifestChange, _manifest_change),
        **_rows(ESTABLISHED, TokenChange, _token_change),
        **_rows(ESTABLISHED | ESTABLISHING, Revoke, _revoke),
        **_rows([Revoking], Told, _told),
        **_rows(ESTABLISHED | ESTABLISHING | {Revoking}, End, _end),
    }
)
"""One row per arrow: (state, event) -> step."""
