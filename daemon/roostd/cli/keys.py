"""`roost get`, `set`, `incr`, `del`, `keys`, `watch`: values are JSON."""

from __future__ import annotations

import json
import sys
import uuid

import click
import msgspec

from roost.requests import delete, incr, keys_page
from roost_crdt.units import duration_ms
from roostd.cli.daemon import Daemon, daemon_command, json_text, raw_member, readable

__all__ = ["del_", "get", "incr_", "keys", "set_", "watch"]


@click.command()
@click.argument("key")
@daemon_command
def get(daemon: Daemon, key: str) -> None:
    """Print the value of KEY as JSON; null if there is none.

    With --json also how old it may be (lag_ms) and where it came from.
    """
    reply = daemon.ask("ROOST.GET", key)
    value = raw_member(reply, "value")
    daemon.show({"key": key, **readable(reply), "value": value}, json_text(value))


@click.command("set")
@click.argument("key")
@click.argument("value")
@click.option("--ttl", metavar="24h", help="Let the key disappear after this long.")
@daemon_command
def set_(daemon: Daemon, key: str, value: str, ttl: str | None) -> None:
    """Set KEY to VALUE, which is JSON; - reads it from stdin.

    A string needs its quotes: roost set model_router_weights:llama '"fast"'
    """
    text = sys.stdin.read() if value == "-" else value
    expiry: tuple[str, int] | tuple[()] = ()
    if ttl is not None:
        try:
            expiry = ("PX", duration_ms(ttl))
        except ValueError as error:
            raise click.UsageError(f"--ttl: {error}") from None
    reply = daemon.fields("ROOST.SET", key, _checked_json(text), *expiry, effect=True)
    daemon.show({"key": key, **reply}, "ok")


@click.command("incr", context_settings={"ignore_unknown_options": True})
@click.argument("key")
@click.argument("n", default="1")
@click.option("--request-id", help="Retry with the same id: it applies once (linearizable keys).")
@daemon_command
def incr_(daemon: Daemon, key: str, n: str, request_id: str | None) -> None:
    """Add N (1) to the counter, rate or meter KEY and print what it is now."""
    try:
        by = float(n) if any(char in n for char in ".eE") else int(n)
    except ValueError:
        raise click.UsageError(f"{n} is not a number") from None
    ack = daemon.client.run(incr(key, by, request_id or uuid.uuid4().hex))
    daemon.show({"key": key, "value": ack.value, "seq": ack.seq}, json_text(ack.value))


@click.command("del")
@click.argument("key")
@daemon_command
def del_(daemon: Daemon, key: str) -> None:
    """Delete KEY."""
    ack = daemon.client.run(delete(key))
    daemon.show({"key": key, "value": ack.value, "seq": ack.seq}, "ok")


@click.command()
@click.argument("pattern", default="*")
@daemon_command
def keys(daemon: Daemon, pattern: str) -> None:
    """List the eventually-global keys that match PATTERN, a glob such as 'rate_limits:*'."""
    after = b""
    while page := daemon.client.run(keys_page(pattern, after)):
        for key in page:
            name = key.decode("utf-8", "backslashreplace")
            click.echo(json.dumps(name, ensure_ascii=False) if daemon.as_json else name)
        after = page[-1]


@click.command()
@click.argument("prefix", default="")
@click.option("--count", type=click.IntRange(1), help="End after so many changes.")
@daemon_command
def watch(daemon: Daemon, prefix: str, count: int | None) -> None:
    """Print each change of the keys that begin with PREFIX, one JSON object a line."""
    with daemon.client.watch(prefix) as changes:
        for number, change in enumerate(changes, 1):
            stamp = change.stamp
            value = _shown(change.value)
            line = {"key": change.key, "value": value, "stamp": stamp}
            click.echo(json_text(line) if daemon.as_json else f"{change.key} {json_text(value)}")
            sys.stdout.flush()
            if number == count:
                return


def _shown(value: object) -> object:
    """Bytes that are not text, as every face shows them."""
    return {"base64": value} if isinstance(value, bytes) else value


def _checked_json(text: str) -> bytes:
    """The text as one JSON value with its number literals, or a usage error."""
    try:
        raw = msgspec.json.format(text.encode(), indent=-1)
        json.loads(raw)
    except (msgspec.DecodeError, ValueError, RecursionError):
        shown = text.strip()
        raise click.UsageError(
            f"{shown[:80]} is not JSON; a string needs quotes: '{json.dumps(shown[:80])}'"
        ) from None
    return raw
