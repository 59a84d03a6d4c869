"""What a command makes of a cell, and cells that consensus holds."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost_crdt.errors import BadRequest, WrongType
from roost_crdt.linear.cells import (
    INT64_MAX,
    INT64_MIN,
    Cell,
    Command,
    Delete,
    Expire,
    Get,
    Incr,
    Put,
    Reply,
    counter_of,
    decode_cell,
    encode_cell,
    live_cell,
    step,
)
from roost_crdt.linear.transactions import Item
from roost_sim.linear import POLICIES

FLAGS, HITS = POLICIES.find(b"flags:a"), POLICIES.find(b"hits:a")


@given(st.one_of(st.binary(max_size=20), st.text(max_size=20)), st.integers(0, 2**62))
def test_a_register_comes_back_as_it_was(value: bytes | str, expires_ms: int) -> None:
    cell = Cell(value, expires_ms)
    assert decode_cell(encode_cell(cell), FLAGS, b"flags:a") == cell
    with pytest.raises(WrongType):
        decode_cell(encode_cell(cell), HITS, b"hits:a")


@given(st.integers(INT64_MIN, INT64_MAX))
def test_a_counter_comes_back_as_it_was(value: int) -> None:
    assert decode_cell(encode_cell(Cell(value)), HITS, b"hits:a") == Cell(value)
    assert counter_of(str(value), HITS) == counter_of(b"%d" % value, HITS) == value
    assert counter_of(value, HITS) == value


@pytest.mark.parametrize(
    "body",
    [
        None,
        7,
        [],
        [1, b"v"],
        [2, b"v", 0],
        [1, b"v", -1],
        [1, b"v", True],
        [1, None, 0],
        [1, 1.5, 0],
    ],
)
def test_what_is_no_cell_is_refused_with_its_key(body: Any) -> None:
    for policy in (FLAGS, HITS):
        with pytest.raises(WrongType, match="flags:a"):
            decode_cell(msgspec.msgpack.encode(body), policy, b"flags:a")
    with pytest.raises(WrongType):
        decode_cell(b"\xc1", FLAGS, b"flags:a")


@pytest.mark.parametrize("value", [INT64_MAX + 1, True, "7"])
def test_a_counter_that_consensus_holds_has_64_bits(value: Any) -> None:
    with pytest.raises(WrongType, match="hits:a"):
        decode_cell(msgspec.msgpack.encode([1, value, 0]), HITS, b"hits:a")


@pytest.mark.parametrize("leaf", ["", "1.5", "x", b"\xff", " 1", str(2**63), 2**63, True, "1e3"])
def test_a_counter_takes_whole_numbers_of_64_bits(leaf: bytes | str | int) -> None:
    with pytest.raises(BadRequest):
        counter_of(leaf, HITS)


def test_a_cell_lives_until_its_time() -> None:
    item = Item(encode_cell(Cell(b"v", 50)), 3)
    assert live_cell(item, FLAGS, b"flags:a", 49) == Cell(b"v", 50)
    assert live_cell(item, FLAGS, b"flags:a", 50) is None


@pytest.mark.parametrize(
    ("command", "before", "after", "reply", "wrote"),
    [
        (Get(b"k"), None, None, Reply(False, None), False),
        (Get(b"k"), Cell(b"v"), Cell(b"v"), Reply(True, b"v"), False),
        (Put(b"k", b"w"), Cell(b"v"), Cell(b"w"), Reply(True), True),
        (Put(b"k", b"w", nx=True), Cell(b"v"), Cell(b"v"), Reply(False), False),
        (Put(b"k", b"w", nx=True), None, Cell(b"w"), Reply(True), True),
        (Put(b"k", b"w", xx=True), None, None, Reply(False), False),
        (Put(b"k", b"w", previous=True), Cell(b"v"), Cell(b"w"), Reply(True, b"v"), True),
        (Put(b"k", b"w", keep_ttl=True), Cell(b"v", 9_000), Cell(b"w", 9_000), Reply(True), True),
        (Put(b"k", b"w", expires_ms=7), Cell(b"v"), None, Reply(True), True),
        (Delete(b"k"), None, None, Reply(False), False),
        (Delete(b"k", previous=True), Cell(b"v"), None, Reply(True, b"v"), True),
        (Expire(b"k", 9_000), Cell(b"v"), Cell(b"v", 9_000), Reply(True), True),
        (Expire(b"k", 7), Cell(b"v"), None, Reply(True), True),
        (Expire(b"k", 0), Cell(b"v", 9_000), Cell(b"v"), Reply(True), True),
        (Expire(b"k", 7), None, None, Reply(False), False),
        (Incr(b"k", 2), None, Cell(2), Reply(True, 2), True),
        (Incr(b"k", -3), Cell(2, 9_000), Cell(-1, 9_000), Reply(True, -1), True),
    ],
)
def test_a_step(
    command: Command, before: Cell | None, after: Cell | None, reply: Reply, wrote: bool
) -> None:
    assert tuple(step(command, before, FLAGS, 1_000)) == (after, reply, wrote)


@pytest.mark.parametrize("asked", ["nx", "xx", "keep_ttl", "previous"])
def test_a_put_is_blind_unless_it_asks_for_what_was_there(asked: str) -> None:
    put = Put(b"k", b"v", expires_ms=5)
    assert put.blind
    assert not put._replace(**{asked: True}).blind
    without, held = (step(put, cell, FLAGS, 0) for cell in (None, Cell(b"w", 9)))
    assert without == held, "it need not be read"


def test_a_counter_does_not_overflow() -> None:
    with pytest.raises(BadRequest, match="overflows"):
        step(Incr(b"k", 1), Cell(INT64_MAX), HITS, 0)
    with pytest.raises(BadRequest, match="overflows"):
        step(Incr(b"k", -1), Cell(INT64_MIN), HITS, 0)
