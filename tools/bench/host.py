#!/usr/bin/env python3
"""Many instances in one process: peers for benches that need more of them than a machine can run daemons.

    python tools/bench/host.py FOLDER COUNT [MODE [CERTIFICATE KEY]]

Each instance has its own home, keys, log, writer thread and listener, approves every pair, and sets it to MODE.  With a
certificate it is reached by https, and trusts those that have the same.
Prints their URLs as a line of JSON; then for each line `N` of the input, once every instance holds N records of the
bench's thread, a line with p50 and p99 of the lags since the last line in ms, from the time `t` in the record's
body, and the processor time of the process.  Ends with its input.
"""

import argparse
import asyncio
import json
import logging
import re
import sys
import threading
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import uvloop
from two import THREAD, percentile_ms

from spl.api.app import Api
from spl.api.services import Services
from spl.daemon import services_of, start
from spl.home.config import Config, Settings
from spl.home.disk import Disk
from spl.home.home import init_home, now_ms, open_home
from spl.home.writes import Commit
from spl.host.process import collect_seldom, settle, share_memory
from spl.net.client import HttpClient
from spl.net.server import Server
from spl.net.sockets import Listener, bind_tcp, client_trust, server_tls

LOOK_S: Final = 0.05
EMITTED: Final = re.compile(rb'"t":([0-9.]+)')


@dataclass
class Arrivals:
    """What reached one instance."""

    lags: list[float] = field(default_factory=list)

    def note(self, commit: Commit) -> None:
        """Take the time of what a commit brought; runs on the writer's thread."""
        now = time.perf_counter()
        for _, entry in commit.fresh:
            if entry.thread == THREAD and (found := EMITTED.search(entry.payload)):
                self.lags.append(now - float(found[1]))


async def open_instance(
    folder: Path, mode: str, secure: list[Path], stack: AsyncExitStack, stop: asyncio.Event
) -> tuple[str, Arrivals]:
    """Serve one instance until `stop`; return its URL and what will reach it."""
    init_home(folder, folder.name)
    sockets = bind_tcp("127.0.0.1", 0)
    url = f"http{'s' * bool(secure)}://127.0.0.1:{sockets[0].getsockname()[1]}"
    tls, trust = server_tls(*secure).context if secure else None, client_trust(secure[0] if secure else None)
    config = Config(federation_approval="auto", public_url=url)
    home = open_home(folder, config, disk=Disk(), progress=lambda done, total: None)
    stack.callback(home.close)
    writer = threading.Thread(target=home.writer.run)
    writer.start()
    stack.push_async_callback(asyncio.to_thread, writer.join)
    stack.callback(home.writer.close)
    client, arrivals = HttpClient(config.limits, tls=trust), Arrivals()
    stack.push_async_callback(client.close)
    services = services_of(home, client, trust, url, Settings(config))
    stack.callback(services.close)
    home.writer.listen(arrivals.note)
    tasks = await stack.enter_async_context(asyncio.TaskGroup())
    server = Server(Api(services, local=False), config.limits, now_ms=now_ms)
    tasks.create_task(server.serve([Listener(sock, tls) for sock in sockets], stop))
    tasks.create_task(_set_mode(services, mode, stop))
    start(services, tasks, stop)
    return url, arrivals


async def _set_mode(services: Services, mode: str, stop: asyncio.Event) -> None:
    """Set each active pair to a mode."""
    while not stop.is_set():
        for pair in list(services.writer.views.pairs.values()):
            if pair.sync_allowed and pair.mode != mode:
                await services.pairing.set_mode(pair.pair_id, mode)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), LOOK_S)


async def host(folder: Path, count: int, mode: str, secure: list[Path]) -> None:
    """Serve so many instances until the input ends."""
    stop, asked = asyncio.Event(), asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(asked), sys.stdin)
    async with AsyncExitStack() as stack:
        found = [await open_instance(folder / f"peer{n}", mode, secure, stack, stop) for n in range(count)]
        stack.callback(stop.set)
        settle(asyncio.get_running_loop())
        print(json.dumps([url for url, _ in found]), flush=True)
        said = 0
        while line := await asked.readline():
            while any(len(arrivals.lags) < int(line) for _, arrivals in found):  # noqa: ASYNC110 - other threads add
                await asyncio.sleep(LOOK_S)
            lags = sorted(lag for _, arrivals in found for lag in arrivals.lags[said:])
            said = int(line)
            figures = {
                "p50_ms": percentile_ms(lags, 50),
                "p99_ms": percentile_ms(lags, 99),
                "cpu_s": time.process_time(),
            }
            print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("mode", nargs="?", default="continuous")
    parser.add_argument("secure", nargs="*", type=Path)
    options = parser.parse_args()
    logging.disable()  # what fails shows by what does not arrive
    share_memory()
    collect_seldom()
    uvloop.run(host(options.folder, options.count, options.mode, options.secure))
