"""What the daemon must know at any moment: live folds over the reserved threads, and the saved positions.

`Views` is one frozen value.  The writer replaces it whole after each commit (`folded`), so any other thread reads one
attribute and sees the folds as they stand behind one commit, without a lock.  Rejected: folds that change in place,
because a reader then sees a pair without its grants.  Measured: 3 us for each line that a fold takes.

A start reads each reserved thread as a stream, one record at a time.  Memory grows with pairs, tokens and rules, never
with records.
"""

import json
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from ..core import canon, consent, fold, rules
from ..core.consent import PairGrants
from ..core.fold import FoldRules
from ..core.identity import bearer, pins
from ..core.identity.bearer import Token
from ..core.identity.pins import KIND_CHAIN, Pins
from ..core.limits import Limits
from ..core.pair import pair
from ..core.pair.pair import ApprovalRequest, Pair
from ..core.record import namespace
from ..core.record.namespace import Namespace
from ..core.rules import AitlRules, PermissionRules
from ..core.value import dataclass, field, replace
from .log import Entry, LineError, Log, Row
from .tables.lists import POSITIONS, REFUSALS, by_thread, name_in

PAGE_ROWS: Final = 500
ID_CHARS: Final = 64
"""Of a refused record's id: more than any code has, so a line without one is shorter than each with one."""
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


@dataclass(frozen=True)
class Views:
    """The folds.  Only records that `did` signed count: reserved threads take no other instance's word."""

    limits: Limits
    did: str = ""
    pairs: Mapping[str, Pair] = field(default_factory=dict)
    tokens: Mapping[str, Token] = field(default_factory=dict)
    tokens_by_hash: Mapping[str, Token] = field(default_factory=dict)
    requests: Mapping[str, ApprovalRequest] = field(default_factory=dict)
    consents: Mapping[str, PairGrants] = field(default_factory=dict)
    """By pair_id; `consent.grants_of` adds what the pair's own record grants."""
    statements: Mapping[str, int] = field(default_factory=dict)
    """Pair -> seq of the line that holds its peer's newest signed statement about grants."""
    sinks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name -> body of its record; `engine/sinks.py` reads it, if there is one."""
    namespaces: Mapping[str, Namespace] = field(default_factory=lambda: namespace.REGISTRY_EMPTY)
    positions: Mapping[str, Position] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    """Pair -> lines of its ledger."""
    beyond: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Pair -> codes of what its full ledger does not name."""
    pins: Pins = field(default_factory=Pins)
    """Key chains of peers and of relayed signers."""
    rules: PermissionRules = field(default_factory=dict)
    aitl_rules: AitlRules = field(default_factory=dict)
    fold_rules: FoldRules = field(default_factory=dict)
    blocked: frozenset[str] = frozenset()
    """DIDs whose records are refused, whichever peer brings them."""

    def folded(self, entry: Entry, record: Mapping[str, Any] | None, at_ms: int, seq: int) -> "Views":
        """Return the views after the line `seq`, which became durable at `at_ms`; lines are folded in log order."""
        if entry.kind == "rec" and record is not None and entry.thread in _FOLDS:
            return _recorded(self, entry.thread, record["body"], seq) if entry.voucher == self.did else self
        if entry.kind == "pos":
            return _positions(self, record or json.loads(entry.payload), at_ms)
        if entry.kind == "ref":
            return _refused(self, record or json.loads(entry.payload))
        return self


def load(store: Log, did: str, limits: Limits) -> Views:
    """Return the views of the instance with this DID, read from the store."""
    views = Views(limits, did)
    for thread in _FOLDS:
        for record, row in _records(store, thread):
            if row.voucher == did:
                views = _recorded(views, thread, record["body"], row.seq)
    for name in _all_names(store, POSITIONS):
        newest = store.index.last(name)
        if newest is not None:
            # A position that the disk damaged is none: sync then reads from the start and skips what is known.
            with suppress(LineError):
                line = store.line(newest.seq)
                views = _positions(views, json.loads(line.payload), line.at_ms)
    for name in _all_names(store, REFUSALS):
        pair_id, count = name_in(name), store.index.count(name)
        # By their length, and not from the end: others follow them once the limit was raised.  2 us for each line.
        full_bytes = len(canon.encode({"code": "", "id": "", "pair": pair_id})) + ID_CHARS
        rows = [row for row in store.index.after(name, 0, count) if row.length < full_bytes]
        for body in map(json.loads, store.payloads(rows)):
            views = _refused(views, body)
        views = replace(views, refused={**views.refused, pair_id: count - len(rows)})
    return views


def records_about(store: Log, thread: str, did: str, pair_id: str) -> Iterator[dict[str, Any]]:
    """Yield the records on a reserved thread that `did` signed and that name the pair, by arrival; `id` is a member.

    Reads the whole thread; blocks on the disk.
    """
    seq, name = 0, pair_id.encode()
    while rows := store.index.after(by_thread(thread), seq, PAGE_ROWS):
        mine = [row for row in rows if row.kind == "rec" and row.voucher == did]
        for payload in store.payloads(mine):
            if name in payload:
                value = json.loads(payload)
                yield {**value["record"], "id": value["id"]}
        seq = rows[-1].seq


def _refused(views: Views, body: Mapping[str, Any]) -> Views:
    """Return the views after a line of a ledger; one without an id says that there are more of its code."""
    pair_id = str(body["pair"])
    if body["id"]:
        return replace(views, refused={**views.refused, pair_id: views.refused.get(pair_id, 0) + 1})
    codes = views.beyond.get(pair_id, frozenset())
    return replace(views, beyond={**views.beyond, pair_id: codes | {str(body["code"])}})


def _recorded(views: Views, thread: str, body: Mapping[str, Any], seq: int) -> Views:
    """Return the views after a record of our own on a reserved thread."""
    views = _FOLDS[thread](views, body)
    if body.get("kind") == consent.KIND_PEER_GRANT and "statement" in body and thread == consent.THREAD:
        return replace(views, statements={**views.statements, str(body.get("pair_id")): seq})
    return views


def _pairs(views: Views, body: Mapping[str, Any]) -> Views:
    if body.get("kind") == KIND_CHAIN:
        return replace(views, pins=pins.fold(views.pins, body, views.limits))
    if body.get("kind") == KIND_BLOCK:
        did = str(body.get("did"))
        return replace(views, blocked=views.blocked | {did} if body.get("blocked") is True else views.blocked - {did})
    after = pair.fold(views.pairs, body)
    return replace(views, pairs=after, pins=_pinned(views, after, body))


def _pinned(views: Views, after: Mapping[str, Pair], body: Mapping[str, Any]) -> Pins:
    """Return the pins after a pair record: the chain of a peer that either side's operator approved is pinned.

    A request that only a stranger made pins nothing: it would be the first word on a DID.  Neither does a pair that has
    ended: its chain may be the one that the operator replaced meanwhile, so it would bring a settled fork back.
    """
    found = after.get(str(body.get("pair_id"))) if after is not views.pairs else None
    if found is None or found.ended or not (found.initiator or found.answer is not None):
        return views.pins
    return views.pins.chosen(found.chain) if body.get("pinned") is True else views.pins.seen(found.chain)


def _tokens(views: Views, body: Mapping[str, Any]) -> Views:
    tokens = bearer.fold(dict(views.tokens), body)
    return replace(views, tokens=tokens, tokens_by_hash={token.hash: token for token in tokens.values()})


def _requests(views: Views, body: Mapping[str, Any]) -> Views:
    return replace(views, requests=pair.fold_requests(views.requests, body))


def _namespaces(views: Views, body: Mapping[str, Any]) -> Views:
    return replace(views, namespaces=namespace.fold(views.namespaces, body))


def _consents(views: Views, body: Mapping[str, Any]) -> Views:
    if body.get("kind") == consent.KIND_SINK:
        others = {name: sink for name, sink in views.sinks.items() if name != body.get("name")}
        return replace(
            views, sinks=others if body.get("phase") == "removed" else {**others, str(body.get("name")): body}
        )
    return replace(views, consents=consent.fold(views.consents, body))


def _rules(views: Views, body: Mapping[str, Any]) -> Views:
    return replace(
        views,
        rules=rules.fold(views.rules, body),
        aitl_rules=rules.fold_aitl(views.aitl_rules, body),
        fold_rules=fold.fold_rules(views.fold_rules, body),
    )


def _positions(views: Views, body: Mapping[str, Any], at_ms: int) -> Views:
    place = Position(str(body["cursor"]), int(body["count"]), at_ms)
    # Each commit of a page comes by: this takes a tenth of the time of `replace`.
    after = object.__new__(Views)
    after.__dict__.update(views.__dict__, positions={**views.positions, str(body["pair"]): place})
    return after


_FOLDS: Final[Mapping[str, Callable[[Views, Mapping[str, Any]], Views]]] = {
    THREAD_PAIRS: _pairs,
    THREAD_TOKENS: _tokens,
    THREAD_AITL: _requests,
    THREAD_NAMESPACES: _namespaces,
    consent.THREAD: _consents,
    rules.THREAD: _rules,
}


def _records(store: Log, thread: str) -> Iterator[tuple[dict[str, Any], Row]]:
    """Yield (record, row) of every record on a reserved thread, in the order they were made.

    That is the order of our own clocks, and of arrival unless a restore brought some late.
    """
    for rows in _pages(store, thread):
        for row, payload in store.read(rows):
            yield json.loads(payload)["record"], row


def _pages(store: Log, thread: str) -> Iterator[list[Row]]:
    """Yield the rows of the thread's records by ascending clock; some 60 bytes a record are held meanwhile."""
    clocks, seqs = array("Q"), array("Q")
    for row in _arrivals(store, thread):
        clocks.append(row.clock)
        seqs.append(row.seq)
    order = sorted(range(len(seqs)), key=clocks.__getitem__)
    for start in range(0, len(order), PAGE_ROWS):
        wanted = [seqs[place] for place in order[start : start + PAGE_ROWS]]
        rows = {row.seq: row for row in store.index.rows(sorted(wanted))}
        yield [rows[seq] for seq in wanted if seq in rows]


def _arrivals(store: Log, thread: str) -> Iterator[Row]:
    seq = 0
    while rows := store.index.after(by_thread(thread), seq, PAGE_ROWS):
        yield from (row for row in rows if row.kind == "rec")
        seq = rows[-1].seq


def _all_names(store: Log, prefix: str) -> list[str]:
    names: list[str] = []
    while page := store.index.names(prefix, names[-1] if names else "", PAGE_ROWS):
        names += page
    return names
