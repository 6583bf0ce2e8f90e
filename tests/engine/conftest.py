"""A node, and one real server that the tests of a file share: each node has a DID of its own, and so a stream."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.engine.servers import OLD, NatsServer, binary
from tests.nodes import Network, Node

NUMBERS = count()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(f"hub-{next(NUMBERS)}", tmp_path / "home", Network())
    made.share("music", "other")
    yield made
    made.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    made = NatsServer(tmp_path_factory.mktemp("nats")).start()
    yield made
    made.end()


@pytest.fixture(scope="session")
def old_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    made = NatsServer(tmp_path_factory.mktemp("nats29"), binary(OLD)).start()
    yield made
    made.end()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server that the test may stop."""
    made = NatsServer(tmp_path / "nats").start()
    yield made
    made.end()
