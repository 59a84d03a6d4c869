"""Nodes of real daemons that are killed and started again, alone or as neighbours."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ports import free_ports

from .crowd import Ledger
from .faulty_daemon import Client, FaultyDaemon, configure

SIZE = {"ROOST_STORE_SIZE_MAX": "32MiB", "ROOST_STORE_LOG_RETENTION": "4MiB"}
SEGMENTS_AHEAD = 4
WAIT_S = 120


def until(condition: Callable[[], Any], what: str) -> Any:
    """The condition's first true value."""
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not in {WAIT_S} s: {what}"
        time.sleep(0.02)
    return found


@dataclass
class Node:
    """One node that is killed and started again, and what its clients know."""

    home: Path
    environ: dict[str, str] = field(default_factory=lambda: dict(SIZE))
    ledger: Ledger = field(default_factory=Ledger)
    kills: int = 0
    daemon: FaultyDaemon | None = None
    actors: set[str] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"unix://{self.home}/roost.sock"

    def launch(self, *inject: str) -> FaultyDaemon:
        self.daemon = FaultyDaemon(self.home, *inject, **self.environ)
        return self.daemon

    def running(self) -> FaultyDaemon:
        """The daemon, started and checked if it was killed."""
        if not self.alive:
            daemon = self.launch()
            assert daemon.ready(), f"it does not start unaided\n{daemon.text()}"
            with closing(Client(self.home)) as client:
                self.ledger.check(client)
            self.actors.add(self.status()["actor"])
        assert self.daemon is not None
        return self.daemon

    def status(self) -> dict[str, Any]:
        with closing(Client(self.home)) as client:
            found = json.loads(client.ask("ROOST.STATUS")[-1])
        assert isinstance(found, dict)
        return found

    def segments(self) -> list[Path]:
        """The log's files, those that are there and the next ones, and its directory."""
        log = self.home / "data" / "log"
        first, *_, last = [0, 0, *sorted(int(path.stem) for path in log.glob("*.seg"))]
        first = max(first, last - 8)
        names = range(first, last + SEGMENTS_AHEAD)
        return [log, *(log / f"{number:016d}.seg" for number in names)]

    def index(self) -> list[Path]:
        return [self.home / "data" / "index" / "data.mdb"]

    def applied(self) -> bool:
        try:
            store = self.status()["store"]
        except OSError:
            return True  # it was killed
        return bool(store["applied_seq"] == store["seq"])

    @property
    def alive(self) -> bool:
        return self.daemon is not None and not self.daemon.gone()

    def stop(self) -> None:
        if self.daemon is not None:
            self.daemon.__exit__()


def neighbours(base: Path, names: Sequence[str]) -> list[Node]:
    """Nodes `NAME-1` in a line, configured; each is its own region."""
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    made = []
    for at, name in enumerate(names):
        options: list[str] = []
        for other in (*names[max(at - 1, 0) : at], *names[at + 1 : at + 2]):
            options += ["--neighbour", f"{other}-1=ws://127.0.0.1:{ports[other]}"]
        home = configure(base / name, *options, region=name)
        environ = {**SIZE, "ROOST_LISTEN_GOSSIP": f"127.0.0.1:{ports[name]}"}
        made.append(Node(home, environ))
    return made


def alike(a: Node, b: Node) -> bool:
    one, two = a.status(), b.status()
    vectors = [{k: v for k, v in s["version_vector"].items() if v} for s in (one, two)]
    applied = all(s["store"]["applied_seq"] == s["store"]["seq"] for s in (one, two))
    return applied and vectors[0] == vectors[1] and bool(one["digest"] == two["digest"])


def linked(node: Node) -> bool:
    return all(link["state"] == "up" for link in node.status()["links"])
