"""What a node knows of sessions: held copies, stubs, epochs learnt, room in memory."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from session_network import Rows

from roost_crdt.errors import CorruptData, NoSession
from roost_crdt.fold import turn_entry
from roost_crdt.home import ACTOR_LEAP, Epoch, Meta
from roost_crdt.limits import DEFAULT_LIMITS, Limits
from roost_crdt.sessions import shelf as shelf_module
from roost_crdt.sessions.copy import SessionCopy
from roost_crdt.sessions.shelf import Shelf
from roost_crdt.sessions.table import SessionTable

SID, ME, ACTOR = "s1", "me", 7


class Bench:
    """A shelf over rows in memory, with its clock and what it was told."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.rows = Rows()
        self.now_ms = 1_000
        self.ttl_ms = 0
        self.deposed: list[str] = []
        self.limits = limits
        self.shelf = self.start()

    def start(self, actor: int = ACTOR) -> Shelf:
        """As after a start: nothing in memory."""
        self.shelf = Shelf(
            node=ME,
            region="here",
            actor=actor,
            table=SessionTable(self.rows),
            limits=self.limits,
            now_ms=lambda: self.now_ms,
            ttl_ms=lambda: self.ttl_ms,
        )
        self.shelf.on_deposed = self.deposed.append
        return self.shelf

    def hold(
        self, sid: str = SID, *, epoch: Epoch = (1, ME), standby: str | None = "us", **more: object
    ) -> SessionCopy:
        """A stored copy."""
        meta = Meta(sid, epoch, standby, actor=ACTOR)
        live = self.shelf.adopt(self.shelf.new_copy(meta))
        live.set_meta(msgspec.structs.replace(meta, **more))
        return live


def test_what_is_held_comes_before_a_stub_and_an_unknown_session_is_none() -> None:
    bench = Bench()
    assert bench.shelf.meta(SID) is None
    stub = bench.shelf.remember_stub(SID, (3, "us"), "ap")
    assert bench.shelf.meta(SID) == stub
    assert not stub.held
    live = bench.hold(epoch=(4, ME))
    assert bench.shelf.meta(SID) is live.meta
    assert bench.start().meta(SID) == live.meta, "read from its head on disk"


def test_a_copy_is_loaded_once_and_is_the_one_in_memory() -> None:
    bench = Bench()
    held = bench.hold()
    shelf = bench.start()
    assert shelf.live(SID) is shelf.live(SID)
    assert shelf.live(SID) is not held
    assert shelf.live("unknown") is None


@pytest.mark.parametrize("gone", [{"held": False}, {"erased_ms": 5}])
def test_a_stub_and_an_erased_session_are_no_copies(gone: dict[str, object]) -> None:
    bench = Bench()
    bench.hold(**gone)
    assert bench.start().live(SID) is None


def test_a_damaged_session_is_an_error_and_not_an_empty_one() -> None:
    bench = Bench()
    live = bench.hold()
    live.write(
        dict([turn_entry((1, ME), 1, parent=None, turn_id="a", messages=[], at_ms=1)]), {}, 1
    )
    (key,) = [key for key in bench.rows.written if b"\0e" in key]
    bench.rows.written[key] = b"\xc1"
    with pytest.raises(CorruptData):
        bench.start().live(SID)
    assert SID not in bench.shelf.lives


# -- another actor


def test_a_home_enters_a_new_epoch_before_another_actor_writes() -> None:
    bench = Bench()
    bench.hold()
    bench.hold("elsewhere", epoch=(1, "us"), standby=ME)
    assert bench.start(actor=ACTOR).live(SID).meta.epoch == (1, ME)  # type: ignore[union-attr]
    shelf = bench.start(actor=8)
    live, other = shelf.live(SID), shelf.live("elsewhere")
    assert live is not None
    assert other is not None
    assert (live.meta.epoch, live.meta.actor) == ((1 + ACTOR_LEAP, ME), 8)
    assert live.meta.standby == "us"
    assert other.meta.epoch == (1, "us"), "its home writes it"


def test_renewing_the_actor_does_the_same_for_what_is_in_memory() -> None:
    bench = Bench()
    live, other = bench.hold(), bench.hold("elsewhere", epoch=(1, "us"), standby=ME)
    bench.shelf.renew(9)
    assert bench.shelf.actor == 9
    assert live.meta.epoch == (1 + ACTOR_LEAP, ME)
    assert other.meta.epoch == (1, "us")
    bench.shelf.renew(9)
    assert live.meta.epoch == (1 + ACTOR_LEAP, ME), "entered already"


# -- room in memory


def big(bench: Bench, sid: str, size: int) -> SessionCopy:
    live = bench.hold(sid)
    live.write(
        dict([turn_entry((1, ME), 1, parent=None, turn_id=None, messages=[b"x" * size], at_ms=1)]),
        {},
        1,
    )
    return live


def test_few_large_sessions_are_bounded_too_and_the_least_used_goes_first() -> None:
    bench = Bench(replace(DEFAULT_LIMITS, documents_memory_bytes=140_000))
    for sid in ("a", "b", "c"):
        big(bench, sid, 9_000)
    bench.shelf.live("a")
    bench.hold("d")
    big(bench, "d", 9_000)
    assert list(bench.shelf.lives) == ["b", "c", "a", "d"], "grown since it was adopted"
    bench.shelf.make_room()
    assert list(bench.shelf.lives) == ["c", "a", "d"]
    assert sum(live.size_bytes for live in bench.shelf.lives.values()) <= 140_000
    again = bench.shelf.live("b")
    assert again is not None
    assert again.head_turn() == 1, "it is read again from disk"


def test_a_copy_in_use_stays_and_so_does_the_newest() -> None:
    bench = Bench(replace(DEFAULT_LIMITS, documents_memory_bytes=1))
    used = bench.hold("used")
    with used.pinned():
        bench.hold("idle")
        bench.hold("newest")
        assert list(bench.shelf.lives) == ["used", "newest"]
    bench.hold("after")
    assert list(bench.shelf.lives) == ["after"]


def test_many_small_sessions_are_bounded_and_added_up_now_and_then() -> None:
    bench = Bench(replace(DEFAULT_LIMITS, documents_memory_bytes=200 * 2_000))
    most = 0
    for number in range(1_000):
        bench.hold(f"s{number}")
        most = max(most, len(bench.shelf.lives))
    assert 200 < most <= 200 + 4


# -- arriving


def test_an_arriving_session_is_kept_only_if_its_first_step_is_taken() -> None:
    bench = Bench()
    bench.shelf.remember_stub(SID, (1, "us"), ME)
    meta = Meta(SID, (1, "us"), ME)
    with pytest.raises(CorruptData), bench.shelf.arriving(meta):
        raise CorruptData("its first step")
    assert SID not in bench.shelf.lives
    assert SID in bench.shelf.stubs
    with bench.shelf.arriving(meta) as live:
        live.set_meta(meta)
    assert bench.shelf.live(SID) is live
    assert SID not in bench.shelf.stubs


def test_a_frame_for_a_held_session_arrives_at_the_copy_that_is_held() -> None:
    bench = Bench()
    held = bench.hold()
    with bench.shelf.arriving(Meta(SID, (9, "us"), ME)) as live:
        assert live is held
    assert held.meta.epoch == (1, ME)


def test_forgetting_leaves_nothing_behind() -> None:
    bench = Bench()
    big(bench, SID, 10)
    bench.hold("s2")
    bench.shelf.remember_stub(SID, (1, "us"), None)
    bench.shelf.forget(SID)
    assert bench.shelf.meta(SID) is None
    assert [meta.sid for meta in bench.shelf.table.heads("", 9)] == ["s2"]
    assert not [key for key in bench.rows.written if key.startswith(b"s\0s1\0")]


# -- stubs and epochs


def test_stubs_are_bounded_and_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf_module, "STUBS_MAX", 2)
    shelf = Bench().shelf
    for sid in ("a", "b", "a", "c"):
        shelf.remember_stub(sid, (1, "us"), None)
    assert list(shelf.stubs) == ["a", "c"]


@pytest.mark.parametrize(
    ("known", "shown", "after"),
    [
        ((2, "us"), (3, "ap"), (3, "ap")),
        ((2, "us"), (2, "us"), (2, "us")),
        ((2, "us"), (2, "ap"), (2, "us")),
    ],
)
def test_a_stub_moves_to_a_higher_epoch_only(known: Epoch, shown: Epoch, after: Epoch) -> None:
    shelf = Bench().shelf
    shelf.remember_stub(SID, known, None)
    assert shelf.learn(SID, shown, "x").epoch == after
    assert shelf.stubs[SID].epoch == after


def test_an_unknown_session_is_remembered_where_it_was_shown() -> None:
    shelf = Bench().shelf
    assert shelf.learn(SID, (1, "us"), "ap") == Meta(SID, (1, "us"), "ap", held=False)


def test_erasure_outranks_every_epoch() -> None:
    bench = Bench()
    bench.hold(erased_ms=5)
    assert bench.shelf.learn(SID, (99, "us"), None).epoch == (1, ME)
    bench.hold("stub", erased_ms=5, held=False)
    assert bench.shelf.learn("stub", (99, "us"), None).epoch == (1, ME)


@pytest.mark.parametrize("epoch", [(1, "aa"), (1, ME)])
def test_a_lower_or_equal_epoch_changes_nothing(epoch: Epoch) -> None:
    bench = Bench()
    before = bench.hold(acked_n=4).meta
    assert bench.shelf.learn(SID, epoch, "ap") is before


@pytest.mark.parametrize(
    ("mine", "standby", "shown", "shown_standby", "unmerged"),
    [
        ((1, ME), "us", (2, "us"), ME, True),  # home, deposed
        ((1, ME), "us", (2, "us"), "ap", True),
        ((1, ME), "us", (2, ME), "ap", False),  # an epoch of its own that it has lost
        ((1, "us"), ME, (2, "us"), ME, False),  # standby still
        ((1, "us"), ME, (2, "ap"), ME, False),
        ((1, "us"), ME, (2, "us"), "ap", True),  # standby, replaced: its home may have lost it
        ((1, "us"), ME, (2, ME), "us", False),  # home under an epoch that it has lost
        ((1, "us"), "ap", (2, "us"), "eu", False),  # had no part, has none
        ((1, "us"), "ap", (ACTOR_LEAP, "us"), "ap", False),
        ((1, "us"), "ap", (1 + ACTOR_LEAP, "us"), "ap", True),  # a home has lost a tail
        ((1, "us"), "ap", (1 + ACTOR_LEAP, "us"), ME, False),  # its offer will show what it lacks
        ((1, "us"), "ap", (1 + ACTOR_LEAP, ME), "us", False),
    ],
)
def test_who_had_a_part_and_has_none_keeps_its_turns_until_they_are_merged(
    mine: Epoch, standby: str, shown: Epoch, shown_standby: str, unmerged: bool
) -> None:
    bench = Bench()
    bench.hold(epoch=mine, standby=standby, acked_n=3)
    meta = bench.shelf.learn(SID, shown, shown_standby)
    assert (meta.epoch, meta.standby, meta.acked_n) == (shown, shown_standby, 0)
    assert meta.unmerged is unmerged
    assert bench.deposed == ([SID] if unmerged else [])
    assert bench.start().meta(SID) == meta, "stored"


def test_what_was_unmerged_stays_so_under_the_next_home() -> None:
    bench = Bench()
    bench.hold(epoch=(2, "us"), standby="ap", unmerged=True)
    assert bench.shelf.learn(SID, (3, "ap"), "us").unmerged
    assert not bench.shelf.learn(SID, (4, ME), "us").unmerged


# -- its life


def test_a_session_without_a_ttl_lives_for_ever() -> None:
    bench = Bench()
    bench.now_ms = 1 << 50
    bench.shelf.check_lives(Meta(SID, (1, ME), None, used_ms=1))


def test_a_session_unused_for_its_ttl_is_over() -> None:
    bench = Bench()
    bench.ttl_ms = 500
    meta = Meta(SID, (1, ME), None, used_ms=1_000)
    bench.now_ms = 1_499
    bench.shelf.check_lives(meta)
    bench.now_ms = 1_500
    with pytest.raises(NoSession, match="s1 was unused for longer than its ttl"):
        bench.shelf.check_lives(meta)
    assert not bench.shelf.expired(Meta(SID, (1, ME), None)), "when it was used is not known"


def test_an_erased_session_is_over() -> None:
    with pytest.raises(NoSession, match="s1 was erased"):
        Bench().shelf.check_lives(Meta(SID, (1, ME), None, erased_ms=1))
