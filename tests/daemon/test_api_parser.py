"""Requests out of bytes, however they are cut, and everything that is not RESP."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roostd.api.resp.parser import ProtocolFault, RequestParser, split_inline

MAX = 1 << 20


def pack(args: list[bytes]) -> bytes:
    return b"*%d\r\n" % len(args) + b"".join(b"$%d\r\n%b\r\n" % (len(a), a) for a in args)


def parse(*chunks: bytes, bytes_max: int = MAX, restricted: bool = False) -> list[list[bytes]]:
    parser = RequestParser(bytes_max)
    parser.restricted = restricted
    found = []
    for chunk in chunks:
        parser.feed(chunk)
        while (args := parser.pull()) is not None:
            found.append(args)
    return found


argument = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [b"", b"\r\n", b"*3\r\n", b"$3\r\nabc\r\n", b"GET", b"\r", b"\n", b"x" * 5_000]
    ),
)
commands = st.lists(st.lists(argument, min_size=1, max_size=6), max_size=8)


@given(commands, st.data())
def test_commands_survive_any_cut(wanted: list[list[bytes]], data: st.DataObject) -> None:
    stream = b"".join(pack(args) for args in wanted)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    edges = [0, *cuts, len(stream)]
    chunks = [stream[a:b] for a, b in itertools.pairwise(edges)]
    assert parse(*chunks) == wanted


@given(commands)
def test_byte_by_byte_is_the_same(wanted: list[list[bytes]]) -> None:
    stream = b"".join(pack(args) for args in wanted)[:600]
    whole = parse(stream)
    assert parse(*(stream[i : i + 1] for i in range(len(stream)))) == whole


@given(st.binary(max_size=300))
def test_any_bytes_are_commands_or_a_fault(data: bytes) -> None:
    def outcome(*chunks: bytes) -> object:
        parser = RequestParser(MAX)
        found: list[object] = []
        try:
            for chunk in chunks:
                parser.feed(chunk)
                while (args := parser.pull()) is not None:
                    assert args
                    found.append(args)
        except ProtocolFault as fault:
            found.append(str(fault))
        return found

    assert outcome(data) == outcome(*(data[i : i + 1] for i in range(len(data))))


def test_more_bytes_while_commands_wait_keep_their_order() -> None:
    parser = RequestParser(MAX)
    parser.feed(pack([b"A"]) + pack([b"B"]))
    assert parser.pull() == [b"A"]
    parser.feed(pack([b"C", b"\r\n"])[:-4])
    assert parser.pull() == [b"B"]
    assert parser.pull() is None
    parser.feed(pack([b"C", b"\r\n"])[-4:])
    assert parser.pull() == [b"C", b"\r\n"]
    assert not parser.partial()


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"*-2\r\n", "invalid multibulk length"),
        (b"*9223372036854775808\r\n", "invalid multibulk length"),
        (b"*1048577\r\n", "invalid multibulk length"),
        (b"*x\r\n", "invalid multibulk length"),
        (b"*+1\r\n", "invalid multibulk length"),
        (b"*1\n$4\nPING\n", "invalid multibulk length"),
        (b"*1\r\n$-2\r\n", "invalid bulk length"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$1073741824\r\n", "invalid bulk length"),
        (b"*1\r\n$9223372036854775808\r\n", "invalid bulk length"),
        (b"*1\r\n*1\r\n" * 10_000, "expected '$', got '*'"),
        (b"*1\r\n:5\r\n", "expected '$', got ':'"),
        (b"*1\r\n$4\r\nPINGxx", "expected CRLF after a bulk string"),
        (b"*" + b"1" * 70_000, "too big mbulk count string"),
        (b"PING" * 20_000, "too big inline request"),
        (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "this port speaks RESP, not HTTP; see [listen] http",
        ),
        (b"POST /v1/keys HTTP/1.1\r\n", "this port speaks RESP, not HTTP; see [listen] http"),
        (b'SET a "b\r\n', "unbalanced quotes in request"),
    ],
)
def test_faults(data: bytes, fault: str) -> None:
    with pytest.raises(ProtocolFault) as caught:
        parse(data)
    assert str(caught.value) == fault


def test_a_claimed_length_allocates_nothing() -> None:
    parser = RequestParser(1 << 24)
    parser.feed(b"*1000000\r\n$16000000\r\nabc")
    assert parser.pull() is None
    assert parser.buffered_bytes() < 100


def test_one_command_is_bounded_as_a_whole() -> None:
    half = b"$600\r\n" + b"x" * 600 + b"\r\n"
    with pytest.raises(ProtocolFault, match="invalid bulk length"):
        parse(b"*2\r\n" + half + half, bytes_max=1_000, restricted=True)
    parser = RequestParser(1_000)
    parser.feed(b"*3\r\n" + half)
    parser.pull()
    parser.feed(half)
    with pytest.raises(ProtocolFault, match="invalid bulk length"):
        parser.pull()


def test_who_has_not_logged_in_sends_little() -> None:
    with pytest.raises(ProtocolFault, match="unauthenticated multibulk length"):
        parse(b"*11\r\n", restricted=True)
    with pytest.raises(ProtocolFault, match="unauthenticated bulk length"):
        parse(b"*1\r\n$16385\r\n", restricted=True)


def test_empty_requests_are_passed_over() -> None:
    assert parse(b"*0\r\n\r\n\r\n*0\r\nPING\r\n") == [[b"PING"]]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"set a b", [b"set", b"a", b"b"]),
        (b"  set\ta  ", [b"set", b"a"]),
        (b'set a "b c\\n\\x41\\q"', [b"set", b"a", b"b c\nAq"]),
        (b"set a 'b \"\\' c'", [b"set", b"a", b"b \"' c"]),
        (b"set \"\" ''", [b"set", b"", b""]),
        (b"", []),
    ],
)
def test_inline_words(line: bytes, words: list[bytes]) -> None:
    assert split_inline(line) == words


@pytest.mark.parametrize("line", [b'"a"b', b"'a'b", b'"a', b"'a", b'"a\\"'])
def test_inline_quotes_that_do_not_balance(line: bytes) -> None:
    with pytest.raises(ProtocolFault, match="unbalanced"):
        split_inline(line)
