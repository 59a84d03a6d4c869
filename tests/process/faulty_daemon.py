"""A roostd on a unix socket, under strace where calls are to fail, and clients that remember.

Every client writes a register of its own (the number of its write) and adds 1 to a counter; it
remembers what was acknowledged and what was sent.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hiredis
from click.testing import CliRunner

from roostd.cli.main import main

POLICIES = """
[visits]
readers = "cross-session"
stale_read_cost = "annoying"
type = "counter"
[tags]
readers = "cross-session"
stale_read_cost = "annoying"
type = "set"
[profile]
readers = "cross-session"
stale_read_cost = "annoying"
type = "map"
"""
"""Put at the end of a daemon's policies.toml."""
REGISTER = "model_router_weights"
SOAK = bool(os.environ.get("ROOST_TEST_SOAK"))
ANY_PORTS = {f"ROOST_LISTEN_{face}": "127.0.0.1:0" for face in ("RESP", "HTTP", "GOSSIP")}
START_S = 60


def configure(home: Path, *options: str, region: str = "eu") -> Path:
    """`roost init`, with more policies."""
    node = ("--node", f"{region}-1", "--region", region)
    done = CliRunner().invoke(main, ["init", str(home), *node, *options])
    assert done.exit_code == 0, done.output
    with (home / "policies.toml").open("a") as policies:
        policies.write(POLICIES)
    return home


class Client:
    """One connection that sends a command and waits for its answer. OSError once it is cut."""

    def __init__(self, home: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(START_S)
        try:
            self._socket.connect(str(home / "roost.sock"))
        except OSError:
            self._socket.close()
            raise
        self._reader = hiredis.Reader()

    def ask(self, *words: Any) -> Any:
        """The answer; an error answer is returned, not raised."""
        return self.ask_all([words])[0]

    def ask_all(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        self._socket.sendall(b"".join(map(hiredis.pack_command, commands)))
        found: list[Any] = []
        while len(found) < len(commands):
            answer = self._reader.gets()
            if answer is False:
                data = self._socket.recv(1 << 16)
                if not data:
                    raise ConnectionResetError("the daemon closed the connection")
                self._reader.feed(data)
            else:
                found.append(answer)
        return found

    def close(self) -> None:
        self._socket.close()


class Forked:
    """A daemon forked from a process that has its modules already (half of a start's time);
    what is used of Popen."""

    _zygote: subprocess.Popen[str] | None = None

    def __init__(self, config: Path, log: Path, environ: dict[str, str]) -> None:
        self.returncode: int | None = None
        self.pid = self._ask(config=str(config), log=str(log), environ=environ)
        self._fd = os.pidfd_open(self.pid)

    @classmethod
    def _ask(cls, **words: Any) -> int:
        if cls._zygote is None:
            cls._zygote = subprocess.Popen(
                [sys.executable, Path(__file__).with_name("zygote.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            atexit.register(cls._zygote.communicate)
        assert cls._zygote.stdin is not None
        assert cls._zygote.stdout is not None
        print(json.dumps(words), file=cls._zygote.stdin, flush=True)
        return int(cls._zygote.stdout.readline())

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            ready, _, _ = select.select([self._fd], [], [], timeout)
            if not ready:
                raise subprocess.TimeoutExpired(f"roostd {self.pid}", timeout or 0)
            os.close(self._fd)
            self.returncode = self._ask(wait=self.pid)
        return self.returncode

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class FaultyDaemon:
    """A daemon's process; `inject` are strace's words for what is to go wrong, `paths`: with calls
    on these only (--seccomp-bpf would ignore that in silence)."""

    def __init__(
        self, home: Path, *inject: str, paths: Iterable[Path] = (), **environ: str
    ) -> None:
        self.home = home
        self._inject = inject
        self.log = home / "roostd.log"
        self._log_from = self.log.stat().st_size if self.log.exists() else 0
        only = [word for path in paths for word in ("-P", str(path))]
        strace = ["strace", "-f", "-qq", *(only or ["--seccomp-bpf"]), "-o", "/dev/null"]
        for words in inject:
            strace += ["-e", f"trace={words.partition(':')[0]}", "-e", f"inject={words}"]
        config = home / "roost.toml"
        environ = {**os.environ, **ANY_PORTS, "ROOST_LOG": "text", **environ}
        self.process: subprocess.Popen[bytes] | Forked
        if not inject:
            self.process = Forked(config, self.log, environ)
            return
        command = [sys.executable, "-m", "roostd.cli.roostd", "--config", str(config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*(strace if inject else []), *command], stdout=log, stderr=log, env=environ
            )

    def text(self) -> str:
        """What this process has logged."""
        return self.log.read_bytes()[self._log_from :].decode(errors="replace")

    def ready(self) -> bool:
        """Wait until it answers; False if it ended before."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                return False
            try:
                client = Client(self.home)
                try:
                    if client.ask("PING") == b"PONG":
                        return True
                finally:
                    client.close()
            except OSError:
                time.sleep(0.02)
        raise AssertionError(f"not ready in {START_S} s: {self.text()}")

    @contextmanager
    def struck(
        self, call: str, moment: int, paths: Iterable[Path] = (), *, halted: bool = False
    ) -> Iterator[None]:
        """From now on the Nth `call` of a thread does not happen, the process is killed there;
        `paths`: calls on these only. `halted`: it makes none until the tracer is there, for what
        it does without being asked. Without --seccomp-bpf, which would ignore it in silence."""
        if halted:
            self.process.send_signal(signal.SIGSTOP)
        words = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={call}"]
        for path in paths:
            words += ["-P", str(path)]
        words += ["-e", f"inject={call}:signal=KILL:when={moment}", "-p", str(self.pid)]
        tracer = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        assert tracer.stderr is not None
        try:
            told = ""
            while "attached" not in told:
                told = tracer.stderr.readline()
                assert told, f"strace ended with {tracer.wait()}"
                assert "attached" in told or "Requested path" in told, told
            if halted:
                self.process.send_signal(signal.SIGCONT)
            yield
        finally:
            tracer.terminate()
            tracer.stderr.close()
            try:
                tracer.wait(1)
            except subprocess.TimeoutExpired:
                # Now and then it waits for ever for threads that it has killed.
                tracer.kill()
                tracer.wait()

    def gone(self) -> bool:
        """Whether it has ended, if only its tracer knows yet."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return True
        return stat.rpartition(")")[2].split()[0] in ("Z", "X")

    def was_struck(self) -> bool:
        """Whether the process has been killed: True, or goes on: False. Nothing else may be.
        Asked when `struck` is over: no kill comes after that, and who is killed answers nobody
        any more, though its connections end a moment before it does."""
        deadline = time.monotonic() + START_S
        while not self.gone():
            with suppress(OSError), closing(Client(self.home)) as client:
                client.ask("PING")
                return False
            assert time.monotonic() < deadline, f"neither gone nor there\n{self.text()}"
            time.sleep(0.01)
        status = self.process.wait(START_S)
        assert status in (-signal.SIGKILL, 128 + signal.SIGKILL), f"exit {status}\n{self.text()}"
        return True

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def __enter__(self) -> FaultyDaemon:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            # strace passes a SIGTERM on to nobody: end what it traces, it follows.
            traced = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
            for child in [int(child) for child in traced if self._inject] or [self.pid]:
                os.kill(child, signal.SIGKILL)
            self.process.wait()


@dataclass
class Known:
    """What one client knows: of its register and its part of the counter."""

    number: int
    acknowledged: int = 0
    sent: int = 0
    added: int = 0
    add_sent: int = 0
    refusals: list[str] = field(default_factory=list)


def load(home: Path, known: list[Known], stop: threading.Event) -> list[threading.Thread]:
    """Let each client write until the daemon is gone or `stop` is set."""
    threads = [threading.Thread(target=_write, args=(home, one, stop)) for one in known]
    for thread in threads:
        thread.start()
    return threads


def _write(home: Path, one: Known, stop: threading.Event) -> None:
    try:
        client = Client(home)
    except OSError:
        return
    try:
        while not stop.is_set():
            number = one.sent = one.sent + 1
            one.add_sent += 1
            commands = [
                ("SET", f"{REGISTER}:{one.number}", str(number)),
                ("INCRBY", "visits:all", "1"),
            ]
            done, count = client.ask_all(commands)
            if done == b"OK":
                one.acknowledged = number
            else:
                one.refusals.append(str(done))
            if isinstance(count, int):
                one.added += 1
            else:
                one.refusals.append(str(count))
    except OSError:
        pass
    finally:
        client.close()


def check(home: Path, known: list[Known]) -> None:
    """Everything acknowledged is there, nothing that was not sent is; counted once."""
    client = Client(home)
    try:
        for one in known:
            found = int(client.ask("GET", f"{REGISTER}:{one.number}") or b"0")
            assert one.acknowledged <= found <= one.sent, f"client {one}: {found}"
            one.acknowledged = found
        found = int(client.ask("GET", "visits:all") or b"0")
        assert sum(k.added for k in known) <= found <= sum(k.add_sent for k in known), found
        # What was unknown is known now.
        for one in known:
            one.added = one.add_sent = 0
        known[0].added = known[0].add_sent = found
    finally:
        client.close()


def why_no_faults() -> str:
    """Why calls cannot be made to fail here; "" if they can."""
    if shutil.which("strace") is None:
        return "strace is not on this machine"
    probe = subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], check=False)
    return "strace may not trace here" if probe.returncode else ""


def why_not_struck() -> str:
    """Why a running daemon cannot be struck here (ptrace may be kept to descendants); "" if it
    can."""
    if reason := why_no_faults():
        return reason
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        tracer = subprocess.Popen(
            ["strace", "-o", "/dev/null", "-p", str(sleeper.pid)], stderr=subprocess.PIPE, text=True
        )
        assert tracer.stderr is not None
        told = tracer.stderr.readline()
        sleeper.kill()
        tracer.stderr.close()
        tracer.wait()
    return "" if "attached" in told else f"strace may not attach to a process: {told.strip()}"
