"""A restore that is sent in pieces: they follow one another, and no token takes what is another's."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from spl.core.errors import SplError
from spl.home import restore
from spl.home.disk import Disk
from spl.home.restore import OPERATOR, RESTORES_OF_OTHERS_MAX, UPLOAD_WAITED_MS, Restorer, Uploader
from spl.home.snapshot import Rights
from tests.nodes import LIMITS, Node, nodes
from tests.waiting import DEADLINE_S, eventually


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


async def test_an_upload_that_stands_still_gives_way_after_a_minute(tmp_path: Path) -> None:
    """The one that stands longest, and only if there is no other place."""
    async with nodes(tmp_path, "alice") as [alice]:
        work, now = restorer(alice), alice.now_ms()
        owners = [Uploader(f"tok_{n}", admin=False) for n in range(RESTORES_OF_OTHERS_MAX + 1)]
        for n, owner in enumerate(owners[:-1]):
            work._now_ms = lambda n=n: now + n
            work.add(owner, "u", 0, b"abc")
        work._now_ms = lambda: now + UPLOAD_WAITED_MS - 1
        with pytest.raises(SplError) as caught:
            work.add(owners[-1], "u", 0, b"")
        assert caught.value.code == "overloaded"
        work.add(owners[0], "u", 3, b"def")
        work.add(OPERATOR, "u", 0, b"")
        work._now_ms = lambda: now + UPLOAD_WAITED_MS + 1
        work.add(owners[-1], "u", 0, b"")
        assert work.add(owners[0], "u", 6, b"") == 6
        with pytest.raises(SplError) as caught:
            work.add(owners[1], "u", 3, b"")
        assert caught.value.code == "snapshot-upload"


async def test_a_bound_token_sends_no_more_than_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "BOUND_BYTES", 4)
    async with nodes(tmp_path, "alice") as [alice]:
        work = restorer(alice)
        assert work.add(Uploader("tok_1", admin=False), "u", 0, b"abcde") == 5
        bound = Uploader("tok_2", admin=False, bound=True)
        assert work.add(bound, "u", 0, b"abcd") == 4
        with pytest.raises(SplError) as caught:
            work.add(bound, "u", 4, b"e")
        assert (caught.value.code, "at most 4" in caught.value.message) == ("body-too-large", True)


async def test_running_restores_keep_out_only_their_own_token(tmp_path: Path) -> None:
    """Others run beside them while there are places, and one place is the operator's."""
    async with nodes(tmp_path, "alice") as [alice]:
        work, over = restorer(alice), threading.Event()
        rights = Rights(admin=False, reaches=lambda ns: True)
        begun: list[Uploader] = []

        def hang(owner: Uploader) -> Callable[[int, int], bytes]:
            def read(size: int, offset: int) -> bytes:
                begun.append(owner)
                assert over.wait(DEADLINE_S)
                return b""

            return read

        def run(owner: Uploader) -> str:
            try:
                work.run(hang(owner), rights, dry_run=True, owner=owner)
            except SplError as exc:
                return exc.code
            return ""

        @contextmanager
        def ended():
            try:
                yield
            finally:
                over.set()

        others = [Uploader(f"tok_{n}", admin=False) for n in range(RESTORES_OF_OTHERS_MAX)]
        with ThreadPoolExecutor(8) as pool, ended():
            running = []
            for count, owner in enumerate(others, 1):
                running.append(pool.submit(run, owner))
                eventually(lambda count=count: len(begun) == count, "the restore runs")
            assert run(others[0]) == "overloaded"
            assert run(Uploader("tok_9", admin=False)) == "overloaded"
            with pytest.raises(SplError):
                work.add(Uploader("tok_9", admin=False), "u", 0, b"")
            running.append(pool.submit(run, OPERATOR))
            eventually(lambda: len(begun) == len(running), "the operator's runs")
            assert run(Uploader("tok_8", admin=True)) == "overloaded"
            over.set()
            assert [each.result(DEADLINE_S) for each in running] == ["snapshot-malformed"] * len(running)
        assert run(others[0]) == "snapshot-malformed"
