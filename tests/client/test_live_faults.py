"""A real daemon that comes and goes, and who may read its index."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import roost
from roost import aio, environment

from .conftest import PATIENT_S, Daemon


def read_until(
    holds: Callable[[roost.Reading], bool], client: roost.Client, key: str
) -> roost.Reading:
    """The first reading of the key that is so."""
    until = time.monotonic() + PATIENT_S
    while not holds(reading := client.get(key)):
        assert time.monotonic() < until, reading
        time.sleep(0.01)
    return reading


def test_reads_go_on_while_the_daemon_is_down(own_daemon: Any, fresh: Any, from_index: Any) -> None:
    key = fresh("model_router_weights")
    with own_daemon.connect() as client:
        client.set(key, "kept")
        from_index(client, key)
        own_daemon.kill()
        reading = read_until(lambda reading: not reading.node_up, client, key)
        assert (reading.value, reading.source) == ("kept", "mmap")
        time.sleep(0.2)
        assert client.get(key).lag_ms > reading.lag_ms
        with pytest.raises(roost.Unavailable):
            client.get(key, max_lag_ms=50)
        with pytest.raises(roost.Unavailable):
            client.set(key, "lost")
        with pytest.raises(roost.Unavailable):
            client.get(fresh("flags"))
        own_daemon.start()
        assert client.set(key, "again").durable
        assert client.get(key).value == "again"
        read_until(lambda reading: reading.source == "mmap" and reading.node_up, client, key)
        own_daemon.kill()
        own_daemon.start()
        assert client.get(key).value == "again"
        assert read_until(lambda reading: reading.node_up, client, key).value == "again"


def test_a_stopped_daemon_does_not_hang_the_reader(
    own_daemon: Any, fresh: Any, from_index: Any
) -> None:
    key = fresh("model_router_weights")
    with own_daemon.connect() as client:
        client.set(key, "kept")
        from_index(client, key)
        own_daemon.signal(signal.SIGSTOP)
        try:
            started = time.monotonic()
            client.deadline_ms = 300
            with pytest.raises(roost.UnknownOutcome):
                client.set(key, "?")
            assert time.monotonic() - started < PATIENT_S / 2
            client.deadline_ms = int(PATIENT_S * 1000)
            started, slowest = time.monotonic(), 0.0
            while (reading := client.get(key)).node_up:
                slowest = max(slowest, time.monotonic() - started)
                started = time.monotonic()
            assert reading.value == "kept"
            assert slowest < PATIENT_S / 2
        finally:
            own_daemon.signal(signal.SIGCONT)
        until = time.monotonic() + PATIENT_S
        while not client.get(key).node_up:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_another_store_at_the_same_place_is_noticed(
    own_daemon: Any, fresh: Any, from_index: Any
) -> None:
    key = fresh("model_router_weights")
    with own_daemon.connect() as client:
        for n in range(20):
            client.set(key, n)
        from_index(client, key)
        own_daemon.stop()
        shutil.rmtree(own_daemon.folder / "data")
        own_daemon.start()
        until = time.monotonic() + PATIENT_S
        while client.get(key).value is not None:
            assert time.monotonic() < until
            time.sleep(0.01)
        client.set(key, "new")
        assert client.get(key).value == "new"
        assert from_index(client, key).value == "new"


async def test_aio_watch_says_when_it_was_interrupted(own_daemon: Any) -> None:
    async with aio.connect(own_daemon.url, deadline_ms=60_000) as client:
        watch = await client.watch("counts:")
        own_daemon.kill()
        with pytest.raises(roost.Unavailable, match="interrupted"):
            await anext(watch)
    own_daemon.start()
    with own_daemon.connect() as blocking:
        watching = blocking.watch("counts:")
        own_daemon.kill()
        with pytest.raises(roost.Unavailable, match="interrupted"):
            next(watching)


READ_ELSEWHERE = """
import os, sys
import roost
if len(sys.argv) > 3:
    "host".encode("idna")  # before the interpreter's files are out of reach
    user, *groups = map(int, sys.argv[3:])
    os.setgroups(groups)
    os.setgid(user)
    os.setuid(user)
with roost.connect(sys.argv[1], deadline_ms=60_000) as client:
    reading = client.get(sys.argv[2])
    print(reading.source, reading.value)
"""
NOBODY = "65534"
GROUP = 54321


def read_elsewhere(url: str, key: str, *user: str, command: tuple[str, ...] = ()) -> str:
    done = subprocess.run(
        [*command, sys.executable, "-c", READ_ELSEWHERE, url, key, *user],
        capture_output=True,
        text=True,
        timeout=PATIENT_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def can_unshare() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--pid", "--fork", "true"], check=False).returncode == 0


def test_another_process_reads_the_index(
    client: Any, daemon: Any, fresh: Any, from_index: Any
) -> None:
    key = fresh("model_router_weights")
    client.set(key, "shared")
    from_index(client, key)
    assert read_elsewhere(daemon.url, key) == "mmap shared"


@pytest.mark.parametrize("options", [(), ("--mount-proc",)], ids=["", "own /proc"])
def test_another_pid_namespace_uses_the_socket(
    client: Any, daemon: Any, fresh: Any, from_index: Any, options: tuple[str, ...]
) -> None:
    if not can_unshare():
        pytest.skip("needs the right to make a PID namespace")
    key = fresh("model_router_weights")
    client.set(key, "shared")
    from_index(client, key)
    unshared = ("unshare", "--pid", "--fork", *options)
    assert read_elsewhere(daemon.url, key, command=unshared) == "node shared"


def test_a_daemon_in_another_pid_namespace_is_asked_by_the_socket(
    own_daemon: Any, fresh: Any
) -> None:
    if not can_unshare():
        pytest.skip("needs the right to make a PID namespace")
    own_daemon.kill()
    own_daemon.under = ("unshare", "--pid", "--fork", "--kill-child")
    own_daemon.start()
    key = fresh("model_router_weights")
    with own_daemon.connect() as client:
        client.set(key, "shared")
        time.sleep(0.3)  # applied by now
        reading = client.get(key)
        assert (reading.value, reading.source) == ("shared", "node")
    own_daemon.kill()


@pytest.fixture
def of_a_group() -> Iterator[Any]:
    """A daemon in a place that everybody reaches, of a group that others may be in."""
    if os.geteuid() != 0:
        pytest.skip("needs the right to become somebody else")
    place = Path(tempfile.mkdtemp(prefix="roost-"))
    place.chmod(0o755)
    daemon = Daemon(place / "n")
    daemon.folder.chmod(0o755)
    daemon.group = GROUP
    daemon.start()
    yield daemon
    daemon.stop()
    shutil.rmtree(place)


def test_other_users_read_the_index_if_they_are_in_its_group(
    of_a_group: Any, fresh: Any, from_index: Any
) -> None:
    """Readers write to the lock table, so that reading it takes the right to write it."""
    key, url = fresh("model_router_weights"), of_a_group.redis_url
    with of_a_group.connect() as client:
        client.set(key, "shared")
        from_index(client, key)
        assert read_elsewhere(url, key, NOBODY) == "node shared"
        assert read_elsewhere(url, key, NOBODY, str(GROUP)) == "mmap shared"
        table = of_a_group.index / "lock.mdb"
        table.chmod(0o640)
        assert read_elsewhere(url, key, NOBODY, str(GROUP)) == "node shared"
        table.chmod(0o660)
        (of_a_group.index / "data.mdb").chmod(0o600)
        assert read_elsewhere(url, key, NOBODY, str(GROUP)) == "node shared"
        assert client.get(key).source == "mmap"


def test_no_transaction_outlives_a_call(own_daemon: Any, fresh: Any, from_index: Any) -> None:
    """Seen from outside: this process's slots of the reader table are idle after each call, of
    whatever it read, in every thread; so it pins no page, however long it idles."""
    keys = [fresh(policy) for policy in ("model_router_weights", "tags", "profiles", "counts")]
    with own_daemon.connect() as client:
        client.set(keys[0], "one")
        for first in range(0, 3_000, 1_000):
            client.update(keys[1], put=[f"member {n}" for n in range(first, first + 1_000)])
        client.update(keys[2], put={"a": 1})
        client.incr(keys[3], 2)

        def read() -> None:
            for key in [*keys, fresh("tags")]:
                from_index(client, key)
                with contextlib.suppress(roost.Unavailable):
                    client.get(key, max_lag_ms=0)
                assert idle(own_daemon.index)

        read()
        index = environment.acquire(str(own_daemon.index))
        held = index.begin(index.rows)
        assert not idle(own_daemon.index), "the check itself sees nothing"
        held.abort()
        environment.release(index)
        for thread in [threading.Thread(target=read) for _ in range(4)]:
            thread.start()
            thread.join()


READERS = """
import lmdb, sys
with lmdb.open(sys.argv[1], readonly=True, map_size=0, max_dbs=16, max_readers=1024) as env:
    print(env.readers())
"""


def idle(index: Path) -> bool:
    """Whether this process has slots in the reader table, and no transaction in any of them."""
    table = subprocess.run(
        [sys.executable, "-c", READERS, str(index)], capture_output=True, text=True, check=True
    )
    slots = [line.split() for line in table.stdout.split("\n")[1:] if line.strip()]
    own = [slot[2] for slot in slots if slot[0] == str(os.getpid())]
    assert own, f"this process does not read: {table.stdout}"
    return all(transaction == "-" for transaction in own)


def test_a_login_with_a_prefix(own_daemon: Any, from_index: Any) -> None:
    digest = hashlib.sha256(b"hunter2").hexdigest()
    credentials = own_daemon.folder / "credentials.toml"
    credentials.write_text(
        f'[app]\nsecret_sha256 = "{digest}"\nrights = "write"\nkeys = ["model_router_weights:*"]\n'
        'prefix = "model_router_weights:"\n'
    )
    credentials.chmod(0o600)
    config = own_daemon.folder / "roost.toml"
    text = config.read_text()
    config.write_text(text.replace("# credentials = ", "credentials = "))
    own_daemon.stop()
    own_daemon.url = own_daemon.url.replace("unix://", "unix://app:hunter2@")
    own_daemon.start()
    with pytest.raises(roost.NoAuth, match=r"the URL does not say: .* redis://NAME:SECRET@"):
        roost.connect(own_daemon.redis_url)
    with pytest.raises(roost.NoAuth, match="no credentials of the name 'app' with this secret"):
        roost.connect(own_daemon.url.replace("hunter2", "wrong"))
    with own_daemon.connect() as client:
        client.set("mine", 7)
        assert client.get("mine").value == 7
        assert from_index(client, "mine").value == 7
        assert client.keys("*") == ["mine"]
        with client.watch("mi", idle_ms=60_000) as watch:
            client.set("mine", 8)
            change = next(watch)
            assert (change.key, change.value) == ("mine", 8)
