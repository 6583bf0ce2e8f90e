"""From a request to a principal: who asks, with which scopes, in which namespaces.

Credentials, strongest first: the Unix socket (its file permission), a pair's token with its proof of possession, an
ordinary bearer token, and under `--insecure-localhost` or `auth.required = false` none at all.  A request with a
proof is judged by its proof there too, so that a peer is a peer on every daemon.
"""

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final

from ..core.errors import SplError
from ..core.identity import bearer
from ..core.identity.bearer import ADMIN, PROOF_HEADER, Token
from ..core.keys import same
from ..core.value import dataclass, field
from ..home.config import Settings
from ..home.home import Home, Machine
from ..net.address import is_loopback
from ..net.routes import Request
from ..sync.reach import Reaches
from .proofs import Proofs

KNOWN_MAX: Final = 256
"""Bearer texts whose tokens are cached while no token changes; hashing one takes 5 us of each request."""

_COOKIES_MAX: Final = 8  # of one name; each may cost a look at the sessions
ANYONE: Final = "anyone"
"""The scope of routes that are open to anyone."""

_PROXIED: Final = re.compile(
    "forwarded|(?:client|user|real|remote|connecting)-?ip$"
    "|^(?:via$|cdn-|cf-|fastly-|fly-|x-appengine-|x-azure-|x-envoy-|x-original-)",
    re.MULTILINE,
)
"""Names of headers that proxies add, one a line: by rule where there is one, else by vendor."""


def is_proxied(headers: Mapping[str, str]) -> bool:
    """Return whether a proxy passed the request on: the address is then the proxy's, and the client is elsewhere.

    A proxy that adds no header of these is not told from a program of this machine.
    """
    return _PROXIED.search("\n".join(headers)) is not None


def _is_here(host: str) -> bool:
    """Return whether a Host header names loopback; an absent one, which HTTP/1.0 may leave out, does."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host
    return name.lower() in ("", "localhost") or is_loopback(name)


class AuthError(SplError):
    """The request lacks a credential, or its credential lacks what the route needs.

    Codes: auth-required, auth-invalid (fact `reason` tells machines which check failed), scope-forbidden (fact
    `scope`), rate-limited.
    """


class Kind(StrEnum):
    """How a principal was recognised."""

    LOCAL = "local"
    OPEN = "open"
    TOKEN = "token"  # noqa: S105 - the name of a kind
    PEER = "peer"
    ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks.  `namespaces` empty means all, except for a peer, who has those of its pair and no others."""

    kind: Kind
    scopes: frozenset[str] = frozenset()
    namespaces: tuple[str, ...] = ()
    pair_id: str = ""
    peer_did: str = ""
    token_id: str = ""
    address: str = ""
    process: str = ""
    """Which process of a peer asks."""
    refusal: SplError | None = field(default=None, repr=False, compare=False)
    """Why the credential of an ANONYMOUS one does not hold; None when it sent none."""

    @property
    def who(self) -> str:
        """Under which name its share of the daemon is counted: its pair's, its token's or its kind."""
        return self.pair_id or self.token_id or self.kind.value

    def reaches(self, namespace: str) -> bool:
        """Return whether it may read and write in this namespace, named exactly: `org` does not include `org/x`."""
        return namespace in self.namespaces or (not self.namespaces and self.kind != Kind.PEER)


class Auth:
    """Recognises principals.  Used on the event loop only."""

    def __init__(
        self, home: Home, settings: Settings, reaches: Reaches, machine: Machine, *, insecure: bool = False
    ) -> None:
        """Takes a disk sync.  `reaches` is told of which pair a token came with a request that is refused."""
        self.proofs = Proofs(home, machine)
        self._writer, self._vault, self._now_ms = home.writer, home.vault, machine.now_ms
        self._insecure, self._settings, self._reaches = insecure, settings, reaches
        self._known: tuple[Mapping[str, Token], dict[str, Token]] = ({}, {})
        self._read: tuple[Mapping[str, str], object, str | None] = ({}, None, "")
        self._holders: dict[tuple[str, str], tuple[Token, Principal]] = {}
        """By bearer text and address, those of ordinary tokens; emptied with `_known`."""

    def principal(self, request: Request, body: bytes) -> Principal:
        """Return who asks; a request without credentials, or with some that do not hold, is ANONYMOUS.

        Never raises: `require` does, so that a route that needs no bearer answers one with a stale bearer too.
        This call consumes the proof of possession.
        """
        if request.local:
            return Principal(Kind.LOCAL, frozenset({ADMIN}), address=request.address)
        try:
            text = self._presented(request.headers)
            if text is None:
                return Principal(Kind.OPEN, frozenset({ADMIN}), address=request.address)
            return self._holder(request, body, text) if text else Principal(Kind.ANONYMOUS, address=request.address)
        except SplError as exc:
            return Principal(Kind.ANONYMOUS, address=request.address, refusal=exc)

    def check_presented(self, headers: Mapping[str, str]) -> None:
        """Raise unless the head of a TCP request carries a live bearer, so that its body is read; consumes no proof.

        Raises AuthError "auth-required", "auth-invalid".
        """
        text = self._presented(headers)
        if text == "":
            raise AuthError("auth-required")
        if text is not None:
            self._token(text)

    def is_live(self, text: str) -> bool:
        """Return whether a bearer text is that of a live token."""
        try:
            return bool(self._token(text))
        except AuthError:
            return False

    def require(self, principal: Principal, scope: str, *others: str) -> None:
        """Raise unless the principal holds the scope or one of the others.

        Raises AuthError "auth-required" without a credential, "auth-invalid" for one that does not hold,
        "scope-forbidden" for one that holds too little.
        """
        if scope == ANYONE:
            return
        if principal.refusal is not None:
            raise principal.refusal
        if principal.kind == Kind.ANONYMOUS:
            raise AuthError("auth-required")
        if bearer.holds(principal.scopes, scope) or any(bearer.holds(principal.scopes, each) for each in others):
            return
        if principal.pair_id:
            self._reaches.arrived(principal.pair_id)
        needs = " or ".join((scope, *others))
        if principal.namespaces and scope in bearer.UNBOUND:
            text = f"this needs the scope {needs}, which a token bound to namespaces does not hold"
            raise AuthError("scope-forbidden", text, scope=scope)
        hint = f"spl token mint --scopes {scope}"
        raise AuthError("scope-forbidden", f"this needs the scope {needs}", hint=hint, scope=scope)

    def _presented(self, headers: Mapping[str, str]) -> str | None:
        """Return the bearer's text, "" if none is sent, None if none is needed; the same headers are read once.

        They are never changed, and the parser gives the same ones for the same bytes.  Raises AuthError "auth-invalid".
        """
        known, made_of, text = self._read
        if known is not headers or made_of is not self._settings.now:
            text = None if self._opens(headers) else _bearer_of(headers)
            self._read = headers, self._settings.now, text
        return text

    def _opens(self, headers: Mapping[str, str]) -> bool:
        """Return whether the request needs no credential.

        One that a proxy passed on always needs one, and so does one for another name than this machine's own: some
        proxies say nothing of themselves but the name that they were asked for.
        """
        is_open = self._insecure or not self._settings.now.auth_required
        return is_open and PROOF_HEADER not in headers and not is_proxied(headers) and _is_here(headers.get("host", ""))

    def _holder(self, request: Request, body: bytes, text: str) -> Principal:
        """Return who holds the bearer; raise "auth-invalid"."""
        token = self._token(text)
        if token.pair_id or token.peer_did:
            try:
                return self._peer(request, body, text, token)
            except SplError:
                self._reaches.arrived(token.pair_id)
                raise
        found = self._holders.get((text, request.address))
        if found is not None and found[0] is token:
            return found[1]
        # A federation token without a pair was minted by hand: without a namespace of its own it reads `default`.
        narrow = not token.namespaces and bool(token.scopes & bearer.FEDERATION) and not token.scopes & bearer.UNBOUND
        namespaces = ("default",) if narrow else token.namespaces
        holder = Principal(Kind.TOKEN, token.rights, namespaces, token_id=token.token_id, address=request.address)
        if len(self._holders) >= KNOWN_MAX:
            self._holders.clear()
        self._holders[text, request.address] = token, holder
        return holder

    def _token(self, text: str) -> Token:
        """Return the live token of a bearer text."""
        tokens, known = self._known
        if tokens is not self._writer.views.tokens_by_hash:
            tokens, known = self._known = (self._writer.views.tokens_by_hash, {})
            self._holders.clear()
        token = known.get(text)
        if token is None:
            token = self._find(text)
            if len(known) >= KNOWN_MAX:
                known.clear()
            known[text] = token
        if token.expired(self._now_ms()):
            self._reaches.arrived(token.pair_id)
            raise AuthError("auth-invalid", f"the bearer token {token.token_id} is expired", reason="token-expired")
        return token

    def _find(self, text: str) -> Token:
        """Return the token of a bearer text, expired or not; found by hash, no comparison depends on the secret.

        A text that has not the form of a token is refused as an unknown one is: a guess learns nothing from either.
        """
        wanted = bearer.hash_of(text)
        token = self._writer.views.tokens_by_hash.get(wanted)
        if token is None or not same(token.hash, wanted):
            raise AuthError("auth-invalid", "the bearer token is unknown here", reason="token-unknown")
        if token.revoked:
            self._reaches.arrived(token.pair_id)
            raise AuthError("auth-invalid", f"the bearer token {token.token_id} is revoked", reason="token-revoked")
        return token

    def _peer(self, request: Request, body: bytes, text: str, token: Token) -> Principal:
        """Return the peer of a pair's token, whose proof must hold for exactly this request."""
        identity, pair = self._vault.identity, self._writer.views.pairs.get(token.pair_id)
        if identity is None or pair is None or pair.peer_did != token.peer_did:
            raise AuthError("auth-invalid", "the bearer token is not of a pair here", reason="token-pair")
        if not pair.live:
            raise AuthError(
                "auth-invalid", f"the pair {token.pair_id} of the token is not live", reason="pair-not-live"
            )
        header = request.headers.get(PROOF_HEADER)
        if header is None:
            message = f"a pair's token needs the {PROOF_HEADER} header"
            raise AuthError("auth-invalid", message, reason="proof-missing")
        nonce = self.proofs.check(
            token.pair_id, self._writer.views.pairs, header, self._writer.views.pins.newest(pair.chain).present,
            method=request.method, target=request.target, audience=identity.did, token=text, body=body,
        )  # fmt: skip
        # Whatever was minted for it, a peer syncs and does nothing else.
        scopes = frozenset(scope for scope in bearer.FEDERATION if bearer.holds(token.scopes, scope))
        return Principal(
            Kind.PEER,
            scopes,
            pair.namespaces,
            token.pair_id,
            token.peer_did,
            token.token_id,
            request.address,
            process=nonce[: bearer.PROCESS_CHARS],
        )


def cookie_of(did: str) -> str:
    """Return the name of the page's cookie: all daemons of a host share its cookies, whatever their ports."""
    return f"spl-page-{bearer.hash_of(did)[:8]}"


def with_cookie(headers: Mapping[str, str], name: str, is_live: Callable[[str], bool]) -> Mapping[str, str]:
    """Return the headers with the bearer that the cookie holds, unless they bring one.

    Whatever else the host serves may set a cookie of the same name for a longer path, which is then sent first.
    """
    if "cookie" not in headers or "authorization" in headers or "x-api-key" in headers:
        return headers
    pieces = (piece.strip().partition("=") for piece in headers["cookie"].split(";"))
    values = [value for key, _, value in pieces if key == name and value][:_COOKIES_MAX]
    if not values:
        return headers
    return {**headers, "authorization": f"Bearer {next(filter(is_live, values), values[0])}"}


def _bearer_of(headers: Mapping[str, str]) -> str:
    """Return the token in `authorization: Bearer` or `x-api-key`, "" if neither is sent."""
    header, api_key = headers.get("authorization", ""), headers.get("x-api-key", "")
    if header.startswith("Bearer spl_") and not api_key:
        return header[len("Bearer ") :].rstrip()  # the usual form, in less time
    scheme, _, text = header.partition(" ")
    if header and (scheme.lower() != "bearer" or not text.strip()):
        raise AuthError("auth-invalid", "the authorization header is not: Bearer <token>", reason="malformed")
    text = text.strip()
    if text and api_key and not same(text, api_key):
        raise AuthError("auth-invalid", "authorization and x-api-key carry different tokens", reason="malformed")
    return text or api_key
