"""Bearer tokens: their text, hash and scopes; the fold over `th_api_tokens`; how a token travels and how its holder
proves to be the one it was made for.

A token is `spl_<env>_<sa_id>_<secret>`, taken apart from the right.  Only its SHA-256 is kept: the secret has 256
random bits, so a slow hash would protect nothing.  A token for a peer crosses the wire sealed to the peer's X25519
key, and counts only with the header `spl-proof`: a signature by the peer's present key over method, target, audience,
token hash and body digest (the idea of RFC 9449), so that a captured bearer is worth nothing.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from .. import canon, keys, when
from ..errors import SplError
from ..keys import KeyFault, SecretKey
from ..limits import Limits
from ..value import Json, dataclass, field, replace

ADMIN: Final = "admin"
FEDERATION: Final = frozenset({"federation:sync", "federation:subscribe"})
SCOPES: Final = FEDERATION | {
    ADMIN,
    "records:read",
    "records:write",
    "config:read",
    "config:write",
    "aitl:approve",
    "federation:manage",
    "status:read",
    "metrics:read",
}
UNBOUND: Final = SCOPES - FEDERATION - {"records:read", "records:write"}
"""Scopes about the whole daemon: no namespace can bind them, so no token holds one of them beside a namespace."""

PAGE: Final = f"sa_{b'page:'.hex()}"
"""The account of all sessions of the page; longer than those that are drawn, so that none of them is the same."""
IMPLIED: Final[Mapping[str, frozenset[str]]] = {ADMIN: SCOPES, "federation:manage": FEDERATION}
KIND_MINT: Final = "syncropel.access.token_mint.v1"
KIND_REVOKE: Final = "syncropel.access.token_revoke.v1"
KIND_READMIT: Final = "syncropel.access.token_readmit.v1"
PROOF_HEADER: Final = "spl-proof"
SECRET_BYTES: Final = 32
SEAL_PURPOSE: Final = "federation-token"
PROOF_AHEAD_MS: Final = 5
"""How far ahead of our clock a proof may be dated.  A daemon refuses what is dated within so much of its start, so this
is shorter than a start takes; a peer whose clock is further ahead signs again by our time, once."""
PROCESS_CHARS: Final = 8
ERA_CHARS: Final = 16

_TEXT: Final = re.compile(r"spl_([A-Za-z0-9]{1,16})_(sa_[0-9a-f]{4,32})_([A-Za-z0-9]{22,128})\Z")
_SCOPE: Final = re.compile(r"[a-z:_-]{1,40}\Z")
_HASH: Final = re.compile(r"[0-9a-f]{64}\Z")
_PROOF: Final = re.compile(r"v(?:1|(2));([0-9TZ:.-]{20,27});([0-9a-f]{32});(?(1)([0-9a-f]{16});)([A-Za-z0-9+/=]{88})\Z")
_ERA: Final = re.compile(r"[0-9a-f]{16}\Z")
_SEALED: Final = frozenset({"purpose", "pair_id", "nonce", "issuer", "audience", "scopes", "expires_at", "token"})
_SEALED_BYTES_MAX: Final = 4096
"""A token and seven short texts take less than 1 KiB; more is refused before it is opened."""
_NAMES_MAX: Final = 1024
"""Characters of each text in a mint record."""


class BearerError(SplError):
    """A token, sealed token or proof that does not hold.

    Codes: auth-invalid (fact `reason` tells machines which check failed), sealed-token, bad-field, token-scope-bound.
    """


@dataclass(frozen=True, slots=True)
class Token:
    """What is kept of a token.

    `namespaces` empty means all; `pair_id` empty an ordinary token; `expires_at_ms` 0 never.
    """

    token_id: str
    sa_id: str
    hash: str = field(repr=False)
    scopes: frozenset[str]
    namespaces: tuple[str, ...] = ()
    pair_id: str = ""
    peer_did: str = ""
    expires_at_ms: int = 0
    created_at_ms: int = 0
    label: str = ""
    revoked: bool = False
    barred: bool = False
    """Revoked by our operator, so its holder gets no successor of it until the operator rotates or resumes the pair."""
    maker: str = ""
    """The token with which a session of the page was opened: it ends with that one."""

    def expired(self, now_ms: int) -> bool:
        """Return whether the token is past its expiry."""
        return 0 < self.expires_at_ms <= now_ms

    @property
    def rights(self) -> frozenset[str]:
        """What it may do: its scopes, or beside namespaces only those that a namespace binds."""
        if not self.namespaces or self.pair_id:
            return self.scopes
        return frozenset(scope for scope in SCOPES - UNBOUND if holds(self.scopes, scope))


@dataclass(frozen=True, slots=True)
class OpenedToken:
    """What a sealed token held; its repr leaves the token out."""

    token: str = field(repr=False)
    scopes: frozenset[str]
    expires_at_ms: int


def holds(scopes: frozenset[str], needed: str) -> bool:
    """Return whether the scopes include the one needed, by name or implied."""
    if needed in scopes:
        return True
    for held in scopes:  # noqa: SIM110 - each request asks this, and a generator takes longer than the rest
        if needed in IMPLIED.get(held, ()):
            return True
    return False


def check_scopes(scopes: Sequence[object]) -> frozenset[str]:
    """Return the scopes as a set; raise BearerError "bad-field" for none or an unknown one."""
    unknown = [str(scope)[:40] for scope in scopes if not isinstance(scope, str) or scope not in SCOPES]
    if unknown or not scopes:
        raise BearerError(
            "bad-field",
            f"scope {unknown[0]!r} is unknown" if unknown else "a token needs a scope",
            hint=f"scopes: {', '.join(sorted(SCOPES))}",
        )
    return frozenset(str(scope) for scope in scopes)


def check_bound(scopes: frozenset[str], namespaces: Sequence[str]) -> None:
    """Refuse scopes about the whole daemon beside namespaces: such a token would reach what they do not hold.

    Raises BearerError "token-scope-bound".
    """
    wide = sorted(scopes & UNBOUND)
    if wide and namespaces:
        raise BearerError("token-scope-bound", f"{', '.join(wide)} cannot be bound to a namespace")


def mint_text(env: str, sa_id: str, secret: bytes) -> str:
    """Return the token text for an environment word, a service account `sa_<hex>` and 32 fresh random bytes."""
    text = f"spl_{env}_{sa_id}_{secret.hex()}"
    assert len(secret) == SECRET_BYTES
    assert _TEXT.match(text)
    return text


def parse(text: str) -> tuple[str, str, str]:
    """Return (env, sa_id, secret); raise BearerError "auth-invalid", which never shows the text."""
    found = _TEXT.match(text)
    if found is None:
        raise BearerError("auth-invalid", "the bearer has not the form spl_<env>_sa_<hex>_<secret>", reason="malformed")
    return found[1], found[2], found[3]


def hash_of(text: str) -> str:
    """Return the hex SHA-256 of the token text, the only form that is kept."""
    return keys.digest(text.encode())


def mint_body(token: Token) -> Json:
    """Return the record body that adds a token to the fold."""
    return {
        "kind": KIND_MINT,
        "token_id": token.token_id,
        "sa_id": token.sa_id,
        "hash": token.hash,
        "scopes": sorted(token.scopes),
        "namespaces": list(token.namespaces),
        "pair_id": token.pair_id,
        "peer_did": token.peer_did,
        "expires_at": when.text_of(token.expires_at_ms) if token.expires_at_ms else None,
        "created_at": when.text_of(token.created_at_ms),
        "label": token.label,
        **({"maker": token.maker} if token.maker else {}),
    }


def fold(tokens: dict[str, Token], body: Mapping[str, object]) -> dict[str, Token]:
    """Return the tokens by id after one record body of `th_api_tokens`; never raises, skips unusable bodies.

    A token id stands for its first mint for ever, so a repeated mint never lifts a revocation.  A revocation with
    `barred` is our operator's, and holds for tokens that are revoked already; KIND_READMIT takes that mark away again.
    With a token those end that were made with it, and one that is made with it later never begins.
    """
    kind = body.get("kind")
    if kind == KIND_MINT:
        token = _minted(body)
        if token is None or token.token_id in tokens:
            return tokens
        maker = tokens.get(token.maker)
        return {**tokens, token.token_id: replace(token, revoked=bool(token.maker) and (not maker or maker.revoked))}
    named = [(name, body[name]) for name in ("token_id", "sa_id", "pair_id") if body.get(name)]
    if kind not in (KIND_REVOKE, KIND_READMIT) or not named:
        return tokens
    changed = {}
    for key, token in tokens.items():
        if all(getattr(token, name) == value for name, value in named):
            barred = kind == KIND_REVOKE and (token.barred or body.get("barred") is True)
            changed[key] = replace(token, revoked=token.revoked or kind == KIND_REVOKE, barred=barred)
    for key, token in tokens.items():
        if kind == KIND_REVOKE and token.maker in changed:
            changed[key] = replace(changed.get(key, token), revoked=True)
    return {**tokens, **changed} if any(tokens[key] != token for key, token in changed.items()) else tokens


def is_barred(tokens: Mapping[str, Token], pair_id: str) -> bool:
    """Return whether our operator revoked a token of the pair, so that its peer gets no other one by asking."""
    return any(token.barred for token in tokens.values() if token.pair_id == pair_id)


def seal_token(
    token: str,
    *,
    public: bytes,
    ephemeral: bytes,
    pair_id: str,
    nonce: str,
    issuer: str,
    audience: str,
    scopes: frozenset[str],
    expires_at_ms: int,
) -> str:
    """Return base64 of the token sealed to an X25519 key for exactly one message: `nonce` is that message's.

    `ephemeral` is 32 fresh random bytes.
    """
    fields = {
        "purpose": SEAL_PURPOSE,
        "pair_id": pair_id,
        "nonce": nonce,
        "issuer": issuer,
        "audience": audience,
        "scopes": sorted(scopes),
        "expires_at": when.text_of(expires_at_ms),
        "token": token,
    }
    return keys.b64(keys.seal(public, canon.encode(fields), ephemeral))


def open_token(
    sealed: object, secrets: Sequence[bytes], *, pair_id: str, nonce: str, issuer: str, audience: str
) -> OpenedToken:
    """Return the token sealed to one of our X25519 secrets if it was made for exactly this message.

    Raises BearerError "sealed-token", which never shows the token.
    """
    fields = _unsealed(sealed, secrets)
    bound = {"purpose": SEAL_PURPOSE, "pair_id": pair_id, "nonce": nonce, "issuer": issuer, "audience": audience}
    for name, value in bound.items():
        if fields[name] != value:
            raise BearerError("sealed-token", f"the sealed token was made for another message: {name} differs")
    scopes, token = fields["scopes"], fields["token"]
    if not isinstance(token, str) or not _TEXT.match(token):
        raise BearerError("sealed-token", "the sealed token has not the form of a token")
    if not isinstance(scopes, list) or not all(isinstance(scope, str) and _SCOPE.match(scope) for scope in scopes):
        raise BearerError("sealed-token", "the sealed token's scopes are no list of scopes")
    try:
        return OpenedToken(token, frozenset(scopes), when.ms_of(fields["expires_at"]))
    except when.WhenError as exc:
        raise BearerError("sealed-token", "the sealed token's expiry is no time") from exc


@dataclass(frozen=True, slots=True)
class Era:
    """Which proofs count beside those of the present era, named by whom it was told to: by their date.

    They are dated after `after_ms`, which the earlier eras may have taken, and up to `until_ms`.
    """

    name: str = ""
    after_ms: int = 0
    until_ms: int = 1 << 62


ANY_ERA: Final = Era()


def proof_header(
    key: SecretKey, *, method: str, target: str, audience: str, token: str, body: bytes, issued_at_ms: int, nonce: str,
    era: str = "",
) -> str:  # fmt: skip
    """Return the value of `spl-proof` for one request: `v1;<issued_at>;<nonce>;<base64 signature>`.

    `target` is path and query exactly as sent, `audience` the DID of the one asked, `nonce` 32 hex digits
    of which the first PROCESS_CHARS name the asking process and the others are fresh.  `era` is what the one asked told
    as its own, if it did: `v2;<issued_at>;<nonce>;<era>;<base64 signature>`.
    """
    issued_at = when.text_of(issued_at_ms)
    text = _proof_text(method, target, audience, token, body, issued_at, nonce, era)
    head = f"v2;{issued_at};{nonce};{era}" if era else f"v1;{issued_at};{nonce}"
    return f"{head};{keys.b64(key.sign(text))}"


def era_in(fields: Mapping[str, object]) -> str:
    """Return the era that a refusal tells, "" if it tells none."""
    era = fields.get("era")
    return era if isinstance(era, str) and _ERA.match(era) else ""


def check_proof(
    header: str,
    public: bytes,
    *,
    method: str,
    target: str,
    audience: str,
    token: str,
    body: bytes,
    now_ms: int,
    limits: Limits,
    since_ms: int = 0,
    era: Era = ANY_ERA,
) -> tuple[str, int]:
    """Return (nonce, issued_at in ms) of a proof that holds for exactly this request; the caller refuses replays.

    A proof may be `proof_age_s` old but not from before `since_ms`, and dated PROOF_AHEAD_MS after our clock.  Raises
    BearerError "auth-invalid" with fact `reason` "proof-malformed", "proof-time" (then also `time` and `era`, by which
    the peer signs again) or "proof".
    """
    found = _PROOF.match(header)
    if found is None:
        raise BearerError("auth-invalid", f"the {PROOF_HEADER} header is malformed", reason="proof-malformed")
    _, issued_at, nonce, named, signature = found.groups("")
    try:
        issued_at_ms, value = when.ms_of(issued_at), keys.unb64(signature, keys.SIGNATURE_BYTES)
    except SplError as exc:
        raise BearerError("auth-invalid", f"the {PROOF_HEADER} header is malformed", reason="proof-malformed") from exc
    if not keys.verify(public, _proof_text(method, target, audience, token, body, issued_at, nonce, named), value):
        raise BearerError("auth-invalid", "the proof of possession does not verify for this request", reason="proof")
    low_ms, high_ms = max(since_ms, now_ms - limits.proof_age_s * 1000), now_ms + PROOF_AHEAD_MS
    if not named:
        low_ms, high_ms = max(low_ms, era.after_ms + 1), min(high_ms, era.until_ms)
    if named not in ("", era.name) or not low_ms <= issued_at_ms <= high_ms:
        raise BearerError(
            "auth-invalid",
            "the proof of possession is too far from our clock, or from before our start",
            reason="proof-time",
            time=when.text_of(now_ms),
            **({"era": era.name} if era.name else {}),
        )
    return nonce, issued_at_ms


def _proof_text(
    method: str, target: str, audience: str, token: str, body: bytes, issued_at: str, nonce: str, era: str
) -> bytes:
    fields = {
        "method": method,
        "target": target,
        "audience": audience,
        "token": hash_of(token),
        "body": keys.digest(body),
        "issued_at": issued_at,
        "nonce": nonce,
    }
    if era:
        return b"syncropel-proof-v2\0" + canon.encode({**fields, "era": era})
    return b"syncropel-proof-v1\0" + canon.encode(fields)


def _unsealed(sealed: object, secrets: Sequence[bytes]) -> dict[str, Any]:
    """Return the members of a sealed token that opens under one of the secrets."""
    try:
        data = keys.unb64(sealed, _SEALED_BYTES_MAX)
    except KeyFault as exc:
        raise BearerError("sealed-token", "the sealed token is not base64") from exc
    for secret in secrets:
        try:
            fields = canon.decode(keys.unseal(secret, data))
        except KeyFault:
            continue
        except canon.CanonError:
            break
        if isinstance(fields, dict) and fields.keys() == _SEALED:
            return fields
        break
    raise BearerError("sealed-token", "the sealed token does not open under our seal keys")


def _minted(body: Mapping[str, object]) -> Token | None:
    """Return the token of a mint body, or None if it lacks the form that `mint_body` gives."""
    texts = {
        name: body.get(name, "") for name in ("token_id", "sa_id", "hash", "pair_id", "peer_did", "label", "maker")
    }
    scopes, namespaces = body.get("scopes"), body.get("namespaces", [])
    if not all(isinstance(text, str) and len(text) <= _NAMES_MAX for text in texts.values()):
        return None
    if not texts["token_id"] or not _HASH.match(str(texts["hash"])):
        return None
    if not isinstance(scopes, list) or not isinstance(namespaces, list):
        return None
    if not all(isinstance(item, str) for item in (*scopes, *namespaces)):
        return None
    try:
        expires = 0 if body.get("expires_at") is None else when.ms_of(body["expires_at"])
        created = when.ms_of(body.get("created_at"))
    except when.WhenError:
        return None
    token_id, sa_id, hash_text, pair_id, peer_did, label, maker = (str(text) for text in texts.values())
    reach = tuple(namespaces)
    return Token(
        token_id, sa_id, hash_text, frozenset(scopes), reach, pair_id, peer_did, expires, created, label, maker=maker
    )
