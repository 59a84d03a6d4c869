"""Processor time per RESP command inside a daemon, by thread: `python bench/cost.py`.

    python bench/cost.py [--commands N] [--clients 1 10 200] [--keys N] [--json FILE]

A node and its RESP connections in this process, with transports that drop what they are given:
parsing, policy, rows, log (with its fdatasync) and index as in a daemon, no sockets. In each
turn every connection gets one command, then the group is flushed, as the event loop does it.

Times are of the thread's processor time, the best mean over slices of at least a millisecond, so
that what else the machine does weighs little; `relative` is the median, divided by what a fixed
piece of Python takes at the same moment (15 us where the first figures were taken). `apply` is
what the thread costs that applies the log to the index: it shares the interpreter, so writes cost
the sum. `inside` is the time from a command's bytes to its reply, as processor time: without the
wait for the disk, and for whatever else runs on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from reads import POLICY, TEXT

from roostd.api.metrics import FaceMetrics
from roostd.api.operations import Operations
from roostd.api.resp.connection import Connection
from roostd.api.resp.server import RespServer
from roostd.cli.roostd import tune_collector
from roostd.config import Config, load
from roostd.node import Node

SLICE_COMMANDS = 400


class Dropping(asyncio.Transport):
    """A transport that counts what it is given."""

    written_ns = 0

    def write(self, data: Any) -> None:
        self.written_ns = time.thread_time_ns()

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        pass


def request(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)


COMMANDS: dict[str, Callable[[int], bytes]] = {
    "SET": lambda n: request(b"SET", b"%s:%09d" % (POLICY.encode(), n), TEXT.encode()),
    "GET": lambda n: request(b"GET", b"%s:%09d" % (POLICY.encode(), n)),
    "INCR": lambda n: request(b"INCR", b"hits:%09d" % n),
    "PING": lambda n: request(b"PING"),
}


REFERENCE_NS = 15_000
_NAMES = [b"name-%d" % number for number in range(100)]


class Reference:
    """The fixed piece of Python: calls, attributes, a dictionary, an encoder."""

    def __init__(self) -> None:
        self.rows: dict[bytes, tuple[bytes, int, int]] = {}
        self.encode = msgspec.msgpack.Encoder().encode

    def put(self, name: bytes) -> int:
        return self.keep(name, (name, 1, 2))

    def keep(self, name: bytes, row: tuple[bytes, int, int]) -> int:
        self.rows[name] = row
        return len(self.encode(row))

    def took_ns(self) -> int:
        began = time.thread_time_ns()
        for name in _NAMES:
            self.put(name)
        return time.thread_time_ns() - began


def thread_ns(number: int) -> int:
    """Processor time of one thread of this process."""
    return int(Path(f"/proc/self/task/{number}/schedstat").read_text().split()[0])


async def measure(server: RespServer, name: str, clients: int, groups: int, keys: int) -> Any:
    """Microseconds per command of the node's thread and of the applying one."""
    node, make = server.node, COMMANDS[name]
    connections = [Connection(server) for _ in range(clients)]
    transports = [Dropping() for _ in range(clients)]
    for connection, transport in zip(connections, transports, strict=True):
        connection.connection_made(transport)
    reference = Reference()
    chance = random.Random(7)
    turns = [[make(chance.randrange(keys)) for _ in connections] for _ in range(groups)]
    applying = next(t for t in threading.enumerate() if t.name == "roost-apply").native_id
    assert applying is not None
    applied_ns, slices, relative, inside = -thread_ns(applying), [], [], []
    spent_ns = commands = 0
    for turn in turns:
        came = []
        began = time.thread_time_ns()
        for connection, data in zip(connections, turn, strict=True):
            came.append(time.thread_time_ns())
            connection.data_received(data)
        node.groups.flush()
        spent_ns += time.thread_time_ns() - began
        inside += [t.written_ns - at for t, at in zip(transports, came, strict=True)]
        commands += clients
        if commands >= SLICE_COMMANDS:
            slices.append(spent_ns / commands)
            relative.append(spent_ns / commands / reference.took_ns() * REFERENCE_NS)
            spent_ns = commands = 0
        await asyncio.sleep(0)
    while node.store.applied_seq < node.store.seq:  # noqa: ASYNC110  the store has no event
        await asyncio.sleep(0.01)
    applied_ns += thread_ns(applying)
    for connection in connections:
        connection.connection_lost(None)
    slices.sort()
    inside.sort()
    return {
        "best_us": slices[len(slices) // 20] / 1e3,
        "relative_us": statistics.median(relative) / 1e3,
        "apply_us": applied_ns / (groups * clients) / 1e3,
        "inside_p50_ms": inside[len(inside) // 2] / 1e6,
        "inside_p99_ms": inside[len(inside) * 99 // 100] / 1e6,
    }


def configured(folder: Path) -> Config:
    """A node of its own, with a policy of counters."""
    init = f"-m roostd.cli.main init {folder} --node bench-1 --region here"
    subprocess.run([sys.executable, *init.split()], check=True, capture_output=True)
    policies = folder / "policies.toml"
    policies.write_text(
        policies.read_text() + '\n[hits]\nreaders = "cross-session"\n'
        'stale_read_cost = "annoying"\ntype = "counter"\n'
    )
    config = folder / "roost.toml"
    text = config.read_text()
    for port in (7667, 7668, 7669):
        text = text.replace(f":{port}", ":0")
    config.write_text(text)
    return load(config, {})


async def run(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    node = Node(config)
    await node.start()
    server = RespServer(node, Operations(node), FaceMetrics())
    tune_collector()
    found: dict[str, Any] = {}
    print(f"{'':22} {'best us':>8} {'relative':>9} {'apply us':>9}  inside p50, p99 ms")
    for clients in options.clients:
        for name in COMMANDS:
            groups = max(200, options.commands // clients)
            one = await measure(server, name, clients, groups, options.keys)
            found[f"{name}, {clients} clients"] = one
            cells = f"{one['best_us']:8.1f} {one['relative_us']:9.1f} {one['apply_us']:9.1f}"
            inside = f"{one['inside_p50_ms']:8.2f} {one['inside_p99_ms']:8.2f}"
            print(f"{name + f', {clients} clients':22} {cells} {inside}")
    await node.stop()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--commands", type=int, default=40_000, help="of each kind")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 10, 200])
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="roost-cost-") as folder:
        found = asyncio.run(run(configured(Path(folder) / "node"), options))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
