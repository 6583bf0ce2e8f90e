"""Manifests: each signed member is covered, each check has its code, --no-strict skips time and nothing else."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core import canon
from spl.core.errors import SplError
from spl.core.identity import manifest
from spl.core.identity.did import Chain, did_of, multibase, rotate, words
from spl.core.identity.manifest import SIGNATURE_FAILED, Manifest
from spl.core.keys import SecretKey, b64, box_public
from spl.core.limits import Limits
from spl.core.when import text_of

NOW_MS = 1_764_000_000_000
DAY_MS = 86_400_000
FIRST, SECOND, THIRD = (SecretKey(letter * 32) for letter in (b"1", b"2", b"3"))
DID = did_of("bob", FIRST.public)
ONE = Chain(DID, FIRST.public)
TWO = rotate(ONE, FIRST, SECOND.public, "retired", NOW_MS - DAY_MS)
FORK = rotate(ONE, FIRST, THIRD.public, "retired", NOW_MS - DAY_MS)
SEAL = box_public(b"s" * 32)
URL = "https://bob.example"
LIMITS = Limits()


def a_document(chain: Chain = ONE, key: SecretKey = FIRST, **more: Any) -> dict[str, Any]:
    named: dict[str, Any] = {
        "url": URL,
        "namespaces": ["default"],
        "version": "1.0",
        "now_ms": NOW_MS,
        "limits": LIMITS,
    }
    return copy.deepcopy(manifest.build(chain, key, SEAL, **{**named, **more}))


def check(document: object, did_document: object = None, **named: Any) -> Manifest:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    other = None if did_document is None else json.dumps(did_document).encode()
    return manifest.verify(text, other, **{"now_ms": NOW_MS, "strict": True, "limits": LIMITS, **named})


def refused(code: str, *args: Any, **named: Any) -> SplError:
    with pytest.raises(SplError) as caught:
        check(*args, **named)
    assert caught.value.code == code
    return caught.value


def resigned(change: Callable[[dict[str, Any]], object], key: SecretKey = FIRST) -> dict[str, Any]:
    """Return a document whose manifest was changed and then signed again, as its owner could."""
    body = a_document()["federation_manifest"]
    change(body)
    signature = {name: value for name, value in body["signature"].items() if name != "signature"}
    text = canon.encode({**body, "signature": signature})
    body["signature"] = {**signature, "signature": b64(key.sign(text))}
    return manifest.document_of(body)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of each scalar in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return [path]
    return [leaf for name, item in items for leaf in leaves(item, (*path, name))]


def test_a_manifest_says_what_was_built() -> None:
    found = check(a_document(TWO, SECOND), manifest.did_document(TWO, SEAL, URL))
    assert (found.did, found.chain, found.public_key, found.seal_key) == (DID, TWO, SECOND.public, SEAL)
    assert (found.url, found.pair_endpoint) == (URL, URL + "/v1/federation/pair")
    assert (found.namespaces, found.version, found.protocol_min, found.protocol_max) == (("default",), "1.0", 1, 1)
    assert (found.signed_at_ms, found.expires_at_ms) == (NOW_MS, NOW_MS + 7 * DAY_MS)
    assert manifest.from_json(found.raw, LIMITS) == found
    assert replace(found, text=b"").raw == {}, "of one that was dropped"
    assert check(a_document(namespaces=None)).namespaces is None


def test_the_document_repeats_did_endpoint_and_signature_outside() -> None:
    document = a_document()
    inner = document["federation_manifest"]
    assert document["did"] == inner["daemon"]["did"] == DID
    assert document["pair_endpoint"] == inner["federation"]["pair_endpoint"]
    assert document["signature"] == inner["signature"]
    assert document["signature"]["key_id"] == f"{DID}#{multibase(FIRST.public)}"


@pytest.mark.parametrize("path", leaves(a_document(TWO, SECOND)["federation_manifest"]), ids=str)
def test_no_member_can_be_changed(path: tuple[Any, ...]) -> None:
    document = a_document(TWO, SECOND)
    holder: Any = document["federation_manifest"]
    for name in path[:-1]:
        holder = holder[name]
    value = holder[path[-1]]
    changed: object = value + 1 if type(value) is int else not value if isinstance(value, bool) else value[:-2] + "00"
    holder[path[-1]] = changed
    for outer in ("did", "pair_endpoint", "signature"):
        document[outer] = manifest.document_of(document["federation_manifest"])[outer]
    with pytest.raises(SplError):
        check(document, strict=False)


@pytest.mark.parametrize(
    ("member", "value"),
    [("signed_at", text_of(NOW_MS - 1)), ("expires_at", text_of(NOW_MS + 900 * DAY_MS)), ("new", 1)],
)
def test_the_validity_is_signed(member: str, value: object) -> None:
    document = a_document()
    document["federation_manifest"]["signature"][member] = value
    document["signature"] = document["federation_manifest"]["signature"]
    assert refused("manifest-signature", document).message == SIGNATURE_FAILED


def test_unknown_members_are_tolerated_and_covered() -> None:
    document = resigned(lambda body: body.update(future={"a": [1]}))
    assert check(document).raw["future"] == {"a": [1]}
    document["federation_manifest"]["future"] = {"a": [2]}
    assert refused("manifest-signature", document).message == SIGNATURE_FAILED
    assert check({**a_document(), "future": 1})


def test_what_stands_outside_must_equal_what_stands_inside() -> None:
    other = did_of("eve", THIRD.public)
    assert refused("manifest-did-mismatch", {**a_document(), "did": other}).message == SIGNATURE_FAILED
    assert (
        refused("manifest-signature", {**a_document(), "pair_endpoint": "https://eve.example/"}).message
        == SIGNATURE_FAILED
    )
    assert refused("manifest-signature", {**a_document(), "signature": {}}).message == SIGNATURE_FAILED


def test_only_the_chains_present_key_signs() -> None:
    """The key that a rotation retired, and any stranger's, verifies no manifest any more."""
    assert check(a_document(TWO, SECOND)).chain == TWO
    for key in (FIRST, THIRD):
        document = a_document(TWO, SECOND)
        body = document["federation_manifest"]
        signature = {name: value for name, value in body["signature"].items() if name != "signature"}
        body["signature"]["signature"] = b64(key.sign(canon.encode({**body, "signature": signature})))
        document["signature"] = body["signature"]
        assert refused("manifest-signature", document).message == SIGNATURE_FAILED
    old = resigned(lambda body: body["signature"].update(key_id=f"{DID}#{multibase(THIRD.public)}"))
    assert refused("manifest-signature", old).message == SIGNATURE_FAILED


def test_a_key_that_the_did_does_not_certify_is_refused() -> None:
    stolen = resigned(lambda body: body.update(public_key=multibase(THIRD.public)), THIRD)
    assert refused("did-invalid", stolen).message == SIGNATURE_FAILED


def test_a_broken_chain_is_refused() -> None:
    document = a_document(TWO, SECOND)
    document["federation_manifest"]["rotations"][0]["to"] = multibase(THIRD.public)
    assert refused("chain-broken", document).message == SIGNATURE_FAILED
    document["federation_manifest"]["rotations"] = [7]
    refused("chain-broken", document)
    document["federation_manifest"]["rotations"] = [{}] * 65
    refused("manifest-malformed", document)


# Agreement with the DID document


def test_the_did_document_lists_all_keys_and_uses_the_present_one() -> None:
    document = manifest.did_document(TWO, SEAL, URL)
    first, second = document["verificationMethod"]
    assert (first["publicKeyMultibase"], first["revoked"]) == (multibase(FIRST.public), text_of(NOW_MS - DAY_MS))
    assert second["publicKeyMultibase"] == multibase(SECOND.public)
    assert "revoked" not in second
    assert document["assertionMethod"] == document["authentication"] == [second["id"]]
    assert document["service"] == [{"id": f"{DID}#syncropel", "type": "syncropel", "serviceEndpoint": URL}]


def test_the_did_document_of_another_did_is_refused() -> None:
    other = Chain(did_of("eve", THIRD.public), THIRD.public)
    caught = refused("manifest-did-mismatch", a_document(), manifest.did_document(other, SEAL, URL))
    assert caught.message == SIGNATURE_FAILED
    assert caught.facts["document"] == other.did


@pytest.mark.parametrize(
    ("shown", "key", "published"), [(ONE, FIRST, TWO), (TWO, SECOND, ONE), (TWO, SECOND, FORK)], ids=str
)
def test_a_did_document_of_another_key_state_is_refused(shown: Chain, key: SecretKey, published: Chain) -> None:
    caught = refused("manifest-signature", a_document(shown, key), manifest.did_document(published, SEAL, URL))
    assert caught.message == SIGNATURE_FAILED
    assert words(shown.present) in str(caught.facts["manifest"])
    assert words(published.present) in str(caught.facts["document"])


@pytest.mark.parametrize(
    "change",
    [
        {"verificationMethod": None},
        {"verificationMethod": [None]},
        {"verificationMethod": [{"publicKeyMultibase": ["z"]}]},
        {"authentication": None},
        {"keyAgreement": []},
        {"keyAgreement": manifest.did_document(ONE, box_public(b"o" * 32), URL)["keyAgreement"]},
    ],
    ids=str,
)
def test_a_did_document_with_other_members_is_refused(change: dict[str, object]) -> None:
    refused("manifest-signature", a_document(), {**manifest.did_document(ONE, SEAL, URL), **change})


@pytest.mark.parametrize("used", [None, 7, "z", [], [7], {}, {"0": "z"}, ["z"], [None]], ids=repr)
def test_a_did_document_whose_key_cannot_be_read_is_refused_and_says_so(used: object) -> None:
    shown = {**manifest.did_document(ONE, SEAL, URL), "assertionMethod": used}
    caught = refused("manifest-signature", a_document(), shown)
    assert caught.facts["document"] == f"{DID}, key unreadable"


def test_a_did_document_that_is_no_object_is_malformed() -> None:
    for text in (b"", b"[]", b"{", b"x" * (LIMITS.manifest_bytes + 1)):
        with pytest.raises(SplError) as caught:
            manifest.verify(json.dumps(a_document()).encode(), text, now_ms=NOW_MS, strict=True, limits=LIMITS)
        assert caught.value.code == "manifest-malformed"


# Pins, chains, age


@pytest.mark.parametrize("expected", [DID, "did:sync:instance:bob"])
def test_a_did_can_be_expected_with_or_without_its_hash(expected: str) -> None:
    assert check(a_document(), expect_did=expected)


@pytest.mark.parametrize("expected", ["did:sync:instance:eve", DID[:-1], "bob", DID.replace("bob", "bo")])
def test_another_did_than_the_expected_one_is_refused(expected: str) -> None:
    for strict in (True, False):
        refused("manifest-did-mismatch", a_document(), expect_did=expected, strict=strict)


def test_a_key_can_be_expected_as_text_or_words() -> None:
    assert check(a_document(), expect_key=multibase(FIRST.public))
    assert check(a_document(), expect_key=f"  {words(FIRST.public).upper()} ".replace(" ", "  "))
    for expected in (multibase(SECOND.public), words(SECOND.public), "x"):
        refused("manifest-did-mismatch", a_document(), expect_key=expected, strict=False)


def test_a_pinned_chain_may_only_grow() -> None:
    assert check(a_document(TWO, SECOND), pinned=ONE).chain == TWO
    assert check(a_document(TWO, SECOND), pinned=TWO).chain == TWO
    for strict in (True, False):
        refused("manifest-stale", a_document(), pinned=TWO, strict=strict)
        refused("chain-fork", a_document(TWO, SECOND), pinned=FORK, strict=strict)
        refused("chain-fork", a_document(), pinned=replace(ONE, did=did_of("eve", THIRD.public)), strict=strict)


def test_a_manifest_is_capped_with_its_unknown_members_and_without_its_rotations() -> None:
    refused("manifest-malformed", resigned(lambda body: body.update(more="x" * 8 * 1024)))
    refused("manifest-malformed", resigned(lambda body: body.update(more=[[] for _ in range(4000)])))
    assert check(resigned(lambda body: body.update(more="x" * 6 * 1024))).did == DID
    chain, held = ONE, FIRST
    for number in range(40):
        fresh = SecretKey(bytes([number]) * 32)
        chain, held = rotate(chain, held, fresh.public, "retired", NOW_MS - DAY_MS), fresh
    assert len(check(a_document(chain, held)).chain.rotations) == 40


def test_a_list_of_namespaces_that_is_too_long_is_left_out_rather_than_published() -> None:
    names = [f"{'n' * 60}{number:02}/{'m' * 60}/{'o' * 60}" for number in range(64)]
    assert check(a_document(namespaces=names)).namespaces is None


def test_the_key_that_a_manifest_claims_is_read_before_its_chain_is_verified() -> None:
    body = a_document(TWO, SECOND)["federation_manifest"]
    assert manifest.claimed_key(body, DID) == SECOND.public
    body["rotations"][0]["signature"] = "forged"
    assert manifest.claimed_key(body, DID) == SECOND.public
    for damage in ({"rotations": 7}, {"rotations": [7]}, {"public_key": "z"}, {"rotations": []}):
        with pytest.raises(SplError) as caught:
            manifest.claimed_key({**body, **damage}, DID)
        assert caught.value.code in ("manifest-malformed", "did-invalid")


def test_a_date_ahead_is_no_floor_and_is_replaced_by_one_of_the_right_clock() -> None:
    """The early manifest is worth replacing by one that says the same, and only by one that is not early itself."""
    ahead, right = (check(a_document(now_ms=at_ms), strict=False) for at_ms in (NOW_MS + 8 * DAY_MS, NOW_MS))
    assert check(a_document(), newer_than_ms=ahead.signed_at_ms) == right
    assert manifest.says_more(right, ahead, NOW_MS)
    assert not manifest.says_more(ahead, ahead, NOW_MS)
    assert not manifest.says_more(right, right, NOW_MS)


def test_an_older_manifest_than_the_last_is_stale() -> None:
    assert check(a_document(), newer_than_ms=NOW_MS)
    for strict in (True, False):
        refused("manifest-stale", a_document(), newer_than_ms=NOW_MS + 1, strict=strict)


@pytest.mark.parametrize("now_ms", [NOW_MS + 7 * DAY_MS, NOW_MS + 900 * DAY_MS, NOW_MS - 300_001])
def test_time_is_checked_unless_not_strict(now_ms: int) -> None:
    caught = refused("manifest-expired", a_document(), now_ms=now_ms)
    assert ("future" in caught.message) == (now_ms < NOW_MS)
    assert check(a_document(), now_ms=now_ms, strict=False)


@pytest.mark.parametrize("now_ms", [NOW_MS + 7 * DAY_MS - 1, NOW_MS - 300_000])
def test_the_last_moments_of_validity_count(now_ms: int) -> None:
    assert check(a_document(), now_ms=now_ms)


def test_a_protocol_that_we_do_not_speak_is_refused() -> None:
    def speaks(low: object, high: object) -> Callable[[dict[str, Any]], object]:
        return lambda body: body["daemon"].update(federation_protocol_version=high, federation_protocol_version_min=low)

    assert check(resigned(speaks(1, 3))).protocol_max == 3
    assert "2..3" in refused("peer-version", resigned(speaks(2, 3)), strict=False).message
    for low, high in ((3, 2), (0, 1), (True, 1), (1, True), ("1", 1), (1, "1"), (0.5, 1), (1, 1.5), (None, 1)):
        refused("manifest-malformed", resigned(speaks(low, high)))
    refused("peer-version", resigned(lambda body: body.update(manifest_version=2)))


# Form


@pytest.mark.parametrize(
    "change",
    [
        {"manifest_version": True},
        {"manifest_version": "1"},
        {"manifest_version": 0},
        {"daemon": None},
        {"public_key": "z1"},
        {"public_key": multibase(SEAL, "x25519")},
        {"seal_key": multibase(FIRST.public)},
        {"seal_key": None},
        {"rotations": None},
        {"federation": {}},
        {"advertises": []},
        {"advertises": {"namespaces": "default"}},
        {"advertises": {"namespaces": ["a"] * 65}},
        {"capabilities": [7]},
        {"capabilities": None},
        {"signature": None},
    ],
    ids=str,
)
def test_a_manifest_of_another_form_is_malformed(change: dict[str, Any]) -> None:
    document = a_document()
    document["federation_manifest"].update(change)
    refused("manifest-malformed", document)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pair_endpoint", "https://bob.example/"),
        ("pair_endpoint", "https://bob.example./v1/federation/pair"),
        ("pair_endpoint", "ftp://bob.example/v1/federation/pair"),
        ("pair_endpoint", "https://u:p@bob.example/v1/federation/pair"),
        ("pair_endpoint", "https://bob.example/x?y=/v1/federation/pair"),
        ("pair_endpoint", "https://bob.example#/v1/federation/pair"),
        ("sync_change_endpoint", "https://bob.example.evil.test/v1/sync/changes"),
        ("sync_record_endpoint", "http://bob.example/v1/sync/records"),
        ("sync_record_endpoint", None),
    ],
)
def test_endpoints_are_of_one_origin(name: str, value: object) -> None:
    refused("manifest-malformed", resigned(lambda body: body["federation"].update({name: value})))


@pytest.mark.parametrize("url", ["", "ftp://bob.example", "https://u:p@bob.example", "https://bob.example.", "//x"])
def test_endpoints_of_one_origin_that_is_none_are_refused(url: str) -> None:
    refused("manifest-malformed", a_document(url=url))


def test_an_endpoint_has_its_path() -> None:
    refused("manifest-malformed", resigned(lambda body: body["federation"].update(pair_endpoint=URL)))


@pytest.mark.parametrize("url", ["http://127.0.0.1:9100", "https://[::1]:9100", "https://a-b.example:65535"])
def test_origins_may_be_names_or_addresses(url: str) -> None:
    assert check(a_document(url=url)).url == url


@pytest.mark.parametrize("did", ["did:web:x", "", None, 7, "did:sync:instance:bob"])
def test_a_malformed_did_is_refused(did: object) -> None:
    caught = refused("did-invalid", resigned(lambda body: body["daemon"].update(did=did)))
    assert caught.message == "daemon.did is not an instance DID"


@pytest.mark.parametrize(
    "change",
    [{"alg": "none"}, {"signed_at": "x"}, {"expires_at": None}, {"expires_at": text_of(NOW_MS)}, {"key_id": 7}],
)
def test_the_signature_has_a_form(change: dict[str, object]) -> None:
    refused("manifest-malformed", resigned(lambda body: body["signature"].update(change)))


def test_a_signature_that_is_no_base64_does_not_verify() -> None:
    document = a_document()
    document["federation_manifest"]["signature"]["signature"] = "é"
    document["signature"] = document["federation_manifest"]["signature"]
    assert refused("manifest-signature", document).message == SIGNATURE_FAILED


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b'{"did":1,"did":1}',
        b'{"federation_manifest":7}',
        b"[" * 100_000,
        b"x" * (LIMITS.manifest_bytes + 1),
    ],
)
def test_other_texts_are_malformed(text: bytes) -> None:
    refused("manifest-malformed", text)


@given(cut=st.integers(0, 400))
def test_a_cut_document_is_malformed(cut: int) -> None:
    text = json.dumps(a_document()).encode()
    refused("manifest-malformed", text[: len(text) - 1 - cut])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)
)


@given(path=st.sampled_from(leaves(a_document(TWO, SECOND))), value=JSON)
def test_no_odd_value_anywhere_gets_past_the_codes(path: tuple[Any, ...], value: object) -> None:
    """Whatever a stranger puts in a member, the answer is a code, never another exception and never acceptance."""
    document = a_document(TWO, SECOND)
    holder: Any = document
    for name in path[:-1]:
        holder = holder[name]
    if holder[path[-1]] == value:
        return
    holder[path[-1]] = value
    with pytest.raises(SplError):
        check(document, manifest.did_document(TWO, SEAL, URL))


@given(path=st.sampled_from(leaves(manifest.did_document(TWO, SEAL, URL))), value=JSON)
def test_no_odd_value_in_the_did_document_crashes(path: tuple[Any, ...], value: object) -> None:
    document = manifest.did_document(TWO, SEAL, URL)
    holder: Any = document
    for name in path[:-1]:
        holder = holder[name]
    holder[path[-1]] = value
    try:
        assert check(a_document(TWO, SECOND), document).did == DID
    except SplError as exc:
        assert exc.code in ("manifest-signature", "manifest-did-mismatch")
