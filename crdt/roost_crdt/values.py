"""The read side: what rows show at a moment. Also used over rows read from LMDB.

`now_ms` is wall milliseconds; what has expired at `now_ms` is not there. Nothing here writes.
"""

from __future__ import annotations

from roost_crdt.hlc import Stamp
from roost_crdt.rows import counter, doc, map, rate, register, set  # noqa: A004
from roost_crdt.rows.expiry import head_expiry, is_hidden
from roost_crdt.rows.layout import (
    HEAD,
    NO_STAMP,
    TAG_ACTOR,
    TAG_DOC,
    TAG_FIELD,
    TAG_FIELD_COUNTER,
    TAG_HEAD,
    TYPE_COUNTER,
    TYPE_DOC,
    TYPE_MAP,
    TYPE_RATE,
    TYPE_REGISTER,
    TYPE_SET,
    VALUE,
    Part,
    Row,
    Rows,
    actor_of,
)
from roost_crdt.rows.leaf import Leaf, compact_json, json_of, json_text, leaf_of

__all__ = [
    "Leaf",
    "compact_json",
    "counter_value",
    "dead_parts",
    "doc_update",
    "exists",
    "expires_ms",
    "json_of",
    "json_text",
    "leaf_of",
    "map_field",
    "map_fields",
    "newest_stamp",
    "rate_estimate",
    "register_value",
    "set_contains",
    "set_members",
]

_EXISTS = {
    TYPE_REGISTER: register.exists,
    TYPE_COUNTER: counter.exists,
    TYPE_SET: set.exists,
    TYPE_MAP: map.exists,
    TYPE_RATE: rate.exists,
    TYPE_DOC: doc.exists,
}


def exists(type_code: int, rows: Rows, now_ms: int) -> bool:
    """Whether a reader finds the key; False for a type that this version does not know."""
    shows = _EXISTS.get(type_code)
    return shows is not None and shows(rows, now_ms)


def expires_ms(type_code: int, rows: Rows, now_ms: int) -> int:
    """When the key stops showing anything, in wall milliseconds; 0 = never, or no such key.

    A rate ends with its last window, if nothing ends it earlier.
    """
    if not exists(type_code, rows, now_ms):
        return 0
    if type_code == TYPE_REGISTER:
        return register.expires_ms_of(rows)
    set_to = head_expiry(rows)[2]
    if type_code != TYPE_RATE:
        return set_to
    windows = (item for item in rows.items() if item[0] != HEAD)
    end_ms = max(rate.end_ms(part, row) for part, row in windows if row[0] != row[1])
    return min(set_to, end_ms) if set_to else end_ms


def register_value(rows: Rows, now_ms: int) -> Leaf | None:
    """None: there is no value. (A JSON null is the leaf "null".)"""
    return register.value(rows, now_ms)


def counter_value(rows: Rows, now_ms: int) -> int | None:
    """None: the counter does not exist. A policy with `float = true` scales by 10**9."""
    return counter.value(rows, now_ms)


def set_members(rows: Rows, now_ms: int) -> list[Leaf]:
    """Strings in order of their bytes, then other JSON in order of its text."""
    return set.members(rows, now_ms)


def set_contains(rows: Rows, leaf: Leaf, now_ms: int) -> bool:
    return set.contains(rows, leaf, now_ms)


def map_fields(rows: Rows, now_ms: int) -> dict[bytes, Leaf | int]:
    """Fields in order of their names; int where the field is a counter."""
    return map.fields(rows, now_ms)


def map_field(rows: Rows, field: bytes, now_ms: int) -> Leaf | int | None:
    return map.field(rows, field, now_ms)


def rate_estimate(rows: Rows, now_ms: int, window_ms: int) -> int:
    """How much was counted in the `window_ms` before `now_ms`, rounded down."""
    return rate.estimate(rows, now_ms, window_ms)


def doc_update(rows: Rows, now_ms: int) -> bytes | None:
    """The whole document as one Yjs update; None if there is none.

    Any Yjs client can load it. Equal rows give equal bytes. Raises CorruptData where an update
    cannot be read; then the others cannot be told from it.
    """
    found = doc.updates(rows, now_ms)
    if not found:
        return None
    # Readers of other types need no pycrdt.
    from roost_crdt.document import merge

    return merge(found)


def newest_stamp(type_code: int, rows: Rows) -> Stamp | None:
    """The stamp of the newest write that the rows know of, deletes and expiries included.

    None without rows, and for counters and rates: their rows are sums, which keep no stamps.
    """
    newest: Stamp = NO_STAMP
    for part, row in rows.items():
        if type_code == TYPE_REGISTER:
            newest = max(newest, row[:2], row[4:6])
        elif type_code == TYPE_MAP and part[0] == TAG_FIELD:
            newest = max(newest, row[:2])
        elif type_code == TYPE_MAP and part == HEAD:
            newest = max(newest, row[:2], row[2:4])
        elif type_code == TYPE_DOC and part[0] == TAG_DOC:
            newest = max(newest, (row[0], actor_of(part)))
        elif type_code in (TYPE_SET, TYPE_DOC) and part == HEAD:
            newest = max(newest, row[1:3], *((hlc, actor) for actor, hlc in row[0]))
        elif type_code == TYPE_SET:
            newest = max(newest, *((added, actor) for actor, added, _ in row[1]))
    return None if newest == NO_STAMP else newest


def dead_parts(type_code: int, rows: Rows, now_ms: int) -> list[Part]:
    """Parts that no reader at `now_ms` or later can see anything of.

    For collection, which passes its time less `clock_offset_max_ms` and decides when a dead
    row may go (never because it is dead alone; rate windows may go at once). The head comes
    last and only if every other part is dead: it hides rows, so drop it only together with
    all that are named here.
    """
    if type_code == TYPE_REGISTER:
        return [] if exists(type_code, rows, now_ms) or not rows else [VALUE]
    if is_hidden(rows, now_ms):
        dead = [part for part in rows if part != HEAD]
    else:
        dead = _dead_rows(type_code, rows, now_ms)
    if HEAD in rows and len(dead) == len(rows) - 1:
        dead.append(HEAD)
    return dead


def _dead_rows(type_code: int, rows: Rows, now_ms: int) -> list[Part]:
    cleared = set.cleared_of(rows) if type_code == TYPE_SET else {}
    clear = map.clear_stamp(rows) if type_code == TYPE_MAP else (0, 0)
    shown = frozenset(doc.shown(rows)) if type_code == TYPE_DOC else frozenset()

    def is_dead(part: Part, row: Row) -> bool:
        if type_code == TYPE_DOC:
            return part not in shown
        if part[0] in (TAG_ACTOR, TAG_FIELD_COUNTER):
            return not counter.is_live(row)
        if part[0] == TAG_FIELD:
            return not map.is_present(row, clear, now_ms)
        if type_code == TYPE_SET:
            return not set.is_present(row, cleared)
        return not rate.is_live(part, row, now_ms)

    return [part for part, row in rows.items() if part[0] != TAG_HEAD and is_dead(part, row)]
