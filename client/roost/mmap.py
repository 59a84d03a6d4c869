"""Reads by shared memory: the daemon's LMDB index, opened read-only by this process.

One read transaction a call, so that no reader ever pins old pages; none where nothing has been
committed since the same key was read before, which the meta pages of LMDB's file tell: then the
answer is what was read then. The index trails the log by
the apply interval: where it is behind the client's own last acknowledgement the socket is asked
instead, at once. Reading it takes the right to write its lock table, and the daemon's PID
namespace (LMDB clears the slots of dead readers by their process ids); where one is missing, or
the file is not the daemon's, `get` answers None and the caller uses the socket.
"""

from __future__ import annotations

import os
import threading
import weakref
from struct import Struct
from time import monotonic, time
from typing import Any
from zlib import crc32

import lmdb
import msgspec

from roost import absence, requests
from roost.address import Address
from roost.environment import HEAD_A, Index, acquire, file_identity, release
from roost.indexmeta import SCHEMA, index_directory, read_applied_seq, read_meta
from roost.probe import PERIOD_S, Probe
from roost.types import Hello, Reading
from roost_crdt import values
from roost_crdt.errors import ConfigError, CorruptData, NoPolicy
from roost_crdt.policy import Policy, PolicyTable
from roost_crdt.rows import Rows, decode_row, layout, leaf, register

__all__ = ["IndexReader"]

TARGETS_MAX = 16_384
"""Keys whose policy and row name are kept; as many again of those used before them."""
KEPT_BYTES_MAX = 512
"""A stored row that is no larger is kept with its target."""
REOPEN_S = 1.0
CHUNK_ROWS = 1000
CHUNK_S = 0.005
SCANS_MAX = 3

_decode = msgspec.msgpack.Decoder(tuple[int, int, int, bytes, int, int, int]).decode
_decode_json = msgspec.json.Decoder().decode
_checksum = Struct(">I").unpack_from

SCALE = 10**9
"""A float counter counts in units of 1e-9."""


Kept = tuple[int, bool, Any]
NOTHING_KEPT: Kept = (-1, False, None)


class Target:
    """Where a key is, and what was last read there.

    `name` is a register's one row, else the prefix of all rows; `seed` is the checksum of what
    comes before a register's body: type and name. `kept`: the transaction that read the value,
    whether it is JSON text yet, and the value; only small ones that do not end by themselves.
    """

    __slots__ = ("is_register", "kept", "name", "policy", "seed")

    def __init__(self, policy: Policy, name: bytes, seed: int, is_register: bool) -> None:
        self.policy = policy
        self.name = name
        self.seed = seed
        self.is_register = is_register
        self.kept: Kept = NOTHING_KEPT


Seen = tuple[int, int]
"""What the newest transaction showed: its id, and the applied_seq in it."""

NOTHING_SEEN: Seen = (-1, 0)


class Unreadable(Exception):
    """The index cannot answer this read; the daemon can."""


class IndexReader:
    """The reads of one client. Opens the index when it is first needed; never fatal."""

    def __init__(self, address: Address) -> None:
        self._tells_prefix = not (address.username or address.password or address.db)
        self._probe = Probe(address)
        self._lock = threading.Lock()
        self._probe_due = 0.0
        self._open_due = 0.0
        self._hello: Hello | None = None
        self._index: Index | None = None
        self._acked_seq = 0
        self._seen = NOTHING_SEEN
        self._synced_at = 0.0
        self._unsynced: tuple[int, float] | None = None
        """(seq, moment): once this seq is applied, the index holds all there was then."""
        self._policies: PolicyTable | None = None
        self._policies_text = b""
        self._targets: dict[str | bytes, Target | None] = {}
        self._former_targets: dict[str | bytes, Target | None] = {}
        _READERS.add(self)

    # --- what the client learns from the socket -----------------------------------------------

    def greeted(self, hello: Hello) -> None:
        """A connection was greeted; another store ends what was known of the former one."""
        if hello is self._hello:
            return
        with self._lock:
            if self._hello is None or hello.store_id != self._hello.store_id:
                self._other_store()
            self._hello = hello
            self._heard(hello, monotonic())
            self._probe.node_up = True

    def acknowledged(self, seq: int) -> None:
        """This client's write was acknowledged under `seq`."""
        with self._lock:
            self._acked_seq = max(self._acked_seq, seq)

    def close(self) -> None:
        """Let go of the index and the probe."""
        with self._lock:
            self._forget()
            self._probe.close()
            self._hello = None

    def after_fork(self) -> None:
        """In a forked child: the connection is the parent's, a held lock nobody's."""
        self._lock = threading.Lock()
        self._probe.close()
        self._probe_due = 0.0
        self._open_due = 0.0

    # --- reading ------------------------------------------------------------------------------

    def get(self, key: str | bytes, max_lag_ms: int | None) -> Reading | None:
        """The value of an eventually-global key; None where the socket has to be asked."""
        now = monotonic()
        if now >= self._probe_due:
            self._look_up(now)
        index = self._index
        if index is None or index.closed:
            index = self._reopened(now)
            if index is None:
                return None
        try:
            target = self._targets[key]
        except (KeyError, TypeError):
            target = self._find(key)
        if target is None:
            return None
        txn_id, applied_seq = self._seen
        kept_id, is_json, value = target.kept
        if kept_id == txn_id and applied_seq >= self._acked_seq:
            head_a, head_b = index.heads[HEAD_A], index.heads[index.head_b]
            unchanged = kept_id == (head_a if head_a > head_b else head_b)
        else:
            unchanged = False
        try:
            if unchanged:
                value = _decode_json(value) if is_json else value
            elif target.is_register:
                txn = index.begin(index.rows)
                try:
                    if txn.id() != txn_id:
                        txn_id, applied_seq = self._moved(index, txn)
                    if applied_seq < self._acked_seq:
                        return None
                    stored = txn.get(target.name)
                    if stored is None:
                        absence.prove(txn, target.name)
                finally:
                    txn.abort()
                value = _register(target, txn_id, stored)
            else:
                value = self._read_rows(index, target.policy, target.name)
        except (lmdb.Error, CorruptData, Unreadable):
            return None
        lag_ms = int((now - self._synced_at) * 1000)
        if max_lag_ms is not None and lag_ms > requests.whole(max_lag_ms, "max_lag_ms", 0):
            return None
        return Reading(value, lag_ms, "mmap", self._probe.node_up)

    def _read_rows(self, index: Index, policy: Policy, prefix: bytes) -> Any:
        rows = self._scan(index, policy.row_type, prefix)
        now_ms = _now_ms()
        if not values.exists(policy.row_type, rows, now_ms):
            return None
        if policy.type == "counter":
            count = values.counter_value(rows, now_ms)
            return unscaled(count) if policy.float_ and count is not None else count
        if policy.type == "rate":
            return values.rate_estimate(rows, now_ms, policy.window_ms)
        if policy.type == "set":
            return [python_value(member) for member in values.set_members(rows, now_ms)]
        return {
            requests.plain(name): shown if isinstance(shown, int) else python_value(shown)
            for name, shown in values.map_fields(rows, now_ms).items()
        }

    def _scan(self, index: Index, row_type: int, prefix: bytes) -> Rows:
        """All rows of one key as they were at one moment, in short transactions."""
        for _ in range(SCANS_MAX):
            rows: Rows = {}
            after = prefix
            txn_id: int | None = None
            while True:
                txn = index.begin(index.rows)
                try:
                    if txn_id is None:
                        txn_id, applied_seq = self._seen
                        if txn.id() != txn_id:
                            txn_id, applied_seq = self._moved(index, txn)
                        if applied_seq < self._acked_seq:
                            raise Unreadable
                    elif txn.id() != txn_id:
                        break  # the daemon has applied more in between: begin again
                    more = _read_chunk(txn, row_type, prefix, after, rows)
                finally:
                    txn.abort()
                if more is None:
                    return rows
                after = more
        raise Unreadable

    # --- slow paths ---------------------------------------------------------------------------

    def _moved(self, index: Index, txn: Any) -> Seen:
        """The daemon has applied more since the last read."""
        seen = self._seen = (txn.id(), read_applied_seq(index, txn))
        unsynced = self._unsynced
        if unsynced is not None and seen[1] >= unsynced[0]:
            self._synced_at = max(self._synced_at, unsynced[1])
        return seen

    def _look_up(self, now: float) -> None:
        """Once in PERIOD_S: is the daemon there, is the file still its, what are its policies?"""
        if not self._lock.acquire(blocking=False):
            return
        try:
            if self._hello is None:
                return
            asked_before = self._probe.hello
            self._probe.step(now)
            hello = self._probe.hello
            if hello is not None and hello is not asked_before:
                if hello.store_id != self._hello.store_id:
                    self._other_store()
                self._hello = hello
                self._heard(hello, self._probe.asked_at)
            self._probe_due = now + PERIOD_S
            index = self._index
            if index is not None and not index.closed:
                try:
                    if file_identity(index.path) == index.identity:
                        self._adopt(index)
                        return
                except (OSError, lmdb.Error, Unreadable):
                    pass
                self._forget()
        finally:
            self._lock.release()

    def _heard(self, hello: Hello, moment: float) -> None:
        """The node said how far it is: its index follows once it has applied that."""
        synced_at = moment - hello.lag_ms / 1000
        if self._seen[1] >= hello.seq or hello.applied_seq >= hello.seq:
            self._synced_at = max(self._synced_at, synced_at)
        else:
            if self._unsynced is None and not self._synced_at:
                self._synced_at = synced_at
            self._unsynced = (hello.seq, synced_at)

    def _reopened(self, now: float) -> Index | None:
        """The index, opened (again) if this process may; None if not, or not yet."""
        with self._lock:
            index = self._index
            if index is not None and not index.closed:
                return index
            hello = self._hello
            if hello is None or now < self._open_due or not self._may_open(hello):
                return None
            self._forget()
            self._open_due = now + REOPEN_S
            try:
                index = acquire(index_directory(hello.data))
            except (OSError, lmdb.Error):
                return None
            self._index = index
            try:
                self._adopt(index)
            except (lmdb.Error, Unreadable):
                self._forget()
                return None
            self._open_due = 0.0
            return index

    def _may_open(self, hello: Hello) -> bool:
        if not (hello.data and hello.store_id and hello.pid_ns):
            return False
        if hello.prefix is None and not self._tells_prefix:
            return False
        try:
            return os.stat("/proc/self/ns/pid").st_ino == hello.pid_ns
        except OSError:
            return False

    def _adopt(self, index: Index) -> None:
        """Check whose file it is, and take over its policies if they have changed."""
        assert self._hello is not None, "an index is only opened for a node that is known"
        meta = read_meta(index)
        hello = self._hello
        if meta.schema != SCHEMA or meta.store_id != hello.store_id or not meta.policies:
            raise Unreadable
        if meta.pid_ns and meta.pid_ns != hello.pid_ns:
            raise Unreadable
        if meta.policies != self._policies_text:
            try:
                self._policies = PolicyTable.parse(meta.policies.decode(), "policies.toml")
            except (ConfigError, UnicodeDecodeError):
                raise Unreadable from None  # of a newer daemon
            self._policies_text = meta.policies
            self._targets, self._former_targets = {}, {}

    def _other_store(self) -> None:
        self._forget()
        self._acked_seq = 0
        self._synced_at = 0.0
        self._unsynced = None
        self._open_due = 0.0

    def _forget(self) -> None:
        index, self._index = self._index, None
        if index is not None:
            release(index)
        self._seen = NOTHING_SEEN
        self._policies = None
        self._policies_text = b""
        self._targets, self._former_targets = {}, {}

    def _find(self, key: str | bytes) -> Target | None:
        """Where a key is; None if the daemon has to be asked (also to refuse the key)."""
        former = self._former_targets.pop(key, None)
        if former is not None:
            self._targets[key] = former
            return former
        policies, hello = self._policies, self._hello
        if policies is None or hello is None:
            return None
        raw = (hello.prefix or b"") + requests.key_bytes(key)
        try:
            policy = policies.find(raw)
        except NoPolicy:
            return None
        target: Target | None = None
        if policy.row_type in _READABLE and len(raw) <= layout.KEY_BYTES_MAX:
            is_register = policy.type == "register"
            name = layout.row_key(raw, layout.VALUE if is_register else b"")
            seed = crc32(name, crc32(bytes([layout.TYPE_REGISTER])))
            target = Target(policy, name, seed, is_register)
        if len(self._targets) >= TARGETS_MAX:
            self._former_targets, self._targets = self._targets, {}
        self._targets[key] = target
        return target


_READABLE = frozenset(
    {
        layout.TYPE_REGISTER,
        layout.TYPE_COUNTER,
        layout.TYPE_SET,
        layout.TYPE_MAP,
        layout.TYPE_RATE,
    }
)


def _register(target: Target, txn_id: int, stored: bytes | None) -> Any:
    """The value in a register's stored row; the short way for one that lives and never ends.

    `layout.unseal` and `register.decode` do the same in four times the time; whatever is not
    plain goes to them, faults included.
    """
    if stored is None:
        target.kept = (txn_id, False, None)
        return None
    body = stored[5:]
    if len(stored) > 5 and crc32(body, target.seed) == _checksum(stored)[0]:
        try:
            _, _, kind, value, _, _, expires_ms = _decode(body)
            if kind == leaf.KIND_BYTES and not expires_ms:
                text = value.decode()
                if len(stored) <= KEPT_BYTES_MAX:
                    target.kept = (txn_id, False, text)
                return text
            if kind == leaf.KIND_JSON and not expires_ms:
                shown = _decode_json(value)
                if len(stored) <= KEPT_BYTES_MAX:
                    target.kept = (txn_id, True, value)
                return shown
        except (msgspec.MsgspecError, UnicodeDecodeError):
            pass
    type_code, body = layout.unseal(target.name, stored)
    if type_code != layout.TYPE_REGISTER:
        raise Unreadable
    shown = register.value({layout.VALUE: register.decode(layout.VALUE, body)}, _now_ms())
    return None if shown is None else python_value(shown)


def _now_ms() -> int:
    return int(time() * 1000)


def _read_chunk(txn: Any, row_type: int, prefix: bytes, after: bytes, rows: Rows) -> bytes | None:
    """Read rows into `rows`; the name of the next row if the transaction has lasted enough."""
    until = monotonic() + CHUNK_S
    cursor = txn.cursor()
    last = absence.before(cursor, after)
    found = cursor.set_range(after)
    count = 0
    while found:
        name, stored = cursor.item()
        if name <= last:
            raise Unreadable
        last = name
        if not name.startswith(prefix):
            absence.check(name, stored)
            return None
        if count >= CHUNK_ROWS or (count % 64 == 63 and monotonic() > until):
            return bytes(name)
        type_code, body = layout.unseal(name, stored)
        if type_code != row_type:
            raise Unreadable
        part = name[len(prefix) :]
        rows[part] = decode_row(type_code, part, body)
        count += 1
        found = cursor.next()
    return None


def python_value(shown: bytes | str) -> Any:
    """A leaf as the SDK shows it: str, bytes that are not UTF-8, or parsed JSON."""
    return requests.plain(shown) if isinstance(shown, bytes) else values.json_of(shown)


def unscaled(count: int) -> int | float:
    """The value of a float counter."""
    whole, rest = divmod(count, SCALE)
    return count / SCALE if rest else whole


_READERS: weakref.WeakSet[IndexReader] = weakref.WeakSet()


def _after_fork() -> None:
    for reader in list(_READERS):
        reader.after_fork()


os.register_at_fork(after_in_child=_after_fork)
