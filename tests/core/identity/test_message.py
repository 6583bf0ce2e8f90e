"""Signed messages: what tampering, replaying elsewhere and skewed clocks meet."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core.errors import SplError
from spl.core.identity import message
from spl.core.identity.did import did_of
from spl.core.keys import SecretKey, b64, unb64
from spl.core.limits import Limits
from spl.core.when import ms_of

KEY = SecretKey(b"a" * 32)
ALICE = did_of("alice", KEY.public)
BOB = did_of("bob", SecretKey(b"b" * 32).public)
NOW_MS = 1_764_000_000_000
NONCE = "0123456789abcdef" * 2
LIMITS = Limits()


def a_message(purpose: str = "pair-poll", **more: object) -> dict[str, Any]:
    return message.sign(purpose, message.head(ALICE, BOB, "pair_a1b2c3d4", NOW_MS, NONCE) | more, KEY)


def refusal(code: str, call: Any, *args: Any) -> SplError:
    with pytest.raises(SplError) as caught:
        call(*args)
    assert caught.value.code == code
    return caught.value


def test_a_signed_message_comes_back_whole() -> None:
    fields = message.verify("pair-poll", a_message(namespaces=["default"], extra={"a": 1.0}), KEY.public)
    assert fields["signer"] == ALICE
    assert fields["audience"] == BOB
    assert fields["namespaces"] == ["default"]
    assert message.issued_at_ms(fields) == NOW_MS


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("signer", BOB),
        ("audience", ALICE),
        ("pair_id", "pair_00000000"),
        ("issued_at", "2026-11-23T00:00:00.000Z"),
        ("nonce", "f" * 32),
        ("mode", "continuous"),
        ("new", None),
    ],
)
def test_no_field_can_be_changed_or_added(name: str, value: object) -> None:
    value_signed = a_message(mode="polling")
    value_signed["message"][name] = value
    refusal("message-signature", message.verify, "pair-poll", value_signed, KEY.public)


def test_no_field_can_be_taken_away() -> None:
    signed = a_message(mode="polling")
    del signed["message"]["mode"]
    refusal("message-signature", message.verify, "pair-poll", signed, KEY.public)


def test_a_signature_serves_one_purpose_and_one_key() -> None:
    for purpose in message.PURPOSES - {"pair-poll"}:
        refusal("message-signature", message.verify, purpose, a_message(), KEY.public)
    refusal("message-signature", message.verify, "pair-poll", a_message(), SecretKey(b"c" * 32).public)


@given(place=st.integers(0, 63), bit=st.integers(0, 7))
def test_no_bit_of_the_signature_can_be_flipped(place: int, bit: int) -> None:
    signed = a_message()
    raw = bytearray(unb64(signed["signature"]))
    raw[place] ^= 1 << bit
    refusal("message-signature", message.verify, "pair-poll", signed | {"signature": b64(bytes(raw))}, KEY.public)


@pytest.mark.parametrize(
    "value",
    [
        None, [], "x", {}, {"message": {}}, {"message": [], "signature": ""},
        {"message": {}, "signature": "", "more": 1},
        {"message": list(message.HEAD), "signature": ""}, {"message": " ".join(message.HEAD), "signature": ""},
    ],
)  # fmt: skip
def test_other_forms_are_malformed(value: object) -> None:
    refusal("message-malformed", message.unwrap, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("signer", "did:web:x"),
        ("signer", None),
        ("audience", ["x"]),
        ("pair_id", "pair_XYZ"),
        ("pair_id", 7),
        ("pair_id", "pair_a1b2c3d4\n"),
        ("nonce", "0" * 31),
        ("nonce", "G" * 32),
        ("nonce", None),
        ("issued_at", "now"),
        ("issued_at", 5),
    ],
)
def test_every_head_field_has_a_form(name: str, value: object) -> None:
    signed = a_message()
    signed["message"][name] = value
    refusal("message-malformed", message.unwrap, signed)
    del signed["message"][name]
    refusal("message-malformed", message.unwrap, signed)


@pytest.mark.parametrize("signature", [None, 7, "", "not base64!", "QUJD" * 100])
def test_a_signature_that_is_none_is_refused(signature: object) -> None:
    with pytest.raises(SplError) as caught:
        message.verify("pair-poll", a_message() | {"signature": signature}, KEY.public)
    assert caught.value.code in ("message-malformed", "message-signature")


def test_a_message_may_be_signed_by_any_of_the_keys_given_and_by_no_other() -> None:
    held = [SecretKey(letter * 32) for letter in (b"c", b"d", b"e")]
    publics = [key.public for key in held]
    fields = message.head(ALICE, BOB, "pair_a1b2c3d4", NOW_MS, NONCE)
    for key in held:
        assert message.verify_any("pair-answer", message.sign("pair-answer", fields, key), publics) == fields
        assert message.verify_any("pair-answer", message.sign("pair-answer", fields, key), [key.public]) == fields
    strange = message.sign("pair-answer", fields, KEY)
    refusal("message-signature", message.verify_any, "pair-answer", strange, publics)
    refusal("message-signature", message.verify_any, "pair-poll", message.sign("pair-answer", fields, held[1]), publics)


def test_a_message_counts_for_its_audience_only() -> None:
    fields = message.unwrap(a_message())
    message.check_audience(fields, BOB)
    refusal("message-audience", message.check_audience, fields, ALICE)


@pytest.mark.parametrize("off_ms", [-300_000, 0, 300_000])
def test_five_minutes_of_skew_are_allowed(off_ms: int) -> None:
    message.check_times(message.unwrap(a_message()), NOW_MS + off_ms, LIMITS)


@pytest.mark.parametrize("off_ms", [-300_001, 300_001])
def test_more_skew_is_refused_and_tells_our_time(off_ms: int) -> None:
    fields = message.unwrap(a_message())
    refused = refusal("clock-skew", message.check_times, fields, NOW_MS + off_ms, LIMITS)
    assert ms_of(refused.to_json()["time"]) == NOW_MS + off_ms
    assert f"300 s {'behind' if off_ms > 0 else 'ahead of'} our clock" in refused.message


def test_an_answer_belongs_to_one_request() -> None:
    request = message.unwrap(a_message())
    answer = message.answer_head(request, 202, NOW_MS, "e" * 32)
    assert message.check_answer(answer, request) == 202
    other = request | {"nonce": "f" * 32}
    refusal("message-audience", message.check_answer, answer, other)
    refusal("message-audience", message.check_answer, answer | {"signer": ALICE}, request)
    refusal("message-audience", message.check_answer, answer | {"audience": BOB}, request)
    refusal("message-audience", message.check_answer, answer | {"pair_id": "pair_00000000"}, request)


@pytest.mark.parametrize("change", [
    {"status": "200"}, {"status": True}, {"status": None}, {"status": 200.0}, {"status": 99}, {"status": 600},
    {"request_digest": None}, {"request_digest": 7}, {"request_digest": "f" * 63}, {"request_digest": "F" * 64},
])  # fmt: skip
def test_an_answer_has_status_and_digest(change: dict[str, object]) -> None:
    request = message.unwrap(a_message())
    answer = message.answer_head(request, 200, NOW_MS, "e" * 32) | change
    refusal("message-malformed", message.check_answer, answer, request)
    for status in (100, 599):
        assert message.check_answer(message.answer_head(request, status, NOW_MS, "e" * 32), request) == status


def test_the_digest_depends_on_content_and_not_on_order() -> None:
    fields = message.unwrap(a_message(mode="polling"))
    assert message.digest(dict(reversed(fields.items()))) == message.digest(fields)
    assert message.digest(fields | {"mode": "on-demand"}) != message.digest(fields)
