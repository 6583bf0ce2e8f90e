"""Where a daemon is: URLs that a token may travel to, long socket paths, tokens in files."""

import asyncio
import os
from pathlib import Path

import pytest

from spl.client import dial as d
from spl.client.errors import ClientError
from spl.net.sockets import server_tls
from tests.waiting import DEADLINE_S


@pytest.mark.parametrize(
    ("url", "host", "port", "authority", "is_tls"),
    [
        ("http://127.0.0.1:9100", "127.0.0.1", 9100, "127.0.0.1:9100", False),
        ("http://localhost/", "localhost", 80, "localhost:80", False),
        ("http://[::1]:9", "::1", 9, "[::1]:9", False),
        ("https://hub.example", "hub.example", 443, "hub.example", True),
        ("https://hub.example:8443/", "hub.example", 8443, "hub.example:8443", True),
    ],
)
def test_urls_that_a_token_may_travel_to(url: str, host: str, port: int, authority: str, is_tls: bool) -> None:
    where = d.at_url(url)
    assert (where.host, where.port, where.authority, where.is_tls) == (host, port, authority, is_tls)


@pytest.mark.parametrize(
    "url",
    ["http://hub.example", "http://10.0.0.1:9100", "hub.example", "ftp://127.0.0.1", "http://127.0.0.1:70000",
     "https://hub.example/path", "https://user@hub.example", "http://localhost.evil.example", "http://127.0.0.1:0"],
)  # fmt: skip
def test_urls_that_it_may_not(url: str) -> None:
    with pytest.raises(ClientError) as found:
        d.at_url(url)
    assert found.value.code == "http-plain"


def test_a_fifo_in_place_of_a_token_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "token")
    assert d.token_of(str(tmp_path)) == ""
    os.unlink(tmp_path / "token")
    (tmp_path / "token").write_text("secret\n")
    assert d.token_of(str(tmp_path)) == "secret"


def test_nobody_at_the_socket_is_said(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / ("x" * 120)):
        with pytest.raises(ClientError) as found:
            d.dial(d.at_home(str(folder)), 1.0)
        assert (found.value.code, str(folder) in found.value.message) == ("daemon-down", True)


async def test_chain_and_name_are_verified(serve, authority, issue) -> None:
    def call(host: str, port: int, ca_file: str) -> str:
        with d.dial(d.at_url(f"https://{host}:{port}", ca_file), DEADLINE_S) as sock:
            return sock.version() or ""

    async with serve(tls=server_tls(*issue("localhost", "127.0.0.1")).context) as server:
        assert await asyncio.to_thread(call, "127.0.0.1", server.port, str(authority.ca_file)) >= "TLSv1.2"
        for ca_file in ("", str(authority.ca_file) + ".none"):
            with pytest.raises(ClientError) as caught:
                await asyncio.to_thread(call, "127.0.0.1", server.port, ca_file)
            assert caught.value.code == "tls-chain"
    async with serve() as plain:
        with pytest.raises(ClientError) as caught:
            await asyncio.to_thread(call, "127.0.0.1", plain.port, str(authority.ca_file))
        assert caught.value.code == "tls-chain"
    async with serve(tls=server_tls(*issue("other.example")).context) as server:
        with pytest.raises(ClientError) as caught:
            await asyncio.to_thread(call, "127.0.0.1", server.port, str(authority.ca_file))
        assert caught.value.code == "tls-chain"
        port = server.port
    with pytest.raises(ClientError) as caught:
        call("127.0.0.1", port, "")
    assert caught.value.code == "daemon-down"
