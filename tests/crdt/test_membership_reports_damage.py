"""A damaged roster: what can be read is taken, the rest is told of and mended later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from crdt.test_membership_reports import Clock, members, tick
from membership_kit import open_store

from roost_crdt.errors import CorruptData
from roost_crdt.members import Member, member_delta, member_key
from roost_crdt.record import RowOp
from roost_crdt.rows.layout import TYPE_REGISTER
from roost_sim.store import Store


def with_members(*names: str) -> Store:
    store = open_store()
    for at, name in enumerate(names):
        stamp = store.stamp(Clock().ms)
        delta = member_delta({}, Member(name, 90 + at, (), {}, 0), stamp)
        store.commit(stamp, [(member_key(name), TYPE_REGISTER, delta)])
    store.flush()
    return store


def test_a_damaged_entry_is_left_out_and_comes_back_when_it_is_mended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, told = with_members("a", "b"), list[str]()
    read = store.key_rows

    def damaged(key: bytes) -> Any:
        if key == member_key("a"):
            raise CorruptData("checksum of a row")
        return read(key)

    with monkeypatch.context() as patch:
        patch.setattr(store, "key_rows", damaged)
        made, _ = members(store, Clock(), told=told)
        assert set(made.roster.nodes) == {"b"}
        assert told == ["the roster lacks an entry: checksum of a row"]
    made.changed([member_key("a")])
    assert set(made.roster.nodes) == {"a", "b"}


def test_a_scan_that_meets_damage_ends_there_and_the_node_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, told = with_members("a", "b"), list[str]()

    def broken(after: bytes, bytes_max: int) -> Sequence[RowOp]:
        raise CorruptData("checksum of a page")

    with monkeypatch.context() as patch:
        patch.setattr(store, "scan_rows", broken)
        made, _ = members(store, Clock(), told=told)
    assert not made.roster.nodes
    assert told == ["the roster is read as far as it can be: checksum of a page"]
    clock = Clock()
    made, _ = members(store, clock, told=told)
    tick(made, clock)
    assert set(made.roster.nodes) == {"a", "b", "me"}
