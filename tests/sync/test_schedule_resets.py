"""A peer that refuses the positions it gave ends a pull; it does not keep it going."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from spl.core.errors import SplError
from spl.net.client import Reply
from spl.sync.pull import RESETS_PER_HOUR_MAX
from tests.nodes import LIMITS, join, nodes

PAIR = "pair_00000001"
REFUSAL = {"object": "error", "code": "cursor-reset", "message": "another log"}


async def test_a_peer_that_gives_one_cursor_and_refuses_it_again_and_again_ends_the_pull(tmp_path: Path) -> None:
    """The same cursor counts once an hour, because an answer may be lost; within one pull it cannot be."""
    limits = replace(LIMITS, page_records_default=1)
    async with nodes(tmp_path, "alice", "bob", limits=limits) as (alice, bob):
        join(alice, bob)
        alice.emit("1")
        alice.emit("2")
        fetch, first, refused = bob.network.fetch, list[Reply](), list[str]()

        async def hostile(method: str, url: str, **rest: Any) -> Reply:
            query = parse_qs(urlsplit(url).query)
            if query.get("feed") != ["normal"]:
                return await fetch(method, url, **rest)
            if "since" in query:
                refused.extend(query["since"])
                assert len(refused) <= RESETS_PER_HOUR_MAX + 1, "it goes on for ever"
                return Reply(410, {}, json.dumps(REFUSAL).encode(), "x")
            if not first:
                first.append(await fetch(method, url, **rest))
            return first[0]

        bob.network.fetch = hostile  # type: ignore[method-assign]
        with pytest.raises(SplError) as caught:
            await bob.sync.pull(PAIR)
        assert (caught.value.code, len(set(refused))) == ("peer-rewound", 1)
