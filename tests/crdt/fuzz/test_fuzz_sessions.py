"""Foreign bytes of sessions: frames, heads, updates of documents, entries; refusals change nothing.

Seeds are what real homes write: turns, calls, summaries, fields that epochs overwrite, a
takeover, compacted documents. Hostile shapes of FAULTS 2.7 are thrown in as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from fuzzing import MSGPACK, VARINTS, inputs, throw
from volatile_table import Disk

from roost_crdt import fold, home
from roost_crdt.document import Document, check_update, client_id, merge
from roost_crdt.errors import CorruptData, PeerError
from roost_crdt.fold import Epoch, Fold
from roost_crdt.home import Candidate, decode_frame, decode_meta, encode_frame, encode_meta
from roost_crdt.limits import DEFAULT_LIMITS
from roost_crdt.sessions.shelf import Shelf
from roost_crdt.sessions.stream import Stream
from roost_crdt.sessions.table import SessionTable
from roost_crdt.yupdate import read_state_vector, read_update

SID = "s-1"
EU: Epoch = (1, "eu")
US: Epoch = (2, "us")
ACTORS = {"eu": 11, "us": 22, "ap": 33}
HOSTILE = (
    b"\x01\x01\x05\x00\x00\xfe\xff\xff\xff\x0f\x00",
    b"\x01\x01\x05\x00\x0a\x05\x00",
    b"\x01\x01\x05\x00\x28\x01\x01e\x01a\x01" + b"\x76\x01\x01a" * 16_000 + b"\x7e\x00",
    b"\x01\x01\x05\x00\x27\x01\x01e\x01a\x01" + b"\x00" * 50_000,
    b"\xff\xff\xff\xff\x0f" * 3,
    b"\x00\x01\x05\xff\xff\xff\xff\xff\xff\xff\x7f",
)


def turn(epoch: Epoch, number: int, parent: fold.TurnRef | None, text: str) -> tuple[str, bytes]:
    return fold.turn_entry(
        epoch,
        number,
        parent=parent,
        turn_id=f"id-{number}",
        messages=[b'{"role":"user","content":"%s"}' % text.encode()],
        at_ms=number,
    )


def step(epoch: Epoch, status: Any, result: bytes | None) -> tuple[str, bytes]:
    return fold.call_entry(
        "call-1", 1, status, epoch, tool="search", args=b'{"q":1}', result=result, at_ms=5
    )


def steps() -> list[tuple[Epoch, dict[str, bytes], dict[str, bytes]]]:
    """What two homes write, one after the other: epoch, entries, fields."""
    eu2, us3 = (*EU, 2), (*US, 3)
    field = fold.field_entry
    return [
        (EU, dict([turn(EU, 1, None, "a"), step(EU, "begun", None)]), {}),
        (EU, dict([turn(EU, 2, (*EU, 1), "b")]), dict([field("kv", "x", EU, b"1", 2)])),
        (EU, dict([step(EU, "finished", b'"r"')]), dict([field("kv", "x", EU, b"2", 3)])),
        (US, dict([turn(US, 3, eu2, "c")]), dict([field("kv", "x", US, b"3", 4)])),
        (US, dict([turn(US, 4, us3, "d")]), dict([field("kv", "y", US, None, 5)])),
        (US, dict([fold.summary_entry(US, 4, covers=us3, message=b'"s"')]), {}),
    ]


def updates() -> list[bytes]:
    """Each step as one update, then documents that hold several of them."""
    made: list[bytes] = []
    for epoch, entries, fields in steps():
        home_of = Document.load(client_id(epoch[0], ACTORS[epoch[1]], SID), made)
        made.append(home_of.write(entries, fields))
    return made


def document(held: list[bytes], epoch: Epoch = EU) -> Document:
    return Document.load(client_id(epoch[0], ACTORS[epoch[1]], SID), held)


DEAD_FIELD = bytes.fromhex(
    "020590e491e29801002801016508742f322e75732e3301742d949301a2657502a469642d3391c41d7b22726f6c"
    "65223a2275736572222c22636f6e74656e74223a2263227d03a8f3a9becc6d050174099402a27573c401330428"
    "01016508742f322e75732e3401742d949302a2757303a469642d3491c41d7b22726f6c65223a2275736572222c"
    "22636f6e74656e74223a2264227d0428010166046b7600790174079402a27573c0052801016508732f322e7573"
    "2e3401740c929302a2757303c40322732206f3a9aecc6d002801016508742f312e65752e3101742894c0a46964"
    "2d3191c41d7b22726f6c65223a2275736572222c22636f6e74656e74223a2261227d012801016515632f63616c"
    "6c2d312f312f626567756e2f312e657501741394a6736561726368c4077b2271223a317dc0052801016508742f"
    "312e65752e3201742d949301a2657501a469642d3291c41d7b22726f6c65223a2275736572222c22636f6e7465"
    "6e74223a2262227d0221010166046b560078012801016518632f63616c6c2d312f312f66696e69736865642f31"
    "2e657501741794a6736561726368c4077b2271223a317dc40322722205a1f3a9becc6d030101f3a9becc6d0203"
    "010501"
)
"""Found by these mutants: overwrites of places not known here, and a field that comes only dead."""


def content(of: Document) -> tuple[object, ...]:
    return (
        of.entries(),
        of.fields(),
        read_state_vector(of.state_vector()),
        frozenset(of._entry_keys),
    )


def check_taken(of: Document) -> None:
    """A document that took an update folds, and is loaded again from its encoding."""
    read = Fold()
    for key, leaf in of.entries().items():
        read.add(key, leaf)
    for key, leaf in of.fields().items():
        read.add_field(key, leaf)
    read.messages(), read.branches(), read.fields(), read.path_epochs(4)
    again = Document.load(99, [of.encode()])
    assert (again.entries(), again.fields()) == (of.entries(), of.fields())


def test_updates_are_taken_whole_or_change_nothing() -> None:
    made = updates()
    held = made[:3]
    mine, breaks = document(held), 0
    before = content(mine)

    def check(raw: bytes) -> None:
        nonlocal mine, before, breaks
        try:
            changes = mine.apply(raw, outside=True)
        except CorruptData:
            if mine.broken:
                breaks += 1
                mine = document(held)
            assert content(mine) == before
            raise
        try:
            check_taken(mine)
        except CorruptData as error:
            raise AssertionError("what was taken cannot be read again") from error
        if changes.entries or changes.fields or changes.repairs:
            mine = document(held)
        before = content(mine)
        if raw in made[:3]:
            assert changes == ({}, {}, {}, ())

    seeds = [*made[:4], merge(made), merge(made[2:4]), document(made).encode()]
    throw("documents", seeds, check, (CorruptData,), tokens=VARINTS, tree=False)
    assert breaks <= 5 + inputs("documents") // 500, (
        "what breaks a document should be refused before Yjs sees it"
    )
    for hostile in HOSTILE:
        with pytest.raises(CorruptData):
            mine.apply(hostile, outside=True)
        with pytest.raises(CorruptData):
            check_update(hostile)
    assert content(mine) == before


def test_a_field_that_comes_only_dead_is_refused_at_once() -> None:
    """Once it was taken, and the document could not be loaded any more."""
    mine = document(updates()[:3])
    with pytest.raises(CorruptData, match="deletes a field"):
        mine.apply(DEAD_FIELD, outside=True)
    assert mine.broken


def test_updates_without_a_document_are_read_or_refused() -> None:
    made = updates()

    def check(raw: bytes) -> None:
        contents = read_update(raw)
        assert len(contents.entries) + len(contents.overwrites) <= len(raw)
        entries = check_update(raw)
        whole = Fold()
        for key, leaf in entries.items():
            whole.add(key, leaf)

    seeds = [*made, merge(made), document(made).encode()]
    throw("updates", seeds, check, (CorruptData,), tokens=VARINTS, tree=False)


def test_entries_are_folded_or_change_nothing() -> None:
    encode = msgspec.msgpack.encode
    pair = msgspec.msgpack.Decoder(tuple[str, bytes])
    items = [item for _, entries, fields in steps() for item in (*entries.items(), *fields.items())]
    held = items[:6]

    def fresh() -> Fold:
        made = Fold()
        for key, leaf in held:
            add(made, key, leaf)
        return made

    def add(to: Fold, key: str, leaf: bytes) -> None:
        if "\0" in key:
            to.add_field(key, leaf)
        else:
            to.add(key, leaf)

    def view(of: Fold) -> tuple[object, ...]:
        return (
            of.turn,
            of.messages(),
            of.branches(),
            dict(of.lineage()),
            of.calls,
            of.fields(),
            of.raw_entries(),
            of.raw_fields(),
            of.collisions,
        )

    mine = fresh()
    before = view(mine)

    def check(raw: bytes) -> None:
        nonlocal mine
        try:
            key, leaf = pair.decode(raw)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise CorruptData(f"the pair itself: {error}") from None
        try:
            add(mine, key, leaf)
        except CorruptData:
            assert view(mine) == before
            raise
        shown = view(mine)
        add(mine, key, leaf)
        assert view(mine)[:-1] == shown[:-1]
        views = mine.view_rows(mine.raw_entries(), mine.raw_fields()).items()
        assert view(Fold.from_views(views))[:-1] == shown[:-1]
        mine = fresh()

    throw("entries", [encode(list(item)) for item in items], check, (CorruptData,))


# --- frames between home and standby ------------------------------------------------------------


class OneLink:
    """This node sees one other node, `eu`."""

    def candidates(self) -> list[Candidate]:
        return [Candidate("eu", "eu", 20.0)]

    def beyond(self) -> set[str]:
        return set()

    def silent_ms(self, node: str) -> int:
        return 0


def node(name: str) -> tuple[Stream, Shelf, Disk]:
    disk = Disk()
    shelf = Shelf(
        node=name,
        region=name,
        actor=ACTORS[name],
        table=SessionTable(disk),
        limits=DEFAULT_LIMITS,
        now_ms=lambda: 1_000_000,
    )
    return Stream(shelf, OneLink(), takeover_after_ms=1_000), shelf, disk


def frames_of_home() -> list[home.Frame]:
    """What `eu` sends its standby `us`, in order, and one frame of every other kind."""
    _, shelf, _ = node("eu")
    live = shelf.adopt(shelf.new_copy(home.Meta(SID, EU, "us", actor=ACTORS["eu"])))
    live.set_meta(live.meta)
    sent: list[home.Frame] = [
        live.write(entries, fields, 7) for epoch, entries, fields in steps() if epoch == EU
    ]
    meta = live.meta
    return [
        *sent,
        live.whole(),
        home.Offer(SID, EU, "us", meta.n, meta.chain, 7),
        home.Ack(SID, EU, 1, b"c" * 16),
        home.Want(SID, EU),
        home.Deposed(SID, (2, "eu"), "us"),
        home.Merge(SID, EU, document(updates()[:3]).encode()),
        home.Merged(SID, EU),
        home.Erase("s-2", 5),
    ]


def play(target: str, prepare: Callable[[], tuple[Stream, Shelf, Disk]]) -> None:
    stream, shelf, disk = prepare()
    taken = 0

    def known() -> tuple[object, ...]:
        live = shelf.lives.get(SID)
        shown = None if live is None else (live.meta, live.fold.raw_entries(), live.fold.fields())
        return disk.seen, shown, list(shelf.lives), list(shelf.stubs.items()), stream._out._frames

    def check(raw: bytes) -> None:
        nonlocal stream, shelf, disk, taken
        before = msgspec.msgpack.encode(known())
        try:
            stream.on_frame("eu", raw)
        except PeerError:
            assert msgspec.msgpack.encode(known()) == before, "a refusal changed something"
            assert not stream.take_frames(), "a refusal sent something"
            raise
        for _, sent in stream.take_frames():
            decode_frame(sent)
        taken += 1
        stream.tick()
        stream.sweep_page("")
        for peer, sent in stream.take_frames():
            assert peer
            assert decode_frame(sent)
        for meta in shelf.table.heads("", 100):
            if meta.held and not meta.erased_ms:
                copy = shelf.live(meta.sid)
                assert copy is not None
                assert copy.head_turn() >= 0
                with suppress(CorruptData):  # a standby finds gaps when it loads a document
                    copy.document.encode()
        stream, shelf, disk = prepare()

    throw(target, [encode_frame(f) for f in frames_of_home()], check, (PeerError,))
    assert taken


def standby() -> tuple[Stream, Shelf, Disk]:
    """`us` holds the first step of the session as its standby."""
    made = node("us")
    made[0].on_frame("eu", encode_frame(FRAMES[0]))
    made[0].take_frames()
    return made


def home_of_session() -> tuple[Stream, Shelf, Disk]:
    """`us` is home of the session; `eu` is its standby."""
    made = node("us")
    live = made[1].adopt(made[1].new_copy(home.Meta(SID, US, "eu", actor=ACTORS["us"])))
    live.set_meta(live.meta)
    live.write(dict([turn(US, 1, None, "mine")]), {}, 7)
    return made


FRAMES = frames_of_home()


def test_session_frames_decode_or_are_refused() -> None:
    def check(raw: bytes) -> None:
        frame = decode_frame(raw)
        assert decode_frame(encode_frame(frame)) == frame

    throw("session frames", [encode_frame(f) for f in FRAMES], check, (PeerError,))


def test_a_standby_takes_a_frame_or_changes_nothing() -> None:
    play("standby", standby)


def test_a_home_takes_a_frame_or_changes_nothing() -> None:
    play("home", home_of_session)


def test_stored_heads_decode_or_are_refused() -> None:
    def check(raw: bytes) -> None:
        meta = decode_meta(raw)
        assert decode_meta(encode_meta(meta)) == meta

    seeds = [
        encode_meta(home.Meta(SID, EU, "us", 3, b"c" * 16, 1, 2, 3, 4, True, 0, True, 11)),
        encode_meta(home.Meta(SID, EU, None, erased_ms=5, held=False)),
    ]
    throw("session heads", seeds, check, (CorruptData,), tokens=MSGPACK)
    with pytest.raises(CorruptData, match="cannot be read"):
        decode_meta(seeds[0].replace(b"\x9d", b"\x9e", 1) + b"\x91" * 100_000)
