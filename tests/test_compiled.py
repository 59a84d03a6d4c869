"""The compiled build: what it may hold, and that what is tested as such is it."""

from __future__ import annotations

import importlib
import os
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {"roost_crdt": "crdt", "roostd": "daemon", "roost": "client"}
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES: list[str] = CONFIG["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"][
    "modules"
]


def source(module: str) -> str:
    return (ROOT / ROOMS[module.split(".")[0]] / (module.replace(".", "/") + ".py")).read_text()


def test_no_class_that_is_decoded_is_compiled() -> None:
    decoded: set[str] = set()
    for room in ROOMS.values():
        for path in (ROOT / room).rglob("*.py"):
            for shape in re.findall(r"[dD]ecoder\((.*?)\)", path.read_text(), re.DOTALL):
                decoded |= set(re.findall(r"\b[A-Z]\w+", shape))
    assert {"Record", "RowOp", "Frame"} <= decoded, "or the pattern above finds none any more"
    for module in MODULES:
        text = source(module)
        assert "msgspec.Struct" not in text, module
        assert not decoded & set(re.findall(r"^class (\w+)", text, re.MULTILINE)), module


def test_no_join_is_compiled() -> None:
    assert "roost_crdt.rows.register" in MODULES, "whose rows have any length, and are not unpacked"
    joins = {f"roost_crdt.rows.{name}" for name in ("counter", "doc", "map", "rate", "set")}
    assert not joins & set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_what_make_compiled_tests_is_compiled(module: str) -> None:
    """And what the other targets test is not."""
    file = importlib.import_module(module).__file__
    assert file is not None
    assert file.endswith(".so") == ("compiled" in os.environ.get("PYTHONPATH", ""))
