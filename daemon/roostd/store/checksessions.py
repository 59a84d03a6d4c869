"""The documents of sessions, for `roost check`: LMDB has no checksums, and neither have they.

A document is loaded update by update, as a home does before it writes, and what it holds is
compared with the plain view beside it: damage in either shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from roost_crdt import logformat
from roost_crdt.document import Document, client_id
from roost_crdt.errors import CorruptData
from roost_crdt.home import Meta, decode_meta
from roost_crdt.limits import DEFAULT_LIMITS
from roost_crdt.sessions.table import SessionTable, head_key
from roostd.index import Index

_HEADS = b"m\0"
_PAGE = 500


class _Rows:
    """The SESSION database of an index that nobody else has open."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def get(self, key: bytes) -> bytes | None:
        return self._index.get(logformat.KIND_SESSION, key)

    def scan(self, prefix: bytes, after: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        return self._index.scan(logformat.KIND_SESSION, prefix, after, limit)

    def put(self, items: Mapping[bytes, bytes | None]) -> int:
        self._index.write((), {logformat.KIND_SESSION: sorted(items.items())})
        return 0


def check_sessions(index: Index) -> Iterator[tuple[str, str]]:
    """Each session's id, and what is wrong with it ("" = nothing)."""
    rows = _Rows(index)
    table = SessionTable(rows)
    after = b""
    while page := rows.scan(_HEADS, after, _PAGE):
        for key, raw in page:
            sid = key[len(_HEADS) :].decode("utf-8", "backslashreplace")
            try:
                _check(table, key, decode_meta(raw))
            except CorruptData as error:
                yield sid, str(error)
            else:
                yield sid, ""
        after = page[-1][0]


def _check(table: SessionTable, key: bytes, meta: Meta) -> None:
    if head_key(meta.sid) != key:
        raise CorruptData(f"the head under this name is that of {meta.sid!r}")
    if not meta.held or meta.erased_ms:
        return
    number = client_id(meta.epoch[0], meta.actor, meta.sid)
    document = Document.load(number, table.document(meta.sid), DEFAULT_LIMITS)
    try:
        shown = table.view(meta.sid)
        if shown != (document.entries(), document.fields()):
            raise CorruptData("the plain view and the document differ")
    except UnicodeDecodeError as error:
        raise CorruptData(f"the plain view has a damaged name: {error}") from error
    finally:
        document.close()


def drop_sessions(index: Index, sids: list[str]) -> None:
    """Remove what is held of damaged sessions, heads too."""
    rows = _Rows(index)
    table = SessionTable(rows)
    for sid in sids:
        rows.put({**table.drop_items(sid), head_key(sid): None})
