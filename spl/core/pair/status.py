"""What is shown of one peer: the last failure, the push, the stream, what may come in, how far we are."""

from collections.abc import Mapping
from typing import Any, Final

from .. import when
from ..presence import OFFLINE_S, OneWay
from ..value import Json, dataclass, field

AUTH_CODES: Final = frozenset({"auth-required", "auth-invalid", "scope-forbidden", "permission-denied"})
NO_ANSWER: Final = frozenset({"connect", "disconnected", "timeout", "dns", "no-route", "foreign-answer"})
"""Codes of a peer that does not answer."""

WAY: Final = NO_ANSWER | {"address-refused", "http-plain", "url-invalid", "redirect", "tls-chain"}
"""Codes of requests that did not arrive at the peer."""

ANSWERED: Final = WAY | AUTH_CODES | {"clock-skew"}
"""Codes of failures that end as soon as the peer answers another request, but those in READS_ONLY."""

READS_ONLY: Final = frozenset({"foreign-answer", "timeout", "disconnected", "scope-forbidden", "permission-denied"})
"""Codes of what may fail reads while questions pass, so that only a read shows its end."""

LOCAL: Final = "LOCAL"
"""The class of our own faults; they degrade no pair."""

_CLASSES: Final = {
    "connect": "CONNECT_REFUSED",
    "no-route": "CONNECT_REFUSED",
    "disconnected": "CONNECT_REFUSED",
    "address-refused": "CONNECT_REFUSED",
    "http-plain": "CONNECT_REFUSED",
    "url-invalid": "CONNECT_REFUSED",
    "redirect": "HTTP_4XX",
    "clock-skew": "AUTH",
    "timeout": "TIMEOUT",
    "dns": "DNS_FAILURE",
    "tls-chain": "TLS",
    "peer-5xx": "HTTP_5XX",
    "answer-malformed": "PARSE_ERROR",
    "peer-rewound": "PARSE_ERROR",
    **dict.fromkeys(AUTH_CODES, "AUTH"),
    "chain-broken": "SIGNATURE",
    "chain-fork": "SIGNATURE",
    "did-invalid": "SIGNATURE",
    "manifest-stale": "SIGNATURE",
    "overloaded": LOCAL,
    "shutting-down": LOCAL,
    "store-readonly": LOCAL,
    "store-full": LOCAL,
    "store-damaged": LOCAL,
    "identity-missing": LOCAL,
    "internal": LOCAL,
}


@dataclass(frozen=True, slots=True)
class LastError:
    """The last failure with a peer.

    `kind` is its class; `revoked`: the peer revoked our token; `reached`: there was a connection, the exchange failed.
    """

    code: str
    message: str
    at_ms: int
    kind: str = ""
    revoked: bool = False
    reached: bool = False
    status: int = 0
    """Of the answer, if it was one."""

    def to_json(self) -> Json:
        """Return {class, code, message, at}; class only if there is one."""
        kind = {"class": self.kind} if self.kind else {}
        return {**kind, "code": self.code, "message": self.message, "at": when.text_of(self.at_ms)}


@dataclass(frozen=True, slots=True)
class PushStatus:
    """The last push to a peer and the last failure; both None if we do not push."""

    last_push_ms: int | None
    last_error: LastError | None

    def to_json(self) -> Json:
        """Return {last_push_at, last_error}."""
        return {
            "last_push_at": when.text_of(self.last_push_ms) if self.last_push_ms is not None else None,
            "last_error": self.last_error.to_json() if self.last_error is not None else None,
        }


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """The state of a pair's stream: open, opening or down; times in Unix ms."""

    state: str
    since_ms: int | None
    event_ms: int | None
    breaks: int
    """How often it broke in the last ten minutes."""

    def to_json(self) -> Json:
        """Return {state, since, last_event_at, breaks}."""
        return {
            "state": self.state,
            "since": when.text_of(self.since_ms) if self.since_ms is not None else None,
            "last_event_at": when.text_of(self.event_ms) if self.event_ms is not None else None,
            "breaks": self.breaks,
        }


@dataclass(frozen=True, slots=True)
class IntakeStatus:
    """What a pair brought in within a day, what it may bring in, and the seconds until intake resumes (0: it runs)."""

    day_bytes: int = 0
    day_bytes_max: int = 0
    wait_s: float = 0.0

    def to_json(self, now_ms: int) -> Json:
        """Return {day_bytes, day_bytes_max, paused_until}; None while it runs."""
        until = when.text_of(now_ms + int(self.wait_s * 1000)) if self.wait_s else None
        return {"day_bytes": self.day_bytes, "day_bytes_max": self.day_bytes_max, "paused_until": until}


@dataclass(frozen=True, slots=True)
class PairStatus:
    """How far we are with reading from one peer; times in Unix ms.

    `clock` and `lag_records` count as the source does; lag is None before the first contact of this process.
    """

    last_sync_ms: int | None = None
    last_error: LastError | None = None
    next_attempt_ms: int | None = None
    attempt: int = 0
    crashes: int = 0
    clock: int = 0
    lag_records: int | None = None
    queue_records: int = 0
    queue_max: int = 0
    """The most that waited in the last hour."""
    peer_view: Mapping[str, Any] = field(default_factory=dict)
    told_ms: int | None = None
    """When the peer told it."""
    stream: StreamStatus | None = None
    """In continuous mode only."""
    intake: IntakeStatus = IntakeStatus()
    cloned: str = ""
    """Whose identity two daemons use: PEER_CLONED, OUR_CLONED or ""."""
    withheld: tuple[str, ...] = ()
    """Ids of records that the way from the peer does not carry; our position is behind them."""
    silent_s: float = 0.0
    """For how long the peer has not been heard, in either direction."""
    unanswered_s: float = 0.0
    """For how long it has answered no request of ours."""
    unread_s: float = 0.0
    """For how long no read of ours has brought anything, if the last one failed."""
    lost_code: str = ""
    """Why it has answered none for OFFLINE_S; "" if it has, or need not."""
    answered_ms: int | None = None
    """When it last answered one, as far as this process or the one before it knows."""
    one_way: OneWay | None = None
    skew_ms: int | None = None
    """How far the peer's clock is ahead, if it refuses what we sign for that."""
    heard_ms: int | None = None
    """When it was last heard, as far as this process or the saved position knows."""

    @property
    def unreached(self) -> bool:
        """Whether the last attempt did not arrive at the peer; what the peer answered is another kind of failure."""
        return bool(self.attempt) and self.last_error is not None and self.last_error.code in WAY

    @property
    def offline_since_ms(self) -> int | None:
        """When a peer that does not answer was last heard; None if it answers, or was heard within OFFLINE_S."""
        silent = self.unreached and self.silent_s >= OFFLINE_S
        return self.heard_ms if silent and self.last_error and self.last_error.code in NO_ANSWER else None

    @property
    def last_sync_at(self) -> str | None:
        """`last_sync_ms` in RFC 3339."""
        return when.text_of(self.last_sync_ms) if self.last_sync_ms is not None else None

    @property
    def next_attempt_at(self) -> str | None:
        """`next_attempt_ms` in RFC 3339."""
        return when.text_of(self.next_attempt_ms) if self.next_attempt_ms is not None else None


def class_of(code: str, status: int = 0) -> str:
    """Return the class of failure of an error code and HTTP status, as `last_error` and the reference name it."""
    return _CLASSES.get(code, "HTTP_5XX" if status >= 500 else "HTTP_4XX")
