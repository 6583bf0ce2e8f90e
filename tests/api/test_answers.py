"""The checks that every handler shares."""

from types import MappingProxyType

import pytest

from spl.api import answers
from spl.core.errors import SplError
from spl.net.routes import Request

NOTHING = MappingProxyType({})


def request(body: bytes) -> Request:
    return Request("POST", "/", NOTHING, NOTHING, body, NOTHING, "unix", True, "/", "http", "unix")


def test_members_are_known_and_of_their_type() -> None:
    known = {"a": str, "n": int}
    assert answers.members(request(b'{"a":"x","n":1}'), known) == {"a": "x", "n": 1}
    assert answers.members(request(b" "), known) == {}
    for body, code in (
        (b"[]", "bad-field"),
        (b'{"b":1}', "bad-field"),
        (b'{"a":1}', "bad-field"),
        (b'{"n":true}', "bad-field"),
        (b'{"a":"x","a":"y"}', "bad-json"),
        (b"{", "bad-json"),
    ):
        with pytest.raises(SplError) as caught:
            answers.members(request(body), known)
        assert caught.value.code == code


@pytest.mark.parametrize("text", ["", "0", "11", "+5", "1_0", "٣", "1" * 30])
def test_numbers_are_digits_within_bounds(text: str) -> None:
    with pytest.raises(SplError):
        answers.number({"n": text}, "n", 1, 1, 10)


def test_a_number_left_out_is_the_default() -> None:
    assert answers.number({}, "n", 7, 1, 10) == 7
    assert answers.number({"n": "10"}, "n", 7, 1, 10) == 10


@pytest.mark.parametrize("value", ["a", [1], [""], ["a" * 257], ["a"] * 65, None])
def test_lists_of_texts_are_bounded(value: object) -> None:
    with pytest.raises(SplError):
        answers.texts(value, "names")
    assert answers.texts(["a", "b"], "names") == ("a", "b")


def test_an_answer_is_written_whatever_a_peer_said() -> None:
    assert answers.json_response({"state": "\ud800"}).body == b'{"state":"\\ud800"}'
