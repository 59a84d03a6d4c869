"""Ports for the servers that tests start, given to one process of tests at a time.

A port that the kernel names is free only until somebody else asks: two workers that both let go of
what they were named can be named the same. These lie outside the range that it names ports from,
and each is locked until the process that has it ends.
"""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

LOWEST = 10_000
RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def _ports() -> range:
    """Those below the range that the kernel names ports from, or above it if there are more."""
    low, high = map(int, RANGE.read_text().split()) if RANGE.exists() else (32_768, 60_999)
    return max(range(LOWEST, low), range(high + 1, 65_536), key=len) or range(LOWEST, 65_536)


def _locked() -> Iterator[int]:
    """Ports that no other process of tests has had since it began; each once."""
    ports = _ports()
    with _lock_file() as file:
        for number in range(len(ports)):
            port = ports[(os.getpid() * 97 + number) % len(ports)]
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            except OSError:
                continue
            yield port
    raise AssertionError("every port is taken")


def _lock_file() -> TextIO:
    """Byte N of it is locked by who has port N; it is never written."""
    path = Path(tempfile.gettempdir(), f"roost-test-ports-{os.getuid()}")
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "w")


_unused = _locked()


def free_port() -> int:
    """A port of the loopback interface that nobody listens on, and that no other test is given."""
    for port in _unused:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("every port is in use")


def free_ports(count: int) -> list[int]:
    return [free_port() for _ in range(count)]
