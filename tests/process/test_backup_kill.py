"""kill -9 while a backup or a restore is at work: nothing half usable is ever left."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis.asyncio import Redis
from store_kit import Stores, applied, incr, put

from roost_crdt.errors import CorruptData
from roost_crdt.logformat import KIND_SESSION
from roostd.store import Store, check, verify_backup

from .conftest import Start
from .faulty_daemon import SOAK

STRACE = shutil.which("strace")
ROOST = (sys.executable, "-m", "roostd.cli.main")
KEYS = 6_000
PATIENT_S = 120
TRIES = 60
"""To kill in the middle of what takes some hundredths of a second."""
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)


def whole_or_absent(file: Path) -> bool:
    """Whether there is a backup; if so it is a whole one."""
    if not file.exists():
        return False
    assert verify_backup(file).end.rows >= KEYS
    return True


async def roost(*args: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *ROOST, *args, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )


async def fill(url: str) -> None:
    redis = Redis.from_url(url)
    for first in range(0, KEYS, 500):
        pipe = redis.pipeline(transaction=False)
        for number in range(first, first + 500):
            pipe.set(f"model_router_weights:{number}", os.urandom(400))
        await pipe.execute()
    await redis.aclose()


async def write(url: str, stop: asyncio.Event, done: list[int]) -> None:
    """Keep writing; `done`: what was acknowledged."""
    redis = Redis.from_url(url)
    while not stop.is_set():
        await redis.set(f"model_router_weights:{len(done) % KEYS}", os.urandom(400))
        done.append(len(done))
    await redis.aclose()


async def grows(aside: Path, process: asyncio.subprocess.Process) -> None:
    """Wait until a backup has something in its file, or has ended."""
    before = aside.stat().st_mtime_ns if aside.exists() else 0
    async with asyncio.timeout(PATIENT_S):
        while process.returncode is None:
            if aside.exists() and aside.stat().st_size and aside.stat().st_mtime_ns != before:
                return
            await asyncio.sleep(0.001)


async def test_killed_backups_leave_the_old_file_or_none(start: Start, tmp_path: Path) -> None:
    regions = await start("eu")
    url, file = regions["eu"].url, tmp_path / "eu.backup"
    aside = tmp_path / "eu.backup.partial"
    await fill(url)
    stop, done = asyncio.Event(), list[int]()
    load = asyncio.create_task(write(url, stop, done))
    chance, killed, partial, pause_s = random.Random(3), 0, 0, 0.05
    for _ in range(TRIES):
        process = await roost("backup", str(file), "--url", url)
        await grows(aside, process)
        await asyncio.sleep(chance.uniform(0.0, pause_s))
        if process.returncode is None:
            process.kill()
        if await process.wait() in KILLED:
            killed += 1
            partial += aside.exists()
        else:
            pause_s /= 2
        whole_or_absent(file)
        if killed >= 4 and partial:
            break
    assert killed >= 4
    assert partial, "no kill came while the file was growing"
    last = await roost("backup", str(file), "--url", url, "--json")
    assert await last.wait() == 0
    assert whole_or_absent(file)
    assert not aside.exists()
    async with asyncio.timeout(PATIENT_S):
        while len(done) <= 50:
            assert not load.done(), "the daemon was held up"
            await asyncio.sleep(0.02)
    stop.set()
    await load

    # The daemon dies in the middle: the command says so and leaves nothing.
    before = file.read_bytes()
    process = await roost("backup", str(file), "--url", url)
    await grows(aside, process)
    await regions.kill("eu")
    _, told = await process.communicate()
    if process.returncode:
        assert process.returncode in (1, 3)
        assert b"UNAVAILABLE" in told or b"answers" in told
        assert file.read_bytes() == before
    assert not aside.exists()
    assert whole_or_absent(file)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A backup of a small store, in many chunks."""
    stores = Stores(tmp_path)
    store = stores.open("source")
    for number in range(300):
        put(store, b"k:%03d" % number, b"%d" % number * 100)
        incr(store, b"c")
        store.put(KIND_SESSION, {b"x:%d" % number: b"x" * 500})
    store.flush()
    applied(store)
    write_backup(store, tmp_path / "f")
    store.close()
    return tmp_path / "f"


def write_backup(store: Store, file: Path) -> None:
    cursor = b""
    with file.open("wb") as out:
        while True:
            page = store.backup(cursor, {}, 0, os.urandom(16))
            out.write(page.chunk)
            cursor = page.cursor
            if not cursor:
                return


def usable(path: Path) -> bool:
    """Whether a restore has finished there; a store of a killed one refuses to be opened."""
    if not (path / "index").exists():
        return False
    if (path / "restoring").exists():
        with pytest.raises(CorruptData, match="did not finish"):
            check(path)
        return False
    findings = check(path)
    assert findings.problems == []
    assert findings.rows == 301
    return True


@pytest.mark.parametrize("call", ["fsync", "fdatasync", "unlink"])
def test_a_restore_killed_at_a_boundary(tmp_path: Path, file: Path, call: str) -> None:
    """The Nth call does not happen; the next restore begins anew in what was left."""
    if STRACE is None or subprocess.run([STRACE, "-qq", "-o", "/dev/null", "true"]).returncode:
        pytest.skip("strace is not on this machine, or may not trace")
    directory = tmp_path / "restored"
    killed, moment = 0, 1
    trace = (STRACE, "-f", "-qq", "-o", "/dev/null")
    while moment < 60:
        inject = ("-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={moment}")
        done = subprocess.run(
            [*trace, *inject, *ROOST, "restore", str(file), str(directory)],
            capture_output=True,
            timeout=300,
        )
        if done.returncode == 0:
            break
        assert done.returncode in KILLED, done.stderr.decode()[-2_000:]
        killed += 1
        if usable(directory):
            shutil.rmtree(directory)  # all but the last sync of the directory had happened
        moment += 1 if SOAK else 1 + moment // 3
    assert killed, "the fault did not bite"
    assert usable(directory)


def begun(directory: Path) -> tuple[int, int]:
    """Another one each time that a restore has taken a directory for its own."""
    try:
        made = (directory / "log").stat()
    except OSError:
        return 0, 0
    return made.st_ino, made.st_ctime_ns


def test_a_restore_killed_at_random_moments(tmp_path: Path, file: Path) -> None:
    directory = tmp_path / "restored"
    chance, interrupted, pause_s = random.Random(11), 0, 0.05
    for _ in range(TRIES):
        before = begun(directory)
        process = subprocess.Popen([*ROOST, "restore", str(file), str(directory)])
        while process.poll() is None and begun(directory) == before:
            time.sleep(0.0005)
        time.sleep(chance.uniform(0.0, pause_s))
        process.kill()
        killed = process.wait() in KILLED
        if usable(directory):
            shutil.rmtree(directory)
            pause_s *= 1.0 if killed else 0.7
        else:
            assert killed
            interrupted += 1
        if interrupted >= 5:
            break
    assert interrupted >= 5, "no kill came in time"
    subprocess.run([*ROOST, "restore", str(file), str(directory)], check=True)
    assert usable(directory)
