"""Copies of a record that a node receives, by topology, while nothing goes wrong.

Each of five nodes writes; after a while in which duplicates make links lazy, what arrives is
counted: records taken, and records that were held already.
"""

from __future__ import annotations

from random import Random

from .run import Plan, Run

TOPOLOGIES = ("line", "star", "ring", "mesh", "random")
NODES = 5
WARM_MS = 10_000.0
MEASURED_MS = 30_000.0


def steady_run(topology: str, seed: int, duration_ms: float) -> Run:
    """A cluster without faults or sessions, its clients at work."""
    run = Run(seed)
    run.plan = Plan(
        topology=topology,
        nodes=NODES,
        duration_ms=duration_ms,
        fault_every_ms=0.0,
        clients=2 * NODES,
        talkers=0,
        pause_ms=60.0,
        kinds={},
    )
    run.random = run.world.random = Random(seed)
    run.begin()
    return run


def copies(topology: str, seed: int) -> tuple[int, int]:
    """Records taken by all nodes in the steady state, and copies of them that arrived."""
    run = steady_run(topology, seed, WARM_MS + MEASURED_MS)
    loop = run.world.loop
    loop.run_until(WARM_MS)
    taken_before, arrived_before = _arrived(run)
    loop.run_until(WARM_MS + MEASURED_MS)
    taken, arrived = _arrived(run)
    return taken - taken_before, arrived - arrived_before


def _arrived(run: Run) -> tuple[int, int]:
    peers = [peer for node in run.nodes.values() for peer in node.replica.peers.values()]
    taken = sum(peer.received for peer in peers)
    return taken, taken + sum(peer.duplicates for peer in peers)


def report(seeds: int) -> str:
    """One line a topology: mean and worst copies over so many seeds."""
    lines = [f"copies of a record per node, {NODES} nodes, {MEASURED_MS / 1000:.0f} s each:"]
    for topology in TOPOLOGIES:
        found = [copies(topology, seed) for seed in range(1, seeds + 1)]
        taken, arrived = (sum(column) for column in zip(*found, strict=True))
        worst = max(a / t for t, a in found)
        lines.append(f"{topology:<7} {arrived / taken:.3f} (worst {worst:.3f}) of {taken} records")
    return "\n".join(lines)
