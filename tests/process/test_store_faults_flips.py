"""One bit turned, in every page of the index and every group of the log: never served."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from roost_crdt import logformat
from roost_crdt.logformat import Secret
from roostd import pages

from .faulty_daemon import SOAK

READER = Path(__file__).with_name("flipped_reader.py")
sys.path.insert(0, str(READER.parents[1] / "daemon"))
from power_loss_writer import numbers, open_store, pretend  # noqa: E402

PAGE = 4096
ROUNDS = 40 if SOAK else 2
GROUPS = 80
Flip = tuple[str, int, int]


def outcomes(base: Path, scratch: Path, count: int, flips: list[Flip]) -> list[tuple[Flip, str]]:
    """What becomes of each flip; a reader that dies is replaced."""
    found: list[tuple[Flip, str]] = []
    while len(found) < len(flips):
        left = flips[len(found) :]
        done = subprocess.run(
            [sys.executable, str(READER), str(base), str(scratch), str(count)],
            input="".join(f"{name} {offset} {bit}\n" for name, offset, bit in left),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        found += zip(left, done.stdout.splitlines(), strict=False)
        if done.returncode:
            assert done.returncode < 0, done.stderr[-2_000:]
            found.append((flips[len(found)], f"died of signal {-done.returncode}"))
    return found


def test_a_bit_in_every_page_of_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend("boot", monkeypatch)
    store = open_store(tmp_path / "store")
    (*_, count) = numbers(store, GROUPS)
    store.close()
    rng = random.Random(int(os.environ.get("ROOST_TEST_SEED", "11")))
    data = (tmp_path / "store" / "index" / "data.mdb").read_bytes()
    free = set(pages.free_pages(tmp_path / "store" / "index" / "data.mdb"))
    live = [page for page in range(0, len(data), PAGE) if page // PAGE not in free]
    flips = [
        ("index/data.mdb", page + used(data[page : page + PAGE], rng), rng.randrange(8))
        for _ in range(ROUNDS)
        for page in live
    ]
    found = outcomes(tmp_path / "store", tmp_path / "copy", count, flips)
    tally = Counter(text.split()[0] for _, text in found)
    print(len(flips), dict(tally))
    assert [one for one in found if "WRONG" in one[1]] == []
    # The log holds all from the first write on, and what it holds a repair brings back.
    mended = [text for _, text in found if "-> " in text]
    assert [text for text in mended if "-> all" not in text and "-> not this" not in text] == []
    assert any("-> all" in text for text in mended)
    # LMDB itself ends the process at some pages. Rare, and no other value is served.
    assert tally["noticed"] + tally["died"] <= len(flips) // 200 + 3
    for flip, text in found:
        if text.startswith("refused"):
            assert "roost check DIR --repair" in text or "this release reads" in text, (flip, text)


def used(page: bytes, rng: random.Random) -> int:
    """A place in a page that holds something."""
    return rng.choice([at for at, byte in enumerate(page) if byte])


def test_a_bit_in_every_group_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unapplied, so that all of the log is needed: the start is refused, with the command."""
    pretend("boot", monkeypatch)
    store = open_store(tmp_path / "store")
    store._applier.stop()
    (*_, count) = numbers(store, GROUPS)
    secret = Secret.from_bytes(store._index.meta(b"secret") or b"")
    store.close(clean=False)
    rng = random.Random(int(os.environ.get("ROOST_TEST_SEED", "12")))
    flips: list[Flip] = []
    last: list[Flip] = []
    kinds: Counter[int] = Counter()
    for path in sorted((tmp_path / "store" / "log").iterdir()):
        data = path.read_bytes()
        if not any(data):
            continue
        name = f"log/{path.name}"
        flips.append((name, rng.randrange(logformat.SEGMENT_HEADER_BYTES), rng.randrange(8)))
        header = logformat.decode_segment_header(data)
        assert header is not None
        start = logformat.SEGMENT_HEADER_BYTES
        for group in logformat.scan(data, start, header.first_seq, secret):
            kinds.update(entry.kind for entry in logformat.entries(data, group))
            head, body, end = group.offset, group.payload, group.end
            last = [
                (name, rng.randrange(head, body), rng.randrange(8)),
                (name, rng.randrange(body, end), rng.randrange(8)),
            ]
            flips += last
    flips = flips[: -len(last)]
    assert set(logformat.KINDS) <= kinds.keys(), "some kind of entry was never written"
    found = outcomes(tmp_path / "store", tmp_path / "copy", count, flips if SOAK else flips[::2])
    for flip, text in found:
        assert text.startswith("refused"), (flip, text)
        assert "WRONG" not in text, (flip, text)
        assert "roost check DIR --repair" in text or "move it away" in text, (flip, text)
