"""Promises of the answers to a peer that compares: what is shared now, at the peer's share of the thread."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from spl.core.errors import SplError
from spl.core.record.fingerprint import HELD, Question
from spl.sync.compare.fingerprints import BURST_S, PAY_WAIT_S, QUESTIONS_MAX, THREAD_SHARE
from tests.nodes import Node, join, nodes
from tests.sync.compare.test_reconcile import KEY, asked, emit_many, grant
from tests.waiting import turns


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Node, Node, str]]:
    async with nodes(tmp_path, "ann", "ben") as (ann, ben):
        yield ann, ben, join(ann, ben)


async def test_what_is_withdrawn_while_the_answer_is_made_is_not_told(
    pair: tuple[Node, Node, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, ben, pair_id = pair
    emit_many(ben, 20)
    reply, told = ben.fingerprints._reply, list[bytes]()

    def withdrawing(*arguments: Any) -> bytes:
        told.append(reply(*arguments))
        if len(told) == 1:
            grant(ben, ann, pair_id, "default", "default", None)
        return told[-1]

    monkeypatch.setattr(ben.fingerprints, "_reply", withdrawing)
    assert (await asked(ben, pair_id, Question(KEY, ranges={HELD: ("",)}))).counts[HELD] == {}
    assert len(told) == 2


async def test_a_malformed_question_is_refused_and_keeps_nothing(pair: tuple[Node, Node, str]) -> None:
    _, ben, pair_id = pair
    for body in (b"", b"[]", b'{"key":"x"}', b'{"key":"%s","ranges":{"all":[""]}}' % KEY.encode()):
        with pytest.raises(SplError) as caught:
            await ben.fingerprints.answer(pair_id, body)
        assert caught.value.code in ("bad-json", "bad-field")
    assert ben.fingerprints._kept == {}


async def test_a_peer_has_one_question_answered_at_a_time_and_few_waiting(
    pair: tuple[Node, Node, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another peer's question does not wait for all of them."""
    ann, ben, pair_id = pair
    other = join(ann, ben, "pair_00000002")
    reply, go, order = ben.fingerprints._reply, threading.Event(), list[str]()

    def slow(by: str, *arguments: Any) -> bytes:
        go.wait(30)
        order.append(by)
        return reply(by, *arguments)

    monkeypatch.setattr(ben.fingerprints, "_reply", slow)
    questions = [Question(f"{n:032x}", ranges={HELD: ("",)}).encode() for n in range(30)]
    calls = [ben.fingerprints.answer(pair_id, question) for question in questions]
    found = asyncio.gather(*calls, ben.fingerprints.answer(other, questions[0]), return_exceptions=True)
    await turns()
    go.set()
    results = await found
    refused = [each for each in results if isinstance(each, SplError)]
    assert [each.code for each in refused] == ["rate-limited"] * (len(questions) - QUESTIONS_MAX)
    assert order.index(other) == 1


async def test_a_peer_that_used_up_its_share_waits_or_is_refused(pair: tuple[Node, Node, str]) -> None:
    ann, ben, pair_id = pair
    question = Question(KEY, ranges={HELD: ("",)})
    await asked(ben, pair_id, question)
    asker = ben.fingerprints._askers[pair_id]
    assert asker.paid_s > 0
    asker.paid_s += (BURST_S / THREAD_SHARE) + 2 * PAY_WAIT_S
    with pytest.raises(SplError) as caught:
        await asked(ben, pair_id, question)
    assert (caught.value.code, caught.value.status) == ("rate-limited", 429)
    assert caught.value.facts["retry_after_s"] > 0
    assert (await asked(ben, join(ann, ben, "pair_00000002"), question)).counts[HELD] == {}
