"""Before an approval a stranger costs one record; what it sends beyond that is counted, refused and forgotten."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from spl.core.errors import SplError
from spl.core.identity import bearer, message
from spl.core.identity.did import Chain, did_of, rotate
from spl.core.keys import SecretKey
from spl.core.limits import Limits
from spl.core.pair import handshake
from spl.core.pair.pair import Phase
from spl.core.pair.state import Asked, Revoked
from spl.home.views import THREAD_TOKENS
from spl.home.writes import Own
from spl.pairing.responder import ANSWERED_PER_DAY
from spl.pairing.service import Pairing
from tests.core.pair_kit import a_manifest
from tests.pair_world import Node, World, both_active, code_of, paired, two
from tests.waiting import until

FAST = Limits(handshakes_per_minute=100_000)


def asks(node: Node, b: Node, **fields: object) -> bytes:
    """Return a message of the node about its pair with b."""
    pair, own = node.alive[0], node.pairing.pairs.identity
    said = {"manifest": node.pairing.published.federation_manifest(), **fields}
    words = handshake.poll_fields(pair, own.did, node.world.now_ms(), node.pairing.pairs.nonce(), **said)
    return json.dumps(message.sign("pair-poll", words, own.key)).encode()


async def waiting(a: Node, b: Node) -> str:
    """Ask, and return the id of the request that waits at b."""
    await a.pair(b, wait_ms=0)
    await until(lambda: b.alive)
    return b.alive[0].pair_id


async def test_no_manifest_is_taken_from_a_request_that_waits(tmp_path: Path) -> None:
    """Each was a record of up to 60 KiB, six hundred a minute, and the start read them all."""
    async with two(tmp_path, "manual", FAST) as (world, a, b):
        pair_id = await waiting(a, b)
        before, kept = b.home.store.last_seq, b.alive[0].manifest
        for _ in range(5):
            a.pairing.published.renew()
            world.time_ms += 4 * 86_400_000 // 100
            assert (await b.pairing.answer("poll", pair_id, asks(a, b), "10.0.0.9"))[0] == 202
        assert b.home.store.last_seq == before
        assert b.alive[0].manifest == kept


async def test_a_stranger_that_rotated_its_key_while_it_waits_is_still_understood(tmp_path: Path) -> None:
    """Its message is verified by the key that its manifest leads to, though that is not taken in yet."""
    async with two(tmp_path, "manual", FAST) as (_, a, b):
        pair_id = await waiting(a, b)
        await a.pairing.rotate_identity("retired")
        assert (await b.pairing.answer("poll", pair_id, asks(a, b), "10.0.0.9"))[0] == 202
        await b.pairing.decide_request(pair_id, "approve")
        await both_active(a, b)
        await until(lambda: len(b.alive[0].chain.rotations) == 1)


@pytest.mark.parametrize("order", ["rotate, approve", "approve, rotate", "rotate, approve, rotate"])
async def test_a_peer_that_rotates_its_key_while_our_request_waits_still_grants_it(tmp_path: Path, order: str) -> None:
    """Whichever of its keys signed the grant: the answer around it is signed by the present one."""
    async with two(tmp_path, "manual", FAST) as (world, a, b):
        pair_id = await waiting(a, b)
        world.faults.append(lambda call: None)
        for step in order.split(", "):
            if step == "rotate":
                await b.pairing.rotate_identity("retired")
            else:
                await b.pairing.decide_request(pair_id, "approve")
        world.faults.clear()
        a.pairing.handshakes.kick(pair_id)
        await both_active(a, b)


@dataclass
class Stranger:
    """A new instance that nobody runs: it only signs."""

    world: World
    b: Node
    number: int
    links: int = 0

    def __post_init__(self) -> None:
        self.key = SecretKey(bytes([self.number]) * 32)
        self.chain = Chain(did_of("mallory", self.key.public), self.key.public)
        for link in range(self.links):
            fresh = SecretKey(bytes([self.number, link]) * 16)
            self.chain = rotate(self.chain, self.key, fresh.public, "retired", self.world.time_ms - 1000)
            self.key = fresh
        self.nonce = f"{self.number:032x}"
        self.pair_id = handshake.pair_id_of(self.chain.did, self.b.did, self.nonce)

    def request(self) -> bytes:
        own, did, now_ms = a_manifest(self.chain, self.key, self.world.time_ms), self.chain.did, self.world.now_ms()
        text, _ = handshake.mint(self.pair_id, bytes(32), now_ms + 1000)
        sealed = bearer.seal_token(
            text, public=self.b.pairing.pairs.identity.seal_key, ephemeral=bytes([1]) * 32, pair_id=self.pair_id,
            nonce=self.nonce, issuer=did, audience=self.b.did, scopes=handshake.SCOPES, expires_at_ms=now_ms + 1000,
        )  # fmt: skip
        fields: dict[str, Any] = {
            **message.head(did, self.b.did, self.pair_id, now_ms, self.nonce), "initiator_did": did,
            "responder_did": self.b.did, "manifest": own, "endpoint": own["federation"]["pair_endpoint"],
            "token": sealed, "namespaces": ["default"], "maps": [], "mode": "polling", "start": "",
        }  # fmt: skip
        return json.dumps(message.sign("pair-request", fields, self.key)).encode()

    async def ask(self, source: str) -> int:
        """Return the HTTP status of the answer to its request."""
        try:
            return (await self.b.pairing.receive(self.request(), source))[0]
        except SplError as exc:
            return exc.status

    def again(self, number: int) -> None:
        """Ask under a new pair id from now on."""
        self.nonce = f"{number:032x}"
        self.pair_id = handshake.pair_id_of(self.chain.did, self.b.did, self.nonce)

    async def withdraw(self) -> None:
        await self.say("notify-revoke")

    async def confirm(self) -> None:
        await self.say("pair-confirm")

    async def say(self, purpose: str) -> None:
        fields = message.head(self.chain.did, self.b.did, self.pair_id, self.world.now_ms(), "f" * 32)
        body = json.dumps(message.sign(purpose, fields, self.key)).encode()
        assert (await self.b.pairing.answer(purpose.removeprefix("pair-"), self.pair_id, body, "10.0.0.1"))[0] == 200


async def test_requests_count_for_a_day_even_if_withdrawn(tmp_path: Path) -> None:
    """From one source and in all, both across a restart; what our operator rejected does not count."""
    limits = Limits(requests_pending=3, requests_per_address=2, handshakes_per_minute=100_000)
    async with two(tmp_path, "manual", limits) as (world, _, b):
        first, second, third, fourth = (Stranger(world, b, number) for number in range(4))
        rejected = Stranger(world, b, 5)
        assert await rejected.ask("10.0.0.1") == 202
        await b.pairing.decide_request(b.alive[0].pair_id, "reject")
        for each in (first, second):
            assert await each.ask("10.0.0.1") == 202
            await each.withdraw()
        assert b.alive == []
        for _ in range(2):
            assert await third.ask("10.0.0.1") == 429, "ended requests do not count against their source"
            await b.restart()
        assert await third.ask("10.0.0.2") == 202
        await b.restart()
        assert await fourth.ask("10.0.0.3") == 429, "ended requests do not count in all"
        world.time_ms += 86_400_000
        assert await fourth.ask("10.0.0.3") == 202


async def test_pairs_of_one_did_take_one_place_and_a_days_number_of_them_is_bounded(tmp_path: Path) -> None:
    limits = Limits(pairs_count=2, handshakes_per_minute=100_000)
    async with two(tmp_path, "auto", limits) as (world, _, b):
        first, second, third = (Stranger(world, b, number) for number in range(1, 4))
        for number in range(ANSWERED_PER_DAY):
            first.again(100 + number)
            assert await first.ask("10.0.0.1") == 200
        first.again(99)
        assert await first.ask("10.0.0.1") == 429, "one DID made more pairs than a day's"
        assert await second.ask("10.0.0.2") == 200, "the pairs of one DID took the places of others"
        assert await third.ask("10.0.0.3") == 429
        second.again(98)
        assert await second.ask("10.0.0.2") == 200, "who has a place needs no other"
        await b.restart()
        assert await first.ask("10.0.0.1") == 429, "a restart gave a new day"
        world.time_ms += 86_400_000
        assert await first.ask("10.0.0.1") == 200


async def test_of_a_withdrawn_request_no_claim_stays_and_its_polls_are_answered(tmp_path: Path) -> None:
    async with two(tmp_path, "manual", FAST) as (_, a, b):
        pair_id = await waiting(a, b)
        poll = asks(a, b)
        await a.pairing.revoke(pair_id)
        await until(lambda: not b.alive)
        for _ in range(2):
            ended = b.pairing.pairs.known(pair_id)
            assert (ended.url, dict(ended.manifest), ended.proposal.sealed) == ("", {}, "")
            assert b.home.views.requests[pair_id].namespaces == ()
            status, answer = await b.pairing.answer("poll", pair_id, poll, "10.0.0.1")
            assert (status, answer["message"]["state"]) == (200, "revoked")  # type: ignore[index]
            await b.restart()


async def test_an_unapproved_request_is_revoked_without_dialling_its_asker(tmp_path: Path) -> None:
    async with two(tmp_path, "manual", FAST) as (world, a, b):
        pair_id = await waiting(a, b)
        await b.pairing.revoke(pair_id)
        assert isinstance(b.pairing.pairs.known(pair_id).state, Revoked)
        assert [call.path for call in world.calls if call.origin == a.url] == []


async def test_a_stranger_shows_at_most_eight_rotations(tmp_path: Path) -> None:
    """The refusal is signed and comes before any of the statements was verified."""
    async with two(tmp_path, "manual", FAST) as (world, _, b):
        for links, found in ((8, 202), (9, 400)):
            status, answer = await b.pairing.receive(Stranger(world, b, links, links).request(), "10.0.0.1")
            assert status == found, answer
        assert answer["code"] == "MESSAGE_MALFORMED"
        assert "8 key rotations" in str(answer["message"])
        assert answer["statement"]


@pytest.mark.parametrize("how", ["closed", "rule"])
async def test_policy_is_asked_before_a_nonce_is_kept(tmp_path: Path, how: str) -> None:
    """Twenty thousand refused requests filled the memory of nonces, and no peer could renew its token."""
    limits = Limits(nonces_count=1, handshakes_per_minute=100_000)
    async with two(tmp_path, "closed" if how == "closed" else "manual", limits) as (world, _, b):
        world.permitted = how == "closed"
        for number in range(4):
            assert await Stranger(world, b, number).ask("10.0.0.1") == (403 if how == "closed" else 401)
        assert b.home.vault.remember_nonce("somebody", "0" * 32, world.time_ms + 1000, stranger=True)


async def test_garbage_and_forged_messages_take_nothing_from_a_peer(tmp_path: Path) -> None:
    """All come from one address, as behind a proxy."""
    async with paired(tmp_path, "auto", Limits(handshakes_per_minute=20)) as (_, a, b, pair_id):
        codes = set()
        for _ in range(40):
            codes |= {await refused(b.pairing, pair_id, b"{"), await refused(b.pairing, "pair_00000000", b"{")}
        assert codes == {"bad-json", "rate-limited"}
        assert (await b.pairing.answer("poll", pair_id, asks(a, b), "10.0.0.1"))[0] == 200
        before = a.alive[0].issued_to_us
        await a.pairing.maintenance.renew(pair_id)
        assert a.alive[0].issued_to_us != before


async def refused(pairing: Pairing, pair_id: str, body: bytes, source: str = "10.0.0.1") -> str:
    with pytest.raises(SplError) as caught:
        await pairing.answer("poll", pair_id, body, source)
    return code_of(caught)


def forged(a: Node, b: Node) -> bytes:
    """Return a poll in a's name under another key, which the manifest inside claims as a's successor."""
    thief, own = SecretKey(bytes([7]) * 32), a.pairing.pairs.identity
    chain = rotate(own.chain, own.key, thief.public, "retired", a.world.now_ms())
    made_up = replace(chain, rotations=(replace(chain.rotations[0], signature=bytes(64)),))
    claimed = a_manifest(made_up, thief, a.world.time_ms)
    nonce = a.pairing.pairs.nonce()
    words = handshake.poll_fields(a.alive[0], own.did, a.world.now_ms(), nonce, manifest=claimed)
    return json.dumps(message.sign("pair-poll", words, thief)).encode()


async def test_messages_under_a_strangers_key_take_nothing_from_the_pair(tmp_path: Path) -> None:
    """Who knows the id of a pair and its DIDs, which are no secrets, must not silence the peer."""
    async with paired(tmp_path, "auto", Limits(handshakes_per_minute=20)) as (_, a, b, pair_id):
        for _ in range(400):
            assert await refused(b.pairing, pair_id, forged(a, b), "10.0.0.9") == "message-signature"
        assert (await b.pairing.answer("poll", pair_id, asks(a, b), "10.0.0.1"))[0] == 200
        await a.pairing.maintenance.renew(pair_id)
        assert await refused(b.pairing, "pair_00000000", b"{", "10.0.0.9") == "rate-limited", "none was counted"


@pytest.mark.parametrize("age_ms", [0, 600_000])
async def test_repeated_messages_of_a_peer_take_nothing_from_it(tmp_path: Path, age_ms: int) -> None:
    """An eavesdropper sends what it recorded, at once or when it is too old to be answered."""
    async with paired(tmp_path, "auto", Limits(handshakes_per_minute=20)) as (world, a, b, pair_id):
        recorded = asks(a, b)
        assert (await b.pairing.answer("poll", pair_id, recorded, "10.0.0.1"))[0] == 200
        world.time_ms += age_ms
        codes = set()
        for _ in range(400):
            try:
                await b.pairing.answer("poll", pair_id, recorded, "10.0.0.9")
            except SplError as exc:
                codes.add(exc.code)
        assert codes == ({"clock-skew"} if age_ms else {"rate-limited"})
        await a.pairing.maintenance.renew(pair_id)


@pytest.mark.parametrize("how", ["auto", "rule"])
async def test_a_peer_that_our_operator_revoked_waits_for_the_operator(tmp_path: Path, how: str) -> None:
    """Revoked without --block it may ask; neither rule nor policy lets it in, and after an approval it is as others."""
    async with two(tmp_path, "auto" if how == "auto" else "manual", FAST) as (world, a, b):
        world.granted = frozenset({"default"})
        await a.pair(b)
        await both_active(a, b)
        await b.pairing.revoke(b.alive[0].pair_id)
        await until(lambda: not a.alive)
        await a.pair(b, wait_ms=0)
        await until(lambda: b.alive)
        assert isinstance(b.alive[0].state, Asked)
        await b.pairing.decide_request(b.alive[0].pair_id, "approve")
        await both_active(a, b)
        await a.pairing.revoke(a.alive[0].pair_id)
        await until(lambda: not b.alive)
        await a.pair(b)
        assert b.alive[0].phase is Phase.ACTIVE, "the peer itself ended the last pair"


async def limited(b: Node, pair_id: str, limit: str) -> None:
    """Limit the pair, as its operator can."""
    if limit == "paused":
        await b.pairing.pause(pair_id)
    elif limit == "revoked":
        await b.pairing.revoke(pair_id)
    elif limit == "actors":
        await b.pairing.configure(pair_id, lambda _: {"actors": ["did:sync:agent:one"]})
    elif limit == "calmed":
        await b.pairing.set_mode(pair_id, "on-demand")
    elif limit == "token":
        body = {"kind": bearer.KIND_REVOKE, "pair_id": pair_id, "barred": True}
        b.home.writer.submit([Own(THREAD_TOKENS, bearer.KIND_REVOKE, body)]).result(30)
    elif limit in ("withdrawn", "lowered"):
        await b.pairing.handover.set_grant(pair_id, "default", "default", 2 if limit == "lowered" else None)
    else:
        await b.pairing.configure(pair_id, lambda _: FILTERS[limit])


FILTERS: dict[str, dict[str, object]] = {
    "threads": {"thread_allow": ["th_open"]}, "rule": {"thread_rule": "false"}, "relay": {"relay": False},
}  # fmt: skip
LIMITS = (*FILTERS, "paused", "actors", "calmed", "token", "withdrawn", "lowered")
"""Every setting of a pair that takes something from its peer, but the poll interval, which a new pair inherits."""


@pytest.mark.parametrize("limit", LIMITS)
async def test_a_peer_that_our_operator_limited_gets_rid_of_no_limit_by_ending_the_pair(
    tmp_path: Path, limit: str
) -> None:
    async with two(tmp_path, "auto", FAST) as (_, a, b):
        await a.pair(b)
        pair_id = await both_active(a, b)
        await limited(b, pair_id, limit)
        await a.pairing.revoke(pair_id)
        await until(lambda: not b.alive)
        await a.pair(b, wait_ms=0)
        await until(lambda: b.alive)
        assert isinstance(b.alive[0].state, Asked)


@pytest.mark.parametrize("limit", [*LIMITS, "revoked"])
async def test_a_pair_that_a_rule_approved_is_no_reserve_against_limits(tmp_path: Path, limit: str) -> None:
    """The peer asks for a second pair and does not confirm it until our operator limits the first."""
    async with two(tmp_path, "auto", FAST) as (world, _, b):
        peer = Stranger(world, b, 9)
        assert await peer.ask("10.0.0.9") == 200
        await peer.confirm()
        first = b.alive[0].pair_id
        peer.again(10)
        assert await peer.ask("10.0.0.9") == 200
        assert [pair.phase for pair in b.alive] == [Phase.ACTIVE, Phase.ESTABLISHING]
        await limited(b, first, limit)
        await peer.confirm()
        assert [pair.pair_id for pair in b.alive] == ([] if limit == "revoked" else [first])
        peer.again(11)
        assert await peer.ask("10.0.0.9") == 202


async def test_no_pair_in_reserve_is_confirmed_by_a_peer_that_is_blocked(tmp_path: Path) -> None:
    """Not even one that our operator approved before."""
    async with two(tmp_path, "manual", FAST) as (world, _, b):
        peer = Stranger(world, b, 9)
        for number in (10, 11):
            peer.again(number)
            assert await peer.ask("10.0.0.9") == 202
            await b.pairing.decide_request(peer.pair_id, "approve")
        peer.again(10)
        await peer.confirm()
        peer.again(12)
        assert await peer.ask("10.0.0.9") == 202
        await b.pairing.decide_request(peer.pair_id, "approve")
        await b.pairing.revoke(b.alive[0].pair_id, block=True)
        await peer.confirm()
        assert b.alive == []


async def test_a_pair_in_reserve_that_ended_hides_no_limit_of_the_one_in_use(tmp_path: Path) -> None:
    async with two(tmp_path, "auto", FAST) as (world, _, b):
        peer = Stranger(world, b, 9)
        await peer.ask("10.0.0.9")
        await peer.confirm()
        peer.again(10)
        await peer.ask("10.0.0.9")
        await b.pairing.pause(b.alive[0].pair_id)
        await peer.withdraw()
        peer.again(11)
        assert await peer.ask("10.0.0.9") == 202


async def test_a_new_pair_of_a_peer_is_read_no_more_often_than_the_last(tmp_path: Path) -> None:
    async with two(tmp_path, "auto", FAST) as (world, _, b):
        peer = Stranger(world, b, 9)
        await peer.ask("10.0.0.9")
        await peer.confirm()
        await b.pairing.set_poll_interval(b.alive[0].pair_id, 3_600_000)
        peer.again(10)
        assert await peer.ask("10.0.0.9") == 200
        assert b.alive[-1].poll_interval_ms == 3_600_000


async def test_a_pair_in_reserve_is_read_no_more_often_than_the_one_in_use(tmp_path: Path) -> None:
    """It was asked for before our operator made the pauses longer, and is confirmed after."""
    async with two(tmp_path, "auto", FAST) as (world, _, b):
        peer = Stranger(world, b, 9)
        await peer.ask("10.0.0.9")
        await peer.confirm()
        first = b.alive[0].pair_id
        peer.again(10)
        assert await peer.ask("10.0.0.9") == 200
        await b.pairing.set_poll_interval(first, 3_600_000)
        await peer.confirm()
        [pair] = b.alive
        assert (pair.pair_id, pair.phase, pair.inherits) == (peer.pair_id, Phase.ACTIVE, first)
        assert pair.poll_interval_ms == 3_600_000


async def test_a_limit_is_no_matter_once_our_operator_approved_the_peer_again(tmp_path: Path) -> None:
    async with two(tmp_path, "auto", FAST) as (world, _, b):
        peer = Stranger(world, b, 9)
        await peer.ask("10.0.0.9")
        await peer.confirm()
        await b.pairing.pause(b.alive[0].pair_id)
        peer.again(10)
        assert await peer.ask("10.0.0.9") == 202
        await b.pairing.decide_request(peer.pair_id, "approve")
        await peer.confirm()
        assert [(pair.pair_id, pair.phase) for pair in b.alive] == [(peer.pair_id, Phase.ACTIVE)]
