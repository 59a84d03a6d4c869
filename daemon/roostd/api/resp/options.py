"""Options that several commands share: expiries, SET's, SCAN's."""

from __future__ import annotations

from dataclasses import dataclass

from roostd.api.numbers import NotANumber, parse_int
from roostd.api.resp.table import RespError, syntax_error

EXPIRES_MS_MAX = (1 << 63) - 1
STORED_MS_MAX = (1 << 48) - 1
"""What rows hold; a later expiry (8,900 years on) never comes."""

_UNITS = {b"EX": (1_000, True), b"PX": (1, True), b"EXAT": (1_000, False), b"PXAT": (1, False)}


def invalid_expire(name: str) -> RespError:
    return RespError(f"ERR invalid expire time in '{name}' command")


def read_expiry(text: bytes, unit_ms: int, now_ms: int, name: str, *, relative: bool = True) -> int:
    """Wall milliseconds of an expiry that must be positive, as SET and SETEX want it."""
    number = parse_int(text)
    if number <= 0 or number * unit_ms > EXPIRES_MS_MAX:
        raise invalid_expire(name)
    expires_ms = number * unit_ms + (now_ms if relative else 0)
    if expires_ms > EXPIRES_MS_MAX:
        raise invalid_expire(name)
    return min(expires_ms, STORED_MS_MAX)


def read_expire(text: bytes, unit_ms: int, now_ms: int, name: str, *, relative: bool) -> int:
    """Wall milliseconds of EXPIRE's argument, which may lie in the past."""
    number = parse_int(text)
    expires_ms = number * unit_ms + (now_ms if relative else 0)
    if abs(number) * unit_ms > EXPIRES_MS_MAX or abs(expires_ms) > EXPIRES_MS_MAX:
        raise invalid_expire(name)
    return min(expires_ms, STORED_MS_MAX)


@dataclass(frozen=True, slots=True)
class Expiry:
    """GETEX's option, its number not yet looked at."""

    text: bytes = b""
    unit_ms: int = 0
    relative: bool = False

    @classmethod
    def read(cls, options: list[bytes]) -> Expiry | None:
        """None = no option. RespError for anything but one that GETEX has."""
        if not options:
            return None
        option = options[0].upper()
        if option == b"PERSIST" and len(options) == 1:
            return cls()
        unit = _UNITS.get(option)
        if unit is None or len(options) != 2:
            raise syntax_error()
        return cls(options[1], *unit)

    def expires_ms(self, now_ms: int) -> int:
        """Wall milliseconds; 0 = PERSIST."""
        if not self.unit_ms:
            return 0
        return read_expiry(self.text, self.unit_ms, now_ms, "getex", relative=self.relative)


@dataclass(frozen=True, slots=True)
class SetOptions:
    """SET's options; `expires_ms` None = the policy's ttl."""

    expires_ms: int | None = None
    keep_ttl: bool = False
    get: bool = False
    condition: str = ""


def read_set_options(options: list[bytes], now_ms: int) -> SetOptions:
    """Raises RespError as Redis does."""
    expires_ms: int | None = None
    keep_ttl = get = False
    condition = ""
    timed = False
    at = 0
    while at < len(options):
        option = options[at].upper()
        at += 1
        if option in (b"NX", b"XX"):
            if condition and condition.encode() != option:
                raise syntax_error()
            condition = option.decode()
        elif option == b"GET":
            get = True
        elif option == b"KEEPTTL" and not timed:
            keep_ttl = True
        elif option in _UNITS and at < len(options) and not timed and not keep_ttl:
            unit_ms, relative = _UNITS[option]
            expires_ms = read_expiry(options[at], unit_ms, now_ms, "set", relative=relative)
            timed = True
            at += 1
        else:
            raise syntax_error()
    return SetOptions(expires_ms, keep_ttl, get, condition)


@dataclass(frozen=True, slots=True)
class ScanOptions:
    match: bytes | None = None
    count: int = 10
    type: bytes | None = None


def read_scan_options(options: list[bytes], *, typed: bool = False) -> ScanOptions:
    """MATCH, COUNT and, for SCAN, TYPE."""
    match: bytes | None = None
    kind: bytes | None = None
    count = 10
    if len(options) % 2:
        raise syntax_error()
    for option, value in zip(options[::2], options[1::2], strict=True):
        name = option.upper()
        if name == b"MATCH":
            match = value
        elif name == b"COUNT":
            try:
                count = parse_int(value)
            except NotANumber:
                raise RespError("ERR value is not an integer or out of range") from None
            if count < 1:
                raise syntax_error()
        elif name == b"TYPE" and typed:
            kind = value.lower()
        else:
            raise syntax_error()
    return ScanOptions(match, min(count, 10_000), kind)
