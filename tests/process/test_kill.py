"""kill -9 of a daemon under 200 clients: what was acknowledged or shown is there afterwards.

Invariants I1, I2 and I4 of the fault model: an acknowledged write survives, so does everything
that anybody was shown (by RESP, HTTP, a watch, shared memory), and a counter is the acknowledged
increments plus a subset of the unknown ones, each once.
"""

from __future__ import annotations

import json
import os
import random
from contextlib import closing, suppress
from pathlib import Path

import pytest
from ports import free_ports

from .crowd import Bystanders, Ledger, storm
from .faulty_daemon import Client, FaultyDaemon, configure

ROUNDS = int(os.environ.get("ROOST_TEST_KILLS", "50"))
CLIENTS = int(os.environ.get("ROOST_TEST_CLIENTS", "200"))
SIZE = {"ROOST_STORE_SIZE_MAX": "64MiB", "ROOST_STORE_LOG_RETENTION": "16MiB"}
LOG_BYTES_MAX = 16 << 20
SEGMENT_BYTES = 4 << 20
WAYS = {"RESP", "answer", "HTTP", "watch", "mmap"}
"""In which something is shown."""


def files(home: Path) -> dict[str, int]:
    """Bytes on disk of each file of the store; the log's as one."""
    found: dict[str, int] = {"log": 0}
    for path in (home / "data").rglob("*"):
        if path.is_dir():
            continue
        name = "log" if path.parent.name == "log" else path.name
        with suppress(FileNotFoundError):  # the log's files come and go
            found[name] = found.get(name, 0) + path.stat().st_blocks * 512
    return found


@pytest.mark.timeout(60 + 12 * ROUNDS)
def test_no_acknowledged_write_is_lost_by_kill_9(tmp_path: Path) -> None:
    home = configure(tmp_path / "eu")
    seed = int(os.environ.get("ROOST_TEST_SEED") or int.from_bytes(os.urandom(4), "big"))
    print(f"seed {seed}")
    chance = random.Random(seed)
    ledger = Ledger()
    actors: set[str] = set()
    warm: dict[str, int] = {}
    (port,) = free_ports(1)
    environ = {**SIZE, "ROOST_LISTEN_HTTP": f"127.0.0.1:{port}"}
    for turn in range(ROUNDS + 1):
        with FaultyDaemon(home, **environ) as daemon:
            assert daemon.ready(), f"it does not start unaided\n{daemon.text()}"
            with closing(Client(home)) as client:
                ledger.check(client)
                status = json.loads(client.ask("ROOST.STATUS")[-1])
            ledger.check_turns(f"unix://{home}/roost.sock")
            actors |= {status["actor"], *status["version_vector"]}
            found = files(home)
            if turn == min(5, ROUNDS // 2):
                warm = found
            if turn == ROUNDS:
                break
            due = ledger.answers + 3 * CLIENTS

            def enough(due: int = due, last: bool = turn == ROUNDS - 1) -> bool:
                shown = ledger.by.keys() >= WAYS and bool(ledger.turns)
                return ledger.answers >= due and (shown or not last)

            others = Bystanders(home, port, CLIENTS, ledger)
            try:
                connected = storm(daemon, CLIENTS, chance.uniform(0.1, 0.5), ledger, enough)
            finally:
                others.join()
            assert connected == CLIENTS
    print(
        f"{ledger.answers} answers, shown {ledger.by}, {sum(map(len, ledger.turns.values()))} turns"
    )
    print(f"files after a few kills {warm}, at the end {found}")
    assert ledger.answers > ROUNDS * CLIENTS, "the load never reached the daemon"
    assert ledger.by.keys() >= WAYS, ledger.by
    assert ledger.turns, "no turn was ever acknowledged"
    assert len(actors) == 1, f"a kill made new actors: {actors}"
    assert found.keys() == warm.keys(), "a kill leaves files behind"
    assert found["data.mdb"] < warm["data.mdb"] + (6 << 20)
    assert found["log"] <= LOG_BYTES_MAX + 3 * SEGMENT_BYTES
