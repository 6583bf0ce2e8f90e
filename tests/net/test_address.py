"""Which addresses are dialled: judged by what is inside, not by how it is wrapped."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core.errors import CODES
from spl.net.address import (
    Proxies,
    ReachError,
    connect_step,
    is_loopback,
    judge,
    parse_url,
    source_of,
    stands_at,
    tls_step,
)

PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "172.32.0.1",
    "100.63.255.255",
    "100.128.0.1",
    "2606:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
]
PRIVATE = [
    "127.0.0.1", "127.255.255.254", "::1", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1",
    "100.127.255.255", "fd00::1", "fc00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1",
    "2002:7f00:1::", "2002:c0a8:101::1", "64:ff9b:1::808:808",
]  # fmt: skip
NEVER = [
    "0.0.0.0", "0.1.2.3", "::", "169.254.169.254", "169.254.0.1", "fe80::1", "224.0.0.1", "239.255.255.255", "ff02::1",
    "255.255.255.255", "240.0.0.1", "100.100.100.200", "fd00:ec2::254", "::ffff:169.254.169.254", "::ffff:0.0.0.0",
    "64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe", "2002:a9fe:a9fe::1", "::ffff:100.100.100.200", "::ffff:224.0.0.1",
    "::127.0.0.1", "2001:db8::1", "203.0.113.7", "192.0.2.1", "198.18.0.1", "192.0.0.1", "2001::1", "100::1",
    "fe80::1%eth0", "::1%lo", "", "localhost", "127.1", "0x7f000001", "2130706433", "127.0.0.01",
]  # fmt: skip


def code_of(address: str, allow_private: bool) -> str:
    try:
        judge(address, allow_private)
    except ReachError as exc:
        return exc.code
    return ""


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_dialled(address: str) -> None:
    assert code_of(address, False) == code_of(address, True) == ""


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_only_when_typed(address: str) -> None:
    assert code_of(address, False) == "address-refused"
    assert code_of(address, True) == ""


@pytest.mark.parametrize("address", NEVER)
def test_some_addresses_are_never_dialled(address: str) -> None:
    assert code_of(address, False) == code_of(address, True) == "address-refused"


@given(st.ip_addresses(v=4))
def test_wrapping_never_widens(address) -> None:
    """What is refused plain is refused in every wrapping."""
    number = int(address)
    wrapped = [
        f"::ffff:{address}",
        f"64:ff9b::{number >> 16:x}:{number & 0xFFFF:x}",
        f"2002:{number >> 16:x}:{number & 0xFFFF:x}::1",
    ]
    for allow_private in (False, True):
        for text in wrapped:
            assert code_of(text, allow_private) == code_of(str(address), allow_private)


@pytest.mark.parametrize(
    ("address", "near", "dialled"),
    [
        ("127.0.0.1", "127.9.9.9", True),
        ("::1", "127.0.0.1", True),
        ("10.1.2.3", "10.9.9.9", True),
        ("::ffff:10.1.2.3", "10.9.9.9", True),
        ("192.168.1.5", "192.168.9.9", True),
        ("fd00:1:2:3::1", "fd00:1:2:4::1", True),
        ("fd00:1:2:3::1", "fd00:1:3::1", False),
        ("127.0.0.1", "10.0.0.1", False),
        ("10.1.2.3", "192.168.1.5", False),
        ("172.16.0.1", "10.0.0.1", False),
        ("10.1.2.3", "198.51.100.7", False),
        ("64:ff9b:1::a00:1", "64:ff9b:1::a00:1", False),
        ("169.254.169.254", "169.254.169.254", False),
    ],
)
def test_a_private_address_is_near_one_of_its_own_kind(address: str, near: str, dialled: bool) -> None:
    if dialled:
        judge(address, False, (near,))
    else:
        with pytest.raises(ReachError):
            judge(address, False, (near,))


def test_loopback() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"]))
    assert not any(map(is_loopback, ["10.0.0.1", "8.8.8.8", "::ffff:10.0.0.1", "fe80::1", "localhost", ""]))


@pytest.mark.parametrize(
    ("text", "host", "port", "authority", "target"),
    [
        ("https://Bob.Example/", "bob.example", 443, "bob.example", "/"),
        ("https://bob.example", "bob.example", 443, "bob.example", "/"),
        ("HTTP://bob:8080?a=b", "bob", 8080, "bob:8080", "/?a=b"),
        ("https://bob:443/a/b?c", "bob", 443, "bob", "/a/b?c"),
        ("http://[::1]:9100/x", "::1", 9100, "[::1]:9100", "/x"),
        ("http://127.0.0.1:80/", "127.0.0.1", 80, "127.0.0.1", "/"),
    ],
)
def test_url(text: str, host: str, port: int, authority: str, target: str) -> None:
    url = parse_url(text)
    assert (url.host, url.port, url.authority, url.target) == (host, port, authority, target)
    assert parse_url(url.origin + url.target) == url


@pytest.mark.parametrize(
    "text",
    ["", "bob", "bob.example/", "//bob/", "ftp://bob/", "https://", "https:///x", "https://u:p@bob/", "https://bob/#f",
     "https://bob:0/", "https://bob:65536/", "https://bob:/", "https://bob:1a/", "https://b b/", "https://bob/ x",
     "https://bob/\n", "https://b\u00fcro.example/", "https://[::1/", "https://[1.2.3.4]/", "https://[fe80::1%25eth0]/",
     "https://bob\\@evil/", "https://bob/\u00e9", "https://bob:٨/"],
)  # fmt: skip
def test_url_refused(text: str) -> None:
    with pytest.raises(ReachError) as caught:
        parse_url(text)
    assert caught.value.code == "url-invalid"


NO_GUESS = CODES["url-invalid"].fix


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("127.0.0.1:9100", "with its scheme: http://127.0.0.1:9100/"),
        ("localhost:9100/", "with its scheme: http://localhost:9100/"),
        ("[::1]:9100", "with its scheme: http://[::1]:9100/"),
        ("10.0.0.7:9100", "if it was started with --lan: http://10.0.0.7:9100/; if it has TLS: https://10.0.0.7:9100/"),
        ("bob", "if it was started with --lan: http://bob:9100/; if it has TLS: https://bob/"),
        ("127.0.0.1", "with its scheme: http://127.0.0.1:9100/"),
        ("bob.example", "with its scheme: https://bob.example/"),
        ("http//127.0.0.1:9200", "with its scheme: http://127.0.0.1:9200/"),
        ("htp://127.0.0.1:9200/", "with its scheme: http://127.0.0.1:9200/"),
        ("http:/127.0.0.1:9200", "with its scheme: http://127.0.0.1:9200/"),
        ("http:127.0.0.1", "with its scheme: http://127.0.0.1:9100/"),
        ("http:localhost:9200", "with its scheme: http://localhost:9200/"),
        ("https:/bob", "with its scheme: https://bob/"),
        ("https//bob.example", "with its scheme: https://bob.example/"),
        ("tp:9100", "if it was started with --lan: http://tp:9100/; if it has TLS: https://tp:9100/"),
        ("https://bob/#f", NO_GUESS),
        ("bob.example/a", NO_GUESS),
        ("bob.example?a", NO_GUESS),
        ("http://127.0.0.1:99999/", "with the port of the peer, often: http://127.0.0.1:9100/"),
        ("https://bob.example:0", "with the port of the peer, often: https://bob.example/"),
    ],
)
def test_a_url_without_its_scheme_is_told_which_one(text: str, hint: str) -> None:
    """Plain http is for this machine and private networks."""
    with pytest.raises(ReachError) as caught:
        parse_url(text)
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("https://bob.example/", "on the peer: spl serve; if it runs, open its port in the firewall"),
        ("http://127.0.0.1:9100/", "on the peer: spl serve"),
        ("http://127.0.0.1:9200/", "on the peer: spl serve --port 9200"),
        ("http://192.168.1.20:9200/", "on the peer: spl serve --lan --port 9200; {lan}"),
        (
            "http://192.168.1.20/",
            "with the port of the peer, 9100 if it was told none: http://192.168.1.20:9100/; "
            "on the peer: spl serve --lan; {lan}",
        ),
    ],
)
def test_the_step_where_nothing_listens_names_the_port(url: str, hint: str) -> None:
    """And to start for the network where the address is one of a private network."""
    lan = (
        "if it runs without --lan, only its own machine reaches it: stop it first; "
        "if with it, open its port in the firewall"
    )
    port = "if its `spl status` shows another port, name that one"
    assert connect_step(parse_url(url)) == f"{hint.format(lan=lan)}; {port}"


@pytest.mark.parametrize(
    ("name", "address", "step"),
    [
        ("127.0.0.1", "127.0.0.1", "if it has no TLS: http://127.0.0.1:9200/; otherwise "),
        ("::1", "::1", "if it has no TLS: http://[::1]:9200/; otherwise "),
        ("kitchen.local", "192.168.1.7", "if it has no TLS: http://kitchen.local:9200/; otherwise "),
        ("bob.example", "203.0.113.7", "at the peer: "),
    ],
)
def test_a_handshake_that_fails_near_by_most_often_meets_a_plain_port(name: str, address: str, step: str) -> None:
    assert tls_step(name, address, 9200) == f"{step}this port must speak TLS, version 1.2 or newer"


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
    ],
)
def test_a_source_is_an_address_or_an_ipv6_network(address: str, source: str) -> None:
    assert source_of(address) == source


@pytest.mark.parametrize(
    ("url", "address", "stands"),
    [
        ("http://127.0.0.1:9100", "127.0.0.1", True),
        ("http://localhost:9100", "::1", True),
        ("http://192.168.1.7:9100", "::ffff:192.168.1.7", True),
        ("http://127.0.0.1:9100", "127.0.0.2", False),
        ("http://localhost:9100", "192.168.1.7", False),
        ("https://b.example", "192.0.43.8", False),
        ("http://127.0.0.1:9100", "unix", False),
    ],
)
def test_a_url_stands_at_the_address_that_it_names(url: str, address: str, stands: bool) -> None:
    """No name is looked up: who answers for it may change."""
    assert stands_at(parse_url(url), address) is stands


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", "192.0.2.7", "192.0.2.7"),
        ("::ffff:10.0.0.1", "192.0.2.7", "192.0.2.7"),
        ("10.0.0.1", "198.51.100.1, 192.0.2.7", "192.0.2.7"),
        ("10.0.0.1", "192.0.2.7, 10.0.0.2", "192.0.2.7"),
        ("10.0.0.1", "10.0.0.3,10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "192.0.2.7, unknown", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "2001:DB8::7", "2001:db8::7"),
        ("192.0.2.1", "192.0.2.7", "192.0.2.1"),
    ],
)
def test_of_what_proxies_add_the_last_untrusted_address_counts(peer: str, forwarded: str, client: str) -> None:
    assert Proxies(["10.0.0.0/8"]).client_of(peer, forwarded) == client


def test_without_trusted_proxies_nobody_is_believed() -> None:
    assert Proxies().client_of("10.0.0.1", "192.0.2.7") == "10.0.0.1"


@pytest.mark.parametrize(
    ("text", "hint"), [("bob.example", True), ("10.0.0.7:9100", True), ("ftp://x", False), ("a b", False)]
)
def test_a_host_without_a_scheme_is_shown_with_one(text: str, hint: bool) -> None:
    with pytest.raises(ReachError) as caught:
        parse_url(text)
    assert (f"https://{text}/" in caught.value.hint) == hint
