"""A session against an oracle that keeps its whole history, in whatever order homes hear of it."""

from __future__ import annotations

from random import Random

import pytest
from crdt.oracle_sessions import Oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from roost_crdt.document import Document, merge
from roost_crdt.errors import CorruptData
from roost_crdt.fold import Fold
from roost_crdt.testing import (
    SESSION_LATTICE,
    Home,
    SessionHistory,
    SessionStep,
    arrangements,
    check_arrangement,
    check_deltas,
    law_test,
    picture,
    run_session,
    session_histories,
)
from roost_crdt.yupdate import read_state_vector

CALLS = ("c", "d")


def compare(home: Home, oracle: Oracle) -> None:
    fold = home.fold
    current = oracle.current()
    assert fold.turn == (None if current is None else current.ref)
    assert [entry.ref for entry in fold.path()] == [turn.ref for turn in oracle.path()]
    assert fold.messages() == oracle.messages()
    beside = [entry.ref for branch in fold.branches() for entry in branch.entries]
    assert sorted(beside) == sorted(turn.ref for turn in oracle.beside()), "each turn once"
    for call in CALLS:
        shown = oracle.call(call)
        status = fold.status(call, home.epoch)
        assert (None if status is None else (status, fold.calls[call].result)) == shown
    assert fold.fields().get("kv", {}) == oracle.fields()
    for epoch, last in fold.lineage().items():
        assert not oracle.lacks((*epoch, last))
        assert oracle.lacks((*epoch, last + 1))


def check_document(home: Home) -> None:
    """The document says what the fold says."""
    again = Fold()
    for key, leaf in home.document.entries().items():
        again.add(key, leaf)
    for key, leaf in home.document.fields().items():
        again.add_field(key, leaf)
    assert picture(again) == picture(home.fold)
    assert not home.fold.collisions


def in_some_order(updates: list[bytes], chance: Random) -> Document:
    """A document of these updates: each again and again, until nothing is missing before it."""
    document = Document(99)
    left = updates * 2
    chance.shuffle(left)
    for _ in updates:
        waiting = []
        for update in left:
            try:
                document.apply(update)
            except CorruptData:
                waiting.append(update)
        left = waiting
    assert not left
    return document


@pytest.mark.parametrize(
    "history",
    [
        pytest.param(
            (
                SessionStep(0, "field", ("a", None)),
                SessionStep(1, "field", ("a", None)),
                SessionStep(0, "pull", (1,)),
                SessionStep(1, "field", ("a", 0)),
                SessionStep(1, "pull", (0,)),
            ),
            id="a repair of an older value of the same home",
        )
    ],
)
def test_histories_that_once_went_wrong(history: SessionHistory) -> None:
    run_session(history, lambda number, step, done, home: check_document(home))


@settings(max_examples=250, deadline=None)
@given(session_histories(), st.data())
def test_homes_show_what_the_oracle_shows(history: SessionHistory, data: st.DataObject) -> None:
    oracles = [Oracle(node) for node in ("ap", "eu", "us")]
    committed: set[tuple[int, str, int]] = set()
    finished: list[set[str]] = [set() for _ in oracles]

    def observe(number: int, step: SessionStep, done: bool, home: Home) -> None:
        oracle = oracles[step.home]
        assert oracle.do(number, step.action, step.args, oracles) == done
        compare(home, oracle)
        check_document(home)
        committed.update(entry.ref for entry in home.fold.path())
        ended = {call for call, state in home.fold.calls.items() if state.status == "finished"}
        assert finished[step.home] <= ended, "a finished call is finished for good"
        finished[step.home] = ended

    homes = run_session(history, observe)
    for _ in range(3):
        for home, oracle in zip(homes, oracles, strict=True):
            for at, source in enumerate(homes):
                home.pull(source)
                oracle.do(0, "pull", (at,), oracles)
    for home, oracle in zip(homes, oracles, strict=True):
        compare(home, oracle)
        check_document(home)
        SESSION_LATTICE.same("converged", home.views, homes[0].views)
        here = {entry.ref for entry in home.fold.path()}
        here |= {entry.ref for branch in home.fold.branches() for entry in branch.entries}
        assert committed <= here, "a committed turn has disappeared"
    steps = [step for home in homes for step in home.steps]
    check_arrangement(SESSION_LATTICE, steps, data.draw(arrangements(len(steps))))
    together = SESSION_LATTICE.join_all(steps)
    SESSION_LATTICE.same("deltas equal the state", together, homes[0].views)
    chance = data.draw(st.randoms(use_true_random=False))
    updates = [update for home in homes for update in home.updates]
    whole = in_some_order(updates, chance)
    assert whole.entries() == homes[0].document.entries()
    assert whole.fields() == homes[0].document.fields()
    # Not byte for byte: how Yjs joins what is deleted beside each other depends on the order.
    merged = in_some_order([merge(updates)], chance)
    assert merged.entries() == whole.entries()
    assert merged.fields() == whole.fields()
    assert read_state_vector(merged.state_vector()) == read_state_vector(whole.state_vector())


def test_sessions_obey_the_laws() -> None:
    """States are what homes hold in the middle of a history, of whatever else they know."""
    states = st.tuples(session_histories(), st.integers(0, 2)).map(
        lambda drawn: run_session(drawn[0])[drawn[1]].views
    )
    law_test(SESSION_LATTICE, states, max_examples=150)()


@settings(max_examples=100, deadline=None)
@given(session_histories())
def test_each_step_leads_from_one_state_to_the_next(history: SessionHistory) -> None:
    alone = tuple(step for step in history if step.action != "pull" and step.home == 0)
    states: list[dict[bytes, bytes]] = [{}]

    def observe(number: int, step: SessionStep, done: bool, home: Home) -> None:
        if len(home.steps) == len(states):
            states.append(home.views)

    homes = run_session(alone, observe)
    check_deltas(SESSION_LATTICE, states, homes[0].steps)
