"""Asking a daemon by every way out, and the answers in a form that can be compared with its twin's."""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spl.core.identity import message
from spl.core.identity.did import did_of
from spl.core.keys import SecretKey
from spl.home.home import now_ms
from spl.net.client import Reply
from tests.sim.daemons import Daemon, Peer

STRANGER = SecretKey(b"s" * 32)
STRANGER_DID = did_of("stranger", STRANGER.public)
CANARY = "canary"
OPEN, CLOSED, NOWHERE = "th_open", f"th_{CANARY}", "th_nowhere"
Value = dict[str, Any]

Answers = list[tuple[object, ...]]


def plain(reply: Reply) -> tuple[object, ...]:
    """Return an answer without dates, and with the length of each sealed cursor in its place."""
    kept = sorted((name, text) for name, text in reply.headers.items() if name != "date")
    return reply.status, tuple(kept), cut(reply.body)


def cut(body: bytes) -> bytes:
    found = re.sub(rb'"(next_cursor|cursor)":"([^"]*)"', lambda found: b'"%b":%d' % (found[1], len(found[2])), body)
    return re.sub(rb'"(last_at|taken_at|at|created_at)":"[^"]*"', rb'"\1":"then"', found)


@dataclass
class Asking:
    """What the ways have to go by: one daemon, who asks it, its cursor of before, and ids to ask for."""

    daemon: Daemon
    peer: Peer
    since: str
    ids: Sequence[str]
    hidden: Sequence[str]

    async def ask(self, target: str, value: Any = None) -> Reply:
        return await self.peer.ask(self.daemon, "GET" if value is None else "POST", target, value)

    async def asked(self, *targets: str) -> Answers:
        return [plain(await self.ask(target)) for target in targets]


async def acks(asking: Asking) -> Answers:
    return [plain(await asking.ask("/v1/sync/ack", {"cursor": asking.since})) for _ in range(2)]


async def pages(asking: Asking) -> Answers:
    """From the start and from before, whole and by one; then once more from where that ended."""
    found: Answers = []
    for start, limit in (("", 100), ("", 1), (asking.since, 1), (asking.since, 100)):
        since, more = start, True
        while more:
            reply = await asking.ask(f"/v1/sync/changes?limit={limit}&since={since}")
            found.append(plain(reply))
            body = json.loads(reply.body)
            since, more = body["next_cursor"], body["has_more"]
        again = await asking.ask(f"/v1/sync/changes?since={since}")
        found += [plain(again), json.loads(again.body)["next_cursor"] == since]
    return found


async def long_polls(asking: Asking) -> Answers:
    last = json.loads((await asking.ask("/v1/sync/changes?limit=1000")).body)["next_cursor"]
    return await asking.asked("/v1/sync/changes?feed=longpoll", f"/v1/sync/changes?feed=longpoll&since={last}")


async def resyncs(asking: Asking) -> Answers:
    return await asking.asked("/v1/sync/changes?resync=1")


async def threads(asking: Asking) -> Answers:
    """One that both know, one that is hidden, one of the daemon's own, and one that does not exist."""
    names = (OPEN, CLOSED, "th_consent", NOWHERE)
    found = await asking.asked(*(f"/v1/sync/changes?thread={name}" for name in names))
    assert len(set(found[1:])) == 1
    return found


async def namespaces(asking: Asking) -> Answers:
    names = ("default", "music", "hidden", "nowhere")
    found = await asking.asked(*(f"/v1/sync/changes?target_namespace={name}" for name in names))
    assert len(set(found[2:])) == 1
    return found


async def fetches(asking: Asking) -> Answers:
    lists = ([*asking.ids, *asking.hidden], asking.hidden[:1], ["0" * 64], [])
    found = [plain(await asking.ask("/v1/sync/records", {"ids": ids})) for ids in lists]
    assert len(set(found[1:])) == 1
    return found


async def streams(asking: Asking) -> Answers:
    found: Answers = []
    for since in ("", asking.since):
        async with asking.peer.stream(asking.daemon, since) as events:
            found += await drained(events)
    return found


async def drained(events: AsyncIterator[Any]) -> Answers:
    """Return what a stream has to say until it says that this is all."""
    found: Answers = []
    async for event in events:
        if event.name != "heartbeat":
            found.append((event.name, cut(event.data), len(event.id)))
            continue
        view = json.loads(event.data)["peer_view"]
        beat = (event.name, json.dumps({**view, "clock": None}))
        if beat not in found:
            found.append(beat)
        if view["clock"] == view["head"]:
            break
    return found


async def chains(asking: Asking) -> Answers:
    dids = (asking.daemon.did, STRANGER_DID, did_of("nobody", b"n" * 32))
    found = await asking.asked(*(f"/v1/sync/chains?did={did}" for did in dids))
    assert found[1] == found[2]
    return found


async def fingerprints(asking: Asking) -> Answers:
    """Of all, of ranges; names by the starts of ids, and whether it holds what nobody has."""
    key, starts = "5a" * 16, [id_[:32] for id_ in (*asking.ids, *asking.hidden)]
    questions: list[Value] = [{"ranges": {name: ["", "0", "abcd"]}} for name in ("held", "shown", "seen")]
    questions += [{"names": {name: starts}} for name in ("held", "shown", "seen")]
    questions.append({"have": dict.fromkeys(asking.hidden, "00" * 16)})
    return [plain(await asking.ask("/v1/sync/fingerprints", {"key": key, **each})) for each in questions]


async def pair_logs(asking: Asking) -> Answers:
    """The log is of the pair, not of records; who asks is told by a signature."""
    peer = asking.peer
    head = message.head(peer.did, asking.daemon.did, peer.pair_id, now_ms(), peer.random.randbytes(16).hex())
    reply = await asking.daemon.fetch(
        "POST", f"/v1/federation/pair/{peer.pair_id}/log", message.sign("log", head, peer.key), token=""
    )
    fields = message.unwrap(json.loads(reply.body))
    return [(reply.status, CANARY in reply.body.decode(), [each["kind"] for each in fields["transitions"]])]


async def checks(asking: Asking) -> Answers:
    body = json.loads((await asking.ask(f"/v1/federation/pair/{asking.peer.pair_id}/check", {})).body)
    return [tuple(sorted(body)), json.dumps(body["peer_view"])]


async def elsewhere(asking: Asking) -> Answers:
    """The routes of programs and of operators, which a pair's token does not open."""
    return await asking.asked(
        f"/v1/records/{asking.hidden[0] if asking.hidden else '0' * 64}", f"/v1/records?thread={CLOSED}",
        f"/v1/threads/{CLOSED}/records", f"/v1/threads/{CLOSED}/watch", f"/v1/threads/{CLOSED}/state",
        f"/v1/threads/{CLOSED}/snapshot", "/v1/threads", "/v1/namespaces/music", "/v1/snapshot", "/v1/doctor",
        f"/v1/federation/pairs/{asking.peer.pair_id}", f"/v1/federation/pairs/{asking.peer.pair_id}/projections",
        f"/v1/federation/pairs/{asking.peer.pair_id}/acks", "/v1/consent/grants", "/health/ready",
    )  # fmt: skip


WAYS: Mapping[str, Callable[[Asking], Awaitable[Answers]]] = {
    "ack": acks, "page": pages, "long poll": long_polls, "resync": resyncs, "thread": threads, "namespace": namespaces,
    "fetch": fetches, "stream": streams, "chains": chains, "fingerprints": fingerprints, "pair log": pair_logs,
    "check": checks, "elsewhere": elsewhere,
}  # fmt: skip
