"""A store in a process of its own, driven by JSON lines: the writer that test_mmap reads from.

Each line is a list: `["put", key, leaf]` (and "json" where the leaf is JSON text),
`["add", key, [member, ...]]`, `["raw", row_key_hex,
stored_hex | null]` (straight into LMDB, as damage), `["meta", name, hex]`, `["apply"]` (wait
until the index holds everything), `["close"]`. The answer is `[store_id_hex, seq, applied_seq]`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import lmdb

from roost_crdt import logformat
from roost_crdt.limits import Limits
from roost_crdt.rows import layout, register
from roost_crdt.rows import set as set_rows
from roostd.store import Store


def now_ms() -> int:
    return int(time.time() * 1000)


def damage(path: str, database: bytes, key: bytes, value: bytes | None) -> None:
    """Write past the store, which must be closed."""
    with lmdb.open(path + "/index", max_dbs=16) as env:
        db = env.open_db(database)
        with env.begin(db, write=True) as txn:
            if value is None:
                txn.delete(key)
            else:
                txn.put(key, value)


def main(path: str, policies: str) -> None:
    limits = Limits(apply_interval_ms=5)
    store = Store.open(
        Path(path),
        limits=limits,
        size_max=64 << 20,
        log_retention=16 << 20,
        now_ms=now_ms(),
        random_bytes=os.urandom,
    )
    store.put(logformat.KIND_META, {b"policies": policies.encode()})
    store.flush()
    opened = True
    for line in sys.stdin:
        action, *arguments = json.loads(line)
        if action == "put":
            key, stamp = arguments[0].encode(), store.stamp(now_ms())
            leaf = arguments[1] if arguments[2:] else arguments[1].encode()
            delta = register.put(store.key_rows(key).rows, leaf, stamp)
            store.commit(stamp, [(key, layout.TYPE_REGISTER, delta)])
        elif action == "add":
            key, stamp = arguments[0].encode(), store.stamp(now_ms())
            members = [member.encode() for member in arguments[1]]
            delta = set_rows.add(store.key_rows(key).rows, members, stamp, now_ms())
            store.commit(stamp, [(key, layout.TYPE_SET, delta)])
        elif action == "close":
            store.close()
            opened = False
        elif action == "raw":
            stored = None if arguments[1] is None else bytes.fromhex(arguments[1])
            damage(path, b"rows", bytes.fromhex(arguments[0]), stored)
        elif action == "meta":
            damage(path, b"meta", arguments[0].encode(), bytes.fromhex(arguments[1]))
        if opened:
            store.flush()
        while opened and action == "apply" and store.applied_seq < store.seq:
            time.sleep(0.001)
        counts = [store.seq, store.applied_seq] if opened else [0, 0]
        print(json.dumps([store.store_id.hex(), *counts]), flush=True)
    if opened:
        store.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
