"""Stores for tests, closed when each ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from store_kit import Stores

from roostd.store import Store


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    made = Stores(tmp_path)
    yield made
    for store in made.opened:
        store.close(clean=False)


@pytest.fixture
def store(stores: Stores) -> Store:
    return stores.open()
