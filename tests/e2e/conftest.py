"""Instances as fixtures; whatever still runs at the end of a test is ended."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.findings import HASTY, Faulty, House, World
from tests.e2e.harness import Instance, free_port
from tests.e2e.proxy import Proxy

Make = Callable[..., Instance]
AUTO = '[federation]\napproval = "auto"\n'


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Return a maker of instances: a name, optionally a configuration, identity and token unless `bare`."""
    made: list[Instance] = []

    def maker(name: str, config: str = "", *, bare: bool = False, **env: str) -> Instance:
        instance = Instance(name, tmp_path / name / "home", env, published="public_url" not in config)
        instance.home.mkdir(parents=True, mode=0o700)
        made.append(instance)
        if config:
            instance.configure(config)
        if not bare:
            instance.run("init", "--label", name)
        return instance

    yield maker
    for instance in made:
        instance.end()


@pytest.fixture
def alice(make: Make) -> Instance:
    """A running daemon with an identity."""
    return make("alice").start()


@pytest.fixture
def bob(make: Make) -> Instance:
    """A running daemon that approves pair requests by itself."""
    return make("bob", AUTO).start()


@pytest.fixture
def pair_id(alice: Instance, bob: Instance) -> str:
    """The id of a pair of the two, active on both sides."""
    return alice.paired(bob.url)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Return a maker of instances that live as long as the tests of a file: name, configuration, what runs them."""
    made: list[Instance] = []

    def maker(name: str, config: str, kind: type[Instance] = Instance, **more: Any) -> Instance:
        instance = kind(name, tmp_path_factory.mktemp(name) / "home", published="public_url" not in config, **more)
        instance.home.mkdir(mode=0o700)
        made.append(instance.configure(config))
        instance.run("init", "--label", name)
        return instance

    yield maker
    for instance in made:
        instance.end()


@pytest.fixture(scope="module")
def shared(house: House) -> Iterator[World]:
    """The two daemons of most tests."""
    port = free_port()
    proxy = Proxy(port)
    bob = house("bob", AUTO, Faulty, port=port).start("--public-url", proxy.url)
    alice = house("alice", f"[limits]{HASTY}").start()
    world = World(alice, bob, proxy, alice.paired(proxy.url))
    alice.run("federation", "set-poll-interval", world.pair_id, "1s")
    yield world
    proxy.end()


@pytest.fixture
def world(shared: World) -> Iterator[World]:
    """The shared world, in order before and after."""
    shared.proxy.heal()
    shared.well()
    yield shared
    shared.proxy.heal()
