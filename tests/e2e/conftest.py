"""Instances as fixtures; whatever still runs at the end of a test is ended."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Instance

Make = Callable[..., Instance]
AUTO = '[federation]\napproval = "auto"\n'


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Return a maker of instances: a name, optionally a configuration, identity and token unless `bare`."""
    made: list[Instance] = []

    def maker(name: str, config: str = "", *, bare: bool = False, **env: str) -> Instance:
        instance = Instance(name, tmp_path / name / "home", env)
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
    *_, last = alice.steps(bob.url)
    assert last["step"] == "active", last
    return str(last["pair_id"])
