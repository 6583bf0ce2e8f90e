"""Handing over grants: one signed message each way brings both sides up to date.

    POST /v1/federation/pair/{id}/consent   {grants: all of ours, held: versions of theirs that we hold}

Whoever has a new grant begins, and so does who sees in the peer's view of the pair that the peer has news; a side that
cannot be dialled is thus served too.  A failure is tried again with full jitter, at most every five minutes.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from .core import canon, handshake
from .core.backoff import full_jitter_s
from .core.errors import SplError, cli_code
from .core.handshake import HandshakeError
from .core.manifest import PAIR_PATH
from .core.pair import ESTABLISHED, Pair
from .grants import STALE, Grants
from .initiator import Initiator, Words
from .responder import Answer, Responder
from .talk import Do, Talk

log = logging.getLogger("spl.federation")

TELL_TIMEOUT_S: Final = 5.0
ROUNDS_MAX: Final = 3
"""To tell, to tell what we then hold, and to begin again where one side's home was set back."""
PAUSE_MS: Final = 1000
BACKOFF_BASE_S: Final = 2.0
BACKOFF_MAX_S: Final = 300.0
_STANDING: Final = frozenset({"active", "paused"})


@dataclass(slots=True)
class _Care:
    """What this process remembers of one pair."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    attempt: int = 0
    retry_ms: int = 0
    seen: int = 0
    """The weight of the peer's grants as its last view told it."""
    asked: int = 0
    """That weight when we last asked; one that stays ahead of what it hands over is not asked for again."""


class Handover:
    """Hands over the grants of all pairs.  `exchange` asks a peer where the pair stands; `ring` wakes the service."""

    def __init__(
        self, grants: Grants, responder: Responder, initiator: Initiator, talk: Talk, *, do: Do,
        exchange: Callable[[str], Awaitable[object]], ring: Callable[[], None],
    ) -> None:  # fmt: skip
        self.grants, self.pairs = grants, grants.pairs
        self._responder, self._initiator, self._talk = responder, initiator, talk
        self._do, self._exchange, self._ring = do, exchange, ring
        self._cares: dict[str, _Care] = {}

    # -- what our operator asks

    async def say(self, pair_id: str, name: str, maps: str, level: int | None) -> tuple[bool, str]:
        """Write our word on a namespace, hand it over within 5 s if the peer can be reached.

        Returns (whether it is news, why it could not be handed over yet: a code, or "").  Raises as `Grants.say`.
        """
        news: bool = await self._do(self.grants.say, pair_id, name, maps, level)
        if not self.grants.book(self.grants.standing(pair_id)).waiting:
            return news, ""
        try:
            async with asyncio.timeout(TELL_TIMEOUT_S):
                await self.exchange(pair_id)
                # Where our home was set back, the exchange brought older words of ours; this one came after them.
                if await self._do(self.grants.say, pair_id, name, maps, level):
                    await self.exchange(pair_id)
        except (SplError, TimeoutError) as exc:
            self._ring()
            return news, exc.code if isinstance(exc, SplError) else "timeout"
        return news, ""

    # -- what the peer asks

    async def receive(self, pair_id: str, body: bytes, address: str) -> Answer:
        """Return (HTTP status, answer) to a peer that hands over its grants."""

        def take(pair: Pair, fields: Mapping[str, Any]) -> dict[str, object]:
            return self.grants.answer(pair, fields, canon.decode(body))

        answer: Answer = await self._do(self._responder.consent, pair_id, body, address, take)
        return answer

    # -- by itself

    def seen(self, pair_id: str, view: Mapping[str, Any]) -> None:
        """Take note of the peer's view of a pair; when it tells of grants that we lack, they are asked for."""
        pair = self.pairs.get(pair_id)
        # A view without `head` is no whole one, as of a pair that is paused.
        weight = int(view.get("consent", 0)) if "head" in view else None
        if weight is None or pair is None or self.grants.book(pair).weight_held == weight:
            return
        care = self._care(pair_id)
        if weight not in (care.seen, care.asked):
            care.seen, care.attempt, care.retry_ms = weight, 0, min(care.retry_ms, self.pairs.now_ms() + PAUSE_MS)
            self._ring()

    def due(self) -> list[str]:
        """Return the pairs to hand over now; each is named once, and again after a pause."""
        now_ms = self.pairs.now_ms()
        found = [pair.pair_id for pair in self._behind() if self._care(pair.pair_id).retry_ms <= now_ms]
        for pair_id in found:
            self._care(pair_id).retry_ms = now_ms + PAUSE_MS
        return found

    def next_s(self) -> float:
        """Return the seconds until a pair is due next, as things stand; infinite where there is none."""
        times = [self._care(pair.pair_id).retry_ms for pair in self._behind()]
        return max(0.0, (min(times) - self.pairs.now_ms()) / 1000) if times else float("inf")

    async def tend(self, pair_id: str) -> None:
        """Bring both sides of a pair up to date if one is behind; what goes wrong is tried again later."""
        care, pair = self._care(pair_id), self.pairs.get(pair_id)
        if pair is None or not self._lacks(pair):
            return
        try:
            await self.exchange(pair_id)
        except SplError as exc:
            care.attempt += 1
            unit = int.from_bytes(self.pairs.random_bytes(4)) / 2**32
            delay_s = full_jitter_s(care.attempt, BACKOFF_BASE_S, BACKOFF_MAX_S, unit)
            care.retry_ms = self.pairs.now_ms() + max(PAUSE_MS, int(delay_s * 1000))
            fields = {"pair": pair_id, "code": exc.code, "attempt": care.attempt, "msg": exc.message}
            log.info("consent.not_handed_over", extra={"fields": fields})
        self._ring()

    async def exchange(self, pair_id: str) -> None:
        """Tell the peer our grants and take in its own, until each side holds the other's.

        Raises ReachError, MessageError, ConsentError, HandshakeError, PairError.
        """
        care = self._care(pair_id)
        async with care.lock:
            evidence, seen = None, care.seen
            for _ in range(ROUNDS_MAX):
                pair = self.grants.standing(pair_id)
                words = await self._do(self._words, pair, evidence)
                fields, value = await self._talk.say_whole(pair, words)
                again, evidence = await self._take(pair_id, fields, value)
                if not again:
                    break
            care.attempt, care.asked = 0, seen

    # -- inside

    async def _take(self, pair_id: str, fields: dict[str, Any], value: object) -> tuple[bool, object]:
        """Return (whether to tell the peer once more, with which evidence) after its signed answer."""
        pair = self.grants.standing(pair_id)
        if fields["state"] == "refused":
            code = cli_code(str(fields.get("code", "")))
            if code == STALE and await self._do(self.grants.adopt, pair, fields.get("evidence")):
                return True, None
            raise HandshakeError(code if code == STALE else "message-malformed", "the peer refuses our grants")
        if fields["state"] not in _STANDING:
            await self._exchange(pair_id)
            self.grants.standing(pair_id)
            raise HandshakeError("pair-state-conflict", f"the pair is {fields['state'][:40]} at the peer")
        try:
            return await self._do(self.grants.take, pair, fields, value), None
        except SplError as exc:
            if exc.code != STALE or exc.facts["evidence"] is None:
                raise
            return True, exc.facts["evidence"]

    def _words(self, pair: Pair, evidence: object) -> Words:
        said = {**self.grants.ours(pair), **({"evidence": evidence} if evidence is not None else {})}
        own, now_ms = self.pairs.identity, self.pairs.now_ms() + self._initiator.skew_ms.get(pair.pair_id, 0)
        said["manifest"] = self.pairs.published.federation_manifest()
        fields = handshake.word_fields(pair, own.did, now_ms, self.pairs.nonce(), **said)
        return Words(f"{pair.url}{PAIR_PATH}/{pair.pair_id}/consent", "consent", fields)

    def _behind(self) -> list[Pair]:
        """Return the pairs one of whose sides lacks grants of the other."""
        return [pair for pair in self.pairs.all() if self._lacks(pair)]

    def _lacks(self, pair: Pair) -> bool:
        book, care = self.grants.book(pair), self._care(pair.pair_id)
        if type(pair.state) not in ESTABLISHED or care.lock.locked():
            return False
        return bool(book.waiting) or care.seen not in (care.asked, book.weight_held)

    def _care(self, pair_id: str) -> _Care:
        return self._cares.setdefault(pair_id, _Care())
