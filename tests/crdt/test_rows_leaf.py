"""Leaves: JSON in, JSON out, literals kept; hostile text is refused in bounded time."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from roost_crdt.errors import BadRequest, CorruptData
from roost_crdt.rows.leaf import (
    check_json_text,
    check_leaf,
    compact_json,
    json_of,
    json_text,
    kind_and_bytes,
    leaf_from,
    leaf_of,
    nested_deeper,
)

_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max((_depth(item) for item in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((_depth(item) for item in value), default=0)
    return 0


@given(_json, st.sampled_from([None, 1]))
def test_json_comes_back(value: Any, indent: int | None) -> None:
    leaf = leaf_of(json.dumps(value, indent=indent).encode())
    assert json_of(leaf) == value
    assert json.loads(json_text(leaf)) == value
    assert leaf_of(json_text(leaf).encode()) == leaf
    kind, data = kind_and_bytes(leaf)
    check_leaf(kind, data)
    assert leaf_from(kind, data) == leaf


@pytest.mark.parametrize(
    ("text", "leaf"),
    [
        (b' "a\\u00e9\\n" ', "aé\n".encode()),
        (b'""', b""),
        (b' { "b" : 1.50 , "a" : [ 1e400 , -0 ] } ', '{"b":1.50,"a":[1e400,-0]}'),
        (b"123456789012345678901234567890", "123456789012345678901234567890"),
        (b"null", "null"),
        (b'{"a":"[{ x"}', '{"a":"[{ x"}'),
        (b'[" \\" ", "\\u0041"]', '[" \\" ","\\u0041"]'),
    ],
)
def test_literals_order_and_escapes_are_kept(text: bytes, leaf: bytes | str) -> None:
    assert leaf_of(text) == leaf


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"{",
        b"[1,]",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"01",
        b"1 2",
        b"'a'",
        b'"\xff"',
        b"\xef\xbb\xbf1",
        b'"\\ud800"',
        b'"a\nb"',
        b'{"a":1,"a":2}',
        b'[{"x":{"a":1,"b":2,"\\u0061":3}}]',
        b'"unterminated' + b'\\"' * 50_000,
    ],
)
def test_what_is_not_strict_json_is_refused(text: bytes) -> None:
    with pytest.raises(BadRequest):
        leaf_of(text)


def test_a_number_of_any_length_is_kept() -> None:
    digits = "9" * 5_000
    leaf = leaf_of(f'{{"n":{digits}}}'.encode())
    assert leaf == f'{{"n":{digits}}}'
    assert json_of(leaf) == {"n": float("inf")}, "Python refuses more than 4,300 digits"


def test_bytes_that_are_not_text_show_as_base64() -> None:
    assert json_of(b"\xff\x00") == {"base64": "/wA="}
    assert json_text(b"\xff\x00") == '{"base64":"/wA="}'
    assert json_text(b'a"b') == '"a\\"b"'


@given(_json, st.integers(0, 5))
@example([[], [[]], "[[["], 2)
@example(["\\", '[["[[', '\\"[', "\\\\"], 1)
def test_nesting_is_measured(value: Any, levels: int) -> None:
    text = json.dumps(value).encode()
    assert nested_deeper(text, levels) == (_depth(value) > levels)


@pytest.mark.parametrize("depth", [65, 100_000])
@pytest.mark.parametrize("pair", [(b"[", b"]"), (b'{"a":', b"}")])
def test_deep_nesting_is_refused(depth: int, pair: tuple[bytes, bytes]) -> None:
    text = pair[0] * depth + b"1" + pair[1] * depth
    with pytest.raises(BadRequest, match="nested deeper than 64"):
        leaf_of(text)
    with pytest.raises(CorruptData):
        check_json_text(text)


def test_64_levels_are_allowed() -> None:
    text = b"[" * 64 + b"]" * 64
    assert leaf_of(text) == text.decode()
    assert compact_json(b"[[ ]]", nesting_max=2) == b"[[]]"
    with pytest.raises(BadRequest, match="deeper than 1"):
        compact_json(b"[[ ]]", nesting_max=1)


@pytest.mark.parametrize("data", [b"", b" 1", b"1 ", b'"text"', b"{", b"\xff", b'["\xff"]', b"NaN"])
def test_a_stored_json_leaf_has_its_stored_form(data: bytes) -> None:
    with pytest.raises(CorruptData):
        check_json_text(data)


@pytest.mark.parametrize(("kind", "data"), [(3, b""), (0, b"x"), (2, b"")])
def test_a_stored_leaf_has_a_known_kind(kind: int, data: bytes) -> None:
    with pytest.raises(CorruptData):
        check_leaf(kind, data)


@pytest.mark.parametrize(("leaf", "pair"), [("[1]", (2, b"[1]")), (b"[1]", (1, b"[1]"))])
def test_a_leaf_stands_in_a_row_as_kind_and_bytes(
    leaf: bytes | str, pair: tuple[int, bytes]
) -> None:
    assert kind_and_bytes(leaf) == pair
    assert leaf_from(*pair) == leaf
    check_leaf(*pair)


def test_dead_and_bytes_leaves_are_whatever_they_are() -> None:
    check_leaf(0, b"")
    check_leaf(1, b"\xff")


@given(st.binary(max_size=30))
def test_foreign_text_is_refused_or_read(data: bytes) -> None:
    try:
        leaf = leaf_of(data)
    except BadRequest:
        return
    assert leaf_of(json_text(leaf).encode()) == leaf
