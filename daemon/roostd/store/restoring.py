"""Making a store out of a backup: `roost restore FILE DIR`.

The file is read twice: once to check all of it, then to apply it. While a restore is at work the
directory holds a mark that keeps everything else from opening it; the mark is taken away last, so
a restore that was killed leaves nothing that looks like a store, and is begun again.

The result is another store (new id, new actor, an empty log): the actor of the one that was backed
up may have written since, and what it wrote comes back from the neighbours as anybody else's. A
row of meta (`RESTORED`) tells the node to ask its neighbours what was erased, before it serves
sessions.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lmdb
import msgspec

from roost_crdt import digest, logformat
from roost_crdt.errors import BadRequest, ConfigError, CorruptData
from roost_crdt.logformat import Entry
from roost_crdt.record import RowOp, decode_rows
from roost_crdt.rows.layout import unseal
from roostd import segments
from roostd.index import SCHEMA, Index
from roostd.log import StoreFailed
from roostd.store import backupformat, identity
from roostd.store.applier import Batch, sealed_row
from roostd.store.backupformat import Chunk, ChunkReader, End, Head, KindPairs, Pairs
from roostd.store.opening import create_identity
from roostd.store.remaking import digest_of
from roostd.store.replay import check_entry, redo
from roostd.store.state import KEY_VALUE_KINDS, State
from roostd.store.sums import digest_pairs
from roostd.store.upgrading import OLDEST

RESTORED = b"restored"
"""In meta of a restored store until its neighbours have said what was erased (msgpack: who has)."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how many of how many bytes."""

_WRITE_BYTES = 8 << 20
_MAP_MARGIN_BYTES = 256 << 20
_MAP_FACTOR = 4
_KEY_BYTES_MAX = 511
_HARMLESS = frozenset(("lock", "lost+found", identity.RESTORING))
_OURS = frozenset(("index", "log", "clean"))


@dataclass(frozen=True, slots=True)
class Verified:
    """A backup that is whole."""

    head: Head
    end: End
    size: int


@dataclass(frozen=True, slots=True)
class Restored:
    """`warnings`: what is worth a look; the store is usable all the same."""

    verified: Verified
    store_id: bytes
    warnings: list[str]


def verify_backup(file: Path, progress: Progress = lambda *_: None) -> Verified:
    """Read and check a whole backup file. CorruptData names file, chunk and byte; ConfigError
    for a store of another release's schema."""
    size = file.stat().st_size
    check = _Check(str(file))
    with backupformat.open_backup(file) as stream:
        for chunk in ChunkReader(stream, str(file)):
            check.take(chunk)
            progress("checking", chunk.end, size)
    return check.verified(size)


class _Check:
    """Looks at every row, pair and entry without keeping any."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._head: Head | None = None
        self._end: End | None = None
        self._seq = 0
        self._counts = [0, 0, 0]

    def take(self, chunk: Chunk) -> None:
        try:
            self._take(chunk)
        except CorruptData as error:
            place = f"{self._name}: chunk {chunk.number} at byte {chunk.offset}"
            raise CorruptData(f"{place}: {error}") from error

    def _take(self, chunk: Chunk) -> None:
        content = chunk.content
        if isinstance(content, Head):
            self._take_head(content)
        elif isinstance(content, End):
            self._end = content
            counts = [content.rows, content.pairs, content.entries]
            if counts != self._counts or content.seq != self._seq:
                raise CorruptData(f"it counts {counts} rows, pairs and entries, not {self._counts}")
        elif isinstance(content, KindPairs):
            self._counts[1] += len(content.pairs)
            keys_fit = all(0 < len(key) <= _KEY_BYTES_MAX for key, _ in content.pairs)
            if content.kind not in KEY_VALUE_KINDS or not keys_fit:
                raise CorruptData("pairs that no store holds")
        elif chunk.kind == backupformat.ROWS:
            self._counts[0] += len(content)
            for name, sealed in content:
                list(decode_rows([RowOp(name, *unseal(name, sealed))]))
        else:
            self._counts[2] += len(content)
            for entry in content:
                if entry.seq != self._seq + 1:
                    raise CorruptData(f"entry {entry.seq} where {self._seq + 1} is due")
                self._seq = entry.seq
                check_entry(entry)

    def _take_head(self, head: Head) -> None:
        if not OLDEST <= head.schema <= SCHEMA:
            raise ConfigError(
                f"{self._name}: a backup of a store with schema {head.schema}, this release reads "
                f"{SCHEMA}; use the release that wrote it"
            )
        self._head, self._seq = head, head.seq

    def verified(self, size: int) -> Verified:
        assert self._head is not None, "the reader begins with HEAD"
        assert self._end is not None, "the reader ends with END"
        return Verified(self._head, self._end, size)


def restore(
    file: Path,
    directory: Path,
    *,
    random_bytes: Callable[[int], bytes],
    progress: Progress = lambda *_: None,
) -> Restored:
    """Check a backup, then make a store of it in an empty (or new) directory.

    Raises CorruptData (the file, with the place), ConfigError (another schema), BadRequest (the
    directory is not empty), StoreLocked, StoreFailed (the disk), OSError (the file).
    """
    verified = verify_backup(file, progress)
    directory.mkdir(mode=0o750, parents=True, exist_ok=True)
    _refuse_used(directory)
    lock_fd = identity.lock_only(directory)
    try:
        _refuse_used(directory)
        _mark(directory)
        store_id, warnings = _apply(file, directory, verified, random_bytes, progress)
        # The daemon makes it anew, with the rights that its umask gives to readers.
        (directory / "index" / "lock.mdb").unlink(missing_ok=True)
        identity.give_to_owner(directory, *directory.iterdir())
        identity.unmark(directory, identity.RESTORING)
    except (lmdb.Error, OSError) as exc:
        room = os.statvfs(directory)
        raise StoreFailed(
            f"{directory}: the restore did not finish: {exc} ({room.f_bavail * room.f_frsize} "
            "bytes free on the disk); see to that, then run the same restore again"
        ) from exc
    finally:
        identity.unlock(lock_fd)
    return Restored(verified, store_id, warnings)


def _refuse_used(directory: Path) -> None:
    """Raise unless the directory is empty, or holds a restore that did not finish."""
    found = {path.name for path in directory.iterdir()} - _HARMLESS
    if found and not (found <= _OURS and (directory / identity.RESTORING).exists()):
        raise BadRequest(
            f"{directory} is not empty ({', '.join(sorted(found)[:3])}): a backup is restored into "
            "a new or an empty directory; move away what is there"
        )


def _mark(directory: Path) -> None:
    """From here on the directory is no store, until the mark is gone again."""
    identity.mark(directory, identity.RESTORING)
    segments.sync_directory(directory.parent)
    for name in ("index", "log"):
        shutil.rmtree(directory / name, ignore_errors=True)
    (directory / "log").mkdir(mode=0o750)


def _apply(
    file: Path,
    directory: Path,
    verified: Verified,
    random_bytes: Callable[[int], bytes],
    progress: Progress,
) -> tuple[bytes, list[str]]:
    index = Index(directory / "index", _MAP_MARGIN_BYTES + _MAP_FACTOR * verified.size)
    try:
        writer = _Writer(index, directory, verified.head)
        with backupformat.open_backup(file) as stream:
            for chunk in ChunkReader(stream, str(file)):
                writer.take(chunk)
                progress("restoring", chunk.end, verified.size)
        writer.flush()
        sums = digest_of(index, progress)
        end = verified.end
        warnings = []
        if end.digest is not None and digest.root(*sums, end.ended_ms) != end.digest:
            writer.vv = {}  # nothing is vouched for, so that neighbours send all they have
            warnings.append(
                "the digest of the restored rows is not the one that the backed-up store told: "
                "that one had lost rows, or its digest was wrong; neighbours send what they have, "
                "and roost check tells of the store that was backed up"
            )
        meta = [*digest_pairs(*sums), (b"vv", msgspec.msgpack.encode(writer.vv))]
        meta.append((RESTORED, msgspec.msgpack.encode([])))
        index.write((), {logformat.KIND_META: sorted(meta)})
        return create_identity(directory, index, random_bytes), warnings
    finally:
        index.close()


class _Writer:
    """Puts chunks into the index in the file's order, several in one transaction."""

    def __init__(self, index: Index, directory: Path, head: Head) -> None:
        self.vv = {actor: hlc for actor, hlc in head.vv.items() if hlc}
        self._index = index
        self._directory = directory
        self._rows: dict[bytes, bytes | None] = {}
        self._items: dict[int, dict[bytes, bytes | None]] = {}
        self._entries: list[Entry] = []
        self._bytes = 0

    def take(self, chunk: Chunk) -> None:
        content = chunk.content
        if chunk.kind == backupformat.ENTRIES:
            if self._rows or self._items:
                self.flush()
            self._entries += content
        elif chunk.kind in (backupformat.ROWS, backupformat.PAIRS):
            if self._entries:
                self.flush()
            self._put(content)
        self._bytes += chunk.end - chunk.offset
        if self._bytes > _WRITE_BYTES:
            self.flush()

    def _put(self, content: KindPairs | Pairs) -> None:
        if isinstance(content, KindPairs):
            self._items.setdefault(content.kind, {}).update(content.pairs)
        else:
            self._rows.update(content)

    def flush(self) -> None:
        """Write what is gathered: pages as they are, entries joined as after a crash."""
        if self._entries:
            batch = self._replayed()
            for name in sorted(batch.rows):
                self._rows[name] = sealed_row(name, batch.rows[name])
            self._items = dict(batch.items)
        items = {kind: sorted(pairs.items()) for kind, pairs in self._items.items()}
        self._index.write(sorted(self._rows.items()), items)
        self._rows, self._items, self._entries, self._bytes = {}, {}, [], 0

    def _replayed(self) -> Batch:
        state = State(self._index, self.vv, 0, 0)
        for entry in self._entries:
            redo(state, entry, self._directory)
        self.vv = {actor: hlc for actor, hlc in state.vv.items() if hlc}
        return state.batch
