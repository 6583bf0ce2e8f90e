"""What is kept of a token: each body of another form than a mint's is no token, and defaults give no rights away."""

from dataclasses import replace

import pytest

from spl.core.identity import bearer
from spl.core.identity.bearer import Token

NOW_MS = 1_764_000_000_000
HASH = bearer.hash_of("x")
PLAIN = Token("tok_1", "sa_0a1b2c3d", HASH, frozenset({"records:read"}), created_at_ms=NOW_MS)
MINT = bearer.mint_body(PLAIN)


def test_a_token_without_expiry_never_expires() -> None:
    assert Token("t", "s", HASH, frozenset()).expires_at_ms == 0
    assert Token("t", "s", HASH, frozenset()).created_at_ms == 0
    assert not PLAIN.expired(2**60)
    dated = replace(PLAIN, expires_at_ms=NOW_MS)
    assert [dated.expired(now) for now in (NOW_MS - 1, NOW_MS, NOW_MS + 1)] == [False, True, True]
    assert replace(PLAIN, expires_at_ms=1).expired(1)


def test_namespaces_take_rights_about_the_daemon_away_but_not_from_a_pair() -> None:
    scopes = frozenset({"admin", "records:read"})
    assert replace(PLAIN, scopes=scopes).rights == scopes
    assert replace(PLAIN, scopes=scopes, namespaces=("org",)).rights == bearer.SCOPES - bearer.UNBOUND
    assert replace(PLAIN, scopes=scopes, namespaces=("org",), pair_id="pair_1").rights == scopes


def test_a_mint_body_gives_its_token() -> None:
    assert bearer.fold({}, MINT) == {"tok_1": PLAIN}
    longest = {**MINT, "label": "x" * 1024}
    assert bearer.fold({}, longest)["tok_1"].label == "x" * 1024


@pytest.mark.parametrize("fields", [
    {"label": "x" * 1025}, {"label": 7}, {"sa_id": None}, {"pair_id": []}, {"token_id": ""}, {"hash": ""},
    {"hash": HASH[:-1]}, {"hash": HASH.upper()}, {"hash": HASH + "0"}, {"scopes": "records:read"}, {"scopes": None},
    {"scopes": {"admin": 1}}, {"namespaces": "org"}, {"namespaces": {"org": 1}}, {"namespaces": None}, {"scopes": [7]},
    {"namespaces": [None]}, {"scopes": [["admin"]]}, {"expires_at": "soon"}, {"expires_at": 0}, {"created_at": None},
])  # fmt: skip
def test_a_body_of_another_form_is_no_token(fields: dict[str, object]) -> None:
    """Read as a list, the scopes of a text would be its letters, and namespaces of another type would mean all."""
    before: dict[str, Token] = {}
    assert bearer.fold(before, {**MINT, **fields}) is before


def test_only_a_revocation_and_a_readmission_change_a_token() -> None:
    tokens = bearer.fold({}, MINT)
    for kind in ("other", None, bearer.KIND_MINT):
        assert bearer.fold(tokens, {"kind": kind, "token_id": "tok_1", "barred": True}) is tokens
    revoked = bearer.fold(tokens, {"kind": bearer.KIND_REVOKE, "token_id": "tok_1"})
    assert (revoked["tok_1"].revoked, revoked["tok_1"].barred) == (True, False)


def test_a_later_revocation_lifts_no_bar() -> None:
    named = {"kind": bearer.KIND_REVOKE, "token_id": "tok_1"}
    barred = bearer.fold(bearer.fold({}, MINT), {**named, "barred": True})
    assert barred["tok_1"].barred
    assert bearer.fold(barred, named)["tok_1"].barred
    assert not bearer.fold(barred, {**named, "kind": bearer.KIND_READMIT})["tok_1"].barred
    for word in (1, "true", None):
        assert not bearer.fold(bearer.fold({}, MINT), {**named, "barred": word})["tok_1"].barred
