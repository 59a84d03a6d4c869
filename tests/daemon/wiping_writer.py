"""A process that writes sessions and erases them: `wiping_writer.py DIR BOOT STEPS`.

What the store holds is a function of the number of steps that it has gone: every other one writes
a session, the others erase an earlier one and wait until nothing of it is left. After each the
number of steps is printed.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from power_loss_writer import NOW, pretend

from roost_crdt.home import Meta
from roost_crdt.limits import DEFAULT_LIMITS
from roost_crdt.logformat import KIND_SESSION
from roost_crdt.sessions.table import head_item
from roostd.store import Store, wiping

BEHIND = 3
"""So many sessions are left."""
SIZES = (40, 700, 1_900, 2_500, 6_000)
Items = dict[bytes, bytes | None]


def open_store(path: Path) -> Store:
    return Store.open(
        path,
        limits=replace(DEFAULT_LIMITS, apply_interval_ms=2, erase_pause_ms=0),
        size_max=2 << 20,
        log_retention=160 << 10,
        now_ms=NOW,
        random_bytes=os.urandom,
    )


def marker(number: int) -> bytes:
    return b"<session %d says %d>" % (number, number * 7_919)


def session(number: int) -> Items:
    words = marker(number)
    return {
        b"s\0%d\0e%02d%s" % (number, at, words): (words * 300)[: SIZES[(number + at) % 5]]
        for at in range(8)
    }


def stub(number: int) -> Items:
    return {**head_item(Meta(str(number), (1, "eu-1"), None, held=False, erased_ms=1))}


def erased(steps: int) -> range:
    """The sessions that are erased after so many steps."""
    return range(max(0, steps // 2 - BEHIND))


def expected(steps: int) -> Items:
    """What the store holds after so many steps."""
    gone = erased(steps)
    items: Items = {}
    for number in gone:
        items.update(stub(number))
    for number in range(gone.stop, (steps + 1) // 2):
        items.update(session(number))
    return items


def settle(store: Store) -> None:
    deadline = time.monotonic() + 60
    while store.erasing.waiting:
        assert time.monotonic() < deadline, store.erasing.problem
        store.look_after()
        store.flush()
        time.sleep(0.001)


def go(store: Store, step: int) -> None:
    """Step number `step`, from 0 on."""
    number = step // 2
    if step % 2 == 0:
        store.put(KIND_SESSION, session(number))
    elif number >= BEHIND:
        gone = number - BEHIND
        store.erasing.mark(b"s\0%d\0" % gone)
        store.put(KIND_SESSION, {**dict.fromkeys(session(gone)), **stub(gone)})
    store.flush()


def main() -> None:
    path, boot, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    wiping.STEP_PAGES, wiping.STEP_FREE_PAGES = 8, 32
    with pytest.MonkeyPatch.context() as patch:
        pretend(boot, patch)
        store = open_store(path)
        for step in range(steps):
            go(store, step)
            os.write(1, b"%d\n" % (step + 1))
            settle(store)
        os._exit(0)


if __name__ == "__main__":
    main()
