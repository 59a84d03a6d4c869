"""A node whose disk lied, and a clone of a running one: found at the greeting, nothing is lost."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from roost_crdt import logformat
from roostd.index import Index
from roostd.store.identity import surroundings

from .crowd import Ledger, burst
from .faulty_daemon import Client
from .node_kit import WAIT_S, Node, alike, linked, neighbours, until


def put_back(prefix: Path, data: Path) -> None:
    """What the disk really holds, in the same inodes."""
    for path in sorted(data.rglob("*"), reverse=True):
        kept = prefix / path.relative_to(data)
        if path.is_dir():
            if not kept.exists():
                path.rmdir()
        elif not kept.exists():
            path.unlink()
        else:
            with path.open("r+b") as file:
                file.write(kept.read_bytes())
                file.truncate()
    for kept in prefix.rglob("*"):
        if not (place := data / kept.relative_to(prefix)).exists():
            shutil.copy2(kept, place)


@pytest.mark.parametrize("crashed", [True, False], ids=["crashed", "stopped before"])
def test_a_disk_that_lied(pair: tuple[Node, Node], tmp_path: Path, crashed: bool) -> None:
    """Every sync says yes and does nothing; after the power cut the disk is as it was before.

    What the neighbour holds comes back, under another actor; nothing is counted twice.
    """
    liar, keeper = pair
    liar.running()
    keeper.running()
    burst(liar.home, liar.ledger, rounds=10)
    until(lambda: alike(liar, keeper), "alike")
    assert liar.daemon is not None
    if crashed:
        liar.daemon.kill()
    else:
        liar.daemon.process.send_signal(15)
        assert liar.daemon.process.wait(WAIT_S) == 0
    data, prefix = liar.home / "data", tmp_path / "prefix"
    shutil.copytree(data, prefix)
    before = liar.actors.copy()

    daemon = liar.launch("fdatasync:retval=0", "fsync:retval=0")
    assert daemon.ready(), daemon.text()
    burst(liar.home, liar.ledger, rounds=10)
    until(lambda: linked(liar) and alike(liar, keeper), "alike")
    liar.stop()
    put_back(prefix, data)

    # Started unaided; its clients write again once it has heard its neighbour.
    assert liar.launch().ready()
    until(lambda: linked(liar) and alike(liar, keeper), "alike again")
    assert liar.daemon is not None
    assert "rolled back or cloned" in liar.daemon.text()
    assert "us-1" in liar.daemon.text()
    assert liar.status()["actor"] not in before, "the lost history's actor is used again"
    with closing(Client(liar.home)) as client:
        liar.ledger.check(client)
    burst(liar.home, liar.ledger, rounds=5)
    until(lambda: alike(liar, keeper), "alike at last")
    for node in (liar, keeper):
        with closing(Client(node.home)) as client:
            liar.ledger.check(client)


def test_a_rollback_is_found_however_much_was_written_since(
    pair: tuple[Node, Node], tmp_path: Path
) -> None:
    """Nobody tells the node at its start that it lost its newest writes, so it goes on under the
    same actor, further than its neighbour knows: the chain that it shows then is another one."""
    node, keeper = pair
    node.running()
    keeper.running()
    burst(node.home, node.ledger, rounds=5)
    count(node, 100)
    until(lambda: alike(node, keeper), "alike")
    node.stop()
    shutil.copytree(node.home / "data", tmp_path / "prefix")
    node.running()
    burst(node.home, node.ledger, rounds=5)
    count(node, 2)
    until(lambda: linked(node) and alike(node, keeper), "alike")
    node.stop()
    keeper.stop()
    put_back(tmp_path / "prefix", node.home / "data")

    again = Node(node.home, node.environ)
    assert again.launch().ready()
    burst(again.home, Ledger(), rounds=5, pad=10)
    count(again, 4)
    assert again.status()["actor"] in node.actors
    keeper.running()
    until(lambda: linked(again) and alike(again, keeper), "alike")
    assert again.daemon is not None
    assert "rolled back or cloned" in again.daemon.text()
    assert again.status()["actor"] not in node.actors
    assert "has two histories" in again.daemon.text()
    both = (again, keeper)
    until(lambda: [count(one, 0) for one in both] == [106, 106], "both histories are counted")
    again.stop()


def count(node: Node, by: int) -> int:
    with closing(Client(node.home)) as client:
        shown = client.ask("INCRBY", "visits:fork", str(by))
    assert isinstance(shown, int)
    return shown


@pytest.fixture
def line(tmp_path: Path) -> Iterator[list[Node]]:
    """eu-1, us-1 between them, and ap-1, which becomes eu-1's clone."""
    made = neighbours(tmp_path, ("eu", "us", "ap"))
    with ExitStack() as stack:
        for node in made:
            stack.callback(node.stop)
        yield made


@pytest.mark.parametrize(
    ("forged", "found"),
    [
        ((), "another device or inode"),
        (("file_id",), "this store was that of eu-1"),
        (("file_id", "node"), "rolled back or cloned"),
    ],
    ids=["copied", "cloned by blocks", "with its name"],
)
def test_a_clone_that_runs_beside_its_original(
    line: list[Node], forged: tuple[str, ...], found: str
) -> None:
    """A copy is known by its inode; a clone of blocks by the name of the node that wrote it; one
    with all marks forged by its neighbour."""
    origin, between, clone = line
    origin.running()
    between.running()
    burst(origin.home, origin.ledger, rounds=5)
    until(lambda: alike(origin, between), "alike")
    origin.stop()
    shutil.copytree(origin.home / "data", clone.home / "data")
    if forged:
        index = Index(clone.home / "data" / "index", 32 << 20)
        marks = {"file_id": surroundings(index.data_file).file_id, "node": b"ap-1"}
        index.write((), {logformat.KIND_META: [(name.encode(), marks[name]) for name in forged]})
        index.close()
    origin.running()
    until(lambda: linked(origin), "linked")
    burst(origin.home, origin.ledger, rounds=5)
    until(lambda: alike(origin, between), "alike")

    assert clone.launch().ready()
    until(lambda: linked(clone) and alike(clone, between), "the clone has taken its part")
    assert clone.daemon is not None
    assert found in clone.daemon.text()
    assert clone.status()["actor"] not in origin.actors, "two stores write as one actor"
    with ExitStack() as stack:
        ends = [stack.enter_context(closing(Client(node.home))) for node in (origin, clone)]
        first = int(ends[0].ask("GET", "visits:both") or b"0")
        for _ in range(20):
            for end in ends:
                assert isinstance(end.ask("INCR", "visits:both"), int)
        until(lambda: alike(origin, clone), "alike")
        assert [end.ask("GET", "visits:both") for end in ends] == [b"%d" % (first + 40)] * 2
        for end in ends:
            origin.ledger.check(end)
