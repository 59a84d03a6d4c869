"""Notices that consensus lost history: a restored backup, or another cluster at the address.

Every answer carries the id of its history and a revision. The highest revision seen is kept
durably; an answer below what was seen *before its question was sent* (answers may overtake each
other), or from another history, latches the witness: grants that consensus has forgotten may have
been spent, so nobody may take or spend any until an operator has accepted the loss.
"""

from __future__ import annotations

from roost_crdt.errors import CorruptData, Unavailable
from roostd.consensus.base import Table, seal, unseal

__all__ = ["Witness"]

_KEY = b"witness"
_LATCHED = b"!"
_HISTORY_BYTES = 16


class Witness:
    """The newest history and revision of consensus that this node has seen."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._history = b""
        self._revision = 0
        self._lost = ""

    def load(self) -> None:
        """Read what was seen before; call it once at start-up."""
        stored = self._table.get(_KEY)
        if stored is None:
            return
        body = unseal(_KEY, stored)
        if len(body) < _HISTORY_BYTES + 9:
            raise CorruptData("what was last seen of consensus has another shape")
        self._revision = int.from_bytes(body[:8], "big")
        self._history = body[9 : 9 + _HISTORY_BYTES]
        if body[8:9] == _LATCHED:
            self._lost = body[9 + _HISTORY_BYTES :].decode("utf-8", "replace")

    @property
    def floor(self) -> int:
        """Pass it to `saw` with the answer of a question that is sent now."""
        return self._revision

    @property
    def lost(self) -> str:
        """What history was lost; empty while none is known to be."""
        return self._lost

    def saw(self, history: bytes, revision: int, floor: int) -> None:
        """Take note of an answer; Unavailable if it shows that history was lost."""
        if len(history) != _HISTORY_BYTES:
            raise Unavailable("consensus answered without the id of its history")
        if not self._lost:
            if self._history and history != self._history:
                self._lost = (
                    f"history {history.hex()} answered where {self._history.hex()} was expected"
                )
            elif revision < floor:
                self._lost = f"revision {revision} came after {floor} had been seen"
            if self._lost:
                self._put()
        self.check()
        if revision > self._revision or not self._history:
            self._history = history
            self._revision = max(revision, self._revision)
            self._put()

    def check(self) -> None:
        """Unavailable while a loss of history is not accepted."""
        if self._lost:
            raise Unavailable(
                f"consensus went back in time: {self._lost}. Nothing linearizable is served, "
                "because what is missing may have been spent; bring its newest data back, or, "
                "to accept the loss, stop each node that says this and start it with an empty "
                "node.data beside its neighbours, one at a time"
            )

    def accept(self) -> None:
        """An operator accepts the loss: whatever answers next is believed."""
        self._history, self._revision, self._lost = b"", 0, ""
        self._table.put({_KEY: None})

    def _put(self) -> None:
        mark = _LATCHED if self._lost else b"."
        body = self._revision.to_bytes(8, "big") + mark + self._history + self._lost.encode()
        self._table.put({_KEY: seal(_KEY, body)})
