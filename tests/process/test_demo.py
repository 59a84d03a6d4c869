"""The demo as a user runs it: what it claims was observed, and it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from roostd.demo.transcript import load, split

DEMO = [sys.executable, "-m", "roostd.cli.main", "demo"]
CLAIMS = 13
PATIENT_S = 300
SHORT = [
    {"role": "system", "content": "brief \u00e9"},
    {"role": "user", "content": "one", "extra": {"n": 1.10}},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "two"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        ],
    },
    {"role": "tool", "tool_call_id": "c", "content": "r"},
    {"role": "assistant", "content": [{"type": "text", "text": "2"}]},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "3"},
]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The demo in a process group of its own, with its temporary files under `folder`."""
    environment = {**os.environ, "TMPDIR": str(folder)}
    return subprocess.Popen(
        [*DEMO, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A background job of a shell has it ignored, and so had what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def left_behind(folder: Path) -> list[str]:
    """Files in the folder, and processes whose command line names it."""
    found = [str(path) for path in folder.iterdir()]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes()
        except OSError:
            continue
        if str(folder).encode() in command:
            found.append(command.replace(b"\0", b" ").decode())
    return found


def test_every_claim_is_observed(tmp_path: Path) -> None:
    transcript = tmp_path / "short.jsonl"
    transcript.write_text("".join(json.dumps(message) + "\n" for message in SHORT))
    folder = tmp_path / "files"
    folder.mkdir()
    demo = start(folder, "--transcript", str(transcript))
    output, _ = demo.communicate(timeout=PATIENT_S)
    assert demo.returncode == 0, output
    table = output[output.index("What was observed") :]
    assert table.count("\u2502 ok \u2502") == CLAIMS, output
    assert "takeover, stale_turns" in output
    assert "embedded backend" in output
    assert "user-space proxy" in output
    assert left_behind(folder) == []


def check_nothing_is_left(demo: subprocess.Popen[str], folder: Path) -> None:
    output, _ = demo.communicate(timeout=PATIENT_S)
    assert demo.returncode != 0, output
    deadline = time.monotonic() + PATIENT_S
    while found := left_behind(folder):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)  # who is killed ends a moment later


@pytest.mark.parametrize("after_s", [0.6, 1.2, 2.5])
def test_ctrl_c_leaves_nothing(tmp_path: Path, after_s: float) -> None:
    """While it starts; the rest of it alone takes longer."""
    demo = start(tmp_path)
    time.sleep(after_s)
    os.killpg(demo.pid, signal.SIGINT)
    check_nothing_is_left(demo, tmp_path)


def test_ctrl_c_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    demo = start(tmp_path)
    assert demo.stdout is not None
    while "A conversation, at home in eu" not in (line := demo.stdout.readline()):
        assert line, "it ended"
    os.killpg(demo.pid, signal.SIGINT)
    check_nothing_is_left(demo, tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("not json\n", ":1: not a line of JSON"),
        ('{"role": "wizard", "content": "x"}\n', ":1: not a chat message"),
        ("[1]\n", ":1: not a chat message"),
        ('{"role": "user", "content": "only one"}\n', "needs at least 3"),
        ("", "needs at least 3"),
    ],
)
def test_a_transcript_that_is_none_is_refused(tmp_path: Path, text: str, says: str) -> None:
    transcript = tmp_path / "bad.jsonl"
    transcript.write_text(text)
    done = subprocess.run(
        [*DEMO, "--transcript", str(transcript)], capture_output=True, text=True, timeout=PATIENT_S
    )
    assert done.returncode != 0
    assert says in done.stderr


def test_turns_begin_with_the_user() -> None:
    turns = split(SHORT)
    assert [turn.messages[-1]["content"] for turn in turns[::2]] == ["1", "3"]
    assert turns[0].messages[0]["role"] == "system"
    assert turns[1].tool_calls() == [("c", "f", {}, "r")]


def test_the_shipped_transcript_calls_tools() -> None:
    turns = load(None)
    assert len(turns) >= 8
    assert sum(len(turn.tool_calls()) for turn in turns) >= 5


def test_a_line_may_hold_a_whole_conversation(tmp_path: Path) -> None:
    transcript = tmp_path / "whole.jsonl"
    transcript.write_text(json.dumps({"messages": SHORT}))
    assert load(transcript) == split(SHORT)
