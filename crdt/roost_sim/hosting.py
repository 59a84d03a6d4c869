"""What nodes run in and what runs on them."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Protocol

from roost_crdt.limits import Limits

from .loop import Loop
from .network import Network
from .store import SEGMENTS_KEPT
from .trace import Trace


class Shell(Protocol):
    """What runs on a node beside replication (sessions)."""

    def link_up(self, peer: str) -> None: ...

    def frame(self, peer: str, payload: bytes) -> None: ...

    def flushed(self) -> None: ...

    def actor_changed(self) -> None: ...


WHOLE_LOG = 1_000
"""Segments."""


@dataclass(slots=True)
class Surroundings:
    """What all nodes of a run share."""

    loop: Loop
    network: Network
    random: Random
    trace: Trace
    limits: Limits
    segments_kept: int = SEGMENTS_KEPT
    """Of each log. Where members are removed or a history is written twice, logs are kept whole:
    they tell what of its counters others had seen, as the daemon's do until neighbours hold it."""
