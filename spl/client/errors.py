"""What a program that talks to a daemon has to expect: one class a kind, each with the daemon's stable code."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..core.errors import CODES, SplError, cli_code

_OWN_KEYS: Final = frozenset({"object", "type", "code", "message", "hint"})
_NEAREST: Final[Mapping[int, str]] = {
    401: "auth-invalid", 403: "scope-forbidden", 404: "not-found", 409: "pair-state-conflict",
    413: "body-too-large", 429: "rate-limited", 502: "peer-5xx", 503: "overloaded", 504: "timeout",
}  # fmt: skip
"""HTTP status -> the code of ours that replaces an unknown code of a newer daemon."""

_FINAL: Final = "name the daemon's own URL: https instead of http, the right port, no path"


class ClientError(SplError):
    """The daemon cannot be reached, or it refused; `http_status` is that of its answer, 0 without one."""

    http_status = 0


class UnreachableError(ClientError):
    """No daemon, no whole answer in time, or one that is too busy: a later attempt may succeed."""


class ForbiddenError(ClientError):
    """The token is missing, unknown, expired, or does not reach that far."""


class MissingError(ClientError):
    """There is no such record, thread, pair or route."""


class ConflictError(ClientError):
    """The state of what was asked for does not allow it."""


class InvalidError(ClientError):
    """The request has the wrong form or is over a limit."""


class PartialError(ClientError):
    """Some records of a batch were refused; `results` has one element a record, in the order of the batch."""

    def __init__(self, results: "Sequence[Any]") -> None:
        refused = [each for each in results if isinstance(each, ClientError)]
        first = refused[0]
        super().__init__(
            first.code, f"{len(refused)} of {len(results)} records refused: {first.message}", hint=first.hint
        )
        self.results = list(results)


_KINDS: Final[Mapping[int, type[ClientError]]] = {
    2: InvalidError, 4: ForbiddenError, 5: UnreachableError, 6: MissingError,
    7: ConflictError, 8: ConflictError, 9: UnreachableError,
}  # fmt: skip
"""Exit code of a code -> the class that is raised for it."""


def fault(code: str, message: str = "", *, hint: str = "") -> ClientError:
    """Return the error of a code, of the class that belongs to it."""
    return _KINDS.get(CODES[code].exit, ClientError)(code, message, hint=hint)


def refusal(form: Mapping[str, Any], status: int = 500) -> ClientError:
    """Return the error of an error form, ready to be raised.

    An unknown code of a newer daemon is named in the message and replaced by the nearest of ours.
    """
    wire = form.get("code")
    code = cli_code(wire) if isinstance(wire, str) else ""
    message, hint = form.get("message"), form.get("hint")
    text = message if isinstance(message, str) else f"the daemon answered {status}"
    if 300 <= status < 400:
        text, code, hint = f"what answers there redirects ({status}), and no token follows", "redirect", _FINAL
    elif code not in CODES:
        text, code = f"{text} ({code or status})", _NEAREST.get(status, "usage" if 400 <= status < 500 else "internal")
    error = fault(code, text, hint=hint if isinstance(hint, str) else "")
    error.facts = {name: value for name, value in form.items() if name not in _OWN_KEYS}
    error.http_status = status
    return error
