"""The linearizable endpoint over a table: revisions, request ids, what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from linear_kit import Rows, hosted

from roost_crdt.errors import BadRequest, CorruptData, TooLarge, Unavailable
from roost_crdt.limits import Limits
from roost_crdt.linear.hosted import HISTORY_BYTES, Hosted
from roost_crdt.linear.transactions import Compare, Item, Txn, seal, unseal


def put(key: bytes, value: bytes | None, revision: int) -> Txn:
    return Txn((Compare(key, revision),), ((key, value),))


def test_a_history_is_founded_once() -> None:
    rows = Rows()
    first = Hosted(rows.table(), Limits())
    assert first.founded(lambda n: b"a" * n)
    assert not first.founded(lambda n: b"b" * n)
    again = Hosted(rows.table(), Limits())
    again.open()
    assert again.history == b"a" * HISTORY_BYTES
    del rows.held[b"meta"]
    with pytest.raises(CorruptData):
        again.open()
    rows.held[b"dk"] = b"x"
    with pytest.raises(CorruptData, match="without their history"):
        again.founded(lambda n: b"c" * n)


def test_a_transaction_applies_only_to_the_revisions_it_names() -> None:
    host = hosted(Rows())
    first = host.execute(put(b"k", b"1", 0), None, b"")
    assert first.ok
    assert host.items([b"k", b"l"]) == [Item(b"1", first.revision), None]
    late = host.execute(put(b"k", b"2", 0), None, b"")
    assert not late.ok
    assert late.items == (Item(b"1", first.revision),)
    second = host.execute(put(b"k", b"3", first.revision), None, b"")
    assert second.revision > first.revision
    assert host.revision() == second.revision
    assert host.execute(put(b"k", None, second.revision), None, b"").ok
    assert host.items([b"k"]) == [None]
    assert host.scan(b"", b"", 10) == []


def test_an_id_and_its_effect_are_one_batch_and_a_repeat_is_none() -> None:
    rows = Rows()
    host = hosted(rows)
    before = len(rows.batches)
    assert host.execute(put(b"k", b"1", 0), b"r", b"first") == host.execute(
        put(b"k", b"1", 0), b"r", b"first"
    )._replace(duplicate=False, revision=1)
    [batch] = rows.batches[before:]
    assert b"dk" in batch
    assert any(key.startswith(b"qr") for key in batch)
    again = host.execute(put(b"k", b"2", 9), b"r", b"second")
    assert (again.ok, again.duplicate, again.result) == (True, True, b"first")


def test_an_id_that_lost_its_race_may_be_tried_again() -> None:
    host = hosted(Rows())
    assert not host.execute(put(b"k", b"1", 5), b"r", b"one").ok
    won = host.execute(put(b"k", b"1", 0), b"r", b"two")
    assert (won.ok, won.duplicate, won.result) == (True, False, b"two")


@given(st.lists(st.integers(0, 12), max_size=40), st.integers(1, 5))
def test_the_newest_ids_are_kept(requests: list[int], kept: int) -> None:
    host = hosted(Rows(), request_ids_kept=kept)
    remembered: list[int] = []
    for request in requests:
        outcome = host.execute(Txn((), ()), b"%d" % request, b"%d" % request)
        assert outcome.result == b"%d" % request
        assert outcome.duplicate == (request in remembered)
        if not outcome.duplicate:
            remembered = [*remembered, request][-kept:]


def test_what_is_too_large_or_damaged_is_refused_and_changes_nothing() -> None:
    rows = Rows()
    host = hosted(rows, value_bytes_max=10)
    held = dict(rows.held)
    with pytest.raises(TooLarge):
        host.execute(put(b"k", bytes(100_000), 0), None, b"")
    with pytest.raises(BadRequest, match="1 to"):
        host.execute(put(b"", b"1", 0), None, b"")
    with pytest.raises(BadRequest, match="twice"):
        host.execute(Txn((), ((b"k", b"1"), (b"k", b"2"))), None, b"")
    assert rows.held == held
    host.execute(put(b"k", b"1", 0), None, b"")
    rows.held[b"dk"] = rows.held[b"dk"][:-1] + b"?"
    with pytest.raises(Unavailable, match="cannot read a key"):
        host.items([b"k"])
    assert host.last_error is not None
    assert host.items([b"other"]) == [None]


def test_pages_read_everything_once() -> None:
    rows = Rows()
    rows.put({b"d%02d" % n: b"v" for n in range(7)})
    assert [key for key, _ in rows.table().pages(b"d", 3)] == sorted(rows.held)


def test_a_sealed_row_is_of_its_key() -> None:
    assert unseal(b"a", seal(b"a", b"body")) == b"body"
    for key, stored in ((b"b", seal(b"a", b"body")), (b"a", b"abc"), (b"a", bytes(9))):
        with pytest.raises(CorruptData):
            unseal(key, stored)
