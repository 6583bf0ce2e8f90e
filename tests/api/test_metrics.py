"""The metrics: read by the official parser, bounded, never absent, and each name used in alerts and board is there."""

import asyncio
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from spl.api import metrics
from spl.api.metrics import PER_PAIR
from spl.core.pair.pair import Phase
from spl.core.pair.state import Degraded, Revoked
from spl.core.recent import Histogram
from spl.doctor.catalogue import CATALOGUE
from tests.api.conftest import Served
from tests.api.pairs_many import a_pair, copy, show
from tests.waiting import turns, until

NAME = re.compile(r"\b(?:spl|process)_[a-z_]+\b")
NASTY = 'a"b\\c\n# TYPE x gauge\u202e<img onerror=x>'


async def scraped(served: Served) -> tuple[dict[str, Any], set[tuple[str, tuple[tuple[str, str], ...]]]]:
    """Return the samples by name and labels, as the official parser reads them, and the series."""
    reply = await served.fetch("GET", "/metrics", token=await served.mint("metrics:read"))
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found: dict[str, Any] = {}
    for family in text_string_to_metric_families(reply.body.decode()):
        assert family.documentation
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found
            found[sample.name] = found.get(sample.name, {}) | {key[1]: sample.value}
    return found, {(name, labels) for name, rows in found.items() for labels in rows}


def of(found: dict[str, Any], name: str, **labels: str) -> float:
    return float(found[name][tuple(sorted(labels.items()))])


async def test_a_token_of_this_scope_opens_this_and_nothing_else(served: Served) -> None:
    token = await served.mint("metrics:read")
    assert (await served.fetch("GET", "/metrics", token="")).status == 401
    assert (await served.fetch("GET", "/metrics", token=await served.mint("status:read"))).status == 403
    assert (await served.fetch("GET", "/metrics", token=token)).status == 200
    assert (await served.fetch("GET", "/v1/federation/pairs", token=token)).status == 403


async def test_states_are_never_absent_and_what_was_never_seen_is_nan(served: Served, tmp_path: Path) -> None:
    async with a_pair(tmp_path / "world") as pair:
        ill = copy(pair, 2, state=Degraded("connect"))
        ended = copy(pair, 3, state=Revoked("gone"))
        show(served, copy(pair, 1), ill, ended)
        found, _ = await scraped(served)
        for pair_id, now in (("pair_00000001", "active"), ("pair_00000002", "degraded")):
            states = {phase.value: of(found, "spl_pair_state", pair=pair_id, state=phase.value) for phase in Phase}
            assert states == {phase.value: float(phase.value == now) for phase in Phase}
            for row in PER_PAIR:
                of(found, row.name, pair=pair_id)
        never = of(found, "spl_pair_last_success_timestamp_seconds", pair="pair_00000001")
        assert never != never  # NaN, and the series is there
        assert not [labels for rows in found.values() for labels in rows if ("pair", ended.pair_id) in labels]
        assert of(found, "spl_pairs", state="revoked") == 1
        assert of(found, "spl_pair_lag_seconds_bucket", pair=ill.pair_id, le="5") == 0
        assert of(found, "spl_findings", code="connect", severity="fail") == 1
        show(served)
        found, _ = await scraped(served)
        assert "spl_pair_state" not in found


async def test_words_of_a_peer_stand_in_one_place_and_break_nothing(served: Served, tmp_path: Path) -> None:
    async with a_pair(tmp_path / "world") as pair:
        show(served, copy(pair, 1, mode=NASTY))
        found, _ = await scraped(served)
        labels = [dict(each) for each in found["spl_pair_info"]]
        assert [each["mode"].startswith('a"b\\') for each in labels] == [True]
        assert {name for name, rows in found.items() for each in rows if NASTY[:3] in str(each)} == {"spl_pair_info"}


async def test_requests_make_no_series(served: Served) -> None:
    _, before = await scraped(served)
    for number in range(60):
        await served.fetch("GET", f"/v1/{number}/{NASTY.encode().hex()}", headers=(("user-agent", f"x{number}"),))
        await served.fetch("GET", f"/v1/threads/th_{number}/records")
        await served.fetch("POST", "/v1/federation/pair", {"signer": f"did:{number}", "body": {}}, token="")
    _, after = await scraped(served)
    assert after == before


async def test_every_series_follows_the_pairs(served: Served, tmp_path: Path) -> None:
    async with a_pair(tmp_path / "world") as pair:
        counts = []
        for pairs in (1, 2, 3):
            show(served, *(copy(pair, number) for number in range(pairs)))
            counts.append(len((await scraped(served))[1]))
        assert counts[2] - counts[1] == counts[1] - counts[0] < 40


async def test_a_thousand_pairs_take_less_than_1500_kb(served: Served, tmp_path: Path) -> None:
    async with a_pair(tmp_path / "world") as pair:
        show(served, *(copy(pair, number) for number in range(1000)))
        reply = await served.fetch("GET", "/metrics", token=await served.mint("metrics:read"))
        assert reply.body.count(b"spl_pair_lag_seconds_count{") == 1000
        assert len(reply.body) < 1_500_000


async def test_scrapers_that_wait_share_one_text(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gets one that was begun after it asked; none is kept."""
    begun, go = [], asyncio.Event()

    async def written(services: object) -> bytes:
        begun.append(services)
        await go.wait()
        return b"text %d" % len(begun)

    monkeypatch.setattr(metrics, "_written", written)
    asked = [asyncio.create_task(metrics.scrape(None, None, served.services)) for _ in range(20)]  # type: ignore[arg-type]
    await until(lambda: begun)
    late = [asyncio.create_task(metrics.scrape(None, None, served.services)) for _ in range(20)]  # type: ignore[arg-type]
    await turns(3)
    go.set()
    assert {(await each).body for each in asked} == {b"text 1"}
    assert {(await each).body for each in late} == {b"text 2"}
    assert metrics._TURNS[served.services.doctor].text == b""


def test_a_histogram_counts_up_to_each_bound() -> None:
    found = Histogram((1, 10))
    for value in (0.5, 1, 5, 50):
        found.add(value)
    assert (found.at_most, found.sum_ms) == ((2, 3, 4), 56.5)


def share(name: str) -> str:
    return resources.files("spl").joinpath("share", name).read_text(encoding="utf-8")


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(share("alerts.yml"))["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    board = json.loads(share("grafana.json"))
    return [rule["expr"] for rule in rules()] + [
        target["expr"] for panel in board["panels"] for target in panel["targets"]
    ]


async def test_each_name_in_alerts_and_board_is_served(served: Served, tmp_path: Path) -> None:
    async with a_pair(tmp_path / "world") as pair:
        show(served, copy(pair, 1))
        served.services.ingest.lines.warnings[f"pair_{1:08x}", "connect"] += 1
        found, _ = await scraped(served)
        for expr in expressions():
            assert NAME.findall(expr) or expr.startswith("up{")
            assert set(NAME.findall(expr)) <= set(found)


def test_each_finding_has_an_alert() -> None:
    covered = {
        severity for rule in rules() for severity in re.findall(r'spl_findings\{severity="([a-z]+)"\}', rule["expr"])
    }
    assert {row.severity for row in CATALOGUE} <= covered
    assert all(rule["annotations"].keys() == {"summary", "fix"} for rule in rules())


async def test_the_manual_names_what_is_served_and_nothing_else(served: Served, tmp_path: Path) -> None:
    async with a_pair(tmp_path / "world") as pair:
        show(served, copy(pair, 1))
        served.services.ingest.lines.warnings[f"pair_{1:08x}", "connect"] += 1
        found, _ = await scraped(served)
    text = resources.files("spl").joinpath("manual", "watching.md").read_text(encoding="utf-8")
    named = {name for line in text.splitlines() if line.startswith("|") for name in NAME.findall(line)}
    assert named == {re.sub("_(bucket|sum|count)$", "", name) for name in found}
