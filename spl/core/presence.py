"""When a peer was heard, in each direction, what its silence shows, and when it is asked; seconds of any steady clock.

A proxy or a firewall may break one direction alone: what the peer asks of us shows nothing of the way to it, and its
answers show nothing of its way to us.  So each side asks by itself, and three times are kept apart: when the peer asked
us, when it answered us, and since when this process waits for it.  In its view of the pair each side says how often it
asks at least (`asks_ms`) and what stops its requests (`unreached`), so that the side whose requests work says it too.

A proxy may also pass questions and no reads.  So a question that is answered ends no failure of reading: that takes a
page, or an event of a stream.  How long reads alone have failed is told as well (`unread_ms`).
"""

from collections.abc import Mapping
from math import inf
from typing import Any, Final

from . import canon
from .backoff import Backoff
from .value import Json, dataclass

ASK_S: Final = 18.0
"""So long without an answer, spread by a tenth, and a peer is asked: later than the heartbeat of a stream or a push."""
AWAKE_S: Final = 1.0
"""So long after a daemon began to wait for a peer, as it was started or woke, it asks one that has not answered."""
ANSWER_S: Final = 8.0
"""A peer that takes longer counts as silent; the pull that follows gives it more time."""
OFFLINE_S: Final = 30.0
"""A peer that does not answer and has been silent for so long is said to be offline: a restart takes less."""
CONTACT_FRESH_S: Final = 40.0
"""For so long contact proves that a peer serves us by push: it is in touch at least every 20 s, in
continuous mode by a push at each heartbeat of the stream that it reads.  One that is silent for longer is gone."""
LOST_SHOWN_S: Final = 3600.0
"""For so long after its last answer a peer that now only pushes is said to be out of reach; then that is its way."""
STREAM_BACKOFF_BASE_S: Final = 0.5
STREAM_BACKOFF_MAX_S: Final = 30.0
PAUSE_S: Final = 5.0
"""A daemon that did not run for longer between two beats was stopped or starved: nothing that it missed counts."""
BOTH: Final = "both"
WE_PUSH: Final = "we-push"
PEER_PUSHES: Final = "peer-pushes"
REACH_WORDS: Final = frozenset({BOTH, WE_PUSH, PEER_PUSHES})
"""Which way a pair runs, as `show`, the peer's view and the wire say it."""
TO_US: Final = "to-us"
TO_PEER: Final = "to-peer"
"""The direction that is broken while the other works."""


@dataclass(frozen=True, slots=True)
class OneWay:
    """That one direction of requests is broken, TO_US or TO_PEER, and the other works."""

    direction: str
    for_s: float
    code: str = ""
    """Why, as the side says whose requests fail; "" if it has not said."""
    reads: bool = False
    """Whether only its reads fail, and its questions are answered."""


@dataclass(slots=True)
class Presence:
    """What this process knows of one peer; None is never."""

    waited_s: float | None = None
    """Since when this process waits for the peer; from the start after it did not run itself, or the peer was gone."""
    contact_s: float | None = None
    """When the peer last asked us, authenticated."""
    refused_s: float | None = None
    """When we last refused a request by its token: no contact, but the way to us is open."""
    answered_s: float | None = None
    """When it last answered a request, or sent an event of a stream of ours."""
    lost_s: float | None = None
    """When the first request began that failed since the last answer; `lost_code` is why the last one did."""
    lost_code: str = ""
    lost_late: bool = False
    """Whether the peer answered within LOST_SHOWN_S before the last failure."""
    unread_s: float | None = None
    """When the first read began that did not arrive since one last brought something; `unread_code` is why."""
    unread_code: str = ""

    @property
    def is_known(self) -> bool:
        """Whether this process has heard the peer, or waits for it."""
        return self.waited_s is not None or self.is_heard

    @property
    def is_heard(self) -> bool:
        """Whether this process has heard the peer."""
        return self.contact_s is not None or self.answered_s is not None

    def answered(self, now_s: float) -> None:
        """Record an answer; of a peer that was gone in both directions, requests are awaited again."""
        if self.lost_s is not None and self._unasked_s(self.lost_s) < CONTACT_FRESH_S and not self._asks_on:
            self.waited_s = now_s
        self.answered_s, self.lost_s, self.lost_code = now_s, None, ""

    def lost(self, code: str, now_s: float) -> None:
        """Record that a request did not arrive at the peer, and why."""
        if self.lost_s is None:
            self.lost_s = now_s - ANSWER_S if code == "timeout" else now_s  # when the request began, at the latest
        self.lost_code = code
        self.lost_late = self.answered_s is not None and now_s <= self.answered_s + LOST_SHOWN_S

    def read(self, now_s: float) -> None:
        """Record that a read brought something."""
        self.unread_s = None
        self.answered(now_s)

    def unread(self, code: str, began_s: float) -> None:
        """Record that a read that began, or brought something last, at `began_s` did not arrive, and why."""
        self.unread_s = began_s if self.unread_s is None else self.unread_s
        self.unread_code = code

    @property
    def is_unread(self) -> bool:
        """Whether reads alone fail: the peer answered a question after one began that did not arrive."""
        return self.unread_s is not None and self.answered_s is not None and self.answered_s >= self.unread_s

    def unread_for_s(self, now_s: float) -> float:
        """Return for how long no read has brought anything; 0 if the last one did."""
        return 0.0 if self.unread_s is None else max(0.0, now_s - self.unread_s)

    def resume(self, now_s: float, now_ms: int, known: "Known") -> None:
        """Wait for the peer from now, or, if a process before this one did not reach it, since then."""
        self.waited_s = now_s
        if known.code and not self.is_heard and known.heard_ms is not None:
            answered_ms = known.heard_ms if known.answered_ms is None else known.answered_ms
            self.waited_s = self.lost_s = now_s - (now_ms - answered_ms) / 1000
            self.lost_code, self.lost_late = known.code, now_s <= self.waited_s + LOST_SHOWN_S
            if known.answered_ms is not None:
                self.answered_s = self.waited_s
            if known.heard_ms > answered_ms:
                self.contact_s = now_s - (now_ms - known.heard_ms) / 1000

    def heard_ms(self, now_s: float, now_ms: int, before_ms: int | None) -> int | None:
        """Return when the peer was last heard, in Unix ms; `before_ms` is what is known of it from before."""
        heard_s = max((at_s for at_s in (self.contact_s, self.answered_s) if at_s is not None), default=None)
        if heard_s is None and (before_ms is not None or self.waited_s is None):
            return before_ms
        return now_ms - int((self.silent_s(now_s) if heard_s is None else now_s - heard_s) * 1000)

    def slept(self, now_s: float, asleep_s: float) -> None:
        """Wait from the start after this daemon did not run; what its clock did not count is added to every age."""
        if self.is_known:
            for name in ("contact_s", "refused_s", "answered_s", "lost_s", "unread_s"):
                if (at_s := getattr(self, name)) is not None:
                    setattr(self, name, at_s - asleep_s)
            self.waited_s = now_s

    @property
    def _asks_on(self) -> bool:
        """Whether the peer was in contact since the first request to it failed."""
        return self.lost_s is not None and self.contact_s is not None and self.contact_s >= self.lost_s

    def _unasked_s(self, now_s: float) -> float:
        return _passed_s(now_s, self.waited_s, self.contact_s, self.refused_s)

    def is_fresh(self, now_s: float) -> bool:
        """Return whether the peer was in contact within CONTACT_FRESH_S."""
        return self.contact_s is not None and now_s <= self.contact_s + CONTACT_FRESH_S

    def silent_s(self, now_s: float) -> float:
        """Return for how long the peer has not been heard, in either direction; 0 before we wait for it."""
        return _passed_s(now_s, self.waited_s, self.contact_s, self.answered_s)

    def unanswered_s(self, now_s: float) -> float:
        """Return for how long the peer has answered no request of ours; 0 before we wait for it."""
        return _passed_s(now_s, self.waited_s, self.answered_s)

    def unreached(self, *, served: bool) -> str:
        """Return why our requests fail; "" if they do not, or if that is the way of the pair: a NAT, for example.

        `served`: the peer serves us by push, so that we need not dial it.
        """
        return self.lost_code if self.lost_late or not served else ""

    def one_way(
        self, now_s: float, view: Mapping[str, Any], *, served: bool, pushed: bool = False, reads: bool = False
    ) -> OneWay | None:
        """Return which direction alone is broken; None if both work, or neither does.

        `view` is the peer's.  `pushed`: it is given records by our push, and so need not ask.  `reads`: a request of
        it is being answered, a stream for example, which shows the way to us whatever its view says of an older one.
        """
        heard_s = inf if self.answered_s is None else now_s - self.answered_s
        if self.is_unread and heard_s <= OFFLINE_S + ANSWER_S + ASK_S:
            return OneWay(TO_PEER, self.unread_for_s(now_s), self.unread_code, reads=True)
        if self.lost_s is not None:
            code = self.unreached(served=served) if self._asks_on and self.is_fresh(now_s) else ""
            return OneWay(TO_PEER, self.unanswered_s(now_s), code) if code else None
        code, asks_s = str(view.get("unreached", "")), view.get("asks_ms", 0) / 1000
        unasked_s = self._unasked_s(now_s)
        # A peer that was out of reach for a moment asks at once when it hears us.
        late_s = asks_s + ANSWER_S / 2 if code else 2 * asks_s + ANSWER_S / 2 if asks_s and not pushed else inf
        # A question is due each ASK_S and waits for its answer: until it failed, the one before holds.
        if reads or unasked_s <= late_s or heard_s > OFFLINE_S + ANSWER_S:
            return None
        return OneWay(TO_US, unasked_s, code)


@dataclass(slots=True)
class Turns:
    """When one peer is read next, and when it is asked whether it is there."""

    errors: Backoff
    refusals: Backoff
    """Answers in a row that the peer paused or revoked the pair: no error, and backed off from as one."""
    last_s: float | None = None
    """When the last read ended; None to read at once."""
    asked_s: float | None = None
    """When the peer was last asked for a sign of life; None to ask at once if it is silent."""

    @property
    def is_well(self) -> bool:
        """Whether the peer was read, and neither refused nor failed to answer since."""
        return self.last_s is not None and not self.errors.attempt and not self.refusals.attempt

    def attempted(self, now_s: float) -> None:
        """Record the end of a pull or a stream; the time of the next one is spread by another random number."""
        self.last_s = now_s
        self.errors.redraw()

    def at_once(self) -> None:
        """Have the peer read, and asked, without waiting any longer."""
        self.last_s = self.asked_s = None

    def read_s(self, now_s: float, interval_s: float, *, follows: bool, hold_s: float = 0.0) -> float:
        """Return the seconds until the peer is read again; `follows`: by a stream, which it may hold off."""
        if self.last_s is None:
            return 0.0
        if follows:
            worst = max(self.errors, self.refusals, key=lambda backoff: backoff.attempt)
            delay_s = max(worst.delay_s(STREAM_BACKOFF_BASE_S, STREAM_BACKOFF_MAX_S), hold_s)
        elif self.errors.attempt:
            delay_s = self.errors.delay_s()
        else:
            delay_s = self.errors.spread_s(interval_s)
            delay_s = max(delay_s, self.refusals.delay_s() if self.refusals.attempt else 0.0)
        return max(0.0, self.last_s + delay_s - now_s)

    def quiet_s(
        self, now_s: float, presence: Presence, *, pushes: bool, only_asked: bool, called: bool = False
    ) -> float:
        """Return the seconds until the peer is to be asked whether it is there: soon after this process began to wait.

        One that `pushes`, as we cannot dial it, is silent for too long when it no longer proves that it serves us; if
        we could dial it lately, it is asked all the same, so that the way is used again when it is open.
        `only_asked`: nothing else is tried by itself, so the questions back off as reads do.
        `called`: the peer says that it does not reach us, so a question shows it, and a stream of ours does not.
        """
        asked_s = -inf if self.asked_s is None else self.asked_s
        if pushes and (not presence.lost_late or not presence.is_fresh(now_s)):
            return max(CONTACT_FRESH_S - presence.silent_s(now_s), asked_s + self.errors.delay_s() - now_s)
        began_s = presence.waited_s
        if began_s is not None and max(asked_s, -inf if presence.answered_s is None else presence.answered_s) < began_s:
            return max(0.0, began_s + AWAKE_S - now_s)
        ask_s = self.errors.spread_s(ASK_S)
        if self.errors.attempt and only_asked:
            ask_s = min(ask_s, self.errors.delay_s())
        return max(0.0 if called else ask_s - presence.unanswered_s(now_s), asked_s + ask_s - now_s)


@dataclass(frozen=True, slots=True)
class Known:
    """What a process knew last of a peer, in Unix ms; of one that it did not reach why, and when a request failed."""

    heard_ms: int | None = None
    sync_ms: int | None = None
    code: str = ""
    failed_ms: int = 0
    answered_ms: int | None = None


def known_text(known: Mapping[str, Known], bytes_max: int) -> str:
    """Return the note of what is known of each peer, without the last ones that do not fit."""
    kept, size = Json(), 2
    for key, each in known.items():
        item = [each.heard_ms, each.sync_ms, each.code, each.failed_ms, each.answered_ms]
        size += len(canon.encode({key: item}))
        if size > bytes_max:
            break
        kept[key] = item
    return canon.encode(kept).decode()


def known_in(text: str, now_ms: int) -> dict[str, Known]:
    """Return what a note holds, without what is damaged or has a time to come.  Raises CanonError."""
    found = canon.decode(text.encode())
    items = found.items() if isinstance(found, dict) else ()
    return {key: known for key, item in items if (known := _known_of(item, now_ms)) is not None}


def _known_of(item: object, now_ms: int) -> Known | None:
    if not isinstance(item, list) or len(item) not in (4, 5) or not isinstance(item[2], str):
        return None
    heard_ms, sync_ms, code, failed_ms, answered_ms = (*item, None)[:5]
    times = (failed_ms, *(0 if at_ms is None else at_ms for at_ms in (heard_ms, sync_ms, answered_ms)))
    sound = all(type(at_ms) is int and 0 <= at_ms <= now_ms for at_ms in times)
    return Known(heard_ms, sync_ms, code, failed_ms, answered_ms) if sound and not (code and heard_ms is None) else None


class OwnBeat:
    """Whether this daemon ran all the time: one that was stopped, or starved, missed what its peers answered."""

    def __init__(self) -> None:
        self._due_s: float | None = None
        self._resumed_s = -PAUSE_S

    def beat(self, now_s: float, next_s: float, *, asleep: bool = False) -> bool:
        """Record that the daemon runs and the next beat is due in `next_s`; return whether it had not run for long.

        `asleep`: the machine was, as another clock shows.
        """
        overslept = asleep or self._overslept(now_s)
        self._resumed_s = now_s if overslept else self._resumed_s
        self._due_s = now_s + next_s
        return overslept

    def was_stopped(self, now_s: float) -> bool:
        """Return whether what failed just now may have failed because this daemon did not run."""
        return self._overslept(now_s) or now_s < self._resumed_s + PAUSE_S

    def _overslept(self, now_s: float) -> bool:
        return self._due_s is not None and now_s > self._due_s + PAUSE_S


def _passed_s(now_s: float, *times_s: float | None) -> float:
    """Return the seconds since the last of these times; 0 if there was none."""
    last_s = -inf
    for at_s in times_s:
        last_s = at_s if at_s is not None and at_s > last_s else last_s
    return max(0.0, now_s - last_s) if last_s > -inf else 0.0
