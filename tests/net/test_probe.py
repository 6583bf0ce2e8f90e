"""The way to a peer, each step with a code of its own, and nothing dialled that the policy forbids."""

import asyncio
import socket
from collections.abc import Sequence

from spl.net.dialer import DialPolicy
from spl.net.probe import Prober, Reached, days_left
from spl.net.sockets import Verifying, client_trust
from tests.net.conftest import Authority, Serve

LOCAL = DialPolicy(allow_private=True)


async def resolve(host: str, port: int) -> Sequence[str]:
    if host == "gone.example":
        raise OSError(0, "Name or service not known")
    return {"empty.example": [], "meta.example": ["169.254.169.254"]}.get(host, ["127.0.0.1"])


async def look(url: str, policy: DialPolicy = LOCAL, tls: Verifying | None = None, timeout_s: float = 5) -> Reached:
    return await Prober(resolve, tls or client_trust(None), timeout_s).reach(url, policy)


async def test_a_name_that_does_not_resolve() -> None:
    for host in ("gone.example", "empty.example"):
        came = await look(f"https://{host}/")
        assert (came.code, came.host, came.address) == ("dns", host, "")


async def test_addresses_are_judged_before_they_are_dialled() -> None:
    assert (await look("https://meta.example/")).code == "address-refused"
    assert (await look("http://bob.example/", DialPolicy())).code == "address-refused"


async def test_a_port_where_nobody_listens() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        came = await look(f"http://bob.example:{sock.getsockname()[1]}/")
    assert (came.code, came.addresses) == ("connect", ("127.0.0.1",))
    assert "Connection refused" in came.message


async def test_a_lookup_that_hangs_ends_in_time() -> None:
    async def hangs(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    came = await Prober(hangs, client_trust(None), 0.01).reach("https://bob.example/", LOCAL)
    assert (came.code, came.addresses) == ("timeout", ())


async def test_a_plain_connection(serve: Serve) -> None:
    async with serve() as running:
        came = await look(f"http://localhost:{running.port}")
        assert (came.code, came.address, came.tls_ends_s) == ("", "127.0.0.1", None)


async def test_a_certificate_is_verified_and_its_end_told(serve: Serve, authority: Authority) -> None:
    """Another authority, or another name, is tls-chain; a private CA is trusted where it is given."""
    async with serve(tls=authority.server) as running:
        trusting = client_trust(authority.ca_file)
        came = await look(f"https://localhost:{running.port}", tls=trusting)
        assert (came.code, came.address) == ("", "127.0.0.1")
        assert came.tls_ends_s is not None
        assert days_left(came.tls_ends_s, 0) > 0
        assert (await look(f"https://localhost:{running.port}")).code == "tls-chain"
        assert (await look(f"https://other.example:{running.port}", tls=trusting)).code == "tls-chain"


def test_days() -> None:
    assert [days_left(86_400 * 61 + 5, 0), days_left(86_399, 0), days_left(0, 5)] == [61, 0, -1]
