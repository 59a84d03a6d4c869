"""A copy of a session: its head, its fold, and (where it is written) its document.

Every method that changes the session returns nothing and leaves a batch of items in the store's
open group: one batch is one atomic step of durability, replication and takeover.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import msgspec

from roost_crdt.document import Document, check_update, client_id
from roost_crdt.errors import CorruptData, TooLarge
from roost_crdt.fold import Fold
from roost_crdt.home import ACTOR_LEAP, Follow, Meta, Update, Whole, chain_next, succeed
from roost_crdt.limits import Limits
from roost_crdt.sessions.table import (
    Items,
    SessionTable,
    base_item,
    head_item,
    update_item,
    view_items,
)

COMPACT_UPDATES = 64
"""Document updates stored one by one before they become the base."""


class SessionCopy:
    """A session that this node holds a copy of, as home, standby or former home."""

    def __init__(self, meta: Meta, table: SessionTable, actor: int, limits: Limits) -> None:
        self.meta = meta
        self.fold = Fold(limits)
        self.follow = Follow()
        self.confirmed = -1
        """The clock generation in which the standby last agreed that this node is home."""
        self.handing_over = False
        self.turn_n = meta.n
        """The step that committed the newest turn; at the latest the newest step."""
        self.pins = 0
        """Users of this copy now; while there are any it stays the one copy in memory."""
        self.waiters: list[tuple[int, Callable[[], None]]] = []
        """(step, whom to tell once the standby holds it)"""
        self._table = table
        self._actor = actor
        self._limits = limits
        self._document: Document | None = None
        self._view_bytes = 0

    @classmethod
    def load(cls, meta: Meta, table: SessionTable, actor: int, limits: Limits) -> SessionCopy:
        """From the stored view; the document stays on disk until it is written."""
        live = cls(meta, table, actor, limits)
        entries, fields = table.view(meta.sid)
        live._fold_in(entries, fields)
        return live

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """Keep this copy the one in memory: two of a session would write two chains."""
        self.pins += 1
        try:
            yield
        finally:
            self.pins -= 1

    @property
    def size_bytes(self) -> int:
        """About what this session takes in memory."""
        document = self._document.size_bytes if self._document is not None else 0
        return 2_000 + 2 * self._view_bytes + 2 * document

    @property
    def document(self) -> Document:
        """The document, under the client id of the epoch in force."""
        if self._document is None or self._document.broken:
            number = client_id(self.meta.epoch[0], self._actor, self.meta.sid)
            document = Document(number, self._limits)
            for update in self._table.document(self.meta.sid):
                document.apply(update)
            self._document = document
        return self._document

    # --- steps of home ---

    def write(
        self,
        entries: Mapping[str, bytes],
        fields: Mapping[str, bytes],
        now_ms: int,
    ) -> Update:
        """One committed step: durable with the open group, and the frame for the standby.

        Raises TooLarge when the document would pass its bound (a summary makes room).
        """
        self.own_epoch(now_ms)
        added = sum(map(len, entries.values())) + sum(map(len, fields.values()))
        if self.document.size_bytes + added > self._limits.session_bytes_max:
            raise TooLarge(
                f"session {self.meta.sid} would pass {self._limits.session_bytes_max} bytes; "
                "trim it with a summary or fork it"
            )
        with self._all_or_nothing():
            update = self.document.write(entries, fields)
            return self._step(update, entries, fields, now_ms)

    def own_epoch(self, now_ms: int) -> None:
        """Home writes under an epoch of its present actor: call it before entries are made.

        Under an earlier actor's epoch it could write an entry that exists elsewhere.
        """
        if self.meta.actor != self._actor:
            self.enter_epoch(self.meta.home, self.meta.standby, now_ms)

    def merge(self, document: bytes, now_ms: int) -> Update | None:
        """Take in what a former home holds; None if nothing was new.

        Raises CorruptData; OwnClientMoved if this home wrote there what it does not hold any more.
        """
        with self._all_or_nothing():
            brought = check_update(document, self._limits)
            before = self.document.state_vector()
            changes = self.document.apply(document, outside=True)
            entries = dict(changes.entries)
            # Yjs takes them for known where a home that lost a tail wrote others in their place.
            hidden = {key: leaf for key, leaf in brought.items() if not self.document.holds(key)}
            if not (entries or hidden or changes.fields or changes.repairs):
                return None
            if changes.repairs or hidden:
                self.document.write(hidden, changes.repairs, bounded=False)
            update = self.document.diff(before)
            fields = {**changes.fields, **changes.repairs}
            return self._step(update, {**entries, **hidden}, fields, now_ms)

    def leave_lost_tail(self, now_ms: int) -> None:
        """Home has evidence that it wrote what it does not hold any more: on, in an epoch clear of
        those, before it writes other entries and Yjs structs under the same names."""
        self.enter_epoch(self.meta.home, self.meta.standby, now_ms, leap=ACTOR_LEAP)

    def enter_epoch(self, home: str, standby: str | None, now_ms: int, leap: int = 1) -> None:
        """The next epoch, durable with the open group; the document changes its client id.

        A former home that is home again has nothing left to merge into another. A copy from
        before a change of actors may be of a lost past, whose epochs must not come again.
        """
        leap = leap if self.meta.actor == self._actor else ACTOR_LEAP
        after = succeed(self.meta, home, standby, leap)
        self.set_meta(
            msgspec.structs.replace(after, actor=self._actor, used_ms=now_ms, unmerged=False)
        )

    def set_meta(self, meta: Meta) -> None:
        """Store another head; a changed epoch gives the document another client id."""
        self._table.put(head_item(meta))
        if meta.epoch != self.meta.epoch:
            self._document = None
        self.meta = meta

    def renew(self, actor: int) -> None:
        """The store writes as another actor from now on."""
        self._actor = actor
        self._document = None

    def touch_memory(self, meta: Meta) -> None:
        """Another head in memory only; it is stored with the next step."""
        self.meta = meta

    def when_held(self, n: int, callback: Callable[[], None]) -> None:
        """Call back once the standby holds step n; at once if it does."""
        if self.meta.acked_n >= n:
            callback()
        else:
            self.waiters.append((n, callback))

    # --- steps of a standby ---

    def append(self, frame: Update) -> None:
        """Take the next update of the chain. Raises CorruptData if it is not what it says.

        The caller has checked the chain; the document is loaded only to compact it.
        """
        brought = check_update(frame.update, self._limits)
        if brought != frame.entries:
            raise CorruptData(f"session {frame.sid}: the plain view is not that of the update")
        with self._all_or_nothing():
            if frame.epoch != self.meta.epoch:
                self._document = None  # another epoch, another client id
            compact = frame.n - self.meta.base_n >= COMPACT_UPDATES
            document = self.document if compact else self._document
            if document is not None:
                document.apply(frame.update, outside=True)
            self.meta = msgspec.structs.replace(
                self.meta,
                epoch=frame.epoch,
                standby=frame.standby,
                n=frame.n,
                chain=chain_next(frame.prev_chain, frame.update),
                acked_n=0,
                turn=frame.turn,
                used_ms=frame.at_ms,
                held=True,
                actor=self.meta.actor or self._actor,
            )
            self._fold_in(frame.entries, frame.fields)
            items = update_item(self.meta.sid, frame.n, frame.update)
            if compact:
                items = self._compacted(self.document.encode())
            items.update(view_items(self.meta.sid, frame.entries, frame.fields))
            items.update(head_item(self.meta))
            self._table.put(items)

    def holds_beyond(self, document: bytes) -> bool:
        """Whether this copy has entries that `document` lacks: its home has lost a tail, and to
        take the document would lose what the tail's turns were protected by. CorruptData."""
        held = self.fold.raw_entries()
        return bool(held) and not held.keys() <= check_update(document, self._limits).keys()

    def replace(self, frame: Whole) -> None:
        """Take the whole document in place of what is held here. Raises CorruptData."""
        document = Document(client_id(frame.epoch[0], self._actor, frame.sid), self._limits)
        # Not `outside`: it may bring back what this node wrote as a home of the same number.
        changes = document.apply(frame.document)
        with self._all_or_nothing():
            self.meta = Meta(
                sid=frame.sid,
                epoch=frame.epoch,
                standby=frame.standby,
                n=frame.n,
                chain=frame.chain,
                base_n=frame.n,
                turn=frame.turn,
                used_ms=frame.at_ms,
                actor=self._actor,
            )
            self._document = document
            self._forget_view()
            self._fold_in(changes.entries, changes.fields)
            items: Items = self._table.drop_items(frame.sid)
            items.update(base_item(frame.sid, frame.document))
            items.update(view_items(frame.sid, changes.entries, changes.fields))
            items.update(head_item(self.meta))
            self._table.put(items)

    def store_again(self, stored: Iterable[bytes]) -> bool:
        """What is stored of this session, under the keys `stored`, is damaged: put what memory has
        in its place. False: the document is not in memory."""
        document = self._document
        if document is None or document.broken:
            return False
        meta = msgspec.structs.replace(self.meta, base_n=self.meta.n)
        items: Items = dict.fromkeys(stored)
        items.update(base_item(meta.sid, document.encode()))
        items.update(view_items(meta.sid, document.entries(), document.fields()))
        items.update(head_item(meta))
        self._table.put(items)
        self.meta = meta
        return True

    def whole(self) -> Whole:
        """This copy as one frame, for a standby or a next home."""
        meta = self.meta
        return Whole(
            sid=meta.sid,
            epoch=meta.epoch,
            standby=meta.standby,
            n=meta.n,
            chain=meta.chain,
            document=self.document.encode(),
            turn=meta.turn,
            at_ms=meta.used_ms,
        )

    # --- reading ---

    def head_turn(self) -> int:
        """The number of the current turn; 0 before the first."""
        head = self.fold.turn
        return 0 if head is None else head[2]

    def path_epochs(self) -> tuple[tuple[int, str, int, int], ...]:
        """The newest four epochs of the active path: (n, node, start exclusive, last turn)."""
        return self.fold.path_epochs(4)

    def take_view(self, entries: Mapping[str, bytes], fields: Mapping[str, bytes]) -> None:
        """Fill a copy that lives in memory only. Raises CorruptData."""
        self._fold_in(entries, fields)

    # --- inside ---

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """If a step fails, or the store refuses it, memory goes back to what is stored."""
        before = self.meta
        try:
            yield
        except BaseException:
            self.meta = before
            self._document = None
            self._forget_view()
            self._fold_in(*self._table.view(before.sid))
            raise

    def _forget_view(self) -> None:
        self.fold = Fold(self._limits)
        self._view_bytes = 0

    def _step(
        self,
        update: bytes,
        entries: Mapping[str, bytes],
        fields: Mapping[str, bytes],
        now_ms: int,
    ) -> Update:
        before = self.meta
        self._fold_in(entries, fields)
        self.meta = msgspec.structs.replace(
            before,
            n=before.n + 1,
            chain=chain_next(before.chain, update),
            turn=self.head_turn(),
            used_ms=now_ms,
        )
        items = update_item(before.sid, self.meta.n, update)
        if self.meta.n - before.base_n >= COMPACT_UPDATES:
            items = self._compacted(self.document.encode())
        items.update(view_items(before.sid, entries, fields))
        items.update(head_item(self.meta))
        self._table.put(items)
        return Update(
            sid=before.sid,
            epoch=before.epoch,
            standby=before.standby,
            n=before.n + 1,
            prev_chain=before.chain,
            update=update,
            entries=dict(entries),
            fields=dict(fields),
            turn=self.meta.turn,
            at_ms=now_ms,
        )

    def _compacted(self, base: bytes) -> Items:
        """One base document up to the newest update in place of the base and updates before."""
        items: Items = dict.fromkeys(self._table.update_keys(self.meta.sid))
        items.update(base_item(self.meta.sid, base))
        self.meta = msgspec.structs.replace(self.meta, base_n=self.meta.n)
        return items

    def _fold_in(self, entries: Mapping[str, bytes], fields: Mapping[str, bytes]) -> None:
        for key, leaf in entries.items():
            self.fold.add(key, leaf)
            self._view_bytes += len(leaf)
        for key, leaf in fields.items():
            self.fold.add_field(key, leaf)
            self._view_bytes += len(leaf)
