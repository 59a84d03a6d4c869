"""Eventually-global keys of one node: typed reads and writes over the store's rows.

Everything is synchronous: a write joins into memory and into the open group of the log at once;
the caller releases its answer when the group is durable. Each write ticks one stamp; a batch
(MULTI, MSET, PATCH) becomes one record, so that a crash or a neighbour sees all of it or nothing.
A policy's ttl counts from the key's last write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from roost_crdt import document, outside, values
from roost_crdt.errors import BadRequest, TooLarge, Unsupported, WrongType
from roost_crdt.hlc import Stamp
from roost_crdt.limits import Limits
from roost_crdt.policy import Policy, PolicyTable
from roost_crdt.record import Record
from roost_crdt.rows import Delta, Rows, counter, doc, layout, rate, register
from roost_crdt.rows import map as map_rows
from roost_crdt.rows import set as set_rows
from roostd.node.standby import Due
from roostd.store import Store

Leaf = bytes | str

_EXPIRE: dict[int, Callable[[Rows, Stamp, int], Delta]] = {
    layout.TYPE_REGISTER: register.expire,
    layout.TYPE_COUNTER: counter.expire,
    layout.TYPE_SET: set_rows.expire,
    layout.TYPE_MAP: map_rows.expire,
    layout.TYPE_RATE: rate.expire,
    layout.TYPE_DOC: doc.expire,
}

_HEADED = ("counter", "set", "map", "doc")
"""Types whose expiry stands in the key's head."""


class _Batch:
    """Writes that will be one record."""

    def __init__(self) -> None:
        self.keys: dict[bytes, tuple[int, Rows, Delta]] = {}
        """Key -> (type, its rows now, what changed)."""
        self.rows = 0
        self.stamp: Stamp | None = None
        """The newest write's."""
        self.due_key = b""
        """A key that needs a standby's disk."""
        self.shrinks = True
        """Whether all of them delete."""


class Keys:
    """Reads and writes of eventually-global keys.

    Every method takes the key first and raises BadRequest (malformed key), NoPolicy, Unsupported
    (the key has another consistency), WrongType, TooLarge, Full or Busy; then nothing changed.
    """

    def __init__(
        self,
        store: Store,
        committed: Callable[[Record], None],
        policies: Callable[[], PolicyTable],
        now_ms: Callable[[], int],
        limits: Limits,
        admit: Callable[[], None] = lambda: None,
    ) -> None:
        """`admit` raises where own writes are refused; `committed` gets every record."""
        self._store = store
        self._admit = admit
        self._committed = committed
        self._policies = policies
        self._now_ms = now_ms
        self._limits = limits
        self._value_bytes_max = limits.value_bytes_max
        self.collected: Callable[[], bool] = lambda: False
        """Whether dead rows were ever dropped here."""
        self._batch: _Batch | None = None
        self.check_standby: Callable[[bytes], None] = lambda key: None
        """Raises where a write that needs a standby's disk would find none."""
        self._due: Due | None = None

    # --- reads ---

    def policy(self, key: bytes, *types: str) -> Policy:
        """The key's policy, if it is eventually-global and of one of `types` (none = any)."""
        layout.check_key(key)
        policy = self._policies().find(key)
        if policy.consistency != "eventually-global":
            raise Unsupported(
                f"{_shown(key)} is {policy.consistency} by policy {policy.name}: "
                "it has no eventually-global value"
            )
        if types and policy.type not in types:
            raise WrongType(
                f"{_shown(key)} is a {policy.type} by policy {policy.name}, "
                f"not a {' or '.join(types)}"
            )
        return policy

    def kind(self, key: bytes) -> str | None:
        """The type of a key that exists now, else None."""
        policy = self.policy(key)
        return policy.type if self._exists(policy, key) else None

    def exists(self, key: bytes) -> bool:
        return self._exists(self.policy(key), key)

    def get(self, key: bytes) -> Leaf | None:
        policy = self.policy(key, "register")
        return values.register_value(self._rows(policy, key), self._now_ms())

    def count(self, key: bytes) -> int | None:
        """A counter's value (scaled by 1e9 under a float policy); None if there is none."""
        policy = self.policy(key, "counter")
        return values.counter_value(self._rows(policy, key), self._now_ms())

    def rate(self, key: bytes) -> int:
        policy = self.policy(key, "rate")
        return values.rate_estimate(self._rows(policy, key), self._now_ms(), policy.window_ms)

    def members(self, key: bytes) -> list[Leaf]:
        policy = self.policy(key, "set")
        return values.set_members(self._rows(policy, key), self._now_ms())

    def contains(self, key: bytes, leaf: Leaf) -> bool:
        policy = self.policy(key, "set")
        return values.set_contains(self._rows(policy, key), leaf, self._now_ms())

    def fields(self, key: bytes) -> dict[bytes, Leaf | int]:
        policy = self.policy(key, "map")
        return values.map_fields(self._rows(policy, key), self._now_ms())

    def field(self, key: bytes, name: bytes) -> Leaf | int | None:
        policy = self.policy(key, "map")
        return values.map_field(self._rows(policy, key), name, self._now_ms())

    def doc(self, key: bytes) -> bytes | None:
        """A whole document as one Yjs update; None if there is none."""
        policy = self.policy(key, "doc")
        return values.doc_update(self._rows(policy, key), self._now_ms())

    def expires_ms(self, key: bytes) -> int | None:
        """Wall milliseconds at which the key ends; 0 = never, None = there is no such key."""
        policy = self.policy(key)
        if not self._exists(policy, key):
            return None
        rows = self._rows(policy, key)
        return values.expires_ms(policy.row_type, rows, self._now_ms())

    def stamp(self, key: bytes) -> Stamp | None:
        """The stamp of the key's newest write, a delete too; None where its type keeps none."""
        policy = self.policy(key)
        return values.newest_stamp(policy.row_type, self._rows(policy, key))

    def scan(self, prefix: bytes, after: bytes, limit: int) -> list[bytes]:
        """Live keys in order that begin with `prefix` and come after `after`. CorruptData while
        some may be missing."""
        found = self._store.keys(prefix, after, limit, self._now_ms())
        self._store.suspects.check_all()  # after it: rows go only once their buckets are suspect
        return found

    # --- writes ---

    def put(
        self,
        key: bytes,
        leaf: Leaf,
        *,
        expires_ms: int | None = None,
        keep_ttl: bool = False,
        policy: Policy | None = None,
    ) -> None:
        """Set a register. `expires_ms`: None = the policy's ttl, 0 = never. `policy`: the key's,
        where the caller has found it and has seen that it is an eventually-global register's."""
        if policy is None or key[0] == layout.RESERVED[0]:
            policy = self.policy(key, "register")
        if len(leaf) > self._value_bytes_max:
            self._check_value(key, leaf)
        rows = self._rows(policy, key)
        if keep_ttl:
            expires_ms = values.expires_ms(layout.TYPE_REGISTER, rows, self._now_ms())
        elif expires_ms is None:
            expires_ms = self._policy_expiry(policy) if policy.ttl_ms else 0
        stamp = self._stamp()
        delta = register.put(rows, leaf, stamp, expires_ms)
        if self._batch is None and policy.durability != "standby":
            self._commit(stamp, ((key, layout.TYPE_REGISTER, delta),), b"")
        else:
            self._write(key, policy, rows, delta, stamp)

    def incr(self, key: bytes, by: int) -> int:
        """Add to a counter or a rate; the new value (or estimate) here."""
        policy = self.policy(key, "counter", "rate")
        now_ms = self._now_ms()
        rows = self._rows(policy, key)
        stamp = self._stamp()
        if policy.type == "rate":
            if by < 0:
                raise BadRequest(f"{_shown(key)} is a rate: it only counts up")
            delta = rate.add(rows, by, stamp, now_ms, policy.window_ms)
            self._write(key, policy, rows, delta, stamp, keep_expiry=True)
            return values.rate_estimate(self._rows(policy, key), now_ms, policy.window_ms)
        self._write(key, policy, rows, counter.add(rows, by, stamp, now_ms), stamp)
        return values.counter_value(self._rows(policy, key), now_ms) or 0

    def assign(
        self, key: bytes, value: int, *, expires_ms: int | None = None, keep_ttl: bool = False
    ) -> None:
        """Set a counter: a reset of what is observed here and an addition, in one record."""
        policy = self.policy(key, "counter")
        now_ms = self._now_ms()
        rows = self._rows(policy, key)
        stamp = self._stamp()
        if keep_ttl:
            expires_ms = values.expires_ms(layout.TYPE_COUNTER, rows, now_ms)
        elif expires_ms is None:
            expires_ms = self._policy_expiry(policy)
        delta = counter.assign(rows, value, stamp, now_ms)
        if expires_ms or values.expires_ms(layout.TYPE_COUNTER, rows, now_ms):
            delta |= counter.expire({**rows, **delta}, stamp, expires_ms)
        self._write(key, policy, rows, delta, stamp, keep_expiry=True)

    def add(self, key: bytes, leaves: Sequence[Leaf]) -> int:
        """Add elements to a set; how many were not there."""
        policy = self.policy(key, "set")
        self._check_count(key, len(leaves))
        for leaf in leaves:
            self._check_value(key, leaf)
        now_ms = self._now_ms()
        rows = self._rows(policy, key)
        fresh = sum(not values.set_contains(rows, leaf, now_ms) for leaf in dict.fromkeys(leaves))
        stamp = self._stamp()
        delta = set_rows.add(rows, leaves, stamp, now_ms, vv=self._store.vv)
        self._write(key, policy, rows, delta, stamp)
        return fresh

    def remove(self, key: bytes, leaves: Sequence[Leaf]) -> int:
        """Remove elements from a set as observed here; how many were there."""
        policy = self.policy(key, "set")
        self._check_count(key, len(leaves))
        now_ms = self._now_ms()
        rows = self._rows(policy, key)
        there = [x for x in dict.fromkeys(leaves) if values.set_contains(rows, x, now_ms)]
        if there:
            delta = set_rows.remove(rows, there, now_ms)
            self._write(key, policy, rows, delta, self._stamp(), shrinks=True)
        return len(there)

    def map_put(self, key: bytes, fields: Mapping[bytes, Leaf]) -> int:
        """Set fields of a map; how many were not there."""
        policy = self.policy(key, "map")
        self._check_count(key, len(fields))
        for name, leaf in fields.items():
            self._check_field(key, name)
            self._check_value(key, leaf)
        now_ms = self._now_ms()
        rows = self._rows(policy, key)
        fresh = sum(values.map_field(rows, name, now_ms) is None for name in fields)
        stamp = self._stamp()
        self._write(key, policy, rows, map_rows.put(rows, fields, stamp, now_ms), stamp)
        return fresh

    def map_drop(self, key: bytes, names: Sequence[bytes]) -> int:
        """Remove fields of a map; how many were there."""
        policy = self.policy(key, "map")
        self._check_count(key, len(names))
        now_ms = self._now_ms()
        rows = self._rows(policy, key)
        there = [n for n in dict.fromkeys(names) if values.map_field(rows, n, now_ms) is not None]
        if there:
            stamp = self._stamp()
            delta = map_rows.remove(rows, there, stamp)
            self._write(key, policy, rows, delta, stamp, shrinks=True)
        return len(there)

    def map_incr(self, key: bytes, name: bytes, by: int) -> int:
        """Add to a counting field of a map whose policy says `fields = "counter"`."""
        policy = self.policy(key, "map")
        if not policy.counter_fields:
            raise Unsupported(
                f"the fields of {_shown(key)} are registers: concurrent increments would be lost; "
                f'say fields = "counter" in policy {policy.name}'
            )
        self._check_field(key, name)
        now_ms = self._now_ms()
        rows = self._rows(policy, key)
        stamp = self._stamp()
        self._write(key, policy, rows, map_rows.add(rows, name, by, stamp, now_ms), stamp)
        value = values.map_field(self._rows(policy, key), name, now_ms)
        assert isinstance(value, int), "a field that was just incremented counts"
        return value

    def doc_put(self, key: bytes, update: bytes, principal: str) -> bool:
        """Take a Yjs update of `principal`'s client into a document; False if nothing is new in it.

        Raises besides what `outside.admit` does.
        """
        policy = self.policy(key, "doc")
        now_ms = self._now_ms()
        rows = self._rows(policy, key)
        owner = outside.owner_of(principal)
        news = outside.admit(rows, update, now_ms, owner, self._limits)
        if not news:
            return False
        stamp, vv = self._stamp(), self._store.vv
        delta = doc.put(rows, news, stamp, now_ms, yjs=document, vv=vv, owner=owner)
        self._write(key, policy, rows, delta, stamp)
        return True

    def delete(self, key: bytes) -> bool:
        """Remove what is observed here; False if there was nothing."""
        policy = self.policy(key)
        if not self._exists(policy, key):
            return False
        rows = self._rows(policy, key)
        now_ms = self._now_ms()
        stamp = self._stamp()
        if policy.type == "rate":
            delta = rate.delete(rows, now_ms)
        elif policy.type == "register":
            delta = register.delete(rows, stamp)
        elif policy.type == "counter":
            delta = counter.delete(rows, stamp, now_ms)
        elif policy.type == "set":
            delta = set_rows.delete(rows, self._store.vv, stamp)
        elif policy.type == "doc":
            delta = doc.delete(rows, self._store.vv, stamp, yjs=document)
        else:
            delta = map_rows.delete(rows, stamp)
        self._write(key, policy, rows, delta, stamp, shrinks=True)
        return True

    def expire(self, key: bytes, expires_ms: int) -> bool:
        """Set when the key ends (0 = never); False if there is no such key."""
        policy = self.policy(key)
        if not self._exists(policy, key):
            return False
        if expires_ms and expires_ms <= self._now_ms():
            return self.delete(key)
        rows = self._rows(policy, key)
        stamp = self._stamp()
        delta = _EXPIRE[policy.row_type](rows, stamp, expires_ms)
        self._write(key, policy, rows, delta, stamp, keep_expiry=True)
        return True

    @contextmanager
    def batch(self) -> Iterator[None]:
        """All writes inside become one record; an error that leaves it undoes them all."""
        if self._batch is not None:
            yield
            return
        batch = self._batch = _Batch()
        try:
            yield
        finally:
            self._batch = None
        ops = [(key, type_, delta) for key, (type_, _, delta) in batch.keys.items() if delta]
        if ops:
            assert batch.stamp is not None, "a batch with writes has a stamp"
            self._commit(batch.stamp, ops, batch.due_key, batch.shrinks)

    def take_due(self) -> Due | None:
        """What was written since the last call and has to reach a standby's disk too."""
        due = self._due
        if due is not None:
            self._due = None
        return due

    # --- inside ---

    def _commit(
        self,
        stamp: Stamp,
        ops: Sequence[tuple[bytes, int, Delta]],
        due_key: bytes,
        shrinks: bool = False,
    ) -> None:
        record = self._store.commit(stamp, ops, shrinks=shrinks)
        self._committed(record)
        if due_key:
            self._due = Due(record.actor, record.hlc, due_key)

    def _rows(self, policy: Policy, key: bytes) -> Rows:
        batch = self._batch
        if batch is not None and key in batch.keys:
            return batch.keys[key][1]
        held = self._store.key_rows(key)
        if held.type and held.type != policy.row_type:
            raise WrongType(
                f"{_shown(key)} is stored as a {layout.TYPE_NAMES[held.type]} and policy "
                f"{policy.name} says {policy.type}: delete it under its old policy first"
            )
        return held.rows

    def _exists(self, policy: Policy, key: bytes) -> bool:
        return values.exists(policy.row_type, self._rows(policy, key), self._now_ms())

    def _stamp(self) -> Stamp:
        self._admit()
        return self._store.stamp(self._now_ms())

    def _policy_expiry(self, policy: Policy) -> int:
        return self._now_ms() + policy.ttl_ms if policy.ttl_ms else 0

    def _write(
        self,
        key: bytes,
        policy: Policy,
        rows: Rows,
        delta: Delta,
        stamp: Stamp,
        *,
        keep_expiry: bool = False,
        shrinks: bool = False,
    ) -> None:
        """`shrinks`: it deletes, and so makes room in a full store; the expiry stays then too."""
        keep_expiry = keep_expiry or shrinks
        if delta and not rows and policy.type != "register" and self.collected():
            # Elsewhere an expiry may still hide what was collected here: it must not hide this.
            delta = delta | _EXPIRE[policy.row_type](delta, stamp, 0)
        if policy.ttl_ms and not keep_expiry and policy.type in _HEADED:
            ends_ms = self._policy_expiry(policy)
            delta = delta | _EXPIRE[policy.row_type]({**rows, **delta}, stamp, ends_ms)
        due_key = b""
        if policy.durability == "standby" and delta:
            self.check_standby(key)
            due_key = key
        batch = self._batch
        if batch is None:
            if delta:
                self._commit(stamp, [(key, policy.row_type, delta)], due_key, shrinks)
            return
        _, _, earlier = batch.keys.get(key, (0, rows, {}))
        batch.keys[key] = (policy.row_type, {**rows, **delta}, {**earlier, **delta})
        batch.stamp = stamp
        batch.shrinks = batch.shrinks and shrinks
        batch.rows += len(delta)
        batch.due_key = due_key or batch.due_key
        self._check_count(key, len(batch.keys))
        if batch.rows > self._limits.batch_rows_max:
            raise TooLarge(
                f"{_shown(key)}: with it one transaction changes more than "
                f"{self._limits.batch_rows_max} rows (elements, fields, counts); split it"
            )
        if policy.type == "doc":
            self._check_docs(key, batch)

    def _check_value(self, key: bytes, leaf: Leaf) -> None:
        size = len(leaf)
        if size > self._limits.value_bytes_max:
            raise TooLarge(
                f"{_shown(key)}: a value of {size} bytes is over limits.value_max "
                f"({self._limits.value_bytes_max} bytes)",
                limit=self._limits.value_bytes_max,
            )

    def _check_docs(self, key: bytes, batch: _Batch) -> None:
        deltas = [delta for type_, _, delta in batch.keys.values() if type_ == layout.TYPE_DOC]
        size = sum(
            len(update)
            for delta in deltas
            for part, row in delta.items()
            if part[0] in (layout.TAG_DOC, layout.TAG_DOC_ERASURE)
            for update in doc.updates_of(part, row)
        )
        if len(deltas) > 1 and size > self._limits.batch_doc_bytes_max:
            raise TooLarge(
                f"{_shown(key)}: with it one transaction writes {size} bytes of rows of "
                f"{len(deltas)} documents; several together may have "
                f"{self._limits.batch_doc_bytes_max}"
            )

    def _check_field(self, key: bytes, name: bytes) -> None:
        if len(name) > self._limits.field_bytes_max:
            raise BadRequest(
                f"{_shown(key)}: a field name of {len(name)} bytes is over "
                f"{self._limits.field_bytes_max}"
            )

    def _check_count(self, key: bytes, count: int) -> None:
        if count > self._limits.batch_ops_max:
            raise TooLarge(
                f"{_shown(key)}: {count} operations in one write are over "
                f"{self._limits.batch_ops_max}; split them"
            )


def _shown(key: bytes) -> str:
    return key.decode("utf-8", "backslashreplace")
