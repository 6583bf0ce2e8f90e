"""Hash levels and projections: the published values, what each level shows, and nothing forged passes."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from syncropel.hashing import hash_levels as sdk_hash_levels

from spl.core import canon
from spl.core.errors import SplError
from spl.core.identity.did import did_of, multibase
from spl.core.keys import SecretKey, b64
from spl.core.limits import Limits
from spl.core.record import levels, record
from spl.core.record.levels import Projection
from tests.core.record.test_record import RECORDS, TEXT, VALUES, a_record, code_of

VECTORS = json.loads((Path(__file__).parent.parent.parent / "vectors/records.json").read_text())["hash_levels"]
LIMITS = Limits()
KEY, OTHER = SecretKey(bytes(range(32))), SecretKey(b"\x07" * 32)
DID = did_of("alice", KEY.public)
PAIR, SECRET = "pair_00000001", b"s" * 32
PARENTS = sorted(["a" * 64, "b" * 64])
LEVELS = (1, 2, 3)


def made(value: dict[str, Any], level: int, *, pair: str = PAIR, ns: str = "music", key: SecretKey = KEY) -> bytes:
    """Return the projection of a record, signed."""
    checked = record.check(value, LIMITS)
    shown = levels.content(checked, record.record_id(checked), level, pair, SECRET)
    return levels.project(shown, level, ns, pair, DID, multibase(KEY.public), key)


def parsed(raw: bytes) -> Projection:
    return levels.parse(json.loads(raw), LIMITS)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector["act"]))
def test_the_hashes_are_those_of_the_original_system(vector: dict[str, Any]) -> None:
    found = levels.hashes(vector["act"], vector["body"])
    assert found == (vector["l0"], vector["l1"], vector["l2"], vector["l3"])


SPECIAL = st.dictionaries(
    st.sampled_from(["operation", "input_shape", "output_shape", "domain", "namespace", "params", "op", "in"]), VALUES
)


@given(st.sampled_from(sorted(record.ACTS)), st.dictionaries(TEXT, VALUES, max_size=3), SPECIAL)
def test_the_hashes_agree_with_the_public_sdk(act: str, body: dict[str, Any], special: dict[str, Any]) -> None:
    whole = {**body, **special}
    sdk = sdk_hash_levels(act, whole)
    assert levels.hashes(act, whole) == (sdk.l0, sdk.l1, sdk.l2, sdk.l3)


@pytest.mark.parametrize("level", LEVELS)
def test_each_level_shows_what_it_keeps_and_nothing_else(level: int) -> None:
    value = a_record(body={"secret": "x", "operation": "sell", "domain": "code", "namespace": "m"}, parents=PARENTS)
    text = made(value, level)
    shown, hashes = parsed(text), levels.hashes("KNOW", value["body"])
    named = (shown.id, shown.record["parents"]) == (record.record_id(record.check(value, LIMITS)), PARENTS)
    assert named is (level == 1)
    assert shown.record["body"] == {
        "redacted": True, "level": f"L{level}", "hashes": {f"L{n}": hashes[n] for n in range(level, 4)},
    }  # fmt: skip
    kept = {"body", "clock", "data_type", "parents", "thread"} | ({"act"} if level < 3 else set())
    assert shown.record.keys() == kept | ({"actor"} if level == 1 else set())
    assert (shown.level, shown.ns, shown.by) == (level, "music", DID)
    hidden = [b"secret", b"sell", b"code", b"judged_by", hashes[0].encode()]
    if level > 1:
        hidden += [
            b"did:sync:user:a",
            record.record_id(record.check(value, LIMITS)).encode(),
            *map(str.encode, PARENTS),
        ]
        hidden += [hashes[1].encode()]
    if level > 2:
        hidden += [b"KNOW", hashes[2].encode()]
    assert not [word for word in hidden if word in text]


def test_pseudonyms_tell_nothing_without_the_secret_and_differ_from_pair_to_pair() -> None:
    child = a_record(parents=["a" * 64])
    here, there = parsed(made(child, 2)), parsed(made(child, 2, pair="pair_00000002"))
    assert here.id != there.id
    assert here.record["parents"] == [levels.pseudonym(SECRET, PAIR, "a" * 64)] != there.record["parents"]
    assert levels.pseudonym(b"t" * 32, PAIR, "a" * 64) != here.record["parents"][0]
    assert parsed(made(child, 3)).id == here.id, "one record has one name at both levels"


@given(RECORDS.filter(lambda value: value["thread"].isprintable() and value["thread"]), st.sampled_from(LEVELS))
def test_a_projection_is_the_same_bytes_on_both_sides(value: dict[str, Any], level: int) -> None:
    raw = made({**value, "actor": "did:sync:user:a"}, level)
    found = parsed(raw)
    assert found.raw == raw == canon.encode(json.loads(raw))
    assert levels.verify(found, PAIR, KEY.public)
    assert levels.is_projection(json.loads(raw))
    with pytest.raises(SplError):
        record.parse(raw, LIMITS)


def test_no_other_key_pair_level_namespace_or_content_verifies() -> None:
    value = a_record(parents=PARENTS)
    found = parsed(made(value, 1))
    assert not levels.verify(found, "pair_00000002", KEY.public)
    assert not levels.verify(found, PAIR, OTHER.public)
    assert not levels.verify(parsed(made(value, 1, key=OTHER)), PAIR, KEY.public)
    whole = json.loads(made(value, 1))
    for path, put in (
        (("projection", "ns"), "other"), (("id",), "c" * 64), (("record", "clock"), 1),
        (("record", "actor"), "did:x:y"),
        (("record", "body", "hashes", "L1"), "0" * 64), (("record", "parents"), []), (("record", "thread"), "th_b"),
    ):  # fmt: skip
        changed = copy.deepcopy(whole)
        place = changed
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = put
        assert not levels.verify(levels.parse(changed, LIMITS), PAIR, KEY.public), path


def test_a_level_cannot_pass_for_another() -> None:
    for level, other in ((1, 2), (2, 1), (2, 3), (3, 2)):
        whole = json.loads(made(a_record(), level))
        whole["projection"]["level"] = f"L{other}"
        with pytest.raises(SplError) as caught:
            levels.parse(whole, LIMITS)
        assert code_of(caught) == "bad-field"


WRONG: tuple[tuple[tuple[str, ...], object], ...] = (
    ((), 7), ((), []), (("id",), "short"), (("id",), 7), (("record",), []), (("projection",), None),
    (("projection", "extra"), "x"), (("projection", "by"), ""), (("projection", "by"), 7), (("projection", "key"), ""),
    (("projection", "key"), "k" * 129), (("projection", "level"), "L0"), (("projection", "level"), "L4"),
    (("projection", "value"), "!"), (("projection", "value"), b64(b"short")), (("projection", "value"), b64(bytes(65))),
    (("record", "extra"), 1), (("record", "judged_by"), None), (("record", "clock"), -1), (("record", "clock"), 1.5),
    (("record", "act"), "SING"), (("record", "parents"), ["x"]), (("record", "thread"), ""), (("record", "body"), {}),
    (("record", "body", "redacted"), 1), (("record", "body", "level"), "L2"), (("record", "body", "text"), "x"),
    (("record", "body", "hashes"), {"L1": "0" * 64}), (("record", "body", "hashes", "L0"), "0" * 64),
    (("record", "body"), 7), (("record", "body"), []), (("record", "body", "hashes"), 7), (("projection",), []),
    (("record", "body", "hashes"), []), (("projection", "by"), "k" * 257), (("projection", "ns"), 7),
    (("projection", "value"), 7), (("projection", "level"), ["L1"]),
    (("record", "body", "hashes", "L2"), "0" * 63), (("record", "data_type"), "NONE"),
)  # fmt: skip


@pytest.mark.parametrize(("path", "put"), WRONG, ids=lambda item: str(item)[:40])
def test_what_has_another_form_is_refused_with_a_code(path: tuple[str, ...], put: object) -> None:
    whole = json.loads(made(a_record(), 1))
    place = whole
    for name in path[:-1]:
        place = place[name]
    if path:
        place[path[-1]] = put
    with pytest.raises(SplError) as caught:
        levels.parse(whole if path else put, LIMITS)
    assert code_of(caught) == "bad-field"


def test_a_huge_projection_is_refused() -> None:
    raw = made(a_record(thread="t" * 200), 1)
    with pytest.raises(SplError) as caught:
        levels.parse(json.loads(raw), Limits(record_bytes=len(raw) - 1))
    assert code_of(caught) == "record-too-large"
    assert levels.parse(json.loads(raw), Limits(record_bytes=len(raw))).raw == raw


@pytest.mark.parametrize(("name", "chars"), [("by", 1), ("by", 256), ("key", 1), ("key", 128)])
def test_names_of_signers_and_keys_may_have_the_length_allowed(name: str, chars: int) -> None:
    whole = json.loads(made(a_record(), 1))
    whole["projection"][name] = "k" * chars
    assert getattr(levels.parse(whole, LIMITS), name) == "k" * chars


@pytest.mark.parametrize("level", LEVELS)
def test_the_size_of_a_projection_is_bounded_by_what_it_shows(level: int) -> None:
    parents = [f"{n:064x}" for n in range(50)]
    value = record.check(a_record(thread="t" * 256, body={"text": "x" * 10_000}, parents=parents), LIMITS)
    raw = made(value, level)
    assert len(raw) <= levels.shown_bytes(value, level) < len(raw) + levels.REST_BYTES


def test_what_claims_to_be_a_projection_is_told_by_its_member() -> None:
    assert levels.is_projection({"projection": None})
    assert not any(map(levels.is_projection, ({}, ["projection"], "projection", None, {"record": {}})))


@given(st.recursive(VALUES, lambda inner: st.fixed_dictionaries({"id": inner, "record": inner, "projection": inner})))
def test_no_value_makes_the_parser_raise_anything_else(value: Any) -> None:
    with pytest.raises(SplError):
        levels.parse(value, LIMITS)


def test_levels_have_names() -> None:
    assert [levels.level_of(name) for name in levels.NAMES] == [0, 1, 2, 3]
    for text in ("l1", "L4", "", 1, None, ["L1"]):
        with pytest.raises(SplError) as caught:
            levels.level_of(text)
        assert code_of(caught) == "bad-field"
