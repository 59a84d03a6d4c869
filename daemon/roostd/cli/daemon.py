"""What every command that talks to a daemon shares: options, requests, output, exit status.

Exit status: 0 done, 1 the thing failed, 2 usage, 3 no daemon. Results go to stdout, what went
wrong to stderr.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Concatenate, Final, ParamSpec

import click
import msgspec
from rich.console import Console
from rich.table import Table

import roost
from roost.requests import Request
from roost_crdt.errors import BadRequest, RoostError

__all__ = [
    "Daemon",
    "console",
    "daemon_command",
    "fail",
    "is_absent",
    "json_text",
    "moment",
    "print_table",
    "raw_member",
    "readable",
]

FAILED: Final = 1
NO_DAEMON: Final = 3
DEADLINE_MS: Final = 10_000

P = ParamSpec("P")


class Daemon:
    """The daemon that a command talks to, and where its answer goes."""

    def __init__(self, url: str | None, as_json: bool, deadline_ms: int) -> None:
        self.as_json = as_json
        try:
            self.client = roost.connect(url, mmap=False, deadline_ms=deadline_ms)
        except BadRequest as error:
            raise click.UsageError(error.message) from None

    def ask(self, *command: str | bytes | int, effect: bool = False) -> Any:
        """The reply to one command, as it came. `effect`: it changes something."""
        request = Request((command,), _as_it_came, repeat=not effect, effect=effect)
        return self.client.run(request)

    def fields(self, *command: str | bytes | int, effect: bool = False) -> dict[str, Any]:
        """The members of a map reply, readable: see `readable`."""
        fields = readable(self.ask(*command, effect=effect))
        if isinstance(fields, dict):
            return fields
        raise roost.Unavailable(f"{command[0]!r} was answered by {type(fields).__name__}")

    def show(self, value: Any, text: Callable[[Console], None] | str) -> None:
        """Print a result: `value` as JSON where --json is given, else `text`."""
        if self.as_json:
            click.echo(json_text(value))
        elif isinstance(text, str):
            click.echo(text)
        else:
            text(console())


def daemon_command(
    command: Callable[Concatenate[Daemon, P], None],
) -> Callable[..., None]:
    """Gives a command --url, --json and --deadline-ms, a Daemon, and the exit status."""

    @click.option(
        "--url",
        envvar="ROOST_URL",
        metavar="URL",
        help="unix:///path or redis://host:port, with credentials unix://NAME:SECRET@/path or "
        "redis://NAME:SECRET@host:port; default $ROOST_URL, then unix:///run/roost/roost.sock.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @click.option(
        "--deadline-ms",
        type=click.IntRange(1, 3_600_000),
        default=DEADLINE_MS,
        show_default=True,
        help="Give up after this long.",
    )
    @functools.wraps(command)
    def run(*args: Any, url: str | None, as_json: bool, deadline_ms: int, **kwargs: Any) -> None:
        try:
            daemon = Daemon(url, as_json, deadline_ms)
            with daemon.client:
                command(daemon, *args, **kwargs)
        except RoostError as error:
            fail(error, as_json)

    return run


def fail(error: RoostError, as_json: bool) -> None:
    """Print an error to stderr and leave: 3 where no daemon answered, else 1."""
    status = NO_DAEMON if is_absent(error) else FAILED
    if as_json:
        shown: dict[str, Any] = {"code": error.code, "message": error.message}
        if error.retry_after_ms is not None:
            shown["retry_after_ms"] = error.retry_after_ms
        click.echo(json_text(shown | error.details), err=True)
    else:
        click.echo(f"roost: {error.code}: {error.message}", err=True)
    sys.exit(status)


def is_absent(error: RoostError) -> bool:
    """Whether no daemon was there to be asked."""
    return error.details.get("connected") is False


def console() -> Console:
    """For a person on a terminal; wide and plain where the output goes elsewhere."""
    terminal = sys.stdout.isatty()
    return Console(width=None if terminal else 200, highlight=False, markup=False)


def print_table(
    out: Console, columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = ""
) -> None:
    """A plain table under its title; unnamed columns make no header, None is shown as -."""
    if title:
        out.print(f"\n{title}")
    made = Table(box=None, pad_edge=False, show_header=any(columns))
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*["-" if cell is None else str(cell) for cell in row])
    out.print(made)


def moment(ms: int) -> str:
    """A point in time for a person."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def json_text(value: Any) -> str:
    """Compact JSON that keeps raw parts as they came."""
    return msgspec.json.encode(value).decode()


def readable(reply: Any) -> Any:
    """A reply with text for bytes, and members `x_json` parsed and named `x`.

    Where a member `json` holds the whole of a reply, that is taken.
    """
    if isinstance(reply, dict):
        fields: dict[str, Any] = {}
        for name, value in reply.items():
            key = _text(name)
            if key.endswith("_json") or key == "json":
                fields[key.removesuffix("_json")] = None if value is None else json.loads(value)
            else:
                fields[key] = readable(value)
        return fields.get("json", fields)
    if isinstance(reply, (list, tuple, set)):
        return [readable(item) for item in reply]
    return _text(reply) if isinstance(reply, bytes) else reply


def raw_member(reply: Any, name: str) -> msgspec.Raw:
    """The JSON text of a member of a map reply, untouched; null if there is none."""
    for key, value in reply.items():
        if value is not None and _text(key) == f"{name}_json":
            return msgspec.Raw(value if isinstance(value, bytes) else value.encode())
        if value is not None and _text(key) == name:
            return msgspec.Raw(msgspec.json.encode(readable(value)))
    return msgspec.Raw(b"null")


def _as_it_came(reply: Any) -> Any:
    return reply


def _text(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
