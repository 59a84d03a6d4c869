"""`roost init`, then roostd from it as it is, then every command against it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from roostd.cli.main import main

COUNTER = """
[visits]
readers = "cross-session"
stale_read_cost = "annoying"
type = "counter"
"""

PATIENT_S = 120
ANY_PORTS = {f"ROOST_LISTEN_{face}": "127.0.0.1:0" for face in ("RESP", "HTTP", "GOSSIP")}


class Daemon:
    """A roostd that `roost init` configured, under a supervisor that hears its states."""

    def __init__(self, home: Path, environ: dict[str, str] | None = None) -> None:
        self.home = home
        self.url = f"unix://{home}/roost.sock"
        self.heard: list[str] = []
        self._supervisor = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify = home.parent / f"{home.name}.notify"
        notify.unlink(missing_ok=True)
        self._supervisor.bind(str(notify))
        self._supervisor.settimeout(PATIENT_S)
        self.log = home.parent / f"{home.name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "roostd.cli.roostd", "--config", str(home / "roost.toml")],
                stderr=log,
                env={
                    **os.environ,
                    "NOTIFY_SOCKET": str(notify),
                    "WATCHDOG_USEC": "2000000",
                    **ANY_PORTS,
                    **(environ or {}),
                },
            )
        try:
            self.hear("READY=1")
        except TimeoutError:
            self.close()
            raise AssertionError(self.log.read_text()) from None

    def hear(self, state: str) -> str:
        """Wait until the daemon says `state`; the datagram that did."""
        while True:
            told = self._supervisor.recv(4096).decode()
            self.heard.append(told)
            if state in told.split("\n"):
                return told

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENT_S)

    def roost(self, *args: str, stdin: str | None = None, status: int = 0) -> Result:
        done = CliRunner().invoke(main, [*args, "--url", self.url], input=stdin)
        assert done.exit_code == status, f"{args}: {done.output}\n{self.log.read_text()[-2000:]}"
        return done

    def json(self, *args: str, **more: Any) -> Any:
        return json.loads(self.roost(*args, "--json", **more).stdout)

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._supervisor.close()


def init(home: Path) -> Path:
    done = CliRunner().invoke(main, ["init", str(home), "--node", "eu-1", "--region", "eu"])
    assert done.exit_code == 0, done.output
    with (home / "policies.toml").open("a") as policies:
        policies.write(COUNTER)
    return home


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for the commands that leave it as it was."""
    with Daemon(init(tmp_path_factory.mktemp("cli") / "eu")) as running:
        yield running


def test_status(daemon: Daemon) -> None:
    assert "eu-1" in daemon.roost("status").stdout
    found = daemon.json("status")
    assert (found["node"], found["region"], found["links"]) == ("eu-1", "eu", [])
    assert found["store"]["durable_seq"] <= found["store"]["seq"]
    assert "eu-1" in daemon.roost("member", "list").stdout


def test_keys_and_their_values(daemon: Daemon) -> None:
    text = '{"llama": 1.10, "n": 12345678901234567890, "s": "é"}'
    daemon.roost("set", "model_router_weights:a", text)
    kept = daemon.roost("get", "model_router_weights:a").stdout
    assert kept.strip() == text.replace(": ", ":").replace(", ", ",")
    found = daemon.json("get", "model_router_weights:a")
    assert (found["value"]["llama"], found["consistency"]) == (1.1, "eventually-global")
    daemon.roost("set", "model_router_weights:b", "-", stdin='"fast"')
    assert daemon.roost("get", "model_router_weights:b").stdout == '"fast"\n'
    assert daemon.roost("get", "model_router_weights:none").stdout == "null\n"
    assert daemon.roost("incr", "visits:x", "5").stdout == "5\n"
    assert daemon.roost("incr", "visits:x", "-2").stdout == "3\n"
    assert daemon.roost("get", "visits:x").stdout == "3\n"
    listed = daemon.roost("keys", "model_router_weights:*").stdout.split()
    assert listed == ["model_router_weights:a", "model_router_weights:b"]
    daemon.roost("del", "model_router_weights:b")
    assert daemon.roost("get", "model_router_weights:b").stdout == "null\n"


def test_a_value_that_is_not_json_is_a_usage_error(daemon: Daemon) -> None:
    done = daemon.roost("set", "model_router_weights:a", "fast", status=2)
    assert "a string needs quotes: '\"fast\"'" in " ".join(done.stderr.split())


def test_a_ttl_ends_a_key(daemon: Daemon) -> None:
    daemon.roost("set", "model_router_weights:brief", "1", "--ttl", "200ms")
    deadline = time.monotonic() + PATIENT_S
    while daemon.roost("get", "model_router_weights:brief").stdout != "null\n":
        assert time.monotonic() < deadline, "the key outlives its ttl"
        time.sleep(0.05)
    assert "no duration" in daemon.roost("set", "k", "1", "--ttl", "1x", status=2).stderr


def test_what_the_daemon_refuses_ends_with_1(daemon: Daemon) -> None:
    done = daemon.roost("get", "unheard:x", status=1)
    assert done.stderr.startswith("roost: NOPOLICY: ")
    assert "conversation_buffer" in done.stderr
    refused = daemon.roost("get", "unheard:x", "--json", status=1)
    assert json.loads(refused.stderr)["code"] == "NOPOLICY"
    assert "NOSESSION" in daemon.roost("session", "show", "nobody", status=1).stderr


def test_policies(daemon: Daemon) -> None:
    names = [found["name"] for found in daemon.json("policy")]
    assert names[:3] == ["conversation_buffer", "kv_cache_index", "tool_call_ledger"]
    assert names[-2:] == ["billing", "usage_quota"]
    assert "visits" in daemon.roost("policy").stdout
    why = daemon.roost("policy", "usage_quota:alice").stdout
    assert "usage_quota:alice is linearizable" in why
    assert 'a stale read is "incorrect"' in why


def test_a_session(daemon: Daemon) -> None:
    sid = daemon.roost("session", "open").stdout.strip()
    lines = [
        '{"role":"user","content":"hi","n":1.10}',
        '{"role":"assistant","content":"hello"}',
    ]
    turn = ["--turn-id=t1", "--put", "kv_cache_index", "prefix", '"gpu-3"']
    done = daemon.roost("session", "commit", sid, *turn, stdin="\n".join(lines))
    assert done.stdout.startswith("turn 1")
    again = daemon.json("session", "commit", sid, *turn, stdin="\n".join(lines))
    assert again["turn"] == 1
    assert daemon.roost("session", "show", sid, "--messages").stdout.splitlines() == lines
    shown = daemon.roost("session", "show", sid).stdout
    assert lines[0] in shown
    assert "gpu-3" in shown
    view = daemon.json("session", "show", sid)
    assert (view["turn"], view["home"], len(view["messages"])) == (1, "eu-1", 2)
    assert "token" not in view
    assert sid in daemon.roost("session", "list").stdout
    fork = daemon.roost("session", "fork", sid).stdout.strip()
    assert fork != sid
    assert daemon.roost("session", "show", fork, "--messages").stdout.splitlines() == lines
    receipts = daemon.json("session", "erase", sid)["receipts"]
    assert receipts
    daemon.roost("session", "show", sid, status=1)


def test_a_turn_that_is_not_json_lines(daemon: Daemon) -> None:
    sid = daemon.roost("session", "open", "mine").stdout.strip()
    assert sid == "mine"
    for stdin, said in (
        ("", "no messages"),
        ("[1]", "line 1: a message"),
        ("{}\nx", "line 2: not"),
    ):
        assert said in daemon.roost("session", "commit", sid, stdin=stdin, status=2).stderr


def test_a_quota(daemon: Daemon) -> None:
    assert daemon.json("quota", "set", "usage_quota:alice", "10")["limit"] == 10
    found = daemon.json("quota", "show", "usage_quota:alice")
    assert (found["limit"], found["key"]) == (10, "usage_quota:alice")
    assert "limit" in daemon.roost("quota", "show", "usage_quota:alice").stdout
    assert "UNSUPPORTED" in daemon.roost("quota", "show", "visits:x", status=1).stderr


def test_a_token_of_a_session(daemon: Daemon) -> None:
    daemon.roost("session", "open", "routed")
    token = daemon.roost("token", "issue", "routed").stdout.strip()
    keys = ["--keys", str(daemon.home / "keys")]
    shown = CliRunner().invoke(main, ["token", "show", token, *keys])
    assert shown.exit_code == 0, shown.output
    assert "signature: good" in shown.stdout
    assert "routed" in shown.stdout
    daemon.roost("token", "issue", "nobody", status=1)


def test_watch(daemon: Daemon) -> None:
    watching = subprocess.Popen(
        [
            *(sys.executable, "-m", "roostd.cli.main", "watch", "model_router_weights:w"),
            *("--json", "--count=1", "--url", daemon.url),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + PATIENT_S
    while watching.poll() is None:
        assert time.monotonic() < deadline, "the watch heard nothing"
        daemon.roost("set", "model_router_weights:w1", '{"a":1}')
        time.sleep(0.1)
    line = json.loads(watching.communicate(timeout=5)[0])
    assert (line["key"], line["value"]) == ("model_router_weights:w1", {"a": 1})
    assert watching.returncode == 0


def test_drain_of_a_node_alone(daemon: Daemon) -> None:
    """There is nobody to hand a session to: it says so, and the session stays."""
    daemon.roost("session", "open", "stays")
    done = daemon.roost("drain", status=1)
    assert "sessions remain here" in done.stdout
    daemon.roost("session", "show", "stays")


def test_the_watchdog_is_fed(daemon: Daemon) -> None:
    daemon.hear("WATCHDOG=1")


def test_a_life(tmp_path: Path) -> None:
    """Start, write, reload, refuse a reload, stop, and start again with the state."""
    home = init(tmp_path / "eu")
    with Daemon(home) as daemon:
        daemon.roost("incr", "visits:x", "7")
        _reload(daemon)
        assert daemon.stop() == 0, daemon.log.read_text()
        daemon.hear("STOPPING=1")
        daemon.roost("status", status=3)
    with Daemon(home) as again:
        assert again.roost("get", "visits:x").stdout == "7\n"
        assert again.stop(signal.SIGINT) == 0
    told = [json.loads(line) for line in again.log.read_text().splitlines()]
    errors = [line["message"] for line in told if line["level"] not in ("info", "warning")]
    assert [error.partition(":")[0] for error in errors] == [
        "reload refused, the old settings stay"
    ]


def _reload(daemon: Daemon) -> None:
    file = daemon.home / "policies.toml"
    with file.open("a") as policies:
        policies.write(COUNTER.replace("visits", "downloads"))
    daemon.process.send_signal(signal.SIGHUP)
    daemon.hear("RELOADING=1")
    daemon.hear("READY=1")
    assert daemon.roost("incr", "downloads:x").stdout == "1\n"

    good = file.read_text()
    file.write_text(good.replace('type = "counter"', 'type = "set"'))
    daemon.process.send_signal(signal.SIGHUP)
    daemon.hear("RELOADING=1")
    assert "reload refused" in daemon.hear("READY=1")
    assert daemon.roost("get", "visits:x").stdout == "7\n"
    file.write_text(good)


def test_a_second_daemon_on_the_same_store_is_told(tmp_path: Path) -> None:
    home = init(tmp_path / "eu")
    with Daemon(home) as daemon:
        second = subprocess.run(
            [sys.executable, "-m", "roostd.cli.roostd", "--config", str(home / "roost.toml")],
            env={**os.environ, **ANY_PORTS},
            capture_output=True,
            text=True,
            timeout=PATIENT_S,
            check=False,
        )
        assert second.returncode == 1
        (line,) = second.stderr.splitlines()
        assert "cannot go on: " in json.loads(line)["message"]
        assert daemon.roost("get", "visits:x").stdout == "null\n"


def test_an_address_that_is_taken_is_named(tmp_path: Path) -> None:
    home = init(tmp_path / "eu")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "roostd.cli.roostd", "--config", str(home / "roost.toml")],
            env={**os.environ, **ANY_PORTS, "ROOST_LISTEN_HTTP": f"127.0.0.1:{port}"},
            capture_output=True,
            text=True,
            timeout=PATIENT_S,
            check=False,
        )
    assert done.returncode == 1
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr
