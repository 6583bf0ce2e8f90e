"""What a peer's refusals mean to us, for pages and streams alike; of its words only those that steer us count."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spl.core.errors import SplError
from spl.core.pair.pair import Phase
from spl.net.address import ReachError
from spl.net.client import Reply
from spl.sync.peer import SyncError
from tests.nodes import Node, join, nodes

PAIR = "pair_00000001"
CHANGES = "/v1/sync/changes?feed=continuous"


async def refusal(node: Node) -> SplError:
    """Return what opening a stream of the pair raises."""
    wire, pair = node.peers, node.home.views.pairs[PAIR]
    with pytest.raises(SplError) as caught:
        async with wire.stream(pair, CHANGES):
            pass
    return caught.value


async def test_a_stream_that_is_refused_says_why_and_with_which_view(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.change_pair(PAIR, phase=Phase.PAUSED, serve_allowed=False, reason="why")
        found = await refusal(bob)
        assert isinstance(found, SyncError)
        assert found.code == "pair-paused"
        assert found.view is not None
        assert found.view["reason"] == "why"


async def test_without_a_token_or_a_way_nothing_is_sent(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.network.down = "timeout"
        assert isinstance(await refusal(bob), ReachError)
        bob.home.vault.delete(f"peer-token.{PAIR}")
        assert (await refusal(bob)).code == "auth-required"
        assert not alice.network.log


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (409, b'{"code":"CURSOR_RESET"}', "cursor-reset"),
        (400, b'{"code":"STORE_DAMAGED","message":"\\u001b[2J"}', "peer-4xx"),
        (503, b"<html>", "peer-5xx"),
        (401, b"[]", "auth-invalid"),
        (409, b"[" * 100_000, "peer-4xx"),
    ],
)
async def test_codes_that_are_none_of_the_peers_business_stay_out(
    tmp_path: Path, status: int, body: bytes, code: str
) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        alice.network.change = lambda path, reply: Reply(status, {}, body, "x")
        pair: Any = bob.home.views.pairs[PAIR]
        with pytest.raises(SyncError) as caught:
            await bob.peers.ask(replace(pair), "GET", "/v1/sync/changes")
        assert caught.value.code == code
        assert caught.value.message.isprintable()
