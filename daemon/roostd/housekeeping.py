"""The log's own thread: makes segments ahead, seals full ones, deletes old ones."""

from __future__ import annotations

import errno
import os
import queue
import threading
from collections.abc import Callable, Collection
from pathlib import Path

from roost_crdt import logformat
from roost_crdt.errors import CorruptData
from roost_crdt.logformat import Secret
from roostd import segments
from roostd.blanking import blank_segment
from roostd.segments import Segment

_RETRY_S = 0.25
_RETRY_MAX_S = 2.0
"""Up to so long after a segment could not be written though there seemed to be room: an attempt may
take what there is away from everybody."""


class Housekeeper:
    """Keeps one spare segment ready and does the slow file work of the log.

    `problem` says why there is no spare ("" while there is one or it is being made): a full
    disk shows here, and it clears by itself when there is room. `upkeep_error` is the last
    failure to seal or delete a segment, which costs time or room, never data.
    """

    def __init__(
        self, directory: Path, segment_bytes: int, secret: Secret, spares: list[Segment]
    ) -> None:
        self.problem = ""
        self.upkeep_error = ""
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._secret = secret
        self._spares = spares
        self._spare: Segment | None = None
        self._spare_fd = -1
        """Open ahead too: a segment that is begun needs no file, so it is there for sure."""
        self._retry_s = _RETRY_S
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._wanted = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="roost-log", daemon=True)

    @property
    def spare(self) -> Segment | None:
        """The segment made ahead, if it is ready."""
        return self._spare

    def start(self, next_number: int) -> None:
        self._wanted = next_number
        for segment in self._spares:
            if segment.number == next_number and segment.size >= self._segment_bytes:
                self._offer(segment)
        self._thread.start()

    def stop(self) -> None:
        """Finish the jobs in hand and end the thread; what is to be blanked is left."""
        self._stopping = True
        self._jobs.put(None)
        self._thread.join()
        if self._spare_fd >= 0:
            os.close(self._spare_fd)
            self._spare_fd = -1

    def take_spare(self) -> tuple[Segment, int]:
        """Use the spare, its file open; the next one is begun at once. OSError: it cannot be, as
        somebody has deleted it."""
        segment, fd = self._spare, self._spare_fd
        assert segment is not None
        if not os.fstat(fd).st_nlink:
            raise FileNotFoundError(errno.ENOENT, "it was deleted", str(segment.path))
        self._spare, self._spare_fd = None, -1
        self._wanted = segment.number + 1
        self._jobs.put(lambda: None)
        return segment, fd

    def seal(self, segment: Segment, last_seq: int) -> None:
        """Write the index behind a full segment."""

        def job() -> None:
            if segment.origins is not None and segment.complete:
                segments.seal(segment, last_seq)

        self._jobs.put(job)

    def index_earlier(self, segment: Segment) -> None:
        """Index the part of a segment that lies before what recovery scanned."""

        def job() -> None:
            segment.earlier = segments.index_of(
                segment, logformat.SEGMENT_HEADER_BYTES, segment.indexed_from, self._secret
            )

        self._jobs.put(job)

    def load(self, segment: Segment) -> None:
        """Load or make up the index of a segment that is no longer written; asked for once."""
        if segment.asked:
            return
        segment.asked = True
        if segment.origins is not None:
            self.index_earlier(segment)
            return

        def job() -> None:
            if segment.origins is None:
                segment.origins = segments.load_index(segment, self._secret)

        self._jobs.put(job)

    def delete(self, segment: Segment) -> None:
        def job() -> None:
            segment.path.unlink(missing_ok=True)
            segments.sync_directory(self._directory)

        self._jobs.put(job)

    def blank(
        self,
        segment: Segment,
        kind: int,
        owners: Collection[bytes],
        last_seq: int,
        done: Callable[[int, str], None],
    ) -> None:
        """Take pairs out of a full segment (roostd.blanking); `done` is told by the thread how
        many, and why it could not be done."""

        def job() -> None:
            if self._stopping:
                return  # the next start goes on
            try:
                count = blank_segment(segment, kind, owners, last_seq, self._secret)
            except (OSError, CorruptData) as exc:
                done(0, str(exc))
            else:
                done(count, "")

        self._jobs.put(job)

    def _run(self) -> None:
        while True:
            if self._spare is None:
                self._make_spare()
            try:
                job = self._jobs.get(timeout=self._retry_s if self._spare is None else None)
            except queue.Empty:
                continue
            if job is None:
                return
            try:
                job()
            except (OSError, CorruptData) as exc:
                # An index that could not be written is read from the groups instead; a file
                # that could not be deleted is deleted at the next start.
                self.upkeep_error = str(exc)

    def _make_spare(self) -> None:
        free = _free_bytes(self._directory)
        reason, retry_s = os.strerror(errno.ENOSPC), _RETRY_S
        if free is None or free >= self._segment_bytes:
            try:
                self._offer(segments.create(self._directory, self._wanted, self._segment_bytes))
            except OSError as exc:
                reason, retry_s = str(exc.strerror), min(2 * self._retry_s, _RETRY_MAX_S)
            else:
                self.problem, self._retry_s = "", _RETRY_S
                return
        self._retry_s = retry_s
        room = "" if free is None else f" ({free} bytes free)"
        self.problem = (
            f"the next log segment, of {self._segment_bytes} bytes, cannot be made in "
            f"{self._directory}{room}: {reason}"
        )

    def _offer(self, segment: Segment) -> None:
        self._spare_fd = os.open(segment.path, os.O_RDWR | os.O_CLOEXEC)
        self._spare = segment


def _free_bytes(directory: Path) -> int | None:
    """Bytes free on the disk of a directory; None: it does not tell."""
    try:
        room = os.statvfs(directory)
    except OSError:
        return None
    return room.f_bavail * room.f_frsize if room.f_blocks else None
