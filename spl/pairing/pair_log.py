"""The pair log between two instances: what we tell a peer about the common pair, and what we ask ours.

    POST /v1/federation/pair/{id}/log   signed under "log"; the answer is signed and carries our transitions

It is answered to the pair's own peer and nobody else, also while paused and after the revocation, because that is when
operators compare.  It names records, kinds, times, states and who paused; tokens and their ids are in none of it.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Final

from ..core import canon
from ..core.backoff import TokenBucket
from ..core.errors import SplError, cli_code
from ..core.identity import message
from ..core.limits import KIB, Limits
from ..core.pair import diff, handshake
from ..core.pair.diff import Transition
from ..core.pair.pair import Pair
from ..home.index import by_thread
from ..home.vault import Identity, Vault
from ..home.writer import Writer
from ..net.client import Client, DialPolicy

ASK_TIMEOUT_S: Final = 5.0
ASKED_MAX: Final = 64
ANSWER_BYTES: Final = 1024 * KIB
ROWS: Final = 500
ADDRESSES_MAX: Final = 4096
MINUTE_S: Final = 60.0
NONCE_BYTES: Final = 16

Found = dict[str, object]


class HistoryError(SplError):
    """The pair log is not answered, or not asked."""


class PairLog:
    """Both roles.  `dial` says how a peer may be reached."""

    def __init__(
        self, writer: Writer, vault: Vault, client: Client, limits: Limits, *, dial: Callable[[Pair], DialPolicy],
        now_ms: Callable[[], int], random_bytes: Callable[[int], bytes],
    ) -> None:  # fmt: skip
        self.writer, self.vault, self.client, self.limits = writer, vault, client, limits
        self._dial, self._now_ms, self._random_bytes = dial, now_ms, random_bytes
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def own(self, pair_id: str) -> list[Transition]:
        """Return our transitions of a pair, oldest first.  Reads the whole pair log; blocks on the disk."""
        return diff.history(self._records(pair_id), pair_id)

    def admit(self, address: str) -> None:
        """Return when this address may ask now; raise HistoryError "rate-limited".  For the event loop only."""
        rate = float(self.limits.handshakes_per_minute)
        bucket = self._buckets.pop(address, TokenBucket(rate, rate / MINUTE_S))
        self._buckets[address], allowed, wait_s = bucket.take(self._now_ms() / 1000)
        while len(self._buckets) > ADDRESSES_MAX:
            self._buckets.popitem(last=False)
        if not allowed:
            raise HistoryError("rate-limited", "too many questions", retry_after_s=int(wait_s) + 1)

    def answer(self, pair_id: str, body: bytes) -> dict[str, object]:
        """Return the signed answer to a peer that asks for our transitions, the newest 1000 of them.

        Raises HistoryError "pair-unknown", MessageError.
        """
        identity = self._identity()
        value = canon.decode(body)
        fields = message.unwrap(value)
        message.check_audience(fields, identity.did)
        pair = self.writer.views.pairs.get(pair_id)
        if pair is None or fields["pair_id"] != pair_id or fields["signer"] != pair.peer_did:
            raise HistoryError("pair-unknown", "there is no such pair of the two of us")
        message.verify("log", value, pair.chain.present)
        message.check_times(fields, self._now_ms(), self.limits)
        found = self.own(pair_id)
        shown = [item.to_json() for item in found[-diff.TRANSITIONS_MAX :]]
        return handshake.answer(
            fields, identity.key, 200, handshake.status_of(pair)[1], self._now_ms(), self._nonce(),
            transitions=shown, omitted=len(found) - len(shown),
        )  # fmt: skip

    async def ask(self, pair_id: str = "") -> list[Found]:
        """Return what the peers say, all asked at once for at most 5 s: {pair_id, peer_did, transitions, omitted},
        or {pair_id, peer_did, code, message} of one that did not answer.

        Without a pair all are asked, the newest 64.
        """
        every = list(self.writer.views.pairs.values())
        chosen = [pair for pair in every if pair_id in ("", pair.pair_id)][-ASKED_MAX:]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._ask_one(pair)) for pair in chosen]
        return [task.result() for task in tasks]

    async def _ask_one(self, pair: Pair) -> Found:
        found: Found = {"pair_id": pair.pair_id, "peer_did": pair.peer_did}
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                fields = await self._fetch(pair)
            transitions = diff.transitions_from_json(fields.get("transitions"))
            omitted = fields.get("omitted")
            shown = [item.to_json() for item in transitions]
            return {**found, "transitions": shown, "omitted": omitted if type(omitted) is int else 0}
        except TimeoutError:
            return {**found, "code": "timeout", "message": "the peer did not answer in time"}
        except SplError as exc:
            return {**found, "code": exc.code, "message": exc.message}

    async def _fetch(self, pair: Pair) -> dict[str, Any]:
        """Return the fields of the peer's signed answer."""
        identity = self._identity()
        fields = message.head(identity.did, pair.peer_did, pair.pair_id, self._now_ms(), self._nonce())
        reply = await self.client.fetch(
            "POST", f"{pair.peer.pair_endpoint}/{pair.pair_id}/log", headers=[("content-type", "application/json")],
            body=canon.encode(message.sign("log", fields, identity.key)), answer_bytes=ANSWER_BYTES,
            dial=self._dial(pair),
        )  # fmt: skip
        if reply.status != 200:
            raise HistoryError("peer-5xx" if reply.status >= 500 else "peer-4xx", _refused(reply.status, reply.body))
        return handshake.read_answer(canon.decode(reply.body), fields, pair.chain.present)

    def _records(self, pair_id: str) -> Iterator[dict[str, Any]]:
        store, seq, own = self.writer.store, 0, self._identity().did
        name = pair_id.encode()
        while rows := store.index.after(by_thread(diff.THREAD_PAIRS), seq, ROWS):
            mine = [row for row in rows if row.kind == "rec" and row.voucher == own]
            for payload in store.payloads(mine):
                if name in payload:
                    value = json.loads(payload)
                    yield {**value["record"], "id": value["id"]}
            seq = rows[-1].seq

    def _identity(self) -> Identity:
        if self.vault.identity is None:
            raise HistoryError("identity-missing")
        return self.vault.identity

    def _nonce(self) -> str:
        return self._random_bytes(NONCE_BYTES).hex()


def _refused(status: int, body: bytes) -> str:
    """Return the peer's refusal as short printable text."""
    try:
        value = json.loads(body[: 16 * KIB])
    except (ValueError, RecursionError):
        value = {}
    code = value.get("code") if isinstance(value, dict) else None
    shown = "".join(char for char in cli_code(code)[:40] if char.isprintable()) if isinstance(code, str) else ""
    return f"the peer answered {status} {shown}".strip()
