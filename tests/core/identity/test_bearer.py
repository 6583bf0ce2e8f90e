"""Tokens, sealed tokens and proofs of possession: each holds for exactly what it was made for."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core import canon, keys
from spl.core.errors import SplError
from spl.core.identity import bearer
from spl.core.identity.bearer import Era, Token
from spl.core.keys import SecretKey
from spl.core.limits import Limits

KEY = SecretKey(b"a" * 32)
SEAL = b"s" * 32
NOW_MS = 1_764_000_000_000
TEXT = bearer.mint_text("prod", "sa_0a1b2c3d", b"t" * 32)
TOKEN = Token(
    "tok_00000001",
    "sa_0a1b2c3d",
    bearer.hash_of(TEXT),
    frozenset({"federation:sync"}),
    ("default",),
    "pair_a1b2c3d4",
    "did:sync:instance:bob",
    NOW_MS + 1000,
    NOW_MS,
    "for bob",
)


def refused(code: str, call: Any, *args: Any, **named: Any) -> SplError:
    with pytest.raises(SplError) as caught:
        call(*args, **named)
    assert caught.value.code == code
    assert TEXT not in str(caught.value.to_json())
    return caught.value


# Scopes


def test_scopes_imply_what_the_contract_says() -> None:
    admin, manage = frozenset({"admin"}), frozenset({"federation:manage"})
    assert all(bearer.holds(admin, scope) for scope in bearer.SCOPES)
    assert {scope for scope in bearer.SCOPES if bearer.holds(manage, scope)} == {
        "federation:manage",
        "federation:sync",
        "federation:subscribe",
    }
    assert not bearer.holds(frozenset({"federation:sync"}), "federation:subscribe")
    assert not bearer.holds(frozenset(), "records:read")


def test_an_unknown_scope_is_refused() -> None:
    assert bearer.check_scopes(["admin", "records:read"]) == {"admin", "records:read"}
    for scopes in ([], ["root"], [7], [["admin"]]):
        refused("bad-field", bearer.check_scopes, scopes)


# Text


@given(env=st.from_regex(r"[A-Za-z0-9]{1,16}", fullmatch=True), sa=st.from_regex(r"sa_[0-9a-f]{8}", fullmatch=True))
def test_a_minted_text_parses_back(env: str, sa: str) -> None:
    text = bearer.mint_text(env, sa, b"x" * 32)
    assert bearer.parse(text) == (env, sa, (b"x" * 32).hex())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hunter2",
        TEXT + "\n",
        TEXT + "_",
        " " + TEXT,
        TEXT.replace("spl", "SPL"),
        "é" * 60,
        "spl_prod_sa_zz_" + "a" * 64,
        "spl_prod_sa_0a1b_short",
        TEXT + "a" * 500,
    ],
)
def test_what_is_no_token_text_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(SplError) as caught:
        bearer.parse(text)
    assert caught.value.code == "auth-invalid"
    assert not text or text not in str(caught.value.to_json())


# Fold


def test_a_mint_body_folds_into_its_token() -> None:
    assert bearer.fold({}, bearer.mint_body(TOKEN)) == {TOKEN.token_id: TOKEN}
    forever = replace(TOKEN, expires_at_ms=0)
    assert bearer.fold({}, bearer.mint_body(forever)) == {TOKEN.token_id: forever}
    assert not forever.expired(NOW_MS * 2)
    assert TOKEN.expired(NOW_MS + 1000)
    assert not TOKEN.expired(NOW_MS + 999)


@pytest.mark.parametrize("named", [{"token_id": TOKEN.token_id}, {"sa_id": TOKEN.sa_id}, {"pair_id": TOKEN.pair_id}])
def test_a_revocation_names_token_account_or_pair_and_is_final(named: dict[str, str]) -> None:
    other = replace(TOKEN, token_id="tok_00000002", sa_id="sa_ffff", pair_id="")
    tokens = bearer.fold(bearer.fold({}, bearer.mint_body(TOKEN)), bearer.mint_body(other))
    tokens = bearer.fold(tokens, {"kind": bearer.KIND_REVOKE, **named})
    assert tokens[TOKEN.token_id].revoked
    assert not tokens[other.token_id].revoked
    assert bearer.fold(tokens, bearer.mint_body(TOKEN))[TOKEN.token_id].revoked


def test_what_the_operator_revoked_stays_barred_until_it_is_readmitted() -> None:
    """A token that ended by itself bars nothing; the operator's word does, also about one that had ended before."""
    later = replace(TOKEN, token_id="tok_00000002", hash="b" * 64)
    tokens = bearer.fold(bearer.fold({}, bearer.mint_body(TOKEN)), bearer.mint_body(later))
    tokens = bearer.fold(tokens, {"kind": bearer.KIND_REVOKE, "token_id": TOKEN.token_id})
    assert not bearer.is_barred(tokens, TOKEN.pair_id)
    tokens = bearer.fold(tokens, {"kind": bearer.KIND_REVOKE, "sa_id": TOKEN.sa_id, "barred": True})
    assert all(token.revoked for token in tokens.values())
    assert bearer.is_barred(tokens, TOKEN.pair_id)
    assert not bearer.is_barred(tokens, "pair_00000000")
    tokens = bearer.fold(tokens, {"kind": bearer.KIND_REVOKE, "token_id": TOKEN.token_id})
    assert bearer.is_barred(tokens, TOKEN.pair_id)
    assert bearer.fold(tokens, {"kind": "other", "pair_id": TOKEN.pair_id}) is tokens
    tokens = bearer.fold(tokens, {"kind": bearer.KIND_READMIT, "pair_id": TOKEN.pair_id})
    assert not bearer.is_barred(tokens, TOKEN.pair_id)
    assert all(token.revoked for token in tokens.values())


def test_what_was_made_with_a_token_ends_with_it_and_never_begins_after_it() -> None:
    session = replace(TOKEN, token_id="tok_00000002", sa_id="sa_ffff", pair_id="", hash="b" * 64, maker=TOKEN.token_id)
    tokens = bearer.fold(bearer.fold({}, bearer.mint_body(TOKEN)), bearer.mint_body(session))
    assert tokens[session.token_id] == session
    tokens = bearer.fold(tokens, {"kind": bearer.KIND_REVOKE, "token_id": TOKEN.token_id, "barred": True})
    assert tokens[session.token_id] == replace(session, revoked=True)
    later = replace(session, token_id="tok_00000003", hash="c" * 64)
    assert bearer.fold(tokens, bearer.mint_body(later))[later.token_id].revoked
    assert bearer.fold({}, bearer.mint_body(later))[later.token_id].revoked  # made with one that nobody knows
    alone = bearer.fold(bearer.fold({}, bearer.mint_body(TOKEN)), bearer.mint_body(session))
    alone = bearer.fold(alone, {"kind": bearer.KIND_REVOKE, "token_id": session.token_id})
    assert not alone[TOKEN.token_id].revoked


@pytest.mark.parametrize("scope", sorted(bearer.UNBOUND))
def test_no_namespace_binds_a_scope_about_the_whole_daemon(scope: str) -> None:
    scopes = frozenset({scope, "records:read"})
    assert scope in refused("token-scope-bound", bearer.check_bound, scopes, ["org"]).message
    bearer.check_bound(scopes, [])
    bearer.check_bound(bearer.SCOPES - bearer.UNBOUND, ["org"])
    assert replace(TOKEN, scopes=scopes, pair_id="").rights <= bearer.SCOPES - bearer.UNBOUND


def test_a_revocation_that_names_nothing_revokes_nothing() -> None:
    ordinary = replace(TOKEN, pair_id="", peer_did="")
    tokens = bearer.fold({}, bearer.mint_body(ordinary))
    for body in ({}, {"pair_id": ""}, {"pair_id": None}, {"token_id": ["x"]}):
        assert bearer.fold(tokens, {"kind": bearer.KIND_REVOKE, **body}) == tokens


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    kind=st.sampled_from([bearer.KIND_MINT, bearer.KIND_REVOKE, "other"]),
    changes=st.dictionaries(st.sampled_from(sorted(bearer.mint_body(TOKEN))[1:]), JSON),
)
def test_the_fold_never_raises_and_never_changes_its_input(kind: str, changes: dict[str, object]) -> None:
    before = {TOKEN.token_id: TOKEN}
    after = bearer.fold(before, {**bearer.mint_body(TOKEN), **changes, "kind": kind})
    assert before == {TOKEN.token_id: TOKEN}
    assert all(isinstance(token, Token) for token in after.values())


# Sealed tokens

BOUND = {"pair_id": "pair_a1b2c3d4", "nonce": "0" * 32, "issuer": "did:a", "audience": "did:b"}


def a_sealed(**changes: Any) -> str:
    named: dict[str, Any] = {
        "public": keys.box_public(SEAL),
        "ephemeral": b"e" * 32,
        "expires_at_ms": NOW_MS,
        "scopes": frozenset({"federation:sync"}),
        **BOUND,
    }
    return bearer.seal_token(TEXT, **{**named, **changes})


def test_a_sealed_token_opens_under_any_of_our_secrets_and_hides_itself() -> None:
    opened = bearer.open_token(a_sealed(), [b"n" * 32, SEAL], **BOUND)
    assert (opened.token, opened.scopes, opened.expires_at_ms) == (TEXT, {"federation:sync"}, NOW_MS)
    assert TEXT not in repr(opened)
    assert TOKEN.hash not in repr(TOKEN)


@pytest.mark.parametrize("name", BOUND)
def test_a_sealed_token_of_another_message_is_refused(name: str) -> None:
    refused("sealed-token", bearer.open_token, a_sealed(), [SEAL], **{**BOUND, name: "other"})


def test_what_does_not_open_is_refused() -> None:
    whole = keys.unb64(a_sealed())
    for bad in (None, 7, "", "!", "A" * 50_000, keys.b64(whole[:-1]), keys.b64(whole[:31]), keys.b64(whole[1:] + b"x")):
        refused("sealed-token", bearer.open_token, bad, [SEAL], **BOUND)
    refused("sealed-token", bearer.open_token, a_sealed(), [], **BOUND)
    refused("sealed-token", bearer.open_token, a_sealed(), [b"n" * 32], **BOUND)


@pytest.mark.parametrize("inner", [b"", b"[]", b"{}", b'{"purpose":1,"purpose":1}', b'{"purpose":"federation-token"}'])
def test_a_box_with_other_content_is_refused(inner: bytes) -> None:
    box = keys.b64(keys.seal(keys.box_public(SEAL), inner, b"e" * 32))
    refused("sealed-token", bearer.open_token, box, [SEAL], **BOUND)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("token", "x"),
        ("token", None),
        ("scopes", "admin"),
        ("scopes", [["a"]]),
        ("scopes", ["A B"]),
        ("expires_at", "soon"),
        ("purpose", "other"),
    ],
)
def test_a_sealed_token_has_a_form(name: str, value: object) -> None:
    fields = canon.decode(keys.unseal(SEAL, keys.unb64(a_sealed())))
    box = keys.b64(keys.seal(keys.box_public(SEAL), canon.encode({**fields, name: value}), b"e" * 32))
    refused("sealed-token", bearer.open_token, box, [SEAL], **BOUND)


# Proofs

REQUEST: dict[str, Any] = {
    "method": "GET",
    "target": "/v1/sync/changes?since=x",
    "audience": "did:sync:instance:bob",
    "token": TEXT,
    "body": b"",
}


def a_proof(**changes: Any) -> str:
    return bearer.proof_header(KEY, **{**REQUEST, "issued_at_ms": NOW_MS, "nonce": "c" * 32, **changes})


def check(header: str, public: bytes = KEY.public, now_ms: int = NOW_MS, **changes: Any) -> tuple[str, int]:
    return bearer.check_proof(header, public, **{**REQUEST, **changes}, now_ms=now_ms, limits=Limits())


def test_a_proof_holds_for_its_request() -> None:
    assert check(a_proof()) == ("c" * 32, NOW_MS)
    assert "\n" not in a_proof()
    assert TEXT not in a_proof()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("method", "POST"),
        ("target", "/v1/sync/changes"),
        ("body", b"x"),
        ("audience", "did:sync:instance:eve"),
        ("token", TEXT[:-1] + "0"),
    ],
)
def test_a_proof_of_another_request_is_refused(name: str, value: object) -> None:
    assert refused("auth-invalid", check, a_proof(), **{name: value}).facts["reason"] == "proof"


def test_a_proof_of_another_key_is_refused() -> None:
    assert refused("auth-invalid", check, a_proof(), SecretKey(b"x" * 32).public).facts["reason"] == "proof"


def test_nonce_and_time_of_a_proof_are_signed() -> None:
    other = a_proof(nonce="d" * 32, issued_at_ms=NOW_MS + 1).split(";")
    mine = a_proof().split(";")
    for place in (1, 2):
        mixed = [*mine]
        mixed[place] = other[place]
        assert refused("auth-invalid", check, ";".join(mixed)).facts["reason"] == "proof"


def test_a_proof_is_good_for_five_minutes_and_from_seconds_before_its_date() -> None:
    for off_ms in (-bearer.PROOF_AHEAD_MS, 300_000):
        assert check(a_proof(), now_ms=NOW_MS + off_ms)
    for off_ms in (-bearer.PROOF_AHEAD_MS - 1, 300_001):
        caught = refused("auth-invalid", check, a_proof(), now_ms=NOW_MS + off_ms)
        assert caught.facts["reason"] == "proof-time"
        assert "time" in caught.facts


def test_a_proof_of_an_era_counts_in_it_alone_and_one_of_none_by_its_date() -> None:
    named = a_proof(era="a" * 16)
    for era, holds in ((Era("a" * 16), True), (Era("a" * 16, NOW_MS + 9, 0), True), (Era("b" * 16), False)):
        if holds:
            assert check(named, era=era) == ("c" * 32, NOW_MS)
        else:
            facts = refused("auth-invalid", check, named, era=era).facts
            assert (facts["reason"], bearer.era_in(facts)) == ("proof-time", era.name)
    for era, holds in (
        (Era("b" * 16, NOW_MS - 1, NOW_MS), True),
        (Era("", NOW_MS), False),
        (Era("", 0, NOW_MS - 1), False),
    ):
        if holds:
            assert check(a_proof(), era=era)
        else:
            assert refused("auth-invalid", check, a_proof(), era=era).facts["reason"] == "proof-time"


def test_the_era_of_a_proof_is_signed() -> None:
    version, at, nonce, _, signature = a_proof(era="a" * 16).split(";")
    for text in (f"v1;{at};{nonce};{signature}", f"{version};{at};{nonce};{'b' * 16};{signature}"):
        assert refused("auth-invalid", check, text).facts["reason"] == "proof"
    for text in (f"v1;{at};{nonce};{'a' * 16};{signature}", f"v2;{at};{nonce};{signature}"):
        assert refused("auth-invalid", check, text).facts["reason"] == "proof-malformed"
    assert [bearer.era_in({"era": text}) for text in ("", "A" * 16, "a" * 15, "a" * 16 + "\n", 7)] == [""] * 5


@given(header=st.text(max_size=200))
def test_any_other_header_is_malformed(header: str) -> None:
    assert refused("auth-invalid", check, header).facts["reason"] == "proof-malformed"


@given(cut=st.integers(0, len(a_proof()) - 1))
def test_a_cut_header_is_malformed(cut: int) -> None:
    assert refused("auth-invalid", check, a_proof()[:cut]).facts["reason"] == "proof-malformed"


def test_a_header_with_no_such_day_or_sloppy_base64_is_malformed() -> None:
    version, _, nonce, signature = a_proof().split(";")
    for text in ("2026-13-40T00:00:00.000Z", "....................Z"):
        refused("auth-invalid", check, ";".join((version, text, nonce, signature)))
    refused("auth-invalid", check, a_proof().replace("==", "AA"))
