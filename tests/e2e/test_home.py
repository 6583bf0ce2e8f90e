"""The home: one daemon holds it, damage and foreign formats are named, and nothing secret can be read by others."""

import hashlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Make
from tests.e2e.harness import Instance, free_port
from tests.waiting import eventually


def serve(instance: Instance, *flags: str) -> tuple[int, str]:
    """Run a daemon that is to refuse at once; return its exit code and what it said."""
    done = instance.run("serve", "--port", str(free_port()), *flags, code=None)
    return done.code, done.err + done.out


def segments(instance: Instance) -> list[Path]:
    """Return the files of the log, oldest first: those that begin with a header line."""
    files = (path for path in sorted((instance.home / "store").rglob("*")) if path.is_file())
    return [path for path in files if path.read_bytes()[:60].startswith(b'{"k":"head"')]


def test_a_second_daemon_is_refused_and_names_the_first(alice: Instance) -> None:
    """Exit 11 with the holder's process id; commands that need the home's lock say so too; the first serves on."""
    code, said = serve(alice)
    assert code == 11
    assert "[store-locked]" in said
    assert alice.process is not None
    assert str(alice.process.pid) in said
    locked = alice.run("init", code=11)
    assert "[store-locked]" in locked.err
    assert alice.is_ready()


def test_an_unusable_home_is_a_configuration_error(make: Make) -> None:
    """A home below a file cannot exist, not even for root."""
    carol = make("carol", bare=True)
    (carol.home.parent / "file").write_text("")
    carol.env["SYNCROPEL_HOME"] = str(carol.home.parent / "file" / "home")
    code, said = serve(carol)
    assert (code, "[home-unusable]" in said) == (78, True), said
    assert "[home-unusable]" in carol.run("init", code=78).err


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("colour = 1\n", 1), ("\n[federation]\napproval = 'maybe'\n", 3), ("port = 'x'\n", 1), ("port = [", 0),
        ("[limits]\nrecord_bytes = 99999999\n", 2), ("auth.required = 1\n", 1), ("host = 3\n", 1),
    ],
)  # fmt: skip
def test_a_bad_configuration_is_refused_with_its_line(make: Make, text: str, line: int) -> None:
    """Unknown keys, wrong types and values out of range: exit 78, and the daemon does not start."""
    carol = make("carol")
    carol.configure(text)
    code, said = serve(carol)
    assert (code, "[config-invalid]" in said) == (78, True), said
    assert line == 0 or f"config.toml:{line}" in said


def test_a_store_of_a_newer_version_is_left_alone(make: Make) -> None:
    """Exit 12 with the advice to upgrade, and not a byte changes."""
    carol = make("carol")
    [segment] = segments(carol)
    head, _, rest = segment.read_bytes().partition(b"\n")
    facts, _, checksum = head.partition(b',"sum":"')
    assert checksum == hashlib.sha256(facts).hexdigest()[:32].encode() + b'"}'
    facts = facts.replace(b'"format":1', b'"format":99', 1)
    head = facts + b',"sum":"' + hashlib.sha256(facts).hexdigest()[:32].encode() + b'"}'
    segment.write_bytes(head + b"\n" + rest)
    code, said = serve(carol)
    assert (code, "[store-newer]" in said) == (12, True), said
    assert "upgrade" in said
    assert segment.read_bytes() == head + b"\n" + rest


def test_keys_without_their_log_are_not_taken_for_a_new_home(make: Make) -> None:
    """An unmounted volume is an empty folder: exit 12 and not a byte written, until it is back or declared lost."""
    carol = make("carol").start()
    ids = carol.emit("th_work", 3)
    did, store = carol.did, carol.home / "store"
    carol.stop()
    away = store.rename(store.with_name("volume"))
    for mounted in (False, True):
        if mounted:
            store.mkdir(mode=0o700)
        code, said = serve(carol)
        assert (code, "[store-missing]" in said, "spl init --new-log" in said) == (12, True, True), said
        for words in (("store", "check"), ("store", "stats"), ("init",)):
            assert "[store-missing]" in carol.run(*words, code=12).err
        [problem] = carol.run("doctor", "-o", "json", code=3).data["problems"]
        assert (problem["code"], "spl init --new-log" in problem["fix"]) == ("store-missing", True)
    assert list(store.iterdir()) == []
    store.rmdir()
    away.rename(store)
    assert [record["id"] for record in carol.start().records("th_work")] == ids
    carol.stop()
    store.rename(away)
    assert carol.data("init", "--new-log")["created"] == ["log", "token"]
    assert (carol.start().did, carol.records("th_work")) == (did, [])


def test_a_home_that_is_moved_while_it_is_open_is_named(make: Make) -> None:
    """The daemon goes on with what it has open; status, doctor and check say what is wrong until it is back."""
    carol = make("carol", "[limits]\nsegment_bytes = 2000\n").start()
    ids = [record_id for _ in range(3) for record_id in carol.emit("th_work", 5)]
    place = carol.home
    carol.home = place.rename(place.with_name("moved"))
    for words in (("status", "--check"), ("doctor",)):
        done = carol.run(*words, code=3)
        assert "store-missing" in done.out
        assert "restart the daemon on the home's new place" in done.out
    assert carol.data("store", "stats")["log_bytes"] > 2000
    assert "[store-missing]" in carol.run("store", "check", code=12).err
    ids += carol.emit("th_work")
    if place.exists():  # what the daemon wrote there meanwhile can be made again
        place.rename(place.with_name("remains"))
    carol.home = carol.home.rename(place)
    assert "store-missing" not in carol.run("status").out
    carol.run("store", "check")
    carol.stop()
    assert [record["id"] for record in carol.start().records("th_work")] == ids


def test_a_log_without_its_keys_gets_no_new_identity_unasked(make: Make) -> None:
    """Exit 7 with what to do, by `serve` and by `init`; the keys put back, it goes on."""
    carol = make("carol").start()
    did, keys = carol.did, carol.home / "keys"
    carol.stop()
    away = keys.rename(keys.with_name("volume"))
    code, said = serve(carol)
    assert (code, "[identity-missing]" in said, "spl identity import FILE" in said) == (7, True, True), said
    assert "[identity-missing]" in carol.run("init", code=7).err
    [problem] = carol.run("doctor", "-o", "json", code=3).data["problems"]
    assert (problem["code"], "spl identity import FILE" in problem["fix"]) == ("identity-missing", True)
    away.rename(keys)
    assert carol.start().did == did
    carol.stop()
    keys.rename(away)
    carol.run("identity", "generate")
    assert carol.start().did != did


def test_a_torn_tail_is_cut_and_reported(alice: Instance) -> None:
    """Half a line at the end of the log was never acknowledged; the rest is served."""
    ids = alice.emit("th_work", 20)
    alice.kill()
    with segments(alice)[-1].open("ab") as file:
        file.write(b'{"k":"rec","seq":999,"at":17638')
    alice.start()
    assert [record["id"] for record in alice.records("th_work")] == ids
    alice.emit("th_work")
    assert len(alice.records("th_work")) == 21


def test_nothing_in_the_home_is_for_others(alice: Instance, bob: Instance, pair_id: str) -> None:
    """Folders 0700, files 0600; tokens stand as hashes in the log, and no log line or command shows a bearer."""
    for path in [alice.home, *alice.home.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o077 == 0, f"{path} is {mode:o}"
    bearers = [path.read_text().strip() for path in (alice.home / "secrets").glob("peer-token*")] + [alice.token]
    assert len(bearers) == 2
    texts = [
        path.read_bytes() for folder in ("store", "logs") for path in (alice.home / folder).rglob("*") if path.is_file()
    ]
    texts.append(alice.output().encode())
    for bearer in bearers:
        secret = bearer.rpartition("_")[2].encode()
        assert not any(secret in text for text in texts)


def test_the_socket_needs_no_token_and_the_port_does(alice: Instance) -> None:
    """The file's mode is the local credential; over HTTP the command line sends the home's token."""
    assert alice.data("token", "list")
    alice.env["SPL_SERVE_URL"] = alice.url.rstrip("/")
    assert alice.data("thread", "list") == []
    alice.env["SPL_TOKEN"] = "spl_home_sa_00000000_AAAA"
    assert "[auth-invalid]" in alice.run("thread", "list", code=4).err
    alice.env["SPL_SERVE_URL"] = "http://192.0.2.1:9100"
    assert "[http-plain]" in alice.run("thread", "list", code=10).err


def test_a_daemon_that_is_not_there_is_named_with_the_fix(make: Make) -> None:
    """Exit 5 and what to start."""
    down = make("carol").run("status", code=5)
    assert re.match(r"error: cannot reach the daemon at .*run/spl\.sock \[daemon-down\]\n", down.err)
    assert "spl serve" in down.err


def test_insecure_localhost_is_loud_and_loopback_only(make: Make) -> None:
    """Without tokens on 127.0.0.1; refused on any other address."""
    carol = make("carol").start("--insecure-localhost")
    assert carol.request("GET", "/v1/threads").status == 200
    assert "INSECURE" in carol.output()
    carol.stop()
    code, said = serve(carol, "--insecure-localhost", "--host", "0.0.0.0")
    assert code in (2, 78), said


def test_a_port_in_use_is_a_configuration_error(make: Make, alice: Instance) -> None:
    """Exit 78, the address and what to choose."""
    carol = make("carol")
    carol.port = alice.port
    done = carol.run("serve", "--port", str(alice.port), code=78)
    assert "[listen-failed]" in done.err + done.out
    assert alice.is_ready()


def test_commands_start_light(alice: Instance) -> None:
    """A client command loads neither asyncio nor ssl nor nacl."""
    code = (
        "import sys; sys.argv = ['spl', 'federation', 'list']\n"
        "from spl.cli.main import main\n"
        "code = main()\n"
        "print(sorted({'asyncio', 'ssl', 'nacl', 'uvloop', 'hypothesis'} & set(sys.modules)), code)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env=alice.environment(), capture_output=True, text=True, check=True
    )
    assert ran.stdout.splitlines()[-1] == "[] 0", ran


def test_a_closed_pipe_ends_a_command_quietly(alice: Instance) -> None:
    """No traceback when the reader went away."""
    alice.emit("th_work", 2000)
    command = f"{sys.executable} -m spl thread records th_work --limit 2000 -o jsonl | head -n 1"
    ran = subprocess.run(["sh", "-c", command], env=alice.environment(), capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout)["thread"] == "th_work"
    assert "Traceback" not in ran.stderr


def test_descriptors_come_back(alice: Instance) -> None:
    """After a hundred requests on connections of their own the daemon holds no more files than before."""
    assert alice.process is not None
    folder = f"/proc/{alice.process.pid}/fd"
    if not os.path.isdir(folder):
        pytest.skip("there is no /proc here")
    alice.get("/health")
    before = len(os.listdir(folder))
    for _ in range(100):
        alice.raw(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    eventually(lambda: len(os.listdir(folder)) <= before + 2, "the descriptors are back")


def test_sighup_reads_the_configuration_again(make: Make) -> None:
    """What changed counts at once, what a start builds on waits and is named, and a bad file changes nothing."""
    alice, bob = make("alice").start(), make("bob", '[federation]\napproval = "auto"\n').start()
    assert bob.process is not None

    def reloaded(text: str, event: str) -> str:
        bob.configure(text)
        before = len(events(event))
        os.kill(bob.process.pid, signal.SIGHUP)  # type: ignore[union-attr]
        return str(eventually(lambda: events(event)[before:], event)[-1])

    def events(event: str) -> list[str]:
        lines = (bob.home / "logs" / "spl.log").read_text().splitlines(keepends=True)
        return [line for line in lines if f"event={event}" in line and line.endswith("\n")]

    line = reloaded('host = "::1"\n[federation]\napproval = "closed"\n', "config.reloaded")
    assert "changed=federation.approval" in line
    assert "after_restart=host" in line
    assert "[handshake-closed]" in alice.run("federation", "pair", bob.url, code=4).err
    assert "config.toml:1" in reloaded("nonsense = 1\n", "config.reload_failed")
    assert "[handshake-closed]" in alice.run("federation", "pair", bob.url, code=4).err
    reloaded('[federation]\napproval = "auto"\n', "config.reloaded")
    assert alice.run("federation", "pair", bob.url).out.endswith("\nPair active.\n")
    assert bob.data("config", "show")
