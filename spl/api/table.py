"""The route table: one line a route, with its scope and body limit; README documents each.

Scope "anyone" needs no bearer: liveness, published documents, and the messages of the handshake, which are signed.
"""

from typing import Final

from ..auth import ANYONE
from ..core.limits import KIB, MIB
from ..net.routes import JSON, Route
from . import admin, pairs, peers, records

ADMIN: Final = "admin"
READ: Final = "records:read"
WRITE: Final = "records:write"
MANAGE: Final = "federation:manage"
SYNC: Final = "federation:sync"
MANY: Final = (JSON, records.NDJSON)

ROUTES: Final = (
    Route("GET", "/health", admin.health, ANYONE, summary="liveness and identity"),
    Route("GET", "/health/ready", admin.ready, ANYONE, summary="200 while writes are taken"),
    Route("GET", "/v1/status", admin.status, "config:read", summary="the whole daemon on one page"),
    Route("GET", "/v1/identity", admin.identity_show, "config:read", summary="DID, key, words"),
    Route("POST", "/v1/identity", admin.identity_generate, ADMIN, 4 * KIB, summary="make an identity"),
    Route("POST", "/v1/records", records.emit, WRITE, 8 * MIB, media=MANY, summary="emit one or many"),
    Route("GET", "/v1/records", records.query, READ, summary="by thread, actor, kind"),
    Route("GET", "/v1/records/{id}", records.one, READ, summary="one record"),
    Route("GET", "/v1/threads", records.threads, READ, summary="names, sizes"),
    Route("GET", "/v1/threads/{thread}/records", records.of_thread, READ, summary="records of a thread"),
    Route("GET", "/v1/aitl", pairs.requests, "aitl:approve", summary="requests that wait"),
    Route("GET", "/v1/aitl/{id}", pairs.request_show, "aitl:approve", summary="one request"),
    Route("POST", "/v1/aitl/{id}/decide", pairs.decide, "aitl:approve", 4 * KIB, summary="approve or reject"),
    Route("POST", "/v1/federation/pairs", pairs.pair, ADMIN, 64 * KIB, streams=True, summary="pair with a peer"),
    Route("GET", "/v1/federation/pairs", pairs.listing, MANAGE, summary="every pair"),
    Route("GET", "/v1/federation/pairs/{ref}", pairs.show, MANAGE, summary="one pair in full"),
    Route("POST", "/v1/federation/pairs/{ref}/{action}", pairs.act, MANAGE, 4 * KIB, summary="act on a pair"),
    Route("POST", "/v1/sync", pairs.sync_all, MANAGE, 4 * KIB, summary="sync every pair"),
    Route("GET", "/v1/tokens", admin.tokens_list, ADMIN, summary="tokens, without their text"),
    Route("POST", "/v1/tokens", admin.tokens_mint, ADMIN, 4 * KIB, summary="mint a token"),
    Route("DELETE", "/v1/tokens/{id}", admin.tokens_revoke, ADMIN, summary="revoke a token"),
    Route("GET", "/v1/namespaces", admin.namespaces_list, READ, summary="the registry"),
    Route("POST", "/v1/namespaces", admin.namespaces_create, ADMIN, 4 * KIB, summary="register a namespace"),
    Route("GET", "/v1/config", admin.settings, "config:read", summary="settings and their sources"),
    Route("GET", "/.well-known/syncropel", peers.manifest, ANYONE, summary="signed manifest"),
    Route("GET", "/.well-known/did.json", peers.did_document, ANYONE, summary="DID document"),
    Route("POST", "/v1/federation/pair", peers.ask, ANYONE, 64 * KIB, summary="handshake: ask"),
    Route("POST", "/v1/federation/pair/{id}/poll", peers.poll, ANYONE, 64 * KIB, summary="handshake: ask again"),
    Route("POST", "/v1/federation/pair/{id}/confirm", peers.confirm, ANYONE, 64 * KIB, summary="handshake: confirm"),
    Route("POST", "/v1/federation/pair/{id}/notify-revoke", peers.notify_revoke, ANYONE, 64 * KIB, summary="revoked"),
    Route("GET", "/v1/sync/changes", peers.changes, SYNC, streams=True, summary="records since a cursor"),
    Route("POST", "/v1/sync/records", peers.fetch, SYNC, 128 * KIB, summary="records by id"),
    Route("POST", "/v1/sync/ack", peers.ack, SYNC, 8 * KIB, summary="position durably applied"),
    Route("GET", "/v1/sync/chains", peers.chains, SYNC, summary="a signer's key chain"),
)
