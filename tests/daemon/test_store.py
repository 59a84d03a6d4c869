"""The store: durable before it is said, joined, listed, summed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from store_kit import LIMITS, NOW, Stores, applied, count, incr, put, root_of, value

from roost_crdt import values
from roost_crdt.errors import (
    ActorReused,
    BadRequest,
    CorruptData,
    TooLarge,
)
from roost_crdt.logformat import KIND_META, KIND_OUTBOX, KIND_SESSION, KIND_SPEND
from roost_crdt.record import Record, RowOp, decode_record, encode_record
from roost_crdt.rows import Delta, counter, encode_row, register
from roost_crdt.rows import map as map_rows
from roost_crdt.rows import set as set_rows
from roost_crdt.rows.layout import (
    TYPE_COUNTER,
    TYPE_MAP,
    TYPE_REGISTER,
    TYPE_SET,
    VALUE,
    row_key,
)
from roostd.store import Store

# Commit, flush, read


def test_a_write_is_read_at_once_and_durable_after_flush(store: Store) -> None:
    record = put(store, b"k", b"v")
    assert value(store, b"k") == b"v"
    assert (store.seq, store.durable_seq, store.dirty) == (1, 0, True)
    store.flush()
    assert (store.durable_seq, store.dirty) == (1, False)
    assert store.vv == {store.actor: record.hlc}
    assert decode_record(store.last_raw) == record
    assert (record.actor, record.prev_hlc) == (store.actor, 0)
    assert put(store, b"k", b"w").prev_hlc == record.hlc


def test_on_flush_tells_changed_keys_once(store: Store) -> None:
    told: list[list[bytes]] = []
    scheduled: list[int] = []
    store.on_flush.append(told.append)
    store.schedule = lambda: scheduled.append(store.seq)
    put(store, b"a", b"1")
    put(store, b"b", b"1")
    put(store, b"a", b"2")
    assert (told, len(scheduled)) == ([], 1)
    store.flush()
    store.flush()
    assert told == [[b"a", b"b"]]
    store.put(KIND_SESSION, {b"s": b""})
    store.flush()
    assert (len(told), len(scheduled)) == (1, 2)


def test_one_record_may_write_several_keys(stores: Stores, store: Store) -> None:
    stamp = store.stamp(NOW)
    ops: list[tuple[bytes, int, Delta]] = [
        (b"r", TYPE_REGISTER, register.put({}, b"v", stamp)),
        (b"c", TYPE_COUNTER, counter.add({}, 5, stamp, NOW)),
        (b"s", TYPE_SET, set_rows.add({}, [b"x", b"y"], stamp, NOW)),
        (b"m", TYPE_MAP, map_rows.put({}, {b"f": b"1", b"g": b"2"}, stamp, NOW)),
    ]
    record = store.commit(stamp, ops)
    assert len(record.ops) == 6
    store.flush()
    for _ in range(2):
        assert value(store, b"r") == b"v"
        assert count(store, b"c") == 5
        assert values.set_members(store.key_rows(b"s").rows, NOW) == [b"x", b"y"]
        assert values.map_fields(store.key_rows(b"m").rows, NOW) == {b"f": b"1", b"g": b"2"}
        assert store.keys(b"", b"", 10, NOW) == [b"c", b"m", b"r", b"s"]
        store = stores.reopen(store)


def test_what_is_too_large_changes_nothing(stores: Stores) -> None:
    store = stores.open(limits=replace(LIMITS, body_bytes_max=10_000))
    with pytest.raises(TooLarge, match=r"limits\.body_max"):
        put(store, b"k", bytes(10_001))
    assert (store.seq, store.vv, store.dirty) == (0, {}, False)
    assert store.key_rows(b"k").type == 0
    with pytest.raises(TooLarge, match="log segment"):
        store.put(KIND_SESSION, {b"k": bytes(2 << 20)})
    assert store.get(KIND_SESSION, b"k") is None


def test_pairs_are_read_at_once_and_after_every_stop(stores: Stores, store: Store) -> None:
    pairs = {b"p%02d" % n: b"%d" % n for n in range(40)}
    store.put(KIND_SESSION, dict(list(pairs.items())[::2]))
    store.flush()
    applied(store)
    store.put(KIND_SESSION, dict(list(pairs.items())[1::2]))
    store.put(KIND_SESSION, {b"p07": None, b"p08": None, b"o": b"before", b"q": b"after"})
    del pairs[b"p07"], pairs[b"p08"]
    store.flush()
    for clean in (False, True, True):
        assert store.get(KIND_SESSION, b"p01") == b"1"
        assert store.get(KIND_SESSION, b"p07") is None
        assert store.get(KIND_OUTBOX, b"p01") is None
        assert store.scan(KIND_SESSION, b"p") == sorted(pairs.items())
        assert store.scan(KIND_SESSION, b"p", b"p05", 3) == [
            (key, pairs[key]) for key in (b"p06", b"p09", b"p10")
        ]
        assert store.scan(KIND_SESSION, limit=1) == [(b"o", b"before")]
        store = stores.reopen(store, clean=clean)


def test_the_store_keeps_its_own_meta_to_itself(store: Store) -> None:
    store.put(KIND_META, {b"policies": b"..."})
    assert store.get(KIND_META, b"policies") == b"..."
    for name in (b"actor", b"store_id", b"applied_seq", b"digest/00"):
        with pytest.raises(BadRequest, match="belongs to the store"):
            store.put(KIND_META, {name: b""})
    for name in (b"", b"k" * 512):
        with pytest.raises(BadRequest, match="1 to 511 fit"):
            store.put(KIND_SPEND, {name: b""})


# Listings


def test_keys_merge_memory_and_index(store: Store) -> None:
    for number in range(0, 30, 2):
        put(store, b"k:%02d" % number, b"v")
    store.flush()
    applied(store)
    for number in range(1, 30, 2):
        put(store, b"k:%02d" % number, b"v")
    stamp = store.stamp(NOW)
    store.commit(
        stamp, [(b"k:04", TYPE_REGISTER, register.delete(store.key_rows(b"k:04").rows, stamp))]
    )
    put(store, b"k:09", b"v", expires_ms=NOW + 5)
    put(store, b"j", b"v")
    put(store, b"l", b"v")
    alive = [b"k:%02d" % n for n in range(30) if n not in (4, 9)]
    assert store.keys(b"k:", b"", 100, NOW + 5) == alive
    assert store.keys(b"k:", b"", 100, NOW + 4) == sorted([*alive, b"k:09"])
    assert store.keys(b"k:", b"k:03", 3, NOW + 5) == [b"k:05", b"k:06", b"k:07"]
    assert store.keys(b"", b"k:28", 100, NOW) == [b"k:29", b"l"]
    assert store.keys(b"x", b"", 100, NOW) == []


def test_scan_rows_gives_every_row_once(store: Store) -> None:
    for number in range(0, 200, 2):
        put(store, b"k:%03d" % number, b"old" * 20)
    store.flush()
    applied(store)
    for number in range(0, 200, 3):
        put(store, b"k:%03d" % number, b"new" * 20)
    seen: list[RowOp] = []
    after = b""
    while page := store.scan_rows(after, 1_000):
        assert sum(len(op.row_key) + len(op.body) for op in page) <= 1_000 + 200
        seen += page
        after = page[-1].row_key
    assert not store.dirty, "only what is durable may be read for others"
    wanted = sorted({*range(0, 200, 2), *range(0, 200, 3)})
    assert [op.row_key for op in seen] == [row_key(b"k:%03d" % n, VALUE) for n in wanted]
    bodies = {op.row_key: op.body for op in seen}
    for number in wanted:
        rows = store.key_rows(b"k:%03d" % number).rows
        name = row_key(b"k:%03d" % number, VALUE)
        assert bodies[name] == encode_row(TYPE_REGISTER, VALUE, rows[VALUE])
        assert values.register_value(rows, NOW) == (b"new" if number % 3 == 0 else b"old") * 20


# Neighbours


def test_accept_takes_what_extends_the_vector(stores: Stores, store: Store) -> None:
    other = stores.open("b")
    raws = []
    for number in range(3):
        incr(store, b"c", number + 1)
        raws.append(store.last_raw)
    records = [decode_record(raw) for raw in raws]
    assert not other.accept(raws[1], records[1]), "a gap"
    assert (other.seq, other.vv) == (0, {})
    assert other.accept(raws[0], records[0])
    assert not other.accept(raws[0], records[0]), "a duplicate"
    incr(other, b"c", 10)
    for raw, record in zip(raws[1:], records[1:], strict=True):
        assert other.accept(raw, record)
    other.flush()
    for _ in range(2):
        assert count(other, b"c") == 16
        assert other.vv[store.actor] == records[2].hlc
        assert other.records_after(store.actor, 0, 1 << 20) == raws
        assert other.stamp(0)[0] > records[2].hlc
        other = stores.reopen(other)


def test_a_record_under_the_own_actor_is_refused(stores: Stores, store: Store) -> None:
    put(store, b"k", b"v")
    record = Record(store.actor, store.vv[store.actor] + 5, 0, ())
    with pytest.raises(ActorReused, match="never wrote"):
        store.accept(encode_record(record), record)
    assert store.seq == 1


def test_another_type_is_quarantined_and_the_vector_goes_on(stores: Stores, store: Store) -> None:
    other = stores.open("b")
    incr(store, b"k", 3)
    stamp = other.stamp(NOW)
    record = other.commit(
        stamp,
        [
            (b"k", TYPE_REGISTER, register.put({}, b"v", stamp)),
            (b"ok", TYPE_REGISTER, register.put({}, b"v", stamp)),
        ],
    )
    assert store.accept(other.last_raw, record)
    assert count(store, b"k") == 3
    assert value(store, b"ok") == b"v"
    assert store.quarantined == {b"k": 1}
    assert store.vv[other.actor] == record.hlc


def test_one_stamp_with_two_bodies_is_counted_and_settled_alike(stores: Stores) -> None:
    stamp = (NOW << 16, 9)
    records = []
    for text in (b"one", b"two"):
        body = encode_row(TYPE_REGISTER, VALUE, register.put({}, text, stamp)[VALUE])
        records.append(RowOp(row_key(b"k", VALUE), TYPE_REGISTER, body))
    kept = []
    for name, order in (("a", records), ("b", records[::-1])):
        store = stores.open(name)
        for op in order:
            store.accept_rows([op], {})
        assert store.actors_reused == 1
        kept.append(value(store, b"k"))
    assert kept[0] == kept[1]


def test_snapshot_rows_are_covered_by_their_vector(stores: Stores, store: Store) -> None:
    for number in range(20):
        put(store, b"k:%02d" % number, b"v")
        incr(store, b"c", 2)
    store.flush()
    ops, vv = store.scan_rows(b"", 1 << 20), dict(store.vv)
    other = stores.open("b")
    incr(other, b"c", 100)
    other.accept_rows(ops[:10], {})
    assert store.actor not in other.vv
    other.accept_rows(ops[10:], vv)
    other.flush()
    for clean in (False, True, True):
        assert count(other, b"c") == 140
        assert len(other.keys(b"k:", b"", 100, NOW)) == 20
        assert other.vv[store.actor] == vv[store.actor]
        # The log cannot give what came as rows; it says so instead of giving nothing.
        assert other.records_after(store.actor, 0, 100) is None
        assert other.records_after(store.actor, vv[store.actor], 100) == []
        other = stores.reopen(other, clean=clean)


def test_rows_taken_and_dropped_are_replayed(stores: Stores, store: Store) -> None:
    for number in range(5):
        put(store, b"k:%d" % number, b"v")
    ops, vv = store.scan_rows(b"", 1 << 20), dict(store.vv)
    other = stores.open_unapplied("b")
    other.accept_rows(ops, vv)
    put(other, b"own", b"v")
    other.flush()
    other = stores.reopen(other)
    assert other.recovery.replayed == 2
    assert other.keys(b"", b"", 9, NOW) == [*(b"k:%d" % n for n in range(5)), b"own"]
    assert other.vv[store.actor] == vv[store.actor]
    applied(other)
    other._applier.stop()
    other.drop_rows([ops[0].row_key, ops[1].row_key])
    other.drop_rows([ops[2].row_key], {7: 9})
    other.flush()
    for _ in range(2):
        other = stores.reopen(other)
        assert other.keys(b"", b"", 9, NOW) == [b"k:3", b"k:4", b"own"]
        assert other.vv == {7: 9}
        applied(other)
        assert other.digest(NOW)[1] == root_of(other)


def test_foreign_rows_that_are_no_rows_change_nothing(store: Store) -> None:
    with pytest.raises(CorruptData):
        store.accept_rows([RowOp(b"k\0\x02", TYPE_REGISTER, b"\xc1")], {5: 9})
    assert (store.seq, store.vv) == (0, {})


def test_dropped_rows_stay_dropped(stores: Stores, store: Store) -> None:
    stamp = store.stamp(NOW)
    store.commit(stamp, [(b"s", TYPE_SET, set_rows.add({}, [b"x", b"y"], stamp, NOW))])
    put(store, b"k", b"v")
    put(store, b"stays", b"v")
    store.flush()
    applied(store)
    parts = list(store.key_rows(b"s").rows)
    store.drop_rows([row_key(b"k", VALUE), row_key(b"s", parts[0])], {77: 5})
    store.flush()
    for clean in (False, True, True):
        assert store.key_rows(b"k").type == 0
        assert list(store.key_rows(b"s").rows) == parts[1:]
        assert store.keys(b"", b"", 10, NOW) == [b"s", b"stays"]
        assert store.vv == {77: 5}
        applied(store)
        assert store.digest(NOW)[1] == root_of(store)
        store = stores.reopen(store, clean=clean)


# Digests


def test_digests_follow_the_rows(stores: Stores, store: Store) -> None:
    seen = {store.digest(NOW)[1]}
    for turn in range(6):
        for number in range(0, 90, 3):
            put(store, b"k:%02d" % number, b"%d" % turn, expires_ms=(NOW + 1) * (number % 2))
            incr(store, b"c:%d" % (number % 7), turn + 1)
            stamp = store.stamp(NOW)
            rows = store.key_rows(b"set").rows
            delta = set_rows.add(rows, [b"%d" % (turn * number)], stamp, NOW)
            if delta:
                store.commit(stamp, [(b"set", TYPE_SET, delta)])
            stamp = store.stamp(NOW)
            rows = store.key_rows(b"map").rows
            store.commit(
                stamp, [(b"map", TYPE_MAP, map_rows.put(rows, {b"%d" % number: b"v"}, stamp, NOW))]
            )
        for key in (b"c:1", b"c:2"):
            # From turn 2 on these have a head: an end, then none; and one of them begins anew.
            stamp = store.stamp(NOW)
            rows = store.key_rows(key).rows
            if turn in (2, 4):
                delta = counter.expire(rows, stamp, (NOW + 7_200_000) * (turn == 2))
            else:
                delta = counter.delete(rows, stamp, NOW) if turn == 5 and key == b"c:1" else {}
            if delta:
                store.commit(stamp, [(key, TYPE_COUNTER, delta)])
        if turn == 3:
            stamp = store.stamp(NOW)
            delta = set_rows.delete(store.key_rows(b"set").rows, store.vv, stamp)
            store.commit(stamp, [(b"set", TYPE_SET, delta)])
        store.flush()
        applied(store)
        seq, root = store.digest(NOW)
        assert (seq, root) == (store.seq, root_of(store))
        seen.add(root)
        store = stores.reopen(store, clean=bool(turn % 2))
        applied(store)
        assert store.digest(NOW) == (seq, root)
    assert len(seen) > 5


def test_equal_contents_have_equal_digests(stores: Stores, store: Store) -> None:
    other = stores.open("b")
    raws = []
    for number in range(50):
        put(store, b"k:%d" % (number % 9), b"%d" % number)
        raws.append(store.last_raw)
    for raw in raws:
        other.accept(raw, decode_record(raw))
    for each in (store, other):
        each.flush()
        applied(each)
    assert store.digest(NOW) == other.digest(NOW)
    assert store.digest_buckets() == other.digest_buckets()
