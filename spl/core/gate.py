"""The consumer's gate: what a pair may bring in, and whose signature stands under it.

It trusts no filter but its own.  Everything that a peer sends passes `Gate.judge`: form and id, what the pair allows
of the namespace that it comes from, thread, actor, then the signature against the signer's pinned key chain.  `sig.key`
is a hint, never evidence.  `inbound` (consent.py) says what each of the peer's namespaces may bring, and into which of
ours: records, projections down to one level, both or nothing.

A record names the namespace that its first holder put it into, and nothing else proves where it belongs.  A relayed
one may have crossed into another name on its way, which only the instances on that way know.  But it must not name
another namespace of ours, unless its signer's own pair with us maps that name here: a peer could otherwise bring
guesses at what a private namespace holds, and put them where that namespace's tenant does not see them.  Refusing every
name that we do not know was rejected: a hub could then relay nothing that crossed into its namespace (a peer learns
from the refusal that a namespace of this name exists here, and nothing of what is in it).

Not every key of a chain counts for ever.  Its own holder may bring what any of them signed.  Through others a
compromised key counts no more, and a retired one for RETIRED_GRACE_MS past its rotation: a thief of an old key could
otherwise sign new records for ever, and no record proves its own age.  Of our own retired keys not even that day
counts, for all that they signed stands in our log.  Only a log that lacks something takes it back from peers: one that
began after the key (Trust.regains_ms), that is damaged, or that the operator has repaired with --accept-retired.

Cost per record: one encoding and hash of the record, one Ed25519 check (or, in a batch, a few hashes and a look into
the memory of checked roots).  A gate belongs to one pull; threads may share it.
"""

from collections.abc import Mapping
from typing import Final

from . import keys
from .consent import Inbound
from .errors import SplError
from .identity.did import Chain, multibase
from .identity.pins import FORK, Pins
from .limits import Limits
from .record import batch, levels, record
from .record.levels import Projection
from .record.namespace import Namespace
from .record.record import Envelope
from .value import dataclass, field

CHAIN_UNKNOWN: Final = "chain-unknown"
KEY_RETIRED: Final = "key-retired"
SCOPE_VIOLATION: Final = "scope-violation"
SIGNATURE: Final = "record-signature"
BLOCKED: Final = "signer-blocked"

RETIRED_GRACE_MS: Final = 86_400_000
"""What was signed just before a rotation may be on its way, through relays that poll seldom, for a day."""

ALWAYS_MS: Final = 2**63
_NEVER: Final = (b"", 0)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on one envelope or projection: accepted if `code` is "", else refused with it.

    `ns` is the local namespace of what was accepted, and the peer's of what was refused; `by` names the signer.
    """

    id: str
    ns: str
    code: str = ""
    by: str = ""
    envelope: Envelope | None = field(default=None, repr=False)
    projection: Projection | None = field(default=None, repr=False)


class Roots:
    """Batch signatures that were checked: a bounded memory shared by all pulls and threads.

    Two generations instead of an order: when the younger is full, the older is dropped.  Adding to a set and binding a
    name are atomic, so no lock is needed; a race costs a second check at most.
    """

    def __init__(self, count_max: int) -> None:
        self._half = max(1, count_max // 2)
        self._young: set[tuple[bytes, int, bytes, bytes]] = set()
        self._old: set[tuple[bytes, int, bytes, bytes]] = set()

    def verify(self, key: bytes, size: int, root: bytes, value: bytes) -> bool:
        """Return whether the key signed this root for this size; only valid signatures are remembered."""
        name = (key, size, root, value)
        if name in self._young:
            return True
        if name not in self._old and not keys.verify(key, batch.signed_text(size, root), value):
            return False
        if len(self._young) >= self._half:
            self._old, self._young = self._young, set()
        self._young.add(name)
        return True


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose signatures count at one moment: our own chain, the pinned ones, and what the records come from.

    `peer_did` brings the records, "" for a snapshot of ours.  Records by `blocked` DIDs are refused from everyone.
    `now_ms` decides whether a retired key still counts; with 0 it does, and so does one of ours until `regains_ms`.
    Those of `whole_by` count in any case, for its present key signed all that it brings as a whole; if we are that,
    everybody's do, compromised ones too, for we held what our present key vouches for.
    """

    own: Chain
    peer_did: str
    pins: Pins
    blocked: frozenset[str] = frozenset()
    now_ms: int = 0
    whole_by: str = ""
    regains_ms: int = 0


class Gate:
    """The rules of one pair at one moment."""

    def __init__(
        self,
        *,
        pair_id: str,
        inbound: Mapping[str, Inbound],
        actors: frozenset[str],
        trust: Trust,
        crossings: Mapping[tuple[str, str], str],
        registry: Mapping[str, Namespace],
        roots: Roots,
        limits: Limits,
    ) -> None:
        """`inbound` by the peer's namespace; `actors` empty means all; `crossings` as `consent.crossings` has them.

        `registry` are our namespaces, archived ones included.
        """
        self.pair_id = pair_id
        self.inbound = inbound
        self.actors = actors
        self.trust = trust
        self.limits = limits
        self._crossings = crossings
        self._registry = registry
        self._roots = roots
        # Multibase costs more than a hash, so the texts of a chain's keys are computed once, at its first record.
        # Threads share it without a lock: each computes the same value, and storing it is atomic.
        self._keys: dict[str, Mapping[str, tuple[bytes, int]]] = {}

    def judge(self, value: object, ns: object) -> Verdict:
        """Return the verdict on one decoded item and the namespace it claims; never raises for bad input."""
        name = ns if isinstance(ns, str) else ""
        try:
            if levels.is_projection(value):
                return self._judge_projection(levels.parse(value, self.limits), name)
            envelope = record.from_json(value, self.limits)
            if envelope.raw.count(b"{") + envelope.raw.count(b"[") > self.limits.nesting_levels + 2:
                # `page.decode` is lenient; an envelope that may be too deep is decoded again, strictly.
                envelope = record.parse(envelope.raw, self.limits)
        except SplError as exc:
            return Verdict(claimed_id(value), name, exc.code)
        by, allowed = envelope.sig.by, self.inbound.get(name)
        code = self._scope_code(envelope, name, allowed) or self.signature_code(envelope)
        return Verdict(envelope.id, name if code or allowed is None else allowed.ns, code, by, envelope)

    def _judge_projection(self, projection: Projection, ns: str) -> Verdict:
        allowed = self.inbound.get(ns)
        code = self._claim_code(projection, ns, allowed) or self._claim_signature_code(projection)
        return Verdict(
            projection.id, ns if code or allowed is None else allowed.ns, code, projection.by, projection=projection
        )

    def _scope_code(self, envelope: Envelope, ns: str, allowed: Inbound | None) -> str:
        value, by, trust = envelope.record, envelope.sig.by, self.trust
        if record.is_reserved(value["thread"]) or allowed is None or not allowed.full:
            return SCOPE_VIOLATION
        named = record.namespace_of(value)
        if by in (trust.peer_did, trust.own.did):
            belongs = named == (ns if by == trust.peer_did else allowed.ns)
        else:
            belongs = (
                named in (ns, allowed.ns)
                or named not in self._registry
                or self._crossings.get((by, named)) == allowed.ns
            )
        if not belongs:
            return SCOPE_VIOLATION
        if by in trust.blocked:
            return BLOCKED
        actor = value["actor"]
        if actor.startswith(record.INSTANCE_PREFIX) and actor != by:
            return SCOPE_VIOLATION
        return SCOPE_VIOLATION if self.actors and actor not in self.actors else ""

    def _claim_code(self, projection: Projection, ns: str, allowed: Inbound | None) -> str:
        """Return "" for a projection in scope: from the very namespace that was consented to, at its level or finer.

        A finer one was in transit while its source lowered the level, and arrives only once.
        """
        if record.is_reserved(projection.record["thread"]) or allowed is None or projection.ns != ns:
            return SCOPE_VIOLATION
        if allowed.level < projection.level:
            return SCOPE_VIOLATION
        if projection.by in self.trust.blocked:
            return BLOCKED
        # From L2 on the actor is hidden, so it may not be one that the pair is restricted to.
        return SCOPE_VIOLATION if self.actors and projection.record.get("actor") not in self.actors else ""

    def _claim_signature_code(self, projection: Projection) -> str:
        """Return "" if the peer itself signed the projection for this pair: claims are not relayed."""
        if projection.by != self.trust.peer_did:
            return SIGNATURE
        use = self._keys_of(projection.by).get(projection.key)
        if use is None:
            return CHAIN_UNKNOWN
        key, _ = use
        return "" if key and levels.verify(projection, self.pair_id, key) else SIGNATURE

    def signature_code(self, envelope: Envelope) -> str:
        """Return "" if the envelope's signature holds under a pinned chain, else the code that refuses it."""
        sig, trust = envelope.sig, self.trust
        use = self._keys_of(sig.by).get(sig.key)
        if use is None:
            return SIGNATURE if sig.by == trust.own.did else CHAIN_UNKNOWN
        if trust.pins.is_forked(sig.by) and sig.by not in (trust.peer_did, trust.own.did):
            return FORK
        key, until_ms = use
        if not key:
            return SIGNATURE
        if until_ms < trust.now_ms:
            return KEY_RETIRED
        text = record.signed_text(envelope.id, envelope.record["judged_by"])
        if sig.batch is None:
            good = keys.verify(key, text, sig.value)
        else:
            good = self._roots.verify(key, sig.batch.size, batch.root_of(text, sig.batch), sig.value)
        return "" if good else SIGNATURE

    def is_compromised(self, envelope: Envelope) -> bool:
        """Return whether the envelope names a key of its signer that its chain says was stolen, and nobody vouches."""
        use = self._keys_of(envelope.sig.by).get(envelope.sig.key)
        return use is not None and not use[0]

    def _keys_of(self, did: str) -> Mapping[str, tuple[bytes, int]]:
        """Return key text -> (key, until when it counts) of a signer; without a pinned chain there are none."""
        known = self._keys.get(did)
        if known is None:
            trust = self.trust
            chain = trust.own if did == trust.own.did else trust.pins.chain(did)
            known = _usable_keys(chain, trust) if chain is not None else {}
            if chain is not None:
                self._keys[did] = known
        return known


def claimed_id(value: object) -> str:
    """Return the id that a decoded envelope claims, or a digest instead, so that the ledger can name it."""
    claimed = value.get("id") if isinstance(value, dict) else None
    return (
        claimed
        if isinstance(claimed, str) and record.is_id(claimed)
        else keys.digest(repr(value)[:4096].encode(errors="replace"))
    )


def _usable_keys(chain: Chain, trust: Trust) -> dict[str, tuple[bytes, int]]:
    """Return key text -> (key, until when it counts).

    A compromised one never does, unless its own holder brings it, over its pair or in a whole, or a whole of ours does.
    """
    from_signer = chain.did == trust.peer_did
    is_vouched = from_signer or trust.whole_by in (chain.did, trust.own.did)
    found = {multibase(chain.present): (chain.present, ALWAYS_MS)}
    for step in chain.rotations:
        until_ms = step.at_ms + RETIRED_GRACE_MS
        if is_vouched:
            until_ms = ALWAYS_MS
        elif chain.did == trust.own.did:
            until_ms = trust.regains_ms
        found[multibase(step.old)] = _NEVER if step.reason == "compromised" and not is_vouched else (step.old, until_ms)
    return found
