"""A web page in a real browser watches a thread with EventSource, where the operator allowed its origin."""

import contextlib
import http.server
import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import DEADLINE_S

from .harness import Instance

THREAD = "th_page"
BROWSER = shutil.which("chromium")
PAGE = """<!doctype html><title>garden</title><script>
const told = (what) => fetch("/told", {method: "POST", body: JSON.stringify(what)});
const source = new EventSource(%s);
source.addEventListener("heartbeat", () => told({event: "heartbeat"}));
source.addEventListener("record.created", (event) =>
  told({event: "record", place: event.lastEventId, id: JSON.parse(event.data).id}));
source.onerror = () => told({event: "error", state: source.readyState});
</script>"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")


class Site:
    """A page on an origin of its own, and what it tells."""

    def __init__(self, source: str) -> None:
        told: queue.Queue[dict[str, Any]] = queue.Queue()
        page = (PAGE % json.dumps(source)).encode()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(page if self.path == "/" else b"")

            def do_POST(self) -> None:
                told.put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                self._answer(b"")

            def _answer(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("content-type", "text/html")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self.told = told
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.origin = f"http://localhost:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def next(self, event: str) -> dict[str, Any]:
        """Return the next thing of that kind that the page tells."""
        while (found := self.told.get(timeout=DEADLINE_S))["event"] != event:
            pass
        return found

    def close(self) -> None:
        """End the site."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextlib.contextmanager
def visiting(site: Site, profile: Path) -> Iterator[None]:
    """Have a browser without a window show the site."""
    assert BROWSER is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command = [BROWSER, *flags, f"--user-data-dir={profile}", "--remote-debugging-port=0", site.origin]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
        try:
            yield
        finally:
            browser.terminate()
            browser.wait(DEADLINE_S)


def test_a_page_of_an_allowed_origin_watches_and_comes_back(make: Callable[..., Instance], tmp_path: Path) -> None:
    """Records arrive with their ids; after a restart of the daemon the page gets what it missed, and nothing twice."""
    alice = make("alice")
    site = Site(f"http://localhost:{alice.port}/v1/threads/{THREAD}/watch")
    try:
        alice.configure(f'http.allowed_origins = ["{site.origin}"]').start("--insecure-localhost")
        with visiting(site, tmp_path):
            site.next("heartbeat")
            [first] = alice.emit(THREAD, 1)
            seen = site.next("record")
            assert seen["id"] == first
            assert seen["place"].isdigit()
            alice.stop()
            site.next("error")
            alice.start("--insecure-localhost")
            sent = alice.emit(THREAD, 3)
            got = [site.next("record") for _ in sent]
            # The page tells each by a request of its own, so only the places say in which order they came.
            assert [each["id"] for each in sorted(got, key=lambda each: int(each["place"]))] == sent
    finally:
        site.close()


def test_a_page_of_another_origin_sees_nothing(make: Callable[..., Instance], tmp_path: Path) -> None:
    """The browser keeps the answer from a page whose origin nobody allowed."""
    alice = make("alice")
    site = Site(f"http://localhost:{alice.port}/v1/threads/{THREAD}/watch?since_clock=0")
    try:
        alice.configure('http.allowed_origins = ["http://localhost:1"]').start("--insecure-localhost")
        alice.emit(THREAD, 2)
        with visiting(site, tmp_path):
            assert site.told.get(timeout=DEADLINE_S) == {"event": "error", "state": 2}
    finally:
        site.close()
