"""What waits for answers is bounded and is forgotten with its session."""

from __future__ import annotations

from session_network import Network

from roost_crdt.home import Want

SID = "s1"


def test_frames_are_taken_once_in_order() -> None:
    out = Network(("eu",))["eu"].stream._out
    out.send("us", Want("a", (1, "us")))
    out.send("ap", Want("b", (1, "ap")))
    assert [node for node, _ in out.take()] == ["us", "ap"]
    assert out.take() == []


def test_a_session_that_is_gone_awaits_nothing() -> None:
    network = Network(("eu", "us"))
    network["eu"].stream.begin(SID)
    out = network["eu"].stream._out
    out.candidates[SID] = "us"
    out.want("us", SID, (1, "us"))
    assert SID in out.unacked
    out.forget(SID)
    assert not any((out.unacked, out.candidates, out.unmerged, out.wanted))
