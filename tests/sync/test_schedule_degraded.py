"""The reason of a degraded pair is the latest one, because what heals it depends on it."""

from pathlib import Path

import pytest

from spl.core.errors import SplError
from spl.core.pair.pair import Phase
from spl.net.client import Reply
from tests.nodes import join, nodes

PAIR = "pair_00000001"


async def test_a_degraded_pair_says_why_its_credentials_are_refused_now(tmp_path: Path) -> None:
    """A wrong clock is set right, and meanwhile our key was rotated: what heals that starts by its own reason."""
    async with nodes(tmp_path, "alice", "bob") as (alice, bob):
        join(alice, bob)
        bob.change_pair(PAIR, phase=Phase.DEGRADED, reason="clock-skew")
        alice.network.change = lambda path, reply: Reply(401, {}, b'{"code": "AUTH_INVALID"}', "x")
        with pytest.raises(SplError):
            await bob.sync.pull(PAIR)
        assert bob.watched.heard == [("trouble", PAIR, "auth-invalid")]
        bob.change_pair(PAIR, phase=Phase.DEGRADED, reason="auth-invalid")
        with pytest.raises(SplError):
            await bob.sync.pull(PAIR)
        assert len(bob.watched.heard) == 1
