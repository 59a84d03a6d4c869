"""Foreign records and rows: what decodes can be joined, shown and digested; the rest is refused."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any
from zlib import crc32

import msgspec
from crdt.fuzz.test_fuzz_frames import HLC, foreign_records
from crdt.yjs_updates import whole_update
from fuzzing import throw
from replication_network import START_MS

from roost_crdt import values
from roost_crdt.digest import change, contribution
from roost_crdt.errors import CorruptData
from roost_crdt.record import (
    Record,
    RowOp,
    coalesce,
    decode_record,
    decode_rows,
    encode_record,
    record_hash,
)
from roost_crdt.rows import (
    Row,
    Rows,
    StampReused,
    decode_row,
    encode_row,
    join_delta,
    kept_row,
    row_hlc,
)
from roost_crdt.rows.layout import (
    TYPE_COUNTER,
    TYPE_DOC,
    TYPE_MAP,
    TYPE_RATE,
    TYPE_REGISTER,
    TYPE_SET,
    doc_part,
    erasure_part,
    row_key,
    seal,
    split_row_key,
    unseal,
)
from roost_crdt.testing.edits import row_chain

Listed = tuple[bytes, int, bytes]
KEY = b"k"
_listed = msgspec.msgpack.Decoder(tuple[bytes, int, bytes])
_encode = msgspec.msgpack.encode


def row_seeds() -> list[bytes]:
    """`[row key, type, body]` of rows of every shape."""
    ops = [op for record in foreign_records() for op in record.ops]
    dead_field = (HLC, 7, 0, b"", 0)
    expiry = (HLC, 7, START_MS)
    more: list[tuple[int, bytes, Row]] = [
        (TYPE_REGISTER, b"\x02", (HLC, 7, 0, b"", 0, 0, 0)),
        (TYPE_REGISTER, b"\x02", (HLC, 7, 2, b"1.50", 0, 0, 0)),
        (TYPE_COUNTER, b"\x01", expiry),
        (TYPE_SET, b"\x01", (((7, HLC), (8, HLC)), *expiry)),
        (TYPE_SET, b"\x05[1]", (b"", ((7, HLC, HLC - 1), (8, 3, 3)))),
        (TYPE_MAP, b"\x01", (HLC - 1, 7, *expiry)),
        (TYPE_MAP, b"\x08dead", dead_field),
        (TYPE_RATE, b"\x01", expiry),
    ]
    more += [(TYPE_DOC, doc_part(7, HLC), row) for row in row_chain(7, HLC, HLC - 5, 40)[::13]]
    more += [
        (TYPE_DOC, b"\x01", (((7, HLC), (8, HLC)), *expiry)),
        (TYPE_DOC, erasure_part(8, HLC), (b"\0\1\5\1\0\3",)),
    ]
    more += [(TYPE_DOC, doc_part(8, HLC), (HLC, HLC, bytes(8), 1, bytes(16), (whole_update(),)))]
    ops += [RowOp(row_key(KEY, part), t, encode_row(t, part, row)) for t, part, row in more]
    return [_encode(list(op)) for op in ops]


def show(type_code: int, rows: Rows) -> Any:
    """All that any face can show of a key; touches every read of `values`."""
    now_ms = START_MS
    shown: Any = None
    if type_code == TYPE_REGISTER:
        leaf = values.register_value(rows, now_ms)
        shown = None if leaf is None else (values.json_text(leaf), values.json_of(leaf))
    elif type_code == TYPE_COUNTER:
        shown = values.counter_value(rows, now_ms)
    elif type_code == TYPE_SET:
        shown = [values.json_text(leaf) for leaf in values.set_members(rows, now_ms)]
    elif type_code == TYPE_MAP:
        shown = values.map_fields(rows, now_ms)
        assert all(values.map_field(rows, name, now_ms) == shown[name] for name in shown)
    elif type_code == TYPE_RATE:
        shown = values.rate_estimate(rows, now_ms, 60_000)
    elif type_code == TYPE_DOC:
        with suppress(CorruptData):  # checksums keep what was read and checked once
            shown = values.doc_update(rows, now_ms)
    values.dead_parts(type_code, rows, now_ms)
    return values.exists(type_code, rows, now_ms), values.expires_ms(type_code, rows, now_ms), shown


class Held:
    """What a node holds already: one row of each seed, to join mutants with."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, bytes], Rows] = {}
        for seed in row_seeds():
            name, code, body = _listed.decode(seed)
            key, part = split_row_key(name)
            rows = self.rows.setdefault((code, key), {})
            rows[part] = decode_row(code, part, body)
        self.digests = {name: contribution(*name, rows) for name, rows in self.rows.items()}

    def take(self, type_code: int, key: bytes, part: bytes, row: Row) -> None:
        """Join a foreign row with what is held, in every order, and look at the result."""
        body = encode_row(type_code, part, row)
        assert decode_row(type_code, part, body) == row
        assert row_hlc(type_code, part, row) >= 0
        rows = self.rows.get((type_code, key), {})
        mine = rows.get(part)
        if mine is not None:
            joined = kept_row(type_code, part, mine, row)
            assert joined == kept_row(type_code, part, row, mine)
            assert (
                kept_row(type_code, part, joined, row)
                == joined
                == kept_row(type_code, part, joined, mine)
            )
            assert decode_row(type_code, part, encode_row(type_code, part, joined)) == joined
        try:
            delta = join_delta(type_code, rows, {part: row})
        except StampReused as error:
            delta = error.kept
        after = {**rows, **delta}
        show(type_code, after)
        moved = contribution(type_code, key, after).minus(contribution(type_code, key, rows))
        assert change(type_code, key, rows, delta) == moved

    def check_unchanged(self) -> None:
        for name, rows in self.rows.items():
            assert contribution(*name, rows) == self.digests[name]


def test_records_decode_or_are_refused() -> None:
    held = Held()
    follower = Record(101, (1 << 64) - 1, HLC, ())

    def check(raw: bytes) -> None:
        record = decode_record(raw)
        assert record.prev_hlc < record.hlc
        assert decode_record(encode_record(record)) == record
        assert len(record_hash(raw)) == 16
        for found in decode_rows(record.ops):
            held.take(found.type, found.key, found.part, found.row)
        whole = coalesce([record])
        assert decode_record(encode_record(whole)) == whole
        if record.actor == follower.actor and record.prev_hlc <= HLC < record.hlc < follower.hlc:
            assert coalesce([record, follower]).hlc == follower.hlc

    records = foreign_records()
    seeds = [encode_record(record) for record in (*records, coalesce(records))]
    throw("records", seeds, check, (CorruptData,))
    held.check_unchanged()


def test_rows_join_or_are_refused() -> None:
    held = Held()

    def check(raw: bytes) -> None:
        try:
            name, code, body = _listed.decode(raw)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise CorruptData(f"the triple itself: {error}") from None
        key, part = split_row_key(name)
        held.take(code, key, part, decode_row(code, part, body, body_bytes_max=1 << 24))

    throw("rows", row_seeds(), check, (CorruptData,))
    held.check_unchanged()


def test_stored_rows_are_what_was_sealed_or_refused() -> None:
    sealed: dict[bytes, Listed] = {}
    seeds = []
    for seed in row_seeds():
        name, code, body = _listed.decode(seed)
        seeds.append(_encode([name, seal(name, code, body)]))
        sealed[seeds[-1]] = (name, code, body)
    written = set(sealed.values())
    pair = msgspec.msgpack.Decoder(tuple[bytes, bytes])
    forged = struct.Struct(">IB")
    held = Held()

    def check(raw: bytes) -> None:
        try:
            name, stored = pair.decode(raw)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise CorruptData(f"the pair itself: {error}") from None
        try:
            code, body = unseal(name, stored)
            assert (name, code, body) in written, "damage that the checksum let pass"
        except CorruptData:
            # What a checksum cannot tell: the same damage, sealed again by whoever made it.
            if len(stored) < forged.size:
                raise
            code, body = stored[4], stored[5:]
            seal_crc = crc32(body, crc32(name, crc32(bytes([code]))))
            assert unseal(name, forged.pack(seal_crc, code) + body) == (code, body)
        key, part = split_row_key(name)
        held.take(code, key, part, decode_row(code, part, body))

    throw("stored rows", seeds, check, (CorruptData,))
    held.check_unchanged()
