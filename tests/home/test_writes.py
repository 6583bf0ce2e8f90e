"""Items of a submission: what each takes in the log, whom it belongs to; the bodies of lines that are no records."""

from concurrent.futures import Future

import pytest

from spl.core import canon
from spl.core.keys import SecretKey
from spl.core.limits import Limits
from spl.core.record import levels, record
from spl.core.record.record import Envelope, Sig
from spl.home.views import THREAD_NAMESPACES
from spl.home.writes import (
    LINE_BYTES,
    Arrive,
    DayBytes,
    Emit,
    Item,
    Outcome,
    Own,
    Projected,
    Refuse,
    SavedPosition,
    principal_of,
    queued,
    size_of,
)

KEY = SecretKey(b"p" * 32)
PEER = "did:sync:instance:peer-" + "0" * 24
OWN = Own(THREAD_NAMESPACES, "kind", {"name": "music"})


def envelope() -> Envelope:
    value = {"act": "KNOW", "actor": PEER, "body": {"n": 1}, "thread": "th", "clock": 0}
    fields = record.check(value, Limits())
    id_, text = record.identify(fields, Limits())
    return record.seal(fields, id_, text, Sig(PEER, "zkey", bytes(64)))


def projection() -> levels.Projection:
    made = envelope()
    shown = levels.content(made.record, made.id, 1, "pair_1", b"s" * 32)
    return levels.parse(canon.decode(levels.project(shown, 1, "music", "pair_1", PEER, "zkey", KEY)), Limits())


ARRIVED, SHOWN = envelope(), projection()
ITEMS: list[tuple[Item, int, str]] = [
    (Emit({}, principal="token"), 0, "token"),
    (Emit({}, 70, "token"), 70, "token"),
    (Arrive(ARRIVED, "default", "pair_1"), len(ARRIVED.raw), "pair_1"),
    (Projected(SHOWN, "music", "pair_1"), len(SHOWN.raw), "pair_1"),
    (SavedPosition("pair_1", "a cursor", 2), 8, "pair_1"),
    (Refuse("pair_1", "f" * 64, "record-id"), 0, "pair_1"),
    (OWN, LINE_BYTES + len('{"name":"music"}'), ""),
    (DayBytes("pair_1", 7), 0, ""),
]


@pytest.mark.parametrize(("item", "more", "principal"), ITEMS)
def test_an_item_takes_a_line_and_its_texts_and_belongs_to_whoever_sent_it(
    item: Item, more: int, principal: str
) -> None:
    assert size_of(item) == LINE_BYTES + more
    assert principal_of([item]) == principal


def test_what_the_daemon_adds_to_the_records_of_a_pair_belongs_to_the_pair() -> None:
    assert principal_of([]) == ""
    for item, _, principal in ITEMS:
        assert principal_of([OWN, DayBytes("pair_2", 1), item]) == principal


def test_a_submission_has_the_size_of_its_items_and_their_principal() -> None:
    items, answer = [item for item, _, _ in ITEMS], Future[list[Outcome]]()
    work = queued(items, answer, print)
    assert (work.items, work.answer, work.post, work.principal) == (tuple(items), answer, print, "token")
    assert work.bytes == sum(LINE_BYTES + more for _, more, _ in ITEMS)


def test_positions_and_sums_of_a_day_say_what_they_count() -> None:
    assert SavedPosition("pair_1", "c", 2).body() == {"pair": "pair_1", "cursor": "c", "count": 2}
    for counted in (0, 5):
        body = {"pair": "pair_1", "cursor": "c", "count": 2, "day_bytes": counted}
        assert SavedPosition("pair_1", "c", 2, counted).body() == body
        assert DayBytes("pair_1", counted).body() == {"pair": "pair_1", "day_bytes": counted}
