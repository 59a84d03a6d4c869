"""The versions that clients are told."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

REDIS_VERSION = "7.0.15"
"""The Redis whose replies these commands follow; client libraries look at it."""

try:
    VERSION = version("roost")
except PackageNotFoundError:  # run from a tree that is not installed
    VERSION = "0"
