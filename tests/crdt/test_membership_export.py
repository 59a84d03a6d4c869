"""What a reseed exports: writes that a neighbour lacks, found in a log or in the rows."""

from __future__ import annotations

import pytest
from crdt.test_membership_reseeding import BEHIND, behind, reseeding, to_the_end
from membership_kit import NOW, count, incr, open_store, put, value

from roost_crdt import values
from roost_crdt.frames import Greeting
from roost_crdt.logformat import KIND_META
from roost_crdt.members import (
    REWRITTEN,
    Member,
    Roster,
    member_delta,
    member_key,
    removal_delta,
    removal_key,
    rewritten_delta,
    rewritten_key,
)
from roost_crdt.membership import export as module
from roost_crdt.membership import reseeding as reseeding_module
from roost_crdt.membership.reseeding import PAGES
from roost_crdt.record import decode_record
from roost_crdt.reseed import Lacking
from roost_crdt.rows import counter, rate
from roost_crdt.rows import map as map_rows
from roost_crdt.rows import set as set_rows
from roost_crdt.rows.layout import (
    TYPE_COUNTER,
    TYPE_MAP,
    TYPE_RATE,
    TYPE_REGISTER,
    TYPE_SET,
)
from roost_sim.store import Store


def copied(mine: Store) -> Store:
    """A neighbour that holds all that this one does so far."""
    mine.flush()
    peer = open_store(seed=2)
    peer.accept_rows(mine.scan_rows(b"", 1 << 20), {})
    peer.accept_rows((), mine.vv)
    peer.flush()
    return peer


def fields(store: Store, key: bytes) -> object:
    return values.map_fields(store.key_rows(key).rows, NOW)


def put_field(store: Store, key: bytes, name: bytes, text: bytes) -> None:
    stamp = store.stamp(NOW)
    delta = map_rows.put(store.key_rows(key).rows, {name: text}, stamp, NOW)
    store.commit(stamp, [(key, TYPE_MAP, delta)])


def test_only_what_is_lacking_is_written_again() -> None:
    """With the log or without it: a row that the neighbour has keeps its stamp."""
    for logged in (True, False):
        mine = open_store(seed=1)
        put(mine, b"both", b"v")
        put_field(mine, b"m", b"both", b"v")
        peer = copied(mine)
        put_field(mine, b"m", b"mine", b"w")
        if not logged:
            mine.records_after = lambda *_: None  # type: ignore[method-assign]
        mine.flush()
        work = reseeding(mine)
        work.trigger("peer", peer.vv, BEHIND)
        to_the_end(work, mine, peer)
        assert fields(mine, b"m") == {b"both": b"v", b"mine": b"w"}
        stamps = {part: row[:2] for part, row in mine.key_rows(b"m").rows.items()}
        held = {part: row[:2] for part, row in peer.key_rows(b"m").rows.items()}
        assert held.items() <= stamps.items()
        assert mine.key_rows(b"both").rows == peer.key_rows(b"both").rows


@pytest.mark.parametrize(("page_bytes", "pages"), [(1, 3), (1 << 20, 1)])
def test_much_is_exported_in_pages_of_whole_keys(
    page_bytes: int, pages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page is what one record has to hold when it is written again."""
    mine = open_store(seed=1)
    put(mine, b"both", b"v")
    peer = copied(mine)
    for at in range(3):
        put_field(mine, b"m%d" % at, b"f", b"1")
        put_field(mine, b"m%d" % at, b"g", b"2")
    mine.flush()
    monkeypatch.setattr(module, "_PAGE_BYTES", page_bytes)
    work = reseeding(mine)
    work.trigger("peer", peer.vv, BEHIND)
    work.tick()
    kept = [reseeding_module._decode_page(raw) for _, raw in mine.scan(KIND_META, PAGES)]
    assert len(kept) == pages
    assert [one.key for page in kept for one in page] == [b"m0", b"m1", b"m2"]
    to_the_end(work, mine, peer)
    assert [fields(mine, b"m%d" % at) for at in range(3)] == [{b"f": b"1", b"g": b"2"}] * 3


@pytest.mark.parametrize("case", ["found", "too far back", "no record ends there"])
def test_increments_count_once_wherever_their_base_is_found(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The neighbour counted what its vector covers; its row may have been collected since."""
    mine = open_store(seed=1)
    incr(mine, b"n", 5)
    put(mine, b"after", b"v")
    peer = copied(mine)
    stamp = mine.stamp(NOW + 5)
    delta = counter.add(mine.key_rows(b"n").rows, 2, stamp, NOW)
    mine.commit(stamp, [(b"n", TYPE_COUNTER, delta)])
    mine.flush()
    if case == "too far back":
        monkeypatch.setattr(module, "_BACK_MAX", 1)
    vv = dict(peer.vv)
    if case == "no record ends there":
        vv[mine.actor] += 1
    work = reseeding(mine)
    work.trigger("peer", vv, BEHIND)
    work.tick()
    (page,) = (reseeding_module._decode_page(raw) for _, raw in mine.scan(KIND_META, PAGES))
    (exported,) = [one for one in page if one.key == b"n"]
    assert list(exported.bases.values()) == ([(5, 0)] if case == "found" else [])
    peer.accept_rows((), vv)
    to_the_end(work, mine, peer)
    assert count(mine, b"n") == 7


@pytest.mark.parametrize("logged", [True, False])
def test_what_others_wrote_and_only_this_node_holds_is_exported_too(logged: bool) -> None:
    """They may have given up their rows for this one's, a moment ago."""
    mine, third = open_store(seed=1), open_store(seed=3)
    put(mine, b"both", b"v")
    peer = copied(mine)
    put(third, b"k", b"third")
    incr(third, b"n", 3)
    third.flush()
    for raw in third.records_after(third.actor, 0, 1 << 20) or ():
        mine.accept(raw, decode_record(raw, body_bytes_max=len(raw)))
    mine.flush()
    if not logged:
        mine.records_after = lambda *_: None  # type: ignore[method-assign]
    work = reseeding(mine)
    work.trigger("peer", peer.vv, BEHIND)
    to_the_end(work, mine, peer)
    assert (value(mine, b"k"), count(mine, b"n")) == (b"third", 3)
    assert mine.key_rows(b"n").rows == third.key_rows(b"n").rows
    assert third.actor not in mine.vv, "its own records may still come"


@pytest.mark.parametrize("logged", [True, False])
def test_what_somebody_wrote_again_is_exported_under_the_stamps_that_it_has(logged: bool) -> None:
    """Who was removed and kept his rows writes them again as they are, in a record of his new
    actor; whoever holds that record alone may have to reseed next."""
    mine, writer, keeper = (open_store(seed=seed) for seed in (1, 3, 4))
    put(mine, b"both", b"v")
    peer = copied(mine)
    put(writer, b"k", b"kept")
    put_field(writer, b"m", b"f", b"kept")
    incr(writer, b"n", 3)
    stamp = writer.stamp(NOW)
    added = set_rows.add({}, [b"x"], stamp, NOW)
    rated = rate.add({}, 2, stamp, NOW, 60_000)
    writer.commit(stamp, [(b"s", TYPE_SET, added), (b"r", TYPE_RATE, rated)])
    keys = (b"k", b"m", b"n", b"s", b"r")
    rows = {key: writer.key_rows(key) for key in keys}
    keeper.commit((stamp[0] + 1, keeper.actor), [(k, rows[k].type, rows[k].rows) for k in keys])
    raw = keeper.last_raw
    mine.accept(raw, decode_record(raw, body_bytes_max=len(raw)))
    mine.flush()
    if not logged:
        mine.records_after = lambda *_: None  # type: ignore[method-assign]
    work = reseeding(mine)
    work.trigger("peer", peer.vv, BEHIND)
    to_the_end(work, mine, peer)
    again = keys if logged else keys[:-1]  # without the log windows show no time of their own
    assert {key: mine.key_rows(key).rows for key in again} == {key: rows[key].rows for key in again}


def test_what_was_written_again_is_told_after_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever hears of that has the rest: reserved keys are the last page."""
    monkeypatch.setattr(module, "_PAGE_BYTES", 1)
    mine = open_store(seed=1)
    put(mine, b"both", b"v")
    peer = copied(mine)
    stamp = mine.stamp(NOW)
    mine.commit(stamp, [(rewritten_key(8), TYPE_REGISTER, rewritten_delta({}, 5, stamp))])
    put(mine, b"k", b"v")
    mine.flush()
    export = module.Export(mine, Lacking({mine.actor}, peer.vv, (0, 0)))
    export.touch(mine.actor)
    assert [one.key for page in export.pages() for one in page] == [b"k", rewritten_key(8)]


@pytest.mark.parametrize("collected", [True, False])
@pytest.mark.parametrize("more", [0, 2])
def test_what_another_reseed_has_written_again_is_not_written_twice(
    collected: bool, more: int
) -> None:
    """Two held the same tail of a third; by the time the second one comes back with it, what the
    first one wrote again may have been reset and collected."""
    first, second, third = (open_store(seed=seed) for seed in (1, 2, 3))
    put(first, b"both", b"v")
    peer = copied(first)
    incr(third, b"n", 3)
    third.flush()
    tail = third.records_after(third.actor, 0, 1 << 20) or []
    incr(third, b"n", more)
    third.flush()
    for store, raws in ((first, tail), (second, third.records_after(third.actor, 0, 1 << 20))):
        for raw in raws or ():
            store.accept(raw, decode_record(raw, body_bytes_max=len(raw)))
        store.flush()
    work = reseeding(first)
    work.trigger("peer", peer.vv, BEHIND)
    to_the_end(work, first, peer)
    assert count(first, b"n") == 3
    stamp = first.stamp(NOW)
    first.commit(stamp, [(b"n", TYPE_COUNTER, counter.delete(first.key_rows(b"n").rows, stamp, 0))])
    if collected:
        first.drop_rows([b"n\0" + part for part in first.key_rows(b"n").rows])
    first.flush()
    roster = Roster()
    for key in [key for key in first.keys if key.startswith(REWRITTEN)]:
        assert roster.load(key, first.key_rows(key).rows)
    assert roster.rewritten.keys() == {third.actor}
    work = reseeding(second, roster=roster)
    work.trigger("first", first.vv, BEHIND)
    to_the_end(work, second, first)
    assert count(second, b"n") == (more or None), "only what the first had not heard of"


def test_what_the_neighbour_had_to_give_up_is_not_said_to_be_written_again() -> None:
    """It held the beginning of what is exported here, and writes that again itself."""
    mine, _peer = behind()
    roster = Roster()
    work = reseeding(mine, roster=roster)
    held = dict(mine.vv)
    work.trigger("peer", {actor: hlc - 1 for actor, hlc in held.items()}, BEHIND)
    while work.stage != "join":
        work.tick()
    roster.nodes.clear()  # the neighbour has left
    work._replica._near.joins = {}
    greeting = Greeting(versions=(1,), cluster="c", node="other", actor=55, vv={})
    work._replica.link_up("other", greeting, NOW)
    for _ in range(9):
        work.tick()
    assert work.stage == ""
    assert not [key for key in mine.keys if key.startswith(REWRITTEN)]


def test_who_was_removed_is_exported_and_who_is_a_member_is_not() -> None:
    """Members tell of themselves; a removal that only this node knows of was acknowledged here."""
    mine = open_store(seed=1)
    put(mine, b"both", b"v")
    peer = copied(mine)
    for key, delta in (
        (removal_key(7), removal_delta({}, "gone", stamp := mine.stamp(NOW))),
        (rewritten_key(8), rewritten_delta({}, 5, stamp)),
        (member_key("x"), member_delta({}, Member("x", 9, (), {}, 0), stamp)),
    ):
        mine.commit(stamp, [(key, TYPE_REGISTER, delta)])
        stamp = mine.stamp(NOW)
    held = {key: dict(mine.key_rows(key).rows) for key in (removal_key(7), rewritten_key(8))}
    mine.flush()
    work = reseeding(mine)
    work.trigger("peer", peer.vv, {mine.actor: stamp[0]})
    work._replica.rejoin({})
    to_the_end(work, mine, peer)
    assert {key: mine.key_rows(key).rows for key in held} == held
    assert not mine.key_rows(member_key("x")).rows


@pytest.mark.parametrize("more", [0, 2])
def test_what_came_to_the_neighbour_by_another_way_is_not_written_again(more: int) -> None:
    """It may have been removed there and collected before this node looks."""
    mine = open_store(seed=1)
    put(mine, b"both", b"v")
    peer = copied(mine)
    incr(mine, b"n", 3)
    put(mine, b"k", b"v")
    mine.flush()
    tail = mine.records_after(mine.actor, peer.vv[mine.actor], 1 << 20) or []
    incr(mine, b"n", more)
    mine.flush()
    work = reseeding(mine)
    work.trigger("peer", peer.vv, BEHIND)
    while work.stage != "join":
        work.tick()
    for raw in tail:
        assert peer.accept(raw, decode_record(raw, body_bytes_max=len(raw)))
    peer.drop_rows([key + b"\0" + part for key in (b"n", b"k") for part in peer.key_rows(key).rows])
    peer.flush()
    to_the_end(work, mine, peer)
    assert value(mine, b"k") is None
    assert count(mine, b"n") == (more or None), "what did not come that way"
