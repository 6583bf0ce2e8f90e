"""The doctor between two instances in one process: each fault on the way is named, with the step that mends it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from spl.core import when
from spl.core.errors import SplError
from spl.core.identity import bearer
from spl.core.limits import Limits
from spl.core.rules import permission_rule
from spl.doctor.catalogue import CATALOGUE
from spl.doctor.examine import Doctor, examine_home
from spl.doctor.health import HealthSampler
from spl.home.home import random_bytes
from spl.net.address import ReachError, parse_url
from spl.net.client import Client, DialPolicy, Reply
from spl.net.probe import Reached
from spl.sync.schedule import Sync
from tests.pair_world import Network, Node, World, both_active, two
from tests.store_kit import set_views

Change = Callable[[str, str, Reply], Reply]
CALM: dict[str, Any] = {
    "last_sync_at": None, "last_error": None, "next_attempt_at": None, "attempt": 0, "clock": 42, "lag_records": 0,
    "queue_records": 0, "queue_max": 0, "crashes": 0, "stream": None, "peer_view": None,
}  # fmt: skip


class Asked:
    """The network of one node: the world's, with the doctor's own questions answered by the other node's doctor."""

    def __init__(self, node: Node, clinic: "Clinic") -> None:
        self.world_net, self.node, self.clinic = Network(node.world, node), node, clinic

    async def fetch(self, method: str, url: str, *, headers: Iterable[tuple[str, str]] = (), body: bytes = b"",
                    dial: DialPolicy, **_: object) -> Reply:  # fmt: skip
        where = parse_url(url)
        other = self.clinic.of(where.origin)
        if where.target.endswith("/check"):
            reply = await self._check(other, where.target, dict(headers), body)
        elif where.target == "/v1/federation/pair" and method == "GET":
            reply = Reply(405, {}, b"{}", "127.0.0.1")
        else:
            reply = await self.world_net.fetch(method, url, headers=headers, body=body, dial=dial)
            reply = replace(reply, body=json.dumps(json.loads(reply.body), sort_keys=True, separators=(",", ":"),
                                                   ensure_ascii=False).encode())  # fmt: skip
        return self.clinic.change(method, where.target, reply) if self.node is self.clinic.a else reply

    async def _check(self, other: Node, target: str, headers: dict[str, str], body: bytes) -> Reply:
        token = headers["authorization"].removeprefix("Bearer ")
        pair_id = target.split("/")[-2]
        pair = other.home.views.pairs[pair_id]
        held = other.home.views.tokens_by_hash[bearer.hash_of(token)]
        try:
            if held.expired(self.node.world.now_ms()):
                raise SplError("auth-invalid", "the bearer token is expired", reason="token-expired")
            bearer.check_proof(
                headers[bearer.PROOF_HEADER], pair.chain.present, method="POST", target=target, audience=other.did,
                token=token, body=body, now_ms=self.node.world.now_ms(), limits=Limits(),
            )  # fmt: skip
            seen = await self.clinic.doctors[other.url].look_back(pair)
        except SplError as exc:
            return Reply(exc.status, {}, json.dumps(exc.to_json()).encode(), "127.0.0.1")
        view = {"state": str(pair.phase), "reason": "", "head": 0, "queue": 0}
        return Reply(200, {}, json.dumps({"peer_view": view, **seen}).encode(), "127.0.0.1")


@dataclass
class Clinic:
    """Two paired nodes with a doctor each; `status` is what the sync of both tells, `came` the way to the other."""

    world: World
    a: Node
    b: Node
    pair_id: str
    status: dict[str, Any] = field(default_factory=lambda: dict(CALM))
    came: Reached = field(default_factory=lambda: Reached("127.0.0.1", ("127.0.0.1",), "127.0.0.1"))
    way: str = "both"
    change: Change = lambda method, target, reply: reply
    doctors: dict[str, Doctor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in (self.a, self.b):
            health = HealthSampler(
                lambda node=node: node.home.views.pairs, self.told, steady_s=lambda: 0.0, tasks=list, limits=Limits()
            )  # type: ignore[misc]
            self.doctors[node.url] = Doctor(
                node.path, node.url, node.home.writer, node.home.vault, Limits(), pairing=node.pairing,
                sync=cast(Sync, _Told(self)), health=health, client=cast(Client, Asked(node, self)), reach=self._reach,
                way=lambda pair_id: self.way,
                now_ms=self.world.now_ms, random_bytes=random_bytes,
            )  # fmt: skip

    def of(self, origin: str) -> Node:
        return self.a if origin == self.a.url else self.b

    def told(self, pair_id: str) -> dict[str, Any]:
        return {**self.status, "last_sync_at": when.text_of(self.world.time_ms)}

    async def _reach(self, url: str, policy: DialPolicy) -> Reached:
        assert policy.allow_private
        return self.came

    async def report(self) -> dict[str, Any]:
        """Return what alice's doctor says of the pair."""
        return await self.doctors[self.a.url].examine(self.a.home.views.pairs[self.pair_id])

    async def problems(self) -> dict[str, str]:
        """Return code -> fix."""
        found = (await self.report())["problems"]
        return {item["code"]: item["fix"] for item in found}


@dataclass
class _Told:
    clinic: Clinic

    def status(self, pair_id: str) -> dict[str, Any]:
        return self.clinic.told(pair_id)


@asynccontextmanager
async def clinic(folder: Path) -> AsyncIterator[Clinic]:
    async with two(folder) as (world, a, b):
        await a.pair(b)
        yield Clinic(world, a, b, await both_active(a, b))


def answers(target: str, **changed: Any) -> Change:
    """Return a change of every reply to this target."""
    return lambda method, path, reply: replace(reply, **changed) if path == target else reply


MANIFEST = "/.well-known/syncropel"


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


async def test_the_peer_has_no_identity_or_something_strips_the_dot_path(tmp_path: Path) -> None:
    async with clinic(tmp_path) as found:
        missing = json.dumps(SplError("manifest-missing").to_json()).encode()
        found.change = answers(MANIFEST, status=404, body=missing)
        assert await found.problems() == {"manifest-missing": "on bob: spl identity generate"}
        found.change = answers(MANIFEST, status=404, body=b"<h1>Not Found</h1>")
        assert "let the proxy pass /.well-known/" in (await found.problems())["manifest-missing"]


async def test_a_manifest_that_does_not_verify(tmp_path: Path) -> None:
    """The page's words, and its fix: the peer publishes anew."""
    async with clinic(tmp_path) as found:
        document = dict(found.b.pairing.published.manifest())
        document["federation_manifest"] = {**document["federation_manifest"], "capabilities": []}
        found.change = answers(MANIFEST, body=json.dumps(document).encode())
        report = await found.report()
        [problem] = [item for item in report["problems"] if item["code"] == "manifest-signature"]
        assert problem["title"] == "manifest signature does not verify against advertised DID"
        assert problem["fix"] == "on bob: spl identity generate (publishes anew), then retry here"


async def test_a_proxy_that_wants_a_bearer_for_the_handshake(tmp_path: Path) -> None:
    async with clinic(tmp_path) as found:
        found.change = answers("/v1/federation/pair", status=401)
        assert await found.problems() == {"handshake-401": "on bob: spl config list-permission-rules | grep federation"}


async def test_other_bytes_than_the_daemon_serves(tmp_path: Path) -> None:
    """A cache hands out a manifest that verifies and is not the present one; the peer tells what it serves itself."""
    async with clinic(tmp_path) as found:
        spaced = json.dumps(found.b.pairing.published.manifest(), indent=1).encode()
        found.change = answers(MANIFEST, body=spaced)
        assert "manifest-differs-outside" in await found.problems()


async def test_our_own_did_behind_the_peers_name(tmp_path: Path) -> None:
    async with clinic(tmp_path) as found:
        own = json.dumps(found.a.pairing.published.manifest()).encode()
        own_did = json.dumps(found.a.pairing.published.did_document()).encode()

        def change(method: str, target: str, reply: Reply) -> Reply:
            bodies = {MANIFEST: own, "/.well-known/did.json": own_did}
            return replace(reply, body=bodies.get(target, reply.body))

        found.change = change
        assert "identity-cloned" in await found.problems()


@pytest.mark.parametrize(("ahead_s", "severity"), [(29, ""), (45, "warn"), (-45, "warn"), (600, "fail")])
async def test_clocks_apart(tmp_path: Path, ahead_s: int, severity: str) -> None:
    """Thirty seconds warn, five minutes refuse; the peer's clock is in its answer."""
    async with clinic(tmp_path) as found:

        def change(method: str, target: str, reply: Reply) -> Reply:
            if not target.endswith("/check"):
                return reply
            body = {**json.loads(reply.body), "time": when.text_of(found.world.time_ms + ahead_s * 1000)}
            return replace(reply, body=json.dumps(body).encode())

        found.change = change
        skews = [item["severity"] for item in (await found.report())["problems"] if item["code"] == "clock-skew"]
        assert skews == ([severity] if severity else [])


async def test_the_date_header_tells_the_clock_where_nothing_else_does(tmp_path: Path) -> None:
    async with clinic(tmp_path) as found:
        found.change = answers(MANIFEST, headers={"date": "Mon, 24 Nov 2025 18:00:00 GMT"})
        pair = found.a.home.views.pairs[found.pair_id]
        told = await found.doctors[found.a.url]._ask_manifest(pair)
        assert 6_000_000 < told["clock_ahead_ms"] < 7_300_000  # the world's clock stands shortly after 16:00


async def test_the_peer_cannot_reach_us(tmp_path: Path) -> None:
    """Asked back, the peer dials only what our pinned manifest names, and tells how that went."""
    async with clinic(tmp_path) as found:
        looked = found.doctors[found.b.url]

        async def lost(url: str, policy: DialPolicy) -> Reply:
            raise ReachError("connect", "alice.example at 203.0.113.9 port 443: Connection refused")

        looked._get = lost  # type: ignore[method-assign]
        report = await found.report()
        assert [item["code"] for item in report["problems"]] == ["reverse-unreachable"]
        assert "Connection refused" in report["problems"][0]["title"]
        assert report["problems"][0]["fix"].startswith("make public_url reachable")


async def test_a_token_past_its_end(tmp_path: Path) -> None:
    """The token explains what follows from it; refresh mends it."""
    async with clinic(tmp_path) as found:
        found.world.time_ms += 91 * 86_400_000
        report = await found.report()
        codes = {item["code"]: item["fix"] for item in report["problems"]}
        assert codes["token-expired"] == f"spl federation refresh {found.pair_id}"
        assert not {"auth-invalid", "token-scope"} & set(codes)
        marks = {row["name"]: row["mark"] for row in report["checks"]}
        assert (marks["token"], marks["scopes"]) == ("fail", "skip")


async def test_what_the_peer_refuses_of_a_token(tmp_path: Path) -> None:
    async with clinic(tmp_path) as found:
        check = f"/v1/federation/pair/{found.pair_id}/check"
        for error, code in (
            (SplError("auth-invalid", "unknown here", reason="token-unknown"), "auth-invalid"),
            (SplError("auth-invalid", "expired", reason="token-expired"), "token-expired"),
            (SplError("scope-forbidden", scope="federation:sync"), "token-scope"),
        ):
            found.change = answers(check, status=error.status, body=json.dumps(error.to_json()).encode())
            assert await found.problems() == {code: f"spl federation refresh {found.pair_id}"}


async def test_a_peer_that_paused(tmp_path: Path) -> None:
    async with clinic(tmp_path) as found:
        await found.b.pairing.pause(found.pair_id)
        await found.a.until(lambda: found.a.alive[0].paused_by == "peer")
        assert await found.problems() == {"peer-paused": f"on bob: spl federation resume {found.pair_id}"}
        await found.b.pairing.revoke(found.pair_id)
        await found.a.until(lambda: not found.a.alive)
        assert await found.problems() == {"peer-revoked": f"spl federation pair {found.b.url}/"}
        assert [item["code"] for item in found.doctors[found.a.url].attention()] == ["peer-revoked"]


async def test_the_way_ends_before_the_peer(tmp_path: Path) -> None:
    """Each step has its own code, and everything behind it is skipped."""
    async with clinic(tmp_path) as found:
        for code in ("dns", "connect", "timeout", "tls-chain", "address-refused", "http-plain"):
            found.came = Reached("bob.example", code=code, message=f"{code} it is")
            assert list(await found.problems()) == [code]


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
        error = {"class": "CONNECT_REFUSED", "code": "connect", "message": "refused", "at": "x"}
        found.status |= {"attempt": 2, "last_error": error}
        assert await found.problems() == {}
        found.status |= {"last_error": {**error, "code": "auth-invalid"}}
        assert await found.problems() == {}


@pytest.mark.parametrize("code", ["peer-rewound", "answer-malformed", "peer-5xx"])
async def test_what_only_a_pull_can_see(tmp_path: Path, code: str) -> None:
    async with clinic(tmp_path) as found:
        found.status |= {"attempt": 9, "last_error": {"class": "x", "code": code, "message": "so it was", "at": "x"}}
        doctor = found.doctors[found.a.url]
        for _ in range(2):
            doctor.health.beat(0.0)
        doctor.health._steady_s = lambda: 1000.0
        assert code in await found.problems()
        assert code in [item["code"] for item in doctor.attention()]


async def test_an_endless_answer_does_not_hold_the_report_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with clinic(tmp_path) as found:
        doctor = found.doctors[found.a.url]
        doctor.limits = Limits(check_s=0.005)

        async def hangs(*args: object, **named: object) -> Reply:
            await asyncio.Event().wait()
            raise AssertionError

        monkeypatch.setattr(doctor.client, "fetch", hangs)
        assert list(await found.problems()) == ["timeout"]


@pytest.mark.parametrize("state", ["opening", "open"])
async def test_the_pairs_own_stream_is_looked_at(tmp_path: Path, state: str) -> None:
    """A second one would end the first; where streams bring nothing for long, something holds them back."""
    async with clinic(tmp_path) as found:
        found.status["stream"] = {"state": state, "breaks": 0}
        doctor = found.doctors[found.a.url]
        doctor.health.beat(0.0)
        doctor.health._steady_s = lambda: 5.1
        assert ("stream-buffering" in await found.problems()) == (state == "opening")


async def test_what_is_seen_now_needs_no_patience(tmp_path: Path) -> None:
    """No poll has failed yet, and the doctor itself is answered 503."""
    async with clinic(tmp_path) as found:
        found.change = answers(MANIFEST, status=503)
        assert "peer-5xx" in await found.problems()
        found.change = answers("/v1/federation/pair", status=503)
        assert list(await found.problems()) == ["peer-5xx"]
        found.change = answers("/v1/federation/pair", status=429)
        assert list(await found.problems()) == ["rate-limited"]


async def test_a_peer_is_looked_at_six_times_and_then_slowly(tmp_path: Path) -> None:
    """Whoever holds a token cannot make us dial without end."""
    async with clinic(tmp_path) as found:
        doctor, pair = found.doctors[found.b.url], found.b.home.views.pairs[found.pair_id]
        for _ in range(6):
            assert (await doctor.look_back(pair))["reverse"]["reached"] is True  # type: ignore[index]
        with pytest.raises(SplError) as caught:
            await doctor.look_back(pair)
        assert (caught.value.code, caught.value.status) == ("rate-limited", 429)
        found.world.time_ms += 10_000
        await doctor.look_back(pair)


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
