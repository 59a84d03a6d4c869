"""A node's disk: what the page cache shows, what is durable, and how both can lie.

Files are written through the page cache. A killed process loses nothing that was written; a power
cut loses what was not synced, or any part of it in sectors of 512 bytes. A lying disk says that it
has synced and loses everything since it began to lie. The index stands for LMDB: it changes in
whole transactions, each durable when it returns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

SECTOR_BYTES = 512


@dataclass(slots=True)
class Index:
    """The committed content of the index; `rows` hold type and body, `items` are by entry kind."""

    meta: dict[bytes, bytes] = field(default_factory=dict)
    rows: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)
    items: dict[int, dict[bytes, bytes]] = field(default_factory=dict)
    vv: dict[int, int] = field(default_factory=dict)
    applied_seq: int = 0
    position: tuple[int, int] | None = None
    """Segment number and offset at which the log goes on."""
    head: tuple[int, int, bytes] = (0, 0, bytes(16))

    def copy(self) -> Index:
        return Index(
            dict(self.meta),
            dict(self.rows),
            {kind: dict(pairs) for kind, pairs in self.items.items()},
            dict(self.vv),
            self.applied_seq,
            self.position,
            self.head,
        )


@dataclass(slots=True)
class Image:
    """Everything durable at one moment."""

    files: dict[int, bytes]
    index: Index


class Disk:
    """The segments of one store's log, by number, and its index."""

    def __init__(self) -> None:
        self.files: dict[int, bytearray] = {}
        self.index = Index()
        self.boot_id = b"boot-0"
        self.file_id = b"disk-0"
        self.failing = False
        """The next sync fails, and what it should have synced may be gone."""
        self._unsynced: dict[int, list[tuple[int, bytes]]] = {}
        self._truth: Image | None = None

    @property
    def lying(self) -> bool:
        return self._truth is not None

    def create(self, number: int, size: int) -> None:
        """A file of zeros, durable at once: it was made ahead."""
        self.files[number] = bytearray(size)

    def write(self, number: int, offset: int, data: bytes) -> None:
        file = self.files[number]
        self._unsynced.setdefault(number, []).append(
            (offset, bytes(file[offset : offset + len(data)]))
        )
        file[offset : offset + len(data)] = data

    def sync(self) -> None:
        """OSError if it failed; then nothing that is unsynced can be trusted."""
        if self.failing:
            self.failing = False
            raise OSError("fdatasync: input/output error")
        self._unsynced.clear()

    def delete(self, number: int) -> None:
        del self.files[number]
        self._unsynced.pop(number, None)

    def lie(self) -> None:
        """From now on nothing becomes durable, whatever is said."""
        if self._truth is None:
            self._truth = self.image()

    def come_clean(self) -> None:
        """What was said to be durable is, by now."""
        self._truth = None

    def lose_power(self, random: Random) -> str:
        """What is left after a power cut; says what was lost."""
        if self._truth is not None:
            self.restore(self._truth)
            self._truth = None
            return "all since the disk began to lie"
        lost = torn = 0
        for number, writes in self._unsynced.items():
            file = self.files[number]
            keep = random.choice((0.0, 0.5, 1.0))
            for offset, before in reversed(writes):
                first = offset - offset % SECTOR_BYTES
                for sector in range(first, offset + len(before), SECTOR_BYTES):
                    start, end = (
                        max(sector, offset),
                        min(sector + SECTOR_BYTES, offset + len(before)),
                    )
                    if random.random() >= keep:
                        file[start:end] = before[start - offset : end - offset]
                        lost += end - start
                    else:
                        torn += end - start
        self._unsynced.clear()
        return f"{lost} unsynced bytes" + (f", {torn} of them stayed" if torn and lost else "")

    def image(self) -> Image:
        """A copy of what is durable."""
        files = {number: bytearray(file) for number, file in self.files.items()}
        for number, writes in self._unsynced.items():
            for offset, before in reversed(writes):
                files[number][offset : offset + len(before)] = before
        return Image({number: bytes(file) for number, file in files.items()}, self.index.copy())

    def restore(self, image: Image) -> None:
        self.files = {number: bytearray(file) for number, file in image.files.items()}
        self.index = image.index.copy()
        self._unsynced.clear()
