"""Links that carry little: a proxy that bounds what it passes on, and a line that is slow for what it carries."""

import socket
import threading
import time
from contextlib import suppress

from tests.e2e.conftest import AUTO, Make
from tests.e2e.findings import attention, finds, named, seen
from tests.e2e.harness import free_port
from tests.e2e.proxy import Proxy
from tests.waiting import eventually

HASTY = """poll_interval = "1s"
[limits]
connect_timeout_s = 1
errors_until_degraded = 4
poll_backoff_max_s = 1
"""


class SlowLine:
    """A relay that passes answers on at a rate, and holds no more than it must."""

    def __init__(self, target_port: int, bytes_s: int) -> None:
        self.target_port, self.bytes_s = target_port, bytes_s
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Relay one connection both ways until it ends."""
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", self.target_port)) as target:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
            there = threading.Thread(target=self._relay, args=(client, target, 0), daemon=True)
            there.start()
            self._relay(target, client, self.bytes_s)
            there.join()

    def _relay(self, source: socket.socket, sink: socket.socket, bytes_s: int) -> None:
        with suppress(OSError):
            while data := source.recv(8192):
                sink.sendall(data)
                if bytes_s:
                    time.sleep(len(data) / bytes_s)  # this is the line, not a wait
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def test_a_record_that_takes_longer_than_an_answer_may_be_silent(make: Make) -> None:
    """900 kB at 200 kB/s, where two seconds without a byte are too long: it arrives, and so does what is behind it."""
    port = free_port()
    bob = make("bob", AUTO)
    bob.port, bob.published = port, False
    line = SlowLine(port, 200_000)
    bob.start("--public-url", line.url)
    alice = make("alice", "[federation]\n" + HASTY + "answer_timeout_s = 2\n").start()
    alice.paired(line.url + "/")
    bob.emit("th_large", 1, pad="x" * 900_000)
    bob.emit("th_later", 3)
    eventually(lambda: len(alice.records("th_later")) == 3, "what is behind it arrives")
    assert len(alice.records("th_large")) == 1
    line.listener.close()


@finds("records-withheld")
def test_a_proxy_that_bounds_what_it_passes_on(make: Make) -> None:
    """We push to bob through a proxy that takes 1 MiB: one record waits, named, and arrives later."""
    port = free_port()
    bob = make("bob", AUTO + HASTY)
    bob.port, bob.published = port, False
    proxy = Proxy(port)
    bob.start("--public-url", proxy.url)
    config = f'public_url = "http://127.0.0.1:{free_port()}"\n[federation]\n{HASTY}'
    alice = make("alice", config).start()
    pair_id = alice.paired(proxy.url)
    eventually(lambda: alice.pair(pair_id)["reach"] == "we-push", "bob cannot dial alice")
    proxy.body_max = 1 << 20
    large = alice.emit("th_large", 1, pad="x" * ((1 << 20) - 500))
    alice.emit("th_later", 3)
    eventually(lambda: len(bob.records("th_later")) == 3, "what is behind it arrives")
    found = seen(alice, "records-withheld", pair_id)
    assert large[0] in found["title"]
    assert "client_max_body_size" in found["fix"]
    page = alice.run("federation", "show", pair_id).out
    assert large[0] in page
    assert ", caught up\n" not in page
    proxy.heal()
    alice.run("federation", "verify", pair_id, "--repair")
    eventually(lambda: len(bob.records("th_large")) == 1, "it arrives once the proxy passes it on")
    eventually(lambda: not named(attention(alice), "records-withheld"), "nothing is withheld")
    proxy.end()
