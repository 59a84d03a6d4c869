"""SUBSCRIBE and PSUBSCRIBE on keyspace channels, `__keyspace@0__:KEY`."""

from __future__ import annotations

import re

from roost_crdt.errors import RoostError, Unsupported
from roost_crdt.policy import EVENTUALLY_GLOBAL
from roostd.api.caller import READ, Caller
from roostd.api.globbing import literal_prefix
from roostd.api.resp import encode
from roostd.api.resp.connection import Connection
from roostd.api.resp.pubsub import subscription_of
from roostd.api.resp.table import NO_KEYS, Reply, command

_GROUP = "pubsub"
_SPACE = re.compile(rb"(__keyspace@([0-9]{1,9})__:)(.*)\Z", re.S)


def _channel(conn: Connection, name: bytes) -> tuple[bytes, Caller, bytes]:
    """Space, the caller in that database, and the key (or pattern) behind it."""
    found = _SPACE.match(name)
    number = int(found[2]) if found else -1
    prefixes: dict[int, str] = conn.node.config.resp_db
    if found is None or (number != 0 and number not in prefixes):
        shown = name.decode("utf-8", "backslashreplace")
        raise Unsupported(
            f"'{shown}': only changes of keys are published; subscribe to __keyspace@0__:KEY, or "
            "psubscribe to __keyspace@0__:PREFIX*"
        )
    assert conn.caller is not None
    caller = Caller(conn.caller.principal, prefixes.get(number, "").encode())
    return found[1], caller, found[3]


def _subscribe(conn: Connection, names: list[bytes], *, pattern: bool) -> bytes:
    kind = b"psubscribe" if pattern else b"subscribe"
    replies: list[bytes] = []
    for name in names:
        try:
            space, caller, rest = _channel(conn, name)
            held = conn.patterns if pattern else conn.subscriptions
            if name not in held:
                subscription = subscription_of(name, space, caller, pattern=pattern)
                if pattern:
                    conn.operations.check_watchable(caller.prefix + literal_prefix(rest))
                key = None if pattern else _watchable(conn, caller, rest)
                conn.server.pubsub.subscribe(conn, subscription, key)
        except RoostError as error:
            replies.append(conn.refusal(error))
            continue
        replies.append(_confirm(conn, kind, name))
    return b"".join(replies)


def _watchable(conn: Connection, caller: Caller, key: bytes) -> bytes:
    stored = caller.key(key)
    policy = conn.policy(stored)
    caller.require(READ, stored)
    if policy.consistency != EVENTUALLY_GLOBAL:
        raise Unsupported(
            f"policy {policy.name} is {policy.consistency}: only eventually-global keys are watched"
        )
    return stored


def _confirm(conn: Connection, kind: bytes, name: bytes | None) -> bytes:
    count = len(conn.subscriptions) + len(conn.patterns)
    shown = encode.null(conn.resp3) if name is None else encode.bulk(name)
    return encode.push([encode.bulk(kind), shown, encode.integer(count)], conn.resp3)


def _unsubscribe(conn: Connection, names: list[bytes], *, pattern: bool) -> bytes:
    kind = b"punsubscribe" if pattern else b"unsubscribe"
    held = conn.patterns if pattern else conn.subscriptions
    replies: list[bytes] = []
    for name in names or list(held):
        conn.server.pubsub.unsubscribe(conn, name, pattern=pattern)
        replies.append(_confirm(conn, kind, name))
    return b"".join(replies) or _confirm(conn, kind, None)


@command("SUBSCRIBE", -2, "read", NO_KEYS, _GROUP, "Follows changes of keys.", solo=True)
def subscribe(conn: Connection, args: list[bytes]) -> Reply:
    return _subscribe(conn, args[1:], pattern=False)


@command("PSUBSCRIBE", -2, "read", NO_KEYS, _GROUP, "Follows changes by pattern.", solo=True)
def psubscribe(conn: Connection, args: list[bytes]) -> Reply:
    return _subscribe(conn, args[1:], pattern=True)


@command("UNSUBSCRIBE", -1, "read", NO_KEYS, _GROUP, "Ends SUBSCRIBE.", solo=True)
def unsubscribe(conn: Connection, args: list[bytes]) -> Reply:
    return _unsubscribe(conn, args[1:], pattern=False)


@command("PUNSUBSCRIBE", -1, "read", NO_KEYS, _GROUP, "Ends PSUBSCRIBE.", solo=True)
def punsubscribe(conn: Connection, args: list[bytes]) -> Reply:
    return _unsubscribe(conn, args[1:], pattern=True)
