"""Real nodes on loopback in one process, with short intervals, for tests of membership."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from api_node import POLICIES
from ports import free_port

from roost_crdt.limits import Limits
from roostd.config import load
from roostd.keyring import generate
from roostd.node import Node

FAST = {"report_ms": 150, "gc_pause_ms": 100, "gc_grace_ms": 1, "clock_offset_max_ms": 500}


async def until(condition: Callable[[], object], within_s: float = 60.0) -> None:
    """AssertionError if the condition does not come true in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.02)


def make(place: Path, names: Sequence[str], *, line: bool = False) -> dict[str, Path]:
    """Configuration files of nodes that all know each other, or stand in a line."""
    ports = {name: free_port() for name in names}
    files = {}
    for name in names:
        home = place / name
        (home / "keys").mkdir(parents=True)
        generate(home / "keys", f"{name}-k1")
        (home / "policies.toml").write_text(POLICIES)
        neighbours = "".join(
            f'[[neighbour]]\nid = "{other}"\nurl = "ws://127.0.0.1:{ports[other]}"\n'
            for other in names
            if other != name and (not line or abs(names.index(other) - names.index(name)) == 1)
        )
        files[name] = home / "roost.toml"
        files[name].write_text(
            f'[node]\nid = "{name}"\nregion = "{name}"\ndata = "{home}/data"\ncluster = "test"\n'
            f'[listen]\nunix = "{home}/r.sock"\ngossip = "127.0.0.1:{ports[name]}"\n'
            f'[gossip]\ninsecure = true\n[token]\nkeys = "{home}/keys"\n'
            f'[consensus]\nbackend = "embedded"\ndeadline_ms = 60000\n'
            f'[access]\npolicies = "{home}/policies.toml"\n'
            f'[store]\nsize_max = "64MiB"\nlog_retention = "32MiB"\n{neighbours}'
        )
    return files


async def start(file: Path, **limits: int) -> Node:
    node = Node(load(file, {}))
    settings: Limits = replace(node.limits, **{**FAST, **limits})
    node.limits = settings
    await node.start()
    return node


@asynccontextmanager
async def cluster(files: dict[str, Path], **limits: int) -> AsyncIterator[dict[str, Node]]:
    """All of them, started; those that a test has stopped and taken out are not stopped again."""
    nodes: dict[str, Node] = {}
    try:
        for name, file in files.items():
            nodes[name] = await start(file, **limits)
        yield nodes
    finally:
        for node in nodes.values():
            await node.stop()


def linked(*nodes: Node) -> bool:
    return all(len(node.gossip.replica.peers) == len(nodes) - 1 for node in nodes)


def same(*nodes: Node) -> bool:
    """Equal vectors and digests, applied."""
    states = [(node.store.vv, node.store.digest()[1]) for node in nodes]
    applied = all(node.store.applied_seq == node.store.seq for node in nodes)
    return applied and all(state == states[0] for state in states)


def rows_of(node: Node, key: bytes) -> int:
    return len(node.store.key_rows(key).rows)
