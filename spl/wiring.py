"""How the services of one daemon are tied together: each gets what it needs from the others as plain functions.

Services never import each other, so this is where the consumer learns who acknowledges for it, the pairing service
who syncs first, and the doctor whom to ask.
"""

import asyncio
import ssl
import time

from .api.app import RESOURCES
from .api.services import Services
from .auth import Auth
from .core.reach import Reaches
from .doctor import CHECK_S, Doctor
from .feed import Feed, Query
from .follow import Opposite
from .history import History
from .home import Home, now_ms, random_bytes
from .net.client import Client, Resolver
from .net.probe import Prober
from .pairing import Pairing
from .policy import Policy
from .pulse import Pulse
from .push import Outlet, Push
from .restore import Restorer
from .setup import default_label
from .sync import Sync


def services_of(home: Home, client: Client, tls: ssl.SSLContext, url: str, *, insecure: bool = False) -> Services:
    """Return the services over an open home; `url` is where peers reach this daemon, `tls` verifies theirs.

    Their `run` methods are the caller's to start, their `close` methods to call at the end.
    """
    config, limits = home.config, home.config.limits
    reaches = Reaches(limits.errors_until_degraded)
    policy = Policy(home.hub, resources=RESOURCES, now_ms=now_ms)

    async def adopt(label: str, force: bool) -> None:
        """Make an identity (or keep the one there is) and sign with it from now on."""
        home.adopt(await asyncio.to_thread(home.vault.generate, label or default_label(), force=force))

    pairing = Pairing(
        home.hub, home.vault, config, client, limits, url=url, now_ms=now_ms, random_bytes=random_bytes,
        first_sync=lambda pair_id: sync.pull(pair_id), adopt_identity=adopt,
        resync=lambda pair_id: sync.pull(pair_id, resync=True), wake=lambda pair_id: sync.wake(pair_id),
        permitted=policy.permits, granted=policy.grants,
    )  # fmt: skip
    opposite = Opposite(
        confirm=lambda pair_id, cursor: feed.confirm(pair_id, cursor),
        take=lambda pair_id, cursor: feed.ack(pair_id, cursor),
        restart=lambda pair_id: feed.restart(pair_id),
    )
    sync = Sync(
        home.hub, home.vault, client, limits, dial=pairing.dial, watch=pairing, now_ms=now_ms,
        random_bytes=random_bytes, reaches=reaches, opposite=opposite,
    )  # fmt: skip
    feed = Feed(
        home.hub, home.vault, limits, now_ms=now_ms, random_bytes=random_bytes, queue_records=sync.queue_records,
        reach=reaches.word,
    )  # fmt: skip
    return Services(
        home.path, url, config, limits, home.hub, home.store, home.views, home.vault,
        Auth(home.views, home.vault, config, limits, now_ms, insecure=insecure),
        pairing, feed, sync, now_ms(), now_ms, random_bytes, adopt,
        disk=home.disk,
        restorer=Restorer(home.hub, home.path, home.disk, limits, now_ms=now_ms),
        history=History(
            home.hub, home.vault, client, limits, dial=pairing.dial, now_ms=now_ms, random_bytes=random_bytes
        ),
        doctor=_doctor(home, client, tls, url, pairing, sync, reaches),
        push=_push(home, sync, feed, reaches),
        policy=policy,
    )  # fmt: skip


def _doctor(
    home: Home, client: Client, tls: ssl.SSLContext, url: str, pairing: Pairing, sync: Sync, reaches: Reaches
) -> Doctor:
    pulse = Pulse(lambda: home.views.pairs, sync.status, steady_s=time.monotonic, tasks=_task_names)
    return Doctor(
        home.path, url, home.hub, home.vault, home.config.limits, pairing=pairing, sync=sync, pulse=pulse,
        client=client, reach=Prober(Resolver().resolve, tls, CHECK_S).reach, way=reaches.word, now_ms=now_ms,
        random_bytes=random_bytes,
    )  # fmt: skip


def _push(home: Home, sync: Sync, feed: Feed, reaches: Reaches) -> Push:
    outlet = Outlet(
        page=lambda pair_id, since, limit, resync: feed.changes(
            pair_id, Query(since=since, limit=limit, resync=resync, pushed=True)
        ),
        fetch=feed.fetch,
        ack=feed.ack,
        chain=feed.chains,
        view=feed.peer_view,
    )
    limits = home.config.limits
    return Push(home.hub, limits, reaches, intake=sync, outlet=outlet, now_ms=now_ms, random_bytes=random_bytes)


def _task_names() -> list[str]:
    """Return the names of the tasks that run; those of a pair end with its id."""
    return [task.get_name() for task in asyncio.all_tasks()]
