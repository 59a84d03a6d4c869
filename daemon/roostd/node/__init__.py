"""The node: wires the rooms together, and what keys mean here."""

from roostd.node.node import Node

__all__ = ["Node"]
