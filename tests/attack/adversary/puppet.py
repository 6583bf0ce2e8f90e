"""Strangers and puppets: instances in the adversary's hands, as honest as a test wants them to be."""

import itertools
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from tests.attack.adversary import messages, wire
from tests.attack.adversary.keys import Identity
from tests.attack.adversary.messages import PAIR
from tests.attack.adversary.server import EVENTS, Asked, Given, Server
from tests.attack.adversary.text import at, canonical, ms_of, now_ms
from tests.attack.adversary.wire import HERE, Reply
from tests.e2e.harness import Instance

NDJSON: Final = "application/x-ndjson"
NOWHERE: Final = "http://127.0.0.1:9"
_CURSORS: Final = itertools.count(1)


def target_of(port: int) -> dict[str, Any]:
    """Return the manifest that a daemon publishes."""
    reply = wire.ask(port, "GET", "/.well-known/syncropel")
    assert reply.status == 200, reply
    return dict(reply.json["federation_manifest"])


def request_of(
    who: Identity, url: str, target: Mapping[str, Any], manifest: Mapping[str, Any] | None = None, **terms: Any
) -> dict[str, Any]:
    """Return a signed pair request of an identity that claims to be at `url`."""
    own = manifest or messages.manifest(who, url)
    return messages.signed("pair-request", messages.pair_request(who, own, target, **terms), who.key)


class Stranger:
    """An instance that speaks to a daemon and cannot be dialled: `url` is a claim.  `source` is where it comes from."""

    def __init__(
        self, who: Identity, daemon: Instance, source: str = HERE, *, url: str = NOWHERE,
        target: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.who, self.daemon, self.source, self.url = who, daemon, source, url
        self.target = dict(target or target_of(daemon.port))
        self.pair_id = self.token = ""
        self.more: dict[str, Any] = {}
        """Further members of every manifest that it signs."""
        self.headers_added: dict[str, str] = {}
        """What each of its requests carries besides, as a proxy adds it."""

    # -- what it says

    def manifest(self, **more: Any) -> dict[str, Any]:
        """Return its present manifest."""
        return messages.manifest(self.who, self.url, **{**self.more, **more})

    def request(self, manifest: Mapping[str, Any] | None = None, **terms: Any) -> Reply:
        """Ask for a pair and return the answer."""
        value = request_of(self.who, self.url, self.target, manifest or self.manifest(), **terms)
        self.pair_id = value["message"]["pair_id"]
        return self.post(PAIR, value)

    def word(self, purpose: str, action: str, *, who: Identity | None = None, **more: Any) -> Reply:
        """Send one signed message about the pair and return the answer; `who` signs it in its place."""
        signer = who or self.who
        fields = {**messages.head(signer.did, self.target["daemon"]["did"], self.pair_id), **more}
        return self.post(f"{PAIR}/{self.pair_id}/{action}", messages.signed(purpose, fields, signer.key))

    def poll(self, **more: Any) -> Reply:
        """Ask where the pair stands, which also tells that with us it is alive."""
        return self.word("pair-poll", "poll", **{"state": "active" if self.token else "establishing", **more})

    def withdraw(self) -> Reply:
        """Revoke the pair or take the request back."""
        return self.word("notify-revoke", "notify-revoke", reason="")

    def renew(self) -> Reply:
        """Ask for a new token."""
        return self.word("renew", "renew")

    def post(self, path: str, value: object, headers: Mapping[str, str] | None = None) -> Reply:
        """Send a JSON value without a bearer."""
        return self.post_bytes(path, canonical(value), headers)

    def post_bytes(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> Reply:
        """Send bytes that may be no JSON at all."""
        sent = {**self.headers_added, **(headers or {})}
        return wire.ask(self.daemon.port, "POST", path, body, headers=sent, source=self.source)


class Puppet(Stranger):
    """A stranger with a server, which may become a peer of the daemon."""

    def __init__(self, who: Identity, daemon: Instance, source: str = HERE) -> None:
        self.server = Server(self.answer)
        super().__init__(who, daemon, source, url=self.server.url)
        self.cursor = f"c{next(_CURSORS)}"
        self.chains: dict[str, Identity] = {who.did: who}
        self.changes: Given | None = None
        """What is answered to a question for changes, in place of an empty page."""
        self.events: Iterator[bytes] | None = None
        """The stream that the next subscriber gets, in place of silence."""
        self._proofs_from_ms = 0
        self.closing = threading.Event()

    def close(self) -> None:
        """End its server."""
        self.closing.set()
        self.server.close()

    def join(self, **terms: Any) -> "Puppet":
        """Become a live pair of the daemon, its operator agreeing where that is asked of him."""
        reply = self.request(**terms)
        if reply.status == 202:
            decided = self.daemon.api("POST", f"/v1/aitl/{self.pair_id}/decide", {"decision": "approve"})
            assert decided.status == 200, decided.body
            reply = self.poll()
        assert reply.status == 200, reply
        self.token = self.opened(reply.fields["answer"]["message"]["token"])
        confirmed = self.word("pair-confirm", "confirm")
        assert (confirmed.status, confirmed.fields["state"]) == (200, "active"), confirmed
        return self

    def opened(self, sealed: str) -> str:
        """Return the text of a token that was sealed to it."""
        return str(json.loads(self.who.open(sealed))["token"])

    # -- what it asks as a peer

    def headers(
        self, method: str, target: str, body: bytes = b"", *, issued_ms: int | None = None, era: str = ""
    ) -> dict[str, str]:
        """Return bearer and proof for one request, by default dated as late as a daemon takes it.

        So it counts at once after the daemon's start, and is the one that a captor would like best.
        """
        audience = self.target["daemon"]["did"]
        issued_ms = now_ms() if issued_ms is None else issued_ms
        proof = messages.proof(self.who.key, method, target, audience, self.token, body, issued_ms, era)
        return {"authorization": f"Bearer {self.token}", "spl-proof": proof}

    def call(
        self, method: str, target: str, value: object = None, *, body: bytes = b"", media: str = "application/json"
    ) -> Reply:
        """Send one request with bearer and proof and return the answer."""
        body = body or (canonical(value) if value is not None else b"")
        headers = {**self.headers(method, target, body), **({"content-type": media} if body else {})}
        return wire.ask(self.daemon.port, method, target, body, headers=headers, source=self.source)

    def pushed(
        self, *envelopes: Mapping[str, Any], chains: Sequence[Identity] = (), ns: str = "default"
    ) -> dict[str, Any]:
        """Push records, with the chains of their signers, and return the whole answer."""
        since = ""
        while True:
            self.cursor = f"c{next(_CURSORS)}"
            body = messages.push_body(envelopes, since=since, cursor=self.cursor, chains=chains, ns=ns)
            reply = self.call("POST", "/v1/sync/records", body=body, media=NDJSON)
            if reply.code != "PUSH_POSITION":
                break
            since = reply.json["cursor"]
        assert reply.status == 200, reply
        return dict(reply.json)

    def push(
        self, *envelopes: Mapping[str, Any], chains: Sequence[Identity] = (), ns: str = "default"
    ) -> list[dict[str, Any]]:
        """Push records, with the chains of their signers, and return the result of each."""
        return list(self.pushed(*envelopes, chains=chains, ns=ns)["results"])

    def fetch(self, *ids: str) -> list[str]:
        """Ask for records by id and return the ids of those that came."""
        reply = self.call("POST", "/v1/sync/records", {"ids": list(ids)})
        assert reply.status == 200, reply
        return [envelope["id"] for envelope in reply.json["records"]]

    def refuse_proofs_before(self, floor_ms: int) -> None:
        """Answer what was signed before this time as a daemon does that has just started: 401 with its own time."""
        self._proofs_from_ms = floor_ms

    # -- what it answers

    def answer(self, asked: Asked) -> Given:
        """Return what an honest instance without records would answer."""
        path = urlsplit(asked.target).path
        if "spl-proof" in asked.headers and ms_of(asked.headers["spl-proof"].split(";")[1]) < self._proofs_from_ms:
            refusal = {"object": "error", "type": "auth", "code": "AUTH_INVALID", "message": "too old"}
            return Given(401, canonical({**refusal, "reason": "proof-time", "time": at(self._proofs_from_ms)}))
        if path == "/.well-known/syncropel":
            return Given(body=canonical(messages.document(self.manifest())))
        if path == "/.well-known/did.json":
            return Given(body=canonical(messages.did_document(self.who)))
        if path == "/v1/sync/changes":
            return self._changes(asked)
        if path == "/v1/sync/chains":
            return self._chain(parse_qs(urlsplit(asked.target).query).get("did", [""])[0])
        if path == "/v1/sync/ack":
            return Given(body=b'{"peer_view":{}}')
        if path == "/v1/sync/records":
            return Given(body=self._records(asked))
        if path == PAIR:
            request = json.loads(asked.body)["message"]
            return Given(
                403, canonical(messages.answer(request, self.who.key, "refused", 403, code="HANDSHAKE_CLOSED"))
            )
        if path.startswith(PAIR + "/"):
            return Given(body=canonical(self._said(path.rpartition("/")[2], json.loads(asked.body)["message"])))
        return Given(404)

    def _changes(self, asked: Asked) -> Given:
        if "feed=continuous" in asked.target:
            events, self.events = self.events, None
            return Given(body=events if events is not None else self._silence(), media=EVENTS)
        if self.changes is not None:
            return self.changes
        page = {"records": [], "ns": [], "next_cursor": self.cursor, "has_more": False, "peer_view": {}}
        return Given(body=canonical(page))

    def _records(self, asked: Asked) -> bytes:
        if not asked.headers.get("content-type", "").startswith(NDJSON):
            return b'{"records":[],"ns":[],"has_more":false}'
        first, *lines = map(json.loads, asked.body.splitlines())
        results = [{"id": line["env"]["id"], "status": 200} for line in lines]
        told = {"cursor": first["cursor"] or first["since"], "records": len(lines), "results": results, "wanted": []}
        return canonical({**told, "peer_view": {"state": "active"}})

    def _silence(self) -> Iterator[bytes]:
        yield b": here\n\n"
        self.closing.wait()

    def _chain(self, did: str) -> Given:
        known = self.chains.get(did)
        return Given(404) if known is None else Given(body=canonical(known.chain()))

    def _said(self, action: str, request: Mapping[str, Any]) -> dict[str, Any]:
        more: dict[str, Any] = {}
        if action == "renew":
            nonce = request["nonce"][::-1]
            _, sealed = messages.sealed_token(self.who, self.target, request["pair_id"], nonce)
            more = {"nonce": nonce, "token": sealed}
        return messages.answer(request, self.who.key, "active", **more)
