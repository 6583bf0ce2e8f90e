"""The vault: what it wrote is durable and private, what it cannot read it refuses, and it never shows a secret."""

import json
import os
import stat
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from spl.core import canon
from spl.core.errors import SplError
from spl.core.identity.did import certifies, did_of, multibase
from spl.core.keys import SecretKey, b64, box_public
from spl.core.limits import Limits
from spl.home.disk import Disk, File
from spl.home.vault import NONCES_NAME, Identity, Vault

NOW_MS = 1_764_000_000_000
LATER_MS = NOW_MS + 600_000


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.ms = NOW_MS

    def __call__(self) -> int:
        return self.ms


class FailingFile(File):
    """A file whose next write stops half-way, as on a full disk."""

    def write(self, data: bytes) -> None:
        super().write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")


class FailingDisk(Disk):
    """The real disk until told to fail, with an account of what was synced."""

    def __init__(self) -> None:
        self.failing = ""
        self.log: list[str] = []

    def open_append(self, path: Path) -> File:
        file = super().open_append(path)
        if self.failing == "append":
            return FailingFile(os.dup(file._fd))
        self.log.append("append")
        return file

    def replace_atomic(self, path: Path, data: bytes) -> None:
        if self.failing == "replace":
            raise OSError(30, "Read-only file system")
        self.log.append(f"replace {path.name}")
        super().replace_atomic(path, data)

    def fsync_dir(self, folder: Path) -> None:
        self.log.append(f"fsync {folder.name}")
        super().fsync_dir(folder)


def a_vault(home: Path, disk: Disk | None = None, clock: Clock | None = None, limits: Limits | None = None) -> Vault:
    numbers = count(1)

    def random_bytes(size: int) -> bytes:
        return next(numbers).to_bytes(2, "big") * (size // 2)

    return Vault(home, disk or Disk(), random_bytes=random_bytes, now_ms=clock or Clock(), limits=limits)


def refused(code: str, call: Any, *args: Any) -> SplError:
    with pytest.raises(SplError) as caught:
        call(*args)
    assert caught.value.code == code
    return caught.value


def identity_path(home: Path) -> Path:
    return home / "keys" / "identity.json"


# Identity


def test_a_fresh_home_has_no_identity_and_loading_creates_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    vault = a_vault(home)
    assert vault.load() is None
    assert vault.names() == []
    assert vault.get("x") is None
    vault.delete("x")
    assert not home.exists()


def test_an_identity_survives_a_restart(tmp_path: Path) -> None:
    made = a_vault(tmp_path).generate("bob")
    assert made.did == did_of("bob", made.key.public)
    assert certifies(made.did, made.chain.first)
    assert made.created_at_ms == NOW_MS
    assert made.seal_key == box_public(made.seal_secrets[0])
    assert made.key_text == multibase(made.chain.present)
    vault = a_vault(tmp_path)
    found = vault.load()
    assert found is not None
    assert vault.identity is found
    assert (found.did, found.label, found.chain, found.seal_secrets) == (made.did, "bob", made.chain, made.seal_secrets)
    assert found.key.sign(b"x") == made.key.sign(b"x")


def test_files_are_private(tmp_path: Path) -> None:
    home = tmp_path / "home"
    old = os.umask(0)
    try:
        vault = a_vault(home)
        vault.generate("bob")
        vault.put("peer-token.pair_a1b2c3d4", "secret")
        vault.remember_nonce("did:a", "0" * 32, LATER_MS)
        vault.cursor_key()
    finally:
        os.umask(old)
    for path in (home, *home.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_generate_keeps_what_is_there_and_force_keeps_a_copy(tmp_path: Path) -> None:
    first = a_vault(tmp_path).generate("bob")
    before = identity_path(tmp_path).read_bytes()
    assert a_vault(tmp_path).generate("other").did == first.did
    assert identity_path(tmp_path).read_bytes() == before
    vault = a_vault(tmp_path)
    vault._random_bytes = lambda size: b"n" * size
    second = vault.generate("bob", force=True)
    assert second.did != first.did
    assert vault.identity is second
    copies = [path for path in (tmp_path / "keys").iterdir() if path.name != "identity.json"]
    assert [path.read_bytes() for path in copies] == [before]


def test_a_bad_label_makes_nothing(tmp_path: Path) -> None:
    for label in ("", "Bob", "a" * 33, "a b", "a\n"):
        refused("bad-field", a_vault(tmp_path).generate, label)
    assert list(tmp_path.iterdir()) == []


def changed(home: Path, **members: Any) -> None:
    path = identity_path(home)
    path.write_bytes(canon.encode({**json.loads(path.read_bytes()), **members}))


OTHER = SecretKey(b"o" * 32)


@pytest.mark.parametrize(
    "members",
    [
        {"seed": b64(OTHER.seed)},
        {"seed": "x"},
        {"seed": None},
        {"seed": b64(b"short")},
        {"did": did_of("bob", OTHER.public)},
        {"did": 7},
        {"label": "eve"},
        {"rotations": [{}]},
        {"rotations": None},
        {"seal_secrets": []},
        {"seal_secrets": [b64(b"x" * 32)] * (Limits().chain_links + 2)},
        {"seal_secrets": [b64(b"short")]},
        {"seal_secrets": "x"},
        {"created_at": "yesterday"},
        {"format": 0},
        {"format": "1"},
        {"more": 1},
    ],
    ids=str,
)
def test_an_identity_that_does_not_hold_is_refused_and_never_overwritten(
    tmp_path: Path, members: dict[str, Any]
) -> None:
    secret = b64(a_vault(tmp_path).generate("bob").key.seed)
    changed(tmp_path, **members)
    before = identity_path(tmp_path).read_bytes()
    vault = a_vault(tmp_path)
    caught = refused("identity-damaged", vault.load)
    refused("identity-damaged", vault.generate, "bob")
    assert vault.identity is None
    assert identity_path(tmp_path).read_bytes() == before
    assert secret not in str(caught.to_json())


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"x" * 300_000])
def test_garbage_is_refused(tmp_path: Path, text: bytes) -> None:
    a_vault(tmp_path).generate("bob")
    identity_path(tmp_path).write_bytes(text)
    refused("identity-damaged", a_vault(tmp_path).load)


def test_each_cut_of_the_identity_file_is_refused(tmp_path: Path) -> None:
    a_vault(tmp_path).generate("bob")
    whole = identity_path(tmp_path).read_bytes()
    for size in range(len(whole) - 1):
        identity_path(tmp_path).write_bytes(whole[:size])
        refused("identity-damaged", a_vault(tmp_path).load)


def test_an_unreadable_identity_is_refused_with_its_path(tmp_path: Path) -> None:
    identity_path(tmp_path).mkdir(parents=True)
    caught = refused("identity-damaged", a_vault(tmp_path).load)
    assert str(identity_path(tmp_path)) in caught.message
    refused("identity-damaged", a_vault(tmp_path).generate, "bob")


def test_a_newer_format_is_named_as_such(tmp_path: Path) -> None:
    a_vault(tmp_path).generate("bob")
    changed(tmp_path, format=2, more="unknown")
    refused("store-newer", a_vault(tmp_path).load)
    refused("store-newer", a_vault(tmp_path).generate, "bob")


def test_nothing_shows_a_secret(tmp_path: Path) -> None:
    vault = a_vault(tmp_path)
    made = vault.generate("bob")
    vault.put("own", "hunter2")
    secrets = [made.key.seed, *made.seal_secrets, vault.cursor_key()]
    for text in (repr(made), str(made), repr(vault), repr(made.key), f"{made}"):
        assert "hunter2" not in text
        assert not any(repr(secret)[2:-1] in text or secret.hex() in text or b64(secret) in text for secret in secrets)


def test_a_disk_that_refuses_leaves_no_identity(tmp_path: Path) -> None:
    disk = FailingDisk()
    disk.failing = "replace"
    vault = a_vault(tmp_path, disk)
    refused("home-unusable", vault.generate, "bob")
    assert vault.identity is None
    refused("home-unusable", vault.put, "x", "y")
    refused("home-unusable", vault.cursor_key)


# Secrets


def test_secrets_are_kept_listed_and_removed(tmp_path: Path) -> None:
    vault = a_vault(tmp_path)
    for name in ("answer.pair_1", "peer-token.pair_1", "peer-token.pair_2"):
        vault.put(name, name.upper())
    vault.put("peer-token.pair_1", "new ✓")
    vault.remember_nonce("did:a", "0" * 32, LATER_MS)
    (tmp_path / "secrets" / "peer-token.pair_3.tmp").write_bytes(b"left over by a crash")
    again = a_vault(tmp_path)
    assert again.names("peer-token.") == ["peer-token.pair_1", "peer-token.pair_2"]
    assert again.names() == ["answer.pair_1", "peer-token.pair_1", "peer-token.pair_2"]
    assert again.get("peer-token.pair_1") == "new ✓"
    again.delete("peer-token.pair_1")
    assert again.get("peer-token.pair_1") is None
    assert again.names("peer-token.") == ["peer-token.pair_2"]


def test_file_and_folder_are_synced(tmp_path: Path) -> None:
    disk = FailingDisk()
    vault = a_vault(tmp_path, disk)
    vault.put("x", "y")
    assert disk.log[-2:] == ["replace x", "fsync secrets"]
    disk.log.clear()
    vault.delete("x")
    assert disk.log == ["fsync secrets"]


@pytest.mark.parametrize(
    "name", ["", "../x", "a/b", ".hidden", "A", "a b", "x.tmp", NONCES_NAME, "a" * 129, "a\n", "é"]
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    vault = a_vault(tmp_path)
    refused("bad-field", vault.put, name, "x")
    refused("bad-field", vault.get, name)
    refused("bad-field", vault.delete, name)


def test_the_cursor_key_is_made_once(tmp_path: Path) -> None:
    vault = a_vault(tmp_path)
    key = vault.cursor_key()
    assert len(key) == 32
    assert vault.cursor_key() == key
    again = a_vault(tmp_path)
    again._random_bytes = lambda size: b"n" * size
    assert again.cursor_key() == key


@pytest.mark.parametrize("text", ["", "x", "QUJD"])
def test_a_damaged_cursor_key_is_replaced(tmp_path: Path, text: str) -> None:
    vault = a_vault(tmp_path)
    vault.put("cursor-key", text)
    assert len(vault.cursor_key()) == 32
    assert a_vault(tmp_path).cursor_key() == vault.cursor_key()


def same(one: Identity | None, other: Identity) -> bool:
    """Tell whether two identities hold the same keys; a secret key itself is never compared."""
    return one is not None and _parts(one) == _parts(other)


def _parts(identity: Identity) -> tuple[object, ...]:
    return identity.did, identity.chain, identity.key.seed, identity.seal_secrets, identity.created_at_ms


def test_rotation_keeps_the_did_and_what_was_sealed_before_still_opens(tmp_path: Path) -> None:
    clock = Clock()
    vault = a_vault(tmp_path, clock=clock)
    with pytest.raises(SplError) as caught:
        vault.rotate("retired")
    assert caught.value.code == "identity-missing"
    first = vault.generate("alice")
    clock.ms -= 1000
    seen = [first]
    for number in range(1, 5):
        found = vault.rotate("compromised" if number == 2 else "retired")
        assert (found.did, len(found.chain.rotations)) == (first.did, number)
        assert found.chain.keys == (*seen[-1].chain.keys, found.key.public)
        assert found.seal_secrets[1:] == seen[-1].seal_secrets
        seen.append(found)
    assert [step.reason for step in found.chain.rotations] == ["retired", "compromised", "retired", "retired"]
    assert same(a_vault(tmp_path).load(), found)
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["identity.json"], (
        "no seed is kept that was retired"
    )


def test_seeds_that_an_older_version_kept_go_with_the_next_rotation(tmp_path: Path) -> None:
    """Those of another DID stay: nothing else could bring it back."""
    vault, keys = a_vault(tmp_path), tmp_path / "keys"
    vault.generate("alice")
    (keys / "identity-0000.json").write_bytes((keys / "identity.json").read_bytes())
    (keys / "identity-odd.json").write_bytes(b"?")
    other = vault.generate("bob", force=True)
    (keys / "identity-1111.json").write_bytes((keys / "identity.json").read_bytes())
    assert len(list(keys.glob("identity-*.json"))) == 4
    assert vault.rotate("retired").did == other.did
    assert not (keys / "identity-1111.json").exists()
    assert len(list(keys.glob("identity-*.json"))) == 3


def test_a_chain_has_a_bound(tmp_path: Path) -> None:
    vault = a_vault(tmp_path, limits=Limits(chain_links=1))
    vault.generate("alice")
    vault.rotate("retired")
    with pytest.raises(SplError) as caught:
        vault.rotate("retired")
    assert caught.value.code == "chain-broken"


def test_an_export_is_the_identity_and_is_remembered_for_its_key(tmp_path: Path) -> None:
    vault = a_vault(tmp_path / "one")
    old = vault.generate("alice")
    assert not vault.exported()
    text = vault.export()
    assert vault.exported()
    present = vault.rotate("retired")
    assert not vault.exported()
    other = a_vault(tmp_path / "two")
    assert same(other.install(text), old)
    assert other.exported()
    assert same(other.install(vault.export()), present)
    for wrong, code in ((text, "manifest-stale"), ("{}", "identity-damaged"), ("", "identity-damaged")):
        with pytest.raises(SplError) as caught:
            other.install(wrong)
        assert caught.value.code == code
        assert same(a_vault(tmp_path / "two").load(), present)
    third = a_vault(tmp_path / "three")
    third.generate("carol")
    with pytest.raises(SplError) as caught:
        third.install(text)
    assert caught.value.code == "identity-exists"
    assert same(third.install(text, force=True), old)
