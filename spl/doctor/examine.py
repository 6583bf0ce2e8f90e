"""The doctor: gathers facts about the daemon and about a pair, asks the peer where that helps, and names what is wrong.

`status` uses the facts that are there (`attention`); `examine` goes the way to the peer step by step, and asks the
peer for its own view: whether it reaches us, and what it then sees.  Each question has `limits.check_s`, those that do
not depend on each other are asked at once, and a fault of one is a fact, never an error.
"""

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final

from ..core import canon, when
from ..core.backoff import TokenBucket
from ..core.errors import SplError
from ..core.identity import manifest
from ..core.identity.did import short_of, words
from ..core.limits import Limits
from ..core.pair.pair import Pair
from ..core.record import page
from ..core.rules import locks_out_handshake
from ..core.version import PROTOCOL
from ..home.vault import Vault
from ..home.writer import Writer
from ..net.client import Client, DialPolicy, Reply
from ..net.probe import Reached, days_left
from ..pairing.exchange import DID_PATH, MANIFEST_PATH
from ..pairing.service import Pairing
from ..sync.peer import AUTH_CODES, SyncError
from ..sync.schedule import Sync
from . import catalogue, conditions, facts
from . import checks as checkup
from .catalogue import Found
from .health import HealthSampler

CHECK_PATH: Final = "/v1/federation/pair/{}/check"
LOOKS_COUNT: Final = 6
LOOKS_PER_S: Final = 0.1
ERROR_BYTES: Final = 16 * 1024
_REACH: Final = frozenset(conditions.REACH)
_ABOUT: Final = frozenset({*conditions.MANIFEST, "identity-cloned"})
_ANSWERED: Final = frozenset({"peer-4xx", "peer-5xx", "rate-limited"})
_KNOWN: Final = frozenset(row.code for row in catalogue.CATALOGUE)


Reach = Callable[[str, DialPolicy], Awaitable[Reached]]


class DoctorError(SplError):
    """The doctor is not to be asked now; code rate-limited."""


class Doctor:
    """One daemon's.

    `reach` goes to a peer step by step, as `net/probe.py` does; `way(pair_id)` tells which way the
    pair runs, in a word of `sync/reach.py`.
    """

    def __init__(
        self,
        home: Path,
        url: str,
        writer: Writer,
        vault: Vault,
        limits: Limits,
        *,
        pairing: Pairing,
        sync: Sync,
        health: HealthSampler,
        client: Client,
        reach: Reach,
        way: Callable[[str], str],
        now_ms: Callable[[], int],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self.home, self.url, self.writer, self.vault, self.limits = home, url, writer, vault, limits
        self.pairing, self.sync, self.health, self.client = pairing, sync, health, client
        self._reach, self._way, self._now_ms, self._random_bytes = reach, way, now_ms, random_bytes
        self._started_ms = now_ms()
        self._looks: OrderedDict[str, TokenBucket] = OrderedDict()

    # -- from what is known

    def attention(self) -> list[dict[str, object]]:
        """Return what an operator should act on, from facts at hand: code, severity, title, fix, pair_id."""
        pairs, now_ms = self.writer.views.pairs, self._now_ms()
        rows = [(None, item) for item in catalogue.findings(self._daemon_facts())]
        for pair in pairs.values():
            if facts.has_projection(pair, pairs, now_ms):
                rows += [(pair.pair_id, item) for item in catalogue.findings(self._pair_facts(pair))]  # type: ignore[misc]
        return [_told(item, pair_id) for pair_id, item in rows if item.is_problem]

    def fix(self, pair: Pair) -> str | None:
        """Return the next step for the first problem of a pair, from facts at hand; None without problem."""
        wrong = catalogue.problems(catalogue.findings(self._pair_facts(pair)))
        return wrong[0].fix if wrong else None

    def _daemon_facts(self) -> dict[str, Any]:
        known = facts.daemon_facts(self.writer.store, self.vault, self.health, self.limits, self._now_ms())
        slow = facts.adapters_slow(self.writer.listeners.summary())
        return {**known, "locking_rule": locks_out_handshake(self.writer.views.rules), "adapters_slow": slow}

    def _pair_facts(self, pair: Pair) -> dict[str, Any]:
        status, place = self.sync.status(pair.pair_id), self.writer.views.positions.get(pair.pair_id)
        at_ms = facts.confirmed_ms(status)
        unmoved = place is not None and at_ms is not None and place.at_ms < self._started_ms < at_ms
        known = facts.pair_facts(
            pair, status, self.health, self.pairing.trouble(pair.pair_id), unmoved=unmoved,
            way=self._way(pair.pair_id), limits=self.limits, now_ms=self._now_ms(),
            uptime_s=(self._now_ms() - self._started_ms) / 1000,
        )  # fmt: skip
        book = self.pairing.handover.grants.book(pair)
        return {**known, **facts.consent_facts(pair, book, self.writer.views.namespaces)}

    # -- by asking

    async def examine(self, pair: Pair | None) -> dict[str, object]:
        """Return the report on one pair, or on the daemon: checks, problems, and how many checks they explain.

        Without a pair the pairs stand in it as `pairs`, each with its problems from the facts at hand.
        """
        known = {**self._daemon_facts(), **await asyncio.to_thread(facts.config_facts, self.home), **self._self_facts()}
        if pair is None:
            known |= await self._ask_ourselves()
        else:
            known |= self._pair_facts(pair)
            del known["locking_rule"]  # it keeps strangers out, and no pair from syncing
            if not pair.ended:
                known |= await self._ask_peer(pair, known)
        found = catalogue.findings(known)
        report = report_of(checkup.OURSELVES if pair is None else checkup.PAIR, known, found)
        if pair is None:
            report["pairs"] = [self._line(item) for item in self.writer.views.pairs.values() if not item.ended]
        else:
            report |= {"pair_id": pair.pair_id, "peer_did": pair.peer_did}
        return report

    def _line(self, pair: Pair) -> dict[str, object]:
        known = self._pair_facts(pair)
        wrong = [_told(item, pair.pair_id) for item in catalogue.findings(known) if item.is_problem]
        confirmed = checkup.ago(known["confirmed_s"])
        return {"pair_id": pair.pair_id, "peer_did": pair.peer_did, "state": str(pair.phase), "confirmed": confirmed,
                "problems": wrong}  # fmt: skip

    def _self_facts(self) -> dict[str, Any]:
        names = (task.get_name() for task in asyncio.all_tasks())
        pairs = [pair_id for pair_id, pair in self.writer.views.pairs.items() if not pair.ended]
        known: dict[str, Any] = {
            "tasks_count": sum(any(name.endswith(pair_id) for pair_id in pairs) for name in names),
            "protocol_ours": f"{PROTOCOL}..{PROTOCOL}",
        }
        identity = self.vault.identity
        if identity is not None:
            known |= {"did": short_of(identity.did), "words": words(identity.chain.present)}
        return known

    async def _ask_ourselves(self) -> dict[str, Any]:
        """Fetch our own manifest by our public URL, as a peer would, and hold its bytes against our own."""
        if self.vault.identity is None:
            return {}
        url = self.url + MANIFEST_PATH
        try:
            reply = await self._get(url, DialPolicy(allow_private=True, allow_http=True))
        except SplError as exc:
            return {"published_url": url, "published_unseen": exc.code}
        same = reply.status == 200 and _digest(reply.body) == self._published_digest()
        fault = f"{url} answers {reply.status} with other bytes than this daemon serves"
        return {"published_url": url, **({"published_same": True} if same else {"published_fault": fault})}

    async def _ask_peer(self, pair: Pair, known: Mapping[str, Any]) -> dict[str, Any]:
        """Return the facts of the way to the peer; where it ends, its fault takes the place of an older one."""
        came = await self._reach(pair.url, self.pairing.dial(pair))
        told: dict[str, Any] = {"host": came.host, "addresses": came.addresses, "address": came.address}
        # What is seen now needs no patience.
        told["broken_s"] = {code: s for code, s in known["broken_s"].items() if code not in facts.HEALING}
        if came.code:
            return {**told, "failure": {"code": came.code, "message": came.message}}
        if (known.get("failure") or {}).get("code") in _REACH:
            told["failure"] = None
        if came.tls_ends_s is not None:
            told["tls_days_left"] = days_left(came.tls_ends_s, self._now_ms() / 1000)
        async with asyncio.TaskGroup() as tasks:
            asked = [
                tasks.create_task(self._bounded(question, pair))
                for question in (self._ask_manifest, self._ask_endpoint, self._ask_back)
            ]
        for task in asked:
            told |= task.result()
        return self._settled(known, told)

    def _settled(self, known: Mapping[str, Any], told: dict[str, Any]) -> dict[str, Any]:
        """Return what was seen now, with nothing left of older faults that it disproves."""
        before = (known.get("failure") or {}).get("code")
        if told.get("manifest_held"):
            told["manifest"] = None
        # On demand nothing was tried since; an answer to our token says that the peer is there again.
        over = {*AUTH_CODES, *(_ANSWERED if known["mode"] == "on-demand" else ())}
        proved = (told.get("token_taken") and before in over) or (told.get("manifest_held") and before in _ABOUT)
        if proved and "failure" not in told:
            told["failure"] = None
        inside = told.pop("manifest_inside", "")
        if inside and told.get("manifest_digest"):
            told["inside_same"] = inside == told["manifest_digest"]
            if not told["inside_same"]:
                told["outside_fault"] = "the peer's manifest arrives here with other bytes than its daemon serves"
        return told

    async def _bounded(self, question: Callable[[Pair], Awaitable[dict[str, Any]]], pair: Pair) -> dict[str, Any]:
        """Return the facts of one question; what went wrong on the way is a fact too."""
        try:
            async with asyncio.timeout(2 * self.limits.check_s):
                return await question(pair)
        except TimeoutError:
            message = f"{pair.url} did not answer in {2 * self.limits.check_s:g} s"
            return {"failure": {"code": "timeout", "message": message}}
        except SplError as exc:
            return {"failure": {"code": exc.code, "message": exc.message}}

    async def _ask_manifest(self, pair: Pair) -> dict[str, Any]:
        """Fetch manifest and DID document anew and verify them against what is pinned."""
        started_ms = self._now_ms()
        reply = await self._get(pair.url + MANIFEST_PATH, self.pairing.dial(pair))
        told = _date_facts(reply, started_ms, self._now_ms())
        if reply.status != 200:
            return {**told, **_status_facts(reply, pair.url + MANIFEST_PATH)}
        document = await self._get(pair.url + DID_PATH, self.pairing.dial(pair))
        own = self.vault.identity
        try:
            seen = manifest.verify(
                reply.body, document.body if document.status == 200 else None, now_ms=self._now_ms(),
                strict=pair.proposal.strict, limits=self.limits,
            )  # fmt: skip
            if own is not None and seen.did == own.did:
                raise DoctorError("identity-cloned", f"{pair.url} answers with our own DID")
            told["protocol_peer"] = f"{seen.protocol_min}..{seen.protocol_max}"
            manifest.judge(
                seen, now_ms=self._now_ms(), strict=pair.proposal.strict, expect_did=pair.peer_did, pinned=pair.chain,
                newer_than_ms=pair.peer.signed_at_ms,
            )  # fmt: skip
        except SplError as exc:
            code = exc.code if exc.code in _KNOWN else "manifest-malformed"
            return {**told, "manifest": {"code": code, "message": exc.message}}
        return {**told, "manifest_held": True, "manifest_digest": _digest(reply.body)}

    async def _ask_endpoint(self, pair: Pair) -> dict[str, Any]:
        """GET the pair endpoint: 405 says that a handshake could be posted there without a bearer."""
        reply = await self._get(pair.peer.pair_endpoint, self.pairing.dial(pair))
        if reply.status == 429 or reply.status >= 500:
            return _status_facts(reply, pair.peer.pair_endpoint)
        return {"endpoint_status": reply.status}

    async def _ask_back(self, pair: Pair) -> dict[str, Any]:
        """Ask the peer, authenticated, whether it reaches us and how it sees the pair."""
        target = CHECK_PATH.format(pair.pair_id)
        headers = self._credentials(pair, "POST", target, b"{}")
        if not headers:
            return {}
        started_ms = self._now_ms()
        reply = await self.client.fetch(
            "POST", pair.url + target, headers=[*headers, ("content-type", "application/json")], body=b"{}",
            timeout_s=2 * self.limits.check_s, answer_bytes=ERROR_BYTES, dial=self.pairing.dial(pair),
        )  # fmt: skip
        value = _object(reply.body)
        if reply.status != 200:
            return _refusal_facts(reply.status, value, self._now_ms())
        return {"token_taken": True, **self._back_facts(value, started_ms)}

    def _credentials(self, pair: Pair, method: str, target: str, body: bytes) -> list[tuple[str, str]]:
        """Return the headers that prove us to the peer, none where we hold no token that could."""
        try:
            return self.pairing.peers.credentials(pair, method, target, body) if pair.live else []
        except SyncError:
            return []

    def _back_facts(self, value: Mapping[str, Any], started_ms: int) -> dict[str, Any]:
        """Return what a peer's answer to the check tells; every member of it is the peer's word, of its own form."""
        told: dict[str, Any] = {}
        view, seen = value.get("peer_view"), value.get("reverse")
        if isinstance(view, dict):
            told["peer_view"] = page.read_view(view)
        if isinstance(value.get("manifest_sha256"), str):
            told["manifest_inside"] = value["manifest_sha256"]
        if isinstance(seen, dict):
            ms = seen.get("ms")
            told["reverse"] = {
                "reached": seen.get("reached") is True, "ms": ms if type(ms) is int else 0, "url": _cut(seen, "url"),
                "code": _cut(seen, "code"), "message": _cut(seen, "message"),
            }  # fmt: skip
            if told["reverse"]["reached"] and seen.get("sha256") != self._published_digest():
                told["outside_fault"] = "our manifest arrives at the peer with other bytes than this daemon serves"
        told |= _clock_facts(value.get("time"), started_ms, self._now_ms())
        return told

    # -- being asked

    async def look_back(self, pair: Pair) -> dict[str, object]:
        """Return how this side sees the peer that asks: whether we reach the endpoint that its pinned manifest names.

        Nothing of the request says where to.  Raises DoctorError "rate-limited" beyond six looks and then one each
        ten seconds, for a pair.
        """
        bucket = self._looks.pop(pair.pair_id, TokenBucket(LOOKS_COUNT, LOOKS_PER_S))
        self._looks[pair.pair_id], allowed, wait_s = bucket.take(self._now_ms() / 1000)
        while len(self._looks) > self.limits.pairs_count:
            self._looks.popitem(last=False)
        if not allowed:
            raise DoctorError("rate-limited", "checked often enough", retry_after_s=int(wait_s) + 1)
        return {
            "reverse": await self._look(pair),
            "manifest_sha256": self._published_digest(),
            "time": when.text_of(self._now_ms()),
        }

    async def _look(self, pair: Pair) -> dict[str, object]:
        url, started_ms = pair.url + MANIFEST_PATH, self._now_ms()
        try:
            reply = await self._get(url, self.pairing.dial(pair))
        except SplError as exc:
            return {"reached": False, "url": pair.url, "code": exc.code, "message": exc.message}
        if reply.status != 200 or _object(reply.body).get("did") != pair.peer_did:
            message = f"{url} answers {reply.status}, and not with the manifest of this peer"
            return {"reached": False, "url": pair.url, "code": "manifest-missing", "message": message}
        return {"reached": True, "url": pair.url, "ms": self._now_ms() - started_ms, "sha256": _digest(reply.body)}

    async def _get(self, url: str, policy: DialPolicy) -> Reply:
        """Return the answer to a GET that no cache may give, within the time of one check.  Raises ReachError."""
        return await self.client.fetch(
            "GET", url, headers=[("cache-control", "no-cache")], timeout_s=self.limits.check_s, dial=policy,
            answer_bytes=self.limits.manifest_bytes,
        )  # fmt: skip

    def _published_digest(self) -> str:
        return _digest(canon.encode(self.pairing.published.manifest()))


def report_of(checks: tuple[checkup.Check, ...], known: conditions.Facts, found: list[Found]) -> dict[str, object]:
    """Return {object, checks, problems, explained} of a set of checks over facts; for a home without daemon too."""
    return {
        "object": "doctor",
        "pair_id": None,
        "checks": (rows := checkup.lines(checks, known, found)),
        "problems": [_told(item, None) for item in catalogue.problems(found)],
        "explained": sum(row["mark"] == checkup.SKIP for row in rows),
    }


def examine_home(path: Path) -> dict[str, object]:
    """Return the report on a home whose daemon does not answer."""
    known = facts.home_facts(path)
    return report_of(checkup.DAEMON, known, catalogue.findings(known))


def _told(item: Found, pair_id: str | None) -> dict[str, object]:
    """Return a finding for people and programs; `title` is what was seen, `meaning` what that is."""
    fields = asdict(item)
    told = {name: fields[name] for name in ("code", "severity", "side", "fix")}
    return {**told, "title": item.evidence, "meaning": item.title, **({"pair_id": pair_id} if pair_id else {})}


def _status_facts(reply: Reply, url: str) -> dict[str, Any]:
    """Return what another status than 200 for the manifest says."""
    if reply.status == 429:
        return {"throttled": True}
    if reply.status >= 500:
        return {"failure": {"code": "peer-5xx", "message": f"{url} answers {reply.status}"}}
    ours = _object(reply.body).get("code") == "MANIFEST_MISSING"
    why = "the peer has no identity" if ours else "not by the peer's daemon: something between strips the dot path"
    return {
        "manifest": {"code": "manifest-missing", "message": f"{url} answers {reply.status}, {why}"},
        "manifest_ours": ours,
    }


def _refusal_facts(status: int, value: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    """Return what the peer's refusal of our token says; no other refusal says anything about the token."""
    code, reason = _cut(value, "code"), _cut(value, "reason")
    told: dict[str, Any] = {}
    if code == "SCOPE_FORBIDDEN":
        told["scopes_missing"] = [_cut(value, "scope") or "federation:sync"]
    elif reason == "token-expired":
        told["token_left_ms"] = 0
    elif status in (401, 403):
        told["token_refused"] = f"the peer answers {status}: {_cut(value, 'message') or code}"
    elif status == 429:
        told["reverse_unknown"] = "not asked again: the peer was asked a moment ago"
        told |= {"token_taken": True} if code == "RATE_LIMITED" else {}  # the peer's own answer, behind its check of us
    elif status == 404:
        told["reverse_unknown"] = "the peer cannot say: its version knows no such question"
    return {**told, **_clock_facts(value.get("time"), now_ms, now_ms)}


def _date_facts(reply: Reply, started_ms: int, ended_ms: int) -> dict[str, Any]:
    """Return the peer's clock from the Date header, which tells whole seconds: half a second late on average."""
    try:
        date = parsedate_to_datetime(reply.headers.get("date", ""))
    except ValueError:
        return {}
    return {"clock_ahead_ms": int(date.timestamp() * 1000) + 500 - (started_ms + ended_ms) // 2}


def _clock_facts(text: object, started_ms: int, ended_ms: int) -> dict[str, Any]:
    try:
        return {"clock_ahead_ms": when.ms_of(text) - (started_ms + ended_ms) // 2}
    except when.WhenError:
        return {}


def _object(body: bytes) -> Mapping[str, Any]:
    """Return the JSON object of a small answer, or an empty one."""
    try:
        value = json.loads(body[:ERROR_BYTES])
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _cut(value: Mapping[str, Any], name: str) -> str:
    """Return a text of the peer's, bounded and printable; "" for anything else."""
    text = value.get(name)
    return "".join(char for char in text[:200] if char.isprintable()) if isinstance(text, str) else ""


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
