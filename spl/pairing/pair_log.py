"""The pair log between two instances: our transitions of a common pair for its peer, and the peer's for us.

    POST /v1/federation/pair/{id}/log   signed under "log"; the answer is signed and carries our transitions

Only the peer of a pair that our operator asked for or approved gets an answer, also while it is paused and after its
revocation, because that is when operators compare: an answer reads the records of all pairs.  It names records, kinds,
times, states and who paused; tokens and their ids are in none of it.
"""

import asyncio
from typing import Final

from ..core.errors import SplError
from ..core.limits import KIB
from ..core.pair import diff
from ..core.pair.diff import Transition
from ..core.pair.pair import Pair
from ..core.pair.state import no_pair
from ..core.value import Json
from ..home.views import records_about
from .exchange import Exchange
from .initiator import Initiator
from .responder import Answer, Responder
from .stepper import Stepper

ASK_TIMEOUT_S: Final = 5.0
ASKED_MAX: Final = 64
"""Peers asked at once: each may hold a connection and an answer of ANSWER_BYTES for the whole ASK_TIMEOUT_S."""
ANSWER_BYTES: Final = 1024 * KIB
"""Three times what diff.TRANSITIONS_MAX transitions of usual length take."""


class PairLog:
    """Both roles."""

    def __init__(self, stepper: Stepper, responder: Responder, initiator: Initiator, exchange: Exchange) -> None:
        self.pairs = stepper.pairs
        self._stepper, self._responder, self._initiator, self._exchange = stepper, responder, initiator, exchange

    def own(self, pair_id: str) -> list[Transition]:
        """Return our transitions of a pair, oldest first.  Reads the whole pair log; blocks on the disk."""
        store, own = self.pairs.writer.store, self.pairs.identity.did
        return diff.history(records_about(store, diff.THREAD_PAIRS, own, pair_id), pair_id)

    async def answer(self, pair_id: str, body: bytes, address: str) -> Answer:
        """Return (HTTP status, answer) to a peer that asks for our transitions, the newest 1000 of them.

        Raises PairError "pair-unknown", and what `Responder.hear` refuses.
        """
        heard = await self._stepper.do(self._responder.hear, "log", pair_id, body, address)
        if heard.pair is None or not _is_ours(heard.pair):
            raise no_pair(pair_id)
        found = await asyncio.to_thread(self.own, pair_id)
        told = [item.to_json() for item in found[-diff.TRANSITIONS_MAX :]]
        return self._responder.status(heard.fields, heard.pair, transitions=told, omitted=len(found) - len(told))

    async def ask(self, pair_id: str = "") -> list[Json]:
        """Return what the peers say, all asked at once for at most 5 s: {pair_id, peer_did, transitions, omitted},
        or {pair_id, peer_did, code, message} of one that did not answer.

        Without a pair all are asked, the newest 64; none whose request was never approved here.
        """
        every = [pair for pair in self.pairs.all() if _is_ours(pair)]
        chosen = [pair for pair in every if pair_id in ("", pair.pair_id)][-ASKED_MAX:]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._ask_one(pair)) for pair in chosen]
        return [task.result() for task in tasks]

    async def _ask_one(self, pair: Pair) -> Json:
        found: Json = {"pair_id": pair.pair_id, "peer_did": pair.peer_did}
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                request = await self._stepper.do(self._initiator.request_for, pair, "log")
                fields = await self._exchange.send(pair, request, answer_bytes=ANSWER_BYTES)
            transitions = diff.transitions_from_json(fields.get("transitions"))
            omitted = fields.get("omitted")
            return {
                **found,
                "transitions": [item.to_json() for item in transitions],
                "omitted": omitted if type(omitted) is int else 0,
            }
        except TimeoutError:
            return {**found, "code": "timeout", "message": "the peer did not answer in time"}
        except SplError as exc:
            return {**found, "code": exc.code, "message": exc.message}


def _is_ours(pair: Pair) -> bool:
    """Return whether our side asked for the pair or approved it; the rest are requests of strangers."""
    return pair.initiator or pair.answer is not None
