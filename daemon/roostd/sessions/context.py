"""What the parts of the session service share, and the sessions held in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import msgspec

from roost_crdt.errors import NoSession
from roost_crdt.home import Epoch, Meta
from roost_crdt.limits import Limits
from roost_crdt.policy import Policy, PolicyTable
from roost_crdt.token import Claims
from roostd.keyring import Keyring
from roostd.sessions.live import LiveSession
from roostd.sessions.table import SessionTable, head_key
from roostd.sessions.types import Neighbours

STUBS_MAX = 100_000
"""Sessions of which only the place is remembered here."""

DAY_MS = 86_400_000


@dataclass
class Context:
    """One node's view for sessions: who it is, what it stores, whom it can reach."""

    node: str
    region: str
    cluster: str
    actor: int
    table: SessionTable
    policies: Callable[[], PolicyTable]
    keyring: Keyring
    limits: Limits
    now_ms: Callable[[], int]
    neighbours: Neighbours
    durable: Callable[[], Awaitable[None]]
    token_ttl_s: int
    takeover_after_ms: int
    follow_after_turns: int
    generation: int = 0
    """Rises after a start or a pause: a home then asks its standby before it commits."""

    on_deposed: Callable[[str], None] = lambda sid: None
    """Called when a home that holds turns of its own has learnt of a higher epoch."""

    lives: OrderedDict[str, LiveSession] = field(default_factory=OrderedDict)
    stubs: OrderedDict[str, Meta] = field(default_factory=OrderedDict)

    # --- policies ---

    def session_policies(self) -> list[Policy]:
        return [p for p in self.policies().policies.values() if p.consistency == "session-local"]

    def residency(self) -> tuple[str, ...]:
        """Regions that every session-local policy allows; empty = all."""
        allowed: set[str] | None = None
        for policy in self.session_policies():
            if policy.residency:
                regions = set(policy.residency)
                allowed = regions if allowed is None else allowed & regions
        return tuple(sorted(allowed or ()))

    def may_hold(self, region: str) -> bool:
        """Whether residency allows a copy of a session in a region."""
        allowed = self.residency()
        return not allowed or region in allowed

    def ttl_ms(self) -> int:
        """How long an unused session lives: the longest ttl of its policies."""
        ttls = [p.ttl_ms for p in self.session_policies()]
        return max((t for t in ttls if t), default=0) if all(ttls) else 0

    def recreate_on_loss(self) -> bool:
        return any(p.on_loss == "recreate" for p in self.session_policies())

    def durable_at_standby(self) -> bool:
        """Whether a turn is acknowledged only after the standby's disk too."""
        return any(p.durability == "standby" for p in self.session_policies())

    # --- sessions in memory ---

    def meta(self, sid: str) -> Meta | None:
        """What this node knows of a session: a held copy's head, or a stub."""
        live = self.lives.get(sid)
        if live is not None:
            return live.meta
        return self.table.head(sid) or self.stubs.get(sid)

    def live(self, sid: str) -> LiveSession | None:
        """The copy held here, loaded if it was not in memory. Raises CorruptData."""
        live = self.lives.get(sid)
        if live is not None:
            self.lives.move_to_end(sid)
            return live
        meta = self.table.head(sid)
        if meta is None or not meta.held or meta.erased_ms:
            return None
        return self.adopt(LiveSession.load(meta, self.table, self.actor, self.limits))

    def adopt(self, live: LiveSession) -> LiveSession:
        """Keep a session in memory; the least used ones make room."""
        self.lives[live.meta.sid] = live
        self.lives.move_to_end(live.meta.sid)
        self._make_room()
        return live

    def _make_room(self) -> None:
        if len(self.lives) % 64:
            return
        total = sum(live.size_bytes for live in self.lives.values())
        for sid, live in list(self.lives.items())[:-1]:
            if total <= self.limits.documents_memory_bytes:
                return
            if live.lock.locked() or live.handing_over:
                continue
            total -= live.size_bytes
            del self.lives[sid]

    def new_live(self, meta: Meta) -> LiveSession:
        """An empty copy, in memory only until its first step is stored."""
        self.stubs.pop(meta.sid, None)
        return self.adopt(LiveSession(meta, self.table, self.actor, self.limits))

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
        until the new home has acknowledged them.
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
        was_home = meta.home == self.node
        live.set_meta(
            msgspec.structs.replace(
                meta,
                epoch=epoch,
                standby=standby,
                acked_n=0,
                unmerged=meta.unmerged or (was_home and epoch[1] != self.node),
            )
        )
        if live.meta.unmerged:
            self.on_deposed(sid)
        return live.meta

    # --- tokens ---

    def token(self, live: LiveSession) -> str:
        """A fresh token for what this copy holds."""
        return self.sign(live.meta, live.head_turn(), live.path_epochs())

    def sign(self, meta: Meta, turn: int, path: tuple[tuple[int, str, int, int], ...]) -> str:
        now_s = self.now_ms() // 1000
        claims = Claims(
            sid=meta.sid,
            home=meta.home,
            standby=meta.standby,
            epoch=meta.epoch,
            turn=turn,
            path=path,
            aud=self.cluster,
            iss=self.node,
            iat=now_s,
            exp=now_s + self.token_ttl_s,
        )
        return self.keyring.sign(claims, now_s)

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
