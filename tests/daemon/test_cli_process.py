"""What surrounds the daemon's process: log lines, sd_notify."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from virtual_time import virtual

from roostd.cli import logs
from roostd.cli.notify import Notifier


@pytest.fixture
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before


@pytest.mark.usefixtures("root_logger")
def test_json_lines() -> None:
    out = io.StringIO()
    logs.set_up("json", "info", out)
    logging.getLogger("roostd.x").info("link %s", "us-1", extra={"peer": "us-1", "lag_ms": 3})
    logging.getLogger("roostd.x").debug("not shown")
    try:
        raise OSError("disk")
    except OSError:
        logging.getLogger("roostd.x").exception("failed")
    first, second = map(json.loads, out.getvalue().splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {
        "level": "info",
        "logger": "roostd.x",
        "message": "link us-1",
        "peer": "us-1",
        "lag_ms": 3,
    }
    assert second["level"] == "error"
    assert second["exception"].endswith("OSError: disk")


@pytest.mark.usefixtures("root_logger")
def test_text_lines() -> None:
    out = io.StringIO()
    logs.set_up("text", "warning", out)
    logging.getLogger("roostd.x").info("not shown")
    logging.getLogger("roostd.x").warning("link down", extra={"peer": "us-1"})
    assert out.getvalue().endswith(" warning roostd.x: link down peer=us-1\n")
    out = io.StringIO()
    logs.set_up("auto", "info", out)
    logging.getLogger("roostd.x").info("x")
    assert json.loads(out.getvalue())["message"] == "x"


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(60)
        yield listening


def test_states_are_sent(supervisor: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": supervisor.getsockname()})
    notifier.ready("serves")
    assert supervisor.recv(4096) == b"READY=1\nSTATUS=serves"
    notifier.reloading()
    assert re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", supervisor.recv(4096))
    notifier.stopping("bye")
    assert supervisor.recv(4096) == b"STOPPING=1\nSTATUS=bye"


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets")
def test_an_abstract_socket() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0roost-test-{os.getpid()}")
        listening.settimeout(60)
        Notifier({"NOTIFY_SOCKET": f"@roost-test-{os.getpid()}"}).send("X=1")
        assert listening.recv(100) == b"X=1"


def test_without_a_supervisor_nothing_happens(tmp_path: Path) -> None:
    Notifier({}).ready("x")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready("x")


def test_the_watchdog_is_fed_twice_a_period(supervisor: socket.socket) -> None:
    environ = {"NOTIFY_SOCKET": supervisor.getsockname(), "WATCHDOG_USEC": "20000000"}

    @virtual
    async def run() -> None:
        feeding = asyncio.create_task(Notifier(environ).feed_watchdog())
        await asyncio.sleep(45)
        feeding.cancel()

    run()
    supervisor.setblocking(False)
    for _ in range(5):
        assert supervisor.recv(100) == b"WATCHDOG=1"
    with pytest.raises(BlockingIOError):
        supervisor.recv(100)


async def test_a_watchdog_of_another_process_is_not_ours() -> None:
    notifier = Notifier({"WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"})
    await asyncio.wait_for(notifier.feed_watchdog(), 30)
    assert notifier.watchdog_s == 0
