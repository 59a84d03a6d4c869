"""`roost status`, `roost member`, `roost drain`: the node and those that it knows."""

from __future__ import annotations

import sys
from typing import Any

import click
from rich.console import Console

from roostd.cli.daemon import Daemon, daemon_command, json_text, print_table

__all__ = ["drain", "member", "status"]

LINK_COLUMNS = ("peer", "region", "state", "mode", "rtt_ms", "lag_ms", "lag_records", "last_error")


@click.command()
@daemon_command
def status(daemon: Daemon) -> None:
    """Show the node, its links, sessions, digest, store and consensus."""
    found = daemon.fields("ROOST.STATUS")
    daemon.show(found, lambda out: _status(out, found))


def _status(out: Console, found: dict[str, Any]) -> None:
    facts: list[tuple[str, Any]] = [
        (name, found[name]) for name in ("node", "region", "cluster", "actor") if name in found
    ]
    if "digest" in found:
        converged = "converged" if found.get("converged") else "not converged"
        facts.append(("digest", f"{found['digest']} ({converged})"))
    told = {name for name, _ in facts} | {"digest", "converged", "links", "version_vector"}
    for name, value in found.items():
        if name not in told:
            facts.append((name, _line(value)))
    print_table(out, ("", ""), facts)
    links = found.get("links") or []
    if links:
        rows = [[_line(link.get(column)) for column in LINK_COLUMNS] for link in links]
        print_table(out, LINK_COLUMNS, rows, "links")
    else:
        out.print("\nno links")


def _line(value: Any) -> str:
    if isinstance(value, dict):
        told = {name: part for name, part in value.items() if part != ""}
        return "  ".join(f"{name} {_line(part)}" for name, part in told.items()) or "-"
    if isinstance(value, list):
        return ", ".join(map(_line, value)) or "-"
    if isinstance(value, float):
        return f"{value:.1f}"
    return "-" if value is None else str(value)


def _members(out: Console, members: Any) -> None:
    entries = _entries(members)
    columns = list(dict.fromkeys(name for entry in entries for name in entry))
    rows = [[_line(entry.get(column)) for column in columns] for entry in entries]
    print_table(out, columns, rows)


def _entries(members: Any) -> list[dict[str, Any]]:
    if isinstance(members, dict):
        pairs = members.items()
        return [{"node": n, **(m if isinstance(m, dict) else {"state": m})} for n, m in pairs]
    return [m if isinstance(m, dict) else {"node": m} for m in members or []]


@click.group()
def member() -> None:
    """The members of the cluster."""


@member.command("list")
@daemon_command
def list_(daemon: Daemon) -> None:
    """List the members that this node knows."""
    entries = _entries(daemon.fields("ROOST.MEMBERS").get("members"))
    daemon.show(entries, lambda out: _members(out, entries))


@member.command()
@click.argument("node", metavar="ID")
@daemon_command
def remove(daemon: Daemon, node: str) -> None:
    """Remove the member ID, which is lost or away for long.

    Dead rows are collected without it from now on. If it comes back it takes its neighbours'
    rows first, and writes again what only it had.
    """
    found = daemon.fields("ROOST.MEMBER", "REMOVE", node, effect=True)
    daemon.show(found, f"{node} is no member any more (actor {found.get('actor')} is refused)")


@click.command()
@daemon_command
def drain(daemon: Daemon) -> None:
    """Hand all sessions over to other nodes; 1 if some remain here.

    The daemon goes on and relays; stop it afterwards.
    """
    found = daemon.fields("ROOST.DRAIN", effect=True)
    remaining = int(found.get("remaining") or 0)
    text = f"{remaining} sessions remain here" if remaining else "drained: no session remains here"
    daemon.show(found, f"{text}  {json_text(found)}" if remaining else text)
    if remaining:
        sys.exit(1)
