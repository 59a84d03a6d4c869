"""Catching up: what is joined on the way, and that the result is the same."""

from __future__ import annotations

import pytest
from replication_network import Network


@pytest.mark.parametrize(("keys", "most"), [(2, 3), (300, 300)])
def test_catching_up_joins_records_that_write_the_same_rows(keys: int, most: int) -> None:
    net = Network(["a", "b", "c"])
    for at in range(300):
        net.put("a", b"k%d" % (at % keys), b"v%d" % at)
    assert net.link("a", "b")
    assert net.link("b", "c")
    net.run_until_converged(3_000)
    assert net.stores["c"].vv == net.stores["a"].vv
    assert net.replicas["b"].peers["a"].received <= most
    net.put("a", b"k0", b"after")
    net.run_until_converged(1_000)
    assert net.copies()[1] == 0
