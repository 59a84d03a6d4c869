"""What happened in a run: readable lines, and counts of what was reached."""

from __future__ import annotations

import hashlib
from collections import Counter

LINES_MAX = 200_000


class Trace:
    """Lines of one run (kept only if asked for), their hash, and counts by `kind:name`."""

    def __init__(self, *, keep: bool) -> None:
        self.lines: list[str] = []
        self.reached: Counter[str] = Counter()
        self._keep = keep
        self.detailed = False
        """Session frames too; they are told in lines that a plain run does not have."""
        self._hash = hashlib.blake2b(digest_size=8)

    def say(self, now_ms: float, who: str, text: str) -> None:
        self._hash.update(f"{now_ms:.3f} {who} {text}\n".encode())
        if self._keep and len(self.lines) < LINES_MAX:
            self.lines.append(f"{now_ms / 1000:9.3f}  {who:<4} {text}")

    def count(self, kind: str, name: str) -> None:
        self.reached[f"{kind}:{name}"] += 1

    def fingerprint(self) -> str:
        """Equal for equal runs."""
        return self._hash.hexdigest()
