"""A process that writes entries of every kind: `power_loss_writer.py DIR BOOT GROUPS`.

What the store holds is a function of the number of writes that it shows, so a reader can tell
from `count` alone what everything else must be (`expected`). After each flush the newest number
is printed: what is printed is acknowledged. BOOT stands for the boot id; host and inode are
fixed, so that the image of a disk can be opened in another place.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from roost_crdt import logformat, values
from roost_crdt.errors import Busy
from roost_crdt.limits import DEFAULT_LIMITS
from roost_crdt.record import Record, RowOp, encode_record
from roost_crdt.rows import counter, encode_row, register
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
from roostd.store import Store, identity
from roostd.store.identity import Surroundings

NOW = 1_700_000_000_000
KEYS = 17
MEMBERS = 29
FIELDS = 7
SLOTS = 4
NEIGHBOUR = 777
GROUP_MAX = 4
SIZE_MAX = 1 << 20
KINDS = (
    logformat.KIND_SESSION,
    logformat.KIND_SPEND,
    logformat.KIND_OUTBOX,
    logformat.KIND_CONSENSUS,
    logformat.KIND_META,
)


def pretend(boot: str, patch: pytest.MonkeyPatch) -> None:
    """Let stores be opened as on one machine, booted as `boot`."""
    here = Surroundings(boot.encode(), b"host", b"1:1", 0)
    patch.setattr(identity, "surroundings", lambda _: here)


def open_store(path: Path) -> Store:
    return Store.open(
        path,
        limits=replace(DEFAULT_LIMITS, apply_interval_ms=4),
        size_max=SIZE_MAX,
        log_retention=160 << 10,
        now_ms=NOW,
        random_bytes=os.urandom,
    )


def written(store: Store) -> int:
    """How many writes the store shows."""
    return values.counter_value(store.key_rows(b"count").rows, NOW) or 0


def value(number: int) -> bytes:
    return b"%d." % number + b"x" * (number * 37 % 400)


def write(store: Store, number: int) -> None:
    """What write `number` does: entries of other kinds first, then one record."""
    if number % 3 == 0:
        kind, key = _pair(number)
        store.put(kind, {key: b"%d" % number})
    if number % 4 == 0:
        _from_neighbour(store, number)
    if number % 7 == 0 and number > 7:
        store.drop_rows([row_key(b"gone:%d" % (number - 7), VALUE)])
    stamp = store.stamp(NOW)
    ops = [
        (b"count", TYPE_COUNTER, counter.add(store.key_rows(b"count").rows, 1, stamp, NOW)),
        _register(store, b"k:%d" % (number % KEYS), value(number), stamp),
    ]
    if number % 7 == 0:
        ops.append(_register(store, b"gone:%d" % number, b"here", stamp))
    if number % 2 == 0:
        rows = store.key_rows(b"set").rows
        ops.append((b"set", TYPE_SET, set_rows.add(rows, [_member(number)], stamp, NOW)))
    if number % 5 == 0:
        rows = store.key_rows(b"map").rows
        delta = map_rows.put(rows, {b"f%d" % (number % FIELDS): b"%d" % number}, stamp, NOW)
        ops.append((b"map", TYPE_MAP, delta))
    store.commit(stamp, ops)


def _register(store: Store, key: bytes, new: bytes, stamp: Any) -> tuple[bytes, int, Any]:
    return key, TYPE_REGISTER, register.put(store.key_rows(key).rows, new, stamp)


def _member(number: int) -> bytes:
    return b"%d" % (number % MEMBERS)


def _from_neighbour(store: Store, number: int) -> None:
    """A record of another actor, or (each third) a page of a snapshot, whose row tells `number`."""
    hlc = number << 16
    name = row_key(b"n:%d" % (number % FIELDS), VALUE)
    (row,) = register.put({}, b"%d" % number, (hlc, NEIGHBOUR)).values()
    op = RowOp(name, TYPE_REGISTER, encode_row(TYPE_REGISTER, VALUE, row))
    if number % 12 == 0:
        store.accept_rows([op], {NEIGHBOUR: hlc})
        return
    record = Record(NEIGHBOUR, hlc, store.vv.get(NEIGHBOUR, 0), (op,))
    if record.prev_hlc < hlc:
        assert store.accept(encode_record(record), record)


def check(store: Store, acked: int, *, vouched: bool = True) -> int:
    """Every acknowledged write is there, nothing is there in part, nothing else is there. Not
    `vouched`: the version vector may claim less than there is of the neighbour, but no more."""
    count = written(store)
    assert acked <= count <= acked + GROUP_MAX, f"shows {count}, acknowledged {acked}"
    for slot in range(KEYS):
        newest = _newest(count, slot, KEYS)
        shown = values.register_value(store.key_rows(b"k:%d" % slot).rows, NOW)
        assert shown == (value(newest) if newest else None), f"k:{slot} is {shown!r} at {count}"
    members = {_member(number) for number in range(2, count + 1, 2)}
    assert set(values.set_members(store.key_rows(b"set").rows, NOW)) == members, "set"
    fields = {b"f%d" % (n % FIELDS): b"%d" % n for n in range(5, count + 1, 5)}
    assert values.map_fields(store.key_rows(b"map").rows, NOW) == fields, "map"
    # Entries of other kinds come before the record of their number, in one group or the one
    # before: the next number's may be there already.
    for pair, number in {_pair(n): n for n in range(3, count + 1, 3)}.items():
        again = number + 3 * SLOTS * len(KINDS)
        due = (number, again if again == count + 1 else number)
        assert int(store.get(*pair) or b"0") in due, f"{pair}: {store.get(*pair)!r}"
    held = store.vv.get(NEIGHBOUR, 0) >> 16
    if vouched:
        assert held in (count // 4 * 4, count // 4 * 4 + 4), f"vv: {held} at {count}"
    else:
        assert held <= count // 4 * 4, f"vv: {held} at {count}"
        held = count // 4 * 4
    for slot in range(FIELDS):
        rows = store.key_rows(b"n:%d" % slot).rows
        expected = [n for n in range(4, held + 1, 4) if n % FIELDS == slot]
        shown = values.register_value(rows, NOW)
        assert shown == (b"%d" % expected[-1] if expected else None), f"n:{slot}"
    last = count // 7 * 7
    gone = set(store.keys(b"gone:", b"", 1_000, NOW))
    assert gone <= {b"gone:%d" % last}, f"back: {gone}"
    assert gone or not last or count >= last + 6, f"{last} is gone at {count}"
    return count


def _newest(count: int, slot: int, modulus: int) -> int:
    """The newest number up to `count` that falls on a slot; 0: none does."""
    return max(0, count - (count - slot) % modulus)


def _pair(number: int) -> tuple[int, bytes]:
    """The kind and key that a number is put under; comes again after 3 * SLOTS * kinds."""
    return KINDS[number // 3 % len(KINDS)], b"own/%d" % (number // 3 % SLOTS)


def patiently(store: Store, number: int) -> None:
    """Write, again while the store is busy; what was done before it was stays done."""
    while True:
        try:
            return write(store, number)
        except Busy:
            store.flush()
            store._applier.drain(5)


def main() -> None:
    path, boot, groups = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    with pytest.MonkeyPatch.context() as patch:
        pretend(boot, patch)
        store = open_store(path)
        for number in numbers(store, groups):
            os.write(1, b"%d\n" % number)
        if groups % 2:
            store.close()
        else:
            os._exit(0)


def numbers(store: Store, groups: int) -> Iterator[int]:
    """Write so many groups; after each, the newest number."""
    number = written(store)
    yield number
    for group in range(groups):
        for _ in range(1 + group % GROUP_MAX):
            number += 1
            patiently(store, number)
        store.flush()
        yield number


if __name__ == "__main__":
    main()
