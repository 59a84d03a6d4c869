from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from roost_crdt.yplaces import EntryRuns, FieldIndex, beyond, covers, runs_by_client
from roost_crdt.yupdate import Contents, Item, Overwrite, Range

RANGES = st.lists(
    st.builds(
        lambda client, start, size: Range(client, start, start + size),
        st.integers(1, 3),
        st.integers(0, 30),
        st.integers(1, 6),
    ),
    max_size=8,
)


@given(RANGES)
def test_runs_cover_what_their_ranges_do(ranges: list[Range]) -> None:
    runs = runs_by_client(ranges)
    for client in (1, 2, 3):
        for clock in range(40):
            expected = any(r.client == client and r.start <= clock < r.end for r in ranges)
            assert covers(runs.get(client, ()), clock) == expected
    for mine in runs.values():
        assert all(one.end < other.start for one, other in pairwise(mine))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=8), st.integers(0, 50))
def test_entry_runs_know_which_clocks_are_entries(steps: list[tuple[int, int]], at: int) -> None:
    runs, taken, clock = EntryRuns(), set(), 0
    for gap, size in steps:
        clock += gap
        runs.add(7, clock, clock + size)
        taken.update(range(clock, clock + size))
        clock += size
    assert runs.holds(7, at) == (at in taken)
    assert not runs.holds(8, at)
    for size in (1, 3, 60):
        expected = not taken.isdisjoint(range(at, at + size))
        assert runs.touches(Range(7, at, at + size)) == expected
        assert not runs.touches(Range(8, at, at + size))


@given(st.lists(st.tuples(st.integers(1, 2), st.integers(0, 2), st.integers(1, 3)), max_size=12))
def test_the_items_of_an_update_are_noted_but_for_those_known(
    steps: list[tuple[int, int, int]],
) -> None:
    ends = {1: 0, 2: 0}
    items, taken = [], set()
    for client, gap, size in sorted(steps, key=lambda step: step[0]):
        clock = ends[client] + gap
        items.append(Item(f"{client}.{clock}", b"x", client, clock, clock + size - 1))
        taken.update((client, c) for c in range(clock, clock + size))
        ends[client] = clock + size
    runs = EntryRuns()
    runs.add_items(items, {})
    again = EntryRuns()
    again.add_items(items[:4], {})
    again.add_items(items, {client: ends[client] for client in (1, 2)})
    for place in ((client, clock) for client in (1, 2) for clock in range(40)):
        assert runs.holds(*place) == (place in taken)
        assert not again.holds(*place) or place in taken


def contents(fields: list[Item] = [], overwrites: list[Overwrite] = []) -> Contents:  # noqa: B006
    return Contents([], [], fields, overwrites, [])


def test_an_overwrite_has_the_field_of_what_it_replaces() -> None:
    index = FieldIndex()
    index.note("a", (7, 0))
    chain = [
        Overwrite((8, 2), b"3", 9, 0, 0),
        Overwrite((7, 0), None, 8, 1, 2),
        Overwrite((9, 9), b"?", 9, 1, 1),
    ]
    named, unresolved = index.resolve(contents(overwrites=chain))
    assert [(key, item.client) for key, item in named] == [("a", 8), ("a", 9)]
    assert list(unresolved) == [(9, 9)]


def test_an_origin_inside_joined_dead_values_is_found() -> None:
    joined = Item("a", None, 7, 2, 9)
    overwrites = [Overwrite((7, clock), b"x", 9, clock, clock) for clock in (1, 2, 5, 9, 10)]
    named, unresolved = FieldIndex().resolve(contents([joined], overwrites))
    assert [item.clock for key, item in named[1:] if key == "a"] == [2, 5, 9]
    assert sorted(unresolved) == [(7, 1), (7, 10)]


def test_a_field_moves_with_its_newest_place() -> None:
    index = FieldIndex()
    index.note("a", (7, 0))
    index.note("a", (7, 1))
    assert index.keys_in({7: [Range(7, 0, 1)]}) == set()
    assert index.keys_in({7: [Range(7, 0, 1_000_000)]}) == {"a"}
    deletes = runs_by_client([Range(7, 1, 2)])
    named, _ = index.resolve(contents(overwrites=[Overwrite((7, 1), b"2", 9, 4, 4)]))
    index.take(named, deletes)
    assert index.keys_in({7: [Range(7, 1, 2)]}) == set()
    assert index.keys_in({9: [Range(9, 4, 5)]}) == {"a"}


def test_a_field_is_lost_when_its_last_known_place_goes() -> None:
    index = FieldIndex()
    index.note("a", (7, 0))
    index.take([("a", Item("a", b"2", 9, 0, 0))], {})
    one = runs_by_client([Range(7, 0, 1)])
    both = runs_by_client([Range(7, 0, 1), Range(9, 0, 1)])
    assert index.keys_in(one) == {"a"}
    assert index.lost_keys(one) == set()
    assert index.lost_keys(both) == {"a"}
    index.take([], {}, complete=False)
    assert index.lost_keys(both) == set(), "it may have a place that is not known"


def test_a_long_chain_over_two_clients_is_resolved_in_one_walk() -> None:
    overwrites = [
        Overwrite((1 + (n + 1) % 2, n), b"x", 1 + n % 2, n + 1, n + 1) for n in range(20_000)
    ]
    overwrites.reverse()
    first = Item("a", b"0", 2, 0, 0)
    named, unresolved = FieldIndex().resolve(contents([first], overwrites))
    assert not unresolved
    assert len(named) == 20_001
    assert {key for key, _ in named} == {"a"}


def test_items_of_other_clients_are_no_origins() -> None:
    overwrites = [Overwrite((7, 5), b"2", 7, 6, 6)]
    fields = [Item("a", b"1", 9, 0, 5)]
    named, unresolved = FieldIndex().resolve(contents(fields, overwrites))
    assert named == [("a", fields[0])]
    assert list(unresolved) == [(7, 5)]


def test_no_clocks_make_no_run() -> None:
    runs = EntryRuns()
    runs.add(7, 3, 3)
    assert not runs.holds(7, 3)
    runs.add(7, 3, 4)
    assert runs.holds(7, 3)


def test_dead_values_are_known_by_no_place() -> None:
    index = FieldIndex()
    index.take([("a", Item("a", None, 7, 0, 0)), ("b", Item("b", b"1", 7, 1, 1))], {})
    assert index.keys_in({7: [Range(7, 0, 2)]}) == {"b"}
    index.take([("c", Item("c", b"1", 7, 2, 2))], {7: [Range(7, 2, 3)]})
    assert index.keys_in({7: [Range(7, 0, 3)]}) == {"b"}


def test_an_update_without_overwrites_names_its_fields_only() -> None:
    fields = [Item("a", b"1", 9, 0, 0)]
    assert FieldIndex().resolve(contents(fields)) == ([("a", fields[0])], {})


@given(RANGES, RANGES)
def test_what_lies_beyond_known_runs(some: list[Range], known: list[Range]) -> None:
    def clocks(found: Iterable[Range]) -> set[tuple[int, int]]:
        return {(client, at) for client, start, end in found for at in range(start, end)}

    left = list(beyond(some, runs_by_client(known)))
    assert clocks(left) == clocks(some) - clocks(known)
    assert all(run.start < run.end for run in left)
