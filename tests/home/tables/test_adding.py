"""What is remembered from line to line changes no answer, whatever of it is forgotten."""

from pathlib import Path

import pytest

from spl.home import index
from spl.home.tables import adding
from tests.home.test_index import Log
from tests.store_kit import record


def test_caches_that_overflow_change_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (adding, "_CACHE_NAMES"), (adding, "_CACHE_KEYS"), (adding, "_CACHE_FACTS"), (adding, "_CACHE_WAYS"),
        (index, "_CACHE_FACTS"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, 2)
    log = Log(tmp_path)
    for n in range(60):
        log.add(record(n % 40, thread=f"th_{n % 5}", ns=f"ns{n % 4}", voucher=f"did:v{n % 3}", origin=f"pair_{n % 2}"))
    log.check()
