"""Records: whole or not at all, under one stamp that covers all that is in them."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost_crdt.errors import CorruptData
from roost_crdt.hlc import hlc_from_ms
from roost_crdt.record import (
    CHAIN_START,
    DecodedRow,
    Record,
    RowOp,
    chain_next,
    coalesce,
    decode_record,
    decode_rows,
    encode_record,
    record_hash,
)
from roost_crdt.rows import Delta, Rows, counter, encode_row, join_delta, rate, register
from roost_crdt.rows import map as maps
from roost_crdt.rows import set as sets
from roost_crdt.rows.layout import (
    HEAD,
    TYPE_BY_NAME,
    TYPE_COUNTER,
    TYPE_DOC,
    TYPE_MAP,
    TYPE_RATE,
    TYPE_REGISTER,
    TYPE_SET,
    VALUE,
    actor_part,
    field_part,
    row_key,
    window_part,
)
from roost_crdt.testing import ROW_LATTICES, TYPES, History, histories, run

A, B = 1, 2


def _ops(type_code: int, delta: Delta, key: bytes = b"k") -> tuple[RowOp, ...]:
    return tuple(
        RowOp(row_key(key, part), type_code, encode_row(type_code, part, row))
        for part, row in delta.items()
    )


def _put(hlc: int, prev_hlc: int, value: bytes = b"v", actor: int = A) -> Record:
    delta = register.put({}, value, (hlc, actor))
    return Record(actor, hlc, prev_hlc, _ops(TYPE_REGISTER, delta))


def _rows(record: Record) -> Delta:
    return {decoded.part: decoded.row for decoded in decode_rows(record.ops)}


def test_a_record_comes_back() -> None:
    record = _put(5, 3)
    raw = encode_record(record)
    assert decode_record(raw) == record
    assert encode_record(decode_record(raw)) == raw
    [decoded] = decode_rows(decode_record(raw).ops)
    row = (5, A, 1, b"v", 0, 0, 0)
    assert decoded == DecodedRow(b"k", VALUE, TYPE_REGISTER, row)


def test_a_record_without_rows_only_moves_the_vector() -> None:
    record = Record(A, 9, 3, ())
    assert decode_record(encode_record(record)) == record


def test_a_record_that_goes_nowhere_is_our_own_fault() -> None:
    with pytest.raises(AssertionError):
        encode_record(_put(5, 5))


@pytest.mark.parametrize(
    "fields",
    [
        (A, 5, 5, []),
        (A, 5, 6, []),
        (-1, 5, 3, []),
        (A, 5, 3, None),
        (A, 5, 3),
        (A, 5, 3, [], 0),
        (A, 5, 3, [[b"k", 1, b""]]),
        (A, 5, 3, [[b"k\0\x02", 1, b""]]),
        (A, 5, 3, [[b"k\0\x02", 1, b"\x90", 0]]),
        (A, 5, 3, [[b"k\0\x02", 256, b"\x90"]]),
        (A, 5, 3, [[b"k\0\x02", 0, b"\x90"]]),
        (A, 5, 3, [[b"k\0\x02", 6, b"\x90"]]),
        (A, 5, 3, [[b"\0\x02", 1, b"\x97\x05\x01\x01\xc4\x00\x00\x00\x00"]]),
    ],
)
def test_a_malformed_record_is_refused(fields: tuple[object, ...]) -> None:
    with pytest.raises(CorruptData):
        decode_record(msgspec.msgpack.encode(fields))


def test_a_record_over_its_bound_is_refused() -> None:
    raw = encode_record(_put(5, 3))
    assert decode_record(raw, body_bytes_max=len(raw))
    with pytest.raises(CorruptData, match="at most"):
        decode_record(raw, body_bytes_max=len(raw) - 1)


@pytest.mark.parametrize(
    ("type_code", "part", "row"),
    [
        (TYPE_REGISTER, VALUE, (11, A, 1, b"", 0, 0, 0)),
        (TYPE_REGISTER, VALUE, (1, A, 1, b"", 11, A, 0)),
        (TYPE_COUNTER, actor_part(A, 11), (1, 0, 0, 0)),
        (TYPE_COUNTER, HEAD, (11, A, 0)),
        (TYPE_SET, b"\x04e", (b"", ((A, 11, 0),))),
        (TYPE_SET, HEAD, (((A, 11),), 0, 0, 0)),
        (TYPE_MAP, field_part(b"f"), (11, A, 1, b"", 0)),
        (TYPE_MAP, HEAD, (11, A, 0, 0, 0)),
        (TYPE_RATE, window_part(1, A), (1, 0, 1)),
    ],
)
def test_no_row_may_be_stamped_after_its_record(
    type_code: int, part: bytes, row: tuple[object, ...]
) -> None:
    # Else a row could carry a clock past the bound that records are held to, for ever.
    raw = encode_record(Record(A, 10, 0, _ops(type_code, {part: row})))
    with pytest.raises(CorruptData, match="stamped after its record"):
        decode_record(raw)


def test_several_operations_share_a_record_under_the_last_stamp() -> None:
    rows: Rows = {}
    delta: Delta = {}
    for tick, element in enumerate([b"x", b"y"]):
        change = sets.add(rows, [element], (hlc_from_ms(1) + tick, A), 1)
        rows |= change
        delta |= change
    record = Record(A, hlc_from_ms(1) + 1, 0, _ops(TYPE_SET, delta))
    assert decode_record(encode_record(record)) == record
    # Another node that holds the record clears it by its version vector, wholly.
    cleared = {**rows, **sets.delete(rows, {A: record.hlc}, (record.hlc + 9, B))}
    assert sets.members(cleared, 1) == []


def test_honest_clocks_keep_windows_before_their_record() -> None:
    stamp = (hlc_from_ms(1_234), A)
    delta = rate.add({}, 1, stamp, 1_234, 100) | {HEAD: (*stamp, 9)}
    assert decode_record(encode_record(Record(A, stamp[0], 0, _ops(TYPE_RATE, delta))))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80))
def test_decoding_foreign_bytes_is_total(raw: bytes) -> None:
    try:
        record = decode_record(raw)
    except CorruptData:
        return
    assert decode_record(encode_record(record)) == record


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_records_are_refused_or_read(data: st.DataObject) -> None:
    raw = bytearray(encode_record(_put(5, 3)))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        record = decode_record(bytes(raw))
    except CorruptData:
        return
    assert record.prev_hlc < record.hlc


def test_coalescing_joins_rows_and_covers_all() -> None:
    first, second = _put(5, 3, b"old"), _put(7, 5, b"new")
    third = Record(A, 8, 7, _ops(TYPE_REGISTER, register.put({}, b"x", (8, A)), b"other"))
    joined = coalesce([first, second, third])
    assert (joined.actor, joined.hlc, joined.prev_hlc) == (A, 8, 3)
    assert [op.row_key for op in joined.ops] == [row_key(b"k", VALUE), row_key(b"other", VALUE)]
    assert joined.ops[0] == second.ops[0], "a row keeps its own stamp"
    assert coalesce([first]) == first


def test_records_that_overlap_can_be_coalesced() -> None:
    wide, inside = Record(A, 9, 3, ()), Record(A, 12, 5, ())
    assert coalesce([wide, inside]) == Record(A, 12, 3, ())


def test_a_key_that_changed_its_type_keeps_both_rows() -> None:
    put = _put(5, 3)
    add = sets.add({}, [b"v"], (6, A), 0)
    both = coalesce([put, Record(A, 6, 5, _ops(TYPE_SET, add))])
    assert {op.type for op in both.ops} == {TYPE_REGISTER, TYPE_SET}


def test_coalescing_keeps_what_every_node_keeps_of_a_reused_stamp() -> None:
    delta = register.put({}, b"zzz", (5, A))
    joined = coalesce([_put(5, 3, b"aaa"), Record(A, 6, 5, _ops(TYPE_REGISTER, delta))])
    assert _rows(joined) == delta


@pytest.mark.parametrize(
    "second",
    [Record(B, 7, 5, ()), Record(A, 7, 6, ()), Record(A, 5, 4, ()), Record(A, 4, 3, ())],
)
def test_what_is_not_contiguous_is_our_own_fault(second: Record) -> None:
    with pytest.raises(AssertionError):
        coalesce([_put(5, 3), second])


@pytest.mark.parametrize("name", TYPES)
def test_coalesced_records_equal_single_ones(name: str) -> None:
    code = TYPE_BY_NAME[name]

    @settings(max_examples=100, deadline=None)
    @given(histories(name))
    def check(history: History) -> None:
        for replica in run(history):
            own = [decode_record(raw) for raw in replica.records]
            own = [record for record in own if record.actor == replica.actor]
            if not own:
                continue
            rows: Rows = {}
            for record in own:
                rows.update(join_delta(code, rows, _rows(record)))
            together = coalesce(own)
            assert decode_record(encode_record(together)) == together
            ROW_LATTICES[name].same("coalesced", _rows(together), rows)

    check()


def test_hash_and_chain_name_a_history() -> None:
    one, two = encode_record(_put(5, 3)), encode_record(_put(7, 5))
    assert len(record_hash(one)) == 16
    assert record_hash(one) != record_hash(two)
    forwards = chain_next(chain_next(CHAIN_START, record_hash(one)), record_hash(two))
    backwards = chain_next(chain_next(CHAIN_START, record_hash(two)), record_hash(one))
    assert len(forwards) == 16
    assert forwards != backwards
    with pytest.raises(AssertionError):
        chain_next(b"short", record_hash(one))


def test_counter_and_map_rows_travel() -> None:
    delta = counter.add({}, 5, (5, A), 0)
    raw = encode_record(Record(A, 5, 0, _ops(TYPE_COUNTER, delta)))
    assert _rows(decode_record(raw)) == delta
    fields = maps.put({}, {b"f": "1"}, (5, A), 0)
    raw = encode_record(Record(A, 5, 0, _ops(TYPE_MAP, fields)))
    assert _rows(decode_record(raw)) == fields


def test_rows_of_documents_have_a_bound_of_their_own() -> None:
    """They are dear to read: so much of them is refused before any is looked at."""
    ops = tuple(RowOp(row_key(b"d%d" % at, b"\x0b"), TYPE_DOC, bytes(100)) for at in range(3))
    raw = encode_record(Record(A, 2, 1, ops))
    with pytest.raises(CorruptData, match="300 bytes of rows of documents; at most 299"):
        decode_record(raw, doc_bytes_max=299)
    with pytest.raises(CorruptData) as refused:
        decode_record(raw, doc_bytes_max=300)
    assert "rows of documents" not in str(refused.value), "now they are read"
