from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost_crdt import fold
from roost_crdt.errors import CorruptData
from roost_crdt.fold import Epoch, Fold, Step, TurnRef
from roost_crdt.limits import DEFAULT_LIMITS

EU: Epoch = (1, "eu")
US: Epoch = (2, "us")
Entry = tuple[str, bytes]


def turn(
    epoch: Epoch,
    number: int,
    parent: TurnRef | None,
    *texts: str,
    turn_id: str | None = None,
) -> Entry:
    return fold.turn_entry(
        epoch,
        number,
        parent=parent,
        turn_id=turn_id,
        messages=[text.encode() for text in texts or (f"{epoch[1]}{number}",)],
        at_ms=number,
    )


def chain(epoch: Epoch, first: int, last: int, parent: TurnRef | None) -> list[Entry]:
    entries = []
    for number in range(first, last + 1):
        entries.append(turn(epoch, number, parent, turn_id=f"{epoch[1]}-{number}"))
        parent = (*epoch, number)
    return entries


def step(
    attempt: int,
    status: Step,
    epoch: Epoch,
    at_ms: int,
    result: bytes | None = None,
    call: str = "pay",
) -> Entry:
    return fold.call_entry(
        call, attempt, status, epoch, tool="bank", args=b'{"n":1}', result=result, at_ms=at_ms
    )


def folded(*entries: Entry, fields: tuple[Entry, ...] = ()) -> Fold:
    found = Fold()
    for key, leaf in entries:
        found.add(key, leaf)
    for key, leaf in fields:
        found.add_field(key, leaf)
    return found


def picture(of: Fold) -> Any:
    """Everything that a reader can see."""
    return (
        of.turn,
        of.path(),
        of.messages(),
        of.messages(2),
        of.branches(),
        dict(of.lineage()),
        of.path_epochs(4),
        of.calls,
        of.fields(),
        of.raw_entries(),
        of.raw_fields(),
    )


# A split: eu had turns up to 4, us knew 2 of them and went on, then eu wrote on for a while.
SPLIT = [
    *chain(EU, 1, 4, None),
    *chain(US, 3, 5, (*EU, 2)),
    *chain((3, "eu"), 6, 7, (*US, 5)),
]


# --- conversation -----------------------------------------------------------------------


def test_an_empty_session_has_no_turn() -> None:
    empty = Fold()
    assert empty.turn is None
    assert empty.path() == empty.messages() == empty.branches() == []
    assert empty.path_epochs(4) == ()
    assert not empty.on_path((1, "eu", 1))
    assert empty.find_turn_id("x") is None
    assert empty.calls == empty.fields() == {}


def test_messages_come_back_in_order_as_they_went_in() -> None:
    raw = '{"b": 1.10, "a" :"é"}'
    found = folded(turn(EU, 1, None, "hello", raw), turn(EU, 2, (*EU, 1), "bye"))
    assert found.turn == (1, "eu", 2)
    assert found.messages() == [b"hello", raw.encode(), b"bye"]
    assert found.messages(1) == [b"bye"]
    assert found.messages(0) == []
    assert found.messages(99) == found.messages()
    assert [entry.turn for entry in found.path(1)] == [2]


def test_the_highest_epoch_is_the_active_path_and_the_rest_is_reconciled() -> None:
    found = folded(*SPLIT)
    assert found.turn == (3, "eu", 7)
    assert found.messages() == [b"eu1", b"eu2", b"us3", b"us4", b"us5", b"eu6", b"eu7"]
    (branch,) = found.branches()
    assert (branch.epoch, branch.turn) == (EU, 4)
    assert branch.messages == [b"eu3", b"eu4"]
    assert found.on_path((*US, 3))
    assert not found.on_path((*EU, 3))
    assert found.lineage() == {EU: 4, US: 5, (3, "eu"): 7}
    assert found.path_epochs(4) == ((1, "eu", 0, 2), (2, "us", 2, 5), (3, "eu", 5, 7))
    assert found.path_epochs(2) == ((2, "us", 2, 5), (3, "eu", 5, 7))


def test_equal_numbers_are_decided_by_node_not_by_turns() -> None:
    long = chain((2, "ap"), 2, 9, (*EU, 1))
    short = chain((2, "us"), 2, 2, (*EU, 1))
    found = folded(*chain(EU, 1, 1, None), *long, *short)
    assert found.turn == (2, "us", 2)
    assert found.branches()[0].turn == 9


def test_a_branch_of_a_branch_keeps_each_turn_once() -> None:
    entries = [
        *chain(EU, 1, 3, None),
        *chain((2, "ap"), 3, 4, (*EU, 2)),
        *chain((2, "us"), 4, 4, (2, "ap", 3)),
        *chain((5, "eu"), 2, 2, (*EU, 1)),
    ]
    found = folded(*entries)
    assert found.messages() == [b"eu1", b"eu2"]
    kept = [entry.ref for branch in found.branches() for entry in branch.entries]
    assert len(kept) == len(set(kept)) == len(entries) - 2
    assert [(b.epoch, b.turn, b.messages) for b in found.branches()] == [
        (EU, 3, [b"eu3"]),
        ((2, "ap"), 4, [b"ap4"]),
        ((2, "us"), 4, [b"eu2", b"ap3", b"us4"]),
    ]


def test_two_first_contacts_lose_no_turn() -> None:
    found = folded(*chain(EU, 1, 2, None), *chain((1, "us"), 1, 3, None))
    assert found.messages() == [b"us1", b"us2", b"us3"]
    assert found.branches()[0].messages == [b"eu1", b"eu2"]


def test_a_path_whose_beginning_is_not_held_shows_what_is() -> None:
    entries = chain(EU, 1, 4, None)
    found = folded(*entries[2:])
    assert found.messages() == [b"eu3", b"eu4"]
    assert found.path_epochs(4) == ((1, "eu", 2, 4),)
    found.add(*entries[1])
    assert found.messages() == [b"eu2", b"eu3", b"eu4"]
    found.add(*entries[0])
    assert found.messages() == [b"eu1", b"eu2", b"eu3", b"eu4"]


def test_a_turn_number_that_two_homes_gave_is_two_turns() -> None:
    entry = turn(EU, 10, (*EU, 9))
    other = turn(US, 10, (*EU, 9))
    found = folded(*chain(EU, 1, 9, None), entry, other)
    assert found.lineage() == {EU: 10, US: 10}
    assert found.turn == (2, "us", 10)
    assert found.branches()[0].entries[0].ref == (1, "eu", 10)


# --- summaries ----------------------------------------------------------------------------


def test_a_summary_stands_for_the_turns_that_it_covers() -> None:
    summary = fold.summary_entry(EU, 3, covers=(*EU, 3), message=b"sum")
    found = folded(*chain(EU, 1, 5, None), summary)
    assert found.messages() == [b"sum", b"eu4", b"eu5"]
    assert found.messages(3) == [b"sum", b"eu4", b"eu5"]
    assert found.messages(2) == [b"eu4", b"eu5"], "the covered turn is not reached"
    assert len(found.path()) == 5, "nothing is deleted by it"


def test_the_summary_nearest_to_the_head_counts_and_one_of_a_branch_does_not() -> None:
    found = folded(
        *SPLIT,
        fold.summary_entry(EU, 1, covers=(*EU, 1), message=b"one"),
        fold.summary_entry(US, 4, covers=(*US, 4), message=b"four"),
        fold.summary_entry(EU, 4, covers=(*EU, 4), message=b"orphan"),
    )
    assert found.messages() == [b"four", b"us5", b"eu6", b"eu7"]


def test_several_summaries_of_one_turn_are_settled_alike_in_any_order() -> None:
    summaries = [
        fold.summary_entry(EU, 3, covers=(*EU, 1), message=b"a"),
        fold.summary_entry(EU, 12, covers=(*EU, 1), message=b"b"),
        fold.summary_entry(US, 2, covers=(*EU, 1), message=b"c"),
    ]
    for order in itertools.permutations(summaries):
        assert folded(*chain(EU, 1, 2, None), *order).messages() == [b"c", b"eu2"]


# --- turn ids -----------------------------------------------------------------------------


def test_a_turn_is_found_by_its_id_as_long_as_it_is_recent() -> None:
    found = Fold(replace(DEFAULT_LIMITS, turn_ids_kept=3))
    for key, leaf in chain(EU, 1, 5, None):
        found.add(key, leaf)
    assert found.find_turn_id("eu-2") is None
    third = found.find_turn_id("eu-3")
    assert third is not None
    assert third.turn == 3
    assert found.find_turn_id("never") is None


def test_a_turn_id_is_found_whichever_home_wrote_it() -> None:
    """A retry at the home that has taken over gets the answer of the first try."""
    before = chain(EU, 1, 2, None)
    after = chain(US, 3, 4, (*EU, 2))
    found = folded(*before, *after)
    for sought, ref in (("eu-1", (*EU, 1)), ("eu-2", (*EU, 2)), ("us-4", (*US, 4))):
        hit = found.find_turn_id(sought)
        assert hit is not None
        assert hit.ref == ref


def test_a_turn_committed_by_both_homes_is_found_as_the_newer() -> None:
    entries = [*chain(EU, 1, 1, None), turn(EU, 2, (*EU, 1), turn_id="x")]
    entries.append(turn(US, 2, (*EU, 1), turn_id="x"))
    for order in itertools.permutations(entries):
        hit = folded(*order).find_turn_id("x")
        assert hit is not None
        assert hit.ref == (2, "us", 2)


# --- ledger -------------------------------------------------------------------------------


def test_a_call_goes_from_begun_to_finished() -> None:
    found = folded(step(1, "begun", EU, 5))
    assert found.status("pay", EU) == "begun"
    assert found.calls["pay"].tool == "bank"
    assert found.calls["pay"].args == b'{"n":1}'
    found.add(*step(1, "finished", EU, 6, b"42"))
    assert found.status("pay", EU) == found.status("pay", (9, "ap")) == "finished"
    assert found.calls["pay"].result == b"42"
    assert found.status("other", EU) is None


def test_begun_under_an_earlier_epoch_is_in_doubt_until_it_is_begun_again() -> None:
    found = folded(step(1, "begun", EU, 5))
    assert found.status("pay", US) == "in_doubt"
    found.add(*step(2, "begun", US, 1))
    assert found.status("pay", US) == "begun"
    assert found.calls["pay"].attempt == 2
    assert found.status("pay", (3, "eu")) == "in_doubt"


def test_one_attempt_begun_by_two_homes_belongs_to_the_newer() -> None:
    for order in itertools.permutations([step(1, "begun", EU, 900), step(1, "begun", US, 1)]):
        assert folded(*order).status("pay", US) == "begun"


def test_failed_counts_for_its_attempt_and_finished_for_all() -> None:
    found = folded(step(1, "begun", EU, 1), step(1, "failed", EU, 2, b'"no"'))
    assert found.status("pay", EU) == "failed"
    assert found.calls["pay"].result == b'"no"'
    found.add(*step(2, "begun", EU, 3))
    assert found.status("pay", EU) == "begun"
    assert found.calls["pay"].result is None
    found.add(*step(1, "finished", US, 4, b"1"))
    assert found.status("pay", EU) == "finished", "an effect that was proved is not doubted again"


def test_begun_by_another_home_of_the_same_number_is_in_doubt() -> None:
    """Two first contacts, or a handover that crossed a takeover: epochs are compared as pairs."""
    found = folded(step(1, "begun", (1, "ap"), 5))
    assert found.status("pay", (1, "eu")) == "in_doubt"
    assert found.status("pay", (1, "ap")) == "begun"


def test_a_step_that_is_written_again_under_another_epoch_is_another_entry() -> None:
    """A home that lost its tail begins the call again; the standby holds the first entry."""
    first, again = step(1, "begun", EU, 5), step(1, "begun", (65, "eu"), 4)
    for order in itertools.permutations([first, again]):
        found = folded(*order)
        assert not found.collisions
        assert found.raw_entries() == dict([first, again])
        assert found.status("pay", (65, "eu")) == "begun"


def test_two_results_are_settled_by_the_earliest_epoch() -> None:
    entries = [
        step(1, "begun", EU, 1),
        step(1, "finished", EU, 9, b"eu"),
        step(1, "finished", US, 2, b"us"),
        step(2, "finished", (1, "ap"), 9, b"ap"),
    ]
    for order in itertools.permutations(entries):
        assert folded(*order).calls["pay"].result == b"ap", "same stamp: the lower node"


_STEPS = [
    step(attempt, status, epoch, at_ms, b"r" if status != "begun" else None, call)
    for call in ("pay", "mail")
    for attempt in (1, 2)
    for status in ("begun", "failed", "finished")
    for epoch, at_ms in ((EU, 4), (US, 2))
]
_RANK = {"begun": 0, "in_doubt": 0, "failed": 1, "finished": 2}


@given(st.lists(st.sampled_from(_STEPS), max_size=12), st.randoms(use_true_random=False))
def test_the_ledger_never_goes_back(steps: list[Entry], chance: random.Random) -> None:
    order = list(steps)
    chance.shuffle(order)
    found = Fold()
    reached: dict[str, tuple[bool, int, int]] = {}
    for key, leaf in order:
        found.add(key, leaf)
        for call, state in found.calls.items():
            place = (state.status == "finished", state.attempt, _RANK[state.status])
            if place[0] and reached.get(call, (False, 0, 0))[0]:
                continue  # finished stays finished; the earlier of two results may still come
            assert place >= reached.get(call, place)
            reached[call] = place
    assert found.calls == folded(*steps).calls


# --- fields -------------------------------------------------------------------------------


def test_a_field_has_the_value_of_the_highest_epoch() -> None:
    values = (
        fold.field_entry("kv", "a", (1, "us"), b"1", 99),
        fold.field_entry("kv", "a", (2, "ap"), b"2", 5),
        fold.field_entry("kv", "a", (2, "eu"), b"3", 1),
        fold.field_entry("kv", "a", (2, "eu"), b"4", 2),
        fold.field_entry("kv", "gone", (2, "eu"), b"1", 2),
        fold.field_entry("kv", "gone", (2, "eu"), None, 3),
    )
    for order in itertools.permutations(values):
        found = folded(fields=order)
        assert found.fields() == {"kv": {"a": b"4"}}
        assert found.field("kv", "a") == b"4"
        assert found.field("kv", "gone") is None
        assert found.field("kv", "never") is None
        assert len(found.raw_fields()) == 2


def test_a_field_written_twice_in_one_millisecond_or_with_a_clock_set_back_keeps_its_order() -> (
    None
):
    found = Fold()
    for value, now_ms in ((b"1", 100), (b"2", 100), (b"3", 40)):
        found.add_field(*found.put_field("kv", "a", EU, value, now_ms))
        assert found.field("kv", "a") == value
    key, leaf = found.put_field("kv", "a", US, b"4", 7)
    assert leaf == fold.field_entry("kv", "a", US, b"4", 7)[1], "a new epoch needs no rise"
    assert key == "kv\0a"


# --- laws ---------------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Entry], list[Entry]]:
    """What homes that did not always know of each other wrote."""
    entries: dict[str, bytes] = {}
    fields: list[Entry] = []
    refs: list[TurnRef] = []
    for at in range(draw(st.integers(0, 14))):
        epoch = (draw(st.integers(1, 3)), draw(st.sampled_from(["eu", "us"])))
        parents = [None, *(ref for ref in refs if ref < (*epoch, ref[2] + 1))]
        parent = draw(st.sampled_from(parents[-3:]))
        number = 1 if parent is None else parent[2] + 1
        turn_id = draw(st.sampled_from([None, "x", "y"]))
        key, leaf = turn(epoch, number, parent, f"m{at}", turn_id=turn_id)
        if key not in entries:
            entries[key] = leaf
            refs.append((*epoch, number))
        kind = draw(st.integers(0, 3))
        if kind == 0 and refs:
            covers = draw(st.sampled_from(refs))
            key, leaf = fold.summary_entry(epoch, at, covers=covers, message=b"s%d" % at)
            entries.setdefault(key, leaf)
        elif kind == 1:
            key, leaf = draw(st.sampled_from(_STEPS))
            entries.setdefault(key, leaf)
        elif kind == 2:
            name = draw(st.sampled_from("ab"))
            fields.append(fold.field_entry("kv", name, epoch, b"%d" % at, at))
    return list(entries.items()), fields


@given(histories(), st.randoms(use_true_random=False), st.booleans())
def test_order_repetition_and_batching_give_the_same_fold(
    history: tuple[list[Entry], list[Entry]], chance: random.Random, reads: bool
) -> None:
    entries, fields = history
    expected = picture(folded(*entries, fields=tuple(fields)))
    todo = [(0, *e) for e in entries * 2] + [(1, *e) for e in fields * 2]
    chance.shuffle(todo)
    found = Fold()
    for is_field, key, leaf in todo:
        (found.add_field if is_field else found.add)(key, leaf)
        if reads:
            picture(found)
    assert picture(found) == expected
    assert found.collisions == 0
    rows = Fold().view_rows(dict(entries), found.raw_fields())
    items = list(rows.items())
    chance.shuffle(items)
    assert picture(Fold.from_views(items)) == expected
    kept = [e.ref for b in found.branches() for e in b.entries]
    kept += [e.ref for e in found.path()]
    assert sorted(kept) == sorted(ref for ref in _refs(entries)), "every turn is there, once"


def _refs(entries: list[Entry]) -> list[TurnRef]:
    return [fold.TurnEntry(*e).ref for e in _turns(entries)]


def _turns(entries: list[Entry]) -> list[Any]:
    return [folded(e).path()[0] for e in entries if e[0].startswith("t/")]


# --- forks and damage ---------------------------------------------------------------------


def test_a_fork_takes_its_turns_their_summaries_and_the_whole_ledger() -> None:
    found = folded(
        *SPLIT,
        fold.summary_entry(EU, 1, covers=(*EU, 1), message=b"one"),
        fold.summary_entry(US, 4, covers=(*US, 4), message=b"four"),
        step(1, "begun", EU, 1),
    )
    kept = {entry.ref for entry in found.path() if entry.turn <= 3}
    child = folded(*found.entries_of(kept).items())
    assert child.messages() == [b"one", b"eu2", b"us3"]
    assert child.branches() == []
    assert child.status("pay", (4, "ap")) == "in_doubt"
    onto = chain((4, "ap"), 4, 4, child.turn)
    child.add(*onto[0])
    assert child.messages() == [b"one", b"eu2", b"us3", b"ap4"]
    assert dict(SPLIT[:1]).items() <= found.entries_of({(*EU, 1)}).items(), "bodies are unchanged"


def test_one_key_with_two_bodies_is_counted_and_settled_alike() -> None:
    one, two = turn(EU, 2, (*EU, 1), "one"), turn(EU, 2, (*EU, 1), "two")
    start = chain(EU, 1, 1, None)
    first, second = folded(*start, one, two), folded(*start, two, one)
    assert first.collisions == second.collisions == 1
    assert picture(first) == picture(second)
    steps = step(1, "finished", EU, 1, b"a"), step(1, "finished", EU, 1, b"b")
    first, second = folded(*steps), folded(*reversed(steps))
    assert first.collisions == second.collisions == 1
    assert first.calls == second.calls


def test_one_summary_key_with_two_bodies_is_settled_alike_in_any_order() -> None:
    entries = [
        fold.summary_entry(EU, 1, covers=(*EU, 1), message=b"first"),
        fold.summary_entry(EU, 2, covers=(*EU, 1), message=b"again"),
        fold.summary_entry(EU, 2, covers=(*EU, 2), message=b"another"),
    ]
    start = chain(EU, 1, 2, None)
    found = [folded(*start, *order) for order in itertools.permutations(entries)]
    assert {fold_.collisions for fold_ in found} == {1}
    larger = max(entries[1:], key=lambda entry: entry[1])
    for fold_ in found:
        assert fold_.raw_entries() == dict([*start, entries[0], larger])
        assert picture(fold_) == picture(found[0])
        rows = fold_.view_rows(fold_.raw_entries(), {})
        assert picture(Fold.from_views(rows.items())) == picture(fold_)
    assert larger == entries[2], "so turn 1 is covered by the older summary again"
    assert found[0].messages() == [b"another"]
    assert found[0].entries_of({(*EU, 1)}).keys() == {start[0][0], entries[0][0]}


@pytest.mark.parametrize("row", [b"", b"x", b"xt/1.eu.1", b"e\xff", b"et/1.eu.1", b"fkv"])
def test_a_view_row_that_is_none_is_corrupt(row: bytes) -> None:
    with pytest.raises(CorruptData):
        Fold.from_views([(row, b"")])


@given(st.text(max_size=30), st.binary(max_size=40))
def test_any_key_and_body_is_taken_or_corrupt(key: str, leaf: bytes) -> None:
    for prefix in ("", "t/", "t/1.eu.", "s/1.eu.", "c/a/1/begun/", "c/"):
        found = Fold()
        try:
            found.add(prefix + key, leaf)
        except CorruptData:
            assert picture(found) == picture(Fold()), "a refused entry changes nothing"
    with pytest.raises(CorruptData):
        Fold().add_field(key, b"\xc1" + leaf)


def test_a_fork_takes_the_summaries_of_its_turns_only() -> None:
    kept = fold.summary_entry(EU, 1, covers=(*EU, 1), message=b'"early"')
    left = fold.summary_entry(EU, 2, covers=(*EU, 2), message=b'"late"')
    found = folded(*chain(EU, 1, 2, None), kept, left)
    taken = found.entries_of([(*EU, 1), (9, "zz", 9)])
    assert kept[0] in taken
    assert left[0] not in taken
    assert [key for key in taken if key.startswith("t/")] == ["t/1.eu.1"]


def test_a_step_that_cannot_be_read_is_no_collision() -> None:
    key, leaf = step(1, "finished", EU, 1, b"a")
    found = folded((key, leaf))
    for garbage in (b"\x00", b"\xff" + leaf):
        with pytest.raises(CorruptData):
            found.add(key, garbage)
    assert found.collisions == 0
    assert found.raw_entries()[key] == leaf
