"""`roost` without a daemon: usage, exit status, policy check, tokens; `roostd`'s refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from roost_crdt.policy import DEFAULT_POLICIES
from roost_crdt.token import Claims
from roostd.cli.main import main
from roostd.keyring import Keyring, generate

TALKING = [
    ["status"],
    ["get", "k"],
    ["set", "k", "1"],
    ["incr", "k"],
    ["del", "k"],
    ["keys", "*"],
    ["watch", "k"],
    ["session", "open"],
    ["session", "show", "s"],
    ["session", "fork", "s"],
    ["session", "move", "s", "n"],
    ["session", "erase", "s"],
    ["session", "list"],
    ["policy"],
    ["policy", "k"],
    ["quota", "show", "k"],
    ["quota", "set", "k", "3"],
    ["quota", "forfeit", "k", "n"],
    ["token", "issue"],
    ["member", "list"],
    ["member", "remove", "n"],
    ["drain"],
]


def roost(*args: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, list(args), input=stdin)


@pytest.mark.parametrize("command", TALKING, ids=" ".join)
def test_without_a_daemon_the_status_is_3(command: list[str], tmp_path: Path) -> None:
    url = f"--url=unix://{tmp_path}/nobody.sock"
    done = roost(*command, url)
    assert done.exit_code == 3
    assert done.stdout == ""
    assert "no daemon answers at unix://" in done.stderr
    as_json = roost(*command, url, "--json")
    assert as_json.exit_code == 3
    assert json.loads(as_json.stderr)["code"] == "UNAVAILABLE"


def test_the_address_comes_from_the_environment(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["status"], env={"ROOST_URL": f"unix://{tmp_path}/here"})
    assert f"{tmp_path}/here" in done.stderr


@pytest.mark.parametrize("command", TALKING, ids=" ".join)
def test_every_command_explains_itself(command: list[str]) -> None:
    words = [word for word in command if word not in ("k", "s", "n", "1", "3", "*")]
    done = roost(*words, "--help")
    assert done.exit_code == 0
    assert "Usage: " in done.output


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["get"], "Missing argument 'KEY'"),
        (["get", "k", "--url=http://x"], "the SDK speaks unix:///path and redis://host:port"),
        (["get", "k", "--url=redis://x:99999999"], "not a URL"),
        (["sett", "k", "1"], "No such command 'sett'"),
        (["policy", "check"], "Missing argument 'FILE'"),
        (["token", "rotate", "--keys=nowhere"], "does not exist"),
    ],
)
def test_usage_errors_end_with_2(command: list[str], said: str) -> None:
    done = roost(*command)
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())


def test_policy_check_of_a_file_without_faults(tmp_path: Path) -> None:
    file = tmp_path / "policies.toml"
    file.write_text(DEFAULT_POLICIES)
    done = roost("policy", "check", str(file))
    assert done.exit_code == 0
    consistencies = [line.split()[1] for line in done.stdout.splitlines()[1:] if line.strip()]
    assert consistencies == ["session-local"] * 3 + ["eventually-global"] * 2 + ["linearizable"] * 2
    found = json.loads(roost("policy", "check", str(file), "--json").stdout)
    assert found["fault"] is None
    assert len(found["policies"]) == 7


def test_policy_check_of_a_file_with_a_fault(tmp_path: Path) -> None:
    file = tmp_path / "policies.toml"
    file.write_text(DEFAULT_POLICIES.replace('ttl = "24h"', 'ttl = "24 hours"', 1))
    line = 1 + DEFAULT_POLICIES[: DEFAULT_POLICIES.index('ttl = "24h"')].count("\n")
    done = roost("policy", "check", str(file))
    assert done.exit_code == 1
    assert done.stderr.startswith(f"{file}:{line}: ttl: ")
    fault = json.loads(roost("policy", "check", str(file), "--json").stdout)["fault"]
    assert (fault["file"], fault["line"]) == (str(file), line)
    assert roost("policy", "check", str(tmp_path / "nowhere")).exit_code == 1


def test_policy_check_warns(tmp_path: Path) -> None:
    file = tmp_path / "policies.toml"
    file.write_text(
        '[w]\nreaders = "cross-session"\nstale_read_cost = "annoying"\ntype = "register"\n'
        'consistency = "linearizable"\n'
    )
    done = roost("policy", "check", str(file))
    assert done.exit_code == 0
    assert "a round trip to consensus" in done.stderr


CLAIMS = Claims(
    sid="s1",
    home="eu-1",
    standby="us-1",
    epoch=(3, "eu-1"),
    turn=7,
    path=((3, "eu-1", 0, 7),),
    aud="prod",
    iss="eu-1",
    iat=1_700_000_000,
    exp=1_700_003_600,
)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    generate(tmp_path / "keys", "k1")
    return tmp_path / "keys"


def signed(keys: Path) -> str:
    return Keyring.load(keys, node="eu-1", audience="prod").sign(CLAIMS, CLAIMS.iat)


def test_token_show_names_each_field(keys: Path) -> None:
    done = roost("token", "show", signed(keys))
    assert done.exit_code == 0
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    for name in ("alg", "kid", "sid", "home", "standby", "epoch", "turn", "path", "aud", "exp"):
        assert len(rows[name].split()) > 3, f"{name} has no meaning"
    assert "2023-11-14 23:13:20 UTC" in rows["exp"]
    assert "signature: not checked" in done.stdout


def test_token_show_checks_the_signature(keys: Path, tmp_path: Path) -> None:
    token = signed(keys)
    good = roost("token", "show", token, "--keys", str(keys))
    assert good.exit_code == 0
    assert "good: signed by the key k1" in good.stdout
    head, body, signature = token.split(".")
    forged = f"{head}.{body}.{signature[:-6]}AAAAAA"
    bad = roost("token", "show", forged, "--keys", str(keys))
    assert bad.exit_code == 1
    assert "bad: the key k1 did not sign this" in bad.stdout
    generate(tmp_path / "other", "k2")
    unknown = roost("token", "show", "-", "--keys", str(tmp_path / "other"), stdin=token)
    assert unknown.exit_code == 1
    assert "has no key k1" in unknown.stdout
    facts = json.loads(roost("token", "show", token, "--json", "--keys", str(keys)).stdout)
    assert facts["signature"] == "good"
    assert facts["claims"]["sid"] == "s1"


@pytest.mark.parametrize("text", ["", "abc", "a.b.c", "e30.W10.x", "e30.e30.", "x" * 5000])
def test_token_show_refuses_what_is_no_token(text: str) -> None:
    done = roost("token", "show", "--", text)
    assert done.exit_code == 1
    assert "BADTOKEN" in done.stderr


def test_token_rotate_makes_the_key_that_signs(keys: Path) -> None:
    os.utime(keys / "k1.pem", ns=(1, 1))
    done = roost("token", "rotate", "--keys", str(keys))
    assert done.exit_code == 0
    kid = done.stdout.strip()
    assert (keys / f"{kid}.pem").stat().st_mode & 0o777 == 0o600
    ring = Keyring.load(keys, node="eu-1", audience="prod")
    assert ring.kid == kid
    assert set(ring.public_keys()) == {"k1", kid}


def roostd(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "roostd.cli.roostd", *args],
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_roostd_refuses_a_configuration_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "roost.toml"
    file.write_text('[node]\nid = "eu-1"\nregion = "eu"\n[listen]\nhtp = "x"\n')
    done = roostd("--config", str(file))
    assert done.returncode == 2
    assert done.stderr == (
        f'roostd: {file}:5: unknown key "htp" in [listen]; did you mean "http"?\n'
    )


def test_roostd_checks_a_configuration(tmp_path: Path) -> None:
    assert roost("init", str(tmp_path / "eu"), "--node=eu-1", "--region=eu").exit_code == 0
    done = roostd("--config", str(tmp_path / "eu" / "roost.toml"), "--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert "node eu-1, no faults" in done.stdout
    by_environment = roostd("--check", ROOST_NODE_ID="us-1", ROOST_NODE_REGION="us")
    assert "the environment: node us-1, no faults" in by_environment.stdout
