"""The real daemon on a disk that fails: nothing acknowledged is lost, nothing more is promised."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest

from .faulty_daemon import (
    REGISTER,
    SOAK,
    Client,
    FaultyDaemon,
    Known,
    check,
    configure,
    load,
    why_no_faults,
)

CLIENTS = 6
MOMENTS = range(1, 51) if SOAK else (2, 11, 17, 31)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    if reason := why_no_faults():
        pytest.skip(reason)
    return configure(tmp_path / "eu")


def run_into(
    home: Path, known: list[Known], *inject: str, paths: Iterable[Path] = ()
) -> tuple[int, str]:
    """Load a daemon until a fault ends it; its exit status and its log."""
    stop = threading.Event()
    with FaultyDaemon(home, *inject, paths=paths) as daemon:
        threads = load(home, known, stop) if daemon.ready() else []
        try:
            status = daemon.process.wait(300)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{inject}: it goes on\n{daemon.text()}") from None
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        return status, daemon.text()


def found_again(home: Path, known: list[Known]) -> None:
    with FaultyDaemon(home) as daemon:
        assert daemon.ready(), daemon.text()
        check(home, known)


def test_any_fdatasync_may_fail(home: Path) -> None:
    """Once, at the Nth call of a thread (log or index): the next one would say that all is well."""
    known = [Known(number) for number in range(CLIENTS)]
    acknowledged = 0
    for turn, moment in enumerate(MOMENTS):
        if turn % 3 == 0:
            shutil.rmtree(home / "data", ignore_errors=True)
            known = [Known(number) for number in range(CLIENTS)]
        status, text = run_into(home, known, f"fdatasync:error=EIO:when={moment}")
        assert status == 1, f"N={moment}: exit {status}\n{text}"
        assert "Input/output error" in text, f"N={moment}: {text}"
        assert "restart" in text.lower() or "cannot be opened" in text, f"N={moment}: {text}"
        assert "Traceback" not in text, f"N={moment}: {text}"
        assert not any(k.refusals for k in known), f"N={moment}: an answer was given after all"
        acknowledged += sum(k.acknowledged for k in known)
        found_again(home, known)
    # Each sync that did not fail, but for the few of a start, has acknowledged somebody's write.
    assert acknowledged > 5 * len(MOMENTS), "hardly anything was written"


WRITES = [
    ("pwrite64:retval=7:when=40", "short write"),
    ("pwrite64:error=ENOSPC:when=40", "No space left"),
    ("pwrite64:error=EIO:when=25..26", "Input/output error"),
]


@pytest.mark.parametrize(("inject", "says"), WRITES if SOAK else WRITES[:2])
def test_a_write_that_fails_is_final(home: Path, inject: str, says: str) -> None:
    known = [Known(number) for number in range(CLIENTS)]
    log = [home / "data" / "log" / f"{number:016d}.seg" for number in range(4)]
    status, text = run_into(home, known, inject, paths=log)
    assert status == 1
    assert says in text
    assert sum(k.acknowledged for k in known) > 0
    found_again(home, known)


def test_a_full_disk_refuses_in_words_and_recovers(small_disk: Path) -> None:
    home = configure(small_disk / "eu")
    filler = small_disk / "filler"
    size = {"ROOST_STORE_SIZE_MAX": "128MiB", "ROOST_STORE_LOG_RETENTION": "16MiB"}
    with FaultyDaemon(home, **size) as daemon:
        assert daemon.ready(), daemon.text()
        with closing(Client(home)) as client:
            kept = refused_until_there_is_room(client, filler)
        daemon.kill()
    with FaultyDaemon(home, **size) as daemon:
        assert daemon.ready(), daemon.text()
        with closing(Client(home)) as client:
            for number in range(kept):
                assert client.ask("GET", f"{REGISTER}:{number}"), number
            assert client.ask("GET", f"{REGISTER}:after") == b"2"


def refused_until_there_is_room(client: Client, filler: Path) -> int:
    """How many registers were acknowledged before the disk was full."""
    assert client.ask("SET", f"{REGISTER}:first", "1") == b"OK"
    filler.write_bytes(bytes(20 << 20))
    kept, answer = fill(client)
    assert str(answer).startswith("FULL"), answer
    assert any(word.strip("(").isdigit() for word in str(answer).split()), "no bytes named"
    assert "reads go on" in str(answer)
    assert client.ask("GET", f"{REGISTER}:first") == b"1"
    assert client.ask("GET", f"{REGISTER}:{kept - 1}") is not None
    filler.unlink()
    began = time.monotonic()
    while client.ask("SET", f"{REGISTER}:after", "2") != b"OK":
        assert time.monotonic() - began < 60, "it does not come back"
        time.sleep(0.05)
    return kept


def fill(client: Client) -> tuple[int, object]:
    """Write registers of 20 KB until one is refused for good; how many, and the answer."""
    number = 0
    while number < 10_000:
        answer = client.ask("SET", f"{REGISTER}:{number}", "x" * 20_000)
        if answer == b"OK":
            number += 1
        elif str(answer).startswith("BUSY"):
            time.sleep(0.02)
        else:
            return number, answer
    raise AssertionError("200 MB fit on a disk of 48 MB")
