"""Durable writes: roostd, redis-server (appendfsync always) and etcd, in one run.

    python bench/writes.py [--seconds S] [--rounds N] [--keys N] [--json FILE]

All three write to the same disk and answer a write after it is synced. roostd and Redis are
loaded by redis-benchmark over their unix sockets, 1, 10 and 200 connections, one write at a time
each and 16 pipelined; etcd by a small generator over its JSON gateway (it has no other face that
needs no gRPC library), so its figures hold the gateway too. Keys are uniform over `--keys`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import csv
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
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from reads import TEXT, daemon

POLICY = "model_router_weights"
CLIENTS = (1, 10, 200)
PIPELINES = (1, 16)
Figures = dict[str, float]


@contextmanager
def redis_always(folder: Path) -> Iterator[Path | None]:
    """A redis-server that syncs before it answers."""
    if shutil.which("redis-server") is None:
        yield None
        return
    path = folder / "redis.sock"
    process = subprocess.Popen(
        [
            *("redis-server", "--port", "0", "--unixsocket", str(path), "--save", ""),
            *("--appendonly", "yes", "--appendfsync", "always", "--dir", str(folder)),
            *("--auto-aof-rewrite-percentage", "0"),
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        _until(path.exists, "redis-server")
        yield path
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def etcd(folder: Path) -> Iterator[int | None]:
    """A single etcd; its client port."""
    if shutil.which("etcd") is None:
        yield None
        return
    with socket.create_server(("127.0.0.1", 0)) as a, socket.create_server(("127.0.0.1", 0)) as b:
        port, peer = a.getsockname()[1], b.getsockname()[1]
    urls = {"client": f"http://127.0.0.1:{port}", "peer": f"http://127.0.0.1:{peer}"}
    with (folder / "etcd.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *("etcd", "--data-dir", str(folder / "etcd"), "--log-level", "error"),
                *("--listen-client-urls", urls["client"], "--advertise-client-urls"),
                *(urls["client"], "--listen-peer-urls", urls["peer"]),
                *("--initial-advertise-peer-urls", urls["peer"]),
                *("--initial-cluster", f"default={urls['peer']}"),
            ],
            stdout=log,
            stderr=log,
        )

    def healthy() -> bool:
        try:
            with urllib.request.urlopen(f"{urls['client']}/health", timeout=1) as answer:
                return b"true" in answer.read()
        except OSError:
            return False

    try:
        _until(healthy, "etcd")
        yield port
    finally:
        process.terminate()
        process.wait(10)


def _until(there: Any, name: str) -> None:
    until = time.monotonic() + 20
    while not there():
        if time.monotonic() > until:
            sys.exit(f"{name} did not start")
        time.sleep(0.05)


def by_redis_benchmark(path: Path, clients: int, pipeline: int, count: int, keys: int) -> Figures:
    """One run of redis-benchmark: writes per second, latency in ms."""
    command = [
        *("redis-benchmark", "-s", str(path), "-c", str(clients), "-P", str(pipeline)),
        *("-n", str(count), "-r", str(keys), "--csv", "--precision", "3"),
        *("SET", f"{POLICY}:__rand_int__", TEXT),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith('"')]
    row = next(iter(csv.DictReader(lines)))
    return {
        "per_s": float(row["rps"]),
        "p50_ms": float(row["p50_latency_ms"]),
        "p99_ms": float(row["p99_latency_ms"]),
        "max_ms": float(row["max_latency_ms"]),
    }


async def by_gateway(port: int, clients: int, seconds: float, keys: int) -> Figures:
    """Puts over etcd's JSON gateway by so many connections."""
    took: list[float] = []
    value = base64.b64encode(TEXT.encode()).decode()
    ends = time.perf_counter() + seconds

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        turn = number
        while (began := time.perf_counter()) < ends:
            turn = (turn * 7919 + 104729) % keys
            key = base64.b64encode(b"%s:%012d" % (POLICY.encode(), turn)).decode()
            body = b'{"key":"%s","value":"%s"}' % (key.encode(), value.encode())
            writer.write(
                b"POST /v3/kv/put HTTP/1.1\r\nHost: e\r\nContent-Length: %d\r\n\r\n" % len(body)
                + body
            )
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in head, head
            length = re.search(rb"(?i)content-length: (\d+)", head)
            assert length is not None, head
            await reader.readexactly(int(length[1]))
            took.append(time.perf_counter() - began)
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*map(client, range(clients)))
    elapsed = time.perf_counter() - began
    took.sort()
    return {
        "per_s": len(took) / elapsed,
        "p50_ms": took[len(took) // 2] * 1e3,
        "p99_ms": took[len(took) * 99 // 100] * 1e3,
        "max_ms": took[-1] * 1e3,
    }


def log_written(data: Path) -> int:
    """Bytes of the log that are in use."""
    total = 0
    for path in sorted((data / "log").iterdir()):
        total += len(path.read_bytes().rstrip(b"\0"))
    return total


def inside(http: str) -> list[tuple[float, float]]:
    """The daemon's own histogram of RESP replies: upper bound in s, count."""
    with urllib.request.urlopen(f"{http}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found = re.findall(r'roost_resp\w*_bucket\{[^}]*le="([^"]+)"[^}]*\} (\S+)', text)
    return [(float(bound), float(count)) for bound, count in found]


def quantile_ms(
    before: list[tuple[float, float]], after: list[tuple[float, float]], share: float
) -> float:
    """A quantile of what came between two histograms, interpolated within its bucket."""
    counts = [(bound, new - old) for (bound, new), (_, old) in zip(after, before, strict=True)]
    wanted = counts[-1][1] * share
    low, low_count = 0.0, 0.0
    for bound, count in counts:
        if count >= wanted:
            return (low + (bound - low) * (wanted - low_count) / (count - low_count or 1)) * 1e3
        low, low_count = bound, count
    return float("inf")


def run(options: argparse.Namespace, folder: Path) -> dict[str, list[Figures]]:
    figures: dict[str, list[Figures]] = {}
    with ExitStack() as stack:
        home = folder / "roost"
        _, data = stack.enter_context(daemon(home))
        http_port = re.search(r'^http = "(.*)"', (home / "roost.toml").read_text(), re.MULTILINE)
        assert http_port is not None
        http = f"http://{http_port[1]}"
        redis_path = stack.enter_context(redis_always(folder))
        port = stack.enter_context(etcd(folder))
        for _ in range(options.rounds):
            for clients in CLIENTS:
                for pipeline in PIPELINES:
                    rate = (5_000, 10_000, 25_000)[CLIENTS.index(clients)] * (1 + pipeline // 8)
                    count = int(rate * options.seconds)
                    before, size = inside(http), log_written(Path(data))
                    found = by_redis_benchmark(
                        home / "roost.sock", clients, pipeline, count, options.keys
                    )
                    found["inside_p99_ms"] = quantile_ms(before, inside(http), 0.99)
                    found["log_bytes"] = (log_written(Path(data)) - size) / count
                    figures.setdefault(_name("roost", clients, pipeline), []).append(found)
                    if redis_path is not None:
                        aof = _tree_bytes(folder / "appendonlydir")
                        found = by_redis_benchmark(
                            redis_path, clients, pipeline, count, options.keys
                        )
                        found["log_bytes"] = (_tree_bytes(folder / "appendonlydir") - aof) / count
                        figures.setdefault(_name("redis", clients, pipeline), []).append(found)
                if port is not None:
                    found = asyncio.run(by_gateway(port, clients, options.seconds, options.keys))
                    figures.setdefault(_name("etcd", clients, 1), []).append(found)
        time.sleep(1)
        print(f"index: {os.stat(Path(data) / 'index' / 'data.mdb').st_blocks * 512 >> 20} MiB")
    return figures


def _name(contender: str, clients: int, pipeline: int) -> str:
    return f"{contender}, {clients} clients, {pipeline} at a time"


def _tree_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def report(figures: dict[str, list[Figures]]) -> dict[str, Figures]:
    """Medians over the rounds, as a table."""
    medians = {
        name: {what: statistics.median(run[what] for run in runs) for what in runs[0]}
        for name, runs in figures.items()
    }
    columns = ("per_s", "p50_ms", "p99_ms", "max_ms", "inside_p99_ms", "log_bytes")
    print("| | writes/s | p50 ms | p99 ms | max ms | p99 inside ms | log bytes a write |")
    print("|---|---|---|---|---|---|---|")
    for name in sorted(medians, key=lambda name: (re.findall(r"\d+", name)[::-1], name)):
        found = medians[name]
        cells = [_cell(column, found) for column in columns]
        print(f"| {name} | " + " | ".join(cells) + " |")
    return medians


def _cell(column: str, found: Figures) -> str:
    if column not in found:
        return ""
    return f"{found[column]:.2f}" if column.endswith("_ms") else f"{found[column]:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="about, for each figure")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if shutil.which("redis-benchmark") is None:
        sys.exit("redis-benchmark is needed: apt-get install redis-tools")
    with tempfile.TemporaryDirectory(prefix="roost-writes-") as folder:
        medians = report(run(options, Path(folder)))
    if options.json:
        options.json.write_text(json.dumps(medians, indent=1))


if __name__ == "__main__":
    main()
