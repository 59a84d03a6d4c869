"""`pytest tests/sim --rewrite-scenarios` writes down the traces that the scenarios have now."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-scenarios", action="store_true", help="accept the traces of now")
