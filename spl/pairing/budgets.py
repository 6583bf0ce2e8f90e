"""Message budgets: bounds on the size, nesting and rate of messages per source and per peer.

Three budgets, each of limits.handshakes_per_minute, so that no sender uses up what others need:

    garbage    per source   what fails before a signature held; while it is used up, no more of that source is parsed
    strangers  per source   signed messages of instances that no agreed pair is with
    peers      per peer     new messages of agreed pairs, counted once they are known to be the peer's and of now

A message of a peer that comes again, as from an eavesdropper, counts against the source that it came from.

A source is an IPv4 address or an IPv6 /64.  Behind a proxy or a NAT a peer shares it with strangers, so what names an
agreed pair is verified even while its source may send no more garbage.  That costs one parse, one signature and one
for each rotation of the peer's key, below a millisecond for the largest message of a peer that has rotated twice, and
takes knowledge of a pair's id.

Rejected: one budget per address before any signature.  Seventy bodies of garbage through the same proxy then refuse
a peer its renewal.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from ..core import canon
from ..core.backoff import Buckets
from ..core.errors import SplError
from ..core.limits import Limits
from ..core.pair.handshake import HandshakeError
from ..net.address import source_of

SOURCES_MAX: Final = 4096
"""Bounds memory, not senders: a sender with more addresses has more budgets.  The oldest source is forgotten first."""
LEVELS_MAX: Final = 8
"""How deep a message may nest.  Nested empty lists take 22 times their size in memory."""
LEVELS_EVIDENCE: Final = 24
"""The same for grants, which carry the peer's last statement as evidence, that again its own, and so on."""
MINUTE_S: Final = 60.0
COUNTED_MAX: Final = 16_384
"""Messages of peers that are recognised when they come again: more than a peer's budget lets it send in 5 minutes."""


class MessageBudgets:
    """The budgets of one kind of service; `steady_ms` reads the monotonic clock."""

    def __init__(self, limits: Limits, steady_ms: Callable[[], int]) -> None:
        self._limits, self._steady_ms = limits, steady_ms
        size = float(limits.handshakes_per_minute)
        self._garbage = Buckets(size, size / MINUTE_S, SOURCES_MAX)
        self._strangers = Buckets(size, size / MINUTE_S, SOURCES_MAX)
        self._peers = Buckets(size, size / MINUTE_S, limits.pairs_count)
        self._counted: OrderedDict[tuple[str, str], None] = OrderedDict()
        """(peer, nonce) of the messages counted last."""

    @contextmanager
    def unverified(self, address: str, *, agreed: bool = False) -> Iterator[None]:
        """Count a refusal raised inside as garbage of the address; with `agreed` the inside runs in any case.

        Raises HandshakeError "rate-limited" while the budget is used up.
        """
        source, now_s = source_of(address), self._now_s()
        if not agreed:
            _pass(self._garbage.wait_s(source, now_s))
        try:
            yield
        except SplError as exc:
            if exc.code != "rate-limited":  # it was counted by the budget that refused it
                self._garbage.take(source, now_s)
            raise

    def decoded(self, body: bytes, levels_max: int = LEVELS_MAX) -> Any:
        """Return the JSON of a message; raise HandshakeError "body-too-large", CanonError "bad-json"."""
        if len(body) > self._limits.handshake_bytes:
            raise HandshakeError("body-too-large", f"a message has at most {self._limits.handshake_bytes} bytes")
        return canon.decode(body, levels_max)

    def count_stranger(self, address: str, cost: float = 1.0) -> None:
        """Count a signed message of no agreed pair; raise HandshakeError "rate-limited"."""
        _pass(self._strangers.take(source_of(address), self._now_s(), cost))

    def count_peer(self, did: str, nonce: str, address: str, cost: float = 1.0) -> None:
        """Count a message that the peer (`did`) of an agreed pair signed, one that came before against its source.

        Raises HandshakeError "rate-limited".
        """
        if (did, nonce) in self._counted:
            self.count_stranger(address, cost)
            return
        _pass(self._peers.take(did, self._now_s(), cost))
        self._counted[did, nonce] = None
        if len(self._counted) > COUNTED_MAX:
            self._counted.popitem(last=False)

    def _now_s(self) -> float:
        return self._steady_ms() / 1000


def _pass(wait_s: float) -> None:
    if wait_s:
        raise HandshakeError("rate-limited", "too many messages in a short time", retry_after_s=int(wait_s) + 1)
