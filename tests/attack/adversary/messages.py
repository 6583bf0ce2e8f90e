"""What the adversary says: manifests, signed messages, sealed tokens, proofs, records and pushes.

Every maker takes what an honest instance would put in and lets a test put in something else.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from nacl.signing import SigningKey

from tests.attack.adversary.keys import Identity, public_of, seal_to, secret_hex
from tests.attack.adversary.text import DAY_MS, at, b64, canonical, digest, multibase, now_ms

PAIR: Final = "/v1/federation/pair"
SCOPES: Final = ("federation:subscribe", "federation:sync")
HASHED: Final = ("act", "actor", "body", "clock", "data_type", "parents", "thread")


# -- published documents


def manifest(
    who: Identity, url: str, *, signed_ms: int | None = None, days: int = 7, **more: Any
) -> dict[str, Any]:  # fmt: skip
    """Return a `federation_manifest` that claims `url`; `more` are further members, signed with the rest."""
    signed = now_ms() if signed_ms is None else signed_ms
    body: dict[str, Any] = {
        "manifest_version": 1,
        "daemon": {"did": who.did, "version": "1.0.0", "federation_protocol_version": 1},
        "public_key": multibase(public_of(who.key)),
        "rotations": list(who.rotations),
        "seal_key": who.seal_public,
        "federation": {
            "enabled": True, "pair_endpoint": url + PAIR, "sync_change_endpoint": url + "/v1/sync/changes",
            "sync_record_endpoint": url + "/v1/sync/records",
        },
        "advertises": {},
        "capabilities": ["batch-signatures", "longpoll", "sealed-tokens", "token-proof"],
        "signature": {
            "alg": "Ed25519", "key_id": f"{who.did}#{multibase(public_of(who.key))}", "signed_at": at(signed),
            "expires_at": at(signed + days * DAY_MS),
        },
        **more,
    }  # fmt: skip
    body["signature"]["signature"] = b64(who.key.sign(canonical(body)).signature)
    return body


def document(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `/.well-known/syncropel` serves around a manifest."""
    return {
        "did": body["daemon"]["did"], "pair_endpoint": body["federation"]["pair_endpoint"],
        "signature": body["signature"], "federation_manifest": dict(body),
    }  # fmt: skip


def did_document(who: Identity) -> dict[str, Any]:
    """Return the DID document of an identity."""

    def method(text: str) -> dict[str, str]:
        return {"id": f"{who.did}#{text}", "type": "Multikey", "controller": who.did, "publicKeyMultibase": text}

    texts = [multibase(public_of(key)) for key in who.keys]
    return {
        "@context": ["https://www.w3.org/ns/did/v1"], "id": who.did, "verificationMethod": list(map(method, texts)),
        "authentication": [f"{who.did}#{texts[-1]}"], "assertionMethod": [f"{who.did}#{texts[-1]}"],
        "keyAgreement": [method(who.seal_public)], "service": [], "rotations": list(who.rotations),
    }  # fmt: skip


# -- signed messages


def pair_id_of(initiator: str, responder: str, nonce: str) -> str:
    """Return the id of the pair that a request of this nonce asks for."""
    return "pair_" + digest("\0".join((initiator, responder, nonce)).encode())[:8]


def signed(purpose: str, fields: Mapping[str, Any], key: SigningKey) -> dict[str, Any]:
    """Return the message with its signature under a purpose."""
    text = f"syncropel-{purpose}-v1\0".encode() + canonical(fields)
    return {"message": dict(fields), "signature": b64(key.sign(text).signature)}


def head(signer: str, audience: str, pair_id: str, nonce: str = "", issued_ms: int | None = None) -> dict[str, Any]:
    """Return the fields that every message has."""
    issued = at(now_ms() if issued_ms is None else issued_ms)
    nonce = nonce or secret_hex(16)
    return {"signer": signer, "audience": audience, "pair_id": pair_id, "issued_at": issued, "nonce": nonce}


def sealed_token(who: Identity, target: Mapping[str, Any], pair_id: str, nonce: str) -> tuple[str, str]:
    """Return (text, sealed) of a token for the instance whose manifest `target` is, bound to one message."""
    text = f"spl_fed_sa_{pair_id.removeprefix('pair_')}_{secret_hex(32)}"
    fields = {
        "purpose": "federation-token", "pair_id": pair_id, "nonce": nonce, "issuer": who.did,
        "audience": target["daemon"]["did"], "scopes": list(SCOPES), "expires_at": at(now_ms() + 90 * DAY_MS),
        "token": text,
    }  # fmt: skip
    return text, seal_to(target["seal_key"], fields)


def pair_request(
    who: Identity, own: Mapping[str, Any], target: Mapping[str, Any], *, nonce: str = "",
    namespaces: Sequence[str] = ("default",), maps: Sequence[Mapping[str, str]] = (), mode: str = "polling",
    start: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Return the fields of a pair request; `own` is the manifest inside it, `target` the one of the instance asked."""
    nonce, responder = nonce or secret_hex(16), target["daemon"]["did"]
    pair_id = pair_id_of(who.did, responder, nonce)
    return {
        **head(who.did, responder, pair_id, nonce), "initiator_did": who.did, "responder_did": responder,
        "manifest": dict(own), "endpoint": own["federation"]["pair_endpoint"],
        "token": sealed_token(who, target, pair_id, nonce)[1], "namespaces": list(namespaces), "maps": list(maps),
        "mode": mode, "start": start,
    }  # fmt: skip


def answer(request: Mapping[str, Any], key: SigningKey, state: str, status: int = 200, **more: Any) -> dict[str, Any]:
    """Return the signed answer to a message that was sent to us."""
    nonce = more.pop("nonce", "")
    fields = head(request["audience"], request["signer"], request["pair_id"], nonce)
    fields |= {"request_digest": digest(canonical(request)), "status": status, "state": state, **more}
    return signed("pair-answer", fields, key)


def proof(
    key: SigningKey, method: str, target: str, audience: str, token: str, body: bytes, issued_ms: int | None = None,
    era: str = "",
) -> str:  # fmt: skip
    """Return the value of the `spl-proof` header for one request, in an era that the daemon told."""
    issued, nonce = at(now_ms() if issued_ms is None else issued_ms), secret_hex(16)
    fields = {
        "method": method, "target": target, "audience": audience, "token": digest(token.encode()),
        "body": digest(body), "issued_at": issued, "nonce": nonce,
    }  # fmt: skip
    if era:
        text = b"syncropel-proof-v2\0" + canonical({**fields, "era": era})
        return f"v2;{issued};{nonce};{era};{b64(key.sign(text).signature)}"
    text = b"syncropel-proof-v1\0" + canonical(fields)
    return f"v1;{issued};{nonce};{b64(key.sign(text).signature)}"


# -- records


def record(
    who: Identity, thread: str, text: str = "", *, key: SigningKey | None = None, by: str = "", **fields: Any
) -> dict[str, Any]:
    """Return an envelope that an identity vouches for; `key` and `by` put another key and signer in."""
    key = key or who.key
    body = {"text": text, **fields.pop("body", {})}
    value = {
        "act": "KNOW", "actor": "did:sync:user:mallory", "body": body, "clock": 0, "data_type": "SCALAR",
        "judged_by": None, "parents": [], "thread": thread, **fields,
    }  # fmt: skip
    id_ = digest(canonical({name: value[name] for name in HASHED}))
    signature = key.sign(f"syncropel-record-v1\0{id_}\0".encode()).signature
    sig = {"by": by or who.did, "key": multibase(public_of(key)), "value": b64(signature)}
    return {"id": id_, "record": value, "sig": sig}


def push_body(
    envelopes: Sequence[Mapping[str, Any]], *, since: str, cursor: str, chains: Sequence[Identity] = (),
    ns: str = "default",
) -> bytes:  # fmt: skip
    """Return a push of records that begins at the position `since`, with the chains of the signers it relays."""
    first = {"since": since, "cursor": cursor, "count": len(envelopes), "again": False, "peer_view": {}}
    first["chains"] = {who.did: who.chain() for who in chains}
    lines = [first, *({"ns": ns, "env": dict(envelope)} for envelope in envelopes)]
    return b"\n".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() for line in lines)


def snapshot(envelopes: Sequence[Mapping[str, Any]], instance: str) -> bytes:
    """Return a snapshot file of all threads that holds these records."""
    ids = sorted(envelope["id"] for envelope in envelopes)
    first = {
        "count": len(ids), "digest": digest("".join(f"{id_}\n" for id_ in ids).encode()),
        "format": "syncropel-snapshot-v1", "instance": instance, "thread": None,
    }  # fmt: skip
    return b"".join(canonical(value) + b"\n" for value in (first, *envelopes))
