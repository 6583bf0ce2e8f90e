"""How the services of one daemon are tied together: each gets what it needs from the others as plain functions.

Services never import each other, so this is where the consumer learns who acknowledges for it, the pairing service
who syncs first, and the doctor whom to ask.
"""

import asyncio
import ssl
import time
from collections.abc import Callable

from .api.app import RESOURCES
from .api.services import Services
from .auth import Auth
from .config import Settings
from .core import consent
from .core.reach import Reaches
from .doctor import Doctor
from .feed import Feed, Query
from .follow import Opposite
from .history import History
from .home import Home, now_ms, random_bytes
from .hub import Hub
from .net.client import Client, Resolver
from .net.probe import Prober
from .pairing import Pairing
from .policy import Policy
from .pulse import Pulse
from .push import Outlet, Push
from .reconcile import Reconcile
from .restore import Restorer
from .setup import default_label
from .shared import Shared
from .states import States
from .sync import Sync


def services_of(
    home: Home, client: Client, tls: ssl.SSLContext, url: str, settings: Settings, *, insecure: bool = False
) -> Services:
    """Return the services over an open home; `url` is where peers reach this daemon, `tls` verifies theirs.

    Their `run` methods are the caller's to start, their `close` methods to call at the end.
    """
    limits = home.config.limits
    reaches = Reaches(limits.errors_until_degraded)
    policy = Policy(home.hub, resources=RESOURCES, now_ms=now_ms)

    async def adopt(label: str, force: bool) -> None:
        """Make an identity (or keep the one there is) and sign with it from now on."""
        home.adopt(await asyncio.to_thread(home.vault.generate, label or default_label(), force=force))

    pairing = Pairing(
        home.hub, home.vault, settings, client, limits, url=url, now_ms=now_ms, random_bytes=random_bytes,
        first_sync=lambda pair_id: sync.pull(pair_id), adopt_identity=adopt,
        resync=lambda pair_id: reconcile.mend(pair_id), wake=lambda pair_id: sync.wake(pair_id),
        permitted=policy.permits, granted=policy.grants,
    )  # fmt: skip
    reaches.hear(pairing.handover.seen)
    sync = Sync(
        home.hub, home.vault, client, limits, dial=pairing.dial, watch=pairing, now_ms=now_ms,
        random_bytes=random_bytes, reaches=reaches, opposite=_opposite(lambda: feed),
    )  # fmt: skip
    feed = Feed(
        home.hub, home.vault, limits, now_ms=now_ms, random_bytes=random_bytes, queue_records=sync.queue_records,
        reach=reaches.word,
    )  # fmt: skip
    push = _push(home, sync, feed, reaches)
    reconcile = _reconcile(home, sync, feed, push)
    return Services(
        home.path, url, settings, limits, home.hub, home.store, home.views, home.vault,
        Auth(home.views, home.vault, settings, limits, now_ms, insecure=insecure),
        pairing, feed, sync, now_ms(), now_ms, random_bytes, adopt,
        disk=home.disk,
        restorer=Restorer(home.hub, home.path, home.disk, limits, now_ms=now_ms),
        history=History(
            home.hub, home.vault, client, limits, dial=pairing.dial, now_ms=now_ms, random_bytes=random_bytes
        ),
        doctor=_doctor(home, client, tls, url, pairing, sync, reaches),
        push=push,
        reconcile=reconcile,
        policy=policy,
        states=States(home.store),
    )  # fmt: skip


def _opposite(feed: Callable[[], Feed]) -> Opposite:
    """Return the stream that we serve to the same peer; the feed is made after the sync that asks for it."""
    return Opposite(
        confirm=lambda pair_id, cursor: feed().confirm(pair_id, cursor),
        take=lambda pair_id, cursor: feed().ack(pair_id, cursor),
        restart=lambda pair_id: feed().restart(pair_id),
    )


def _reconcile(home: Home, sync: Sync, feed: Feed, push: Push) -> Reconcile:
    return Reconcile(
        home.hub, home.config.limits, terms=terms_of(home.hub, feed), peer=sync, give=push.give,
        read_anew=lambda pair_id: sync.pull(pair_id, resync=True), now_ms=now_ms, random_bytes=random_bytes,
    )  # fmt: skip


def terms_of(hub: Hub, feed: Feed) -> Callable[[str], Shared]:
    """Return what tells the terms of a pair that we serve; it raises what the feed does for any other."""
    source, views = feed.source, hub.views

    def terms(pair_id: str) -> Shared:
        last_seq, pair = source.last_seq(), source.pair(pair_id)
        inlets = consent.inbound(pair, consent.book_of(views.consents, pair), views.namespaces)
        received = {inlet.ns: name for name, inlet in inlets.items() if inlet.full}
        return Shared(source.scope(pair), received, last_seq, lambda id_: source.shown.pseudonym(pair_id, id_))

    return terms


def _doctor(
    home: Home, client: Client, tls: ssl.SSLContext, url: str, pairing: Pairing, sync: Sync, reaches: Reaches
) -> Doctor:
    limits = home.config.limits
    pulse = Pulse(
        lambda: home.views.pairs, sync.status, steady_s=time.monotonic, tasks=_task_names, limits=limits
    )  # fmt: skip
    return Doctor(
        home.path, url, home.hub, home.vault, limits, pairing=pairing, sync=sync, pulse=pulse, client=client,
        reach=Prober(Resolver().resolve, tls, limits.check_s).reach, way=reaches.word, now_ms=now_ms,
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
        shares=feed.shares,
        doubts=feed.doubts,
        believe=feed.believe,
    )
    limits = home.config.limits
    return Push(home.hub, limits, reaches, intake=sync, outlet=outlet, now_ms=now_ms, random_bytes=random_bytes)


def _task_names() -> list[str]:
    """Return the names of the tasks that run; those of a pair end with its id."""
    return [task.get_name() for task in asyncio.all_tasks()]
