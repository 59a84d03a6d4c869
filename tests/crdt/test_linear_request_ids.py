"""Request ids that were answered: the newest are kept, what is damaged is never taken for none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from linear_kit import Rows

from roost_crdt.errors import BadRequest, CorruptData
from roost_crdt.limits import Limits
from roost_crdt.linear.request_ids import RequestIds, check_request_id
from roost_crdt.linear.transactions import seal


def remember(rows: Rows, kept: int, *requests: bytes) -> RequestIds:
    ids = RequestIds(rows.table(), b"i", kept)
    for request in requests:
        rows.put(ids.remember(request, b"answer to " + request))
    return ids


@given(st.lists(st.integers(0, 12), max_size=60), st.integers(1, 5))
def test_the_newest_are_kept(requests: list[int], kept: int) -> None:
    rows = Rows()
    ids = RequestIds(rows.table(), b"i", kept)
    order: list[int] = []
    for n, request in enumerate(requests):
        known = ids.find(b"%d" % request)
        assert (known is not None) == (request in order)
        if known is None:
            rows.put(ids.remember(b"%d" % request, b"%d" % n))
            order = [*order, request][-kept:]
    assert len(rows.held) == 2 * len(order) + bool(requests)


def test_an_id_is_known_once_its_rows_are_written() -> None:
    rows = Rows()
    ids = RequestIds(rows.table(), b"i", 4)
    made = ids.remember(b"r", b"answer")
    assert ids.find(b"r") is None, "whoever writes the effect writes them with it"
    rows.put(made)
    assert ids.find(b"r") == b"answer"
    assert RequestIds(rows.table(), b"i", 4).find(b"r") == b"answer", "after a restart"
    assert RequestIds(rows.table(), b"j", 4).find(b"r") is None, "another one's memory"


def test_a_lowered_bound_is_reached_step_by_step() -> None:
    rows = Rows()
    remember(rows, 9, *(b"%d" % n for n in range(9)))
    ids = remember(rows, 2)
    for step, known in enumerate((8, 7, 6, 5, 4, 3, 2, 2)):
        assert len(ids.remember(b"new%d" % step, b"a")) <= 7, "no long batch"
        remember(rows, 2, b"new%d" % step)
        assert sum(key.startswith(b"ir") for key in rows.held) == known
    assert ids.find(b"new7") == b"answer to new7"


def test_a_lost_row_of_the_order_stops_no_other_id() -> None:
    rows = Rows()
    ids = remember(rows, 2, b"a", b"b")
    del rows.held[min(key for key in rows.held if key.startswith(b"io"))]
    remember(rows, 2, b"c", b"d")
    assert ids.find(b"a") is not None, "nobody knows any more when it came"
    assert ids.find(b"b") is None
    assert [ids.find(b"c"), ids.find(b"d")] == [b"answer to c", b"answer to d"]


def test_a_damaged_answer_is_not_taken_for_none() -> None:
    rows = Rows()
    ids = remember(rows, 2, b"a", b"b")
    for key in [key for key in rows.held if key.startswith(b"ir")]:
        rows.held[key] = rows.held[key][:-1]
    with pytest.raises(CorruptData):
        ids.find(b"a")
    assert ids.find(b"c") is None


@pytest.mark.parametrize("stored", [seal(b"ib", bytes(15)), b"", bytes(20)])
def test_without_their_bounds_no_id_is_remembered(stored: bytes) -> None:
    """They would begin anew over what is held."""
    rows = Rows()
    ids = remember(rows, 2, b"a")
    rows.held[b"ib"] = stored
    with pytest.raises(CorruptData):
        ids.remember(b"b", b"answer")


@pytest.mark.parametrize("request_id", ["", "x" * 129, b"", "é" * 65])
def test_ids_of_a_wrong_length_are_refused(request_id: str | bytes) -> None:
    with pytest.raises(BadRequest, match="1 to 128 bytes"):
        check_request_id(request_id, Limits())


def test_ids_may_be_text_bytes_or_none() -> None:
    assert check_request_id("é", Limits()) == "é".encode()
    assert check_request_id(b"\xff", Limits()) == b"\xff"
    assert check_request_id(None, Limits()) is None
    assert check_request_id("\ud800", Limits()) is not None, "JSON can say it"
