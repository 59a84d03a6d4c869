"""Reseed: written again, the own writes show what a join would have shown."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost_crdt import values
from roost_crdt.hlc import hlc_from_ms
from roost_crdt.reseed import Lacking, is_lacking, rewrite, writers
from roost_crdt.rows import Delta, Rows, counter, join_delta, rate, register
from roost_crdt.rows import map as map_rows
from roost_crdt.rows import set as set_rows
from roost_crdt.rows.layout import (
    HEAD,
    TYPE_COUNTER,
    TYPE_MAP,
    TYPE_RATE,
    TYPE_REGISTER,
    TYPE_SET,
    VALUE,
    actor_part,
)

ME, PEER, GONE, NEW = 1, 2, 3, 9
NOW_MS = 1_000
Op = Callable[[Random, Rows, tuple[int, int], dict[int, int]], Delta]


def register_op(random: Random, rows: Rows, stamp: tuple[int, int], vv: dict[int, int]) -> Delta:
    kind = random.randrange(3)
    if kind == 0:
        return register.delete(rows, stamp)
    if kind == 1:
        return register.expire(rows, stamp, random.choice((0, 5_000)))
    return register.put(rows, b"%d" % stamp[0], stamp)


def counter_op(random: Random, rows: Rows, stamp: tuple[int, int], vv: dict[int, int]) -> Delta:
    kind = random.randrange(5)
    if kind == 0:
        return counter.delete(rows, stamp, NOW_MS)
    if kind == 1:
        return counter.assign(rows, random.randrange(9), stamp, NOW_MS)
    return counter.add(rows, random.randrange(-5, 9), stamp, NOW_MS)


def set_op(random: Random, rows: Rows, stamp: tuple[int, int], vv: dict[int, int]) -> Delta:
    kind = random.randrange(5)
    element = random.choice((b"a", b"b", b"c"))
    if kind == 0:
        return set_rows.delete(rows, vv, stamp)
    if kind == 1:
        return set_rows.remove(rows, [element], NOW_MS)
    return set_rows.add(rows, [element], stamp, NOW_MS, vv=vv)


def map_op(random: Random, rows: Rows, stamp: tuple[int, int], vv: dict[int, int]) -> Delta:
    kind = random.randrange(6)
    field = random.choice((b"a", b"b"))
    if kind == 0:
        return map_rows.delete(rows, stamp)
    if kind == 1:
        return map_rows.remove(rows, [field, b"n"], stamp)
    if kind == 2:
        return map_rows.add(rows, b"n", random.randrange(1, 9), stamp, NOW_MS)
    return map_rows.put(rows, {field: b"%d" % stamp[0]}, stamp, NOW_MS)


def rate_op(random: Random, rows: Rows, stamp: tuple[int, int], vv: dict[int, int]) -> Delta:
    if random.randrange(4) == 0:
        return rate.delete(rows, NOW_MS)
    return rate.add(rows, random.randrange(1, 5), stamp, NOW_MS, 100)


def shown(type_code: int, rows: Rows) -> object:
    if type_code == TYPE_REGISTER:
        ends_ms = values.expires_ms(type_code, rows, NOW_MS)
        return values.register_value(rows, NOW_MS), ends_ms
    if type_code == TYPE_COUNTER:
        return values.counter_value(rows, NOW_MS)
    if type_code == TYPE_SET:
        return values.set_members(rows, NOW_MS)
    if type_code == TYPE_RATE:
        return values.rate_estimate(rows, NOW_MS, 100)
    return values.map_fields(rows, NOW_MS)


@pytest.mark.parametrize(
    ("type_code", "op"),
    [
        (TYPE_REGISTER, register_op),
        (TYPE_COUNTER, counter_op),
        (TYPE_SET, set_op),
        (TYPE_MAP, map_op),
        (TYPE_RATE, rate_op),
    ],
)
@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=300, deadline=None)
def test_nothing_collected_the_result_is_that_of_a_join(type_code: int, op: Op, seed: int) -> None:
    got, wanted = written_again(type_code, op, seed)
    assert shown(type_code, got) == shown(type_code, wanted)


def written_again(type_code: int, op: Op, seed: int) -> tuple[Rows, Rows]:
    """A neighbour's rows after a reseed, and after a join, of what two nodes held apart; this one
    alone has heard of what a third wrote."""
    random = Random(seed)
    common: Rows = {}
    vv: dict[int, int] = {}
    hlc = hlc_from_ms(NOW_MS)
    for _ in range(random.randrange(4)):
        hlc, actor = hlc + 1, random.choice((ME, PEER, GONE))
        delta = op(random, common, (hlc, actor), vv)
        common |= delta
        if delta:
            vv[actor] = hlc
    sides = {ME: dict(common), PEER: dict(common)}
    vvs = {ME: dict(vv), PEER: dict(vv)}
    touched: set[bytes] = set()
    for _ in range(random.randrange(1, 8)):
        hlc, actor = hlc + 1, random.choice((ME, PEER, GONE))
        side = PEER if actor == PEER else ME
        delta = op(random, sides[side], (hlc, actor), vvs[side])
        sides[side] |= delta
        if delta:
            vvs[side][actor] = hlc
        if side == ME:
            touched |= delta.keys()
    exported = {part: row for part, row in sides[ME].items() if part in touched}
    held = sides[PEER]
    lacking = Lacking((ME, GONE), vvs[PEER], (hlc + 9, NEW))
    wanted = {**held, **join_delta(type_code, held, exported)}
    written = rewrite(type_code, held, exported, lacking)
    got = {**held, **written}
    assert join_delta(type_code, held, written) == dict(written), "only grows"
    return got, wanted


def test_increments_by_difference_where_the_row_was_collected() -> None:
    rows = counter.add({}, 5, (10, ME), 0)
    rows |= counter.add(rows, 3, (20, ME), 0)
    (part,) = rows
    lacking = Lacking((ME,), {ME: 10}, (50, NEW), {part: (5, 0)})
    again = rewrite(TYPE_COUNTER, {}, rows, lacking)
    assert again == {part: (8, 0, 5, 0)}, "what was collected is not counted again"
    assert rewrite(TYPE_COUNTER, {}, rows, lacking._replace(bases={})) == {}, "cannot be told"
    (born,) = rewrite(TYPE_COUNTER, {}, rows, lacking._replace(vv={ME: 9}, bases={})).values()
    assert born == (8, 0, 0, 0)
    assert rewrite(TYPE_COUNTER, {}, rows, lacking._replace(bases={part: (8, 0)})) == {}
    assert rewrite(TYPE_COUNTER, rows, rows, lacking) == {}


@pytest.mark.parametrize("first", [True, False])
def test_records_of_the_old_actor_that_somebody_passes_on_count_once(first: bool) -> None:
    held = counter.add({}, 5, (10, ME), 0)
    mine = {**held, **counter.add(held, 3, (20, ME), 0)}
    elements = set_rows.add({}, [b"e"], (20, ME), 0)
    lacking = Lacking((ME,), {ME: 10}, (50, NEW))
    for type_code, before, late, value in (
        (TYPE_COUNTER, held, mine, 8),
        (TYPE_SET, {}, elements, [b"e"]),
    ):
        at_once = {**before, **rewrite(type_code, before, late, lacking)}
        if not first:
            at_once = {**before, **join_delta(type_code, before, late)}
            late = rewrite(type_code, before, late, lacking)
        both = {**at_once, **join_delta(type_code, at_once, late)}
        assert shown(type_code, both) == value
        assert both == at_once


def test_what_was_removed_before_the_neighbour_had_it_stays_removed() -> None:
    elements = set_rows.add({}, [b"e"], (11, PEER), 0)
    counts = counter.add({}, 5, (11, PEER), 0)
    lacking = Lacking((ME,), {ME: 10, PEER: 10}, (50, NEW))
    for type_code, theirs, mine in (
        (TYPE_SET, elements, {**elements, **set_rows.remove(elements, [b"e"], 0)}),
        (TYPE_COUNTER, counts, {**counts, **counter.delete(counts, (12, ME), 0)}),
    ):
        written = rewrite(type_code, {}, mine, lacking)
        both = {**written, **join_delta(type_code, written, theirs)}
        assert not shown(type_code, both)
        late = {**theirs, **rewrite(type_code, theirs, mine, lacking)}
        assert both == late


def test_what_was_taken_away_is_written_so_also_where_the_neighbour_never_had_it() -> None:
    """Somebody who took the records up to there may still pass them on."""
    lacking = Lacking((ME,), {ME: 10}, (50, NEW), collected=40)
    put = register.put({}, b"v", (20, ME))
    fields = map_rows.put({}, {b"f": b"1"}, (20, ME), 0)
    counts = counter.add({}, 5, (20, ME), 0)
    for type_code, early, late in (
        (TYPE_REGISTER, put, register.delete(put, (21, ME))),
        (TYPE_MAP, fields, map_rows.remove(fields, [b"f"], (21, ME))),
        (TYPE_COUNTER, counts, counter.delete(counts, (21, ME), 0)),
    ):
        written = rewrite(type_code, {}, {**early, **late}, lacking)
        assert written == late
        both = {**written, **join_delta(type_code, written, early)}
        assert not (shown(type_code, both) if type_code != TYPE_REGISTER else both[VALUE][3])


def test_a_value_whose_deletion_may_have_been_collected_is_written_above_that() -> None:
    """Not higher: what somebody else wrote later, and nobody here has yet, stays the later."""
    lacking = Lacking((ME,), {ME: 10}, (50, NEW), collected=40)
    put = register.put({}, b"v", (20, ME), 7_000)
    assert rewrite(TYPE_REGISTER, {}, put, lacking) == {VALUE: (41, NEW, 1, b"v", 41, NEW, 7_000)}
    field = map_rows.put({}, {b"f": b"1"}, (20, ME), 0)
    (row,) = rewrite(TYPE_MAP, {}, field, lacking).values()
    assert row[:2] == (41, NEW)
    before = register.put({}, b"u", (15, PEER))
    assert rewrite(TYPE_REGISTER, before, put, lacking) == put, "it was not deleted"
    later = register.put({}, b"w", (45, ME), 7_000)
    assert rewrite(TYPE_REGISTER, {}, later, lacking) == later, "nobody has collected so far"
    assert rewrite(TYPE_REGISTER, {}, register.put({}, b"v", (9, ME)), lacking) == {}
    assert rewrite(TYPE_REGISTER, {}, {}, lacking) == {}


def test_a_stamp_from_the_future_is_got_rid_of() -> None:
    lacking = Lacking((ME,), {}, (50, NEW))
    put = register.put({}, b"v", (9_000, ME))
    assert rewrite(TYPE_REGISTER, {}, put, lacking)[VALUE][:2] == (50, NEW)
    ahead = counter.add({}, 3, (9_000, ME), 0)
    assert rewrite(TYPE_COUNTER, {}, ahead, lacking) == {actor_part(NEW, 50): (3, 0, 0, 0)}
    added = set_rows.add({}, [b"e"], (9_000, ME), 0)
    assert list(rewrite(TYPE_SET, {}, added, lacking).values()) == [(b"", ((NEW, 50, 0),))]
    fields = map_rows.put({}, {b"f": b"1"}, (8_000, ME), 0)
    fields |= map_rows.delete(fields, (9_000, ME))
    fields |= map_rows.put(fields, {b"g": b"2"}, (9_001, ME), 0)
    written = rewrite(TYPE_MAP, {}, fields, lacking)
    assert values.map_fields(written, 0) == {b"g": b"2"}
    assert written[HEAD][:2] < (50, NEW)


def test_what_was_reset_in_the_future_is_not_counted_again() -> None:
    """Its reset is of its own row alone, and that row is got rid of."""
    lacking = Lacking((ME,), {}, (50, NEW))
    ahead = counter.add({}, 3, (9_000, ME), 0)
    ahead |= counter.delete(ahead, (9_001, ME), 0)
    assert rewrite(TYPE_COUNTER, {}, ahead, lacking) == {}
    more = ahead | counter.add(ahead, 4, (9_002, ME), 0)
    assert shown(TYPE_COUNTER, rewrite(TYPE_COUNTER, {}, more, lacking)) == 4


def test_an_add_that_the_neighbour_has_by_another_way_is_not_written_again() -> None:
    lacking = Lacking((ME,), {ME: 10}, (50, NEW))
    held = set_rows.add({}, [b"e"], (20, ME), 0)
    assert rewrite(TYPE_SET, held, held, lacking) == {}
    again = held | set_rows.remove(held, [b"e"], 0)
    assert rewrite(TYPE_SET, again, held, lacking) == {}, "nor is it added where it was removed"
    newer = held | set_rows.add(held, [b"e"], (30, ME), 0)
    (row,) = rewrite(TYPE_SET, held, newer, lacking).values()
    assert row == (b"", ((ME, 30, 0),))


def test_a_stamp_of_two_writers_leaves_the_neighbours_value_and_moves_the_expiry() -> None:
    """Nobody can tell whose write was acknowledged; what is newer of one's own is told apart."""
    lacking = Lacking((ME,), {ME: 10}, (50, NEW))
    held = register.put({}, b"theirs", (20, ME))
    mine = register.put({}, b"mine", (20, ME))
    assert rewrite(TYPE_REGISTER, held, mine, lacking) == {}
    mine |= register.expire(mine, (21, ME), 7_000)
    (row,) = rewrite(TYPE_REGISTER, held, mine, lacking).values()
    assert row == (*held[VALUE][:4], 21, ME, 7_000)


def test_a_clear_that_the_neighbour_has_is_not_written_again() -> None:
    lacking = Lacking((ME,), {ME: 21}, (50, NEW))
    rows = map_rows.put({}, {b"f": b"1"}, (10, ME), 0)
    rows |= map_rows.delete(rows, (20, ME))
    rows |= map_rows.put(rows, {b"g": b"2"}, (21, ME), 0)
    held = dict(rows)
    assert rewrite(TYPE_MAP, held, rows, lacking) == {}
    rows |= map_rows.expire(rows, (30, ME), 500)
    assert rewrite(TYPE_MAP, held, rows, lacking) == {HEAD: (20, ME, 30, ME, 500)}


def test_rates_and_expiries_are_written_again() -> None:
    lacking = Lacking((ME,), {}, (hlc_from_ms(60), NEW))
    rows = rate.add({}, 3, (hlc_from_ms(50), ME), 50, 10)
    rows |= rate.expire(rows, (hlc_from_ms(51), ME), 500)
    written = rewrite(TYPE_RATE, {}, rows, lacking)
    assert values.rate_estimate(written, 50, 10) == 3
    assert written == rows, "somebody may pass the same on"
    assert rewrite(TYPE_RATE, rows, rows, lacking) == {}
    assert rewrite(TYPE_RATE, {}, rate.add({}, 3, (hlc_from_ms(80), ME), 80, 10), lacking) == {}
    elements = set_rows.add({}, [b"e"], (20, ME), 0)
    elements |= set_rows.expire(elements, (21, ME), 500)
    assert rewrite(TYPE_SET, {}, elements, lacking)[HEAD] == ((), 21, ME, 500)


def test_what_rows_show_by_themselves() -> None:
    lacking = Lacking((ME,), {ME: 10}, (50, NEW))
    for type_code, old, new in (
        (TYPE_REGISTER, register.put({}, b"v", (9, ME)), register.put({}, b"v", (11, ME))),
        (TYPE_SET, set_rows.add({}, [b"e"], (9, ME), 0), set_rows.add({}, [b"e"], (11, ME), 0)),
        (
            TYPE_MAP,
            map_rows.put({}, {b"e": b""}, (9, ME), 0),
            map_rows.put({}, {b"e": b""}, (11, ME), 0),
        ),
        (TYPE_COUNTER, counter.add({}, 1, (11, PEER), 0), counter.add({}, 1, (11, ME), 0)),
    ):
        assert not any(is_lacking(p, row, type_code, lacking) for p, row in old.items())
        assert all(is_lacking(p, row, type_code, lacking) for p, row in new.items())
    for actor, lacks in ((ME, True), (PEER, False)):
        ((part, row),) = rate.add({}, 1, (9, actor), 50, 10).items()
        assert is_lacking(part, row, TYPE_RATE, lacking) is lacks, "windows bear no stamps"
    assert is_lacking(HEAD, (11, ME, 0, 0, 0), TYPE_MAP, lacking)
    assert is_lacking(HEAD, (11, ME, 500), TYPE_COUNTER, lacking)
    assert not is_lacking(HEAD, (11, PEER, 500), TYPE_COUNTER, lacking)


def test_whose_writes_a_row_holds_that_a_vector_may_lack() -> None:
    """Counts bear no stamps: that there are any is all that they show."""
    vv = {ME: 20, PEER: 5}
    put = register.put({}, b"v", (10, PEER))
    put |= register.expire(put, (20, ME), 500)
    clears = map_rows.put({}, {b"f": b""}, (4, PEER), 0)
    clears |= map_rows.delete(clears, (6, PEER))
    clears |= map_rows.put(clears, {b"f": b""}, (7, ME), 0)
    clears |= map_rows.expire(clears, (21, ME), 500)
    one = set_rows.add({}, [b"e"], (10, PEER), 0)
    both = join_delta(TYPE_SET, one, set_rows.add({}, [b"e"], (3, GONE), 0))
    for type_code, rows, wrote in (
        (TYPE_REGISTER, put, [PEER]),
        (TYPE_REGISTER, register.put({}, b"v", (5, PEER)), []),
        (TYPE_SET, both, [PEER, GONE]),
        (TYPE_MAP, {HEAD: clears[HEAD]}, [ME, PEER]),
        (TYPE_MAP, map_rows.put({}, {b"f": b""}, (20, ME), 0), []),
        (TYPE_COUNTER, counter.add({}, 1, (1, ME), 0), [ME]),
        (TYPE_MAP, map_rows.add({}, b"n", 1, (1, GONE), 0), [GONE]),
        (TYPE_RATE, rate.add({}, 1, (1, PEER), 50, 10), [PEER]),
    ):
        ((part, row),) = rows.items()
        assert sorted(writers(part, row, type_code, vv)) == wrote
