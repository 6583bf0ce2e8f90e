"""What is known when something is wrong: one typed value; pure.

`gather.py` fills in what needs no network and `peer_check.py` what the peer reports.  A fact that was not gathered has
its default, and no finding follows from one; so one catalogue serves `status`, which asks no peer, and `doctor`, which
does.  A mapping with string keys was rejected: a misspelt key reads as a fact that was not gathered, so the finding
never shows, and no test of another finding notices.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..core.limits import Limits
from ..core.presence import OneWay
from ..core.value import dataclass, field


@dataclass(frozen=True, slots=True)
class Fault:
    """What went wrong, by its code in `core/errors.py`; `message` and `hint` may be empty."""

    code: str
    message: str = ""
    hint: str = ""
    reached: bool = False
    """There was a connection, so the exchange failed."""
    status: int = 0
    """Of the answer, if it was one."""


@dataclass(frozen=True, slots=True)
class LockHolder:
    """The process that holds a home, since when, and for how many seconds."""

    pid: str
    since: str
    held_s: float


@dataclass(frozen=True, slots=True)
class ReverseReach:
    """Whether the peer reaches us, as the peer says; `code` and `message` say why not."""

    reached: bool
    url: str
    ms: int = 0
    code: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class GrantGap:
    """A grant that lacks something for its full effect; `code` is the finding, `fix` the command."""

    code: str
    namespace: str
    missing: str
    fix: str
    at_peer: bool = False


@dataclass(frozen=True, kw_only=True)  # without slots, so that `replace` copies it in one go
class Facts:
    """Everything that a finding or a check reads; None and "" mean that it was not gathered."""

    limits: Limits = field(default_factory=Limits)
    """Holds the thresholds."""

    # -- the daemon and its home
    daemon_down: str = ""
    holder: LockHolder | None = None
    config_error: str = ""
    home_fault: Fault | None = None
    """That the log or the keys of a home are not in their place."""
    pid: int | None = None
    replaced: bool = False
    """The program's files are not those that the daemon began with."""
    readonly: str = ""
    full: str = ""
    damaged_lines: int = 0
    lines_lost: bool = False
    """What withdrew something may be among them: nobody knows what a lost line said."""
    cut_bytes: int = 0
    free_bytes: int | None = None
    fsync_p99_ms: float | None = None
    loop_lag_ms: float = 0.0
    dead_tasks: tuple[str, ...] = ()
    """Ids of pairs without a running task."""
    tasks_count: int = 0
    adapters_slow: str = ""
    auth_off: bool = False
    locking_rule: str | None = None
    """Name of a permission rule that refuses every pair request, "" if there is none."""
    has_identity: bool = True
    did: str = ""
    words: str = ""
    unsaved_s: float = 0.0
    """Age of a signing key that was never exported."""
    published_url: str = ""
    published_same: bool = False
    published_unseen: str = ""
    published_fault: str = ""
    published_tls: str = ""
    """Why our own certificate is refused here, as peers may refuse it."""
    protocol_ours: str = ""

    # -- the pair, as this side knows it
    pair_id: str = ""
    label: str = ""
    url: str = ""
    newer_url: str = ""
    """Where the peer says that it is now, which is taken later."""
    phase: str = ""
    reason: str = ""
    mode: str = ""
    poll_interval_ms: int = 0
    paused_by: str = ""
    ended_by_peer: bool = False
    waits_for: str = ""
    """Who has to decide on a pair request: "us", "peer" or ""."""
    peer_mode: str = ""
    """How the peer reads from us, as it says."""
    peer_refuses: bool = False
    """Whether it refused records of ours as they came, as it says."""
    peer_readonly: bool = False
    """Whether the peer says that its store takes no records."""
    set_back: str = ""
    """Whose log lacks what the other side has read: "peer", "us" or ""."""
    cloned: str = ""
    """Whose identity two daemons use: "peer", "us" or ""."""
    one_way: OneWay | None = None
    own_url: str = ""
    """The address that we publish."""
    reach: str = ""
    """Which way the pair runs: a word of `sync/reach.py`."""
    clock: int | None = None
    lag_records: int | None = None
    unmoved: bool = False
    """Whether a pull of this process ended well and yet the saved position is older than the process."""
    confirmed_s: float | None = None
    overdue_s: float = 0.0
    peer_acked: int | None = None
    """How many records the peer confirmed; `peer_lag` is how many more we offer it."""
    peer_lag: int | None = None
    peer_behind_s: float = 0.0
    """For how long it has confirmed none of them, once that is longer than it may take."""
    withheld: tuple[str, ...] = ()
    """Ids of records that the way to the peer does not carry."""
    withheld_here: tuple[str, ...] = ()
    """Ids of records that the way from the peer does not carry."""
    stream_open: bool = False
    breaks: int = 0
    """Ends of the stream within ten minutes."""
    mute_s: float = 0.0
    """How long streams have brought no event."""
    queue_records: int = 0
    queue_max: int | None = None
    intake_wait_s: float = 0.0
    """Seconds until intake resumes, which the budget of a day paused."""
    token_left_ms: int | None = None
    """Validity left of the peer's token for us; `own_token_left_ms` is that of ours for the peer."""
    token_due: bool = False
    own_token_left_ms: int | None = None
    own_token_due: bool = False
    own_token_revoked: str = ""
    """The id of our token for the peer, if our operator revoked it."""
    scopes: tuple[str, ...] = ()
    scopes_missing: tuple[str, ...] = ()
    grants_count: int = 0
    gaps: tuple[GrantGap, ...] = ()
    broken_s: Mapping[str, float] = field(default_factory=dict)
    """Code -> seconds since it began, for what heals by itself; what is not named counts as lasting."""

    # -- a sink
    sink: str = ""
    """"sink NAME", or "engine of PAIR_ID"; `sink_fault` is why nothing goes or comes."""
    sink_fault: Fault | None = None

    # -- why the last attempt failed, and what was seen by asking
    failure: Fault | None = None
    manifest: Fault | None = None
    host: str = ""
    addresses: tuple[str, ...] = ()
    address: str = ""
    tls_days_left: int | None = None
    clock_ahead_ms: int | None = None
    manifest_held: bool = False
    inside_same: bool = False
    outside_fault: str = ""
    protocol_peer: str = ""
    endpoint_status: int | None = None
    throttled: bool = False
    token_taken: bool = False
    token_refused: str = ""
    token_revoked: bool = False
    """Whether the peer revoked our token, so that it renews none until its operator rotates it."""
    reverse: ReverseReach | None = None
    reverse_unknown: str = ""
    peer_state: str = ""
    peer_queue: int = 0


if TYPE_CHECKING:
    from dataclasses import replace as replace  # whose arguments mypy checks by the fields
else:

    def replace(known, **changes):
        """Return the facts with some changed; as `dataclasses.replace`, which takes ten times as long.

        A status of 1,000 pairs adds facts 6,000 times.  Facts hold no more than what was changed: the rest stands in
        their class.
        """
        found = object.__new__(Facts)
        found.__dict__.update(known.__dict__, **changes)
        return found


def nothing(limits: Limits) -> Facts:
    """Return the facts before any was gathered; they hold nothing else, so that little is copied with them."""
    found = object.__new__(Facts)
    found.__dict__.update(limits=limits, broken_s={})
    return found
