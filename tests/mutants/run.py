"""Mutants of the merge code: change one thing in rows/*.py and see whether a test notices.

    python tests/mutants/run.py [--every N] [--lines N,N...] [--workers N] [FILE...]

`make mutants` runs all of them. Deterministic: the same sources give the same mutants in the same
order, and hypothesis draws from seed 0. A mutant is one changed comparison, boolean, arithmetic
operator, integer, condition, `max`/`min` or dropped statement of a function; assertions and the
texts of errors are left alone. It is killed when a test fails (its module's own tests run first,
then the laws, the oracle and the records). What lives is printed with its place: either a test is
missing, or nobody could tell the difference, and `EQUIVALENT` says why.

Each mutant runs in a process forked when the tests have been collected and have passed once; there
the function gets its changed code. No file is changed.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import inspect
import os
import resource
import signal
import sys
import time
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import hypothesis
import msgspec
import pytest

from roost_crdt.rows.layout import TYPE_NAMES

ROOT = Path(__file__).resolve().parent.parent.parent
ROWS = ROOT / "crdt" / "roost_crdt" / "rows"
TESTS = ROOT / "tests" / "crdt"
LATER = ("test_rows.py", "test_rows_laws.py", "test_rows_oracle.py", "test_record.py")
LATER += ("test_values.py", "test_digest.py")
PART_OF = {
    "counter.py": ("counter", "map", "doc"),
    "doc.py": ("doc",),
    "leaf.py": ("register", "set", "map"),
    "map.py": ("map",),
    "rate.py": ("rate",),
    "register.py": ("register",),
    "set.py": ("set", "doc"),
}
"""Types that a module has a part in, where not in all."""
SECONDS_MAX = 300
"""Of processor time: a mutant that loops is killed too, and a busy machine kills none."""
BYTES_MAX = 4 << 30

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
    ("if row[2] != 1:", "2 -> 3"): "the same: what stands there is never 1",
    (
        "if row[4:6] < row[:2] and row[4:] != NO_EXPIRY:",
        "6 -> 7",
    ): "a longer tuple is not less than what it begins with",
    (
        "if row[4:6] < row[:2] and row[4:] != NO_EXPIRY:",
        "4 -> 5",
    ): "without an expiry the row is made again, equal",
    (
        "if not a[4] and not b[4] and (a[0] != b[0] or a[1] != b[1]):",
        "if not a[4] and (not b[4]) and (a[0] != b[0] or a[1] != b[1]) -> if False",
    ): "a short cut: the rest gives the same",
    (
        "if not a[4] and not b[4] and (a[0] != b[0] or a[1] != b[1]):",
        "a[0] != b[0] or a[1] != b[1] -> a[0] != b[0] and a[1] != b[1]",
    ): "a short cut: the rest gives the same",
    (
        "return a if a > b else b  # the hot path: no expiry, two stamps",
        "a > b -> a >= b",
    ): "their stamps differ",
    ("return a if a > b else b", "a > b -> a >= b"): "their stamps differ",
    (
        "value = a if a_stamp > b_stamp else b",
        "a_stamp > b_stamp -> a_stamp >= b_stamp",
    ): "of one stamp the values are equal, or chosen by themselves",
    (
        "value = a if encode(a[2:4]) > encode(b[2:4]) else b",
        "encode(a[2:4]) > encode(b[2:4]) -> encode(a[2:4]) >= encode(b[2:4])",
    ): "the values differ",
    (
        "expiry = a_expiry if a_expiry > b_expiry else b_expiry",
        "a_expiry > b_expiry -> a_expiry >= b_expiry",
    ): "of equal ones either is kept",
    (
        "if expiry[:2] < value[:2]:",
        "2 -> 3",
    ): "a longer tuple is not less than what it begins with",
    (
        "if not expires_ms and type(value) is bytes:",
        "if not expires_ms and type(value) is bytes -> if False",
    ): "a short cut: the rest gives the same",
    ("kept = a if a > b else b", "a > b -> a >= b"): "equal rows have been returned before",
    ("if a == b:", "if a == b -> if False"): "a short cut: the rest gives the same",
    (
        "value = a if a[2:4] > b[2:4] else b",
        "4 -> 5",
    ): "the values differ, what follows is not read",
    ("last = -1", "1 -> 2"): "actors are not negative",
    (
        "low, high = (a, b) if a < b else (b, a)",
        "a < b -> a <= b",
    ): "equal rows have been returned before",
    (
        "if part.startswith(prefix) and (found is None or part > found):",
        "part > found -> part >= found",
    ): "no two parts are equal",
    (
        "tag = part[0] if part else 0",
        "0 -> 1",
    ): "a head of no bytes is refused like an unknown tag",
    (
        "compact: bytes = msgspec.json.format(text, indent=-1)",
        "1 -> 2",
    ): "any negative number means compact",
    (
        'if b"{" in compact:',
        "if b'{' in compact -> if True",
    ): "a short cut: without an object nothing is twice",
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


def tests_for(file: str) -> list[str]:
    """Paths of the tests that may notice a change in a module, its own ones first."""
    stem = "doc" if file == "__init__.py" else file.removesuffix(".py")
    own = sorted(TESTS.glob(f"test_rows_{stem}*.py"))
    later = [TESTS / name for name in LATER]
    return [str(path) for path in dict.fromkeys([*own, *later])]


def chosen_items(items: Sequence[pytest.Item], file: str) -> list[pytest.Item]:
    """The tests for a module in their order, without those of types that it has no part in."""
    order = {path: at for at, path in enumerate(tests_for(file))}
    concerned = PART_OF.get(file, tuple(TYPE_NAMES.values()))
    found = []
    for item in items:
        name = getattr(item, "callspec", None) and item.callspec.params.get("name")  # type: ignore[attr-defined]
        of_another_type = name in TYPE_NAMES.values() and name not in concerned
        if str(item.path) in order and not of_another_type:
            found.append(item)
    return sorted(found, key=lambda item: order[str(item.path)])


def apply(mutant: Mutant) -> None:
    """Give the function the mutant's code; whoever has imported it has it too."""
    name = "roost_crdt.rows" + ("" if mutant.file == "__init__.py" else f".{mutant.file[:-3]}")
    function = inspect.unwrap(getattr(importlib.import_module(name), mutant.function))
    assert inspect.isfunction(function)
    module = compile(mutant.source, str(ROWS / mutant.file), "exec")
    (code,) = (
        const
        for const in module.co_consts
        if isinstance(const, types.CodeType) and const.co_name == mutant.function
    )
    function.__code__ = code


def passes(items: Sequence[pytest.Item]) -> bool:
    """Run tests up to the first that fails."""
    session = items[0].session
    for at, item in enumerate(items):
        following = items[at + 1] if at + 1 < len(items) else None
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            return False
    return True


def try_out(mutant: Mutant, items: Sequence[pytest.Item]) -> int:
    """Fork, change the function, run the tests; the child's pid. Exit status 0: it lives."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        plugins = items[0].config.pluginmanager
        plugins.unregister(name="terminalreporter")
        resource.setrlimit(resource.RLIMIT_AS, (BYTES_MAX, BYTES_MAX))
        signal.setitimer(signal.ITIMER_PROF, SECONDS_MAX)
        apply(mutant)
        status = 0 if passes(items) else 1
    finally:
        os._exit(status)


def hunt(mutants: Sequence[Mutant], items: Sequence[pytest.Item], workers: int) -> list[Mutant]:
    """Try all out, a few at a time; those that live."""
    running: dict[int, Mutant] = {}
    alive: list[Mutant] = []
    waiting = list(reversed(mutants))
    began_s = time.monotonic()
    while waiting or running:
        while waiting and len(running) < workers:
            mutant = waiting.pop()
            running[try_out(mutant, items)] = mutant
        pid, status = os.wait()
        mutant = running.pop(pid)
        if status == 0:
            alive.append(mutant)
            why = EQUIVALENT.get((mutant.text, mutant.change), "a test is missing?")
            print(f"alive: rows/{mutant.file}:{mutant.line} {mutant.change} ({why})", flush=True)
        done = len(mutants) - len(waiting) - len(running)
        if done % 50 == 0:
            print(f"{done} of {len(mutants)} after {time.monotonic() - began_s:.0f} s", flush=True)
    return alive


class Hunter:
    """A plugin of pytest: what it has collected and warmed up is forked for each mutant."""

    def __init__(self, paths: Sequence[Path], every: int, lines: set[int], workers: int) -> None:
        self.paths, self.every, self.lines, self.workers = paths, every, lines, workers
        self.total = self.killed = 0
        self.tried = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if not passes(session.items):
            return True  # every mutant would seem to be killed
        self.tried = True
        for path in self.paths:
            chosen = list(mutants_of(path))[:: self.every]
            chosen = [m for m in chosen if not self.lines or m.line in self.lines]
            alive = hunt(chosen, chosen_items(session.items, path.name), self.workers)
            equal = [m for m in alive if (m.text, m.change) in EQUIVALENT]
            count, dead = len(chosen) - len(equal), len(chosen) - len(alive)
            self.total, self.killed = self.total + count, self.killed + dead
            print(
                f"rows/{path.name}: {dead} of {count} killed, {len(equal)} equivalent", flush=True
            )
        return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="*", help="names in rows/ (default: all)")
    parser.add_argument("--every", type=int, default=1, help="only each Nth mutant")
    parser.add_argument("--lines", default="", help="only mutants of these lines")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    lines = {int(line) for line in options.lines.split(",") if line}
    print(f"hypothesis {hypothesis.__version__}, msgspec {msgspec.__version__}")
    paths = [
        path
        for path in sorted(ROWS.glob("*.py"))
        if not options.files or path.name in options.files
    ]
    # What fails is not made smaller, and nothing is remembered from one mutant to another.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    slow = (hypothesis.HealthCheck.too_slow,)
    hypothesis.settings.register_profile(
        "mutants",
        max_examples=60,
        deadline=None,
        database=None,
        phases=phases,
        suppress_health_check=slow,
    )
    os.chdir(ROOT)
    hunter = Hunter(paths, options.every, lines, options.workers)
    arguments = ["-q", "-p", "no:cacheprovider", "--timeout=0"]
    arguments += ["--hypothesis-seed=0", "--hypothesis-profile=mutants"]
    arguments += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    arguments += dict.fromkeys(test for path in paths for test in tests_for(path.name))
    status = pytest.main(arguments, plugins=[hunter])
    if not hunter.tried:
        print("the tests fail without any mutant")
        return int(status) or 1
    share = 100 * hunter.killed / max(1, hunter.total)
    print(f"{hunter.killed} of {hunter.total} mutants killed ({share:.1f} %)")
    return 0 if hunter.killed == hunter.total else 1


if __name__ == "__main__":
    sys.exit(main())
