"""Opening a home: in order, under its lock, and refused whole when it cannot be used."""

from pathlib import Path

import pytest

from spl.core.errors import SplError
from spl.home.check import facts_of_home
from spl.home.config import Config
from spl.home.disk import Disk
from spl.home.home import init_home, open_home, read_config
from spl.home.writes import Emit


def silent(done: int, total: int) -> None:
    pass


def test_a_home_is_made_private_and_opens_again(tmp_path: Path) -> None:
    home = open_home(tmp_path / "h", Config(), disk=Disk(), progress=silent)
    home.adopt(home.vault.generate("alice"))
    future = home.writer.submit([Emit({"act": "KNOW", "actor": "did:sync:user:a", "body": {}, "thread": "th"})])
    home.writer.commit_waiting()
    held = future.result(0)[0].envelope
    home.close()
    assert (tmp_path / "h").stat().st_mode & 0o777 == 0o700
    again = open_home(tmp_path / "h", Config(), disk=Disk(), progress=silent)
    assert again.views.did == home.views.did
    assert held is not None
    assert again.store.index.find(held.id, "default") is not None
    again.close()


def test_one_process_holds_a_home(tmp_path: Path) -> None:
    home = open_home(tmp_path / "h", Config(), disk=Disk(), progress=silent)
    with pytest.raises(SplError) as caught:
        open_home(tmp_path / "h", Config(), disk=Disk(), progress=silent)
    assert caught.value.code == "store-locked"
    home.close()
    open_home(tmp_path / "h", Config(), disk=Disk(), progress=silent).close()


def test_a_home_that_cannot_be_opened_is_left_unlocked(tmp_path: Path) -> None:
    (tmp_path / "h").mkdir(mode=0o700)
    (tmp_path / "h" / "keys").mkdir()
    (tmp_path / "h" / "keys" / "identity.json").write_text("{")
    for _ in range(2):
        with pytest.raises(SplError) as caught:
            open_home(tmp_path / "h", Config(), disk=Disk(), progress=silent)
        assert caught.value.code == "identity-damaged"


def test_the_place_of_a_volume_that_is_not_mounted_is_no_new_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is remembered outside of the home says whose it was; it is remembered of volumes alone."""
    home, mounted = tmp_path / "h", [False]
    monkeypatch.setattr(Path, "is_mount", lambda path: path == home and mounted[0])
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    init_home(tmp_path / "other")
    assert not (tmp_path / "state").exists()
    mounted[0] = True
    did = init_home(home)["did"]
    init_home(home)
    mounted[0] = False
    init_home(home)  # moved off the volume, it is a home like others
    home.rename(tmp_path / "volume")
    for is_there in (False, True):
        if is_there:
            home.mkdir(mode=0o700)
        for opening in (lambda: init_home(home), lambda: init_home(home, new_log=True), lambda: facts_of_home(home)):
            with pytest.raises(SplError) as caught:
                opening()
            assert caught.value.code == "store-missing"
            assert str(did) in caught.value.message
        assert is_there == home.exists()
    with pytest.raises(SplError):
        open_home(home, Config(), disk=Disk(), progress=silent)
    home.joinpath("lock").unlink()
    assert not list(home.iterdir())
    Path(caught.value.hint.split("rm ")[1]).unlink()
    assert init_home(home)["did"] != did


def test_configuration_comes_from_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_config(tmp_path, Disk(), {}) == Config(sources={})
    (tmp_path / "config.toml").write_text("port = 7\n")
    assert read_config(tmp_path, Disk(), {}).port == 7
    assert read_config(tmp_path, Disk(), {"port": 8}).port == 8
    monkeypatch.setenv("SPL_PORT", "9")
    assert read_config(tmp_path, Disk(), {}).port == 9
    (tmp_path / "config.toml").write_bytes(b"\xff")
    with pytest.raises(SplError) as caught:
        read_config(tmp_path, Disk(), {})
    assert caught.value.code == "config-invalid"


def test_the_log_of_another_home_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    """The wrong volume: nothing is written to it, and only the operator's word makes it this home's log."""
    for name in ("h", "other"):
        init_home(tmp_path / name)
    mine, theirs = tmp_path / "h" / "store", tmp_path / "other" / "store"
    mine.rename(tmp_path / "away")
    theirs.rename(mine)
    files = {path.name: path.read_bytes() for path in mine.glob("*.jsonl")}
    for opens in (lambda: open_home(tmp_path / "h", Config(), disk=Disk(), progress=silent).close(),
                  lambda: init_home(tmp_path / "h", new_log=True), lambda: facts_of_home(tmp_path / "h")):  # fmt: skip
        with pytest.raises(SplError) as caught:
            opens()
        assert (caught.value.code, f"rm {tmp_path}" in caught.value.hint) == ("store-missing", True)
    assert {path.name: path.read_bytes() for path in mine.glob("*.jsonl")} == files
    note = tmp_path / "h" / "secrets" / "log-epoch"
    epoch = note.read_text()
    note.unlink()
    open_home(tmp_path / "h", Config(), disk=Disk(), progress=silent).close()
    assert note.read_text() != epoch
