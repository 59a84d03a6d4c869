"""Replay: log entries taken in again after a crash, in order, as they were the first time.

Rows are joined, so it does no harm that the index may hold some of them already.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from roost_crdt import logformat
from roost_crdt.errors import CorruptData
from roost_crdt.logformat import Entry
from roost_crdt.record import RowOp, decode_record, decode_rows
from roostd.log import Log
from roostd.logrecovery import REPAIR
from roostd.store.applier import Batch
from roostd.store.state import KEY_VALUE_KINDS, State

_READ_BYTES = 64 << 10

decode_items = msgspec.msgpack.Decoder(list[tuple[bytes, bytes | None]]).decode
decode_row_ops = msgspec.msgpack.Decoder(tuple[tuple[RowOp, ...], dict[int, int]]).decode
decode_drop = msgspec.msgpack.Decoder(tuple[list[bytes], dict[int, int] | None]).decode


class LogReader:
    """Reads the whole of an open log once, a step at a time, up to where it is durable now."""

    def __init__(self, log: Log) -> None:
        self.first = log.first_seq()
        self.problem = ""
        """Why it could not be read to its end; what lies behind cannot be told."""
        self._log = log
        self._position = log.first_position()
        self._seq = self.first - 1
        self._last = log.durable_seq

    @property
    def over(self) -> bool:
        return self._seq >= self._last

    def step(self, take: Callable[[Entry], None]) -> None:
        """Give the next entries to `take`. What either finds damaged is a `problem`."""
        try:
            entries, self._position = self._log.entries_from(
                self._position, self._seq, self._last, _READ_BYTES
            )
            for entry in entries:
                take(entry)
                self._seq = entry.seq
        except (CorruptData, OSError, msgspec.MsgspecError) as exc:
            self.problem, self._last = str(exc), self._seq


def check_entry(entry: Entry) -> None:
    """CorruptData unless `redo` could take the entry in."""
    raw = entry.raw
    try:
        if entry.kind == logformat.KIND_RECORD:
            list(decode_rows(decode_record(raw, body_bytes_max=len(raw)).ops))
        elif entry.kind == logformat.KIND_ROWS:
            list(decode_rows(decode_row_ops(raw)[0]))
        elif entry.kind == logformat.KIND_DROP:
            decode_drop(raw)
        elif entry.kind in KEY_VALUE_KINDS:
            decode_items(raw)
        else:
            raise CorruptData(f"its kind is {entry.kind}")
    except (CorruptData, msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise CorruptData(f"entry {entry.seq} cannot be read: {exc}") from exc


def redo(state: State, entry: Entry, path: Path, *, gapless: bool = True) -> None:
    """Put one entry into `state`; `gapless`: it holds all entries before this one.

    Raises CorruptData if the entry is not what a store of this release wrote.
    """
    raw = entry.raw
    try:
        if entry.kind == logformat.KIND_RECORD:
            record = decode_record(raw, body_bytes_max=len(raw))
            state.join(record.ops, list(decode_rows(record.ops)), entry.seq)
            if record.prev_hlc <= state.vv.get(record.actor, 0) < record.hlc:
                state.extend(record.actor, record.hlc)
        elif entry.kind == logformat.KIND_ROWS:
            ops, vv = decode_row_ops(raw)
            state.join(ops, list(decode_rows(ops)), entry.seq)
            if gapless:
                state.cover(vv)
        elif entry.kind == logformat.KIND_DROP:
            row_keys, replaced = decode_drop(raw)
            if replaced is not None and not gapless:
                replaced = {}
            state.drop(row_keys, replaced, entry.seq)
        else:
            state.put(entry.kind, dict(decode_items(raw)), entry.seq)
    except (CorruptData, msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise CorruptData(
            f"{path / 'log'}: entry {entry.seq} cannot be read: {exc}; {REPAIR}"
        ) from exc


def replay(state: State, log: Log, path: Path, actor: int) -> tuple[int, Batch]:
    """Take in again what the index does not hold: how many entries, and what is to be applied.
    The log goes on under the head of `actor`. CorruptData."""
    count = 0
    for entry in log.replay(state.applied_seq):
        redo(state, entry, path)
        state.batch.seq = entry.seq
        count += 1
    if log.head[0] != actor:
        log.head = (actor, 0, logformat.CHAIN_START)
    batch, state.batch = state.batch, Batch()
    batch.position, batch.head = log.position, log.head
    return count, batch
