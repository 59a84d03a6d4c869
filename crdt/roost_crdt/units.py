"""Durations and sizes as a person writes them: "24h", "8GiB".

A number without a unit is refused: it would be read as the wrong one sooner or later.
"""

from __future__ import annotations

import re

from roost_crdt.limits import GIB, KIB, MIB

__all__ = ["DURATION_MS_MAX", "DURATION_UNITS", "SIZE_UNITS", "duration_ms", "size_bytes"]

DURATION_UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
SIZE_UNITS = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": 1024 * GIB}
DURATION_MS_MAX = 3_650 * DURATION_UNITS["d"]
SIZE_BYTES_MAX = 1024 * SIZE_UNITS["TiB"]

_AMOUNT = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,6}))?[ ]?([A-Za-z]*)", re.ASCII)


def duration_ms(text: object) -> int:
    """Milliseconds of "500ms", "30s", "1.5h", "7d"; ValueError says what is wrong with it."""
    milliseconds = _amount(text, "duration", DURATION_UNITS, "24h")
    if not 1 <= milliseconds <= DURATION_MS_MAX:
        raise ValueError(f'"{text}" is out of range; a duration is 1ms to 3650d')
    return milliseconds


def size_bytes(text: object) -> int:
    """Bytes of "512B", "64MiB", "1.5GiB"; ValueError says what is wrong with it."""
    size = _amount(text, "size", SIZE_UNITS, "8GiB")
    if not 1 <= size <= SIZE_BYTES_MAX:
        raise ValueError(f'"{text}" is out of range; a size is 1B to 1024TiB')
    return size


def _amount(text: object, what: str, units: dict[str, int], example: str) -> int:
    allowed = ", ".join(units)
    if isinstance(text, int | float) and not isinstance(text, bool):
        raise ValueError(f'{text} has no unit; write a {what} as a string such as "{example}"')
    if not isinstance(text, str):
        raise ValueError(f'a {what} is a string such as "{example}"')
    found = _AMOUNT.fullmatch(text.strip())
    if found is None:
        raise ValueError(f'"{text}" is not a {what}; write a number and one of {allowed}')
    whole, fraction, unit = found.groups()
    if not unit:
        raise ValueError(f'"{text}" has no unit; use one of {allowed}')
    if unit not in units:
        raise ValueError(
            f'"{text}" has the unit "{unit}", which is no {what}; use one of {allowed}'
        )
    scale = units[unit]
    return int(whole) * scale + (int(fraction) * scale // 10 ** len(fraction) if fraction else 0)
