"""A process that writes to a store until it is killed: `store_writer.py DIR GROUPS`.

Each group adds 1 to a counter per write, sets registers to the write's number and leaves a
session entry. After each flush the newest number is printed; what is printed is acknowledged.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from roost_crdt import values
from roost_crdt.errors import Busy
from roost_crdt.limits import DEFAULT_LIMITS
from roost_crdt.logformat import KIND_SESSION
from roost_crdt.rows import counter, register
from roost_crdt.rows.layout import TYPE_COUNTER, TYPE_REGISTER
from roostd.store import Store

KEYS = 97
PAD = b"." * 700


def open_store(path: Path, size_max: int = 16 << 20) -> Store:
    return Store.open(
        path,
        limits=replace(DEFAULT_LIMITS, apply_interval_ms=5),
        size_max=size_max,
        log_retention=2 << 20,
        now_ms=int(time.time() * 1000),
        random_bytes=os.urandom,
    )


def written(store: Store) -> int:
    """How many writes the store shows."""
    return values.counter_value(store.key_rows(b"count").rows, 1) or 0


def write(store: Store, number: int) -> None:
    """One record of two keys."""
    now_ms = int(time.time() * 1000)
    stamp = store.stamp(now_ms)
    key = b"k:%d" % (number % KEYS)
    value = b"%d" % number + PAD
    store.commit(
        stamp,
        [
            (b"count", TYPE_COUNTER, counter.add(store.key_rows(b"count").rows, 1, stamp, now_ms)),
            (key, TYPE_REGISTER, register.put(store.key_rows(key).rows, value, stamp)),
        ],
    )


def write_session(store: Store, number: int) -> None:
    store.put(KIND_SESSION, {b"s:%d" % (number % KEYS): b"%d" % number})


def patiently(call: Callable[[Store, int], None], store: Store, number: int) -> None:
    """Call, again while the store is busy."""
    while True:
        try:
            return call(store, number)
        except Busy:
            store.flush()
            time.sleep(0.005)


def main() -> None:
    path, groups = Path(sys.argv[1]), int(sys.argv[2])
    store = open_store(path)
    number = written(store)
    os.write(1, b"open %d\n" % number)
    for group in range(groups):
        for _ in range(1 + group % 5):
            number += 1
            patiently(write_session, store, number)
            patiently(write, store, number)
        store.flush()
        os.write(1, b"%d\n" % number)
    store.close()
    os.write(1, b"closed\n")


if __name__ == "__main__":
    main()
