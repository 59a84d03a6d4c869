"""How a row is named and stored: key, part, checksum.

A key's state is a dictionary of rows. A row is named by its *part*: one tag byte and a suffix
that the tag decides:

    HEAD                (none)                                   expiry, clear of a whole key
    VALUE               (none)                                   register
    ACTOR               actor u64, birth u64                     counter
    ELEMENT             the element's bytes (<= 255)             set
    JSON_ELEMENT        the element's JSON text (<= 255 bytes)   set
    LONG_ELEMENT        128-bit hash; the element in the body    set
    LONG_JSON_ELEMENT   the same for JSON text                   set
    FIELD               the field's bytes (<= 255)               map
    FIELD_COUNTER       len(field) u8, field, actor, birth       map
    WINDOW              window index u64, actor u64              rate
    DOC                 actor u64, birth u64                     doc
    DOC_ERASURE         actor u64, hlc u64                       doc

A tag of its own for the head keeps an empty field or element from colliding with it. Integers
are big-endian, so that rows of a key sort by them. On disk a row is `key NUL part` ->
`crc32 u32 | type u8 | body`; the checksum covers type, row key and body, because LMDB has none
and a row under another row's name is as wrong as a flipped bit.
"""

from __future__ import annotations

from hashlib import blake2b
from struct import Struct
from typing import Any, Final
from zlib import crc32

from roost_crdt.errors import ActorReused, BadRequest, CorruptData
from roost_crdt.limits import DEFAULT_LIMITS
from roost_crdt.rows.leaf import check_json_text

Part = bytes
Row = tuple[Any, ...]
Rows = dict[Part, Row]
Delta = dict[Part, Row]

TYPE_REGISTER: Final = 1
TYPE_COUNTER: Final = 2
TYPE_SET: Final = 3
TYPE_MAP: Final = 4
TYPE_RATE: Final = 5
TYPE_DOC: Final = 6
TYPE_NAMES: Final[dict[int, str]] = {
    TYPE_REGISTER: "register",
    TYPE_COUNTER: "counter",
    TYPE_SET: "set",
    TYPE_MAP: "map",
    TYPE_RATE: "rate",
    TYPE_DOC: "doc",
}
TYPE_BY_NAME: Final[dict[str, int]] = {name: code for code, name in TYPE_NAMES.items()}

TAG_HEAD: Final = 1
TAG_VALUE: Final = 2
TAG_ACTOR: Final = 3
TAG_ELEMENT: Final = 4
TAG_JSON_ELEMENT: Final = 5
TAG_LONG_ELEMENT: Final = 6
TAG_LONG_JSON_ELEMENT: Final = 7
TAG_FIELD: Final = 8
TAG_FIELD_COUNTER: Final = 9
TAG_WINDOW: Final = 10
TAG_DOC: Final = 11
TAG_DOC_ERASURE: Final = 12

RESERVED: Final = b"\x01"
"""Keys that begin so are the cluster's own (see roost_crdt.members): replicated, never shown."""

HEAD: Final[Part] = bytes([TAG_HEAD])
VALUE: Final[Part] = bytes([TAG_VALUE])

NO_STAMP: Final = (0, 0)
U64_MAX: Final = (1 << 64) - 1
INT64_MAX: Final = (1 << 63) - 1
INT64_MIN: Final = -(1 << 63)

KEY_BYTES_MAX: Final = DEFAULT_LIMITS.key_bytes_max
FIELD_BYTES_MAX: Final = DEFAULT_LIMITS.field_bytes_max
"""Not configurable: LMDB bounds its keys at 511 bytes."""
HASH_BYTES: Final = 16

_ONE_U64 = Struct(">Q")
_TWO_U64 = Struct(">QQ")
_SEALED = Struct(">IB")
_TYPE_CRC = [crc32(bytes([code])) for code in range(256)]
_ACTOR_PREFIX = bytes([TAG_ACTOR])
_WINDOW_PREFIX = bytes([TAG_WINDOW])
_DOC_PREFIX = bytes([TAG_DOC])
_ERASURE_PREFIX = bytes([TAG_DOC_ERASURE])
_PLAIN_TAGS = {TAG_ELEMENT, TAG_FIELD}
_HASH_TAGS = {TAG_LONG_ELEMENT, TAG_LONG_JSON_ELEMENT}
_PAIR_TAGS = {TAG_ACTOR, TAG_WINDOW, TAG_DOC, TAG_DOC_ERASURE}
_BARE_TAGS = {TAG_HEAD, TAG_VALUE}


class StampReused(ActorReused):
    """Two rows carry one stamp and differ: two writers share an actor.

    `kept` is what every node keeps, whatever order the two came in: the joined Row where
    `join_row` raised, the whole joined Delta where `join_delta` did. Apply it, then alarm.
    """

    def __init__(self, message: str, kept: Any) -> None:
        super().__init__(message)
        self.kept = kept


def check_key(key: bytes) -> None:
    """Raise BadRequest unless `key` can name a client's state: 1 to 200 bytes, no NUL."""
    if not key:
        raise BadRequest("the key is empty")
    if len(key) > KEY_BYTES_MAX:
        raise BadRequest(f"the key has {len(key)} bytes; at most {KEY_BYTES_MAX} are allowed")
    if 0 in key:
        raise BadRequest("the key contains a NUL byte")
    if key.startswith(RESERVED):
        raise BadRequest("keys that begin with the byte 1 are the cluster's own")


def row_key(key: bytes, part: Part) -> bytes:
    """The name under which a row is stored and sent."""
    return key + b"\0" + part


def split_row_key(name: bytes) -> tuple[bytes, Part]:
    """Key and part of a row's name; CorruptData if no writer can have made it."""
    key, nul, part = name.partition(b"\0")
    if not nul or not key or len(key) > KEY_BYTES_MAX:
        raise CorruptData(f"row key of {len(name)} bytes does not hold a key: {name[:64]!r}")
    check_part(part)
    return key, part


def check_part(part: Part) -> None:
    """Raise CorruptData unless `part` is a known tag with a suffix of its shape."""
    size = len(part) - 1
    tag = part[0] if part else 0
    if tag in _PAIR_TAGS:
        good = size == 16
    elif tag in _PLAIN_TAGS:
        good = size <= FIELD_BYTES_MAX
    elif tag in _BARE_TAGS:
        good = size == 0
    elif tag in _HASH_TAGS:
        good = size == HASH_BYTES
    elif tag == TAG_JSON_ELEMENT:
        good = 0 < size <= FIELD_BYTES_MAX
        if good:
            check_json_text(part[1:])
    elif tag == TAG_FIELD_COUNTER:
        good = size >= 17 and size == part[1] + 17
    else:
        good = False
    if not good:
        raise CorruptData(f"part with tag {tag} and {size} bytes has no known shape")


def seal(name: bytes, type_code: int, body: bytes) -> bytes:
    """The stored form of a row: `crc32 u32 | type u8 | body`."""
    return _SEALED.pack(crc32(body, crc32(name, _TYPE_CRC[type_code])), type_code) + body


def is_sealed(name: bytes, stored: bytes | memoryview) -> bool:
    """Whether `seal` made these bytes under this name; the type need not be a known one."""
    if len(stored) < _SEALED.size:
        return False
    checksum: int
    checksum, type_code = _SEALED.unpack_from(stored)
    return crc32(stored[_SEALED.size :], crc32(name, _TYPE_CRC[type_code])) == checksum


def unseal(name: bytes, stored: bytes) -> tuple[int, bytes]:
    """Type and body of a stored row; CorruptData if its checksum does not hold."""
    if len(stored) < _SEALED.size:
        raise CorruptData(f"row {name!r} is cut short: {len(stored)} bytes")
    checksum, type_code = _SEALED.unpack_from(stored)
    body = stored[_SEALED.size :]
    if crc32(body, crc32(name, _TYPE_CRC[type_code])) != checksum:
        raise CorruptData(f"row {name!r} fails its checksum")
    return type_code, body


def actor_prefix(actor: int) -> bytes:
    """What the ACTOR parts of one actor begin with."""
    return _ACTOR_PREFIX + _ONE_U64.pack(actor)


def actor_part(actor: int, birth: int) -> Part:
    return _ACTOR_PREFIX + _TWO_U64.pack(actor, birth)


def field_part(field: bytes) -> Part:
    """The FIELD part; BadRequest over 255 bytes."""
    _check_field(field)
    return b"\x08" + field


def field_counter_prefix(field: bytes) -> bytes:
    """What all FIELD_COUNTER parts of one field begin with; BadRequest over 255 bytes."""
    _check_field(field)
    return bytes((TAG_FIELD_COUNTER, len(field))) + field


def field_counter_part(field: bytes, actor: int, birth: int) -> Part:
    return field_counter_prefix(field) + _TWO_U64.pack(actor, birth)


def field_of(part: Part) -> bytes:
    """The field that a FIELD or FIELD_COUNTER part names."""
    return part[1:] if part[0] == TAG_FIELD else part[2 : 2 + part[1]]


def window_part(index: int, actor: int) -> Part:
    return _WINDOW_PREFIX + _TWO_U64.pack(index, actor)


def window_index(part: Part) -> int:
    index: int = _ONE_U64.unpack_from(part, 1)[0]
    return index


def doc_prefix(actor: int) -> bytes:
    """What the DOC parts of one actor begin with."""
    return _DOC_PREFIX + _ONE_U64.pack(actor)


def doc_part(actor: int, birth: int) -> Part:
    return _DOC_PREFIX + _TWO_U64.pack(actor, birth)


def erasure_part(actor: int, hlc: int) -> Part:
    return _ERASURE_PREFIX + _TWO_U64.pack(actor, hlc)


def actor_of(part: Part) -> int:
    """The actor of an ACTOR, FIELD_COUNTER, DOC or DOC_ERASURE part."""
    actor: int = _ONE_U64.unpack_from(part, len(part) - 16)[0]
    return actor


def birth_of(part: Part) -> int:
    """The hlc at the end of an ACTOR, FIELD_COUNTER, DOC or DOC_ERASURE part."""
    birth: int = _ONE_U64.unpack_from(part, len(part) - 8)[0]
    return birth


def hash_of(data: bytes) -> bytes:
    """The 128-bit name of something too long to stand in a row key."""
    return blake2b(data, digest_size=HASH_BYTES).digest()


def _check_field(field: bytes) -> None:
    if len(field) > FIELD_BYTES_MAX:
        raise BadRequest(f"the field has {len(field)} bytes; at most {FIELD_BYTES_MAX} are allowed")
