"""Facts from asking a peer: the way there step by step, its manifest, its pair endpoint, and its own view of us.

Each question has a time limit of its own, those that do not depend on each other are asked at once, and a fault of one
is a fact, never an error.  The peer's answers are untrusted: cut to size and printable, and every member is checked.

`look_back` is the other half: what this side answers to a peer that asks.  It dials only the endpoint of the pinned
manifest and says only whether that was reached.  The error of the connection attempt stays here: with it, a peer that
moves its manifest to an address of our network would learn which ports answer there.
"""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from ..core import canon, when
from ..core.backoff import Buckets
from ..core.errors import SplError
from ..core.event import event
from ..core.identity import manifest
from ..core.limits import Limits
from ..core.pair.modes import ON_DEMAND
from ..core.pair.pair import Pair
from ..core.pair.status import AUTH_CODES
from ..core.record import page
from ..core.value import Json, dataclass, field, replace
from ..home.vault import Vault
from ..net.address import ReachError
from ..net.client import HttpClient, Reply
from ..net.dialer import DialPolicy
from ..net.heads import date_ms
from ..net.probe import Reached, days_left
from ..pairing.exchange import DID_PATH, MANIFEST_PATH
from ..pairing.service import Pairing
from ..sync.peer import (
    CHECK_PATH,
    ERROR_BYTES_MAX,
    TOKEN_REVOKED,
    SyncError,
    cut_text,
    foreign_text,
    is_ours,
    members_of,
)
from . import catalogue, conditions
from .conditions import SERVED
from .facts import Facts, Fault, ReverseReach
from .gather import HEALING

log = logging.getLogger("spl.federation")

LOOKS_COUNT: Final = 6
LOOKS_PER_S: Final = 0.1
_REACH: Final = frozenset(conditions.REACH)
_ABOUT: Final = frozenset({*conditions.MANIFEST, "identity-cloned"})
_ANSWERED: Final = frozenset({"peer-4xx", "peer-5xx", "rate-limited", "foreign-answer"})
_KNOWN: Final = frozenset(row.code for row in catalogue.CATALOGUE)


class DoctorError(SplError):
    """The doctor does not answer now; code rate-limited."""


class Probe(Protocol):
    """Goes to a peer step by step, as `net/probe.py` does."""

    async def reach(self, url: str, policy: DialPolicy) -> Reached:
        """Return how far a connection to the origin of `url` comes."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one question to the peer showed."""

    failure: Fault | None = None
    throttled: bool = False
    clock_ahead_ms: int | None = None
    manifest: Fault | None = None
    manifest_digest: str = ""
    protocol_peer: str = ""
    endpoint_status: int | None = None
    token_taken: bool = False
    token_expired: bool = False
    token_refused: str = ""
    token_revoked: bool = False
    scope_missing: str = ""
    reverse: ReverseReach | None = None
    reverse_unknown: str = ""
    outside_fault: str = ""
    inside_digest: str = ""
    view: Mapping[str, Any] = field(default_factory=dict)


class PeerCheck:
    """Checks peers, and answers the checks of peers."""

    def __init__(
        self,
        client: HttpClient,
        probe: Probe,
        pairing: Pairing,
        vault: Vault,
        limits: Limits,
        *,
        now_ms: Callable[[], int],
    ) -> None:
        """`now_ms` dates what is seen; how often a peer asks is counted by the steady clock of `pairing`."""
        self.client, self.probe, self.pairing, self.vault, self.limits = client, probe, pairing, vault, limits
        self._now_ms = now_ms
        self._looks = Buckets(LOOKS_COUNT, LOOKS_PER_S, limits.pairs_count)

    # -- asking

    async def ask_ourselves(self, known: Facts) -> Facts:
        """Fetch our own manifest by our public URL, as a peer would, and compare its bytes with our own."""
        if self.vault.identity is None:
            return known
        url = self.pairing.published.url + MANIFEST_PATH
        try:
            reply = await self._get(url, DialPolicy(allow_private=True, allow_http=True))
        except SplError as exc:
            refused = f"{url}: {exc.message}" if exc.code == "tls-chain" else ""
            return replace(known, published_url=url, published_unseen=exc.code, published_tls=refused)
        if reply.status == 200 and _digest(reply.body) == self._published_digest():
            return replace(known, published_url=url, published_same=True)
        if reply.status != 200 or not reply.body.lstrip().startswith(b"{"):
            return replace(known, published_url=url, failure=_foreign(reply, url))
        fault = f"{url} answers {reply.status} with other bytes than this daemon serves"
        return replace(known, published_url=url, published_fault=fault)

    async def ask(self, pair: Pair, known: Facts) -> Facts:
        """Add the facts of the way to the peer; a fault on it replaces an older one."""
        came = await self.probe.reach(pair.url, self.pairing.peers.dial(pair))
        # What is seen now counts at once.
        broken_s = {code: seconds for code, seconds in known.broken_s.items() if code not in HEALING}
        known = replace(known, host=came.host, addresses=came.addresses, address=came.address, broken_s=broken_s)
        if came.code:
            return replace(known, failure=Fault(came.code, came.message))
        if known.failure is not None and known.failure.code in _REACH:
            known = replace(known, failure=None)
        if came.tls_ends_s is not None:
            known = replace(known, tls_days_left=days_left(came.tls_ends_s, self._now_ms() / 1000))
        async with asyncio.TaskGroup() as tasks:
            asked = [
                tasks.create_task(self._bounded(question, pair))
                for question in (self._ask_manifest, self._ask_endpoint, self._ask_back)
            ]
        return _settled(known, *(task.result() for task in asked))

    async def _bounded(self, question: Callable[[Pair], Awaitable[_Seen]], pair: Pair) -> _Seen:
        """Return what one question showed; an error on the way is shown as a failure."""
        try:
            async with asyncio.timeout(2 * self.limits.check_s):
                return await question(pair)
        except TimeoutError:
            text = f"{pair.url} did not answer in {2 * self.limits.check_s:g} s"
            return _Seen(failure=Fault("timeout", text, reached=True))
        except SplError as exc:
            return _Seen(failure=Fault(exc.code, exc.message, reached=isinstance(exc, ReachError) and exc.reached))

    async def _ask_manifest(self, pair: Pair) -> _Seen:
        """Fetch manifest and DID document, past all caches, and verify them against what is pinned."""
        started_ms = self._now_ms()
        reply = await self._get(pair.url + MANIFEST_PATH, self.pairing.peers.dial(pair))
        ahead_ms = _by_date(reply, started_ms, self._now_ms())
        if reply.status != 200:
            return replace(_other_status(reply, pair.url + MANIFEST_PATH), clock_ahead_ms=ahead_ms)
        if not reply.body.lstrip().startswith(b"{"):
            return _Seen(failure=_foreign(reply, pair.url + MANIFEST_PATH))
        document = await self._get(pair.url + DID_PATH, self.pairing.peers.dial(pair))
        own, protocol = self.vault.identity, ""
        try:
            seen = manifest.verify(
                reply.body, document.body if document.status == 200 else None, now_ms=self._now_ms(),
                strict=pair.proposal.strict, limits=self.limits,
            )  # fmt: skip
            if own is not None and seen.did == own.did:
                raise DoctorError("identity-cloned", f"{pair.url} answers with our own DID")
            protocol = f"{seen.protocol_min}..{seen.protocol_max}"
            manifest.judge(
                seen, now_ms=self._now_ms(), strict=pair.proposal.strict, expect_did=pair.peer_did, pinned=pair.chain,
                newer_than_ms=pair.peer.signed_at_ms,
            )  # fmt: skip
        except SplError as exc:
            code = exc.code if exc.code in _KNOWN else "manifest-malformed"
            return _Seen(clock_ahead_ms=ahead_ms, protocol_peer=protocol, manifest=Fault(code, exc.message))
        return _Seen(clock_ahead_ms=ahead_ms, protocol_peer=protocol, manifest_digest=_digest(reply.body))

    async def _ask_endpoint(self, pair: Pair) -> _Seen:
        """GET the pair endpoint: 405 shows that a handshake could be posted there without a bearer."""
        reply = await self._get(pair.peer.pair_endpoint, self.pairing.peers.dial(pair))
        is_page = reply.status == 200 and not members_of(reply.body)
        is_served = (reply.status in SERVED and not is_page) or is_ours(reply.body)
        if reply.status == 429 or reply.status >= 500 or not is_served:
            return _other_status(reply, pair.peer.pair_endpoint)
        return _Seen(endpoint_status=reply.status)

    async def _ask_back(self, pair: Pair) -> _Seen:
        """Ask the peer, authenticated, whether it reaches us and how it sees the pair."""
        if not pair.live:
            return _Seen()
        started_ms = self._now_ms()
        try:
            reply = await self.pairing.peers.fetch(
                pair, "POST", CHECK_PATH.format(pair.pair_id), b"{}", timeout_s=2 * self.limits.check_s,
                answer_bytes=ERROR_BYTES_MAX,
            )  # fmt: skip
        except SyncError:  # we hold no token that could prove us
            return _Seen()
        value = members_of(reply.body)
        is_answer = bool(value) if reply.status == 200 else is_ours(reply.body) or reply.status == 429
        if not is_answer:
            return _Seen(failure=_foreign(reply, pair.url))
        if reply.status != 200:
            return _refusal(reply.status, value, self._now_ms())
        return self._read_answer(value, started_ms)

    def _read_answer(self, value: Mapping[str, Any], started_ms: int) -> _Seen:
        """Return what a peer's answer to the check shows."""
        view, seen, inside = value.get("peer_view"), value.get("reverse"), value.get("manifest_sha256")
        answer = _Seen(
            token_taken=True,
            view=page.read_view(view) if isinstance(view, dict) else {},
            inside_digest=inside if isinstance(inside, str) else "",
            clock_ahead_ms=_by_text(value.get("time"), started_ms, self._now_ms()),
        )
        if not isinstance(seen, dict):
            return answer
        ms, reached = seen.get("ms"), seen.get("reached") is True
        reverse = ReverseReach(
            reached, _cut(seen, "url"), ms if type(ms) is int else 0, _cut(seen, "code"), _cut(seen, "message")
        )
        differs = reached and seen.get("sha256") != self._published_digest()
        fault = "our manifest arrives at the peer with other bytes than this daemon serves" if differs else ""
        return replace(answer, reverse=reverse, outside_fault=fault)

    # -- being asked

    async def look_back(self, pair: Pair) -> Json:
        """Return how this side sees the peer that asks: whether we reach the endpoint that its pinned manifest names.

        Nothing in the request says where to look.  Raises DoctorError "rate-limited" beyond six looks and then one
        each ten seconds, for a pair.
        """
        wait_s = self._looks.take(pair.pair_id, self.pairing.pairs.steady_ms() / 1000)
        if wait_s:
            raise DoctorError("rate-limited", "checked often enough", retry_after_s=int(wait_s) + 1)
        return {
            "reverse": await self._look(pair),
            "manifest_sha256": self._published_digest(),
            "time": when.text_of(self._now_ms()),
        }

    async def _look(self, pair: Pair) -> Json:
        url, started_ms = pair.url + MANIFEST_PATH, self.pairing.pairs.steady_ms()
        try:
            reply = await self._get(url, self.pairing.peers.dial(pair))
        except SplError as exc:
            return self._unreached(pair, exc.code)
        if reply.status != 200 or members_of(reply.body).get("did") != pair.peer_did:
            return self._unreached(pair, "manifest-missing")
        took_ms = self.pairing.pairs.steady_ms() - started_ms
        return {"reached": True, "url": pair.url, "ms": took_ms, "sha256": _digest(reply.body)}

    def _unreached(self, pair: Pair, code: str) -> Json:
        """Log the reason; the peer does not learn it."""
        log.info(**event("check.unreached", pair=pair.pair_id, url=pair.url, code=code))
        return {"reached": False, "url": pair.url}

    async def _get(self, url: str, policy: DialPolicy) -> Reply:
        """Return the answer to a GET that no cache may give, within the time of one check.  Raises ReachError."""
        return await self.client.fetch(
            "GET", url, headers=[("cache-control", "no-cache")], timeout_s=self.limits.check_s, dial=policy,
            answer_bytes=self.limits.manifest_bytes,
        )  # fmt: skip

    def _published_digest(self) -> str:
        return _digest(canon.encode(self.pairing.published.manifest()))


def _settled(known: Facts, document: _Seen, endpoint: _Seen, back: _Seen) -> Facts:
    """Return the facts with what was seen now, and without older faults that it disproves."""
    before, answers = known.failure.code if known.failure is not None else "", (document, endpoint, back)
    held = bool(document.manifest_digest)
    # In on-demand mode nothing was tried since; an answer to our token shows that the peer is there again.
    over = {*AUTH_CODES, *(_ANSWERED if known.mode == ON_DEMAND else ())}
    disproved = (back.token_taken and before in over) or (held and before in _ABOUT)
    older = None if disproved else known.failure
    failure = next((each.failure for each in reversed(answers) if each.failure is not None), older)
    ahead_ms = back.clock_ahead_ms if back.clock_ahead_ms is not None else document.clock_ahead_ms
    differs = held and bool(back.inside_digest) and back.inside_digest != document.manifest_digest
    outside = "the peer's manifest arrives here with other bytes than its daemon serves" if differs else ""
    return replace(
        known,
        failure=failure,
        manifest=document.manifest if document.manifest is not None else None if held else known.manifest,
        manifest_held=held,
        inside_same=held and bool(back.inside_digest) and not differs,
        outside_fault=outside or back.outside_fault,
        protocol_peer=document.protocol_peer,
        clock_ahead_ms=ahead_ms if ahead_ms is not None else known.clock_ahead_ms,
        throttled=any(each.throttled for each in answers),
        endpoint_status=endpoint.endpoint_status,
        token_taken=back.token_taken,
        token_refused=back.token_refused,
        token_revoked=back.token_revoked or (known.token_revoked and not back.token_taken),
        token_left_ms=0 if back.token_expired else known.token_left_ms,
        scopes_missing=(back.scope_missing,) if back.scope_missing else known.scopes_missing,
        reverse=back.reverse,
        reverse_unknown=back.reverse_unknown,
        peer_state=str(back.view.get("state", "")),
        peer_queue=int(back.view.get("queue", 0)),
    )


def _other_status(reply: Reply, url: str) -> _Seen:
    """Return what another status than 200 for a document shows."""
    if reply.status == 429:
        return _Seen(throttled=True)
    if not is_ours(reply.body):
        return _Seen(failure=_foreign(reply, url))
    if members_of(reply.body).get("code") == "MANIFEST_MISSING":
        text = f"{url} answers {reply.status}, the peer has no identity"
        return _Seen(manifest=Fault("manifest-missing", text))
    return _Seen(failure=Fault("peer-5xx" if reply.status >= 500 else "peer-4xx", f"{url} answers {reply.status}"))


def _foreign(reply: Reply, url: str) -> Fault:
    return Fault("foreign-answer", foreign_text(reply, url), status=reply.status)


def _refusal(status: int, value: Mapping[str, Any], now_ms: int) -> _Seen:
    """Return what the peer's refusal shows about our token; other refusals show nothing about it."""
    code, reason = _cut(value, "code"), _cut(value, "reason")
    seen = _Seen(clock_ahead_ms=_by_text(value.get("time"), now_ms, now_ms))
    if code == "SCOPE_FORBIDDEN":
        return replace(seen, scope_missing=_cut(value, "scope") or "federation:sync")
    if reason == "token-expired":
        return replace(seen, token_expired=True)
    if status in (401, 403):
        refused = f"the peer answers {status}: {_cut(value, 'message') or code}"
        return replace(seen, token_refused=refused, token_revoked=reason == TOKEN_REVOKED)
    if status == 429:
        # RATE_LIMITED is the daemon's own answer, given after it accepted our token; a proxy's 429 shows nothing.
        unknown = "not asked again: the peer was asked a moment ago"
        return replace(seen, reverse_unknown=unknown, token_taken=code == "RATE_LIMITED")
    if status == 404:
        return replace(seen, reverse_unknown="the peer cannot say: its version has no such check")
    return seen


def _by_date(reply: Reply, started_ms: int, ended_ms: int) -> int | None:
    """Return how far the peer's clock is ahead by its Date header, whose whole seconds are half a second late."""
    date = date_ms(reply.headers.get("date", ""))
    return None if date is None else date + 500 - (started_ms + ended_ms) // 2


def _by_text(text: object, started_ms: int, ended_ms: int) -> int | None:
    try:
        return when.ms_of(text) - (started_ms + ended_ms) // 2
    except when.WhenError:
        return None


def _cut(value: Mapping[str, Any], name: str) -> str:
    """Return a text of the peer's, bounded and printable; "" for anything else."""
    text = value.get(name)
    return cut_text(text) if isinstance(text, str) else ""


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
