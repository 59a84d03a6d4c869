"""Yjs updates of clients, judged before they become rows of a document (FAULTS: a hostile update).

An update may come from anybody's Yjs client, in any state. It is read without Yjs, then tried on a
scratch copy of what is held, and only what is new in it is kept. Refused, with nothing changed:

- what no Yjs client writes, what is nested too deep, and what makes foreign code throw;
- what builds on changes that are not held here: Yjs would keep it where nobody sees it. (Between
  nodes that is no fault: rows of another actor may still be under way, and are kept until then.)
- a move of a Yjs client id that somebody else has written under: two writers under one id make
  copies that differ for ever while their state vectors are equal;
- what was deleted, or has expired, with its old document;
- a deletion of what nobody has written yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from roost_crdt import document
from roost_crdt.errors import BadRequest, CorruptData, NoPerm, TooLarge, Unavailable
from roost_crdt.limits import DEFAULT_LIMITS, Limits
from roost_crdt.rows import Rows, doc
from roost_crdt.rows.layout import TAG_DOC, hash_of
from roost_crdt.yplaces import beyond, covers, runs_by_client
from roost_crdt.ystructs import (
    Structs,
    TooManyStructs,
    check_depth,
    delete_update,
    read_structs,
)
from roost_crdt.yupdate import Range

TYPE_BYTES_MAX = 16_000
"""What holds fewer bytes that can begin a shared type cannot nest them too deep for a stack."""
_TYPE_BYTES = bytes(flags | 7 for flags in range(0, 256, 0x20))


def owner_of(principal: str) -> bytes:
    """How a row names whoever wrote its updates."""
    return hash_of(principal.encode())[: doc.OWNER_BYTES]


def admit(
    rows: Rows, update: bytes, now_ms: int, owner: bytes, limits: Limits = DEFAULT_LIMITS
) -> bytes:
    """What is new in an update of a document with these rows; empty if nothing is.

    Raises BadRequest, NoPerm (somebody else's client id), TooLarge, or Unavailable (it builds on
    what is not here: complete it, or wait).
    """
    shown = frozenset(doc.shown(rows)) if doc.exists(rows, now_ms) else frozenset()
    updates = doc.updates(rows, now_ms)
    size = sum(map(len, updates))
    if len(update) + size > limits.doc_bytes_max:
        raise TooLarge(
            f"a document of {size} bytes cannot take an update of {len(update)} "
            f"(bound {limits.doc_bytes_max}); what its updates have deleted counts too: DEL it and "
            "begin it again with a new Y.Doc"
        )
    try:
        structs = read_structs(update, limits.doc_structs_max)
        held = document.merge(updates)
        _check_nesting(structs, held, update)
        tried = document.rehearse(held, update)
    except TooManyStructs as error:
        raise TooLarge(
            f"an update of a document has at most {limits.doc_structs_max} changes (structs); "
            "send it in several"
        ) from error
    except CorruptData as error:
        raise BadRequest(f"not a Yjs update (format v1) that can be taken: {error}") from error
    moved: set[int] = set()
    for client, _, end in structs.ranges:
        if tried.after.get(client, 0) < end:
            raise Unavailable(
                f"the update builds on changes that this node does not hold: it ends at clock "
                f"{end} of Yjs client {client}, and only {tried.after.get(client, 0)} are held. "
                "Send the document's whole state as one update, or try again later",
                retry_after_ms=1_000,
            )
        if end > tried.before.get(client, 0):
            moved.add(client)
    dead = [part for part in rows if part[0] == TAG_DOC and part not in shown]
    _check_dead(structs.ranges, [update for part in dead for update in rows[part][5]])
    foreign = {client for client in moved if tried.before.get(client, 0)}
    _check_owner(rows, foreign, owner)
    _check_deletes(structs.deletes, tried.after, held)
    if not moved and _all_deleted(structs.deletes, held):
        return b""
    return _fresh(tried)


def _fresh(tried: document.Rehearsal) -> bytes:
    """The news without deletions that are known here: a client that sends the difference to a state
    vector sends all deletions there ever were, each time."""
    structs = read_structs(tried.news)
    known = runs_by_client(read_structs(tried.known).deletes) if structs.deletes else {}
    fresh = list(beyond(structs.deletes, known))
    if fresh == structs.deletes:
        return tried.news
    # An update ends with its deletions; one of them alone begins with a 0, for no structs.
    return tried.news[: structs.deletes_at] + delete_update(runs_by_client(fresh))[1:]


def _all_deleted(deletes: Sequence[Range], held: bytes) -> bool:
    """Whether a document says of all these clocks that they are deleted.

    Its bytes do not tell: merged once more they may come in another order.
    """
    left = [run for run in deletes if run.start < run.end]
    known = runs_by_client(read_structs(held).deletes) if left else {}
    return all(
        any(run.start <= start and end <= run.end for run in known.get(client, ()))
        for client, start, end in left
    )


def _check_nesting(structs: Structs, held: bytes, update: bytes) -> None:
    """Nothing too deep may reach code that recurses."""
    types = sum(held.count(code) + update.count(code) for code in _TYPE_BYTES)
    if structs.nested or types > TYPE_BYTES_MAX:
        check_depth(read_structs(document.merge((held, update))))


def _check_owner(rows: Rows, clients: set[int], owner: bytes) -> None:
    """Clients that are known here are moved by the owner of their newest update."""
    left = set(clients)
    parts = [part for part in doc.shown(rows) if part[0] == TAG_DOC]
    for part in sorted(parts, key=lambda part: rows[part][0], reverse=True):
        if not left:
            return
        for update in reversed(rows[part][5]):
            named = left.intersection(run.client for run in read_structs(update).ranges)
            if named and rows[part][2] not in (owner, doc.NOBODY):
                raise NoPerm(
                    f"Yjs client id {min(named)} belongs to somebody else, who wrote under it "
                    "before; take another one (a new Y.Doc has one)"
                )
            left -= named


def _check_dead(ranges: Sequence[Range], dead: Sequence[bytes]) -> None:
    """Nothing that a DEL or an expiry has ended comes back, nor another thing in its place."""
    if not dead:
        return
    gone = doc.written(dead, document)
    for client, start, end in ranges:
        if any(run.start < end and start < run.end for run in gone.get(client, ())):
            raise BadRequest(
                f"the update writes again under Yjs client {client} what was deleted or has "
                "expired: begin with a new Y.Doc"
            )


def _check_deletes(deletes: Sequence[Range], after: Mapping[int, int], held: bytes) -> None:
    """What is deleted ahead of its writing is known here, or refused."""
    ahead = [run for run in deletes if run.end > after.get(run.client, 0)]
    if not ahead:
        return
    known = runs_by_client(read_structs(held).deletes)
    for client, start, end in ahead:
        first = max(start, after.get(client, 0))
        if not all(covers(known.get(client, ()), clock) for clock in (first, end - 1)):
            raise BadRequest(
                f"the update deletes clock {end - 1} of Yjs client {client}, which is not written "
                "yet"
            )
