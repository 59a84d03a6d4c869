from __future__ import annotations

import pytest

from roost.address import Address, parse_url
from roost.wire import as_map, encode, error_of, greeting, hello_of, new_reader, read_greeting
from roost_crdt.errors import BadRequest, Busy, Exhausted, NoAuth, RoostError, TurnConflict


def test_encodes_commands_in_one_piece() -> None:
    assert encode((("GET", b"k\xff"), ("INCR", "é", 3))) == (
        b"*2\r\n$3\r\nGET\r\n$2\r\nk\xff\r\n*3\r\n$4\r\nINCR\r\n$2\r\n\xc3\xa9\r\n$1\r\n3\r\n"
    )


def test_maps_of_both_protocols_read_alike() -> None:
    reader = new_reader()
    reader.feed(b"%2\r\n$1\r\na\r\n:1\r\n$1\r\nb\r\n_\r\n*4\r\n$1\r\na\r\n:1\r\n$1\r\nb\r\n$-1\r\n")
    assert as_map(reader.gets()) == {"a": 1, "b": None}
    assert as_map(reader.gets()) == {"a": 1, "b": None}
    with pytest.raises(BadRequest):
        as_map(b"OK")
    with pytest.raises(BadRequest):
        as_map([b"odd"])


def test_errors_carry_code_retry_and_details() -> None:
    reader = new_reader()
    reader.feed(b"-TURNCONFLICT the session is at turn 4 [turn=4 retry_after_ms=50 home=eu-1]\r\n")
    error = reader.gets()
    assert isinstance(error, TurnConflict)
    assert error.code == "TURNCONFLICT"
    assert error.message == "the session is at turn 4"
    assert error.retry_after_ms == 50
    assert error.details == {"turn": 4, "home": "eu-1"}


@pytest.mark.parametrize(
    ("line", "kind", "message"),
    [
        ("EXHAUSTED nothing left [x]", Exhausted, "nothing left [x]"),
        ("WRONGPASS invalid", NoAuth, "invalid"),
        ("ERR unknown command 'X'", BadRequest, "unknown command 'X'"),
        ("NEWCODE of a later daemon", RoostError, "of a later daemon"),
        ("lower case words", BadRequest, "lower case words"),
        ("BUSY", RoostError, "BUSY"),
        ("", BadRequest, ""),
        ("EXHAUSTED x [message=1 code=2]", Exhausted, "x"),
    ],
)
def test_every_error_line_becomes_an_error(line: str, kind: type[RoostError], message: str) -> None:
    error = error_of(line)
    assert isinstance(error, kind)
    assert error.message == message


def test_greets_with_secret_and_database() -> None:
    assert greeting(parse_url("unix:///s", {})) == (
        ("HELLO", 3, "SETNAME", "roost-py"),
        ("ROOST.HELLO",),
    )
    assert greeting(parse_url("redis://:pw@h/3", {})) == (
        ("HELLO", 3, "AUTH", "default", "pw", "SETNAME", "roost-py"),
        ("SELECT", 3),
        ("ROOST.HELLO",),
    )


def test_reads_who_answers() -> None:
    hello = hello_of(
        {
            b"node": b"eu-1",
            b"store_id": b"000102030405060708090a0b0c0d0e0f",
            b"pid_ns": b"pid:[4026531836]",
            b"seq": 12,
            b"later": b"unknown",
        }
    )
    assert hello.node == "eu-1"
    assert hello.store_id == bytes(range(16))
    assert hello.pid_ns == 4026531836
    assert (hello.seq, hello.prefix) == (12, None)
    assert hello_of({b"store_id": bytes(range(16))}).store_id == bytes(range(16))
    with pytest.raises(Busy, match="no"):
        read_greeting([Busy("no"), {}], Address())


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (
            "unix:///run/r.sock",
            "the URL does not say: .* unix://NAME:SECRET@/run/r.sock .*ROOST_URL",
        ),
        ("redis://ops:hunter2@eu:1/3", "the name 'ops' with this .* redis://NAME:SECRET@eu:1 "),
        ("redis://:hunter2@eu:1", "no credentials with this secret: .*credentials.toml"),
    ],
)
def test_who_is_not_let_in_reads_how_to_say_who_it_is(url: str, words: str) -> None:
    with pytest.raises(NoAuth, match=words) as caught:
        read_greeting([NoAuth("HELLO must be called ..."), {}], parse_url(url, {}))
    assert "hunter2" not in str(caught.value)
