from __future__ import annotations

import logging

import pytest

from roost_crdt.limits import Limits
from roostd.node.clock import Clock


class Machine:
    def __init__(self) -> None:
        self.wall_ms, self.boot_ms = 5_000_000, 1_000

    def clock(self, expected: int) -> Clock:
        return Clock(Limits(), expected, wall_ms=lambda: self.wall_ms, boot_ms=lambda: self.boot_ms)


def test_a_jump_is_said_once_and_again_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    clock = machine.clock(2)
    caplog.set_level(logging.WARNING, logger="roostd.node.clock")
    machine.wall_ms += 3_600_000
    for _ in range(3):
        clock.tick([4_999_000, 4_999_010])
    assert clock.now_ms() == 5_000_000
    assert clock.jumped_ms == 3_600_000
    assert [r.getMessage()[:47] for r in caplog.records] == [
        "this machine's clock jumped by +3600000 ms and "
    ]
    machine.wall_ms -= 3_600_000
    clock.tick([4_999_000, 4_999_010])
    assert caplog.records[-1].getMessage() == "this machine's clock is back"


def test_a_jump_that_neighbours_confirm_is_followed(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    clock = machine.clock(2)
    caplog.set_level(logging.WARNING, logger="roostd.node.clock")
    machine.wall_ms -= 60_000
    clock.tick([4_939_000, 4_999_000])
    assert clock.now_ms() == 5_000_000
    clock.tick([4_939_000, 4_939_020])
    assert clock.now_ms() == machine.wall_ms == 4_940_000
    assert "-60000 ms" in caplog.records[-1].getMessage()
    clock.tick([4_939_000, 4_939_020])
    assert len(caplog.records) == 2


def test_a_node_alone_follows_its_machine(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    clock = machine.clock(0)
    machine.wall_ms += 90 * 86_400_000
    clock.tick([])
    assert clock.now_ms() == machine.wall_ms
    assert "as there are no neighbours" in caplog.records[-1].getMessage()
