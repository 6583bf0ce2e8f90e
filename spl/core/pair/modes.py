"""How a pair is read: the words for it, in a file of their own because a command names them and loads no pair."""

from typing import Final

from ..errors import SplError

POLLING: Final = "polling"
CONTINUOUS: Final = "continuous"
ON_DEMAND: Final = "on-demand"
ENGINE: Final = "engine"
"""Records come from a stream engine, the rest as before; a mode that a carrier brings and nobody asks for."""
MODES: Final = (POLLING, CONTINUOUS, ON_DEMAND)
"""What operators and peers may ask for."""
POLL_INTERVAL_MS_MAX: Final = 30 * 86_400_000
"""A longer interval is refused, and one that an older version stored counts as this: the times computed from it must
have a date."""


class ModeError(SplError):
    """A mode that may not be asked for; code bad-field."""


def check_mode(mode: object) -> str:
    """Return the mode; raise ModeError "bad-field" unless operators and peers may ask for it."""
    if not isinstance(mode, str) or mode not in MODES:
        raise ModeError("bad-field", f"mode is one of {', '.join(MODES)}, not {str(mode)[:40]!r}")
    return mode
