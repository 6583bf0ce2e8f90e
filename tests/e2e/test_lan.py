"""Two laptops on one network, without names and TLS, by the lines of the first page: network namespaces, real daemons.

    alice 192.168.1.10 ---- cable ---- bob 192.168.1.20

Needs root and `ip`; tools/test names this test as left out without them.
"""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.netns import PORT, Inside, namespaces, sh
from tests.pages import README, blocks
from tests.waiting import DEADLINE_S, eventually

RETRIED_S = 3 * DEADLINE_S
"""On a slow machine many attempts failed before, and the next one comes up to a minute later."""
ADDRESSES = {"alice": "192.168.1.10", "bob": "192.168.1.20"}


@dataclass
class Laptop(Inside):
    """An instance whose daemon is started by exactly the words of the page."""

    words: tuple[str, ...] = ()

    def command(self, *words: str) -> list[str]:
        """Run the daemon as the page says."""
        return super().command(*self.words)


def lines_of(name: str) -> list[list[str]]:
    """Return the words of each command that the page has for this operator on a network, without `spl`."""
    text = next(block for block in blocks(README) if "--lan" in block)
    return [line.split() for line in re.findall(rf"^{name}[$] spl (.*?)(?:  +#.*)?$", text, re.MULTILINE)]


@pytest.fixture(params=["a cable", "a router"])
def laptops(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Laptop]]:
    """Return both by name, as their operators made them and not yet running; with and without a default route."""
    made = {}
    with namespaces(*ADDRESSES) as (alice, bob):
        sh("ip", "-n", alice, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", bob)
        for (name, address), space in zip(ADDRESSES.items(), (alice, bob), strict=True):
            sh("ip", "-n", space, "address", "add", f"{address}/24", "dev", "eth0")
            for link in ("lo", "eth0"):
                sh("ip", "-n", space, "link", "set", link, "up")
            if request.param == "a router":
                sh("ip", "-n", space, "route", "add", "default", "via", "192.168.1.1")
            home = tmp_path / name / "home"
            home.mkdir(parents=True, mode=0o700)
            made[name] = Laptop(name, home, port=PORT, namespace=space, address=address)
        try:
            yield made
        finally:
            for laptop in made.values():
                laptop.end()


def test_two_laptops_pair_by_the_lines_of_the_page(laptops: dict[str, Laptop]) -> None:
    """Two commands each after `init`; then records go both ways, and each side can dial the other."""
    alice, bob = laptops["alice"], laptops["bob"]
    for name, laptop in laptops.items():
        init, serve, *_ = lines_of(name)
        assert serve == ["serve", "--lan"]
        laptop.run(*init)
        laptop.words = tuple(serve)
        laptop.start()
        told = laptop.output()
        assert f"! open to the network: port {PORT} of every address" in told
        assert f"on the other machine: spl federation pair http://{ADDRESSES[name]}:{PORT}/" in told
    [pair], [approve] = lines_of("alice")[2:], lines_of("bob")[2:]
    with ThreadPoolExecutor(1) as terminal:
        asked = terminal.submit(alice.run, *pair)
        eventually(lambda: bob.data("aitl", "list"), "the request is there")
        bob.run(*approve)
        assert "Pair active." in asked.result(DEADLINE_S).out
    alice.emit("th_alice")
    bob.emit("th_bob")
    alice.run("sync", "bob")
    bob.run("sync", "alice")
    assert alice.holding() == bob.holding()
    assert [pair["reach"] for one in laptops.values() for pair in one.pairs("active")] == ["both", "both"]


def test_no_step_of_those_who_skip_the_page_is_a_dead_end(laptops: dict[str, Laptop]) -> None:
    """A refusal names --lan; and a request to a wrongly published address follows once that is corrected."""
    alice, bob = laptops["alice"], laptops["bob"]
    [pair] = lines_of("alice")[2:]
    for laptop in (alice, bob):
        laptop.run("init", "--label", laptop.name)
    bob.words = ("serve", "--host", "0.0.0.0", "--public-url", "http://192.168.1.99:9100")
    bob.start()
    alice.words = ("serve",)
    alice.start()
    refused = alice.run(*pair, code=10)
    assert "[http-plain]" in refused.err
    assert "spl serve --lan" in refused.err
    alice.stop()
    alice.words = ("serve", "--lan")
    alice.start()
    failed = alice.run(*pair, "--wait", "0s", code=None)
    assert failed.code != 0
    [asked] = alice.pairs("establishing")
    bob.stop()
    bob.words = ("serve", "--lan")
    bob.start()
    eventually(lambda: bob.data("aitl", "list"), "the request came to the corrected address", RETRIED_S)
    bob.run("aitl", "approve", "alice")
    eventually(lambda: alice.pairs("active"), "the pair is active", RETRIED_S)
    assert alice.pairs("active")[0]["pair_id"] == asked["pair_id"]
