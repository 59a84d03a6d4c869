"""The main job of roost on one machine: three regions, one conversation, a lost region."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from rich.console import Console

from roost_crdt.errors import BadRequest, RoostError
from roostd.demo.regions import NAMES, Regions
from roostd.demo.report import Report
from roostd.demo.story import Story
from roostd.demo.transcript import Turn, load

INTERRUPTED = 130
AGAIN_S = 0.2
WIDTH = 110
"""Columns where the output goes to no terminal."""


def run(transcript: Path | None, regions: int) -> int:
    """Play the demo; 0 only if each thing that it claims was observed.

    Raises BadRequest for a transcript or a number of regions that cannot be used.
    """
    if not 3 <= regions <= len(NAMES):
        raise BadRequest(f"--regions takes 3 to {len(NAMES)}")
    turns = load(transcript)
    try:
        return asyncio.run(_play(turns, NAMES[:regions]))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("interrupted; nothing is left behind")
        return INTERRUPTED


async def _play(turns: list[Turn], names: tuple[str, ...]) -> int:
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    closing = False

    def interrupt() -> None:
        """Until it takes: some library code swallows a cancellation that comes with a result."""
        if not closing:
            task.cancel()
            loop.call_later(AGAIN_S, interrupt)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupt)
    console = Console()
    report = Report(console if console.is_terminal else Console(width=WIDTH))
    regions = Regions(names)
    try:
        report.progress("starting the regions")
        await regions.start()
        await Story(regions, turns, report).play()
        observed = report.final()
    except (RoostError, RuntimeError, OSError) as error:
        report.end_progress()
        report.console.print(f"[bold red]the demo stopped:[/] {error}", markup=True)
        report.final()
        observed = False
    finally:
        closing = True  # a second Ctrl-C must not leave files
        report.end_progress()
        await regions.close()
    return 0 if observed else 1
