"""The roster: who is a member, and how far each says that it has come.

It is replicated like any other state, as registers under keys that begin with the byte 1, which
no policy can claim and no face shows:

    1 "m" node         [version, node, actor, retired actors, {actor: hlc}, wrote]
    1 "r" actor (hex)  [version, node]: it was removed while it wrote as this actor
    1 "w" actor (hex)  [version, hlc]: what this actor wrote up to there was written again

A member reports the version vector that it holds durably. Each report moves a vector and would
make every other report due again; so a report also names the last hlc that its node `wrote` for
another reason, and `content` takes the reports out of a vector. Whoever meets a node that the
roster lacks enters it, with an empty vector: nobody joins unseen. A removed node is refused by
its actor, by all who know; it comes back under a new one (see reseed).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Final, NamedTuple

from .errors import CorruptData
from .hlc import Stamp, hlc_ms
from .rows.layout import KEY_BYTES_MAX, RESERVED, VALUE, Delta, Rows
from .rows.leaf import KIND_BYTES
from .rows.register import put
from .rows.wire import U64, decoder, encode

__all__ = [
    "MEMBERS",
    "REMOVALS",
    "REWRITTEN",
    "Member",
    "Roster",
    "VersionVector",
    "covers",
    "is_behind",
    "join",
    "member_delta",
    "member_key",
    "outdated",
    "removal_delta",
    "removal_key",
    "rewritten_delta",
    "rewritten_key",
]

MEMBERS: Final = RESERVED + b"m"
REMOVALS: Final = RESERVED + b"r"
REWRITTEN: Final = RESERVED + b"w"
VERSION: Final = 1
_HASHED: Final = b"#"

VersionVector = Mapping[int, int]

_decode_member = decoder(tuple[U64, str, U64, tuple[U64, ...], dict[U64, U64], U64])
_decode_removal = decoder(tuple[U64, str])
_decode_rewritten = decoder(tuple[U64, U64])


class Member(NamedTuple):
    """One node of the roster, as it (or whoever met it first) told."""

    node: str
    actor: int
    retired: tuple[int, ...]
    """Actors that the node gave up; their rows stay until they are dead."""
    vv: VersionVector
    """What it held when it told."""
    wrote: int
    """The hlc of its newest record that was not a report."""
    stamp: Stamp = (0, 0)
    """Of the record that this is from."""

    @property
    def told_ms(self) -> int:
        return hlc_ms(self.stamp[0])


def member_key(node: str) -> bytes:
    name = node.encode()
    if len(MEMBERS) + len(name) > KEY_BYTES_MAX:
        name = _HASHED + blake2b(name, digest_size=16).hexdigest().encode()
    return MEMBERS + name


def removal_key(actor: int) -> bytes:
    return REMOVALS + b"%016x" % actor


def member_delta(rows: Rows, member: Member, stamp: Stamp) -> Delta:
    """Write a member's row; its `stamp` is replaced."""
    body = (VERSION, member.node, member.actor, member.retired, dict(member.vv), member.wrote)
    return put(rows, encode(body), stamp)


def removal_delta(rows: Rows, node: str, stamp: Stamp) -> Delta:
    return put(rows, encode((VERSION, node)), stamp)


def rewritten_key(actor: int) -> bytes:
    return REWRITTEN + b"%016x" % actor


def rewritten_delta(rows: Rows, hlc: int, stamp: Stamp) -> Delta:
    """All that an actor wrote up to `hlc` was written again by the actor of `stamp`.

    Its own stamp is as high as what it tells, so that of two the higher stays; what is stamped far
    ahead is got rid of by a reseed, and must not be the stamp of anything again.
    """
    told = min((hlc, stamp[1]), stamp)
    held = rows.get(VALUE)
    if held is not None and held[:2] >= told:
        return {}
    return put(rows, encode((VERSION, hlc)), told)


def covers(vv: VersionVector, other: VersionVector) -> bool:
    """Whether `vv` holds all that `other` does."""
    return all(vv.get(actor, 0) >= hlc for actor, hlc in other.items())


def is_behind(held: VersionVector, floor: VersionVector) -> bool:
    """Whether merging what is held could bring back what was collected up to `floor`."""
    return any(held.values()) and not covers(held, floor)


def outdated(actor: int, removed: frozenset[int], held: VersionVector, floor: VersionVector) -> str:
    """Why whoever writes as `actor` and holds `held` has to reseed for "{}"; "" if it need not."""
    if actor in removed:
        return "was removed from the members that {} knows"
    return "is behind what {} has collected" if is_behind(held, floor) else ""


def join(vectors: Iterable[VersionVector]) -> dict[int, int]:
    """The least vector that covers them all."""
    joined: dict[int, int] = {}
    for vv in vectors:
        for actor, hlc in vv.items():
            if hlc > joined.get(actor, 0):
                joined[actor] = hlc
    return joined


class Roster:
    """The rows above, decoded. `load` each of them once, and again whenever it has changed."""

    def __init__(self) -> None:
        self.nodes: dict[str, Member] = {}
        """Every node that was ever entered, by name."""
        self.removed: dict[int, str] = {}
        """Actor -> node."""
        self.rewritten: dict[int, int] = {}
        """Actor -> hlc up to which a reseed wrote again what it had written; no vector says so."""

    def load(self, key: bytes, rows: Rows) -> bool:
        """Take in one row; False if this version cannot read it (then nothing changes)."""
        row = rows.get(VALUE)
        if row is None or row[2] != KIND_BYTES:
            return False
        try:
            if key.startswith(REMOVALS):
                _, node = _decode_removal(row[3])
                self.removed[int(key[len(REMOVALS) :], 16)] = node
                return True
            if key.startswith(REWRITTEN):
                _, hlc = _decode_rewritten(row[3])
                self.rewritten[int(key[len(REWRITTEN) :], 16)] = hlc
                return True
            _, node, actor, retired, vv, wrote = _decode_member(row[3])
        except (CorruptData, ValueError):
            return False
        if member_key(node) != key:
            return False
        self.nodes[node] = Member(node, actor, retired, vv, wrote, row[:2])
        return True

    @property
    def members(self) -> dict[str, Member]:
        """M: nodes that were not removed."""
        return {
            node: member for node, member in self.nodes.items() if member.actor not in self.removed
        }

    def unknown(self, actors: Iterable[int]) -> set[int]:
        """Actors of nodes that nobody has entered yet."""
        known = {actor for m in self.nodes.values() for actor in (m.actor, *m.retired)}
        return set(actors) - known - self.removed.keys()

    def coming(self, vv: VersionVector) -> dict[int, int]:
        """`vv` without what will never arrive: what nobody reports of actors that were given up."""
        given_up = {actor for member in self.nodes.values() for actor in member.retired}
        given_up |= self.removed.keys()
        held = join(member.vv for member in self.nodes.values())
        return {a: min(hlc, held.get(a, 0)) if a in given_up else hlc for a, hlc in vv.items()}

    def content(self, vv: VersionVector) -> dict[int, int]:
        """`vv` without the reports at its end: what the members have to agree on."""
        newest = dict(vv)
        for member in self.nodes.values():
            hlc, actor = member.stamp
            if actor == member.actor and newest.get(actor) == hlc:
                newest[actor] = member.wrote
        return newest

    def hash(self) -> bytes:
        """16 bytes, equal at nodes that know the same members under the same actors."""
        members = sorted((member.node, member.actor) for member in self.members.values())
        return blake2b(encode((members, sorted(self.removed))), digest_size=16).digest()
