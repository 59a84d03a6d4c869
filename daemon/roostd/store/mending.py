"""Mending a store that is open: rows that were lost to damage are put together from the log.

The log holds rows as they were written, and what neighbours have not acknowledged is there surely;
the rest comes from them (roostd.node.mending). What the log tells is joined aside, as far as memory
allows, and given to the store at the end: on its way it would show values that were deleted since.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from roost_crdt import logformat
from roost_crdt.digest import bucket_of
from roost_crdt.errors import CorruptData
from roost_crdt.limits import Limits
from roost_crdt.logformat import Entry
from roost_crdt.record import RowOp, decode_record, decode_rows
from roost_crdt.rows import encode_row, kept_row
from roost_crdt.rows.layout import Part, Row
from roostd.log import Log
from roostd.logrecovery import REPAIR
from roostd.sealing import KIND_NAMES
from roostd.store.applier import Applier
from roostd.store.lostpairs import LostPairs
from roostd.store.opening import BEGAN_EMPTY
from roostd.store.reads import names as names_of
from roostd.store.replay import LogReader, decode_drop, decode_row_ops
from roostd.store.scrub import Scrubbed
from roostd.store.state import KEY_VALUE_KINDS, State
from roostd.store.suspects import ALL

_WRITE_ROWS = 200
_WRITE_BYTES = 512 << 10

Forget = Callable[[int, bytes], Sequence[bytes] | None]
"""Kind and key of a pair that is lost: what else of its kind has to go with it, by prefixes; None:
it has to stay, refused by name."""
Accept = Callable[[Sequence[RowOp], Mapping[int, int]], None]


class Mender:
    """What is done about damage while the store is open. Called by the node's thread."""

    def __init__(
        self, log: Log, state: State, applier: Applier, accept: Accept, limits: Limits
    ) -> None:
        self.scrubbed: list[Scrubbed] = []
        """What scrubs found wrong, not taken note of yet."""
        self._log = log
        self._state = state
        self._applier = applier
        self._accept = accept
        self.lost = LostPairs(log, state)
        self._limits = limits
        self._passes = 0

    def lacking(self) -> frozenset[int]:
        """The buckets that lack rows; all while it is looked for what a read has met."""
        self.look()
        return ALL if self._passes > self._applier.scrub_passes else self._applier.suspects.buckets

    def check_backup(self) -> None:
        """CorruptData while rows are missing: a backup would lack them in silence."""
        lacking = self.lacking()
        if lacking:
            raise CorruptData(
                f"rows of {len(lacking)} buckets of keys were lost to damage on this node's disk, "
                "or are looked for, so a backup would lack some; they are fetched from neighbours: "
                f"back up again when they are back, or another node; without any, {REPAIR}"
            )

    @property
    def problem(self) -> str:
        """What a scrub found and could not mend; "" if all is well."""
        if self._applier.scrub_problem or not self.lost.gone:
            return self._applier.scrub_problem
        kind, key = next(iter(self.lost.gone))
        return (
            f"{len(self.lost.gone)} damaged entries are not in the log, and refused: "
            f"{KIND_NAMES[kind].decode()} {key!r}; {REPAIR}"
        )

    def take_note(self, scrubbed: Scrubbed) -> None:
        """A scrub has found something wrong."""
        self.scrubbed.append(scrubbed)
        self.lost.scrubbed(scrubbed.lost)

    def mend_pairs(self, forget: Forget) -> None:
        """Look at all pairs of an index whose pages are right before anybody reads them: damaged
        ones are put under their names again, or again from the log, or removed as `forget` says."""
        index, lost = self._state.index, self.lost
        for kind in KEY_VALUE_KINDS:
            for key in index.damaged_pairs(kind)[0]:
                if index.rename_damaged(kind, key):
                    lost.mended += 1
                else:
                    self._state.met(kind, key)
        while lost.step(lambda kind, items: index.write((), {kind: sorted(items.items())})):
            pass
        for kind, key in list(lost.gone):
            others = forget(kind, key)
            if others is not None:
                names = {
                    key,
                    *(n for prefix in others for n in names_of(self._state, kind, prefix)),
                }
                index.write((), {kind: [(name, None) for name in sorted(names)]})
                del lost.gone[kind, key]
                lost.forgotten += 1

    def look(self) -> None:
        """Where a read has met damage, have it looked for."""
        if self._state.damage_seen:
            self._state.damage_seen = 0
            self._passes = self._applier.scrub_now()

    def log_rows(self) -> LogRows:
        """What the log holds of the suspect buckets, to be put in again in steps."""
        buckets = self._applier.suspects.buckets
        rows = LogRows(self._log, buckets, self._accept, self._limits.mend_bytes)
        rows.began_empty = self._state.index.meta(BEGAN_EMPTY) is not None
        return rows

    def mended(self, buckets: frozenset[int]) -> None:
        """What these buckets lacked was taken in again and is applied."""
        memory = self._state.memory
        memory.forget_clean()
        for key, held in memory.pinned.items():
            if bucket_of(key) in buckets:
                held.damaged = frozenset()
        self._applier.mended(buckets)


class LogRows:
    """Reads the rows of some buckets out of the log, a step at a time."""

    def __init__(self, log: Log, buckets: frozenset[int], accept: Accept, bytes_max: int) -> None:
        self._buckets = buckets
        self._accept = accept
        self._bytes_max = bytes_max
        self._reader = LogReader(log)
        self._rows: dict[bytes, tuple[int, Part, Row]] = {}
        self._bytes = 0
        self._flushing = False
        self.began_empty = False
        """Whether the store held nothing before the log's first entry."""

    @property
    def problem(self) -> str:
        """Why the log could not be read to its end."""
        return self._reader.problem

    @property
    def whole(self) -> bool:
        """Whether the log told all that was ever written here."""
        return self.began_empty and self._reader.first == 1 and not self.problem

    def step(self) -> bool:
        """Read or write a little; whether all is done. Raises Full, Busy: to be tried again."""
        reader = self._reader
        if not self._flushing and not reader.over:
            reader.step(self._take)
            self._flushing = self._bytes > self._bytes_max
        if self._flushing or reader.over:
            self._write()
        return reader.over and not self._rows

    def _take(self, entry: Entry) -> None:
        if entry.kind == logformat.KIND_RECORD:
            ops: Sequence[RowOp] = decode_record(entry.raw, body_bytes_max=len(entry.raw)).ops
        elif entry.kind == logformat.KIND_ROWS:
            ops = decode_row_ops(entry.raw)[0]
        elif entry.kind == logformat.KIND_DROP:
            names, replaced = decode_drop(entry.raw)
            if replaced is not None:  # all was given up
                self._rows, self._bytes = {}, 0
            for name in names:
                self._rows.pop(name, None)
            return
        else:
            return
        wanted = [op for op in ops if bucket_of(op.row_key.partition(b"\0")[0]) in self._buckets]
        for op, (_, part, type_code, row) in zip(wanted, decode_rows(wanted), strict=True):
            before = self._rows.get(op.row_key)
            if before is None:
                self._bytes += len(op.row_key) + len(op.body)
            elif before[0] == type_code:
                row = kept_row(type_code, part, before[2], row)
            self._rows[op.row_key] = (type_code, part, row)

    def _write(self) -> None:
        ops: list[RowOp] = []
        size = 0
        for name, (type_code, part, row) in self._rows.items():
            body = encode_row(type_code, part, row)
            size += len(name) + len(body)
            if ops and size > _WRITE_BYTES:
                break
            ops.append(RowOp(name, type_code, body))
            if len(ops) >= _WRITE_ROWS:
                break
        if ops:
            self._accept(ops, {})
            for op in ops:
                del self._rows[op.row_key]
        if not self._rows:
            self._flushing, self._bytes = False, 0
