"""Both clients behind one face, so that one suite holds for both, and a server of canned bytes."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from spl.client import AsyncClient, Client
from tests.e2e.conftest import alice, make  # noqa: F401 (fixtures)
from tests.net.conftest import authority, issue, serve  # noqa: F401 (fixtures)


class Blocking:
    """An AsyncClient that is used like a Client: each call runs on one loop in a thread of its own."""

    def __init__(self, build: Callable[[], AsyncClient]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._client = self._run(self._made(build))

    async def _made(self, build: Callable[[], AsyncClient]) -> AsyncClient:
        return build()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **options: Any) -> Any:
            found = method(*args, **options)
            return self._each(found) if isinstance(found, AsyncIterator) else self._run(found)

        return call

    def _each(self, found: AsyncIterator[Any]) -> Iterator[Any]:
        try:
            while True:
                try:
                    yield self._run(anext(found))
                except StopAsyncIteration:
                    return
        finally:
            self._run(found.aclose())  # type: ignore[attr-defined]

    def close(self) -> None:
        self._run(self._client.close())

    def end(self) -> None:
        self.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


Make = Callable[..., Any]


@pytest.fixture(params=["Client", "AsyncClient"])
def client(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Return a maker of clients: of a home, or of a URL and what follows."""
    made: list[Any] = []

    def maker(*args: Any, home: Any = None, **options: Any) -> Any:
        kind = Client if request.param == "Client" else AsyncClient

        def build() -> Any:
            return kind.from_home(home, **options) if home else kind(*args, **options)

        found = build() if kind is Client else Blocking(build)
        made.append(found)
        return found

    yield maker
    for each in made:
        each.close() if isinstance(each, Client) else each.end()


class Canned:
    """A server that answers each connection with the next of some bytes, whatever it is asked, and then closes."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = list(answers)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.requests: list[bytes] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        for answer in self._answers:
            try:
                sock, _ = self._server.accept()
            except OSError:
                return
            with sock:
                data = b""
                while b"\r\n\r\n" not in data:
                    data += sock.recv(65536)
                self.requests.append(data)
                sock.sendall(answer)
                sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()


@pytest.fixture
def canned() -> Iterator[Callable[..., Canned]]:
    made: list[Canned] = []

    def maker(*answers: bytes) -> Canned:
        made.append(Canned(*answers))
        return made[-1]

    yield maker
    for each in made:
        each.close()


def whole(status: int, body: bytes, *headers: str) -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *headers])
    return head.encode() + b"\r\n\r\n" + body


def streamed(*events: tuple[str, str, str]) -> bytes:
    """Return an event stream that is cut after these events: name, id, data."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    return head + "".join(f"event: {n}\nid: {i}\ndata: {d}\n\n" for n, i, d in events).encode()
