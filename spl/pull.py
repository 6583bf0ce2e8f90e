"""One pull: a peer's pages into our log, behind the gate.

    fetch page -> bounded queue -> drop known ids -> verify in threads, gate -> hub (records + position) -> ack

The next page is fetched while the last is verified, as long as the queue has room.  Records and the position they
lead to are one submission, so the position never runs ahead; a crash at any point repeats at most pages whose ids are
known.  A record that the gate refuses goes into the ledger in the same write and stalls nothing.  `sync.py` decides
when a pull runs, and this file is its only helper.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode

from .core import bearer, page
from .core.did import Chain, chain_from_json, grown
from .core.errors import SplError, cli_code
from .core.gate import CHAIN_UNKNOWN, Gate, Roots, Verdict, claimed_id
from .core.limits import Limits
from .core.page import Page
from .core.pair import Pair, Phase
from .hub import Arrive, Hub, Item, Own, Place, Refuse
from .net.address import parse_url
from .net.client import Client, DialPolicy, Reply
from .vault import Identity, Vault
from .views import KIND_CHAIN, THREAD_PAIRS

log = logging.getLogger("spl.federation")

CHANGES: Final = "/v1/sync/changes"
ACK: Final = "/v1/sync/ack"
CHAINS: Final = "/v1/sync/chains"
RECORDS: Final = "/v1/sync/records"

RESET_CODES: Final = frozenset({"cursor-reset", "cursor-invalid"})
STATE_CODES: Final = frozenset({"pair-paused", "pair-revoked"})
AUTH_CODES: Final = frozenset({"auth-required", "auth-invalid", "scope-forbidden", "permission-denied"})

WORKERS: Final = 2
PAGES_MAX: Final = 10_000
EMPTY_PAGES_MAX: Final = 1000
CHAINS_PER_PAGE_MAX: Final = 16
ACK_EVERY_S: Final = 1.0
ERROR_BYTES_MAX: Final = 16 * 1024

_TAKEN_OVER: Final = RESET_CODES | STATE_CODES | AUTH_CODES | {"pair-unknown", "pair-state-conflict"}


class SyncError(SplError):
    """A pull cannot start, or the peer refused it; `view` is the peer's view of the pair where it gave one."""

    def __init__(self, code: str, message: str = "", *, view: Mapping[str, Any] | None = None) -> None:
        super().__init__(code, message)
        self.view = view


@dataclass(slots=True)
class Queue:
    """Pages between network and store.  Full means that reading stops; nothing is dropped."""

    records_max: int
    bytes_max: int
    records: int = 0
    bytes: int = 0
    pages: "asyncio.Queue[Page | SplError | None]" = field(default_factory=asyncio.Queue)
    """At the end stands None, or the error that ended the reading."""
    freed: asyncio.Event = field(default_factory=asyncio.Event)

    async def room(self, records: int, size: int) -> None:
        """Wait until a page of this size fits, or nothing waits at all."""
        while self.records and (self.records + records > self.records_max or self.bytes + size > self.bytes_max):
            self.freed.clear()
            await self.freed.wait()

    def put(self, item: Page | SplError | None) -> None:
        """Add a page, or the end."""
        if isinstance(item, Page):
            self.records += item.count
            self.bytes += item.size
        self.pages.put_nowait(item)

    def done(self, item: Page) -> None:
        """Give a page's room free."""
        self.records -= item.count
        self.bytes -= item.size
        self.freed.set()


@dataclass(frozen=True, slots=True)
class Ask:
    """One run of pages: from which cursor, for one thread only or all, and whether from the start regardless."""

    since: str
    thread: str = ""
    resync: bool = False


@dataclass(slots=True)
class Progress:
    """What a pull tells while it runs: the peer's view of the pair, what waits here, and when it acked last."""

    view: Mapping[str, Any] = field(default_factory=dict)
    queue: Queue | None = None
    acked_s: float = 0.0
    strangers: set[str] = field(default_factory=set)
    """Signers whose chains the peer could not show in this pull."""
    learnt: bool = False
    """A chain was pinned in this pull."""


class Puller:
    """Pulls of any pair.  `dial` says how a peer may be reached."""

    def __init__(
        self,
        hub: Hub,
        vault: Vault,
        client: Client,
        limits: Limits,
        *,
        dial: Callable[[Pair], DialPolicy],
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self.hub = hub
        self.vault = vault
        self.client = client
        self.limits = limits
        self._dial = dial
        self._now_ms = now_ms
        self._random_bytes = random_bytes
        self._roots = Roots(limits.verified_roots)
        self._pool = ThreadPoolExecutor(WORKERS, "spl-verify")

    def close(self) -> None:
        """End the verifying threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def pair(self, pair_id: str) -> Pair:
        """Return the pair when it may sync now; raise SyncError by what forbids it."""
        pair = self.hub.views.pairs.get(pair_id)
        if pair is None:
            raise SyncError("pair-unknown", f"no pair {pair_id[:40]}")
        if pair.sync_allowed:
            return pair
        code = {Phase.PAUSED: "pair-paused", Phase.REVOKED: "pair-revoked"}.get(pair.phase, "pair-state-conflict")
        raise SyncError(code, f"{pair_id} is {pair.state.detail or pair.phase}")

    def since(self, pair: Pair) -> str:
        """Return the saved cursor; a pair that superseded another goes on from where that one stood."""
        positions = self.hub.views.positions
        place = positions.get(pair.pair_id) or positions.get(pair.inherits)
        return place.cursor if place is not None else ""

    async def run(self, pair: Pair, progress: Progress, ask: Ask) -> int:
        """Read pages until the source has no more; return how many records were new.  Raises SplError."""
        progress.strangers.clear()
        progress.learnt = False
        queue = progress.queue = Queue(self.limits.queue_records, self.limits.queue_bytes)
        fresh = 0
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._fill(pair, queue, ask))
                while isinstance(item := await queue.pages.get(), Page):
                    fresh += await self._take_in(pair, progress, item, ask)
                    queue.done(item)
                if item is not None:
                    raise item
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group
        return fresh

    async def _fill(self, pair: Pair, queue: Queue, ask: Ask) -> None:
        """Read into the queue; what came before an error is still taken in."""
        try:
            await self._read(pair, queue, ask)
        except SplError as exc:
            queue.put(exc)
        else:
            queue.put(None)

    async def _read(self, pair: Pair, queue: Queue, ask: Ask) -> None:
        """Fetch pages into the queue until the source has no more; endless emptiness and standing still are errors."""
        count = max(1, min(self.limits.page_records_default, self.limits.queue_records // 2))
        since, empty, first = ask.since, 0, True
        for _ in range(PAGES_MAX):
            await queue.room(count, self.limits.page_bytes)
            options = {
                "since": since,
                "limit": str(count),
                "feed": "normal",
                "thread": ask.thread,
                "resync": "1" if ask.resync and first else "",
            }
            target = f"{CHANGES}?{urlencode({name: value for name, value in options.items() if value})}"
            reply = await self._ask(pair, "GET", target)
            item = await asyncio.get_running_loop().run_in_executor(self._pool, page.decode, reply.body, count)
            empty = 0 if item.count else empty + 1
            if item.has_more and (item.next_cursor == since or empty > EMPTY_PAGES_MAX):
                raise SyncError("answer-malformed", "the peer says that there is more and gives nothing")
            queue.put(item)
            if not item.has_more:
                return
            since, first = item.next_cursor, False

    async def retry_refused(self, pair: Pair, progress: Progress) -> int:
        """Ask again for what the ledger holds of this pair, as the cause may be gone; return how many came in.

        What is refused again stands in the ledger already, and is not written a second time.
        """
        ids = await asyncio.get_running_loop().run_in_executor(self._pool, self._refused, pair.pair_id)
        fresh = 0
        while ids:
            asked, ids = ids[: self.limits.fetch_ids], ids[self.limits.fetch_ids :]
            reply = await self._ask(pair, "POST", RECORDS, json.dumps({"ids": asked}).encode())
            item = page.decode(reply.body, len(asked), fetched=True)
            if item.has_more and item.count:
                got = {claimed_id(value) for value in item.values}
                ids = [id_ for id_ in asked if id_ not in got] + ids if got & set(asked) else ids
            verdicts, pins = await self._judge(pair, progress, item)
            fresh += await self._store(pair, [*pins, *_arrivals(pair, verdicts)])
        return fresh

    def _refused(self, pair_id: str) -> list[str]:
        """Return the ids in the ledger of a pair that we still lack, oldest first."""
        store = self.hub.store
        rows = store.index.after(f"r:{pair_id}", 0, self.limits.refused_per_pair)
        ids = dict.fromkeys(json.loads(payload)["id"] for payload in store.payloads(rows))
        return [id_ for id_ in ids if store.index.find(id_) is None]

    async def _take_in(self, pair: Pair, progress: Progress, item: Page, ask: Ask) -> int:
        """Store what of a page is new and sound, with its position, in one write; return how many were new."""
        verdicts, pins = await self._judge(pair, progress, item)
        items: list[Item] = [*pins, *_arrivals(pair, verdicts)]
        refused = [verdict for verdict in verdicts if verdict.code]
        items += [Refuse(pair.pair_id, verdict.id, verdict.code) for verdict in refused]
        place = self.hub.views.positions.get(pair.pair_id)
        clock = item.view.get("clock", (place.count if place else 0) + item.count)
        if not ask.thread and (place is None or place.cursor != item.next_cursor):
            items.append(Place(pair.pair_id, item.next_cursor, clock))
        fresh = await self._store(pair, items)
        if refused:
            codes = ",".join(sorted({verdict.code for verdict in refused}))
            event(logging.WARNING, "sync.refused", pair.pair_id, records=len(refused), codes=codes)
        if not ask.thread:
            progress.view = item.view
            await self._ack(pair, progress, item, clock)
        return fresh

    async def _store(self, pair: Pair, items: Sequence[Item]) -> int:
        """Write it all at once; return how many records were new.  Nothing of a pair paused or revoked meanwhile."""
        self.pair(pair.pair_id)
        outcomes = await asyncio.wrap_future(self.hub.submit(items)) if items else []
        return sum(outcome.fresh for outcome, sent in zip(outcomes, items, strict=True) if isinstance(sent, Arrive))

    async def _ack(self, pair: Pair, progress: Progress, item: Page, clock: int) -> None:
        """Tell the source what is durable here: at the end, and now and then on the way, unless it knows."""
        now_s = asyncio.get_running_loop().time()
        if item.view.get("acked") == clock or (item.has_more and now_s < progress.acked_s + ACK_EVERY_S):
            return
        progress.acked_s = now_s
        body = json.dumps({"cursor": item.next_cursor}).encode()
        try:
            reply = await self._ask(pair, "POST", ACK, body)
            progress.view = {**item.view, **_view_in(reply.body)}
        except SplError as exc:
            # The records are safe here; the next ack says all that this one would have said.
            event(logging.DEBUG, "sync.ack_failed", pair.pair_id, code=exc.code)

    # -- judging

    async def _judge(self, pair: Pair, progress: Progress, item: Page) -> tuple[list[Verdict], list[Own]]:
        """Return verdicts over what is new in a page, and the pins of chains learnt for it."""
        loop = asyncio.get_running_loop()
        rows = await loop.run_in_executor(self._pool, self._unknown, item)
        verdicts = await self._judge_rows(self._gate(pair, {}), rows)
        strangers = dict.fromkeys(verdict.by for verdict in verdicts if verdict.code == CHAIN_UNKNOWN)
        learnt: dict[str, Chain] = {}
        for did in [did for did in strangers if did not in progress.strangers][:CHAINS_PER_PAGE_MAX]:
            chain = await self._learn(pair, did)
            if chain is not None:
                learnt[did] = chain
            elif len(progress.strangers) < self.limits.chains_count:
                progress.strangers.add(did)
        if not learnt:
            return verdicts, []
        places = [place for place, verdict in enumerate(verdicts) if verdict.code == CHAIN_UNKNOWN]
        again = await self._judge_rows(self._gate(pair, learnt), [rows[place] for place in places])
        for place, verdict in zip(places, again, strict=True):
            verdicts[place] = verdict
        vouching = {verdict.by for verdict in again if not verdict.code}
        pins = [Own(THREAD_PAIRS, KIND_CHAIN, {"chain": learnt[did].to_json()}) for did in learnt if did in vouching]
        progress.learnt = progress.learnt or bool(pins)
        return verdicts, pins

    def _unknown(self, item: Page) -> list[tuple[Any, Any]]:
        """Return (envelope value, ns) of what we do not hold from the same voucher; runs in a worker.

        Nothing but the id is believed here, and only to store nothing.
        """
        found = []
        for value, ns in zip(item.values, item.ns, strict=True):
            id_ = value.get("id") if isinstance(value, dict) else None
            sig = value.get("sig") if isinstance(value, dict) else None
            row = self.hub.store.index.find(id_) if isinstance(id_, str) and len(id_) == 64 else None
            if row is None or not isinstance(sig, dict) or row.voucher != sig.get("by"):
                found.append((value, ns))
        return found

    async def _judge_rows(self, rules: Gate, rows: Sequence[tuple[Any, Any]]) -> list[Verdict]:
        """Return a verdict for each row; the signature checks let go of the interpreter, so two threads share them."""
        loop = asyncio.get_running_loop()

        def judge(part: Sequence[tuple[Any, Any]]) -> list[Verdict]:
            return [rules.judge(value, ns) for value, ns in part]

        size = max(1, -(-len(rows) // WORKERS))
        parts = [
            loop.run_in_executor(self._pool, judge, rows[start : start + size]) for start in range(0, len(rows), size)
        ]
        return [verdict for part in parts for verdict in await part]

    def _gate(self, pair: Pair, learnt: Mapping[str, Chain]) -> Gate:
        own = self._identity().chain
        views = self.hub.views
        chains = {**views.chains, **learnt, own.did: own}
        chains[pair.peer_did] = _longer(chains.get(pair.peer_did), pair.chain) or pair.chain
        return Gate(
            namespaces=frozenset(pair.namespaces),
            actors=frozenset(pair.actors),
            own_did=own.did,
            peer_did=pair.peer_did,
            chains=chains,
            roots=self._roots,
            limits=self.limits,
        )

    async def _learn(self, pair: Pair, did: str) -> Chain | None:
        """Return the verified key chain of a signer as the peer knows it; None when none may be pinned."""
        views = self.hub.views
        pinned = _longer(views.chains.get(did), pair.chain if did == pair.peer_did else None)
        if pinned is None and len(views.chains) >= self.limits.chains_count:
            return None
        try:
            reply = await self._ask(pair, "GET", f"{CHAINS}?{urlencode({'did': did})}")
            chain = chain_from_json(page.decode_many(reply.body[: self.limits.manifest_bytes]), self.limits)
            if chain.did != did:
                return None
            return chain if pinned is None else grown(pinned, chain)
        except SplError as exc:
            event(logging.WARNING, "sync.chain_refused", pair.pair_id, code=exc.code, signer=did)
            return None

    # -- the wire

    async def _ask(self, pair: Pair, method: str, target: str, body: bytes = b"") -> Reply:
        """Return the peer's 200 answer to a request with our bearer and its proof; raise SyncError or ReachError."""
        token = self.vault.get(f"peer-token.{pair.pair_id}")
        if token is None:
            raise SyncError("auth-required", "we hold no token of this peer", view=None)
        url = pair.url + target
        proof = bearer.proof_header(
            self._identity().key,
            method=method,
            target=parse_url(url).target,
            audience=pair.peer_did,
            token=token,
            body=body,
            issued_at_ms=self._now_ms(),
            nonce=self._random_bytes(16).hex(),
        )
        headers = [("authorization", f"Bearer {token}"), (bearer.PROOF_HEADER, proof)]
        if body:
            headers.append(("content-type", "application/json"))
        reply = await self.client.fetch(method, url, headers=headers, body=body, dial=self._dial(pair))
        if reply.status != 200:
            raise _refusal(reply)
        return reply

    def _identity(self) -> Identity:
        if self.vault.identity is None:
            raise SyncError("identity-missing")
        return self.vault.identity


def _arrivals(pair: Pair, verdicts: Sequence[Verdict]) -> list[Item]:
    """Return what was accepted, for the hub."""
    return [
        Arrive(verdict.envelope, verdict.ns, pair.pair_id)
        for verdict in verdicts
        if verdict.envelope is not None and not verdict.code
    ]


def _longer(one: Chain | None, other: Chain | None) -> Chain | None:
    """Return the chain with more rotations, of two that are pinned."""
    if one is None or other is None:
        return one or other
    return one if len(one.rotations) >= len(other.rotations) else other


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
        code = "auth-invalid" if reply.status in (401, 403) else "peer-5xx" if reply.status >= 500 else "peer-4xx"
    view = fields.get("peer_view")
    return SyncError(code, shown, view=page.read_view(view) if isinstance(view, dict) else None)


def _view_in(body: bytes) -> dict[str, Any]:
    """Return the peer's view in the answer to an ack, or nothing."""
    value = page.decode_many(body[:ERROR_BYTES_MAX])
    view = value.get("peer_view") if isinstance(value, dict) else None
    return page.read_view(view) if isinstance(view, dict) else {}


def event(level: int, name: str, pair_id: str, *, exc_info: bool = False, **fields: object) -> None:
    """Log one fact of a pair."""
    log.log(level, name, exc_info=exc_info, extra={"fields": {"pair": pair_id, **fields}})
