"""The store: what a node knows, durable before anybody hears of it.

The log (`roostd.log`) is the truth; LMDB (`roostd.index`) is applied from it by a thread and
read by other processes; between the two stands memory.
"""

from __future__ import annotations

from roostd.log import StoreFailed
from roostd.store.backup import Page
from roostd.store.checking import Findings, Repaired, check
from roostd.store.identity import StoreLocked
from roostd.store.memory import KeyRows
from roostd.store.mending import LogRows
from roostd.store.opening import Recovery
from roostd.store.repairing import repair
from roostd.store.restoring import RESTORED, Restored, Verified, restore, verify_backup
from roostd.store.store import Store

__all__ = [
    "RESTORED",
    "Findings",
    "KeyRows",
    "LogRows",
    "Page",
    "Recovery",
    "Repaired",
    "Restored",
    "Store",
    "StoreFailed",
    "StoreLocked",
    "Verified",
    "check",
    "repair",
    "restore",
    "verify_backup",
]
