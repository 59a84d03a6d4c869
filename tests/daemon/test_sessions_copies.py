"""Read-through copies: what a forwarded turn may be added to, and what is fetched again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from api_node import Served, served

from roost_crdt.entries import Epoch, TurnRef
from roost_crdt.fold import turn_entry
from roost_crdt.token import Claims
from roostd.node import Node
from roostd.sessions import types
from roostd.sessions.copies import Copies

SID = "s1"
EU: Epoch = (1, "eu")
US: Epoch = (2, "us")

Path = tuple[tuple[int, str, int, int], ...]


def entry(epoch: Epoch, turn: int, parent: TurnRef | None) -> tuple[str, bytes]:
    text = f"{turn} of {epoch[1]}".encode()
    return turn_entry(epoch, turn, parent=parent, turn_id=None, messages=[text], at_ms=1)


class Home:
    """Answers `session.copy` with what it holds, and counts how often it was asked."""

    def __init__(self, *entries: tuple[str, bytes]) -> None:
        self.entries = dict(entries)
        self.asked = 0

    async def call(self, node: str, method: str, args: dict[str, Any], *, deadline_ms: int) -> Any:
        assert (node, method, args) == ("us", "session.copy", {"sid": SID})
        self.asked += 1
        head = {"epoch": list(US), "standby": None, "n": 9, "used_ms": 1}
        return {**head, "entries": self.entries, "fields": {}}


@pytest_asyncio.fixture
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    running: Served
    async with served(tmp_path_factory.mktemp("copies")) as running:
        yield running.node


async def forwarded(
    copies: Copies, turn: int, path: Path, put: dict[str, dict[str, bytes | None]] | None = None
) -> list[str]:
    """A turn was committed at `us` for somebody here; what the copy shows then."""
    request = types.Commit(
        sid=SID, token=None, messages=[b"new"], turn_id="t", base=None, put=put or {}
    )
    answer = types.Committed(
        sid=SID, token="", turn=turn, stale_turns=0, protected=True, home="us", contested=False
    )
    claims = Claims(SID, "us", None, US, turn, path, "test", "us", 0, 1)
    await copies.after_forward(request, answer, claims, "us")
    copy = copies.get(SID)
    return [] if copy is None else [text.decode() for text in copy.fold.messages()]


async def read(copies: Copies) -> None:
    await copies._fetch(SID, "us")


async def test_a_turn_on_the_one_that_is_held_is_added_without_asking(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = Copies(node.sessions.context)
    home = Home(entry(EU, 1, None))
    monkeypatch.setattr(node.sessions.context.neighbours, "call", home.call)
    await read(copies)
    assert await forwarded(copies, 2, ((*EU, 0, 1), (*US, 1, 2))) == ["1 of eu", "new"]
    assert await forwarded(copies, 3, ((*EU, 0, 1), (*US, 1, 3))) == ["1 of eu", "new", "new"]
    assert home.asked == 1


async def test_the_first_turn_goes_into_an_empty_copy(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies, home = Copies(node.sessions.context), Home()
    monkeypatch.setattr(node.sessions.context.neighbours, "call", home.call)
    await read(copies)
    assert await forwarded(copies, 1, ((*US, 0, 1),)) == ["new"]
    assert home.asked == 1


async def test_a_turn_of_that_number_of_another_home_is_not_the_one_before(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy holds turn 2 of a split's other side; the turn was built on `us`'s own."""
    copies = Copies(node.sessions.context)
    first, other = entry(EU, 1, None), entry(EU, 2, (*EU, 1))
    home = Home(first, other)
    monkeypatch.setattr(node.sessions.context.neighbours, "call", home.call)
    await read(copies)
    home.entries = dict([first, entry(US, 2, (*EU, 1)), entry(US, 3, (*US, 2))])
    shown = await forwarded(copies, 3, ((*EU, 0, 1), (*US, 1, 3)))
    assert shown == ["1 of eu", "2 of us", "3 of us"]
    assert home.asked == 2


@pytest.mark.parametrize(
    ("path", "put"), [((), None), (((*EU, 0, 1), (*US, 1, 2)), {"kv": {"f": b"1"}})]
)
async def test_what_the_answer_does_not_tell_is_fetched(
    node: Node,
    monkeypatch: pytest.MonkeyPatch,
    path: Path,
    put: dict[str, dict[str, bytes | None]] | None,
) -> None:
    copies, home = Copies(node.sessions.context), Home(entry(EU, 1, None))
    monkeypatch.setattr(node.sessions.context.neighbours, "call", home.call)
    await read(copies)
    assert await forwarded(copies, 2, path, put) == ["1 of eu"]
    assert home.asked == 2


async def test_a_copy_that_lacks_turns_by_now_is_dropped(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies, home = Copies(node.sessions.context), Home(entry(EU, 1, None))
    monkeypatch.setattr(node.sessions.context.neighbours, "call", home.call)
    await read(copies)
    assert await forwarded(copies, 2, ((*EU, 0, 1), (*US, 1, 3))) == []
