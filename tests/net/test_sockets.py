"""Listening sockets and certificates: modes, stale sockets, long paths, replacement while in use."""

import asyncio
import errno
import os
import re
import socket
import ssl
import stat
from asyncio import sslproto
from pathlib import Path

import pytest

from spl.net.address import ReachError
from spl.net.sockets import (
    TLS_READ_BYTES,
    ListenError,
    bind_tcp,
    bind_unix,
    chosen_lan_address,
    client_tls,
    client_trust,
    dial,
    hang_up,
    lean_tls,
    own_names,
    server_tls,
)  # fmt: skip
from tests.net.conftest import Authority, Serve
from tests.waiting import DEADLINE_S


async def subject_of(port: int, context: ssl.SSLContext) -> str:
    """Return the first name of the certificate that a port shows."""
    _, writer = await dial("127.0.0.1", port, context, "localhost")
    try:
        cert = writer.get_extra_info("peercert")
        return ",".join(name for _, name in cert["subjectAltName"])
    finally:
        await hang_up(writer, 1.0)


async def test_a_certificate_is_replaced_while_serving(serve, authority, issue, tmp_path) -> None:
    first, second = issue("localhost", "one.example"), issue("localhost", "two.example")
    tls = server_tls(*first)
    context = client_tls(authority.ca_file)
    async with serve(tls=tls.context) as server:
        assert await subject_of(server.port, context) == "localhost,one.example"
        with pytest.raises(ListenError) as caught:
            tls.replace(second[0], first[1])
        assert caught.value.code == "config-invalid"
        assert await subject_of(server.port, context) == "localhost,one.example"
        tls.replace(*second)
        assert await subject_of(server.port, context) == "localhost,two.example"


def test_a_wrong_certificate_file_is_named(tmp_path, issue) -> None:
    cert, key = issue("localhost")
    with pytest.raises(ListenError) as caught:
        server_tls(tmp_path / "none.pem", key)
    assert "none.pem" in caught.value.message
    (tmp_path / "empty").write_text("")
    with pytest.raises(ListenError):
        server_tls(cert, tmp_path / "empty")
    with pytest.raises(ListenError):
        client_tls(tmp_path / "none.pem")
    os.mkfifo(tmp_path / "fifo")
    for name in ("empty", "fifo"):
        with pytest.raises(ListenError):
            client_tls(tmp_path / name)


def test_a_client_context_verifies() -> None:
    context = client_tls(None)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_the_context_is_made_when_it_is_asked_for(tmp_path, authority, monkeypatch) -> None:
    """With a file of authorities at once, so that a start names one that is wrong."""
    made: list[ssl.SSLContext] = []

    def make(protocol: int) -> ssl.SSLContext:
        made.append(ssl.SSLContext(protocol))
        return made[-1]

    monkeypatch.setattr("spl.net.sockets._ClientContext", make)
    trust = client_trust(None)
    assert made == []
    assert trust() is trust() is made[0]
    trust = client_trust(authority.ca_file)
    assert len(made) == 2
    assert trust() is made[1]
    with pytest.raises(ListenError):
        client_trust(tmp_path / "none.pem")


async def test_the_systems_authorities_are_loaded_for_the_first_connection(
    serve, authority, issue, monkeypatch
) -> None:
    async with serve(tls=server_tls(*issue("localhost")).context) as server:
        with pytest.raises(ReachError, match="certificate"):
            await subject_of(server.port, client_tls(None))
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
        context = client_tls(None)
        assert context.get_ca_certs() == []
        for _ in range(2):
            assert await subject_of(server.port, context) == "localhost"
        assert len(context.get_ca_certs()) >= 1


def test_a_unix_socket_is_for_its_owner_alone(tmp_path) -> None:
    path = tmp_path / "run.sock"
    with bind_unix(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_unix_socket_in_a_deep_folder(tmp_path) -> None:
    folder = tmp_path / ("deep" * 20) / ("er" * 60)
    folder.mkdir(parents=True)
    with bind_unix(folder / "run.sock"):
        assert (folder / "run.sock").is_socket()


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path) -> None:
    path = tmp_path / "run.sock"
    bind_unix(path).close()
    with bind_unix(path):
        with pytest.raises(ListenError) as caught:
            bind_unix(path)
        assert caught.value.code == "listen-failed"
        assert path.is_socket()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path) -> None:
    path = tmp_path / "run.sock"
    path.write_text("mine")
    with pytest.raises(ListenError):
        bind_unix(path)
    assert path.read_text() == "mine"
    with pytest.raises(ListenError):
        bind_unix(tmp_path / "none" / "run.sock")


def test_bind_tcp() -> None:
    (sock,) = bind_tcp("127.0.0.1", 0)
    with sock:
        port = sock.getsockname()[1]
        with pytest.raises(ListenError) as caught:
            bind_tcp("127.0.0.1", port)
        assert caught.value.code == "listen-failed"
        assert str(port) in caught.value.message
    bind_tcp("127.0.0.1", port)[0].close()
    with pytest.raises(ListenError):
        bind_tcp("192.0.2.1", 0)


def test_all_addresses_of_a_name_share_one_free_port() -> None:
    bound = bind_tcp("localhost", 0)
    assert len({sock.getsockname()[1] for sock in bound}) == 1
    for sock in bound:
        sock.close()


async def test_hang_up_ends_a_peer_that_does_not_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        _, writer = await dial("127.0.0.1", silent.getsockname()[1], None, "")
        writer.write(bytes(10_000_000))
        async with asyncio.timeout(DEADLINE_S):
            await hang_up(writer, 0.05)


def test_a_port_that_is_taken_says_how_to_take_another() -> None:
    [held] = bind_tcp("127.0.0.1", 0)
    with held, pytest.raises(ListenError) as refused:
        bind_tcp("127.0.0.1", held.getsockname()[1])
    assert re.search(r": spl serve --port [0-9]{4,5}$", refused.value.hint)


async def test_nobody_listens() -> None:
    (sock,) = bind_tcp("127.0.0.1", 0)
    port = sock.getsockname()[1]
    sock.close()
    with pytest.raises(ReachError) as caught:
        await dial("127.0.0.1", port, None, "")
    assert caught.value.code == "connect"


def test_an_address_that_the_machine_lacks_does_not_stop_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with an IPv6 address where there is no IPv6 is served on its other one; alone it is refused."""
    rows = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 0, 0, 0))]
    local = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **named: [*rows, local])
    [sock] = bind_tcp("host.example", 0)
    assert sock.getsockname()[0] == "127.0.0.1"
    sock.close()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **named: rows)
    with pytest.raises(ListenError):
        bind_tcp("host.example", 0)


def refuse(*args: object) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def test_a_socket_whose_mode_cannot_be_set_is_used_if_it_lets_nobody_else_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "chmod", refuse)
    before = os.umask(0o077)
    try:
        bind_unix(tmp_path / "closed").close()
        os.umask(0o022)
        with pytest.raises(ListenError):
            bind_unix(tmp_path / "open")
    finally:
        os.umask(before)


def test_a_file_system_without_sockets_is_named_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(socket.socket):
        def bind(self, address: object) -> None:
            refuse()

    monkeypatch.setattr(socket, "socket", Refusing)
    with pytest.raises(ListenError) as caught:
        bind_unix(tmp_path / "sock")
    assert caught.value.code == "listen-failed"
    assert f"mount a tmpfs at {tmp_path}" in caught.value.hint


async def test_tls_with_small_buffers_takes_large_answers(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, authority: Authority
) -> None:
    """256 KiB a connection, filled with zeros, are what 64 handshakes of strangers would cost 16 MiB with."""
    monkeypatch.setattr(sslproto.SSLProtocol, "max_size", sslproto.SSLProtocol.max_size)
    lean_tls()
    assert sslproto.SSLProtocol.max_size == TLS_READ_BYTES
    async with serve(tls=authority.server) as server:
        reader, writer = await dial("127.0.0.1", server.port, client_tls(authority.ca_file), "localhost")
        writer.write(b"GET /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(24_000_000) == bytes(24_000_000)
        await hang_up(writer, 1.0)


@pytest.mark.parametrize(
    ("routed", "others", "chosen"),
    [
        ("192.168.1.20", ("127.0.0.1", "10.0.0.7"), "192.168.1.20"),
        ("", ("127.0.0.1", "169.254.7.7", "10.0.0.7"), "10.0.0.7"),
        ("100.64.3.3", (), "100.64.3.3"),
        ("203.0.113.7", ("172.17.0.1",), ""),
        ("", ("127.0.0.1",), ""),
    ],
)
def test_the_address_of_the_private_network(routed: str, others: tuple[str, ...], chosen: str) -> None:
    """That of the default route; another one only without such a route, never beside a public one."""
    if chosen:
        assert chosen_lan_address(routed, others) == chosen
        return
    with pytest.raises(ListenError) as caught:
        chosen_lan_address(routed, others)
    assert "no private network" in caught.value.message
    assert "--public-url" in caught.value.hint


def test_the_machine_is_called_by_its_name_and_in_multicast_dns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Box.example.org")
    assert own_names() == {"box.example.org", "box", "box.local"}
    monkeypatch.setattr(socket, "gethostname", lambda: "")
    assert own_names() == frozenset()


@pytest.mark.parametrize(
    ("name", "told"), [("peer.example", "peer.example at 127.0.0.1 port"), ("127.0.0.1", "127.0.0.1 port")]
)
async def test_a_refusal_names_an_address_once(name: str, told: str) -> None:
    (sock,) = bind_tcp("127.0.0.1", 0)
    port = sock.getsockname()[1]
    sock.close()
    with pytest.raises(ReachError) as caught:
        await dial("127.0.0.1", port, None, name)
    assert caught.value.message.startswith(f"{told} {port}: ")
