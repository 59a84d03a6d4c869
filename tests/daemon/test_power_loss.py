"""Power loss at any moment: every acknowledged write is there, nothing wrong is served.

Images of what the disk may hold are built from the recorded file calls of a real process (see
`power_loss`), opened by `Store.open` under another boot id, and compared with what was
acknowledged. Some images are written on by a second process, recorded as well: power lost
again, during the recovery or after it. `ROOST_TEST_IMAGES` says how many (soak: 20,000).
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import power_loss
import pytest
from power_loss import Disk, Event
from store_kit import root_of

from roost_crdt import logformat
from roost_crdt.errors import CorruptData
from roostd import pages
from roostd.store import Store

WRITER = Path(__file__).with_name("power_loss_writer.py")
sys.path.insert(0, str(WRITER.parent))
import wiping_writer  # noqa: E402
from power_loss_writer import (  # noqa: E402
    NOW,
    check,
    numbers,
    open_store,
    pretend,
    written,
)

WIPER = WRITER.with_name("wiping_writer.py")
IMAGES = int(os.environ.get("ROOST_TEST_IMAGES", "360"))
GROUPS = 151
GENERATIONS = 3
SETTLE_EVERY = 8


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory where there is one: images are many, and need no disk."""
    shared = Path("/dev/shm")
    base = Path(tempfile.mkdtemp(dir=shared if os.access(shared, os.W_OK) else None))
    yield base
    shutil.rmtree(base)


@dataclass
class Tally:
    """What the images were like: a fault that never bites proves nothing."""

    images: int = 0
    kinds: Counter[str] = field(default_factory=Counter)


def a_seed() -> int:
    """The same in CI; elsewhere, and for the many images of a soak, another each time."""
    if seed := os.environ.get("ROOST_TEST_SEED"):
        return int(seed)
    always = os.environ.get("CI") == "true" and IMAGES <= 1_000
    return 7 if always else int.from_bytes(os.urandom(4), "big")


def record(store: Path, boot: str, groups: int, writer: Path = WRITER) -> list[Event]:
    command = [sys.executable, str(writer), str(store), boot, str(groups)]
    events, status = power_loss.record(command, store, store.with_suffix(".trace"))
    assert status == 0
    return events


def moments(events: list[Event], count: int, rng: random.Random) -> Counter[int]:
    """How many images to build after each event; the start and each sync get their share."""
    near = [at for at, event in enumerate(events) if event.call == "sync"]
    early = range(min(len(events), 150))
    chosen: Counter[int] = Counter()
    for _ in range(count):
        chosen[rng.choice(rng.choice((range(len(events)), near, early)))] += 1
    return chosen


def acknowledged(disk: Disk) -> int:
    return int(disk.acknowledged or b"0")


def open_image(image: Path, disk: Disk, tally: Tally, base_count: int) -> Store:
    """Open the image of a disk and check what it shows."""
    store = open_store(image)
    try:
        found = store.recovery
        count = check(store, max(acknowledged(disk), base_count))
        tally.images += 1
        tally.kinds["uncertain"] += disk.uncertain > 0
        tally.kinds["torn tail cut"] += found.torn_bytes > 0
        tally.kinds["replayed"] += found.replayed > 0
        tally.kinds["created"] += found.created
        tally.kinds["clean"] += found.clean
        tally.kinds["new actor"] += found.actor_changed
        tally.kinds["unacknowledged kept"] += count > acknowledged(disk)
        assert found.created or found.clean or found.actor_changed, "the actor is used again"
        assert bool(found.torn_bytes) == bool(found.torn_at)
        assert not (found.created and count)
    except BaseException:
        store.close(clean=False)
        raise
    return store


def lives_on(store: Store, image: Path) -> None:
    """The index catches up with the log; more is written, closed, opened, found."""
    assert store._applier.drain(60)
    seq, root = store.digest(NOW)
    assert seq == store.seq
    assert root == root_of(store, NOW)
    (*_, count) = numbers(store, 3)
    store.close()
    store = open_store(image)
    try:
        assert store.recovery.clean
        assert not store.recovery.actor_changed
        assert check(store, count) == count
    finally:
        store.close(clean=False)


def try_images(
    events: list[Event], disk: Disk, base: Path, count: int, tally: Tally, rng: random.Random
) -> Path:
    """Build `count` images along a run; the one of them that is kept (unopened) for a next run."""
    chosen = moments(events, count, rng)
    base_count = acknowledged(disk)
    kept, kept_at = base / "kept", rng.randrange(count // 4, count)
    done = 0
    for at, event in enumerate(events):
        disk.feed(event)
        for _ in range(chosen[at]):
            image = base / "image"
            disk.build(image, rng)
            if done == kept_at:
                shutil.copytree(image, kept)
            done += 1
            try:
                store = open_image(image, disk, tally, base_count)
            except (Exception, pytest.fail.Exception) as exc:
                where = f"after event {at} ({event.call} {event.path}), image {done}"
                raise AssertionError(f"{where}: {exc}") from exc
            if done % SETTLE_EVERY:
                store.close(clean=False)
            else:
                lives_on(store, image)
            shutil.rmtree(image)
    return kept


@pytest.mark.timeout(0 if IMAGES > 1_000 else 300)
def test_power_lost_at_any_moment(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := power_loss.can_record():
        pytest.skip(reason)
    seed = a_seed()
    print(f"seed {seed}")
    rng = random.Random(seed)
    tally = Tally()
    rounds = max(1, IMAGES // 1_500)
    share = -(-IMAGES // (rounds * GENERATIONS))
    pretend("boot of the reader", monkeypatch)
    for turn in range(rounds):
        base = memory / str(turn)
        source = base / "start"
        source.mkdir(parents=True)
        shown = b""
        for generation in range(GENERATIONS):
            base = base / "next"
            base.mkdir()
            disk = Disk(source)
            disk.load(source)
            disk.acknowledged = shown
            groups = rng.randrange(GROUPS // 3, GROUPS)
            events = record(source, f"boot {generation}", groups)
            kept = try_images(events, disk, base, share, tally, rng)
            shown = b""
            with_count = shutil.copytree(kept, base / "look")
            store = open_store(with_count)
            shown = b"%d" % written(store)
            store.close(clean=False)
            source = kept
        shutil.rmtree(memory / str(turn))
    print(tally.images, dict(tally.kinds))
    assert tally.images >= IMAGES
    for kind in ("uncertain", "torn tail cut", "replayed", "created", "new actor"):
        assert tally.kinds[kind] >= tally.images // 200, f"hardly ever: {kind}"


@pytest.mark.timeout(0 if IMAGES > 1_000 else 300)
def test_power_lost_while_the_index_is_wiped(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages in use are written to in place: what is there is whole, what was erased goes."""
    if reason := power_loss.can_record():
        pytest.skip(reason)
    seed = a_seed()
    print(f"seed {seed}")
    rng, kinds = random.Random(seed), Counter[str]()
    pretend("boot of the reader", monkeypatch)
    source, image = memory / "start", memory / "image"
    source.mkdir()
    disk = Disk(source)
    events = record(source, "boot", 26, WIPER)
    index = [at for at, e in enumerate(events) if e.path.endswith("data.mdb") and e.call != "sync"]
    zeros = {at for at in index if events[at].data and not any(events[at].data)}
    chosen = Counter(rng.choice(rng.choice((index, sorted(zeros)))) for _ in range(IMAGES // 3))
    for at, event in enumerate(events):
        disk.feed(event)
        for _ in range(chosen[at]):
            disk.build(image, rng)
            kinds["images"] += 1
            kinds["while wiped"] += at in zeros
            try:
                wiped(image, acknowledged(disk), kinds)
            except (Exception, pytest.fail.Exception) as exc:
                raise AssertionError(f"after event {at} ({event.call}): {exc}") from exc
            shutil.rmtree(image)
    print(dict(kinds))
    assert kinds["left"] >= kinds["images"] // 10
    assert kinds["while wiped"] >= kinds["images"] // 10


def wiped(image: Path, acked: int, kinds: Counter[str]) -> None:
    """Open an image, look at all of it, and let it end what was begun."""
    store = wiping_writer.open_store(image)
    try:
        found = dict(store.scan(logformat.KIND_SESSION))
        steps = [n for n in (acked, acked + 1) if found == wiping_writer.expected(n)]
        assert steps, f"after {acked} steps: {list(found)}"
        data = image / "index" / "data.mdb"
        assert store._applier.drain(60)
        assert pages.inspect(data) == []
        gone = [wiping_writer.marker(n) for n in wiping_writer.erased(steps[-1])]
        kinds["left"] += any(words in data.read_bytes() for words in gone)
        wiping_writer.settle(store)
        held = data.read_bytes()
        assert not [words for words in gone if words in held], "an erasure was forgotten"
        assert dict(store.scan(logformat.KIND_SESSION)) == found
        assert pages.inspect(data) == []
    finally:
        store.close(clean=False)


def test_a_disk_that_lies_is_noticed(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself: log segments that are never synced lose what was acknowledged."""
    if reason := power_loss.can_record():
        pytest.skip(reason)
    pretend("boot of the reader", monkeypatch)
    source = memory / "start"
    source.mkdir()
    disk = Disk(source, lies=True)
    refused = lost = 0
    rng = random.Random(5)
    for event in record(source, "boot", 41):
        disk.feed(event)
        if event.call != "sync" or acknowledged(disk) < 20:
            continue
        image = memory / "image"
        disk.build(image, rng)
        try:
            open_image(image, disk, Tally(), 0).close(clean=False)
        except CorruptData:
            refused += 1
        except AssertionError:
            lost += 1
        shutil.rmtree(image)
    assert refused + lost > 10


def test_a_log_that_ends_below_what_is_applied_stops_nobody(tmp_path: Path) -> None:
    """A lying disk lost part of a file whose length the index relies on."""
    store = open_store(tmp_path / "store")
    (*_, count) = numbers(store, 200)
    assert store._applier.drain(60)
    store.close()
    newest = sorted((tmp_path / "store" / "log").iterdir())[-2]
    os.truncate(newest, 3_000)
    store = open_store(tmp_path / "store")
    try:
        assert check(store, count) == count
    finally:
        store.close(clean=False)  # joins the thread that reads what is not there
