"""What the join of two histories of one actor loses, and what restores it.

A store that was rolled back and wrote on has an actor that wrote two histories from one point on:
`mine` and `theirs`, with `base` what both began from. Joins take the higher of what each wrote
into the same row, so the lower one is gone:

    counter, field counter   p is max(mine, theirs); what both added since is mine + theirs - base,
                             so min(mine, theirs) - base is missing. The same of n, and of what
                             resets have taken away (bp, bn) of each
    rate window              n and taken, likewise
    set                      an add of one history is taken away by a removal or a clear of the
                             other, which cannot have observed it

Registers, fields and heads are won by the higher stamp, which is what writers of two actors would
have got.
"""

from __future__ import annotations

from typing import Final

from .rows.layout import (
    TAG_ACTOR,
    TAG_FIELD_COUNTER,
    TAG_WINDOW,
    TYPE_SET,
    Part,
    Row,
    actor_of,
    actor_part,
    birth_of,
    field_counter_part,
    field_of,
    window_index,
    window_part,
)

__all__ = ["Dot", "again_part", "counts", "dot_of", "is_lost", "lost_count", "matters"]

Dot = tuple[int, int]
"""(add, rem) of one actor in an element's row; rem includes the clears of the set's head."""

_COUNTS: Final = (TAG_ACTOR, TAG_FIELD_COUNTER)


def counts(type_code: int, part: Part, actor: int) -> bool:
    """Whether the row counts what `actor` did."""
    if type_code == TYPE_SET:
        return False
    if part[0] == TAG_WINDOW:
        return int.from_bytes(part[-8:], "big") == actor
    return part[0] in _COUNTS and actor_of(part) == actor


def matters(type_code: int, part: Part, actor: int) -> bool:
    """Whether a join of two histories of `actor` can lose something of this row."""
    return type_code == TYPE_SET or counts(type_code, part, actor)


def lost_count(part: Part, mine: Row, theirs: Row, base: Row | None) -> Row | None:
    """What the join of two rows lacks of what both histories counted since `base` (None: the row
    was not there yet); None if nothing is lost."""
    counted = 1 if part[0] == TAG_WINDOW else 2
    if base is None:
        base = (0,) * (2 * counted)
    lower = tuple(map(min, mine, theirs))
    # What was taken away of the common part both histories took away of one and the same thing.
    lost = [lower[at] - base[at] for at in range(counted)]
    gone = [max(0, lower[at + counted] - base[at]) for at in range(counted)]
    if all(amount <= 0 for amount in lost):
        return None
    both = zip(lost, gone, strict=True)
    kept = [(max(0, amount), min(max(0, amount), taken)) for amount, taken in both]
    row = (*(amount for amount, _ in kept), *(taken for _, taken in kept))
    return (*row, mine[-1]) if part[0] == TAG_WINDOW else row


def again_part(part: Part, actor: int) -> Part:
    """The row of `actor` that holds what `lost_count` found of the row `part`."""
    if part[0] == TAG_WINDOW:
        return window_part(window_index(part), actor)
    if part[0] == TAG_FIELD_COUNTER:
        return field_counter_part(field_of(part), actor, birth_of(part))
    return actor_part(actor, birth_of(part))


def dot_of(actor: int, row: Row | None, head: Row | None) -> Dot:
    """What of `actor` an element's row and its set's head say; (0, 0): nothing."""
    add = rem = 0
    for seen, added, removed in row[1] if row is not None else ():
        if seen == actor:
            add, rem = added, removed
    if head is not None:
        rem = max(rem, dict(head[0]).get(actor, 0))
    return add, rem


def is_lost(mine: Dot, theirs: Dot, since: int) -> bool:
    """Whether an add of one history, made after `since` and not removed there, is taken away by
    the other."""
    return any(
        one[0] > max(since, one[1]) and one[0] <= other[1]
        for one, other in ((mine, theirs), (theirs, mine))
    )
