"""Starts daemons by fork: a process that has imported roostd once, and is told which to start.

Each line on stdin is JSON: `{"config", "log", "environ"}` starts one, `{"wait": pid}` waits for
it. The answer is its pid, or its exit status as subprocess has it (-9: killed). A daemon ends
with this process.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from dataclasses import replace
from typing import Any

from roostd.cli.roostd import main
from roostd.node import node

LIMITS = "ROOST_TEST_LIMITS"
"""Bounds (roost_crdt.limits) as JSON, in a daemon's environment."""
PR_SET_PDEATHSIG = 1


def start(config: str, log: str, environ: dict[str, str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target in (0, 1, 2):
        os.dup2(fd if target else nothing, target)
    os.environ.clear()
    os.environ.update(environ)
    bound(json.loads(os.environ.pop(LIMITS, "{}")))
    main(["--config", config], prog_name="roostd")  # ends by sys.exit
    os._exit(99)


def bound(limits: dict[str, Any]) -> None:
    """Let the daemon have other bounds than every daemon has."""
    real = node.limits_of
    node.limits_of = lambda config: replace(real(config), **limits)


def answer(asked: dict[str, Any]) -> int:
    if "wait" in asked:
        return os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])
    return start(asked["config"], asked["log"], asked["environ"])


if __name__ == "__main__":
    for line in sys.stdin:
        print(answer(json.loads(line)), flush=True)
