"""The client against real servers, friendly and hostile: judged addresses, verified chains, bounded answers."""

import asyncio
import contextlib
import ssl
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trustme

from spl.core.limits import Limits
from spl.net.address import ReachError
from spl.net.client import HttpClient
from spl.net.deflate import Deflater
from spl.net.dialer import DialPolicy
from spl.net.sockets import Verifying, client_trust
from spl.net.sse import IDLE_BYTES_MAX, encode_event
from tests.waiting import DEADLINE_S, turns, until

LOCAL = DialPolicy(allow_private=True)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"


class Script:
    """A server that answers the nth request with the nth item, and shows what it was asked.

    An item is bytes to send; None to close without an answer.  After the last one
    it answers nothing more and waits.
    """

    def __init__(self, answers: list[bytes | None], close: bool) -> None:
        self.answers = answers
        self.close = close
        self.asked: list[bytes] = []
        self.connections = 0
        self.ended = asyncio.Event()
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                self.asked.append(await reader.readuntil(b"\r\n\r\n"))
                answer = self.answers.pop(0) if self.answers else b""
                if answer is None:
                    return
                writer.write(answer)
                await writer.drain()
                if self.close:
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self.ended.set()


@asynccontextmanager
async def script(
    *answers: bytes | None, close: bool = False, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Script]:
    served = Script(list(answers), close)
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0, ssl=tls)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def client(
    limits: Limits | None = None,
    *,
    tls: Verifying | None = None,
    names: dict[str, list[str]] | None = None,
) -> AsyncIterator[HttpClient]:
    """Give a client; `names` takes the place of the resolver."""

    async def resolve(host: str, port: int) -> list[str]:
        assert names is not None
        if host not in names:
            raise OSError(-2, "Name or service not known")
        return names[host]

    made = HttpClient(limits or Limits(), tls=tls, resolve=resolve if names is not None else None)
    try:
        yield made
    finally:
        await made.close()


async def code_of(made: HttpClient, url: str, method: str = "GET", dial: DialPolicy = LOCAL, **more: object):
    with pytest.raises(ReachError) as caught:
        await made.fetch(method, url, dial=dial, **more)
    return caught.value


async def test_a_request_and_its_answer(serve) -> None:
    async with serve() as server, client() as made:
        reply = await made.fetch(
            "POST",
            f"http://127.0.0.1:{server.port}/echo",
            headers=[("content-type", "application/json")],
            body=b"{}",
            dial=LOCAL,
        )
        assert (reply.status, reply.body, reply.address) == (200, b"{}", "127.0.0.1")
        [request] = server.app.seen
        assert request.headers["host"] == f"127.0.0.1:{server.port}"
        refused = await made.fetch("GET", f"http://127.0.0.1:{server.port}/nowhere", dial=LOCAL)
        assert refused.status == 404


async def test_a_name_is_looked_up_and_the_found_address_dialled(serve) -> None:
    async with serve() as server, client() as made:
        reply = await made.fetch("GET", f"http://localhost:{server.port}/here/a", dial=LOCAL)
        assert reply.address == "127.0.0.1"
        [request] = server.app.seen
        assert request.headers["host"] == f"localhost:{server.port}"


async def test_one_connection_is_kept_for_each_origin() -> None:
    async with script(OK, OK, OK) as server, client() as made:
        for _ in range(3):
            await made.fetch("GET", f"http://127.0.0.1:{server.port}/", dial=LOCAL)
        assert server.connections == 1


async def test_a_kept_connection_is_not_shared_between_policies() -> None:
    async with script(OK, OK) as server, client() as made:
        url = f"http://127.0.0.1:{server.port}/"
        await made.fetch("GET", url, dial=LOCAL)
        assert (await code_of(made, url, dial=DialPolicy())).code == "address-refused"


async def test_requests_at_once_have_connections_of_their_own() -> None:
    async with script(OK, OK) as server, client() as made, asyncio.TaskGroup() as tasks:
        for _ in range(2):
            tasks.create_task(made.fetch("GET", f"http://127.0.0.1:{server.port}/", dial=LOCAL))
    assert server.connections == 2


async def test_an_idle_connection_is_closed_in_time() -> None:
    async with script(OK) as server, client(Limits(pool_idle_s=0.05)) as made:
        await made.fetch("GET", f"http://127.0.0.1:{server.port}/", dial=LOCAL)
        async with asyncio.timeout(DEADLINE_S):
            await server.ended.wait()


@pytest.mark.parametrize("late", [b"", b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"])
async def test_a_connection_that_ended_or_spoke_while_idle_is_not_used(late: bytes) -> None:
    async with script(OK + late, OK, close=not late) as server, client() as made:
        for _ in range(2):
            assert (await made.fetch("POST", f"http://127.0.0.1:{server.port}/", dial=LOCAL)).status == 200
            if not late:
                await server.ended.wait()
        assert server.connections == 2


@pytest.mark.parametrize(
    ("method", "retry_safe", "again"), [("GET", False, True), ("POST", False, False), ("POST", True, True)]
)
async def test_a_kept_connection_that_dies_is_replaced_once(method: str, retry_safe: bool, again: bool) -> None:
    async with script(OK, None, OK) as server, client() as made:
        url = f"http://127.0.0.1:{server.port}/"
        await made.fetch("GET", url, dial=LOCAL)
        if again:
            assert (await made.fetch(method, url, dial=LOCAL, retry_safe=retry_safe)).body == b"ok"
            assert len(server.asked) == 3
        else:
            assert (await code_of(made, url, method)).code == "disconnected"
            assert len(server.asked) == 2


async def test_a_fresh_connection_that_dies_is_not_retried() -> None:
    async with script(None, OK) as server, client() as made:
        assert (await code_of(made, f"http://127.0.0.1:{server.port}/")).code == "disconnected"
        assert len(server.asked) == 1


def close_after(head: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (close_after(b"Content-Length: 101", b"x" * 101), "answer-malformed"),
        (close_after(b"Transfer-Encoding: chunked", b"65\r\n" + b"x" * 101), "answer-malformed"),
        (close_after(b"Connection: close", b"x" * 101), "answer-malformed"),
        (close_after(b"Content-Length: 5", b"x"), "disconnected"),
        (close_after(b"Transfer-Encoding: chunked", b"5\r\nx"), "disconnected"),
        (close_after(b"Content-Encoding: gzip\r\nContent-Length: 1", b"x"), "answer-malformed"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000, "answer-malformed"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "answer-malformed"),
        (b"HTTP/1.1 200", "disconnected"),
        (b"", "disconnected"),
    ],
)
async def test_bad_answers(answer: bytes, code: str) -> None:
    async with script(answer, close=True) as server, client() as made:
        assert (await code_of(made, f"http://127.0.0.1:{server.port}/", answer_bytes=100)).code == code


async def test_an_answer_that_ends_with_the_connection() -> None:
    async with script(close_after(b"A: b", b"x" * 100), close=True) as server, client() as made:
        reply = await made.fetch("GET", f"http://127.0.0.1:{server.port}/", dial=LOCAL, answer_bytes=100)
        assert len(reply.body) == 100


async def test_silence_is_a_timeout() -> None:
    async with script(b"HTTP/1.1 200 OK\r\n") as server, client() as made:
        url = f"http://127.0.0.1:{server.port}/"
        assert (await code_of(made, url, timeout_s=0.05)).code == "timeout"
        async with asyncio.timeout(DEADLINE_S):
            await server.ended.wait()


async def test_a_refusal_before_the_body_is_read_is_seen(serve) -> None:
    async with serve() as server, client() as made:
        url = f"http://127.0.0.1:{server.port}/echo"
        assert (await made.fetch("POST", url, body=bytes(4_000_000), dial=LOCAL)).status == 413


async def test_a_cancelled_request_leaves_no_connection() -> None:
    async with script(b"HTTP/1.1 200 OK\r\n") as server, client() as made:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(made.fetch("GET", f"http://127.0.0.1:{server.port}/", dial=LOCAL))
            await until(lambda: server.asked)
            task.cancel()
        async with asyncio.timeout(DEADLINE_S):
            await server.ended.wait()


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_a_request_cancelled_as_it_takes_a_kept_connection_ends_it(count: int) -> None:
    async with script(OK, None) as server, client() as made:
        url = f"http://127.0.0.1:{server.port}/"
        await made.fetch("GET", url, dial=LOCAL)
        second = asyncio.create_task(made.fetch("GET", url, dial=LOCAL))
        await turns(count)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        async with asyncio.timeout(DEADLINE_S):
            await server.ended.wait()


def to(location: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


async def test_redirects_within_the_origin() -> None:
    async with script(to("/b"), to("c?d#e"), OK) as server, client() as made:
        assert (await made.fetch("GET", f"http://127.0.0.1:{server.port}/a/", dial=LOCAL)).body == b"ok"
        assert [asked.split(b" ")[1] for asked in server.asked] == [b"/a/", b"/b", b"/c?d"]


@pytest.mark.parametrize(
    "location", ["http://localhost:1/", "//evil.example/", "https://127.0.0.1/", "ftp://x/", "", "http://[::1"]
)
async def test_redirects_elsewhere_are_refused(location: str) -> None:
    async with script(to(location)) as server, client() as made:
        assert (await code_of(made, f"http://127.0.0.1:{server.port}/")).code == "redirect"
        assert len(server.asked) == 1


async def test_redirects_are_counted_and_only_for_get() -> None:
    async with script(*[to("/")] * 9) as server, client() as made:
        url = f"http://127.0.0.1:{server.port}/"
        assert (await code_of(made, url)).code == "redirect"
        assert len(server.asked) == Limits().redirects_count + 1
        assert (await made.fetch("POST", url, dial=LOCAL)).status == 302


@pytest.mark.parametrize(
    ("address", "dial", "code"),
    [
        ("169.254.169.254", DialPolicy(True, True), "address-refused"),
        ("::ffff:169.254.169.254", DialPolicy(True, True), "address-refused"),
        ("10.0.0.1", DialPolicy(False, True), "address-refused"),
        ("127.0.0.1", DialPolicy(False, True), "address-refused"),
        ("8.8.8.8", DialPolicy(True, False), "http-plain"),
        ("10.0.0.1", DialPolicy(True, False), "http-plain"),
    ],
)
async def test_a_name_is_judged_by_its_addresses(address: str, dial: DialPolicy, code: str) -> None:
    async with client(names={"peer.example": [address]}) as made:
        assert (await code_of(made, "http://peer.example/", dial=dial)).code == code


async def test_a_name_that_looks_local_is_judged_by_its_address() -> None:
    async with client(names={"localhost": ["8.8.8.8"]}) as made:
        assert (await code_of(made, "http://localhost/")).code == "http-plain"


async def test_allowed_addresses_are_tried_in_order() -> None:
    async with script(OK) as server, client(names={"peer": ["169.254.1.1", "127.0.0.77", "127.0.0.1"]}) as made:
        reply = await made.fetch("GET", f"http://peer:{server.port}/", dial=LOCAL)
        assert reply.address == "127.0.0.1"


async def test_a_name_is_resolved_once_for_a_connection() -> None:
    """A second lookup could answer with another address than the one judged."""
    looked_up: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        looked_up.append(host)
        return ["127.0.0.1"] if len(looked_up) == 1 else ["169.254.169.254"]

    async with script(OK) as server:
        made = HttpClient(Limits(), tls=None, resolve=resolve)
        assert (await made.fetch("GET", f"http://peer:{server.port}/", dial=LOCAL)).body == b"ok"
        await made.close()
    assert looked_up == ["peer"]


async def test_dns_and_connect_failures() -> None:
    async with client(names={"nowhere.example": []}) as made:
        assert (await code_of(made, "http://unknown.example/")).code == "dns"
        assert (await code_of(made, "http://nowhere.example/")).code == "dns"
    async with script() as server:
        port = server.port
    async with client() as made:
        refused = await code_of(made, f"http://127.0.0.1:{port}/")
        assert refused.code == "connect"
        assert "refused" in refused.message.lower()
        assert (await code_of(made, "http://256.256.256.256/", timeout_s=5)).code in ("dns", "timeout")
        assert (await code_of(made, "http://127.0.0.1:99999/")).code == "url-invalid"


async def test_a_lookup_that_hangs_is_a_timeout() -> None:
    async def resolve(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    made = HttpClient(Limits(connect_timeout_s=0.05), tls=None, resolve=resolve)
    assert (await code_of(made, "http://peer/")).code == "timeout"
    await made.close()


async def test_a_private_ca_is_accepted_and_the_host_name_checked(authority) -> None:
    async with script(OK, OK, tls=authority.server) as server, client(tls=client_trust(authority.ca_file)) as made:
        assert (await made.fetch("GET", f"https://localhost:{server.port}/", dial=LOCAL)).body == b"ok"
        assert (await made.fetch("GET", f"https://127.0.0.1:{server.port}/", dial=LOCAL)).body == b"ok"
        names = {"other.example": ["127.0.0.1"]}
        async with client(tls=client_trust(authority.ca_file), names=names) as other:
            refused = await code_of(other, f"https://other.example:{server.port}/")
            assert refused.code == "tls-chain"
            assert "mismatch" in refused.message.lower()


async def test_an_unknown_chain_is_refused_with_its_reason(authority) -> None:
    async with script(OK, tls=authority.server) as server, client(tls=client_trust(None)) as made:
        refused = await code_of(made, f"https://localhost:{server.port}/")
        assert refused.code == "tls-chain"
        assert "unable to get local issuer certificate" in refused.message or "self-signed" in refused.message
        assert server.asked == []


async def test_a_self_signed_certificate_is_refused_with_the_reason(tmp_path) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "cert.pem")
    ca.private_key_pem.write_to_path(tmp_path / "key.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    async with script(OK, tls=context) as server, client(tls=client_trust(None)) as made:
        refused = await code_of(made, f"https://localhost:{server.port}/")
        assert refused.code == "tls-chain"
        assert "self-signed certificate" in refused.message


async def test_https_to_a_port_that_speaks_no_tls() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    async with server, client(tls=client_trust(None)) as made:
        refused = await code_of(made, f"https://localhost:{server.sockets[0].getsockname()[1]}/")
        assert refused.code == "tls-chain"
        assert "wrong version number" in refused.message
    async with client() as made:
        assert (await code_of(made, "https://127.0.0.1/")).code == "tls-chain"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def test_a_stream_gives_events_until_it_ends() -> None:
    events = encode_event("a", b"1", "x") + encode_event("b", b"2")
    async with script(SSE + chunk(events[:20]) + chunk(events[20:]) + b"0\r\n\r\n") as server, client() as made:
        url = f"http://127.0.0.1:{server.port}/"
        async with made.stream(url, headers=[("last-event-id", "w")], dial=LOCAL) as stream:
            assert (stream.status, stream.address) == (200, "127.0.0.1")
            assert [(event.name, event.data, event.id) async for event in stream] == [("a", b"1", "x"), ("b", b"2", "")]
        [asked] = server.asked
        assert b"last-event-id: w\r\n" in asked
        assert b"accept: text/event-stream\r\n" in asked


async def test_a_coded_stream_gives_its_events_at_once() -> None:
    coder = Deflater(lambda: 0.0)
    parts = [coder.feed(encode_event("a", b"1", "x")), coder.feed(encode_event("b", b"2")), coder.finish()]
    head = SSE.replace(b"\r\n\r\n", b"\r\ncontent-encoding: deflate\r\n\r\n")
    async with script(head + b"".join(map(chunk, parts)) + b"0\r\n\r\n") as server, client() as made:
        async with made.stream(f"http://127.0.0.1:{server.port}/", dial=LOCAL) as stream:
            assert [(event.name, event.data) async for event in stream] == [("a", b"1"), ("b", b"2")]
        [asked] = server.asked
        assert asked.count(b"accept-encoding: ") == 1
        assert b"accept-encoding: deflate\r\n" in asked


@pytest.mark.parametrize("flood", [b"data:\n\n", b": a comment\n", b"\n"], ids=["events", "comments", "blank"])
async def test_what_one_read_inflates_to_leaves_other_tasks_their_turns(flood: bytes) -> None:
    """A bomb arrives whole in one read: what is between its first and its last event is parsed a little at a time."""
    bomb = zlib.compress(b"data: a\n\n" + flood * ((IDLE_BYTES_MAX - 100) // len(flood)) + b"data: z\n\n")
    head = SSE.replace(b"\r\n\r\n", b"\r\ncontent-encoding: deflate\r\n\r\n")
    async with (
        script(head + chunk(bomb) + b"0\r\n\r\n") as server,
        client() as made,
        made.stream(f"http://127.0.0.1:{server.port}/", dial=LOCAL) as stream,
    ):
        assert (await anext(stream)).data == b"a"
        other = asyncio.create_task(turns(2))
        while (await anext(stream)).data != b"z":
            pass
        assert other.done()


async def drain(made: HttpClient, port: int) -> ReachError:
    async def read() -> None:
        async with made.stream(f"http://127.0.0.1:{port}/", dial=LOCAL) as stream:
            async for _ in stream:
                pass

    with pytest.raises(ReachError) as caught:
        await read()
    return caught.value


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (SSE + chunk(b"data: x\n\n") + b"5\r\nda", "disconnected"),
        (SSE + chunk(b"data: " + b"x" * 200), "answer-malformed"),
        (SSE + b"zz\r\n", "answer-malformed"),
        (
            SSE.replace(b"\r\n\r\n", b"\r\ncontent-encoding: deflate\r\n\r\n") + chunk(b"data: x\n\n"),
            "answer-malformed",
        ),
        (SSE.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n"), "answer-malformed"),
        (OK, "answer-malformed"),
        (to("/b"), "redirect"),
        (b"", "disconnected"),
    ],
)
async def test_bad_streams(answer: bytes, code: str) -> None:
    async with script(answer, close=True) as server, client(Limits(event_bytes=100)) as made:
        assert (await drain(made, server.port)).code == code


@pytest.mark.parametrize(("status", "code"), [(401, "peer-4xx"), (503, "peer-5xx"), (204, "answer-malformed")])
async def test_a_refused_stream_shows_the_peers_answer(status: int, code: str) -> None:
    body = b"" if status == 204 else b'{"code":"X"}'
    async with (
        script(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)) as server,
        client() as made,
    ):
        refused = await drain(made, server.port)
        assert (refused.code, refused.peer_status, refused.peer_body) == (code, status, body)


async def test_a_silent_stream_is_dead() -> None:
    async with script(SSE) as server, client(Limits(stream_silence_s=0.05)) as made:
        assert (await drain(made, server.port)).code == "timeout"


async def test_leaving_a_stream_ends_its_connection(serve) -> None:
    async with serve() as server, client() as made:
        async with made.stream(f"http://127.0.0.1:{server.port}/stream", dial=LOCAL):
            await server.app.started.wait()
        async with asyncio.timeout(DEADLINE_S):
            await server.app.closed.wait()


async def test_a_header_value_cannot_forge_another() -> None:
    async with script(OK) as server, client() as made:
        refused = await code_of(made, f"http://127.0.0.1:{server.port}/", headers=[("x", "a\r\nb: c")])
        assert refused.code == "url-invalid"
        assert server.asked == []
