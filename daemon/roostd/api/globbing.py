"""Redis globs: `*`, `?`, `[a-z]`, `[^a]`, backslash."""

from __future__ import annotations

import re
from functools import lru_cache

SPECIAL = b"*?[\\"


@lru_cache(maxsize=1_024)
def compiled(glob: bytes) -> re.Pattern[bytes]:
    """A pattern that matches a whole key as Redis' KEYS would."""
    parts: list[bytes] = []
    at = 0
    while at < len(glob):
        char = glob[at : at + 1]
        at += 1
        if char == b"*":
            if not parts or parts[-1] != b".*":
                parts.append(b".*")
        elif char == b"?":
            parts.append(b".")
        elif char == b"[":
            found, at = _class(glob, at)
            parts.append(found)
        elif char == b"\\" and at < len(glob):
            parts.append(re.escape(glob[at : at + 1]))
            at += 1
        else:
            parts.append(re.escape(char))
    return re.compile(b"".join(parts) + rb"\Z", re.S)


def _class(glob: bytes, at: int) -> tuple[bytes, int]:
    """A bracket expression from behind its `[`; an unclosed one ends with the glob."""
    negated = glob[at : at + 1] == b"^"
    at += negated
    members = bytearray()
    while at < len(glob) and glob[at : at + 1] != b"]":
        if glob[at : at + 1] == b"\\" and at + 1 < len(glob):
            at += 1
            members.append(glob[at])
            at += 1
        elif glob[at + 1 : at + 2] == b"-" and at + 2 < len(glob):
            low, high = sorted((glob[at], glob[at + 2]))
            members += bytes(range(low, high + 1))
            at += 3
        else:
            members.append(glob[at])
            at += 1
    at += 1
    if not members:
        return (b"." if negated else b"(?!)"), at
    body = b"".join(re.escape(bytes([char])) for char in sorted(set(members)))
    return b"[" + (b"^" if negated else b"") + body + b"]", at


def literal_prefix(glob: bytes) -> bytes:
    """The bytes with which everything that matches begins."""
    for index, char in enumerate(glob):
        if char in SPECIAL:
            return glob[:index]
    return glob
