"""What a node is given when it starts: its bounds, its TLS, what it says of its process."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from roost_crdt.errors import Busy, Full
from roost_crdt.limits import DEFAULT_LIMITS, Limits
from roost_crdt.logformat import KIND_META
from roost_crdt.policy import PolicyTable
from roostd import wire
from roostd.config import Config
from roostd.store import Store


def wall_ms() -> int:
    """Wall-clock milliseconds."""
    return time.time_ns() // 1_000_000


def pid_namespace() -> int:
    """The inode of this process's PID namespace; 0 where there are none."""
    path = Path("/proc/self/ns/pid")
    return path.stat().st_ino if path.exists() else 0


def tls_of(config: Config) -> wire.Tls | None:
    """Mutual TLS between nodes; None where links are plain (loopback only)."""
    if not config.gossip.tls:
        return None
    cert, key, ca = config.gossip.cert, config.gossip.key, config.gossip.ca
    assert cert is not None
    assert key is not None
    assert ca is not None
    return wire.Tls(cert, key, ca)


def limits_of(config: Config) -> Limits:
    """The bounds in force: the defaults with [limits] of the configuration."""
    return dataclasses.replace(
        DEFAULT_LIMITS,
        value_bytes_max=config.limits.value_max,
        body_bytes_max=config.limits.body_max,
        session_bytes_max=min(DEFAULT_LIMITS.session_bytes_max, config.limits.body_max * 3 // 4),
    )


def publish(store: Store, policies: PolicyTable) -> bool:
    """Tell readers of the index which policies are in force; False: no room to do so now."""
    text = policies.text.encode()
    try:
        if store.get(KIND_META, b"policies") != text:
            store.put(KIND_META, {b"policies": text})
    except (Full, Busy):
        return False
    return True
