"""Numbers as Redis reads and writes them, and the fixed point of float counters."""

from __future__ import annotations

import re
from decimal import ROUND_HALF_EVEN, Context, Decimal

INT64_MIN = -(1 << 63)
INT64_MAX = (1 << 63) - 1
SCALE = 10**9
"""A float counter counts in units of 1e-9."""

_INTEGER = re.compile(rb"(?:0|-?[1-9][0-9]{0,18})\Z")
_FLOAT = re.compile(rb"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:[eE]([+-]?)0*([0-9]+))?\Z")
_FLOAT_BYTES = 5 * 1024
"""Redis reads no longer ones."""
_FLOAT_MAX = Decimal("1.1897314953572317650e+4932")
_FLOAT_MIN = Decimal("1.8225997659412373013e-4951")
"""What 80-bit floating point can hold: the largest, and the smallest that is not rounded to 0."""
_UNIT = Decimal("1e-9")
_EXACT = Context(prec=2 * _FLOAT_BYTES)
_INFINITE = re.compile(rb"[+-]?inf(?:inity)?\Z", re.I)


class NotANumber(ValueError):
    """The text is no number of the wanted kind, or out of its range."""


def parse_int(text: bytes) -> int:
    """A decimal int64 without sign plus, spaces or leading zeros."""
    if not _INTEGER.match(text):
        raise NotANumber("value is not an integer or out of range")
    value = int(text)
    if not INT64_MIN <= value <= INT64_MAX:
        raise NotANumber("value is not an integer or out of range")
    return value


def parse_scaled(text: bytes) -> int:
    """A decimal number in units of 1e-9, rounded half to even at the ninth place.

    What Redis refuses as no float is refused with its words: what 80 bits cannot hold, too.
    """
    if _INFINITE.match(text):
        raise NotANumber("increment would produce NaN or Infinity")
    found = _FLOAT.match(text) if len(text) < _FLOAT_BYTES else None
    if found is None:
        raise NotANumber("value is not a valid float")
    mantissa, sign, digits = (part or b"" for part in found.groups())
    value = Decimal(mantissa.decode())
    if not value:
        return 0
    exponent = int(digits[:6] or 0) * (-1 if sign == b"-" else 1)
    if not _FLOAT_MIN <= abs(value := value.scaleb(exponent, _EXACT)) <= _FLOAT_MAX:
        raise NotANumber("value is not a valid float")
    return scale(value)


def scale(value: Decimal) -> int:
    """A decimal number in units of 1e-9; NotANumber beyond +-9,223,372,036."""
    if not value.is_finite() or value.adjusted() > 10:
        raise NotANumber("value is out of range: a float counter holds up to 9223372036")
    # Rounded once: a product would be cut to 28 digits before.
    scaled = int(value.quantize(_UNIT, ROUND_HALF_EVEN, _EXACT).scaleb(9, _EXACT))
    if not INT64_MIN <= scaled <= INT64_MAX:
        raise NotANumber("value is out of range: a float counter holds up to 9223372036")
    return scaled


def scaled_text(scaled: int) -> bytes:
    """The decimal text of a number in units of 1e-9, without trailing zeros."""
    whole, part = divmod(abs(scaled), SCALE)
    sign = b"-" if scaled < 0 else b""
    if not part:
        return b"%b%d" % (sign, whole)
    return b"%b%d.%b" % (sign, whole, (b"%09d" % part).rstrip(b"0"))


def count_text(value: int, is_float: bool) -> bytes:
    """A counter's value as text."""
    return scaled_text(value) if is_float else b"%d" % value
