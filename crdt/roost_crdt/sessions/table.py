"""The stored form of sessions: one small head a session, its document and its plain view.

Keys of the SESSION database:

    m NUL sid                        head (roost_crdt.home.Meta)
    s NUL sid NUL d                  base document (encoded up to update base_n)
    s NUL sid NUL u n(8 bytes)       document update n
    s NUL sid NUL e entry            plain view of a write-once entry
    s NUL sid NUL f policy NUL field plain view of a field
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from roost_crdt.home import Meta, decode_meta, encode_meta

Items = dict[bytes, bytes | None]
PAGE = 1_000


class SessionRows(Protocol):
    """The part of the store that holds sessions."""

    def get(self, key: bytes) -> bytes | None: ...

    def scan(self, prefix: bytes, after: bytes, limit: int) -> list[tuple[bytes, bytes]]: ...

    def put(self, items: Mapping[bytes, bytes | None]) -> int: ...


def head_key(sid: str) -> bytes:
    return b"m\0" + sid.encode()


def prefix_of(sid: str) -> bytes:
    """What all keys of a session but its head begin with."""
    return b"s\0" + sid.encode() + b"\0"


def head_item(meta: Meta) -> Items:
    return {head_key(meta.sid): encode_meta(meta)}


def update_item(sid: str, n: int, update: bytes) -> Items:
    return {prefix_of(sid) + b"u" + n.to_bytes(8, "big"): update}


def base_item(sid: str, document: bytes) -> Items:
    return {prefix_of(sid) + b"d": document}


def view_items(sid: str, entries: Mapping[str, bytes], fields: Mapping[str, bytes]) -> Items:
    prefix = prefix_of(sid)
    items: Items = {prefix + b"e" + key.encode(): leaf for key, leaf in entries.items()}
    items.update({prefix + b"f" + key.encode(): leaf for key, leaf in fields.items()})
    return items


def scan_all(
    scan: Callable[[bytes, bytes, int], list[tuple[bytes, bytes]]], prefix: bytes
) -> Iterator[tuple[bytes, bytes]]:
    """Every item under a prefix, page by page."""
    after = b""
    while True:
        page = scan(prefix, after, PAGE)
        yield from page
        if len(page) < PAGE:
            return
        after = page[-1][0]


class SessionTable:
    """Reads of the stored form; writes are items that the caller puts in one batch."""

    def __init__(self, rows: SessionRows) -> None:
        self._rows = rows

    def put(self, items: Mapping[bytes, bytes | None]) -> int:
        return self._rows.put(items)

    def head(self, sid: str) -> Meta | None:
        raw = self._rows.get(head_key(sid))
        return None if raw is None else decode_meta(raw)

    def heads(self, after: str, limit: int) -> list[Meta]:
        """Heads in order of session id, after `after`."""
        start = head_key(after) if after else b""
        return [decode_meta(raw) for _, raw in self._rows.scan(b"m\0", start, limit)]

    def document(self, sid: str) -> list[bytes]:
        """The base document and the updates after it, oldest first."""
        prefix = prefix_of(sid)
        base = self._rows.get(prefix + b"d")
        updates = [raw for _, raw in scan_all(self._rows.scan, prefix + b"u")]
        return updates if base is None else [base, *updates]

    def update_keys(self, sid: str) -> list[bytes]:
        return [key for key, _ in scan_all(self._rows.scan, prefix_of(sid) + b"u")]

    def view(self, sid: str) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """The plain view: write-once entries and fields."""
        prefix = prefix_of(sid)
        cut = len(prefix) + 1
        entries, fields = (
            {key[cut:].decode(): leaf for key, leaf in scan_all(self._rows.scan, prefix + kind)}
            for kind in (b"e", b"f")
        )
        return entries, fields

    def drop_items(self, sid: str) -> Items:
        """Removal of everything but the head."""
        return {key: None for key, _ in scan_all(self._rows.scan, prefix_of(sid))}
