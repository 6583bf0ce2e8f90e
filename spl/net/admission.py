"""Which connections a server keeps: a bound for all, a share per source address, and the oldest quiet one gives way.

Descriptors are few and anyone may connect, so under a bound alone one client can take all of them, stay silent, and
keep the others out until the idle timeout.  Three rules prevent that:

- A source (an IPv4 address, an IPv6 /64) holds at most `share` connections; one more replaces its own oldest quiet one.
- When all are taken, the source that holds the most gives up its oldest quiet one.  Sources that hold few keep theirs.
- A connection whose request is being answered is never closed for another one.  If none is quiet, the newcomer is
  refused.

Memory is shared out in the same way.  What arrived of a body counts until its answer.  A source that holds
BODIES_PER_SOURCE_BYTES is refused more, and when BODIES_BYTES are held, the body that has been arriving longest ends,
of the source with the most.  Without it, 64 bodies of 8 MiB, each sent but for its last bytes, held half a gibibyte.
An answer that its peer does not take counts too: beyond UNREAD_PER_SOURCE_BYTES of a source, or UNREAD_BYTES in all,
the one that has waited longest is cut, of that source or of the one with the most.

A connection is quiet while its peer owes it bytes: idle, or in the middle of a head or a body.  A trusted proxy stands
for many clients and has no share of its own.  Rejected: a rate of accepts per source, which punishes a peer that comes
back after an outage and does not bound what is held.  A choice costs 50 us at 1,024 connections, only when all are
taken.
"""

from collections.abc import Mapping
from math import inf
from typing import Final, Protocol

from ..core.errors import SplError
from ..core.limits import MIB
from .address import Proxies, source_of
from .sockets import FLOOR_BYTES_S

BODIES_BYTES: Final = 64 * MIB
BODIES_PER_SOURCE_BYTES: Final = 16 * MIB
"""Two bodies of the largest size, which lets a client send one while the other is worked on."""
BODIES_RETRY_S: Final = 1
UNREAD_BYTES: Final = 16 * MIB
UNREAD_PER_SOURCE_BYTES: Final = 4 * MIB
"""Four records of the largest size; longer answers are streamed, and of those a connection holds one piece."""
PIECE_BYTES: Final = 64
"""What a piece costs besides its content: a body may be sent in chunks of one byte."""


class Holder(Protocol):
    """The connection in a slot."""

    def quiet_since(self) -> float:
        """Return since when the peer owes bytes, in the loop's time; inf while its request is being answered."""

    def abort(self) -> None:
        """End the connection now."""


class Seat:
    """The place of one accepted socket, taken before its TLS handshake."""

    __slots__ = ("body_bytes", "gone_bytes", "holder", "source")

    def __init__(self, source: str) -> None:
        self.source = source
        self.body_bytes = 0
        """What arrived of a body and is not answered yet."""
        self.gone_bytes = 0
        """Of it, what is not held any more."""
        self.holder: Holder | None = None

    def quiet_since(self) -> float:
        """Return since when it is quiet; inf also before anything sits on it."""
        return inf if self.holder is None else self.holder.quiet_since()

    def moved_s(self, now_s: float) -> float:
        """Return when the body that arrives moved last; one slower than FLOOR_BYTES_S stays behind."""
        return min(now_s, self.quiet_since() + self.body_bytes / FLOOR_BYTES_S)


class Admission:
    """The seats of one server: `count` in all, `share` for each source that is no trusted proxy."""

    def __init__(self, count: int, share: int, proxies: Proxies) -> None:
        self.count, self.share, self.proxies = count, share, proxies
        self.taken = 0
        self._held: dict[str, int] = {}
        """Bytes of bodies by source."""
        self._seats: dict[str, dict[Seat, None]] = {}
        self._unread: dict[Seat, int] = {}
        """Bytes of whole answers that peers have not taken, in the order in which they began to wait."""

    @property
    def is_crowded(self) -> bool:
        """Whether more than half of the seats are taken, so that idle connections end sooner."""
        return self.taken * 2 > self.count

    def take(self, address: str) -> Seat | None:
        """Return a seat for a connection from this address; None if all are taken by connections at work."""
        source = source_of(address)
        own = self._seats.get(source, {})
        if len(own) >= self.share and not self.proxies.trusts(address):
            if not self._free(own):
                return None
        elif self.taken >= self.count and not self._free_any():
            return None
        seat = Seat(source)
        self._seats.setdefault(source, {})[seat] = None
        self.taken += 1
        return seat

    def leave(self, seat: Seat) -> None:
        """Give the seat back; again is harmless."""
        self.release(seat)  # also of one that left before: until its transport is closed, what was read is parsed on
        self.taken_all(seat)
        seat.holder = None  # each knows the other, and the collector of such cycles looks seldom
        own = self._seats.get(seat.source)
        if own is None or seat not in own:
            return
        del own[seat]
        self.taken -= 1
        if not own:
            del self._seats[seat.source]

    def hold(self, seat: Seat | None, size: int, address: str) -> None:
        """Count a piece of a body; raise SplError "overloaded" if its source, or all together, hold too much."""
        if seat is None:
            return
        size += PIECE_BYTES
        own = self._held.get(seat.source, 0) + size
        if own > BODIES_PER_SOURCE_BYTES and not self.proxies.trusts(address):
            raise SplError("overloaded", "other bodies of this address are being read", retry_after_s=BODIES_RETRY_S)
        while sum(self._held.values()) + size > BODIES_BYTES:
            if not self._end_body(seat):
                raise SplError("overloaded", "too many bodies are being read", retry_after_s=BODIES_RETRY_S)
        seat.body_bytes += size
        self._held[seat.source] = self._held.get(seat.source, 0) + size

    def let_go(self, seat: Seat | None, size: int) -> None:
        """Give back a part of a body that still arrives."""
        if seat is not None and size and seat.body_bytes:
            seat.gone_bytes += size
            self._free_bytes(seat.source, size)

    def release(self, seat: Seat | None) -> None:
        """Give back what the body of an answered request held."""
        if seat is None or not seat.body_bytes:
            return
        size = seat.body_bytes - seat.gone_bytes
        seat.body_bytes = seat.gone_bytes = 0
        self._free_bytes(seat.source, size)

    def keep_unread(self, seat: Seat | None, size: int, address: str) -> None:
        """Count an answer that its peer does not take for now; beyond the bounds those that have waited longest end."""
        if seat is None:
            return
        self._unread.pop(seat, None)
        own = {} if self.proxies.trusts(address) else self._unread_by().get(seat.source, {})
        while own and sum(own.values()) + size > UNREAD_PER_SOURCE_BYTES:
            own.pop(self._cut(own))
        while self._unread and sum(self._unread.values()) + size > UNREAD_BYTES:
            self._cut(max(self._unread_by().values(), key=lambda each: sum(each.values())))
        self._unread[seat] = size

    def taken_all(self, seat: Seat | None) -> None:
        """Record that a peer took its answer."""
        if seat is not None:
            self._unread.pop(seat, None)

    def _unread_by(self) -> dict[str, dict[Seat, int]]:
        """Return source -> its seats whose peers do not take their answer, the oldest first."""
        found: dict[str, dict[Seat, int]] = {}
        for seat, size in self._unread.items():
            found.setdefault(seat.source, {})[seat] = size
        return found

    def _cut(self, seats: Mapping[Seat, int]) -> Seat:
        """End the first of these connections, and return its seat."""
        oldest = next(iter(seats))
        holder = oldest.holder
        self.leave(oldest)
        if holder is not None:
            holder.abort()
        return oldest

    def _free_bytes(self, source: str, size: int) -> None:
        self._held[source] = self._held.get(source, 0) - size
        if not self._held[source]:
            del self._held[source]

    def _end_body(self, newest: Seat) -> bool:
        """End the body that has been arriving longest, of the source that holds most; return False if none arrives."""
        for source in sorted(self._held, key=self._held.__getitem__, reverse=True):
            own = self._seats.get(source, {})
            if self._free({seat: None for seat in own if seat.body_bytes > seat.gone_bytes and seat is not newest}):
                return True
        return False

    def _free_any(self) -> bool:
        if self._free(max(self._seats.values(), key=len)):
            return True
        return self._free({seat: None for own in self._seats.values() for seat in own})

    def _free(self, seats: dict[Seat, None]) -> bool:
        """End the connection that has been quiet longest; return False if none is quiet."""
        oldest = min(seats, key=Seat.quiet_since, default=None)
        holder = oldest.holder if oldest is not None else None
        if oldest is None or holder is None or oldest.quiet_since() == inf:
            return False
        self.leave(oldest)  # before the transport tells of its end, so that the newcomer finds the place
        holder.abort()
        return True
