"""RESP requests out of a byte stream: arrays of bulk strings, and inline commands.

Two paths. The fast one splits a whole chunk at its line ends and checks each announced length
against the argument that it found there (a value with a line end in it does not fit and takes
the other path). The exact one is a state machine over a buffer; it allocates for bytes that
have come, never for a length that was only announced. Whatever is wrong with a stream is found
by the exact path, so that both give the same answer.
"""

from __future__ import annotations

import re

INLINE_BYTES_MAX = 64 * 1024
ARGS_MAX = 1024 * 1024
REST_BYTES_MAX = 16 * 1024
"""An unfinished command longer than this is not split again with the next chunk."""
UNAUTHENTICATED_ARGS_MAX = 10
UNAUTHENTICATED_BULK_MAX = 16 * 1024

_COUNT = re.compile(rb"-?[0-9]{1,19}\Z")
_HTTP_LINE = re.compile(rb"(?:POST|PUT|PATCH|OPTIONS|CONNECT|Host:)\s|.*\sHTTP/[0-9.]+\s*\Z", re.S)
_COUNTS = {b"*%d" % count: count for count in range(1, 1_001)}
_LENGTHS = {length: b"$%d" % length for length in range(4_096)}
_HEX = re.compile(rb"[0-9a-fA-F]{2}")
_ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}


class ProtocolFault(Exception):
    """The stream is not RESP; the connection is told so and closed."""


def split_inline(line: bytes) -> list[bytes]:
    """Words of an inline command, quoted as redis-cli quotes them."""
    words: list[bytes] = []
    at, end = 0, len(line)
    while True:
        while at < end and line[at : at + 1].isspace():
            at += 1
        if at == end:
            return words
        word = bytearray()
        quote = b""
        while at < end:
            char = line[at : at + 1]
            if quote == b'"' and char == b"\\" and at + 1 < end:
                following = line[at + 1 : at + 2]
                if following == b"x" and _HEX.fullmatch(line, at + 2, at + 4):
                    word.append(int(line[at + 2 : at + 4], 16))
                    at += 4
                    continue
                word += _ESCAPES.get(following, following)
                at += 2
                continue
            if quote == b"'" and line[at : at + 2] == b"\\'":
                word += b"'"
                at += 2
                continue
            at += 1
            if quote:
                if char != quote:
                    word += char
                elif at < end and not line[at : at + 1].isspace():
                    raise ProtocolFault("unbalanced quotes in request")
                else:
                    quote = b""
                    break
            elif char in (b'"', b"'"):
                quote = char
            elif char.isspace() or char == b"\0":
                break
            else:
                word += char
        if quote:
            raise ProtocolFault("unbalanced quotes in request")
        words.append(bytes(word))


class RequestParser:
    """Bytes in, commands out: `feed` a chunk, then `pull` until it answers None."""

    __slots__ = (
        "_args",
        "_at",
        "_buffer",
        "_bulk",
        "_missing",
        "_pos",
        "_rest",
        "_tokens",
        "_used",
        "bytes_max",
        "restricted",
    )

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        """All arguments of one command together."""
        self.restricted = False
        """True while the client has not authenticated: small commands only."""
        self._tokens: list[bytes] | None = None
        self._at = 0
        self._rest = b""
        self._buffer = bytearray()
        self._pos = 0
        self._args: list[bytes] = []
        self._missing = 0
        self._bulk = -1
        self._used = 0

    def feed(self, data: bytes) -> None:
        if self._buffer or self._missing:
            self._buffer += data
            return
        if self._tokens is not None:
            # The client sent more while an earlier command is still waited for.
            self._to_buffer()
            self._buffer += data
            return
        if self._rest:
            data = self._rest + data
            self._rest = b""
        if self.restricted:
            self._buffer += data
            return
        self._tokens = data.split(b"\r\n")
        self._at = 0

    def buffered_bytes(self) -> int:
        """Bytes that came and were not turned into a command yet (tokens count as none)."""
        return len(self._buffer) - self._pos + len(self._rest) + self._used

    def partial(self) -> bool:
        """True if a command has begun and not ended."""
        return bool(self._rest or self._missing or len(self._buffer) > self._pos)

    def pull(self) -> list[bytes] | None:
        """The next command (never empty), or None until more bytes come. Raises ProtocolFault."""
        tokens = self._tokens
        if tokens is not None:
            at = self._at
            head = tokens[at]
            count = _COUNTS.get(head)
            if count is not None:
                end = at + 2 * count + 1
                if end < len(tokens):
                    args = tokens[at + 2 : end : 2]
                    if [_LENGTHS.get(len(arg)) for arg in args] == tokens[at + 1 : end : 2]:
                        self._at = end
                        return args
            if at == len(tokens) - 1 and not head:
                self._tokens = None
                return None
            self._leave_fast_path()
        return self._pull_exact() if self._buffer else None

    def _leave_fast_path(self) -> None:
        """Keep a short unfinished command for the next chunk; give the rest to the exact path."""
        tokens = self._tokens
        assert tokens is not None
        if tokens[self._at][:1] == b"*" and len(tokens) - self._at < 64 and not self.restricted:
            rest = b"\r\n".join(tokens[self._at :])
            if len(rest) <= REST_BYTES_MAX and self._unfinished(rest):
                self._rest = rest
                self._tokens = None
                return
        self._to_buffer()

    def _unfinished(self, data: bytes) -> bool:
        """True if data is the sound beginning of one command and lacks its end."""
        trial = RequestParser(self.bytes_max)
        trial._buffer += data
        try:
            return trial._pull_exact() is None
        except ProtocolFault:
            return False

    def _to_buffer(self) -> None:
        tokens = self._tokens
        assert tokens is not None
        self._buffer += b"\r\n".join(tokens[self._at :])
        self._tokens = None

    def _pull_exact(self) -> list[bytes] | None:
        while True:
            if self._missing == 0:
                if self._pos == len(self._buffer):
                    self._compact()
                    return None
                if self._buffer[self._pos] != 0x2A:
                    line = self._inline_line()
                    if line is None:
                        return None
                    words = split_inline(line)
                    if words:
                        return words
                    continue
                count = self._header(b"multibulk length", b"mbulk count string")
                if count is None:
                    return None
                if count < 0 or count > ARGS_MAX:
                    raise ProtocolFault("invalid multibulk length")
                if self.restricted and count > UNAUTHENTICATED_ARGS_MAX:
                    raise ProtocolFault("unauthenticated multibulk length")
                self._missing = count
                self._args = []
                self._used = 0
                continue
            if self._bulk < 0 and not self._announce():
                return None
            if not self._take_bulk():
                return None
            if self._missing == 0:
                args, self._args = self._args, []
                self._used = 0
                if self._pos > REST_BYTES_MAX:
                    self._compact()
                return args

    def _announce(self) -> bool:
        """Read the length line of the next argument; False if it is not all here."""
        if self._pos == len(self._buffer):
            self._compact()
            return False
        first = self._buffer[self._pos]
        if first != 0x24:
            raise ProtocolFault(f"expected '$', got {chr(first)!r}")
        length = self._header(b"bulk length", b"bulk count string")
        if length is None:
            return False
        if length < 0 or self._used + length > self.bytes_max:
            raise ProtocolFault("invalid bulk length")
        if self.restricted and length > UNAUTHENTICATED_BULK_MAX:
            raise ProtocolFault("unauthenticated bulk length")
        self._bulk = length
        return True

    def _take_bulk(self) -> bool:
        end = self._pos + self._bulk
        if len(self._buffer) < end + 2:
            if self._pos > REST_BYTES_MAX:
                self._compact()
            return False
        if self._buffer[end : end + 2] != b"\r\n":
            raise ProtocolFault("expected CRLF after a bulk string")
        self._args.append(bytes(self._buffer[self._pos : end]))
        self._used += self._bulk
        self._pos = end + 2
        self._bulk = -1
        self._missing -= 1
        return True

    def _header(self, what: bytes, line_name: bytes) -> int | None:
        """The number behind `*` or `$`; None if its line is not all here."""
        end = self._buffer.find(b"\n", self._pos, self._pos + INLINE_BYTES_MAX)
        if end < 0:
            if len(self._buffer) - self._pos >= INLINE_BYTES_MAX:
                raise ProtocolFault("too big " + line_name.decode())
            return None
        line = bytes(self._buffer[self._pos + 1 : end])
        if not line.endswith(b"\r") or not _COUNT.match(line[:-1]):
            raise ProtocolFault("invalid " + what.decode())
        self._pos = end + 1
        return int(line[:-1])

    def _inline_line(self) -> bytes | None:
        end = self._buffer.find(b"\n", self._pos, self._pos + INLINE_BYTES_MAX)
        if end < 0:
            if len(self._buffer) - self._pos >= INLINE_BYTES_MAX:
                raise ProtocolFault("too big inline request")
            return None
        line = bytes(self._buffer[self._pos : end]).rstrip(b"\r")
        if _HTTP_LINE.match(line):
            raise ProtocolFault("this port speaks RESP, not HTTP; see [listen] http")
        self._pos = end + 1
        return line

    def _compact(self) -> None:
        """Drop what was read. A drained buffer lets the next chunk take the fast path."""
        del self._buffer[: self._pos]
        self._pos = 0
