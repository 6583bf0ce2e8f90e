"""Which pair or request a name means, and the names of live pairs in a file.

From the file a shell completes them without asking anybody.
"""

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from ..core.identity.did import label_of, short_of
from ..core.pair.aitl import ApprovalRequest, Status
from ..core.pair.diff import THREAD_PAIRS
from ..core.pair.pair import Pair, PairError, Phase
from ..core.pair.state import known
from ..core.version import PAIR_NAMES
from ..home.disk import Disk
from ..home.tables.lists import by_thread
from ..home.writer import Writer
from ..sync.notify import Notifier

_ENDED: Final = 3
_Found = TypeVar("_Found")


class PairNames:
    """Keeps the file in step with the pairs."""

    def __init__(self, writer: Writer, notifier: Notifier, home: Path, disk: Disk) -> None:
        self._writer, self._notifier, self._disk = writer, notifier, disk
        self._path = home / PAIR_NAMES

    async def run(self, stop: asyncio.Event) -> None:
        """Write the file now and after each change, until the notifier stops."""
        written: list[str] | None = None
        with self._notifier.listening([by_thread(THREAD_PAIRS)]) as news:
            while not (stop.is_set() or self._notifier.stopping):
                news.clear()
                names = names_of(self._writer.views.pairs)
                if names != written:
                    with suppress(OSError):  # a full disk has its own finding, and a shell can do without
                        await asyncio.to_thread(self._write, names)
                        written = names
                await news.wait()

    def _write(self, names: Iterable[str]) -> None:
        self._disk.replace_atomic(self._path, "".join(f"{name}\n" for name in names).encode())


def names_of(pairs: Mapping[str, Pair]) -> list[str]:
    """Return the labels of the peers of live pairs, each once, then the ids."""
    live = [pair for pair in pairs.values() if pair.phase is not Phase.REVOKED]
    return [*dict.fromkeys(label_of(pair.peer_did) for pair in live), *(pair.pair_id for pair in live)]


def pair_named(pairs: Mapping[str, Pair], ref: str) -> Pair:
    """Return the pair by id, unique prefix of one, peer DID, short DID or label.

    Agreed pairs come before requests of ours, those before requests of strangers, and ended pairs last: a stranger
    chooses its label, and must not take the name of a live pair away.

    Raises PairError "pair-unknown", "ambiguous".
    """
    if ref in pairs:
        return pairs[ref]
    found = [pair for pair in pairs.values() if ref and _names(pair.pair_id, pair.peer_did, ref)]
    best = min((_rank(pair) for pair in found), default=0)
    chosen = [pair for pair in found if _rank(pair) == best]
    if best == _ENDED and _means_one(chosen, ref):
        chosen = chosen[-1:]  # people mean the last of the many that ended
    return _only({pair.pair_id: pair for pair in chosen}, ref) or known(pairs, ref)


def request_named(requests: Mapping[str, ApprovalRequest], ref: str) -> ApprovalRequest:
    """Return the request by id, unique prefix, or the asker's DID; where no other fits, the last decided of one asker.

    Raises PairError "not-found", "ambiguous".
    """
    found = {key: item for key, item in requests.items() if ref and _names(key, item.peer_did, ref)}
    waiting = {key: item for key, item in found.items() if item.status is Status.PENDING}
    if not waiting and _means_one(found.values(), ref):
        found = dict([*found.items()][-1:])
    only = _only(waiting or found, ref)
    if only is None:
        raise PairError("not-found", f"no request {ref[:80]!r}", hint="spl aitl list --all")
    return only


def _means_one(found: Iterable[Pair | ApprovalRequest], ref: str) -> bool:
    """Return whether a name, which is no beginning of an id, means one instance."""
    return not ref.startswith("pair_") and len({item.peer_did for item in found}) == 1


def _rank(pair: Pair) -> int:
    if pair.ended:
        return _ENDED
    if pair.answer is not None:
        return 0
    return 1 if pair.initiator else 2


def _names(pair_id: str, did: str, ref: str) -> bool:
    return pair_id.startswith(ref) or ref in (did, short_of(did), label_of(did))


def _only(found: Mapping[str, _Found], ref: str) -> _Found | None:
    if len(found) > 1:
        raise PairError("ambiguous", f"{ref[:80]!r} fits {', '.join([*found][:5])}")
    return next(iter(found.values()), None)
