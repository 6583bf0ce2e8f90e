"""The pair machine: the records on `th_federation_pairs` and the pairs they add up to.

`steps.decide` meets commands and messages and may refuse with a code; legality is its table STEPS.  `fold` here meets
history and never raises; what it may use is the table RULES.  Both change a pair through `apply`, so folding what
`decide` emitted gives what it returned.  The shell (pairing/machine.py) does, in this order: decide, append and fsync,
fold, run effects.  Every body holds all that a restart must know: never secrets, but sealed tokens that only their
addressee opens.

    initiator   Begin -> Requested -Park-> Waiting -+                     Pause by either side, Resume by who paused
                             |                      |                    +--------> PausedByUs/ByPeer/ByBoth
                             +--------Agree---------+-> Answered -+      |                |
    responder   Ask   -> Asked ------Approve----------> Approved -+-Confirm-> Active <----+
                                                                         |   ^
                                                                  Degrade v   | Recover
                                                                        Degraded
    any of them: -Revoke-> Revoking (tokens dead, telling the peer) -Told-> Revoked;  -End-> Revoked

Unlisted above and without a change of state: Configure, ManifestChange, TokenChange.
"""

from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import Any, Final

from .. import canon, when
from ..errors import SplError
from ..identity import manifest
from ..identity.message import is_nonce, is_pair_id
from ..identity.pins import grown
from ..limits import Limits
from ..record.filter import FILTERS_MAX, OPEN
from ..value import Json, replace
from .aitl import ApprovalRequest, fold_requests, request_summary
from .modes import ENGINE, MODES, POLL_INTERVAL_MS_MAX
from .state import (
    STARTS,
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
    Phase,
    Proposal,
    Requested,
    Revoked,
    Revoking,
    State,
    TokenRef,
    Waiting,
    maps_from_json,
)

__all__ = [
    "Pair",
    "PairError",
    "Phase",
    "ApprovalRequest",
    "apply",
    "fold",
    "fold_requests",
    "in_effect",
    "is_by_hand",
    "request_summary",
    "summary",
]

PREFIX: Final = "syncropel.federation."
TRANSITIONS_MAX: Final = 20
"""Of the history in a pair value; the records have all of it."""
POLL_INTERVAL_MS: Final = 300_000

_LIMITS: Final = Limits()


def short_kind(kind: str) -> str:
    """Return the kind without the family's prefix."""
    return kind.removeprefix(PREFIX)


def fold(pairs: Mapping[str, Pair], body: Mapping[str, Any]) -> Mapping[str, Pair]:
    """Return the pairs by id after one record body of `th_federation_pairs`, in arrival order; never raises.

    A body that cannot be used (unknown, damaged, seen before, or of a step that its pair's state does not know)
    returns the very mapping that was given: so the caller counts it.
    """
    try:
        after = apply(pairs.get(body["pair_id"]), body)
    except (KeyError, TypeError, ValueError, AttributeError, SplError):
        return pairs
    return {**pairs, after.pair_id: after}


def apply(pair: Pair | None, body: Mapping[str, Any]) -> Pair:
    """Return the pair after a body that RULES allows it; raises whatever the damage in the body raises.

    `step` counts the pair's bodies from 1, so one that comes again changes nothing.
    """
    states, rule = RULES[short_kind(body["kind"])]
    if type(None if pair is None else pair.state) not in states:
        raise PairError("pair-state-conflict", f"{body['kind']} while {pair.state if pair else None}")
    step, at_ms = body["step"], when.ms_of(body["at"])
    if type(step) is not int or step <= (pair.steps if pair else 0):
        raise PairError("pair-state-conflict", f"step {step} was taken")
    after = rule(pair, body, at_ms)
    return replace(_noted(pair, after, at_ms, str(body.get("reason", ""))), steps=step)


def _noted(before: Pair | None, after: Pair, at_ms: int, reason: str) -> Pair:
    """Return `after`, with the change of its phase added to its transitions."""
    if before is None or _seen(before) == _seen(after):
        return after
    line = (at_ms, before.phase.value, after.phase.value, reason or after.state.detail)
    return replace(after, since_ms=at_ms, transitions=(*after.transitions, line)[-TRANSITIONS_MAX:])


def _seen(pair: Pair) -> tuple[str, str, str]:
    detail = "" if pair.phase in (Phase.ESTABLISHING, Phase.REVOKED) else pair.state.detail
    return pair.phase.value, detail, pair.reason if pair.phase is Phase.DEGRADED else ""


def _opened(body: Mapping[str, Any], at_ms: int, initiator: bool) -> Pair:
    proposal = _proposal(body, at_ms)
    maps = proposal.maps if initiator else tuple((peer, local) for local, peer in proposal.maps)
    return Pair(
        proposal=proposal, initiator=initiator, peer=_peer(body["manifest"]),
        state=Requested() if initiator else Asked(), namespaces=proposal.namespaces, maps=maps, mode=proposal.mode,
        poll_interval_ms=_interval(body.get("poll_interval_ms", POLL_INTERVAL_MS)), start=proposal.start, start_seq=0,
        issued_to_us=None if initiator else proposal.token, issued_by_us=proposal.token if initiator else None,
        answer=None, actors=proposal.actors if initiator else (), filters=(OPEN,), inherits="", peer_said_ms=0,
        created_at_ms=at_ms, since_ms=at_ms, fetched_at_ms=at_ms, steps=0, transitions=(),
    )  # fmt: skip


def _init(_: Pair | None, body: Mapping[str, Any], at_ms: int) -> Pair:
    return _opened(body, at_ms, True)


def _pending(pair: Pair | None, body: Mapping[str, Any], at_ms: int) -> Pair:
    return _opened(body, at_ms, False) if pair is None else replace(pair, state=Waiting())


def _genesis(pair: Pair | None, body: Mapping[str, Any], at_ms: int) -> Pair:
    assert pair is not None
    answer, token, position = body["answer"], _token_ref(body["token"], at_ms), _natural(body["position"])
    fields = answer["message"]
    maps = maps_from_json(fields["maps"])
    agreed = replace(
        pair, namespaces=_texts(fields["namespaces"]), mode=_one_of(fields["mode"], MODES), answer=canon.encode(answer),
        start=_one_of(fields["start"], STARTS), start_seq=position,
    )  # fmt: skip
    if pair.initiator:
        return replace(agreed, state=Answered(), maps=maps, issued_to_us=token)
    return replace(agreed, state=Approved(), maps=tuple((peer, local) for local, peer in maps), issued_by_us=token)


def _active(pair: Pair | None, body: Mapping[str, Any], at_ms: int) -> Pair:
    assert pair is not None
    return replace(pair, state=Active(), inherits=str(body.get("inherits", "")))


def _config(pair: Pair | None, body: Mapping[str, Any], at_ms: int) -> Pair:
    assert pair is not None
    changed: dict[str, Any] = {}
    if "mode" in body:
        changed["mode"] = _one_of(body["mode"], (*MODES, ENGINE))
        changed["carrier"] = _carrier(body["carrier"]) if changed["mode"] == ENGINE else {}
    if "poll_interval_ms" in body:
        changed["poll_interval_ms"] = _interval(body["poll_interval_ms"])
    if "actors" in body:
        changed["actors"] = _texts(body["actors"])
    found = replace(pair.filter, **_filtering(body))
    if found != pair.filter:
        changed["filters"] = (found, *(item for item in pair.filters if item != found))[:FILTERS_MAX]
    return replace(pair, peer_said_ms=_said(pair, body), **changed)


def _filtering(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a body changes of the pair's filter."""
    changed: dict[str, Any] = {}
    if "relay" in body:
        changed["relay"] = body["relay"] is True
    if "thread_allow" in body:
        changed["thread_allow"] = _texts(body["thread_allow"])
    if "thread_rule" in body:
        changed["thread_rule"] = _text(body["thread_rule"])
    return changed


def _paused(pair: Pair | None, body: Mapping[str, Any], at_ms: int) -> Pair:
    assert pair is not None
    state = PAUSES[type(pair.state), body["by"]](str(body.get("reason", "")))
    return replace(pair, state=state, peer_said_ms=_said(pair, body))


def _resumed(pair: Pair | None, body: Mapping[str, Any], at_ms: int) -> Pair:
    assert pair is not None
    return replace(pair, state=RESUMES[type(pair.state), body["by"]](), peer_said_ms=_said(pair, body))


def _degraded(pair: Pair | None, body: Mapping[str, Any], at_ms: int) -> Pair:
    assert pair is not None
    return replace(pair, state=Degraded(str(body["reason"])))


def _recovered(pair: Pair | None, body: Mapping[str, Any], at_ms: int) -> Pair:
    assert pair is not None
    return replace(pair, state=Active())


def _manifest_changed(pair: Pair | None, body: Mapping[str, Any], at_ms: int) -> Pair:
    """A newer manifest whose chain extends the pinned one; a pin by the operator (`pinned`) may replace the chain."""
    assert pair is not None
    peer, had_ms = _peer(body["manifest"]), pair.peer.signed_at_ms
    if body.get("pinned") is not True:
        grown(pair.chain, peer.chain)
    if peer.did != pair.peer_did or (peer.signed_at_ms < had_ms and not manifest.is_ahead(had_ms, at_ms)):
        raise PairError("pair-state-conflict", "the manifest is not a newer one of the peer")
    after = replace(pair, peer=peer, fetched_at_ms=at_ms)
    if (peer.url, peer.chain.present) == (pair.url, pair.chain.present):
        return after  # signed again; that is no event
    line = (at_ms, pair.phase.value, pair.phase.value, "peer_manifest_changed")
    return replace(after, transitions=(*pair.transitions, line)[-TRANSITIONS_MAX:])


def _token_changed(pair: Pair | None, body: Mapping[str, Any], at_ms: int) -> Pair:
    assert pair is not None
    match body["change"]:
        case "revoked":
            return replace(pair, state=Revoking(str(body.get("reason", ""))))
        case "issued to us":
            return replace(pair, issued_to_us=_token_ref(body["token"], at_ms))
        case "issued by us":
            return replace(pair, issued_by_us=_token_ref(body["token"], at_ms))
    raise PairError("bad-field", "the change of a token is unknown")


def _ended(pair: Pair | None, body: Mapping[str, Any], at_ms: int) -> Pair:
    assert pair is not None
    state = Revoked(
        str(body.get("reason", "")), str(body.get("note", "")), by_us=isinstance(pair.state, Revoking),
        paused_by_us=isinstance(pair.state, PausedByUs | PausedByBoth),
    )  # fmt: skip
    ended = replace(pair, state=state)
    return ended if pair.initiator or pair.answer is not None else _bare(ended)


def _bare(pair: Pair) -> Pair:
    """Return a request that ended unapproved, without what its asker claimed.

    The ids, the DID with its keys, the reason and where it came from stay: a replay is recognised, the asker's last
    poll is answered, and the request counts until its day is over.
    """
    peer = replace(pair.peer, url="", namespaces=None, version="", text=b"")
    proposal = replace(pair.proposal, namespaces=(), maps=(), endpoint="", sealed="", token=TokenRef("", (), 0))
    return replace(pair, peer=peer, proposal=proposal, namespaces=(), maps=(), issued_to_us=None)


def _peer(value: object) -> manifest.Manifest:
    """Return a manifest that was verified before it was stored; older versions took larger ones."""
    return manifest.from_json(value, _LIMITS, _LIMITS.manifest_bytes)


def _proposal(body: Mapping[str, Any], at_ms: int) -> Proposal:
    texts = {name: body[name] for name in ("pair_id", "nonce", "start", "endpoint", "sealed", "digest", "url")}
    if not all(isinstance(text, str) for text in texts.values()):
        raise PairError("bad-field", "a text of the request has another type")
    if not (is_pair_id(texts["pair_id"]) and is_nonce(texts["nonce"])):
        raise PairError("bad-field", "pair_id or nonce is malformed")
    return Proposal(
        manifest={}, namespaces=_texts(body["namespaces"]), maps=maps_from_json(body["maps"]),
        mode=_one_of(body["mode"], MODES), token=_token_ref(body["token"], at_ms), strict=body["strict"] is not False,
        actors=_texts(body["actors"]), source=_text(body.get("source", "")), **texts,
    )  # fmt: skip


def _token_ref(value: Mapping[str, Any], at_ms: int) -> TokenRef:
    expires_at_ms, hash_ = when.ms_of(value["expires_at"]), str(value.get("hash", ""))
    return TokenRef(str(value["token_id"]), _texts(value["scopes"]), expires_at_ms, hash_, at_ms)


def _said(pair: Pair, body: Mapping[str, Any]) -> int:
    return max(pair.peer_said_ms, when.ms_of(body["said_at"])) if "said_at" in body else pair.peer_said_ms


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise PairError("bad-field", "not a list of texts")
    return tuple(value)


def _carrier(value: Mapping[str, Any]) -> dict[str, str]:
    return {name: _text(value[name]) for name in ("url", "creds", "ca")}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise PairError("bad-field", "not a text")
    return value


def _natural(value: object) -> int:
    if type(value) is not int or value < 0:
        raise PairError("bad-field", "not a number from 0")
    return value


def _interval(value: object) -> int:
    return min(_natural(value), POLL_INTERVAL_MS_MAX)


def _one_of(value: object, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise PairError("bad-field", f"not one of {', '.join(choices)}")
    return value


PAUSES: Final[Mapping[tuple[type[State], str], type[State]]] = {
    (Active, "us"): PausedByUs,
    (Degraded, "us"): PausedByUs,
    (PausedByPeer, "us"): PausedByBoth,
    (Active, "peer"): PausedByPeer,
    (Degraded, "peer"): PausedByPeer,
    (PausedByUs, "peer"): PausedByBoth,
}
"""(state, who pauses) -> the state after."""

RESUMES: Final[Mapping[tuple[type[State], str], type[State]]] = {
    (PausedByUs, "us"): Active,
    (PausedByBoth, "us"): PausedByPeer,
    (PausedByPeer, "peer"): Active,
    (PausedByBoth, "peer"): PausedByUs,
}
"""(state, who resumes) -> the state after."""

PAUSED: Final = frozenset({PausedByUs, PausedByPeer, PausedByBoth})
ESTABLISHED: Final = PAUSED | {Active, Degraded}
ESTABLISHING: Final = frozenset({Requested, Waiting, Answered, Asked, Approved})

RULES: Final[Mapping[str, tuple[frozenset[type], Callable[[Pair | None, Mapping[str, Any], int], Pair]]]] = {
    "pair_init.v1": (frozenset({type(None)}), _init),
    "pair_pending.v1": (frozenset({type(None), Requested}), _pending),
    "pair.genesis.v1": (frozenset({Requested, Waiting, Asked}), _genesis),
    "pair_active.v1": (frozenset({Answered, Approved}), _active),
    "pair_config.v1": (ESTABLISHED, _config),
    "pair_pause.v1": (frozenset(state for state, _ in PAUSES), _paused),
    "pair_resume.v1": (frozenset(state for state, _ in RESUMES), _resumed),
    "pair_degraded.v1": (frozenset({Active, Degraded}), _degraded),
    "pair_recovered.v1": (frozenset({Degraded}), _recovered),
    "peer_manifest_changed.v1": (ESTABLISHED | ESTABLISHING, _manifest_changed),
    "pair_token.v1": (ESTABLISHED | ESTABLISHING, _token_changed),
    "pair.revoke.v1": (ESTABLISHED | ESTABLISHING | {Revoking}, _ended),
    "pair_rejected.v1": (ESTABLISHING, _ended),
}
"""Kind of body -> the states that take it, and how."""


def in_effect(pairs: Iterable[Pair], did: str) -> list[Pair]:
    """Return the agreed pairs with this peer that may bear limits of our operator: the last one in use, and later ones.

    The last one in use is the one that ended last, or lives: a peer may have asked for it before others.  One that the
    peer never confirmed says nothing of the one before it.
    """
    agreed = [pair for pair in pairs if pair.peer_did == did and pair.answer is not None]
    used = [(_ended_ms(pair), place) for place, pair in enumerate(agreed) if _was_used(pair)]
    if not used:
        return agreed
    last_ms, last = max(used)
    return [pair for place, pair in enumerate(agreed) if place >= last or _ended_ms(pair) >= last_ms]


def _ended_ms(pair: Pair) -> float:
    return pair.since_ms if pair.ended else inf


def _was_used(pair: Pair) -> bool:
    """Return whether the pair was ever confirmed."""
    is_now = pair.phase not in (Phase.ESTABLISHING, Phase.REVOKED)
    return is_now or any(before != Phase.ESTABLISHING.value for _, before, _, _ in pair.transitions)


def is_by_hand(pair: Pair) -> bool:
    """Return whether only our operator may admit the peer of this agreed pair again, and no rule.

    So it is if our operator ended it, paused it or narrowed it, also if the peer ended it since: a new pair would be
    without all that.  A peer that lost its home, and asks while its pair stands, is admitted as before.
    """
    state = pair.state
    is_paused = state.paused_by_us if isinstance(state, Revoked) else isinstance(state, PausedByUs | PausedByBoth)
    return pair.ended_by_us or is_paused or pair.filter != OPEN or bool(pair.actors)


def summary(pair: Pair) -> Json:
    """Return what `list` shows of a pair; the caller adds what it knows of its syncing."""
    note = pair.state.note if isinstance(pair.state, Revoked) else ""
    detail = pair.state.detail or (f"{pair.reason}: {note}" if note else pair.reason)
    return {
        "object": "pair",
        "pair_id": pair.pair_id,
        "peer_did": pair.peer_did,
        "url": pair.url,
        "state": pair.phase.value,
        "state_detail": detail,
        "mode": pair.mode,
        "poll_interval_ms": pair.poll_interval_ms,
        "initiator": pair.initiator,
        "namespaces": list(pair.namespaces),
    }
