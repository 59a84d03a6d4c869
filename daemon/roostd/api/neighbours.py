"""What the faces want to know of the neighbours: where clients reach them, what they hold."""

from __future__ import annotations

from roostd.node import Node


def public_url(node: Node, name: str) -> str:
    """The public HTTP URL of a node, as it told; "" if it told none or is not linked."""
    if name == node.config.node.id:
        return node.config.node.public or ""
    return node.gossip.public_url(name)


def holders(node: Node, hlc: int) -> int:
    """Linked neighbours that have shown to hold this node's records up to `hlc`."""
    return node.gossip.holders(node.store.actor, hlc)


def newest(node: Node) -> int:
    """The hlc of this node's newest record; 0 if it has written none."""
    return int(node.store.vv.get(node.store.actor, 0))
