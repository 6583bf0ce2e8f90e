"""What goes over the network to a peer about a pair: its documents fetched and verified, one message and its answer.

Every dial is one that the pair allows; documents are always asked for past caches.  A bearer goes only to the host
that the peer's verified manifest names.
"""

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

from ..core import canon
from ..core.errors import CODES, SplError, cli_code
from ..core.identity import manifest, message
from ..core.identity.manifest import Manifest, ManifestError
from ..core.identity.message import MessageError
from ..core.identity.pins import FORK
from ..core.limits import KIB
from ..core.pair import handshake
from ..core.pair.pair import Pair, PairError
from ..core.pair.state import Phase
from ..core.value import dataclass
from ..net.address import ReachError, parse_url
from ..net.dialer import DialPolicy
from ..sync.peer import CHAINS, ForeignAnswer, PeerClient, SyncError, bare, cut_text, is_ours, signed_part
from .machine import Pairs

MANIFEST_PATH: Final = "/.well-known/syncropel"
DID_PATH: Final = "/.well-known/did.json"
ANSWER_BYTES: Final = 256 * KIB
"""Of a signed answer: messages to us have limits.handshake_bytes, and an answer may hold such ones as evidence."""
_REFUSED: Final = frozenset({401, 403})


class StolenKey(PairError):
    """The server that answers shows a key that the peer's owner rotated as compromised; code chain-fork."""


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """One message to a peer: where, under which purpose, and its fields."""

    url: str
    purpose: str
    fields: Mapping[str, Any]


def forked(pairs: Pairs, did: str, url: str) -> PairError:
    """Return the refusal of two key chains of one DID, with the command that takes the right one."""
    live = next((pair for pair in pairs.of_peer(did) if pair.phase is not Phase.ESTABLISHING), None)
    command = f"spl federation refresh {live.pair_id}" if live else f"spl federation pair {url}"
    step = CODES[FORK].fix.replace("spl federation pair URL", command)
    return PairError(FORK, f"two key chains of {did} contradict each other", hint=step)


class Exchange:
    """Documents and messages of all peers."""

    def __init__(self, pairs: Pairs, peers: PeerClient) -> None:
        self.pairs, self.peers, self.limits = pairs, peers, pairs.limits

    async def discover(
        self, url: str, strict: bool, *, dial: DialPolicy, expect_did: str = "", expect_key: str = ""
    ) -> Manifest:
        """Return the verified manifest of the instance at a URL, which extends the last one accepted.

        Raises ReachError, ManifestError, PairError "manifest-missing", "identity-cloned", and StolenKey for a
        chain that contradicts the pinned one and proves no fork: its owner did not make it.
        """
        where = parse_url(url)
        if where.target != "/":
            hint = f"spl federation pair {where.origin}/; or give the peer a host name of its own"
            raise ReachError("url-invalid", f"{where.target} is a path; an instance has a whole host", hint=hint)
        base = where.origin
        document = await self._document(base + MANIFEST_PATH, dial)
        did_document = await self._document(base + DID_PATH, dial)
        peer = manifest.verify(
            document, did_document, now_ms=self.pairs.now_ms(), strict=strict, limits=self.limits,
            expect_did=expect_did, expect_key=expect_key,
        )  # fmt: skip
        if self.pairs.identity.did == peer.did:
            hint = "check the port, is it the peer's? if a copy of this home runs there, stop it"
            text = f"{peer.url} is this daemon itself: it answers with our own DID"
            raise PairError("identity-cloned", text, hint=hint)
        known = next((pair for pair in reversed(self.pairs.all()) if pair.peer_did == peer.did), None)
        # An operator who names the key settles a fork; nothing settles an old manifest.
        pins = self.pairs.writer.views.pins
        pinned = None if expect_key else pins.chain(peer.did)
        if pinned is not None and pins.code_of(peer.chain) == FORK and not pins.proves_fork(peer.chain):
            text = f"{base} shows a key of {peer.did} that its owner rotated as compromised"
            raise StolenKey(FORK, text, hint="check the address and the network path")
        newer_than_ms = known.peer.signed_at_ms if known is not None else 0
        try:
            return manifest.judge(
                peer, now_ms=self.pairs.now_ms(), strict=strict, pinned=pinned, newer_than_ms=newer_than_ms
            )
        except ManifestError as exc:
            if exc.code != FORK:
                raise
            raise forked(self.pairs, peer.did, url) from exc

    async def rediscover(self, pair: Pair, expect_key: str = "") -> Manifest:
        """Return the present manifest of a pair's peer.

        Asked for where the peer said last that it is, and then where it was before: what the manifest says that waits
        for its hour, the one that we took, and our operator at first.  What stands at a former address now may answer
        anything there, so what fails at any but the first place counts as no answer.  A fork at the first is proved.

        Raises as `discover`, with the first place's error; PairError "manifest-did-mismatch" for another instance.
        """
        newer = self.pairs.newer.get(pair.pair_id)
        urls = newer.url if newer is not None else "", pair.url, pair.proposal.url
        places = list(dict.fromkeys(parse_url(url).origin for url in urls if url))
        failed: SplError | None = None
        for place in places:
            try:
                policy = self.peers.dial(pair)
                peer = await self.discover(place, pair.proposal.strict, dial=policy, expect_key=expect_key)
                if peer.did == pair.peer_did:
                    return peer
                raise PairError("manifest-did-mismatch", f"{place} is now {peer.did}, not {pair.peer_did}")
            except (ReachError, SyncError, PairError, ManifestError) as exc:
                failed = failed or exc
                if failed.code == FORK and not isinstance(failed, StolenKey):
                    break
        assert failed is not None
        raise failed

    async def send(self, pair: Pair, request: SignedRequest, *, answer_bytes: int = ANSWER_BYTES) -> dict[str, Any]:
        """Return the fields of the peer's signed answer to one message; raises as `send_for_whole`."""
        return (await self.send_for_whole(pair, request, answer_bytes=answer_bytes))[0]

    async def send_for_whole(
        self, pair: Pair, request: SignedRequest, *, answer_bytes: int = ANSWER_BYTES
    ) -> tuple[dict[str, Any], object]:
        """Return (fields, the whole as the peer signed it) of the peer's answer to one message.

        An answer under a key that we do not know is verified again once the manifest was fetched again.  Raises
        ReachError, MessageError, and for an answer without the peer's signature what its status says.
        """
        body = canon.encode(message.sign(request.purpose, request.fields, self.pairs.identity.key))
        reply = await self.peers.client.fetch(
            "POST", request.url, headers=[("content-type", "application/json")], body=body,
            answer_bytes=answer_bytes, dial=self.peers.dial(pair),
        )  # fmt: skip
        answer = signed_part(reply, request.purpose)
        try:
            known = self.pairs.writer.views.pins.newest(pair.chain).present
            return handshake.read_answer(answer, request.fields, known), answer
        except MessageError as exc:
            if exc.code != "message-signature":
                raise
            peer = await self.rediscover(pair)
            if peer.chain.present == pair.chain.present:
                raise
            return handshake.read_answer(answer, request.fields, peer.chain.present), answer

    async def prove(self, pair: Pair, token: str) -> None:
        """Raise PairError "auth-invalid" unless the peer takes the token with our proof in one call."""
        target = f"{CHAINS}?{urlencode({'did': pair.peer_did})}"
        reply = await self.peers.fetch(pair, "GET", target, token=token)
        if reply.status in _REFUSED and is_ours(reply.body):
            why = f"{reply.status} {_code_in(reply.body)}".strip()
            raise PairError("auth-invalid", f"the peer refuses this token: {why}")
        if reply.status in _REFUSED or reply.status >= 500:
            raise bare(reply, url=pair.url)

    async def _document(self, url: str, dial: DialPolicy) -> bytes:
        reply = await self.peers.client.fetch(
            "GET", url, headers=[("cache-control", "no-cache")], answer_bytes=self.limits.manifest_bytes, dial=dial
        )
        if reply.status == 404 and _code_in(reply.body) == "manifest-missing":
            raise PairError("manifest-missing", f"{url} answers 404: the peer publishes no identity")
        if reply.status != 200 and (is_ours(reply.body) or reply.status == 429):
            error = bare(reply)
            raise PairError(error.code, f"{url}: {error.message}", hint=error.hint)
        if reply.status != 200 or not reply.body.lstrip().startswith(b"{"):
            raise ForeignAnswer(reply, url)
        return reply.body


def _code_in(body: bytes) -> str:
    try:
        value = canon.decode(body)
    except canon.CanonError:
        return ""
    code = value.get("code") if isinstance(value, Mapping) else None
    return cut_text(cli_code(code), 40) if isinstance(code, str) else ""
