"""Collection at one node: whose task the end of a hidden key is, and keys longer than a page."""

from __future__ import annotations

import pytest
from crdt.test_membership_collector import collecting, dead, run
from membership_kit import NOW, incr, open_store

from roost_crdt import values
from roost_crdt.hlc import hlc_from_ms
from roost_crdt.members import Member, Roster, member_delta, member_key
from roost_crdt.membership import collector
from roost_crdt.rows import counter
from roost_crdt.rows import map as map_rows
from roost_crdt.rows.layout import TYPE_COUNTER, TYPE_MAP
from roost_sim.store import Store


def hidden(store: Store) -> None:
    """A counter that has long expired; this node set its end."""
    incr(store, b"c", 5)
    stamp = store.stamp(NOW)
    delta = counter.expire(store.key_rows(b"c").rows, stamp, NOW + 10)
    store.commit(stamp, [(b"c", TYPE_COUNTER, delta)])
    store.flush()


def enter(roster: Roster, member: Member) -> None:
    assert roster.load(member_key(member.node), member_delta({}, member, (1, member.actor)))


def ended(store: Store) -> bool:
    return values.counter_value(store.key_rows(b"c").rows, NOW) is None


@pytest.mark.parametrize("retired", [False, True])
def test_the_member_that_set_an_expiry_ends_the_key(retired: bool) -> None:
    for node, mine in (("me", True), ("other", False)):
        store, roster = open_store(), Roster()
        hidden(store)
        actor, former = (99, (store.actor,)) if retired else (store.actor, ())
        enter(roster, Member(node, actor, former, {}, 0))
        enter(roster, Member("third", 98, (), {}, 0))
        run(collecting(store, roster=roster))
        assert ended(store) is mine, node


def test_of_an_actor_that_nobody_knows_the_first_member_ends_the_key() -> None:
    for other, mine in (("z", True), ("a", False)):
        store, roster = open_store(), Roster()
        hidden(store)
        enter(roster, Member("me", 99, (), {}, 0))
        enter(roster, Member(other, 98, (), {}, 0))
        run(collecting(store, roster=roster))
        assert ended(store) is mine, other


def test_a_key_longer_than_a_page_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "_PAGE_BYTES", 1)
    store = open_store()
    names = [b"f%d" % at for at in range(5)]
    stamp = store.stamp(NOW)
    store.commit(
        stamp, [(b"m", TYPE_MAP, map_rows.put({}, dict.fromkeys(names, b"v"), stamp, NOW))]
    )
    stamp = store.stamp(NOW)
    rows = store.key_rows(b"m").rows
    store.commit(stamp, [(b"m", TYPE_MAP, map_rows.remove(rows, names[:3], stamp))])
    store.flush()
    looked: list[bytes] = []
    work = collecting(store)
    found = work.collection.found

    def noted(key: bytes, parts: dict[bytes, bytes]) -> bool:
        looked.append(key)
        return found(key, parts)

    monkeypatch.setattr(work.collection, "found", noted)
    run(work, 8)
    assert looked.count(b"m") == 1
    run(work, 60)
    assert values.map_fields(store.key_rows(b"m").rows, NOW) == {b"f3": b"v", b"f4": b"v"}
    assert len(store.key_rows(b"m").rows) == 2


@pytest.mark.parametrize("known", ["", "actor", "retired", "removed", "long ago"])
def test_a_round_waits_for_who_wrote_and_is_in_no_roster(known: str) -> None:
    """Whoever took that first has still to enter the node, which may not know what is deleted."""
    store, roster = dead(b"k"), Roster()
    hlc = 5 if known == "long ago" else hlc_from_ms(NOW)
    store.accept_rows((), {77: hlc})
    store.flush()
    vv = dict(store.vv)
    if known == "actor":
        enter(roster, Member("x", 77, (), vv, 0))
    if known == "retired":
        enter(roster, Member("x", 78, (77,), vv, 0))
    if known == "removed":
        roster.removed[77] = "x"
    run(collecting(store, roster=roster))
    assert bool(store.key_rows(b"k").rows) is not bool(known)
