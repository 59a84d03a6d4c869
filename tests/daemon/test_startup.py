"""What a node says and keeps of itself, and that a full disk stops neither its start nor links."""

from __future__ import annotations

from typing import Any

import pytest
from store_kit import Stores, put, value

from roost_crdt.errors import Full
from roost_crdt.logformat import KIND_META
from roost_crdt.policy import DEFAULT_POLICIES, PolicyTable
from roostd.node.identity import Identity
from roostd.node.startup import publish

POLICIES = PolicyTable.parse(DEFAULT_POLICIES, "policies.toml")


def no_room(*_: Any, **__: Any) -> None:
    raise Full("the disk is full")


@pytest.fixture
def stores(tmp_path: Any) -> Any:
    made = Stores(tmp_path)
    yield made
    for store in made.opened:
        store.close(clean=False)


def test_policies_are_published_once_there_is_room(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stores.open()
    with monkeypatch.context() as patch:
        patch.setattr(store, "put", no_room)
        assert not publish(store, POLICIES)
    assert store.get(KIND_META, b"policies") is None
    assert publish(store, POLICIES)
    store.flush()
    assert store.get(KIND_META, b"policies") == POLICIES.text.encode()
    seq = store.seq
    assert publish(store, POLICIES)
    assert store.seq == seq


def test_what_a_neighbour_tells_without_room_is_taken_later(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes in the middle of a link's work, which goes on."""
    store = stores.open()
    identity = Identity(store, "eu-1", lambda actor: None)
    with monkeypatch.context() as patch:
        patch.setattr(store, "put", no_room)
        identity.keep_chain("us-1", 7, 70, bytes(16))
        identity.keep_keys("us-1", {"k": bytes(32)})
    assert identity.head_for("us-1") is None, "it would not be known after a crash"
    assert identity.kept_keys() == []
    identity.keep_chain("us-1", 7, 71, bytes(16))
    identity.keep_keys("us-1", {"k": bytes(32)})
    put(store, b"k", b"v")
    store = stores.reopen(store, clean=True)
    identity = Identity(store, "eu-1", lambda actor: None)
    assert identity.head_for("us-1") == (7, 71, bytes(16))
    assert identity.kept_keys() == [("us-1", {"k": bytes(32)})]
    assert value(store, b"k") == b"v"
