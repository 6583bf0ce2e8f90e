"""Canonical JSON in both directions, and strict decoding of foreign JSON.

Canonical: UTF-8, keys sorted by code point at every depth, no whitespace, short
escapes, other control characters as lower-case \\u00xx, everything else literal;
integral floats become exact integers, other floats their shortest round-trip
text.  No Unicode normalisation.  Equal values give equal bytes on every machine,
and record ids depend on that.

Refused as `bad-json`: NaN, infinities, duplicate keys, lone surrogates, integers
over 310 digits, nesting beyond the caller's limit, and floats whose integers make
the text more than GROWTH_TIMES as long: 1e300 has 6 characters and 301 digits, so
a small text could otherwise cost fifty times its size in memory and time.
"""

import json
import math
import re
from collections.abc import Callable
from typing import Any, Final

from .errors import SplError

NESTING_LEVELS_MAX: Final = 64
"""Part of the form of records and messages; the decoder recurses once a level."""
INTEGER_DIGITS_MAX: Final = 310
"""No finite float has more than 309 digits as an integer."""
GROWTH_TIMES: Final = 8
GROWTH_FREE_DIGITS: Final = 4096
"""Digits that the integers of floats may have in all, beside GROWTH_TIMES the length of the text that holds them."""

_SPACE: Final = " \t\n\r"
_INTEGRAL: Final = re.compile(r"[0-9](?:\.0|e\+[0-9]+)(?:[],}]|\Z)")
"""Finds each float that equals an integer as our encoder writes it, and seldom anything else."""


class CanonError(SplError):
    """The text is not the strict JSON that records and messages are made of."""


def encode(value: object) -> bytes:
    """Return the canonical JSON of a value of dicts with str keys, lists, str, int, float, bool, None.

    Raises CanonError "bad-json" for what has no canonical form.
    """
    try:
        text = _text(value)
        # A float that equals an integer prints as "1.0" or "1e+16"; only then is the slow walk needed.
        if (".0" in text or "e+" in text) and _INTEGRAL.search(text):
            text = _text(_exact(value, _Room(len(text))))
        return text.encode()
    except (ValueError, TypeError, RecursionError, OverflowError) as exc:
        raise CanonError("bad-json", f"no canonical form: {_reason(exc)}") from exc


def told(value: object) -> bytes:
    """Return compact JSON for an answer or event; a lone surrogate, which UTF-8 cannot hold, goes out escaped."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def decode(data: bytes, levels_max: int = NESTING_LEVELS_MAX) -> Any:
    """Return the value of strict JSON text; integral floats come back as int.

    Nesting counts arrays and objects.  Raises CanonError "bad-json".
    """
    try:
        text = data.decode()
        try:
            value = _value(_STRICT, text)
        except _IntegralFloat:
            decoder = json.JSONDecoder(
                parse_float=_Room(len(data)).number, parse_int=_int, parse_constant=_constant, object_pairs_hook=_unique
            )
            value = decoder.decode(text)
        if data.count(b"{") + data.count(b"[") > levels_max and _levels(value) > levels_max:
            raise CanonError("bad-json", f"nested deeper than {levels_max} levels")
        if b"\\u" in data:
            encode(value)
    except (ValueError, RecursionError) as exc:
        raise CanonError("bad-json", f"not strict JSON: {_reason(exc)}") from exc
    return value


def decode_canonical(data: bytes, levels_max: int = NESTING_LEVELS_MAX) -> Any | None:
    """Return the value of canonical JSON text, or None if the text is not canonical.

    The hot path for envelopes: parsing plainly and encoding again is cheaper than strict hooks, and equal bytes
    prove that no key was double, no number odd and no surrogate alone.
    """
    try:
        text = data.decode()
        value = _value(_PLAIN, text)
        if _text(value) != text:
            return None
    except (ValueError, RecursionError):
        return None
    # A float that equals an integer re-encodes to itself here, but is not canonical.
    if (".0" in text or "e+" in text) and _INTEGRAL.search(text):
        try:
            if encode(value) != data:
                return None
        except CanonError:
            return None
    if data.count(b"{") + data.count(b"[") > levels_max and _levels(value) > levels_max:
        return None
    return value


class _IntegralFloat(Exception):
    """A float that needs a room of its text's own."""


class _Room:
    """How many digits the integers of one text's floats may still have."""

    __slots__ = ("_digits",)

    def __init__(self, length: int) -> None:
        self._digits = GROWTH_FREE_DIGITS + GROWTH_TIMES * length

    def number(self, text: str) -> float | int:
        """Return the number that a float's text stands for; raise ValueError beyond the room."""
        return self.exact(float(text))

    def exact(self, number: float) -> float | int:
        """Return an integral float as the integer it equals; raise ValueError beyond the room, and for infinities."""
        if not math.isfinite(number):
            raise ValueError("number out of range")
        if not number.is_integer():
            return number
        self._digits -= int(math.log10(abs(number) or 1)) + 1
        if self._digits < 0:
            raise ValueError("floats whose integers are far longer than the text")
        return int(number)


def _exact(value: Any, room: _Room) -> Any:
    if isinstance(value, float):
        return room.exact(value)
    if isinstance(value, list | tuple):
        return [_exact(item, room) for item in value]
    if isinstance(value, dict):
        return {key: _exact(item, room) for key, item in value.items()}
    return value


def _value(decoder: json.JSONDecoder, text: str) -> Any:
    """Return what `decoder.decode` does, which looks for space around the text by two regexes: a microsecond."""
    value, end = decoder.raw_decode(text, len(text) - len(text.lstrip(_SPACE)))
    if text[end:].strip(_SPACE):
        raise ValueError(f"extra data at {end}")
    return value


def _levels(value: Any) -> int:
    """Return the depth of nested arrays and objects; iterative, because the input is hostile."""
    depth, layer = 0, [value]
    while layer := [item for item in layer if isinstance(item, dict | list)]:
        depth += 1
        layer = [child for item in layer for child in (item.values() if isinstance(item, dict) else item)]
    return depth


def _int(text: str) -> int:
    if len(text) - text.startswith("-") > INTEGER_DIGITS_MAX:
        raise ValueError(f"integer of more than {INTEGER_DIGITS_MAX} digits")
    return int(text)


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number) or number.is_integer():
        raise _IntegralFloat(text)
    return number


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    return result


def _reason(exc: BaseException) -> str:
    if isinstance(exc, RecursionError):
        return "nested too deep"
    if isinstance(exc, UnicodeError):
        return "not UTF-8, or a lone surrogate"
    return str(exc)[:120]


def _encoder() -> Callable[[Any], str]:
    """Return the function that writes a value.  The encoder of `json` would be built again with each call: 1.4 us."""
    encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return encoder.encode
    # No markers against cycles: those end as RecursionError.
    pieces = make(None, encoder.default, json.encoder.encode_basestring, None, ":", ",", True, False, False)
    return lambda value: "".join(pieces(value, 0))


_text: Final = _encoder()
_PLAIN: Final = json.JSONDecoder(parse_int=_int)
_STRICT: Final = json.JSONDecoder(
    parse_float=_float, parse_int=_int, parse_constant=_constant, object_pairs_hook=_unique
)
