"""Points in time as text: RFC 3339 UTC with milliseconds, and durations as people write them."""

import re
from datetime import UTC, datetime
from typing import Final

from .errors import SplError

_FORM: Final = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,6}))?Z\Z")
_DURATION: Final = re.compile(r"([0-9]{1,9})(ms|s|m|h|d)?\Z")
_UNIT_MS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class WhenError(SplError):
    """The text is no time or duration."""


def text_of(unix_ms: int) -> str:
    """Return "2026-11-23T06:10:11.123Z" for Unix milliseconds."""
    moment = datetime.fromtimestamp(unix_ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{unix_ms % 1000:03d}Z"


def ms_of(text: object) -> int:
    """Return Unix milliseconds of an RFC 3339 UTC time with the suffix Z; raise WhenError "bad-field"."""
    found = _FORM.match(text) if isinstance(text, str) else None
    if found is None:
        raise WhenError("bad-field", f"not an RFC 3339 UTC time: {str(text)[:40]!r}")
    *parts, fraction = found.groups()
    try:
        moment = datetime(*(int(part) for part in parts), tzinfo=UTC)  # type: ignore[arg-type, misc]
    except ValueError as exc:
        raise WhenError("bad-field", f"no such time: {str(text)[:40]!r}") from exc
    return int(moment.timestamp()) * 1000 + int((fraction or "0").ljust(3, "0")[:3])


def duration_ms(text: str) -> int:
    """Return the milliseconds of "30s", "5m", "2h", "7d", "250ms" or plain seconds; raise WhenError "usage"."""
    found = _DURATION.match(text)
    if found is None:
        raise WhenError("usage", f"not a duration: {text[:40]!r}", hint="write 30s, 5m, 2h or 7d")
    return int(found[1]) * _UNIT_MS[found[2] or "s"]
