"""A restore that is sent in pieces: they follow one another, and no token takes what is another's."""

from dataclasses import replace
from pathlib import Path

import pytest

from spl.core.errors import SplError
from spl.home.disk import Disk
from spl.home.restore import Restorer, Uploader
from tests.nodes import LIMITS, Node, nodes


def restorer(node: Node, restore_bytes: int = LIMITS.restore_bytes) -> Restorer:
    limits = replace(LIMITS, restore_bytes=restore_bytes)
    return Restorer(node.home.writer, node.home.path, Disk(), limits, now_ms=node.now_ms)


async def test_uploads_follow_one_another(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice") as [alice]:
        work = restorer(alice, 10)
        one, two = Uploader("tok_1", admin=False), Uploader("tok_2", admin=False)
        assert work.add(one, "u", 0, b"abc") == 3
        for who, name, at in ((one, "u", 2), (one, "u", 4), (one, "other", 3), (two, "u", 3)):
            with pytest.raises(SplError) as caught:
                work.add(who, name, at, b"d")
            assert caught.value.code == "snapshot-upload"
        assert work.add(one, "u", 3, b"def") == 6
        with pytest.raises(SplError) as caught:
            work.add(one, "u", 6, b"x" * 5)
        assert caught.value.code == "body-too-large"
        with pytest.raises(SplError):
            work.take(two, "u")
        assert work.take(one, "u")(10, 2) == b"cdef"
        with pytest.raises(SplError):
            work.take(one, "u")


async def test_no_token_takes_the_place_of_another_and_none_the_operators(tmp_path: Path) -> None:
    async with nodes(tmp_path, "alice") as [alice]:
        work = restorer(alice)
        others = [Uploader(f"tok_{n}", admin=False) for n in range(4)]
        for again in range(3):
            for owner in others[:3]:
                assert work.add(owner, f"u{again}", 0, b"") == 0
        with pytest.raises(SplError) as caught:
            work.add(others[3], "u", 0, b"")
        assert caught.value.code == "overloaded"
        assert work.add(Uploader("tok_9", admin=True), "u", 0, b"") == 0
        with pytest.raises(SplError) as caught:
            work.add(Uploader("", admin=True), "u", 0, b"")
        assert caught.value.code == "overloaded"
        assert work.add(others[0], "u2", 0, b"more") == 4
        work._now_ms = lambda: 1 << 50
        assert work.add(others[3], "u", 0, b"") == 0
