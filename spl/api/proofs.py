"""Which proofs of possession count: each one once, whatever our clock does, and over restarts.

A proof is dated by its peer, and the nonces of those that counted are remembered until they are too old.  That holds
while our clock runs on.  From the start of a process, or from a moment at which the clock turned out to be set back, to
the next such moment is an era with a random name.  What an earlier era may have taken counts no more:

- A proof that names an era counts in that one only, and it was signed after the name was told.
- One that names none must be dated after all that earlier eras may have taken.  The refusal of another tells our time
  and the era, by which a peer signs again at once: so a clock that was wrong for a while shuts nobody out.

For the second rule a file bounds what this process takes, before it takes it: `<boot> <offset> <until> <before>`.
No proof without an era is dated after `until`, nor, within one boot of the machine, after its steady clock and the
offset, unless up to `before`, which an earlier boot may have taken; so only a clock that is set ahead, and each half
hour, cost a disk sync.  The next process begins after that bound, which
after a kill within one boot is the present, and after a crash of the machine at most an hour ahead.  If the file cannot
be written, proofs that name the era count all the same.
"""

import asyncio
import re
from array import array
from collections.abc import Container
from contextlib import suppress
from itertools import compress
from pathlib import Path
from typing import Any, Final

from ..core.errors import SplError
from ..core.identity import bearer
from ..core.identity.bearer import PROOF_AHEAD_MS, BearerError, Era
from ..core.value import dataclass, field
from ..home.disk import Disk
from ..home.home import Home, Machine
from ..sync.supervise import wait

USED_MIN: Final = 32
"""With so many proofs of a pair, those that are too old are looked for."""
NEAR_MS: Final = 2 * PROOF_AHEAD_MS
"""A peer that names no era signs by a date so little ahead, at a start, rather than wait; a start takes longer."""

_NAME: Final = "proofs"
_FORM: Final = re.compile(r"([!-~]{1,64}) (-?[0-9]{1,16}) ([0-9]{1,16}) ([0-9]{1,16})\Z", re.ASCII)
_UNTIL_MS: Final = 3_600_000
_LOOK_S: Final = 60.0
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class _Bound:
    """What the file says: no proof without an era was taken that is dated after this."""

    boot: str = ""
    offset_ms: int = 0
    until_ms: int = 0
    before_ms: int = 0


@dataclass(slots=True)
class _Used:
    """The recent proofs of one pair, 16 bytes each; those that were forgotten are dated at or before `floor_ms`."""

    nonces: "array[int]" = field(default_factory=lambda: array("Q"))
    """The fresh half of each, beside its date: to find one of 200 takes 3 us, and a table of them 20 KiB."""
    dates_ms: "array[int]" = field(default_factory=lambda: array("q"))
    floor_ms: int = 0
    look_at: int = USED_MIN

    def forget(self, until_ms: int) -> None:
        """Forget those dated up to `until_ms`, which stay refused."""
        self.floor_ms = max([self.floor_ms, *(at_ms for at_ms in self.dates_ms if at_ms <= until_ms)])
        kept = [at_ms > until_ms for at_ms in self.dates_ms]
        self.nonces, self.dates_ms = array("Q", compress(self.nonces, kept)), array("q", compress(self.dates_ms, kept))
        self.look_at = USED_MIN + len(self.nonces) * 5 // 4


class Proofs:
    """Judges proofs by the memory of this era.  Used on the event loop only, but for `extend`."""

    def __init__(self, home: Home, machine: Machine) -> None:
        """Takes a disk sync."""
        self._vault, self._limits, self._random_bytes = home.vault, home.config.limits, machine.random_bytes
        self._now_ms, self._steady_ms = machine.now_ms, machine.steady_ms
        self._age_ms = round(self._limits.proof_age_s * 1000)
        self._boot = _boot_of(home.disk)
        self._bound = _bound_in(self._vault.get(_NAME) or "", self._boot)
        self._newest_ms = self._swept_ms = self._now_ms()
        taken_ms = self._steady_ms() + self._bound.offset_ms if self._bound.boot else self._bound.until_ms
        self._before_ms = max(self._newest_ms + PROOF_AHEAD_MS - 1, taken_ms, self._bound.before_ms)
        self._era = ""
        self._used: dict[str, _Used] = {}
        self._begin()
        self.extend()

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the bound ahead of our clock until `stop`, and then leave one that the next start is not behind."""
        while not stop.is_set():
            if self._lacks():
                await asyncio.to_thread(self.extend)
            await wait(stop, _LOOK_S)
        self._keep(self._bound.offset_ms, max(self._until_ms(), self._before_ms))

    def extend(self) -> None:
        """Write a bound that covers the next hour, unless the present one does for half of it; takes a disk sync."""
        if self._lacks():
            offset_ms = -self._steady_ms() + self._now_ms() + PROOF_AHEAD_MS + 1
            until_ms = max(self._bound.until_ms, self._now_ms() + _UNTIL_MS, self._before_ms)
            self._keep(max(self._bound.offset_ms, offset_ms), until_ms)

    def check(self, pair_id: str, pairs: Container[str], header: str, public: bytes, **request: Any) -> str:
        """Return the nonce of a pair's proof that holds for exactly this request, and counts now for the only time.

        `pairs` are those that are remembered; what a request is, `bearer.check_proof` says.  Raises BearerError.
        """
        now_ms = self._at_ms()
        if len(self._used) > self._limits.pairs_count:
            self._used = {key: used for key, used in self._used.items() if key in pairs}
        used = self._used.setdefault(pair_id, _Used())
        nonce, issued_at_ms = bearer.check_proof(
            header, public, **request, limits=self._limits, since_ms=used.floor_ms + 1,
            now_ms=max(now_ms, used.floor_ms + 1, self._before_ms + 1 if self._before_ms - now_ms < NEAR_MS else 0),
            era=Era(self._era, self._before_ms, self._until_ms()),
        )  # fmt: skip
        self._use_up(used, int(nonce[-16:], 16), issued_at_ms)
        return nonce

    def _use_up(self, used: _Used, fresh: int, issued_at_ms: int) -> None:
        """Remember a nonce; refuse one seen before.

        Bounded per pair, so no peer crowds out another.  When full, the older half goes and everything issued up to
        its newest is refused from then on: no proof counts twice, and a peer whose clock runs on loses nothing.
        """
        if fresh in used.nonces:
            raise BearerError("auth-invalid", "the proof of possession was used before", reason="proof-replayed")
        used.nonces.append(fresh)
        used.dates_ms.append(issued_at_ms)
        if len(used.nonces) >= used.look_at:
            used.forget(self._newest_ms - self._age_ms - 1)
        if len(used.nonces) > self._limits.proofs_per_pair:
            used.forget(sorted(used.dates_ms)[len(used.dates_ms) // 2 - 1])

    def _at_ms(self) -> int:
        """Return our time for proofs, which within an era never goes back: for a small step, it waits."""
        now_ms = self._now_ms()
        if now_ms < self._newest_ms - self._age_ms // 2:
            self._before_ms = max(self._newest_ms + PROOF_AHEAD_MS, self._before_ms + PROOF_AHEAD_MS + 1)
            self._newest_ms = now_ms
            self._begin()
        if now_ms >= self._swept_ms + _UNTIL_MS:
            self._swept_ms = now_ms
            for used in self._used.values():  # also those of pairs that send none
                used.forget(now_ms - self._age_ms - 1)
        self._newest_ms = max(self._newest_ms, now_ms)
        return self._newest_ms

    def _begin(self) -> None:
        """Begin an era."""
        self._era = self._random_bytes(bearer.ERA_CHARS // 2).hex()
        self._used = {}
        self._swept_ms = self._newest_ms

    def _until_ms(self) -> int:
        """Return up to which date the file lets proofs count that name no era.

        Some are dated a little after the start, by the time that they were told; the next start is later than that.
        """
        if not self._boot:
            return self._bound.until_ms
        steady_ms = max(self._steady_ms() + self._bound.offset_ms, self._bound.before_ms + PROOF_AHEAD_MS + 1)
        return min(steady_ms, self._bound.until_ms)

    def _lacks(self) -> bool:
        """Return whether a proof of this moment is not covered, or soon none will be."""
        now_ms = self._now_ms()
        return self._until_ms() < now_ms + PROOF_AHEAD_MS or self._bound.until_ms < now_ms + _UNTIL_MS // 2

    def _keep(self, offset_ms: int, until_ms: int) -> None:
        """Write a bound; one that the disk does not take does not count."""
        bound = _Bound(self._boot, offset_ms, until_ms, self._before_ms)
        with suppress(SplError):
            self._vault.put(_NAME, f"{bound.boot or '-'} {bound.offset_ms} {bound.until_ms} {bound.before_ms}")
            self._bound = bound


def _boot_of(disk: Disk) -> str:
    """Return which boot of the machine this is, "" where that is not known."""
    try:
        return (disk.read(_BOOT, 64) or b"").decode("ascii", "replace").strip()
    except OSError:
        return ""


def _bound_in(text: str, boot: str) -> _Bound:
    """Return what the file says; of another boot only how far it went."""
    found = _FORM.match(text)
    if found is None:
        return _Bound()
    if boot and found[1] == boot:
        return _Bound(boot, int(found[2]), int(found[3]), int(found[4]))
    return _Bound("", 0, int(found[3]))
