"""Daemons under attack, the puppets that attack them, and what is measured on a daemon."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.attack.adversary.keys import Identity, born
from tests.attack.adversary.puppet import Puppet
from tests.attack.adversary.server import Asked, Given, Server
from tests.attack.homes import settle
from tests.attack.measure import Victim

Daemon = Callable[..., Victim]
Puppets = Callable[..., Puppet]
Serve = Callable[..., Server]
AUTO = '[federation]\napproval = "auto"\n'


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """Return a maker of running daemons: a name, a configuration, and the public URL, "" for none."""
    made: list[Victim] = []

    def maker(name: str, config: str = "", public_url: str | None = None) -> Victim:
        victim = Victim(name, tmp_path / name / "home")
        made.append(victim)
        settle(victim, config)
        url = victim.url.rstrip("/") if public_url is None else public_url
        victim.start(*(("--public-url", url) if url else ()))
        return victim

    yield maker
    for victim in made:
        victim.end()


@pytest.fixture
def puppet() -> Iterator[Puppets]:
    """Return a maker of puppets: a label or an identity, the daemon that it deals with, the address it comes from."""
    made: list[Puppet] = []

    def maker(who: str | Identity, victim: Victim, source: str = "127.0.0.1") -> Puppet:
        found = Puppet(born(who) if isinstance(who, str) else who, victim, source)
        made.append(found)
        return found

    yield maker
    for each in made:
        each.close()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a maker of servers behind which nothing should be seen: a status, and headers of each answer."""
    made: list[Server] = []

    def maker(status: int = 418, **headers: str) -> Server:
        def answering(asked: Asked) -> Given:
            return Given(status, headers=headers)

        made.append(Server(answering))
        return made[-1]

    yield maker
    for each in made:
        each.close()


@pytest.fixture
def alice(daemon: Daemon) -> Victim:
    """A daemon that approves pair requests by itself, so that puppets become its peers."""
    return daemon("alice", AUTO)


@pytest.fixture
def wary(daemon: Daemon) -> Victim:
    """A daemon as it comes: its operator decides on each request."""
    return daemon("wary")
