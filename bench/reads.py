"""How long a read takes: shared memory, the socket, redis-py, bare py-lmdb, in one run.

    python bench/reads.py [--keys N] [--reads N] [--rounds N] [--json FILE]

Starts a daemon of its own in a temporary directory, writes the keys, waits until the index
holds them, then lets each contender read the same keys in the same random order, each in a
process of its own (LMDB is opened once a process), round after round, so that a noisy moment
hits all alike. Prints microseconds per read and how many times slower than shared memory.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import hiredis
import lmdb
import redis

import roost
from roost_crdt.rows import layout

POLICY = "model_router_weights"
TEXT = "https://gpu-17.eu.example:8000/v1;weight=0.25;zone=b;warm"
WARM_UP = 2_000

Read = Callable[[str], Any]


def key_of(number: int, kind: str = "text") -> str:
    """The name of a benchmark key."""
    return f"{POLICY}:bench-{kind}-{number:06}"


def value_of(number: int, kind: str) -> Any:
    if kind == "text":
        return f"{TEXT};{number}"
    return {"weight": number / 1000, "warm": True, "models": ["llama-70b", "qwen-32b"]}


# --- contenders ---------------------------------------------------------------------------------


@contextmanager
def shared_memory(url: str, data: str) -> Iterator[Read]:
    """roost.get from the index: policy, applied_seq, checksum and decoding included."""
    with roost.connect(url) as client:
        assert client.get(key_of(0)).source == "mmap", "the index cannot be read here"
        yield client.get


@contextmanager
def over_socket(url: str, data: str) -> Iterator[Read]:
    """roost.get by the daemon's unix socket."""
    with roost.connect(url, mmap=False) as client:
        yield client.get


@contextmanager
def redis_client(url: str, data: str) -> Iterator[Read]:
    """GET by redis-py, JSON not parsed."""
    client = redis.Redis(unix_socket_path=url.removeprefix("unix://"))
    yield client.get
    client.close()


@contextmanager
def bare_socket(url: str, data: str) -> Iterator[Read]:
    """GET by a socket and hiredis alone: what no client on this socket can beat."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(url.removeprefix("unix://"))
    reader = hiredis.Reader()

    def read(key: str) -> Any:
        connection.sendall(hiredis.pack_command(("GET", key)))
        while (reply := reader.gets()) is False:
            reader.feed(connection.recv(65536))
        return reply

    yield read
    connection.close()


@contextmanager
def bare_lmdb(url: str, data: str) -> Iterator[Read]:
    """One LMDB transaction and one get, nothing checked, nothing decoded."""
    environment = lmdb.open(
        os.path.join(data, "index"), readonly=True, map_size=0, max_dbs=16, max_readers=1024
    )
    rows = environment.open_db(b"rows", create=False)

    def read(key: str) -> Any:
        with environment.begin(rows) as txn:
            return txn.get(key.encode() + b"\0" + layout.VALUE)

    yield read
    environment.close()


CHANGING = "roost, same, index changing"
"""While another client writes (to other keys): each commit, 20 a second, ends what is kept."""

CONTENDERS: dict[str, Any] = {
    "roost, shared memory": shared_memory,
    "roost, same, JSON objects": shared_memory,
    CHANGING: shared_memory,
    "bare py-lmdb": bare_lmdb,
    "roost, unix socket": over_socket,
    "redis-py on roostd": redis_client,
    "bare socket on roostd": bare_socket,
    "redis-py on redis-server": redis_client,
}


# --- measuring ----------------------------------------------------------------------------------


def measure(read: Read, keys: list[str]) -> list[int]:
    """Nanoseconds of each read, less what reading the clock takes."""
    clock = time.perf_counter_ns
    empty = sorted(-(clock() - clock()) for _ in range(10_000))[5_000]
    for key in keys[:WARM_UP]:
        read(key)
    taken = []
    for key in keys:
        started = clock()
        read(key)
        taken.append(clock() - started - empty)
    return taken


def child(name: str, url: str, data: str, count: int, reads: int, seed: int) -> None:
    """Measure one contender and print its figures; runs in a process of its own."""
    chosen = random.Random(seed)
    kind = "json" if "JSON" in name else "text"
    keys = [key_of(chosen.randrange(count), kind) for _ in range(reads)]
    with CONTENDERS[name](url, data) as read:
        found = [read(key_of(number, kind)) for number in range(count)]
        assert all(value is not None for value in found), f"{name} misses keys"
        taken = sorted(measure(read, keys))
    figures = {
        "p50_us": taken[len(taken) // 2] / 1000,
        "p99_us": taken[len(taken) * 99 // 100] / 1000,
        "mean_us": sum(taken) / len(taken) / 1000,
    }
    print(json.dumps(figures))


@contextmanager
def written(url: str) -> Iterator[None]:
    """Meanwhile a key is written, as often as the index is committed."""
    ended = threading.Event()

    def write() -> None:
        client = redis.Redis(unix_socket_path=url.removeprefix("unix://"))
        while not ended.wait(0.025):
            client.set(f"{POLICY}:written", time.time_ns())
        client.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        ended.set()
        writer.join()


def run_child(name: str, url: str, data: str, options: argparse.Namespace, seed: int) -> Any:
    slow = 10 if name.split()[-1] in ("socket", "roostd", "redis-server") else 1
    command = [sys.executable, __file__, "--child", name, url, data]
    command += [str(options.keys), str(options.reads // slow), str(seed)]
    with written(url) if name == CHANGING else nullcontext():
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


# --- servers ------------------------------------------------------------------------------------


@contextmanager
def daemon(folder: Path) -> Iterator[tuple[str, str]]:
    """A roostd of our own; its unix URL and data directory."""
    init = f"-m roostd.cli.main init {folder} --node bench-1 --region here"
    subprocess.run([sys.executable, *init.split()], check=True, capture_output=True)
    config = folder / "roost.toml"
    text = config.read_text()
    for port in (7667, 7668, 7669):
        with socket.create_server(("127.0.0.1", 0)) as free:
            text = text.replace(f":{port}", f":{free.getsockname()[1]}")
    config.write_text(text)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "roostd.cli.roostd", "--config", str(config)],
            stdout=log,
            stderr=log,
        )
    url = f"unix://{folder / 'roost.sock'}"
    try:
        yield url, connected(url, process, folder / "log")
    finally:
        process.terminate()
        process.wait(30)


def connected(url: str, process: subprocess.Popen[bytes], log: Path) -> str:
    """The data directory of a daemon that has just been started."""
    until = time.monotonic() + 20
    while True:
        try:
            with roost.connect(url, mmap=False) as client:
                return client.connect().data
        except roost.Unavailable:
            if process.poll() is not None or time.monotonic() > until:
                sys.exit(f"the daemon did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)


@contextmanager
def redis_server(folder: Path) -> Iterator[str | None]:
    """A redis-server of our own, where there is one to run."""
    binary = shutil.which("redis-server")
    if binary is None:
        yield None
        return
    path = folder / "redis.sock"
    process = subprocess.Popen(
        [binary, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 10
        while not path.exists():
            assert time.monotonic() < until, "redis-server did not start"
            time.sleep(0.02)
        yield f"unix://{path}"
    finally:
        process.terminate()
        process.wait(10)


def fill(url: str, count: int, *, roostd: bool) -> None:
    """Write the strings by SET, which both servers take, and the JSON ones where they are read."""
    client = redis.Redis(unix_socket_path=url.removeprefix("unix://"))
    for start in range(0, count, 500):
        pipeline = client.pipeline(transaction=False)
        for number in range(start, min(count, start + 500)):
            pipeline.set(key_of(number), value_of(number, "text"))
            if roostd:
                text = json.dumps(value_of(number, "json"))
                pipeline.execute_command("ROOST.SET", key_of(number, "json"), text)
        pipeline.execute()
    client.close()


def wait_until_applied(url: str) -> None:
    """Until the index holds all that was written."""
    until = time.monotonic() + 60
    with roost.connect(url, mmap=False) as client:
        while True:
            hello = client.run(roost.requests.hello())
            if hello.applied_seq >= hello.seq:
                return
            assert time.monotonic() < until, "the index does not catch up"
            time.sleep(0.05)


# --- report -------------------------------------------------------------------------------------


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def report(figures: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> None:
    """Medians over the rounds, and how many times slower than the first."""
    print(
        f"{options.keys} registers of 60 bytes, uniform random reads, "
        f"{options.rounds} rounds, {os.cpu_count()} cores, Python {sys.version.split()[0]}"
    )
    print(f"{'':26} {'p50 us':>9} {'p99 us':>9} {'mean us':>9} {'x p50':>7} {'x p99':>7}")
    base: dict[str, float] = {}
    for name, rounds in figures.items():
        middle = {unit: median([one[unit] for one in rounds]) for unit in rounds[0]}
        base = base or middle
        ratios = [middle[unit] / base[unit] for unit in ("p50_us", "p99_us")]
        print(
            f"{name:26} {middle['p50_us']:9.2f} {middle['p99_us']:9.2f} "
            f"{middle['mean_us']:9.2f} {ratios[0]:7.1f} {ratios[1]:7.1f}"
        )


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "--child":
        name, url, data, count, reads, seed = sys.argv[2:]
        child(name, url, data, int(count), int(reads), int(seed))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--reads", type=int, default=200_000, help="a tenth of it over sockets")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    options = parser.parse_args()
    figures: dict[str, list[dict[str, float]]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="roost-bench-") as folder,
        daemon(Path(folder) / "node") as (url, data),
        redis_server(Path(folder)) as redis_url,
    ):
        fill(url, options.keys, roostd=True)
        wait_until_applied(url)
        if redis_url is not None:
            fill(redis_url, options.keys, roostd=False)
        for seed in range(options.rounds):
            for name in CONTENDERS:
                target = redis_url if name.endswith("redis-server") else url
                if target is not None:
                    one = run_child(name, target, data, options, seed)
                    figures.setdefault(name, []).append(one)
    report(figures, options)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
