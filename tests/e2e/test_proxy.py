"""A daemon behind a real reverse proxy that ends TLS: pairing, streams, pushes and the failures that proxies bring."""

import getpass
import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from tests.e2e.conftest import AUTO, Make
from tests.e2e.harness import Instance, free_port
from tests.pages import MANUAL, README, blocks
from tests.waiting import DEADLINE_S, eventually

NGINX = """
daemon off; pid {folder}/pid; error_log stderr; user {user};
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {certificate}; ssl_certificate_key {key};
    {extra}
    location / {{
      proxy_pass http://127.0.0.1:{target};
      proxy_http_version 1.1;
      proxy_set_header Host $host;
      proxy_set_header Connection "";
      proxy_read_timeout 60s;
    }}
  }}
}}
"""
CADDY = """
{{
  admin off
  auto_https off
  grace_period 100ms
}}
https://127.0.0.1:{port} {{
  tls {certificate} {key}
  {extra}
  reverse_proxy 127.0.0.1:{target}
}}
"""
HIDES_DOTS = {
    "nginx": "location ~ /\\. { return 404; }",
    "caddy": "@dots path /.*\n  respond @dots 404",
}


@contextmanager
def proxy(kind: str, folder: Path, target: int, port: int, ca: trustme.CA, extra: str = "") -> Iterator[None]:
    """Run nginx or Caddy on the port, before the daemon at `target`, until the `with` ends."""
    leaf = ca.issue_cert("127.0.0.1")
    certificate, key = folder / "proxy.pem", folder / "proxy.key"
    certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    key.write_bytes(leaf.private_key_pem.bytes())
    values = {"target": target, "certificate": certificate, "key": key, "extra": extra}
    with process(kind, folder, port, (NGINX if kind == "nginx" else CADDY), **values):
        yield


@contextmanager
def process(kind: str, folder: Path, port: int, template: str, **values: object) -> Iterator[None]:
    """Run nginx or Caddy by a configuration that makes it listen on the port, until the `with` ends."""
    config = folder / f"{kind}.conf"
    config.write_text(template.format(user=getpass.getuser(), folder=folder, port=port, **values))
    if kind == "nginx":
        command = ["nginx", "-c", str(config), "-p", str(folder), "-e", "stderr"]
    else:
        command = ["caddy", "run", "--config", str(config), "--adapter", "caddyfile"]
    with (folder / f"{kind}.out").open("wb") as log:
        env = {"PATH": "/usr/sbin:/usr/bin:/bin:/usr/local/bin", "HOME": str(folder), "XDG_DATA_HOME": str(folder)}
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env)
    try:
        eventually(lambda: _listens(port) or process.poll() is not None, f"{kind} listens")
        assert process.poll() is None, (folder / f"{kind}.out").read_text()
        yield
    finally:
        process.terminate()
        process.wait(DEADLINE_S)


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(params=["nginx", "caddy"])
def kind(request: pytest.FixtureRequest) -> str:
    """The proxy's name."""
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


@pytest.fixture
def behind(make: Make, tmp_path: Path) -> Callable[..., tuple[Instance, Instance, trustme.CA, int]]:
    """Return a maker of alice, and bob whose public URL is a port of a proxy that is not there yet."""

    def maker() -> tuple[Instance, Instance, trustme.CA, int]:
        ca, port = trustme.CA(), free_port()
        ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        alice = make("alice", f'[tls]\nca_file = "{tmp_path / "ca.pem"}"\n').start()
        bob = make("bob", AUTO).start("--public-url", f"https://127.0.0.1:{port}")
        return alice, bob, ca, port

    return maker


def test_a_pair_lives_behind_a_proxy(
    behind: Callable[..., tuple[Instance, Instance, trustme.CA, int]], tmp_path: Path, kind: str
) -> None:
    """Handshake, proofs, pages, streams both ways and bulk bodies pass a proxy in its plain configuration."""
    alice, bob, ca, port = behind()
    url = f"https://127.0.0.1:{port}/"
    with proxy(kind, tmp_path, bob.port, port, ca):
        curled = ["curl", "-s", "--cacert", str(tmp_path / "ca.pem"), f"{url}.well-known/syncropel"]
        assert subprocess.run(curled, capture_output=True, check=True).stdout == bob.get("/.well-known/syncropel").body
        bob.emit("th_work", 200, text="x" * 2000)
        assert alice.run("federation", "pair", url).out.endswith("\nPair active.\n")
        pair_id = str(alice.pairs()[0]["pair_id"])
        for side in (alice, bob):
            side.run("federation", "set-mode", pair_id, "continuous")
        for side in (alice, bob):
            eventually(lambda side=side: side.pair(pair_id)["stream"]["state"] == "open", "the stream is open")
        alice.emit("th_work", 100, text="y" * 2000)
        bob.emit("th_work", 5)
        eventually(lambda: alice.holding() == bob.holding(), "both hold the same")
        alice.run("doctor", pair_id)
    # The proxy is gone with its connections: alice says so, and goes on when it is back.
    eventually(lambda: alice.pair(pair_id)["last_error"], "alice notices")
    bob.emit("th_work", 3)
    with proxy(kind, tmp_path, bob.port, port, ca):
        eventually(lambda: alice.holding() == bob.holding(), "both hold the same again")


def test_a_proxy_that_hides_dot_paths_is_named(
    behind: Callable[..., tuple[Instance, Instance, trustme.CA, int]], tmp_path: Path, kind: str
) -> None:
    """Proxies sometimes strip dot-prefixed paths: the peer publishes no manifest, seen from outside."""
    alice, bob, ca, port = behind()
    with proxy(kind, tmp_path, bob.port, port, ca, HIDES_DOTS[kind]):
        refused = alice.run("federation", "pair", f"https://127.0.0.1:{port}/", code=9)
        assert "in the peer's place [foreign-answer]" in refused.err
        assert "let the proxy pass /.well-known/ and /v1/" in refused.err
        assert bob.get("/.well-known/syncropel").status == 200


@pytest.mark.skipif(shutil.which("caddy") is None, reason="caddy is not installed")
@pytest.mark.parametrize("page", [README, MANUAL / "proxies.md"], ids=lambda page: page.name)
def test_the_caddyfile_of_the_pages_is_one(page: Path, tmp_path: Path) -> None:
    """Caddy reads the text as it is printed, and passes everything on to the daemon."""
    [printed] = blocks(page, "caddyfile")
    file = tmp_path / "Caddyfile"
    file.write_text(printed)
    command = ["caddy", "adapt", "--config", str(file), "--adapter", "caddyfile"]
    env = {"PATH": "/usr/sbin:/usr/bin:/bin:/usr/local/bin", "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    read = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stderr
    [server] = json.loads(read.stdout)["apps"]["http"]["servers"].values()
    [route] = server["routes"]
    assert route["match"] == [{"host": ["bob.example"]}]
    assert '"upstreams": [{"dial": "127.0.0.1:9100"}]' in json.dumps(route["handle"])
