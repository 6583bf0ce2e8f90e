"""The consumer's gate: what a pair may bring in, and whose signature stands under it.

It trusts no filter but its own.  Everything that a peer sends passes `Gate.judge`: form and id, the inlet of the
namespace that it comes from, thread, actor, then the signature against the signer's verified key chain.  `sig.key` is a
hint, never evidence.  The inlets (consent.py) say what each of the peer's namespaces may bring, and into which of ours:
records, projections down to one level, both or nothing.

Cost per record: one encoding and hash of the record, one Ed25519 check (or, in a batch, a few hashes and a look into
the memory of checked roots).  A gate belongs to one pull; threads may share it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from . import keys
from .consent import Inbound
from .errors import SplError
from .identity.did import Chain, multibase
from .limits import Limits
from .record import batch, levels, record
from .record.levels import Projection
from .record.record import Envelope

CHAIN_UNKNOWN = "chain-unknown"
SCOPE_VIOLATION = "scope-violation"
SIGNATURE = "record-signature"
BLOCKED = "signer-blocked"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one envelope or projection: accepted where `code` is "", else refused with it.

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

    Two generations instead of an order: when the younger is full the older is forgotten.  A set takes one member at a
    time and a name is bound at once, so no lock is needed; the worst that a race costs is a second check.
    """

    def __init__(self, count_max: int) -> None:
        self._half = max(1, count_max // 2)
        self._young: set[tuple[bytes, int, bytes, bytes]] = set()
        self._old: set[tuple[bytes, int, bytes, bytes]] = set()

    def verify(self, key: bytes, size: int, root: bytes, value: bytes) -> bool:
        """Tell whether the key signed this root for this size; only what verified is remembered."""
        name = (key, size, root, value)
        if name in self._young:
            return True
        if name not in self._old and not keys.verify(key, batch.signed_text(size, root), value):
            return False
        if len(self._young) >= self._half:
            self._old, self._young = self._young, set()
        self._young.add(name)
        return True


class Gate:
    """The rules of one pair at one moment."""

    def __init__(
        self,
        *,
        pair_id: str,
        inlets: Mapping[str, Inbound],
        actors: frozenset[str],
        own_did: str,
        peer_did: str,
        chains: Mapping[str, Chain],
        roots: Roots,
        limits: Limits,
        blocked: frozenset[str] = frozenset(),
    ) -> None:
        """`inlets` by the peer's namespace; `actors` empty means all; `chains` are verified and pinned, ours too.

        `blocked` are DIDs whose records are refused, whoever brings them.
        """
        self.pair_id = pair_id
        self.inlets = inlets
        self.actors = actors
        self.own_did = own_did
        self.peer_did = peer_did
        self.limits = limits
        self.blocked = blocked
        self._roots = roots
        # Multibase costs more than a hash, so each chain's keys are written out once.
        self._keys = {did: _usable_keys(chain, did == peer_did) for did, chain in chains.items()}

    def judge(self, value: object, ns: object) -> Verdict:
        """Return the verdict over one decoded item and the namespace it claims; never raises for bad input."""
        name = ns if isinstance(ns, str) else ""
        try:
            if levels.is_projection(value):
                return self._judge_projection(levels.parse(value, self.limits), name)
            envelope = record.from_json(value, self.limits)
            if envelope.raw.count(b"{") + envelope.raw.count(b"[") > self.limits.nesting_levels + 2:
                # `page.decode` reads plainly; only what may be too deep is decoded again, with the strict decoder.
                envelope = record.parse(envelope.raw, self.limits)
        except SplError as exc:
            return Verdict(claimed_id(value), name, exc.code)
        by, inlet = envelope.sig.by, self.inlets.get(name)
        code = self._scope_code(envelope, name, inlet) or self.signature_code(envelope)
        return Verdict(envelope.id, name if code or inlet is None else inlet.ns, code, by, envelope)

    def _judge_projection(self, shown: Projection, ns: str) -> Verdict:
        inlet = self.inlets.get(ns)
        code = self._claim_code(shown, ns, inlet) or self._claim_signature_code(shown)
        return Verdict(shown.id, ns if code or inlet is None else inlet.ns, code, shown.by, projection=shown)

    def _scope_code(self, envelope: Envelope, ns: str, inlet: Inbound | None) -> str:
        value, by = envelope.record, envelope.sig.by
        if record.is_reserved(value["thread"]) or inlet is None or not inlet.full:
            return SCOPE_VIOLATION
        # A record belongs where its first holder put it; what others relay may have crossed into another on its way.
        named = record.namespace_of(value)
        if (by == self.peer_did and named != ns) or (by == self.own_did and named != inlet.ns):
            return SCOPE_VIOLATION
        if by in self.blocked:
            return BLOCKED
        actor = value["actor"]
        if actor.startswith(record.INSTANCE_PREFIX) and actor != by:
            return SCOPE_VIOLATION
        return SCOPE_VIOLATION if self.actors and actor not in self.actors else ""

    def _claim_code(self, shown: Projection, ns: str, inlet: Inbound | None) -> str:
        """Return "" for a projection in scope: from the very namespace that was consented to, at its level or finer.

        A finer one was on its way while its source lowered the level, and comes only once.
        """
        if record.is_reserved(shown.record["thread"]) or inlet is None or shown.ns != ns:
            return SCOPE_VIOLATION
        if inlet.level < shown.level:
            return SCOPE_VIOLATION
        if shown.by in self.blocked:
            return BLOCKED
        # From L2 on the actor is hidden, so nobody can tell that it is one of those that the pair is narrowed to.
        return SCOPE_VIOLATION if self.actors and shown.record.get("actor") not in self.actors else ""

    def _claim_signature_code(self, shown: Projection) -> str:
        """Return "" when the peer itself signed the projection for this pair: nobody relays another's claim."""
        if shown.by != self.peer_did:
            return SIGNATURE
        key = self._keys.get(self.peer_did, {}).get(shown.key)
        if key is None:
            return CHAIN_UNKNOWN
        return "" if key and levels.verify(shown, self.pair_id, key) else SIGNATURE

    def signature_code(self, envelope: Envelope) -> str:
        """Return "" when the envelope's signature holds under a chain known here, else the code that refuses it."""
        sig = envelope.sig
        known = self._keys.get(sig.by)
        key = known.get(sig.key) if known is not None else None
        if key is None:
            return SIGNATURE if sig.by == self.own_did else CHAIN_UNKNOWN
        if not key:
            return SIGNATURE
        text = record.signed_text(envelope.id, envelope.record["judged_by"])
        if sig.batch is None:
            good = keys.verify(key, text, sig.value)
        else:
            good = self._roots.verify(key, sig.batch.size, batch.root_of(text, sig.batch), sig.value)
        return "" if good else SIGNATURE


def claimed_id(value: object) -> str:
    """Return the id that a decoded envelope claims, or a digest in its place, so that the ledger can name it."""
    claimed = value.get("id") if isinstance(value, dict) else None
    return (
        claimed
        if isinstance(claimed, str) and record.is_id(claimed)
        else keys.digest(repr(value)[:4096].encode(errors="replace"))
    )


def _usable_keys(chain: Chain, from_signer: bool) -> dict[str, bytes]:
    """Return the chain's keys by their text; a compromised one is empty, unless its own holder brings the record."""
    lost = {step.old for step in chain.rotations if step.reason == "compromised"}
    return {multibase(key): b"" if key in lost and not from_signer else key for key in chain.keys}
