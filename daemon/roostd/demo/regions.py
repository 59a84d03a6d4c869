"""Real roostd processes on this machine, one a region, with a delay proxy on every link."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from roost_crdt.policy import DEFAULT_POLICIES
from roostd import keyring

NAMES = ("eu", "us", "ap", "sa", "af", "me")
ROUND_TRIPS_MS = {("ap", "eu"): 180, ("ap", "us"): 160, ("eu", "us"): 80}
OTHER_ROUND_TRIP_MS = 200
START_S = 60.0
STOP_S = 5.0
COMMAND_S = 30.0
PR_SET_PDEATHSIG = 1

EXTRA_POLICIES = """
# For the comparison of the demo: the same conversation, kept where reads go through consensus.
[conversation_by_consensus]
readers = "cross-session"
stale_read_cost = "incorrect"
type = "register"
"""


def round_trip_ms(a: str, b: str) -> int:
    """The simulated round trip between two regions."""
    return ROUND_TRIPS_MS.get((min(a, b), max(a, b)), OTHER_ROUND_TRIP_MS)


def die_with_parent() -> None:
    """In the child: the kernel kills it when the demo is gone, however that went."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux: the demo's own clean-up serves
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class HeldPorts:
    """Free ports of the loopback interface that stay ours until `close`.

    A bound socket on each: the kernel gives such a port to nobody who asks for any port, also
    while no server of ours runs there. A server that asks for this very port gets it
    (SO_REUSEADDR, as asyncio sets it). Only Linux does both: elsewhere the sockets are closed.
    """

    def __init__(self, count: int) -> None:
        self._sockets = [socket.socket() for _ in range(count)]
        for held in self._sockets:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("127.0.0.1", 0))
        self.numbers: list[int] = [held.getsockname()[1] for held in self._sockets]
        if sys.platform != "linux":
            self.close()

    def close(self) -> None:
        """Give the ports back; again is harmless."""
        for held in self._sockets:
            held.close()

    def __enter__(self) -> HeldPorts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class Region:
    """One region's daemon."""

    name: str
    folder: Path
    resp: int
    http: int
    gossip: int
    process: asyncio.subprocess.Process | None = None

    @property
    def node(self) -> str:
        return f"{self.name}-1"

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.resp}"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.http}"


@dataclass
class Regions:
    """The whole set-up in one temporary folder; `close` leaves no process and no file.

    `pairs` are the regions that are linked (None = all with all); `settings` and `policies` are
    put at the end of each region's roost.toml and policies.toml.
    """

    names: tuple[str, ...]
    pairs: Collection[tuple[str, str]] | None = None
    settings: str = ""
    policies: str = EXTRA_POLICIES
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="roost-demo-")))
    regions: dict[str, Region] = field(default_factory=dict)
    _proxy: asyncio.subprocess.Process | None = None
    _ports: HeldPorts | None = None
    _links: list[tuple[int, int, float, str, str]] = field(default_factory=list)

    def __getitem__(self, name: str) -> Region:
        return self.regions[name]

    @property
    def consensus_host(self) -> str:
        """A region that is linked to all others."""
        fit = [a for a in self.names if all(self._linked(a, b) for b in self.names if b != a)]
        return "ap" if "ap" in fit else fit[-1]

    async def start(self) -> None:
        """Write the configurations, start the proxy and all regions, wait until ready."""
        pairs = [(a, b) for a in self.names for b in self.names if self._linked(a, b)]
        self._ports = HeldPorts(3 * len(self.names) + len(pairs))
        ports = self._ports.numbers.copy()
        for name in self.names:
            resp, http, gossip = ports.pop(), ports.pop(), ports.pop()
            self.regions[name] = Region(name, self.folder / name, resp, http, gossip)
        doors = {}
        for a, b in pairs:
            door = doors[a, b] = ports.pop()
            target = self.regions[b].gossip
            self._links.append((door, target, round_trip_ms(a, b) / 2, a, b))
        for name in self.names:
            self._configure(name, {b: doors[name, b] for b in self.names if (name, b) in doors})
        await self._start_proxy()
        await asyncio.gather(*(self.launch(name) for name in self.names))

    async def launch(self, name: str) -> None:
        """Start one region's daemon and wait until it is ready. Raises RuntimeError."""
        region = self.regions[name]
        log = (region.folder / "roostd.log").open("ab")
        try:
            region.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "roostd.cli.roostd",
                "--config",
                str(region.folder / "roost.toml"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment_is_clean(),
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        finally:
            log.close()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + START_S
        while not await asyncio.to_thread(_ready, region.http_url):
            if region.process.returncode is not None or loop.time() > deadline:
                tail = (region.folder / "roostd.log").read_text(errors="replace")[-2_000:]
                raise RuntimeError(f"roostd of {name} did not become ready:\n{tail}")
            await asyncio.sleep(0.05)

    async def kill(self, name: str) -> None:
        """kill -9 one region's daemon."""
        process = self.regions[name].process
        assert process is not None, "only a region that was started is killed"
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    async def cut(self, *names: str) -> None:
        """Silence every link of a region, or the one between two."""
        await self._command(f"cut {' '.join(names)}")

    async def heal(self, *names: str) -> None:
        """Let the links of a region, or the one between two, carry again."""
        await self._command(f"heal {' '.join(names)}")

    async def close(self) -> None:
        """Stop every process and remove every file."""
        processes = [r.process for r in self.regions.values() if r.process is not None]
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        if self._proxy is not None:
            with contextlib.suppress(ProcessLookupError):
                self._proxy.kill()
            processes.append(self._proxy)
        for process in processes:
            try:
                async with asyncio.timeout(STOP_S):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        if self._ports is not None:
            self._ports.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- inside ---

    def _linked(self, a: str, b: str) -> bool:
        return a != b and (self.pairs is None or (a, b) in self.pairs or (b, a) in self.pairs)

    async def _start_proxy(self) -> None:
        self._proxy = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "roostd.demo.proxy",
            json.dumps(self._links),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        assert self._proxy.stdout is not None
        async with asyncio.timeout(START_S):
            line = await self._proxy.stdout.readline()
        if line.strip() != b"ready":
            raise RuntimeError("the delay proxy did not start")

    async def _command(self, command: str) -> None:
        assert self._proxy is not None
        assert self._proxy.stdin is not None
        assert self._proxy.stdout is not None
        self._proxy.stdin.write(command.encode() + b"\n")
        async with asyncio.timeout(COMMAND_S):
            answer = await self._proxy.stdout.readline()
        assert answer.decode().strip() == command, f"the proxy answered {answer!r}"

    def _configure(self, name: str, doors: dict[str, int]) -> None:
        region = self.regions[name]
        region.folder.mkdir()
        keys = region.folder / "keys"
        keyring.generate(keys, f"{region.node}-{secrets.token_hex(4)}")
        (region.folder / "policies.toml").write_text(DEFAULT_POLICIES + self.policies)
        neighbours = "".join(
            f'[[neighbour]]\nid = "{self.regions[other].node}"\nurl = "ws://127.0.0.1:{door}"\n'
            for other, door in doors.items()
        )
        host = self.consensus_host
        endpoints = "[]" if name == host else f'["roost://{self.regions[host].node}"]'
        (region.folder / "roost.toml").write_text(
            f"""\
[node]
id = "{region.node}"
region = "{name}"
data = "data"
cluster = "demo"
[listen]
unix = "roost.sock"
resp = "127.0.0.1:{region.resp}"
http = "127.0.0.1:{region.http}"
gossip = "127.0.0.1:{region.gossip}"
{neighbours}[gossip]
insecure = true
[token]
keys = "keys/"
[consensus]
backend = "embedded"
endpoints = {endpoints}
[store]
size_max = "256MiB"
log_retention = "64MiB"
[access]
policies = "policies.toml"
{self.settings}"""
        )


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=1) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def environment_is_clean() -> dict[str, str]:
    """The environment without ROOST_ variables, which would override the regions' files."""
    return {k: v for k, v in os.environ.items() if not k.startswith("ROOST_")}
