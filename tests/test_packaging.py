"""What is around the code: the unit file, the commands that are installed, make and CI."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
UNIT = ROOT / "systemd" / "roostd.service"

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None and os.environ.get("CI") != "true",
    reason="systemd-analyze is not installed",
)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )


@needs_systemd
def test_systemd_has_nothing_to_say_about_the_unit() -> None:
    done = run("systemd-analyze", "verify", str(UNIT))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd
def test_verify_would_have_seen_an_unknown_key(tmp_path: Path) -> None:
    wrong = tmp_path / "roostd.service"
    wrong.write_text(UNIT.read_text().replace("PrivateTmp=", "PrivatTmp="))
    done = run("systemd-analyze", "verify", str(wrong))
    assert "PrivatTmp" in done.stdout + done.stderr


@needs_systemd
def test_the_unit_is_hardened() -> None:
    done = run("systemd-analyze", "security", "--offline=yes", "--threshold=15", str(UNIT))
    assert done.returncode == 0, done.stdout[-300:]


def test_the_unit_and_the_daemon_agree() -> None:
    unit = UNIT.read_text()
    assert "\nType=notify\n" in unit
    assert re.search(r"^ExecStart=/usr/bin/env roostd ", unit, re.MULTILINE)
    assert "RestartPreventExitStatus=2" in unit
    assert "kill -HUP $MAINPID" in unit


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_knows_its_targets() -> None:
    for target in (
        "demo",
        "test",
        "lint",
        "types",
        "unit",
        "process",
        "simulate",
        "compiled",
        "clean",
    ):
        done = run("make", "--dry-run", target)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_what_ci_runs_is_a_sound_script() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text()
    done = run("bash", "-n", str(script))
    assert (done.returncode, done.stderr) == (0, "")
