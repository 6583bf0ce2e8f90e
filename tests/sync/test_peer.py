"""What a peer's refusals mean to us, for pages and streams alike; of its words only those that steer us count."""

import json
from collections.abc import Mapping
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from spl.core import when
from spl.core.errors import SplError
from spl.core.pair.pair import Phase
from spl.net.address import ReachError, judge
from spl.net.client import Reply
from spl.sync.peer import RETRY_AFTER_MAX_S, SyncError, dial_policy
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


@pytest.mark.parametrize(
    ("said", "kept"), [(7, 7.0), (0, 0.0), (-5, 0.0), (10**9, RETRY_AFTER_MAX_S), ("7", 0.0), (True, 0.0), (None, 0.0)]
)
async def test_a_peer_may_say_when_it_is_to_be_asked_again_within_bounds(
    tmp_path: Path, said: object, kept: float
) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        body = json.dumps({"code": "INTAKE_PAUSED", "retry_after_s": said}).encode()
        bob.network.change = lambda path, reply: Reply(429, {}, body, "")
        with pytest.raises(SyncError) as caught:
            await bob.peers.ask(bob.home.views.pairs[PAIR], "GET", "/v1/sync/changes?limit=1")
        assert (caught.value.code, caught.value.retry_after_s) == ("rate-limited", kept)


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
        (503, b"<html>", "foreign-answer"),
        (401, b"[]", "foreign-answer"),
        (409, b"[" * 100_000, "foreign-answer"),
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


@pytest.mark.parametrize(
    ("typed", "approved", "own", "peer", "address", "dialled"),
    [
        ("http://127.0.0.1:9200/", "", "https://a.example", "http://127.0.0.1:9200", "127.0.0.1", True),
        ("http://10.0.0.5:9100/", "", "https://a.example", "http://10.0.0.5:9100", "10.0.0.5", True),
        ("https://b.lan/", "", "", "https://b.lan", "192.168.1.5", True),
        ("https://b.example/", "", "https://a.example", "https://10.0.0.5", "10.0.0.5", False),
        ("http://10.0.0.5:9100/", "", "", "http://10.9.9.9:22", "10.9.9.9", True),
        ("http://10.0.0.5:9100/", "", "", "http://localhost:9100", "127.0.0.1", False),
        ("", "", "", "http://127.0.0.1:9100", "127.0.0.1", False),
        ("", "", "", "http://192.168.1.5:9100", "192.168.1.5", False),
        ("", "", "", "https://b.example", "192.0.43.8", True),
        ("", "http://127.0.0.1:9100", "", "http://127.0.0.1:9100", "127.0.0.1", True),
        ("", "http://127.0.0.1:9100", "", "http://127.0.0.1:22", "127.0.0.1", False),
        ("", "", "http://10.0.0.9:9100", "http://10.0.0.5:9100", "10.0.0.5", True),
        ("", "", "http://10.0.0.9:9100", "http://192.168.0.5:9100", "192.168.0.5", False),
        ("", "", "http://10.0.0.9:9100", "http://b.example:9100", "127.0.0.1", False),
        ("", "", "http://localhost:9200", "http://127.0.0.1:9100", "127.0.0.1", True),
        ("", "", "http://127.0.0.1:9200", "http://10.0.0.5:9100", "10.0.0.5", False),
    ],
)
def test_a_private_address_is_dialled_by_the_operators_word_only(
    typed: str, approved: str, own: str, peer: str, address: str, dialled: bool
) -> None:
    """Typed, approved, or of the kind of what was typed or of our own public URL; judged by what a name resolves to."""
    pair = cast(Any, SimpleNamespace(proposal=SimpleNamespace(url=typed), url=peer, initiator=True))
    policy = dial_policy(pair, own, approved, allow_http=True)
    try:
        judge(address, policy.allow_private, policy.near)
    except ReachError as exc:
        assert not dialled, exc
    else:
        assert dialled


@pytest.mark.parametrize(("peer", "meant"), [("http://127.0.0.1:9100", True), ("http://127.0.0.1:22", False)])
def test_an_endpoint_that_proved_itself_opens_no_other(peer: str, meant: bool) -> None:
    """The responder dials the address that a request came from, not whatever its manifest names later."""
    pair = cast(Any, SimpleNamespace(proposal=SimpleNamespace(url="http://127.0.0.1:9100"), url=peer, initiator=False))
    policy = dial_policy(pair, "", "", allow_http=True)
    assert (policy.allow_private, policy.near) == (meant, ())


def test_an_address_that_was_typed_after_a_move_is_dialled_and_no_other() -> None:
    proposal = SimpleNamespace(url="http://127.0.0.1:9100")
    for peer, meant in (("http://127.0.0.1:9101", True), ("http://127.0.0.1:22", False)):
        pair = cast(Any, SimpleNamespace(proposal=proposal, url=peer, initiator=False))
        assert dial_policy(pair, "", "", allow_http=True, again="http://127.0.0.1:9101/").allow_private == meant


async def test_a_page_with_status_200_is_named_as_foreign(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        bob.network.change = lambda path, reply: Reply(200, {"content-type": "text/html"}, b"<html>", "")
        with pytest.raises(SyncError) as caught:
            await bob.peers.ask(bob.home.views.pairs[PAIR], "GET", "/v1/sync/changes?limit=1")
        assert (caught.value.code, "text/html" in caught.value.message) == ("foreign-answer", True)


def refuse_before(node: Node, at_ms: int) -> list[str]:
    """Have a source refuse older proofs, as one that started at this time; return the targets that it refused."""
    refused: list[str] = []
    check = node.check

    def later(method: str, target: str, headers: Mapping[str, str], body: bytes) -> str:
        if when.ms_of(headers["spl-proof"].split(";")[1]) < at_ms:
            refused.append(target)
            raise SplError("auth-invalid", reason="proof-time", time=when.text_of(at_ms))
        return check(method, target, headers, body)

    node.check = later  # type: ignore[method-assign]
    return refused


async def test_a_peer_whose_clock_is_behind_is_asked_by_its_clock(tmp_path: Path) -> None:
    """Our clock is ahead: the first proof is dated after the peer's clock, and every later one goes by that clock."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        pair: Any = bob.home.views.pairs[PAIR]
        real, seen = alice.now_ms, list[int]()
        alice.now_ms = lambda: real() - 120_000  # type: ignore[method-assign]
        alice.network.change = lambda path, reply: seen.append(reply.status) or reply  # type: ignore[func-returns-value]
        for _ in range(2):
            assert (await bob.peers.ask(pair, "GET", "/v1/sync/changes")).status == 200
        assert seen == [401, 200, 200]


@pytest.mark.parametrize(("ahead_ms", "asked_again"), [(60_000, True), (3_600_000, False)])
async def test_a_proof_from_before_the_peers_start_is_signed_again_by_its_time(
    tmp_path: Path, ahead_ms: int, asked_again: bool
) -> None:
    """Once: later requests go by that time at once.  A clock that is wrong by more than a proof may be old stays."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        pair: Any = bob.home.views.pairs[PAIR]
        refused, real = refuse_before(alice, bob.now_ms() + ahead_ms), alice.now_ms
        alice.now_ms = lambda: real() + ahead_ms  # type: ignore[method-assign]
        if not asked_again:
            assert (await refusal(bob)).code == "clock-skew"
            with pytest.raises(SyncError) as caught:
                await bob.peers.ask(pair, "GET", "/v1/sync/changes")
            assert caught.value.message.startswith("the clock of alice is ")
            assert " ahead of ours, so it refuses what we sign" in caught.value.message
            assert ahead_ms - 60_000 < (bob.peers.skew_ms(PAIR) or 0) <= ahead_ms
            assert len(refused) == 2
            return
        async with bob.peers.stream(pair, CHANGES) as stream:
            assert await anext(stream)
        for _ in range(2):
            assert (await bob.peers.ask(pair, "GET", "/v1/sync/changes")).status == 200
        assert refused == [CHANGES]


@pytest.mark.parametrize(("ahead_s", "code"), [(-7200, "clock-skew"), (7200, "clock-skew"), (60, "auth-invalid")])
async def test_a_refusal_for_another_reason_names_a_clock_that_is_wrong(
    tmp_path: Path, ahead_s: int, code: str
) -> None:
    """A peer that revoked the pair: its signed word is not believed before its clock is right."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        date = formatdate(bob.now_ms() / 1000 + ahead_s, usegmt=True)
        body = b'{"object":"error","code":"AUTH_INVALID","message":"revoked","reason":"token-revoked"}'
        bob.network.change = lambda path, reply: Reply(401, {"date": date}, body, "")
        with pytest.raises(SyncError) as caught:
            await bob.peers.ask(bob.home.views.pairs[PAIR], "GET", "/v1/sync/changes?limit=1")
        assert (caught.value.code, caught.value.peer_status) == (code, 401)
        assert (bob.peers.skew_ms(PAIR) is None) == (code == "auth-invalid")


async def test_the_view_in_a_refusal_is_printable(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        body = b'{"object":"error","code":"PAIR_PAUSED","message":"\\ud800","peer_view":{"state":"\\ud800"}}'
        alice.network.change = lambda path, reply: Reply(409, {}, body, "x")
        with pytest.raises(SyncError) as caught:
            await bob.peers.ask(bob.home.views.pairs[PAIR], "GET", "/v1/sync/changes")
        assert (caught.value.message.isprintable(), caught.value.view) == (True, {"state": "\\ud800"})
