"""What a node does as a member, among simulated nodes: whom it waits for, what it gives up."""

from __future__ import annotations

import pytest
from membership_kit import Cluster

from roost_crdt.errors import Busy
from roost_crdt.members import covers
from roost_crdt.membership import MemberStore


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
