"""What must hold in every simulated world: looked at with each commit, at each start, and at the end.

- What a client was told is stored stays stored (`after_start`, `at_end`).
- Nothing is delivered that consent forbids: each gate on its way was open at some moment since the record came to be at
  its source.  The gates follow what operators did, not what the product says of it.
- The status calls no stream open whose peer is gone, and at the end it says of each pair that it is active, without a
  lag or an error.
- At the end the two sides of each pair hold the same of what both share, folding the log gives the running state, and
  one token is alive in each direction.

Not looked at: that the saved position of a pair never moves back, for a source may share less or begin again.  Of a
push and a page that are taken at the same time the later place stays (tests/sync/test_ingest.py).
"""

import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from spl.core import consent
from spl.core.errors import SplError
from spl.core.pair.pair import Phase
from spl.core.record.levels import EXACT
from spl.home.tables.lists import by_namespace
from spl.home.views import load as load_views
from spl.home.writes import Commit
from spl.pairing.tokens import id_of
from spl.sync.peer import TOKEN_NAME

from .node import Answer, Node
from .trouble import SECRET, TEAM

if TYPE_CHECKING:
    from .world import World

INFINITE: Final = float("inf")
STREAM_GONE_S: Final = 65.0
"""After 45 s of silence a stream is given up, and what was on its way may arrive late."""
ROWS_MAX: Final = 100_000
SHARED: Final = ("default", TEAM)


def ids(node: Node, ns: str, after_seq: int = 0) -> set[str]:
    """Return the ids of the records that a node holds in a namespace, in lines behind a place of its log."""
    store = node.home.store
    rows = [row for row in store.index.after(by_namespace(ns), after_seq, ROWS_MAX) if row.kind == "rec"]
    return {json.loads(payload)["id"] for payload in store.payloads(rows)}


class Promises:
    """The promises to one world."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self._arrived_s: dict[tuple[str, str, str], float] = {}
        """By node, namespace and record: when it was stored there first."""
        self._gates: dict[tuple[str, str, str], float] = {}
        """By node, peer's DID and gate: until when it was open; infinite while it is."""
        self._archived_s: dict[tuple[str, str], float] = {}

    # -- consent, as operators gave it

    def opened(self, node: Node, peer_did: str, gate: str) -> None:
        """Take in that a gate may be open from now on."""
        self._gates[node.name, peer_did, gate] = INFINITE

    def closed(self, node: Node, peer_did: str, gate: str) -> None:
        """Take in that a gate is closed: its operator was told so."""
        self._gates[node.name, peer_did, gate] = self.world.loop.time()

    def archived(self, node: Node, ns: str) -> None:
        """Take in that a namespace neither goes out nor comes in any more."""
        self._archived_s.setdefault((node.name, ns), self.world.loop.time())

    def node_of(self, did: str) -> Node:
        """Return the node with this DID."""
        return next(node for node in self.world.nodes if node.did == did)

    # -- with each commit

    def committed(self, node: Node, commit: Commit) -> None:
        """Look at what a write made visible."""
        for _, entry in commit.fresh:
            if entry.ns:
                self._arrived_s.setdefault((node.name, entry.ns, entry.id), self.world.loop.time())
            if entry.origin.startswith("pair_"):
                self._delivered(node, entry)

    def _delivered(self, node: Node, entry: Any) -> None:
        peer = self.node_of(node.home.views.pairs[entry.origin].peer_did)
        where = f"{entry.id[:12]} of {entry.ns} from {peer.name} to {node.name}"
        self.world.check(entry.ns in SHARED, f"delivered outside any consent: {where}")
        since_s = self._arrived_s.get((peer.name, entry.ns, entry.id))
        self.world.check(since_s is not None, f"delivered what its source does not hold: {where}")
        gates = [(one, two, gate) for gate in ("pair", "unpaused") for one, two in ((node, peer), (peer, node))]
        if entry.ns == TEAM:  # what a side says of a namespace is about what it sends
            gates.append((peer, node, TEAM))
        shut = [(self._gates.get((one.name, two.did, gate), -1.0), one.name, gate) for one, two, gate in gates]
        shut += [(self._archived_s.get((each.name, entry.ns), INFINITE), each.name, "archive") for each in (node, peer)]
        for until_s, name, gate in shut:
            self.world.check(
                since_s is not None and until_s >= since_s,
                f"delivered against consent: {where}, stored at {since_s}, {name} ended {gate} at {until_s}",
            )

    # -- what the status says

    def told(self, node: Node, pair: Any, answer: Answer) -> None:
        """See that no stream is called open whose peer is gone for longer than a stream may be silent."""
        peer, now_s = self.node_of(pair.peer_did), self.world.loop.time()
        stream = answer.value.get("stream") if answer.status == 200 else None
        gone_s = now_s - max(peer.ended_s, node.booted_s) if not peer.up else 0.0
        self.world.check(
            not stream or stream["state"] != "open" or gone_s <= STREAM_GONE_S,
            f"{node.name} calls the stream of {pair.pair_id} open, and {peer.name} is gone for {gone_s:.0f} s",
        )

    async def says_so(self) -> str:
        """Return which node does not say of a pair that all is well, or nothing."""
        for node in self.world.nodes:
            for pair in list(node.home.views.pairs.values()):
                if pair.phase is Phase.ACTIVE:
                    value = (await node.ask("GET", f"/v1/federation/pairs/{pair.pair_id}")).value
                    lag, error = value["last_sync_cursor"]["lag_records"], value["last_error"]
                    if value["state"] != "active" or lag != 0 or error is not None:
                        return f"{node.name} says of {pair.pair_id}: {value['state']}, lag {lag}, {error}"
        return ""

    # -- at each start

    def started(self, node: Node) -> None:
        """Look at a home that was just opened."""
        index = node.home.store.index
        for ns in ("default", TEAM, SECRET):
            for id_ in ids(node, ns):
                # Written and never announced: the process died in between.
                self._arrived_s.setdefault((node.name, ns, id_), self.world.loop.time())
        lost = [id_ for id_, ns in self.world.acked[node.name].items() if index.find(id_, ns) is None]
        self.world.check(not lost, f"{node.name} lost {len(lost)} acknowledged records, first {lost[:1]}")
        damaged = node.home.store.report.damaged
        self.world.check(not damaged, f"{node.name} found damage in its log: {damaged}")

    # -- at the end

    def differences(self) -> str:
        """Return what has not converged yet, or nothing."""
        for node in self.world.nodes:
            for pair in node.home.views.pairs.values():
                if pair.phase is Phase.REVOKED or self._lapses(pair):
                    continue
                if pair.phase is not Phase.ACTIVE:
                    return f"{pair.pair_id} at {node.name} is {pair.phase} ({pair.state})"
                if complaint := self._unequal(node, pair):
                    return complaint
            if complaint := self._tokens(node):
                return complaint
        return ""

    def _lapses(self, pair: Any) -> bool:
        """Return whether a request is over at the peer, who could not tell: it ends here within a day."""
        theirs = self.node_of(pair.peer_did).home.views.pairs.get(pair.pair_id)
        return pair.phase is Phase.ESTABLISHING and (theirs is None or theirs.ended)

    def _unequal(self, node: Node, pair: Any) -> str:
        peer = self.node_of(pair.peer_did)
        theirs = peer.home.views.pairs.get(pair.pair_id)
        if theirs is None or theirs.phase is not Phase.ACTIVE:
            return f"{pair.pair_id} is active at {node.name} and {theirs and theirs.state} at {peer.name}"
        sent, taken = (
            {share.ns for share in _outbound(each, its) if share.level == EXACT}
            for each, its in ((node, pair), (peer, theirs))
        )
        for ns in sorted(sent & taken):
            missing = ids(node, ns, pair.start_seq) - ids(peer, ns)
            if missing:
                return f"{peer.name} lacks {len(missing)} of {ns} from {node.name} over {pair.pair_id}: {min(missing)}"
        return ""

    async def at_end(self) -> None:
        """Look at a world that has converged and stands still."""
        for node in self.world.nodes:
            self.started(node)
            self._kept(node, SECRET)
            await node.end()
            running = node.home.views
            folded = load_views(node.home.store, node.did, node.limits)
            for name in (each.name for each in fields(running)):
                one, two = getattr(running, name), getattr(folded, name)
                self.world.check(one == two, f"{node.name} folds {name} to {two}, and runs with {one}")
            self.world.check(not node.faults, "; ".join(node.faults))

    def _kept(self, node: Node, ns: str) -> None:
        own = {id_ for id_, name in self.world.acked[node.name].items() if name == ns}
        foreign = [row for row in node.home.store.index.after(by_namespace(ns), 0, ROWS_MAX) if row.origin != "local"]
        self.world.check(not foreign, f"{node.name} holds foreign records of {ns}")
        self.world.check(own <= ids(node, ns), f"{node.name} lost records of {ns}")

    def _tokens(self, node: Node) -> str:
        """Return which pair has more than one token alive, or nothing.

        A token whose answer was lost on the way waits for the peer's next maintenance, hours later; until then the
        peer holds an older one, which must work.  And a peer that follows a stream keeps the token under which it
        opened that: it does not use its new one until the stream breaks.
        """
        views, now_ms = node.home.views, node.now_ms()
        for pair in views.pairs.values():
            alive = [
                token.token_id
                for token in views.tokens.values()
                if token.pair_id == pair.pair_id and not token.revoked and token.expires_at_ms > now_ms
            ]
            ended = pair.phase is Phase.REVOKED
            if len(alive) > (not ended) and (ended or self._uses(pair) == pair.issued_by_us.token_id):
                return f"{node.name} has {alive} alive for {pair.pair_id}, {pair.phase}"
        return ""

    def _uses(self, pair: Any) -> str:
        """Return the token that the peer of a pair presents with each request, "" if that is not known."""
        peer = self.node_of(pair.peer_did).home
        text = peer.vault.get(TOKEN_NAME + pair.pair_id)
        theirs = peer.views.pairs.get(pair.pair_id)
        return id_of(text) if text and theirs is not None and theirs.mode == "polling" else ""


def _outbound(node: Node, pair: Any) -> list[Any]:
    views = node.home.views
    return list(consent.outbound(pair, consent.grants_of(views.consents, pair), views.namespaces))


__all__ = ["Promises", "SplError", "ids"]
