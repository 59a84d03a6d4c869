"""COMMAND, CONFIG GET, INFO, TIME, WAIT: what clients ask of a Redis before they work."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from typing import Any

from roost_crdt.errors import Unsupported
from roostd.api.globbing import compiled
from roostd.api.neighbours import holders, newest
from roostd.api.numbers import parse_int
from roostd.api.resp import encode
from roostd.api.resp.connection import Connection
from roostd.api.resp.table import (
    COMMANDS,
    NO_KEYS,
    Command,
    Reply,
    RespError,
    command,
    syntax_error,
    wrong_arity,
)
from roostd.api.resp.versions import REDIS_VERSION, VERSION

_GROUP = "server"
_WAIT_POLL_S = 0.02


@command("COMMAND", -1, "read", NO_KEYS, _GROUP, "COUNT, INFO, DOCS, LIST, GETKEYS.")
def command_(conn: Connection, args: list[bytes]) -> Reply:
    if len(args) == 1:
        return encode.array([_command_info(conn, found) for found in COMMANDS.values()])
    name = args[1].upper()
    if name == b"COUNT" and len(args) == 2:
        return encode.integer(len(COMMANDS))
    if name == b"LIST" and len(args) == 2:
        return encode.bulks(found.name.lower().encode() for found in COMMANDS.values())
    if name == b"INFO":
        wanted = args[2:] or list(COMMANDS)
        known = [COMMANDS.get(arg.upper()) for arg in wanted]
        return encode.array(
            [
                encode.null_array(conn.resp3) if found is None else _command_info(conn, found)
                for found in known
            ]
        )
    if name == b"DOCS":
        documented = [COMMANDS.get(arg.upper()) for arg in args[2:]] or list(COMMANDS.values())
        return encode.map_of(
            [_command_docs(conn, found) for found in documented if found is not None], conn.resp3
        )
    if name == b"GETKEYS" and len(args) > 2:
        return _get_keys(args[2:])
    shown = args[1].decode("utf-8", "backslashreplace")
    if name in (b"COUNT", b"LIST", b"GETKEYS"):
        raise wrong_arity(f"command|{shown}")
    raise RespError(f"ERR unknown subcommand '{shown[:128]}'. Try COMMAND HELP.")


def _get_keys(args: list[bytes]) -> bytes:
    found = COMMANDS.get(args[0].upper())
    if found is None:
        raise RespError("ERR Invalid command specified")
    if not found.fits(len(args)):
        raise RespError("ERR Invalid number of arguments specified for command")
    keys = [args[position] for position in found.positions(len(args))]
    if not keys:
        raise RespError("ERR The command has no key arguments")
    return encode.bulks(keys)


def _command_info(conn: Connection, found: Command) -> bytes:
    flags = [encode.simple("readonly" if found.right == "read" else "write")]
    if found.solo:
        flags.append(encode.simple("no-multi"))
    if found.right == "admin":
        flags.append(encode.simple("admin"))
    first, last, step = found.keys
    category = [encode.simple(f"@{found.group}")]
    return encode.array(
        [
            encode.bulk(found.name.lower().encode()),
            encode.integer(found.arity),
            encode.set_of(flags, conn.resp3),
            encode.integer(first),
            encode.integer(last),
            encode.integer(step),
            encode.set_of(category, conn.resp3),
            encode.EMPTY_ARRAY,
            encode.EMPTY_ARRAY,
            encode.EMPTY_ARRAY,
        ]
    )


def _command_docs(conn: Connection, found: Command) -> tuple[bytes, bytes]:
    docs = {"summary": found.summary, "since": "0.1.0", "group": found.group}
    return encode.bulk(found.name.lower().encode()), encode.encode(docs, conn.resp3)


@command("CONFIG", -2, "read", NO_KEYS, _GROUP, "CONFIG GET pattern...")
def config(conn: Connection, args: list[bytes]) -> Reply:
    name = args[1].upper()
    if name == b"GET":
        if len(args) < 3:
            raise wrong_arity("config|get")
        values = _config(conn)
        matched: dict[str, str] = {}
        for glob in args[2:]:
            matches = compiled(glob.lower()).match
            matched |= {key: value for key, value in values.items() if matches(key.encode())}
        return encode.encode(matched, conn.resp3)
    if name in (b"SET", b"REWRITE", b"RESETSTAT"):
        raise Unsupported(
            f"CONFIG {name.decode()}: settings are in roost.toml; policies, keys and credentials "
            "are read again on SIGHUP"
        )
    shown = args[1].decode("utf-8", "backslashreplace")
    raise RespError(f"ERR unknown subcommand '{shown[:128]}'. Try CONFIG HELP.")


def _config(conn: Connection) -> dict[str, str]:
    node = conn.node
    databases = max([0, *node.config.resp_db]) + 1
    listen = node.config.listen
    return {
        "appendfsync": "always",
        "appendonly": "yes",
        "bind": listen.resp.host if listen.resp is not None else "",
        "databases": str(databases),
        "dir": str(node.config.node.data),
        "maxclients": str(node.limits.connections_max),
        "maxmemory": "0",
        "maxmemory-policy": "noeviction",
        "notify-keyspace-events": "KA",
        "port": str(listen.resp.port) if listen.resp is not None else "0",
        "proto-max-bulk-len": str(node.limits.body_bytes_max),
        "save": "",
        "timeout": "0",
        "unixsocket": str(listen.unix or ""),
    }


@command("INFO", -1, "read", NO_KEYS, _GROUP, "Facts about this node, by section.")
def info(conn: Connection, args: list[bytes]) -> Reply:
    wanted = {arg.decode("utf-8", "replace").lower() for arg in args[1:]}
    everything = not wanted or bool(wanted & {"all", "everything", "default"})
    parts: list[str] = []
    for section, facts in _info(conn).items():
        if everything or section.lower() in wanted:
            lines = "".join(f"{name}:{value}\r\n" for name, value in facts.items())
            parts.append(f"# {section}\r\n{lines}")
    text = "\r\n".join(parts).encode()
    if conn.resp3:
        return b"=%d\r\ntxt:%b\r\n" % (len(text) + 4, text)
    return encode.bulk(text)


def _info(conn: Connection) -> dict[str, dict[str, Any]]:
    server, node = conn.server, conn.node
    usage = resource.getrusage(resource.RUSAGE_SELF)
    up_s = int(time.time() - server.started_s)
    config = node.config.node
    return {
        "Server": {
            "redis_version": REDIS_VERSION,
            "redis_mode": "standalone",
            "roost_version": VERSION,
            "roost_node": config.id,
            "roost_region": config.region,
            "roost_cluster": config.cluster,
            "process_id": os.getpid(),
            "tcp_port": node.config.listen.resp.port if node.config.listen.resp else 0,
            "uptime_in_seconds": up_s,
            "uptime_in_days": up_s // 86_400,
        },
        "Clients": {
            "connected_clients": len(server.connections),
            "maxclients": node.limits.connections_max,
            "pubsub_clients": sum(
                bool(other.subscriptions or other.patterns) for other in server.connections.values()
            ),
        },
        "Memory": {
            "used_memory": usage.ru_maxrss * 1024,
            "used_memory_peak": usage.ru_maxrss * 1024,
            "maxmemory": 0,
            "maxmemory_policy": "noeviction",
        },
        "Persistence": {
            "loading": 0,
            "async_loading": 0,
            "aof_enabled": 1,
            "aof_last_write_status": "ok",
            "rdb_bgsave_in_progress": 0,
        },
        "Stats": {
            "total_connections_received": server.metrics.connections_total,
            "total_commands_processed": sum(c[0] for c in server.metrics.commands.values()),
            "total_error_replies": sum(server.metrics.errors.values()),
            "rejected_connections": server.metrics.connections_refused,
            "pubsub_channels": server.metrics.watchers,
        },
        "Replication": {
            "role": "master",
            "connected_slaves": 0,
            "roost_lag_ms": node.lag_ms(),
        },
        "Cluster": {"cluster_enabled": 0},
        "Keyspace": {},
    }


@command("TIME", 1, "read", NO_KEYS, _GROUP, "Seconds and microseconds of this node's clock.")
def time_(conn: Connection, args: list[bytes]) -> Reply:
    now_us = time.time_ns() // 1_000
    return encode.bulks((b"%d" % (now_us // 1_000_000), b"%d" % (now_us % 1_000_000)))


@command(
    "WAIT",
    3,
    "read",
    NO_KEYS,
    _GROUP,
    "Waits for neighbours that hold all of this node.",
    solo=True,
)
async def wait(conn: Connection, args: list[bytes]) -> bytes:
    wanted, timeout_ms = parse_int(args[1]), parse_int(args[2])
    if timeout_ms < 0:
        raise RespError("ERR timeout is negative")
    if wanted < 0:
        raise syntax_error()
    deadline = time.monotonic() + (timeout_ms / 1_000 or float("inf"))
    hlc = newest(conn.node)
    while True:
        held = holders(conn.node, hlc)
        left_s = deadline - time.monotonic()
        if held >= wanted or left_s <= 0 or conn.closing:
            return encode.integer(held)
        await asyncio.sleep(min(_WAIT_POLL_S, left_s))
