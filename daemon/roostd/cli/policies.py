"""`roost policy`: the table, why a key has its consistency, and a linter of policy files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from roost_crdt.errors import ConfigError
from roost_crdt.policy import CONSISTENCIES, PolicyTable
from roostd.cli.daemon import Daemon, console, daemon_command, json_text, print_table, readable
from roostd.configfiles import read_text

__all__ = ["policy"]

COLUMNS = ("policy", "consistency", "type", "readers", "stale read is", "more")
SHOWN = ("name", "consistency", "type", "readers", "stale_read_cost")
LEFT_OUT = (*SHOWN, "why", "warning", "explain", "key")


class _KeyOrCommand(click.Group):
    """A group whose first argument may also be a KEY."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ("--help", "-h")):
            args = ["show", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_KeyOrCommand)
def policy() -> None:
    """The policies of a node: roost policy [KEY], or roost policy check FILE.

    Without KEY the table, sorted by consistency, cheapest first; with KEY why that key has the
    consistency that it has.
    """


@policy.command("show", hidden=True)
@click.argument("key", required=False)
@daemon_command
def show(daemon: Daemon, key: str | None) -> None:
    """The table of policies, or why KEY has its consistency."""
    if key is not None:
        found = daemon.fields("ROOST.POLICY", key)
        daemon.show(found, lambda out: _explain(out, found))
        return
    reply = readable(daemon.ask("ROOST.POLICIES"))
    policies = reply.get("policies", []) if isinstance(reply, dict) else reply
    policies = sorted(policies, key=lambda p: (CONSISTENCIES.index(p["consistency"]), p["name"]))
    daemon.show(policies, lambda out: _print(out, policies))


@policy.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(file: Path, as_json: bool) -> None:
    """Look for faults in a policy FILE: 1 if there is one, else its table and warnings."""
    try:
        found = PolicyTable.parse(read_text(file), str(file))
    except ConfigError as error:
        if as_json:
            fault = {"file": error.file, "line": error.line, "message": error.message}
            click.echo(json_text({"fault": fault, "warnings": []}))
        else:
            click.echo(f"{error}", err=True)
        sys.exit(1)
    views = [
        {
            "name": policy.name,
            "consistency": policy.consistency,
            "type": policy.type,
            "readers": policy.readers,
            "stale_read_cost": policy.stale_read_cost,
            **({"match": list(policy.match)} if policy.match else {}),
        }
        for policy in found.policies.values()
    ]
    views.sort(key=lambda view: (CONSISTENCIES.index(str(view["consistency"])), view["name"]))
    if as_json:
        click.echo(json_text({"fault": None, "warnings": found.warnings, "policies": views}))
        return
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)
    _print(console(), views)


def _print(out: Console, policies: list[dict[str, Any]]) -> None:
    rows = [[*[found.get(name) for name in SHOWN], _more(found)] for found in policies]
    print_table(out, COLUMNS, rows)


def _explain(out: Console, found: dict[str, Any]) -> None:
    out.print(found.get("explain") or found.get("why"), soft_wrap=True)
    if found.get("warning"):
        out.print(f"warning: {found['warning']}", soft_wrap=True)
    facts = [(name, found.get(name)) for name in SHOWN]
    facts += [(name, found[name]) for name in found if name not in LEFT_OUT]
    print_table(out, ("", ""), facts)


def _more(found: dict[str, Any]) -> str:
    parts = [f"{name}={_value(found[name])}" for name in found if name not in LEFT_OUT]
    return " ".join(parts)


def _value(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
