"""Branch coverage of each module of the core by its own test file: `make coverage`.

    python tests/coverage_by_module.py [MODULE...]

Runs each module's test file alone (`rows/set.py` -> `tests/crdt/test_rows_set.py`) and prints
what that leaves uncovered; a line that only some other test happens to pass is not tested. Exits
with 1 if anything is missing. `testing/` is what the tests are made of and is not counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "crdt" / "roost_crdt"
TESTS = ROOT / "tests" / "crdt"
WORKERS = 2
COVERED_BY = {
    "membership/membership.py": ("test_membership.py",),
    "membership/storage.py": ("test_membership.py",),
}
"""Tests of modules that are named like their package, or hold nothing but protocols."""


class Cover(NamedTuple):
    """What a module's own tests leave out. `percent` counts lines and branches."""

    module: str
    percent: float
    missing: str


def modules() -> list[Path]:
    """The modules to be covered, by path."""
    found = sorted(path for path in CORE.rglob("*.py") if "testing" not in path.parts)
    return [path for path in found if len(path.read_text().splitlines()) > 5]


def tests_of(module: Path) -> list[Path]:
    """The module's own test file, and those that continue it (`test_fold_branches.py`)."""
    if (known := COVERED_BY.get(str(module.relative_to(CORE)))) is not None:
        return [TESTS / test for test in known]
    parts = list(module.relative_to(CORE).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    name = "test_" + "_".join(parts)
    others = {_test_name(other) for other in modules() if other != module}
    found = [path for path in sorted(TESTS.glob(f"{name}*.py")) if path.stem not in others]
    return [
        path for path in found if path.stem == name or not _belongs_to_longer(path, name, others)
    ]


def _test_name(module: Path) -> str:
    return "test_" + "_".join(module.relative_to(CORE).with_suffix("").parts)


def _belongs_to_longer(path: Path, name: str, others: set[str]) -> bool:
    return any(
        len(other) > len(name) and path.stem.startswith(other + "_") for other in others
    ) or not path.stem.startswith(name + "_")


def cover(module: Path) -> Cover:
    """Run a module's own tests and measure it."""
    name = str(module.relative_to(CORE))
    tests = tests_of(module)
    if not tests:
        return Cover(name, 0.0, "no test file of its own")
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, tests)]
        run += ["--hypothesis-profile=few"]
        run += ["--cov", str(CORE), "--cov-branch", f"--cov-report=json:{report}"]
        environ = {**os.environ, "COVERAGE_FILE": str(Path(scratch) / "data")}
        done = subprocess.run(
            run, cwd=ROOT, env=environ, capture_output=True, text=True, check=False
        )
        if done.returncode != 0 or not report.exists():
            return Cover(name, 0.0, "tests fail: " + done.stdout.strip().rpartition("\n")[2])
        files = json.loads(report.read_text())["files"]
    measured = files[str(module.relative_to(ROOT))]
    lines = [str(line) for line in measured["missing_lines"]]
    branches = [
        f"{start}->{'exit' if end < 0 else end}"
        for start, end in measured["missing_branches"]
        if start not in measured["missing_lines"] and end not in measured["missing_lines"]
    ]
    return Cover(name, measured["summary"]["percent_covered"], " ".join(lines + branches))


def main(names: list[str]) -> int:
    chosen = [path for path in modules() if not names or str(path.relative_to(CORE)) in names]
    with ThreadPoolExecutor(WORKERS) as pool:
        covers = list(pool.map(cover, chosen))
    for found in covers:
        if found.missing:
            print(f"{found.module:28} {found.percent:6.1f} %  {found.missing}")
    full = sum(not found.missing for found in covers)
    print(f"{full} of {len(covers)} modules are covered whole by their own tests")
    return 0 if full == len(covers) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
