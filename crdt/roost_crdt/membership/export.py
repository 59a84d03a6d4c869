"""What of a store a neighbour lacks, as pages of rows: the first step of a reseed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from roost_crdt.members import MEMBERS
from roost_crdt.record import Record, RowOp, decode_record
from roost_crdt.reseed import Lacking, is_lacking, writers
from roost_crdt.rows import decode_row
from roost_crdt.rows.layout import (
    HEAD,
    RESERVED,
    TAG_ACTOR,
    TAG_FIELD_COUNTER,
    TAG_WINDOW,
    Part,
    Row,
    actor_of,
    birth_of,
    split_row_key,
)

from .storage import MemberStore

_PAGE_BYTES = 512 << 10
_READ_BYTES = 1 << 20
_SCAN_BYTES = 256 << 10
_BACK_MAX = 10_000
"""Records looked at for what a counter was when the neighbour saw it last."""
_COUNTS = (TAG_ACTOR, TAG_FIELD_COUNTER)


class Exported(msgspec.Struct, array_like=True, frozen=True):
    """Rows of one key, and what the neighbour had of its counters."""

    key: bytes
    type: int
    rows: list[tuple[bytes, bytes]]
    bases: dict[bytes, tuple[int, int]]


class Export:
    """Finds the rows that the neighbour lacks: in the log, or by what they show."""

    def __init__(self, store: MemberStore, lacking: Lacking) -> None:
        self._store = store
        self._lacking = lacking
        self.touched: dict[bytes, set[Part]] = {}
        self.logged = True
        """Whether the log told of all of it, also of what rows do not show."""
        self.writers: set[int] = set()
        """Actors whose writes the pages hold and the neighbour may lack."""

    def touch(self, actor: int) -> None:
        """Rows that records of an actor wrote and the neighbour lacks."""
        after = self._lacking.vv.get(actor, 0)
        while after < self._store.vv.get(actor, 0):
            raws = self._store.records_after(actor, after, _READ_BYTES)
            if not raws:
                self._shown()
                return
            for raw in raws:
                record = decode_record(raw, body_bytes_max=len(raw))
                self._touch(record.ops)
                after = record.hlc

    def _shown(self) -> None:
        """The log is too short: what rows show by themselves."""
        self.logged = False
        after = b""
        while page := self._store.scan_rows(after, _SCAN_BYTES):
            after = page[-1].row_key
            for op in page:
                part = split_row_key(op.row_key)[1]
                if self._shows(part, decode_row(op.type, part, op.body), op.type):
                    self._touch((op,))

    def _shows(self, part: Part, row: Row, type_code: int) -> bool:
        vv = self._lacking.vv
        if is_lacking(part, row, type_code, self._lacking):
            return True
        if part[0] in _COUNTS:
            return birth_of(part) > vv.get(actor_of(part), 0)
        others = writers(part, row, type_code, vv) if part[0] != TAG_WINDOW else ()
        return any(True for _ in others)

    def _touch(self, ops: tuple[RowOp, ...]) -> None:
        for op in ops:
            key, part = split_row_key(op.row_key)
            self.touched.setdefault(key, set()).add(part)

    def pages(self) -> Iterator[list[Exported]]:
        """The rows that were touched, as they are now. Who has the reserved ones, which come last
        and say what was written again, has the others too."""
        bases = _bases(self._store, self._lacking.vv, self.touched)
        page: list[Exported] = []
        size = 0
        for key, parts in sorted(self.touched.items(), key=lambda item: _order(item[0])):
            one = self._exported(key, parts, bases)
            if one is None:
                continue
            size += sum(len(part) + len(body) for part, body in one.rows)
            page.append(one)
            if size >= _PAGE_BYTES:
                yield page
                page, size = [], 0
        if page:
            yield page

    def _exported(
        self, key: bytes, parts: set[Part], bases: Mapping[bytes, tuple[int, int]]
    ) -> Exported | None:
        rows: list[tuple[bytes, bytes]] = []
        type_code = 0
        for op in self._rows_of(key):
            part = op.row_key[len(key) + 1 :]
            if part in parts or part == HEAD:  # it may hide them
                type_code = op.type
                rows.append((part, op.body))
        if not rows or key.startswith(MEMBERS):
            return None
        if not key.startswith(RESERVED):
            for part, body in rows:
                row = decode_row(type_code, part, body)
                self.writers.update(writers(part, row, type_code, self._lacking.vv))
        known = {part: bases[key + b"\0" + part] for part in parts if key + b"\0" + part in bases}
        return Exported(key, type_code, rows, known)

    def _rows_of(self, key: bytes) -> Iterator[RowOp]:
        after = key + b"\0"
        while page := self._store.scan_rows(after, _SCAN_BYTES):
            for op in page:
                if not op.row_key.startswith(key + b"\0"):
                    return
                yield op
            after = page[-1].row_key


def _order(key: bytes) -> tuple[bool, bytes]:
    return key.startswith(RESERVED), key


def _bases(
    store: MemberStore, vv: Mapping[int, int], touched: Mapping[bytes, Iterable[Part]]
) -> dict[bytes, tuple[int, int]]:
    """(p, n) of touched counter rows in the last record that the neighbour holds."""
    wanted: dict[int, set[bytes]] = {}
    for key, parts in touched.items():
        for part in parts:
            if part[0] in _COUNTS:
                wanted.setdefault(actor_of(part), set()).add(key + b"\0" + part)
    found: dict[bytes, tuple[int, int]] = {}
    for actor, left in sorted(wanted.items()):
        for record in _back(store, actor, vv.get(actor, 0)):
            for op in record.ops:
                if op.row_key in left:
                    row = decode_row(op.type, split_row_key(op.row_key)[1], op.body)
                    found[op.row_key] = row[0], row[1]
                    left.remove(op.row_key)
            if not left:
                break
    return found


def _back(store: MemberStore, actor: int, hlc: int) -> Iterator[Record]:
    """Records of an actor, from the one that ends at `hlc` backwards."""
    for _ in range(_BACK_MAX):
        raws = store.records_after(actor, hlc - 1, 1) if hlc > 0 else None
        if not raws:
            return
        record = decode_record(raws[0], body_bytes_max=len(raws[0]))
        if record.hlc != hlc:
            return
        yield record
        hlc = record.prev_hlc


def bases_of(
    store: MemberStore, one: Exported, lacking: Lacking, told: Mapping[int, int]
) -> Mapping[Part, tuple[int, int]]:
    """Bases as exported, or as they were up to where the writes have come meanwhile (`told`)."""
    if told.keys().isdisjoint(lacking.actors):
        return one.bases
    raised = [part for part, _ in one.rows if part[0] in _COUNTS and actor_of(part) in told]
    again = _bases(store, lacking.vv, {one.key: raised})
    bases = {part: base for part, base in one.bases.items() if part not in raised}
    at = len(one.key) + 1
    return bases | {row_key[at:]: base for row_key, base in again.items()}
