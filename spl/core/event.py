"""One event of the log, as the arguments of the logging call that writes it.

    log.info(**event("token.renewed", pair=pair_id, ms=412))

Every line of the product is written so: a stable name in the past tense, and everything else as a field, so that
`spl logs event=NAME` and any program finds it.  Pure, and without a record in it, so that net/ can use it too.
"""

from collections.abc import Mapping
from typing import TypedDict


class LogEvent(TypedDict):
    """What `logging.Logger.log` and its siblings take: the event's name, and its fields."""

    msg: str
    extra: Mapping[str, object]


def event(name: str, /, **fields: object) -> LogEvent:
    """Return the event of this name; a field called `msg` is the text for people, in place of the name."""
    return {"msg": name, "extra": {"fields": fields}}
