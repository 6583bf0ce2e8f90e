"""Hubs: what two laptops share with a third instance, what of it reaches the other, and loops that repeat nothing."""

from itertools import combinations

import pytest

from tests.e2e.conftest import AUTO, Make
from tests.e2e.harness import Instance
from tests.waiting import eventually

Star = tuple[Instance, Instance, Instance]


def lines(instance: Instance) -> int:
    """Return how many records it stores, those of its own threads included."""
    count: int = instance.data("store", "stats")["records_count"]
    return count


def live(pair_id: str, *instances: Instance) -> None:
    """Make the pair continuous on both sides, its streams open."""
    for instance in instances:
        instance.run("federation", "set-mode", pair_id, "continuous")

    def is_open(instance: Instance) -> bool:
        stream = instance.pair(pair_id)["stream"]
        return bool(stream) and stream["state"] == "open"

    eventually(lambda: all(map(is_open, instances)), f"the streams of {pair_id} are open")


def ids_of(instance: Instance, thread: str) -> list[str]:
    """Return the ids of a thread, ascending: a record that stood there twice would show."""
    return sorted(record["id"] for record in instance.records(thread))


@pytest.fixture
def star(make: Make) -> Star:
    """A hub that approves by itself, and two laptops that know only the hub."""
    hub = make("hub", AUTO).start()
    ann, ben = make("ann").start(), make("ben").start()
    for laptop in (ann, ben):
        laptop.paired(hub.url)
    return hub, ann, ben


def pair_with(hub: Instance, laptop: Instance) -> str:
    """Return the id of the hub's pair with a laptop."""
    return str(next(pair["pair_id"] for pair in hub.pairs("active") if pair["peer_did"] == laptop.did))


def test_a_record_reaches_the_third_through_the_hub_and_its_signer_stays_known(star: Star) -> None:
    """ben learns ann's key chain from the hub, and shows ann's word as ann's; nothing comes back to ann."""
    hub, ann, ben = star
    for laptop in (ann, ben):
        live(pair_with(hub, laptop), hub, laptop)
    sent = ann.emit("th_news", 5)
    back = ben.emit("th_back", 3)
    eventually(lambda: ids_of(ben, "th_news") == sorted(sent), "ann's records at ben")
    eventually(lambda: ids_of(ann, "th_back") == sorted(back), "ben's records at ann")
    assert {record["vouched_by"] for record in ben.records("th_news")} == {ann.did}
    for one in star:
        assert ids_of(one, "th_news") == sorted(sent)
        assert ids_of(one, "th_back") == sorted(back)
        assert not any(pair["refused_records"] for pair in map(one.pair, [p["pair_id"] for p in one.pairs()]))
    before = [lines(one) for one in star]
    for one in (*star, *star):
        one.run("sync")
    assert [lines(one) for one in star] == before, "nothing is stored twice, and nothing echoes"
    rotated = ann.data("identity", "rotate")
    assert rotated["rotations"] == 1
    later = ann.emit("th_news", 2, later=True)
    eventually(lambda: set(ids_of(ben, "th_news")) == {*sent, *later}, "records under ann's new key")


def test_a_hub_that_does_not_relay_gives_its_own_records_only(star: Star) -> None:
    """It takes effect at once, on the pair it is set for, and lifting it brings what was held back."""
    hub, ann, ben = star
    to_ben = pair_with(hub, ben)
    live(to_ben, hub, ben)
    hub.run("federation", "set-relay", to_ben, "off")
    hidden = ann.emit("th_news", 4)
    hub.run("sync")
    own = hub.emit("th_hub", 2)
    eventually(lambda: ids_of(ben, "th_hub") == sorted(own), "the hub's own records at ben")
    ben.run("sync")
    assert ids_of(hub, "th_news") == sorted(hidden)
    assert ben.records("th_news") == []
    eventually(lambda: hub.pair(to_ben)["outbound"]["lag_records"] == 0, "what is held back is not lagged behind")
    hub.run("federation", "set-relay", to_ben, "on")
    eventually(lambda: ids_of(ben, "th_news") == sorted(hidden), "what was held back")


def test_a_triangle_stores_each_record_once(make: Make) -> None:
    """Each record comes to each of the three by two ways, in both directions, and ends."""
    corners = [make(name, AUTO).start() for name in ("ann", "ben", "cat")]
    for one, other in combinations(corners, 2):
        live(one.paired(other.url), one, other)
    sent = [corner.emit(f"th_{corner.name}", 10) for corner in corners]
    for at in corners:
        for corner, ids in zip(corners, sent, strict=True):
            eventually(lambda at=at, c=corner, ids=ids: ids_of(at, f"th_{c.name}") == sorted(ids), f"all at {at.name}")
    before = [lines(corner) for corner in corners]
    for corner in (*corners, *corners):
        corner.run("sync")
    assert [lines(corner) for corner in corners] == before
    holdings = [corner.holding() for corner in corners]
    assert holdings[0] == holdings[1] == holdings[2]
    for corner in corners:
        assert all(pair["refused_records"] == 0 for pair in map(corner.pair, [p["pair_id"] for p in corner.pairs()]))


def test_two_laptops_of_one_person_write_offline_at_equal_clocks_and_end_with_the_same(star: Star) -> None:
    """Both gave the clocks 0 to 4 of one actor and thread to other content; the hub was away meanwhile."""
    hub, ann, ben = star
    hub.stop()
    actor = ("--thread", "th_notes", "--actor", "did:sync:user:pat")
    written = [laptop.data("know", f"{laptop.name} {n}", *actor) for laptop in (ann, ben) for n in range(5)]
    assert [record["clock"] for record in written] == [*range(5), *range(5)]
    hub.start()
    for instance in (hub, ann, ben, hub):
        instance.run("sync")
    ids = sorted(record["id"] for record in written)
    for instance in star:
        assert ids_of(instance, "th_notes") == ids
    # The next free clock is one's own, whatever the other gave.
    assert [laptop.data("know", "next", *actor)["clock"] for laptop in (ann, ben)] == [5, 5]


def test_two_laptops_offline_and_back_are_proved_equal_on_all_three(star: Star) -> None:
    """Each laptop writes while it is alone, the hub too; when they are back, `verify` says equal, whoever asks."""
    hub, ann, ben = star
    pairs = {laptop.name: pair_with(hub, laptop) for laptop in (ann, ben)}
    hub.stop()
    for laptop in (ann, ben):
        laptop.emit("th_trip", 20, by=laptop.name)
        laptop.run("sync", pairs[laptop.name], code=9)
    ben.stop()
    hub.start()
    hub.emit("th_trip", 20, by="hub")
    ann.run("sync", pairs["ann"])
    hub.run("sync", pairs["ann"])
    ben.start()
    # Twice around: what one brings, the hub has for the other in the next round.
    for _ in range(2):
        for one in (hub, ann, ben):
            one.run("sync")
    for asker, pair_id in ((ann, pairs["ann"]), (hub, pairs["ann"]), (hub, pairs["ben"]), (ben, pairs["ben"])):
        assert asker.data("federation", "verify", pair_id)["equal"], asker.name
    assert ann.holding() == ben.holding() == hub.holding()
    assert len(ids_of(ann, "th_trip")) == 60


def test_revoking_names_the_hub_and_blocking_closes_that_way_too(star: Star) -> None:
    """ann and ben are a pair of their own as well; what ben signs still comes through the hub until it is blocked."""
    hub, ann, ben = star
    ben.configure(AUTO).stop()
    own = ann.paired(ben.start().url)
    told = ann.run("federation", "revoke", own)
    assert f"hub ({pair_with(hub, ann)})" in told.err
    through = ben.emit("th_ben", 1)
    for instance in (hub, ann):
        instance.run("sync")
    assert ids_of(ann, "th_ben") == through
    ann.run("federation", "revoke", own, "--block")
    blocked, wanted = ben.emit("th_more", 2), hub.emit("th_hub", 1)
    for instance in (hub, ann):
        instance.run("sync")
    assert ids_of(hub, "th_more") == sorted(blocked)
    assert (ann.records("th_more"), ids_of(ann, "th_hub")) == ([], wanted)
    assert ids_of(ann, "th_ben") == through, "what came before stays"


def test_a_claim_goes_no_further_than_to_whom_it_was_made(make: Make) -> None:
    """ann shows hub her music at L1, hub shares projects in full with ben: ben gets hub's records there, and no claim.

    When ann and hub both grant it in full, the records take the place of the claims, and ben gets them too.
    """
    hub, ann, ben = make("hub", AUTO).start(), make("ann").start(), make("ben").start()
    for instance in (hub, ben):
        instance.run("namespace", "create", "projects", "--shared")
    ann.run("namespace", "create", "music")
    to_hub = ann.paired(hub.url)
    *_, asked = ben.steps(hub.url, wait_ms=0)
    to_ben = str(asked["pair_id"])
    hub.run("aitl", "approve", to_ben)
    eventually(lambda: ben.pair(to_ben)["state"] == "active", "the pair of ben and hub")
    ann.run("federation", "grant", hub.did, "--namespace", "music", "--maps", "music,projects", "--hash-level", "L1")
    hidden = ann.emit("th_songs", 3, namespace="music")
    own = hub.emit("th_plans", 2, namespace="projects")

    def claims(instance: Instance, pair_id: str) -> list[str]:
        return sorted(claim["id"] for claim in instance.data("federation", "projections", pair_id))

    def synced() -> None:
        for instance in (hub, ben):
            instance.run("sync")

    eventually(lambda: (synced(), claims(hub, to_hub) == sorted(hidden))[1], "ann's claims at the hub")
    assert hub.records("th_songs") == []
    assert "claimed by ann  L1     projects" in hub.run("federation", "projections", to_hub).out
    assert ids_of(ben, "th_plans") == sorted(own)
    assert (claims(ben, to_ben), ben.records("th_songs")) == ([], [])
    ann.run("federation", "grant", hub.did, "--namespace", "music", "--maps", "music,projects", "--hash-level", "L0")
    hub.run("federation", "grant", ann.did, "--namespace", "projects", "--maps", "projects,music", "--hash-level", "L0")
    eventually(lambda: (synced(), ids_of(hub, "th_songs") == sorted(hidden))[1], "ann's records at the hub")
    eventually(lambda: (synced(), ids_of(ben, "th_songs") == sorted(hidden))[1], "and through it at ben")
    assert claims(hub, to_hub) == []
    # Those records name a namespace that ben does not have, and ben's backup can be restored nevertheless.
    saved = ben.home.parent / "ben.snap.jsonl"
    saved.write_text(ben.run("thread", "snapshot", "--all").out)
    plan = ben.data("thread", "restore", str(saved))
    assert (plan["refused"], plan["new"], plan["known"]) == (0, 0, plan["records"])
    assert all(pair["refused_records"] == 0 for pair in map(hub.pair, (to_hub, to_ben)))
