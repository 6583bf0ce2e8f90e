"""The forms of answers, and the few checks that every handler shares."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..auth import Principal
from ..core import bearer, canon
from ..core.errors import SplError
from ..net.routes import Request, Response


def json_response(value: object, status: int = 200) -> Response:
    """Return one JSON value as answer."""
    return Response(status, json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def list_response(data: Sequence[object]) -> Response:
    """Return the list form of the wire."""
    return json_response({"object": "list", "data": data})


def field_error(name: str, fault: str) -> SplError:
    """Return the refusal of one field."""
    return SplError("bad-field", f"{name}: {fault}")


def number(query: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    """Return a number of the query within its bounds; raise "bad-field"."""
    text = query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 19 or not low <= int(text) <= high:
        raise field_error(name, f"must be a number from {low} to {high}")
    return int(text)


def members(request: Request, known: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """Return the JSON object of the body with only known members of the right type; an empty body is {}.

    Raises "bad-json", "bad-field".
    """
    value = canon.decode(request.body) if request.body.strip() else {}
    if not isinstance(value, dict):
        raise SplError("bad-field", "the body is a JSON object")
    for name, item in value.items():
        if name not in known:
            raise field_error(name[:40], f"is not known here; known are {', '.join(known)}")
        if not isinstance(item, known[name]) or (isinstance(item, bool) and known[name] is int):
            raise field_error(name, "has the wrong type")
    return value


def texts(value: object, name: str, count_max: int = 64) -> tuple[str, ...]:
    """Return a bounded list of short texts as a tuple; raise "bad-field"."""
    if not isinstance(value, list) or len(value) > count_max:
        raise field_error(name, f"must be a list of at most {count_max} texts")
    if not all(isinstance(item, str) and 0 < len(item) <= 256 for item in value):
        raise field_error(name, "holds texts of 1 to 256 characters")
    return tuple(value)


def is_admin(principal: Principal) -> bool:
    """Tell whether the principal may see what the daemon keeps for itself."""
    return bearer.holds(principal.scopes, bearer.ADMIN)
