"""Batch signatures: the tree of RFC 9162 §2.1, held against an implementation of the RFC's text in this file."""

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core import canon
from spl.core.record import batch

SIZES = range(batch.SIZE_MIN, batch.SIZE_MAX + 1)


def sha256(data: bytes) -> bytes:
    """Return the digest, the HASH of the RFC."""
    return hashlib.sha256(data).digest()


def mth(entries: Sequence[bytes]) -> bytes:
    """Return MTH(D[n]) of §2.1.1: k is the largest power of two smaller than n."""
    if len(entries) == 1:
        return sha256(b"\x00" + entries[0])
    k = 1
    while k * 2 < len(entries):
        k *= 2
    return sha256(b"\x01" + mth(entries[:k]) + mth(entries[k:]))


def path(m: int, entries: Sequence[bytes]) -> list[bytes]:
    """Return PATH(m, D[n]) of §2.1.3.1."""
    if len(entries) == 1:
        return []
    k = 1
    while k * 2 < len(entries):
        k *= 2
    if m < k:
        return [*path(m, entries[:k]), mth(entries[k:])]
    return [*path(m - k, entries[k:]), mth(entries[:k])]


def messages(size: int) -> list[bytes]:
    """Return distinct messages, as many as asked."""
    return [b"message %d" % number for number in range(size)]


@pytest.mark.parametrize("size", SIZES)
def test_root_and_paths_are_the_rfcs(size: int) -> None:
    """Every size has the RFC's root, every leaf the RFC's path, and each path leads to the root."""
    entries = messages(size)
    root, places = batch.tree(entries)
    assert root == mth(entries)
    assert [list(place.path) for place in places] == [path(index, entries) for index in range(size)]
    assert [(place.index, place.size) for place in places] == [(index, size) for index in range(size)]
    assert all(batch.root_of(entry, place) == root for entry, place in zip(entries, places, strict=True))


@pytest.mark.parametrize("size", SIZES)
def test_a_place_survives_json(size: int) -> None:
    """What is encoded, from_json reads; a path longer or shorter by one hash is refused."""
    for place in batch.tree(messages(size))[1]:
        value = canon.decode(place.encoded())
        assert canon.encode(value) == place.encoded()
        assert batch.Batch.from_json(value) == place
        whole: Any = value["path"]
        for other in (whole[:-1], [*whole, base64.b64encode(bytes(32)).decode()]):
            with pytest.raises(batch.BatchError):
                batch.Batch.from_json({**value, "path": other})


@given(st.integers(2, 64), st.data())
def test_another_message_place_or_hash_leads_elsewhere(size: int, data: st.DataObject) -> None:
    """A path proves one message at one index: any change leads to another root."""
    entries = messages(size)
    root, places = batch.tree(entries)
    place = places[data.draw(st.integers(0, size - 1))]
    entry = entries[place.index]
    step = data.draw(st.integers(0, len(place.path) - 1))
    bent = (*place.path[:step], sha256(place.path[step]), *place.path[step + 1 :])
    assert batch.root_of(entry, batch.Batch(place.index, size, bent)) != root
    assert batch.root_of(entry + b"!", place) != root
    other = places[data.draw(st.integers(0, size - 1).filter(lambda index: index != place.index))]
    assert batch.root_of(entry, other) != root


def test_a_node_cannot_pass_for_a_leaf() -> None:
    """Leaves and nodes hash under distinct prefixes, so an inner node's text is no message of the tree."""
    left, right = sha256(b"\x00a"), sha256(b"\x00b")
    root, _ = batch.tree([b"a", b"b", b"c", b"d"])
    inner = batch.Batch(0, 2, (mth([b"c", b"d"]),))
    assert batch.root_of(left + right, inner) != root


def test_the_size_is_signed_with_the_root() -> None:
    """Equal roots of different sizes sign different texts."""
    assert batch.signed_text(2, bytes(32)) == b"syncropel-batch-v1\x002\x00" + bytes(32)
    assert batch.signed_text(3, bytes(32)) != batch.signed_text(2, bytes(32))


@pytest.mark.parametrize(
    "changes",
    [
        {"index": -1}, {"index": 2}, {"index": True}, {"index": 0.0}, {"index": None}, {"index": "0"},
        {"size": 1}, {"size": 0}, {"size": 65}, {"size": 2.0}, {"size": None}, {"size": 10**30},
        {"path": None}, {"path": []}, {"path": {}}, {"path": [None]}, {"path": ["AA=="]}, {"path": ["!" * 44]},
        {"path": [base64.b64encode(bytes(33)).decode()]}, {"path": [base64.b64encode(bytes(31)).decode()]},
        {"path": [base64.b64encode(bytes(32)).decode().rstrip("=")]}, {"extra": 1},
        {"index": 2, "path": []}, {"path": {base64.b64encode(bytes(32)).decode(): 1}}, {"path": [[]]}, {"path": "x"},
    ],
    ids=repr,
)  # fmt: skip
def test_a_batch_of_another_form_is_refused(changes: dict[str, object]) -> None:
    """Each member has one form; everything else is `bad-field`."""
    value = {**canon.decode(batch.tree(messages(2))[1][0].encoded()), **changes}
    with pytest.raises(batch.BatchError) as caught:
        batch.Batch.from_json(value)
    assert caught.value.code == "bad-field"


@pytest.mark.parametrize("size", [1, 65])
def test_a_place_in_a_tree_of_another_size_is_refused(size: int) -> None:
    """However well its path fits."""
    root, places = batch.tree(messages(size))
    assert batch.root_of(messages(size)[0], places[0]) == root
    value = {"index": 0, "size": size, "path": [base64.b64encode(each).decode() for each in places[0].path]}
    with pytest.raises(batch.BatchError):
        batch.Batch.from_json(value)


@pytest.mark.parametrize("value", [None, [], "x", 1, {}, {"index": 0, "size": 2}])
def test_what_is_no_object_of_three_is_refused(value: object) -> None:
    """A batch is an object with the members index, size, path."""
    with pytest.raises(batch.BatchError):
        batch.Batch.from_json(value)
