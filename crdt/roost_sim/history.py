"""What clients did to global keys and what they were told, and what may follow from it.

An operation that was answered has a certificate: the node that said so and when. Whoever reads a
value is told that it is durable, so a read gives its operations certificates as well. A disk that
lies or is taken back to an old copy voids the certificates of its node from then on (no design
survives that); every other answered operation must be there for ever.

What must hold at the end is computed from the operations alone:

    register, map field   the highest stamp wins; an operation without a certificate may have
                          happened or not
    counter               each increment is a power of two of its own, so the value says which
                          increments it holds; a reset takes away exactly what it observed
    set                   an add is there unless a remove observed it (add wins)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

Stamp = tuple[int, int]


@dataclass(slots=True, eq=False)
class Op:
    """One operation of one client."""

    number: int
    node: str
    key: bytes
    kind: str
    at_ms: float
    name: bytes = b""
    """Field of a map, element of a set."""
    value: bytes | None = None
    bit: int = 0
    stamp: Stamp = (0, 0)
    observed: int = 0
    """A reset: the bits that it took away."""
    removes: tuple[Stamp, ...] = ()
    """A remove: the newest add of each actor that it saw."""
    expires_ms: int = 0
    """Wall-clock milliseconds, 0 = never. Of a counter: what EXPIRE said."""
    outcome: str = "unknown"
    again: bool = False
    """A reseed has written it again: whoever removed it meanwhile may have collected it since."""
    certificates: dict[str, float] = field(default_factory=dict)

    @property
    def sure(self) -> bool:
        return bool(self.certificates)

    def certify(self, node: str, at_ms: float) -> None:
        self.certificates.setdefault(node, at_ms)


class History:
    """All operations of a run, by key."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.by_key: dict[bytes, list[Op]] = {}

    def begin(self, node: str, key: bytes, kind: str, at_ms: float) -> Op:
        op = Op(len(self.ops), node, key, kind, at_ms)
        self.ops.append(op)
        return op

    def happened(self, op: Op) -> None:
        """The operation was carried out in memory: from here on it may survive."""
        self.by_key.setdefault(op.key, []).append(op)

    def void(self, node: str, since_ms: float) -> None:
        """What this node promised since then it cannot keep."""
        for op in self.ops:
            if op.certificates.get(node, -1.0) >= since_ms:
                del op.certificates[node]

    # --- reads

    def saw_register(self, key: bytes, name: bytes, value: bytes, node: str, at_ms: float) -> None:
        for op in self.by_key.get(key, ()):
            if op.name == name and op.value == value and op.kind == "put":
                op.certify(node, at_ms)

    def saw_bits(self, key: bytes, bits: int, node: str, at_ms: float) -> None:
        for op in self.by_key.get(key, ()):
            if op.bit & bits:
                op.certify(node, at_ms)

    # --- what must be there

    def expired(self, key: bytes, value: object, now_ms: int) -> int | None:
        """The number of the write of `value` if that has expired at `now_ms`."""
        for op in self.by_key.get(key, ()):
            if value is not None and op.value == value and 0 < op.expires_ms <= now_ms:
                return op.number
        return None

    def check_latest(self, key: bytes, name: bytes, value: bytes | None, now_ms: int = 0) -> str:
        """ "" if `value` is what the writes to a register or a field leave behind at `now_ms`."""
        writes = [op for op in self.by_key.get(key, ()) if op.name == name or op.kind == "clear"]
        floor = max((op.stamp for op in writes if op.sure), default=(0, 0))
        allowed = [op for op in writes if op.stamp >= floor]
        possible = {None if 0 < op.expires_ms <= now_ms else op.value for op in allowed}
        if floor == (0, 0):
            possible.add(None)
        if value in possible:
            return ""
        newest = [f"{op.value!r} (op {op.number} at {op.node})" for op in allowed]
        return f"{_shown(key, name)} is {value!r}, expected {' or '.join(newest) or 'nothing'}"

    def check_counter(self, key: bytes, value: int, now_ms: int = 0) -> str:
        ops = self.by_key.get(key, ())
        adds = [op for op in ops if op.bit]
        gone = may_go = 0
        for op in ops:
            if op.kind == "reset":
                may_go |= op.observed
                if op.sure:
                    gone |= op.observed
        known = sum(op.bit for op in adds)
        if any(op.kind == "expire" and op.expires_ms <= now_ms for op in ops):
            may_go = known  # a whole life may be over
        if value < 0 or value & ~known:
            return f"{_shown(key)} is {value:#x}: increments that nobody made ({known:#x} are)"
        for op in adds:
            there = bool(value & op.bit)
            if there and op.bit & gone and not op.again:
                return f"{_shown(key)} holds op {op.number}, which a reset took away"
            if not there and op.sure and not op.bit & may_go:
                return f"{_shown(key)} lacks op {op.number} of {op.node}, which was answered"
        return ""

    def check_set(self, key: bytes, members: Iterable[bytes]) -> str:
        ops = self.by_key.get(key, ())
        present = set(members)
        for element in sorted({op.name for op in ops if op.kind == "add"} | present):
            adds = [op for op in ops if op.kind == "add" and op.name == element]
            sees = [op for op in ops if op.kind == "remove" and op.name == element]
            certain = [op for op in adds if op.sure and not any(_saw(r, op) for r in sees)]
            possible = [
                op for op in adds if op.again or not any(r.sure and _saw(r, op) for r in sees)
            ]
            if element in present and not possible:
                return f"{_shown(key, element)} is there though every add of it was removed"
            if element not in present and certain:
                return (
                    f"{_shown(key, element)} is gone; op {certain[0].number} of "
                    f"{certain[0].node} added it and no remove saw that"
                )
        return ""


def _saw(remove: Op, add: Op) -> bool:
    hlc, actor = add.stamp
    return any(seen[1] == actor and seen[0] >= hlc for seen in remove.removes)


def _shown(key: bytes, name: bytes = b"") -> str:
    return key.decode() + (f"[{name.decode()}]" if name else "")
