"""The messages of the handshake: bound to their parties, their pair and their request."""

import itertools
from typing import Any

import pytest

from spl.core.errors import SplError
from spl.core.identity import bearer, manifest, message
from spl.core.identity.did import Chain, did_of, rotate
from spl.core.keys import SecretKey, box_public
from spl.core.limits import Limits
from spl.core.pair import handshake
from spl.core.pair.handshake import PairRequest, Terms
from spl.core.pair.pair import Pair
from spl.core.pair.state import STARTS, Proposal
from spl.core.pair.steps import Begin, decide
from spl.core.value import replace
from tests.core import pair_kit

LIMITS = Limits()
NOW_MS = 1_764_000_000_000
A_KEY, B_KEY = SecretKey(b"\1" * 32), SecretKey(b"\2" * 32)
A, B = did_of("alice", A_KEY.public), did_of("bob", B_KEY.public)
A_SEAL, B_SEAL = b"\3" * 32, b"\4" * 32
NONCE = "0" * 31 + "1"
PAIR_ID = handshake.pair_id_of(A, B, NONCE)


CODES_OF_A_BAD_REQUEST = {"message-malformed", "message-signature", "bad-field", "manifest-malformed", "did-invalid"}


def a_manifest(did: str, key: SecretKey, seal: bytes, name: str) -> dict[str, Any]:
    document = manifest.build(
        Chain(did, key.public), key, box_public(seal), url=f"https://{name}.example", namespaces=None, version="1",
        now_ms=NOW_MS, limits=LIMITS,
    )  # fmt: skip
    found: dict[str, Any] = document["federation_manifest"]
    return found


A_MANIFEST, B_MANIFEST = a_manifest(A, A_KEY, A_SEAL, "alice"), a_manifest(B, B_KEY, B_SEAL, "bob")
TEXT, TOKEN = handshake.mint(PAIR_ID, b"\5" * 32, NOW_MS + 1000)


def sealed(public: bytes, nonce: str, issuer: str, audience: str, scopes: frozenset[str] = handshake.SCOPES) -> str:
    return bearer.seal_token(
        TEXT, public=box_public(public), ephemeral=b"\6" * 32, pair_id=PAIR_ID, nonce=nonce, issuer=issuer,
        audience=audience, scopes=scopes, expires_at_ms=NOW_MS + 1000,
    )  # fmt: skip


def a_proposal(**changes: Any) -> Proposal:
    fields: dict[str, Any] = {
        "pair_id": PAIR_ID, "nonce": NONCE, "manifest": B_MANIFEST, "namespaces": ("default", "music"),
        "maps": (("a", "b"),), "mode": "polling", "start": "", "endpoint": "https://alice.example/v1/federation/pair",
        "token": TOKEN, "sealed": sealed(B_SEAL, NONCE, A, B), "digest": "d" * 64,
    }  # fmt: skip
    return Proposal(**{**fields, **changes})


def a_request(**changes: object) -> dict[str, object]:
    fields = {**handshake.request_fields(A_MANIFEST, A, a_proposal(), B, NOW_MS), **changes}
    return message.sign("pair-request", fields, A_KEY)


def a_pair() -> Pair:
    return decide(None, Begin(a_proposal(), 1000), NOW_MS)[0]


def a_grant(key: SecretKey = B_KEY, **changes: object) -> dict[str, object]:
    terms = Terms(("default",), (("a", "b"),), "polling", "present")
    nonce = "f" * 32
    fields = handshake.grant_fields(B, a_proposal(), A, terms, sealed(A_SEAL, nonce, B, A), nonce, NOW_MS)
    return message.sign("pair-answer", {**fields, **changes}, key)


def read(value: object) -> PairRequest:
    return handshake.read_request(handshake.open_request(value), LIMITS)


def test_a_request_says_what_was_meant() -> None:
    asking = read(a_request())
    assert asking.peer.did == A
    assert asking.terms == Terms(("default", "music"), (("a", "b"),), "polling", "")
    assert handshake.open_sealed(asking.fields, (B_SEAL,)).token == TEXT


def test_terms_may_have_as_many_names_and_maps_as_allowed_and_no_more() -> None:
    def terms(names: object, maps: int) -> Terms:
        pairs = [{"local": f"a{n}", "peer": f"b{n}"} for n in range(maps)]
        fields = {"namespaces": names, "maps": pairs, "mode": "polling", "start": "present"}
        return handshake.check_terms(fields, Limits(namespaces_per_pair=2), starts=STARTS)

    assert terms(["x", "y"], 2) == Terms(("x", "y"), (("a0", "b0"), ("a1", "b1")), "polling", "present")
    assert terms(["x", "x"], 0).namespaces == ("x",)
    for names, maps in ((["x", "y", "z"], 0), (["x"], 3), ([], 0), ("xy", 0), ({"x": 1}, 0), (None, 0)):
        with pytest.raises(SplError) as caught:
            terms(names, maps)
        assert caught.value.code == "bad-field"


@pytest.mark.parametrize("changes", [
    {"initiator_did": B}, {"responder_did": A}, {"audience": A}, {"signer": B}, {"pair_id": "pair_00000000"},
    {"nonce": "1" * 32}, {"endpoint": "https://mallory.example/v1/federation/pair"}, {"token": None},
    {"manifest": B_MANIFEST}, {"manifest": None}, {"namespaces": []}, {"namespaces": ["x"] * 65}, {"namespaces": [1]},
    {"namespaces": ["A"]}, {"maps": [["a", "b"]]}, {"maps": [{"local": "..", "peer": "b"}]}, {"mode": "often"},
    {"start": "tomorrow"}, {"mode": None},
])  # fmt: skip
def test_a_request_with_one_thing_wrong_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(SplError) as caught:
        read(a_request(**changes))
    assert caught.value.code in CODES_OF_A_BAD_REQUEST


def test_a_request_changed_on_the_way_is_refused() -> None:
    value: Any = a_request()
    value["message"]["namespaces"] = ["default"]
    with pytest.raises(SplError) as caught:
        read(value)
    assert caught.value.code == "message-signature"


def test_a_forged_request_is_refused_before_its_key_chain_is_verified() -> None:
    """Sixty-four statements cost 8 ms; who cannot sign for the key that the manifest claims costs one verification."""
    fields = a_request()["message"]
    broken = {**A_MANIFEST, "rotations": [{"from": A_MANIFEST["public_key"], "signature": "forged"}] * 64}
    value = message.sign("pair-request", {**fields, "manifest": broken}, B_KEY)  # type: ignore[dict-item]
    with pytest.raises(SplError) as caught:
        handshake.open_request(value)
    assert caught.value.code == "message-signature"
    honest = message.sign("pair-request", {**fields, "manifest": broken}, A_KEY)  # type: ignore[dict-item]
    opened = handshake.open_request(honest)
    with pytest.raises(SplError) as caught:
        handshake.read_request(opened, LIMITS)
    assert caught.value.code == "chain-broken"


def test_a_sealed_token_serves_its_own_message_only() -> None:
    fields = read(a_request()).fields
    for name, value in (("nonce", "2" * 32), ("pair_id", "pair_11111111"), ("signer", B), ("audience", A)):
        with pytest.raises(SplError) as caught:
            handshake.open_sealed({**fields, name: value}, (B_SEAL,))
        assert caught.value.code == "sealed-token"
    narrow = sealed(B_SEAL, NONCE, A, B, frozenset({"federation:sync"}))
    with pytest.raises(SplError) as caught:
        handshake.open_sealed({**fields, "token": narrow}, (B_SEAL,))
    assert caught.value.code == "sealed-token"


def test_a_grant_is_taken_as_it_was_given() -> None:
    fields = handshake.read_grant(a_grant(), a_pair(), A, LIMITS)
    assert (fields["namespaces"], fields["status"]) == (["default"], 200)
    assert handshake.open_sealed(fields, (A_SEAL,)).token == TEXT


@pytest.mark.parametrize("changes", [
    {"audience": B}, {"signer": A}, {"pair_id": "pair_00000000"}, {"state": "pending"},
    {"namespaces": ["default", "secret"]}, {"maps": [{"local": "a", "peer": "c"}]}, {"mode": "on-demand"},
    {"start": ""}, {"namespaces": []},
])  # fmt: skip
def test_a_grant_of_something_else_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(SplError):
        handshake.read_grant(a_grant(**changes), a_pair(), A, LIMITS)


def test_a_grant_counts_under_any_key_of_the_peers_chain() -> None:
    """A peer that rotated after its approval sends the grant as it was signed."""
    chain, held = Chain(B, B_KEY.public), [B_KEY, SecretKey(b"\7" * 32), SecretKey(b"\10" * 32)]
    for old, new in itertools.pairwise(held):
        chain = rotate(chain, old, new.public, "retired", NOW_MS)
    pair = replace(a_pair(), peer=replace(a_pair().peer, chain=chain))
    for key in held:
        assert handshake.read_grant(a_grant(key), pair, A, LIMITS)["state"] == "approved"
    with pytest.raises(SplError):
        handshake.read_grant(a_grant(A_KEY), pair, A, LIMITS)


def test_a_grant_by_another_key_is_refused() -> None:
    with pytest.raises(SplError) as caught:
        handshake.read_grant(a_grant(A_KEY), a_pair(), A, LIMITS)
    assert caught.value.code == "message-signature"


def test_a_start_that_was_asked_for_is_kept() -> None:
    pair = decide(None, Begin(a_proposal(start="beginning"), 1000), NOW_MS)[0]
    with pytest.raises(SplError):
        handshake.read_grant(a_grant(), pair, A, LIMITS)


def test_an_answer_belongs_to_one_question() -> None:
    asked = handshake.poll_fields(a_pair(), A, NOW_MS, "3" * 32)
    assert asked["state"] == "establishing"
    value = handshake.answer(asked, B_KEY, 202, "pending", NOW_MS, "4" * 32)
    assert handshake.read_answer(value, asked, B_KEY.public)["state"] == "pending"
    other = handshake.poll_fields(a_pair(), A, NOW_MS, "5" * 32)
    with pytest.raises(SplError) as caught:
        handshake.read_answer(value, other, B_KEY.public)
    assert caught.value.code == "message-audience"
    with pytest.raises(SplError) as caught:
        handshake.read_answer(value, asked, A_KEY.public)
    assert caught.value.code == "message-signature"
    fields: Any = value["message"]
    for state in ("delighted", None, 7, ["pending"], {}):
        strange = message.sign("pair-answer", {**fields, "state": state}, B_KEY)
        with pytest.raises(SplError) as caught:
            handshake.read_answer(strange, asked, B_KEY.public)
        assert caught.value.code == "message-malformed"


@pytest.mark.parametrize(("name", "told"), [
    ("Requested", (200, "establishing", {})), ("Waiting", (200, "establishing", {})), ("Asked", (202, "pending", {})),
    ("Answered", (200, "active", {})), ("Approved", (200, "approved", {"answer": pair_kit.GRANT})),
    ("Active", (200, "active", {})), ("Degraded", (200, "active", {})), ("PausedByPeer", (200, "active", {})),
    ("PausedByUs", (200, "paused", {})), ("PausedByBoth", (200, "paused", {})),
    ("Revoking", (200, "revoked", {"reason": "over"})), ("Revoked", (200, "expired", {"reason": "expired"})),
])  # fmt: skip
def test_the_peer_is_told_where_the_pair_stands(name: str, told: tuple[int, str, dict[str, object]]) -> None:
    pair: Pair | None = None
    for event in pair_kit.PATHS[name]:
        pair, _ = decide(pair, event, NOW_MS)
    assert pair is not None
    assert handshake.status_of(pair) == told


def test_the_manifest_in_a_message_counts_if_it_is_news_of_the_peer() -> None:
    key, thief = SecretKey(b"\7" * 32), SecretKey(b"\10" * 32)
    grown, stolen = (rotate(Chain(B, B_KEY.public), B_KEY, each.public, "retired", NOW_MS) for each in (key, thief))

    def shown(chain: Chain, signer: SecretKey, at_ms: int = NOW_MS + 1) -> dict[str, Any]:
        return pair_kit.a_manifest(chain, signer, at_ms)

    def news(manifest_: object, pair: Pair, now_ms: int = NOW_MS + 1) -> Chain | None:
        found = handshake.introduced({"manifest": manifest_}, pair, now_ms, LIMITS)
        return found.chain if found is not None else None

    pair = a_pair()
    assert handshake.introduced({}, pair, NOW_MS, LIMITS) is None
    assert news(None, pair) is news(B_MANIFEST, pair) is None
    assert news(shown(grown, key), pair) == grown
    assert news(shown(pair.chain, B_KEY), pair) == pair.chain
    assert news(shown(pair.chain, B_KEY, NOW_MS - 1), pair) is None, "an older one"
    assert news({**shown(grown, key), "signature": {}}, pair) is news(A_MANIFEST, pair) is news(7, pair) is None
    ahead_ms = NOW_MS + 10**9
    assert news(shown(grown, key, ahead_ms), pair) is None
    lenient = replace(pair, proposal=replace(pair.proposal, strict=False))
    assert news(shown(grown, key, ahead_ms), lenient) == grown
    pinned = replace(pair, peer=replace(pair.peer, chain=grown))
    with pytest.raises(SplError) as caught:
        news(shown(stolen, thief), pinned)
    assert caught.value.code == "chain-fork"


def test_terms_cover_no_more_than_they_name() -> None:
    wide = Terms(("default", "music"), (("a", "b"),), "polling", "")
    assert wide.covers(Terms(("default",), (), "polling", "present"))
    assert wide.turned() == Terms(("default", "music"), (("b", "a"),), "polling", "")
    assert not wide.covers(Terms(("other",), (), "polling", ""))
    assert not wide.covers(Terms(("default",), (("b", "a"),), "polling", ""))
    assert handshake.check_terms({**wide.to_json(), "start": "present"}, LIMITS, starts=STARTS).start == "present"


def test_both_sides_name_a_token_alike_and_only_its_issuer_keeps_the_hash() -> None:
    held = handshake.token_ref(TEXT, handshake.SCOPES, NOW_MS, issued=False)
    assert held.token_id == TOKEN.token_id == f"tok_{bearer.hash_of(TEXT)[:8]}"
    assert (held.hash, TOKEN.hash) == ("", bearer.hash_of(TEXT))
    assert bearer.parse(TEXT)[1] == handshake.account_of(PAIR_ID)


def test_reasons_of_peers_are_short_and_printable() -> None:
    assert handshake.reason_of({"reason": "a\nb\x1b[31m" + "c" * 300}) == ("ab[31m" + "c" * 300)[:200]
    assert handshake.reason_of({"reason": 7}) == handshake.reason_of({}) == ""
