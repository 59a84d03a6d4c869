"""Pairs behind checksums: of another kind, key or value they are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost_crdt.logformat import KIND_META, KIND_SESSION, KIND_SPEND
from roostd.sealing import DamagedPair, sealed_pairs, unsealed

PATH = Path("index")


def test_pairs_come_back() -> None:
    ((key, stored), gone) = sealed_pairs(KIND_SPEND, [(b"k", b"v"), (b"l", None)])
    assert stored is not None
    assert unsealed(PATH, KIND_SPEND, key, stored) == b"v"
    assert gone == (b"l", None)
    assert list(sealed_pairs(KIND_META, [(b"policies", b"text")])) == [(b"policies", b"text")]
    assert unsealed(PATH, KIND_META, b"policies", b"text") == b"text"


@pytest.mark.parametrize(
    ("kind", "key", "at"), [(KIND_SESSION, b"k", -1), (KIND_SPEND, b"j", -1), (KIND_SPEND, b"k", 5)]
)
def test_what_is_not_theirs_is_named(kind: int, key: bytes, at: int) -> None:
    ((_, stored),) = sealed_pairs(KIND_SPEND, [(b"k", b"value")])
    assert stored is not None
    raw = bytearray(stored)
    if at >= 0:
        raw[at] ^= 1
    with pytest.raises(DamagedPair, match="fails its checksum") as caught:
        unsealed(PATH, kind, key, bytes(raw))
    assert (caught.value.kind, caught.value.key) == (kind, key)
    with pytest.raises(DamagedPair):
        unsealed(PATH, kind, key, b"abc")
