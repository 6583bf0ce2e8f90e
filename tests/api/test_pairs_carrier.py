"""The engine that a pair's records come from, as those see it who may only watch."""

import json
from unittest.mock import Mock

import pytest

from spl.api import pairs
from spl.api.auth import Principal


@pytest.mark.parametrize(("scope", "creds"), [("status:read", None), ("admin", "/home/bob/bob.creds")])
def test_paths_of_this_machine_are_for_admins(scope: str, creds: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    carrier = {"url": "tls://n.example", "creds": "/home/bob/bob.creds", "ca": None, "error": None, "open": True}
    monkeypatch.setattr(pairs, "detail", lambda services, found: {"carrier": carrier})
    answer = pairs.show(Mock(params={"ref": "pair_1"}), Mock(spec=Principal, scopes=frozenset({scope})), Mock())
    assert isinstance(answer.body, bytes)
    assert json.loads(answer.body)["carrier"] == {**carrier, "creds": creds}
