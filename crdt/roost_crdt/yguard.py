"""What foreign code throws becomes an error of ours."""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import Protocol

from roost_crdt.errors import CorruptData


class Droppable(Protocol):
    """A document that can be given up."""

    def drop(self) -> None: ...


class Guard:
    """Around every call of pycrdt: what it throws becomes CorruptData and breaks the document."""

    def __init__(self, document: Droppable | None) -> None:
        # A strong reference would be a cycle, and only a collection would free the document.
        self._document = None if document is None else weakref.ref(document)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            return
        document = None if self._document is None else self._document()
        if document is not None:
            document.drop()
        # A panic in Rust is a BaseException, of a class that cannot be imported.
        if issubclass(kind, Exception) or kind.__name__ == "PanicException":
            raise CorruptData(f"pycrdt refused an operation on a document: {fault}") from fault
