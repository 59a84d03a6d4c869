"""Reseed: what a node held and others lack, written again onto the rows of a neighbour.

A node that is behind what others collected may not merge: its rows could bring back the dead. It
gives them up, takes a neighbour's, and writes again under a new actor what the neighbour lacked,
whoever had written it: of others' writes this node may have been the only holder. `rewrite` says
how: everything as it was, under the stamps and actors that it had (somebody who took records that
the neighbour lacks may still pass them on, and joined with what is written here they count once),
also resets and removals of what is still on its way to the neighbour; clears as far as its rows
know what they observed. With two exceptions, both where the neighbour has no row any more:

- a register or field may have been deleted later, and that deletion collected: it is written above
  all that was collected, or it would stay hidden where the deletion is still held;
- of a counter, what the neighbour had counted is reset, or it would come back.

Stamps that were born far ahead are got rid of: what they stamp is written as new.

Where nothing was collected in between, the result shows what a plain join would have shown.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final, NamedTuple

from .hlc import Stamp, hlc_ms
from .rows import doc, kept_row, rate, row_hlc
from .rows.expiry import NO_EXPIRY
from .rows.layout import (
    HEAD,
    TAG_ACTOR,
    TAG_DOC,
    TAG_DOC_ERASURE,
    TAG_FIELD,
    TAG_FIELD_COUNTER,
    TAG_WINDOW,
    TYPE_COUNTER,
    TYPE_DOC,
    TYPE_MAP,
    TYPE_RATE,
    TYPE_REGISTER,
    TYPE_SET,
    VALUE,
    Delta,
    Part,
    Row,
    Rows,
    actor_of,
    actor_part,
    birth_of,
    doc_part,
    erasure_part,
    field_counter_part,
    field_of,
    window_index,
)
from .rows.leaf import KIND_DEAD

__all__ = ["Lacking", "is_lacking", "rewrite", "writers"]

_COUNTS: Final = (TAG_ACTOR, TAG_FIELD_COUNTER)


class Lacking(NamedTuple):
    """What the neighbour lacks of what this node held."""

    actors: Collection[int]
    """Actors of whose writes the neighbour lacks some, or may."""
    vv: Mapping[int, int]
    """What the neighbour holds."""
    stamp: Stamp
    """Of the new write, under the new actor, above everything seen."""
    bases: Mapping[Part, tuple[int, int]] = {}
    """`(p, n)` of counter rows as the neighbour held them, where the log told."""
    collected: int = 0
    """The highest hlc of what the neighbour may have collected."""

    def has(self, hlc: int, actor: int) -> bool:
        return actor in self.actors and hlc > self.vv.get(actor, 0)

    def again(self, stamp: Stamp, *, held: bool) -> Stamp:
        """The stamp under which something is written again; `held`: over a row that is there.

        The lowest that nobody's forgotten deletion is above: what somebody wrote later, and is
        still on its way, stays later.
        """
        if stamp[0] > self.stamp[0]:
            return self.stamp
        if held or stamp[0] > self.collected:
            return stamp
        return min(self.collected + 1, self.stamp[0]), self.stamp[1]


def is_lacking(part: Part, row: Row, type_code: int, lacking: Lacking) -> bool:
    """Whether a row shows by itself that it holds a write that the neighbour lacks.

    For rows whose records the log no longer holds: removals and resets do not show.
    """
    if part[0] in _COUNTS or part[0] == TAG_WINDOW:
        return _actor_of(part) in lacking.actors
    return any(lacking.has(*stamp) for stamp in _stamps_of(part, row, type_code))


def writers(part: Part, row: Row, type_code: int, vv: Mapping[int, int]) -> Iterator[int]:
    """Actors whose writes a row holds that `vv` may lack: a reseed before, or who kept his rows,
    has written them again in records of another actor."""
    if part[0] in _COUNTS or part[0] == TAG_WINDOW:
        yield _actor_of(part)
        return
    for hlc, actor in _stamps_of(part, row, type_code):
        if hlc > vv.get(actor, 0):
            yield actor


def _stamps_of(part: Part, row: Row, type_code: int) -> tuple[Stamp, ...]:
    """Of what a row shows, but for counts."""
    if type_code == TYPE_REGISTER:
        return row[:2], row[4:6]
    if part[0] in (TAG_DOC, TAG_DOC_ERASURE):
        return ((row_hlc(type_code, part, row), actor_of(part)),)
    if part == HEAD:
        return (row[-3:-1], row[:2]) if type_code == TYPE_MAP else (row[-3:-1],)
    if type_code == TYPE_SET:
        return tuple((add, actor) for actor, add, _ in row[1])
    return (row[:2],)


def rewrite(type_code: int, held: Rows, exported: Rows, lacking: Lacking) -> Delta:
    """Rows to write over `held` (the neighbour's) for what `exported` (the own) adds."""
    return _BY_TYPE[type_code](held, exported, lacking)


def _register(held: Rows, exported: Rows, lacking: Lacking) -> Delta:
    mine, row = held.get(VALUE), exported.get(VALUE)
    if row is None:
        return {}
    joined = row if mine is None else kept_row(TYPE_REGISTER, VALUE, mine, row)
    if lacking.has(*row[:2]) and joined[:2] == row[:2] and (mine is None or mine[:2] != row[:2]):
        known = mine is not None or row[2] == KIND_DEAD
        expiry = (*lacking.again(joined[4:6], held=known), joined[6]) if joined[4] else NO_EXPIRY
        return {VALUE: (*lacking.again(row[:2], held=known), *row[2:4], *expiry)}
    if mine is not None and lacking.has(*row[4:6]) and joined[4:] == row[4:] != mine[4:]:
        return {VALUE: (*mine[:4], *lacking.again(row[4:6], held=True), row[6])}
    return {}


def _expiry(mine: Row | None, row: Row, lacking: Lacking) -> tuple[int, int, int]:
    """The end of a head: the own expiry if it is newer and the neighbour lacks it."""
    before: tuple[int, int, int] = NO_EXPIRY if mine is None else mine[-3:]
    if lacking.has(*row[-3:-1]) and row[-3:-1] > before[:2]:
        return (*lacking.again(row[-3:-1], held=mine is not None), row[-1])
    return before


def _plain_head(held: Rows, exported: Rows, lacking: Lacking) -> Delta:
    row, mine = exported.get(HEAD), held.get(HEAD)
    if row is None:
        return {}
    expiry = _expiry(mine, row, lacking)
    return {} if expiry == (mine or NO_EXPIRY) else {HEAD: expiry}


def _actor_of(part: Part) -> int:
    if part[0] == TAG_WINDOW:
        return int.from_bytes(part[-8:], "big")
    return actor_of(part)


def _counts(held: Rows, exported: Rows, lacking: Lacking) -> Delta:
    """Resets as observed, and the own increments that the neighbour never had."""
    delta: Delta = {}
    lost: dict[bytes | None, tuple[int, int]] = {}
    for part, row in exported.items():
        if part[0] not in _COUNTS:
            continue
        p, n, bp, bn = row
        mine = held.get(part)
        base = _base(part, mine, lacking)
        if base is not None and birth_of(part) <= lacking.stamp[0]:
            again = _count_again(row, mine, base)
            if again is not None:
                delta[part] = again
            continue
        known = mine or (0, 0, 0, 0)
        if (bp > known[2] or bn > known[3]) and (mine or birth_of(part) <= lacking.stamp[0]):
            # What was reset may be on its way to the neighbour: it is reset before it comes.
            delta[part] = tuple(map(max, (bp, bn, bp, bn), known))
        if base is None:
            continue
        name = field_of(part) if part[0] == TAG_FIELD_COUNTER else None
        up, down = lost.get(name, (0, 0))
        lost[name] = (up + max(0, p - max(base[0], bp)), down + max(0, n - max(base[1], bn)))
    hlc, actor = lacking.stamp
    for name, (up, down) in lost.items():
        if up or down:
            part = actor_part(actor, hlc) if name is None else field_counter_part(name, actor, hlc)
            delta[part] = (up, down, 0, 0)
    return delta


def _count_again(row: Row, mine: Row | None, base: tuple[int, int]) -> Row | None:
    """The own row joined with the neighbour's; None if that adds nothing."""
    if mine is not None:
        joined = tuple(map(max, row, mine))
        return joined if joined != mine else None
    p, n = max(row[0], base[0]), max(row[1], base[1])
    again = (p, n, max(row[2], base[0]), max(row[3], base[1]))
    return again if again[:2] != base else None


def _base(part: Part, mine: Row | None, lacking: Lacking) -> tuple[int, int] | None:
    """What of an own row the neighbour has counted; None if nobody can tell."""
    actor = _actor_of(part)
    if actor not in lacking.actors:
        return None
    known = lacking.bases.get(part)
    if mine is not None:
        p, n = known or (0, 0)
        return max(p, mine[0]), max(n, mine[1])
    if birth_of(part) > lacking.vv.get(actor, 0):
        return 0, 0
    return known


def _counter(held: Rows, exported: Rows, lacking: Lacking) -> Delta:
    return _plain_head(held, exported, lacking) | _counts(held, exported, lacking)


def _set(held: Rows, exported: Rows, lacking: Lacking) -> Delta:
    delta: Delta = {}
    hlc, actor = lacking.stamp
    head, mine_head = exported.get(HEAD), held.get(HEAD)
    cleared = dict(mine_head[0]) if mine_head else {}
    own_cleared = dict(head[0]) if head else {}
    if head is not None:
        for seen, upto in own_cleared.items():
            cleared[seen] = max(upto, cleared.get(seen, 0))
        row = (tuple(sorted(cleared.items())), *_expiry(mine_head, head, lacking))
        if row != mine_head:
            delta[HEAD] = row
    for part, exported_row in exported.items():
        if part == HEAD:
            continue
        element, exported_dots = exported_row
        mine = held.get(part)
        dots = {dot[0]: dot for dot in mine[1]} if mine is not None else {}
        added = False
        for seen, add, rem in exported_dots:
            if seen in dots or 0 < rem <= hlc:
                _, known, removed = dots.get(seen, (seen, 0, 0))
                dots[seen] = (seen, max(known, rem), max(removed, rem))
            gone = max(rem, own_cleared.get(seen, 0))
            if not lacking.has(add, seen) or add <= gone:
                continue
            if add > hlc:
                added = True
            elif seen not in dots or add > dots[seen][1]:
                dots[seen] = (seen, add, max(rem, dots[seen][2] if seen in dots else 0))
        if added:
            dots[actor] = (actor, hlc, dots[actor][2] if actor in dots else 0)
        new = (element, tuple(sorted(dots.values())))
        if dots and new != mine:
            delta[part] = new
    return delta


def _map(held: Rows, exported: Rows, lacking: Lacking) -> Delta:
    delta = _counts(held, exported, lacking)
    head, mine_head = exported.get(HEAD), held.get(HEAD)
    clear: Stamp = mine_head[:2] if mine_head else (0, 0)
    if head is not None:
        if lacking.has(*head[:2]):
            # A clear from the future would hide every later field.
            clear = max(clear, min(head[:2], (lacking.stamp[0] - 1, head[1])))
        row = (*clear, *_expiry(mine_head, head, lacking))
        if row != (mine_head or (0, 0, *NO_EXPIRY)):
            delta[HEAD] = row
    for part, row in exported.items():
        if part[0] != TAG_FIELD or not lacking.has(*row[:2]):
            continue
        mine = held.get(part)
        newer = mine is None or row[:2] > mine[:2]
        cleared = max((h[:2] for h in (head, mine_head) if h is not None), default=(0, 0))
        if newer and row[:2] > cleared:
            known = mine is not None or row[2] == KIND_DEAD
            delta[part] = (*lacking.again(row[:2], held=known), *row[2:])
    return delta


def _rate(held: Rows, exported: Rows, lacking: Lacking) -> Delta:
    """Windows are dead by the clock and never collected: they are joined."""
    delta = _plain_head(held, exported, lacking)
    now_ms = hlc_ms(lacking.stamp[0])
    for part, row in exported.items():
        if part[0] != TAG_WINDOW or window_index(part) * row[2] > now_ms:
            continue
        mine = held.get(part)
        again = row if mine is None else rate.join(mine, row)
        if again != mine:
            delta[part] = again
    return delta


def _doc(held: Rows, exported: Rows, lacking: Lacking) -> Delta:
    """Updates that the neighbour lacks, in one row for each owner, and what was erased.

    Yjs shows them where what they build on is still there, be it deleted: hence their old base.
    """
    hlc, actor = lacking.stamp
    delta: Delta = {}
    head, mine_head = exported.get(HEAD), held.get(HEAD)
    cleared = dict(mine_head[0]) if mine_head else {}
    if head is not None:
        for seen, upto in head[0]:
            cleared[seen] = max(upto, cleared.get(seen, 0))
        row = (tuple(sorted(cleared.items())), *_expiry(mine_head, head, lacking))
        if row != mine_head:
            delta[HEAD] = row
    shown = frozenset(doc.shown(exported))
    news: dict[bytes, list[bytes]] = {}
    bases: dict[bytes, int] = {}
    erased: list[bytes] = []
    for part in sorted(exported):
        mine_row: Row = exported[part]
        if part == HEAD or not is_lacking(part, mine_row, TYPE_DOC, lacking):
            continue
        if part[0] == TAG_DOC_ERASURE:
            erased.append(mine_row[0])
        elif part in shown:
            known = doc.updates_of(part, held[part]) if part in held else ()
            mine = (update for update in doc.updates_of(part, mine_row) if update not in known)
            news.setdefault(mine_row[2], []).extend(mine)
            bases[mine_row[2]] = min(mine_row[1], bases.get(mine_row[2], hlc))
    lowest = doc.base(held) or hlc
    for before, (owner, updates) in enumerate(sorted(news.items())):
        birth = hlc - before
        if updates:
            base = min(lowest, birth, bases[owner])
            delta[doc_part(actor, birth)] = doc.first_row(hlc, base, owner, updates)
    if erased:
        delta[erasure_part(actor, hlc)] = (doc.erased(erased),)
    return delta


_BY_TYPE: Final[dict[int, Callable[[Rows, Rows, Lacking], Delta]]] = {
    TYPE_REGISTER: _register,
    TYPE_COUNTER: _counter,
    TYPE_SET: _set,
    TYPE_MAP: _map,
    TYPE_RATE: _rate,
    TYPE_DOC: _doc,
}
