"""Opens copies of a store with one bit turned: `flipped_reader.py STORE SCRATCH COUNT`.

Reads lines `FILE OFFSET BIT` and answers each with what became of it, in a process of its own
because LMDB may not survive a damaged page:

    refused TEXT   the store does not open
    found          it opens, and says of each key that it cannot serve that it is damaged
    checked        everything is right where it was looked, and `roost check` finds the damage
    right          everything is right, and nothing to be found
    WRONG TEXT     something else is served than was written, and no check tells
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import lmdb
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "daemon"))
from power_loss_writer import NOW, check, open_store, pretend

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


def what_is_wrong(store: Store, count: int) -> str:
    """ "" if all is there as it was; "found" if a read says that something is damaged."""
    try:
        for name in (b"", b"k:", b"gone:"):
            for key in store.keys(name, b"", 1_000, NOW):
                store.key_rows(key)
        check(store, count)
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
            print(" ".join(outcome(scratch, count).split()), flush=True)


if __name__ == "__main__":
    main()
