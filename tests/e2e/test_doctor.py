"""What goes wrong between real daemons, and that `spl doctor` names it with the step that mends it."""

import fcntl
import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from spl.core.errors import steps
from tests.e2e.conftest import AUTO, Make
from tests.e2e.findings import attention, named
from tests.e2e.harness import Instance, free_port
from tests.e2e.proxy import MANIFEST, Proxy, Reply
from tests.e2e.test_tls import issued
from tests.waiting import eventually


@pytest.fixture
def proxied(make: Make) -> Iterator[tuple[Instance, Proxy]]:
    """A daemon behind a proxy, which is its public URL; it approves by itself, its tokens last six seconds."""
    port = free_port()
    proxy = Proxy(port)
    bob = make("bob", f'public_url = "{proxy.url}"\n{AUTO}[limits]\ntoken_ttl_s = 6\ntoken_renew_s = 0.001\n')
    bob.port = port
    yield bob.start(), proxy
    proxy.end()


def problems(instance: Instance, *ref: str) -> dict[str, str]:
    """Return code -> fix of `spl doctor`, which exits 3 when there are any and 0 when there are none."""
    done = instance.run("doctor", *ref, "-o", "json", code=None)
    found = {item["code"]: item["fix"] for item in done.data["problems"]}
    assert done.code == (3 if found else 0), done
    return found


def marks(instance: Instance, *ref: str) -> dict[str, str]:
    return {row["name"]: row["mark"] for row in instance.run("doctor", *ref, "-o", "json", code=None).data["checks"]}


def test_a_healthy_pair_and_a_healthy_daemon(alice: Instance, bob: Instance, pair_id: str) -> None:
    """Every check is ok, both ends are asked, and scripts see 0."""
    for side in (alice, bob):
        assert set(marks(side, pair_id).values()) == {"ok"}
        done = side.run("doctor")
        assert done.out.endswith("\nno problems\n")
        assert pair_id in done.out
        assert "needs attention" not in side.run("status", "--check").out
    text = alice.run("doctor", pair_id).out
    assert f"  ok    reverse           peer reaches {alice.url[:-1]} in " in text
    assert "same bytes inside and outside" in text


def test_a_peer_that_is_down(alice: Instance, bob: Instance, pair_id: str) -> None:
    """One problem, what is behind it skipped; when the peer is back nothing is left."""
    bob.stop()
    assert problems(alice, pair_id) == {
        "connect": f"on bob: spl serve --port {urlsplit(bob.url).port}; "
        f"if the peer has moved, give the URL in its status: spl federation refresh {pair_id} --url NEW-URL"
    }
    found = marks(alice, pair_id)
    assert (found["connect"], found["manifest"], found["cursor"]) == ("fail", "skip", "skip")
    bob.start()
    assert problems(alice, pair_id) == {}


def test_a_peer_without_identity_and_one_with_another(alice: Instance, bob: Instance, make: Make, pair_id: str) -> None:
    """At the pinned address answers somebody else: nobody yet, then another instance."""
    bob.stop()
    other = make("other", AUTO, bare=True)
    other.port = bob.port
    other.start()
    assert problems(alice, pair_id)["manifest-missing"] == (
        "on bob: spl identity generate; it keeps the key if there is one, and publishes the manifest"
    )
    other.run("identity", "generate", "--label", "bob")
    found = problems(alice, pair_id)
    assert found["manifest-did-mismatch"].startswith("on bob: spl status; does it run at that address")
    assert "auth-invalid" not in found


def test_our_own_home_twice(alice: Instance, bob: Instance, make: Make, pair_id: str) -> None:
    """A copy of our home runs where the peer was."""
    bob.stop()
    alice.stop()
    clone = make("clone", bare=True)
    shutil.rmtree(clone.home)
    shutil.copytree(alice.home, clone.home, ignore=shutil.ignore_patterns("run"))
    clone.port = bob.port
    clone.start()
    alice.start()
    assert "identity-cloned" in problems(alice, pair_id)


def test_a_token_that_its_own_side_revoked(alice: Instance, bob: Instance, pair_id: str) -> None:
    """The side that revoked it is told that the peer cannot read; the step that it names lets it read again."""
    token = next(item for item in bob.pair(pair_id)["tokens"] if item["direction"] == "issued by us")
    bob.run("token", "revoke", token["token_id"])
    refused = alice.run("sync", pair_id, code=None)
    assert f"fix       on bob: spl token rotate {pair_id}" in refused.err
    fix = problems(bob, pair_id)["token-withdrawn"]
    assert fix == f"spl token rotate {pair_id}"
    shown = next(item for item in bob.pair(pair_id)["tokens"] if item["direction"] == "issued by us")
    assert shown["state"] == "revoked"
    assert bob.run("status", "--check", code=3)
    bob.run(*fix.split()[1:])
    assert "token-withdrawn" not in problems(bob, pair_id)
    eventually(lambda: alice.run("sync", pair_id, code=None).code == 0, "alice reads again")


def test_a_configuration_that_a_reload_refused(alice: Instance) -> None:
    """`status` says it as `doctor` does: the next start would not come up."""
    config = alice.home / "config.toml"
    before = config.read_text() if config.exists() else ""
    alice.configure("foo = 1\n" + before)
    assert alice.process is not None
    alice.process.send_signal(signal.SIGHUP)
    eventually(lambda: alice.run("status", "--check", code=None).code == 3, "status names it")
    assert "config-invalid" in [item["code"] for item in alice.data("status")["attention"]]
    alice.configure(before)
    alice.process.send_signal(signal.SIGHUP)
    eventually(lambda: alice.run("status", "--check", code=None).code == 0, "it is gone")


def test_a_home_and_its_copy_run_at_once(alice: Instance, bob: Instance, make: Make, pair_id: str) -> None:
    """Both are told, and so is the peer; when the copy has gone, its identity is one again."""
    alice.stop()
    copy = make("copy", bare=True)
    shutil.rmtree(copy.home)
    shutil.copytree(alice.home, copy.home, ignore=shutil.ignore_patterns("run"))
    for side in (alice, copy):
        side.start()

    def told() -> bool:
        for side in (alice, copy):
            side.run("sync", pair_id, code=None)
        return all("identity-cloned" in problems(side, pair_id) for side in (alice, copy, bob))

    eventually(told, "all three name it")


def reformatted(reply: Reply) -> Reply:
    return replace(reply, body=reply.body + b"\n")


def test_what_a_proxy_does_to_a_peer(make: Make, proxied: tuple[Instance, Proxy]) -> None:
    """The dot path stripped, other bytes for the manifest, a bearer demanded of the handshake, a path mangled."""
    (_bob, proxy), alice = proxied, make("alice").start()
    pair_id = alice.paired(proxy.url)

    def seen(code: str) -> str:
        return problems(alice, pair_id).get(code, "")

    proxy.statuses = {MANIFEST: 404}
    moved = f"; if the peer has moved, give the URL in its status: spl federation refresh {pair_id} --url NEW-URL"
    passes = f"on bob: let the proxy pass /.well-known/ and /v1/ as they are, if this is the right URL{moved}"
    assert seen("foreign-answer") == passes
    proxy.statuses = {"/v1/federation/pair": 401}
    own = "on bob: let the proxy pass /v1/ and /.well-known/ without a login or filter of its own"
    assert seen("foreign-answer") == f"{own}{moved}"
    proxy.statuses = {"/v1/federation/pair": 404}
    assert seen("foreign-answer") == passes
    proxy.statuses, proxy.changes = {}, {MANIFEST: reformatted}
    assert seen("manifest-differs-outside") == "let the proxy pass /.well-known/ uncached and unchanged"


def test_a_token_that_expired(make: Make, proxied: tuple[Instance, Proxy]) -> None:
    """It could not be renewed, so it ends; doctor and status say so, and what follows from it is skipped."""
    (_bob, proxy), alice = proxied, make("alice").start()
    proxy.statuses = {"/renew": 503}
    pair_id = alice.paired(proxy.url)
    found = eventually(lambda: problems(alice, pair_id).get("token-expired"), "the token expires")
    assert found == f"spl federation refresh {pair_id}"
    assert marks(alice, pair_id)["scopes"] == "skip"
    status = alice.run("status", "--check", code=3).out
    assert "✗ token-expired" in status
    assert found in status


def test_a_side_that_the_peer_cannot_reach(make: Make, bob: Instance) -> None:
    """Bob says himself that our public URL does not answer; we still reach him."""
    port = free_port()
    proxy = Proxy(port)
    alice = make("alice", f'public_url = "{proxy.url}"\n')
    alice.port = port
    alice.start()
    pair_id = alice.paired(bob.url)
    assert problems(alice, pair_id) == {}
    proxy.end()
    assert problems(alice, pair_id) == {
        "reverse-unreachable": "make public_url reachable from there: port, tunnel or DNS; "
        f"if this daemon moved: on bob: spl federation refresh {pair_id} --url {proxy.url}"
    }
    assert proxy.url in alice.run("doctor", pair_id, code=3).out


def test_a_peer_that_paused_and_then_revoked(alice: Instance, bob: Instance, pair_id: str) -> None:
    bob.run("federation", "pause", pair_id)
    eventually(lambda: alice.pairs()[0]["state"] == "paused", "alice hears of it")
    assert problems(alice, pair_id) == {"peer-paused": f"on bob: spl federation resume {pair_id}"}
    bob.run("federation", "revoke", pair_id)
    eventually(lambda: alice.pairs()[0]["state"] == "revoked", "alice hears of it")
    assert problems(alice, pair_id) == {
        "peer-revoked": f"spl federation pair {bob.url}; or accept the end: spl federation revoke {pair_id}"
    }
    assert "peer-revoked" in alice.run("status", "--check", code=3).out
    alice.run("federation", "revoke", pair_id)
    assert not named(attention(alice), "peer-revoked")


def test_a_rule_that_locks_out_every_handshake(alice: Instance, bob: Instance) -> None:
    """The page's 401: the asker's error names it, and the doctor of the side that refuses names the rule."""
    rule = ("writers-only", "--resource", "federation:pair", "--action", "require:record_write")
    bob.run("config", "add-permission-rule", *rule)
    refused = alice.run("federation", "pair", bob.url, code=4)
    assert "peer rejected handshake: 401 Unauthorized [handshake-401]" in refused.err
    assert problems(bob)["handshake-401"].startswith("spl config list-permission-rules | grep federation")
    assert "writers-only" in bob.run("doctor", code=3).out
    assert "writers-only" in bob.run("status", "--check", code=3).out
    bob.run("config", "remove-permission-rule", "writers-only")
    assert problems(bob) == {}


def reissued(ca: trustme.CA, folder: Path, days: int) -> None:
    """Put a certificate in place that ends in so many days."""
    made = ca.issue_cert("127.0.0.1", not_after=datetime.now(UTC) + timedelta(days, 60))
    made.private_key_pem.write_to_path(str(folder / "key.pem"))
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))


def test_a_certificate_that_nobody_vouches_for(make: Make, tmp_path: Path) -> None:
    """After a SIGHUP the peer shows one of another authority; plain http would have gone on."""
    ours, strange = trustme.CA(), trustme.CA()
    ours.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    (tmp_path / "tls").mkdir()
    certificate, key = issued(ours, tmp_path / "tls", "127.0.0.1")
    port = free_port()
    tls = f'[tls]\nlisten = "127.0.0.1:{port}"\ncertificate = "{certificate}"\nkey = "{key}"\n'
    bob = make("bob", AUTO + tls).start("--public-url", f"https://127.0.0.1:{port}")
    alice = make("alice", f'[tls]\nca_file = "{tmp_path / "ca.pem"}"\n').start()
    pair_id = alice.paired(f"https://127.0.0.1:{port}")
    # Bob trusts only the system's authorities; alice speaks plain http on loopback, so he reaches her all the same.
    assert problems(alice, pair_id) == {}
    assert "chain valid" in alice.run("doctor", pair_id).out
    assert bob.process is not None
    for days, wrong in ((10, {"tls-expiry"}), (60, set())):
        reissued(ours, tmp_path / "tls", days)
        os.kill(bob.process.pid, signal.SIGHUP)
        eventually(lambda: set(problems(alice, pair_id)) == wrong, f"{days} days left")  # noqa: B023
        if wrong:
            assert problems(alice, pair_id)["tls-expiry"] == "on bob: renew the certificate, then SIGHUP to the daemon"
            assert "ends in 10 days" in alice.run("doctor", pair_id, code=3).out
    issued(strange, tmp_path / "tls", "127.0.0.1")
    os.kill(bob.process.pid, signal.SIGHUP)
    found = eventually(lambda: problems(alice, pair_id).get("tls-chain"), "the new certificate is shown")
    assert found.startswith("on bob: fix the TLS chain (self-signed is refused)")


def test_our_own_daemon(make: Make) -> None:
    """Without identity, with a configuration that the next start would refuse, with a damaged line in its log."""
    home = make("solo", bare=True).start()
    assert problems(home) == {"identity-missing": "spl identity generate"}
    assert home.run("status", "--check", code=3).out.count("identity-missing") == 1
    home.run("identity", "generate", "--label", "solo")
    assert problems(home) == {}
    home.configure("prot = 1\n")
    assert problems(home) == {"config-invalid": "correct the line named in the message"}
    home.configure("")
    for text in ("one", "two", "three"):
        home.run("know", text, "--thread", "th_work")
    home.stop()
    [segment] = sorted((home.home / "store").glob("*.jsonl"))
    lines = segment.read_bytes().splitlines(keepends=True)
    lines = [line.replace(b'"two"', b'"owt"') for line in lines]
    segment.write_bytes(b"".join(lines))
    shutil.rmtree(home.home / "store" / "index")
    home.start()
    assert "store-damaged" in problems(home)


def test_a_home_whose_daemon_does_not_answer(make: Make) -> None:
    """Down, refused by its configuration, or held by a process that has not come up: three different steps."""
    home = make("solo")
    assert problems(home) == {"daemon-down": f"SYNCROPEL_HOME=~/{home.home.name} spl serve"}
    home.configure("prot = 1\n")
    assert problems(home) == {"config-invalid": "correct the line named in the message"}
    home.configure("")
    with (home.home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711\n2026-01-01T00:00:00Z\n")
        lock.flush()
        assert problems(home) == {"store-locked": "stop it, or use another SYNCROPEL_HOME"}
        assert "process 4711 holds this home since 2026-01-01T00:00:00Z" in home.run("doctor", code=3).out
    home.start()
    assert home.process is not None
    pid = home.process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        step = f"to let it go on: kill -CONT {pid}; to end it, which loses nothing: kill -9 {pid}"
        for command, code in ((("status",), 5), (("health",), 5), (("serve",), 11)):
            said = home.run(*command, code=code).err
            assert all(each in said for each in steps(step)), said
            assert str(pid) in said.splitlines()[0]
        assert step in problems(home).values()
    finally:
        os.kill(pid, signal.SIGCONT)
    home.run("health")


def test_a_stream(alice: Instance, bob: Instance, pair_id: str) -> None:
    """The doctor looks at the pair's own stream, however often it is asked: a second one would end the first."""
    alice.run("federation", "set-mode", pair_id, "continuous")
    eventually(lambda: (alice.pair(pair_id)["stream"] or {}).get("state") == "open", "the stream is open")
    report = alice.run("doctor", pair_id).out
    assert "  ok    stream-buffering  open, and events arrive\n" in report


def test_show_never_claims_to_be_caught_up_without_saying_since_when(
    alice: Instance, bob: Instance, pair_id: str
) -> None:
    """A fresh word of the peer, and the same word once attempts fail."""
    alice.run("sync", pair_id)
    assert ", caught up\n" in alice.run("federation", "show", pair_id).out
    bob.stop()
    alice.run("sync", pair_id, code=9)
    out = alice.run("federation", "show", pair_id).out
    assert "(as of " in next(line for line in out.splitlines() if line.startswith("last_sync_cursor:"))
    assert ", caught up\n" not in out


def test_the_log_by_target_with_and_without_a_daemon(alice: Instance, pair_id: str) -> None:
    """The page's filter, after a rotation too."""
    out = alice.run("logs", "target=syncropel_engine::federation").out
    assert f"event=pair.activated pair={pair_id}" in out
    assert "target=syncropel_engine::daemon" not in out
    alice.stop()
    log = alice.home / "logs" / "spl.log"
    log.rename(log.with_name("spl.log.1"))
    assert alice.run("logs", "target=syncropel_engine::federation").out == out
    [line] = alice.run("logs", "event=daemon.stopped", "-o", "jsonl").out.splitlines()
    assert json.loads(line)["event"] == "daemon.stopped"
