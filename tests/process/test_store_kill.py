"""Real processes killed while they write: everything that they acknowledged is found again."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from store_kit import root_of

from roost_crdt import values
from roost_crdt.errors import Busy, Full
from roost_crdt.logformat import KIND_SESSION
from roostd.store import Store

WRITER = Path(__file__).with_name("store_writer.py")
sys.path.insert(0, str(WRITER.parent))
from store_writer import KEYS, open_store, write, written  # noqa: E402

GROUP_MAX = 5
STRACE = shutil.which("strace")


def acknowledged(output: bytes) -> int:
    """The newest number that was printed whole."""
    lines = [line for line in output.split(b"\n")[:-1] if line != b"closed"]
    return int(lines[-1].removeprefix(b"open ")) if lines else 0


def check(store: Store, acked: int, *, sessions: bool = True) -> int:
    """Every acknowledged write is there, nothing is there in part; how many writes there are.

    `sessions`: each write was preceded by its session entry.
    """
    count = written(store)
    assert acked <= count <= acked + GROUP_MAX
    for slot in range(KEYS):
        newest = count - (count - slot) % KEYS
        if newest <= 0:
            continue
        rows = store.key_rows(b"k:%d" % slot).rows
        value = values.register_value(rows, 1)
        assert isinstance(value, bytes)
        assert int(value.partition(b".")[0]) == newest
        session = store.get(KIND_SESSION, b"s:%d" % slot)
        assert not sessions or int(session or b"0") >= newest
    return count


def settled(store: Store) -> None:
    """The index catches up, and its digest is that of the rows."""
    assert store._applier.drain(120)
    seq, root = store.digest(1)
    assert seq == store.seq
    assert root == root_of(store, 1)


def test_killed_at_random_moments(tmp_path: Path) -> None:
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    rng = random.Random(seed)
    path = tmp_path / "store"
    acked = groups = 0
    actors = set()
    for turn in range(10):
        with subprocess.Popen(
            [sys.executable, str(WRITER), str(path), "1000000"], stdout=subprocess.PIPE
        ) as writer:
            assert writer.stdout is not None
            output = b""
            if turn % 4:
                more = rng.randrange(10, 100)
                output = b"".join(writer.stdout.readline() for _ in range(1 + more))
                groups += more
            else:
                time.sleep(0.3)  # may hit the start and its recovery as well
                time.sleep(rng.uniform(0.0, 0.4))
            time.sleep(rng.uniform(0.0, 0.01))
            writer.send_signal(signal.SIGKILL)
            output += writer.stdout.read()
            assert writer.wait() == -signal.SIGKILL
        acked = max(acked, acknowledged(output))
        if turn % 3 == 2:
            continue  # killed again before anybody looked
        store = open_store(path)
        try:
            assert not store.recovery.clean or not acked
            assert not store.recovery.actor_changed, "the page cache survives a kill"
            actors.add(store.actor)
            acked = check(store, acked)
            settled(store)
            assert set(store.vv) <= {store.actor}
        finally:
            store.close(clean=False)
    assert acked >= groups > 0
    assert len(actors) == 1


def traced(path: Path, groups: int, inject: str) -> subprocess.CompletedProcess[bytes]:
    assert STRACE is not None
    call = inject.partition(":")[0]
    return subprocess.run(
        [
            *(STRACE, "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}"),
            *("-e", f"inject={inject}", sys.executable, str(WRITER), str(path), str(groups)),
        ],
        capture_output=True,
        timeout=500,
        check=False,
    )


def needs_strace() -> None:
    if STRACE is None:
        pytest.skip("strace is not on this machine")
    probe = subprocess.run([STRACE, "-qq", "-o", "/dev/null", "true"], check=False)
    if probe.returncode:
        pytest.skip("strace may not trace here")


@pytest.mark.parametrize(
    ("call", "groups", "moments"),
    [
        ("fdatasync", 60, (1, 2, 3, 5, 9, 14, 30)),
        ("fsync", 60, (1, 2, 4, 6, 8)),
        ("pwrite64", 60, (1, 3, 6, 11, 25)),
        ("unlink", 1_500, (1, 1, 2)),  # the clean mark, then segments beyond the retention
    ],
)
def test_killed_at_a_boundary(
    tmp_path: Path, call: str, groups: int, moments: tuple[int, ...]
) -> None:
    """The Nth call does not happen and the process dies there, at every start again."""
    needs_strace()
    path = tmp_path / "store"
    acked = killed = 0
    for moment in moments:
        done = traced(path, groups, f"{call}:signal=KILL:when={moment}")
        killed += done.returncode in (-9, 137)
        assert done.returncode in (0, -9, 137), done.stderr.decode()[-2_000:]
        acked = max(acked, acknowledged(done.stdout))
        store = open_store(path)
        try:
            acked = check(store, acked)
            settled(store)
        finally:
            store.close(clean=False)
    assert killed >= 2, "the fault did not bite"


@pytest.mark.parametrize("moment", [4, 9, 13])
def test_a_failing_fdatasync_acknowledges_nothing_more(tmp_path: Path, moment: int) -> None:
    needs_strace()
    path = tmp_path / "store"
    done = traced(path, 1_000, f"fdatasync:error=EIO:when={moment}+")
    assert done.returncode == 1
    text = done.stderr.decode()
    assert ("acknowledged any more" if moment > 4 else "the store cannot be opened") in text
    assert "Input/output error" in text
    assert b"closed" not in done.stdout
    acked = acknowledged(done.stdout)
    store = open_store(path)
    try:
        assert check(store, acked) >= acked
        settled(store)
    finally:
        store.close(clean=False)


def test_a_disk_that_takes_no_more_acknowledges_nothing_more(tmp_path: Path) -> None:
    needs_strace()
    path = tmp_path / "store"
    done = traced(path, 1_000, "pwrite64:error=ENOSPC:when=30+")
    assert done.returncode == 1
    assert "acknowledged any more" in done.stderr.decode()
    store = open_store(path)
    try:
        check(store, acknowledged(done.stdout))
    finally:
        store.close(clean=False)


def test_a_full_disk_refuses_and_recovers_by_itself(small_disk: Path) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(26 << 20))
    store = open_store(small_disk / "store", size_max=64 << 20)
    try:
        with pytest.raises(Full, match=r"bytes free.*reads go on"):
            fill(store)
        number = written(store)
        store.flush()
        assert number > 100
        check(store, number, sessions=False)
        filler.unlink()
        began = time.monotonic()
        while True:
            try:
                write(store, number + 1)
                break
            except (Full, Busy):
                assert time.monotonic() - began < 60
                time.sleep(0.02)
        store.flush()
        settled(store)
        store.close(clean=False)
        store = open_store(small_disk / "store", size_max=64 << 20)
        check(store, number + 1, sessions=False)
    finally:
        store.close(clean=False)


def test_a_full_disk_does_not_keep_a_store_from_being_opened_elsewhere(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With hardly anything written the index has no free pages for its first transaction."""
    filler = small_disk / "filler"
    store = open_store(small_disk / "store", size_max=16 << 20)
    write(store, 1)
    store.flush()
    settled(store)
    store.close(clean=False)
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4_096))
    monkeypatch.setattr("roostd.store.identity._pid_namespace", lambda: 4242)
    store = open_store(small_disk / "store", size_max=16 << 20)
    try:
        with pytest.raises(Full, match=r"No space left on device; 0 bytes free .* reads go on"):
            write(store, 2)
        check(store, 1, sessions=False)
        filler.unlink()
        began = time.monotonic()
        while store.full():
            assert time.monotonic() - began < 5
            time.sleep(0.02)
        write(store, 2)
        store.flush()
        assert store._index.meta(b"pid_ns") == (4242).to_bytes(8, "big")
    finally:
        store.close(clean=False)


def fill(store: Store) -> None:
    """Write until it raises Full."""
    while True:
        number = written(store) + 1
        try:
            write(store, number)
            store.put(KIND_SESSION, {b"fill:%d" % number: bytes(2_000)})
        except Busy:
            store.flush()
            time.sleep(0.005)
        if number % 20 == 0:
            store.flush()
