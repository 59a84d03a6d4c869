"""What foreign code throws becomes CorruptData, and the document is given up."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pycrdt
import pytest

from roost_crdt.errors import CorruptData
from roost_crdt.yguard import Guard


class Held:
    def __init__(self) -> None:
        self.dropped = 0

    def drop(self) -> None:
        self.dropped += 1


def test_what_goes_well_changes_nothing() -> None:
    held = Held()
    with Guard(held):
        pass
    assert held.dropped == 0


def test_an_exception_becomes_corrupt_data_and_keeps_its_cause() -> None:
    held = Held()
    with (
        pytest.raises(CorruptData, match=r"pycrdt refused .* unexpected end") as caught,
        Guard(held),
    ):
        raise ValueError("unexpected end")
    assert isinstance(caught.value.__cause__, ValueError)
    assert held.dropped == 1


def test_a_real_panic_of_rust_is_caught_though_no_exception() -> None:
    held = Held()
    doc: Any = pycrdt.Doc(client_id=1)
    number = 2**64
    with pytest.raises(CorruptData) as caught, Guard(held):
        doc.get("m", type=pycrdt.Map)["k"] = number
    cause = caught.value.__cause__
    assert cause is not None
    assert not isinstance(cause, Exception)
    assert type(cause).__name__ == "PanicException"
    assert held.dropped == 1


@pytest.mark.parametrize("fault", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_the_process_passes_through(fault: type[BaseException]) -> None:
    held = Held()
    with pytest.raises(fault), Guard(held):
        raise fault
    assert held.dropped == 1, "nobody knows how far the operation came"


def test_without_a_document_there_is_nothing_to_drop() -> None:
    with pytest.raises(CorruptData), Guard(None):
        raise ValueError("garbage")


def test_a_guard_keeps_no_document_alive() -> None:
    held = Held()
    guard, seen = Guard(held), weakref.ref(held)
    gc.disable()
    try:
        del held
        assert seen() is None
    finally:
        gc.enable()
    with pytest.raises(CorruptData), guard:
        raise ValueError("after its document")
