"""Frames of sessions taken in: what fits is appended, what does not is asked for or refused."""

from __future__ import annotations

import pytest
from session_network import Network

from roost_crdt.errors import PeerError

SID = "s1"


def test_what_is_no_frame_is_refused() -> None:
    node = Network(("eu",))["eu"]
    with pytest.raises(PeerError):
        node.stream.on_frame("us", b"\xc1")
    assert node.shelf.meta(SID) is None
