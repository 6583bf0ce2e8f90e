"""`spl doctor --format nagios`: one line for a monitoring system: a word, what is wrong, and the values behind `|`.

The values are there whatever the verdict is, and thresholds are optional: without them the findings alone decide.
"""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any, Final

from ..client.calls import quote
from ..core.errors import count
from ..core.when import ms_of
from .client import CtlError
from .command import Arg, Shell, arg, number
from .paste import with_start

WORDS: Final = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
"""By exit code."""
WARNING: Final = 1
CRITICAL: Final = 2
UNKNOWN: Final = 3
_DOWN: Final = frozenset({"daemon-down", "timeout", "disconnected", "warming-up", "shutting-down"})
_DAY_MS: Final = 86_400_000
_MOST: Final = 2**53 - 1


def _threshold(name: str, what: str) -> Arg:
    return arg(name, type=number(0, _MOST), metavar="N", help=f"with nagios: {what} (default: no bound)")


THRESHOLDS: Final = (
    _threshold("--warn-lag", "warn from N records that wait on a peer"),
    _threshold("--crit-lag", "critical from N of them"),
    _threshold("--warn-days", "warn if a token ends within N days"),
    _threshold("--crit-days", "critical if it ends within N days"),
)


def check(args: Namespace, shell: Shell) -> int:
    """Print the line and return 0 to 3."""
    try:
        status = shell.ctl.get("/v1/status")
        pair = shell.ctl.get(f"/v1/federation/pairs/{quote(args.pair)}") if args.pair else None
    except CtlError as exc:
        code = CRITICAL if exc.code in _DOWN else UNKNOWN
        shell.out.failure(with_start(exc, shell))
        return _say(shell, code, f"{exc.message} [{exc.code}]", "")
    problems = [item for item in status["attention"] if pair is None or item.get("pair_id") == pair["pair_id"]]
    lag, days = _values(status, pair, shell)
    code = max([0, *(CRITICAL if item["severity"] == "fail" else WARNING for item in problems)])
    code = max(code, _above(lag, args.warn_lag, args.crit_lag), _below(days, args.warn_days, args.crit_days))
    values = [f"lag_records={lag}{_limits(args.warn_lag, args.crit_lag, '')}"]
    if pair is None:
        values += [f"queue={status['queue']['now']}", f"pairs={status['pairs']['total']}"]
    values.append(f"problems={len(problems)}")
    if days is not None:
        values.append(f"tokens_days={days}{_limits(args.warn_days, args.crit_days, ':')}")
    return _say(shell, code, _text(status, pair, problems), " ".join(values))


def _values(status: Mapping[str, Any], pair: Mapping[str, Any] | None, shell: Shell) -> tuple[int, int | None]:
    """Return the records that wait on the peer, of all the worst one, and the days until the first token ends."""
    if pair is None:
        lag, ends = status["lag"]["lag_records"], status.get("token_ends_at")
    else:
        lag = pair["last_sync_cursor"]["lag_records"] or 0
        ends = min((token["expires_at"] for token in pair["tokens"]), default=None)
    return lag, None if ends is None else max(0, (ms_of(ends) - shell.now_ms()) // _DAY_MS)


def _text(status: Mapping[str, Any], pair: Mapping[str, Any] | None, problems: list[Mapping[str, Any]]) -> str:
    """Return what is wrong, the first problem in words, or how much is well."""
    who = count(status["pairs"]["total"], "pair") if pair is None else f"{pair['pair_id']} {pair['state']}"
    if not problems:
        return who
    first = sorted(problems, key=lambda item: item["severity"] != "fail")[0]
    about = f"{first['pair_id']}: " if first.get("pair_id") and pair is None else ""
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{who}, {first['code']}: {about}{first['title']}{more}"


def _above(value: int, warn: int | None, crit: int | None) -> int:
    return CRITICAL if crit is not None and value >= crit else WARNING if warn is not None and value >= warn else 0


def _below(value: int | None, warn: int | None, crit: int | None) -> int:
    if value is None:
        return 0
    return CRITICAL if crit is not None and value <= crit else WARNING if warn is not None and value <= warn else 0


def _limits(warn: int | None, crit: int | None, mark: str) -> str:
    """Return the thresholds as they stand behind a value; with the mark ":" what is below alerts."""
    if warn is None and crit is None:
        return ""
    return ";" + ";".join("" if each is None else f"{each}{mark}" for each in (warn, crit))


def _say(shell: Shell, code: int, text: str, values: str) -> int:
    """Print the line; a bar in what a peer said would begin the values."""
    line = f"{WORDS[code]} - {text.replace('|', '/')}"
    shell.out.line(f"{line} | {values}" if values else line)
    return code
