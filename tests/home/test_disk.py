"""Promises of the disk port: atomic replacement, readers that outlive a name, one holder of a home."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spl.home.disk import Disk, DiskError, lock_home

HOLD = """
import sys
from pathlib import Path
from spl.home.disk import lock_home
lock = lock_home(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_home_locked_by_another_process_names_pid_and_start(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout
        assert child.stdout.readline() == "held\n"
        with pytest.raises(DiskError) as caught:
            lock_home(tmp_path)
        started = (tmp_path / "lock").read_text().split("\n")[1]
        assert caught.value.code == "store-locked"
        assert f"process {child.pid} " in str(caught.value)
        assert started in str(caught.value)
        assert caught.value.facts["pid"] == str(child.pid)
        child.kill()
        child.wait()
        lock_home(tmp_path).release()
    finally:
        child.kill()
        child.communicate()


def test_a_released_home_can_be_locked_again(tmp_path: Path) -> None:
    first = lock_home(tmp_path / "new" / "home")
    with pytest.raises(DiskError):
        lock_home(tmp_path / "new" / "home")
    first.release()
    first.release()
    lock_home(tmp_path / "new" / "home").release()
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_a_home_that_cannot_be_a_folder_is_unusable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "odd" / "lock").mkdir(parents=True)
    for folder in (tmp_path / "file" / "home", tmp_path / "odd"):
        with pytest.raises(DiskError) as caught:
            lock_home(folder)
        assert caught.value.code == "home-unusable"


def test_replacing_a_file_that_fails_halfway_leaves_the_old_one(tmp_path: Path) -> None:
    class NoRename(Disk):
        def rename(self, old: Path, new: Path) -> None:
            raise OSError("no")

    path = tmp_path / "value"
    Disk().replace_atomic(path, b"old")
    path.chmod(0o640)
    with pytest.raises(OSError, match="no"):
        NoRename().replace_atomic(path, b"new")
    assert Disk().read(path, 10) == b"old"
    assert path.stat().st_mode & 0o777 == 0o640
    Disk().replace_atomic(path, b"new")
    assert Disk().read(path, 10) == b"new"
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_unlinked_file_stays_readable_until_the_last_reader_lets_go(tmp_path: Path) -> None:
    disk, path = Disk(), tmp_path / "file"
    disk.create(path).write(b"content")
    file = disk.open_read(path)
    disk.unlink(path)
    disk.unlink(path)
    others = [disk.create(tmp_path / str(i)) for i in range(5)]
    assert file.pread(100, 0) == b"content"
    assert file.pread(3, 4) == b"ent"
    assert len(others) == 5
    fds = len(os.listdir("/proc/self/fd"))
    del file, others
    assert len(os.listdir("/proc/self/fd")) == fds - 6


def test_reading_is_bounded_and_absence_is_no_error(tmp_path: Path) -> None:
    disk, path = Disk(), tmp_path / "file"
    assert disk.read(path, 10) is None
    assert disk.list(tmp_path / "none") == []
    path.write_bytes(b"x" * 11)
    with pytest.raises(OSError, match="too large"):
        disk.read(path, 10)
    assert disk.list(tmp_path) == ["file"]
    assert disk.free_bytes(tmp_path) > 0


def test_mapped_bytes_are_those_of_the_file_wherever_they_begin(tmp_path: Path) -> None:
    file = Disk().create(tmp_path / "file")
    content = bytes(range(256)) * 100
    file.pwrite(content, 0)
    for size, offset in ((1, 0), (10, 4095), (5000, 4097), (25_600, 0)):
        assert bytes(file.map(size, offset)) == content[offset : offset + size]


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_a_home_that_others_may_write_into_is_refused(tmp_path: Path, mode: int) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(mode)
    for use in (Disk().own, lock_home):
        with pytest.raises(DiskError) as caught:
            use(home)
        assert (caught.value.code, caught.value.hint) == (
            "home-unusable", f"look at what is in it, then: chmod go-w {home}",
        )  # fmt: skip
    assert list(home.iterdir()) == []
    home.chmod(0o755)
    lock_home(home).release()


def a_home(folder: Path) -> Path:
    """Return a home that others can enter, and in which nothing is theirs."""
    home = folder / "home"
    for name in ("keys", "store", "logs"):
        (home / name).mkdir(parents=True)
        (home / name).chmod(0o755)
    for name in ("keys/identity.json", "store/1.seg", "config.toml", "token"):
        (home / name).touch(0o600)
    home.chmod(0o755)
    return home


@pytest.mark.parametrize(("name", "mode"), [
    ("store", 0o777), ("logs", 0o775), ("keys", 0o1777), ("config.toml", 0o666), ("config.toml", 0o620),
    ("keys/identity.json", 0o666), ("store/1.seg", 0o602), ("token", 0o604), ("keys/identity.json", 0o644),
])  # fmt: skip
def test_below_a_home_that_others_enter_they_write_nothing_and_read_no_secret(
    tmp_path: Path, name: str, mode: int
) -> None:
    home = a_home(tmp_path)
    lock_home(home).release()
    (home / name).chmod(mode)
    for use in (Disk().own, lock_home):
        with pytest.raises(DiskError) as caught:
            use(home)
        assert caught.value.code == "home-unusable"
        assert str(home / name) in caught.value.message
        assert "chmod" in caught.value.hint
    home.chmod(0o700)
    lock_home(home).release()


def test_what_others_cannot_reach_or_may_read_keeps_no_home_from_use(tmp_path: Path) -> None:
    home = a_home(tmp_path)
    (home / "keys/identity.json").chmod(0o666)
    (home / "keys").chmod(0o700)
    (home / "token").chmod(0o640)
    (home / "config.toml").chmod(0o644)
    (home / "store/1.seg").chmod(0o644)
    (home / "link").symlink_to("/dev/null")
    lock_home(home).release()


def test_what_another_user_owns_in_a_home_that_others_enter_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, mine = a_home(tmp_path), os.geteuid()
    answers = iter([mine, 12345])
    monkeypatch.setattr(os, "geteuid", lambda: next(answers, 12345))
    if mine == 0:
        os.chown(home / "store/1.seg", 4321, -1)
    with pytest.raises(DiskError) as caught:
        Disk().own(home)
    assert "owned by user" in caught.value.message


def test_a_folder_in_which_everybody_may_move_a_home_away_is_named(tmp_path: Path) -> None:
    above, home = tmp_path / "above", tmp_path / "above" / "folder" / "home"
    home.mkdir(parents=True)
    for mode, found in ((0o755, False), (0o777, True), (0o1777, False), (0o775, False)):
        above.chmod(mode)
        assert (Disk().open_parent(home) == above) == found


def test_only_regular_files_are_opened_and_nothing_is_waited_for(tmp_path: Path) -> None:
    """A FIFO in the place of a file would keep us waiting for who writes into it."""
    disk = Disk()
    os.mkfifo(tmp_path / "fifo", 0o600)
    (tmp_path / "link").symlink_to("fifo")
    os.mkfifo(tmp_path / "lock", 0o600)
    (tmp_path / "folder").mkdir()
    for use in (
        lambda: disk.read(tmp_path / "fifo", 99), lambda: disk.read(tmp_path / "fifo", 99, follow=True),
        lambda: disk.read(tmp_path / "link", 99, follow=True), lambda: disk.open_read(tmp_path / "fifo"),
        lambda: disk.open_append(tmp_path / "fifo"), lambda: lock_home(tmp_path),
    ):  # fmt: skip
        with pytest.raises(DiskError) as caught:
            use()
        assert caught.value.code == "home-unusable"
        assert "no regular file" in caught.value.message
    with pytest.raises(IsADirectoryError):
        disk.read(tmp_path / "folder", 99)


def test_a_home_of_another_owner_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(DiskError) as caught:
        lock_home(tmp_path)
    assert caught.value.code == "home-unusable"
    assert "owned by user" in str(caught.value)


def test_the_home_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "home").symlink_to(tmp_path / "real")
    lock_home(tmp_path / "home").release()
    assert (tmp_path / "real" / "lock").exists()


def test_no_link_in_a_home_is_followed(tmp_path: Path) -> None:
    """Nothing is read or written through it; a temporary is replaced by one of our own."""
    home, target = tmp_path / "home", tmp_path / "target"
    home.mkdir(mode=0o700)
    target.write_bytes(b"theirs")
    disk, link = Disk(), home / "x"
    link.symlink_to(target)
    (home / "lock").symlink_to(target)
    (home / "y.tmp").symlink_to(target)
    (home / "folder").symlink_to(tmp_path, target_is_directory=True)
    for use in (
        lambda: disk.open_append(link), lambda: disk.open_read(link), lambda: disk.read(link, 99),
        lambda: lock_home(home), lambda: disk.mkdir(home / "folder"),
    ):  # fmt: skip
        with pytest.raises(DiskError) as caught:
            use()
        assert caught.value.code == "home-unusable"
        assert "symbolic link" in str(caught.value)
    assert disk.read(link, 99, follow=True) == b"theirs"
    disk.replace_atomic(home / "y", b"ours")
    disk.replace_atomic(link, b"ours")
    assert (target.read_bytes(), link.read_bytes(), link.is_symlink()) == (b"theirs", b"ours", False)


def test_a_file_that_is_made_anew_is_ours(tmp_path: Path) -> None:
    other = os.open(tmp_path / "x", os.O_CREAT | os.O_RDWR, 0o666)
    try:
        file = Disk().create(tmp_path / "x")
        file.write(b"secret")
        assert os.pread(other, 9, 0) == b""
        assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600
    finally:
        os.close(other)


def test_a_file_system_that_syncs_no_folders_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any other failure of the sync is one."""
    fault = errno.EINVAL

    def fails(fd: int) -> None:
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(os, "fsync", fails)
    Disk().replace_atomic(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    fault = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        Disk().fsync_dir(tmp_path)


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fails)
    with pytest.raises(DiskError) as caught:
        lock_home(tmp_path / "home")
    assert (caught.value.code, "has no locks" in caught.value.message) == ("home-unusable", True)
    assert "move the home" in caught.value.hint
