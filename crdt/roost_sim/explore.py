"""The command line: replay one seed with its trace, run many and report, or count copies."""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import count, islice

from . import copies
from .run import Run, Verdict

CHUNK = 4


def run_seed(seed: int, *, keep_trace: bool = False, detailed: bool = False) -> Verdict:
    """One run; what it raises is a finding as well."""
    run = Run(seed, keep_trace=keep_trace)
    run.trace.detailed = detailed
    try:
        return run.run()
    except Exception as error:  # noqa: BLE001 - whatever it is, the seed reproduces it
        import traceback

        loop = run.world.loop
        text = traceback.format_exc()
        return Verdict(
            seed,
            [*run.problems, f"{type(error).__name__}: {error}\n{text}"],
            loop.now_ms,
            0.0,
            loop.events,
            run.trace.fingerprint(),
            dict(run.trace.reached),
            run.trace.lines,
        )


def replay(seed: int, *, detailed: bool) -> int:
    """Print the trace and the verdict of one run."""
    verdict = run_seed(seed, keep_trace=True, detailed=detailed)
    print("\n".join(verdict.lines))
    print()
    for problem in verdict.problems:
        print(f"FOUND  {problem}")
    print(
        f"seed {seed}: {'FAILED' if verdict.problems else 'ok'}, {verdict.virtual_ms / 1000:.1f} s "
        f"simulated, {verdict.events} events, fingerprint {verdict.fingerprint}"
    )
    return 1 if verdict.problems else 0


class Tally:
    """Sums over many runs."""

    def __init__(self) -> None:
        self.seeds = 0
        self.virtual_ms = 0.0
        self.slowest_heal_ms = 0.0
        self.reached: Counter[str] = Counter()
        self.failed: list[Verdict] = []
        self.began_s = time.monotonic()

    def add(self, verdict: Verdict) -> None:
        self.seeds += 1
        self.virtual_ms += verdict.virtual_ms
        self.slowest_heal_ms = max(self.slowest_heal_ms, verdict.heal_ms)
        self.reached.update(verdict.reached)
        if verdict.problems:
            self.failed.append(verdict)
            print(f"seed {verdict.seed} FAILED: {verdict.problems[0]}", flush=True)
            print(f"    replay: python -m roost_sim {verdict.seed}", flush=True)

    def report(self) -> str:
        took_s = time.monotonic() - self.began_s
        hours = self.virtual_ms / 3_600_000
        groups: dict[str, list[str]] = {}
        for name, times in sorted(self.reached.items()):
            kind, _, what = name.partition(":")
            shown = f"{what} {times / hours:.0f}/h" if kind == "fault" else f"{what} {times}"
            groups.setdefault(kind, []).append(shown)
        reached = "; ".join(f"{kind}s: {', '.join(names)}" for kind, names in groups.items())
        return (
            f"{self.seeds} seeds, {self.seeds - len(self.failed)} clean, {hours:.2f} simulated "
            f"hours in {took_s:.1f} s ({self.virtual_ms / 1000 / took_s:.0f} s/s), slowest heal "
            f"{self.slowest_heal_ms / 1000:.1f} s; {reached}"
        )


def explore(seeds: Iterator[int], minutes: float | None, jobs: int) -> int:
    """Run seeds until they end or the time does; 1 if one failed."""
    tally = Tally()
    ends_s = None if minutes is None else tally.began_s + 60 * minutes
    with ProcessPoolExecutor(jobs) as pool:
        while chunk := list(islice(seeds, CHUNK * jobs)):
            for verdict in pool.map(run_seed, chunk, chunksize=1):
                tally.add(verdict)
            if ends_s is not None and time.monotonic() >= ends_s:
                break
    print(tally.report())
    return 1 if tally.failed else 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m roost_sim", description=__doc__)
    parser.add_argument("seed", nargs="?", type=lambda text: int(text, 0), help="replay this seed")
    parser.add_argument("--seeds", type=int, help="explore so many seeds")
    parser.add_argument("--minutes", type=float, help="explore for so long")
    parser.add_argument("--start", type=int, default=1, help="the first seed (default 1)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--detailed", action="store_true", help="trace session frames too")
    parser.add_argument("--copies", type=int, metavar="SEEDS", help="count copies by topology")
    chosen = parser.parse_args(arguments)
    if chosen.copies is not None:
        print(copies.report(chosen.copies))
        return 0
    if chosen.seed is not None:
        return replay(chosen.seed, detailed=chosen.detailed)
    if chosen.seeds is None and chosen.minutes is None:
        parser.error("give a seed, --seeds or --minutes")
    seeds = (
        count(chosen.start)
        if chosen.seeds is None
        else iter(range(chosen.start, chosen.start + chosen.seeds))
    )
    return explore(iter(seeds), chosen.minutes, max(1, chosen.jobs))
