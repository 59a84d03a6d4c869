"""What a face says of faults that have no code of their own."""

from __future__ import annotations

from roost_crdt.errors import CorruptData, Unavailable, UnknownOutcome


def damaged(error: CorruptData) -> Unavailable:
    """A read met damage, which is mended in the background where something else has the data."""
    return Unavailable(f"stored data is damaged: {error}; see roost check")


def disk_failed() -> UnknownOutcome:
    """The write may be on the disk or not."""
    return UnknownOutcome("the disk failed; this node stops. Retry at another one")
