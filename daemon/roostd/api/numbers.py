"""Numbers as Redis reads and writes them, and the fixed point of float counters."""

from __future__ import annotations

import re
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation

INT64_MIN = -(1 << 63)
INT64_MAX = (1 << 63) - 1
SCALE = 10**9
"""A float counter counts in units of 1e-9."""

_INTEGER = re.compile(rb"(?:0|-?[1-9][0-9]{0,18})\Z")
_FLOAT = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?\Z")
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
    """A decimal number in units of 1e-9, rounded half to even at the ninth place."""
    if _INFINITE.match(text):
        raise NotANumber("increment would produce NaN or Infinity")
    if len(text) > 256 or not _FLOAT.match(text):
        raise NotANumber("value is not a valid float")
    return scale(Decimal(text.decode()))


def scale(value: Decimal) -> int:
    """A decimal number in units of 1e-9; NotANumber beyond +-9,223,372,036."""
    if not value.is_finite() or value.adjusted() > 10:
        raise NotANumber("value is out of range: a float counter holds up to 9223372036")
    try:
        scaled = int((value * SCALE).to_integral_value(ROUND_HALF_EVEN))
    except InvalidOperation:
        raise NotANumber("value is not a valid float") from None
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
