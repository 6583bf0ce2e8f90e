"""The doctor between two instances in one process: what is wrong is named, with the step that mends it."""

from dataclasses import replace
from pathlib import Path

import pytest

from spl.core.pair.status import LastError, StreamStatus
from spl.core.rules import permission_rule
from spl.doctor.catalogue import CATALOGUE
from spl.doctor.examine import examine_home
from spl.net.probe import Reached
from spl.sync.changes import OfferedStatus
from tests.doctor.clinic import MANIFEST, answers, clinic
from tests.store_kit import set_views
from tests.waiting import until


async def test_a_healthy_pair(tmp_path: Path) -> None:
    async with clinic(tmp_path) as found:
        report = await found.report()
        assert report["problems"] == []
        marks = {row["name"]: row["mark"] for row in report["checks"]}
        assert set(marks.values()) == {"ok"}
        assert {"manifest", "reverse", "token", "scopes", "peer-view", "clock"} <= set(marks)
        texts = {row["name"]: row["text"] for row in report["checks"]}
        assert texts["manifest"] == "200, did and signature ok, same bytes inside and outside"
        assert texts["reverse"].startswith(f"peer reaches {found.a.url} in ")


async def test_a_peer_that_paused(tmp_path: Path) -> None:
    async with clinic(tmp_path) as found:
        await found.b.pairing.pause(found.pair_id)
        await until(lambda: found.a.alive[0].paused_by == "peer")
        assert await found.problems() == {"peer-paused": f"on bob: spl federation resume {found.pair_id}"}
        await found.b.pairing.revoke(found.pair_id)
        await until(lambda: not found.a.alive)
        accept = f"spl federation revoke {found.pair_id}"
        again = f"spl federation pair {found.b.url}/; or accept the end: {accept}"
        assert await found.problems() == {"peer-revoked": again}
        doctor = found.doctors[found.a.url]
        assert [item.code for item in doctor.attention()] == ["peer-revoked"]
        [row] = (await doctor.examine(None))["pairs"]  # type: ignore[misc]
        assert [item["code"] for item in row["problems"]] == ["peer-revoked"]
        await found.a.pairing.revoke(found.pair_id)
        assert doctor.attention() == []
        assert (await doctor.examine(None))["pairs"] == []


async def test_a_side_behind_a_nat_need_not_be_dialled(tmp_path: Path) -> None:
    async with clinic(tmp_path) as found:
        found.came, found.way = (
            Reached("bob.example", ("203.0.113.7",), code="timeout", message="nothing"),
            "peer-pushes",
        )
        report = await found.report()
        assert report["problems"] == []
        texts = {row["name"]: row["text"] for row in report["checks"]}
        assert texts["connect"] == "cannot be dialled (timeout), and need not: the peer pushes and pulls by itself"


async def test_an_old_failure_is_forgotten_when_the_way_is_free(tmp_path: Path) -> None:
    async with clinic(tmp_path) as found:
        found.status = replace(found.status, attempt=2, last_error=LastError("connect", "refused", 0))
        assert await found.problems() == {}
        found.status = replace(found.status, last_error=LastError("auth-invalid", "refused", 0))
        assert await found.problems() == {}


@pytest.mark.parametrize("code", ["peer-rewound", "answer-malformed", "peer-5xx"])
async def test_what_only_a_pull_can_see(tmp_path: Path, code: str) -> None:
    async with clinic(tmp_path) as found:
        found.status = replace(found.status, attempt=9, last_error=LastError(code, "so it was", 0))
        doctor = found.doctors[found.a.url]
        doctor.health.beat(0.0)
        doctor.health._steady_s = lambda: 1000.0
        doctor.health.beat(0.0)
        assert code in await found.problems()
        assert code in [item.code for item in doctor.attention()]


@pytest.mark.parametrize("state", ["opening", "open"])
async def test_the_pairs_own_stream_is_looked_at(tmp_path: Path, state: str) -> None:
    """A second one would end the first; where streams bring nothing for long, something holds them back."""
    async with clinic(tmp_path) as found:
        found.status = replace(found.status, stream=StreamStatus(state, None, None, 0))
        doctor = found.doctors[found.a.url]
        doctor.health.beat(0.0)
        doctor.health._steady_s = lambda: 5.1
        assert ("stream-buffering" in await found.problems()) == (state == "opening")


async def test_the_daemon_alone_and_its_pairs(tmp_path: Path) -> None:
    """Without a pair: what the world sees of us, and a line for each pair."""
    async with clinic(tmp_path) as found:
        doctor = found.doctors[found.a.url]
        report = await doctor.examine(None)
        assert report["problems"] == []
        assert [pair["pair_id"] for pair in report["pairs"]] == [found.pair_id]  # type: ignore[attr-defined]
        found.change = answers(MANIFEST, body=b"{}")
        assert [item["code"] for item in (await doctor.examine(None))["problems"]] == ["manifest-differs-outside"]  # type: ignore[attr-defined]
        (tmp_path / "alice" / "config.toml").write_text("nonsense = 1\n")
        assert "config-invalid" in [item["code"] for item in (await doctor.examine(None))["problems"]]  # type: ignore[attr-defined]


async def test_a_rule_that_locks_everybody_out(tmp_path: Path) -> None:
    """Ours is our problem, and no pair's; the peer's shows at its endpoint."""
    async with clinic(tmp_path) as found:
        doctor = found.doctors[found.a.url]
        rule = permission_rule(
            {"name": "only-writers", "resource": "federation:*", "action": "require:record_write", "priority": 5}
        )
        set_views(found.a.home, rules={rule.name: rule})
        [problem] = (await doctor.examine(None))["problems"]  # type: ignore[misc]
        assert problem["code"] == "handshake-401"
        assert "only-writers" in problem["title"]
        assert problem["fix"].startswith("spl config list-permission-rules | grep federation")
        assert await found.problems() == {}


def test_a_home_without_daemon(tmp_path: Path) -> None:
    report = examine_home(tmp_path)
    assert [item["code"] for item in report["problems"]] == ["daemon-down"]  # type: ignore[attr-defined]
    assert {row.code for row in CATALOGUE} >= {"daemon-down"}


async def test_a_peer_that_takes_nothing_in(tmp_path: Path) -> None:
    """Its stream is open and it answers, and yet it confirms nothing: its disk may be full."""
    async with clinic(tmp_path) as found:
        found.offered = OfferedStatus(47, 42, 5, interval_s=0.0)
        doctor = found.doctors[found.a.url]
        for _ in range(2):
            doctor.health.beat(0.0)
        doctor.health._steady_s = lambda: 46.0
        doctor.health.beat(0.0)
        assert (await found.problems())["peer-behind"] == "on bob: spl doctor"
        assert "peer-behind" in [item.code for item in doctor.attention()]


async def test_records_that_cannot_be_served_count_as_damage(tmp_path: Path) -> None:
    async with clinic(tmp_path) as found:
        found.a.home.store.index.reader.leave_out(1)
        [problem] = found.doctors[found.a.url].attention()
        assert (problem.code, problem.fix) == ("store-damaged", "spl store check --repair")


async def test_no_credentials_are_a_finding_for_as_long_as_they_are_off(tmp_path: Path) -> None:
    async with clinic(tmp_path) as found:
        doctor = found.doctors[found.a.url]
        doctor.settings.take(replace(found.a.home.config, auth_required=False))
        assert [item.code for item in doctor.attention()] == ["auth-off"]
        doctor.settings.take(found.a.home.config)
        assert doctor.attention() == []
