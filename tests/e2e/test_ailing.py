"""Findings about a daemon itself: its machine, disk, clock, names or code is at fault, and it says what mends it.

Whatever fails, nothing is called "caught up" for more than 45 seconds while it is not, and what was acknowledged stays.
"""

import os
import re
import shlex
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

from tests.e2e.conftest import AUTO
from tests.e2e.findings import (
    HASTY,
    NAME,
    Faulty,
    House,
    Mounted,
    Named,
    World,
    attention,
    finds,
    later,
    named,
    report,
    seen,
    told,
)  # fmt: skip
from tests.e2e.harness import ROOT, Instance, free_port
from tests.net.conftest import full_queue
from tests.waiting import eventually


def note(text: str, n: int) -> dict[str, Any]:
    return {"act": "KNOW", "actor": "did:sync:user:small", "thread": "th_big", "body": {"text": text, "n": n}}


@finds("loop-blocked")
def test_a_machine_that_stands_still(house: House) -> None:
    """The daemon's process is stopped for more than a second, twice within a minute, which is here twelve beats."""
    still = house("still", "[limits]\nbeat_s = 0.8\n").start()
    assert still.process is not None
    for _ in range(2):
        os.kill(still.process.pid, signal.SIGSTOP)
        time.sleep(2)  # this is the fault, not a wait
        os.kill(still.process.pid, signal.SIGCONT)
        still.get("/health")
    assert seen(still, "loop-blocked")["fix"] == "check its load: top, iostat"
    eventually(lambda: not named(attention(still), "loop-blocked"), "later beats are on time")
    still.stop()


@finds("identity-backup")
def test_an_identity_without_a_copy(house: House, tmp_path: Path) -> None:
    """A day old, here a moment, and never exported."""
    solo = house("solo", "[limits]\nbackup_due_s = 0.001\n").start()
    assert told(solo, "identity-backup")["fix"] == "spl identity export --out FILE"
    fix = seen(solo, "identity-backup")["fix"].replace("FILE", str(tmp_path / "solo.identity"))
    solo.run(*shlex.split(fix)[1:])
    assert attention(solo) == report(solo)["problems"] == []


@finds("warming-up")
def test_a_daemon_that_is_still_coming_up(house: House) -> None:
    """It was killed, so its log is made durable before it is served, and the disk hangs; a stop ends it even then."""
    slow = house("slow", "[limits]\nshutdown_s = 0.5\n", Faulty, fault="slow-disk").start()
    written = slow.emit("th_work", 3)
    slow.kill()
    with slow.at_fault():
        slow.launch()
        eventually(lambda: slow.holder == slow.process.pid, "the new process holds the home")
        done = slow.run("doctor", "-o", "json", code=3)
        found = named(done.data["problems"], "warming-up")
        assert found["fix"] == "wait; its output shows the progress"
        assert slow.stop() in (0, 1), slow.output()  # cut if it still hangs when its time is over
    slow.start()
    assert {record["id"] for record in slow.records("th_work")} == set(written)
    assert report(slow)["problems"] == []


@finds("task-dead")
def test_a_task_that_dies(house: House, world: World) -> None:
    """An error of our own ends what reads from a peer; while it is started again and again nothing is "caught up"."""
    carol = house("carol", f"[limits]{HASTY}", Faulty, fault="dying-task").start()
    pair_id = carol.paired(world.proxy.url)
    carol.run("sync", pair_id)
    assert ", caught up\n" in carol.run("federation", "show", pair_id).out
    with carol.at_fault():
        carol.run("federation", "set-poll-interval", pair_id, "1s")
        assert told(carol, "task-dead")["fix"] == "spl logs"
        assert pair_id in seen(carol, "task-dead")["title"]
        page = carol.run("federation", "show", pair_id).out
        assert ", caught up\n" not in page
        assert "task died [internal]" in page
        assert "sync.task_died" in carol.run("logs", "level=error").out
    eventually(lambda: not attention(carol), "it runs again")
    carol.stop()


@finds("queue-high")
def test_a_disk_that_is_slower_than_the_network(house: House, world: World) -> None:
    """Records wait for a disk that hangs; neither status nor show calls that "caught up", and nothing is lost."""
    dave = house("dave", f"[limits]{HASTY}", Faulty, fault="slow-disk").start()
    pair_id = dave.paired(world.proxy.url)
    with dave.at_fault():
        sent = world.bob.emit("th_much", 200)
        Thread(target=dave.api, args=("POST", "/v1/sync", {}), daemon=True).start()
        assert told(dave, "queue-high")["fix"] == "check disk and processor of this machine"
        assert "wait between network and store" in seen(dave, "queue-high", pair_id)["title"]
    eventually(lambda: len(dave.records("th_much")) == len(sent), "all came")
    eventually(lambda: not attention(dave), "nothing waits")
    dave.stop()


@finds("peer-behind")
def test_a_peer_whose_disk_hangs(house: House) -> None:
    """The peer's stream is open and nothing fails here, and yet what is written does not arrive: status says so."""
    gwen = house("gwen", f"{AUTO}[limits]{HASTY}stream_silence_s = 5\nheartbeat_s = 0.2\n").start()
    hugo = house("hugo", f"[limits]{HASTY}", Faulty, fault="slow-disk").start()
    pair_id = hugo.paired(gwen.url)
    hugo.run("federation", "set-mode", pair_id, "continuous")
    sent = gwen.emit("th_hangs")
    eventually(lambda: gwen.pair(pair_id)["outbound"]["lag_records"] == 0, "hugo confirmed the first")
    with hugo.at_fault():
        sent += gwen.emit("th_hangs", 3)
        found = told(gwen, "peer-behind")
        assert (found["fix"], found["severity"]) == ("on hugo: spl doctor", "warn")
        assert found["title"].startswith("3 records wait here for hugo, which has confirmed nothing for ")
        seen(gwen, "peer-behind", pair_id)
    eventually(lambda: not attention(gwen), "hugo confirmed the rest")
    assert {item["id"] for item in hugo.records("th_hangs")} == set(sent)
    for each in (hugo, gwen):
        each.stop()


@finds("intake-paused")
def test_a_peer_that_brought_in_a_days_bytes(house: House) -> None:
    """Its intake pauses and nothing is lost; what the finding says to do lets as much in again, and the rest comes."""
    ivan = house("ivan", AUTO).start()
    jane = house("jane", "[limits]\nintake_day_bytes = 20000\n").start()
    pair_id = jane.paired(ivan.url)
    sent = ivan.emit("th_much", 60)
    while len(jane.records("th_much")) < len(sent):
        jane.api("POST", "/v1/sync", {})
        if named(attention(jane), "intake-paused"):
            found = told(jane, "intake-paused")
            assert (found["fix"], found["severity"]) == (f"spl federation resume {pair_id}", "warn")
            assert found["title"].startswith("ivan brought in 20,000 bytes within a day, all that a pair may; ")
            seen(jane, "intake-paused", pair_id)
            assert "; PAUSED, resumes" in jane.run("federation", "show", pair_id).out
            assert jane.run("sync", pair_id, code=9).code == 9
            assert "already" not in jane.run(*found["fix"].split()[1:]).out
    assert {item["id"] for item in jane.records("th_much")} == set(sent)
    assert jane.pair(pair_id)["refused_records"] == 0
    for each in (ivan, jane):
        each.stop()


@finds("no-route")
def test_a_machine_without_a_network(house: House, world: World) -> None:
    """Its own network is down: nothing is said of the peer, and when it is up again all is well by itself."""
    lucy = house("lucy", f"[limits]{HASTY}", Faulty, fault="no-network").start()
    pair_id = lucy.paired(world.proxy.url)
    with lucy.at_fault():
        lucy.run("sync", pair_id, code=9)
        found = told(lucy, "no-route")
        assert "Network is unreachable" in found["title"]
        assert found["fix"] == "look at this machine's network: ip route get 127.0.0.1"
        assert named(report(lucy, pair_id)["problems"], "no-route")
    eventually(lambda: not attention(lucy), "it is back on the network")
    lucy.stop()


@finds("auth-off")
def test_a_daemon_without_credentials(house: House) -> None:
    """Status and doctor say it until the configuration is read again with credentials on."""
    open_ = house("open", "[auth]\nrequired = false\n").start()
    found = told(open_, "auth-off")
    assert found["fix"] == "spl config set auth.required true"
    seen(open_, "auth-off")
    open_.run(*found["fix"].split()[1:])
    eventually(lambda: not attention(open_), "the configuration was read again")
    open_.stop()


def test_an_open_stream_whose_records_are_not_taken_in(house: House, world: World) -> None:
    """The stream is open and no error is met, but the disk hangs: after 45 seconds show no longer says "caught up"."""
    limits = f"[limits]{HASTY}stream_silence_s = 5\nheartbeat_s = 0.2\n"
    kate = house("kate", limits, Faulty, fault="slow-disk").start()
    pair_id = kate.paired(world.proxy.url)
    world.bob.stop()
    world.bob.configure(f"{AUTO}[limits]\nheartbeat_s = 0.2\n").start()
    kate.run("federation", "set-mode", pair_id, "continuous")
    eventually(lambda: (kate.pair(pair_id)["stream"] or {}).get("state") == "open", "the stream is open")
    assert ", caught up\n" in kate.run("federation", "show", pair_id).out
    with kate.at_fault():
        world.bob.emit("th_live", 3)
        # Before that, its lag may have been heard of: then the records that wait are the same finding.
        overdue = "the last answer of the peer is "
        eventually(lambda: overdue in str(named(attention(kate), "cursor-stalled")), "it is overdue")
        found = told(kate, "cursor-stalled")
        assert found["title"].startswith(overdue)
        assert found["fix"] == f"spl sync {pair_id}"
        assert kate.pair(pair_id)["stream"]["state"] == "open"
        page = later(kate, "federation", "show", pair_id)
        assert ", caught up\n" not in page
        assert "(as of " in page
        assert "was confirmed last" in later(kate, "status")
    eventually(lambda: len(kate.records("th_live")) == 3, "all came")
    eventually(lambda: not named(attention(kate), "cursor-stalled"), "the peer's word is fresh again")
    kate.stop()
    world.bob.stop()
    world.bob.configure(AUTO).start()


@finds("disk-low", "store-full")
def test_a_disk_that_fills_up(house: House) -> None:
    """A file system of four megabytes: low from the start, and full in the end; nothing acknowledged is lost.

    Reading goes on, and as soon as there is room again, writing too.
    """
    small = house("small", "[limits]\ndisk_floor_bytes = 1\n", Mounted, mount="size=4m")
    small.start()
    ballast = small.store / "ballast"
    ballast.write_bytes(bytes(1_000_000))
    found = told(small, "disk-low")
    assert (found["severity"], found["fix"]) == ("fail", "free some space, or move the home")
    assert seen(small, "disk-low")["title"].endswith(" MB free on the disk of the store")
    kept = 0
    while small.api("POST", "/v1/records", note("x" * 400_000, kept)).status == 200:
        kept += 1
        assert kept < 100
    # What is left has room for less than a record, which the daemon would find and write on.
    with suppress(OSError), (small.store / "rest").open("wb", buffering=0) as rest:
        while rest.write(bytes(4096)):
            pass
    assert small.api("POST", "/v1/records", note("x" * 400_000, kept)).status == 503
    found = seen(small, "store-full")
    assert found["fix"] == "free some space; writing goes on by itself"
    assert re.search("No space left on device|MB are free on the disk", found["title"])
    assert small.run("health", code=3).out.startswith("not ready")
    assert len(small.records("th_big")) == kept
    ballast.unlink()
    assert small.api("POST", "/v1/records", note("y", kept)).status == 200
    assert not named(report(small)["problems"], "store-full")


@finds("store-readonly")
def test_a_disk_that_fails_a_sync(house: House) -> None:
    """Whatever the disk says afterwards: nothing is acknowledged until a restart, and what was is there then."""
    fay = house("fay", "", Faulty, fault="broken-disk").start()
    assert fay.api("POST", "/v1/records", note("kept", 0)).status == 200
    with fay.at_fault():
        assert fay.api("POST", "/v1/records", note("lost", 1)).status == 503
        assert fay.api("POST", "/v1/records", note("lost", 2)).json["code"] == "STORE_READONLY"
        assert seen(fay, "store-readonly")["fix"] == "check the disk, then restart"
        assert fay.run("health", code=3).out.startswith("not ready")
        assert fay.stop() == 0, fay.output()
    fay.start()
    assert fay.api("POST", "/v1/records", note("kept", 3)).status == 200
    fay.stop()


# -- names and addresses


@finds("dns", "address-refused", "http-plain")
def test_a_name_that_leads_elsewhere(house: House, world: World) -> None:
    """The peer's name is gone, or stands for an address that is never dialled, or not in the open."""
    erin = house("erin", f"[limits]{HASTY}", Named)
    erin.names("127.0.0.1")
    erin.start()
    world.bob.stop()
    world.bob.start("--public-url", world.proxy.url.replace("127.0.0.1", NAME))
    pair_id = erin.paired(world.proxy.url.replace("127.0.0.1", NAME))
    assert not named(report(erin, pair_id)["problems"], "dns")
    refresh = f"spl federation refresh {pair_id} --url {world.proxy.url.replace('127.0.0.1', NAME)}"
    right = f"correct what {NAME} resolves to; if a private address is right: {refresh}"
    for address, code, fix in (
        ("", "dns", "check the name and the resolver"),
        ("169.254.1.1", "address-refused", right),
        (
            "9.9.9.9",
            "http-plain",
            "use https; where nobody listens on the way: spl config set federation.allow_http true",
        ),
    ):
        erin.names(address)
        assert seen(erin, code, pair_id)["fix"] == fix
    erin.names("127.0.0.1")
    # Bob, with a name for his endpoint, dials no loopback address; that is another matter.
    eventually(lambda: {item["code"] for item in report(erin, pair_id)["problems"]} <= {"reverse-unreachable"}, "well")
    erin.stop()
    world.bob.stop()
    world.bob.start("--public-url", world.proxy.url)


def test_a_name_of_which_some_addresses_do_not_answer(house: House) -> None:
    """Dual stack with a broken half: the pair is made over the address that answers, wherever it stands."""
    port = free_port()
    bob = house("bob-of-three", AUTO, port=port).start("--public-url", f"http://{NAME}:{port}")
    erin = house("erin-of-three", "", Named)
    erin.names("127.0.0.2", "127.0.0.1", "127.0.0.3")
    erin.start()
    with full_queue("127.0.0.2", port), full_queue("127.0.0.3", port):
        erin.paired(f"http://{NAME}:{port}/")
    erin.stop()
    bob.stop()


class Installed(Instance):
    """An instance whose daemon runs a copy of the program, beside its home."""

    @property
    def program(self) -> Path:
        """The folder of the copy."""
        return self.home.parent / "program"

    def command(self, *words: str) -> list[str]:
        return ["env", "-C", str(self.program), f"PYTHONPATH={self.program}", *super().command(*words)]


@finds("program-replaced")
def test_a_program_that_is_replaced_under_its_daemon(house: House) -> None:
    """What is loaded goes on; whether writes are taken, which may need another file, is what readiness says."""
    erin = house("erin", "", Installed)
    shutil.copytree(ROOT / "spl", erin.program / "spl", ignore=shutil.ignore_patterns("__pycache__"))
    package, away = erin.program / "spl", erin.program / "spl.old"
    erin.start()
    assert attention(erin) == []
    package.rename(away)
    assert told(erin, "program-replaced")["fix"] == "stop the daemon, then: spl serve"
    record = {"act": "KNOW", "actor": "did:sync:user:erin", "thread": "th_a", "body": {}}
    assert (erin.get("/health/ready").code, erin.api("POST", "/v1/records", record).code) == ("PROGRAM_REPLACED",) * 2
    away.rename(package)
    assert (erin.get("/health/ready").status, attention(erin)) == (200, [])
    ids = erin.emit("th_work", 2)
    package.rename(away)
    assert erin.get("/health/ready").status == 200
    ids += erin.emit("th_work", 2)
    assert told(erin, "program-replaced")
    assert [record["id"] for record in erin.records("th_work")] == ids
    away.rename(package)
    erin.stop()
