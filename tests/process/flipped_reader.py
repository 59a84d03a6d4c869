"""Opens copies of a store with one bit turned: `flipped_reader.py STORE SCRATCH COUNT`.

Reads lines `FILE OFFSET BIT` and answers each with what became of it, in a process of its own
because LMDB may not survive a damaged page:

    refused TEXT   the store does not open
    found          it opens, and says of each key that it cannot serve that it is damaged
    checked        everything is right where it was looked, and `roost check` finds the damage
    right          everything is right, and nothing to be found

and then, if a check finds anything, what `roost check --repair` makes of it: `-> all` where the
store shows all that was written, `-> part` where something has to come from neighbours.

The worst comes first: `WRONG TEXT` where something else is served than was written and no check
tells, or something else than was written is there after the repair.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import lmdb
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "daemon"))
from power_loss_writer import KEYS, MEMBERS, NOW, check, open_store, pretend, value

from roost_crdt import values
from roost_crdt.errors import ConfigError, CorruptData, RoostError
from roostd import store as stores
from roostd.store import Store, StoreFailed


def outcome(path: Path, count: int) -> str:
    try:
        store = open_store(path)
    except (CorruptData, StoreFailed, ConfigError, RoostError, lmdb.Error, OSError) as exc:
        return f"refused {exc}"
    try:
        wrong = what_is_wrong(store, count)
    finally:
        store.close(clean=False)
    if wrong == "found":
        return wrong
    try:
        problems = bool(stores.check(path).problems)
    except (RoostError, CorruptData, StoreFailed, lmdb.Error) as exc:
        return f"refused by check {exc}"
    if wrong:
        return f"noticed by check only: {wrong}" if problems else f"WRONG {wrong}"
    return "checked" if problems else "right"


def mended(path: Path, count: int) -> str:
    """What a repair makes of the store."""
    try:
        if not stores.check(path).problems:
            return ""
        stores.repair(path, os.urandom)
        left = stores.check(path).problems
        if left:
            return f" WRONG after the repair: {left[0]}"
        store = open_store(path)
    except ConfigError as exc:
        return f" -> not this release's: {exc}"
    try:
        what = what_is_wrong(store, count, vouched=False)
        if not what:
            return " -> all"
        invention = invented(store, count)
        return f" WRONG after the repair: {invention}" if invention else f" -> part: {what}"
    finally:
        store.close(clean=False)


def invented(store: Store, count: int) -> str:
    """A value that was never written; "" if there is none."""
    for slot in range(KEYS):
        shown = values.register_value(store.key_rows(b"k:%d" % slot).rows, NOW)
        if shown is not None and shown not in {value(n) for n in range(slot, count + 1, KEYS)}:
            return f"k:{slot} is {shown!r}"
    members = {b"%d" % (number % MEMBERS) for number in range(2, count + 1, 2)}
    if not set(values.set_members(store.key_rows(b"set").rows, NOW)) <= members:
        return "the set"
    return ""


def what_is_wrong(store: Store, count: int, *, vouched: bool = True) -> str:
    """ "" if all is there as it was; "found" if a read says that something is damaged."""
    try:
        for name in (b"", b"k:", b"gone:"):
            for key in store.keys(name, b"", 1_000, NOW):
                store.key_rows(key)
        check(store, count, vouched=vouched)
        assert store._applier.drain(5), "what the log holds cannot be applied"
    except (CorruptData, lmdb.Error):
        return "found"
    except (AssertionError, ValueError) as exc:
        return " ".join(str(exc).split())[:200] or "an assertion"
    return ""


def main() -> None:
    base, scratch, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    with pytest.MonkeyPatch.context() as patch:
        pretend("boot", patch)
        for line in sys.stdin:
            name, offset, bit = line.split()
            shutil.rmtree(scratch, ignore_errors=True)
            shutil.copytree(base, scratch)
            with (scratch / name).open("r+b") as file:
                file.seek(int(offset))
                byte = file.read(1)[0]
                file.seek(int(offset))
                file.write(bytes([byte ^ 1 << int(bit)]))
            told = outcome(scratch, count)
            print(" ".join(f"{told}{mended(scratch, count)}".split()), flush=True)


if __name__ == "__main__":
    main()
