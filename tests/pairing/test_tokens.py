"""Tokens of a live pair, renewed without an instant in which neither works."""

import asyncio
import itertools
from contextlib import suppress
from pathlib import Path

import pytest

from spl.core import canon
from spl.core.errors import SplError
from spl.core.identity import bearer, message
from spl.core.identity.bearer import Token
from spl.core.limits import Limits
from spl.core.pair.pair import Phase
from spl.home.views import THREAD_TOKENS
from spl.home.writes import Own
from spl.pairing.machine import RENEWED_NAME
from spl.pairing.tokens import TOKEN_EVERY_S, TOKENS_MAX, id_of
from tests.pair_world import Node, World, both_active, code_of, paired
from tests.waiting import until

DAY_MS = 86_400_000
QUIET = Limits(handshakes_per_minute=100_000, manifest_refresh_s=6 * 3600)


def held(node: Node) -> str:
    """Return the token text that the node presents."""
    text = node.home.vault.get(f"peer-token.{node.alive[0].pair_id}")
    assert text is not None
    return text


def live_tokens(node: Node) -> list[str]:
    return [token.token_id for token in node.home.views.tokens.values() if token.pair_id and not token.revoked]


async def minted(node: Node, pair_id: str, *scopes: str) -> str:
    """Mint a token for the pair by hand, as `spl token mint --pair` does."""
    text = bearer.mint_text("home", "sa_00000001", node.world.now_ms().to_bytes(32))
    token = Token(
        id_of(text), "sa_00000001", bearer.hash_of(text), frozenset(scopes or bearer.FEDERATION), ("default",),
        pair_id, node.alive[0].peer_did, node.world.now_ms() + DAY_MS, node.world.now_ms(),
    )  # fmt: skip
    await asyncio.wrap_future(node.home.writer.submit([Own(THREAD_TOKENS, bearer.KIND_MINT, bearer.mint_body(token))]))
    return text


@pytest.mark.parametrize("state", ["active", "paused", "paused by peer", "degraded"])
async def test_a_token_is_renewed_from_day_83_and_both_work_until_the_new_one_was_used(
    tmp_path: Path, state: str
) -> None:
    async with paired(tmp_path) as (world, a, b, pair_id):
        if state == "paused":
            await a.pairing.pause(pair_id)
        elif state == "paused by peer":
            await b.pairing.pause(pair_id)
            await until(lambda: a.alive[0].paused_by == "peer")
        elif state == "degraded":
            await a.pairing.maintenance.doubt(pair_id, "connect")
        before = held(a)
        world.time_ms += 82 * DAY_MS
        await a.pairing.refresh(pair_id)
        assert held(a) == before
        world.time_ms += DAY_MS + 60_000
        await until(lambda: held(a) != before)
        await until(lambda: a.alive[0].issued_to_us.token_id == id_of(held(a)))
        assert b.alive[0].issued_by_us.token_id == id_of(held(a))
        assert a.alive[0].issued_to_us.expires_at_ms > world.time_ms + 89 * DAY_MS
        for text in (before, held(a)):
            assert await calls(a, b, text) == 200
        assert len(live_tokens(b)) == 2
        world.time_ms += 31_000
        await until(lambda: live_tokens(b) == [id_of(held(a))])
        assert (await calls(a, b, before), await calls(a, b, held(a))) == (401, 200)
        assert b.home.vault.names("own-token.") == []


async def test_a_clock_that_is_set_back_does_not_prolong_the_life_of_a_replaced_token(tmp_path: Path) -> None:
    """What the peer has used for long enough is measured by a clock that nobody sets."""
    async with paired(tmp_path) as (world, a, b, _):
        before = held(a)
        world.time_ms += 83 * DAY_MS + 60_000
        await until(lambda: held(a) != before)
        assert await calls(a, b, held(a)) == 200
        world.set_ms -= 3_600_000
        world.time_ms += 31_000
        await until(lambda: live_tokens(b) == [id_of(held(a))])


@pytest.mark.parametrize("ahead_ms", [0, DAY_MS, 100 * DAY_MS])
async def test_the_old_token_ends_whatever_the_clocks_said_when_it_was_minted(tmp_path: Path, ahead_ms: int) -> None:
    """The order of the log says which is older; and a peer that uses the old one does not make it the present one."""
    async with paired(tmp_path) as (world, a, b, pair_id):
        world.set_ms += ahead_ms
        await a.pairing.maintenance.renew(pair_id)
        first = held(a)
        assert await calls(a, b, first) == 200
        world.set_ms -= ahead_ms
        world.time_ms += 31_000
        await until(lambda: live_tokens(b) == [id_of(first)])
        await a.pairing.maintenance.renew(pair_id)
        last = held(a)
        for text in (first, last, first):
            assert await calls(a, b, text) == 200
        assert b.alive[0].issued_by_us.token_id == id_of(last)
        world.time_ms += 31_000
        await until(lambda: live_tokens(b) == [id_of(last)])


async def test_a_new_token_that_the_peer_did_not_get_ends_with_its_next_contact(tmp_path: Path) -> None:
    """Once no answer can bring it any more; the old one works on, and another renewal gives another one."""
    async with paired(tmp_path) as (world, a, b, pair_id):
        before = held(a)
        world.faults.append(lambda call: None if call.answer and call.path.endswith("/renew") else call.body)
        with pytest.raises(SplError):
            await a.pairing.maintenance.renew(pair_id)
        world.faults.clear()
        assert await a.call(b) == 200
        assert len(live_tokens(b)) == 2, "the answer may still be on its way"
        world.time_ms += 61_000
        assert await a.call(b) == 200
        assert live_tokens(b) == [id_of(before)]
        assert b.alive[0].issued_by_us.token_id == id_of(before)
        assert b.home.vault.names("own-token.") == []
        await a.pairing.maintenance.renew(pair_id)
        assert held(a) != before
        assert await a.call(b) == 200
        world.time_ms += 31_000
        await until(lambda: live_tokens(b) == [id_of(held(a))])


async def test_with_a_new_token_that_was_lost_those_before_the_old_one_end_too(tmp_path: Path) -> None:
    async with paired(tmp_path) as (world, a, b, pair_id):
        await a.pairing.maintenance.renew(pair_id)
        assert await a.call(b) == 200
        world.faults.append(lambda call: None if call.answer and call.path.endswith("/renew") else call.body)
        with pytest.raises(SplError):
            await a.pairing.maintenance.renew(pair_id)
        world.faults.clear()
        assert await a.call(b) == 200
        assert len(live_tokens(b)) == 3
        world.time_ms += 61_000
        assert await a.call(b) == 200
        assert b.alive[0].issued_by_us.token_id == id_of(held(a))
        world.time_ms += 31_000
        await until(lambda: live_tokens(b) == [id_of(held(a))])


async def calls(holder: Node, issuer: Node, text: str) -> int:
    """Return the status of one call with this token."""
    name = f"peer-token.{holder.alive[0].pair_id}"
    kept = held(holder)
    holder.home.vault.put(name, text)
    try:
        return await holder.call(issuer)
    finally:
        holder.home.vault.put(name, kept)


async def test_a_short_life_is_renewed_at_eleven_twelfths(tmp_path: Path) -> None:
    """Also where our own tokens live long: the peer's limits decide over its tokens."""
    world = World(tmp_path, QUIET)
    a = world.node("alice")
    world.limits = Limits(handshakes_per_minute=100_000, token_ttl_s=1200)
    b = world.node("bob")
    try:
        await a.pair(b)
        await both_active(a, b)
        before = held(a), held(b)
        world.time_ms += 1_000_000
        assert a.pairing.maintenance.due() == b.pairing.maintenance.due() == []
        world.time_ms += 150_000
        await until(lambda: held(a) != before[0])
        assert held(b) == before[1]
    finally:
        await world.close()


async def test_a_lost_answer_gives_the_same_token_again(tmp_path: Path) -> None:
    async with paired(tmp_path) as (world, a, b, pair_id):
        before = held(a)

        def lose(call: object) -> bytes | None:
            return None if call.answer and call.path.endswith("/renew") else call.body  # type: ignore[attr-defined]

        world.faults.append(lose)
        for _ in range(3):
            with pytest.raises(SplError):
                await a.pairing.maintenance.renew(pair_id)
        assert held(a) == before
        assert await a.call(b) == 200
        assert len(live_tokens(b)) == 2
        await b.restart()
        world.faults.clear()
        await a.pairing.maintenance.renew(pair_id)
        assert held(a) != before
        assert len(live_tokens(b)) == 2
        assert await a.call(b) == 200
        world.time_ms += 31_000
        await until(lambda: live_tokens(b) == [id_of(held(a))])


async def test_a_replaced_token_ends_also_if_the_file_of_the_new_one_is_lost(tmp_path: Path) -> None:
    """A renewal that a full disk refuses halfway leaves a secret without a record, which the next start removes."""
    async with paired(tmp_path) as (world, a, b, pair_id):
        await a.pairing.maintenance.renew(pair_id)
        b.home.vault.put(RENEWED_NAME + pair_id, "of no record")
        for _ in range(2):
            await b.restart()
            await until(lambda: not b.home.vault.names(RENEWED_NAME))
        assert await a.call(b) == 200
        world.time_ms += 31_000
        await until(lambda: live_tokens(b) == [id_of(held(a))])


async def test_a_renewal_that_a_full_disk_refuses_prolongs_the_life_of_no_older_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with paired(tmp_path, limits=QUIET) as (world, a, b, pair_id):
        await a.pairing.maintenance.renew(pair_id)
        assert await a.call(b) == 200

        def refuse(*items: object, **options: object) -> None:
            raise SplError("store-full")

        with monkeypatch.context() as patched:
            patched.setattr(b.pairing.pairs, "submit", refuse)
            with pytest.raises(SplError):
                await a.pairing.maintenance.renew(pair_id)
        assert len(live_tokens(b)) == 2
        world.time_ms += 31_000
        await until(lambda: live_tokens(b) == [id_of(held(a))])


async def test_a_renewal_cut_at_any_step_leaves_a_token_that_works(tmp_path: Path) -> None:
    for dies, after in itertools.product("ab", range(1, 9)):
        async with paired(tmp_path / f"{dies}{after}") as (_, a, b, pair_id):
            node = a if dies == "a" else b
            node.disk.done, node.disk.dies_after = 0, after
            with suppress(SplError, OSError):
                await a.pairing.maintenance.renew(pair_id)
            await node.restart()
            assert await a.call(b) == 200
            await a.pairing.refresh(pair_id)
            assert await a.call(b) == 200
            await both_active(a, b)


async def test_a_replayed_or_foreign_renewal_gives_nothing(tmp_path: Path) -> None:
    async with paired(tmp_path) as (world, a, b, pair_id):
        await a.pairing.maintenance.renew(pair_id)
        sent = next(call for call in world.calls if call.path.endswith("/renew") and not call.answer)
        with pytest.raises(SplError) as caught:
            await b.pairing.answer("renew", pair_id, sent.body, "x")
        assert code_of(caught) == "message-replayed"
        own = a.pairing.pairs.identity
        fields = message.head(own.did, b.did, pair_id, world.now_ms(), "0" * 32)
        for purpose in ("pair-poll", "pair-confirm"):
            with pytest.raises(SplError) as caught:
                await b.pairing.answer("renew", pair_id, canon.encode(message.sign(purpose, fields, own.key)), "x")
            assert code_of(caught) == "message-signature"
        assert len(live_tokens(b)) == 2


async def test_a_revoked_pair_renews_nothing(tmp_path: Path) -> None:
    async with paired(tmp_path) as (world, a, b, pair_id):
        world.faults.append(lambda call: None)
        await b.pairing.revoke(pair_id)
        world.faults.clear()
        with pytest.raises(SplError) as caught:
            await a.pairing.maintenance.renew(pair_id)
        assert code_of(caught) == "pair-state-conflict"
        assert live_tokens(b) == []
        await a.pairing.refresh(pair_id)
        assert a.pairs[0].reason == "revoked by peer"


async def test_a_failing_renewal_is_told_early_and_ends_as_token_expired(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", "spl.federation"):
        async with paired(tmp_path) as (world, a, b, pair_id):
            world.faults.append(lambda call: None)
            world.time_ms += 84 * DAY_MS
            await until(lambda: a.pairing.maintenance.status(pair_id).attempt)
            error = a.pairing.maintenance.status(pair_id).last_error
            assert error is not None
            assert error.code == "disconnected"
            assert a.alive[0].phase is Phase.ACTIVE
            world.time_ms += 7 * DAY_MS
            await until(lambda: (a.alive[0].phase, a.alive[0].reason) == (Phase.DEGRADED, "token-expired"))
            world.faults.clear()
            await a.pairing.refresh(pair_id)
            assert a.alive[0].phase is Phase.ACTIVE
            assert await a.call(b) == 200
    assert any(record.message == "pair.maintenance_failed" for record in caplog.records)
    assert not any("spl_fed" in record.getMessage() + str(record.__dict__) for record in caplog.records)


async def test_a_refusal_of_a_token_past_its_end_is_named_so(tmp_path: Path) -> None:
    async with paired(tmp_path) as (world, a, _b, pair_id):
        world.faults.append(lambda call: None)
        await a.pairing.pause(pair_id)
        world.time_ms += 91 * DAY_MS
        await a.pairing.resume(pair_id)
        a.pairing.on_trouble(pair_id, "auth-invalid")
        await until(lambda: a.alive[0].reason == "token-expired")


async def test_refresh_replaces_a_token_that_the_peer_revoked_or_that_is_lost(tmp_path: Path) -> None:
    async with paired(tmp_path) as (_, a, b, pair_id):
        for _ in range(2):
            dead = Own(THREAD_TOKENS, bearer.KIND_REVOKE, {"token_id": id_of(held(a))})
            await asyncio.wrap_future(b.home.writer.submit([dead]))
            assert await a.call(b) == 401
            await a.pairing.refresh(pair_id)
            assert await a.call(b) == 200
        a.home.vault.delete(f"peer-token.{pair_id}")
        await a.pairing.refresh(pair_id)
        assert await a.call(b) == 200
        await both_active(a, b)


@pytest.mark.parametrize("how", ["resume", "rotate"])
async def test_a_token_that_our_operator_revoked_is_renewed_by_its_word_only(tmp_path: Path, how: str) -> None:
    """Neither the peer's maintenance nor its operator gets another one, until ours resumes the pair or rotates."""
    async with paired(tmp_path) as (_, a, b, pair_id):
        dead = Own(THREAD_TOKENS, bearer.KIND_REVOKE, {"token_id": id_of(held(a)), "barred": True})
        await asyncio.wrap_future(b.home.writer.submit([dead]))
        for act in (a.pairing.refresh, a.pairing.maintenance.renew, a.pairing.rotate_tokens):
            with pytest.raises(SplError) as caught:
                await act(pair_id)
            assert code_of(caught) == "auth-invalid"
            assert f"spl token rotate {pair_id}" in caught.value.hint
        assert await a.call(b) == 401
        assert live_tokens(b) == []
        if how == "resume":
            await b.pairing.pause(pair_id)
            await b.pairing.resume(pair_id)
        else:
            await b.pairing.rotate_tokens(pair_id)
        await until(lambda: live_tokens(b))
        await until(lambda: id_of(held(a)) in live_tokens(b))
        assert await a.call(b) == 200


async def test_rotate_replaces_both_tokens(tmp_path: Path) -> None:
    async with paired(tmp_path) as (world, a, b, pair_id):
        for _ in range(3):
            before = held(a), held(b)
            await a.pairing.rotate_tokens(pair_id)
            await until(lambda: held(b) != before[1])  # noqa: B023
            assert held(a) != before[0]
            assert (await a.call(b), await b.call(a)) == (200, 200)
        world.time_ms += 31_000
        await until(lambda: live_tokens(a) == [id_of(held(b))])
        await until(lambda: live_tokens(b) == [id_of(held(a))])
        await both_active(a, b)


async def test_a_token_that_the_peer_minted_by_hand_is_installed_once_the_peer_took_it(tmp_path: Path) -> None:
    async with paired(tmp_path) as (world, a, b, pair_id):
        before = held(a)
        narrow = await minted(b, pair_id, "federation:sync")
        for text, code in (
            ("spl_home_sa_00000001_" + "0" * 64, "auth-invalid"), ("what", "auth-invalid"),
            (narrow, "token-scope"), (held(b), "auth-invalid"),
        ):  # fmt: skip
            with pytest.raises(SplError) as caught:
                await a.pairing.maintenance.set_token(pair_id, text)
            assert code_of(caught) == code
            assert text not in str(caught.value)
            assert held(a) == before
        text = await minted(b, pair_id)
        await a.pairing.maintenance.doubt(pair_id, "auth-invalid")
        a.pairing.peers._told[pair_id] = 60_000, ""  # refused for its date, the proof is signed again
        await a.pairing.maintenance.set_token(pair_id, text)
        assert held(a) == text
        assert a.alive[0].phase is Phase.ACTIVE
        await until(lambda: b.alive[0].issued_by_us.token_id == id_of(text))
        assert a.alive[0].issued_to_us.token_id == id_of(text)
        world.time_ms += 31_000
        await until(lambda: live_tokens(b) == [id_of(text)])
        assert await a.call(b) == 200


async def test_a_peer_that_renews_and_uses_in_turn_gets_few_tokens(tmp_path: Path) -> None:
    """Each stays in the fold of the tokens; a peer that has a use for one in months is not held up."""
    async with paired(tmp_path, limits=QUIET) as (world, a, b, pair_id):
        got, codes = 0, set[str]()
        for _ in range(3 * TOKENS_MAX):
            try:
                await a.pairing.maintenance.renew(pair_id)
            except SplError as exc:
                codes.add(exc.code)
                continue
            got += 1
            assert await calls(a, b, held(a)) == 200
        assert (TOKENS_MAX <= got < 2 * TOKENS_MAX, codes) == (True, {"rate-limited"})
        assert len(b.home.views.tokens) < 2 * TOKENS_MAX + 2
        world.time_ms += int(TOKEN_EVERY_S * 1000) + 1000
        await a.pairing.maintenance.renew(pair_id)
        assert await calls(a, b, held(a)) == 200


async def test_a_peer_that_asks_us_to_renew_without_end_is_asked_few_times(tmp_path: Path) -> None:
    async with paired(tmp_path, limits=QUIET) as (world, a, b, pair_id):
        for _ in range(4 * TOKENS_MAX):
            await a.pairing.handshakes.ask(pair_id, poll=True, renew=True)
            await b.jobs_done(pair_id)

        def asked() -> int:
            return sum(call.path.endswith("/renew") and not call.answer for call in world.calls)

        await until(lambda: asked() > 1)
        assert asked() < 2 * TOKENS_MAX
