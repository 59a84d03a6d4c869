"""Whose history is written under an actor: what each node keeps of it, and what a greeting shows.

An actor belongs to one unbroken history. A store that was rolled back, or cloned block by block,
writes a second one under the same actor and cannot know; its neighbours can:

- Each keeps, durably and by actor, the last `(hlc, chain)` that an actor's own node told it, and
  which node that was. A greeting gives it back; who finds another chain there, or records of its
  own that follow one another over that hlc or over the hlc in the neighbour's vector, is not the
  writer that the neighbour met.
- Of both histories somebody may hold the one and be sent the other on top, since it extends the
  vector. Such a record passes over the hlc that is held: that hlc is kept and told in greetings.
  (A joined record of one history may pass over it as well; its writer knows better.)
- Who greets as an actor that another node told of is refused: one of the two is a clone.
- A store knows the node that wrote it. Under another name it is a clone, or was renamed; it takes
  a new actor either way.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from .errors import PeerError
from .frames import SHARED_ACTOR, Greeting
from .logformat import KIND_META

__all__ = ["HEADS_MAX", "NODE", "Head", "Heads", "claim", "other_history"]

HEADS_MAX: Final = 1_000
"""Actors whose heads are kept; beyond them the one whose head is oldest goes."""
NODE: Final = b"node"
_HEADS: Final = b"head:"
_ACTOR: Final = struct.Struct(">Q")
_HEAD: Final = struct.Struct(">Q16s")


class Kept(Protocol):
    """What this needs of a store: pairs of META."""

    @property
    def actor(self) -> int: ...

    def get(self, kind: int, key: bytes) -> bytes | None: ...

    def scan(
        self, kind: int, prefix: bytes, after: bytes, limit: int
    ) -> Sequence[tuple[bytes, bytes]]: ...

    def put(self, kind: int, items: Mapping[bytes, bytes | None]) -> int: ...

    def renew_actor(self, random_bytes: Callable[[int], bytes]) -> int: ...


class Head(NamedTuple):
    """What an actor's own node told of it."""

    node: str
    hlc: int
    chain: bytes


def claim(store: Kept, node: str, random_bytes: Callable[[int], bytes]) -> str:
    """Make the store that of `node`; the name of the node whose it was, "" if it was this one's
    (or nobody's). A store of another node writes as a new actor from here on."""
    before = store.get(KIND_META, NODE)
    if before == node.encode():
        return ""
    if before is not None:
        store.renew_actor(random_bytes)
    store.put(KIND_META, {NODE: node.encode()})
    return "" if before is None else before.decode()


def other_history(
    greeting: Greeting, actor: int, chain_at: Callable[[int], bytes | None]
) -> int | None:
    """The hlc at which a neighbour knows another history of the receiver's `actor`, if any.

    `chain_at` tells the actor's chain at an hlc: empty if the actor's records pass over it, None
    if the log does not know.
    """
    # A vector names records' own hlcs: one that the log passes over was never written here.
    for hlc in (greeting.vv.get(actor, 0), *greeting.crossed.get(actor, ())):
        if hlc and chain_at(hlc) == b"":
            return hlc
    if greeting.head is not None and greeting.head[0] == actor:
        _, hlc, chain = greeting.head
        held = chain_at(hlc)
        if held is not None and held != chain:
            return hlc
    return None


class Heads:
    """The last head of each actor, as its own node told this one; durable with the store."""

    def __init__(self, store: Kept) -> None:
        self._store = store
        self._heads: dict[int, Head] = {}
        for name, raw in store.scan(KIND_META, _HEADS, b"", HEADS_MAX):
            (actor,) = _ACTOR.unpack(name[len(_HEADS) :])
            hlc, chain = _HEAD.unpack(raw[: _HEAD.size])
            self._heads[actor] = Head(raw[_HEAD.size :].decode(), hlc, chain)

    def keep(self, node: str, actor: int, hlc: int, chain: bytes) -> None:
        """`node`, which writes as `actor`, told this head; durable with the next flush. What the
        store raises; then nothing is kept."""
        items: dict[bytes, bytes | None] = {}
        oldest = actor
        if actor not in self._heads and len(self._heads) >= HEADS_MAX:
            oldest = min(self._heads, key=lambda known: self._heads[known].hlc)
            items[_HEADS + _ACTOR.pack(oldest)] = None
        items[_HEADS + _ACTOR.pack(actor)] = _HEAD.pack(hlc, chain) + node.encode()
        self._store.put(KIND_META, items)
        self._heads.pop(oldest, None)
        self._heads[actor] = Head(node, hlc, chain)

    def head_for(self, node: str, actor: int = 0) -> tuple[int, int, bytes] | None:
        """`(actor, hlc, chain)` for a greeting to `node`: of the actor that it greeted as, or
        (0: it has not yet) of the one that it told of last."""
        if actor in self._heads:
            return actor, *self._heads[actor][1:]
        told = {known: head for known, head in self._heads.items() if head.node == node}
        if not told:
            return None
        newest = max(told, key=lambda known: told[known].hlc)
        return newest, *told[newest][1:]

    def check(self, greeting: Greeting) -> None:
        """PeerError (SHARED_ACTOR) for a node that greets as an actor another node told of."""
        head = self._heads.get(greeting.actor)
        if head is not None and head.node != greeting.node:
            raise PeerError(
                f"{greeting.node} and {head.node} both write as {greeting.actor:#x}: one of them "
                "is a clone of the other's store",
                SHARED_ACTOR,
            )
