"""What the parts of the session service share, and the sessions held in memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from roost_crdt.errors import BadToken, NoSession
from roost_crdt.home import Meta
from roost_crdt.limits import Limits
from roost_crdt.policy import Policy, PolicyTable
from roost_crdt.sessions.copy import SessionCopy
from roost_crdt.sessions.shelf import Shelf
from roost_crdt.token import Claims
from roostd.keyring import Keyring, Verified
from roostd.sessions.types import Neighbours

log = logging.getLogger(__name__)


@dataclass
class Context:
    """One node's view for sessions: who it is, what it stores, whom it can reach."""

    shelf: Shelf
    cluster: str
    policies: Callable[[], PolicyTable]
    keyring: Keyring
    verify: Callable[[str], Awaitable[Verified]]
    """A token's claims, whichever node signed it. Raises BadToken."""
    neighbours: Neighbours
    durable: Callable[[], Awaitable[None]]
    token_ttl_s: int
    takeover_after_ms: int
    follow_after_turns: int
    locks: WeakKeyDictionary[SessionCopy, asyncio.Lock] = field(default_factory=WeakKeyDictionary)

    def lock(self, live: SessionCopy) -> asyncio.Lock:
        """Whoever changes a session at home holds its lock."""
        return self.locks.setdefault(live, asyncio.Lock())

    @property
    def node(self) -> str:
        return self.shelf.node

    @property
    def region(self) -> str:
        return self.shelf.region

    @property
    def limits(self) -> Limits:
        return self.shelf.limits

    def now_ms(self) -> int:
        return self.shelf.now_ms()

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

    def recreate_on_loss(self) -> bool:
        return any(p.on_loss == "recreate" for p in self.session_policies())

    def check_outlived(self, meta: Meta, claims: Claims | None) -> None:
        """NoSession if a session of which nothing is held has ended since its bearer's token was
        made: then it was not lost. Nothing is known of it any more."""
        ttl_ms = self.shelf.ttl_ms()
        if claims is None or not ttl_ms or self.now_ms() < claims.iat * 1000 + ttl_ms:
            return
        self.shelf.stubs.pop(meta.sid, None)
        raise NoSession(f"session {meta.sid} was unused for longer than its ttl; open a new one")

    def durable_at_standby(self) -> bool:
        """Whether a turn is acknowledged only after the standby's disk too."""
        return any(p.durability == "standby" for p in self.session_policies())

    # --- tokens ---

    async def learn_from(self, token: str) -> Claims | None:
        """What the token of another node's answer says; None if this node cannot verify it."""
        try:
            claims, _ = await self.verify(token)
        except BadToken as error:
            log.warning("a token in the answer of another node is not believed: %s", error)
            return None
        self.shelf.learn(claims.sid, claims.epoch, claims.standby)
        return claims

    def token(self, live: SessionCopy) -> str:
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


def session_ttl_ms(policies: PolicyTable) -> int:
    """How long an unused session lives: the longest ttl of its policies; 0 = for ever."""
    local = [p for p in policies.policies.values() if p.consistency == "session-local"]
    ttls = [p.ttl_ms for p in local]
    return max((t for t in ttls if t), default=0) if all(ttls) else 0
