"""The digest of ids does not depend on memory or order, and leaves no file behind."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spl.home.disk import Disk, IdDigest

ids = st.lists(st.integers(0, 2**256 - 1).map(lambda number: f"{number:064x}"), max_size=60)


@given(found=ids, run_ids=st.integers(1, 8))
@settings(max_examples=40)
def test_the_digest_is_that_of_sorted_lines(
    tmp_path_factory: pytest.TempPathFactory, found: list[str], run_ids: int
) -> None:
    digest = IdDigest(Disk(), tmp_path_factory.getbasetemp() / "ids", run_ids)
    for record_id in found:
        digest.add(record_id)
    text, twice = digest.finish()
    assert text == hashlib.sha256(b"".join(f"{item}\n".encode() for item in sorted(found))).hexdigest()
    assert bool(twice) == (len(set(found)) < len(found))
    assert digest.count == len(found)


def test_ids_that_were_spooled_leave_no_file(tmp_path: Path) -> None:
    digest = IdDigest(Disk(), tmp_path, 2)
    for n in range(9):
        digest.add(f"{n:064x}")
    assert list(tmp_path.iterdir()) == []
