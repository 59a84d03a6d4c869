"""Backing a store up while it works: pages of the index and the log's tail, chunk by chunk.

A long read transaction would keep every page that is freed meanwhile from being used again, and
so let the index grow. Here each chunk is read in a short transaction of its own, and where to go
on is in a cursor that the caller brings back: nothing is held here between two chunks, a lost
answer is asked for again, and a backup that nobody goes on with costs nothing.

Why the result is consistent: let S0 be what the index has applied when the backup begins, and S1
when it ends. A page shows its rows as of some seq in between. Replaying the log's entries S0 + 1
.. S1 over the pages gives each row and pair its value at S1, as recovery after a crash does: joins
are idempotent, puts and drops are in the log's order. So that nobody has to keep the log for long,
its entries go out between the pages; only those that the index has applied, hence a page is never
older than the entries before it. Behind the last page that does not matter: there an index that
cannot take its entries, on a full disk, is not waited for.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from roost_crdt import digest, logformat
from roost_crdt.errors import BadRequest, CorruptData, Unavailable
from roost_crdt.logformat import Entry
from roost_crdt.rows.layout import unseal
from roostd.index import Index
from roostd.log import Log
from roostd.logrecovery import Position
from roostd.sealing import META_OWN
from roostd.store.backupformat import (
    CHAIN_START,
    END,
    ENTRIES,
    HEAD,
    PAIRS,
    ROWS,
    Content,
    End,
    Head,
    KindPairs,
    encode_chunk,
)
from roostd.store.state import KEY_VALUE_KINDS
from roostd.store.sums import BUCKET_PREFIX, HOUR_PREFIX, load_digest

CHUNK_BYTES = 256 * 1024
"""About how much a chunk reads: the node's loop stops for a few milliseconds."""
CHUNK_ROWS = 4_096
RETRY_AFTER_MS = 60_000
_CATCH_UP_CHUNKS = 256
"""Chunks of the log after the last page in which the end may catch up with the writers, so that
the digest of exactly that seq is known; then the backup ends without one."""

_ROWS_PHASE = 0
_TAIL_PHASE = 1 + len(KEY_VALUE_KINDS)
_OVER_PHASE = _TAIL_PHASE + 1
"""Writers were faster for too long: what is in the file has to do."""


class Page(NamedTuple):
    """`chunk`: bytes to append to the file; empty: ask again in a moment. `cursor`: bring it
    back for the next one; empty: that was the last. `seq`, `rows`, `pairs`: how far it is."""

    chunk: bytes
    cursor: bytes
    seq: int
    rows: int
    pairs: int


class Cursor(msgspec.Struct, array_like=True):
    """Where a backup goes on."""

    store_id: bytes
    number: int
    chain: bytes
    phase: int
    start: bytes
    """The first key of the next page."""
    segment: int
    offset: int
    seq: int
    """The newest entry that is in the file."""
    rows: int = 0
    pairs: int = 0
    entries: int = 0
    target: int = 0
    """The entry that was durable when the last page had been read: at least that one belongs in."""
    tail_chunks: int = 0


_decode_cursor = msgspec.msgpack.Decoder(Cursor).decode
_encode = msgspec.msgpack.Encoder().encode


def begin(index: Index, log: Log, *, about: dict[str, str], now_ms: int, random_id: bytes) -> Page:
    """The first chunk: what is backed up, and from which entry on."""
    log.hold()
    while True:
        seq = _applied(index)
        vv, place = index.meta(b"vv"), index.meta(b"position")
        if _applied(index) == seq:
            break
    position = Position(*msgspec.msgpack.decode(place)) if place else log.first_position()
    head = Head(
        id=random_id,
        schema=int.from_bytes(_required(index, b"schema"), "big"),
        store_id=_required(index, b"store_id"),
        actor=int.from_bytes(_required(index, b"actor"), "big"),
        seq=seq,
        vv=msgspec.msgpack.decode(vv, type=dict[int, int]) if vv else {},
        started_ms=now_ms,
        about=about,
    )
    cursor = Cursor(head.store_id, 0, CHAIN_START, _ROWS_PHASE, b"", *position, seq)
    return _page(cursor, HEAD, head)


def go_on(index: Index, log: Log, raw: bytes, *, now_ms: int, stuck: bool = False) -> Page:
    """The chunk after `raw`, a cursor of an earlier page. `stuck`: the index has no room.

    Raises BadRequest (not a cursor, or of another store), CorruptData (a damaged row or group:
    a backup without it would lose it in silence), Unavailable (the log was trimmed beyond where
    this stood).
    """
    try:
        cursor = _decode_cursor(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadRequest(f"not the cursor of a backup: {error}", field="cursor") from error
    if cursor.store_id != index.meta(b"store_id") or not 0 <= cursor.phase <= _OVER_PHASE:
        raise BadRequest("the cursor is of another store's backup; begin anew", field="cursor")
    if cursor.phase < _TAIL_PHASE and cursor.number % 2:
        return _read_page(index, log, cursor)
    if cursor.phase == _OVER_PHASE:
        return _finish(index, cursor, now_ms)
    upto = cursor.target if stuck and cursor.phase == _TAIL_PHASE else _applied(index)
    try:
        entries, position = log.entries_from(
            Position(cursor.segment, cursor.offset), cursor.seq, upto, CHUNK_BYTES
        )
    except CorruptData as error:
        if cursor.seq + 1 >= log.first_seq():
            raise
        raise Unavailable(
            f"writes came faster than this backup was fetched: {error}; begin it again when there "
            "are fewer, or with a larger store.log_retention",
            retry_after_ms=RETRY_AFTER_MS,
        ) from error
    if entries:
        return _take_entries(cursor, entries, position)
    if cursor.phase < _TAIL_PHASE:
        return _read_page(index, log, cursor)
    return _finish(index, cursor, now_ms)


def _take_entries(cursor: Cursor, entries: list[Entry], position: Position) -> Page:
    cursor.segment, cursor.offset = position
    cursor.seq = entries[-1].seq
    cursor.entries += len(entries)
    if cursor.phase == _TAIL_PHASE:
        cursor.tail_chunks += 1
        if cursor.tail_chunks > _CATCH_UP_CHUNKS and cursor.seq >= cursor.target:
            cursor.phase = _OVER_PHASE
    return _page(cursor, ENTRIES, entries)


def _read_page(index: Index, log: Log, cursor: Cursor) -> Page:
    """The next page of the index; where a database is at its end, the first of the next one."""
    while cursor.phase < _TAIL_PHASE:
        database = KEY_VALUE_KINDS[cursor.phase - 1] if cursor.phase else 0
        if database:
            found, complete = index.pairs_after(database, cursor.start, CHUNK_ROWS, CHUNK_BYTES)
        else:
            found, complete = index.rows_after(cursor.start, CHUNK_ROWS, CHUNK_BYTES)
        cursor.start = found[-1][0] + b"\0" if found else b""
        if complete:
            cursor.phase, cursor.start = cursor.phase + 1, b""
        if cursor.phase == _TAIL_PHASE:
            cursor.target = log.durable_seq
        if database:
            found = _kept(database, found)
        if not found:
            continue
        if database:
            cursor.pairs += len(found)
            return _page(cursor, PAIRS, KindPairs(database, found))
        for name, sealed in found:
            unseal(name, sealed)
        cursor.rows += len(found)
        return _page(cursor, ROWS, found)
    return Page(b"", _encode(cursor), cursor.seq, cursor.rows, cursor.pairs)


def _kept(kind: int, pairs: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Without what belongs to this store alone, or is computed anew."""
    if kind != logformat.KIND_META:
        return pairs
    own = (BUCKET_PREFIX, HOUR_PREFIX)
    return [pair for pair in pairs if pair[0] not in META_OWN and not pair[0].startswith(own)]


def _finish(index: Index, cursor: Cursor, now_ms: int) -> Page:
    """END, once everything that was durable after the last page is in the file."""
    if cursor.seq < cursor.target:
        return Page(b"", _encode(cursor), cursor.seq, cursor.rows, cursor.pairs)
    sums = load_digest(index)
    root = digest.root(*sums, now_ms) if _applied(index) == cursor.seq else None
    end = End(cursor.seq, now_ms, cursor.rows, cursor.pairs, cursor.entries, root)
    chunk, _ = encode_chunk(cursor.number, END, end, cursor.chain)
    return Page(chunk, b"", cursor.seq, cursor.rows, cursor.pairs)


def _page(cursor: Cursor, kind: int, content: Content) -> Page:
    chunk, cursor.chain = encode_chunk(cursor.number, kind, content, cursor.chain)
    cursor.number += 1
    return Page(chunk, _encode(cursor), cursor.seq, cursor.rows, cursor.pairs)


def _applied(index: Index) -> int:
    return int.from_bytes(_required(index, b"applied_seq"), "big")


def _required(index: Index, name: bytes) -> bytes:
    value = index.meta(name)
    if value is None:
        raise CorruptData(f"{index.path}: no {name.decode()} in meta")
    return value
