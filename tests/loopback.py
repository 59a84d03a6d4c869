"""Nodes on loopback for tests: a store in memory, real sockets, a replica, gossip and RPC."""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from replication_network import MemoryStore

from roost_crdt.frames import Greeting
from roost_crdt.limits import DEFAULT_LIMITS, Limits
from roost_crdt.replica import Replica
from roostd.gossip import Events, Gossip, StoreHooks
from roostd.rpc import Rpc
from roostd.wire import Tls

_started: list[LoopbackNode] = []
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


async def until(condition: Callable[[], object], within_s: float = 30.0) -> float:
    """Seconds that it took until the condition held; AssertionError if it does not in time."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > within_s:
            raise AssertionError("the condition did not come true in time")
        await asyncio.sleep(0.005)
    return time.monotonic() - began


class LoopbackNode:
    """One node of a test."""

    def __init__(
        self,
        name: str,
        actor: int,
        *,
        neighbours: Sequence[tuple[str, str]] = (),
        cluster: str = "test",
        limits: Limits = DEFAULT_LIMITS,
        tls: Tls | None = None,
        store: MemoryStore | None = None,
        port: int = 0,
    ) -> None:
        self.name = name
        self.store = MemoryStore(actor) if store is None else store
        self.events: list[tuple[object, ...]] = []
        self.order: list[str] = []
        self.clock_ahead_ms = 0
        self.replica = Replica(
            node=name,
            region=f"region-{name}",
            cluster=cluster,
            store_id=name.encode().ljust(16, b"."),
            actor=actor,
            vv=self.store.vv,
            limits=limits,
        )
        self.rpc = Rpc(
            node=name,
            region="",
            cluster=cluster,
            neighbours=neighbours,
            routes=lambda target: self.gossip.routes(target),
            tls=tls,
            limits=limits,
        )
        self.gossip = Gossip(
            replica=self.replica,
            store=self._hooks(),
            events=Events(
                link_up=self._link_up,
                link_down=self._link_down,
                session=lambda peer, payload: self.events.append(("session", peer, payload)),
                rollback=lambda *what: self.events.append(("rollback", *what)),
            ),
            wall_ms=self.wall_ms,
            listen=("127.0.0.1", port),
            neighbours=neighbours,
            tls=tls,
            rpc_handler=self.rpc.accepted,
        )

    def wall_ms(self) -> int:
        return wall_ms() + self.clock_ahead_ms

    def _hooks(self) -> StoreHooks:
        return StoreHooks(
            accept=self.store.accept,
            accept_rows=self.store.accept_rows,
            flush=self.store.flush,
            vv=lambda: self.store.vv,
            records_after=self.store.records_after,
            scan_rows=self.store.scan_rows,
        )

    def _link_up(self, peer: str, greeting: Greeting) -> None:
        self.events.append(("up", peer, greeting.region))
        self.rpc.peer_up(peer)

    def _link_down(self, peer: str) -> None:
        self.events.append(("down", peer))
        self.rpc.peer_down(peer)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.gossip.port}"

    async def start(self) -> None:
        _started.append(self)
        await self.gossip.start()
        await self.rpc.start()

    async def stop(self) -> None:
        _started.remove(self)
        await self.rpc.stop()
        await self.gossip.stop()

    def put(self, key: bytes, value: bytes) -> None:
        record, raw = self.store.put(key, value, self.wall_ms())
        self.gossip.committed(record, raw)

    def status(self, peer: str) -> object:
        return next(status for status in self.gossip.links() if status.peer == peer)


def run(loop: str, main: Callable[[], Awaitable[None]], within_s: float = 100.0) -> None:
    """Run a test on one of LOOPS, stop the nodes that it started; no task may be left behind."""

    async def bounded() -> None:
        try:
            await asyncio.wait_for(main(), within_s)
        finally:
            for node in tuple(_started):
                await node.stop()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks left behind: {left}"

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(bounded())


def make_ca(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test ca")])
    certificate = _builder(name, name, key).add_extension(
        x509.BasicConstraints(ca=True, path_length=None), critical=True
    )
    signed = certificate.sign(key, hashes.SHA256())
    (directory / "ca.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    return signed, key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )


def make_tls(
    directory: Path,
    node: str,
    ca: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
    ca_file: str = "ca.pem",
) -> Tls:
    """Mutual TLS for a node whose certificate's SAN is `node`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a node")])
    certificate = (
        _builder(name, ca[0].subject, key)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(node)]), critical=False)
        .sign(ca[1], hashes.SHA256())
    )
    cert_path, key_path = directory / f"{node}.pem", directory / f"{node}.key"
    cert_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return Tls(cert_path, key_path, directory / ca_file)
