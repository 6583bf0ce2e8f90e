"""The messages of a handshake: building and checking each one, pure.  The steps have their numbers here.

    1  request   initiator -> responder   manifest, terms, its token sealed; signed under "pair-request"
         1a  size, nesting, garbage of the source, form
         1b  the message's signature, by the key that it claims and whose chain begins at what the DID certifies
         1c  signed messages of the source, then key chain, manifest, terms, audience
         1d  age, the chain pinned for this DID, a DID that is not ours, a pair id that is new
         1e  permission rules, federation.approval, blocked DIDs
         1f  the sealed token, room among the requests of the last 24 hours, then the nonce
         1g  a record that waits for the operator (answer 202), or step 3 at once (answer 200)
    2  poll      either    -> other       its own state of the pair, and a question for the other's
    3  grant     responder -> initiator   the agreed terms, its token sealed; the signed answer to step 1 or 2
         3a  responder: the initiator's token into the vault
         3b  responder: the genesis record, with the grant and its own token
         3c  initiator: the grant verified, the responder's token into the vault
         3d  initiator: the genesis record, which makes its own token known
    4  confirm   initiator -> responder   its genesis is durable; the first use of its token says the same
         4a  responder: active; older pairs with this peer end, their positions go on
         4b  initiator: the same after the answer; each side pulls

Later messages, either -> other: "notify-revoke"; "renew", whose answer holds a new token, sealed; "consent", grants;
"log", the transitions of the pair.

A crash between two steps repeats one: 1 is answered "seen" and then 2 asks, 3 travels inside each answer to 2 until 4.

Every message gets a signed answer {request_digest, status, state, …}.  The grant is kept as it was made and travels
inside the answers to later polls, byte-identical, until the confirmation; its nonce is that of its sealed token.
But for the request, a message carries its sender's present manifest, so that a peer which rotated its key or moved
says so itself and its message can be verified.

The two sides share no secret and no server, and plain http has to do: so each token is sealed to the key of its
receiver, and each message is signed for its audience.  Rejected: a grant that the responder sends by itself, which
would never reach an initiator behind a NAT; it is an answer instead.  And a pair that is active once it is granted:
if that answer were lost, the responder would have ended an older pair for one that the initiator does not know, so
step 4 says that both have it.  The cost is one round of messages more, and one poll if a person decides.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from .. import canon, keys
from ..errors import SplError
from ..identity import bearer, manifest, message
from ..identity.manifest import Manifest, ManifestError
from ..identity.pins import FORK
from ..keys import SecretKey
from ..limits import Limits
from ..record import namespace
from ..record.namespace import DEFAULT, Namespace, NamespaceError
from ..value import Json, dataclass, replace
from .modes import check_mode
from .state import STARTS, Approved, Asked, Pair, Proposal, Requested, TokenRef, Waiting, maps_from_json, maps_to_json

SCOPES: Final = bearer.FEDERATION
ENDED: Final = ("rejected", "expired", "superseded", "revoked")
"""Words of a peer, signed, that end a pair."""
STATES: Final = frozenset({"establishing", "pending", "approved", "active", "paused", "unknown", "refused", *ENDED})
ENVIRONMENT: Final = "fed"
_REASON_CHARS: Final = 200
"""Of the reason that a peer gives, which is shown in one line."""


class HandshakeError(SplError):
    """A message of the handshake that cannot be accepted, or a refusal of one.

    Codes: message-malformed, message-audience, bad-field, sealed-token, and those that the responder answers with.
    """


@dataclass(frozen=True, slots=True)
class Terms:
    """What is asked for or agreed; `maps` are (initiator's, responder's)."""

    namespaces: tuple[str, ...]
    maps: tuple[tuple[str, str], ...]
    mode: str
    start: str

    def to_json(self) -> Json:
        """Return {namespaces, maps, mode, start}."""
        return {
            "namespaces": list(self.namespaces),
            "maps": maps_to_json(self.maps),
            "mode": self.mode,
            "start": self.start,
        }

    def covers(self, other: "Terms") -> bool:
        """Return whether who asked for these has thereby asked for all of the others."""
        return set(other.namespaces) <= set(self.namespaces) and set(other.maps) <= set(self.maps)

    def turned(self) -> "Terms":
        """Return the terms with their maps as the other side writes them."""
        return replace(self, maps=tuple((peer, local) for local, peer in self.maps))


@dataclass(frozen=True, slots=True)
class PairRequest:
    """A request that was verified but for audience, time, nonce and policy."""

    fields: dict[str, Any]
    peer: Manifest
    terms: Terms


def pair_id_of(initiator_did: str, responder_did: str, nonce: str) -> str:
    """Return `pair_` and 8 hex digits of SHA-256 over the three texts, NUL between them."""
    return "pair_" + keys.digest("\0".join((initiator_did, responder_did, nonce)).encode())[:8]


def mint(pair_id: str, secret: bytes, expires_at_ms: int) -> tuple[str, TokenRef]:
    """Return the text of a new token for the pair's service account, and how records name it."""
    text = bearer.mint_text(ENVIRONMENT, account_of(pair_id), secret)
    return text, token_ref(text, SCOPES, expires_at_ms, issued=True)


def account_of(pair_id: str) -> str:
    """Return the service account of a pair: `sa_` and the pair's hex digits."""
    return "sa_" + pair_id.removeprefix("pair_")


def token_ref(text: str, scopes: frozenset[str], expires_at_ms: int, *, issued: bool) -> TokenRef:
    """Return how records name a token; both sides give it the same id, only its issuer keeps the hash."""
    found = bearer.hash_of(text)
    return TokenRef(f"tok_{found[:8]}", tuple(sorted(scopes)), expires_at_ms, found if issued else "")


def check_terms(fields: Mapping[str, Any], limits: Limits, *, starts: Sequence[str]) -> Terms:
    """Return the terms in a message or a command; raise HandshakeError, PairError or NamespaceError "bad-field"."""
    names, maps = fields.get("namespaces"), maps_from_json(fields.get("maps"))
    if not isinstance(names, list) or not 1 <= len(names) <= limits.namespaces_per_pair:
        raise HandshakeError("bad-field", f"namespaces is a list of 1 to {limits.namespaces_per_pair}")
    if len(maps) > limits.namespaces_per_pair:
        raise HandshakeError("bad-field", f"at most {limits.namespaces_per_pair} maps")
    for name in (*names, *(name for both in maps for name in both)):
        namespace.check_name(name)
    _check_maps(names, tuple(dict.fromkeys(maps)))
    mode, start = check_mode(fields.get("mode")), fields.get("start")
    if not isinstance(start, str) or start not in starts:
        raise HandshakeError("bad-field", "start is beginning or present")
    return Terms(tuple(dict.fromkeys(names)), tuple(dict.fromkeys(maps)), mode, start)


def _check_maps(names: Sequence[str], maps: Sequence[tuple[str, str]]) -> None:
    """Raise HandshakeError "bad-field" unless each name stands on one side of one map, and in none beside its own."""
    for local, peer in maps:
        if local == peer:
            hint = f"--namespace {local} shares it under its own name"
            raise HandshakeError("bad-field", f"the map {local}:{peer} leads to itself", hint=hint)
        if local in names or peer in names:
            name = local if local in names else peer
            raise HandshakeError("bad-field", f"namespace {name} is both shared under its own name and mapped")
    if len({local for local, _ in maps}) < len(maps) or len({peer for _, peer in maps}) < len(maps):
        raise HandshakeError("bad-field", "a namespace stands in one map only")


def request_fields(own: Mapping[str, Any], own_did: str, proposal: Proposal, peer_did: str, issued_at_ms: int) -> Json:
    """Return the fields of the pair request; `own` is our federation_manifest."""
    return {
        **message.head(own_did, peer_did, proposal.pair_id, issued_at_ms, proposal.nonce),
        "initiator_did": own_did,
        "responder_did": peer_did,
        "manifest": dict(own),
        "endpoint": proposal.endpoint,
        "token": proposal.sealed,
        **terms_of(proposal).to_json(),
    }


def terms_of(proposal: Proposal) -> Terms:
    """Return what the proposal asks for."""
    return Terms(proposal.namespaces, proposal.maps, proposal.mode, proposal.start)


def open_request(value: object) -> dict[str, Any]:
    """Return the fields of a request that is signed by the key that the manifest inside claims.

    Nothing else of the manifest is verified yet: a forged message must not cost the statements of a long key chain.
    Raises MessageError, ManifestError "manifest-malformed", "did-invalid".
    """
    fields = message.unwrap(value)
    message.verify("pair-request", value, manifest.claimed_key(fields.get("manifest"), fields["signer"]))
    return fields


def read_request(fields: dict[str, Any], limits: Limits) -> PairRequest:
    """Return the request of verified fields: the manifest inside holds, and so does the form of what is asked for.

    Raises ManifestError, HandshakeError "message-malformed" or "bad-field".
    """
    peer = manifest.from_json(fields["manifest"], limits)
    if not fields["signer"] == fields.get("initiator_did") == peer.did:
        raise HandshakeError("message-malformed", "signer, initiator_did and the manifest's DID differ")
    if fields["audience"] != fields.get("responder_did"):
        raise HandshakeError("message-malformed", "audience and responder_did differ")
    if fields["pair_id"] != pair_id_of(peer.did, fields["audience"], fields["nonce"]):
        raise HandshakeError("message-malformed", "pair_id is not that of the two DIDs and the nonce")
    if fields.get("endpoint") != peer.pair_endpoint or not isinstance(fields.get("token"), str):
        raise HandshakeError("message-malformed", "endpoint is the manifest's pair_endpoint, token a sealed token")
    return PairRequest(fields, peer, check_terms(fields, limits, starts=("", *STARTS)))


def grant_fields(
    own_did: str, proposal: Proposal, peer_did: str, terms: Terms, sealed: str, nonce: str, now_ms: int
) -> Json:
    """Return the fields of the answer that grants; it answers the request whose digest the proposal holds."""
    return {
        **message.head(own_did, peer_did, proposal.pair_id, now_ms, nonce),
        "request_digest": proposal.digest,
        "status": 200,
        "state": "approved",
        "token": sealed,
        **terms.to_json(),
    }


def read_grant(value: object, pair: Pair, own_did: str, limits: Limits) -> dict[str, Any]:
    """Return the fields of the peer's grant for our pair; it may not hold more than we asked for.

    It is bound by pair_id, which our nonce made; its request_digest names the request as the peer took it.  Any key of
    the peer's chain counts: a peer that rotated after its approval sends the grant as it was signed, inside an answer
    that its present key signs.  Raises MessageError, HandshakeError.
    """
    fields = message.verify_any("pair-answer", value, pair.chain.keys[::-1])
    if (fields["signer"], fields["audience"], fields["pair_id"]) != (pair.peer_did, own_did, pair.pair_id):
        raise HandshakeError("message-audience", "the grant is not from the peer, to us, for this pair")
    if fields.get("state") != "approved":
        raise HandshakeError("message-malformed", "the grant does not say approved")
    granted = check_terms(fields, limits, starts=STARTS)
    asked = terms_of(pair.proposal)
    if not asked.covers(granted) or granted.mode != asked.mode or asked.start not in ("", granted.start):
        raise HandshakeError("message-malformed", "the peer granted other terms than we asked for")
    return fields


def open_sealed(fields: Mapping[str, Any], secrets: Sequence[bytes]) -> bearer.OpenedToken:
    """Return the token sealed into a request or a grant, made for exactly this message.

    Raises BearerError "sealed-token", HandshakeError "sealed-token" when its scopes are not those of a pair.
    """
    opened = bearer.open_token(
        fields["token"], secrets, pair_id=fields["pair_id"], nonce=fields["nonce"], issuer=fields["signer"],
        audience=fields["audience"],
    )  # fmt: skip
    if not opened.scopes >= SCOPES:
        raise HandshakeError("sealed-token", f"the sealed token lacks {' '.join(sorted(SCOPES - opened.scopes))}")
    return opened


def answer(
    request: Mapping[str, Any], key: SecretKey, status: int, state: str, now_ms: int, nonce: str, **more: object
) -> Json:
    """Return the signed answer to a verified message: where the pair stands with us."""
    assert state in STATES
    head = message.answer_head(request, status, now_ms, nonce)
    return message.sign("pair-answer", {**head, "state": state, **more}, key)


def read_answer(value: object, request: Mapping[str, Any], public: bytes) -> dict[str, Any]:
    """Return the fields of the signed answer to exactly this message of ours; raise MessageError, HandshakeError."""
    fields = message.verify("pair-answer", value, public)
    message.check_answer(fields, request)
    if not isinstance(fields.get("state"), str) or fields["state"] not in STATES:
        raise HandshakeError("message-malformed", "the answer names no known state")
    return fields


def reason_of(fields: Mapping[str, Any]) -> str:
    """Return the reason in a peer's message as short printable text, empty when there is none."""
    reason = fields.get("reason")
    return "".join(char for char in reason if char.isprintable())[:_REASON_CHARS] if isinstance(reason, str) else ""


def status_of(pair: Pair) -> tuple[int, str, Json]:
    """Return (HTTP status, state word, further fields) of what we tell the peer about the pair."""
    if isinstance(pair.state, Requested | Waiting):
        return 200, "establishing", {}
    if isinstance(pair.state, Asked):
        return 202, "pending", {}
    if isinstance(pair.state, Approved):
        return 200, "approved", {"answer": canon.decode(pair.answer or b"")}
    if pair.ended:
        word = pair.reason if pair.reason in ENDED else "revoked"
        return 200, word, {"reason": pair.reason}
    return 200, "paused" if pair.paused_by in ("us", "both") else "active", {}


def introduced(fields: Mapping[str, Any], pair: Pair, now_ms: int, limits: Limits) -> Manifest | None:
    """Return the sender's manifest in a message of the pair's peer, if it holds and grew from the one we know.

    None if there is none, or one that is no news; the key that we know then decides.  Raises ManifestError
    "chain-fork" for a second successor of one of its keys.
    """
    if fields.get("manifest") is None or fields["manifest"] == pair.manifest:
        return None
    try:
        return manifest.judge(
            manifest.from_json(fields["manifest"], limits), now_ms=now_ms, strict=pair.proposal.strict,
            expect_did=pair.peer_did, pinned=pair.chain, newer_than_ms=pair.peer.signed_at_ms,
        )  # fmt: skip
    except ManifestError as exc:
        if exc.code == FORK:
            raise
    return None


def poll_fields(pair: Pair, own_did: str, now_ms: int, nonce: str, **more: object) -> Json:
    """Return the fields of a poll, which also says where the pair stands with us, with the members in `more`."""
    return word_fields(pair, own_did, now_ms, nonce, state=status_of(pair)[1], **more)


def word_fields(pair: Pair, own_did: str, now_ms: int, nonce: str, **more: object) -> Json:
    """Return the fields of a confirmation or of a notice, with the members in `more`."""
    return {**message.head(own_did, pair.peer_did, pair.pair_id, now_ms, nonce), **more}


PRIVATE: Final = "private"


MISSING: Final = "missing"


ARCHIVED: Final = "archived"


Registry = Mapping[str, Namespace]


Maps = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Weighed:
    """What a responder would agree to by itself; `left_out` are (namespace, why), `unmapped` our names of its maps."""

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
    """Return what of an initiator's terms would be agreed to without an operator, and what not."""
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
            hint = f"{exc.hint}; or approve --without-maps"
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
    """Return the word for why a namespace is not agreed on without an operator."""
    if namespace.is_usable(registry, name):
        return PRIVATE
    return ARCHIVED if name in registry else MISSING
