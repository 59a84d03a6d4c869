"""The sessions that one node knows: copies, heads on disk, stubs of what lives elsewhere."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from roost_crdt.errors import CorruptData, NoSession
from roost_crdt.home import ACTOR_LEAP, Epoch, Meta
from roost_crdt.limits import Limits
from roost_crdt.sessions.copy import SessionCopy
from roost_crdt.sessions.table import SessionTable, head_key

STUBS_MAX = 100_000
"""Sessions of which only the place is remembered here."""


class Shelf:
    """What one node knows of sessions. `actor` changes if the store takes a new one.

    `now_ms` and `ttl_ms` (how long an unused session lives, 0 = for ever) are asked when needed:
    time and policies are arguments of whoever builds the shelf. `steady_ms` is the clock of what is
    to be done again after a while (None: `now_ms`): it goes on evenly when the wall clock is set.
    """

    def __init__(
        self,
        *,
        node: str,
        region: str,
        actor: int,
        table: SessionTable,
        limits: Limits,
        now_ms: Callable[[], int],
        ttl_ms: Callable[[], int] = lambda: 0,
        steady_ms: Callable[[], int] | None = None,
    ) -> None:
        self.node = node
        self.region = region
        self.actor = actor
        self.table = table
        self.limits = limits
        self.now_ms = now_ms
        self.ttl_ms = ttl_ms
        self.steady_ms = steady_ms or now_ms
        self.generation = 0
        """Rises after a start or a pause: a home then asks its standby before it commits."""
        self.on_deposed: Callable[[str], None] = lambda sid: None
        """Called when a home that holds turns of its own has learnt of a higher epoch."""
        self.before_erasure: Callable[[str], None] = lambda sid: None
        """Called before rows of a session are deleted for good; may refuse with Full or Busy."""
        self.on_erased: Callable[[str], None] = lambda sid: None
        """Called when a session was erased here: whoever keeps a copy of his own drops it."""
        self.on_corrupt: Callable[[str, CorruptData], None] = lambda sid, error: None
        """Told of a session that cannot be read here, or of a frame of it that cannot."""
        self.lives: OrderedDict[str, SessionCopy] = OrderedDict()
        self.stubs: OrderedDict[str, Meta] = OrderedDict()
        self._unsummed = 0

    def renew(self, actor: int) -> None:
        """The store writes as another actor from now on."""
        self.actor = actor
        for live in self.lives.values():
            live.renew(actor)
            self._enter_own_epoch(live)

    def meta(self, sid: str) -> Meta | None:
        """What this node knows of a session: a held copy's head, or a stub."""
        live = self.lives.get(sid)
        if live is not None:
            return live.meta
        return self.table.head(sid) or self.stubs.get(sid)

    def live(self, sid: str) -> SessionCopy | None:
        """The copy held here, loaded if it was not in memory. Raises CorruptData."""
        live = self.lives.get(sid)
        if live is not None:
            self.lives.move_to_end(sid)
            return live
        meta = self.table.head(sid)
        if meta is None or not meta.held or meta.erased_ms:
            return None
        live = self.adopt(SessionCopy.load(meta, self.table, self.actor, self.limits))
        self._enter_own_epoch(live)
        return live

    def _enter_own_epoch(self, live: SessionCopy) -> None:
        """Before anything is written: under the old actor's epoch entries may exist elsewhere."""
        if live.meta.home == self.node and live.meta.actor != self.actor:
            live.enter_epoch(self.node, live.meta.standby, self.now_ms())

    def adopt(self, live: SessionCopy) -> SessionCopy:
        """Keep a session in memory; the least used ones make room."""
        self.stubs.pop(live.meta.sid, None)
        self.lives[live.meta.sid] = live
        self.lives.move_to_end(live.meta.sid)
        self.make_room()
        return live

    def make_room(self) -> None:
        """Let the least used copies go while all take more memory than their bound.

        Adding up what they take is spread over the calls: one in 64 looks at 4,096 copies.
        """
        self._unsummed += 1
        if self._unsummed <= len(self.lives) // 64:
            return
        self._unsummed = 0
        total = sum(live.size_bytes for live in self.lives.values())
        for sid, live in list(self.lives.items())[:-1]:
            if total <= self.limits.documents_memory_bytes:
                return
            if live.pins:
                continue
            total -= live.size_bytes
            del self.lives[sid]

    @contextmanager
    def arriving(self, meta: Meta) -> Iterator[SessionCopy]:
        """The copy held here, or an empty one that is kept only if the first step is taken."""
        live = self.live(meta.sid)
        if live is not None:
            yield live
            return
        live = self.new_copy(meta)
        yield live
        self.adopt(live)

    def new_copy(self, meta: Meta) -> SessionCopy:
        """An empty copy; `adopt` it once its first step is stored: the store may refuse that."""
        return SessionCopy(meta, self.table, self.actor, self.limits)

    def forget(self, sid: str) -> None:
        """Drop every row of an expired session, its head too."""
        self.lives.pop(sid, None)
        self.stubs.pop(sid, None)
        items = self.table.drop_items(sid)
        items[head_key(sid)] = None
        self.table.put(items)

    def remember_stub(self, sid: str, epoch: Epoch, standby: str | None) -> Meta:
        """Note where a session lives that this node holds no copy of."""
        meta = Meta(sid=sid, epoch=epoch, standby=standby, held=False)
        self.stubs[sid] = meta
        self.stubs.move_to_end(sid)
        if len(self.stubs) > STUBS_MAX:
            self.stubs.popitem(last=False)
        return meta

    def learn(self, sid: str, epoch: Epoch, standby: str | None) -> Meta:
        """A higher epoch was shown (by a verified token or a frame): take it; the head in force.

        A home that learns of a higher epoch is deposed at once and keeps its turns as unmerged
        until the new home has acknowledged them. So does a standby that has no part in it: its
        home may have lost what it holds, and nobody else would ask for it. Any other copy does
        where the epoch has leapt, which says that a home did lose a tail.
        """
        meta = self.meta(sid)
        if meta is None or not meta.held:
            if meta is not None and (meta.epoch >= epoch or meta.erased_ms):
                return meta
            return self.remember_stub(sid, epoch, standby)
        if epoch <= meta.epoch or meta.erased_ms:
            return meta
        live = self.live(sid)
        assert live is not None, "a held session loads"
        had_part = self.node in (meta.home, meta.standby)
        has_part = epoch[1] == self.node or (standby == self.node and meta.home != self.node)
        may_lack = had_part or epoch[0] - meta.epoch[0] >= ACTOR_LEAP
        live.set_meta(
            msgspec.structs.replace(
                meta,
                epoch=epoch,
                standby=standby,
                acked_n=0,
                # Told of an epoch of its own that it has lost: there is no other to merge into.
                unmerged=epoch[1] != self.node and (meta.unmerged or (may_lack and not has_part)),
            )
        )
        if live.meta.unmerged:
            self.on_deposed(sid)
        return live.meta

    def expired(self, meta: Meta) -> bool:
        """Whether the session was unused for longer than its ttl."""
        ttl_ms = self.ttl_ms()
        return bool(ttl_ms and meta.used_ms and self.now_ms() >= meta.used_ms + ttl_ms)

    def check_lives(self, meta: Meta) -> None:
        """Raises NoSession for an erased or expired session."""
        if meta.erased_ms:
            raise NoSession(f"session {meta.sid} was erased; open a new one")
        if self.expired(meta):
            raise NoSession(
                f"session {meta.sid} was unused for longer than its ttl; open a new one"
            )
