"""Bringing a store of an earlier schema to this one, when a daemon opens it.

Schema 1 held the pairs of sessions, spend, outbox, consensus and meta without checksums. Each is
put behind one, chunk by chunk, each chunk a transaction of its own: the store is of schema 2 from
the first on (an earlier release refuses it), and `upgrading` in meta says up to where it is. So a
crash meanwhile costs nothing, and the next start goes on. Rows and log have the same bytes in both.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from roost_crdt import logformat
from roost_crdt.errors import CorruptData
from roostd.index import SCHEMA, Index, newer_schema, u64
from roostd.logrecovery import REPAIR
from roostd.sealing import KIND_NAMES, PLAIN_META, sealed_pairs

OLDEST = 1
UPGRADING = b"upgrading"
_CHUNK_PAIRS = 4_096
_CHUNK_BYTES = 4 << 20
_META = logformat.KIND_META
_KINDS = sorted(kind for kind in KIND_NAMES if kind != _META)

Progress = Callable[[str, int, int], None]


def check_schema(index: Index) -> int:
    """The schema of a store, `OLDEST` to `SCHEMA`. ConfigError for a newer one, CorruptData where
    the number itself is damaged."""
    raw = index.meta(b"schema")
    if raw is None:
        raise CorruptData(f"{index.path}: the index has no schema in meta; {REPAIR}")
    schema = int.from_bytes(raw, "big")
    if schema == SCHEMA or OLDEST <= schema < SCHEMA:
        return schema
    try:
        layout = index.meta(b"layout")
    except CorruptData:
        layout = None
    if schema < OLDEST or layout == u64(SCHEMA):
        raise CorruptData(f"{index.path}: the number of its schema is damaged; {REPAIR}")
    raise newer_schema(index.path, schema)


def upgrade(index: Index) -> int:
    """Make the store one of this release's schema; how many pairs were changed (0: it was one).

    Raises what `check_schema` does, and lmdb.Error where the disk or the bound is full.
    """
    done = 0
    if check_schema(index) != SCHEMA:
        done += _seal_meta(index)
    raw = index.meta(UPGRADING)
    if raw is None:
        return done
    kind, start = msgspec.msgpack.decode(raw, type=tuple[int, bytes])
    for at in _KINDS[_KINDS.index(kind) :]:
        complete = False
        while not complete:
            pairs, complete = index.stored_after(at, start, _CHUNK_PAIRS, _CHUNK_BYTES)
            start = b"" if complete else pairs[-1][0] + b"\0"
            following = _KINDS[_KINDS.index(at) + 1 :]
            place = (following[0], b"") if complete and following else (at, start)
            last = complete and not following
            mark = None if last else msgspec.msgpack.encode(place)
            index.write_stored({at: sealed_pairs(at, pairs), _META: _marked(mark)})
            done += len(pairs)
    return done


def _marked(mark: bytes | None) -> list[tuple[bytes, bytes | None]]:
    return list(sealed_pairs(_META, [(UPGRADING, mark)]))


def _seal_meta(index: Index) -> int:
    """Meta is small and is read first: one transaction."""
    pairs, complete = index.stored_after(_META, b"", 1 << 40, 1 << 40)
    assert complete
    known = dict(pairs)
    if len(known.get(b"applied_seq", b"")) != 8:
        raise CorruptData(f"{index.path}: the index has no applied_seq in meta; {REPAIR}")
    new = {
        **known,
        b"schema": u64(SCHEMA),
        b"layout": u64(SCHEMA),
        b"applied": known[b"applied_seq"],
        UPGRADING: msgspec.msgpack.encode((_KINDS[0], b"")),
    }
    assert {b"schema", b"applied_seq"} <= PLAIN_META
    index.write_stored({_META: sealed_pairs(_META, sorted(new.items()))})
    return len(pairs)
