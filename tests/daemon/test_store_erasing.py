"""What is erased leaves the log too: every segment, whatever interrupts it."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from store_kit import LIMITS, Stores, applied, brief, incr, put, value

from roost_crdt import logformat
from roost_crdt.errors import Full
from roost_crdt.home import Meta
from roost_crdt.logformat import KIND_META, KIND_SESSION
from roost_crdt.sessions.table import head_item
from roostd import blanking, segments
from roostd.store import Store, check
from roostd.store.erasing import PREFIX
from roostd.store.replay import check_entry, redo
from roostd.store.state import State

MARKER = b"nobody-else-says-this"
OWNER = b"s\0gone\0"
STUB = head_item(Meta("gone", (1, "eu-1"), None, held=False, erased_ms=1))
QUICK = replace(LIMITS, erase_pause_ms=0)


def speak(store: Store, name: bytes = b"gone", turns: int = 40, pad: int = 20_000) -> None:
    """A session over several segments, another one and keys beside it."""
    for number in range(turns):
        leaf = MARKER + b"%d" % number + os.urandom(pad)
        brief(
            lambda n=number, leaf=leaf: store.put(
                KIND_SESSION, {b"s\0%s\0e%04d" % (name, n): leaf, b"s\0kept\0e%04d" % n: b"kept"}
            )
        )
        brief(lambda n=number: put(store, b"beside:%d" % n, b"%d" % n))
        incr(store, b"visits")
        store.flush()


def erase(store: Store) -> None:
    store.erasing.mark(OWNER)
    keys = [key for key, _ in store.scan(KIND_SESSION, OWNER)]
    store.put(KIND_SESSION, {**dict.fromkeys(keys), **STUB})
    store.flush()


def settle(store: Store, done: Callable[[Store], bool] | None = None) -> None:
    """Let the store go on as its node does until nothing is left to erase."""
    deadline = time.monotonic() + 60
    while store.erasing.waiting if done is None else not done(store):
        assert time.monotonic() < deadline, (store.erasing.waiting, store.erasing.problem)
        store.look_after()
        store.flush()
        time.sleep(0.002)
    store.flush()
    applied(store)


def logged(base: Path) -> bytes:
    files = sorted((base / "log").iterdir())
    return b"".join(path.read_bytes() for path in files)


def whole(store: Store, turns: int = 40) -> None:
    for number in range(turns):
        assert value(store, b"beside:%d" % number) == b"%d" % number
        assert store.get(KIND_SESSION, b"s\0kept\0e%04d" % number) == b"kept"
    assert {b"m\0gone": store.get(KIND_SESSION, b"m\0gone")} == STUB
    assert store.scan(KIND_SESSION, OWNER) == []


def test_an_erased_session_leaves_every_segment(stores: Stores) -> None:
    store = stores.open(limits=QUICK, size_max=4 << 20)
    speak(store)
    assert len(segments.listing(store._path / "log")) > 3, "one segment proves little"
    erase(store)
    assert MARKER in logged(store._path)
    settle(store)
    assert MARKER not in logged(store._path)
    assert OWNER + b"e" not in logged(store._path), "names of what was erased are left"
    assert store.erasing.blanked >= 40
    assert not store.scan(KIND_META, PREFIX)
    whole(store)
    records = store.records_after(store.actor, 0, 1 << 30)
    assert records is not None
    assert len(records) == 80, "records of others are as they were"
    store.close()
    assert check(store._path).problems == []


def test_a_log_that_was_blanked_is_replayed(stores: Stores) -> None:
    """All of it again, as a repair does, and a start that finds the index far behind."""
    store = stores.open(limits=QUICK, size_max=4 << 20)
    speak(store, turns=12)
    erase(store)
    settle(store)
    entries, _ = store._log.entries_from(store._log.first_position(), 0, store.seq, 1 << 30)
    assert [entry.seq for entry in entries] == list(range(1, store.seq + 1))
    assert [entry.kind for entry in entries].count(KIND_SESSION) == 13
    store = stores.reopen(store, limits=QUICK, size_max=4 << 20)
    whole(store, turns=12)
    state = State(store._index, {}, 0, 1 << 20)
    for entry in entries:
        check_entry(entry)
        redo(state, entry, store._path)
    left = [key for key in state.overlay[KIND_SESSION] if key.startswith(b"s\0")]
    assert left == [b"s\0kept\0e%04d" % number for number in range(12)]


def test_erasures_of_a_minute_share_a_segment(stores: Stores) -> None:
    store = stores.open(size_max=4 << 20)
    speak(store, turns=2)
    erase(store)
    settle(store)
    numbers = {segment.number for segment in segments.listing(store._path / "log")}
    store.erasing.mark(b"s\0other\0")
    store.flush()
    for _ in range(20):
        store.look_after()
        store.flush()
        time.sleep(0.002)
    assert store.erasing.waiting, "it began at once"
    assert {s.number for s in segments.listing(store._path / "log")} == numbers


def test_a_segment_that_ended_early_shrinks(stores: Stores) -> None:
    """Many erasures do not take the room of the log that neighbours may ask for."""
    store = stores.open(limits=QUICK)
    speak(store, turns=2, pad=100)
    erase(store)
    settle(store)
    oldest, *_ = segments.listing(store._path / "log")
    assert oldest.size < 16 << 10
    assert store._log.bytes_used() < 2 * store._log.segment_bytes + (16 << 10)


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("moment", range(6))
def test_a_kill_leaves_a_segment_or_its_copy(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """At each call that changes something; the next start ends what was begun."""
    store = stores.open(limits=QUICK, size_max=4 << 20)
    speak(store, turns=8)
    erase(store)
    calls = itertools.count()

    def strike(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **words: object) -> object:
            if threading.current_thread().name == "roost-log" and next(calls) == moment:
                struck.append(name)
                raise Killed(name)
            return real(*args, **words)

        return call

    struck: list[str] = []
    real = blanking.blank_segment

    def blank(*args: object) -> int:
        if struck:
            return 0
        for name in ("pwrite", "fsync"):
            monkeypatch.setattr(os, name, strike(name, getattr(os, name)))
        monkeypatch.setattr(Path, "rename", strike("rename", Path.rename))
        monkeypatch.setattr(Path, "unlink", strike("unlink", Path.unlink))
        try:
            return real(*args)  # type: ignore[arg-type]
        except Killed:
            return 0
        finally:
            monkeypatch.undo()

    monkeypatch.setattr("roostd.housekeeping.blank_segment", blank)
    settle(store, lambda _: bool(struck))
    before = logged(store._path)
    store = stores.reopen(store, limits=QUICK, size_max=4 << 20)
    assert store.recovery.torn_bytes == 0
    assert MARKER in before
    assert store.erasing.waiting, "the mark was forgotten"
    whole(store, turns=8)
    settle(store)
    assert MARKER not in logged(store._path)
    whole(store, turns=8)
    store.close()
    assert check(store._path).problems == []


def test_a_damaged_segment_is_said_and_tried_again(stores: Stores) -> None:
    store = stores.open(limits=QUICK, size_max=4 << 20)
    speak(store)
    applied(store)
    oldest, *_ = segments.listing(store._path / "log")
    with oldest.path.open("r+b") as file:
        file.seek(logformat.SEGMENT_HEADER_BYTES + logformat.GROUP_HEADER_BYTES + 100)
        file.write(b"\xff\x00\xff")
    erase(store)
    settle(store, lambda store: bool(store.erasing.problem))
    assert oldest.path.name in store.erasing.problem
    assert store.erasing.waiting
    others = [s for s in segments.listing(store._path / "log") if s.number != oldest.number]
    assert not any(MARKER in segment.path.read_bytes() for segment in others)
    whole(store)


def test_a_full_store_erases_later(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stores.open(limits=QUICK, size_max=4 << 20)
    speak(store, turns=4)
    erase(store)
    real = store.erasing._put

    def full(*_: object) -> int:
        raise Full("no room")

    store.erasing._put = full
    settle(store, lambda store: "no room" in store.erasing.problem)
    store.erasing._put = real
    settle(store)
    assert MARKER not in logged(store._path)
    assert store.erasing.problem == ""


def test_a_stop_does_not_wait_for_what_is_to_be_blanked(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stores.open(limits=QUICK, size_max=4 << 20)
    speak(store)
    erase(store)
    real, begun = blanking.blank_segment, list[object]()

    def slow(*args: object) -> int:
        begun.append(args[0])
        time.sleep(0.2)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("roostd.housekeeping.blank_segment", slow)
    settle(store, lambda _: bool(begun))
    store = stores.reopen(store, clean=True, limits=QUICK, size_max=4 << 20)
    assert len(begun) == 1, "all of the log was gone through first"
    monkeypatch.undo()
    assert store.erasing.waiting
    settle(store)
    assert MARKER not in logged(store._path)
