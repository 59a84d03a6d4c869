"""`roost quota`: limits, what is left, and grants that a lost node will not return."""

from __future__ import annotations

from typing import Any

import click

from roostd.cli.daemon import Daemon, daemon_command, json_text, moment, print_table

__all__ = ["quota"]


@click.group()
def quota() -> None:
    """Quotas: show, set, forfeit."""


@quota.command()
@click.argument("key")
@daemon_command
def show(daemon: Daemon, key: str) -> None:
    """Show the limit of KEY, what remains and what nodes hold as grants."""
    _show(daemon, key, daemon.fields("ROOST.QUOTA", key))


@quota.command("set")
@click.argument("key")
@click.argument("limit", type=click.IntRange(0, (1 << 63) - 1))
@daemon_command
def set_(daemon: Daemon, key: str, limit: int) -> None:
    """Set the LIMIT of KEY for each period."""
    _show(daemon, key, daemon.fields("ROOST.QUOTA", "SET", key, limit, effect=True))


@quota.command()
@click.argument("key")
@click.argument("node")
@daemon_command
def forfeit(daemon: Daemon, key: str, node: str) -> None:
    """Give up what the lost NODE holds of KEY: it counts as spent until the period ends.

    Only for a node that will not come back: if it does, it must not spend that grant.
    """
    _show(daemon, key, daemon.fields("ROOST.QUOTA", "FORFEIT", key, node, effect=True))


def _show(daemon: Daemon, key: str, facts: dict[str, Any]) -> None:
    rows = [(name, _cell(name, value)) for name, value in facts.items()]
    daemon.show({"key": key, **facts}, lambda out: print_table(out, ("", ""), rows))


def _cell(name: str, value: Any) -> Any:
    if name == "period_ends" and isinstance(value, int):
        return moment(value)
    return json_text(value) if isinstance(value, (dict, list)) else value
