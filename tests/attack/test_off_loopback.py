"""What a daemon refuses to be started with: no credentials beyond this machine, and a home that others can change."""

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.attack.probes import Make, dial, head, instances, log_text, received, status_of, stopped
from tests.e2e.harness import Instance, eventually

OPEN: Final = "[auth]\nrequired = false\n"
CONFIG_EXIT: Final = 78
"""The exit code of a wrong configuration and of a home that cannot be used."""
ASK: Final = head("GET", "/v1/status", connection="close")
FILES: Final = (
    "lock", "token", "config.toml", "run/spl.sock", "logs/spl.log", "keys/identity.json", "store/clean",
)  # fmt: skip
FOLDERS: Final = ("store", "keys", "secrets", "logs", "run")
SUFFIXES: Final = (".tmp", "~", ".new")
KEPT: Final = b"# not yours\n"


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Return a maker of instances."""
    with instances(tmp_path) as maker:
        yield maker


def outcome(instance: Instance, *flags: str) -> tuple[int | None, str]:
    """Start the daemon; return its exit code, None once it listens, and what it printed."""
    instance.flags = flags
    instance.launch()
    assert instance.process is not None
    process = instance.process

    def settled() -> bool:
        if process.poll() is not None:
            return True
        try:
            dial(instance.port).close()
        except OSError:
            return False
        return True

    eventually(settled, "the daemon listens or ends")
    return process.poll(), instance.output()


def assert_refused(instance: Instance, *flags: str, name: str) -> str:
    """Fail unless the daemon refuses to start, with the exit code of a wrong setup and naming the cause."""
    code, text = outcome(instance, *flags)
    instance.end()
    assert code is not None, f"the daemon started with {flags}\n{text}"
    assert code == CONFIG_EXIT, text
    assert name in text
    assert "Traceback" not in text, text
    return text


# -- without credentials on this machine only


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "::ffff:0.0.0.0", "0"])
def test_no_credentials_beyond_this_machine(make: Make, host: str) -> None:
    """auth.required = false with a host that others reach is refused as --insecure-localhost is."""
    served = make("served", OPEN)
    assert "auth.required" in assert_refused(served, "--host", host, name="[config-invalid]")


def test_the_flag_opens_nothing_beyond_this_machine(make: Make) -> None:
    """--insecure-localhost is refused with such a host as well."""
    assert_refused(make("served"), "--host", "0.0.0.0", "--insecure-localhost", name="[config-invalid]")


def test_no_credentials_beyond_this_machine_by_the_file(make: Make) -> None:
    """The same where file and environment say it, not flags."""
    served = make("served", f'host = "0.0.0.0"\n{OPEN}')
    assert_refused(served, name="[config-invalid]")
    other = make("other", 'host = "0.0.0.0"\n')
    other.env["SPL_AUTH_REQUIRED"] = "false"
    assert_refused(other, name="[config-invalid]")


def test_reading_the_configuration_again_opens_nothing(make: Make) -> None:
    """A daemon that others reach stays closed when its file says otherwise from now on, and says why."""
    served = make("served").start("--host", "0.0.0.0")
    served.configure(OPEN)
    assert served.process is not None
    served.process.send_signal(signal.SIGHUP)
    eventually(lambda: "event=config.reload" in log_text(served), "the configuration was read again")
    with dial(served.port) as sock:
        sock.sendall(ASK)
        assert status_of(received(sock)) == 401, "every client became an administrator"
    assert "event=config.reload_failed" in log_text(served)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost"])
def test_no_credentials_on_this_machine_are_said(make: Make, host: str) -> None:
    """On loopback it is allowed, and the log says at the start that every user of this machine is an administrator."""
    served = make("served", OPEN)
    code, text = outcome(served, "--host", host) if host != "127.0.0.2" else outcome_at(served, host)
    assert code is None, text
    assert "event=auth.off" in log_text(served)


def outcome_at(instance: Instance, host: str) -> tuple[int | None, str]:
    """Start the daemon on another address of this machine, where the harness does not look."""
    instance.flags = ("--host", host)
    instance.launch()
    assert instance.process is not None
    process = instance.process
    eventually(lambda: process.poll() is not None or "daemon.listening" in log_text(instance), "it listens or ends")
    return process.poll(), instance.output()


# -- a home of one's own


@pytest.mark.parametrize("mode", [0o777, 0o707, 0o720], ids=oct)
def test_a_home_that_others_can_write_is_refused(make: Make, mode: int) -> None:
    """Another user could plant keys, tokens and settings: nothing is read or made in it."""
    served = make("served")
    served.home.chmod(mode)
    text = assert_refused(served, name="[home-unusable]")
    assert "chmod" in text, f"the fix is not said: {text}"


def test_a_home_that_others_could_write_is_used_once_they_cannot(make: Make) -> None:
    """The fix that the refusal names is enough."""
    served = make("served")
    served.home.chmod(0o770)
    assert "[home-unusable]" in served.run("init", code=CONFIG_EXIT).err
    served.home.chmod(0o700)
    served.start()


@pytest.mark.parametrize("mode", [0o1777, 0o770], ids=oct)
def test_nothing_is_made_in_a_home_that_others_can_write(tmp_path: Path, mode: int) -> None:
    """A folder that another user may have made first stays as it is."""
    instance = Instance("early", tmp_path / "early")
    instance.home.mkdir()
    instance.home.chmod(mode)
    done = instance.run("init", code=CONFIG_EXIT)
    assert "[home-unusable]" in done.err
    assert list(instance.home.iterdir()) == []


def test_a_home_that_others_can_read_is_used(make: Make) -> None:
    """Its files have modes of their own, so that this gives nothing away."""
    served = make("served")
    served.home.chmod(0o755)
    served.start()
    assert stat.S_IMODE((served.home / "token").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("name", "mode"), [("store", 0o777), ("keys", 0o770), ("config.toml", 0o666), ("token", 0o644)]
)
def test_what_others_can_reach_in_a_home_is_ours_alone(make: Make, name: str, mode: int) -> None:
    """Nothing that they can enter is theirs to write, and no secret theirs to read."""
    served = make("served")
    served.home.chmod(0o755)
    (served.home / name).chmod(mode)
    text = assert_refused(served, name="[home-unusable]")
    assert "chmod" in text, f"the fix is not said: {text}"


@pytest.mark.parametrize("name", ["config.toml", "lock"])
def test_a_fifo_in_the_place_of_a_file_keeps_nobody_waiting(make: Make, name: str) -> None:
    served = make("served")
    (served.home / name).unlink(missing_ok=True)
    os.mkfifo(served.home / name, 0o600)
    assert_refused(served, name="[home-unusable]")


def test_a_fifo_in_the_place_of_the_log_file_keeps_nobody_waiting(make: Make) -> None:
    served = make("served")
    (served.home / "logs").mkdir(mode=0o700, exist_ok=True)
    os.mkfifo(served.home / "logs" / "spl.log", 0o600)
    used(served)


def test_a_folder_in_which_everybody_may_move_the_home_is_named(make: Make) -> None:
    served = make("served")
    served.home.parent.chmod(0o777)
    served.start()
    eventually(lambda: "home.parent_open" in log_text(served), "the open folder is named")


def test_a_home_of_another_owner_is_refused(tmp_path: Path) -> None:
    """Its owner can change everything in it, whatever its mode."""
    home = tmp_path / "theirs"
    home.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(home, 65534, 65534)
    else:
        home = Path("/usr")  # root's, and readable
    before = sorted(home.iterdir())
    instance = Instance("theirs", home, {"HOME": str(tmp_path)})
    done = instance.run("init", code=CONFIG_EXIT)
    assert "[home-unusable]" in done.err
    assert "own" in done.err, f"the message does not say that the owner is another one: {done.err}"
    assert sorted(home.iterdir()) == before


# -- links in it


def used(instance: Instance) -> str:
    """Make identity and token, start the daemon and stop it again; whether it refuses is its own affair."""
    done = instance.run("init", "--label", instance.name, code=None)
    assert "Traceback" not in done.err, done.err
    code, text = outcome(instance)
    if code is None:
        assert stopped(instance) is not None, "the daemon does not end"
    assert "Traceback" not in text, text
    return text


def an_empty_home(tmp_path: Path) -> Instance:
    """Return an instance whose home has the folders of a home and nothing in them."""
    instance = Instance("linked", tmp_path / "home")
    for folder in ("", *FOLDERS):
        (instance.home / folder).mkdir(mode=0o700)
    return instance


@pytest.mark.parametrize(
    ("name", "exists"),
    [*((name, True) for name in FILES), ("lock", False), ("token", False), ("logs/spl.log", False)],
    ids=lambda value: value if isinstance(value, str) else "to-a-file" if value else "to-nothing",
)
def test_a_link_in_the_place_of_a_file_is_not_written_through(tmp_path: Path, name: str, exists: bool) -> None:
    """What it points at keeps its content, its mode and its absence."""
    instance, target = an_empty_home(tmp_path), tmp_path / "target"
    if exists:
        target.write_bytes(KEPT)
        target.chmod(0o644)
    (instance.home / name).symlink_to(target)
    text = used(instance)
    assert target.exists() is exists, f"{name} was followed\n{text}"
    if exists:
        assert (target.read_bytes(), stat.S_IMODE(target.stat().st_mode)) == (KEPT, 0o644), text


def test_links_in_the_place_of_temporaries_are_not_written_through(make: Make, tmp_path: Path) -> None:
    """The names of temporaries can be guessed; the target of a link planted there stays unchanged."""
    grown = make("grown").start()
    grown.emit("th_a")
    grown.stop()
    instance, targets = an_empty_home(tmp_path), {}
    for file in sorted(path for path in grown.home.rglob("*") if path.is_file()):
        for suffix in SUFFIXES:
            link = instance.home / (str(file.relative_to(grown.home)) + suffix)
            target = targets[link] = tmp_path / f"target-{len(targets)}"
            target.write_bytes(KEPT)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)
    text = used(instance)
    changed = [str(link) for link, target in targets.items() if target.read_bytes() != KEPT]
    assert changed == [], text


@pytest.mark.parametrize("name", FOLDERS)
def test_a_link_in_the_place_of_a_folder_is_not_filled(tmp_path: Path, name: str) -> None:
    """Keys, tokens and records stay in the home."""
    instance, target = an_empty_home(tmp_path), tmp_path / "target"
    target.mkdir()
    (instance.home / name).rmdir()
    (instance.home / name).symlink_to(target, target_is_directory=True)
    text = used(instance)
    assert list(target.iterdir()) == [], f"{name} was followed\n{text}"
