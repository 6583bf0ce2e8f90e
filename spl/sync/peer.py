"""The one way to speak to a peer: which addresses may be dialled, our bearer with its proof, and what refusals mean.

Every request to a peer goes through `PeerClient`, so one place decides where a bearer may go: to the endpoint that the
peer's verified manifest names, dialled as `dial_policy` allows.  A peer's answer steers us by few codes only; any other
is reduced to its HTTP status, so that a peer cannot make us log, show or act on a code of its choice.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, Literal

from ..core import canon, when
from ..core.errors import CODES, SplError, cli_code
from ..core.identity import bearer
from ..core.identity.did import label_of
from ..core.identity.manifest import CHANGES_PATH, RECORDS_PATH
from ..core.pair.aitl import Status
from ..core.pair.pair import Pair, PairError
from ..core.pair.status import AUTH_CODES
from ..core.portion import Portion
from ..core.record import page
from ..home.config import Settings
from ..home.vault import Identity, Vault
from ..home.writer import Writer
from ..net.address import TOO_LARGE_STATUS, ReachError, foreign_step, is_address, parse_url
from ..net.client import EventStream, HttpClient, Reply
from ..net.dialer import DialPolicy
from ..net.heads import date_ms

log = logging.getLogger("spl.federation")

CHANGES: Final = CHANGES_PATH
RECORDS: Final = RECORDS_PATH
ACK: Final = "/v1/sync/ack"
CHAINS: Final = "/v1/sync/chains"
CHECK_PATH: Final = "/v1/federation/pair/{}/check"
FINGERPRINTS: Final = "/v1/sync/fingerprints"
JSON: Final = "application/json"
WITHHELD: Final = "records-withheld"
"""The code of a record that the way does not carry even alone."""
INTO: Final = "into"
OUT: Final = "out"
"""The directions of records, each with a portion of its own."""
LOOPBACK: Final = ("127.0.0.1", "::1")

TOKEN_NAME: Final = "peer-token."  # noqa: S105 - names of secrets, not one
"""With the pair's id: the secret under which the vault keeps the token that the peer issued to us."""

COMPARE_NOTE: Final = "compare."
ROLLBACK_NOTE: Final = "rollback."
SET_BACK_NOTE: Final = "set-back."
WITHHELD_NOTE: Final = "withheld."
TYPED_NOTE: Final = "typed."
PAIR_NOTES: Final = (COMPARE_NOTE, ROLLBACK_NOTE, SET_BACK_NOTE, WITHHELD_NOTE, TYPED_NOTE)
"""With the pair's id: secrets that note something until the pair ends."""

RESET_CODES: Final = frozenset({"cursor-reset", "cursor-invalid"})
STATE_CODES: Final = frozenset({"pair-paused", "pair-revoked"})
TOO_MUCH_CODES: Final = frozenset({"timeout", "disconnected"})
TOO_MUCH_STATUS: Final = frozenset({408, TOO_LARGE_STATUS, 502, 504})
"""How a proxy, or the peer itself, refuses what is too large or takes too long."""
ERROR_BYTES_MAX: Final = 16 * 1024
"""Read of an error's body; none of ours is as long."""
RETRY_AFTER_MAX_S: Final = 3600
TOKEN_REVOKED: Final = "token-revoked"  # noqa: S105 - a reason, not one
"""The reason in a refusal of a token that the issuer revoked."""
MESSAGE_CHARS_MAX: Final = 200  # of a peer, for one line of a log or report
REJECTED_401: Final = "peer rejected handshake: 401 Unauthorized"
SERVER_CHARS_MAX: Final = 60  # of the header that names what stands between us
SERVER_ERROR_STATUS: Final = 500
WHY_401: Final = "a permission rule on the peer protects federation:pair"

_TAKEN_OVER: Final = RESET_CODES | STATE_CODES | AUTH_CODES | {"pair-unknown", "pair-state-conflict", "push-position"}


class SyncError(SplError):
    """Sync with a peer cannot start, or the peer refused it; `view` is the peer's view of the pair if it gave one.

    Of the code push-position, fact `cursor` is the position that the peer saved.  `revoked`: it revoked our token.
    `retry_after_s` is when it takes such a request again, as it says; 0 if it does not.  `peer_status` is the status of
    the refusal, 0 if there was none.
    """

    def __init__(
        self, code: str, message: str = "", *, view: Mapping[str, Any] | None = None, cursor: object = None,
        revoked: bool = False, retry_after_s: float = 0.0, hint: str = "",
    ) -> None:  # fmt: skip
        super().__init__(code, message, hint=hint)
        if cursor is not None:
            self.facts = {"cursor": cursor}
        self.view, self.revoked, self.retry_after_s = view, revoked, retry_after_s
        self.peer_status = 0


class ForeignAnswer(SyncError):
    """What answers is no daemon: a proxy, or another server in the peer's place; code foreign-answer."""

    def __init__(self, reply: Reply, url: str = "") -> None:
        super().__init__("foreign-answer", foreign_text(reply, url))
        self.peer_status, self.hint = reply.status, f"at the peer: {foreign_step(reply.status)}"


class PeerClient:
    """Requests to every peer; `url` is the public base URL that our operator set, "" for none.

    A peer refuses a proof that is dated after its clock, or about its start or before, and tells a time that counts.
    The request is signed again by that time and in the era that it names, and so is every later one.
    """

    def __init__(
        self,
        writer: Writer,
        vault: Vault,
        client: HttpClient,
        settings: Settings,
        *,
        url: str,
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self.vault = vault
        self.client = client
        self._writer = writer
        self._told: dict[str, tuple[int, str]] = {}
        """Of each pair how far the peer's clock is ahead, and its era, since a refusal told them."""
        self._skew_ms: dict[str, int] = {}
        self.url = url
        self._settings = settings
        self._now_ms = now_ms
        self._random_bytes = random_bytes
        self._process = random_bytes(bearer.PROCESS_CHARS // 2).hex()
        self._portions: dict[tuple[str, str], Portion] = {}
        self._typed: dict[str, str] = {}

    def identity(self) -> Identity:
        """Return who we are; raise SyncError "identity-missing"."""
        if self.vault.identity is None:
            raise SyncError("identity-missing")
        return self.vault.identity

    def dial(self, pair: Pair) -> DialPolicy:
        """Return how the pair's peer may be dialled."""
        request = self._writer.views.requests.get(pair.pair_id)
        approved = request.endpoint if request is not None and request.status is Status.APPROVED else ""
        allow_http, pair_id = self._settings.now.federation_allow_http, pair.pair_id
        if pair_id not in self._typed:
            self._typed[pair_id] = self.vault.get(TYPED_NOTE + pair_id) or ""
        return dial_policy(pair, self.url, approved, allow_http, self._typed[pair_id])

    def remember_typed(self, pair_id: str, url: str) -> None:
        """Remember the address at which our operator says that the peer is now; blocks on the disk."""
        self.vault.put(TYPED_NOTE + pair_id, url)
        self._typed[pair_id] = url

    def credentials(
        self, pair: Pair, method: str, target: str, body: bytes = b"", *, token: str = ""
    ) -> list[tuple[str, str]]:
        """Return the headers that authenticate one request: a bearer (by default the one we hold) and its proof.

        Raises SyncError "auth-required" without a token, "identity-missing".
        """
        token = token or self.vault.get(TOKEN_NAME + pair.pair_id) or ""
        if not token:
            raise SyncError("auth-required", "we hold no token of this peer")
        ahead_ms, era = self._told.get(pair.pair_id, (0, ""))
        proof = bearer.proof_header(
            self.identity().key,
            method=method,
            target=parse_url(pair.url + target).target,
            audience=pair.peer_did,
            token=token,
            body=body,
            issued_at_ms=self._now_ms() + ahead_ms,
            nonce=self._process + self._random_bytes(12).hex(),
            era=era,
        )
        return [("authorization", f"Bearer {token}"), (bearer.PROOF_HEADER, proof)]

    async def ask(
        self, pair: Pair, method: str, target: str, body: bytes = b"", media: str = JSON, *,
        timeout_s: float | None = None,
    ) -> Reply:  # fmt: skip
        """Return the peer's 200 answer; raise SyncError or ReachError."""
        reply = await self.fetch(pair, method, target, body, media, timeout_s=timeout_s)
        if reply.status != 200:
            raise self._refusal(pair, reply)
        if reply.headers.get("content-type", "").startswith("text/") and not reply.body.lstrip().startswith(b"{"):
            raise ForeignAnswer(reply, pair.url)  # the page of a proxy or another server; a daemon answers JSON
        return reply

    def portion(self, pair_id: str, way: str) -> Portion:
        """Return how much one request of this direction, INTO or OUT, carries."""
        return self._portions.setdefault((pair_id, way), Portion())

    async def carry(
        self, pair: Pair, way: str, count: int, method: str, target: str, body: bytes = b"", media: str = JSON
    ) -> tuple[Reply, float]:
        """Return the peer's 200 answer to a request that carries at most `count` records, and the seconds it took.

        One that was too much makes the next ones of this direction smaller.  Raises as `ask` does.
        """
        now_s = asyncio.get_running_loop().time
        began_s = now_s()
        try:
            return await self.ask(pair, method, target, body, media), now_s() - began_s
        except SplError as exc:
            if count and is_too_much(exc):
                self.portion(pair.pair_id, way).failed(count)
            raise

    async def fetch(
        self,
        pair: Pair,
        method: str,
        target: str,
        body: bytes = b"",
        media: str = JSON,
        *,
        token: str = "",
        timeout_s: float | None = None,
        answer_bytes: int | None = None,
    ) -> Reply:
        """Return the peer's answer, whatever its status, to a request with this token, by default the one we hold.

        `timeout_s` limits each of at most two requests.  Raises SyncError "auth-required", "identity-missing",
        ReachError.
        """
        for again in (True, False):
            headers = self.credentials(pair, method, target, body, token=token)
            if body:
                headers.append(("content-type", media))
            reply = await self.client.fetch(
                method, pair.url + target, headers=headers, body=body, timeout_s=timeout_s, answer_bytes=answer_bytes,
                dial=self.dial(pair),
            )  # fmt: skip
            if not (again and reply.status == 401 and self._learns_time(pair, reply)):
                break
        if reply.status == 200:
            self._skew_ms.pop(pair.pair_id, None)
        return reply

    def skew_ms(self, pair_id: str) -> int | None:
        """Return how far the peer's clock is ahead of ours, if it refuses what we sign for that; else None."""
        return self._skew_ms.get(pair_id)

    def _refusal(self, pair: Pair, reply: Reply) -> SyncError:
        """Return the error in a peer's answer, which for a clock too far from ours is that."""
        if (ahead_ms := self._skew_ms.get(pair.pair_id)) is not None and reply.status == 401:
            word = "ahead of" if ahead_ms > 0 else "behind"
            text = f"the clock of {label_of(pair.peer_did)} is {when.span(abs(ahead_ms))} {word} ours"
            refused = SyncError("clock-skew", f"{text}, so it refuses what we sign")
            refused.peer_status = reply.status
            return refused
        return _refusal(pair, reply)

    @asynccontextmanager
    async def stream(self, pair: Pair, target: str) -> AsyncIterator[EventStream]:
        """Open an event stream of the peer; raise SyncError or ReachError."""
        async with AsyncExitStack() as stack:
            yield await self._opened(stack, pair, target)

    async def _opened(self, stack: AsyncExitStack, pair: Pair, target: str, *, again: bool = True) -> EventStream:
        headers = self.credentials(pair, "GET", target)
        try:
            return await stack.enter_async_context(
                self.client.stream(pair.url + target, headers=headers, dial=self.dial(pair))
            )
        except ReachError as exc:
            if not exc.peer_status:
                raise
            reply = Reply(exc.peer_status, exc.peer_headers, exc.peer_body, "")
            if again and reply.status == 401 and self._learns_time(pair, reply):
                return await self._opened(stack, pair, target, again=False)
            raise self._refusal(pair, reply) from exc

    def _learns_time(self, pair: Pair, reply: Reply) -> bool:
        """Return whether the peer refused a proof for its time only, and told one near ours to sign by.

        A peer further away than a proof may be old keeps refusing: that is a wrong clock, which the operators must see.
        The date of a refusal for another reason shows it too: no signed word of that peer, that it revoked the pair for
        example, is believed here before its clock is right.
        Only a pair that our operator made with --no-strict goes by any clock of the peer.
        """
        fields, told = members_of(reply.body), _time_in(reply) if is_ours(reply.body) else None
        self._skew_ms.pop(pair.pair_id, None)
        if told is None:
            return False
        ahead_ms = told - self._now_ms()
        if abs(ahead_ms) > self._writer.limits.proof_age_s * 1000 and (pair.proposal.strict or not pair.initiator):
            self._skew_ms[pair.pair_id] = ahead_ms
            return False
        if fields.get("reason") == "proof-malformed" and self._told.pop(pair.pair_id, (0, ""))[1]:
            return True  # the peer went back to a version that has no eras
        if fields.get("reason") != "proof-time":
            return False
        self._told[pair.pair_id] = ahead_ms, bearer.era_in(fields)
        return True


def _time_in(reply: Reply) -> int | None:
    """Return the peer's time in Unix ms, as its refusal tells, or dates itself."""
    try:
        return when.ms_of(members_of(reply.body).get("time"))
    except when.WhenError:
        return date_ms(reply.headers.get("date", ""))


def is_too_much(exc: SplError) -> bool:
    """Return whether a request may have failed by its size: the way to the peer was open and did not carry it."""
    if isinstance(exc, SyncError):
        return exc.peer_status in TOO_MUCH_STATUS
    return exc.code in TOO_MUCH_CODES and isinstance(exc, ReachError) and exc.reached


def is_unanswered(exc: SplError) -> bool:
    """Return whether a request failed on its way, or for this moment, so that the peer may answer the next one."""
    return isinstance(exc, ReachError) or (
        isinstance(exc, SyncError) and (exc.code == "rate-limited" or exc.peer_status >= SERVER_ERROR_STATUS)
    )


def is_refused_size(exc: SplError) -> bool:
    """Return whether the size of a request was refused, by a proxy or the peer: the way itself is open."""
    return isinstance(exc, SyncError) and exc.peer_status == TOO_LARGE_STATUS


def cut_text(text: object, chars_max: int = MESSAGE_CHARS_MAX) -> str:
    """Return a peer's text cut to `chars_max` printable characters, so that a log or terminal may show it."""
    return "".join(char for char in str(text)[:chars_max] if char.isprintable())


def signed_part(reply: Reply, purpose: str) -> object:
    """Return the signed answer to a message of this purpose: the whole body, or the statement beside an error.

    Raises what `bare` returns for an answer without the peer's signature.
    """
    try:
        value = canon.decode(reply.body)
    except canon.CanonError:
        raise bare(reply, purpose) from None
    if isinstance(value, dict) and value.keys() == {"message", "signature"}:
        return value
    if isinstance(value, dict) and isinstance(value.get("statement"), dict):
        return value["statement"]
    raise bare(reply, purpose)


def is_ours(body: bytes) -> bool:
    """Return whether the body is an error of a daemon; that of a proxy or another server is none."""
    fields = members_of(body)
    code = fields.get("code")
    return isinstance(code, str) and (fields.get("object") == "error" or cli_code(code) in CODES)


def foreign_text(reply: Reply, url: str = "") -> str:
    """Return what answered in the peer's place, as far as it says."""
    media = cut_text(reply.headers.get("content-type", "").partition(";")[0], SERVER_CHARS_MAX)
    server = cut_text(reply.headers.get("server", ""), SERVER_CHARS_MAX)
    with_what = f" with {media}" if media and reply.status == 200 else ""
    who = f"{server!r}" if server else "a proxy or another server"
    return f"{url or 'the address of the peer'} answers {reply.status}{with_what}: {who} in the peer's place"


def bare(reply: Reply, purpose: str = "", url: str = "") -> SplError:
    """Return the error of an answer that the peer did not sign; no such answer moves a pair."""
    status = reply.status
    if status == 429:
        return PairError("rate-limited", "the peer takes no more messages for now")
    if reply.body and not (is_ours(reply.body) or (status == 200 and reply.body.lstrip().startswith(b"{"))):
        return ForeignAnswer(reply, url)
    if purpose == "pair-request" and status == 401:
        return PairError("handshake-401", REJECTED_401, why=WHY_401)
    if status == 200:
        return PairError("answer-malformed", "the peer's answer is not a signed message")
    code, told = "peer-5xx" if status >= 500 else "peer-4xx", members_of(reply.body)
    if told.get("object") == "error":
        text = f"the peer answered {status} {cut_text(told.get('code', ''), 40)}: {cut_text(told.get('message', ''))}"
        hint = cut_text(told.get("hint", "")).replace('"', "'")  # in quotes it is one step, and not ours to paste
        return PairError(code, text, hint=f'the peer says: "{hint}"' if hint else "")
    return PairError(code, f"the peer answered {status}")


def dial_policy(
    pair: Pair, own_url: str, approved: str, allow_http: bool | Literal["private"], again: str = ""
) -> DialPolicy:
    """Return how a pair's peer may be dialled: at a private address only by our operator's word.

    The operator's word is the URL that was typed, at first or `again` after a move, and the endpoint that was
    `approved` by hand, each for itself; and the host that was typed at first, or our own public URL names, for
    addresses of its kind.  Equivalent, for that exact endpoint only: the endpoint of a request that came from its own
    address.  Otherwise a peer could make us probe ports in our network and learn which answer.  A name is judged by
    the address that it resolves to, so one that leads to loopback is loopback.
    """
    meant = pair.url in {parse_url(url).origin for url in (pair.proposal.url, approved, again) if url}
    typed = pair.proposal.url if pair.initiator else ""
    near = tuple(address for url in (typed, own_url) if url for address in _addresses_in(url))
    return DialPolicy(allow_private=meant, allow_http=allow_http, near=near)


def _addresses_in(url: str) -> tuple[str, ...]:
    """Return the addresses that a URL names without a look-up."""
    host = parse_url(url).host
    return LOOPBACK if host == "localhost" else (host,) if is_address(host) else ()


def _refusal(pair: Pair, reply: Reply) -> SyncError:
    """Return the error in a peer's answer; of its codes only those that steer us are taken over."""
    if reply.status != 429 and not is_ours(reply.body):
        return ForeignAnswer(reply, pair.url)
    fields = members_of(reply.body)
    code = cli_code(fields["code"]) if isinstance(fields.get("code"), str) else ""
    message = cut_text(fields.get("message", ""))
    if code not in _TAKEN_OVER:
        message = f"{reply.status} {cut_text(code, 40)} {message}".strip()
        named = {401: "auth-invalid", 403: "auth-invalid", 429: "rate-limited"}
        code = named.get(reply.status, "peer-5xx" if reply.status >= 500 else "peer-4xx")
    view = fields.get("peer_view")
    found = page.read_view(view) if isinstance(view, dict) else None
    cursor = fields.get("cursor") if code == "push-position" else None
    after, revoked = fields.get("retry_after_s"), fields.get("reason") == TOKEN_REVOKED
    after_s = float(max(0, min(after, RETRY_AFTER_MAX_S))) if type(after) is int else 0.0
    refused = SyncError(code, message, view=found, cursor=cursor, revoked=revoked, retry_after_s=after_s)
    refused.peer_status = reply.status
    label, pair_id = label_of(pair.peer_did), pair.pair_id
    if code == "pair-paused":
        refused.hint = f"on {label}: spl federation resume {pair_id}"
    if code == "auth-invalid":
        refused.hint = f"on {label}: spl token rotate {pair_id}" if revoked else f"spl federation refresh {pair_id}"
    return refused


def members_of(body: bytes) -> dict[str, Any]:
    """Return the members of a small answer, such as an error; none for anything else."""
    try:
        value = json.loads(body[:ERROR_BYTES_MAX])
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
