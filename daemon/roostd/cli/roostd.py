"""`roostd --config FILE`: the daemon's process.

Exit status: 0 stopped as asked, 1 it failed, 2 the configuration cannot be used.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

import click
import uvloop

from roost_crdt.errors import ConfigError, CorruptData, RoostError
from roostd.api import serve
from roostd.cli import logs
from roostd.cli.notify import Notifier
from roostd.config import Config, load
from roostd.node import Node
from roostd.store import StoreFailed, StoreLocked, store

__all__ = ["main"]

DEFAULT_CONFIG: Final = Path("/etc/roost/roost.toml")
DRAIN_S: Final = 8.0
"""Draining may take so long at a stop; what is left then is taken over by the standbys."""

COLLECT_THRESHOLDS: Final = (2_000, 10, 1_000)
"""Python's own are (700, 10, 10); measured by bench/gc_pauses.py, see docs/DECISIONS.md."""

log = logging.getLogger("roostd")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="ROOST_CONFIG",
    help=f"roost.toml; default {DEFAULT_CONFIG}. `roost init DIR` writes a complete one.",
)
@click.option(
    "--log",
    "log_form",
    type=click.Choice(["auto", "json", "text"]),
    default="auto",
    envvar="ROOST_LOG",
    help="Form of the log on stderr; auto is text on a terminal, else JSON.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    envvar="ROOST_LOG_LEVEL",
)
@click.option("--check", is_flag=True, help="Check the configuration and end.")
@click.version_option(
    version("roost") + (" (compiled)" if store.__file__.endswith(".so") else ""),
    prog_name="roostd",
)
def main(config_file: Path | None, log_form: str, log_level: str, check: bool) -> None:
    """The daemon: keeps the state next to an LLM server.

    SIGTERM and SIGINT drain and stop, SIGHUP reloads policies, keys and credentials. Every
    value of the configuration can be given as an environment variable ROOST_<SECTION>_<KEY>.
    """
    if config_file is None and "ROOST_NODE_ID" not in os.environ:
        config_file = DEFAULT_CONFIG
    try:
        config = load(config_file, os.environ)
    except ConfigError as error:
        click.echo(f"roostd: {error}", err=True)
        sys.exit(2)
    if check:
        for warning in config.warnings:
            click.echo(f"roostd: warning: {warning}", err=True)
        click.echo(f"{config_file or 'the environment'}: node {config.node.id}, no faults")
        return
    logs.set_up(log_form, log_level)
    for warning in config.warnings:
        log.warning("%s", warning)
    _raise_file_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(_Process(config).run()))


class _Process:
    """One run of the daemon, from its start to its exit status."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.notifier = Notifier(os.environ)
        self.asked_to_stop = asyncio.Event()
        self.asked_to_hurry = asyncio.Event()
        self.reloads: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """The exit status."""
        try:
            return await self._serve()
        except ConfigError as error:
            log.error("%s", error)  # noqa: TRY400  the text says it all
            return 2
        except (RoostError, CorruptData, StoreFailed, StoreLocked, OSError) as error:
            log.error("cannot go on: %s", error)  # noqa: TRY400
            return 1

    async def _serve(self) -> int:
        node = Node(self.config)
        self._catch_signals(node)
        async with contextlib.AsyncExitStack() as stack:
            await node.start()
            stack.push_async_callback(node.stop)
            faces = serve(node)
            await faces.start()
            stack.push_async_callback(faces.stop)
            watchdog = asyncio.create_task(self.notifier.feed_watchdog())
            stack.callback(watchdog.cancel)
            tune_collector()
            self.notifier.ready(f"node {self.config.node.id} serves")
            log.info(
                "serves", extra={"node": self.config.node.id, "region": self.config.node.region}
            )
            status = await self._until_stopped(node)
            self.notifier.stopping("stopping")
        log.info("stopped", extra={"node": self.config.node.id})
        return status

    async def _until_stopped(self, node: Node) -> int:
        ended = asyncio.create_task(node.run_until_stopped())
        asked = asyncio.create_task(self.asked_to_stop.wait())
        try:
            await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                await ended  # raises what ended it
                return 0
            await self._drain(node)
            return 0
        finally:
            ended.cancel()
            asked.cancel()

    async def _drain(self, node: Node) -> None:
        self.notifier.stopping("handing sessions over")
        draining = asyncio.ensure_future(node.drain())
        hurry = asyncio.create_task(self.asked_to_hurry.wait())
        done, _ = await asyncio.wait(
            {draining, hurry}, timeout=DRAIN_S, return_when=asyncio.FIRST_COMPLETED
        )
        hurry.cancel()
        if draining not in done:
            draining.cancel()
            log.warning("stops without having handed over every session")
            return
        try:
            remaining = await draining
        except RoostError as error:
            log.warning("sessions stay behind: %s", error)
            return
        if remaining:
            log.warning("%d sessions stay behind; their standbys take over", remaining)

    def _catch_signals(self, node: Node) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload, node)

    def _stop(self) -> None:
        if self.asked_to_stop.is_set():
            self.asked_to_hurry.set()
        self.asked_to_stop.set()

    def _reload(self, node: Node) -> None:
        if not node.ready()[0]:
            return  # it reads everything as it starts
        task = asyncio.create_task(self._reload_node(node))
        self.reloads.add(task)
        task.add_done_callback(self.reloads.discard)

    async def _reload_node(self, node: Node) -> None:
        self.notifier.reloading()
        try:
            await node.reload()
        except (ConfigError, RoostError) as error:
            log.error("reload refused, the old settings stay: %s", error)  # noqa: TRY400
            self.notifier.ready(f"reload refused: {error}")
        else:
            log.info("reloaded policies, keys and credentials")
            self.notifier.ready(f"node {self.config.node.id} serves")


def tune_collector() -> None:
    """Keep Python's cyclic collector from stopping the loop; call once all is set up.

    What a start made lives as long as the process and is not looked at again. Cached rows are many
    and form no cycles: full collections, which walk all of them, come some 300 times more rarely.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_THRESHOLDS)


def _raise_file_limit() -> None:
    """Let the process open as many files as the system allows it to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
