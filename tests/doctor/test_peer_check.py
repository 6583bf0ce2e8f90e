"""Asking a peer and being asked: each fault on the way has its code, and a peer is told no more than it must."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from spl.core import when
from spl.core.errors import SplError
from spl.core.limits import Limits
from spl.net.address import ReachError
from spl.net.client import Reply
from spl.net.dialer import DialPolicy
from spl.net.probe import Reached
from tests.doctor.clinic import MANIFEST, answers, clinic

PUBLISH = "spl identity generate; it keeps the key if there is one, and publishes the manifest"


async def test_the_peer_has_no_identity_or_something_strips_the_dot_path(tmp_path: Path) -> None:
    async with clinic(tmp_path) as found:
        missing = json.dumps(SplError("manifest-missing").to_json()).encode()
        found.change = answers(MANIFEST, status=404, body=missing)
        assert await found.problems() == {"manifest-missing": f"on bob: {PUBLISH}"}
        found.change = answers(MANIFEST, status=404, body=b"<h1>Not Found</h1>")
        assert "let the proxy pass /.well-known/" in (await found.problems())["foreign-answer"]


async def test_a_manifest_that_does_not_verify(tmp_path: Path) -> None:
    """The page's words, and its fix: the peer publishes again."""
    async with clinic(tmp_path) as found:
        document = dict(found.b.pairing.published.manifest())
        document["federation_manifest"] = {**document["federation_manifest"], "capabilities": []}
        found.change = answers(MANIFEST, body=json.dumps(document).encode())
        report = await found.report()
        [problem] = [item for item in report["problems"] if item["code"] == "manifest-signature"]
        assert problem["title"] == "manifest signature does not verify against advertised DID"
        assert problem["fix"] == f"on bob: {PUBLISH}; then retry here"


async def test_a_proxy_that_wants_a_bearer_for_the_handshake(tmp_path: Path) -> None:
    async with clinic(tmp_path) as found:
        found.change = answers("/v1/federation/pair", status=401)
        assert list(await found.problems()) == ["foreign-answer"]
        refused = json.dumps(SplError("auth-required").to_json()).encode()
        found.change = answers("/v1/federation/pair", status=401, body=refused)
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
        seen = await found.doctors[found.a.url].peer._ask_manifest(pair)
        assert 6_000_000 < (seen.clock_ahead_ms or 0) < 7_300_000  # the world's clock stands shortly after 16:00


@pytest.mark.parametrize("how", ["closed", "odd"])
async def test_the_peer_cannot_reach_us(tmp_path: Path, how: str) -> None:
    """Asked back, a peer dials only what our pinned manifest names, and says whether it came there, not what it met.

    Otherwise a peer could move its manifest through our network and learn what answers.
    """
    async with clinic(tmp_path) as found:
        looked = found.doctors[found.b.url].peer

        async def lost(url: str, policy: DialPolicy) -> Reply:
            if how == "closed":
                raise ReachError("connect", "alice.example at 203.0.113.9 port 443: Connection refused")
            return Reply(418, {}, b"{}", "203.0.113.9")

        looked._get = lost  # type: ignore[method-assign]
        told = await looked.look_back(found.b.home.views.pairs[found.pair_id])
        assert told["reverse"] == {"reached": False, "url": found.a.url}
        report = await found.report()
        assert [item["code"] for item in report["problems"]] == ["reverse-unreachable"]
        assert report["problems"][0]["title"] == f"bob cannot reach {found.a.url}"
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
            (SplError("auth-invalid", "revoked", reason="token-revoked"), "auth-invalid"),
            (SplError("scope-forbidden", scope="federation:sync"), "token-scope"),
        ):
            found.change = answers(check, status=error.status, body=json.dumps(error.to_json()).encode())
            revoked = error.facts.get("reason") == "token-revoked"
            fix = f"on bob: spl token rotate {found.pair_id}" if revoked else f"spl federation refresh {found.pair_id}"
            assert await found.problems() == {code: fix}


async def test_the_way_ends_before_the_peer(tmp_path: Path) -> None:
    """Each step has its own code, and everything behind it is skipped."""
    async with clinic(tmp_path) as found:
        for code in ("dns", "connect", "timeout", "tls-chain", "address-refused", "http-plain"):
            found.came = Reached("bob.example", code=code, message=f"{code} it is")
            assert list(await found.problems()) == [code]


async def test_an_endless_answer_does_not_hold_the_report_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with clinic(tmp_path) as found:
        doctor = found.doctors[found.a.url].peer
        doctor.limits = Limits(check_s=0.005)

        async def hangs(*args: object, **named: object) -> Reply:
            await asyncio.Event().wait()
            raise AssertionError

        monkeypatch.setattr(doctor.client, "fetch", hangs)
        assert list(await found.problems()) == ["timeout"]


async def test_what_is_seen_now_needs_no_patience(tmp_path: Path) -> None:
    """No poll has failed yet, and the doctor itself is answered 503."""
    async with clinic(tmp_path) as found:
        found.change = answers(MANIFEST, status=503)
        assert list(await found.problems()) == ["foreign-answer"]
        found.change = answers("/v1/federation/pair", status=503)
        assert list(await found.problems()) == ["foreign-answer"]
        found.change = answers(MANIFEST, status=503, body=json.dumps(SplError("overloaded").to_json()).encode())
        assert list(await found.problems()) == ["peer-5xx"]
        found.change = answers("/v1/federation/pair", status=429)
        assert list(await found.problems()) == ["rate-limited"]


async def test_a_peer_is_looked_at_six_times_and_then_slowly(tmp_path: Path) -> None:
    """Whoever holds a token cannot make us dial without end."""
    async with clinic(tmp_path) as found:
        doctor, pair = found.doctors[found.b.url], found.b.home.views.pairs[found.pair_id]
        for _ in range(6):
            assert (await doctor.peer.look_back(pair))["reverse"]["reached"] is True  # type: ignore[index]
        with pytest.raises(SplError) as caught:
            await doctor.peer.look_back(pair)
        assert (caught.value.code, caught.value.status) == ("rate-limited", 429)
        found.world.set_ms -= 3_600_000  # a clock that is set back lets nobody wait longer
        found.world.time_ms += 10_000
        await doctor.peer.look_back(pair)


async def test_a_peer_that_refuses_the_date_of_our_proof_is_asked_again_by_its_clock(tmp_path: Path) -> None:
    """As every request to a peer is: a doctor that did not would find a fault in a token that works."""
    async with clinic(tmp_path) as found:
        found.a.pairing.peers._told[found.pair_id] = 60_000, ""
        assert await found.problems() == {}


async def test_a_page_in_the_peers_place_is_no_good_answer(tmp_path: Path) -> None:
    """Status 200 alone shows neither an endpoint nor that the peer takes our token."""
    async with clinic(tmp_path) as found:
        for path in ("/v1/federation/pair", f"/v1/federation/pair/{found.pair_id}/check"):
            found.change = answers(path, status=200, body=b"<h1>Welcome</h1>")
            assert list(await found.problems()) == ["foreign-answer"]
