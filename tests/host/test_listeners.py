"""Where a daemon listens: neither side takes the other's descriptors, and sockets that are handed over count."""

import socket
from pathlib import Path

import pytest

from spl.core.limits import Limits
from spl.core.value import replace
from spl.home.config import Config
from spl.host import listeners
from spl.host.listeners import DESCRIPTORS_KEPT, DESCRIPTORS_MIN, DaemonError
from spl.host.systemd import Manager


def manager(plain: list[socket.socket], secure: list[socket.socket]) -> Manager:
    found = Manager({}, 1)
    found.plain, found.secure = plain, secure
    return found


@pytest.mark.parametrize("descriptors", [DESCRIPTORS_MIN, 64, 256, 1024, 65_536])
def test_the_listeners_leave_descriptors_for_the_store_and_the_operator(descriptors: int) -> None:
    tcp, local = listeners.limits_of(Limits(), descriptors)
    assert 0 < tcp.connections_count <= max(descriptors - DESCRIPTORS_KEPT, descriptors // 4)
    assert local.connections_per_source == local.connections_count > 0
    assert tcp.connections_count + local.connections_count < descriptors
    listeners.check_descriptors(descriptors)


def test_too_few_descriptors_are_refused() -> None:
    with pytest.raises(DaemonError, match=f"needs {DESCRIPTORS_MIN}"):
        listeners.check_descriptors(DESCRIPTORS_MIN - 1)


def test_of_sockets_handed_over_the_widest_counts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as here, socket.create_server(("0.0.0.0", 0)) as wide:
        config = listeners.handed_over(Config(host="127.0.0.1"), manager([here, wide], []))
        assert (config.host, config.port) == wide.getsockname()
        with pytest.raises(DaemonError, match=r"tls\.listen is not set"):
            listeners.handed_over(config, manager([], [here]))
        secure = listeners.handed_over(replace(config, tls_listen="127.0.0.1:1"), manager([], [here]))
        assert secure.tls_listen == f"[127.0.0.1]:{here.getsockname()[1]}"


def test_the_url_is_that_of_the_address_unless_one_is_set() -> None:
    config = Config(host="127.0.0.1", port=0)
    bound, url = listeners.bound(config, None, manager([], []))
    with bound[0].sock as sock:
        assert url == f"http://127.0.0.1:{sock.getsockname()[1]}"
        named = listeners.bound(replace(config, public_url="https://a.example"), None, manager([sock], []))
    assert ([each.sock for each in named[0]], named[1]) == ([sock], "https://a.example")


def test_a_tls_address_needs_a_certificate_and_its_key() -> None:
    assert listeners.server_tls_of(Config()) is None
    with pytest.raises(DaemonError, match=r"needs tls\.certificate and tls\.key"):
        listeners.server_tls_of(Config(tls_listen="127.0.0.1:0", tls_certificate="/c.pem"))
    assert [listeners.ca_file_of(Config()), listeners.ca_file_of(Config(tls_ca_file="/ca"))] == [None, Path("/ca")]
