"""The rules of the house, checked: sizes, leftovers, imports, the error tree, covered modules."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

import roost_crdt.errors as errors

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("crdt", "daemon", "client")
SOURCES = (*ROOMS, "tests", "bench")
TEXTS = (*SOURCES, "docs", "systemd", ".ci")
FILE_LINES_MAX = 500
OTHER_LINES_MAX = 600
"""Tests and benchmarks; what is shipped is shorter."""
SHIPPED = ("crdt", "daemon", "client")
FUNCTION_LINES_MAX = 70
COVERED_BY = {
    "testing": {"test_rows_laws", "test_testing_convergence"},
    "testing/laws": {"test_rows_laws"},
    "testing/histories": {"test_rows_oracle"},
    "testing/states": {"test_rows_laws"},
    "testing/sessions": {"test_sessions_oracle"},
    "testing/edits": {"test_ystructs", "test_rows_oracle"},
    "membership/storage": {"test_membership"},
}
"""Modules that are driven through another one, and the tests that drive them."""


def python_files(*rooms: str) -> list[Path]:
    return sorted(path for room in rooms for path in (ROOT / room).rglob("*.py"))


def text_files() -> Iterator[tuple[Path, str]]:
    paths = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]
    paths += [path for room in TEXTS for path in (ROOT / room).rglob("*") if path.is_file()]
    for path in paths:
        if "__pycache__" in path.parts or path.suffix in (".pyc", ".png", ".ico"):
            continue
        try:
            yield path.relative_to(ROOT), path.read_text("utf-8")
        except UnicodeDecodeError:
            continue


def test_files_are_short() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in python_files(*SOURCES)}
    assert len(lines) > 50, "this test looks in the wrong place"
    long = {
        str(path.relative_to(ROOT)): n
        for path, n in lines.items()
        if n > (FILE_LINES_MAX if path.relative_to(ROOT).parts[0] in SHIPPED else OTHER_LINES_MAX)
    }
    assert not long


def test_functions_are_short() -> None:
    long = []
    for path in python_files(*SOURCES):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} {lines}")
    assert not long


def test_no_notes_are_left_over() -> None:
    note = re.compile(
        r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"]) + r")\b"
    )
    found = [
        f"{path}:{number}"
        for path, text in text_files()
        for number, line in enumerate(text.splitlines(), 1)
        if note.search(line)
    ]
    assert not found


def test_no_path_of_one_machine() -> None:
    machine = re.compile(r"/(?:work/|home/\w|root/|Users/\w)")
    found = [
        f"{path}:{number}"
        for path, text in text_files()
        if path != Path("tests/test_house.py")
        for number, line in enumerate(text.splitlines(), 1)
        if machine.search(line)
    ]
    assert not found


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in python_files(*ROOMS)
        if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent


def test_the_error_tree_is_the_one_of_the_docstring() -> None:
    tree = errors.__doc__ or ""
    leaves = re.findall(r"^ *\+-- ([A-Z]\w+(?:, [A-Z]\w+)*)", tree, re.MULTILINE)
    below = {name for line in leaves for name in line.split(", ")}
    assert below == {cls.__name__ for cls in errors.RoostError.__subclasses__()}
    roots = set(re.findall(r"^ *([A-Z]\w+)  ", tree, re.MULTILINE))
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type)
        and issubclass(value, Exception)
        and value.__module__ == errors.__name__
    }
    assert roots | below == defined
    assert defined | {"error_from_code"} == set(errors.__all__)


def test_every_code_is_one_error() -> None:
    classes = errors.RoostError.__subclasses__()
    assert len({cls.code for cls in classes}) == len(classes)
    for cls in classes:
        rebuilt = errors.error_from_code(cls.code, "text", retry_after_ms=3, turn=7)
        assert type(rebuilt) is cls
        assert (rebuilt.message, rebuilt.retry_after_ms, rebuilt.details) == (
            "text",
            3,
            {"turn": 7},
        )
    assert type(errors.error_from_code("NEWER", "text")) is errors.RoostError


def test_every_module_of_the_core_has_its_tests() -> None:
    core = ROOT / "crdt" / "roost_crdt"
    tested = {path.stem for path in python_files("tests/crdt")}
    missing = []
    for path in python_files("crdt/roost_crdt"):
        parts = path.relative_to(core).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
            if not parts or len(path.read_text().splitlines()) < 5:
                continue
        names = {f"test_{parts[-1]}", "test_" + "_".join(parts)}
        names |= COVERED_BY.get("/".join(parts), set())
        if not names & tested:
            missing.append(str(path.relative_to(ROOT)))
    assert not missing


def test_no_module_is_dead() -> None:
    graph = grimp.build_graph("roost_crdt", "roostd", "roost", cache_dir=None)
    entries = {"roost_crdt", "roostd", "roost", "roostd.cli.main", "roostd.cli.roostd"}
    entries |= {name for name in graph.modules if name.endswith(".__main__")}
    entries |= {name for name in graph.modules if "adapters" in name}
    entries |= {name for name in graph.modules if _is_run_by_name(name)}
    dead = [
        name
        for name in graph.modules
        if name not in entries
        and not graph.find_modules_that_directly_import(name)
        and not graph.find_children(name)
    ]
    assert not dead


def test_pycrdt_stays_behind_one_module() -> None:
    graph = grimp.build_graph(
        "roost_crdt", "roostd", "roost", cache_dir=None, include_external_packages=True
    )
    assert graph.find_modules_that_directly_import("pycrdt") == {"roost_crdt.document"}


def _is_run_by_name(module: str) -> bool:
    """Whether some source starts the module as a program (`python -m module`)."""
    quoted = f'"{module}"'
    return any(quoted in path.read_text() for path in python_files(*ROOMS))


def test_the_rooms_import_downwards_only() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    if not lint.exists():
        pytest.fail("import-linter is not installed; make lint does it")
    done = subprocess.run(
        [lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout[-3_000:]


def test_every_dependency_is_pinned_and_nothing_names_a_registry() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    pins = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][\w.]*", line) for line in pins)
    pinned = {line.partition("==")[0] for line in pins}
    names = {re.split(r"[<>=!~\[; ]", need)[0].lower().replace("_", "-") for need in wanted}
    assert names <= pinned
    for name in ("constraints.txt", "Makefile", ".ci/run", "pyproject.toml"):
        text = (ROOT / name).read_text()
        assert "pypi" not in text.lower()
        assert "index-url" not in text
