"""The environment below the index: held, opened anew."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from roost_crdt.logformat import KIND_SESSION
from roostd.index import Index


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    made = Index(tmp_path / "index", 4 << 20)
    yield made
    made.close()


def test_reads_and_writes_go_on_while_it_is_opened_anew(index: Index) -> None:
    index.write((), {KIND_SESSION: [(b"a", b"1")]})
    failed: list[Exception] = []
    over = threading.Event()

    def read() -> None:
        try:
            while not over.is_set():
                assert index.get(KIND_SESSION, b"a") is not None
                assert index.scan(KIND_SESSION, b"", b"", 10)
                assert index.rows_of(b"key") == []
                assert index.rows_after(b"", 10, 10) == ([], True)
                assert index.pairs_after(KIND_SESSION, b"", 10, 10)[1]
        except (AssertionError, lmdb.Error) as exc:
            failed.append(exc)

    def write() -> None:
        try:
            while not over.is_set():
                index.write((), {KIND_SESSION: [(b"a", b"2")]})
        except (AssertionError, lmdb.Error) as exc:
            failed.append(exc)

    threads = [threading.Thread(target=read), threading.Thread(target=write)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        assert index.reopen()
    over.set()
    for thread in threads:
        thread.join()
    assert failed == []
    assert index.get(KIND_SESSION, b"a") == b"2"
    assert not index.closed


def test_one_that_cannot_be_opened_anew_says_so(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise lmdb.DiskError("no room")

    monkeypatch.setattr(index, "_open", fail)
    with pytest.raises(lmdb.DiskError):
        index.reopen()
    assert index.closed


def test_what_is_held_knows_its_newest_transaction(index: Index) -> None:
    with index.held() as (newest, oldest):
        assert newest == oldest
    index.write((), {KIND_SESSION: [(b"a", b"1")]})
    with index.held() as (following, oldest):
        assert (following, oldest) == (newest + 1, newest + 1)
    with index.held() as (again, _):
        assert again == following, "a transaction without a change counts"
