"""The linearizable endpoint over a table: revisions, request ids, what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from linear_kit import Rows, hosted

from roost_crdt.errors import BadRequest, CorruptData, TooLarge, Unavailable, UnknownOutcome
from roost_crdt.limits import Limits
from roost_crdt.linear.hosted import HISTORY_BYTES, Hosted, unknown
from roost_crdt.linear.transactions import Compare, Item, Txn, seal


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


def test_a_transaction_that_only_compares_writes_nothing() -> None:
    rows = Rows()
    host = hosted(rows)
    host.execute(put(b"k", b"1", 0), None, b"")
    batches = len(rows.batches)
    assert host.execute(Txn((Compare(b"k", 1),), ()), None, b"").ok
    assert not host.execute(Txn((Compare(b"k", 2),), ()), None, b"").ok
    assert len(rows.batches) == batches


def test_an_id_whose_first_answer_is_damaged_may_have_been_applied() -> None:
    """It was: to apply it again would be worse than to say so."""
    rows = Rows()
    host = hosted(rows)
    host.execute(put(b"k", b"1", 0), b"r", b"first")
    [answer] = [key for key in rows.held if key.startswith(b"qr")]
    rows.held[answer] = rows.held[answer][:-1] + b"?"
    held = dict(rows.held)
    with pytest.raises(
        UnknownOutcome, match=r"cannot be read: .*; the transaction may have"
    ) as told:
        host.execute(put(b"k", b"2", 1), b"r", b"second")
    assert told.value.details["request_id"] == "r"
    assert host.last_error is not None
    assert rows.held == held
    assert host.execute(put(b"k", b"2", 1), b"other", b"").ok


@pytest.mark.parametrize("size", [0, 23, 25])
def test_a_history_or_a_row_of_another_shape_is_refused(size: int) -> None:
    rows = Rows()
    host = hosted(rows)
    rows.held[b"dk"] = seal(b"dk", bytes(7))
    with pytest.raises(Unavailable, match="has another shape"):
        host.items([b"k"])
    rows.held[b"meta"] = seal(b"meta", bytes(size))
    with pytest.raises(CorruptData, match="history of consensus has another shape"):
        host.open()


def test_what_may_have_been_applied_is_told_with_its_id() -> None:
    assert unknown("no answer", b"\xff").details["request_id"] == "\ufffd"
    assert unknown("no answer", None).details["request_id"] is None
