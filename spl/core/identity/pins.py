"""One table of the key chains that are pinned: of peers, of signers whose records were relayed, of what was restored.

The first chain seen of a DID, directly or through a relay, is pinned and may only grow by whole statements.  `grown`
is the one comparison of two chains: for this table, for manifests, for the chain of a pair and for a restored identity.

The table is fed in log order by the pair records of agreed pairs and by the pin records of relayed signers, so that
every start gives the same table.  A shorter chain changes nothing.  A chain that contradicts the pinned one is a fork:
the pinned chain stays, the DID is marked, and relayed records of it are refused until an operator names the key
(`--expect-key`), which replaces the chain.  The owner's own pair continues under the pinned chain, for otherwise a
thief of an old key could shut the owner out.  A fork that the thief of a compromised key can make marks nothing.

Rejected: the longest chain that any source shows, which four places used to take.  A thief of an old key makes the
longest chain in a second.

Rejected: that a DID's own handshake wins over a chain that a relay or a file showed first.  A handshake proves the key
at the end of a chain and nothing more, and the DID certifies the first key alone, which the thief has as well as the
owner: a thief of a key that was given up as compromised would shake hands and replace the owner's relayed rotation.
Which of two chains is the owner's is known to people, who compare key words.

A pair may add a signer only while it holds fewer entries than are free, so a peer that invents signers takes half of
the table, the next one half of the rest, and a new signer of another peer always finds a place.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from ..limits import Limits
from ..value import Json, dataclass, field
from .did import Chain, DidError, Rotation, chain_from_json

FORK: Final = "chain-fork"
STALE: Final = "manifest-stale"
KIND_CHAIN: Final = "syncropel.federation.chain_pin.v1"


@dataclass(frozen=True, slots=True)
class Pin:
    """One pinned chain; `via` is the pair that taught it, "" for that of a peer or of an operator's word."""

    chain: Chain
    via: str = ""
    forked: bool = False


@dataclass(frozen=True, slots=True)
class Pins:
    """The pinned chains by DID; a value, replaced when it changes."""

    by_did: Mapping[str, Pin] = field(default_factory=lambda: MappingProxyType({}))

    def chain(self, did: str) -> Chain | None:
        """Return the pinned chain of a DID, None if there is none."""
        pin = self.by_did.get(did)
        return pin.chain if pin is not None else None

    def is_forked(self, did: str) -> bool:
        """Return whether two chains of the DID contradict each other, and no operator chose one since."""
        pin = self.by_did.get(did)
        return pin is not None and pin.forked

    def code_of(self, offered: Chain) -> str:
        """Return "" for a chain that equals or extends the pinned one, else "manifest-stale" or "chain-fork"."""
        pin = self.by_did.get(offered.did)
        return code_of(pin.chain, offered) if pin is not None else ""

    def newest(self, chain: Chain) -> Chain:
        """Return the chain whose present key is authoritative: the pinned one if it extends this one, else this one."""
        pinned = self.chain(chain.did)
        return pinned if pinned is not None and self.code_of(chain) == STALE else chain

    def has_room(self, via: str, limits: Limits) -> bool:
        """Return whether this pair may teach one more signer: it has fewer places than there are left."""
        taught = sum(pin.via == via for pin in self.by_did.values())
        return taught < limits.chains_count - sum(bool(pin.via) for pin in self.by_did.values())

    def seen(self, chain: Chain, via: str = "") -> "Pins":
        """Return the pins after a verified chain was seen: pinned, grown, marked as forked, or as they were."""
        pin = self.by_did.get(chain.did)
        if pin is None:
            return self._with(Pin(chain, via))
        if pin.chain == chain:
            return self
        if self.proves_fork(chain):
            return self._with(Pin(pin.chain, pin.via, True))
        return self if code_of(pin.chain, chain) else self._with(Pin(chain, pin.via, pin.forked))

    def proves_fork(self, offered: Chain) -> bool:
        """Return whether a chain contradicts the pinned one by a statement that may be its owner's.

        What is signed by a key that the pinned chain calls compromised proves nothing: the thief of that key would shut
        the owner out by it.
        """
        pinned = self.chain(offered.did)
        if pinned is None or code_of(pinned, offered) != FORK:
            return False
        pairs = zip(pinned.rotations, offered.rotations, strict=False)
        first = next((ours for ours, theirs in pairs if not _follows(ours, theirs)), None)
        return first is None or first.reason != "compromised"

    def chosen(self, chain: Chain) -> "Pins":
        """Return the pins after an operator named the key at the end of this chain, which settles a fork."""
        return self._with(Pin(chain))

    def _with(self, pin: Pin) -> "Pins":
        return Pins({**self.by_did, pin.chain.did: pin})


def grown(pinned: Chain, offered: Chain) -> Chain:
    """Return the offered chain if it equals or extends the pinned one.

    Whole statements are compared, for a thief of an old key can state another reason or time for the same successor.
    Only `compromised` replaces `retired`: it takes trust away, which is safe to believe of any holder of the key.
    Raises DidError "manifest-stale" for a shorter one, "chain-fork" for two statements of one key.
    """
    same = pinned.did == offered.did and pinned.first == offered.first
    if not same or not all(map(_follows, pinned.rotations, offered.rotations)):
        raise DidError(FORK, f"two key chains of {pinned.did[:80]} contradict each other")
    if len(offered.keys) < len(pinned.keys):
        raise DidError(STALE, "the peer shows a shorter key chain than it did before")
    return offered


def code_of(pinned: Chain, offered: Chain) -> str:
    """Return "" for a chain that equals or extends the pinned one, else "manifest-stale" or "chain-fork"."""
    try:
        grown(pinned, offered)
    except DidError as exc:
        return exc.code
    return ""


def is_fork(pinned: Chain, offered: Chain) -> bool:
    """Return whether two chains contradict each other; raise DidError "manifest-stale" for a shorter one."""
    try:
        grown(pinned, offered)
    except DidError as exc:
        if exc.code != FORK:
            raise
        return True
    return False


def fold(pins: Pins, body: Mapping[str, Any], limits: Limits) -> Pins:
    """Return the pins after one pin record; what is no verified chain is skipped."""
    try:
        chain = chain_from_json(body.get("chain"), limits)
    except DidError:
        return pins
    if body.get("pinned") is True:
        return pins.chosen(chain)
    return pins.seen(chain, str(body.get("pair_id", "")))


def pin_body(chain: Chain, *, via: str = "", chosen: bool = False) -> Json:
    """Return the body of a pin record; `chosen`: an operator named the key, `via`: the pair that showed the chain."""
    body: Json = {"chain": chain.to_json()}
    return body | ({"pair_id": via} if via else {}) | ({"pinned": True} if chosen else {})


def _follows(pinned: Rotation, offered: Rotation) -> bool:
    """Return whether a statement repeats the pinned one, or says `compromised` of the same keys."""
    if (pinned.old, pinned.new) != (offered.old, offered.new):
        return False
    same = (pinned.reason, pinned.at_ms) == (offered.reason, offered.at_ms)
    return same or (pinned.reason == "retired" and offered.reason == "compromised")
