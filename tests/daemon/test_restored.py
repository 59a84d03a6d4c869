"""A restored node: whom it waits for, embedded consensus that went back in time, ROOST.BACKUP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
from api_node import CREDENTIALS, served
from store_kit import Stores, put

from roost_crdt.logformat import KIND_CONSENSUS, KIND_META
from roostd.consensus.base import seal, unseal
from roostd.node.restored import Restored
from roostd.store import RESTORED, Store, restore, verify_backup


def restored(store: Store, *neighbours: str) -> Restored:
    return Restored(store, neighbours, os.urandom)


def mark(store: Store) -> bytes | None:
    return store.get(KIND_META, RESTORED)


def test_a_store_that_was_not_restored_waits_for_nobody(stores: Stores) -> None:
    store = stores.open()
    assert restored(store, "us-1").waiting() == []
    assert mark(store) is None


def test_it_waits_for_each_neighbour_over_restarts(stores: Stores) -> None:
    store = stores.open()
    store.put(KIND_META, {RESTORED: msgspec.msgpack.encode([])})
    assert restored(store, "us-1", "ap-1").waiting() == ["us-1", "ap-1"]
    restored(store, "us-1", "ap-1").heard("us-1")
    store = stores.reopen(store, clean=True)
    assert restored(store, "us-1", "ap-1").waiting() == ["ap-1"]
    assert restored(store, "us-1", "ap-1", "sa-1").waiting() == ["ap-1", "sa-1"]
    # A neighbour that is gone for good is taken out of the configuration.
    assert restored(store, "us-1").waiting() == []
    assert mark(store) is None
    assert restored(store, "us-1", "ap-1").waiting() == []


def test_without_neighbours_there_is_nothing_to_hear(stores: Stores) -> None:
    store = stores.open()
    store.put(KIND_META, {RESTORED: msgspec.msgpack.encode([])})
    assert restored(store).waiting() == []
    assert mark(store) is None


def test_embedded_consensus_gets_another_history_once(stores: Stores) -> None:
    store = stores.open()
    revision = (77).to_bytes(8, "big")
    store.put(KIND_CONSENSUS, {b"meta": seal(b"meta", b"h" * 16 + revision)})
    restored(store, "us-1")
    assert unseal(b"meta", store.get(KIND_CONSENSUS, b"meta") or b"") == b"h" * 16 + revision
    store.put(KIND_META, {RESTORED: msgspec.msgpack.encode([])})
    restored(store, "us-1")
    first = unseal(b"meta", store.get(KIND_CONSENSUS, b"meta") or b"")
    assert first[:16] != b"h" * 16
    assert first[16:] == revision
    restored(store, "us-1")
    assert unseal(b"meta", store.get(KIND_CONSENSUS, b"meta") or b"") == first


def as_map(reply: Any) -> dict[str, Any]:
    return {reply[i].decode(): reply[i + 1] for i in range(0, len(reply), 2)}


async def test_backup_over_resp_needs_an_admin_and_its_own_cursor(
    tmp_path: Path, stores: Stores
) -> None:
    async with served(tmp_path / "n", credentials=CREDENTIALS) as node:
        put(node.node.store, b"str:k", b"v")
        node.node.groups.flush()
        writer, root = await node.client(), await node.client()
        await writer.do("AUTH", "writer", "writer-secret")
        assert str(await writer.do("ROOST.BACKUP")).startswith("NOPERM")
        await root.do("AUTH", "root", "root-secret")
        assert str(await root.do("ROOST.BACKUP", "no cursor")).startswith("BADREQUEST")
        assert "wrong number" in str(await root.do("ROOST.BACKUP", "a", "b"))
        cursor, file = b"", tmp_path / "f"
        with file.open("wb") as out:
            while True:
                page = as_map(await root.do("ROOST.BACKUP", *([cursor] if cursor else [])))
                out.write(page["chunk"])
                cursor = page["cursor"]
                if not cursor:
                    break
        about = verify_backup(file).head.about
        assert about == {"node": "eu-1", "region": "eu", "cluster": "test"}
        restore(file, tmp_path / "b", random_bytes=os.urandom)
        assert stores.open("b").digest()[1] == node.node.store.digest()[1]
