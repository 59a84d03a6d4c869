"""Frames: what goes out comes back, and foreign bytes end as a frame or a PeerError."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost_crdt import frames as f
from roost_crdt.errors import PeerError

u64 = st.integers(0, 2**64 - 1)
names = st.text(min_size=1, max_size=20)
vectors = st.dictionaries(u64, u64, max_size=5)
blobs = st.binary(max_size=64)
heads = st.none() | st.tuples(u64, blobs)
frames = st.one_of(
    st.builds(f.Records, st.lists(st.binary(), min_size=1, max_size=4)),
    st.builds(f.IHave, vectors),
    st.builds(f.Want, u64, u64),
    st.builds(f.Prune, u64),
    st.builds(f.Links, st.lists(names, max_size=4).map(tuple), st.dictionaries(names, u64)),
    st.builds(
        f.Heartbeat,
        id=u64,
        echo=u64,
        held_ms=st.integers(0, 2**40),
        vv_hash=blobs,
        digest=blobs,
        clock_ms=st.integers(0, 2**50),
        chain=heads,
    ),
    st.builds(f.SnapshotWant, u64),
    st.builds(f.SnapshotRows, u64, st.lists(st.tuples(st.binary(), u64, st.binary()), max_size=3)),
    st.builds(f.SnapshotEnd, u64, vectors),
    st.builds(f.Session, st.binary()),
    st.builds(f.SnapshotOffer, u64),
    st.builds(f.Error, names, names),
)
greetings = st.builds(
    f.Greeting,
    versions=st.lists(u64, max_size=3).map(tuple),
    cluster=names,
    node=names,
    actor=u64,
    vv=vectors,
    gc_floor=vectors,
    links=st.lists(names, max_size=3).map(tuple),
    public_keys=st.dictionaries(names, blobs, max_size=2),
    head=st.none() | st.tuples(u64, u64, blobs),
    chain=heads,
)


@given(frames)
def test_a_frame_comes_back_as_it_was(frame: f.Frame) -> None:
    assert f.decode_frame(f.encode_frame(frame)) == frame


@given(greetings)
def test_a_greeting_comes_back_as_it_was(greeting: f.Greeting) -> None:
    data = f.encode_greeting(greeting)
    assert f.decode_greeting(data) == greeting
    with pytest.raises(PeerError, match="second greeting"):
        f.decode_frame(data)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_frame_or_a_peer_error(data: bytes) -> None:
    with suppress(PeerError):
        assert isinstance(f.decode_frame(data), f.Frame)


@given(frames | greetings, st.data())
def test_damaged_frames_are_a_frame_or_a_peer_error(
    frame: f.Frame | f.Greeting, data: st.DataObject
) -> None:
    whole = f.encode_greeting(frame) if isinstance(frame, f.Greeting) else f.encode_frame(frame)
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    with suppress(PeerError):
        assert isinstance(f.decode_frame(bytes(damaged)), f.Frame)
    with suppress(PeerError):
        assert isinstance(f.decode_greeting(bytes(damaged)), f.Greeting)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (msgspec.msgpack.encode([99, 1]), "cannot be read"),
        (msgspec.msgpack.encode([1, []]), "length >= 1"),
        (msgspec.msgpack.encode([3, -1, 0]), ">= 0"),
        (msgspec.msgpack.encode([3, "1", 0]), "Expected `int`"),
        (msgspec.msgpack.encode([5, ["x"] * 2_000]), "length <= 1000"),
        (b"\x91" * 100_000, "cannot be read"),
        (b"\x92\x02" + b"\x81\x01" * 5_000, "cannot be read"),
        (b"", "truncated"),
        (f.encode_frame(f.Prune(1)) + b"\x00", "trailing"),
        (b"\x92\x01\xdd\xff\xff\xff\xff", "truncated"),
    ],
)
def test_what_is_wrong_with_a_frame_is_said(data: bytes, why: str) -> None:
    with pytest.raises(PeerError, match=why):
        f.decode_frame(data)


def test_a_newer_neighbours_additions_are_ignored() -> None:
    greeting = msgspec.msgpack.encode(
        [0, {"versions": [2, 1], "cluster": "c", "node": "n", "later": {"x": 1}}, "more"]
    )
    assert f.decode_greeting(greeting).versions == (2, 1)
    assert f.decode_frame(msgspec.msgpack.encode([4, 7, "more"])) == f.Prune(7)


def test_the_first_message_has_to_be_a_greeting() -> None:
    with pytest.raises(PeerError, match="not a greeting"):
        f.decode_greeting(f.encode_frame(f.Prune(1)))
    with pytest.raises(PeerError, match="refused by the neighbour: PEER: go away"):
        f.decode_greeting(f.encode_frame(f.Error("PEER", "go away")))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"versions": (2, 3)}, r"speaks protocol versions \[2, 3\]"),
        ({"cluster": "prod"}, "belongs to cluster 'prod'"),
        ({"node": "me"}, "own id"),
    ],
)
def test_who_cannot_be_a_neighbour(change: dict[str, object], why: str) -> None:
    greeting = f.Greeting(versions=(1,), cluster="c", node="x")
    f.check_identity(greeting, node="me", cluster="c")
    with pytest.raises(PeerError, match=why):
        f.check_identity(msgspec.structs.replace(greeting, **change), node="me", cluster="c")


@given(vectors, vectors)
def test_hashes_of_version_vectors_differ_as_the_vectors_do(
    a: dict[int, int], b: dict[int, int]
) -> None:
    same = {k: v for k, v in a.items() if v} == {k: v for k, v in b.items() if v}
    assert (f.vv_hash(a) == f.vv_hash(b)) == same
    assert f.vv_hash(dict(reversed(a.items()))) == f.vv_hash(a)
