"""Points in time as text: RFC 3339 UTC with milliseconds, and durations as people write and read them.

Dates are computed here because `datetime` takes 0.3 MiB of a daemon that needs no more of it than this.
"""

import re
from typing import Final

from .errors import SplError

_FORM: Final = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,6}))?Z\Z")
_DURATION: Final = re.compile(r"([0-9]{1,9})(ms|s|m|h|d)?\Z")
_UNIT_MS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

DURATION_MS_MAX: Final = 3650 * 86_400_000
"""Ten years.  Longer ones overflow what is computed from them: dates, timeouts of the operating system."""


class WhenError(SplError):
    """The text is no time or duration."""


def text_of(unix_ms: int) -> str:
    """Return "2026-11-23T06:10:11.123Z" for Unix milliseconds."""
    days, second = divmod(unix_ms // 1000, 86_400)
    year, month, day = _date(days)
    if not 0 < year < 10_000:
        raise ValueError(f"year {year} has no such text")
    hour, minute = second // 3600, second // 60 % 60
    return f"{year:04d}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:{second % 60:02d}.{unix_ms % 1000:03d}Z"


def _date(days: int) -> tuple[int, int, int]:
    """Return year, month and day of a day since 1970-01-01; years begin in March here, so a leap day ends one."""
    eras, days = divmod(days + 719_468, 146_097)  # of 400 years
    years = (days - days // 1460 + days // 36_524 - days // 146_096) // 365
    days -= years * 365 + years // 4 - years // 100
    months = (days * 5 + 2) // 153
    month = months + 3 if months < 10 else months - 9
    return eras * 400 + years + (month < 3), month, days - (months * 153 + 2) // 5 + 1


def ms_of(text: object) -> int:
    """Return Unix milliseconds of an RFC 3339 UTC time with the suffix Z; raise WhenError "bad-field"."""
    found = _FORM.match(text) if isinstance(text, str) else None
    if found is None:
        raise WhenError("bad-field", f"not an RFC 3339 UTC time: {str(text)[:40]!r}")
    *parts, fraction = found.groups()
    year, month, day, hour, minute, second = map(int, parts)
    years, months = (year, month - 3) if month > 2 else (year - 1, month + 9)
    days = years * 365 + years // 4 - years // 100 + years // 400 + (months * 153 + 2) // 5 + day - 719_469
    if year == 0 or _date(days) != (year, month, day) or max(hour - 23, minute - 59, second - 59) > 0:
        raise WhenError("bad-field", f"no such time: {found[0][:40]!r}")
    return ((days * 24 + hour) * 60 + minute) * 60_000 + second * 1000 + int((fraction or "0").ljust(3, "0")[:3])


def duration_ms(text: str) -> int:
    """Return the milliseconds of "30s", "5m", "2h", "7d", "250ms" or plain seconds, at most ten years.

    Raises WhenError "usage".
    """
    found = _DURATION.match(text)
    if found is None:
        raise WhenError("usage", f"not a duration: {text[:40]!r}", hint="write 30s, 5m, 2h or 7d")
    ms = int(found[1]) * _UNIT_MS[found[2] or "s"]
    if ms > DURATION_MS_MAX:
        raise WhenError("usage", f"a duration is at most 3650d, not {text}", hint="write 30s, 5m, 2h or 7d")
    return ms


def span(ms: float) -> str:
    """Return a duration rounded down to its largest useful unit: 40s, 5m, 24h, 3d; a negative one as 0s."""
    seconds = max(0, int(ms // 1000))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m"
    return f"{seconds // 3600}h" if seconds < 48 * 3600 else f"{seconds // 86400}d"


def age(ms: float) -> str:
    """Return how long ago: 40s ago, 5m ago; of what lies ahead, in 5m."""
    return f"{span(ms)} ago" if ms >= 0 else f"in {span(-ms)}"


def span_fine(ms: float) -> str:
    """Return a duration with its second unit: 4m12s, 2h5m, 3d 4h; 250ms below a second, a negative one as 0s."""
    seconds = max(0, int(ms // 1000))
    if seconds < 1 <= ms:
        return f"{int(ms)}ms"
    minutes, s = divmod(seconds, 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if seconds < 3600:
        return f"{m}m{s}s" if m and s else f"{m}m" if m else f"{s}s"
    if hours < 48:
        return f"{hours}h{m}m" if m else f"{hours}h"
    return f"{days}d {h}h" if h else f"{days}d"
