"""A token or pair has a share of long answers, tokens together leave half of the connections, places are given back."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import cast

import pytest

from spl.api.answers import Permit
from spl.api.app import Api
from spl.api.auth import Kind, Principal
from spl.api.streams import PER_PAIR, PER_TOKEN, LongAnswers
from spl.core.errors import SplError
from spl.core.identity import bearer
from spl.net.routes import Match, Request, Response
from spl.net.sse import MEDIA_TYPE
from tests.api.conftest import Served
from tests.waiting import turns

PEER = Principal(Kind.PEER, pair_id="pair_1", token_id="tok_9")


def token(name: str) -> Principal:
    return Principal(Kind.TOKEN, token_id=name)


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield b"."


class Held:
    """A permit that a test ends."""

    ended = False

    def check(self) -> None:
        if self.ended:
            raise SplError("auth-invalid")


def counted(
    answers: LongAnswers, principal: Principal, answer: Response | Awaitable[Response], permit: Held | None = None
) -> Awaitable[Response]:
    return answers.counted(principal, lambda: answer, cast(Permit, permit or Held()))


async def take(answers: LongAnswers, principal: Principal, count: int) -> list[Response]:
    return [await counted(answers, principal, Response(body=endless())) for _ in range(count)]


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
    await counted(answers, PEER, Response(body=b"page"))

    async def refused() -> Response:
        raise SplError("pair-paused")

    with pytest.raises(SplError):
        await counted(answers, PEER, refused())
    waiting = asyncio.ensure_future(counted(answers, PEER, asyncio.Future()))
    await turns()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await take(answers, PEER, PER_PAIR)


async def test_nothing_is_made_for_a_client_that_went_or_has_its_share() -> None:
    """A coroutine that nobody awaits would be left, with a warning of the interpreter."""
    answers, made = LongAnswers(1024), list[int]()
    gone = answers.counted(PEER, lambda: made.append(1) or Response(), cast(Permit, Held()))
    del gone
    await take(answers, PEER, PER_PAIR)
    with pytest.raises(SplError):
        await answers.counted(PEER, lambda: made.append(1) or Response(), cast(Permit, Held()))
    assert not made


async def test_what_was_begun_is_closed_too() -> None:
    answers, closed = LongAnswers(1024), list[bool]()

    async def body() -> AsyncIterator[bytes]:
        try:
            yield b"one"
            yield b"two"
        finally:
            closed.append(True)

    response = await counted(answers, PEER, Response(body=body()))
    assert not isinstance(response.body, bytes)
    assert await anext(response.body) == b"one"
    await end(response)
    assert closed == [True]


async def test_an_answer_ends_with_its_permit_and_an_event_stream_says_so_itself() -> None:
    answers, permit = LongAnswers(1024), Held()
    plain, events = [
        (await counted(answers, PEER, Response(body=endless(), content_type=media), permit)).body
        for media in ("application/x-ndjson", MEDIA_TYPE)
    ]
    assert not isinstance(plain, bytes)
    assert not isinstance(events, bytes)
    assert await anext(plain) == await anext(events) == b"."
    permit.ended = True
    with pytest.raises(SplError):
        await anext(plain)
    assert await anext(events) == b"."


@pytest.mark.parametrize(("method", "path"), [
    ("GET", "/v1/records"), ("GET", "/v1/threads/th/records"), ("GET", "/v1/threads/th/snapshot"),
    ("GET", "/v1/snapshot"), ("POST", "/v1/store/check"), ("POST", "/v1/federation/pairs"),
])  # fmt: skip
async def test_nothing_is_read_on_with_a_revoked_token(served: Served, method: str, path: str) -> None:
    for n in range(4):
        body = {"n": n, "text": "x" * 40_000}
        await served.json(
            "POST", "/v1/records", {"act": "DO", "actor": "did:sync:user:a", "thread": "th", "body": body}
        )
    token, api = await served.mint("admin"), Api(served.services, local=False)
    route, params = api.table.match(method, path)
    headers = {"host": "localhost", "authorization": f"Bearer {token}"}
    request = Request(
        method, path, {}, headers, b'{"url":"http://127.0.0.1:1"}' if "pairs" in path else b"", params,
        "127.0.0.1", local=False, target=path, scheme="http", address="127.0.0.1",
    )  # fmt: skip
    answer = api.respond(request, Match(route, params))
    found = answer if isinstance(answer, Response) else await answer
    assert not isinstance(found.body, bytes)
    await anext(found.body)
    (asked,) = [each for each in served.home.views.tokens.values() if each.hash == bearer.hash_of(token)]
    await served.json("DELETE", f"/v1/tokens/{asked.token_id}")
    with pytest.raises(SplError) as caught:
        await anext(found.body)
    assert caught.value.code == "auth-invalid"
    await end(found)
