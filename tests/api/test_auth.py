"""Who counts as whom: bearer, scopes, namespaces, and what a pair's token needs beside itself."""

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from spl.api.auth import ANYONE, Auth, Kind, Principal
from spl.core.errors import SplError
from spl.core.identity import bearer
from spl.core.identity.bearer import Token
from spl.core.identity.did import Chain, did_of, rotate
from spl.core.identity.pins import Pins
from spl.core.keys import SecretKey
from spl.core.limits import Limits
from spl.home.config import Config, Settings
from spl.home.disk import DiskError
from spl.home.home import Home, Machine
from spl.net.routes import Request

NOW_MS = 1_764_000_000_000
PEER_KEY, NEXT_KEY, OTHER_KEY = (SecretKey(letter * 32) for letter in (b"p", b"n", b"o"))
OWN_DID = did_of("alice", SecretKey(b"a" * 32).public)
PEER_DID = did_of("bob", PEER_KEY.public)
CHAIN = Chain(PEER_DID, PEER_KEY.public)
PAIR_ID = "pair_a1b2c3d4"
TEXTS = {
    name: bearer.mint_text("test", f"sa_{number:08x}", bytes([number]) * 32)
    for number, name in enumerate(("plain", "pair", "narrow", "hand", "admin", "odd"), 1)
}
TARGET = "/v1/sync/changes?since=abc"


def a_token(name: str, scopes: set[str], **more: Any) -> Token:
    text = TEXTS[name]
    return Token(f"tok_{name}", bearer.parse(text)[1], bearer.hash_of(text), frozenset(scopes), **more)


TOKENS = {
    "plain": a_token("plain", {"records:read"}),
    "pair": a_token("pair", {"federation:sync"}, pair_id=PAIR_ID, peer_did=PEER_DID),
    "narrow": a_token("narrow", {"records:read", "records:write"}, namespaces=("org/a",)),
    "hand": a_token("hand", {"federation:sync"}),
    "admin": a_token("admin", {"admin", "federation:sync"}),
    "odd": a_token("odd", {"federation:sync"}, pair_id="", peer_did=PEER_DID),
}


class World:
    """One Auth with what it looks at; each part can be changed."""

    def __init__(self, **config: Any) -> None:
        insecure = config.pop("insecure", False)
        limits = config.pop("limits", Limits())
        self.now_ms = NOW_MS - bearer.PROOF_AHEAD_MS
        self.pair = SimpleNamespace(peer_did=PEER_DID, live=True, chain=CHAIN, namespaces=("default", "org"))
        self.views = SimpleNamespace(pairs={PAIR_ID: self.pair}, tokens_by_hash={}, pins=Pins())
        self.secrets: dict[str, str] = {}
        self.disk = SimpleNamespace(read=lambda path, bytes_max: self.boot)
        self.boot, self.stepped_ms, self.booted_ms, self.disk_works = b"first-boot", 0, 0, True
        self.vault = SimpleNamespace(identity=SimpleNamespace(did=OWN_DID), get=self.secrets.get, put=self.put)
        self.set_tokens(TOKENS)
        self.config, self.limits, self.insecure = config, limits, insecure
        self.refused: list[str] = []
        self.start()
        self.now_ms = NOW_MS
        self.nonce = 0

    def start(self) -> None:
        """Begin a process, which remembers no proof of an earlier one."""
        home = SimpleNamespace(
            vault=self.vault, disk=self.disk, writer=SimpleNamespace(views=self.views),
            config=SimpleNamespace(limits=self.limits),
        )  # fmt: skip
        self.auth = Auth(
            cast(Home, home),
            Settings(Config(**self.config)),
            cast(Any, SimpleNamespace(arrived=self.refused.append)),
            Machine(lambda: self.now_ms, lambda: self.true_ms() - self.booted_ms),
            insecure=self.insecure,
        )

    def put(self, name: str, text: str) -> None:
        if not self.disk_works:
            raise DiskError("home-unusable")
        self.secrets[name] = text

    def true_ms(self) -> int:
        """Return the right time, which clocks that nobody set tell."""
        return self.now_ms - self.stepped_ms

    def step(self, by_ms: int) -> None:
        """Set the clock."""
        self.now_ms += by_ms
        self.stepped_ms += by_ms

    def set_tokens(self, tokens: Mapping[str, Token]) -> None:
        self.views.tokens_by_hash = {token.hash: token for token in tokens.values()}

    def ask(self, headers: Mapping[str, str], scope: str = "federation:sync", **more: Any) -> Principal:
        """Return the principal that holds the scope, or raise as the API would."""
        request = a_request(headers, **more)
        principal = self.auth.principal(request, request.body)
        self.auth.require(principal, scope)
        return principal

    def proven(self, **changes: Any) -> dict[str, str]:
        self.nonce += 1
        named: dict[str, Any] = {
            "method": "GET",
            "target": TARGET,
            "audience": OWN_DID,
            "token": TEXTS["pair"],
            "body": b"",
            "issued_at_ms": self.now_ms,
            "nonce": f"{self.nonce:032x}",
            **changes,
        }
        key = named.pop("key", PEER_KEY)
        sent = named.pop("sent", TEXTS["pair"])
        return {"authorization": f"Bearer {sent}", "spl-proof": bearer.proof_header(key, **named)}


def a_request(headers: Mapping[str, str], **more: Any) -> Request:
    named: dict[str, Any] = {
        "method": "GET",
        "path": "/v1/sync/changes",
        "query": {},
        "headers": dict(headers),
        "body": b"",
        "params": {},
        "peer": "192.0.2.7",
        "local": False,
        "target": TARGET,
        "scheme": "https",
        "address": more.get("peer", "192.0.2.7"),
    }
    return Request(**{**named, **more})


def bearing(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {TEXTS[name]}"}


def refused(code: str, call: Any, *args: Any, **named: Any) -> SplError:
    with pytest.raises(SplError) as caught:
        call(*args, **named)
    assert caught.value.code == code
    shown = str(caught.value.to_json())
    assert not any(text in shown for text in TEXTS.values())
    return caught.value


# Ordinary tokens


def test_without_a_bearer_only_open_routes_answer() -> None:
    world = World()
    assert world.ask({}, ANYONE).kind == Kind.ANONYMOUS
    for scope in bearer.SCOPES:
        refused("auth-required", world.ask, {}, scope)
    refused("auth-required", world.auth.check_presented, {})


@pytest.mark.parametrize(
    "headers",
    [
        bearing("plain"),
        {"x-api-key": TEXTS["plain"]},
        {"authorization": f"bearer  {TEXTS['plain']} "},
        {**bearing("plain"), "x-api-key": TEXTS["plain"]},
    ],
)
def test_a_bearer_comes_in_either_header(headers: dict[str, str]) -> None:
    world = World()
    found = world.ask(headers, "records:read")
    assert (found.kind, found.token_id, found.namespaces, found.address) == (Kind.TOKEN, "tok_plain", (), "192.0.2.7")
    world.auth.check_presented(headers)


@pytest.mark.parametrize(
    "headers",
    [
        {**bearing("plain"), "x-api-key": TEXTS["admin"]},
        {"authorization": f"Basic {TEXTS['plain']}"},
        {"authorization": TEXTS["plain"]},
        {"authorization": "Bearer "},
        {"authorization": "Bearer é"},
        {"authorization": f"Bearer {TEXTS['plain']}, Bearer {TEXTS['plain']}"},
        {"x-api-key": "x"},
        {"x-api-key": bearer.mint_text("test", "sa_00000001", b"?" * 32)},
    ],
)
def test_a_bearer_that_does_not_hold_is_refused_where_one_is_needed(headers: dict[str, str]) -> None:
    world = World()
    refused("auth-invalid", world.ask, headers, "records:read")
    refused("auth-invalid", world.auth.check_presented, headers)
    assert world.ask(headers, ANYONE).kind == Kind.ANONYMOUS


def test_a_revoked_or_expired_token_says_so() -> None:
    world = World()
    for changed, reason in (
        (replace(plain := TOKENS["plain"], revoked=True), "token-revoked"),
        (replace(plain, expires_at_ms=NOW_MS), "token-expired"),
        (None, "token-unknown"),
    ):
        world.set_tokens({"plain": changed} if changed else {})
        assert refused("auth-invalid", world.ask, bearing("plain"), "records:read").facts["reason"] == reason
    world.set_tokens({"plain": replace(plain, expires_at_ms=NOW_MS + 1), "pair": replace(TOKENS["pair"], revoked=True)})
    assert world.ask(bearing("plain"), "records:read")
    refused("auth-invalid", world.auth.check_presented, bearing("pair"))
    assert world.refused[-1] == PAIR_ID


def test_what_is_remembered_of_a_token_ends_with_any_change_of_tokens_and_with_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hashed: list[str] = []
    hash_of = bearer.hash_of

    def counted(text: str) -> str:
        hashed.append(text)
        return hash_of(text)

    monkeypatch.setattr(bearer, "hash_of", counted)
    world = World()
    for _ in range(3):
        assert world.ask(bearing("admin"), "admin").token_id == "tok_admin"
    assert len(hashed) == 1
    world.set_tokens({**TOKENS, "admin": replace(TOKENS["admin"], expires_at_ms=NOW_MS + 5)})
    assert world.ask(bearing("admin"), "admin").kind == Kind.TOKEN
    world.now_ms += 5
    assert refused("auth-invalid", world.ask, bearing("admin"), "admin").facts["reason"] == "token-expired"
    world.set_tokens({**TOKENS, "admin": replace(TOKENS["admin"], revoked=True)})
    assert refused("auth-invalid", world.ask, bearing("admin"), "admin").facts["reason"] == "token-revoked"
    world.set_tokens({})
    assert refused("auth-invalid", world.ask, bearing("admin"), "admin").facts["reason"] == "token-unknown"


def test_no_more_tokens_are_remembered_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spl.api.auth.KNOWN_MAX", 2)
    world = World()
    for name in ("plain", "narrow", "hand", "admin", "plain"):
        assert world.auth.principal(a_request(bearing(name)), b"").token_id == f"tok_{name}"
        assert len(world.auth._known[1]) <= 2
    assert not any(text in repr(world.auth) for text in TEXTS.values())


def test_scopes_and_namespaces_bound_a_token() -> None:
    world = World()
    caught = refused("scope-forbidden", world.ask, bearing("plain"), "records:write")
    assert caught.facts["scope"] == "records:write"
    narrow = world.ask(bearing("narrow"), "records:read")
    assert narrow.reaches("org/a")
    assert not any(narrow.reaches(name) for name in ("org", "org/a/b", "default", "org/ab"))
    assert world.ask(bearing("plain"), "records:read").reaches("any/where")


def test_any_one_of_several_scopes_opens_a_route() -> None:
    world = World()
    world.auth.require(world.ask(bearing("plain"), "records:read"), "config:read", "records:read")
    caught = refused("scope-forbidden", world.auth.require, world.ask(bearing("plain"), ANYONE), "admin", "config:read")
    assert "admin or config:read" in caught.message


@pytest.mark.parametrize("scope", sorted(bearer.UNBOUND))
def test_a_bound_token_of_an_older_version_reaches_nothing_beyond_its_namespace(scope: str) -> None:
    """Such tokens are minted no longer; what they say about the whole daemon does not count."""
    world = World()
    world.set_tokens({"narrow": replace(TOKENS["narrow"], scopes=frozenset({scope}))})
    for needed in bearer.UNBOUND:
        refused("scope-forbidden", world.ask, bearing("narrow"), needed)
    assert world.ask(bearing("narrow"), ANYONE).namespaces == ("org/a",)


def test_an_unknown_and_a_malformed_bearer_are_refused_alike() -> None:
    world = World()
    unknown = bearer.mint_text("test", "sa_00000001", b"?" * 32)
    found = [refused("auth-invalid", world.ask, {"x-api-key": text}, "records:read") for text in ("x", unknown, "spl_")]
    assert len({str(error.to_json()) for error in found}) == 1


def test_a_hand_minted_federation_token_reads_default_only() -> None:
    world = World()
    assert world.ask(bearing("hand")).namespaces == ("default",)
    assert world.ask(bearing("admin"), "config:write").namespaces == ()
    world.set_tokens({"hand": replace(TOKENS["hand"], namespaces=("org",))})
    assert world.ask(bearing("hand")).namespaces == ("org",)


# Places that need no bearer


def test_the_unix_socket_is_admin() -> None:
    found = World().ask({}, "config:write", local=True, peer="unix")
    assert (found.kind, found.namespaces) == (Kind.LOCAL, ())


# Peers


def test_a_peer_proves_itself() -> None:
    found = World().ask(World().proven())
    assert (found.kind, found.pair_id, found.peer_did) == (Kind.PEER, PAIR_ID, PEER_DID)
    assert found.namespaces == ("default", "org")
    assert found.reaches("org")
    assert not found.reaches("other")


def test_a_peer_without_namespaces_reaches_none() -> None:
    world = World()
    world.pair.namespaces = ()
    assert not world.ask(world.proven()).reaches("default")


def test_a_peer_only_syncs_whatever_its_token_says() -> None:
    world = World()
    world.set_tokens({"pair": replace(TOKENS["pair"], scopes=frozenset({"admin"}))})
    found = world.ask(world.proven())
    assert found.scopes == bearer.FEDERATION
    refused("scope-forbidden", world.auth.require, found, "records:write")


def test_a_pairs_token_without_proof_is_worth_nothing() -> None:
    assert refused("auth-invalid", World().ask, bearing("pair")).facts["reason"] == "proof-missing"


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "POST"},
        {"target": "/v1/sync/changes?since=abd"},
        {"audience": PEER_DID},
        {"token": TEXTS["plain"]},
        {"body": b"{}"},
        {"key": OTHER_KEY},
        {"issued_at_ms": NOW_MS - 300_001},
        {"issued_at_ms": NOW_MS + bearer.PROOF_AHEAD_MS + 1},
    ],
    ids=str,
)
def test_a_proof_for_anything_else_is_refused(changes: dict[str, Any]) -> None:
    refused("auth-invalid", World().ask, World().proven(**changes))


def test_the_body_is_part_of_the_proof() -> None:
    world = World()
    proof = world.proven(method="POST", body=b'{"cursor":"a"}')
    assert world.ask(proof, method="POST", body=b'{"cursor":"a"}')
    proof = world.proven(method="POST", body=b'{"cursor":"a"}')
    refused("auth-invalid", world.ask, proof, method="POST", body=b'{"cursor":"b"}')


def test_a_proof_counts_once() -> None:
    world = World()
    proof = world.proven()
    assert world.ask(proof)
    assert refused("auth-invalid", world.ask, proof).facts["reason"] == "proof-replayed"
    assert world.ask(world.proven())


def test_a_refused_proof_does_not_use_its_nonce_up() -> None:
    world = World()
    proof = world.proven(method="POST")
    refused("auth-invalid", world.ask, proof)
    assert world.ask(proof, method="POST")


def test_the_present_key_of_the_peer_counts_and_no_retired_one() -> None:
    world = World()
    world.pair.chain = rotate(CHAIN, PEER_KEY, NEXT_KEY.public, "retired", NOW_MS)
    refused("auth-invalid", world.ask, world.proven())
    assert world.ask(world.proven(key=NEXT_KEY))


def test_a_token_needs_its_own_live_pair() -> None:
    world = World()
    world.pair.live = False
    assert refused("auth-invalid", world.ask, world.proven()).facts["reason"] == "pair-not-live"
    world.pair.live, world.pair.peer_did = True, did_of("eve", OTHER_KEY.public)
    assert refused("auth-invalid", world.ask, world.proven()).facts["reason"] == "token-pair"
    world.views.pairs = {}
    assert refused("auth-invalid", world.ask, world.proven()).facts["reason"] == "token-pair"
    world = World()
    world.vault.identity = None
    assert refused("auth-invalid", world.ask, world.proven()).facts["reason"] == "token-pair"


def test_a_token_bound_to_a_peer_without_a_pair_is_refused() -> None:
    world = World()
    proof = world.proven(token=TEXTS["odd"], sent=TEXTS["odd"])
    assert refused("auth-invalid", world.ask, proof).facts["reason"] == "token-pair"


def test_a_proof_beside_an_ordinary_token_changes_nothing() -> None:
    world = World()
    assert world.ask({**bearing("plain"), "spl-proof": "anything"}, "records:read").kind == Kind.TOKEN
