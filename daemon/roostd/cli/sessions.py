"""`roost session`: conversations, their homes, forks and erasure. Messages are JSON lines."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from typing import IO, Any

import click
import msgspec
from rich.console import Console

from roost_crdt.limits import DEFAULT_LIMITS
from roostd.cli.daemon import (
    Daemon,
    daemon_command,
    json_text,
    moment,
    print_table,
    raw_member,
    readable,
)

__all__ = ["session"]


@click.group()
def session() -> None:
    """Open, read, commit, fork, move, erase and list sessions."""


@session.command("open")
@click.argument("sid", required=False)
@daemon_command
def open_(daemon: Daemon, sid: str | None) -> None:
    """Open a session, named SID or named by the daemon, and print its id.

    A SID that exists gets a fresh token.
    """
    opened = daemon.fields("ROOST.OPEN", *(() if sid is None else (sid,)), effect=True)
    daemon.show(opened, str(opened["sid"]))


@session.command()
@click.argument("sid")
@click.option("--last", type=click.IntRange(0), help="Only the newest so many turns.")
@click.option("--messages", "only_messages", is_flag=True, help="Print the messages and no more.")
@daemon_command
def show(daemon: Daemon, sid: str, last: int | None, only_messages: bool) -> None:
    """Show where a session lives, its fields and calls, and its messages as JSON lines."""
    facts = daemon.fields("ROOST.SESSION", sid)
    facts.pop("token", None)
    turns = daemon.ask("ROOST.TURNS", sid, *(() if last is None else (last,)))
    messages = msgspec.json.decode(raw_member(turns, "messages"), type=list[msgspec.Raw])
    if only_messages:
        for message in messages:
            click.echo(bytes(message))
        return
    daemon.show({**facts, "messages": messages}, lambda out: _show(out, facts, messages))


def _show(out: Console, facts: dict[str, Any], messages: list[msgspec.Raw]) -> None:
    fields, calls = facts.pop("fields", None), facts.pop("calls", None)
    reconciled = facts.pop("reconciled", None)
    print_table(out, ("", ""), list(facts.items()))
    for policy, values in (fields or {}).items():
        rows = [(name, json_text(value)) for name, value in values.items()]
        print_table(out, ("field", "value"), rows, policy)
    if calls:
        steps = [
            (name, call.get("status"), call.get("tool"), json_text(call.get("result")))
            for name, call in calls.items()
        ]
        print_table(out, ("call", "status", "tool", "result"), steps, "calls")
    for branch in reconciled or ():
        out.print(f"\nreconciled: turn {branch.get('turn')} of epoch {branch.get('epoch')}")
        for message in branch.get("messages", ()):
            out.print(json_text(message), soft_wrap=True)
    out.print()
    for message in messages:
        out.print(bytes(message).decode(), soft_wrap=True)


@session.command()
@click.argument("sid")
@click.argument("file", type=click.File("r", encoding="utf-8"), default="-")
@click.option("--turn-id", help="Retry with the same id: the first answer comes again.")
@click.option("--base", type=click.IntRange(0), help="The turn that this one follows.")
@click.option(
    "--on-conflict",
    type=click.Choice(["reject", "append", "fork"]),
    default="reject",
    show_default=True,
    help="What to do if the session went on meanwhile.",
)
@click.option(
    "--put",
    "puts",
    multiple=True,
    nargs=3,
    metavar="POLICY FIELD JSON",
    help="Set a field of a session-local map in the same turn (null removes it).",
)
@daemon_command
def commit(
    daemon: Daemon,
    sid: str,
    file: IO[str],
    turn_id: str | None,
    base: int | None,
    on_conflict: str,
    puts: tuple[tuple[str, str, str], ...],
) -> None:
    """Commit the messages of FILE (- is stdin), JSON lines, as one turn of a session."""
    body: dict[str, Any] = {
        "turn_id": turn_id or uuid.uuid4().hex,
        "messages": _messages(file),
        "on_conflict": on_conflict,
    }
    if base is not None:
        body["base"] = base
    for policy, field, text in puts:
        body.setdefault("put", {}).setdefault(policy, {})[field] = _json(text, "--put")
    done = daemon.fields("ROOST.TURN", sid, msgspec.json.encode(body), effect=True)
    protected = "" if done.get("protected") else ", not yet protected by a standby"
    daemon.show(done, f"turn {done.get('turn')}{protected}")


@session.command()
@click.argument("sid")
@click.option("--at", type=click.IntRange(0), help="Only the turns up to this one.")
@daemon_command
def fork(daemon: Daemon, sid: str, at: int | None) -> None:
    """Make a new session with the turns of SID so far, and print its id."""
    made = daemon.fields("ROOST.FORK", sid, *(() if at is None else (at,)), effect=True)
    daemon.show(made, str(made.get("sid")))


@session.command()
@click.argument("sid")
@click.argument("node")
@daemon_command
def move(daemon: Daemon, sid: str, node: str) -> None:
    """Hand the home of a session over to NODE."""
    moved = daemon.fields("ROOST.MOVE", sid, node, effect=True)
    daemon.show({"sid": sid, **moved}, f"{sid} is at home on {moved.get('home', node)}")


@session.command()
@click.argument("sid")
@daemon_command
def erase(daemon: Daemon, sid: str) -> None:
    """Erase a session everywhere, for ever; prints a receipt of each node that held it."""
    reply = readable(daemon.ask("ROOST.ERASE", sid, effect=True))
    receipts = reply.get("receipts", []) if isinstance(reply, dict) else reply
    lines = "\n".join(json_text(receipt) for receipt in receipts)
    daemon.show({"sid": sid, "receipts": receipts}, lines)


@session.command("list")
@click.option("--after", default="", help="Begin after this session id.")
@click.option("--limit", type=click.IntRange(1), help="At most so many.")
@daemon_command
def list_(daemon: Daemon, after: str, limit: int | None) -> None:
    """List the sessions that this node is home or standby of."""
    found: list[dict[str, Any]] = []
    while limit is None or len(found) < limit:
        wanted = min(DEFAULT_LIMITS.page_keys_max, (limit or 1 << 62) - len(found))
        reply = daemon.fields("ROOST.SESSIONS", after, wanted)
        found += reply.get("sessions") or []
        after = reply.get("next") or ""
        if not after:
            break
    columns = list(dict.fromkeys(name for entry in found for name in entry)) or ["sid"]
    rows = [[_cell(column, entry.get(column)) for column in columns] for entry in found]
    daemon.show(found, lambda out: print_table(out, columns, rows))


def _cell(column: str, value: Any) -> Any:
    return moment(value) if column.endswith("_ms") and isinstance(value, int) else value


def _messages(lines: Iterable[str]) -> list[msgspec.Raw]:
    messages: list[msgspec.Raw] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        raw = _json(line, f"line {number}")
        if not bytes(raw).startswith(b"{"):
            raise click.UsageError(f"line {number}: a message is a JSON object")
        messages.append(raw)
    if not messages:
        raise click.UsageError("no messages; give one JSON object a line")
    return messages


def _json(text: str, where: str) -> msgspec.Raw:
    """One JSON value with its number literals, or a usage error."""
    try:
        json.loads(text)
        return msgspec.Raw(msgspec.json.format(text.strip().encode(), indent=-1))
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"{where}: not JSON: {error}") from None
