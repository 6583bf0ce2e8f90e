"""Every way out, and what leaves by none of them: who may not see a record cannot tell whether it is there.

Each case is one daemon and its twin: the same home, copied, where what is hidden was never written.  The same is asked
of both, and the answers must be the same bytes: statuses, headers, bodies; of the sealed cursors, which differ with
each answer, the lengths.  So unknown, unconsented and empty cannot be told apart, and no count, order, cursor or "more"
gives away a thing.  And nothing of the hidden texts stands anywhere in the bytes.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from spl.core import consent
from spl.core.consent import Grant
from spl.core.identity.did import Chain, multibase
from spl.core.identity.pins import KIND_CHAIN
from spl.core.record import record
from spl.core.record.record import Sig
from spl.home.views import THREAD_PAIRS
from spl.home.writes import Arrive, Own
from spl.net.address import ReachError
from tests.sim.asking import (
    CANARY,
    CLOSED,
    OPEN,
    STRANGER,
    STRANGER_DID,
    WAYS,
    Asking,
    Value,
    cut,
    drained,
    plain,
)
from tests.sim.daemons import HERE, LIMITS, Daemon, Peer, copied, daemon, paired

Do = Callable[[Daemon, Peer], Awaitable[None]]


def value(n: int, thread: str = OPEN, ns: str = "default", **fields: Any) -> Value:
    """Return a record of nothing secret; the clock is given, so that it is the same in the twin."""
    body = {**fields.pop("body", {}), "namespace": ns, "n": n}
    return {"act": "DO", "actor": "did:sync:user:a", "thread": thread, "clock": n, **fields, "body": body}


def secret(n: int, thread: str = CLOSED, ns: str = "default") -> Value:
    """Return a record that carries the canary wherever it can."""
    body = {"text": f"{CANARY} text", "operation": f"{CANARY}_op", "domain": CANARY, "kind": f"{CANARY}.kind.v1"}
    return value(n, thread, ns, actor=f"did:sync:user:{CANARY}", act="LEARN", body=body)


def relayed(n: int) -> Arrive:
    """Return a secret record that another instance signed."""
    checked = record.check(secret(n, OPEN), LIMITS)
    id_, text = record.identify(checked, LIMITS)
    sig = Sig(STRANGER_DID, multibase(STRANGER.public), STRANGER.sign(record.signed_text(id_, None)))
    return Arrive(record.seal(checked, id_, text, sig), "default", "pair_other")


async def nothing(daemon: Daemon, peer: Peer) -> None:
    """Leave all as it is."""


def made(*names: str) -> Do:
    async def do(daemon: Daemon, peer: Peer) -> None:
        for name in names:
            await daemon.json("POST", "/v1/namespaces", {"name": name})

    return do


def granted(level: int | None, version: int = 1, *, held: bool = True, theirs: int | None = None) -> Do:
    """Return what grants `music` to the peer, and lets the peer grant it back at a level."""

    async def do(daemon: Daemon, peer: Peer) -> None:
        if "music" not in daemon.home.views.namespaces:
            await made("music")(daemon, peer)
        said = consent.grant_body(
            peer.pair_id, Grant("music", "music", level, version), "2027-01-15T08:00:00.000Z", held=held
        )
        daemon.write(Own(consent.THREAD, consent.KIND_GRANT, said))
        if theirs is not None:
            body = {"pair_id": peer.pair_id, "grant": Grant("music", "music", theirs, 1).to_json()}
            daemon.write(Own(consent.THREAD, consent.KIND_PEER_GRANT, body))

    return do


def acting(action: str, body: Value) -> Do:
    async def do(daemon: Daemon, peer: Peer) -> None:
        await daemon.json("POST", f"/v1/federation/pairs/{peer.pair_id}/{action}", body)

    return do


def of_secrets(ns: str, *threads: str) -> Do:
    """Return what writes secrets into a namespace, which is made where it is not there."""

    async def do(daemon: Daemon, peer: Peer) -> None:
        if ns not in daemon.home.views.namespaces:
            await made(ns)(daemon, peer)
        await daemon.emit([secret(n, thread, ns) for thread in threads or (CLOSED, OPEN) for n in (70, 71, 72)])

    return do


async def of_strangers(daemon: Daemon, peer: Peer) -> None:
    chain = Chain(STRANGER_DID, STRANGER.public)
    daemon.write(Own(THREAD_PAIRS, KIND_CHAIN, {"chain": chain.to_json()}), *(relayed(n) for n in (70, 71, 72)))


async def archived(daemon: Daemon, peer: Peer) -> None:
    await daemon.json("POST", "/v1/namespaces/music/archive", {})


def then(*each: Do) -> Do:
    async def do(daemon: Daemon, peer: Peer) -> None:
        for one in each:
            await one(daemon, peer)

    return do


def _level(level: int, **more: Any) -> "Case":
    shown = [value(n, OPEN, "music", **_veiled(level)) for n in (8, 9)]
    return Case(granted(level, **more), of_secrets("hidden"), shown=shown, veiled=level > 1)


def _veiled(level: int) -> Value:
    """Return the fields of a record in which the canary stands wherever the level hides it."""
    found = secret(1)
    return {
        name: found[name] for name in ("body", *(("actor",) if level > 1 else ()), *(("act",) if level > 2 else ()))
    }


@dataclass(frozen=True)
class Case:
    """Who may not see what: `setup` of both homes, `hide` of what the twin never had.

    `shown`: records beside those of `default` that go out; `late`: hidden ones that come in the same write as shown;
    `close`: done to both homes after that; `veiled`: what is shown of `music` has pseudonyms, and its ids are hidden.
    """

    setup: Do
    hide: Do
    shown: Sequence[Value] = ()
    late: Sequence[Value] = ()
    close: Do = nothing
    veiled: bool = False


RULED = [secret(80), secret(81)]
CASES = {
    "no grant": Case(nothing, of_secrets("music")),
    "grant that the peer does not hold": Case(granted(0, held=False, theirs=0), of_secrets("music")),
    "L1": _level(1),
    "L2": _level(2),
    "L3": _level(3),
    "one-sided L0": Case(granted(0), of_secrets("hidden"), shown=[value(9, OPEN, "music", **_veiled(1))]),
    "two-sided L0": Case(granted(0, theirs=0), of_secrets("hidden"), shown=[value(9, OPEN, "music")]),
    "withdrawn": Case(then(granted(0, theirs=0), granted(None, 2, held=False)), of_secrets("music")),
    "thread rule": Case(
        acting("thread-rule", {"expression": f'record.thread == "{OPEN}"'}), of_secrets("default", CLOSED), late=RULED
    ),
    "thread rule on the actor": Case(
        acting("thread-rule", {"expression": 'record.actor == "did:sync:user:a"'}), of_secrets("default"), late=RULED
    ),
    "thread-allow": Case(acting("thread-allow", {"threads": [OPEN]}), of_secrets("default", CLOSED), late=RULED),
    "relay off": Case(acting("relay", {"relay": False}), of_strangers),
    "archived": Case(granted(0, theirs=0), of_secrets("music"), close=archived),
}


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Peer]:
    """The home of a paired daemon, to be copied, and its peer."""
    folder = tmp_path_factory.mktemp("paired")
    return folder / "source", asyncio.run(paired(folder))


@dataclass
class Twins:
    """A daemon and its twin that lacks what is hidden, each with the cursor that the peer had before."""

    peer: Peer
    daemons: tuple[Daemon, Daemon]
    cursors: list[str]
    ids: list[str]
    hidden: list[str]
    veiled: list[str]


@asynccontextmanager
async def twins(folder: Path, homes: tuple[Path, Peer], case: Case) -> AsyncIterator[Twins]:
    """Set up one home, copy it, and let the two part ways."""
    home, peer = homes
    async with daemon(copied(home, folder / "one")) as one:
        await case.setup(one, peer)
        await one.emit([value(1), value(2)])
        async with daemon(copied(folder / "one", folder / "twin")) as twin:
            found = Twins(peer, (one, twin), [], [], [], [])
            for each in (one, twin):
                page = await peer.ask(each, "GET", "/v1/sync/changes")
                found.cursors.append(json.loads(page.body)["next_cursor"])
            before = one.home.store.last_seq
            await case.hide(one, peer)
            late, shown = list(case.late), [value(3), value(4, "th_other"), *case.shown, value(5)]
            mixed = [item for pair in zip_longest(shown, late) for item in pair if item is not None]
            found.ids = await twin.emit(shown)
            written = await one.emit(mixed)
            assert set(found.ids) <= set(written)
            for each in (one, twin):
                await case.close(each, peer)
            found.veiled = of_namespaces(one, before, "music") if case.veiled else []
            found.hidden = [id_ for id_ in of_namespaces(one, before) if id_ not in found.ids]
            yield found


def of_namespaces(daemon: Daemon, seq: int, *names: str) -> list[str]:
    """Return the ids of all records since a line, those of the daemon's own threads left out."""
    rows = [
        row
        for ns in names or ("default", "music", "hidden")
        for row in daemon.home.store.index.after(f"n:{ns}", seq, 1000)
    ]
    return [json.loads(payload)["id"] for payload in daemon.home.store.payloads(rows)]


@pytest.mark.parametrize("case", CASES)
async def test_nobody_can_tell_whether_what_is_hidden_is_there(
    tmp_path: Path, homes: tuple[Path, Peer], case: str
) -> None:
    async with twins(tmp_path, homes, CASES[case]) as found:
        assert found.hidden
        sides = [
            Asking(each, found.peer, since, found.ids, found.hidden)
            for each, since in zip(found.daemons, found.cursors, strict=True)
        ]
        for name, way in WAYS.items():
            one, twin = [await way(side) for side in sides]
            assert one == twin, name
            text = repr(one)
            at = text.find(CANARY)
            assert at < 0, (name, text[max(0, at - 600) : at + 100])
            assert not [id_ for id_ in found.veiled if id_ in text], name
            # What was asked about comes back in two places only, where the twin says the same.
            if name not in ("fingerprints", "elsewhere"):
                assert not [id_ for id_ in found.hidden if id_ in text], name
        await nothing_moves(sides[0], [{**each, "clock": each["clock"] + 10} for each in CASES[case].late])


async def nothing_moves(asking: Asking, late: Sequence[Value]) -> None:
    """What is hidden and comes while the peer waits at the end moves no cursor, and shows in no view for a moment."""
    last = json.loads((await asking.ask("/v1/sync/changes?limit=1000")).body)
    await asking.daemon.emit(late)
    view = asking.daemon.services.feed.peer_view(asking.peer.pair_id)
    assert view["head"] == last["peer_view"]["head"]
    for feed in ("normal", "longpoll"):
        page = json.loads((await asking.ask(f"/v1/sync/changes?feed={feed}&since={last['next_cursor']}")).body)
        assert (page["next_cursor"], page["records"], page["has_more"]) == (last["next_cursor"], [], False)
        assert page["peer_view"] == last["peer_view"]


WITHDRAWALS: Mapping[str, Do] = {
    "withdrawn": granted(None, 2, held=False),
    "lowered": granted(2, 2, held=False),
    "archived": archived,
    "thread rule": acting("thread-rule", {"expression": 'record.namespace == "default"'}),
    "thread-allow": acting("thread-allow", {"threads": ["th_other"]}),
    "revoked": acting("revoke", {}),
    "paused": acting("pause", {}),
}


@pytest.mark.parametrize("change", WITHDRAWALS)
async def test_a_stream_that_is_open_when_sharing_ends_says_nothing_of_what_comes_then(
    tmp_path: Path, homes: tuple[Path, Peer], change: str
) -> None:
    """It ends, and neither it nor a long poll or a page after it knows what was written since."""
    home, peer = homes
    async with daemon(copied(home, tmp_path / "one")) as one:
        await granted(0, theirs=0)(one, peer)
        await one.emit([value(1), value(2, OPEN, "music")])
        async with daemon(copied(tmp_path / "one", tmp_path / "twin")) as twin:
            told = []
            for each in (one, twin):
                async with peer.stream(each) as events:
                    before = await drained(events)
                    assert len([event for event in before if event[0] == "record.created"]) == 2
                    await WITHDRAWALS[change](each, peer)
                    await each.emit([*([secret(3, OPEN, "music")] if each is one else []), value(4, "th_other")])
                    after = [(event.name, cut(event.data), len(event.id)) async for event in ended(events)]
                asked = [
                    plain(await peer.ask(each, "GET", f"/v1/sync/changes{more}")) for more in ("", "?feed=longpoll")
                ]
                told.append([*before, *after, *asked])
            assert told[0] == told[1]
            assert CANARY not in repr(told)


async def ended(events: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Yield what a stream says until it ends, but for its heartbeats."""
    try:
        async for event in events:
            if event.name != "heartbeat":
                yield event
    except ReachError as exc:
        assert exc.code == "disconnected"


TENANT_ROUTES = (
    "/v1/records", "/v1/records?limit=1", f"/v1/records?thread={OPEN}", f"/v1/records?thread={CLOSED}",
    f"/v1/records?actor=did:sync:user:{CANARY}", f"/v1/records?kind={CANARY}.kind.v1", "/v1/threads",
    "/v1/threads?limit=1",
    f"/v1/threads?after={CLOSED}", f"/v1/threads/{OPEN}/records", f"/v1/threads/{CLOSED}/records",
    f"/v1/threads/{OPEN}/state", f"/v1/threads/{CLOSED}/state", f"/v1/threads/{OPEN}/snapshot",
    f"/v1/threads/{CLOSED}/snapshot", "/v1/namespaces", "/v1/namespaces/music", "/v1/namespaces/default",
    "/v1/snapshot", "/v1/sync/changes", "/v1/sync/changes?limit=1", "/v1/sync/changes?feed=longpoll",
    "/v1/sync/changes?feed=continuous", f"/v1/sync/changes?thread={CLOSED}", "/v1/sync/changes?target_namespace=music",
    f"/v1/sync/chains?did={STRANGER_DID}", "/v1/federation/pairs", "/v1/consent/grants", "/v1/tokens", "/health/ready",
)  # fmt: skip
TOKENS: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "other tenant": (["records:read", "records:write"], ["tenant"]),
    "federation token by hand": (["federation:sync", "federation:subscribe"], ["tenant"]),
    "both": (["records:read", "federation:sync"], ["tenant"]),
}
_NUMBERED = re.compile(rb'"sequence":(\d+)|^id: (\d+)$', re.MULTILINE)


@pytest.mark.parametrize("kind", TOKENS)
async def test_a_token_cannot_tell_what_other_tenants_hold(tmp_path: Path, homes: tuple[Path, Peer], kind: str) -> None:
    """What it is shown as `sequence` has no order: what is compared is which of these positions are the same."""
    home, peer = homes
    scopes, names = TOKENS[kind]
    async with daemon(copied(home, tmp_path / "one")) as one:
        await made("tenant", "music")(one, peer)
        token = await one.mint(*scopes, namespaces=names)
        await one.emit([value(1, OPEN, "tenant")])
        async with daemon(copied(tmp_path / "one", tmp_path / "twin")) as twin:
            await of_secrets("music")(one, peer)
            shown = [value(3, OPEN, "tenant"), value(4, "th_other", "tenant")]
            late = [secret(5, OPEN, "music"), secret(6, CLOSED, "default")]
            ids = await twin.emit(shown)
            written = await one.emit([shown[0], late[0], late[1], shown[1]])
            hidden = [id_ for id_ in written if id_ not in ids]
            sides = [await held_by_token(each, token, [*ids, *hidden], hidden) for each in (one, twin)]
            for target, answer in sides[0].items():
                assert answer == sides[1][target], target
                # The name of a thread that was asked for comes back.
                assert CANARY not in repr(answer).replace(CLOSED if CLOSED in target else "", ""), target


async def held_by_token(
    daemon: Daemon, token: str, ids: Sequence[str], hidden: Sequence[str]
) -> dict[str, tuple[object, ...]]:
    found = {target: await daemon.fetch("GET", target, token=token) for target in TENANT_ROUTES}
    found |= {id_: await daemon.fetch("GET", f"/v1/records/{id_}", token=token) for id_ in hidden}
    for number, asked in enumerate((list(ids), list(hidden), ["0" * 64])):
        found[f"fetch {number}"] = await daemon.fetch("POST", "/v1/sync/records", {"ids": asked}, token=token)
    body = {"records": [secret(7, CLOSED, "music"), secret(8, CLOSED, "nowhere")]}
    found["emit"] = await daemon.fetch("POST", "/v1/records", body["records"][0], token=token)
    assert found["fetch 1"].body == found["fetch 2"].body
    watched = [await watching(daemon, token, thread) for thread in (OPEN, CLOSED)]
    texts = (*(reply.body for reply in found.values()), *watched)
    numbers = dict.fromkeys(int(number) for text in texts for number in _numbers(text))
    ranks = {number: rank for rank, number in enumerate(numbers)}

    def ranked(text: bytes) -> bytes:
        return _NUMBERED.sub(lambda match: b"#%d" % ranks[int(match[1] or match[2])], text)

    answers = {target: (reply.status, ranked(cut(reply.body))) for target, reply in found.items()}
    return {**answers, **{f"watch {n}": (ranked(text),) for n, text in enumerate(watched)}}


def _numbers(text: bytes) -> list[bytes]:
    return [one or other for one, other in _NUMBERED.findall(text)]


async def watching(daemon: Daemon, token: str, thread: str) -> bytes:
    """Return what a watch of a thread says from its start to its second heartbeat, in the form of events."""
    headers, text, beats = [("authorization", f"Bearer {token}")], b"", 0
    target = f"{daemon.url}/v1/threads/{thread}/watch?since_clock=0"
    try:
        async with daemon.client.stream(target, headers=headers, dial=HERE) as events:
            async for event in events:
                beats += event.name == "heartbeat"
                text += b"%b %b\nid: %b\n" % (event.name.encode(), event.data, event.id.encode())
                if beats == 2:
                    break
    except ReachError as exc:
        return exc.peer_body
    return text
