"""Strategies of leaves and of the rows of one key, and those rows as lattices."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from roost_crdt import values
from roost_crdt.rows import Row, Rows, decode_row, encode_row, join_delta, set  # noqa: A004
from roost_crdt.rows.layout import (
    HEAD,
    NO_STAMP,
    TYPE_BY_NAME,
    TYPE_COUNTER,
    TYPE_DOC,
    TYPE_MAP,
    TYPE_REGISTER,
    TYPE_SET,
    VALUE,
    Part,
    actor_part,
    doc_part,
    erasure_part,
    field_counter_part,
    field_part,
    window_part,
)
from roost_crdt.rows.leaf import Leaf, kind_and_bytes
from roost_crdt.rows.wire import encode
from roost_crdt.testing.edits import ROW_LENGTH, row_chain
from roost_crdt.testing.laws import Lattice
from roost_crdt.ystructs import delete_update
from roost_crdt.yupdate import Range

START_MS: Final = 1_700_000_000_000
"""The wall clock at which histories begin and states are looked at."""
WINDOW_MS: Final = 100
TYPES: Final = ("register", "counter", "set", "map", "rate", "doc")


def _lattice(type_code: int) -> Lattice[Rows]:
    listed = msgspec.msgpack.Decoder(list[tuple[bytes, bytes]])

    def join(a: Rows, b: Rows) -> Rows:
        return {**a, **join_delta(type_code, a, b)}

    def encode_all(rows: Rows) -> bytes:
        bodies = ((part, encode_row(type_code, part, rows[part])) for part in sorted(rows))
        return encode(list(bodies))

    def decode_all(raw: bytes) -> Rows:
        return {part: decode_row(type_code, part, body) for part, body in listed.decode(raw)}

    def value(rows: Rows) -> Any:
        return value_at(type_code, rows, START_MS)

    return Lattice(dict, join, encode_all, decode_all, value)


def value_at(type_code: int, rows: Rows, now_ms: int) -> Any:
    """All that a reader can see of a key at a moment."""
    shown: Any
    if type_code == TYPE_REGISTER:
        shown = values.register_value(rows, now_ms)
    elif type_code == TYPE_COUNTER:
        shown = values.counter_value(rows, now_ms)
    elif type_code == TYPE_SET:
        shown = values.set_members(rows, now_ms)
    elif type_code == TYPE_MAP:
        shown = values.map_fields(rows, now_ms)
    elif type_code == TYPE_DOC:
        shown = values.doc_update(rows, now_ms)
    else:
        shown = values.rate_estimate(rows, now_ms, WINDOW_MS)
    return values.exists(type_code, rows, now_ms), shown


ROW_LATTICES: dict[str, Lattice[Rows]] = {name: _lattice(TYPE_BY_NAME[name]) for name in TYPES}
"""The rows of one key, by the name of its type."""

_JSON_LEAVES = ["null", "true", "0", "1.50", "[1,2]", '{"a":[]}', "123456789012345678901234567890"]
FIELDS = [b"", b"a", b"b", b"\x01\x02"]


def leaves() -> SearchStrategy[Leaf]:
    """Strings' bytes (not always UTF-8, some too long for a row key) and other JSON."""
    long_bytes = st.integers(256, 300).map(lambda size: b"x" * size)
    long_json = st.integers(256, 300).map(lambda size: "1" * size)
    return st.one_of(st.binary(max_size=4), st.sampled_from(_JSON_LEAVES), long_bytes, long_json)


def _stamps() -> SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(1, 6), st.integers(1, 3))


def _leaf_for(stamp: tuple[int, int]) -> Leaf:
    # One stamp, one body: only an actor in two places could break that.
    return _JSON_LEAVES[stamp[0]] if stamp[0] % 2 else b"v%d.%d" % stamp


def _expiries() -> SearchStrategy[tuple[int, int, int]]:
    set_to = _stamps().map(lambda stamp: (*stamp, START_MS + 10 * (sum(stamp) % 4 - 1)))
    return st.one_of(st.just((*NO_STAMP, 0)), set_to)


def _register_row(stamp: tuple[int, int], expiry: tuple[int, int, int]) -> Row:
    dead = sum(stamp) % 5 == 0
    kind_and_data = (0, b"") if dead else kind_and_bytes(_leaf_for(stamp))
    return (*stamp, *kind_and_data, *(expiry if expiry[:2] >= stamp else (0, 0, 0)))


def _field_row(stamp: tuple[int, int]) -> Row:
    if sum(stamp) % 5 == 0:
        return (*stamp, 0, b"", 0)
    return (*stamp, *kind_and_bytes(_leaf_for(stamp)), START_MS + stamp[0] - 3)


def _counts() -> SearchStrategy[Row]:
    numbers = st.integers(0, 9)
    return st.tuples(numbers, numbers, numbers, numbers).map(
        lambda drawn: (max(drawn[0], drawn[2]), max(drawn[1], drawn[3]), drawn[2], drawn[3])
    )


def _elements(leaf: Leaf) -> SearchStrategy[Row]:
    _, data = kind_and_bytes(leaf)
    pair = st.tuples(st.integers(1, 9), st.integers(0, 9)).map(lambda d: (max(d), d[1]))
    dots = st.dictionaries(st.integers(1, 3), pair, min_size=1).map(
        lambda drawn: tuple((actor, *drawn[actor]) for actor in sorted(drawn))
    )
    return dots.map(lambda drawn: (data if len(data) > 255 else b"", drawn))


def _cleared_heads() -> SearchStrategy[Row]:
    cleared = st.dictionaries(st.integers(1, 3), st.integers(1, 9))
    head = st.tuples(cleared.map(lambda d: tuple(sorted(d.items()))), _expiries())
    return head.map(lambda d: (d[0], *d[1]))


def _doc_rows() -> dict[Part, SearchStrategy[Row]]:
    drawn: dict[Part, SearchStrategy[Row]] = {}
    for actor, birth, base in ((1, 1, 1), (1, 6, 4), (2, 4, 4), (2, 8, 1), (3, 3, 2)):
        states = row_chain(actor, birth, base, ROW_LENGTH)
        drawn[doc_part(actor, birth)] = st.sampled_from(states)
    for actor, hlc, client in ((1, 5, 2_004), (2, 7, 1_001)):
        deleted = delete_update({client: [Range(client, 0, 3)]})
        drawn[erasure_part(actor, hlc)] = st.just((deleted,))
    return drawn


def _parts(type_name: str) -> dict[Part, SearchStrategy[Row]]:
    actors = [(actor, birth) for actor in (1, 2, 3) for birth in (1, 2)]
    if type_name == "register":
        return {VALUE: st.tuples(_stamps(), _expiries()).map(lambda d: _register_row(*d))}
    if type_name == "counter":
        return {HEAD: _expiries(), **{actor_part(*pair): _counts() for pair in actors}}
    if type_name == "set":
        members: list[Leaf] = [b"", b"a", "1", b"x" * 256, "1" * 256]
        drawn = {set.part_of(leaf): _elements(leaf) for leaf in members}
        return {HEAD: _cleared_heads(), **drawn}
    if type_name == "map":
        clear = st.tuples(_stamps(), _expiries()).map(lambda d: (*d[0], *d[1]))
        fields = {field_part(name): _stamps().map(_field_row) for name in FIELDS}
        counts = {field_counter_part(b"a", *pair): _counts() for pair in actors}
        return {HEAD: clear, **fields, **counts}
    if type_name == "doc":
        return {HEAD: _cleared_heads(), **_doc_rows()}
    index = START_MS // WINDOW_MS
    window = st.integers(0, 9).map(lambda n: (n, n // 2, WINDOW_MS))
    windows = {window_part(index - back, actor): window for back in (0, 1, 2) for actor in (1, 2)}
    return {HEAD: _expiries(), **windows}


def row_states(type_name: str) -> SearchStrategy[Rows]:
    """Rows of one key, reachable or not; one stamp never has two bodies."""
    return st.fixed_dictionaries({}, optional=_parts(type_name))
