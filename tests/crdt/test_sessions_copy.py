"""A copy of a session: steps that are all or nothing, chains, compaction, whole documents."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import msgspec
import pytest
from session_network import Network, Rows

from roost_crdt.document import OwnClientMoved
from roost_crdt.errors import CorruptData, Full, TooLarge
from roost_crdt.fold import call_entry, turn_entry
from roost_crdt.home import ACTOR_LEAP, CHAIN_START, Epoch, Meta, Update, Whole, chain_next
from roost_crdt.limits import DEFAULT_LIMITS, Limits
from roost_crdt.sessions.copy import COMPACT_UPDATES, SessionCopy
from roost_crdt.sessions.table import SessionTable, prefix_of

SID = "s1"
HOME, STANDBY = 1, 2


class Held:
    """A copy over its own rows, written and read as one node does."""

    def __init__(
        self, epoch: Epoch = (1, "eu"), actor: int = HOME, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self.rows = Rows()
        self.table = SessionTable(self.rows)
        self.limits = limits
        self.actor = actor
        meta = Meta(SID, epoch, "us", actor=actor)
        self.copy = SessionCopy(meta, self.table, actor, limits)

    def turn(self, text: str, fields: dict[str, bytes] | None = None, size: int = 0) -> Update:
        """One more turn on the active path."""
        copy, at_ms = self.copy, 5 + self.copy.meta.n
        put = {
            f"kv\0{name}": copy.fold.put_field("kv", name, copy.meta.epoch, value, at_ms)[1]
            for name, value in (fields or {}).items()
        }
        entry = turn_entry(
            copy.meta.epoch,
            copy.head_turn() + 1,
            parent=copy.fold.turn,
            turn_id=text,
            messages=[text.encode() + b"." * size],
            at_ms=at_ms,
        )
        return copy.write(dict([entry]), put, at_ms)

    def texts(self) -> list[str]:
        return [text.decode() for text in self.copy.fold.messages()]

    def reloaded(self) -> SessionCopy:
        """As after a start."""
        meta = self.table.head(SID)
        assert meta is not None
        return SessionCopy.load(meta, self.table, self.actor, self.limits)

    def agrees_with_disk(self) -> None:
        """Memory, the stored view and the stored document say the same."""
        again = self.reloaded()
        assert again.meta == self.copy.meta
        assert again.fold.raw_entries() == self.copy.fold.raw_entries()
        assert again.fold.raw_fields() == self.copy.fold.raw_fields()
        assert again.document.entries() == self.copy.fold.raw_entries()
        assert again.document.fields() == self.copy.fold.raw_fields()


# -- home's steps


def test_each_step_moves_the_chain_and_is_what_the_standby_needs() -> None:
    home, standby = Held(), Held(actor=STANDBY)
    chain = CHAIN_START
    for n in range(1, 4):
        frame = home.turn(f"turn {n}", {"f": b"%d" % n})
        assert (frame.n, frame.turn, frame.prev_chain) == (n, n, chain)
        chain = chain_next(chain, frame.update)
        assert (home.copy.meta.n, home.copy.meta.chain, home.copy.meta.turn) == (n, chain, n)
        standby.copy.append(frame)
        home.agrees_with_disk()
        standby.agrees_with_disk()
    assert standby.texts() == home.texts() == ["turn 1", "turn 2", "turn 3"]
    assert standby.copy.fold.fields() == {"kv": {"f": b"3"}}
    assert standby.copy.meta.chain == chain
    assert standby.copy.path_epochs() == ((1, "eu", 0, 3),)


def test_a_copy_that_was_never_written_has_no_turn() -> None:
    assert Held().copy.head_turn() == 0


@pytest.mark.parametrize("what", ["standby", "home"])
def test_updates_are_folded_into_a_base_and_nothing_is_lost(what: str) -> None:
    home, standby = Held(), Held(actor=STANDBY)
    count = 2 * COMPACT_UPDATES + 3
    for n in range(count):
        standby.copy.append(home.turn(f"{n}"))
    held = {"home": home, "standby": standby}[what]
    assert held.copy.meta.base_n == 2 * COMPACT_UPDATES
    assert len(held.table.update_keys(SID)) == 3
    assert held.texts() == [str(n) for n in range(count)]
    held.agrees_with_disk()


def test_a_session_that_is_full_refuses_the_turn_and_keeps_the_rest() -> None:
    home = Held(limits=replace(DEFAULT_LIMITS, session_bytes_max=4_000))
    home.turn("one", size=1_000)
    before = (home.copy.meta, dict(home.rows.written))
    with pytest.raises(TooLarge, match="session s1 would pass 4000 bytes; trim it"):
        home.turn("two", size=4_000)
    assert (home.copy.meta, home.rows.written) == before
    home.turn("three")
    home.agrees_with_disk()


def test_a_step_that_the_store_refuses_has_not_happened() -> None:
    home = Held()
    home.turn("one", {"f": b"1"})
    before = (home.copy.meta, home.copy.fold.raw_entries(), home.copy.fold.raw_fields())
    home.rows.refuse = Full("no room")
    with pytest.raises(Full):
        home.turn("two", {"f": b"2"})
    assert (home.copy.meta, home.copy.fold.raw_entries(), home.copy.fold.raw_fields()) == before
    home.rows.refuse = None
    home.turn("two", {"f": b"3"})
    assert home.texts() == ["one", "two"]
    home.agrees_with_disk()


def test_a_head_that_the_store_refuses_is_not_in_force() -> None:
    home = Held()
    home.turn("one")
    before = home.copy.meta
    home.rows.refuse = Full("no room")
    with pytest.raises(Full):
        home.copy.enter_epoch("us", "eu", 9)
    assert home.copy.meta == before


def test_what_a_copy_takes_in_memory_grows_with_what_it_holds() -> None:
    home = Held()
    empty = home.copy.size_bytes
    home.turn("one", {"f": b"x" * 2_000}, size=3_000)
    both = home.copy.size_bytes
    assert both - empty > 2 * 5_000
    assert empty < home.reloaded().size_bytes < both, "the document stays on disk until it is used"


# -- epochs and actors


def test_another_actor_never_writes_under_the_epoch_of_the_one_before() -> None:
    home = Held()
    home.turn("one")
    home.copy.renew(8)
    home.actor = 8
    home.copy.own_epoch(77)
    assert home.copy.meta.epoch == (1 + ACTOR_LEAP, "eu")
    assert (home.copy.meta.actor, home.copy.meta.used_ms) == (8, 77)
    home.copy.own_epoch(78)
    assert home.copy.meta.epoch == (1 + ACTOR_LEAP, "eu")
    home.turn("two")
    assert home.texts() == ["one", "two"]
    home.agrees_with_disk()


def test_a_former_home_that_is_home_again_has_nothing_to_merge_into_another() -> None:
    home = Held()
    home.copy.set_meta(msgspec.structs.replace(home.copy.meta, epoch=(4, "us"), unmerged=True))
    home.copy.enter_epoch("eu", "us", 9)
    assert (home.copy.meta.epoch, home.copy.meta.unmerged) == ((5, "eu"), False)
    assert home.copy.meta.standby == "us"


def test_another_epoch_writes_under_another_client_id() -> None:
    home = Held()
    home.turn("one")
    first = home.copy.document.client_id
    home.copy.enter_epoch("eu", "us", 9)
    assert home.copy.document.client_id != first
    home.turn("two")
    home.agrees_with_disk()


def test_a_head_in_memory_only_is_stored_with_the_next_step() -> None:
    home = Held()
    home.turn("one")
    home.copy.touch_memory(msgspec.structs.replace(home.copy.meta, acked_n=1))
    assert home.reloaded().meta.acked_n == 0
    home.turn("two")
    assert home.reloaded().meta.acked_n == 1


@pytest.mark.parametrize("broken", [False, True])
def test_what_is_damaged_on_disk_is_stored_again_from_memory(broken: bool) -> None:
    home = Held()
    for n in range(3):
        home.turn(f"{n}", {"f": b"%d" % n})
    stored = [key for key in home.rows.written if key.startswith(prefix_of(SID))]
    for key in stored:
        home.rows.written[key] = b"\xc1"
    home.rows.written[stored[0] + b"-of another name"] = b"\xc1"
    if broken:
        home.copy.document.broken = True
        assert not home.copy.store_again([*stored, stored[0] + b"-of another name"])
        assert home.copy.meta.base_n == 0
        return
    assert home.copy.store_again([*stored, stored[0] + b"-of another name"])
    assert len(home.table.document(SID)) == 1
    assert home.copy.meta.base_n == home.copy.meta.n == 3
    home.agrees_with_disk()
    home.turn("3")
    home.agrees_with_disk()
    assert home.texts() == ["0", "1", "2", "3"]


def test_a_document_that_is_not_in_memory_replaces_nothing_on_disk() -> None:
    home = Held()
    home.turn("one")
    again = home.reloaded()
    before = dict(home.rows.written)
    assert not again.store_again(list(before))
    assert home.rows.written == before


# -- the standby's steps


def test_the_first_update_of_a_session_makes_a_copy() -> None:
    home, standby = Held(), Held(actor=STANDBY)
    standby.copy.meta = Meta(SID, (1, "eu"), "us", held=False)
    frame = home.turn("one")
    standby.copy.append(frame)
    meta = standby.copy.meta
    assert (meta.held, meta.actor, meta.n, meta.used_ms) == (True, STANDBY, 1, frame.at_ms)


def test_a_standby_follows_its_home_into_another_epoch() -> None:
    home, standby = Held(), Held(actor=STANDBY)
    standby.copy.append(home.turn("one"))
    first = standby.copy.document.client_id
    home.copy.enter_epoch("eu", "ap", 9)
    standby.copy.append(home.turn("two"))
    assert (standby.copy.meta.epoch, standby.copy.meta.standby) == ((2, "eu"), "ap")
    assert standby.copy.document.client_id != first
    standby.agrees_with_disk()


def damaged(frame: Update) -> Update:
    return msgspec.structs.replace(frame, update=frame.update[:-2])


def other_view(frame: Update) -> Update:
    key = next(iter(frame.entries))
    return msgspec.structs.replace(frame, entries={key: b"\xc0"})


def made_up_view(frame: Update) -> Update:
    entry = turn_entry((1, "eu"), 1, parent=None, turn_id="no", messages=[], at_ms=1)
    return msgspec.structs.replace(frame, entries=dict([entry]))


def shorter_view(frame: Update) -> Update:
    return msgspec.structs.replace(frame, entries={})


@pytest.mark.parametrize("change", [damaged, other_view, made_up_view, shorter_view])
def test_an_update_that_is_not_what_it_says_changes_nothing(
    change: Callable[[Update], Update],
) -> None:
    home, standby = Held(), Held(actor=STANDBY)
    standby.copy.append(home.turn("one"))
    before, rows = standby.copy.meta, dict(standby.rows.written)
    with pytest.raises(CorruptData):
        standby.copy.append(change(home.turn("two")))
    assert (standby.copy.meta, standby.rows.written) == (before, rows)
    assert standby.texts() == ["one"]


def test_an_unreadable_view_of_a_field_changes_nothing() -> None:
    home, standby = Held(), Held(actor=STANDBY)
    standby.copy.append(home.turn("one", {"f": b"1"}))
    before, rows = standby.copy.meta, dict(standby.rows.written)
    bad = msgspec.structs.replace(home.turn("two"), fields={"kv\0f": b"\xc1"})
    with pytest.raises(CorruptData):
        standby.copy.append(bad)
    assert (standby.copy.meta, standby.rows.written) == (before, rows)
    assert standby.copy.fold.fields() == {"kv": {"f": b"1"}}
    standby.agrees_with_disk()


def test_a_standby_with_the_document_in_memory_keeps_it_up_to_date() -> None:
    home, standby = Held(), Held(actor=STANDBY)
    standby.copy.append(home.turn("one"))
    document = standby.copy.document
    standby.copy.append(home.turn("two"))
    assert standby.copy.document is document
    assert document.entries() == home.copy.fold.raw_entries()


# -- whole documents and merges


def test_a_whole_document_takes_the_place_of_what_was_held() -> None:
    home, standby = Held((3, "eu")), Held(actor=STANDBY)
    for n in range(3):
        home.turn(f"{n}", {"f": b"%d" % n})
    standby.turn("of another past")
    frame = home.copy.whole()
    standby.copy.replace(frame)
    meta = standby.copy.meta
    assert (meta.epoch, meta.n, meta.chain) == ((3, "eu"), 3, home.copy.meta.chain)
    assert (meta.base_n, meta.actor, meta.turn) == (3, STANDBY, 3)
    assert standby.texts() == ["0", "1", "2"]
    assert standby.table.document(SID) == [frame.document]
    standby.agrees_with_disk()
    standby.copy.append(home.turn("3"))
    standby.agrees_with_disk()


def test_a_damaged_whole_document_leaves_what_is_held() -> None:
    home, standby = Held(), Held(actor=STANDBY)
    standby.copy.append(home.turn("one"))
    before, rows = standby.copy.meta, dict(standby.rows.written)
    home.turn("two")
    whole = home.copy.whole()
    with pytest.raises(CorruptData):
        standby.copy.replace(msgspec.structs.replace(whole, document=whole.document[:-3]))
    assert (standby.copy.meta, standby.rows.written) == (before, rows)
    assert standby.texts() == ["one"]


def test_a_copy_knows_whether_it_holds_what_a_document_lacks() -> None:
    home, standby = Held(), Held(actor=STANDBY)
    empty: Whole = home.copy.whole()
    assert not standby.copy.holds_beyond(empty.document), "it holds nothing"
    standby.copy.append(home.turn("one"))
    shorter = home.copy.whole()
    assert not standby.copy.holds_beyond(shorter.document)
    standby.copy.append(home.turn("two"))
    assert standby.copy.holds_beyond(shorter.document)
    assert not standby.copy.holds_beyond(home.copy.whole().document)
    with pytest.raises(CorruptData):
        standby.copy.holds_beyond(b"\xff" * 9)


def test_turns_of_a_former_home_are_merged_once_and_reach_the_standby() -> None:
    former, home, standby = Held(), Held(actor=STANDBY), Held(actor=3)
    first = former.turn("one")
    home.copy.append(first)
    former.turn("only there", {"f": b"there"})
    home.copy.enter_epoch("us", "ap", 9)
    standby.copy.replace(home.copy.whole())
    home.turn("two")
    standby.copy.replace(home.copy.whole())
    frame = home.copy.merge(former.copy.document.encode(), 50)
    assert frame is not None
    standby.copy.append(frame)
    for held in (home, standby):
        assert held.texts() == ["one", "two"], "the active path is the higher epoch's"
        ((_, messages),) = [(b.turn, b.messages) for b in held.copy.fold.branches()]
        assert messages == [b"only there"]
        assert held.copy.fold.fields() == {"kv": {"f": b"there"}}
        held.agrees_with_disk()
    assert home.copy.merge(former.copy.document.encode(), 51) is None, "nothing is new"
    assert home.copy.meta.n == frame.n


def test_a_home_that_lost_a_tail_gets_its_turns_back_beside_those_written_since() -> None:
    home, standby = Held(), Held(actor=STANDBY)
    standby.copy.append(home.turn("one"))
    rows = dict(home.rows.written)
    standby.copy.append(home.turn("two"))
    standby.copy.append(home.turn("three"))
    home.rows.written = rows
    home.copy = home.reloaded()
    document = standby.copy.document.encode()
    with pytest.raises(OwnClientMoved):
        home.copy.merge(document, 9)
    assert home.texts() == ["one"]
    home.copy.leave_lost_tail(9)
    assert home.copy.meta.epoch == (1 + ACTOR_LEAP, "eu")
    assert home.copy.merge(document, 9) is not None
    assert home.texts() == ["one", "two", "three"]
    home.agrees_with_disk()


def test_what_yjs_takes_for_known_is_merged_all_the_same() -> None:
    """Another call's entry was written where the lost turn's was: same client id, same clocks."""
    home, former = Held(), Held()
    former.turn("lost")
    home.copy.write(
        dict([call_entry("c", 1, "begun", (1, "eu"), tool="t", args=b"{}", result=None, at_ms=1)]),
        {},
        5,
    )
    home.copy.leave_lost_tail(9)
    frame = home.copy.merge(former.copy.document.encode(), 9)
    assert frame is not None
    assert home.texts() == ["lost"]
    assert home.copy.fold.status("c", home.copy.meta.epoch) == "in_doubt"
    assert home.copy.merge(former.copy.document.encode(), 9) is None, "once"
    home.agrees_with_disk()


def test_a_document_that_cannot_be_read_is_not_merged() -> None:
    home = Held()
    home.turn("one")
    before, rows = home.copy.meta, dict(home.rows.written)
    with pytest.raises(CorruptData):
        home.copy.merge(b"\xff" * 20, 9)
    assert (home.copy.meta, home.rows.written) == (before, rows)
    home.turn("two")
    home.agrees_with_disk()


def test_a_field_of_two_homes_of_one_number_is_written_again_for_all() -> None:
    """Yjs goes by the client id; the fold by `(n, node)`, and every document must agree with it."""
    repaired = 0
    for actor in range(10, 30):
        low, high = Held((1, "aa"), actor), Held((1, "zz"), 9)
        low.turn("low", {"f": b"low"})
        high.turn("high", {"f": b"high"})
        update = high.copy.merge(low.copy.document.encode(), 9)
        assert update is not None
        repaired += "kv\0f" in update.fields
        assert high.copy.fold.fields() == {"kv": {"f": b"high"}}
        high.agrees_with_disk()
    assert 0 < repaired < 20, "both orders of client ids were tried"


# -- readers and waiters


def test_a_read_through_copy_lives_on_what_it_is_given() -> None:
    home = Held()
    home.turn("one", {"f": b"1"})
    reader = Held(actor=5)
    reader.copy.take_view(home.copy.fold.raw_entries(), home.copy.fold.raw_fields())
    assert reader.texts() == ["one"]
    assert reader.rows.written == {}, "it is no replica"


def test_who_waits_for_a_step_is_called_once_it_is_held() -> None:
    copy = Held().copy
    called: list[int] = []
    copy.touch_memory(msgspec.structs.replace(copy.meta, acked_n=3))
    copy.when_held(3, lambda: called.append(3))
    copy.when_held(4, lambda: called.append(4))
    assert called == [3]
    assert [n for n, _ in copy.waiters] == [4]


def test_pins_are_counted() -> None:
    copy = Held().copy
    with copy.pinned():
        with suppress(Full), copy.pinned():
            assert copy.pins == 2
            raise Full("no room")
        assert copy.pins == 1
    assert copy.pins == 0


def test_a_broken_document_is_loaded_again() -> None:
    home = Held()
    home.turn("one")
    home.copy.document.drop()
    home.turn("two")
    home.agrees_with_disk()


def test_a_home_of_the_same_number_gets_its_own_writes_back() -> None:
    network = Network(("eu", "us"))
    for name in ("eu", "us"):
        network[name].stream.begin(SID)
        network[name].flush()
    network["eu"].commit(SID, "first")  # under (1, eu); (1, us) outranks it
    network.settle()
    assert network.broken == []
    assert network["us"].is_home(SID)
    assert network["eu"].turns(SID) == network["us"].turns(SID) == ["first"]
