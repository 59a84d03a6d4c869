"""Rows as bytes: canonical MessagePack arrays, decoded with every shape checked.

msgspec writes each integer in its shortest form, so equal rows have equal bytes. Typed
decoders refuse wrong shapes, depths and claimed lengths before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec

from roost_crdt.errors import CorruptData

U64 = Annotated[int, msgspec.Meta(ge=0)]
"""MessagePack has no integer beyond 64 bits, so only the sign needs a check."""
Millis = Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]
SmallInt = Annotated[int, msgspec.Meta(ge=0, le=255)]

MILLIS_MAX: Final = (1 << 48) - 1

encode: Final[Callable[[Any], bytes]] = msgspec.msgpack.Encoder().encode


def larger(a: Any, b: Any) -> Any:
    """The one of two rows with the larger bytes: what is kept where one stamp has both."""
    return a if encode(a) > encode(b) else b


def decoder(shape: Any) -> Callable[[bytes], Any]:
    """A decoder of one shape, whose only error is CorruptData."""
    typed = msgspec.msgpack.Decoder(shape).decode

    def decode(body: bytes) -> Any:
        try:
            return typed(body)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise CorruptData(f"{len(body)} bytes do not decode: {error}") from None

    return decode
