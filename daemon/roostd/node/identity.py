"""Whose history this node writes: what recovery found, and what neighbours know better.

Local marks cannot find every clone or rollback; a neighbour that durably kept this actor's last
(hlc, chain) can. Then a new actor is taken before the next write.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping

import msgspec

from roost_crdt.errors import Busy, Full, PeerError
from roost_crdt.frames import Greeting
from roost_crdt.lineage import Heads, claim, other_history
from roost_crdt.logformat import KIND_META
from roostd.store import Store

log = logging.getLogger("roostd.node.identity")

_KEYS = b"keys:"
PEERS_MAX = 1_000


class Identity:
    """The actor of one node's store, watched over by its neighbours."""

    def __init__(self, store: Store, node: str, on_new_actor: Callable[[int], None]) -> None:
        """Makes the store that of `node`; that of another node writes as a new actor."""
        self._store = store
        self._on_new_actor = on_new_actor
        self._before = claim(store, node, os.urandom)
        self._heads = Heads(store)
        self.head_for = self._heads.head_for
        self.part: Callable[[int], None] = lambda hlc: None
        """Told the hlc at which another history of the actor is known, before it is given up."""

    def say_recovery(self) -> None:
        recovery = self._store.recovery
        log.info(
            "store %s: %d log entries replayed",
            "made" if recovery.created else "opened",
            recovery.replayed,
        )
        if recovery.upgraded_pairs:
            log.info("%d entries were brought to this release's schema", recovery.upgraded_pairs)
        if recovery.torn_bytes:
            log.warning(
                "the last group of the log was torn and never acknowledged: %d bytes cut at %s",
                recovery.torn_bytes,
                recovery.torn_at,
            )
        if recovery.actor_changed:
            log.warning(
                "this store writes as a new actor (before: %016x): %s",
                recovery.actor_before,
                recovery.actor_reason,
            )
        if self._before:
            log.warning(
                "this store was that of %s: it was cloned, or the node was renamed; it writes as "
                "a new actor",
                self._before,
            )
        if recovery.remade:
            log.error("pages of the index were damaged: %s", recovery.remade)
        if recovery.sums_recomputed:
            log.error("sums of the digest were damaged; they were computed from the rows anew")
        lacking = len(self._store.suspects.buckets)
        if lacking:
            log.error(
                "rows of %d buckets of keys were lost; they are refused until they are fetched "
                "from neighbours",
                lacking,
            )

    def rollback(self, peer: str, actor: int, hlc: int) -> None:
        found = f"knows actor {actor:016x} up to {hlc}, further than this store"
        if hlc <= self._store.vv.get(actor, 0):
            found = f"knows another writer of actor {actor:016x}, a store other than this"
        log.error("%s %s: it was rolled back or cloned; a new actor is taken", peer, found)
        self._store.renew_actor(os.urandom)
        self._on_new_actor(self._store.actor)

    def check_greeting(self, greeting: Greeting) -> None:
        """PeerError for a neighbour that holds another history of this actor (this store is not
        that writer), and for one that writes as an actor which another node told of."""
        actor = self._store.actor
        hlc = other_history(greeting, actor, self._store.chain_at)
        if hlc is not None:
            self.part(hlc)
            self.rollback(greeting.node, actor, hlc)
            raise PeerError(
                f"{greeting.node} knows another history of actor {actor:016x} at {hlc}: this "
                "store is a clone or was rolled back; it has taken a new actor"
            )
        self._heads.check(greeting)

    def keep_chain(self, peer: str, actor: int, hlc: int, chain: bytes) -> None:
        """Remember the head that a neighbour told of; without room, one that it tells of later."""
        with contextlib.suppress(Full, Busy):
            self._heads.keep(peer, actor, hlc, chain)

    def keep_keys(self, peer: str, keys: Mapping[str, bytes]) -> None:
        """Remember a neighbour's public keys: its tokens verify here before its link is up.
        Without room they are known until this process ends."""
        name, value = _KEYS + peer.encode(), msgspec.msgpack.encode(dict(keys))
        with contextlib.suppress(Full, Busy):
            if self._store.get(KIND_META, name) != value:
                self._store.put(KIND_META, {name: value})

    def kept_keys(self) -> list[tuple[str, dict[str, bytes]]]:
        """Neighbours and their public keys, as last announced."""
        rows = self._store.scan(KIND_META, _KEYS, b"", PEERS_MAX)
        decode = msgspec.msgpack.Decoder(dict[str, bytes]).decode
        return [(name[len(_KEYS) :].decode(), decode(value)) for name, value in rows]
