"""Gossip frames: MessagePack arrays `[kind, ...]`, decoded totally.

    0 GREETING        map                     first message of both sides; unknown fields ignored
    1 RECORDS         [raw, ...]              records as their origin wrote them
    2 IHAVE           {origin: hlc}           what the sender holds
    3 WANT            origin, after           send me this origin from there on; makes it eager
    4 PRUNE           origin                  somebody else sends me this origin; makes it lazy
    5 LINKS           [node], {node: hops}    the sender's live links, and whom it reaches over them
    6 HEARTBEAT       see Heartbeat
    7 SNAPSHOT_WANT   id                      scan your rows for me; an earlier id is given up
    8 SNAPSHOT_ROWS   id, [[row_key, type, body]], {actor: hlc} all that these rows may show
    9 SNAPSHOT_END    id, {actor: hlc}, floor the version vector that all rows of this id cover
    10 SESSION        bytes                   for the session shell
    11 SNAPSHOT_OFFER origin                  my log no longer holds what you want
    12 BUCKET_SUMS    {actor: hlc}, sums, answer   sums of all buckets at that vector; send me yours
    13 BUCKET_WANT    id, [bucket]            send me all rows of these buckets
    14 BUCKET_ROWS    id, [[row_key, type, body]], more, {actor: hlc} all that these may show
    15 ERROR          code, text              the last frame before the sender cuts the link

Arrays may grow at their end and the greeting's map by new fields (both are ignored by an older
reader); an unknown kind is refused. Whatever the bytes are, decoding returns a frame or raises
PeerError, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Annotated, TypeAlias

import msgspec

from .errors import PeerError
from .hlc import HLC_MAX

__all__ = [
    "PROTOCOL_VERSIONS",
    "BucketRows",
    "BucketSums",
    "BucketWant",
    "Error",
    "Frame",
    "Greeting",
    "Heartbeat",
    "IHave",
    "Links",
    "Prune",
    "Records",
    "Session",
    "SnapshotEnd",
    "SnapshotOffer",
    "SnapshotRows",
    "SnapshotWant",
    "Want",
    "check_identity",
    "decode_frame",
    "decode_greeting",
    "encode_frame",
    "encode_greeting",
    "vv_hash",
]

PROTOCOL_VERSIONS = (1,)
"""Versions of this protocol that this build speaks, newest first (N and N-1)."""

RECORD_OVERHEAD_BYTES = 5
"""At most what a record's place in a RECORDS frame adds to it."""
FRAME_OVERHEAD_BYTES = 64
"""A frame may be so much over `body_bytes_max`: one record of that size has to fit."""

NODE_BYTES_MAX = 255
PUBLIC_KEYS_MAX = 64
LINKS_MAX = 1_000
REMOVED_MAX = 10_000
CROSSED_MAX = 256
"""Actors of which records passed over what was held."""
BUCKETS_MAX = 4_096
SUMS_BYTES_MAX = 65_536
ORIGINS_MAX = 65_536
"""Actors of a version vector or an IHAVE."""

U64 = Annotated[int, msgspec.Meta(ge=0)]
Millis = Annotated[int, msgspec.Meta(ge=-(1 << 53), le=1 << 53)]
NodeId = Annotated[str, msgspec.Meta(min_length=1, max_length=NODE_BYTES_MAX)]
Text = Annotated[str, msgspec.Meta(max_length=2_000)]
Hash = Annotated[bytes, msgspec.Meta(max_length=64)]
VersionVector = Annotated[dict[U64, U64], msgspec.Meta(max_length=ORIGINS_MAX)]


class Greeting(msgspec.Struct, frozen=True, kw_only=True):
    """Who is calling and what it holds.

    `head` is what the sender durably knows of the *receiver's* actor: `(actor, hlc, chain)` as
    its own node last told it; `chain` is the sender's own `(hlc, chain)`. `crossed` are hlcs at
    which the sender held an actor when a record of it passed over them. `removed` are the actors
    that were members and are not any more: a receiver that writes as one of them has to reseed.
    """

    versions: tuple[U64, ...]
    cluster: Text
    node: NodeId
    region: Text = ""
    store_id: Hash = b""
    actor: U64 = 0
    vv: VersionVector = msgspec.field(default_factory=dict)
    gc_floor: VersionVector = msgspec.field(default_factory=dict)
    roster_hash: Hash = b""
    removed: Annotated[tuple[U64, ...], msgspec.Meta(max_length=REMOVED_MAX)] = ()
    policy_hashes: dict[Text, Text] = msgspec.field(default_factory=dict)
    links: Annotated[tuple[NodeId, ...], msgspec.Meta(max_length=LINKS_MAX)] = ()
    public_keys: Annotated[dict[Text, Hash], msgspec.Meta(max_length=PUBLIC_KEYS_MAX)] = (
        msgspec.field(default_factory=dict)
    )
    public: Text = ""
    crossed: Annotated[dict[U64, tuple[U64, ...]], msgspec.Meta(max_length=CROSSED_MAX)] = (
        msgspec.field(default_factory=dict)
    )
    head: tuple[U64, U64, Hash] | None = None
    chain: tuple[U64, Hash] | None = None


class _GreetingFrame(msgspec.Struct, frozen=True, array_like=True, tag=0):
    greeting: Greeting


class Records(msgspec.Struct, frozen=True, array_like=True, tag=1):
    raws: Annotated[list[bytes], msgspec.Meta(min_length=1)]


class IHave(msgspec.Struct, frozen=True, array_like=True, tag=2):
    heads: VersionVector


class Want(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """`again`: every record as it was written, once, whatever the asking node holds."""

    origin: U64
    after: U64
    again: bool = False


class Prune(msgspec.Struct, frozen=True, array_like=True, tag=4):
    origin: U64


class Links(msgspec.Struct, frozen=True, array_like=True, tag=5):
    nodes: Annotated[tuple[NodeId, ...], msgspec.Meta(max_length=LINKS_MAX)]
    far: Annotated[dict[NodeId, U64], msgspec.Meta(max_length=LINKS_MAX)] = msgspec.field(
        default_factory=dict
    )


class Heartbeat(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """`echo` is the newest id heard from the receiver, held for `held_ms` before this answer.

    `clock_ms` is the sender's wall clock, `ahead_ms` how far the receiver's records are ahead of
    it (0: none waits), `waiting` the number of records it still has to send here.
    """

    id: U64
    echo: U64
    held_ms: Millis
    vv_hash: Hash
    digest: Hash = b""
    digest_vv_hash: Hash = b""
    clock_ms: Millis = 0
    ahead_ms: Millis = 0
    waiting: U64 = 0
    chain: tuple[U64, Hash] | None = None


class SnapshotWant(msgspec.Struct, frozen=True, array_like=True, tag=7):
    id: U64


class SnapshotRows(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """`vv`: what the sender held, or had rows of, when it read these."""

    id: U64
    rows: list[tuple[bytes, U64, bytes]]
    vv: VersionVector = msgspec.field(default_factory=dict)


class SnapshotEnd(msgspec.Struct, frozen=True, array_like=True, tag=9):
    id: U64
    vv: VersionVector
    gc_floor: VersionVector = msgspec.field(default_factory=dict)
    """What the sender had collected when the scan ended."""


class Session(msgspec.Struct, frozen=True, array_like=True, tag=10):
    payload: bytes


class SnapshotOffer(msgspec.Struct, frozen=True, array_like=True, tag=11):
    origin: U64


class BucketSums(msgspec.Struct, frozen=True, array_like=True, tag=12):
    vv: VersionVector
    sums: Annotated[bytes, msgspec.Meta(max_length=SUMS_BYTES_MAX)]
    answer: bool = False


class BucketWant(msgspec.Struct, frozen=True, array_like=True, tag=13):
    id: U64
    buckets: Annotated[list[U64], msgspec.Meta(min_length=1, max_length=BUCKETS_MAX)]


class BucketRows(msgspec.Struct, frozen=True, array_like=True, tag=14):
    """`vv`: what the sender held, or had rows of, when it read these."""

    id: U64
    rows: list[tuple[bytes, U64, bytes]]
    more: bool = False
    vv: VersionVector = msgspec.field(default_factory=dict)


SHARED_ACTOR = "ACTOR"
"""Code of an ERROR: another neighbour of mine writes as your actor. One of you is a clone: take a
new actor."""


class Error(msgspec.Struct, frozen=True, array_like=True, tag=15):
    code: Text
    text: Text


Frame: TypeAlias = (
    Records
    | IHave
    | Want
    | Prune
    | Links
    | Heartbeat
    | SnapshotWant
    | SnapshotRows
    | SnapshotEnd
    | Session
    | SnapshotOffer
    | BucketSums
    | BucketWant
    | BucketRows
    | Error
)

_encoder = msgspec.msgpack.Encoder()
_frame_decoder: msgspec.msgpack.Decoder[_GreetingFrame | Frame] = msgspec.msgpack.Decoder(
    _GreetingFrame | Frame
)


def encode_frame(frame: Frame) -> bytes:
    return _encoder.encode(frame)


def encode_greeting(greeting: Greeting) -> bytes:
    return _encoder.encode(_GreetingFrame(greeting))


def _decode(data: bytes) -> _GreetingFrame | Frame:
    try:
        return _frame_decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
        raise PeerError(f"frame of {len(data)} bytes cannot be read: {error}") from error


def decode_frame(data: bytes) -> Frame:
    """A frame that may follow the greeting; PeerError for anything else."""
    frame = _decode(data)
    if isinstance(frame, _GreetingFrame):
        raise PeerError("a second greeting on one link")
    return frame


def decode_greeting(data: bytes) -> Greeting:
    """The first message of a link. An ERROR in its place raises PeerError with its text."""
    frame = _decode(data)
    if isinstance(frame, Error):
        raise PeerError(f"refused by the neighbour: {frame.code}: {frame.text}", frame.code)
    if not isinstance(frame, _GreetingFrame):
        raise PeerError("the first message of a link is not a greeting")
    return frame.greeting


def check_identity(greeting: Greeting, *, node: str, cluster: str) -> None:
    """PeerError unless the greeting can be of a neighbour of `node` in `cluster`."""
    theirs = greeting.node
    if not set(greeting.versions) & set(PROTOCOL_VERSIONS):
        raise PeerError(
            f"{theirs} speaks protocol versions {list(greeting.versions)}, {node} speaks "
            f"{list(PROTOCOL_VERSIONS)}: upgrade the older one"
        )
    if greeting.cluster != cluster:
        raise PeerError(f"{theirs} belongs to cluster {greeting.cluster!r}, {node} to {cluster!r}")
    if theirs == node:
        raise PeerError(f"{theirs!r} is this node's own id: two nodes share it")


def vv_hash(vv: Mapping[int, int]) -> bytes:
    """16 bytes that are equal for equal version vectors (an absent entry equals 0)."""
    digest = blake2b(digest_size=16)
    for actor, hlc in sorted(vv.items()):
        assert 0 <= hlc <= HLC_MAX
        if hlc:
            digest.update(actor.to_bytes(8, "big"))
            digest.update(hlc.to_bytes(8, "big"))
    return digest.digest()
