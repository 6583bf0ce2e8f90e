"""One connection over real sockets: every limit answers with its code, and it serves on afterwards."""

import asyncio
import contextlib
import json
import logging
import socket
import struct
from unittest.mock import Mock

import pytest

from spl.core.errors import SplError
from spl.core.limits import Limits
from spl.net.connection import READ_AHEAD_BYTES, Connection
from spl.net.http1 import RequestParser
from spl.net.phases import Stage
from tests.waiting import DEADLINE_S, until

GET = b"GET /here/a%2Fb?x=1 HTTP/1.1\r\nHost: x\r\n\r\n"
CLOSE = b"GET /here/last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
TINY = Limits(
    head_timeout_s=0.3, body_timeout_s=0.3, idle_timeout_s=0.3, write_stall_timeout_s=0.3, linger_s=0.1, shutdown_s=0.2
)
"""A tenth of a second would not do: so long a busy machine lets the loop wait before it reads what was sent."""

RECEIVE_BYTES = 256 * 1024  # what a loop hands over in one piece, at most


def post(path: bytes, body: bytes, more: bytes = b"") -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%b\r\n%b" % (
        path,
        len(body),
        more,
        body,
    )


def split(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of one answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split(" ")[1]), dict(line.split(": ", 1) for line in lines), body


def code_of(answer: bytes) -> str:
    return json.loads(split(answer)[2])["code"]


async def test_an_answer_has_date_type_and_length(serve) -> None:
    async with serve() as server:
        status, headers, body = split(await server.ask(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")))
    assert (status, json.loads(body)) == (200, ["a/b", {"x": "1"}, "127.0.0.1"])
    assert headers == {
        "date": "Mon, 24 Nov 2025 16:00:00 GMT",
        "content-type": "application/json",
        "x-content-type-options": "nosniff",
        "cache-control": "no-store",
        "content-length": str(len(body)),
        "connection": "close",
    }


async def test_requests_in_one_packet_are_answered_in_order(serve) -> None:
    """Also when one that waits stands before others, and when there are more than one go takes."""
    data = b"".join(post(b"/later" if i % 3 else b"/echo", b"[%04d]" % i) for i in range(50)) + CLOSE
    async with serve() as server:
        answers = (await server.ask(data)).split(b"HTTP/1.1 ")[1:]
    assert [answer[-6:] for answer in answers[:50]] == [b"[%04d]" % i for i in range(50)]
    assert b'["last"' in answers[50]


async def test_requests_whose_answers_are_given_at_once_by_a_call_are_answered_in_order(serve) -> None:
    data = b"".join(post(b"/promised", b"at once %04d" % i) for i in range(500)) + CLOSE
    async with serve() as server:
        answers = (await server.ask(data)).split(b"HTTP/1.1 ")[1:]
    assert [answer[-12:] for answer in answers[:500]] == [b"at once %04d" % i for i in range(500)]
    assert b'["last"' in answers[500]


@pytest.mark.parametrize(("how", "status"), [("result", 201), ("refusal", 503), ("crash", 500)])
async def test_an_answer_that_a_later_call_gives(serve, caplog, how: str, status: int) -> None:
    async with serve() as server:
        asking = asyncio.create_task(server.ask(post(b"/promised", b"x") + CLOSE))
        await server.app.started.wait()
        (promised,) = server.app.promises
        assert len(server.app.seen) == 1  # the next request waits
        if how == "refusal":
            promised.set_exception(SplError("overloaded"))
        else:
            promised.set_result(b"crash" if how == "crash" else b"given")
        answers = (await asking).split(b"HTTP/1.1 ")[1:]
    assert answers[0].startswith(b"%d " % status)
    assert b"secret" not in answers[0]
    if how == "crash":
        assert code_of(b"HTTP/1.1 " + answers[0]) == "INTERNAL"
    else:
        assert b'["last"' in answers[1]
    assert [record.name for record in caplog.records if record.levelno == logging.ERROR] == ["spl.net"] * (
        how == "crash"
    )


async def test_an_answer_for_a_client_that_went_is_dropped(serve) -> None:
    async with serve() as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(post(b"/promised", b"x"))
        await server.app.started.wait()
        writer.close()
        await writer.wait_closed()
        assert (await server.ask(CLOSE)).startswith(b"HTTP/1.1 200")
        server.app.promises[0].set_result(b"given")
        assert (await server.ask(CLOSE)).startswith(b"HTTP/1.1 200")


async def test_a_request_in_single_bytes(serve) -> None:
    async with serve() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for byte in post(b"/echo", b"hello") + CLOSE:
            writer.write(bytes([byte]))
            await writer.drain()
        answer = await reader.read()
        writer.close()
    assert b"\r\n\r\nhelloHTTP/1.1 200" in answer


async def test_head_has_the_headers_and_no_body(serve) -> None:
    async with serve() as server:
        get = split(await server.ask(CLOSE))
        head = split(await server.ask(CLOSE.replace(b"GET", b"HEAD")))
        stream = await server.ask(b"HEAD /stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert head == (get[0], get[1], b"")
    assert split(stream)[1]["transfer-encoding"] == "chunked"
    assert split(stream)[2] == b""


async def test_204_has_neither_length_nor_body(serve) -> None:
    async with serve() as server:
        status, headers, body = split(
            await server.ask(b"DELETE /gone HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        )
    assert (status, body) == (204, b"")
    assert "content-length" not in headers


async def test_options_answers_allow(serve) -> None:
    async with serve() as server:
        answer = await server.ask(
            b"OPTIONS /echo HTTP/1.1\r\nHost: x\r\n\r\nPUT /echo HTTP/1.1\r\nHost: x\r\n\r\n" + CLOSE
        )
    first, second, _ = answer.split(b"HTTP/1.1 ")[1:]
    assert first.startswith(b"204")
    assert second.startswith(b"405")
    assert b"allow: OPTIONS, POST\r\n" in first
    assert b"allow: OPTIONS, POST\r\n" in second


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", 404, "NOT_FOUND"),
        (b"GET /here/a?token=x HTTP/1.1\r\nHost: x\r\n\r\n", 400, "TOKEN_IN_QUERY"),
        (b"GET /here/a?b HTTP/1.1\r\nHost: x\r\n\r\n", 400, "BAD_FIELD"),
        (b"GET /here/a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer wrong\r\n\r\n", 401, "AUTH_INVALID"),
        (b"GET /refuse HTTP/1.1\r\nHost: x\r\n\r\n", 429, "RATE_LIMITED"),
    ],
)
async def test_a_refused_request_without_body_keeps_the_connection(serve, data: bytes, status: int, code: str) -> None:
    async with serve() as server:
        first, second = (await server.ask(data + CLOSE)).split(b"HTTP/1.1 ")[1:]
    assert int(first[:3]) == status
    assert code_of(b"HTTP/1.1 " + first) == code
    assert second.startswith(b"200")


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"garbage\r\n\r\n", 400, "BAD_REQUEST"),
        (b"GET / HTTP/3.0\r\nHost: x\r\n\r\n", 505, "VERSION_UNSUPPORTED"),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "URI_TOO_LONG"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 70_000 + b"\r\n\r\n", 431, "HEAD_TOO_LARGE"),
        (post(b"/echo", b"").replace(b"Length: 0", b"Length: +1"), 400, "BAD_LENGTH"),
        (post(b"/echo", b"x", b"Expect: magic\r\n"), 417, "EXPECTATION_FAILED"),
        (post(b"/echo", b"x" * 1001), 413, "BODY_TOO_LARGE"),
        (post(b"/nowhere", b"x"), 404, "NOT_FOUND"),
        (post(b"/echo", b"x", b"Authorization: Bearer wrong\r\n"), 401, "AUTH_INVALID"),
        (post(b"/echo", b"x", b"Content-Encoding: gzip\r\n"), 415, "MEDIA_TYPE"),
        (post(b"/echo", b"x").replace(b"application/json", b"text/plain"), 415, "MEDIA_TYPE"),
        (
            post(b"/echo", b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"3e9\r\n",
            413,
            "BODY_TOO_LARGE",
        ),
        (b"GET /here/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1", 413, "BODY_TOO_LARGE"),
    ],
)
async def test_what_cannot_be_read_on_is_answered_and_closed(serve, data: bytes, status: int, code: str) -> None:
    async with serve() as server:
        answer = await server.ask(data + CLOSE)
        assert (await server.ask(CLOSE)).startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert split(answer)[0] == status
    assert split(answer)[1]["connection"] == "close"
    assert code_of(answer) == code


async def test_413_comes_before_the_body_and_reaches_a_client_that_still_sends(serve) -> None:
    async with serve() as server:
        head = post(b"/echo", b"x").replace(b"Length: 1", b"Length: 8000000")
        assert split(await server.ask(head, until=b"}"))[0] == 413
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head + bytes(2_000_000))
        assert split(await reader.read())[0] == 413
        writer.close()
        assert server.app.seen == []


async def test_expect_continue(serve) -> None:
    async with serve() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        data = post(b"/echo", b"hello", b"Expect: 100-continue\r\nConnection: close\r\n")
        writer.write(data[:-5])
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hello")
        assert (await reader.read()).endswith(b"hello")
        writer.close()
        refused = await server.ask(post(b"/nowhere", b"hello", b"Expect: 100-continue\r\n")[:-5])
        assert refused.startswith(b"HTTP/1.1 404")


async def test_http_1_0_gets_one_answer_that_ends_with_the_connection(serve) -> None:
    async with serve() as server:
        server.app.release.set()
        plain = await server.ask(b"GET /here/a HTTP/1.0\r\n\r\n")
        stream = await server.ask(b"GET /stream HTTP/1.0\r\n\r\n")
    assert split(plain)[1]["connection"] == "close"
    assert "transfer-encoding" not in split(stream)[1]
    assert split(stream)[2] == b"onetwo"


async def test_a_stream_is_sent_as_it_yields(serve) -> None:
    async with serve() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n" + CLOSE)
        head = await reader.readuntil(b"one\r\n")
        assert b"transfer-encoding: chunked" in head
        server.app.release.set()
        rest = await reader.read()
        writer.close()
    assert rest.startswith(b"3\r\ntwo\r\n0\r\n\r\nHTTP/1.1 200 OK")


@pytest.mark.parametrize(("path", "event"), [(b"/stream", "closed"), (b"/poll", "cancelled")])
@pytest.mark.parametrize("how", ["close", "half-close"])
async def test_a_client_that_goes_ends_what_may_take_long(serve, path: bytes, event: str, how: str) -> None:
    async with serve() as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path)
        await server.app.started.wait()
        if how == "close":
            writer.close()
        else:
            writer.write_eof()
        async with asyncio.timeout(DEADLINE_S):
            await getattr(server.app, event).wait()
        writer.close()


async def test_a_plain_handler_ends_its_work_without_its_client(serve) -> None:
    async with serve() as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await server.app.started.wait()
        writer.close()
        await writer.wait_closed()
        assert (await server.ask(CLOSE)).startswith(b"HTTP/1.1 200")
        server.app.release.set()
        assert (await server.ask(CLOSE)).startswith(b"HTTP/1.1 200")
        assert not server.app.cancelled.is_set()


async def test_a_half_closed_client_gets_its_answer(serve) -> None:
    async with serve() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await server.app.started.wait()
        writer.write_eof()
        server.app.release.set()
        assert (await reader.read()).endswith(b"released")
        writer.close()


@pytest.mark.parametrize("path", [b"/crash", b"/crash-later", b"/bad-header"])
async def test_a_crash_is_500_without_detail(serve, caplog, path: bytes) -> None:
    async with serve() as server:
        answer = await server.ask(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path)
        assert (await server.ask(CLOSE)).startswith(b"HTTP/1.1 200")
    assert split(answer)[0] == 500
    assert code_of(answer) == "INTERNAL"
    assert b"secret" not in answer
    assert b"set-cookie" not in answer
    assert [record.name for record in caplog.records if record.levelno == logging.ERROR] == ["spl.net"]


async def test_a_stream_that_crashes_does_not_end_in_order(serve, caplog) -> None:
    async with serve() as server:
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = await server.ask(b"GET /crash-stream HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not answer.endswith(b"0\r\n\r\n")
        assert (await server.ask(CLOSE)).startswith(b"HTTP/1.1 200")


async def test_a_stream_that_the_app_withdraws_is_cut_and_no_fault_is_logged(serve, caplog) -> None:
    caplog.set_level(logging.INFO, "spl.net")
    async with serve() as server:
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = await server.ask(b"GET /withdrawn-stream HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not answer.endswith(b"0\r\n\r\n")
        assert (await server.ask(CLOSE)).startswith(b"HTTP/1.1 200")
    assert [(record.getMessage(), record.exc_info) for record in caplog.records] == [("http.cut", None)]


@pytest.mark.parametrize("data", [b"GET /here/a HTTP/1.1\r\nHo", post(b"/echo", b"hello")[:-1]])
async def test_a_slow_request_is_408(serve, data: bytes) -> None:
    async with serve(TINY) as server:
        answer = await server.ask(data)
    assert split(answer)[0] == 408
    assert code_of(answer) == "REQUEST_TIMEOUT"


async def test_a_drip_does_not_extend_the_head_deadline(serve) -> None:
    async with serve(TINY) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\nX: ")
        answer = asyncio.ensure_future(reader.read())
        while not answer.done():
            writer.write(b"x")
            await asyncio.wait([answer], timeout=0.02)
        assert split(answer.result())[0] == 408
        writer.close()


@pytest.mark.parametrize("data", [b"", post(b"/echo", b"hello")])
async def test_an_idle_connection_is_closed_silently(serve, data: bytes) -> None:
    async with serve(TINY) as server:
        answer = await server.ask(data)
    assert answer == b"" if not data else answer.endswith(b"hello")


@pytest.mark.parametrize("path", [b"/flood", b"/big"])
@pytest.mark.parametrize("more", [b"", b"Connection: close\r\n"])
@pytest.mark.parametrize("kernel", [False, True])
async def test_a_client_that_stops_reading_is_cut(serve, monkeypatch, path: bytes, more: bytes, kernel: bool) -> None:
    if not kernel:  # without TCP_USER_TIMEOUT, as on a Unix socket, the sweep alone must do it
        monkeypatch.setattr("spl.net.server._tune", lambda sock, stall_s: None)
    async with serve(TINY) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        writer.write(b"GET %b HTTP/1.1\r\nHost: x\r\n%b\r\n" % (path, more))
        async with asyncio.timeout(DEADLINE_S):
            await server.app.matched.wait()
            await server.gone()
            if path == b"/flood":
                await server.app.closed.wait()
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = await reader.read()
        assert len(answer) < 24_000_000 or path == b"/flood"
        writer.close()


@pytest.mark.parametrize("more", [b"", b"Connection: close\r\n"])
async def test_answers_that_nobody_reads_give_way_to_newer_ones(serve, monkeypatch, more: bytes) -> None:
    monkeypatch.setattr("spl.net.admission.UNREAD_PER_SOURCE_BYTES", 1)
    async with serve() as server:
        clients = []
        for number in range(4):
            clients.append(await asyncio.open_connection("127.0.0.1", server.port, limit=1024))
            clients[-1][1].write(b"GET /big HTTP/1.1\r\nHost: x\r\n%b\r\n" % more)
            await until(lambda number=number: len(server.app.seen) == number + 1)
            await until(lambda: len(server.server._shared.connections) == 1)
        for _, writer in clients:
            writer.close()


async def test_a_slow_reader_of_a_last_answer_gets_it_whole(serve) -> None:
    """Closing after an answer lasts as long as the client makes progress, not linger_s."""
    async with serve() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        writer.write(b"GET /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await reader.read(1000)
        (connection,) = server.server._shared.connections
        assert connection.phase is Stage.CLOSING
        while connection.transport.get_write_buffer_size() >= connection.unsent:
            answer += await reader.read(65536)
        connection.expire(connection.deadline)
        assert len(split(answer + await reader.read())[2]) == 24_000_000
        writer.close()


async def test_pipelining_is_bounded_while_a_request_is_answered(serve) -> None:
    async with serve() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await server.app.started.wait()
        count = 20_000
        writer.write(GET * count + CLOSE)
        (connection,) = server.server._shared.connections
        await until(lambda: connection.read_paused)
        assert connection.parser.buffered < READ_AHEAD_BYTES + RECEIVE_BYTES
        server.app.release.set()
        async with asyncio.timeout(DEADLINE_S):
            answers = await reader.read()
        assert answers.count(b"HTTP/1.1 200 OK") == count + 2
        writer.close()


async def test_bodies_sent_ahead_are_read_on(serve) -> None:
    """Reading, paused while a request was answered, goes on when the next body is there only in part."""
    async with serve() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await server.app.started.wait()
        writer.write(post(b"/echo", bytes(999)) * 4000 + CLOSE)
        (connection,) = server.server._shared.connections
        await until(lambda: connection.read_paused)
        server.app.release.set()
        async with asyncio.timeout(DEADLINE_S):
            answers = await reader.read()
        assert answers.count(b"HTTP/1.1 200 OK") == 4002
        writer.close()


async def test_a_body_in_many_chunks_is_read_in_several_turns(serve) -> None:
    """Whatever arrives in one packet: other connections have their turns, and what is read ahead is bounded."""
    body = b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 999 + b"0\r\n\r\n"
    request = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + body
    async with serve() as server:
        await server.ask(CLOSE)
        server.app.seen.clear()
        shared, wire = server.server._shared, Mock()
        wire.get_extra_info.return_value, wire.is_closing.return_value = ("127.0.0.9", 1), False
        connection = Connection(shared, shared.admission.take("127.0.0.9"), local=False, scheme="http")
        connection.connection_made(wire)
        connection.data_received(request * 20)
        assert server.app.seen == []
        connection.data_received(b"")  # what arrives meanwhile takes no turn of its own
        assert server.app.seen == []
        wire.pause_reading.assert_called_once()
        await until(lambda: len(server.app.seen) == 20)
        await until(lambda: wire.resume_reading.called)
        connection.connection_lost(None)
    assert {request.body for request in server.app.seen} == {b" " * 999}


async def test_a_stream_for_a_client_that_went_is_closed_unread(serve) -> None:
    async with serve() as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /late-flood HTTP/1.1\r\nHost: x\r\n\r\n")
        await server.app.started.wait()
        linger = struct.pack("ii", 1, 0)  # so that closing resets instead of half-closing
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.close()
        async with asyncio.timeout(DEADLINE_S):
            await server.gone()
            server.app.release.set()
            await server.app.closed.wait()
        assert server.app.yielded == 0


async def test_an_app_that_cannot_even_refuse_loses_only_that_connection(serve, caplog) -> None:
    async with serve() as server:
        for data in (
            b"garbage\r\n\r\n",
            b"GET /crash HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /crash-later HTTP/1.1\r\nHost: x\r\n\r\n",
        ):
            server.app.broken = True
            with contextlib.suppress(ConnectionError):
                assert await server.ask(data) == b""
            server.app.broken = False
            assert (await server.ask(CLOSE)).startswith(b"HTTP/1.1 200")


async def test_an_idle_connection_keeps_nothing_of_its_requests(serve) -> None:
    async with serve() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(GET.replace(b"Host", b"Authorization: Bearer secret\r\nHost"))
        await reader.readuntil(b"]")
        (connection,) = server.server._shared.connections
        assert (connection.head, connection.match, connection.pieces) == (None, None, [])
        writer.close()


def test_a_head_shows_no_secret(serve) -> None:
    parser = RequestParser(Limits())
    parser.feed(GET.replace(b"Host", b"Authorization: Bearer secret\r\nHost"))
    assert "secret" not in repr(parser.next())
