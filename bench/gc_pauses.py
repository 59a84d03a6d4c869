"""How long Python's garbage collector stops a node's thread: `python bench/gc_pauses.py`.

A store in this process takes writes to random keys, in groups, as the daemon's loop brings them.
Each collection is timed (processor time, so that a busy machine does not count), once with
Python's own thresholds and once as roostd sets them.
"""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from roost_crdt.errors import Busy
from roost_crdt.limits import DEFAULT_LIMITS
from roost_crdt.rows import register
from roost_crdt.rows.layout import TYPE_REGISTER
from roostd.cli.roostd import tune_collector
from roostd.store import Store

KEYS = 150_000
WRITES = 300_000
GROUP = 100


def run(tuned: bool) -> dict[str, float]:
    """One load; pauses in milliseconds."""
    pauses: dict[int, list[float]] = {0: [], 1: [], 2: []}
    began = 0.0

    def note(phase: str, info: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = time.thread_time()
        else:
            pauses[info["generation"]].append((time.thread_time() - began) * 1000)

    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(
            Path(folder) / "store",
            limits=DEFAULT_LIMITS,
            size_max=4 << 30,
            log_retention=256 << 20,
            now_ms=int(time.time() * 1000),
            random_bytes=os.urandom,
        )
        if tuned:
            tune_collector()
        gc.callbacks.append(note)
        chance, started = random.Random(1), time.perf_counter()
        for number in range(WRITES):
            key = b"k:%d" % chance.randrange(KEYS)
            stamp = store.stamp(int(time.time() * 1000))
            delta = register.put(store.key_rows(key).rows, b"%060d" % number, stamp)
            while True:
                try:
                    store.commit(stamp, [(key, TYPE_REGISTER, delta)])
                    break
                except Busy:
                    store.flush()
                    time.sleep(0.005)
            if number % GROUP == 0:
                store.flush()
        took_s = time.perf_counter() - started
        gc.callbacks.remove(note)
        store.close(clean=False)
    every = [pause for of_one in pauses.values() for pause in of_one]
    return {
        "writes_per_s": round(WRITES / took_s),
        "collections": len(every),
        "full": len(pauses[2]),
        "longest_ms": round(max(every), 1),
        "over_10_ms": sum(pause > 10 for pause in every),
        "share_percent": round(sum(every) / took_s / 10, 2),
    }


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(run(sys.argv[1] == "tuned")))
        return
    for how in ("default", "tuned"):
        print(how, subprocess.check_output([sys.executable, __file__, how], text=True).strip())


if __name__ == "__main__":
    main()
