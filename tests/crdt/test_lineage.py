"""Who wrote what under which actor: heads of chains, names of stores, what greetings show."""

from __future__ import annotations

from random import Random

import pytest
from membership_kit import open_store, put

from roost_crdt import lineage
from roost_crdt.errors import PeerError
from roost_crdt.frames import PROTOCOL_VERSIONS, SHARED_ACTOR, Greeting
from roost_crdt.lineage import Heads, claim, other_history

ME = 7
CHAIN, OTHER = b"c" * 16, b"o" * 16


def greeting(node: str = "eu", actor: int = 1, **more: object) -> Greeting:
    fixed = {"versions": PROTOCOL_VERSIONS, "cluster": "c", "node": node, "actor": actor}
    return Greeting(**(fixed | more))  # type: ignore[arg-type]


def chain_at(hlc: int) -> bytes | None:
    """An actor with heads at 10 and 20; what was before 5 the log has forgotten."""
    if hlc in (10, 20):
        return CHAIN
    return b"" if 5 < hlc < 20 else None


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({}, None),
        ({"vv": {ME: 10}}, None),
        ({"vv": {ME: 15}}, 15),
        ({"vv": {ME: 3}}, None),
        ({"vv": {ME: 30}}, None),
        ({"vv": {1: 15}}, None),
        ({"head": (ME, 10, CHAIN)}, None),
        ({"head": (ME, 10, OTHER)}, 10),
        ({"head": (ME, 15, OTHER)}, 15),
        ({"head": (ME, 3, OTHER)}, None),
        ({"head": (1, 15, OTHER)}, None),
        ({"vv": {ME: 20}, "head": (ME, 15, OTHER)}, 15),
    ],
)
def test_another_history_shows_in_a_greeting(more: dict[str, object], found: int | None) -> None:
    assert other_history(greeting(**more), ME, chain_at) == found


def test_heads_are_kept_by_actor_and_given_back() -> None:
    store = open_store()
    heads = Heads(store)
    assert heads.head_for("eu") is None
    heads.keep("eu", 1, 10, CHAIN)
    heads.keep("eu", 1, 20, OTHER)
    heads.keep("eu", 2, 30, CHAIN)
    heads.keep("us", 3, 40, CHAIN)
    store.flush()
    for known in (heads, Heads(store)):
        assert known.head_for("eu") == (2, 30, CHAIN), "the newest that this node told of"
        assert known.head_for("eu", 1) == (1, 20, OTHER), "it greets as an earlier actor again"
        assert known.head_for("ap", 1) == (1, 20, OTHER), "whoever greets as it"
        assert known.head_for("ap", 9) is None


def test_two_nodes_that_write_as_one_actor_are_told_apart() -> None:
    """The clone has another name, and greets a node that its original does not reach now."""
    heads = Heads(open_store())
    heads.check(greeting("eu", 1))
    heads.keep("eu", 1, 10, CHAIN)
    heads.check(greeting("eu", 1))
    heads.check(greeting("x", 2))
    with pytest.raises(PeerError, match="x and eu both write as 0x1") as refused:
        heads.check(greeting("x", 1))
    assert refused.value.code == SHARED_ACTOR


def test_heads_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "HEADS_MAX", 3)
    store = open_store()
    heads = Heads(store)
    for actor in (4, 1, 2, 3):
        heads.keep("eu", actor, 10 * actor, CHAIN)
    for known in (heads, Heads(store)):
        assert [known.head_for("", actor) is None for actor in (1, 2, 3, 4)] == [
            True,
            False,
            False,
            False,
        ]


def test_a_store_knows_whose_it_is() -> None:
    store = open_store()
    actor = store.actor
    assert claim(store, "eu", Random(2).randbytes) == ""
    assert claim(store, "eu", Random(2).randbytes) == ""
    assert store.actor == actor
    put(store, b"k", b"v")
    assert claim(store, "x", Random(2).randbytes) == "eu"
    assert store.actor != actor
    store.close()
    again = open_store(store.disk)
    assert again.actor == store.actor
    assert claim(again, "x", Random(3).randbytes) == ""
    assert again.actor == store.actor
