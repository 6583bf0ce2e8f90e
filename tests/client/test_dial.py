"""Where a daemon is: URLs that a token may travel to, long socket paths, tokens in files."""

import os
from pathlib import Path

import pytest

from spl.client import dial as d
from spl.client.errors import ClientError


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
