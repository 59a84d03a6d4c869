"""Listings: the index in key order, with what is newer in memory laid over it.

Each page reads the index in short transactions; nothing is held between pages.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import lmdb

from roost_crdt.errors import CorruptData
from roost_crdt.record import RowOp
from roost_crdt.rows import encode_row
from roost_crdt.rows.layout import RESERVED, row_key, unseal
from roost_crdt.values import exists
from roostd.sealing import KIND_NAMES, DamagedPair
from roostd.store.state import State

_SCAN_ROWS_MAX = 4_096
_SCAN_BYTES_MAX = 1 << 20
_FIRST_KEY = bytes([RESERVED[0] + 1])
"""Listings begin behind the cluster's own keys."""


def pair(state: State, kind: int, key: bytes) -> bytes | None:
    """One value of a kind's database. DamagedPair, which is noted; what State.unreadable says."""
    entry = state.overlay[kind].get(key)
    if entry is not None:
        return entry[1]
    try:
        return state.index.get(kind, key)
    except DamagedPair as exc:
        state.met(exc.kind, exc.key)
        raise
    except lmdb.Error as exc:
        raise state.unreadable(f"damage near {KIND_NAMES[kind].decode()} {key!r}", exc) from exc


def pairs(
    state: State, kind: int, prefix: bytes, after: bytes, limit: int
) -> list[tuple[bytes, bytes]]:
    """Up to `limit` pairs of a kind, in key order, with `prefix` and above `after`.

    DamagedPair, which is noted; what State.unreadable says.
    """
    try:
        return _pairs(state, kind, prefix, after, limit)
    except DamagedPair as exc:
        state.met(exc.kind, exc.key)
        raise
    except lmdb.Error as exc:
        raise state.unreadable(f"damage among {KIND_NAMES[kind].decode()}", exc) from exc


def _pairs(
    state: State, kind: int, prefix: bytes, after: bytes, limit: int
) -> list[tuple[bytes, bytes]]:
    overlay = state.overlay[kind]
    newer = sorted(key for key in overlay if key > after and key.startswith(prefix))
    found: list[tuple[bytes, bytes]] = []
    while True:
        page = state.index.scan(kind, prefix, after, limit, overlay)
        last = page[-1][0] if len(page) == limit else None
        merged: dict[bytes, bytes | None] = dict(page)
        for key in newer:
            if key > after and (last is None or key <= last):
                merged[key] = overlay[key][1]
        for key in sorted(merged):
            value = merged[key]
            if value is not None:
                found.append((key, value))
                if len(found) == limit:
                    return found
        if last is None:
            return found
        after = last


def names(state: State, kind: int, prefix: bytes) -> list[bytes]:
    """The keys of all pairs of a kind with `prefix`, in order, also of damaged ones."""
    found: set[bytes] = set()
    start, complete = prefix, False
    while not complete:
        page, complete = state.index.stored_after(kind, start, _SCAN_ROWS_MAX, _SCAN_BYTES_MAX)
        here = [key for key, _ in page if key.startswith(prefix)]
        found.update(here)
        if page:
            start = page[-1][0] + b"\0"
        complete = complete or len(here) < len(page)
    for key, (_, value) in state.overlay[kind].items():
        if value is None:
            found.discard(key)
        elif key.startswith(prefix):
            found.add(key)
    return sorted(found)


def live_keys(state: State, prefix: bytes, after: bytes, limit: int, now_ms: int) -> list[bytes]:
    """Up to `limit` keys in order that have a value at `now_ms`, with `prefix`, above `after`."""
    found: list[bytes] = []
    for key in _readable(state, _all_keys(state, prefix, after)):
        # Not cached: a listing must not push out what is in use.
        held = state.memory.get(key) or state.load(key)
        if held.damaged:
            raise held.failure(key)
        if held.type and exists(held.type, held.rows, now_ms):
            found.append(key)
            if len(found) == limit:
                break
    return found


def _readable(state: State, keys: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from keys
    except (CorruptData, lmdb.Error) as exc:
        raise state.unreadable("a listing came upon damage", exc) from exc


def _all_keys(state: State, prefix: bytes, after: bytes) -> Iterator[bytes]:
    start = max(prefix, after + b"\x01" if after else _FIRST_KEY)
    shown = (key for key in state.memory.pinned if key >= _FIRST_KEY)
    pinned = sorted(key for key in shown if key > after and key.startswith(prefix))
    last = None
    for key in heapq.merge(state.index.keys_from(start, prefix), pinned):
        if key != last:
            yield key
            last = key


def rows_after(state: State, after: bytes, bytes_max: int) -> list[RowOp]:
    """Rows in row key order above `after`, up to about `bytes_max`; empty at the end.

    Damaged rows are left out (counted); they are a neighbour's to repair.
    """
    start = after + b"\0" if after else b""
    try:
        stored, complete = state.index.rows_after(start, _SCAN_ROWS_MAX, bytes_max)
    except (CorruptData, lmdb.Error) as exc:
        raise state.unreadable("a listing came upon damage", exc) from exc
    merged: dict[bytes, RowOp] = {}
    pinned = state.memory.pinned
    for name, sealed in stored:
        if name.partition(b"\0")[0] in pinned:
            continue
        try:
            merged[name] = RowOp(name, *unseal(name, sealed))
        except CorruptData:
            state.corrupt_rows += 1
            state.damage_seen += 1
    last = stored[-1][0] if not complete else None
    return _with_pinned(state, merged, after, last, bytes_max)


def _with_pinned(
    state: State, merged: dict[bytes, RowOp], after: bytes, last: bytes | None, bytes_max: int
) -> list[RowOp]:
    after_key = after.partition(b"\0")[0]
    last_key = None if last is None else last.partition(b"\0")[0]
    for key, held in state.memory.pinned.items():
        if key < after_key or (last_key is not None and key > last_key):
            continue
        for part, row in held.rows.items():
            name = row_key(key, part)
            if name > after and (last is None or name <= last):
                merged[name] = RowOp(name, held.type, encode_row(held.type, part, row))
    found: list[RowOp] = []
    size = 0
    for name in sorted(merged):
        op = merged[name]
        size += len(name) + len(op.body)
        if found and size > bytes_max:
            break
        found.append(op)
    return found
