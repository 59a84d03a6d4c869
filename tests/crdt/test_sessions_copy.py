"""A copy of a session: steps that are all or nothing, chains, compaction, whole documents."""

from __future__ import annotations

from session_network import Network

SID = "s1"


def test_a_home_of_the_same_number_gets_its_own_writes_back() -> None:
    network = Network(("eu", "us"))
    for name in ("eu", "us"):
        network[name].stream.begin(SID)
        network[name].flush()
    network["eu"].commit(SID, "first")  # under (1, eu); (1, us) outranks it
    network.settle()
    assert network.broken == []
    assert network["us"].is_home(SID)
    assert network["eu"].turns(SID) == network["us"].turns(SID) == ["first"]
