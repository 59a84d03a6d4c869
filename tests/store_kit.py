"""Real stores for tests: opened, written, crashed and opened again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from roost_crdt import digest, values
from roost_crdt.errors import Busy
from roost_crdt.limits import DEFAULT_LIMITS
from roost_crdt.record import Record
from roost_crdt.rows import counter, register
from roost_crdt.rows.layout import TYPE_COUNTER, TYPE_REGISTER
from roostd.store import Store

NOW = 1_700_000_000_000
LIMITS = replace(DEFAULT_LIMITS, apply_interval_ms=1)


class Stores:
    """Opens stores below one directory and closes them all at the end."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.opened: list[Store] = []

    def open(self, name: str = "a", **options: Any) -> Store:
        settings: dict[str, Any] = {
            "limits": LIMITS,
            "size_max": 16 << 20,
            "log_retention": 1 << 30,
            "now_ms": NOW,
            "random_bytes": os.urandom,
        }
        store = Store.open(self.base / name, **{**settings, **options})
        self.opened.append(store)
        return store

    def crash(self, store: Store) -> None:
        """Stop as a kill does: nothing is flushed, applied or marked any more."""
        store.close(clean=False)

    def open_unapplied(self, name: str) -> Store:
        """A store whose log is not applied to the index any more: all is replayed."""
        store = self.open(name)
        store._applier.stop()
        return store

    def reopen(self, store: Store, clean: bool = False, **options: Any) -> Store:
        store.close(clean=clean)
        return self.open(store._path.name, **options)


def put(store: Store, key: bytes, value: bytes, now_ms: int = NOW, expires_ms: int = 0) -> Record:
    stamp = store.stamp(now_ms)
    delta = register.put(store.key_rows(key).rows, value, stamp, expires_ms)
    return store.commit(stamp, [(key, TYPE_REGISTER, delta)])


def incr(store: Store, key: bytes, by: int = 1) -> Record:
    stamp = store.stamp(NOW)
    delta = counter.add(store.key_rows(key).rows, by, stamp, NOW)
    return store.commit(stamp, [(key, TYPE_COUNTER, delta)])


def value(store: Store, key: bytes) -> Any:
    return values.register_value(store.key_rows(key).rows, NOW)


def count(store: Store, key: bytes) -> int | None:
    return values.counter_value(store.key_rows(key).rows, NOW)


def applied(store: Store) -> None:
    """Wait until the index holds all that is durable."""
    deadline = time.monotonic() + 60
    while store.applied_seq < store.durable_seq:
        assert time.monotonic() < deadline, "not applied in a minute"
        time.sleep(0.002)


def brief(call: Callable[[], Any]) -> Any:
    """Call, again while the store is busy."""
    for _ in range(6_000):
        try:
            return call()
        except Busy:
            time.sleep(0.01)
    raise AssertionError("busy for a minute")


def root_of(store: Store, now_ms: int = NOW) -> str:
    """The root computed anew from every readable row."""
    buckets = [0] * digest.BUCKETS
    hours: dict[int, int] = {}
    for key in {op.row_key.partition(b"\0")[0] for op in store.scan_rows(b"", 1 << 30)}:
        held = store.key_rows(key)
        part = digest.contribution(held.type, key, held.rows)
        bucket = digest.bucket_of(key)
        buckets[bucket] = (buckets[bucket] + part.live) % digest.MODULUS
        for hour, amount in part.hours.items():
            hours[hour] = (hours.get(hour, 0) + amount) % digest.MODULUS
    return digest.root(buckets, hours, now_ms)
