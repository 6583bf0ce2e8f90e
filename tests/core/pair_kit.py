"""Values for the tests of the pair machine: two real identities, a request, a grant, and one event of each class."""

from collections.abc import Mapping
from typing import Any

from spl.core import canon
from spl.core.identity import manifest
from spl.core.identity.did import Chain, did_of, rotate
from spl.core.keys import SecretKey, box_public
from spl.core.limits import Limits
from spl.core.pair.pair import Pair, fold
from spl.core.pair.state import Proposal, TokenRef
from spl.core.pair.steps import (
    Agree,
    Append,
    Approve,
    Ask,
    Begin,
    Configure,
    Confirm,
    Degrade,
    Effect,
    End,
    ManifestChange,
    PairEvent,
    Park,
    Pause,
    PeerPause,
    PeerResume,
    Recover,
    Resume,
    Revoke,
    TokenChange,
    Told,
)

LIMITS = Limits()
NOW_MS = 1_764_000_000_000
KEY, NEXT_KEY = SecretKey(b"\1" * 32), SecretKey(b"\2" * 32)
CHAIN = Chain(did_of("bob", KEY.public), KEY.public)
GROWN = rotate(CHAIN, KEY, NEXT_KEY.public, "retired", NOW_MS)
PEER = CHAIN.did


def a_manifest(chain: Chain = CHAIN, key: SecretKey = KEY, at_ms: int = NOW_MS) -> dict[str, Any]:
    """Return a federation_manifest of bob."""
    document = manifest.build(
        chain, key, box_public(b"\3" * 32), url="https://bob.example", namespaces=["default"], version="1",
        now_ms=at_ms, limits=LIMITS,
    )  # fmt: skip
    found: dict[str, Any] = document["federation_manifest"]
    return found


MANIFEST = a_manifest()
LATER = a_manifest(GROWN, NEXT_KEY, NOW_MS + 1000)
TOKEN = TokenRef("tok_00000001", ("federation:subscribe", "federation:sync"), NOW_MS + 1, "ab" * 32)
OTHER_TOKEN = TokenRef("tok_00000002", ("federation:sync",), NOW_MS + 2)
PROPOSAL = Proposal(
    "pair_0badcafe", "0" * 32, MANIFEST, ("default", "music"), (("a", "b"),), "polling", "",
    "https://alice.example/v1/federation/pair", TOKEN, "c2VhbGVk", digest="d" * 64, url="https://bob.example/",
)  # fmt: skip
GRANT = {
    "message": {
        "namespaces": ["default"], "maps": [{"local": "a", "peer": "b"}], "mode": "polling", "start": "present",
    },
    "signature": "c2lnbmF0dXJl",
}  # fmt: skip
EVENTS: tuple[PairEvent, ...] = (
    Begin(PROPOSAL, 300_000), Ask(PROPOSAL, 300_000), Park(), Agree(GRANT, OTHER_TOKEN, 7), Approve(GRANT, TOKEN, 7),
    Confirm("pair_00000000"), Pause("upgrade"), Resume(), PeerPause(NOW_MS), PeerResume(NOW_MS + 1),
    Degrade("timeout"), Recover(), Configure({"mode": "on-demand", "poll_interval_ms": 1000, "relay": False}),
    ManifestChange(LATER), TokenChange(True, OTHER_TOKEN), TokenChange(False, OTHER_TOKEN), Revoke("over"), Told(),
    End("expired"),
    Configure({"thread_allow": ["th_a"], "thread_rule": "true"}), Configure({"relay": True, "thread_rule": ""}),
)  # fmt: skip
PATHS: Mapping[str, tuple[PairEvent, ...]] = {
    "none": (),
    "Requested": EVENTS[0:1],
    "Waiting": (EVENTS[0], Park()),
    "Answered": (EVENTS[0], EVENTS[3]),
    "Asked": EVENTS[1:2],
    "Approved": (EVENTS[1], EVENTS[4]),
    "Active": (EVENTS[0], EVENTS[3], Confirm()),
    "PausedByUs": (EVENTS[0], EVENTS[3], Confirm(), Pause()),
    "PausedByPeer": (EVENTS[1], EVENTS[4], Confirm(), PeerPause(1)),
    "PausedByBoth": (EVENTS[1], EVENTS[4], Confirm(), PeerPause(1), Pause()),
    "Degraded": (EVENTS[0], EVENTS[3], Confirm(), Degrade("dns")),
    "Revoking": (EVENTS[0], EVENTS[3], Confirm(), Revoke("over")),
    "Revoked": (EVENTS[0], End("expired")),
}
"""State -> events that lead there."""


def bodies(effects: tuple[Effect, ...]) -> list[dict[str, Any]]:
    """Return the record bodies that the effects append, as they come back from the disk."""
    kept = [{**effect.body, "kind": effect.kind} for effect in effects if isinstance(effect, Append)]
    return [canon.decode(canon.encode(body)) for body in kept]


def folded(found: list[dict[str, Any]]) -> Pair | None:
    """Return the pair that the bodies tell."""
    pairs: Mapping[str, Pair] = {}
    for body in found:
        pairs = fold(pairs, body)
    return pairs.get(PROPOSAL.pair_id)
