"""The route table: one line a route, with its scope and body limit; `spl help http` documents each.

Scope "anyone" needs no bearer: liveness, published documents, and the messages of the handshake, which are signed.
"""

from collections.abc import Awaitable, Callable
from operator import attrgetter
from typing import Final

from ..core.errors import SplError
from ..core.identity.manifest import PAIR_PATH
from ..core.limits import KIB, MIB
from ..host import program
from ..net.routes import JSON, Request, Response, Route
from ..net.sse import MEDIA_TYPE as EVENT_STREAM
from ..pairing.exchange import DID_PATH, MANIFEST_PATH
from ..sync.peer import ACK, CHAINS, CHANGES, CHECK_PATH, FINGERPRINTS, RECORDS
from .answers import CSS, HTML, NDJSON, PROMETHEUS, SCRIPT
from .auth import ANYONE, Principal
from .services import Services

ADMIN: Final = "admin"
READ: Final = "records:read"
WRITE: Final = "records:write"
MANAGE: Final = "federation:manage"
CONFIG: Final = "config:read"
CHANGE: Final = "config:write"
SYNC: Final = "federation:sync"
STATUS: Final = "status:read"
METRICS: Final = "metrics:read"
MANY: Final = (JSON, NDJSON)
NDJSON_ONLY: Final = (NDJSON,)
EVENTS: Final = (EVENT_STREAM,)
PAGE: Final = "/ui/"


class Late:
    """A handler whose file is imported at its first request: what nobody asks for costs a daemon no memory.

    Its attributes are those of the file, as handlers of this kind.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._found: Callable[..., Response | Awaitable[Response]] | None = None

    def __getattr__(self, name: str) -> "Late":
        if name.startswith("__"):
            raise AttributeError(name)
        return Late(f"{self._path}.{name}")

    def __call__(self, request: Request, principal: Principal, services: Services) -> Response | Awaitable[Response]:
        answer: Response | Awaitable[Response] = self.handler()(request, principal, services)
        return answer

    def handler(self) -> Callable[..., Response | Awaitable[Response]]:
        """Return the function; imports its file.  Raises what `program.load` raises."""
        if self._found is None:
            module, _, rest = self._path.partition(".")
            self._found = attrgetter(rest)(program.load(f"api.{module}"))
        assert self._found is not None
        return self._found


admin = Late("admin")
consent = Late("consent")
emit = Late("emit")
events = Late("events")
lifecycle = Late("lifecycle")
lists = Late("lists")
metrics = Late("metrics")
namespaces = Late("namespaces")
openapi = Late("openapi")
pairs = Late("pairs")
peers = Late("peers")
queries = Late("queries")
records = Late("records")
rules = Late("rules")
sinks = Late("sinks")
snapshots = Late("snapshots")
ui = Late("ui")
watch = Late("watch")

ROUTES: Final = (
    Route("GET", "/health", admin.health, ANYONE, summary="liveness and identity"),
    Route("GET", "/health/ready", admin.ready, ANYONE, summary="200 while writes are taken"),
    Route("GET", "/metrics", metrics.scrape, METRICS, streams=True, gives=(PROMETHEUS,), summary="for Prometheus"),
    Route("GET", "/v1/openapi.json", openapi.serve, ANYONE, summary="these routes, for programs"),
    Route("GET", "/ui", ui.slash, ANYONE, gives=(), summary="to the page"),
    Route("GET", PAGE, ui.page, STATUS, streams=True, gives=(HTML,), summary="the page", cookie=True),
    Route("GET", "/ui/events", ui.events, STATUS, streams=True, gives=EVENTS, summary="parts of it", cookie=True),
    Route("GET", "/ui/open", ui.redeem, ANYONE, gives=(HTML,), summary="a link becomes a session"),
    Route("GET", "/ui/{file}", ui.file, ANYONE, gives=(CSS, SCRIPT), summary="its style and script"),
    Route("POST", "/v1/ui/links", ui.link, ADMIN, 4 * KIB, summary="a link that opens the page once"),
    Route("GET", "/v1/status", admin.status, CONFIG, also=(STATUS,), summary="the whole daemon on one page"),
    Route("GET", "/v1/doctor", admin.daemon, CONFIG, also=(STATUS,), summary="what is wrong with the daemon"),
    Route("GET", "/v1/doctor/{ref}", admin.pair, MANAGE, also=(STATUS,), summary="what is wrong with a pair"),
    Route("GET", "/v1/identity", admin.identity_show, CONFIG, summary="DID, key, words"),
    Route("POST", "/v1/identity", admin.identity_generate, ADMIN, 4 * KIB, summary="make an identity"),
    Route("POST", "/v1/identity/rotate", lifecycle.identity_rotate, ADMIN, 4 * KIB, summary="a new key, the same DID"),
    Route("POST", "/v1/identity/export", lifecycle.identity_export, ADMIN, 4 * KIB, summary="with its secret keys"),
    Route("POST", "/v1/identity/import", lifecycle.identity_import, ADMIN, 512 * KIB, summary="take one over"),
    Route(
        "POST",
        "/v1/records",
        emit.emit,
        WRITE,
        8 * MIB,
        media=MANY,
        gives=MANY,
        in_parts=NDJSON,
        summary="emit one or many",
    ),
    Route("GET", "/v1/records", lists.query, READ, streams=True, summary="by thread, actor, kind"),
    Route("POST", "/v1/records/query", queries.rich_query, READ, 64 * KIB, streams=True, summary="by a filter"),
    Route("POST", "/v1/records/search", queries.search, READ, 64 * KIB, summary="by meaning: disabled"),
    Route("GET", "/v1/records/{id}", records.one, READ, summary="one record"),
    Route("GET", "/v1/threads", records.threads, READ, summary="names, sizes"),
    Route("GET", "/v1/threads/{thread}/records", lists.of_thread, READ, streams=True, summary="records of a thread"),
    Route("GET", "/v1/threads/{thread}/state", records.thread_state, READ, summary="the thread's folded state"),
    Route(
        "GET",
        "/v1/threads/{thread}/watch",
        watch.watch,
        READ,
        streams=True,
        gives=EVENTS,
        summary="a thread as it grows",
    ),
    Route(
        "GET",
        "/v1/threads/{thread}/snapshot",
        snapshots.of_thread,
        READ,
        streams=True,
        gives=NDJSON_ONLY,
        summary="a thread, whole",
    ),
    Route("GET", "/v1/snapshot", snapshots.of_all, ADMIN, streams=True, gives=NDJSON_ONLY, summary="every thread"),
    Route("POST", "/v1/threads/restore", snapshots.restore, WRITE, 8 * MIB, media=NDJSON_ONLY, summary="a snapshot"),
    Route(
        "POST",
        "/v1/store/check",
        snapshots.check,
        ADMIN,
        4 * KIB,
        streams=True,
        gives=NDJSON_ONLY,
        summary="every line of the log",
    ),
    Route("GET", "/v1/store/stats", snapshots.stats, ADMIN, summary="sizes, sync times"),
    Route("GET", "/v1/events", events.events, STATUS, streams=True, gives=EVENTS, summary="changes of pairs"),
    Route("GET", "/v1/aitl", pairs.requests, "aitl:approve", summary="requests that wait"),
    Route("GET", "/v1/aitl/{id}", pairs.request_show, "aitl:approve", summary="one request"),
    Route("POST", "/v1/aitl/{id}/decide", pairs.decide, "aitl:approve", 4 * KIB, summary="approve or reject"),
    Route(
        "POST",
        "/v1/federation/pairs",
        pairs.pair,
        ADMIN,
        64 * KIB,
        streams=True,
        gives=NDJSON_ONLY,
        summary="pair with a peer",
    ),
    Route("GET", "/v1/federation/pairs", pairs.listing, MANAGE, also=(STATUS,), summary="every pair"),
    Route("GET", "/v1/federation/pairs/{ref}", pairs.show, MANAGE, also=(STATUS,), summary="one pair in full"),
    Route("GET", "/v1/federation/pairs/{ref}/acks", pairs.acks, MANAGE, streams=True, summary="the peer's position"),
    Route("GET", "/v1/federation/pairs/{ref}/projections", consent.claims, MANAGE, summary="what the peer claims"),
    Route("POST", "/v1/federation/pairs/{ref}/grants", consent.grant, MANAGE, 4 * KIB, summary="grant a namespace"),
    Route("POST", "/v1/federation/pairs/{ref}/revoke-grant", consent.revoke, MANAGE, 4 * KIB, summary="withdraw it"),
    Route("GET", "/v1/consent/grants", consent.listing, MANAGE, also=(STATUS,), summary="what both sides grant"),
    Route("POST", "/v1/federation/pairs/{ref}/verify", pairs.verify, MANAGE, 4 * KIB, summary="do both hold the same"),
    Route("POST", "/v1/federation/pairs/{ref}/{action}", pairs.act, MANAGE, 64 * KIB, summary="act on a pair"),
    Route("GET", "/v1/sinks", sinks.listing, MANAGE, also=(STATUS,), summary="every sink"),
    Route("POST", "/v1/sinks", sinks.add, ADMIN, 32 * KIB, summary="send records into a stream engine"),
    Route("GET", "/v1/sinks/{name}", sinks.show, MANAGE, also=(STATUS,), summary="one sink"),
    Route("GET", "/v1/sinks/{name}/acl", sinks.acl, MANAGE, summary="permissions of a reader"),
    Route(
        "POST",
        "/v1/sinks/{name}/{action}",
        sinks.act,
        ADMIN,
        4 * KIB,
        summary="pause, resume, remove, test",
    ),
    Route("POST", "/v1/federation/history", snapshots.history, MANAGE, 4 * KIB, summary="ask the peers for pair logs"),
    Route("POST", "/v1/sync", pairs.sync_all, MANAGE, 4 * KIB, summary="sync every pair"),
    Route("GET", "/v1/tokens", admin.tokens_list, ADMIN, summary="tokens, without their text"),
    Route("POST", "/v1/tokens", admin.tokens_mint, ADMIN, 4 * KIB, summary="mint a token"),
    Route("GET", "/v1/tokens/{id}", lifecycle.token_show, ADMIN, summary="one token, without its text"),
    Route("POST", "/v1/tokens/inspect", lifecycle.token_inspect, ADMIN, 4 * KIB, summary="what a token's text is"),
    Route("POST", "/v1/tokens/rotate", lifecycle.tokens_rotate, ADMIN, 4 * KIB, summary="new tokens for every pair"),
    Route("POST", "/v1/tokens/{id}/rotate", lifecycle.token_rotate, ADMIN, 4 * KIB, summary="replace a token"),
    Route("DELETE", "/v1/tokens/{id}", admin.tokens_revoke, ADMIN, summary="revoke a token"),
    Route("GET", "/v1/namespaces", namespaces.listing, READ, summary="the registry"),
    Route("POST", "/v1/namespaces", namespaces.create, ADMIN, 4 * KIB, summary="register a namespace"),
    Route("GET", "/v1/namespaces/{name}", namespaces.show, READ, summary="one, and who shares it"),
    Route("POST", "/v1/namespaces/{name}/{action}", namespaces.act, ADMIN, 4 * KIB, summary="share, unshare, archive"),
    Route("DELETE", "/v1/namespaces/{name}", namespaces.delete, ADMIN, summary="delete an empty one"),
    Route("GET", "/v1/config", admin.settings, CONFIG, summary="settings and their sources"),
    Route("GET", "/v1/config/permission-rules", rules.PERMISSION.listing, CONFIG, summary="permission rules"),
    Route("POST", "/v1/config/permission-rules", rules.PERMISSION.add, CHANGE, 16 * KIB, summary="add or replace"),
    Route("POST", "/v1/config/permission-rules/test", rules.permission_test, CONFIG, 64 * KIB, summary="what they say"),
    Route("DELETE", "/v1/config/permission-rules/{name}", rules.PERMISSION.remove, CHANGE, summary="remove one"),
    Route("GET", "/v1/config/aitl-rules", rules.AITL.listing, CONFIG, summary="rules of automatic approval"),
    Route("POST", "/v1/config/aitl-rules", rules.AITL.add, CHANGE, 32 * KIB, summary="add or replace one"),
    Route("DELETE", "/v1/config/aitl-rules/{name}", rules.AITL.remove, CHANGE, summary="remove one"),
    Route("GET", "/v1/config/fold-rules", rules.FOLD.listing, CONFIG, summary="what states of threads are"),
    Route("POST", "/v1/config/fold-rules", rules.FOLD.add, CHANGE, 16 * KIB, summary="add or replace one"),
    Route("DELETE", "/v1/config/fold-rules/{name}", rules.FOLD.remove, CHANGE, summary="remove one"),
    Route("GET", MANIFEST_PATH, peers.manifest, ANYONE, summary="signed manifest"),
    Route("GET", DID_PATH, peers.did_document, ANYONE, summary="DID document"),
    Route("POST", PAIR_PATH, peers.ask, ANYONE, 64 * KIB, summary="handshake 1: request"),
    Route("POST", PAIR_PATH + "/{id}/poll", peers.poll, ANYONE, 64 * KIB, summary="handshake 2: poll"),
    Route("POST", PAIR_PATH + "/{id}/confirm", peers.confirm, ANYONE, 64 * KIB, summary="handshake 4: confirm"),
    Route("POST", PAIR_PATH + "/{id}/notify-revoke", peers.notify_revoke, ANYONE, 64 * KIB, summary="revoked"),
    Route("POST", PAIR_PATH + "/{id}/renew", peers.renew, ANYONE, 64 * KIB, summary="a new token, sealed"),
    Route("POST", PAIR_PATH + "/{id}/consent", peers.hand_over, ANYONE, 64 * KIB, summary="grants, signed"),
    Route("POST", PAIR_PATH + "/{id}/log", peers.pair_log, ANYONE, 64 * KIB, summary="pair log, signed"),
    Route("POST", CHECK_PATH.format("{id}"), admin.check, SYNC, 4 * KIB, summary="whether we reach it"),
    Route(
        "GET", CHANGES, peers.changes, SYNC, streams=True, gives=(JSON, EVENT_STREAM), summary="records since a cursor"
    ),
    Route("POST", RECORDS, peers.records, SYNC, 5 * MIB, media=MANY, summary="by id, or pushed to us"),
    Route("POST", ACK, peers.ack, SYNC, 8 * KIB, summary="position durably applied"),
    Route("POST", FINGERPRINTS, peers.fingerprints, SYNC, 128 * KIB, summary="what is shared, by range"),
    Route("GET", CHAINS, peers.chains, SYNC, summary="a signer's key chain"),
)


def refusal(error: SplError) -> Response:
    """Return a refusal as a page, for a client that accepts HTML."""
    found: Response = program.load("api.ui").refusal(error)
    return found
