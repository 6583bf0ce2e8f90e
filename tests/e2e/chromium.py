"""A real Chromium, driven by its own protocol over a pair of pipes: no driver, no port, no library."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

from tests.waiting import DEADLINE_S, eventually

BROWSER: Final = shutil.which("chromium")
FLAGS: Final = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-extensions", "--remote-debugging-pipe",
)  # fmt: skip


class Chromium:
    """One browser process; requests are answered in any order, events are kept by the session that they belong to."""

    def __init__(self, profile: Path) -> None:
        assert BROWSER is not None
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()

        # The shell gives the pipes the numbers that the browser expects.
        command = ["/bin/bash", "-c", f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}', BROWSER, *FLAGS]
        self.process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}", "about:blank"], pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._number = 0
        self._answers: dict[int, SimpleQueue[dict[str, Any]]] = {}
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ask(self, method: str, session: str = "", **parameters: object) -> dict[str, Any]:
        """Return what a method answers."""
        self._number += 1
        number, answers = self._number, SimpleQueue[dict[str, Any]]()
        self._answers[number] = answers
        asked = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        os.write(self._out, json.dumps(asked).encode() + b"\0")
        answer = answers.get(timeout=DEADLINE_S)
        assert "error" not in answer, f"{method}: {answer['error']}"
        return dict(answer["result"])

    def tab(self, **context: object) -> "Tab":
        """Return a new tab, in a context of its own unless one is given."""
        context = context or {"browserContextId": self.context()}
        target = self.ask("Target.createTarget", url="about:blank", **context)["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Tab(self, session, target, str(context["browserContextId"]))

    def context(self) -> str:
        """Return a new context: cookies and locks of its own."""
        return str(self.ask("Target.createBrowserContext")["browserContextId"])

    def close(self) -> None:
        """End the browser."""
        with contextlib.suppress(OSError):
            os.write(self._out, b'{"id":0,"method":"Browser.close"}\0')
        try:
            self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._out)
        self._reader.join(DEADLINE_S)
        os.close(self._in)

    def _read(self) -> None:
        rest = b""
        while piece := os.read(self._in, 1 << 20):
            *whole, rest = (rest + piece).split(b"\0")
            for text in whole:
                message = json.loads(text)
                if "id" in message:
                    if message["id"] in self._answers:
                        self._answers.pop(message["id"]).put(message)
                else:
                    self.events.append((message.get("sessionId", ""), message["method"], message.get("params", {})))


class Tab:
    """One page of the browser."""

    def __init__(self, browser: Chromium, session: str, target: str, context: str) -> None:
        self.browser, self.session, self.target, self.context = browser, session, target, context
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: object) -> dict[str, Any]:
        """Return what a method answers for this page."""
        return self.browser.ask(method, self.session, **parameters)

    def go(self, url: str) -> None:
        """Show a URL, and return when it is loaded."""
        before = len(self.events("Page.loadEventFired"))
        self.ask("Page.navigate", url=url)
        eventually(lambda: len(self.events("Page.loadEventFired")) > before, f"{url} is loaded")

    def js(self, expression: str) -> Any:
        """Return the value of an expression, awaited."""
        found = self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression holds."""
        eventually(lambda: self.holds(expression), expression)

    def holds(self, expression: str) -> bool:
        """Return whether an expression holds; it does not while the page is on its way to another."""
        try:
            return bool(self.js(expression))
        except AssertionError:
            return False

    def text(self) -> str:
        """Return the page's text as it is shown."""
        return str(self.js("document.body.innerText"))

    def events(self, method: str) -> list[dict[str, Any]]:
        """Return the events of a kind so far."""
        return [
            params for session, name, params in list(self.browser.events) if (session, name) == (self.session, method)
        ]

    def complaints(self) -> list[str]:
        """Return what the browser's console says against the page, breaches of its policy among it."""
        logged = [params["entry"]["text"] for params in self.events("Log.entryAdded")]
        return logged + [str(params["exceptionDetails"]) for params in self.events("Runtime.exceptionThrown")]

    def size(self, width: int, height: int = 900) -> None:
        """Give the window a size in CSS pixels."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def colours(self, scheme: str) -> None:
        """Prefer "light" or "dark"."""
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def without_script(self) -> None:
        """Run no script of pages from now on."""
        self.ask("Emulation.setScriptExecutionDisabled", value=True)

    def picture(self, path: Path) -> None:
        """Write the whole page as PNG."""
        data = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        """Close the tab."""
        self.browser.ask("Target.closeTarget", targetId=self.target)


@contextlib.contextmanager
def browsing(profile: Path) -> Iterator[Chromium]:
    """Run a browser."""
    browser = Chromium(profile)
    try:
        yield browser
    finally:
        browser.close()
