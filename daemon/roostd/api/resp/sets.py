"""Set commands: observed-remove sets of this node."""

from __future__ import annotations

from bisect import bisect_right

from roost_crdt.policy import EVENTUALLY_GLOBAL
from roostd.api.globbing import compiled
from roostd.api.resp import encode
from roostd.api.resp.connection import Connection
from roostd.api.resp.options import read_scan_options
from roostd.api.resp.shapes import leaf_bytes, not_a_string
from roostd.api.resp.table import ONE_KEY, Reply, RespError, command, wrong_type

_GROUP = "set"


def _to_read(conn: Connection, key: bytes) -> bool:
    """True if a set may be here; False if there is nothing. WRONGTYPE for another type."""
    policy = conn.policy(key)
    if policy.consistency == EVENTUALLY_GLOBAL:
        if policy.type == "set":
            return True
        if not conn.node.keys.exists(key):
            return False
    raise wrong_type()


def _to_write(conn: Connection, key: bytes) -> None:
    policy = conn.policy(key)
    if policy.type == "set":
        return
    refusal = not_a_string(policy, key)
    if isinstance(refusal, RespError):
        shown = key.decode("utf-8", "backslashreplace")
        refusal = RespError(
            f"WRONGTYPE '{shown}' is a {policy.type} by policy {policy.name}, not a set"
        )
    raise refusal


def _members(conn: Connection, key: bytes) -> list[bytes]:
    if not _to_read(conn, key):
        return []
    return [leaf_bytes(leaf) for leaf in conn.node.keys.members(key)]


@command("SADD", -3, "write", ONE_KEY, _GROUP, "Adds elements; an add wins over a remove.")
def sadd(conn: Connection, args: list[bytes]) -> Reply:
    _to_write(conn, args[1])
    return encode.integer(conn.node.keys.add(args[1], args[2:]))


@command("SREM", -3, "write", ONE_KEY, _GROUP, "Removes elements that are observed here.")
def srem(conn: Connection, args: list[bytes]) -> Reply:
    if not _to_read(conn, args[1]):
        return encode.ZERO
    return encode.integer(conn.node.keys.remove(args[1], args[2:]))


@command("SMEMBERS", 2, "read", ONE_KEY, _GROUP, "All elements.")
def smembers(conn: Connection, args: list[bytes]) -> Reply:
    members = [encode.bulk(member) for member in _members(conn, args[1])]
    return encode.set_of(members, conn.resp3)


@command("SCARD", 2, "read", ONE_KEY, _GROUP, "How many elements there are.")
def scard(conn: Connection, args: list[bytes]) -> Reply:
    if not _to_read(conn, args[1]):
        return encode.ZERO
    return encode.integer(len(conn.node.keys.members(args[1])))


@command("SISMEMBER", 3, "read", ONE_KEY, _GROUP, "Whether an element is there.")
def sismember(conn: Connection, args: list[bytes]) -> Reply:
    there = _to_read(conn, args[1]) and conn.node.keys.contains(args[1], args[2])
    return encode.ONE if there else encode.ZERO


@command("SMISMEMBER", -3, "read", ONE_KEY, _GROUP, "Which elements are there.")
def smismember(conn: Connection, args: list[bytes]) -> Reply:
    readable = _to_read(conn, args[1])
    contains = conn.node.keys.contains
    return encode.array(
        [
            encode.ONE if readable and contains(args[1], member) else encode.ZERO
            for member in args[2:]
        ]
    )


@command("SSCAN", -3, "read", ONE_KEY, _GROUP, "Elements page by page.")
def sscan(conn: Connection, args: list[bytes]) -> Reply:
    place = conn.server.cursors.place(args[2])
    options = read_scan_options(args[3:])
    members = sorted(_members(conn, args[1]))
    page, cursor = page_of(conn, members, place, options.count)
    if options.match is not None:
        matches = compiled(options.match).match
        page = [member for member in page if matches(member)]
    return encode.array([encode.bulk(b"%d" % cursor), encode.bulks(page)])


def page_of(
    conn: Connection, names: list[bytes], place: bytes, count: int
) -> tuple[list[bytes], int]:
    """Sorted names behind `place` (with one byte before it, so that b"" is the beginning)."""
    start = bisect_right(names, place[1:]) if place else 0
    page = names[start : start + count]
    more = start + count < len(names)
    return page, conn.server.cursors.give(b"+" + page[-1]) if more else 0
