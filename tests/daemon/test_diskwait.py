"""The thread that applies works while the node's thread waits for the disk."""

from __future__ import annotations

import threading
import time

import pytest

from roostd.store import diskwait
from roostd.store.diskwait import DiskWait


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diskwait, "PAUSE_S", 30.0)


def goes_on_in_the_next(wait: DiskWait) -> None:
    thread = threading.Thread(target=wait.give_way, args=(0,))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    with wait:
        thread.join(25)
    assert not thread.is_alive()


def test_it_goes_on_at_once_while_the_disk_is_waited_for() -> None:
    wait = DiskWait()
    with wait:
        for _ in range(1_000):
            wait.give_way(0)


def test_it_goes_on_when_a_wait_begins_and_not_before() -> None:
    goes_on_in_the_next(DiskWait())


def test_a_wait_that_is_over_is_none() -> None:
    wait = DiskWait()
    for _ in range(3):
        with wait:
            pass
    goes_on_in_the_next(wait)


def test_an_error_ends_the_wait_too() -> None:
    wait = DiskWait()
    with pytest.raises(OSError, match="EIO"), wait:
        raise OSError("EIO")
    goes_on_in_the_next(wait)


def test_without_syncs_it_goes_on_after_a_pause_that_shrinks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(diskwait, "PAUSE_S", 20.0)
    began_s = time.monotonic()
    DiskWait().give_way(1_000 * diskwait.BEHIND_ROWS)
    assert time.monotonic() - began_s < 10
