"""What is looked at of which source: garbage, strangers and peers have budgets of their own."""

from itertools import count as count_from

import pytest

from spl.core.errors import SplError
from spl.core.limits import Limits
from spl.core.pair.handshake import HandshakeError
from spl.pairing.budgets import LEVELS_MAX, MessageBudgets
from tests.pair_world import code_of

LIMITS = Limits(handshakes_per_minute=3, handshake_bytes=100)


class Clock:
    """Stands still until it is told to go on."""

    ms = 1_000_000

    def __call__(self) -> int:
        return self.ms


def garbage(budgets: MessageBudgets, address: str, *, agreed: bool = False) -> str:
    """Send something that fails before its signature held; return the code of the refusal."""
    with pytest.raises(SplError) as caught, budgets.unverified(address, agreed=agreed):
        raise HandshakeError("message-signature")
    return code_of(caught)


def test_garbage_of_a_source_is_bounded_and_no_longer_parsed() -> None:
    clock = Clock()
    budgets = MessageBudgets(LIMITS, clock)
    assert [garbage(budgets, "10.0.0.1") for _ in range(4)] == ["message-signature"] * 3 + ["rate-limited"]
    assert garbage(budgets, "10.0.0.2") == "message-signature"
    clock.ms += 20_000
    assert garbage(budgets, "10.0.0.1") == "message-signature"


def test_garbage_takes_nothing_from_strangers_and_peers_of_its_address() -> None:
    budgets = MessageBudgets(LIMITS, Clock())
    while garbage(budgets, "10.0.0.1") != "rate-limited":
        pass
    budgets.count_stranger("10.0.0.1")
    budgets.count_peer("did:sync:instance:bob-1", "a", "10.0.0.1")


def test_what_names_an_agreed_pair_is_looked_at_though_its_source_sent_garbage() -> None:
    """Behind a proxy all peers have one address; a message about a pair is verified before it is judged."""
    budgets = MessageBudgets(LIMITS, Clock())
    assert {garbage(budgets, "10.0.0.1", agreed=True) for _ in range(10)} == {"message-signature"}
    with budgets.unverified("10.0.0.1", agreed=True):
        pass
    assert garbage(budgets, "10.0.0.1") == "rate-limited", "forged messages about a pair count as garbage"


def test_strangers_are_counted_by_source_and_peers_by_did() -> None:
    budgets, nonces = MessageBudgets(LIMITS, Clock()), count_from(1)

    def count_peer(did: str, cost: float = 1.0) -> None:
        budgets.count_peer(did, str(next(nonces)), "10.0.0.3", cost)

    for count, one, other in (
        (budgets.count_stranger, "10.0.0.1", "10.0.0.2"),
        (count_peer, "did:sync:instance:bob-1", "did:sync:instance:eve-2"),
    ):
        for _ in range(3):
            count(one)
        with pytest.raises(SplError) as caught:
            count(one, 0.1)
        assert code_of(caught) == "rate-limited"
        assert caught.value.facts["retry_after_s"]
        count(other)


def test_a_message_that_comes_again_counts_against_who_repeats_it() -> None:
    """An eavesdropper holds messages of the peer; to send them again must not use up what the peer needs."""
    budgets = MessageBudgets(LIMITS, Clock())
    budgets.count_peer("did:sync:instance:bob-1", "a", "10.0.0.1")
    for _ in range(3):
        budgets.count_peer("did:sync:instance:bob-1", "a", "10.0.0.9")
    with pytest.raises(SplError) as caught:
        budgets.count_peer("did:sync:instance:bob-1", "a", "10.0.0.9")
    assert code_of(caught) == "rate-limited"
    budgets.count_peer("did:sync:instance:bob-1", "b", "10.0.0.1")
    budgets.count_peer("did:sync:instance:bob-1", "c", "10.0.0.1")


def test_the_addresses_of_an_ipv6_network_are_one_source() -> None:
    budgets = MessageBudgets(LIMITS, Clock())
    for number in range(3):
        budgets.count_stranger(f"2001:db8:1:2::{number}")
    with pytest.raises(SplError):
        budgets.count_stranger("2001:db8:1:2:ffff::1")
    budgets.count_stranger("2001:db8:1:3::1")


def test_a_message_is_bounded_in_size_and_nesting() -> None:
    budgets = MessageBudgets(LIMITS, Clock())
    assert budgets.decoded(b"[" * LEVELS_MAX + b"]" * LEVELS_MAX)
    for body, code in ((b"[" * 9 + b"]" * 9, "bad-json"), (b" " * 101, "body-too-large"), (b"{", "bad-json")):
        with pytest.raises(SplError) as caught:
            budgets.decoded(body)
        assert code_of(caught) == code
