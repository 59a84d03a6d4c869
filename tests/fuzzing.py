"""Mutated inputs for whatever reads foreign bytes: seeded, counted, each failure shown as hex.

`ROOST_FUZZ_INPUTS` is about how many inputs all targets together get (320,000 if not set, so that
frames, records and updates of documents alone are 200,000; `make soak` takes more);
`ROOST_FUZZ_SEED` chooses other ones (default 0: a red build is a change of the code). A failure
carries the target, the number and the hex of its input as a note: the hex alone replays it.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Sequence
from math import ceil
from random import Random
from typing import Any, NamedTuple

import msgspec

SHARES = {
    "frames": 100,
    "greetings": 50,
    "replica": 80,
    "snapshot rows": 40,
    "records": 100,
    "rows": 100,
    "stored rows": 50,
    "log segments": 40,
    "log entries": 40,
    "sealed indexes": 20,
    "session frames": 80,
    "session heads": 20,
    "standby": 20,
    "home": 20,
    "documents": 60,
    "updates": 60,
    "clients": 40,
    "entries": 50,
    "claims": 50,
    "tokens": 10,
    "rpc": 40,
    "resp": 60,
    "json": 60,
}
"""Inputs of each target, in thousandths of the whole or a little more."""

INPUTS = int(os.environ.get("ROOST_FUZZ_INPUTS", "320000"))
SEED = os.environ.get("ROOST_FUZZ_SEED", "0")
INPUT_CPU_S_MAX = 1.0
"""Processor time that no single input may take; the slowest honest ones take milliseconds."""

assert sum(SHARES.values()) >= 1000

INTEGERS = (0, 1, -1, 127, 128, 255, 256, 65_535, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 48)
INTEGERS += ((1 << 53) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63))
BYTES = (0x00, 0x01, 0x20, 0x7F, 0x80, 0x81, 0x90, 0x91, 0xA0, 0xC0, 0xC2, 0xC3, 0xC4, 0xC6)
BYTES += (0xC7, 0xCB, 0xCF, 0xD3, 0xD4, 0xD9, 0xDC, 0xDD, 0xDF, 0xE0, 0xFE, 0xFF)
DEPTHS = (65, 1_000, 3_000, 20_000)
MSGPACK = (
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\x7f\xff\xff\xff",
    b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + bytes(7),
    b"\xcb\x7f\xf8" + bytes(6),
    b"\xa1\xff",
    b"\xd4\x01\x00",
    b"\xd6\xff\xff\xff\xff\xff",
    b"\xc7\x0c\xff" + b"\xff" * 12,
    b"\x81\x90\xc0",
    b"\xc1",
)
VARINTS = (
    b"\xff\xff\xff\xff\x0f",
    b"\xff" * 8 + b"\x01",
    b"\xff" * 12,
    b"\x80\x00",
    b"\xfe\xff\xff\xff\x0f\x00",
    b"\x00\xfe\xff\xff\xff\x0f",
    b"\x76\x01\x01a" * 3,
    b"\x75\x01" * 3,
    b"\x7b",
    b"\x0a",
)

_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder().decode


def inputs(target: str) -> int:
    """How many inputs a target gets."""
    return ceil(INPUTS * SHARES[target] / 1000)


class Mutator:
    """Mutants of valid inputs: of their bytes, and of their tree where they are MessagePack."""

    def __init__(
        self, seeds: Sequence[bytes], *, random: Random, tokens: Sequence[bytes], tree: bool
    ) -> None:
        self._seeds = list(seeds)
        self._random = random
        self._tokens = list(tokens)
        self._tree = tree
        self._byte_changes = (
            self._flip,
            self._flip,
            self._set,
            self._set,
            self._cut,
            self._splice,
            self._delete,
            self._repeat,
            self._insert,
            self._length,
            self._token,
            self._token,
        )

    def next(self) -> bytes:
        """One mutant, 1 to 4 changes away from a seed."""
        random = self._random
        raw = random.choice(self._seeds)
        if self._tree and random.random() < 0.6:
            raw = self._changed_tree(raw)
            if random.random() < 0.7:
                return raw
        if random.random() < 0.01:
            return self._nest(raw)
        for _ in range(random.choice((1, 1, 1, 2, 4))):
            raw = random.choice(self._byte_changes)(raw)
        return raw

    # -- bytes

    def _place(self, raw: bytes) -> int:
        return self._random.randrange(len(raw)) if raw else 0

    def _flip(self, raw: bytes) -> bytes:
        at = self._place(raw)
        return (
            raw[:at]
            + bytes([(raw[at : at + 1] or b"\0")[0] ^ 1 << self._random.randrange(8)])[: len(raw)]
            + raw[at + 1 :]
        )

    def _set(self, raw: bytes) -> bytes:
        at = self._place(raw)
        return raw[:at] + bytes([self._random.choice(BYTES)]) + raw[at + 1 :]

    def _cut(self, raw: bytes) -> bytes:
        return raw[: self._place(raw)]

    def _splice(self, raw: bytes) -> bytes:
        other = self._random.choice(self._seeds)
        return raw[: self._place(raw)] + other[self._place(other) :]

    def _delete(self, raw: bytes) -> bytes:
        at = self._place(raw)
        return raw[:at] + raw[at + self._random.randint(1, 8) :]

    def _repeat(self, raw: bytes) -> bytes:
        at = self._place(raw)
        end = at + self._random.randint(1, 32)
        return raw[:end] + raw[at:end] * self._random.choice((1, 1, 2, 100)) + raw[end:]

    def _insert(self, raw: bytes) -> bytes:
        at = self._place(raw)
        return raw[:at] + self._random.randbytes(self._random.randint(1, 8)) + raw[at:]

    def _length(self, raw: bytes) -> bytes:
        """Another number where 1, 2, 4 or 8 bytes may be a length, a count or a clock."""
        at, size = self._place(raw), self._random.choice((1, 2, 4, 8))
        number = self._random.choice(INTEGERS) % (1 << 8 * size)
        return raw[:at] + number.to_bytes(size, "big") + raw[at + size :]

    def _token(self, raw: bytes) -> bytes:
        at, token = self._place(raw), self._random.choice(self._tokens)
        return raw[:at] + token + raw[at + self._random.choice((0, 0, 1, len(token))) :]

    def _nest(self, raw: bytes) -> bytes:
        at, depth = self._place(raw), self._random.choice(DEPTHS)
        opening = self._random.choice((b"\x91", b"\x81\x01", b"[", b'{"a":', b"*1\r\n"))
        return raw[:at] + opening * depth + raw[at:]

    # -- trees

    def _changed_tree(self, raw: bytes) -> bytes:
        try:
            return _encode(self._changed(_decode(raw)))
        except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError):
            return self._flip(raw)

    def _changed(self, node: Any) -> Any:
        random = self._random
        if isinstance(node, list) and node and random.random() < 0.9:
            items = list(node)
            at = random.randrange(len(items))
            change = random.random()
            if change < 0.8:
                items[at] = self._changed(items[at])
            elif change < 0.87:
                del items[at]
            elif change < 0.94:
                items.insert(at, items[random.randrange(len(items))])
            else:
                items.append(self._scalar(None))
            return items
        if isinstance(node, dict) and node and random.random() < 0.9:
            pairs = list(node.items())
            at = random.randrange(len(pairs))
            key, value = pairs[at]
            change = random.random()
            if change < 0.6:
                pairs[at] = (key, self._changed(value))
            elif change < 0.8:
                pairs[at] = (self._scalar(key), value)
            else:
                del pairs[at]
            return dict(pairs)
        if isinstance(node, bytes) and node and random.random() < 0.7:
            inner = self._changed_tree(node) if node[0] >= 0x90 else b""
            return inner or random.choice(self._byte_changes)(node)
        return self._scalar(node)

    def _scalar(self, node: Any) -> Any:
        random = self._random
        kind = random.random()
        if isinstance(node, int) and kind < 0.4:
            return node + random.choice((1, -1, 1 << 16, -(1 << 16)))
        if isinstance(node, str) and kind < 0.4:
            return random.choice((node[:-1], node + "x", "", node.upper(), "\0", "é/../"))
        if kind < 0.8:
            return random.choice(INTEGERS)
        return random.choice((None, True, 1.5, "", "x" * 300, b"", b"x" * 300, [], {}, [[]], "a.b"))


class Tally(NamedTuple):
    """What became of a target's inputs."""

    accepted: int
    refused: int


def throw(
    target: str,
    seeds: Sequence[bytes],
    check: Callable[[bytes], None],
    refusals: tuple[type[Exception], ...],
    *,
    tokens: Sequence[bytes] = MSGPACK,
    tree: bool = True,
    accepts: bool = True,
) -> Tally:
    """Throw a target's share of mutants at `check`, which may raise nothing but `refusals`.

    Every seed has to pass as it is. Some mutants have to be refused and (if `accepts`) some
    taken: inputs that never get anywhere would prove nothing.
    """
    for seed in seeds:
        check(seed)
    mutator = Mutator(seeds, random=Random(f"{SEED}:{target}"), tokens=tokens, tree=tree)
    accepted = refused = 0
    slowest_s = 0.0
    gc.freeze()  # what other tests have left is not gone through on an input's time
    raw, why = b"", "-"
    try:
        while accepted + refused < inputs(target):
            raw = mutator.next()
            began_s = time.thread_time()
            try:
                check(raw)
                accepted += 1
            except refusals as error:
                why = str(error)
                refused += 1
            assert why, "a refusal says why"
            took_s = time.thread_time() - began_s
            slowest_s = max(slowest_s, took_s)
            assert took_s < INPUT_CPU_S_MAX, f"one input took {took_s:.1f} s"
    except BaseException as fault:  # a hang that pytest-timeout ends is no Exception
        number = accepted + refused
        fault.add_note(f"target {target!r}, input {number}: bytes.fromhex({raw.hex()!r})")
        raise
    finally:
        gc.unfreeze()
    print(f"{target}: {accepted} taken, {refused} refused, slowest {slowest_s:.3f} s")
    assert refused > accepted // 100
    assert accepted or not accepts or inputs(target) < 1_000
    return Tally(accepted, refused)
