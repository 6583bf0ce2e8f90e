"""Who keeps a connection when they are few: a share per source, the oldest quiet one gives way, work is never cut."""

from dataclasses import dataclass
from math import inf

import pytest

from spl.core.errors import SplError
from spl.core.limits import MIB
from spl.net.address import Proxies
from spl.net.admission import (
    BODIES_PER_SOURCE_BYTES,
    PIECE_BYTES,
    UNREAD_BYTES,
    UNREAD_PER_SOURCE_BYTES,
    Admission,
    Seat,
)


@dataclass
class Sitting:
    """A connection that is quiet since `since`; inf while it works."""

    since: float
    seat: Seat
    gone: bool = False

    def quiet_since(self) -> float:
        return self.since

    def abort(self) -> None:
        self.gone = True


@dataclass
class Hall:
    """Seats under test; each newcomer is quiet since its number."""

    admission: Admission
    clock: float = 0.0

    def enter(self, address: str, since: float | None = None) -> Sitting | None:
        seat = self.admission.take(address)
        if seat is None:
            return None
        self.clock += 1
        seat.holder = sitting = Sitting(self.clock if since is None else since, seat)
        return sitting


def a_hall(count: int = 6, share: int = 3, *proxies: str) -> Hall:
    return Hall(Admission(count, share, Proxies(proxies)))


def test_beyond_its_share_a_source_replaces_its_own_oldest_quiet_connection() -> None:
    hall = a_hall()
    other = hall.enter("192.0.2.9")
    first, *rest = [hall.enter("192.0.2.1") for _ in range(4)]
    assert first is not None
    assert first.gone
    assert other is not None
    assert not other.gone
    assert not any(sitting is None or sitting.gone for sitting in rest)
    assert hall.admission.taken == 4


def test_work_is_not_cut_for_a_newcomer() -> None:
    hall = a_hall()
    working = [hall.enter("192.0.2.1", inf) for _ in range(3)]
    assert hall.enter("192.0.2.1") is None
    assert hall.enter("192.0.2.2") is not None
    assert not any(sitting is None or sitting.gone for sitting in working)


def test_when_all_seats_are_taken_the_source_with_most_gives_one_up() -> None:
    hall = a_hall()
    lone = hall.enter("192.0.2.9")
    most = [hall.enter("192.0.2.1") for _ in range(3)]
    few = [hall.enter("192.0.2.2") for _ in range(2)]
    assert hall.enter("192.0.2.3") is not None
    gone = [sitting for sitting in (lone, *most, *few) if sitting is not None and sitting.gone]
    assert gone == [most[0]]
    assert hall.admission.taken == 6


def test_if_the_source_with_most_only_works_another_quiet_one_goes() -> None:
    hall = a_hall(count=4)
    working = [hall.enter("192.0.2.1", inf) for _ in range(3)]
    quiet = hall.enter("192.0.2.2")
    assert hall.enter("192.0.2.3", inf) is not None
    assert quiet is not None
    assert quiet.gone
    assert hall.enter("192.0.2.4") is None, "all that is left works"
    assert not any(sitting is None or sitting.gone for sitting in working)


def test_the_addresses_of_one_ipv6_network_share() -> None:
    hall = a_hall()
    first, *_ = [hall.enter(f"2001:db8:1:2::{number}") for number in range(1, 5)]
    assert first is not None
    assert first.gone
    assert hall.enter("2001:db8:1:3::1") is not None


def test_a_trusted_proxy_has_no_share_but_counts() -> None:
    hall = a_hall(6, 3, "192.0.2.0/24")
    found = [hall.enter("192.0.2.1") for _ in range(6)]
    assert not any(sitting is None or sitting.gone for sitting in found)
    hall.enter("198.51.100.1")
    assert [sitting for sitting in found if sitting is not None and sitting.gone] == found[:1]


def test_a_seat_is_given_back_once() -> None:
    admission = Admission(2, 2, Proxies())
    seats = [admission.take("192.0.2.1"), admission.take("192.0.2.1")]
    assert admission.is_crowded
    for seat in seats:
        assert isinstance(seat, Seat)
        admission.leave(seat)
        admission.leave(seat)
    assert (admission.taken, admission.is_crowded) == (0, False)


def test_a_seat_that_nobody_sits_on_yet_is_not_given_away() -> None:
    admission = Admission(1, 1, Proxies())
    assert admission.take("192.0.2.1") is not None
    assert admission.take("192.0.2.2") is None


@pytest.mark.parametrize("count", [1, 7, 64])
def test_never_more_than_the_count_are_taken(count: int) -> None:
    hall = a_hall(count, 5)
    kept = [found for number in range(200) if (found := hall.enter(f"192.0.2.{number % 11}")) is not None]
    assert hall.admission.taken <= count
    assert sum(not sitting.gone for sitting in kept) == hall.admission.taken


def bodies(hall: Hall, address: str, sizes: list[int]) -> list[Sitting]:
    """Let connections of one address hold bodies that are still being sent."""
    made = []
    for size in sizes:
        seat = hall.admission.take(address)
        assert seat is not None
        hall.clock += 1
        seat.holder = sitting = Sitting(hall.clock, seat)
        hall.admission.hold(seat, size, address)
        made.append(sitting)
    return made


def test_a_source_holds_bodies_up_to_its_share_and_no_more() -> None:
    hall = a_hall(count=40, share=40)
    bodies(hall, "192.0.2.1", [4 * MIB - PIECE_BYTES] * 4)
    with pytest.raises(SplError, match="bodies of this address"):
        bodies(hall, "192.0.2.1", [1])
    bodies(hall, "192.0.2.2", [1])


def test_an_answered_body_makes_room() -> None:
    hall = a_hall(count=40, share=40)
    seat = hall.admission.take("192.0.2.1")
    for _ in range(3):
        hall.admission.hold(seat, BODIES_PER_SOURCE_BYTES - PIECE_BYTES, "192.0.2.1")
        hall.admission.release(seat)
    assert hall.admission._held == {}


def test_bodies_of_many_sources_end_the_oldest_of_the_source_with_most() -> None:
    hall = a_hall(count=40, share=40)
    few = bodies(hall, "192.0.2.9", [MIB])
    most = [bodies(hall, f"192.0.2.{number}", [BODIES_PER_SOURCE_BYTES // 2 - PIECE_BYTES] * 2) for number in range(3)]
    other = bodies(hall, "192.0.2.8", [BODIES_PER_SOURCE_BYTES - PIECE_BYTES])
    assert [sitting.gone for sitting in (*few, *other)] == [False, False]
    assert sum(sitting.gone for own in most for sitting in own) == 1
    assert most[0][0].gone


def test_chunks_of_one_byte_count_for_what_they_cost() -> None:
    hall = a_hall(count=40, share=40)
    seat = hall.admission.take("192.0.2.1")
    for _ in range(BODIES_PER_SOURCE_BYTES // (PIECE_BYTES + 1)):
        hall.admission.hold(seat, 1, "192.0.2.1")
    with pytest.raises(SplError, match="bodies of this address"):
        hall.admission.hold(seat, 100, "192.0.2.1")


def test_answers_that_nobody_takes_end_the_oldest_of_their_source() -> None:
    hall = a_hall(count=9, share=9)
    size, sat = UNREAD_PER_SOURCE_BYTES // 2, [hall.enter("192.0.2.1") for _ in range(5)]
    for each in sat[:4]:
        hall.admission.keep_unread(each.seat, size, "192.0.2.1")
    assert [each.gone for each in sat] == [True, True, False, False, False]
    hall.admission.taken_all(sat[2].seat)
    hall.admission.keep_unread(sat[4].seat, size, "192.0.2.1")
    assert not any(each.gone for each in sat[2:])


@pytest.mark.parametrize("proxies", [(), ("192.0.2.1",)])
def test_answers_that_nobody_takes_end_those_of_the_source_with_most(proxies: tuple[str, ...]) -> None:
    """A trusted proxy stands for many clients, so it is bounded by what all may hold."""
    hall, count, size = a_hall(40, 40, *proxies), 30, UNREAD_BYTES // 16
    most = [hall.enter("192.0.2.1") for _ in range(count)]
    few = [hall.enter(f"198.51.100.{number}") for number in range(4)]
    for each in [*few, *most]:
        hall.admission.keep_unread(each.seat, size, each.seat.source)
    assert not any(each.gone for each in few)
    left = [each.gone for each in most].count(False)
    assert left == (16 - len(few) if proxies else UNREAD_PER_SOURCE_BYTES // size)
    assert most[-1].gone is False


def test_a_body_ends_with_its_connection() -> None:
    hall = a_hall()
    seat = hall.admission.take("192.0.2.1")
    assert seat is not None
    hall.admission.hold(seat, MIB, "192.0.2.1")
    hall.admission.leave(seat)
    hall.admission.leave(seat)
    assert hall.admission._held == {}


def test_what_is_parsed_after_a_connection_gave_way_ends_with_its_transport() -> None:
    """Its last read is still being taken apart when it is aborted; what that holds must not stay counted for ever."""
    hall = a_hall()
    seat = hall.admission.take("192.0.2.1")
    assert seat is not None
    hall.admission.leave(seat)
    hall.admission.hold(seat, MIB, "192.0.2.1")
    hall.admission.leave(seat)  # the transport is closed
    assert hall.admission._held == {}
