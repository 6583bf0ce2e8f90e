"""What works without a daemon: making a home twice is harmless, and keys at rest can be proved whole."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from spl.core.errors import SplError
from spl.core.identity import bearer
from spl.home import home as setup
from spl.home.config import Config
from spl.home.disk import Disk
from spl.home.home import open_home


def test_init_makes_what_is_missing_and_keeps_the_rest(tmp_path: Path) -> None:
    first = setup.init_home(tmp_path / "h", "alice")
    assert first["created"] == ["config", "identity", "token"]
    token = (tmp_path / "h" / "token").read_text()
    assert (tmp_path / "h" / "token").stat().st_mode & 0o777 == 0o600
    again = setup.init_home(tmp_path / "h", "other")
    assert (again["created"], again["did"]) == ([], first["did"])
    assert (tmp_path / "h" / "token").read_text() == token


def test_the_token_of_init_is_admin_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    setup.init_home(tmp_path / "h", "alice")
    text = (tmp_path / "h" / "token").read_text().strip()
    home = open_home(tmp_path / "h", Config(), disk=Disk(), progress=lambda done, total: None)
    token = home.views.tokens_by_hash[bearer.hash_of(text)]
    assert token.scopes == {"admin"}
    home.close()
    secret = text.rpartition("_")[2].encode()
    log = b"".join(path.read_bytes() for path in (tmp_path / "h" / "store").glob("*.jsonl"))
    assert token.hash.encode() in log
    assert secret not in log


def test_a_lost_token_is_made_again(tmp_path: Path) -> None:
    setup.init_home(tmp_path / "h", "alice")
    (tmp_path / "h" / "token").unlink()
    assert setup.init_home(tmp_path / "h")["created"] == ["token"]


def test_identity_generate_show_verify(tmp_path: Path) -> None:
    assert setup.show_identity(tmp_path / "h") is None
    with pytest.raises(SplError) as caught:
        setup.verify_identity(tmp_path / "h")
    assert caught.value.code == "identity-missing"
    made = setup.generate_identity(tmp_path / "h", "alice")
    assert not made["kept"]
    assert setup.generate_identity(tmp_path / "h", "bob")["kept"]
    assert setup.verify_identity(tmp_path / "h")["verified"]
    shown = setup.show_identity(tmp_path / "h")
    assert shown is not None
    assert shown["did"] == made["did"]
    forced = setup.generate_identity(tmp_path / "h", "alice", force=True)
    assert forced["did"] != made["did"]


def test_a_key_that_is_not_the_dids_is_found(tmp_path: Path) -> None:
    setup.generate_identity(tmp_path / "h", "alice")
    path = tmp_path / "h" / "keys" / "identity.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value).replace("alice", "alicf"))
    with pytest.raises(SplError) as caught:
        setup.verify_identity(tmp_path / "h")
    assert caught.value.code == "identity-damaged"


def test_while_a_process_holds_the_home_nothing_is_done(tmp_path: Path) -> None:
    setup.init_home(tmp_path / "h", "alice")
    home = open_home(tmp_path / "h", Config(), disk=Disk(), progress=lambda done, total: None)
    for call in (setup.init_home, setup.generate_identity, setup.show_identity, setup.verify_identity):
        with pytest.raises(SplError) as caught:
            call(tmp_path / "h")
        assert caught.value.code == "store-locked"
    home.close()


def test_the_default_label_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for host, label in (("Alice-PC.local", "alice-pc"), ("ÄÖ", "spl"), ("a" * 60, "a" * 32), ("", "spl")):
        monkeypatch.setattr("os.uname", lambda host=host: SimpleNamespace(nodename=host))
        assert setup.default_label() == label


def test_rotation_export_and_import_on_the_home_itself(tmp_path: Path) -> None:
    first = setup.init_home(tmp_path / "h", "alice")
    copy = setup.export_identity(tmp_path / "h")
    rotated = setup.rotate_identity(tmp_path / "h", True)
    assert (rotated["did"], rotated["rotations"]) == (first["did"], 1)
    assert setup.verify_identity(tmp_path / "h")["verified"] is True
    assert setup.import_identity(tmp_path / "new", copy)["words"] == first["words"]
    with pytest.raises(SplError) as caught:
        setup.import_identity(tmp_path / "h", copy)
    assert caught.value.code == "manifest-stale"
