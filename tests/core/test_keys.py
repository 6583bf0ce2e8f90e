"""Cryptography: published vectors, libsodium's own construction as the other side, refusals instead of surprises."""

import base64
import importlib.util
import sys
from types import SimpleNamespace

import nacl.public
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core import keys

# RFC 8032 §7.1, TEST 2.
SEED = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)
# RFC 7748 §6.1, Alice.
BOX_SECRET = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f92ebc099ac1bdc5b4c4f5f8c0".rjust(64, "0"))
KEY32 = st.binary(min_size=32, max_size=32)


def test_signatures_are_rfc_8032s() -> None:
    """The published seed gives the published key and signature."""
    key = keys.SecretKey(SEED)
    assert key.public == PUBLIC
    assert key.sign(b"\x72") == SIGNATURE
    assert keys.verify(PUBLIC, b"\x72", SIGNATURE)


@given(KEY32, st.binary(max_size=200), st.integers(0, 511))
def test_a_signature_fits_one_key_and_one_message(seed: bytes, message: bytes, bit: int) -> None:
    """A changed bit of the signature, another message or another key never verifies."""
    key = keys.SecretKey(seed)
    signature = key.sign(message)
    bent = bytearray(signature)
    bent[bit // 8] ^= 1 << bit % 8
    assert keys.verify(key.public, message, signature)
    assert not keys.verify(key.public, message, bytes(bent))
    assert not keys.verify(key.public, message + b"x", signature)
    assert not keys.verify(keys.SecretKey(bytes(a ^ 1 for a in seed)).public, message, signature)


def test_a_library_that_cannot_begin_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """-1 of sodium_init means that it has no random numbers, for example."""
    monkeypatch.setitem(
        sys.modules, "nacl._sodium", SimpleNamespace(ffi=None, lib=SimpleNamespace(sodium_init=lambda: -1))
    )
    spec = importlib.util.spec_from_file_location("spl.core.keys_unfit", keys.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(RuntimeError, match="libsodium"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize("public", [b"", bytes(31), bytes(32), bytes(33), b"\x01" + bytes(31), b"\xff" * 32])
@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(64), bytes(65), b"\xff" * 64])
def test_verify_answers_no_to_any_bytes(public: bytes, signature: bytes) -> None:
    """Wrong lengths, small-order keys and values off the curve are a plain no."""
    assert not keys.verify(public, b"message", signature)


def test_nothing_is_cut_off_to_make_a_length_right() -> None:
    """A longer key would count as the one that it begins with, and a longer signature would sign another message."""
    key = keys.SecretKey(SEED)
    assert not keys.verify(key.public + b"x", b"message", key.sign(b"message"))
    assert not keys.verify(key.public, b"message", key.sign(b"xmessage") + b"x")
    with pytest.raises(keys.KeyFault):
        keys.seal(keys.box_public(SEED) + b"x", b"text", bytes(range(32)))
    sealed = keys.aead_seal(SEED, bytes(24), b"", b"bound")
    assert keys.aead_open(SEED, sealed, b"bound") == b""
    assert keys.aead_open(SEED + b"x", sealed, b"bound") is None


@given(KEY32, KEY32, st.binary(max_size=500))
def test_sealed_texts_are_libsodiums(secret: bytes, ephemeral: bytes, text: bytes) -> None:
    """What we seal, libsodium's sealed box opens, and the other way round."""
    theirs = nacl.public.PrivateKey(secret)
    assert keys.box_public(secret) == bytes(theirs.public_key)
    sealed = keys.seal(bytes(theirs.public_key), text, ephemeral)
    assert nacl.public.SealedBox(theirs).decrypt(sealed) == text
    assert sealed == keys.seal(bytes(theirs.public_key), text, ephemeral)
    assert keys.unseal(secret, nacl.public.SealedBox(theirs.public_key).encrypt(text)) == text


@given(KEY32, KEY32, st.binary(min_size=1, max_size=100), st.data())
def test_a_changed_or_foreign_sealed_text_is_refused(
    secret: bytes, ephemeral: bytes, text: bytes, data: st.DataObject
) -> None:
    """It never opens to something else: `sealed-token`, cut anywhere or with any byte changed."""
    sealed = keys.seal(keys.box_public(secret), text, ephemeral)
    at = data.draw(st.integers(0, len(sealed) - 1))
    # The top bit of a Curve25519 key is ignored by definition, so another bit is flipped.
    bent = sealed[:at] + bytes((sealed[at] ^ 1,)) + sealed[at + 1 :]
    for bad in (bent, sealed[:at], b""):
        with pytest.raises(keys.KeyFault) as caught:
            keys.unseal(secret, bad)
        assert caught.value.code == "sealed-token"
    with pytest.raises(keys.KeyFault):
        keys.unseal(ephemeral if ephemeral != secret else bytes(range(32)), sealed)


@pytest.mark.parametrize("public", [b"", bytes(31), bytes(33), bytes(32)], ids=len)
def test_a_key_that_is_none_seals_nothing(public: bytes) -> None:
    """Wrong lengths and the all-zero key are refused with the code, not with a library's exception."""
    with pytest.raises(keys.KeyFault) as caught:
        keys.seal(public, b"text", bytes(range(32)))
    assert caught.value.code == "sealed-token"


@given(KEY32, st.binary(min_size=24, max_size=24), st.binary(max_size=100), st.binary(max_size=20), st.data())
def test_a_cursor_opens_only_whole_and_where_it_belongs(
    key: bytes, nonce: bytes, text: bytes, bound: bytes, data: st.DataObject
) -> None:
    """Another bound text, another key, a changed byte or a cut gives None, never an exception."""
    sealed = keys.aead_seal(key, nonce, text, bound)
    at = data.draw(st.integers(0, len(sealed) - 1))
    assert keys.aead_open(key, sealed, bound) == text
    assert keys.aead_open(key, sealed, bound + b"x") is None
    assert keys.aead_open(bytes(a ^ 1 for a in key), sealed, bound) is None
    assert keys.aead_open(key, sealed[:at] + bytes((sealed[at] ^ 1,)) + sealed[at + 1 :], bound) is None
    assert keys.aead_open(key, sealed[:at], bound) is None


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_no_key_of_another_length_reaches_the_library(size: int) -> None:
    """Its functions take no lengths of keys: a shorter one would have them read beyond its end."""
    key = bytes(size)
    for act in (
        lambda: keys.SecretKey(key), lambda: keys.box_public(key), lambda: keys.seal(bytes(range(32)), b"", key),
        lambda: keys.unseal(key, bytes(64)), lambda: keys.aead_seal(key, bytes(24), b"", b""),
        lambda: keys.aead_seal(bytes(32), key, b"", b""),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="wrong length"):
            act()
    assert keys.aead_open(key, bytes(64), b"") is None


@given(st.binary(max_size=64))
def test_base64_goes_both_ways(data: bytes) -> None:
    """One text per value."""
    assert keys.unb64(keys.b64(data)) == data


@pytest.mark.parametrize(
    "text", [None, 1, b"AA==", "AA", "AA=", "AB==", "AA==\n", " AA==", "A-_=", "AA==AA==", "é"], ids=repr
)
def test_any_other_spelling_of_base64_is_refused(text: object) -> None:
    """Missing padding, spare bits, whitespace and the URL alphabet are `message-malformed`."""
    with pytest.raises(keys.KeyFault) as caught:
        keys.unb64(text)
    assert caught.value.code == "message-malformed"


def test_base64_is_bounded() -> None:
    """A text far over the bound is refused before it is decoded."""
    with pytest.raises(keys.KeyFault):
        keys.unb64("A" * 400, 32)
    assert keys.unb64("A" * 8, 4) == bytes(6)
    assert keys.unb64("A" * 32_768) == bytes(24_576)
    for text, bytes_max in (("A" * 12, 5), ("A" * 32_772, 16_384)):
        with pytest.raises(keys.KeyFault):
            keys.unb64(text, bytes_max)


def test_a_secret_key_never_shows_its_secret() -> None:
    """Neither repr nor str holds any form of the seed."""
    key = keys.SecretKey(SEED)
    for text in (repr(key), str(key), f"{[key]}"):
        assert SEED.hex()[:8] not in text
        assert base64.b64encode(SEED).decode()[:8] not in text
        assert str(SEED)[2:10] not in text


def test_secrets_compare_by_content() -> None:
    """Equal texts are the same, of any alphabet and length."""
    assert keys.same("spl_é", "spl_é")
    assert not keys.same("spl_a", "spl_b")
    assert not keys.same("spl_a", "spl_a ")
    assert keys.digest(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
