"""Globs over keys: `*` stands for any run of bytes (also none); every other byte is itself."""

from __future__ import annotations

__all__ = ["glob_matches", "globs_meet"]


def glob_matches(parts: tuple[bytes, ...], key: bytes) -> bool:
    """Whether the glob, split at its stars into `parts`, matches the whole `key`.

    Takes the leftmost place for each inner part, so the time is bounded by
    len(parts) * len(key), whatever the glob.
    """
    if len(parts) == 1:
        return key == parts[0]
    head, tail = parts[0], parts[-1]
    if not (key.startswith(head) and key.endswith(tail)) or len(key) < len(head) + len(tail):
        return False
    at, end = len(head), len(key) - len(tail)
    for part in parts[1:-1]:
        found = key.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


def globs_meet(left: bytes, right: bytes) -> bool:
    """Whether some key is matched by both globs."""
    star = b"*"[0]
    # reach[j]: some text is matched by the part of `left` read so far and by right[:j].
    reach = [True] + [False] * len(right)
    for j, byte in enumerate(right):
        reach[j + 1] = reach[j] and byte == star
    for left_byte in left:
        before, reach = reach, [reach[0] and left_byte == star] + [False] * len(right)
        for j, right_byte in enumerate(right):
            if left_byte == star or right_byte == star:
                # The star stands for nothing, or swallows the other side's byte.
                reach[j + 1] = before[j + 1] or reach[j]
            else:
                reach[j + 1] = before[j] and left_byte == right_byte
    return reach[len(right)]
