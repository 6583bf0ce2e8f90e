"""A laptop behind a real NAT and a server that cannot dial it: network namespaces of this test's own, real daemons.

    laptop 10.77.0.2 -- router (masquerade; drops what the outside begins) -- server 10.88.0.1

Needs root, `ip` and `nft`; tools/test names this test as left out without them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.harness import Instance
from tests.e2e.netns import PORT, Inside, namespaces, sh
from tests.waiting import eventually

SERVER, LAPTOP = "10.88.0.1", "10.77.0.2"
FAILURES = 4
"""So many degrade a pair; each takes a second, and the laptop, which dials every second, is in touch before."""
# What takes minutes in life takes seconds here.
CONFIG = f"""
[federation]
approval = "auto"
allow_http = true
poll_interval = "1s"
[limits]
connect_timeout_s = 1
errors_until_degraded = {FAILURES}
poll_backoff_max_s = 1
"""
NAT = """
table ip nat {
  chain out { type nat hook postrouting priority srcnat; oifname "wan" masquerade; }
}
table ip guard {
  chain through { type filter hook forward priority filter; iifname "wan" ct state new drop; }
}
"""


@dataclass
class Published(Inside):
    """An instance that listens on, and publishes, the address that the test gave it."""

    def command(self, *words: str) -> list[str]:
        """Run the daemon on the address that it tells its peers."""
        return super().command(*words, "--host", self.address, "--public-url", self.url.rstrip("/"))


@dataclass
class Networks:
    """The three namespaces."""

    laptop: str
    router: str
    server: str

    def open(self) -> None:
        """Let the outside begin connections to the laptop."""
        sh("ip", "netns", "exec", self.router, "nft", "delete", "table", "ip", "guard")


@pytest.fixture
def networks() -> Iterator[Networks]:
    """Make the namespaces, their wires and the NAT; take them away at the end."""
    with namespaces("laptop", "router", "server", tools=("ip", "nft")) as made:
        names = Networks(*made)
        _wire(names)
        yield names


def _wire(names: Networks) -> None:
    def ip(name: str, *words: str) -> None:
        sh("ip", "-n", name, *words)

    for end, inner, address, gateway in (
        (names.laptop, "lan", f"{LAPTOP}/24", "10.77.0.1"),
        (names.server, "wan", f"{SERVER}/24", "10.88.0.254"),
    ):
        ip(end, "link", "add", "eth0", "type", "veth", "peer", "name", inner, "netns", names.router)
        ip(names.router, "address", "add", f"{gateway}/24", "dev", inner)
        ip(names.router, "link", "set", inner, "up")
        ip(end, "address", "add", address, "dev", "eth0")
        for link in ("lo", "eth0"):
            ip(end, "link", "set", link, "up")
        ip(end, "route", "add", "default", "via", gateway)
    sh("ip", "netns", "exec", names.router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    sh("ip", "netns", "exec", names.router, "nft", "-f", "-", text=NAT)


@pytest.fixture
def sides(tmp_path: Path, networks: Networks) -> Iterator[tuple[Published, Published]]:
    """Return laptop and server, running."""
    made = []
    try:
        for name, namespace, address in (("laptop", networks.laptop, LAPTOP), ("server", networks.server, SERVER)):
            one = Published(name, tmp_path / name / "home", port=PORT, namespace=namespace, address=address)
            one.home.mkdir(parents=True, mode=0o700)
            made.append(one)
            one.configure(CONFIG)
            one.run("init", "--label", name)
            one.start()
        yield made[0], made[1]
    finally:
        for one in made:
            one.end()


def same(one: Instance, other: Instance) -> Callable[[], bool]:
    """Return what tells whether both hold the same records."""
    return lambda: one.holding() == other.holding()


def reach_of(instance: Instance, pair_id: str) -> str:
    """Return which way the pair runs, as the instance knows it."""
    return str(instance.pair(pair_id)["reach"])


def paired(laptop: Published, server: Published) -> str:
    """Pair from the laptop, by the page's command, and return the pair id."""
    laptop.run("federation", "pair", server.url)
    [pair] = laptop.pairs("active")
    return str(pair["pair_id"])


def test_a_server_that_cannot_dial_a_laptop_is_served_by_push(
    sides: tuple[Published, Published], networks: Networks
) -> None:
    """Handshake, first records, polling, restart, the way back when the wall falls; nothing is ever degraded."""
    laptop, server = sides
    laptop.emit("th_laptop", 3)
    server.emit("th_server", 3)
    pair_id = paired(laptop, server)
    eventually(same(laptop, server), "both hold everything right after the handshake")
    eventually(lambda: reach_of(server, pair_id) == "peer-pushes", "the server knows")
    eventually(lambda: reach_of(laptop, pair_id) == "we-push", "the laptop knows")
    assert "reach             pushes to the peer" in laptop.run("federation", "show", pair_id).out
    shown = server.run("federation", "show", pair_id).out
    assert "reach             served by push (peer opens the connections)" in shown
    laptop.emit("th_laptop", 2, more=True)
    server.emit("th_server", 2, more=True)
    eventually(same(laptop, server), "polls carry both directions")
    server.kill()
    laptop.emit("th_laptop", 2, missed=True)
    server.start()
    eventually(same(laptop, server), "a restarted server gets what it missed")
    states = [item["to"] for one in sides for item in one.pair(pair_id)["transitions"]]
    assert "degraded" not in [item["to"] for item in server.pair(pair_id)["transitions"]], states
    networks.open()
    eventually(lambda: reach_of(server, pair_id) == "both", "the server pulls by itself again")
    eventually(lambda: reach_of(laptop, pair_id) == "both", "the laptop pushes no more")
    laptop.emit("th_laptop", 2, last=True)
    eventually(same(laptop, server), "and both hold everything")
    assert {one.pair(pair_id)["state"] for one in sides} == {"active"}


@pytest.mark.parametrize("mode", ["on-demand", "continuous"])
def test_every_mode_carries_both_directions(sides: tuple[Published, Published], mode: str) -> None:
    """On demand a sync of the laptop does; in continuous mode nobody asks."""
    laptop, server = sides
    pair_id = paired(laptop, server)
    for one in sides:
        one.run("federation", "set-mode", pair_id, mode)
    laptop.emit("th_laptop", 3)
    server.emit("th_server", 3)
    if mode == "on-demand":
        # As many failures as degrade a pair, unless the laptop is in touch between them.
        for _ in range(FAILURES):
            refused = server.run("sync", pair_id, code=9)
            assert "error: " in refused.err
        laptop.run("sync", pair_id)
        assert same(laptop, server)()
    eventually(same(laptop, server), f"both directions, {mode}")
    eventually(lambda: server.pair(pair_id)["state"] == "active", "the server's pair is active")
