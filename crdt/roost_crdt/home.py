"""Who is home of a session: epochs, the standby's chain, takeover, handover.

Rules (each prevents a class of faults):

- An epoch is `(n, node)`, compared as a pair: total, static and alike everywhere. The node of the
  highest epoch is home. Every change of home or standby adds 1 to n. A home that meets a higher
  epoch is deposed at once; its turns that the new home lacks are merged forward, never dropped.
- Only the standby that the highest known epoch names takes over, holding a replica, on its own
  evidence: nothing heard from home for `takeover_after_ms` and one more probe failed.
- The standby's copy is a chain: update n is taken only on top of update n-1 with the same hash,
  else the whole document is asked for.
- The standby is chosen by rendezvous hash (Thaler and Ravishankar, 1998) among the candidates
  within 1.5x of the best round trip, in another region that residency allows.

Everything here is a pure function or a value; `roostd.sessions` carries it out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, NamedTuple

import msgspec

from roost_crdt.errors import CorruptData, PeerError
from roost_crdt.limits import DEFAULT_LIMITS

Epoch = tuple[int, str]
"""`(n, node)`: the fencing number of a home and the node that is home under it."""

CHAIN_START = bytes(16)
ACTOR_LEAP = 64
"""Epochs that a node passes over when its store writes as another actor: it may have lost a tail
in which it was home under the next ones, and entries of those exist elsewhere."""
EPOCH_MAX = (1 << 19) - 1
"""The epoch's number must fit the 19 bits it has in a document's client id."""


class Meta(msgspec.Struct, array_like=True, forbid_unknown_fields=False, frozen=True):
    """What a node knows of one session, beside its document.

    `n` and `chain` are the number of document updates and the hash over them; `base_n` is the
    update up to which the stored base document reaches. `acked_n` is what the standby has
    acknowledged (home only). `unmerged` marks a deposed home whose turns the new home has not
    acknowledged yet. `erased_ms` is not 0 once the session was erased, which is terminal.
    """

    sid: str
    epoch: Epoch
    standby: str | None
    n: int = 0
    chain: bytes = CHAIN_START
    base_n: int = 0
    acked_n: int = 0
    turn: int = 0
    used_ms: int = 0
    unmerged: bool = False
    erased_ms: int = 0
    held: bool = True
    """False: this node knows where the session lives and holds no copy (a stub)."""
    actor: int = 0
    """The actor of this node when it last entered an epoch or took the document."""

    @property
    def home(self) -> str:
        return self.epoch[1]


_meta_decoder = msgspec.msgpack.Decoder(Meta)
_encoder = msgspec.msgpack.Encoder()


def encode_meta(meta: Meta) -> bytes:
    return _encoder.encode(meta)


def decode_meta(raw: bytes) -> Meta:
    """Raises CorruptData."""
    try:
        return _meta_decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptData(f"a session's stored head cannot be read: {error}") from error


def chain_next(chain: bytes, update: bytes) -> bytes:
    """The 16-byte hash over all updates up to and with this one."""
    return hashlib.blake2b(chain + update, digest_size=16).digest()


def succeed(meta: Meta, home: str, standby: str | None, leap: int = 1) -> Meta:
    """The same session one epoch on: another home, another standby, or both."""
    n = meta.epoch[0] + leap
    assert n <= EPOCH_MAX, f"session {meta.sid} has changed its home {n} times"
    return msgspec.structs.replace(meta, epoch=(n, home), standby=standby, acked_n=0)


# --- the frames between home, standby and former home ---


class Update(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """Home to standby: one committed step. `entries` and `fields` are the plain view of it."""

    sid: str
    epoch: Epoch
    standby: str | None
    n: int
    prev_chain: bytes
    update: bytes
    entries: dict[str, bytes]
    fields: dict[str, bytes]
    turn: int
    at_ms: int


class Ack(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """Standby to home: durable up to update n of this epoch."""

    sid: str
    epoch: Epoch
    n: int
    chain: bytes


class Want(msgspec.Struct, array_like=True, tag=3, frozen=True):
    """Standby to home: the chain does not fit; send the whole document.

    From the home that its epoch names to the standby: I hold nothing of it; take over. Where
    there is none to a former home: merge what you hold.
    """

    sid: str
    epoch: Epoch


class Whole(msgspec.Struct, array_like=True, tag=4, frozen=True):
    """Home to standby: the whole document, with the place in the chain that it stands for."""

    sid: str
    epoch: Epoch
    standby: str | None
    n: int
    chain: bytes
    document: bytes
    turn: int
    at_ms: int


class Deposed(msgspec.Struct, array_like=True, tag=5, frozen=True):
    """To a node that acted under a lower epoch, or whose link came up: this one is in force."""

    sid: str
    epoch: Epoch
    standby: str | None


class Merge(msgspec.Struct, array_like=True, tag=6, frozen=True):
    """Former home to home: everything I hold; what you lack becomes a reconciled branch."""

    sid: str
    epoch: Epoch
    document: bytes
    chain: bytes = CHAIN_START


class Merged(msgspec.Struct, array_like=True, tag=7, frozen=True):
    """Home to former home: what you held when you sent `chain` is durable here and at my standby
    (unless that is you)."""

    sid: str
    epoch: Epoch
    chain: bytes = CHAIN_START


class Erase(msgspec.Struct, array_like=True, tag=8, frozen=True):
    """To every node: drop the session; terminal, outranks every epoch."""

    sid: str
    at_ms: int
    heard: bool = False
    """This is the answer to another one: it is erased here too."""


class Offer(msgspec.Struct, array_like=True, tag=9, frozen=True):
    """Home to standby, when a link comes up: this is where I am; acknowledge or want."""

    sid: str
    epoch: Epoch
    standby: str | None
    n: int
    chain: bytes
    at_ms: int


Frame = Update | Ack | Want | Whole | Deposed | Merge | Merged | Erase | Offer
_frame_decoder: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)


def encode_frame(frame: Frame) -> bytes:
    return _encoder.encode(frame)


def told_once(payload: bytes) -> bool:
    """Whether an own frame is one that nobody waits for an answer to: which epoch is in force."""
    return isinstance(decode_frame(payload), Deposed)


def decode_frame(raw: bytes) -> Frame:
    """Raises PeerError for anything that is not one whole, bounded frame."""
    try:
        frame = _frame_decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise PeerError(f"a session frame cannot be read: {error}") from error
    check_sid(frame.sid, PeerError)
    epoch: Any = getattr(frame, "epoch", (1, "x"))
    if not 1 <= epoch[0] <= EPOCH_MAX or not epoch[1]:
        raise PeerError(f"session {frame.sid}: epoch {epoch!r} is out of range")
    return frame


def check_sid(sid: str, error: type[Exception]) -> None:
    """A session id: 1 to `sid_bytes_max` bytes of printable ASCII without space, slash or colon.

    A colon would end the id inside a key (`conversation_buffer:SID`), a slash inside a path.
    """
    if not sid or len(sid) > DEFAULT_LIMITS.sid_bytes_max:
        raise error(f"a session id has 1 to {DEFAULT_LIMITS.sid_bytes_max} characters")
    if not sid.isascii() or any(c <= " " or c in '/:?#%"\\' or c == "\x7f" for c in sid):
        raise error('a session id is printable ASCII without space or any of / : ? # % " \\')


# --- decisions ---


class Verdict(Enum):
    """What a receiver does with a frame of a session's home."""

    APPEND = "append"
    DUPLICATE = "duplicate"
    WANT = "want"
    DEPOSED = "deposed"
    """The sender is behind: tell it the epoch in force."""


def judge_update(mine: Meta | None, epoch: Epoch, n: int, prev_chain: bytes) -> Verdict:
    """Whether update n of `epoch` extends what this node holds."""
    if mine is None or not mine.held:
        if mine is not None and mine.epoch > epoch:
            return Verdict.DEPOSED
        return Verdict.APPEND if n == 1 and prev_chain == CHAIN_START else Verdict.WANT
    if epoch < mine.epoch:
        return Verdict.DEPOSED
    if mine.unmerged:
        return Verdict.WANT
    if n == mine.n + 1 and prev_chain == mine.chain:
        return Verdict.APPEND
    if n <= mine.n and epoch == mine.epoch:
        return Verdict.DUPLICATE
    return Verdict.WANT


def judge_offer(mine: Meta | None, offer: Offer) -> Verdict:
    """Whether this node already holds what home offers."""
    if mine is None or not mine.held:
        if mine is not None and mine.epoch > offer.epoch:
            return Verdict.DEPOSED
        return Verdict.WANT
    if offer.epoch < mine.epoch:
        return Verdict.DEPOSED
    same = mine.n == offer.n and mine.chain == offer.chain and not mine.unmerged
    return Verdict.DUPLICATE if same else Verdict.WANT


def may_take_over(
    mine: Meta | None,
    node: str,
    *,
    home_silent_ms: int,
    takeover_after_ms: int,
    probe_failed: bool,
) -> bool:
    """Whether this node may make itself home, on its own evidence alone."""
    return (
        mine is not None
        and mine.held
        and not mine.erased_ms
        and mine.standby == node
        and mine.home != node
        and home_silent_ms >= takeover_after_ms
        and probe_failed
    )


class Candidate(NamedTuple):
    """A neighbour that could hold the copy."""

    node: str
    region: str
    rtt_ms: float


def choose_standby(
    sid: str,
    region: str,
    candidates: Iterable[Candidate],
    residency: Sequence[str] = (),
) -> str | None:
    """The neighbour in another region, within 1.5x of the best RTT, that `sid` hashes to."""
    fit = [c for c in candidates if c.region != region and (not residency or c.region in residency)]
    if not fit:
        return None
    nearest_ms = min(c.rtt_ms for c in fit)
    near = [c for c in fit if c.rtt_ms <= 1.5 * nearest_ms + 1.0]
    return max(near, key=lambda c: (_weight(sid, c.node), c.node)).node


def _weight(sid: str, node: str) -> bytes:
    return hashlib.blake2b(f"{sid}\0{node}".encode(), digest_size=8).digest()


class Follow(NamedTuple):
    """How many turns in a row came forwarded from one node."""

    node: str = ""
    turns: int = 0

    def counted(self, node: str) -> Follow:
        """One more turn, forwarded from `node` ("" = committed at home)."""
        return Follow(node, self.turns + 1 if node == self.node else 1)

    def due(self, follow_after_turns: int) -> bool:
        """Whether home should hand over to that node (0 = never)."""
        return bool(self.node) and 0 < follow_after_turns <= self.turns
