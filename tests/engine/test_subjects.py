"""Names in the engine: one token for any text, no two texts for one token."""

from hypothesis import given, settings
from hypothesis import strategies as st

from spl.engine import subjects

DID = "did:sync:instance:hub-0123456789abcdef01234567"


@settings(max_examples=50)
@given(st.text(max_size=300), st.text(max_size=300))
def test_a_token_has_no_separator_and_stands_for_one_text(one: str, other: str) -> None:
    made = subjects.token(one)
    assert 0 < len(made) <= subjects.TOKEN_BYTES
    assert not set(made) & set(".*> \t\r\n")
    assert (made == subjects.token(other)) is (one == other)


def test_what_is_named_how() -> None:
    assert subjects.token("org/a b") == "org=2Fa=20b"
    assert subjects.token("x" * 121).startswith("=h")
    assert subjects.stream_of(DID) == "SPL_hub_0123456789abcdef01234567"
    assert subjects.subject_of(DID, "org/x", "th*", "thread") == "spl.0123456789abcdef01234567.org=2Fx.th=2A"
    shard = subjects.subject_of(DID, "org/x", "th*", "shard").rpartition(".")[2]
    assert 0 <= int(shard) < subjects.SHARDS


def test_permissions_name_the_filter_of_each_namespace_and_nothing_wider() -> None:
    rules = subjects.permissions(DID, ("music", "art"), "pair_1")
    stream, tail = subjects.stream_of(DID), subjects.tail_of(DID)
    assert f"$JS.API.CONSUMER.CREATE.{stream}.pair_1.spl.{tail}.music.>" in rules["publish"]
    assert f"$JS.API.CONSUMER.CREATE.{stream}.pair_1-2.spl.{tail}.art.>" in rules["publish"]
    assert rules["subscribe"] == ["_INBOX_pair_1.>"]
    assert not [subject for subject in rules["publish"] if "MSG.GET" in subject or "PURGE" in subject]
