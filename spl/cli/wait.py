"""`spl wait`: a barrier for scripts, by events: until the daemon is ready, a pair is in a state, or both are equal.

`caught-up` is about the moment at which it begins.  What we held then is held by the peer once the peer has confirmed
as many records as it was offered then.  What the peer held then is held here after a read to its end that began later:
the command asks for one, and asks again when the peer is back.
"""

import threading
import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any, Final, NoReturn

from ..client.calls import quote
from ..core.errors import SplError, count
from ..core.presence import PEER_PUSHES
from ..core.when import ms_of, span_fine
from .client import LONG_S, CtlError
from .command import PAIR, Command, Group, Shell, arg, duration
from .live import DOWN, LOST, Live, Shown, rows_of
from .out import label_of

ASK_S: Final = 0.1
AGAIN_S: Final = 2.0
"""Between two reads that failed, unless the pair changed meanwhile."""
STATES: Final = ("establishing", "active", "paused", "degraded", "revoked")
_NO_RIGHT: Final = frozenset({"scope-forbidden", "permission-denied"})

TIMEOUT: Final = arg(
    "--timeout",
    type=duration(),
    default=60_000,
    metavar="TIME",
    help="give up after it, such as 90s or 6m, with exit code 8 (default: 1m)",
)


class _Deadline:
    """The time that is left, by a clock that never jumps."""

    def __init__(self, timeout_ms: int) -> None:
        self.text = span_fine(timeout_ms)
        self._end_s = time.monotonic() + timeout_ms / 1000

    @property
    def left_s(self) -> float:
        return self._end_s - time.monotonic()

    def over(self, why: str, hint: str = "") -> NoReturn:
        """Raise "wait-timeout" with the reason."""
        raise SplError("wait-timeout", f"not within {self.text}: {why}", hint=hint)


def _daemon(args: Namespace, shell: Shell) -> int:
    """Wait until writes are taken."""
    deadline = _Deadline(args.timeout)
    while True:
        try:
            shell.ctl.get("/health/ready")
            return 0
        except CtlError as exc:
            if exc.exit_code == 4:
                raise
            if deadline.left_s <= 0:
                deadline.over(exc.message, exc.hint)
        time.sleep(min(ASK_S, max(0.0, deadline.left_s)))


def _pair(args: Namespace, shell: Shell) -> int:
    """Wait until the pair is in the state."""
    deadline = _Deadline(args.timeout)
    first = _resolved(args.pair, shell, deadline)

    aim = _Wanted(args.state)
    if not aim.reached(first):
        with Live(shell.ctl) as live:
            _follow(shell, live, deadline, first, aim)
    return 0


def _caught_up(args: Namespace, shell: Shell) -> int:
    deadline, began_ms = _Deadline(args.timeout), shell.now_ms()
    first = _resolved(args.pair, shell, deadline)
    with Live(shell.ctl) as live:
        aim = _Aim(shell, first["pair_id"], began_ms, live.nudge)
        try:
            last = _follow(shell, live, deadline, first, aim)
        finally:
            aim.ended.set()
    last = _counted(last, shell)
    if not shell.printed("spl.wait/1", last):
        label = label_of(last["peer_did"])
        held, got = last["outbound"]["clock"], last["inbound"]["clock"]
        shell.out.line(
            f"{last['pair_id']}  {label} holds {count(held, 'record')} of ours, we hold {got:,} of {label}'s"
        )
    return 0


def _counted(row: Shown, shell: Shell) -> Shown:
    """Return the row with what both hold now: it may be of before our own read."""
    try:
        now = shell.ctl.get(f"/v1/federation/pairs/{quote(row['pair_id'])}")
    except CtlError:
        return row
    return {**row, "inbound": now["last_sync_cursor"], "outbound": now["outbound"]}


class _Wanted:
    """A state that is waited for."""

    def __init__(self, state: str) -> None:
        self._state = state

    def reached(self, row: Shown) -> bool:
        """Return whether the pair is in the state; raise "pair-revoked" if it never will be."""
        if row["state"] == "revoked" != self._state:
            raise SplError("pair-revoked", f"{row['pair_id']} was revoked, so it will not be {self._state}")
        return bool(row["state"] == self._state)

    def hint(self, row: Shown) -> str:
        """Return the next step."""
        return f"spl doctor {row['pair_id']}"

    def lacks(self, row: Shown) -> str:
        """Return what the pair is instead, and why."""
        return f"{row['pair_id']} is {row['state']}{_why(row)}"


class _Aim:
    """What `caught-up` waits for: `reached` and `lacks` are asked with each row of the pair."""

    def __init__(self, shell: Shell, pair_id: str, began_ms: int, nudge: Callable[[], None]) -> None:
        self._shell, self._pair_id, self._began_ms, self._nudge = shell, pair_id, began_ms, nudge
        self._offered: int | None = None
        self._fault = ""
        self._passive = False
        self.read, self.ended, self._again = threading.Event(), threading.Event(), threading.Event()
        threading.Thread(target=self._ask, name="spl-wait", daemon=True).start()

    def reached(self, row: Shown) -> bool:
        """Return whether both sides hold what the other one held when the command began; raise "pair-revoked"."""
        if row["state"] == "revoked":
            raise SplError("pair-revoked", f"{row['pair_id']} is revoked")
        self._again.set()
        return self._is_confirmed(row) and (self.read.is_set() or self._is_read(row))

    def hint(self, row: Shown) -> str:
        """Return the next step: the peer's, if only its own mode keeps it from reading, and it is there."""
        waits = not self._is_confirmed(row) and not row.get("findings") and row["state"] == "active"
        waits = waits and (self._fault in ("", *_NO_RIGHT) or row.get("reach") == PEER_PUSHES)
        return f"on {label_of(row['peer_did'])}: spl sync {row['pair_id']}" if waits else f"spl doctor {row['pair_id']}"

    def lacks(self, row: Shown) -> str:
        """Return what is still missing, and why."""
        lag, parts = row["outbound"]["lag_records"], []
        if not self._is_confirmed(row):
            waits = "an unknown number of records" if lag is None else count(lag, "record")
            parts.append(f"{label_of(row['peer_did'])} has not confirmed {waits} of ours")
        if not self.read.is_set() and not self._is_read(row):
            parts.append(f"we have not read to the end of {label_of(row['peer_did'])}'s")
        return " and ".join(parts) + (f" ({self._fault})" if self._fault else "") + _why(row)

    def _is_confirmed(self, row: Shown) -> bool:
        out = row["outbound"]
        if out["lag_records"] is None:
            return False
        if self._offered is None:
            self._offered = out["clock"] + out["lag_records"]
        return bool(out["clock"] >= self._offered or not out["lag_records"])

    def _is_read(self, row: Shown) -> bool:
        """Return whether a read that ended after the begin found nothing more; for one who may not ask for a read."""
        at = row["last_sync_at"]
        lag = row.get("inbound", {}).get("lag_records")
        return bool(self._passive and at and ms_of(at) > self._began_ms and lag == 0)

    def _ask(self) -> None:
        """Read from the peer until that succeeds once."""
        while not self.ended.is_set():
            self._again.clear()
            try:
                self._shell.ctl.post(f"/v1/federation/pairs/{quote(self._pair_id)}/sync", {}, LONG_S)
                self._fault = ""
                self.read.set()
                self._nudge()
                return
            except CtlError as exc:
                self._fault = exc.code
                if exc.code in _NO_RIGHT:
                    self._passive = True
                    return
                # A peer that only pushes cannot be read from here; its own contact shows that nothing is left there.
                self._passive = exc.exit_code == 9
            self._again.wait(AGAIN_S)
            time.sleep(ASK_S)


def _resolved(ref: str, shell: Shell, deadline: _Deadline) -> dict[str, Any]:
    """Return the pair as the list shows it, as soon as a daemon answers."""
    while True:
        try:
            return shell.ctl.get(f"/v1/federation/pairs/{quote(ref)}")
        except CtlError as exc:
            if exc.code not in LOST:
                raise
            if deadline.left_s <= 0:
                deadline.over(exc.message, exc.hint)
        time.sleep(min(ASK_S, max(0.0, deadline.left_s)))


def _follow(shell: Shell, live: Live, deadline: _Deadline, row: Shown, aim: _Wanted | _Aim) -> Shown:
    """Return the row of the pair that reaches the aim; raise "wait-timeout" with what it lacks then."""
    down, row_told = "", False
    while deadline.left_s > 0:
        item = live.next(deadline.left_s)
        if item is not None:
            name, value = item
            down = value["message"] if name == DOWN else ""
            found = rows_of(value).get(row["pair_id"]) if name == "snapshot" else value if name == "pair" else None
            if name == "snapshot" and found is None:
                found = shell.ctl.get(f"/v1/federation/pairs/{quote(row['pair_id'])}")
            if found is not None and found["pair_id"] == row["pair_id"]:
                row, row_told = found, True
        if row_told and not down and aim.reached(row):
            return row
    return deadline.over(f"{aim.lacks(row)}{f'; {down}' if down else ''}", aim.hint(row))


def _why(row: Shown) -> str:
    """Return what stands in the way, as far as the row tells."""
    since = row.get("offline_since")
    parts = [f"{label_of(row['peer_did'])} is offline, no contact since {since}"] if since else []
    if row["state"] == "paused":
        parts.append(f"the pair is {row['state_detail'] or 'paused'}")
    parts += [f"{item['code']}: {item['title']}" for item in (row.get("findings") or [])[:1]]
    if row.get("last_sync_at") and parts:
        parts.append(f"last confirmed {row['last_sync_at']}")
    return f"; {'; '.join(parts)}" if parts else ""


TREE: Final = (
    Group(
        "wait",
        "Waits by events until something holds, for scripts; exit code 8 means that it did not within --timeout.\n"
        "It goes on over a restart of the daemon, and a pair that is revoked meanwhile ends it with 7.",
        "spl wait caught-up bob --timeout 60s",
        (
            Command("wait daemon", "Waits until the daemon answers and takes records.\nIt exits 0 at once if it does.",
                    "spl wait daemon --timeout 10s", _daemon, (TIMEOUT,)),
            Command("wait pair",
                    "Waits until a pair is in a state.\n"
                    "It exits 0 at once if it is, also while the peer is offline; wait caught-up needs both sides.",
                    "spl wait pair bob --state active", _pair,
                    (PAIR, arg("--state", choices=STATES, required=True, help="the state to wait for"), TIMEOUT)),
            Command("wait caught-up",
                    "Waits until the peer durably holds all that we held at the begin, and we hold all that it held.\n"
                    "It reads from the peer at once, whatever the pair's mode; a peer that is offline is waited for.\n"
                    "The peer reads when its own mode says so: one that polls, every 5m if not told otherwise, needs\n"
                    "a --timeout longer than that, or a `spl sync` there.",
                    "spl wait caught-up bob --timeout 6m", _caught_up, (PAIR, TIMEOUT)),
        ),
    ),
)  # fmt: skip
