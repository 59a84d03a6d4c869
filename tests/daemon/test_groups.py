"""Groups: what is held leaves when it is durable, and a long turn does not hold all of it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

import pytest

from roostd.node import groups as groups_module
from roostd.node.groups import GROUP_MAX_S, GROUP_S, Groups
from roostd.store import StoreFailed


class Clock:
    """Stands still but for what a test lets pass."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


clock = Clock()


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups_module, "time", clock)


class Disk:
    """What Groups needs of a store; `written` and `durable` are what it holds."""

    def __init__(self) -> None:
        self.schedule: Callable[[], None] | None = None
        self.written: list[str] = []
        self.durable: list[str] = []
        self.flushes = 0
        self.fails = False
        self.flush_s = 0.0

    @property
    def dirty(self) -> bool:
        return bool(self.written)

    def write(self, what: str) -> None:
        assert self.schedule is not None
        if not self.written:
            self.schedule()
        self.written.append(what)

    def flush(self) -> None:
        if self.fails:
            raise StoreFailed("the disk failed")
        self.flushes += 1
        clock.now_s += self.flush_s
        self.durable += self.written
        self.written.clear()


def groups_of(disk: Disk, failures: list[BaseException] | None = None) -> Groups:
    return Groups(disk, (failures if failures is not None else []).append)  # type: ignore[arg-type]


async def test_what_is_held_leaves_once_when_it_is_durable() -> None:
    disk = Disk()
    groups, seen = groups_of(disk), []
    assert not groups.hold(lambda: seen.append("never"))
    groups.on_durable(lambda: seen.append("at once"))
    disk.write("a")
    assert groups.hold(lambda: seen.append(list(disk.durable)))
    assert seen == ["at once"]
    await groups.durable()
    assert seen == ["at once", ["a"]]
    await asyncio.sleep(0)
    assert disk.flushes == 1
    assert len(seen) == 2


async def test_a_group_that_lasts_is_ended_before_its_turn_is() -> None:
    disk = Disk()
    groups, seen = groups_of(disk), []
    disk.write("a")
    groups.hold(lambda: seen.append("a"))
    groups.end_due(clock.now_s)
    assert disk.durable == seen == []
    groups.end_due(clock.now_s + 2 * GROUP_S)
    assert disk.durable == seen == ["a"]
    disk.write("b")
    groups.hold(lambda: seen.append("b"))
    groups.end_due(clock.now_s)
    assert seen == ["a"], "the next group begins its own time"
    await asyncio.sleep(0)
    assert disk.durable == seen == ["a", "b"]
    disk.write("c")
    groups.hold(lambda: seen.append("c"))
    await asyncio.sleep(0)
    assert disk.durable == seen == ["a", "b", "c"]
    assert disk.flushes == 3


async def test_a_slow_disk_has_longer_groups() -> None:
    disk = Disk()
    groups = groups_of(disk)
    disk.flush_s = 0.004
    disk.write("a")
    groups.flush()
    disk.write("b")
    groups.end_due(clock.now_s + 3 * GROUP_S)
    assert disk.durable == ["a"]
    groups.end_due(clock.now_s + GROUP_MAX_S)
    assert disk.durable == ["a", "b"]


async def test_nothing_leaves_after_a_failure() -> None:
    disk, failures = Disk(), list[BaseException]()
    groups, seen = groups_of(disk, failures), list[str]()
    disk.write("a")
    groups.hold(lambda: seen.append("a"))
    disk.fails = True
    groups.end_due(clock.now_s + 2 * GROUP_S)
    assert seen == []
    assert [str(failure) for failure in failures] == ["the disk failed"]
    await asyncio.sleep(0)
    assert seen == []


async def test_a_failure_that_nobody_waits_for_any_more_leaves_no_complaint() -> None:
    complaints = list[dict[str, object]]()
    asyncio.get_running_loop().set_exception_handler(lambda _, said: complaints.append(said))
    disk = Disk()
    groups = groups_of(disk)
    disk.written.append("a")  # no turn is to flush it
    waiting = asyncio.ensure_future(groups.durable())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait((waiting,))
    disk.fails = True
    groups.flush()
    gc.collect()
    assert complaints == []


async def test_each_who_waits_is_told_of_a_failure() -> None:
    disk = Disk()
    groups = groups_of(disk)
    disk.written.append("a")
    waiting = [asyncio.ensure_future(groups.durable()) for _ in range(2)]
    await asyncio.sleep(0)
    disk.fails = True
    groups.flush()
    await asyncio.wait(waiting)
    assert [str(one.exception()) for one in waiting] == ["the disk failed"] * 2


async def test_what_is_held_leaves_though_another_one_has_flushed() -> None:
    """A new actor, a listing: the store then flushes itself."""
    disk = Disk()
    groups, seen = groups_of(disk), []
    disk.write("a")
    assert groups.hold(lambda: seen.append(list(disk.durable)))
    waiting = asyncio.ensure_future(groups.durable())
    await asyncio.sleep(0)
    disk.write("b")
    assert groups.hold(lambda: seen.append(list(disk.durable)))
    disk.flush()
    await asyncio.wait_for(waiting, 30)
    await asyncio.sleep(0)
    assert seen[-1] == ["a", "b"]
    assert len(seen) == 2
