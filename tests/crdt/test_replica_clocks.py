"""Clocks that are wrong: records that wait, writes that are refused before they are stamped."""

from __future__ import annotations

import pytest
from replication_network import network

from roost_crdt.limits import Limits
from roost_crdt.peer import Mode


def test_a_record_far_ahead_waits_and_is_not_skipped() -> None:
    net = network("line", 3, limits=Limits(clock_offset_max_ms=500))
    net.clocks_ms["n1"] = 2_000
    net.put("n1", b"k", b"future")
    net.put("n0", b"l", b"present")
    began_ms = net.now_ms
    net.run(400)
    assert net.replicas["n0"].mode("n1") is Mode.CLOCK_SKEW
    assert net.replicas["n1"].mode("n0") is Mode.CLOCK_SKEW
    assert net.replicas["n1"].clock_refused()
    assert not net.replicas["n0"].clock_refused()
    assert net.replicas["n1"].clock_offset_ms() == pytest.approx(2_000, abs=30)
    assert len(net.stores["n2"].rows) == 1
    assert net.replicas["n0"].lag_ms(net.now_ms) > 300
    net.clocks_ms["n1"] = 0
    net.run_until_converged(3_000)
    assert net.now_ms - began_ms >= 1_500
    net.run(600)
    assert not net.replicas["n1"].clock_refused()
    assert net.replicas["n0"].mode("n1") is Mode.STREAM


def test_a_clock_far_ahead_refuses_before_anything_is_stamped() -> None:
    net = network("mesh", 3, limits=Limits(clock_offset_max_ms=500))
    net.run(1_000)
    assert not net.replicas["n1"].clock_refused()
    net.clocks_ms["n1"] = 2_000
    net.run(100)
    assert net.replicas["n1"].clock_refused()
    assert net.replicas["n1"].mode("n0") is Mode.STREAM
    net.clocks_ms["n1"] = -2_000
    net.run(2_500)
    assert not net.replicas["n1"].clock_refused()


def test_one_neighbour_that_lags_refuses_nothing_at_two_others() -> None:
    net = network("mesh", 3, limits=Limits(clock_offset_max_ms=500))
    net.clocks_ms["n2"] = -3_600_000
    net.run(3_000)
    assert not any(net.replicas[node].clock_refused() for node in ("n0", "n1", "n2"))
    assert net.replicas["n0"].clock_offset_ms() == pytest.approx(0, abs=30)


def test_heartbeats_show_the_machines_clock_not_the_one_in_force() -> None:
    """Else nodes whose machines were all corrected would wait for each other for ever."""
    net = network("mesh", 3)
    net.replicas["n0"].clock_jumped(60_000)
    net.run(3_000)
    shown_ms = sorted(net.replicas["n1"].neighbours_clocks())
    assert shown_ms == [pytest.approx(0, abs=30), pytest.approx(60_000, abs=30)]
    assert not net.replicas["n0"].clock_refused()
