"""A linearizable endpoint in a table: serial execution, revisions, request ids beside the effect.

    meta                 history (16 random bytes of the first start) + revision u64
    d<key>               revision u64 BE + value
    q...                 request ids, see request_ids.py

Whoever serves it waits for `Table.durable` before he answers, a read too: a put is visible before
it is durable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from roost_crdt.errors import BadRequest, CorruptData, TooLarge, Unavailable, UnknownOutcome
from roost_crdt.limits import KIB, Limits
from roost_crdt.linear.request_ids import RequestIds
from roost_crdt.linear.transactions import Item, Outcome, Table, Txn, seal, unseal

__all__ = ["HISTORY_BYTES", "Hosted", "unknown"]

KEY_BYTES_MAX = 500
VALUE_MARGIN_BYTES = 64 * KIB
"""What a cell may add to the value that a client sent."""
HISTORY_BYTES = 16


class Hosted:
    """Everything that one table holds; nothing is kept in memory but the history's name."""

    def __init__(self, table: Table, limits: Limits) -> None:
        self.history = b""
        """16 bytes: another one is another past. Empty until `open`."""
        self.last_error: str | None = None
        self._table = table
        self._limits = limits
        self._requests = RequestIds(table, b"q", limits.request_ids_kept)

    def founded(self, random_bytes: Callable[[int], bytes]) -> bool:
        """Whether a new history was written. CorruptData if only its name is missing."""
        if self._table.get(b"meta") is not None:
            return False
        if self._table.scan(b"d", b"", 1):
            raise CorruptData("consensus keys are stored without their history")
        self.history = random_bytes(HISTORY_BYTES)
        self._table.put({b"meta": self._meta(0)})
        return True

    def open(self) -> None:
        """Read the history. CorruptData if what is stored does not check out."""
        self.history = self._read_meta()[0]

    def revision(self) -> int:
        return self._read_meta()[1]

    def items(self, keys: Sequence[bytes]) -> list[Item | None]:
        """The keys as they are now. Unavailable if one is damaged."""
        return [self._item(key) for key in keys]

    def scan(self, prefix: bytes, after: bytes, limit: int) -> list[tuple[bytes, Item]]:
        rows = self._table.scan(b"d" + prefix, b"d" + after if after else b"", limit)
        return [(key[1:], self._decode(key, stored)) for key, stored in rows]

    def execute(self, txn: Txn, request_id: bytes | None, result: bytes) -> Outcome:
        """Serial, because nothing here awaits. Effect and request id are one batch."""
        self._check_sizes(txn, result)
        if request_id is not None:
            first = self._first_result(request_id)
            if first is not None:
                return Outcome(True, True, first)
        items = tuple(self._item(compare.key) for compare in txn.compares)
        for compare, item in zip(txn.compares, items, strict=True):
            if compare.revision != (item.revision if item else 0):
                return Outcome(False, items=items)
        rows: dict[bytes, bytes | None] = {}
        revision = self.revision()
        if txn.puts:
            revision += 1
            for key, value in txn.puts:
                rows[b"d" + key] = None if value is None else _encode_item(key, value, revision)
            rows[b"meta"] = self._meta(revision)
        if request_id is not None:
            rows.update(self._requests.remember(request_id, result))
        if rows:
            self._table.put(rows)
        return Outcome(True, False, result, revision=revision if txn.puts else 0)

    def _check_sizes(self, txn: Txn, result: bytes) -> None:
        for key in (*(compare.key for compare in txn.compares), *(key for key, _ in txn.puts)):
            if not 1 <= len(key) <= KEY_BYTES_MAX:
                raise BadRequest(f"a consensus key has 1 to {KEY_BYTES_MAX} bytes, not {len(key)}")
        if len({key for key, _ in txn.puts}) != len(txn.puts):
            raise BadRequest("a transaction puts one key twice")
        longest = self._limits.value_bytes_max + VALUE_MARGIN_BYTES
        for value in (result, *(value for _, value in txn.puts if value is not None)):
            if len(value) > longest:
                raise TooLarge(f"a value of {len(value)} bytes; consensus takes {longest}")

    def _item(self, key: bytes) -> Item | None:
        stored = self._table.get(b"d" + key)
        return None if stored is None else self._decode(b"d" + key, stored)

    def _decode(self, row_key: bytes, stored: bytes) -> Item:
        """A damaged row refuses its own key, never the others, and is never taken for none."""
        try:
            return _decode_item(row_key, stored)
        except CorruptData as error:
            self.last_error = str(error)
            raise Unavailable(
                f"consensus cannot read a key: {error}; `roost check --repair` on its host, or "
                "restore a backup"
            ) from None

    def _first_result(self, request_id: bytes) -> bytes | None:
        try:
            return self._requests.find(request_id)
        except CorruptData as error:
            self.last_error = str(error)
            raise unknown(f"the first answer cannot be read: {error}", request_id) from None

    def _meta(self, revision: int) -> bytes:
        return seal(b"meta", self.history + revision.to_bytes(8, "big"))

    def _read_meta(self) -> tuple[bytes, int]:
        stored = self._table.get(b"meta")
        body = b"" if stored is None else unseal(b"meta", stored)
        if len(body) != HISTORY_BYTES + 8:
            raise CorruptData("the history of consensus has another shape")
        return body[:HISTORY_BYTES], int.from_bytes(body[HISTORY_BYTES:], "big")


def unknown(message: str, request_id: bytes | None) -> UnknownOutcome:
    """What to raise where a transaction may have been applied."""
    shown = None if request_id is None else request_id.decode("utf-8", "replace")
    return UnknownOutcome(f"{message}; the transaction may have been applied", request_id=shown)


def _encode_item(key: bytes, value: bytes, revision: int) -> bytes:
    return seal(b"d" + key, revision.to_bytes(8, "big") + value)


def _decode_item(row_key: bytes, stored: bytes) -> Item:
    body = unseal(row_key, stored)
    if len(body) < 8:
        raise CorruptData(f"the consensus row {row_key!r} has another shape")
    return Item(body[8:], int.from_bytes(body[:8], "big"))
