"""Start-up time and memory of roostd with many keys, and what an idle session costs.

    python bench/startup.py [--keys 0 1000000 10000000] [--sessions N] [--json FILE]

The stores are built by `Store` itself (registers of 24 bytes, keys in order, 500 a record), not
by a daemon; 10 million keys take about 5 minutes and 2 GB of disk. Each is then started by
roostd three times, after a clean stop; "ready" is the first answer to PING on the unix socket.
The page cache is warm: dropping it needs rights that a benchmark should not ask for. Memory is
the daemon's own (RssAnon); pages of the mapped index come on top and belong to the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import hiredis

import roost
from roost_crdt.errors import Busy
from roost_crdt.limits import DEFAULT_LIMITS
from roost_crdt.rows import register
from roost_crdt.rows.layout import TYPE_REGISTER
from roostd.store import Store

POLICY = "model_router_weights"
RECORD_KEYS = 500
STARTS = 3
SIZE_MAX = 16 << 30


def build(path: Path, keys: int) -> None:
    """A store with so many registers, cleanly closed."""
    store = Store.open(
        path,
        limits=replace(DEFAULT_LIMITS, rows_memory_bytes=1 << 20),
        size_max=SIZE_MAX,
        log_retention=256 << 20,
        now_ms=int(time.time() * 1000),
        random_bytes=os.urandom,
    )
    for first in range(0, keys, RECORD_KEYS):
        while True:
            stamp = store.stamp(int(time.time() * 1000))
            ops = [
                (key, TYPE_REGISTER, register.put({}, b"weight=0.25;zone=b;%05d" % 7, stamp))
                for key in (
                    b"%s:%09d" % (POLICY.encode(), number)
                    for number in range(first, min(keys, first + RECORD_KEYS))
                )
            ]
            try:
                store.commit(stamp, ops)
                break
            except Busy:
                store.flush()
                time.sleep(0.05)
        if first % (RECORD_KEYS * 8) == 0:
            store.flush()
            while store.seq - store.applied_seq > 64:
                time.sleep(0.01)
    store.flush()
    store._applier.drain(600)
    store.close()


def configure(folder: Path) -> Path:
    """A daemon's configuration with a store as large as ours."""
    init = f"-m roostd.cli.main init {folder} --node bench-1 --region here"
    subprocess.run([sys.executable, *init.split()], check=True, capture_output=True)
    return folder


def start(home: Path) -> tuple[subprocess.Popen[bytes], float]:
    """Start roostd; the process, and seconds until it answered a PING."""
    environ = {
        **os.environ,
        **{f"ROOST_LISTEN_{face}": "127.0.0.1:0" for face in ("RESP", "HTTP", "GOSSIP")},
        "ROOST_STORE_SIZE_MAX": f"{SIZE_MAX >> 30}GiB",
    }
    began = time.perf_counter()
    with (home / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "roostd.cli.roostd", "--config", str(home / "roost.toml")],
            stdout=log,
            stderr=log,
            env=environ,
        )
    while True:
        try:
            if ask(home, "PING") == b"PONG":
                return process, time.perf_counter() - began
        except OSError:
            if process.poll() is not None:
                sys.exit((home / "log").read_text()[-2_000:])
            time.sleep(0.002)


def ask(home: Path, *words: Any) -> Any:
    """One command over the unix socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(home / "roost.sock"))
        connection.sendall(hiredis.pack_command(words))
        reader = hiredis.Reader()
        while (answer := reader.gets()) is False:
            reader.feed(connection.recv(1 << 16))
        return answer


def memory_mb(pid: int, what: str = "RssAnon") -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    found = re.search(rf"{what}:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) / 1024


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(60)


def measure(folder: Path, keys: int) -> dict[str, float]:
    """One size of store: build, start, look."""
    home = configure(folder / f"keys-{keys}")
    began = time.perf_counter()
    build(home / "data", keys)
    built_s = time.perf_counter() - began
    starts, memory, resident = [], [], []
    for _ in range(STARTS):
        process, seconds = start(home)
        if keys:
            last = f"{POLICY}:{keys - 1:09}"
            assert ask(home, "GET", last), f"{last} is not there"
        time.sleep(1)
        starts.append(seconds)
        memory.append(memory_mb(process.pid))
        resident.append(memory_mb(process.pid, "VmRSS"))
        stop(process)
    index = os.stat(home / "data" / "index" / "data.mdb").st_blocks * 512 / (1 << 20)
    shutil.rmtree(home)
    return {
        "keys": keys,
        "build_s": built_s,
        "ready_s": statistics.median(starts),
        "anonymous_mb": statistics.median(memory),
        "resident_mb": statistics.median(resident),
        "index_mb": index,
    }


def sessions(folder: Path, count: int) -> dict[str, float]:
    """What a session costs that was opened, had one turn and is idle since."""
    home = configure(folder / "sessions")
    process, _ = start(home)
    before = memory_mb(process.pid)
    began = time.perf_counter()
    with roost.connect(f"unix://{home}/roost.sock", mmap=False, deadline_ms=60_000) as client:
        for _ in range(count):
            session = client.open()
            session.commit([{"role": "user", "content": "hello " * 20}])
    opened_s = time.perf_counter() - began
    time.sleep(2)
    loaded = memory_mb(process.pid)
    ticks = _cpu_s(process.pid)
    time.sleep(5)
    idle_cpu = (_cpu_s(process.pid) - ticks) / 5
    stop(process)
    process, ready_s = start(home)
    time.sleep(2)
    found = {
        "sessions": count,
        "open_and_turn_ms": opened_s / count * 1e3,
        "kb_each": (loaded - before) * 1024 / count,
        "kb_each_after_restart": (memory_mb(process.pid) - before) * 1024 / count,
        "idle_cpu_share": idle_cpu,
        "ready_s": ready_s,
    }
    stop(process)
    return found


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, nargs="*", default=[0, 1_000_000, 10_000_000])
    parser.add_argument("--sessions", type=int, default=5_000)
    parser.add_argument("--folder", type=Path, help="where the stores are built; default: /tmp")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="roost-start-", dir=options.folder) as name:
        folder = Path(name)
        steps = [(measure, keys) for keys in options.keys]
        if options.sessions:
            steps.append((sessions, options.sessions))
        for step, count in steps:
            found.append(step(folder, count))
            print(
                ", ".join(f"{what} {value:,.3g}" for what, value in found[-1].items()), flush=True
            )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
