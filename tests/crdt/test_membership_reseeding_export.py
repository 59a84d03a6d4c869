"""Reseed, what is exported: own writes that a neighbour lacks, found in a log or in the rows."""

from __future__ import annotations

from random import Random

import pytest
from crdt.test_membership_reseeding import behind, reseeding, to_the_end
from membership_kit import NOW, count, incr, open_store, put, value

from roost_crdt import values
from roost_crdt.frames import Greeting
from roost_crdt.logformat import KIND_META
from roost_crdt.membership import reseeding as module
from roost_crdt.membership.reseeding import PAGES
from roost_crdt.record import decode_record
from roost_crdt.rows import counter
from roost_crdt.rows import map as map_rows
from roost_crdt.rows.layout import TYPE_COUNTER, TYPE_MAP
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


def test_nothing_happens_without_a_reason_or_before_the_links_are_cut() -> None:
    mine, peer = behind()
    work = reseeding(mine)
    work.tick()
    assert work.stage == ""
    greeting = Greeting(versions=(1,), cluster="c", node="peer", actor=9, vv={})
    work._replica.link_up("peer", greeting, NOW)
    work.trigger("peer", peer.vv, {})
    for _ in range(3):
        work.tick()
    assert work.stage == "export"
    assert value(mine, b"k") == b"unsent", "a frame under way may still bring a record"
    work._replica.link_down("peer", NOW)
    to_the_end(work, mine, peer)
    assert value(mine, b"k") == b"unsent"


def test_pages_of_an_export_that_was_not_finished_are_not_written() -> None:
    mine, peer = behind()
    mine.put(KIND_META, {PAGES + b"00000099": b"half a page"})
    work = reseeding(mine)
    work.trigger("peer", peer.vv, {})
    work.tick()
    assert PAGES + b"00000099" not in dict(mine.scan(KIND_META, PAGES))
    to_the_end(work, mine, peer)
    assert (value(mine, b"k"), count(mine, b"n")) == (b"unsent", 7)


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
        work.trigger("peer", peer.vv, {})
        to_the_end(work, mine, peer)
        assert fields(mine, b"m") == {b"both": b"v", b"mine": b"w"}
        stamps = {part: row[:2] for part, row in mine.key_rows(b"m").rows.items()}
        held = {part: row[:2] for part, row in peer.key_rows(b"m").rows.items()}
        assert held.items() <= stamps.items()
        assert mine.key_rows(b"both").rows == peer.key_rows(b"both").rows


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
    work.trigger("peer", vv, {})
    work.tick()
    (page,) = (module._decode_page(raw) for _, raw in mine.scan(KIND_META, PAGES))
    (exported,) = [one for one in page if one.key == b"n"]
    assert list(exported.bases.values()) == ([(5, 0)] if case == "found" else [])
    peer.accept_rows((), vv)
    to_the_end(work, mine, peer)
    assert count(mine, b"n") == 7


def test_an_actor_that_was_taken_before_a_crash_is_not_taken_twice() -> None:
    mine, peer = behind()
    work = reseeding(mine)
    work.trigger("peer", peer.vv, peer.vv)
    while work.stage != "wipe":
        work.tick()
    old = mine.actor
    mine.renew_actor(Random(5).randbytes)
    new = mine.actor
    mine.flush()
    mine = open_store(mine.disk)
    assert mine.actor == new != old
    to_the_end(reseeding(mine), mine, peer)
    assert mine.actor == new
    assert value(mine, b"k") == b"unsent"


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
    work.trigger("peer", peer.vv, {})
    to_the_end(work, mine, peer)
    assert (value(mine, b"k"), count(mine, b"n")) == (b"third", 3)
    assert mine.key_rows(b"n").rows == third.key_rows(b"n").rows
    assert third.actor not in mine.vv, "its own records may still come"
