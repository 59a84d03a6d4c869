"""What a node does as a member, among simulated nodes: whom it waits for, what it gives up."""

from __future__ import annotations

import pytest
from membership_kit import Cluster

from roost_crdt.errors import Busy
from roost_crdt.frames import decode_greeting
from roost_crdt.members import covers
from roost_crdt.membership import MemberStore
from roost_crdt.record import Record, encode_record


def ready(*names: str) -> Cluster:
    cluster = Cluster(*names)
    cluster.until(lambda: all(cluster.entered(name) == set(names) for name in names))
    return cluster


def test_what_is_deleted_goes_at_every_member_and_what_lives_stays() -> None:
    cluster = ready("a", "b", "c")
    cluster.put("a", b"gone", b"v")
    cluster.put("a", b"kept", b"v")
    cluster.until(lambda: cluster.shown("c", b"gone") == b"v")
    cluster.put("c", b"gone", None)
    cluster.until(lambda: not any(cluster[name].rows(b"gone") for name in "abc"))
    cluster.until(cluster.same)
    for name in "abc":
        assert cluster.shown(name, b"kept") == b"v"
        assert covers(cluster[name].store.vv, cluster[name].replica.gc_floor)
        assert any(cluster[name].replica.gc_floor.values())


def test_a_copy_writes_nothing_of_its_own_accord_before_somebody_could_tell() -> None:
    """Its report would go on in a history that its neighbours know to be longer."""
    cluster = ready("a", "b")
    b = cluster["b"]
    image, boot_id = b.disk.image(), b.disk.boot_id
    cluster.put("b", b"k", b"later")
    cluster.until(lambda: cluster.shown("a", b"k") == b"later")
    b.crash()
    b.disk.restore(image)
    b.disk.index.meta[b"boot_id"] = boot_id
    b.excused_rollbacks += 1
    cluster.cut(("a", "b"))
    cluster.run.start("b")
    held, actor = dict(b.store.vv), b.store.actor
    cluster.wait(8_000)
    assert b.store.vv == held
    cluster.heal()
    cluster.until(lambda: b.store.actor != actor)
    cluster.until(lambda: cluster.shown("b", b"k") == b"later" and cluster.same())


def test_one_without_neighbours_needs_nobody() -> None:
    cluster = Cluster("a")
    cluster.put("a", b"k", None)
    cluster.until(lambda: not cluster["a"].rows(b"k"))
    assert [member["node"] for member in cluster["a"].membership.listed()] == ["a"]


def test_a_removed_node_reseeds_and_brings_only_what_nobody_had() -> None:
    cluster = ready("a", "b", "c")
    cluster.put("a", b"old", b"v")
    cluster.until(cluster.same)
    cluster.cut(("b", "c"))
    cluster.wait(2_000)
    cluster.put("c", b"own", b"unsent")
    before = cluster["c"].store.actor
    assert cluster["a"].membership.remove("c") == before
    cluster.put("a", b"old", None)
    cluster.until(lambda: not cluster["a"].rows(b"old") and not cluster["b"].rows(b"old"))
    assert cluster.shown("c", b"old") == b"v"
    cluster.heal()
    c = cluster["c"].membership
    cluster.until(lambda: c.reseeding.stage)
    with pytest.raises(Busy, match="takes its neighbours' rows"):
        c.admit()
    with pytest.raises(Busy):
        c.remove("a")
    cluster.until(lambda: not c.reseeding.stage)
    c.admit()
    cluster.until(lambda: cluster.same() and cluster.shown("a", b"own") == b"unsent")
    assert cluster["c"].store.actor != before
    assert cluster.shown("c", b"old") is None
    cluster.until(lambda: cluster.entered("a") == {"a", "b", "c"})


def test_a_removed_node_that_misses_nothing_keeps_its_rows_and_reports_to_get_back_in() -> None:
    """Nobody would ever know of its new actor if it waited for that with its report."""
    cluster = ready("a", "b", "c")
    cluster.put("a", b"k", b"v")
    cluster.until(cluster.same)
    c = cluster["c"]
    rows, before = dict(c.rows(b"k")), c.store.actor
    cluster["b"].membership.remove("c")
    cluster.until(lambda: c.membership.reseeding.reports)
    assert c.membership.reseeding.keeps
    with pytest.raises(Busy):
        c.membership.admit()
    assert c.rows(b"k") == rows
    cluster.until(lambda: not c.membership.reseeding.stage)
    assert c.store.actor != before
    assert c.rows(b"k") == rows
    cluster.until(lambda: cluster.same() and cluster.entered("a") == {"a", "b", "c"})


def test_a_record_that_passes_over_what_was_held_is_told_to_all_who_link() -> None:
    """Its node alone can tell whether that was another history of its actor."""
    a = Cluster("a")["a"]
    record = Record(77, 9, 0, ())
    assert a.membership.accept(encode_record(record), record)
    assert not decode_greeting(a.replica.greeting()).crossed, "nothing was held"
    for next_one, taken in (
        (Record(77, 12, 9, ()), True),
        (Record(77, 11, 10, ()), False),
        (Record(77, 20, 10, ()), True),
    ):
        assert a.membership.accept(encode_record(next_one), next_one) is taken
    assert decode_greeting(a.replica.greeting()).crossed == {77: (12,)}


@pytest.mark.parametrize("case", ["more", "another history", "no news", "own head"])
def test_what_a_member_reports_of_this_actor_is_compared_with_its_history(case: str) -> None:
    """A member that is no neighbour never greets this node."""
    cluster = ready("a", "b", "c")
    cluster.until(cluster.same)
    cluster.wait(2_000)
    a = cluster["a"]
    a.excused_rollbacks += 1
    found: list[tuple[str, int, int]] = []
    a.membership._rolled_back = lambda *args: found.append(args)
    actor, head = a.store.actor, a.store.vv[a.store.actor]
    cluster.put("a", b"k", b"v")
    a.flush()
    cluster.until(cluster.same)
    hlc = {
        "more": a.store.vv[actor] + (1 << 30),
        "another history": head + 1,
        "no news": 0,
        "own head": head,
    }[case]
    assert a.store.vv[actor] > head + 1
    member = a.membership.members.roster.nodes["c"]
    told = {**member.vv, actor: hlc}
    a.membership.members.roster.nodes["c"] = member._replace(vv=told)
    a.membership.tick()
    assert found == ([("c", actor, hlc)] if case in ("more", "another history") else [])
    parted = a.membership.forking.parted
    assert parted == (case == "another history"), "what was written since is noted"
    a.membership.tick()
    assert len(found) <= 1, "each report is looked at once"


def test_nothing_is_reported_by_a_node_whose_clock_is_refused() -> None:
    cluster = ready("a", "b")
    a = cluster["a"]
    a.replica.clock_refused = lambda: True  # type: ignore[method-assign]
    cluster.put("b", b"k", b"v")
    cluster.until(lambda: cluster.shown("a", b"k") == b"v")
    told = a.membership.members.roster.nodes["a"].told_ms
    cluster.wait(5_000)
    assert a.membership.members.roster.nodes["a"].told_ms == told


def test_a_simulated_store_is_a_members_store() -> None:
    store: MemberStore = Cluster("a")["a"].store
    assert store.actor
