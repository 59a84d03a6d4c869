"""Documents: any Yjs document, as logs of updates that each actor keeps by itself.

Row (part DOC, one per actor and birth): `(hlc, base, owner, count, chain, updates)`. Only its
actor ever writes it: each write appends an update, `hlc` is the newest one's. A row that is full
is closed and another one born, so that a delta stays small; before that its updates are merged
into one (`count` of them are in the first entry, and `chain` is a hash chain over those).
States of a row follow each other, so the join is the later one, and nobody merges Yjs updates to
join: bytes depend on no order. Two rows of which neither continues the other mean that two writers
share an actor. `owner` names whose Yjs client ids a row's updates move (8 bytes).

Erasure (part DOC_ERASURE, one per actor and hlc, written once): `(update,)`, an update that
deletes all that a DEL or the end of an expired life observed. Head: as a set's, how far each
actor's rows are cleared, and the expiry. A document exists if some row goes beyond what is
cleared.

Yjs cannot build on what is not there, so an edit that a DEL has not seen needs the rows below
it, deleted as they are. `base` tells how far back: an update builds on rows born at `base` or
later. What is shown is the Yjs merge of all rows born at or after the lowest base of a row that
is not cleared, taken on over the bases of what that takes in. A row that is neither is dead; the
first write of a new life has its own birth as base.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Protocol

from roost_crdt.errors import CorruptData
from roost_crdt.hlc import Stamp
from roost_crdt.limits import DEFAULT_LIMITS
from roost_crdt.rows.counter import newest_part
from roost_crdt.rows.expiry import Expiry, head_expiry, is_hidden, new_expiry
from roost_crdt.rows.layout import (
    HASH_BYTES,
    HEAD,
    TAG_DOC,
    TAG_DOC_ERASURE,
    Delta,
    Part,
    Row,
    Rows,
    StampReused,
    actor_of,
    birth_of,
    doc_part,
    doc_prefix,
    erasure_part,
)
from roost_crdt.rows.set import cleared_of, expiring_head
from roost_crdt.rows.wire import U64, decoder, larger
from roost_crdt.yplaces import Runs, runs_by_client
from roost_crdt.ystructs import check_depth, delete_update, read_structs, readable_runs

ROW_BYTES = 1024
"""A row with more bytes of updates takes no more of them."""
ROW_UPDATES = 32
"""So many are merged into one."""
FOREIGN_BYTES_MAX = 2 * DEFAULT_LIMITS.doc_bytes_max
"""More than any writer puts into a row: what one node writes of a document fits its bound."""
OWNER_BYTES = 8
NOBODY = bytes(OWNER_BYTES)


class Yjs(Protocol):
    """What of Yjs a writer needs; `roost_crdt.document` is one. Reading and joining need none."""

    def merge(self, updates: Sequence[bytes], /) -> bytes:
        """One update that does what all of them do."""
        ...

    def written(self, updates: Sequence[bytes], /) -> Runs:
        """The clocks that are written in any of them."""
        ...


_decode_row = decoder(tuple[U64, U64, bytes, U64, bytes, tuple[bytes, ...]])
_decode_erasure = decoder(tuple[bytes])


def decode(part: Part, body: bytes) -> Row:
    row: Row = _decode_row(body)
    hlc, base, owner, count, chain, updates = row
    birth = birth_of(part)
    if not (base <= birth <= hlc and count and updates):
        raise CorruptData("the row of a document has no possible shape")
    if len(owner) != OWNER_BYTES or len(chain) != HASH_BYTES:
        raise CorruptData("the row of a document has hashes of no known length")
    return row


def decode_erasure(part: Part, body: bytes) -> Row:
    row: Row = _decode_erasure(body)
    if row[0][:1] != b"\0":
        raise CorruptData("the erasure of a document adds something")
    return row


def check(part: Part, row: Row) -> None:
    """Raise CorruptData unless foreign code can read the updates of a row from outside.

    Too much for every read of a stored row: this takes microseconds a struct.
    """
    found = updates_of(part, row)
    size = sum(map(len, found))
    if size > FOREIGN_BYTES_MAX:
        raise CorruptData(f"the row of a document has {size} bytes; at most {FOREIGN_BYTES_MAX}")
    for update in found:
        structs = read_structs(update)
        if structs.nested:
            check_depth(structs)


def join(a: Row, b: Row) -> Row:
    """The later one; StampReused if it does not continue the other."""
    if a == b:
        return a
    low, high = (a, b) if a < b else (b, a)
    if not _continues(high, low):
        raise StampReused(f"two updates of a document under the hlcs {low[0]}, {high[0]}", high)
    return high


def join_erasure(a: Row, b: Row) -> Row:
    if a == b:
        return a
    raise StampReused("two erasures of a document under one stamp", larger(a, b))


def _continues(high: Row, low: Row) -> bool:
    """Whether `high` can have been made of `low`; what was merged too far back cannot tell."""
    if high[0] == low[0] or high[1:3] != low[1:3]:
        return False
    *_, count, chain, updates = low
    further = high[3] - count
    if further < 0:
        return False
    if further >= len(updates):
        return True
    for update in updates[1 : 1 + further]:
        chain = _next(chain, update)
    rest = updates[1 + further :]
    first_same = further > 0 or updates[0] == high[5][0]
    return bool(chain == high[4] and first_same and rest == high[5][1 : 1 + len(rest)])


def _next(chain: bytes, update: bytes) -> bytes:
    return blake2b(chain + update, digest_size=HASH_BYTES, person=b"roost-doc").digest()


def row_hlc(part: Part, row: Row) -> int:
    hlc: int = row[0]
    return hlc


def erasure_hlc(part: Part, row: Row) -> int:
    return birth_of(part)


# --- reading --------------------------------------------------------------------------------------


def is_live(part: Part, row: Row, cleared: Mapping[int, int]) -> bool:
    """Whether a row of updates goes beyond what is cleared."""
    return bool(row[0] > cleared.get(actor_of(part), 0))


def exists(rows: Rows, now_ms: int) -> bool:
    if is_hidden(rows, now_ms):
        return False
    cleared = cleared_of(rows)
    return any(is_live(part, row, cleared) for part, row in rows.items() if part[0] == TAG_DOC)


def base(rows: Rows) -> int:
    """The lowest birth of a row that is shown or that something shown builds on; 0: nothing is."""
    cleared = cleared_of(rows)
    found = [(part, row) for part, row in rows.items() if part[0] == TAG_DOC]
    bases = [row[1] for part, row in found if is_live(part, row, cleared)]
    return _reach(min(bases), _built(rows)) if bases else 0


def builders(rows: Rows) -> list[tuple[int, Part, int]]:
    """Each row of updates and its hlc, after the lowest birth that it shows whenever it is live.

    So a row that is not shown may be shown again without a change of its own. Whoever waits for
    a row to stay dead has to see that none of those that reach it came or went on meanwhile.
    """
    built = _built(rows)
    found = [(part, row) for part, row in rows.items() if part[0] == TAG_DOC]
    return sorted((_reach(row[1], built), part, row[0]) for part, row in found)


def _built(rows: Rows) -> list[tuple[int, int]]:
    """Birth and base of each row of updates, the youngest first."""
    found = ((birth_of(part), row[1]) for part, row in rows.items() if part[0] == TAG_DOC)
    return sorted(found, reverse=True)


def _reach(lowest: int, built: Sequence[tuple[int, int]]) -> int:
    """The lowest birth that is shown together with what was born at `lowest`."""
    for birth, below in built:
        if birth < lowest:
            break
        lowest = min(lowest, below)
    return lowest


def shown(rows: Rows) -> list[Part]:
    """The parts whose updates make the document, in order, without regard to its expiry."""
    lowest = base(rows)
    if not lowest:
        return []
    return sorted(
        part
        for part in rows
        if (part[0] == TAG_DOC and birth_of(part) >= lowest)
        or (part[0] == TAG_DOC_ERASURE and birth_of(part) > lowest)
    )


def updates(rows: Rows, now_ms: int) -> list[bytes]:
    """What merged together is the document; empty if it does not exist."""
    if is_hidden(rows, now_ms):
        return []
    return [update for part in shown(rows) for update in updates_of(part, rows[part])]


def updates_of(part: Part, row: Row) -> tuple[bytes, ...]:
    """The updates in a row of either kind."""
    found: tuple[bytes, ...] = row[5] if part[0] == TAG_DOC else row
    return found


def written(found: Sequence[bytes], yjs: Yjs) -> Runs:
    """The clocks written in any of these updates. What cannot be read writes nothing: a document
    that nobody can show can still be deleted."""
    try:
        return yjs.written(found)
    except CorruptData:
        return readable_runs(found)


# --- writing --------------------------------------------------------------------------------------


def put(
    rows: Rows,
    update: bytes,
    stamp: Stamp,
    now_ms: int,
    *,
    yjs: Yjs,
    vv: Mapping[int, int],
    owner: bytes = NOBODY,
) -> Delta:
    """Add an update that builds on nothing but what is shown (see `roost_crdt.outside`).

    At a document that has expired or does not exist a new life begins, without expiry; `vv` is
    this node's version vector.
    """
    assert len(owner) == OWNER_BYTES
    hlc, actor = stamp
    if not exists(rows, now_ms):
        delta = end(rows, vv, stamp, now_ms, yjs=yjs)
        if not delta and head_expiry(rows)[2]:
            delta = {HEAD: (rows[HEAD][0], *new_expiry(rows, stamp, 0))}
        return {**delta, doc_part(actor, hlc): _born(hlc, hlc, owner, update)}
    lowest = base(rows)
    newest = newest_part(rows, doc_prefix(actor))
    if newest is not None and birth_of(newest) >= lowest:
        grown = _grown(rows[newest], hlc, lowest, owner, update, yjs)
        if grown is not None:
            return {newest: grown}
    return {doc_part(actor, hlc): _born(hlc, lowest, owner, update)}


def delete(rows: Rows, vv: Mapping[int, int], stamp: Stamp, *, yjs: Yjs) -> Delta:
    """Delete what is observed. An edit made elsewhere at the same time survives."""
    if not exists(rows, 0):
        return {}
    return _clear(rows, vv, stamp, stamp[0], head_expiry(rows), yjs)


def end(rows: Rows, vv: Mapping[int, int], stamp: Stamp, now_ms: int, *, yjs: Yjs) -> Delta:
    """Take away what an expiry hides; nothing changes where it hides nothing."""
    if not is_hidden(rows, now_ms):
        return {}
    return _clear(rows, vv, stamp, stamp[0] - 1, new_expiry(rows, stamp, 0), yjs)


def expire(rows: Rows, stamp: Stamp, expires_ms: int) -> Delta:
    """Let the document expire at `expires_ms` (0 = never).

    The caller checks first that it exists: a later time would show again what has expired.
    """
    return expiring_head(rows, stamp, expires_ms) if exists(rows, 0) else {}


def first_row(birth: int, lowest: int, owner: bytes, found: Sequence[bytes]) -> Row:
    """A row that begins with these updates."""
    row = _born(birth, lowest, owner, found[0])
    return (*row[:5], tuple(found))


def erased(erasures: Iterable[bytes]) -> bytes:
    """One update that deletes what all of these delete."""
    return delete_update(
        runs_by_client(run for update in erasures for run in read_structs(update).deletes)
    )


def _clear(
    rows: Rows, vv: Mapping[int, int], stamp: Stamp, own: int, expiry: Expiry, yjs: Yjs
) -> Delta:
    hlc, actor = stamp
    cleared = cleared_of(rows)
    for part, row in rows.items():
        if part[0] == TAG_DOC:
            seen = actor_of(part)
            # Rows may be here before all older ones of their actor are (repairs): those are not
            # observed. Of itself an actor has seen all.
            covered = own if seen == actor else min(row[0], vv.get(seen, 0))
            cleared[seen] = max(covered, cleared.get(seen, 0))
    delta: Delta = {HEAD: (tuple(sorted(cleared.items())), *expiry)}
    found = updates(rows, 0)
    if found:
        # What waits for other updates too: it was not seen, but lies below what is cleared.
        delta[erasure_part(actor, hlc)] = (delete_update(written(found, yjs)),)
    return delta


def _born(hlc: int, lowest: int, owner: bytes, update: bytes) -> Row:
    return (hlc, lowest, owner, 1, _next(b"", update), (update,))


def _grown(row: Row, hlc: int, lowest: int, owner: bytes, update: bytes, yjs: Yjs) -> Row | None:
    """The row with one more update; None if it is full or of another owner or base."""
    if row[1:3] != (lowest, owner):
        return None
    assert row[0] < hlc, f"{hlc} is not above {row[0]}"
    *_, count, chain, held = row
    if len(held) < ROW_UPDATES and sum(map(len, held)) + len(update) <= ROW_BYTES:
        return (hlc, lowest, owner, count, chain, (*held, update))
    if len(held) == 1 or sum(map(len, held)) + len(update) > 2 * ROW_BYTES:
        return None
    merged = yjs.merge((*held, update))
    for one in (*held[1:], update):
        chain = _next(chain, one)
    return (hlc, lowest, owner, count + len(held), chain, (merged,))
