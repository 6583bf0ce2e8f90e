"""Requests to a peer: our bearer with its proof of possession, and what its refusals mean to us."""

import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from ..core.errors import SplError, cli_code
from ..core.identity import bearer
from ..core.pair.pair import Pair
from ..core.record import page
from ..home.vault import Identity, Vault
from ..net.address import ReachError, parse_url
from ..net.client import Client, DialPolicy, EventStream, Reply

log = logging.getLogger("spl.federation")

RESET_CODES: Final = frozenset({"cursor-reset", "cursor-invalid"})
STATE_CODES: Final = frozenset({"pair-paused", "pair-revoked"})
AUTH_CODES: Final = frozenset({"auth-required", "auth-invalid", "scope-forbidden", "permission-denied"})
ERROR_BYTES_MAX: Final = 16 * 1024

_TAKEN_OVER: Final = RESET_CODES | STATE_CODES | AUTH_CODES | {"pair-unknown", "pair-state-conflict", "push-position"}


class SyncError(SplError):
    """Sync with a peer cannot start, or the peer refused it; `view` is the peer's view of the pair where it gave one.

    Of the code push-position, fact `cursor` is where the peer stands with us.
    """

    def __init__(
        self, code: str, message: str = "", *, view: Mapping[str, Any] | None = None, cursor: object = None
    ) -> None:
        super().__init__(code, message)
        if cursor is not None:
            self.facts = {"cursor": cursor}
        self.view = view


class PeerClient:
    """The way to every peer.  `dial` says how one may be reached."""

    def __init__(
        self,
        vault: Vault,
        client: Client,
        *,
        dial: Callable[[Pair], DialPolicy],
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self.vault = vault
        self.client = client
        self._dial = dial
        self._now_ms = now_ms
        self._random_bytes = random_bytes

    def identity(self) -> Identity:
        """Return who we are; raise SyncError "identity-missing"."""
        if self.vault.identity is None:
            raise SyncError("identity-missing")
        return self.vault.identity

    async def ask(
        self, pair: Pair, method: str, target: str, body: bytes = b"", media: str = "application/json"
    ) -> Reply:
        """Return the peer's 200 answer; raise SyncError or ReachError."""
        headers = self._headers(pair, method, target, body)
        if body:
            headers.append(("content-type", media))
        reply = await self.client.fetch(method, pair.url + target, headers=headers, body=body, dial=self._dial(pair))
        if reply.status != 200:
            raise _refusal(reply)
        return reply

    @asynccontextmanager
    async def stream(self, pair: Pair, target: str) -> AsyncIterator[EventStream]:
        """Open an event stream of the peer; raise SyncError or ReachError."""
        headers = self._headers(pair, "GET", target, b"")
        try:
            async with self.client.stream(pair.url + target, headers=headers, dial=self._dial(pair)) as stream:
                yield stream
        except ReachError as exc:
            if not exc.peer_status:
                raise
            raise _refusal(Reply(exc.peer_status, {}, exc.peer_body, "")) from exc

    def _headers(self, pair: Pair, method: str, target: str, body: bytes) -> list[tuple[str, str]]:
        token = self.vault.get(f"peer-token.{pair.pair_id}")
        if token is None:
            raise SyncError("auth-required", "we hold no token of this peer", view=None)
        proof = bearer.proof_header(
            self.identity().key,
            method=method,
            target=parse_url(pair.url + target).target,
            audience=pair.peer_did,
            token=token,
            body=body,
            issued_at_ms=self._now_ms(),
            nonce=self._random_bytes(16).hex(),
        )
        return [("authorization", f"Bearer {token}"), (bearer.PROOF_HEADER, proof)]


def _refusal(reply: Reply) -> SyncError:
    """Return the error in a peer's answer; of its codes only those that steer us are taken over."""
    try:
        value = json.loads(reply.body[:ERROR_BYTES_MAX])
    except (ValueError, RecursionError):
        value = None
    fields = value if isinstance(value, dict) else {}
    code = cli_code(fields["code"]) if isinstance(fields.get("code"), str) else ""
    shown = "".join(char for char in str(fields.get("message", ""))[:200] if char.isprintable())
    if code not in _TAKEN_OVER:
        shown = f"{reply.status} {code[:40]} {shown}".strip()
        named = {401: "auth-invalid", 403: "auth-invalid", 429: "rate-limited"}
        code = named.get(reply.status, "peer-5xx" if reply.status >= 500 else "peer-4xx")
    view = fields.get("peer_view")
    found = page.read_view(view) if isinstance(view, dict) else None
    return SyncError(code, shown, view=found, cursor=fields.get("cursor") if code == "push-position" else None)
