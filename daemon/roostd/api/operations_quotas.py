"""What an operation on a quota or meter means, once for both faces."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from roost_crdt.errors import Unsupported
from roost_crdt.policy import Policy
from roostd.api.caller import ADMIN, READ, WRITE, Caller
from roostd.node import Node

Result = dict[str, Any]


class QuotaOperations:
    """Quotas, reservations and meters; every method raises RoostError."""

    def __init__(self, node: Node) -> None:
        self.node = node

    async def spend(self, caller: Caller, key: bytes, n: int, request_id: str) -> Result:
        """Spend of a quota, or add to a meter, once per request id."""
        stored, policy = self._quota(caller, key, WRITE, ("quota", "meter"))
        if policy.type == "meter":
            return dict(plain(await self.node.quotas.meter_add(stored, n, request_id)))
        spent = await self.node.quotas.spend(stored, n, request_id)
        return {"remaining_local": spent.remaining_local, "granted": spent.granted}

    async def reserve(
        self, caller: Caller, key: bytes, n: int, request_id: str, ttl_ms: int
    ) -> Result:
        stored, _ = self._quota(caller, key, WRITE)
        return {"id": await self.node.quotas.reserve(stored, n, request_id, ttl_ms)}

    async def settle(self, caller: Caller, reservation: str, used: int) -> Result:
        """Whoever holds a reservation's id made it, or was given it; the right to write is due."""
        self._writer(caller)
        answer = plain(await self.node.quotas.settle(reservation, used))
        return answer if isinstance(answer, dict) else {"id": reservation, "used": used}

    async def release(self, caller: Caller, reservation: str) -> Result:
        self._writer(caller)
        answer = plain(await self.node.quotas.release(reservation))
        return answer if isinstance(answer, dict) else {"id": reservation, "used": 0}

    async def show(self, caller: Caller, key: bytes) -> Result:
        stored, policy = self._quota(caller, key, READ, ("quota", "meter"))
        quotas = self.node.quotas
        found = await (quotas.meter(stored) if policy.type == "meter" else quotas.show(stored))
        return dict(plain(found))

    async def set_limit(self, caller: Caller, key: bytes, n: int) -> Result:
        caller.require_admin()
        stored, _ = self._quota(caller, key, ADMIN)
        await self.node.quotas.set_limit(stored, n)
        return await self.show(caller, key)

    async def forfeit(self, caller: Caller, key: bytes, node: str) -> Result:
        caller.require_admin()
        stored, _ = self._quota(caller, key, ADMIN)
        answer = plain(await self.node.quotas.forfeit(stored, node))
        return answer if isinstance(answer, dict) else {"node": node, "forfeited": answer}

    # --- inside ---

    def _quota(
        self, caller: Caller, key: bytes, right: str, types: tuple[str, ...] = ("quota",)
    ) -> tuple[bytes, Policy]:
        stored = caller.key(key)
        policy = self.node.policies.find(stored)
        caller.require(right, stored)
        if policy.type not in types:
            raise Unsupported(
                f"policy {policy.name} is {policy.consistency} ({policy.type}), not a "
                f"{' or '.join(types)}"
            )
        return stored, policy

    def _writer(self, caller: Caller) -> None:
        if not caller.free:
            caller.require(WRITE, caller.prefix)


def new_id() -> str:
    """A request id for a caller who gave none; UNKNOWNOUTCOME tells it."""
    return uuid.uuid4().hex


def plain(value: Any) -> Any:
    """A node's struct as a dict."""
    return msgspec.to_builtins(value) if isinstance(value, msgspec.Struct) else value
