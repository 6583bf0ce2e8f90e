"""What goes over the network to a peer: past caches, verified, and a bearer only where the verified manifest points."""

import json
from pathlib import Path
from typing import Any

import pytest

from spl.core import canon
from spl.core.errors import SplError
from spl.core.pair import handshake
from spl.net.client import Reply
from spl.net.dialer import DialPolicy
from tests.pair_world import Call, both_active, code_of, paired, two
from tests.waiting import until

HERE = DialPolicy(allow_private=True)


async def test_documents_are_asked_for_past_caches(tmp_path: Path) -> None:
    async with two(tmp_path) as (_, a, b):
        sent: list[object] = []
        real = a.pairing.peers.client.fetch

        async def watched(method: str, url: str, **more: object) -> object:
            sent.append((url.removeprefix(b.url), ("cache-control", "no-cache") in more["headers"]))  # type: ignore[operator]
            return await real(method, url, **more)  # type: ignore[arg-type]

        a.pairing.peers.client.fetch = watched  # type: ignore[assignment,method-assign]
        assert (await a.pairing.exchange.discover(b.url, True, dial=HERE)).did == b.did
        assert sent == [("/.well-known/syncropel", True), ("/.well-known/did.json", True)]


async def test_the_peer_is_looked_for_where_it_moved_and_where_it_was_typed(tmp_path: Path) -> None:
    """The old place is somebody else's now, so only the new one's error tells; the typed one still may be right."""
    async with paired(tmp_path) as (world, a, b, _):
        old = b.url
        await b.end()
        b.move("http://127.0.0.1:9555")
        b.start()
        await until(lambda: a.alive[0].url == b.url)
        carol = world.node("carol")
        world.nodes[old] = carol
        assert (await a.pairing.exchange.rediscover(a.alive[0])).did == b.did
        del world.nodes[b.url]
        with pytest.raises(SplError) as caught:
            await a.pairing.exchange.rediscover(a.alive[0])
        assert code_of(caught) == "connect"
        world.nodes[old] = b
        assert (await a.pairing.exchange.rediscover(a.alive[0])).did == b.did
        del world.nodes[old]
        with pytest.raises(SplError) as caught:
            await a.pairing.exchange.rediscover(a.alive[0])
        assert code_of(caught) == "connect"
        world.nodes[b.url] = b


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("answer", [b"{}", b"[]", b"<html>hello</html>"])
async def test_who_holds_a_former_address_degrades_no_pair(tmp_path: Path, answer: bytes, there: bool) -> None:
    async with paired(tmp_path) as (world, a, b, pair_id):
        old = b.url
        await b.end()
        b.move("http://127.0.0.1:9555")
        b.start()
        await until(lambda: a.alive[0].url == b.url)
        real = a.pairing.peers.client.fetch

        async def fetched(method: str, url: str, **more: Any) -> Reply:
            if url.startswith(old):
                return Reply(200, {"content-type": "application/json"}, answer, "127.0.0.1")
            return await real(method, url, **more)

        a.pairing.peers.client.fetch = fetched  # type: ignore[method-assign, assignment]
        if there:
            await a.pairing.refresh(pair_id)
            await both_active(a, b)
            return
        del world.nodes[b.url]
        with pytest.raises(SplError) as caught:
            await a.pairing.refresh(pair_id)
        assert code_of(caught) == "connect"
        assert not a.alive[0].reason.startswith("manifest")
        world.nodes[b.url] = b


async def test_a_wrong_answer_at_the_present_address_is_no_end_if_the_typed_one_is_right(tmp_path: Path) -> None:
    async with paired(tmp_path) as (world, a, b, _):
        old = b.url
        await b.end()
        b.move("http://127.0.0.1:9555")
        b.start()
        await until(lambda: a.alive[0].url == b.url)
        world.nodes[old] = b
        real = a.pairing.peers.client.fetch

        async def fetched(method: str, url: str, **more: Any) -> Reply:
            if url.startswith(b.url):
                return Reply(200, {"content-type": "application/json"}, b"{}", "127.0.0.1")
            return await real(method, url, **more)

        a.pairing.peers.client.fetch = fetched  # type: ignore[method-assign, assignment]
        assert (await a.pairing.exchange.rediscover(a.alive[0])).did == b.did


async def test_an_answer_that_nobody_signed_moves_no_pair(tmp_path: Path) -> None:
    async with paired(tmp_path) as (world, a, b, pair_id):

        def lie(call: Call) -> bytes:
            return b'{"state":"revoked"}' if call.answer and call.path.endswith("/poll") else call.body

        world.faults.append(lie)
        with pytest.raises(SplError) as caught:
            await a.pairing.refresh(pair_id)
        assert code_of(caught) == "answer-malformed"
        await both_active(a, b)


async def test_an_answer_under_a_key_that_the_manifest_does_not_show_is_refused(tmp_path: Path) -> None:
    async with paired(tmp_path) as (world, a, b, pair_id):
        carol = world.node("carol")

        async def imposed(action: str, pair_id: str, body: bytes, address: str) -> object:
            fields = canon.decode(body)["message"]  # type: ignore[index,call-overload]
            key = carol.pairing.pairs.identity.key
            return 200, handshake.answer(fields, key, 200, "revoked", world.now_ms(), "0" * 32)

        b.pairing.answer = imposed  # type: ignore[assignment,method-assign]
        with pytest.raises(SplError) as caught:
            await a.pairing.refresh(pair_id)
        assert code_of(caught) == "message-signature"
        assert a.alive[0].pair_id == pair_id


async def test_an_answer_under_a_key_not_known_yet_counts_once_the_manifest_shows_it(tmp_path: Path) -> None:
    async with paired(tmp_path) as (world, a, b, pair_id):
        world.faults.append(lambda call: None)
        await b.pairing.rotate_identity("retired")
        await b.pairing.pause(pair_id)
        await until(lambda: world.lost.count("poll") >= 2)
        world.faults.clear()
        a.pairing.on_peer_state(pair_id, {})
        await until(lambda: a.alive[0].paused_by == "peer")


@pytest.mark.parametrize("path", ["/bob/", "/?to=bob", "/.well-known/syncropel"])
async def test_a_url_with_a_path_is_refused_with_the_one_to_give(tmp_path: Path, path: str) -> None:
    """Dropped silently, it would ask whoever has the root of the host."""
    async with two(tmp_path) as (world, a, b):
        with pytest.raises(SplError) as caught:
            await a.pairing.exchange.discover(b.url + path, True, dial=HERE)
        assert code_of(caught) == "url-invalid"
        assert f"spl federation pair {b.url}/" in caught.value.hint
        assert not world.calls


@pytest.mark.parametrize(
    ("status", "body", "code", "text"),
    [
        (404, b"<html>nginx</html>", "foreign-answer", " answers 404: 'nginx/1.22[2J' in the peer's place"),
        (403, b"<html>nginx</html>", "foreign-answer", " answers 403: 'nginx/1.22[2J' in the peer's place"),
        (502, b"<html>nginx</html>", "foreign-answer", " answers 502: 'nginx/1.22[2J' in the peer's place"),
        (421, SplError("host-refused").to_json(), "peer-4xx", "the peer answered 421 HOST_REFUSED: "),
        (200, b"<html>welcome</html>", "foreign-answer", " answers 200 with text/html: 'nginx/1.22[2J'"),
    ],
)
async def test_what_answers_in_the_peers_place_is_named_with_the_url(
    tmp_path: Path, status: int, body: Any, code: str, text: str
) -> None:
    """An operator sees whether the peer refused, and with which advice, or whether something stands before it."""
    async with two(tmp_path) as (_, a, b):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()

        async def answer(method: str, url: str, **more: object) -> Reply:
            return Reply(status, {"content-type": "text/html", "server": "nginx/1.22\x1b[2J"}, data, "127.0.0.1")

        a.pairing.peers.client.fetch = answer  # type: ignore[method-assign, assignment]
        with pytest.raises(SplError) as caught:
            await a.pair(b)
        assert code_of(caught) == code
        assert caught.value.message.startswith(f"{b.url}/.well-known/syncropel")
        assert text in caught.value.message
        told = "the peer says: " if isinstance(body, dict) else "at the peer: "
        assert caught.value.hint.startswith(told)
