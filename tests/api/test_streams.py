"""A token or pair has a share of long answers, tokens together leave half of the connections, places are given back."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from spl.api.auth import Kind, Principal
from spl.api.streams import PER_PAIR, PER_TOKEN, LongAnswers
from spl.core.errors import SplError
from spl.net.routes import Response
from tests.waiting import turns

PEER = Principal(Kind.PEER, pair_id="pair_1", token_id="tok_9")


def token(name: str) -> Principal:
    return Principal(Kind.TOKEN, token_id=name)


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield b"."


async def take(answers: LongAnswers, principal: Principal, count: int) -> list[Response]:
    return [await answers.counted(principal, Response(body=endless())) for _ in range(count)]


async def end(response: Response) -> None:
    assert not isinstance(response.body, bytes)
    await response.body.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("principal", "share"), [(token("a"), PER_TOKEN), (PEER, PER_PAIR)])
async def test_a_principal_has_its_share_until_an_answer_ends(principal: Principal, share: int) -> None:
    answers = LongAnswers(1024)
    first, *_ = await take(answers, principal, share)
    with pytest.raises(SplError) as caught:
        await take(answers, principal, 1)
    assert (caught.value.code, caught.value.facts["retry_after_s"]) == ("rate-limited", 1)
    await take(answers, token("another"), 1)
    await end(first)
    await end(first)  # again is harmless
    await take(answers, principal, 1)
    with pytest.raises(SplError):
        await take(answers, principal, 1)


async def test_tokens_together_leave_half_of_the_connections_to_pairs() -> None:
    answers = LongAnswers(20)
    await take(answers, token("a"), 6)
    await take(answers, token("b"), 4)
    with pytest.raises(SplError):
        await take(answers, token("c"), 1)
    await take(answers, PEER, PER_PAIR)


async def test_an_answer_in_one_piece_a_refusal_and_a_cancelled_wait_hold_nothing() -> None:
    answers = LongAnswers(1024)
    await answers.counted(PEER, Response(body=b"page"))

    async def refused() -> Response:
        raise SplError("pair-paused")

    with pytest.raises(SplError):
        await answers.counted(PEER, refused())
    waiting = asyncio.get_running_loop().create_task(answers.counted(PEER, asyncio.Future()))
    await turns()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await take(answers, PEER, PER_PAIR)


async def test_what_was_begun_is_closed_too() -> None:
    answers, closed = LongAnswers(1024), list[bool]()

    async def body() -> AsyncIterator[bytes]:
        try:
            yield b"one"
            yield b"two"
        finally:
            closed.append(True)

    response = await answers.counted(PEER, Response(body=body()))
    assert not isinstance(response.body, bytes)
    assert await anext(response.body) == b"one"
    await end(response)
    assert closed == [True]
