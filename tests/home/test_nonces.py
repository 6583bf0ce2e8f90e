"""Promises of the memory of nonces: each counts once, over restarts and torn files, and strangers cannot fill it."""

import threading
from pathlib import Path

import pytest

from spl.core.errors import SplError
from spl.core.limits import Limits
from spl.home.vault import NONCES_NAME, STRANGERS_NAME
from tests.home.test_vault import LATER_MS, NOW_MS, Clock, FailingDisk, a_vault, refused


def test_a_nonce_counts_once_for_each_signer_across_restarts(tmp_path: Path) -> None:
    vault = a_vault(tmp_path)
    vault.load()
    assert vault.remember_nonce("did:a", "0" * 32, LATER_MS)
    assert not vault.remember_nonce("did:a", "0" * 32, LATER_MS)
    assert vault.remember_nonce("did:b", "0" * 32, LATER_MS)
    assert vault.remember_nonce("did:a", "1" * 32, LATER_MS)
    again = a_vault(tmp_path)
    again.load()
    assert not again.remember_nonce("did:a", "0" * 32, LATER_MS)
    assert not again.remember_nonce("did:b", "0" * 32, LATER_MS)
    assert again.remember_nonce("did:b", "1" * 32, LATER_MS)


def test_the_file_survives_a_cut_at_every_byte(tmp_path: Path) -> None:
    """What was torn was never acknowledged; what stood before stays seen, and the next line stands alone."""
    vault = a_vault(tmp_path)
    for digit in "012":
        vault.remember_nonce("did:a", digit * 32, LATER_MS)
    path = tmp_path / "secrets" / NONCES_NAME
    whole = path.read_bytes()
    line = len(whole) // 3
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        cut = a_vault(tmp_path)
        cut.load()
        kept = size // line
        assert [cut.remember_nonce("did:a", digit * 32, LATER_MS) for digit in "012"] == [n >= kept for n in range(3)]
        again = a_vault(tmp_path)
        again.load()
        assert not any(again.remember_nonce("did:a", digit * 32, LATER_MS) for digit in "012")


def test_foreign_lines_are_left_out_and_cleaned_up(tmp_path: Path) -> None:
    vault = a_vault(tmp_path)
    vault.remember_nonce("did:a", "0" * 32, LATER_MS)
    path = tmp_path / "secrets" / NONCES_NAME
    good = path.read_bytes()
    for bad in (b"{}\n", b"\xff\n", b"7\n", b'{"nonce":7,"until_ms":1}\n', b'{"nonce":"x","until_ms":"y"}\n', b"\n"):
        path.write_bytes(bad + good)
        again = a_vault(tmp_path)
        again.load()
        assert not again.remember_nonce("did:a", "0" * 32, LATER_MS)
        assert again.remember_nonce("did:a", "1" * 32, LATER_MS)
        assert path.read_bytes().startswith(good)


def test_a_failed_append_remembers_nothing_and_the_next_one_heals(tmp_path: Path) -> None:
    disk = FailingDisk()
    vault = a_vault(tmp_path, disk)
    vault.remember_nonce("did:a", "0" * 32, LATER_MS)
    disk.failing = "append"
    refused("store-full", vault.remember_nonce, "did:a", "1" * 32, LATER_MS)
    disk.failing = ""
    assert vault.remember_nonce("did:a", "1" * 32, LATER_MS)
    again = a_vault(tmp_path)
    again.load()
    assert not any(again.remember_nonce("did:a", digit * 32, LATER_MS) for digit in "01")


def test_memory_and_file_are_bounded_and_what_is_over_is_forgotten(tmp_path: Path) -> None:
    clock, limits = Clock(), Limits(nonces_count=10)
    vault = a_vault(tmp_path, clock=clock, limits=limits)
    for number in range(100):
        clock.ms = NOW_MS + number * 100
        assert vault.remember_nonce("did:a", f"{number:032x}", clock.ms + 500)
        assert len(vault._nonces[False]) <= 20
        assert len((tmp_path / "secrets" / NONCES_NAME).read_bytes().splitlines()) <= 20
    assert not vault.remember_nonce("did:a", f"{99:032x}", clock.ms + 500)


def test_a_full_memory_refuses_rather_than_forget(tmp_path: Path) -> None:
    clock, limits = Clock(), Limits(nonces_count=4)
    vault = a_vault(tmp_path, clock=clock, limits=limits)
    for number in range(8):
        assert vault.remember_nonce("did:a", f"{number:032x}", LATER_MS)
    refused("rate-limited", vault.remember_nonce, "did:a", "f" * 32, LATER_MS)
    assert not any(vault.remember_nonce("did:a", f"{number:032x}", LATER_MS) for number in range(8))
    clock.ms = LATER_MS + 1
    assert vault.remember_nonce("did:a", "f" * 32, LATER_MS + 600_000)


def test_of_many_threads_with_one_nonce_one_wins(tmp_path: Path) -> None:
    vault, wins = a_vault(tmp_path), []
    start = threading.Barrier(8)

    def race() -> None:
        start.wait()
        wins.append(vault.remember_nonce("did:a", "0" * 32, LATER_MS))

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == [False] * 7 + [True]


def test_strangers_fill_a_memory_of_their_own(tmp_path: Path) -> None:
    """Those of pairs are taken all the same, and a nonce counts once whoever it is said to be of."""
    vault = a_vault(tmp_path, limits=Limits(nonces_count=4))
    for number in range(8):
        assert vault.remember_nonce("did:a", f"{number:032x}", LATER_MS, stranger=True)
    with pytest.raises(SplError) as caught:
        vault.remember_nonce("did:a", "f" * 32, LATER_MS, stranger=True)
    assert caught.value.code == "rate-limited"
    assert vault.remember_nonce("did:a", "f" * 32, LATER_MS)
    for again in (vault, a_vault(tmp_path)):
        again.load()
        assert not again.remember_nonce("did:a", f"{7:032x}", LATER_MS)
        assert not again.remember_nonce("did:a", "f" * 32, LATER_MS, stranger=True)
    assert {NONCES_NAME, STRANGERS_NAME} <= {path.name for path in (tmp_path / "secrets").iterdir()}
