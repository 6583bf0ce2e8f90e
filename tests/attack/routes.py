"""Who may use which route: one line a route, held against the daemon by `test_routes.py`.

`opens` names the scopes that open a route, any one of them; `a+b` needs both.  `admin` opens everything but the routes
marked `peer` and `reader`.  Three words stand for no scope:

    anyone   no credential
    socket   nothing over TCP: secret keys leave over the socket in the home only
    peer     the pair's own token with its proof of possession; no token minted by hand

`bound` says what a token's namespace does to a route that a bound token can reach:

    own      everything named, listed, counted or written lies in the token's namespaces; the others do not exist
    -        no bound token holds the scope

A token minted by hand for `federation:sync` reads its own namespaces by the two routes marked `reader`, and no others.
"""

from dataclasses import dataclass
from typing import Final

ANYONE: Final = "anyone"
SOCKET: Final = "socket"
PEER: Final = "peer"
READER: Final = "reader"

UNBOUND: Final = (
    "admin",
    "federation:manage",
    "aitl:approve",
    "config:read",
    "config:write",
    "status:read",
    "metrics:read",
)
"""Scopes whose routes are about the whole daemon: a token that holds one cannot be bound to a namespace."""

BOUND: Final = ("records:read", "records:write", "federation:sync", "federation:subscribe")
"""Scopes that a token bound to a namespace may hold."""

SCOPES: Final = (*UNBOUND, *BOUND)

IMPLIED: Final = {"admin": frozenset(SCOPES)}
"""What a scope includes, for tokens minted by hand."""

TABLE: Final = """
GET    /health                                   anyone                         -
GET    /health/ready                             anyone                         -
GET    /ui                                       anyone                         -
GET    /ui/                                      status:read                    -
GET    /ui/events                                status:read                    -
GET    /ui/open                                  anyone                         -
GET    /ui/{file}                                anyone                         -
POST   /v1/ui/links                              admin                          -
GET    /v1/status                                config:read,status:read        -
GET    /v1/doctor                                config:read,status:read        -
GET    /v1/doctor/{ref}                          federation:manage,status:read  -
GET    /v1/identity                              config:read                    -
POST   /v1/identity                              admin                          -
POST   /v1/identity/rotate                       admin                          -
POST   /v1/identity/export                       socket                         -
POST   /v1/identity/import                       admin                          -
POST   /v1/records                               records:write                  own
GET    /v1/records                               records:read                   own
POST   /v1/records/query                         records:read                   own
POST   /v1/records/search                        records:read                   own
GET    /v1/records/{id}                          records:read                   own
GET    /v1/threads                               records:read                   own
GET    /v1/threads/{thread}/records              records:read                   own
GET    /v1/threads/{thread}/state                records:read                   own
GET    /v1/threads/{thread}/watch                records:read                   own
GET    /v1/threads/{thread}/snapshot             records:read                   own
GET    /v1/snapshot                              admin                          -
POST   /v1/threads/restore                       records:write                  own
POST   /v1/store/check                           admin                          -
GET    /v1/store/stats                           admin                          -
GET    /v1/openapi.json                          anyone                         -
GET    /metrics                                  metrics:read                   -
GET    /v1/events                                status:read                    -
GET    /v1/sinks                                 federation:manage,status:read  -
POST   /v1/sinks                                 admin                          -
GET    /v1/sinks/{name}                          federation:manage,status:read  -
GET    /v1/sinks/{name}/acl                      federation:manage              -
POST   /v1/sinks/{name}/{action}                 admin                          -
GET    /v1/aitl                                  aitl:approve                   -
GET    /v1/aitl/{id}                             aitl:approve                   -
POST   /v1/aitl/{id}/decide                      aitl:approve                   -
POST   /v1/federation/pairs                      admin                          -
GET    /v1/federation/pairs                      federation:manage,status:read  -
GET    /v1/federation/pairs/{ref}                federation:manage,status:read  -
GET    /v1/federation/pairs/{ref}/acks           federation:manage              -
GET    /v1/federation/pairs/{ref}/projections    federation:manage              -
POST   /v1/federation/pairs/{ref}/grants         federation:manage              -
POST   /v1/federation/pairs/{ref}/revoke-grant   federation:manage              -
GET    /v1/consent/grants                        federation:manage,status:read  -
POST   /v1/federation/pairs/{ref}/verify         federation:manage              -
POST   /v1/federation/pairs/{ref}/{action}       federation:manage              -
POST   /v1/federation/history                    federation:manage              -
POST   /v1/sync                                  federation:manage              -
GET    /v1/tokens                                admin                          -
POST   /v1/tokens                                admin                          -
GET    /v1/tokens/{id}                           admin                          -
POST   /v1/tokens/inspect                        admin                          -
POST   /v1/tokens/rotate                         admin                          -
POST   /v1/tokens/{id}/rotate                    admin                          -
DELETE /v1/tokens/{id}                           admin                          -
GET    /v1/namespaces                            records:read                   own
POST   /v1/namespaces                            admin                          -
GET    /v1/namespaces/{name}                     records:read                   own
POST   /v1/namespaces/{name}/{action}            admin                          -
DELETE /v1/namespaces/{name}                     admin                          -
GET    /v1/config                                config:read                    -
GET    /v1/config/permission-rules               config:read                    -
POST   /v1/config/permission-rules               config:write                   -
POST   /v1/config/permission-rules/test          config:read                    -
DELETE /v1/config/permission-rules/{name}        config:write                   -
GET    /v1/config/aitl-rules                     config:read                    -
POST   /v1/config/aitl-rules                     config:write+aitl:approve      -
DELETE /v1/config/aitl-rules/{name}              config:write                   -
GET    /v1/config/fold-rules                     config:read                    -
POST   /v1/config/fold-rules                     config:write                   -
DELETE /v1/config/fold-rules/{name}              config:write                   -
GET    /.well-known/syncropel                    anyone                         -
GET    /.well-known/did.json                     anyone                         -
POST   /v1/federation/pair                       anyone                         -
POST   /v1/federation/pair/{id}/poll             anyone                         -
POST   /v1/federation/pair/{id}/confirm          anyone                         -
POST   /v1/federation/pair/{id}/notify-revoke    anyone                         -
POST   /v1/federation/pair/{id}/renew            anyone                         -
POST   /v1/federation/pair/{id}/consent          anyone                         -
POST   /v1/federation/pair/{id}/log              anyone                         -
POST   /v1/federation/pair/{id}/check            peer                           -
GET    /v1/sync/changes                          reader                         own
POST   /v1/sync/records                          reader                         own
POST   /v1/sync/ack                              peer                           -
POST   /v1/sync/fingerprints                     peer                           -
GET    /v1/sync/chains                           peer                           -
"""


@dataclass(frozen=True)
class Row:
    """One route: who may use it, and what a bound token's namespace does to it."""

    method: str
    path: str
    opens: str
    bound: str

    def allows(self, scopes: frozenset[str]) -> bool:
        """Return whether a token minted by hand with these scopes may use the route."""
        if self.opens == ANYONE:
            return True
        if self.opens in (SOCKET, PEER):
            return False
        if self.opens == READER:
            return "federation:sync" in scopes
        held = scopes.union(*(IMPLIED.get(scope, ()) for scope in scopes))
        return any(held.issuperset(choice.split("+")) for choice in self.opens.split(","))

    def target(self) -> str:
        """Return the path with a value for each parameter that names nothing that exists."""
        return self.path.replace("{ref}", "pair_00000000").replace("{action}", "none").replace("{id}", "none").replace(
            "{thread}", "th_none"
        ).replace("{name}", "none")  # fmt: skip


ROUTES: Final = tuple(Row(*line.split()) for line in TABLE.strip().splitlines())
