"""Measure `verify`: `python tools/bench/verify.py [--records N] [--missing 0,10,1000]`, on stores of its own.

Two instances that share N records (100,000), of which one lacks some.  Each is a process of its own and computes over a
real log and index; questions and answers go over a pipe between them, and cost what their bodies have.  Prints bytes,
questions and seconds of one comparison, and of the repair of what was missing.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from store import AT_MS, entry, open_store, record_id

from spl.core.consent import Outbound
from spl.core.limits import Limits
from spl.core.record.filter import OPEN
from spl.core.record.page import Page
from spl.home.log import Entry, Log
from spl.home.writer import Writer
from spl.net.client import Reply
from spl.sync.changes import Feed
from spl.sync.compare.fingerprints import Fingerprints
from spl.sync.compare.holdings import PairTerms
from spl.sync.compare.reconcile import Reconcile
from spl.sync.ingest import Ingest, Taken
from spl.sync.peer import FINGERPRINTS
from spl.sync.push import Push
from spl.sync.schedule import Sync
from spl.sync.scope import Scope
from spl.sync.source import OutgoingForm

PAIR = "pair_00000001"
NS = "default"


SCOPE: Final = Scope(
    {NS: Outbound(NS, NS, 0)}, (OPEN,), frozenset({PAIR}), "did:sync:instance:peer", "did:sync:instance:own"
)
"""All of one namespace, both ways."""


class FilledHub:
    """What a comparison needs of a hub: the store."""

    def __init__(self, store: Log) -> None:
        self.store = store


class WholeStore(Fingerprints):
    """The answers over a store that is shared whole."""

    def __init__(self, store: Log) -> None:
        super().__init__(cast(Writer, FilledHub(store)), cast(Feed, None))
        self.store = store

    def terms(self, pair_id: str) -> PairTerms:
        """Return all of the store, both ways."""
        return PairTerms(SCOPE, {NS: NS}, self.store.last_seq, cast(OutgoingForm, None), pair_id)  # all of it is at L0


class Whole(Reconcile):
    """The service over a store that is shared whole."""

    store: Log

    def _absent(self, pair_id: str, named: Mapping[str, str]) -> dict[str, str]:
        """Return those names that are not here; there is no pair to say where they may enter."""
        return {id_: ns for id_, ns in named.items() if self.store.index.find(id_, ns) is None}


class Far:
    """The other instance, over a pipe; repair reads the records out of it by their ids."""

    def __init__(self, pipe: Connection, store: Log) -> None:
        self.pipe, self.store, self.pool = pipe, store, ThreadPoolExecutor(1)

    async def ask(self, pair: object, method: str, target: str, body: bytes) -> Reply:
        """Return its answer."""
        return Reply(200, {}, await asyncio.get_running_loop().run_in_executor(self.pool, self._ask, target, body), "")

    async def take_again(self, pair: object, item: Page) -> Taken:
        """Store what came, unchecked: the gate is measured elsewhere."""
        numbers = [value["record"]["clock"] for value in item.values]
        self.store.append([shared_entry(number) for number in numbers], AT_MS)
        return Taken(len(numbers))

    def _ask(self, target: str, body: bytes) -> bytes:
        self.pipe.send((target, body))
        return cast(bytes, self.pipe.recv())


def main() -> None:
    """Fill the stores, compare, repair, and print the cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--missing", default="0,10,1000")
    args = parser.parse_args()
    print(f"{'missing':>8} {'found':>7} {'questions':>9} {'bytes':>9} {'seconds':>8}   repair: bytes, seconds")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        fill(Path(folder) / "far", args.records, frozenset())
        ours, theirs = multiprocessing.Pipe()
        far = multiprocessing.get_context("spawn").Process(target=serve, args=(Path(folder) / "far", theirs))
        far.start()
        for count in map(int, args.missing.split(",")):
            lost = frozenset(range(0, args.records, max(1, args.records // count)) if count else ())
            home = Path(folder) / f"near-{count}"
            fill(home, args.records, frozenset(sorted(lost)[:count]))
            asyncio.run(measure(home, ours, count))
        ours.send(("", b""))
        far.join()


async def measure(home: Path, pipe: Connection, count: int) -> None:
    """Compare and repair one store with the far one, and print a line."""
    store = open_store(home)
    answers = WholeStore(store)
    near = reconcile(answers, Far(pipe, store))
    report, took = await timed(near, repair=False)
    repaired, repair_took = await timed(near, repair=True)
    assert repaired["equal"]
    found = len(report["missing_here"])
    assert found == count
    print(
        f"{count:8} {found:7} {report['questions']:9} {size(report):9,} {took:8.2f}   "
        f"{size(repaired):,}, {repair_took:.2f}",
        flush=True,
    )
    answers.close()
    store.close()


async def timed(near: Reconcile, *, repair: bool) -> tuple[dict[str, Any], float]:
    """Return the report and the seconds it took."""
    start = time.perf_counter()
    report: dict[str, Any] = (await near.verify(PAIR, repair=repair)).to_json()
    return report, time.perf_counter() - start


def serve(home: Path, pipe: Connection) -> None:
    """Answer questions until the empty one; the process of the far side."""
    store = open_store(home)
    far = WholeStore(store)

    async def answer(body: bytes) -> bytes:
        return await far.answer(PAIR, body)

    with asyncio.Runner() as runner:
        while (asked := pipe.recv())[0]:
            target, body = asked
            pipe.send(runner.run(answer(body)) if target == FINGERPRINTS else records(store, json.loads(body)["ids"]))
    far.close()
    store.close()


def records(store: Log, ids: Sequence[str]) -> bytes:
    """Return the page of these records, as the feed would."""
    rows = [row for id_ in ids if (row := store.index.find(id_, NS)) is not None]
    values = [json.loads(payload) for payload in store.payloads(rows)]
    return json.dumps({"records": values, "ns": [NS] * len(values), "has_more": False}).encode()


def reconcile(answers: WholeStore, peer: Far) -> Reconcile:
    """Return the service over a store that is shared whole."""

    async def nothing(*_: object) -> int:
        return 0

    ingest = SimpleNamespace(
        writer=answers.writer,
        limits=Limits(),
        pair=lambda pair_id: pair_id,
        peers=peer,
        take_again=peer.take_again,
    )
    found = Whole(
        cast(Ingest, ingest), answers, cast(Push, SimpleNamespace(give=nothing)),
        cast(Sync, SimpleNamespace(pull=nothing)), now_ms=lambda: time.time_ns() // 1_000_000, random_bytes=os.urandom,
    )  # fmt: skip
    found.store = answers.store
    return found


def fill(home: Path, count: int, lost: frozenset[int]) -> None:
    """Make a store of the shared records without the lost ones."""
    store = open_store(home)
    for first in range(0, count, 512):
        store.append([shared_entry(n) for n in range(first, min(count, first + 512)) if n not in lost], AT_MS)
    store.close()


def shared_entry(n: int) -> Entry:
    """Return record n of the shared namespace."""
    made = entry(n)
    return Entry("rec", made.payload, "local", NS, True, record_id(n), made.thread, made.actor, n, SCOPE.own_did)


def size(report: Mapping[str, Any]) -> int:
    """Return the bytes of a comparison's bodies."""
    return int(report["sent_bytes"] + report["received_bytes"])


if __name__ == "__main__":
    main()
