"""What the halves of a replica share: the vector, eager and lazy, links told, routes."""

from __future__ import annotations

import pytest

from roost_crdt import frames as f
from roost_crdt.limits import DEFAULT_LIMITS
from roost_crdt.neighbourhood import Effects, Neighbourhood, beyond
from roost_crdt.peer import ROUTE_HOPS_MAX, Peer

OWN = 1


def peer(node: str, actor: int, *links: str, **far: int) -> Peer:
    greeting = f.Greeting(versions=(1,), cluster="c", node=node, actor=actor)
    made = Peer(node, greeting, DEFAULT_LIMITS, up_ms=0, heard_ms=0)
    made.links, made.far = frozenset(links), far
    return made


def near(*peers: Peer) -> Neighbourhood:
    nodes = {OWN: "me"} | {p.greeting.actor: p.node for p in peers}
    return Neighbourhood("me", OWN, {}, peers={p.node: p for p in peers}, nodes=nodes)


def sent(of: Neighbourhood) -> dict[str, list[f.Frame]]:
    """Frames since the last call, by peer."""
    effects, of.effects = of.effects, Effects()
    found: dict[str, list[f.Frame]] = {}
    for node, data in effects.frames:
        found.setdefault(node, []).append(f.decode_frame(data))
    return found


def test_the_hash_follows_the_vector() -> None:
    here = near()
    empty = here.vv_hash()
    here.advance(7, 5)
    assert here.vv_hash() == here.vv_hash() == f.vv_hash({7: 5}) != empty
    with pytest.raises(AssertionError, match="only grows"):
        here.advance(7, 5)
    here.retreat(7, 0)
    assert here.vv == {7: 0}
    assert here.vv_hash() == empty


def test_a_frame_takes_room_in_the_window() -> None:
    a = peer("a", 2)
    here = near(a)
    here.emit(a, f.Prune(9))
    ((node, data),) = here.effects.frames
    assert (node, f.decode_frame(data)) == ("a", f.Prune(9))
    assert a.window_bytes == len(data)


def test_what_is_pushed_to_whom() -> None:
    a = peer("a", 2, "c")
    here = near(a, peer("b", 3))
    here.nodes[4] = "c"
    here.nodes[5] = "d"
    assert here.eager(a, OWN), "own records"
    assert not here.eager(a, 2), "its own it has"
    assert not here.eager(a, 4), "c sends it its own over their link"
    assert here.eager(a, 5), "nobody else it has a link to writes this"
    assert here.eager(a, 99), "an actor that nobody has named"
    a.choice = {OWN: False, 4: True, 2: True}
    assert not here.eager(a, OWN)
    assert here.eager(a, 4)
    assert not here.eager(a, 2)


def test_links_are_told_when_they_change_and_only_then() -> None:
    a, b = peer("a", 2), peer("b", 3, "me", "d", e=3)
    here = near(a, b)
    here.tell_links()
    told = sent(here)
    assert told["a"] == [f.Links(("a", "b"), {"d": 2})], "e is too far, me is the way itself"
    assert told["b"] == [f.Links(("a", "b"), {})]
    here.tell_links()
    assert not sent(here)
    b.links = frozenset({"me"})
    here.tell_links()
    assert sent(here) == {"a": [f.Links(("a", "b"), {})]}


def test_hops_are_counted_over_the_shortest_way() -> None:
    asking = peer("x", 9)
    here = near(asking, peer("a", 2, g=2, h=ROUTE_HOPS_MAX - 2), peer("b", 3, "g", h=1, x=1))
    here.tell_links()
    (links,) = sent(here)["x"]
    assert links == f.Links(("a", "b", "x"), {"g": 2, "h": 2})


def test_routes_lead_over_the_nearest_neighbours_first() -> None:
    here = near(peer("a", 2, z=3), peer("b", 3, "z"), peer("c", 4, z=1), peer("d", 5))
    assert here.routes("a") == ["a"]
    assert here.routes("z") == ["b", "c", "a"]
    assert here.routes("nowhere") == []


def test_an_emptied_store_starts_with_an_empty_vector() -> None:
    here = near()
    here.advance(OWN, 5)
    here.gc_floor = {OWN: 3}
    held = here.vv_hash()
    here.took_rows({OWN: 9})
    here.restart(8, {})
    assert (here.actor, here.nodes[8]) == (8, "me")
    assert not here.vv
    assert not here.gc_floor
    assert not here.rows_vv
    assert here.vv_hash() != held


def test_a_store_that_kept_its_rows_starts_with_what_they_count_for() -> None:
    here = near()
    here.advance(OWN, 5)
    here.gc_floor = {OWN: 3}
    here.restart(8, {}, {OWN: 4})
    assert here.vv == {OWN: 4}
    assert here.shown_vv() == {OWN: 5}, "its rows show more than it counts as holding"
    assert here.gc_floor == {OWN: 3}, "it has still collected that far"
    assert not here.rejoins
    assert here.vv_hash() == f.vv_hash({OWN: 4})


def test_who_is_reached_by_way_of_others_is_no_neighbour() -> None:
    here = near(peer("a", 2, "b", "me", z=3), peer("b", 3, "c"))
    assert beyond("me", here.peers) == {"c", "z"}
    assert beyond("me", {}) == set()
