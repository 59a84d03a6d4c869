"""Rules of grants taken out one by one; only seeds whose runs spend of quotas can catch them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from roost_crdt.grants import Ledger
from roost_sim import quotas

Patch = tuple[Any, str, Any]


def _nothing(*_: Any, **__: Any) -> None:
    return None


async def _at_once(*_: Any, **__: Any) -> None:
    return None


def _always(*_: Any, **__: Any) -> bool:
    return True


def _any_revision(
    self: Any, compares: Mapping[bytes, int], puts: Mapping[bytes, bytes | None]
) -> bool:
    return _txn(self, {}, puts)


_txn = quotas.Consensus.txn


MUTANTS: dict[str, tuple[Patch, ...]] = {
    "a grant that may be returned already is spent": ((Ledger, "sending", _nothing),),
    "what another actor was granted is spent": ((quotas.Spender, "believes", _always),),
    "a spend is answered before it is durable": ((quotas.Spender, "_durable", _at_once),),
    "a late transaction applies": ((quotas.Consensus, "txn", _any_revision),),
}

SEEDS: dict[str, int] = {"a late transaction applies": 63}
