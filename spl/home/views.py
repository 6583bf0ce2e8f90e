"""Live folds over the reserved threads and the saved positions: what the daemon must know at any moment.

Loaded at start from the few records they need and kept up by the hub after each commit.  Each value is replaced,
never changed in place, so the event loop reads them without a lock while the writer's thread folds.  Memory grows
with pairs, tokens and rules, never with records.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from ..core import consent, fold, rules
from ..core.canon import CanonError
from ..core.consent import PairGrants
from ..core.fold import FoldRules
from ..core.identity import bearer
from ..core.identity.bearer import Token
from ..core.identity.did import Chain, DidError, chain_from_json, grown
from ..core.limits import Limits
from ..core.pair import pair
from ..core.pair.pair import ApprovalRequest, Pair
from ..core.record import namespace
from ..core.record.namespace import Namespace
from ..core.record.record import record_id
from ..core.rules import AitlRules, PermissionRules
from .log import Entry, LineError, Log

PAGE_ROWS: Final = 500
KIND_CHAIN: Final = "syncropel.federation.chain_pin.v1"
KIND_BLOCK: Final = "syncropel.federation.block.v1"
THREAD_PAIRS: Final = "th_federation_pairs"
THREAD_TOKENS: Final = "th_api_tokens"
THREAD_AITL: Final = "th_aitl"
THREAD_NAMESPACES: Final = "th_namespace_registry"


@dataclass(frozen=True, slots=True)
class Position:
    """Up to where we have everything of a pair: the source's sealed cursor, and how many records that were."""

    cursor: str
    count: int
    at_ms: int


class Views:
    """The folds.  Only records that `did` signed count: reserved threads take nobody else's word."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.did = ""
        self.pairs: Mapping[str, Pair] = {}
        self.tokens: Mapping[str, Token] = {}
        self.tokens_by_hash: Mapping[str, Token] = {}
        self.requests: Mapping[str, ApprovalRequest] = {}
        self.consents: Mapping[str, PairGrants] = {}
        """By pair_id; `consent.book_of` adds what the pair's own record grants."""
        self.namespaces: Mapping[str, Namespace] = namespace.REGISTRY_EMPTY
        self.positions: Mapping[str, Position] = {}
        self.refused: Mapping[str, int] = {}
        self.chains: Mapping[str, Chain] = {}
        self.rules: PermissionRules = {}
        self.aitl_rules: AitlRules = {}
        self.fold_rules: FoldRules = {}
        self.blocked: frozenset[str] = frozenset()
        """DIDs whose records are refused, whoever brings them."""

    def load(self, store: Log, did: str) -> None:
        """Read everything anew from the store, for the instance of this DID."""
        self.did = did
        self.pairs, self.tokens, self.tokens_by_hash, self.requests = {}, {}, {}, {}
        self.namespaces, self.positions, self.chains = namespace.REGISTRY_EMPTY, {}, {}
        self.rules, self.aitl_rules, self.consents = {}, {}, {}
        self.fold_rules = {}
        self.blocked = frozenset()
        for thread in _FOLDS:
            for value, seq, at_ms, voucher in _records(store, thread):
                self._fold(thread, value, seq, at_ms, voucher)
        for name in _all_names(store, "p:"):
            row = store.index.last(name)
            if row is not None:
                # A position that the disk damaged is none: sync then reads from the start and skips what is known.
                with suppress(LineError, ValueError, KeyError, TypeError):
                    self._place(json.loads(store.payloads([row])[0]), store.line(row.seq).at_ms)
        self.refused = {name[2:]: store.index.count(name) for name in _all_names(store, "r:")}

    def reload(self, store: Log) -> None:
        """Fold everything anew and swap the results in: restored records arrive after the ones that they precede.

        For the writer's thread; readers see the old values until the new ones are complete.
        """
        fresh = Views(self.limits)
        fresh.load(store, self.did)
        self.__dict__.update(fresh.__dict__)

    def apply(self, entry: Entry, record: Mapping[str, Any] | None, seq: int, at_ms: int) -> None:
        """Take in one line that just became durable; called by the hub in log order."""
        if entry.kind == "rec" and record is not None and entry.thread in _FOLDS:
            self._fold(entry.thread, record, seq, at_ms, entry.voucher)
        elif entry.kind == "pos":
            self._place(json.loads(entry.payload), at_ms)
        elif entry.kind == "ref":
            self.refused = {**self.refused, entry.pair: self.refused.get(entry.pair, 0) + 1}

    def _fold(self, thread: str, record: Mapping[str, Any], seq: int, at_ms: int, voucher: str) -> None:
        if voucher == self.did:
            _FOLDS[thread](self, record["body"], seq, at_ms)

    def _pairs(self, body: Mapping[str, Any], seq: int, at_ms: int) -> None:
        if body.get("kind") == KIND_CHAIN:
            self._pin(body)
        elif body.get("kind") == KIND_BLOCK:
            did = str(body.get("did"))
            self.blocked = self.blocked | {did} if body.get("blocked") is True else self.blocked - {did}
        else:
            self.pairs = pair.fold(self.pairs, body)

    def _tokens(self, body: Mapping[str, Any], seq: int, at_ms: int) -> None:
        self.tokens = bearer.fold(dict(self.tokens), body)
        self.tokens_by_hash = {token.hash: token for token in self.tokens.values()}

    def _requests(self, body: Mapping[str, Any], seq: int, at_ms: int) -> None:
        self.requests = pair.fold_requests(self.requests, body)

    def _consents(self, body: Mapping[str, Any], seq: int, at_ms: int) -> None:
        self.consents = consent.fold(self.consents, body)

    def _namespaces(self, body: Mapping[str, Any], seq: int, at_ms: int) -> None:
        self.namespaces = namespace.fold(self.namespaces, body)

    def _engine(self, body: Mapping[str, Any], seq: int, at_ms: int) -> None:
        self.rules = rules.fold(self.rules, body)
        self.aitl_rules = rules.fold_aitl(self.aitl_rules, body)
        self.fold_rules = fold.fold_rules(self.fold_rules, body)

    def _pin(self, body: Mapping[str, Any]) -> None:
        """Pin the key chain of a relayed signer; it may only grow, unless our operator named the key (`pinned`)."""
        try:
            chain = chain_from_json(body.get("chain"), self.limits)
            pinned = self.chains.get(chain.did) if body.get("pinned") is not True else None
            self.chains = {**self.chains, chain.did: grown(pinned, chain) if pinned else chain}
        except DidError:
            return

    def _place(self, body: Mapping[str, Any], at_ms: int) -> None:
        place = Position(str(body["cursor"]), int(body["count"]), at_ms)
        self.positions = {**self.positions, str(body["pair"]): place}


_FOLDS: Final[Mapping[str, Callable[[Views, Mapping[str, Any], int, int], None]]] = {
    THREAD_PAIRS: Views._pairs,
    THREAD_TOKENS: Views._tokens,
    THREAD_AITL: Views._requests,
    THREAD_NAMESPACES: Views._namespaces,
    consent.THREAD: Views._consents,
    rules.THREAD: Views._engine,
}


def _records(store: Log, thread: str) -> "list[tuple[dict[str, Any], int, int, str]]":
    """Return (record, seq, arrival ms, voucher) of every record on a reserved thread, in the order they were made.

    That is the order of our own clocks, and of arrival unless a restore brought some late.  What the disk damaged since
    it was indexed is left out.
    """
    found, seq = [], 0
    while rows := store.index.after(f"t:{thread}", seq, PAGE_ROWS):
        for row, payload in zip(rows, store.payloads(rows), strict=True):
            value = _sound(payload) if row.kind == "rec" else None
            if value is not None:
                with suppress(LineError):
                    found.append((value, row.seq, store.line(row.seq).at_ms, row.voucher))
        seq = rows[-1].seq
    return sorted(found, key=lambda item: item[0]["clock"])


def _sound(payload: bytes) -> dict[str, Any] | None:
    """Return the record in a stored envelope, None where its id does not prove it."""
    try:
        value = json.loads(payload)
        record: dict[str, Any] = value["record"]
        return record if record_id(record) == value["id"] else None
    except (ValueError, KeyError, TypeError, CanonError):
        return None


def _all_names(store: Log, prefix: str) -> list[str]:
    names: list[str] = []
    while page := store.index.names(prefix, names[-1] if names else "", PAGE_ROWS):
        names += page
    return names
