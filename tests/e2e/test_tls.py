"""TLS between daemons: certificates and names are verified, a private CA can be trusted, self-signed ones cannot."""

import shutil
import socket
import ssl
import subprocess
from pathlib import Path

import pytest
import trustme

from tests.e2e.conftest import AUTO, Make
from tests.e2e.harness import Instance, free_port
from tests.waiting import DEADLINE_S, eventually


def tls_bob(make: Make, certificate: Path, key: Path) -> tuple[Instance, str]:
    """Return a daemon with a TLS listener of its own, and its https URL."""
    port = free_port()
    config = f'{AUTO}[tls]\nlisten = "127.0.0.1:{port}"\ncertificate = "{certificate}"\nkey = "{key}"\n'
    url = f"https://127.0.0.1:{port}"
    return make("bob", config).start("--public-url", url), url + "/"


def issued(ca: trustme.CA, folder: Path, *names: str) -> tuple[Path, Path]:
    """Write a certificate of the CA for the names and return its files."""
    leaf = ca.issue_cert(*names)
    certificate, key = folder / "cert.pem", folder / "key.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    key.write_bytes(leaf.private_key_pem.bytes())
    return certificate, key


@pytest.fixture
def authority(tmp_path: Path) -> tuple[trustme.CA, Path]:
    """A private CA and the file that holds its certificate."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return ca, tmp_path / "ca.pem"


@pytest.mark.parametrize("how", ["file", "environment"])
def test_a_private_ca_is_trusted_where_the_operator_says_so(
    make: Make, authority: tuple[trustme.CA, Path], tmp_path: Path, how: str
) -> None:
    """With tls.ca_file or SSL_CERT_FILE the whole pairing runs over https, both ways."""
    ca, ca_file = authority
    bob, url = tls_bob(make, *issued(ca, tmp_path, "127.0.0.1"))
    if how == "file":
        alice = make("alice", f'[tls]\nca_file = "{ca_file}"\n').start()
    else:
        alice = make("alice", SSL_CERT_FILE=str(ca_file)).start()
    bob.emit("th_work", 2)
    alice.emit("th_work", 3)
    assert alice.run("federation", "pair", url).out.endswith("\nPair active.\n")
    assert alice.pairs()[0]["url"].startswith("https://")
    bob.run("sync")
    eventually(lambda: alice.holding() == bob.holding(), "both hold all five")


def test_the_command_line_of_another_machine_reaches_a_daemon_over_tls(
    make: Make, authority: tuple[trustme.CA, Path], tmp_path: Path
) -> None:
    """With the token, and only if the certificate verifies; what is long is streamed as well."""
    ca, ca_file = authority
    bob, url = tls_bob(make, *issued(ca, tmp_path, "127.0.0.1"))
    bob.emit("th_work", 2)
    far = make("carol")
    far.env |= {"SPL_SERVE_URL": url, "SPL_TOKEN": (bob.home / "token").read_text().strip()}
    refused = far.run("thread", "list", code=10)
    assert "[tls-chain]" in refused.err
    assert "SSL_CERT_FILE" in refused.err
    far.env["SSL_CERT_FILE"] = str(ca_file)
    assert [item["thread"] for item in far.data("thread", "list")] == ["th_work"]
    assert far.run("thread", "snapshot", "th_work").out.count("\n") == 3
    far.env["SPL_TOKEN"] = "spl_home_sa_00000000_AAAA"
    assert "[auth-invalid]" in far.run("thread", "list", code=4).err
    far.env["SSL_CERT_FILE"] = str(tmp_path / "none")
    assert "[tls-chain]" in far.run("thread", "list", code=10).err


def test_an_unknown_ca_is_refused_before_anything_is_sent(
    make: Make, authority: tuple[trustme.CA, Path], tmp_path: Path
) -> None:
    """Exit 10, tls-chain, and the fix; the peer hears nothing."""
    bob, url = tls_bob(make, *issued(authority[0], tmp_path, "127.0.0.1"))
    refused = make("alice").start().run("federation", "pair", url, code=10)
    assert "[tls-chain]" in refused.err
    assert "tls.ca_file" in refused.err
    assert bob.pairs() == []


def test_a_certificate_for_another_name_is_refused(
    make: Make, authority: tuple[trustme.CA, Path], tmp_path: Path
) -> None:
    """A trusted CA does not help when the certificate is somebody else's."""
    ca, ca_file = authority
    _, url = tls_bob(make, *issued(ca, tmp_path, "bob.example"))
    alice = make("alice", f'[tls]\nca_file = "{ca_file}"\n').start()
    assert "[tls-chain]" in alice.run("federation", "pair", url, code=10).err


def test_a_self_signed_certificate_is_refused(make: Make, tmp_path: Path) -> None:
    """It names nobody that could be trusted, whatever the flags."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key),
         "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    bob, url = tls_bob(make, certificate, key)
    alice = make("alice").start()
    for flags in ((), ("--no-strict",)):
        refused = alice.run("federation", "pair", url, *flags, code=10)
        assert "[tls-chain]" in refused.err
        assert "self" in refused.err
    assert bob.pairs() == []


def test_the_plain_port_stays_and_old_protocols_are_refused(
    make: Make, authority: tuple[trustme.CA, Path], tmp_path: Path
) -> None:
    """9100 serves loopback as before; the TLS listener speaks 1.2 and newer only."""
    ca, _ = authority
    bob, url = tls_bob(make, *issued(ca, tmp_path, "127.0.0.1"))
    assert bob.get("/health/ready").status == 200
    context = ssl.create_default_context()
    ca.configure_trust(context)
    host, _, port = url.removeprefix("https://").strip("/").partition(":")
    plain = socket.create_connection((host, int(port)), timeout=DEADLINE_S)
    with context.wrap_socket(plain, server_hostname=host) as tls:
        assert tls.version() in ("TLSv1.2", "TLSv1.3")
        tls.sendall(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
        assert tls.recv(12) == b"HTTP/1.1 200"


def test_a_key_that_does_not_fit_is_a_configuration_error(
    make: Make, authority: tuple[trustme.CA, Path], tmp_path: Path
) -> None:
    """The daemon refuses to start rather than serve without TLS."""
    certificate, _ = issued(authority[0], tmp_path, "127.0.0.1")
    other = tmp_path / "other.pem"
    authority[0].issue_cert("127.0.0.1").private_key_pem.write_to_path(str(other))
    config = f'[tls]\nlisten = "127.0.0.1:{free_port()}"\ncertificate = "{certificate}"\nkey = "{other}"\n'
    done = make("bob", config).run("serve", "--port", str(free_port()), code=78)
    assert "[config-invalid]" in done.err + done.out
