"""What is erased leaves the index's file while it is in use, whatever is in the way."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from store_kit import LIMITS, NOW, Stores, applied, brief, put, root_of

from roost_crdt.home import Meta
from roost_crdt.logformat import KIND_SESSION
from roost_crdt.sessions.table import head_item
from roostd import pages
from roostd.index import Index
from roostd.store import Store, check, wiping

QUICK = replace(LIMITS, erase_pause_ms=0)
SIZES = (10, 50, 300, 1_000, 1_500, 2_100, 3_000, 5_000, 12_000)
"""Values that lie between others on a page, in a part of one, in a row of them."""
READER = """
import lmdb, sys
env = lmdb.open(sys.argv[1], readonly=True, max_dbs=8)
with env.begin(db=env.open_db(b"sessions", create=False)) as txn:
    found = list(txn.cursor())
    print("reading", flush=True)
    sys.stdin.readline()
    assert list(txn.cursor()) == found, "the pages of a reader were overwritten"
    print("the same", flush=True)
"""


def marker(number: int) -> bytes:
    return b"<%d says what nobody else says %d>" % (number, number * 7_919)


class Talk:
    """Sessions that are written, changed and erased, and what is left of them."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.alive = list(range(24))
        self.erased: list[int] = []
        self._rng = random.Random(seed)
        self._held: dict[bytes, bytes] = {}

    def go_on(self, rounds: int) -> None:
        for _ in range(rounds):
            items: dict[bytes, bytes | None] = {}
            for _ in range(30):
                words = marker(self._rng.choice(self.alive))
                number = int(words[1:].split()[0])
                key = b"s\0%d\0e" % number + words + b"%03d" % self._rng.randrange(40)
                size = self._rng.choice(SIZES)
                gone = self._rng.random() < 0.2
                items[key] = None if gone else (words * (1 + size // len(words)))[:size]
            self._put(items)
            for key, value in items.items():
                self._held.pop(key, None)
                if value is not None:
                    self._held[key] = value
            brief(lambda: put(self.store, b"k:%d" % self._rng.randrange(99), os.urandom(300)))
            self.store.flush()

    def _put(self, items: dict[bytes, bytes | None]) -> None:
        brief(lambda: self.store.put(KIND_SESSION, items))

    def erase(self, count: int) -> None:
        for number in self._rng.sample(self.alive, count):
            self.alive.remove(number)
            self.erased.append(number)
            owner = b"s\0%d\0" % number
            keys = [key for key in self._held if key.startswith(owner)]
            stub = head_item(Meta(str(number), (1, "eu-1"), None, held=False, erased_ms=1))
            self.store.erasing.mark(owner)
            self._put({**dict.fromkeys(keys), **stub})
            for key in keys:
                del self._held[key]
        self.store.flush()

    def settle(self, done: Callable[[Store], bool] | None = None, *, talking: bool = False) -> None:
        deadline = time.monotonic() + 60
        store = self.store
        while store.erasing.waiting if done is None else not done(store):
            assert time.monotonic() < deadline, (store.erasing.waiting, store.erasing.problem)
            if talking:
                self.go_on(1)
            store.look_after()
            store.flush()
            time.sleep(0.002)
        applied(store)

    def left(self) -> list[int]:
        """What is left of erased sessions in the index."""
        held = data(self.store).read_bytes()
        return [number for number in self.erased if marker(number) in held]

    def check(self) -> None:
        """Everything else is as it was."""
        assert dict(self.store.scan(KIND_SESSION, b"s\0", limit=1 << 20)) == self._held
        assert pages.inspect(data(self.store)) == []
        applied(self.store)
        assert self.store.digest(NOW)[1] == root_of(self.store)


def data(store: Store) -> Path:
    return store._path / "index" / "data.mdb"


def begin(stores: Stores, seed: int = 1, rounds: int = 40) -> Talk:
    talk = Talk(stores.open(limits=QUICK, size_max=64 << 20), seed)
    talk.go_on(rounds)
    applied(talk.store)
    return talk


def again(talk: Talk, stores: Stores, *, clean: bool = False) -> None:
    talk.store = stores.reopen(talk.store, clean=clean, limits=QUICK, size_max=64 << 20)


@pytest.mark.parametrize("talking", [False, True], ids=["in silence", "while others talk"])
def test_nothing_is_left_in_the_file(stores: Stores, talking: bool) -> None:
    talk = begin(stores)
    for _ in range(3):
        talk.erase(4)
        assert talk.left(), "nothing was there"
        talk.settle(talking=talking)
        assert talk.left() == []
        talk.go_on(20)
        applied(talk.store)
        assert talk.left() == [], "it came back with a page that was written later"
    assert talk.store.erasing.problem == ""
    talk.check()
    talk.store.close()
    assert talk.left() == []
    assert check(talk.store._path).problems == []


def test_steps_are_small(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """And as many as it takes."""
    monkeypatch.setattr(wiping, "STEP_PAGES", 8)
    monkeypatch.setattr(wiping, "STEP_FREE_PAGES", 32)
    talk = begin(stores)
    talk.erase(4)
    least = data(talk.store).stat().st_size // 4096 // 32
    ours = talk.store._applier.wiping
    real, steps = ours.step, list[int]()

    def step() -> None:
        before = ours.written
        real()
        steps.append(ours.written - before)

    monkeypatch.setattr(ours, "step", step)
    talk.settle(talking=True)
    assert talk.left() == []
    assert sum(written > 0 for written in steps) > least
    assert max(steps) <= 32 * 4096 + (64 << 10)
    talk.check()


def failing(path: Path, real: Callable[..., object], moment: int) -> Callable[..., object]:
    """A call that fails where it is made on a file for the nth time."""
    calls = itertools.count(1)

    def call(fd: int, *rest: object) -> object:
        if os.readlink(f"/proc/self/fd/{fd}") == str(path) and next(calls) == moment:
            raise OSError("the disk fails")
        return real(fd, *rest)

    return call


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_a_disk_that_fails_on_the_way(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """At any call: what is in use is as it was, and it is done again, at the latest by a start."""
    monkeypatch.setattr(wiping, "STEP_PAGES", 8)
    monkeypatch.setattr(wiping, "STEP_FREE_PAGES", 32)
    talk = begin(stores)
    reached, moment = True, 0
    while reached:
        moment = 2 * moment + 1
        talk.erase(1)
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing(data(talk.store), getattr(os, call), moment))
            talk.settle(lambda store: bool(store.erasing.problem) or not store.erasing.waiting)
        reached = bool(talk.store.erasing.waiting)
        if reached:
            assert "the disk fails" in talk.store.erasing.problem
        talk.check()
        again(talk, stores)
        talk.settle()
        assert talk.left() == []
        talk.check()
    assert moment > 7


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8, 13])
def test_a_start_goes_on_with_it(
    stores: Stores, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    monkeypatch.setattr(wiping, "STEP_FREE_PAGES", 32)
    talk = begin(stores, rounds=15)
    talk.erase(4)
    ours = talk.store._applier.wiping
    real, done = ours.step, list[float]()

    def step() -> None:
        if len(done) < steps and ours.wait_s() == 0.0:
            done.append(0.0)
            real()

    monkeypatch.setattr(ours, "step", step)
    talk.settle(lambda store: len(done) >= steps and bool(ours._rounds))
    again(talk, stores)
    assert talk.store.erasing.waiting, "the mark was forgotten"
    talk.check()
    talk.settle()
    assert talk.left() == []
    talk.check()


@pytest.mark.parametrize("early", [True, False], ids=["before", "meanwhile"])
def test_a_reader_keeps_its_pages(stores: Stores, early: bool) -> None:
    """It is waited for; who it is can be seen."""
    talk = begin(stores)
    command = [sys.executable, "-c", READER, str(talk.store._path / "index")]
    if not early:
        talk.erase(2)
        talk.settle(lambda store: bool(store._applier.wiping.written))
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        talk.erase(2)
        talk.settle(lambda store: str(reader.pid) in store.erasing.problem)
        assert "reads the index as it was" in talk.store.erasing.problem
        talk.go_on(5)
        print(file=reader.stdin, flush=True)
        assert reader.stdout.readline() == "the same\n"
    talk.settle()
    assert talk.left() == []
    assert talk.store.erasing.problem == ""
    talk.check()


def test_it_waits_while_the_slots_of_readers_are_taken(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = begin(stores, rounds=5)
    monkeypatch.setattr("roostd.environment._SLOTS_LEFT", 1 << 20)
    talk.erase(2)
    talk.settle(lambda store: "slots" in store.erasing.problem)
    talk.check()
    monkeypatch.undo()
    talk.settle()
    assert talk.left() == []


def test_an_index_that_cannot_be_opened_anew_ends_the_store(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = begin(stores, rounds=5)
    talk.erase(2)

    def fail(self: Index) -> None:
        raise OSError("too many open files")

    monkeypatch.setattr(Index, "_open", fail)
    talk.settle(lambda store: store._applier.failed is not None)
    assert "too many open files" in str(talk.store._applier.failed)
    monkeypatch.undo()
    again(talk, stores)
    talk.settle()
    assert talk.left() == []
    talk.check()


def test_a_damaged_page_is_left_as_it_is(stores: Stores) -> None:
    talk = begin(stores, rounds=15)
    with pages.PageFile(data(talk.store)) as file:
        root = pages.named_trees(file, file.newest())[b"rows"].root
        upper = int.from_bytes(file.read(root)[14:16], "little")
    with data(talk.store).open("r+b") as damaged:
        damaged.seek(root * 4096 + 14)
        damaged.write((upper - 2).to_bytes(2, "little"))
    talk.erase(2)
    talk.settle(lambda store: bool(store.erasing.problem))
    assert f"page {root} " in talk.store.erasing.problem
    assert talk.store.erasing.waiting


def test_what_a_crash_left_behind_the_last_page_goes_too(stores: Stores) -> None:
    """Pages that were written and never committed, the last one in part."""
    talk = begin(stores, rounds=15)
    talk.erase(2)
    talk.store.close(clean=False)
    with data(talk.store).open("ab") as file:
        file.write(b"".join(map(marker, talk.erased)) * 100)
    assert data(talk.store).stat().st_size % 4096
    again(talk, stores)
    talk.settle(talking=True)
    assert talk.left() == []
    talk.check()
