"""A live peer that brings in without end: its day's bytes are the most that it gets, by every way, at nobody's cost."""

import itertools
import threading
from collections.abc import Iterator

import pytest

from tests.attack.adversary import messages
from tests.attack.adversary.puppet import NDJSON, Puppet
from tests.attack.adversary.server import Given
from tests.attack.adversary.text import canonical
from tests.attack.adversary.wire import Reply
from tests.attack.conftest import AUTO, Daemon, Puppets
from tests.attack.measure import Victim
from tests.waiting import eventually

DAY_BYTES = 200_000
PAGE = 20
"""Records of a page."""
SLACK = 60_000
"""What may come on top: one record of every way at once, lines of the daemon's own, and what runs off meanwhile."""
TRIES = 60
"""Each brings a page; all of them together are six times the budget."""
_NUMBERS = itertools.count()


@pytest.fixture
def tight(daemon: Daemon) -> Victim:
    """A daemon that takes 200 kB a day of each pair."""
    return daemon("tight", f"{AUTO}[limits]\nintake_day_bytes = {DAY_BYTES}\n")


def made(peer: Puppet, count: int = PAGE) -> list[dict[str, object]]:
    """Return sound records that nobody has seen."""
    numbers = itertools.islice(_NUMBERS, count)
    return [messages.record(peer.who, "th_more", f"{n} " + "x" * 400, clock=n) for n in numbers]


def pushed(peer: Puppet, victim: Victim, records: list[dict[str, object]]) -> Reply:
    """Push a page from wherever the victim stands and return the answer, whatever it is."""
    since = ""
    while True:
        peer.cursor = f"p{next(_NUMBERS)}"
        body = messages.push_body(records, since=since, cursor=peer.cursor)
        reply = peer.call("POST", "/v1/sync/records", body=body, media=NDJSON)
        if reply.code != "PUSH_POSITION":
            return reply
        since = reply.json["cursor"]


def page(records: list[dict[str, object]], cursor: str, *, more: bool) -> bytes:
    return canonical({
        "records": records, "ns": ["default"] * len(records), "next_cursor": cursor, "has_more": more, "peer_view": {},
    })  # fmt: skip


def event_of(envelope: dict[str, object]) -> bytes:
    """Return the event of a stream that brings a record."""
    data = canonical({**envelope, "ns": "default"})
    return b"id: s%d\nevent: record.created\ndata: %b\n\n" % (next(_NUMBERS), data)


def until_paused(peer: Puppet, victim: Victim) -> Reply:
    """Push pages until one is refused, and return that answer."""
    for _ in range(TRIES):
        reply = pushed(peer, victim, made(peer))
        if reply.status != 200:
            return reply
    raise AssertionError(f"{TRIES} pages of {PAGE} records were taken")


def test_pushes_stop_at_the_days_bytes_and_others_go_on(tight: Victim, puppet: Puppets) -> None:
    mallory, bob = puppet("mallory", tight).join(), puppet("bob", tight).join()
    before = tight.log_bytes
    reply = until_paused(mallory, tight)
    assert (reply.status, reply.code) == (429, "INTAKE_PAUSED")
    assert int(reply.headers["retry-after"]) > 0
    for _ in range(TRIES):
        assert pushed(mallory, tight, made(mallory)).status == 429
    assert tight.log_bytes - before < DAY_BYTES + SLACK
    assert tight.pair(mallory.pair_id)["intake"]["paused_until"]
    assert pushed(bob, tight, made(bob)).status == 200
    assert tight.pair(bob.pair_id)["intake"]["paused_until"] is None
    assert mallory.call("GET", "/v1/sync/changes?limit=1").status == 200, "what we show is no intake"


def test_pulled_pages_stop_at_the_days_bytes_and_nothing_is_lost(tight: Victim, puppet: Puppets) -> None:
    """A page that has always another one behind it; the operator's word lets the pull go on where it stopped."""
    peer = puppet("mallory", tight).join()
    before = tight.log_bytes
    peer.changes = Given(body=page(made(peer), "c1", more=True))

    def answer() -> Iterator[bytes]:
        yield page(made(peer), f"c{next(_NUMBERS)}", more=True)

    codes = set()
    for _ in range(TRIES):
        peer.changes = Given(body=next(answer()))
        codes.add(tight.api("POST", f"/v1/federation/pairs/{peer.pair_id}/sync", {}).json.get("code"))
    assert "INTAKE_PAUSED" in codes
    assert tight.log_bytes - before < DAY_BYTES + SLACK
    held = len(tight.records("th_more"))
    peer.changes = Given(body=page(made(peer), "last", more=False))
    tight.run("federation", "resume", peer.pair_id)
    eventually(lambda: len(tight.records("th_more")) == held + PAGE, "it is read at once, without a command")


@pytest.mark.parametrize("sound", [True, False], ids=["sound records", "malformed records"])
def test_a_followed_stream_stops_at_the_days_bytes(tight: Victim, puppet: Puppets, sound: bool) -> None:
    """Records, or refusals and positions of what is none, as fast as they go; the log of lines stays small as well."""
    peer = puppet("mallory", tight).join()
    before, lines, sent = tight.log_bytes, len(tight.log_text()), [0]

    def flood() -> Iterator[bytes]:
        while not peer.closing.is_set() and sent[0] < 20 * PAGE * TRIES:
            records = made(peer)
            if not sound:
                records = [{**each, "id": f"{next(_NUMBERS):064x}"} for each in records]
            for each in records:
                yield event_of(each)
            sent[0] += len(records)

    peer.events = flood()
    tight.api("POST", f"/v1/federation/pairs/{peer.pair_id}/mode", {"mode": "continuous"})
    eventually(lambda: tight.pair(peer.pair_id)["intake"]["paused_until"], "its intake is paused")
    eventually(lambda: tight.pair(peer.pair_id)["stream"]["state"] == "down", "its stream is ended")
    assert tight.log_bytes - before < DAY_BYTES + 2 * SLACK
    assert len(tight.log_text()) - lines < 20_000
    assert tight.is_ready()
    assert bool(tight.records("th_more")) is sound
    assert (tight.pair(peer.pair_id)["refused_records"] > 0) is not sound


def test_positions_alone_stop_at_the_days_bytes(tight: Victim, puppet: Puppets) -> None:
    peer = puppet("mallory", tight).join()
    before = tight.log_bytes
    for _ in range(1000):
        if pushed(peer, tight, []).status != 200:
            break
    assert pushed(peer, tight, []).code == "INTAKE_PAUSED"
    assert tight.log_bytes - before < DAY_BYTES + SLACK


def test_a_restart_multiplies_nothing(tight: Victim, puppet: Puppets) -> None:
    """Each process goes on with the sum of the last one."""
    peer = puppet("mallory", tight).join()
    until_paused(peer, tight)
    before = tight.log_bytes
    for _ in range(3):
        tight.again()
        until_paused(peer, tight)
    assert tight.log_bytes - before < DAY_BYTES // 24 + 40_000


def test_grants_without_end_count_too(tight: Victim, puppet: Puppets) -> None:
    """A grant that changes with each message is a record of ours with the whole message in it."""
    peer = puppet("mallory", tight).join()
    before, replies = tight.log_bytes, []
    for version in range(1, 31):
        grant = {"namespace": "default", "maps": ["default"] * 2, "level": f"L{version % 3}", "version": version}
        replies.append(peer.word("consent", "consent", grants=[grant], held={}, evidence="x" * 20_000))
    codes = [reply.code for reply in replies]
    assert codes[0] == "", replies[0]
    assert codes[-1] == "INTAKE_PAUSED", codes
    assert tight.log_bytes - before < DAY_BYTES + SLACK
    assert pushed(peer, tight, made(peer)).status == 429


def test_a_flood_of_one_peer_does_not_end_the_stream_of_another(tight: Victim, puppet: Puppets) -> None:
    mallory, bob = puppet("mallory", tight).join(), puppet("bob", tight).join()
    arrived = threading.Event()

    def events() -> Iterator[bytes]:
        arrived.wait()
        [each] = made(bob, 1)
        yield event_of(each)
        bob.closing.wait()

    bob.events = events()
    tight.api("POST", f"/v1/federation/pairs/{bob.pair_id}/mode", {"mode": "continuous"})
    until_paused(mallory, tight)
    held = len(tight.records("th_more"))
    arrived.set()
    eventually(lambda: len(tight.records("th_more")) == held + 1, "bob's record arrives")


# -- signed messages that change something each time

FLOOD = 60
FEW = FLOOD // 2
"""How many changes may come through: eight at once, and one in half a minute of a slow machine."""


def test_pauses_and_resumptions_without_end_are_few_records(alice: Victim, puppet: Puppets) -> None:
    peer = puppet("mallory", alice).join()
    for number in range(FLOOD):
        state = "active" if number % 2 else "paused"
        assert peer.word("pair-poll", "poll", state=state).status == 200, "a pair that answers no poll is lost"
    kinds = ("pair_pause.v1", "pair_resume.v1")
    assert 1 <= sum(len(alice.reserved("th_federation_pairs", kind)) for kind in kinds) < FEW
    assert 1 <= sum(alice.log_text().count(f"event={name} ") for name in ("pair.paused", "pair.resumed")) < FEW
    assert peer.word("notify-revoke", "notify-revoke", reason="over").status == 200
    assert alice.pair(peer.pair_id)["state"] == "revoked", "the end waits for no turn"


def test_whole_sets_of_grants_without_end_are_refused_with_a_time(alice: Victim, puppet: Puppets) -> None:
    """Sixty-four grants a message, each under the next version: beyond what a day may bring, come again later."""
    peer, replies = puppet("mallory", alice).join(), list[Reply]()
    for version in range(1, 41):
        grants = [
            {
                "namespace": f"n{each}",
                "maps": [f"n{each}", f"m{each}"],
                "level": f"L{version % 3 + 1}",
                "version": version,
            }
            for each in range(64)
        ]
        replies.append(peer.word("consent", "consent", grants=grants, held={}))
    assert replies[0].status == 200, replies[0]
    assert (replies[-1].status, replies[-1].code) == (429, "RATE_LIMITED")
    assert int(replies[-1].headers["retry-after"]) > 0
    taken = sum(reply.status == 200 for reply in replies)
    assert taken < 20
    assert alice.log_text().count("event=consent.received") <= taken


def test_renewal_and_use_in_turn_end(alice: Victim, puppet: Puppets) -> None:
    peer, replies = puppet("mallory", alice).join(), list[Reply]()
    for _ in range(20):
        reply = peer.renew()
        replies.append(reply)
        if reply.status == 200:
            peer.token = peer.opened(reply.json["message"]["token"])
        assert peer.call("GET", "/v1/sync/changes?limit=1").status == 200, "the last token works on"
    assert [reply.status for reply in replies[:2]] == [200, 200]
    assert (replies[-1].status, replies[-1].code) == (429, "RATE_LIMITED")
    assert len(alice.reserved("th_api_tokens", "token_mint.v1")) < 20
