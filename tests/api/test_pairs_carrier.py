"""The engine that a pair's records come from, as those see it who may only watch."""

import json
from unittest.mock import MagicMock, Mock

import pytest

from spl.api import pairs
from spl.api.auth import Principal

CARRIER = {"url": "tls://n.example", "creds": "/home/bob/bob.creds", "ca": None, "error": None, "open": True}
LEFT = {"deleted": 1, "error": None, "commands": ["nats --creds /home/bob/bob.creds"]}


@pytest.mark.parametrize("scope", ["status:read", "federation:manage", "admin"])
@pytest.mark.parametrize("action", ["", "poll-interval"])
async def test_paths_of_this_machine_are_for_admins(scope: str, action: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the answer to a change, which shows the pair as well."""

    async def change(*args: object) -> dict[str, object]:
        return {"consumers": LEFT}

    monkeypatch.setattr(pairs, "detail", lambda services, found: {"carrier": CARRIER, "manifest": None})
    monkeypatch.setattr(pairs, "_change", change)
    asked, who = Mock(params={"ref": "pair_1", "action": action}), Mock(spec=Principal, scopes=frozenset({scope}))
    services = Mock(views=Mock(pairs=MagicMock()))
    answer = await pairs.act(asked, who, services) if action else pairs.show(asked, who, services)
    assert isinstance(answer.body, bytes)
    found = json.loads(answer.body)
    assert (b"/home/bob" in answer.body) is (scope == "admin")
    assert found["carrier"] == (CARRIER if scope == "admin" else {**CARRIER, "creds": None})
    assert found["manifest"] is None
    if action:
        assert found["consumers"] == (LEFT if scope == "admin" else {**LEFT, "commands": []})
