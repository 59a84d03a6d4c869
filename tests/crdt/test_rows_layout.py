"""Names and seals of rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost_crdt.errors import BadRequest, CorruptData
from roost_crdt.rows import layout
from roost_crdt.rows.layout import (
    HEAD,
    VALUE,
    actor_part,
    check_key,
    field_counter_part,
    field_of,
    field_part,
    row_key,
    seal,
    split_row_key,
    unseal,
    window_part,
)

GOOD_PARTS = [
    HEAD,
    VALUE,
    layout.doc_part(1, 2),
    layout.erasure_part(1, 2),
    actor_part(1, 2),
    actor_part(layout.U64_MAX, layout.U64_MAX),
    b"\x04",
    b"\x04" + b"\0" * 255,
    b"\x05null",
    b"\x06" + b"h" * 16,
    b"\x07" + b"h" * 16,
    field_part(b""),
    field_part(b"\0\x01f"),
    field_counter_part(b"", 1, 2),
    field_counter_part(b"f" * 255, 1, 2),
    window_part(3, 4),
]
BAD_PARTS = [
    b"",
    b"\x00",
    HEAD + b"x",
    VALUE + b"x",
    b"\x0b",
    b"\x0cx",
    b"\x0d",
    b"\xff",
    actor_part(1, 2)[:-1],
    actor_part(1, 2) + b"x",
    b"\x04" + b"x" * 256,
    b"\x05",
    b"\x05{",
    b'\x05"text"',
    b"\x05\xff",
    b"\x05" + b"1" * 256,
    b"\x06" + b"h" * 15,
    b"\x07" + b"h" * 17,
    b"\x08" + b"f" * 256,
    b"\x09",
    b"\x09\x00",
    field_counter_part(b"f", 1, 2)[:-1],
    field_counter_part(b"f", 1, 2) + b"x",
    window_part(3, 4)[:-1],
]


@pytest.mark.parametrize("part", GOOD_PARTS)
def test_a_row_key_comes_apart(part: bytes) -> None:
    assert split_row_key(row_key(b"policy:key", part)) == (b"policy:key", part)
    assert len(row_key(b"k" * 200, part)) <= 511, "LMDB's bound on keys"


@pytest.mark.parametrize("part", BAD_PARTS)
def test_a_part_that_nobody_makes_is_refused(part: bytes) -> None:
    with pytest.raises(CorruptData):
        split_row_key(row_key(b"k", part))


@pytest.mark.parametrize("name", [b"", b"k", b"\0\x02", b"k" * 201 + b"\0\x02"])
def test_a_row_key_without_a_good_key_is_refused(name: bytes) -> None:
    with pytest.raises(CorruptData):
        split_row_key(name)


@given(st.binary(max_size=300))
def test_splitting_is_total(name: bytes) -> None:
    try:
        key, part = split_row_key(name)
    except CorruptData:
        return
    assert row_key(key, part) == name


@pytest.mark.parametrize("key", [b"", b"a\0b", b"k" * 201])
def test_keys_that_cannot_be_named_are_refused(key: bytes) -> None:
    with pytest.raises(BadRequest):
        check_key(key)


def test_a_key_may_have_200_bytes() -> None:
    check_key(b"\xff" * 200)


def test_rows_sort_by_their_numbers() -> None:
    births = [actor_part(1, birth) for birth in (1, 255, 256, 1 << 40)]
    assert births == sorted(births)


def test_parts_name_what_they_were_made_of() -> None:
    assert field_of(field_part(b"f")) == b"f"
    assert field_of(field_counter_part(b"ff", 1, 2)) == b"ff"
    assert layout.birth_of(actor_part(1, 7)) == 7
    assert layout.birth_of(field_counter_part(b"f", 1, 8)) == 8
    assert layout.window_index(window_part(9, 1)) == 9


def test_every_type_has_one_name() -> None:
    assert {layout.TYPE_BY_NAME[name]: name for name in layout.TYPE_BY_NAME} == layout.TYPE_NAMES


def test_a_sealed_row_opens() -> None:
    assert unseal(b"name", seal(b"name", 3, b"body")) == (3, b"body")
    assert unseal(b"name", seal(b"name", 255, b"")) == (255, b"")


@given(st.integers(0, 12 * 8 - 1))
def test_a_flipped_bit_is_noticed(bit: int) -> None:
    stored = bytearray(seal(b"name", 2, b"a body!"))
    stored[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptData, match="checksum"):
        unseal(b"name", bytes(stored))


def test_a_row_under_another_name_is_noticed() -> None:
    with pytest.raises(CorruptData):
        unseal(b"other", seal(b"name", 2, b"body"))


@pytest.mark.parametrize("size", range(5))
def test_a_row_cut_short_is_noticed(size: int) -> None:
    with pytest.raises(CorruptData, match="cut short"):
        unseal(b"name", seal(b"name", 2, b"body")[:size])


def test_fields_and_rows_of_one_actor_have_their_prefixes() -> None:
    assert layout.actor_part(7, 9).startswith(layout.actor_prefix(7))
    assert not layout.actor_part(8, 9).startswith(layout.actor_prefix(7))
    name = b"f" * 255
    assert layout.field_of(layout.field_part(name)) == name
    assert layout.field_counter_part(name, 1, 2).startswith(layout.field_counter_prefix(name))
    for make in (layout.field_part, layout.field_counter_prefix):
        with pytest.raises(BadRequest, match="the field has 256 bytes; at most 255"):
            make(b"f" * 256)


def test_long_names_are_hashed_to_16_bytes() -> None:
    assert len(layout.hash_of(b"x" * 1_000)) == layout.HASH_BYTES == 16
    assert layout.hash_of(b"x") != layout.hash_of(b"y")


def test_a_reused_stamp_carries_what_is_kept() -> None:
    reused = layout.StampReused("two values", {b"part": (1,)})
    assert reused.kept == {b"part": (1,)}
    assert str(reused) == "two values"


def test_the_clusters_own_keys_are_not_a_clients() -> None:
    with pytest.raises(BadRequest, match="the cluster's own"):
        layout.check_key(b"\x01members")
    layout.split_row_key(layout.row_key(b"\x01members", layout.VALUE))


def test_a_row_of_the_longest_key_comes_apart() -> None:
    longest = b"k" * layout.KEY_BYTES_MAX
    assert split_row_key(row_key(longest, VALUE)) == (longest, VALUE)
    with pytest.raises(CorruptData, match="does not hold a key"):
        split_row_key(longest + b"k\0" + VALUE)


def test_an_unknown_tag_is_refused_be_its_shape_that_of_another() -> None:
    shape = field_counter_part(b"f", 1, 2)[1:]
    assert split_row_key(b"k\0" + bytes([layout.TAG_FIELD_COUNTER]) + shape)
    with pytest.raises(CorruptData, match="tag 99"):
        split_row_key(b"k\0\x63" + shape)


def test_a_part_tells_whose_it_is_and_when_it_was_born() -> None:
    for part in (
        actor_part(5, 9),
        field_counter_part(b"f", 5, 9),
        layout.doc_part(5, 9),
        layout.erasure_part(5, 9),
    ):
        assert (layout.actor_of(part), layout.birth_of(part)) == (5, 9)
    assert layout.doc_part(5, 9).startswith(layout.doc_prefix(5))
    assert not layout.doc_part(6, 9).startswith(layout.doc_prefix(5))


def test_a_seal_is_checked_without_knowing_the_type() -> None:
    """For what a newer version wrote: damaged or not can be told."""
    name = row_key(b"k", VALUE)
    for type_code in (layout.TYPE_REGISTER, 99):
        stored = seal(name, type_code, b"body")
        assert layout.is_sealed(name, stored)
        assert layout.is_sealed(name, memoryview(stored))
        assert not layout.is_sealed(row_key(b"l", VALUE), stored)
        assert not layout.is_sealed(name, stored[:-1] + b"x")
    for size in range(5):
        assert not layout.is_sealed(name, seal(name, layout.TYPE_REGISTER, b"")[:size])
