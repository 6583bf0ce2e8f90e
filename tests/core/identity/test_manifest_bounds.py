"""Manifests at their bounds: the last size, count and time that counts, and the first that does not."""

import json
from typing import Any

import pytest

from spl.core import canon
from spl.core.errors import SplError
from spl.core.identity import manifest
from spl.core.limits import Limits
from tests.core.identity.test_manifest import (
    DAY_MS,
    DID,
    LIMITS,
    NOW_MS,
    ONE,
    SEAL,
    SECOND,
    TWO,
    URL,
    a_document,
    check,
    refused,
    resigned,
)


def unsigned_bytes(document: dict[str, Any]) -> int:
    """Return the size of a manifest without its rotations and the signature that is added last."""
    body = document["federation_manifest"]
    signature = {name: value for name, value in body["signature"].items() if name != "signature"}
    return len(canon.encode({**body, "rotations": [], "signature": signature}))


def test_a_list_of_namespaces_is_published_up_to_the_room_for_the_signature() -> None:
    room = manifest.MANIFEST_BYTES - manifest.SIGNATURE_CHARS - unsigned_bytes(a_document(namespaces=[""]))
    fits, too_long = (a_document(namespaces=["n" * (room + more)])["federation_manifest"] for more in (0, 1))
    assert fits["advertises"] == {"namespaces": ["n" * room]}
    assert too_long["advertises"] == {}


def test_documents_of_exactly_the_size_allowed_pass_and_of_a_byte_more_do_not() -> None:
    document, other = (json.dumps(each).encode() for each in (a_document(), manifest.did_document(ONE, SEAL, URL)))
    bytes_max = max(len(document), len(other))
    document, other = document.ljust(bytes_max), other.ljust(bytes_max)
    limits = Limits(manifest_bytes=bytes_max)
    assert manifest.verify(document, other, now_ms=NOW_MS, strict=True, limits=limits).did == DID
    for one, two, what in ((document + b" ", other, "the manifest"), (document, other + b" ", "the DID document")):
        with pytest.raises(SplError) as caught:
            manifest.verify(one, two, now_ms=NOW_MS, strict=True, limits=limits)
        assert caught.value.message == f"{what} is over {bytes_max} bytes"


def test_the_bounds_of_size_and_rotations_hold_to_the_last_one() -> None:
    body = a_document(TWO, SECOND)["federation_manifest"]
    size = len(canon.encode({**body, "rotations": []}))
    assert manifest.from_json(body, Limits(chain_links=1), size).chain == TWO
    for limits, size_max in ((Limits(chain_links=0), size), (LIMITS, size - 1)):
        with pytest.raises(SplError) as caught:
            manifest.from_json(body, limits, size_max)
        assert caught.value.code == "manifest-malformed"


def test_a_manifest_signed_again_is_worth_a_record_once_half_the_time_of_the_old_one_is_over() -> None:
    old, same, changed = (
        check(a_document(now_ms=NOW_MS + later_ms, version=version), strict=False)
        for later_ms, version in ((0, "1.0"), (1, "1.0"), (0, "1.1"))
    )
    half_ms = NOW_MS + 7 * DAY_MS // 2
    assert [manifest.says_more(same, old, half_ms + more_ms) for more_ms in (-DAY_MS, 0, 1)] == [False, False, True]
    assert not manifest.says_more(old, old, half_ms + 1), "the same one again"
    assert not manifest.says_more(old, same, half_ms + 2), "an earlier one"
    assert manifest.says_more(changed, old, NOW_MS)


@pytest.mark.parametrize("enabled", [False, None, 1, "true"])
def test_who_does_not_take_part_is_no_peer(enabled: object) -> None:
    refused("manifest-malformed", resigned(lambda body: body["federation"].update(enabled=enabled)))


@pytest.mark.parametrize("text", ["", "x" * 2049, "a\nb", "\x1b[31m", 7, None])
def test_texts_are_short_and_printable(text: object) -> None:
    refused("manifest-malformed", resigned(lambda body: body["daemon"].update(version=text)))
    refused("manifest-malformed", resigned(lambda body: body.update(capabilities=[text])))


def test_texts_and_lists_may_have_the_size_allowed() -> None:
    for text in ("x", "x" * 2048):
        assert check(resigned(lambda body, text=text: body["daemon"].update(version=text))).version == text
    names = tuple(f"n{number:02}" for number in range(64))
    assert check(a_document(namespaces=names)).namespaces == names
    assert check(resigned(lambda body: body.update(capabilities=list(names)))).did == DID
    refused("manifest-malformed", resigned(lambda body: body.update(capabilities=[*names, "n64"])))
