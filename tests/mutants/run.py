"""Mutants of the merge code: change one thing in rows/*.py and see whether a test notices.

    python tests/mutants/run.py [--every N] [--workers N] [FILE...]

`make mutants` runs all of them. Deterministic: the same sources give the same mutants in the same
order, and hypothesis draws from seed 0. A mutant is one changed comparison, boolean, arithmetic
operator, integer, condition, `max`/`min` or dropped statement of a function; assertions and the
texts of errors are left alone. It is killed when a test fails (its module's own tests run first,
then the laws, the oracle and the records). What lives is printed with its place: either a test is
missing, or nobody could tell the difference, and `EQUIVALENT` says why.

Each mutant runs in a process forked before the core is imported, which reads the mutated source
in place of the file; no file is changed.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import msgspec
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ROWS = ROOT / "crdt" / "roost_crdt" / "rows"
TESTS = ROOT / "tests" / "crdt"
LATER = ("test_rows.py", "test_rows_laws.py", "test_rows_oracle.py", "test_record.py")
LATER += ("test_values.py", "test_digest.py")
SECONDS_MAX = 120
"""A mutant that loops is killed too."""

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
}
EQUIVALENT: dict[tuple[str, str], str] = {
    (
        "return {**rows, **delta} if delta else rows",
        "{**rows, **delta} if delta else rows -> {**rows, **delta}",
    ): "a copy that nobody changes",
    ("if good:", "if good -> if True"): "what the check of text spares is refused anyway",
    (
        "elif kind > KIND_JSON or (kind == KIND_DEAD and data):",
        "kind > KIND_JSON -> kind >= KIND_JSON",
    ): "JSON has been dealt with before",
    ("if row[2] != 1:", "if row[2] != 1 -> if True"): "a string is checked, and always good",
    ("kept = a if a > b else b", "a > b -> a >= b"): "equal rows have been returned before",
    ("if a == b:", "if a == b -> if False"): "a short cut: the rest gives the same",
    (
        "value = a if a[2:4] > b[2:4] else b",
        "4 -> 5",
    ): "the values differ, what follows is not read",
    ("last = -1", "1 -> 2"): "actors are not negative",
    ("a0 if a0 > b0 else b0,", "a0 > b0 -> a0 >= b0"): "of equal numbers either is kept",
    ("a1 if a1 > b1 else b1,", "a1 > b1 -> a1 >= b1"): "of equal numbers either is kept",
    ("a2 if a2 > b2 else b2,", "a2 > b2 -> a2 >= b2"): "of equal numbers either is kept",
    ("a3 if a3 > b3 else b3,", "a3 > b3 -> a3 >= b3"): "of equal numbers either is kept",
}
"""(line, change) of mutants that nobody can tell from the original, with the reason."""


class Mutant(NamedTuple):
    """One changed module."""

    file: str
    function: str
    line: int
    text: str
    change: str
    source: str


def _changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What a node can be changed into, each with a description."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in COMPARISONS:
            changed = copy.deepcopy(node)
            changed.ops = [COMPARISONS[type(op)]()]
            yield f"{ast.unparse(node)} -> {ast.unparse(changed)}", changed
        case ast.BoolOp(op=op):
            changed = copy.deepcopy(node)
            changed.op = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield f"{ast.unparse(node)} -> {ast.unparse(changed)}", changed
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield f"{ast.unparse(node)} -> {ast.unparse(operand)}", operand
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            changed = copy.deepcopy(node)
            changed.op = OPERATORS[type(op)]()
            yield f"{ast.unparse(node)} -> {ast.unparse(changed)}", changed
        case ast.Call(func=ast.Name(id="max" | "min" | "any" as name)):
            changed = copy.deepcopy(node)
            changed.func = ast.Name({"max": "min", "min": "max", "any": "all"}[name], ast.Load())
            yield f"{ast.unparse(node)} -> {ast.unparse(changed)}", changed
        case ast.Constant(value=bool(value)):
            yield f"{value} -> {not value}", ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield f"{value} -> {value + 1}", ast.Constant(value + 1)
        case ast.IfExp(body=body, orelse=orelse):
            yield f"{ast.unparse(node)} -> {ast.unparse(body)}", body
            yield f"{ast.unparse(node)} -> {ast.unparse(orelse)}", orelse
        case ast.If():
            for value in (True, False):
                changed = copy.deepcopy(node)
                changed.test = ast.Constant(value)
                yield f"if {ast.unparse(node.test)} -> if {value}", changed
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise():
            yield f"{ast.unparse(node)[:60]} -> pass", ast.Pass()
        case ast.Assign(targets=[ast.Subscript()]):
            yield f"{ast.unparse(node)[:60]} -> pass", ast.Pass()


class _Swap(ast.NodeTransformer):
    """Puts another node in the place of the `at`-th one that is looked at."""

    def __init__(self, at: int, new: ast.AST) -> None:
        self._left, self._new = at, new

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if getattr(node, "place", None) == self._left:
            return self._new
        return super().generic_visit(node)


def _numbered(tree: ast.Module) -> list[tuple[str, ast.AST]]:
    """Every node of a function that may be changed, by function; each gets its number."""
    found: list[tuple[str, ast.AST]] = []

    def walk(function: str, node: ast.AST) -> None:
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "args") and not isinstance(node, ast.Call):
                continue
            for child in value if isinstance(value, list) else [value]:
                if not isinstance(child, ast.expr | ast.stmt | ast.comprehension | ast.keyword):
                    continue
                if isinstance(child, ast.Assert | ast.JoinedStr):
                    continue
                child.place = len(found)  # type: ignore[attr-defined, union-attr]
                found.append((function, child))
                if not isinstance(child, ast.Raise):
                    walk(function, child)

    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef):
            walk(statement.name, statement)
    return found


def mutants_of(path: Path) -> Iterator[Mutant]:
    """All mutants of a module, in order of their places."""
    text = path.read_text()
    tree, lines = ast.parse(text), text.splitlines()
    for place, (function, node) in enumerate(_numbered(tree)):
        for change, new in _changes(node):
            changed = ast.fix_missing_locations(_Swap(place, new).visit(copy.deepcopy(tree)))
            source = ast.unparse(changed)
            line = getattr(node, "lineno", 0)
            yield Mutant(path.name, function, line, lines[line - 1].strip(), change, source)


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds one module and loads another source for it."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self._name, self._path, self._source = name, path, source

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self._name:
            return None
        places = [str(self._path.parent)] if self._path.name == "__init__.py" else None
        spec = importlib.machinery.ModuleSpec(name, self, origin=str(self._path))
        spec.submodule_search_locations = places
        return spec

    def exec_module(self, module: Any) -> None:
        exec(compile(self._source, str(self._path), "exec"), module.__dict__)


def tests_for(file: str) -> list[str]:
    stem = "" if file == "__init__.py" else file.removesuffix(".py")
    own = sorted(TESTS.glob(f"test_rows_{stem}*.py")) if stem else []
    later = [TESTS / name for name in LATER]
    return [str(path) for path in dict.fromkeys([*own, *later])]


def try_out(mutant: Mutant, *, loud: bool = False) -> int:
    """Fork, import the mutant, run the tests; the child's pid. Exit status 0: it lives."""
    pid = os.fork()
    if pid:
        return pid
    if not loud:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
    signal.alarm(SECONDS_MAX)
    name = "roost_crdt.rows" + ("" if mutant.file == "__init__.py" else f".{mutant.file[:-3]}")
    sys.meta_path.insert(0, _Mutated(name, ROWS / mutant.file, mutant.source))
    os.chdir(ROOT)
    status = 1
    try:
        options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        status = int(pytest.main([*options, *tests_for(mutant.file)]))
    finally:
        if sys.exc_info()[1] is not None:
            sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        os._exit(status)


def hunt(mutants: Sequence[Mutant], workers: int) -> list[Mutant]:
    """Try all out, a few at a time; those that live."""
    running: dict[int, Mutant] = {}
    alive: list[Mutant] = []
    waiting = list(reversed(mutants))
    began_s = time.monotonic()
    while waiting or running:
        while waiting and len(running) < workers:
            mutant = waiting.pop()
            running[try_out(mutant)] = mutant
        pid, status = os.wait()
        mutant = running.pop(pid)
        if status == 0:
            alive.append(mutant)
            why = EQUIVALENT.get((mutant.text, mutant.change), "a test is missing?")
            print(f"alive: rows/{mutant.file}:{mutant.line} {mutant.change} ({why})")
        done = len(mutants) - len(waiting) - len(running)
        if done % 50 == 0:
            print(f"{done} of {len(mutants)} after {time.monotonic() - began_s:.0f} s", flush=True)
    return alive


def check_original(path: Path) -> None:
    """The tests pass on the module as it is; else every mutant would seem to be killed."""
    source = ast.unparse(ast.parse(path.read_text()))
    _, status = os.waitpid(try_out(Mutant(path.name, "", 0, "", "", source), loud=True), 0)
    if status:
        sys.exit(f"rows/{path.name}: its tests fail without any mutant")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", help="names in rows/ (default: all)")
    parser.add_argument("--every", type=int, default=1, help="only each Nth mutant")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    assert "roost_crdt" not in sys.modules, "mutants have to be imported first"
    print(f"hypothesis {hypothesis.__version__}, msgspec {msgspec.__version__}")
    paths = [
        path
        for path in sorted(ROWS.glob("*.py"))
        if not options.files or path.name in options.files
    ]
    total = killed = 0
    for path in paths:
        check_original(path)
        chosen = list(mutants_of(path))[:: options.every]
        alive = hunt(chosen, options.workers)
        equal = [m for m in alive if (m.text, m.change) in EQUIVALENT]
        count = len(chosen) - len(equal)
        dead = len(chosen) - len(alive)
        total, killed = total + count, killed + dead
        print(f"rows/{path.name}: {dead} of {count} killed, {len(equal)} equivalent", flush=True)
    print(f"{killed} of {total} mutants killed ({100 * killed / max(1, total):.1f} %)")
    return 0 if killed == total else 1


if __name__ == "__main__":
    sys.exit(main())
