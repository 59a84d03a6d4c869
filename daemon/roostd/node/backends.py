"""The consensus backend that the configuration names."""

from __future__ import annotations

import os
from typing import Any

from roost_crdt.errors import ConfigError
from roost_crdt.limits import Limits
from roostd.config import Config
from roostd.consensus.base import Consensus, Disabled, Table
from roostd.consensus.embedded import EmbeddedHost, EmbeddedRemote
from roostd.consensus.witness import Witness
from roostd.rpc import Rpc

NEIGHBOUR = "roost://"


def consensus_backend(
    config: Config, table: Table, witness: Witness, rpc: Rpc, limits: Limits
) -> Consensus:
    """Host it here, reach it at a neighbour, or do without. Raises ConfigError.

    `table` is the store's kind CONSENSUS; `witness` remembers what was seen of a remote one.
    """
    chosen = config.consensus
    if chosen.backend == "none":
        return Disabled()
    if chosen.backend != "embedded":
        raise ConfigError(
            f'[consensus] backend = "{chosen.backend}" is not in this release; use "embedded" '
            'or "none"',
            file=str(config.file or ""),
        )
    if not chosen.endpoints:
        host = EmbeddedHost(table, random_bytes=os.urandom, limits=limits)
        for method, handler in host.handlers().items():
            rpc.register(method, handler)
        return host
    node = chosen.endpoints[0].removeprefix(NEIGHBOUR)

    async def call(method: str, args: dict[str, Any], deadline_ms: int) -> Any:
        return await rpc.call(node, method, args, deadline_ms=deadline_ms)

    return EmbeddedRemote(call, host=node, witness=witness)
