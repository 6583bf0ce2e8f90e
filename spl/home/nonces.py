"""The nonces of signed messages that were seen: a bounded memory in one file of JSON lines.

A line is appended and synced for each nonce, before the message counts, so a replay is refused after a restart too.
A nonce that could still be replayed is never evicted; a full memory refuses new messages.  So the nonces of
strangers, which cost nothing to make, have a memory apart from those of pairs (`vault.py`).
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ..core import canon
from ..core.errors import SplError
from .disk import Disk, unusable

FILE_BYTES_MAX: Final = 16 * 1024 * 1024  # some ten times what Limits keeps

_KEY: Final = re.compile(r"[0-9a-f]{32}\Z")


class NonceError(SplError):
    """The memory of nonces is full; code rate-limited."""


class NonceMemory:
    """Digests of nonces with the time until which each is kept; one thread at a time.

    Holds at most twice `count` of them, in memory and in the file.
    """

    def __init__(self, path: Path, disk: Disk, count: int, now_ms: Callable[[], int]) -> None:
        self._path, self._disk, self._count, self._now_ms = path, disk, count, now_ms
        self._until_ms: dict[str, int] = {}
        self._lines = 0
        self._rewrite_first = True

    def __contains__(self, key: str) -> bool:
        return key in self._until_ms

    def __len__(self) -> int:
        return len(self._until_ms)

    def load(self) -> None:
        """Read the file, ignoring torn lines, which were never acknowledged."""
        try:
            data = self._disk.read(self._path, FILE_BYTES_MAX)
        except OSError as exc:
            raise unusable(self._path, exc) from exc
        *lines, tail = (data or b"").split(b"\n")
        found = [_parsed(line) for line in lines]
        self._until_ms = dict(item for item in found if item is not None)
        self._lines = len(lines)
        self._rewrite_first = data is None or bool(tail) or None in found

    def remember(self, key: str, until_ms: int) -> None:
        """Keep a digest durably; raise NonceError "rate-limited" if `count` unexpired nonces are stored."""
        if self._rewrite_first or self._lines >= 2 * self._count:
            self._compact()
        try:
            file = self._disk.open_append(self._path)
            try:
                file.write(_line(key, until_ms))
                file.sync()
            finally:
                file.close()
        except OSError as exc:
            self._rewrite_first = True
            raise unusable(self._path, exc) from exc
        self._until_ms[key] = until_ms
        self._lines += 1

    def _compact(self) -> None:
        """Drop expired nonces and rewrite the file, so that a torn or refused line never precedes another."""
        now_ms = self._now_ms()
        alive = {key: until_ms for key, until_ms in self._until_ms.items() if until_ms > now_ms}
        if len(alive) >= self._count:
            raise NonceError("rate-limited", "too many signed messages in a short time: the memory of nonces is full")
        self._disk.mkdir(self._path.parent)
        try:
            self._disk.replace_atomic(self._path, b"".join(_line(key, until_ms) for key, until_ms in alive.items()))
        except OSError as exc:
            raise unusable(self._path, exc) from exc
        self._until_ms, self._lines, self._rewrite_first = alive, len(alive), False


def _line(key: str, until_ms: int) -> bytes:
    return canon.encode({"nonce": key, "until_ms": until_ms}) + b"\n"


def _parsed(line: bytes) -> tuple[str, int] | None:
    try:
        value = canon.decode(line)
    except canon.CanonError:
        return None
    if not isinstance(value, dict) or value.keys() != {"nonce", "until_ms"} or type(value["until_ms"]) is not int:
        return None
    key = value["nonce"]
    return (key, value["until_ms"]) if isinstance(key, str) and _KEY.match(key) else None
