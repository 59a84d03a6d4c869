"""Collection of dead rows: when it can no longer bring anything back (DESIGN 7).

A tombstone may go once nothing older than it can still arrive. "Every member holds the tombstone"
is not enough: an older put may be in flight between two others and would enter as new here. So:

    1. Scan for rows that are dead and older than the grace period; remember each with its hash.
    2. VV0 = the own vector. Wait until every member has reported to hold VV0. From its report on,
       a member's writes are later than every tombstone in VV0. Rows that came without a vector
       (repairs, a snapshot under way) may be dead by a tombstone that is not in the own vector
       yet, and that others write without: a round begins once it is.
    3. J = the join of those reports: all that was written before them. Wait until it is here.
    4. Drop the rows that are still as they were, and raise gc_floor to VV0.

Whom step 2 waits for is read from the roster each time. Someone who entered meanwhile is waited
for too. If someone was removed, the round begins again: only a member that knows of the removal
no longer takes what the removed one had in flight.

Reports are left out of VV0 (`Roster.content`); they are never dead, and would chase each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from hashlib import blake2b

from . import document
from .hlc import Stamp, hlc_ms
from .members import Member, Roster, VersionVector, covers, join
from .rows import counter, doc, encode_row, row_hlc
from .rows import map as map_rows
from .rows import set as set_rows
from .rows.expiry import head_expiry, is_hidden
from .rows.layout import (
    HEAD,
    RESERVED,
    TAG_WINDOW,
    TYPE_COUNTER,
    TYPE_DOC,
    TYPE_MAP,
    TYPE_RATE,
    TYPE_SET,
    Delta,
    Part,
    Rows,
    birth_of,
)
from .rows.wire import encode
from .values import dead_parts

__all__ = ["Collection", "Stage", "dead_rows", "end_life", "head_actor"]

ENDED_BY_HEAD = (TYPE_COUNTER, TYPE_SET, TYPE_MAP, TYPE_DOC)
"""Types whose rows an expiry in the head hides. (Rate windows die by the clock as well.)"""


class Stage(StrEnum):
    SCAN = "scan"
    """Looking for what could go."""
    REPORTS = "reports"
    """Waiting until every member has reported VV0."""
    JOIN = "join"
    """Waiting until this node holds all that the reports cover."""
    DROP = "drop"
    """What is still the same may go."""


def dead_rows(
    type_code: int, key: bytes, rows: Rows, now_ms: int, grace_ms: int
) -> dict[Part, bytes]:
    """Parts of a key that may go one day, each with a hash of its row and, for a document's, of
    what could show it again (see `doc.builders`).

    `now_ms` is the time at which no node's clock shows them any more: the wall clock less
    `clock_offset_max_ms`. Rate windows need no grace, nobody writes them late. What only an
    expiry of the whole key hides is not dead (see `end_life`).
    """
    if key.startswith(RESERVED):
        return {}
    old_ms = now_ms - grace_ms
    found: dict[Part, bytes] = {}
    builders: list[tuple[int, Part, int]] | None = None
    shown = rows
    if type_code in ENDED_BY_HEAD and HEAD in rows:
        shown = {**rows, HEAD: (*rows[HEAD][:-1], 0)}
    for part in dead_parts(type_code, shown, now_ms):
        row = rows[part]
        window = type_code == TYPE_RATE and part[0] == TAG_WINDOW
        if window or hlc_ms(row_hlc(type_code, part, row)) <= old_ms:
            body = encode_row(type_code, part, row)
            if type_code == TYPE_DOC and part != HEAD:
                builders = doc.builders(rows) if builders is None else builders
                body += encode([b for b in builders if b[0] <= birth_of(part)])
            found[part] = blake2b(body, digest_size=16).digest()
    if len(found) < len(rows) or (type_code in ENDED_BY_HEAD and head_expiry(rows)[2]):
        found.pop(HEAD, None)  # it hides rows that stay, or would hide those of the next life
    return found


def end_life(type_code: int, rows: Rows, vv: VersionVector, stamp: Stamp, now_ms: int) -> Delta:
    """Take away what an expiry of the whole key hides at `now_ms`, as the next write would.

    Nodes collect at different times. Where one has dropped rows that are merely hidden, it also
    forgets to take them away when the key's next life begins, and they would count again where
    they are still held. And a head that still says that the key is over would hide the next life
    of a node that has dropped it. So one node (`head_actor`'s) writes the end, which leaves a head
    without expiry, before anyone collects.
    """
    if type_code not in ENDED_BY_HEAD or not is_hidden(rows, now_ms):
        return {}
    if type_code == TYPE_COUNTER:
        return counter.end(rows, stamp)
    if type_code == TYPE_SET:
        return set_rows.add(rows, (), stamp, now_ms, vv=vv)
    if type_code == TYPE_DOC:
        return doc.end(rows, vv, stamp, now_ms, yjs=document)
    return map_rows.put(rows, {}, stamp, now_ms)


def head_actor(rows: Rows) -> int:
    """Who set the key's expiry; 0 if nobody did."""
    return head_expiry(rows)[1]


class Collection:
    """One node's round. Reads the roster, changes nothing; the shell scans, drops and stores."""

    def __init__(self, node: str, roster: Roster, rows_max: int) -> None:
        self.node = node
        self.roster = roster
        self.rows_max = rows_max
        self.stage = Stage.SCAN
        self.vv0: dict[int, int] = {}
        self.candidates: dict[bytes, dict[Part, bytes]] = {}
        """Key -> part -> hash of the row."""
        self.count = 0
        self._joined: dict[int, int] = {}
        self._reported: frozenset[tuple[str, int]] = frozenset()
        self._members: frozenset[tuple[str, int]] = frozenset()

    def found(self, key: bytes, parts: Mapping[Part, bytes]) -> bool:
        """A key's dead rows, while scanning; False once the round has enough of them."""
        assert self.stage is Stage.SCAN
        if parts:
            self.candidates[key] = dict(parts)
            self.count += len(parts)
        return self.count < self.rows_max

    def begin(self, vv: VersionVector, rows_vv: VersionVector) -> bool:
        """The scan is over; `vv` is the own vector, durable. `rows_vv` is what rows that came
        without a vector may show: where `vv` lacks some of it that can still arrive, the scan
        was for nothing, and False is returned."""
        assert self.stage is Stage.SCAN
        if not covers(vv, self.roster.coming(rows_vv)):
            self.end()
            return False
        self.vv0 = self.roster.content(vv)
        self._members = self._now()
        self.stage = Stage.REPORTS if self.candidates else Stage.SCAN
        return True

    def step(self, vv: VersionVector) -> Stage:
        """Go on as far as reports and the own vector allow."""
        if self.stage in (Stage.REPORTS, Stage.JOIN) and self._members - self._now():
            self.vv0 = self.roster.content(vv)
            self.stage = Stage.REPORTS
        self._members = self._now()
        if self.stage is Stage.JOIN and self._members - self._reported:
            self.stage = Stage.REPORTS
        if self.stage is Stage.REPORTS:
            reports = self._reports()
            if all(covers(report.vv, self.vv0) for report in reports):
                self._joined = join(report.vv for report in reports)
                self._reported = self._members
                self.stage = Stage.JOIN
        if self.stage is Stage.JOIN and self.holds_join(vv) and not self._now() - self._reported:
            self.stage = Stage.DROP
        return self.stage

    def holds_join(self, vv: VersionVector) -> bool:
        """Whether all that the members had, when they reported, is here."""
        return covers(vv, self._joined)

    def drop(self, key: bytes, unchanged: Mapping[Part, bytes]) -> list[Part]:
        """Parts of a candidate that may go; `unchanged` is what `dead_rows` says of it now."""
        assert self.stage is Stage.DROP
        held = self.candidates.pop(key, {})
        parts = [part for part, seen in held.items() if unchanged.get(part) == seen]
        if HEAD in parts and len(unchanged) > len(parts):
            parts.remove(HEAD)
        return parts

    def end(self) -> None:
        """Everything is dropped; the next round may scan."""
        self.stage = Stage.SCAN
        self.candidates = {}
        self.count = 0

    def floor(self, floor: VersionVector) -> dict[int, int]:
        """What `gc_floor` becomes, before anything is dropped."""
        return join((floor, self.vv0))

    def waits_for(self) -> list[str]:
        """Members whose report the round still lacks."""
        if self.stage is not Stage.REPORTS:
            return []
        return [report.node for report in self._reports() if not covers(report.vv, self.vv0)]

    def _reports(self) -> Sequence[Member]:
        return [m for m in self.roster.members.values() if m.node != self.node]

    def _now(self) -> frozenset[tuple[str, int]]:
        return frozenset((member.node, member.actor) for member in self._reports())
