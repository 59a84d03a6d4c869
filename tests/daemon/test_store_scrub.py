"""The scrub: what it finds in an index, and what is refused until it is mended."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from store_kit import LIMITS, NOW, Stores, applied, brief, count, incr, put, root_of, value

from roost_crdt import digest
from roost_crdt.errors import CorruptData
from roost_crdt.logformat import KIND_META, KIND_SESSION
from roost_crdt.rows import map as maps
from roost_crdt.rows import set as sets
from roost_crdt.rows.layout import TYPE_MAP, TYPE_SET, VALUE, is_sealed, row_key
from roostd.index import Index
from roostd.store import Store, StoreFailed, applier, check, scrub, suspects
from roostd.store.suspects import ALL, NAME

QUICK = replace(LIMITS, start_check_bytes=0)
"""A start does not look at all pages first, as where the index is large."""
KEYS = 400


def filled(stores: Stores) -> Store:
    """A stopped store of many keys of one row each, and one set."""
    store = stores.open()
    for number in range(KEYS):
        brief(lambda number=number: put(store, b"k:%04d" % number, b"v%d" % number))
    add(store, b"s:et", [b"%d" % number for number in range(40)])
    store.flush()
    applied(store)
    store.close()
    return store


def add(store: Store, key: bytes, elements: list[bytes]) -> None:
    stamp = store.stamp(NOW)
    delta = sets.add(store.key_rows(key).rows, elements, stamp, NOW)
    store.commit(stamp, [(key, TYPE_SET, delta)])


def turn(stores: Stores, old: bytes, new: bytes) -> None:
    """Change bytes of a stopped store's index wherever they are."""
    path = stores.base / "a" / "index" / "data.mdb"
    data = path.read_bytes()
    assert data.count(old) >= 1, "not there"
    path.write_bytes(data.replace(old, new))


def remove(stores: Stores, *names: bytes) -> None:
    """Let rows be missing, as behind a page that shows less than it had."""
    index = Index(stores.base / "a" / "index", 16 << 20)
    index.write([(name, None) for name in sorted(names)], {})
    index.close()


def until(holds: Callable[[], Any], store: Store) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "not in a minute"
        time.sleep(0.005)
        store.look_after()


def scrubbed(store: Store) -> None:
    until(lambda: store._applier.scrub_passes, store)


def test_nothing_is_found_in_a_store_that_is_right(stores: Stores) -> None:
    filled(stores)
    store = stores.open(limits=QUICK)
    scrubbed(store)
    assert store.suspects.buckets == frozenset()
    assert (store.mender.problem, store.mender.scrubbed, store.corrupt_rows) == ("", [], 0)


def test_a_damaged_value_is_taken_out_and_its_bucket_refused(stores: Stores) -> None:
    filled(stores)
    turn(stores, b"v123", b"v103")
    store = stores.open(limits=QUICK)
    scrubbed(store)
    assert store.suspects.buckets == {digest.bucket_of(b"k:0123")}
    for again in (False, True):
        with pytest.raises(CorruptData, match=r"lost to damage.*roost check DIR --repair"):
            store.key_rows(b"k:0123")
        assert value(store, b"k:0122") == b"v122"
        assert store._index.get_rows([row_key(b"k:0123", VALUE)]) == {}
        if not again:
            assert store.corrupt_rows > 0
            until(lambda store=store: store.mender.scrubbed, store)
            assert [len(one.damaged) for one in store.mender.scrubbed] == [1]
            assert store.digest(NOW)[1] != "", "the sums are those of what is left"
            store = stores.reopen(store, limits=QUICK)
    store.close()
    assert "were lost to damage before" in check(stores.base / "a").problems[0]


@pytest.mark.parametrize("scrubs", [False, True])
@pytest.mark.parametrize("other", [b"k:0X23", b"k:9123", b"!:0123"])
def test_a_damaged_name_is_never_taken_for_absent(
    stores: Stores, scrubs: bool, other: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(stores)
    turn(stores, b"k:0123\0", other + b"\0")
    if not scrubs:
        monkeypatch.setattr(scrub.Scrub, "wait_s", lambda self: 3_600.0)
    store = stores.open(limits=QUICK)
    if scrubs:
        scrubbed(store)
        lost = {digest.bucket_of(b"k:0123"), digest.bucket_of(other)}
        assert store.suspects.buckets in (lost, ALL)
    with pytest.raises(CorruptData):
        store.key_rows(b"k:0123")
    shown = 0
    for number in range(KEYS):
        if number != 123:
            try:
                assert value(store, b"k:%04d" % number) == b"v%d" % number
                shown += 1
            except CorruptData:
                continue
    assert shown > KEYS * 3 // 4
    if scrubs:
        with pytest.raises(CorruptData, match="a listing may lack some"):
            store.suspects.check_all()
    else:
        with pytest.raises(CorruptData):
            store.keys(b"", b"", 1_000, NOW)


def test_what_neighbours_send_is_taken_beside_damage(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing may be half done: the log has it before memory does. It is not served before."""
    monkeypatch.setattr(scrub.Scrub, "wait_s", lambda self: 3_600.0)
    filled(stores)
    other = stores.open("other")
    for number in range(120, 127):
        put(other, b"k:%04d" % number, b"newer", NOW + 1_000)
    turn(stores, b"k:0123\0", b"k:0X23\0")
    store = stores.open(limits=QUICK)
    store.accept_rows(other.scan_rows(b"", 1 << 20), {})
    store.drop_rows([row_key(b"k:0123", VALUE)])
    store.flush()
    with pytest.raises(CorruptData):
        store.key_rows(b"k:0123")
    store = stores.reopen(store, limits=QUICK)  # all of it is taken in again
    with pytest.raises(CorruptData):
        store.key_rows(b"k:0123")
    assert value(store, b"k:0126") == b"newer"


def test_an_element_that_is_gone_spoils_the_set(stores: Stores) -> None:
    filled(stores)
    turn(stores, b"s:et\0\x0417", b"s:et\0\x0477")
    store = stores.open(limits=QUICK)
    with pytest.raises(CorruptData):
        store.key_rows(b"s:et")
    scrubbed(store)
    assert digest.bucket_of(b"s:et") in store.suspects.buckets
    with pytest.raises(CorruptData):
        store.key_rows(b"s:et")


def test_rows_that_no_page_shows_are_missed_by_the_sums(stores: Stores) -> None:
    filled(stores)
    remove(stores, row_key(b"k:0007", VALUE), row_key(b"k:0300", VALUE))
    store = stores.open(limits=QUICK)
    scrubbed(store)
    assert store.suspects.buckets == {digest.bucket_of(b"k:0007"), digest.bucket_of(b"k:0300")}
    store = stores.reopen(store, clean=True)
    with pytest.raises(CorruptData):
        store.key_rows(b"k:0300")


def test_a_read_that_meets_damage_has_it_looked_for(stores: Stores) -> None:
    filled(stores)
    store = stores.open(limits=QUICK)
    scrubbed(store)
    index = store._index
    name = row_key(b"k:0050", VALUE)
    index.write([(name, index.get_rows([name])[name][:-1] + b"?")], {})
    with pytest.raises(CorruptData, match="k:0050"):
        store.key_rows(b"k:0050")
    until(lambda: store.suspects.buckets, store)
    assert store.suspects.buckets == {digest.bucket_of(b"k:0050")}


def test_a_page_that_is_wrong_ends_writing_and_the_next_start_mends_it(stores: Stores) -> None:
    filled(stores)
    path = stores.base / "a" / "index" / "data.mdb"
    data = bytearray(path.read_bytes())
    at = data.rindex(b"k:0123\0")
    data[at - 8] ^= 4  # the size of its value, so that the next entry lies elsewhere
    data[at + 12] ^= 1
    path.write_bytes(data)
    store = stores.open(limits=QUICK)
    until(lambda: store._applier.failed, store)
    assert store.suspects.buckets == ALL
    with pytest.raises(CorruptData):
        store.key_rows(b"nothing here")
    put(store, b"k:0001", b"newer")
    with pytest.raises(StoreFailed, match="pages of the index are damaged"):
        store.flush()
    assert (stores.base / "a" / "remake").exists()
    store = stores.reopen(store, limits=QUICK)
    assert "the index was put together anew" in store.recovery.remade
    assert not (stores.base / "a" / "remake").exists()
    assert value(store, b"k:0122") == b"v122"
    assert store.suspects.buckets >= {digest.bucket_of(b"k:0123")}


def test_damaged_pairs_are_named_and_looked_for(stores: Stores) -> None:
    store = stores.open()
    store.put(KIND_SESSION, {b"a session": b"its row"})
    store.flush()
    applied(store)
    store.close()
    turn(stores, b"its row", b"its raw")
    store = stores.open(limits=QUICK)
    scrubbed(store)
    until(lambda: store.mender.scrubbed, store)
    (found,) = store.mender.scrubbed
    assert (len(found.pairs), found.lost) == (1, [(KIND_SESSION, b"a session")])
    assert "a session" in found.pairs[0]
    assert store.suspects.buckets == frozenset()
    assert store.mender.lost.seeking
    while store.mender.lost.step(store.put):
        pass
    assert store.get(KIND_SESSION, b"a session") == b"its row"


def change(store: Store, one: int, rng: random.Random) -> None:
    """Some write."""
    match rng.randrange(6):
        case 0:
            put(store, b"k:%d" % one, b"%d" % rng.randrange(99))
        case 1:
            put(store, b"t:%d" % one, b"x", NOW, NOW + rng.randrange(10**8))
        case 2:
            incr(store, b"c:%d" % (one % 9))
        case 3:
            add(store, b"s:%d" % (one % 5), [b"%d" % rng.randrange(30)])
        case 4:
            stamp, key = store.stamp(NOW), b"m:%d" % (one % 5)
            fields = {b"%d" % rng.randrange(30): b"%d" % one}
            delta = maps.put(store.key_rows(key).rows, fields, stamp, NOW)
            store.commit(stamp, [(key, TYPE_MAP, delta)])
        case _:
            key = b"c:%d" % (one % 9)
            if parts := list(store.key_rows(key).rows):
                store.drop_rows([row_key(key, part) for part in parts])


def test_writes_meanwhile_are_summed_up(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """All types, over and over, while passes go on in tiny chunks: no false alarm."""
    monkeypatch.setattr(scrub, "CHUNK_ROWS", 3)
    monkeypatch.setattr(scrub, "QUIET_ROWS", 1)
    monkeypatch.setattr(applier, "_LOOK_S", 0.0)
    store = stores.open(limits=replace(LIMITS, scrub_pause_ms=1, scrub_bytes_per_s=1 << 30))
    rng = random.Random(5)
    until_s = time.monotonic() + 2
    while time.monotonic() < until_s or store._applier.scrub_passes < 5:
        change(store, rng.randrange(60), rng)
        if not rng.randrange(8):
            store.flush()
            time.sleep(0.002)
        assert store.suspects.buckets == frozenset()
    store.flush()
    applied(store)
    passes = store._applier.scrub_passes
    until(lambda: store._applier.scrub_passes > passes + 1, store)
    assert store.suspects.buckets == frozenset()
    assert store.mender.scrubbed == []
    assert store.digest(NOW)[1] == root_of(store)


def test_suspects_are_stored_as_bits() -> None:
    for buckets in (frozenset(), frozenset({0}), frozenset({7, 8, 4_095}), ALL):
        assert suspects.decode(suspects.encode(buckets)) == buckets
    stored = suspects.encode({9})
    assert stored is not None
    assert suspects.decode(stored[:-1] + b"\1") == ALL, "damaged itself"


def test_mended_buckets_are_served_again(stores: Stores) -> None:
    filled(stores)
    turn(stores, b"v123", b"v103")
    store = stores.open(limits=QUICK)
    scrubbed(store)
    rows = store.mender.log_rows()
    while not rows.step():
        pass
    assert rows.whole
    store.flush()
    applied(store)
    store.mender.mended(store.suspects.buckets)
    until(lambda: not store.suspects.buckets, store)
    assert value(store, b"k:0123") == b"v123"
    assert store.suspects.mended_buckets == 1
    sealed = store._index.get_rows([row_key(b"k:0123", VALUE)])
    assert all(is_sealed(*item) for item in sealed.items())
    assert sealed
    assert store._index.get(KIND_META, NAME) is None
    assert count(store, b"no such key") is None
    store.close()
    assert check(stores.base / "a").problems == []
