"""Whose history this node writes: what recovery found, and what neighbours know better.

Local marks cannot find every clone or rollback; a neighbour that durably kept this actor's last
(hlc, chain) can. Then a new actor is taken before the next write.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Callable, Mapping

import msgspec

from roost_crdt.errors import PeerError
from roost_crdt.frames import Greeting
from roost_crdt.logformat import KIND_META
from roostd.store import Store

log = logging.getLogger("roostd.node.identity")

_CHAIN = struct.Struct(">QQ16s")
_KEYS = b"keys:"
PEERS_MAX = 1_000


class Identity:
    """The actor of one node's store, watched over by its neighbours."""

    def __init__(self, store: Store, on_new_actor: Callable[[int], None]) -> None:
        self._store = store
        self._on_new_actor = on_new_actor

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
        if recovery.remade:
            log.error("pages of the index were damaged: %s", recovery.remade)
        if recovery.renewed:
            log.info("the index was put together anew, without a trace of erased sessions")
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
        """A neighbour that holds another history of this actor: this store is not that writer."""
        actor = self._store.actor
        # A vector names records' own hlcs: one that the log passes over was never written here.
        hlc = greeting.vv.get(actor, 0)
        other = hlc > 0 and self._store.chain_at(hlc) == b""
        if not other and greeting.head is not None and greeting.head[0] == actor:
            _, hlc, chain = greeting.head
            held = self._store.chain_at(hlc)
            other = held is not None and held != chain
        if other:
            self.rollback(greeting.node, actor, hlc)
            raise PeerError(
                f"{greeting.node} knows another history of actor {actor:016x} at {hlc}: this "
                "store is a clone or was rolled back; it has taken a new actor"
            )

    def keep_chain(self, peer: str, actor: int, hlc: int, chain: bytes) -> None:
        value = _CHAIN.pack(actor, hlc, chain)
        self._store.put(KIND_META, {b"chain:" + peer.encode(): value})

    def chain_of(self, peer: str) -> tuple[int, int, bytes] | None:
        raw = self._store.get(KIND_META, b"chain:" + peer.encode())
        if raw is None:
            return None
        actor, hlc, chain = _CHAIN.unpack(raw)
        return actor, hlc, chain

    def keep_keys(self, peer: str, keys: Mapping[str, bytes]) -> None:
        """Remember a neighbour's public keys: its tokens verify here before its link is up."""
        name, value = _KEYS + peer.encode(), msgspec.msgpack.encode(dict(keys))
        if self._store.get(KIND_META, name) != value:
            self._store.put(KIND_META, {name: value})

    def kept_keys(self) -> list[tuple[str, dict[str, bytes]]]:
        """Neighbours and their public keys, as last announced."""
        rows = self._store.scan(KIND_META, _KEYS, b"", PEERS_MAX)
        decode = msgspec.msgpack.Decoder(dict[str, bytes]).decode
        return [(name[len(_KEYS) :].decode(), decode(value)) for name, value in rows]
