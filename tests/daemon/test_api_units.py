"""Parts of the faces that need no node: numbers, globs, JSON texts, replies, repeats."""

from __future__ import annotations

import asyncio
import fnmatch
import json
import threading
from decimal import Decimal
from typing import Any

import hiredis
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost_crdt.errors import BadRequest, Busy, Exhausted, RoostError
from roostd.api import jsontext, numbers
from roostd.api.bodies import CommitTurn, PutValue
from roostd.api.caller import Caller, check_key
from roostd.api.globbing import compiled, literal_prefix
from roostd.api.http.problems import problem
from roostd.api.jsontext import check_text, decode, is_object
from roostd.api.repeats import Repeats
from roostd.api.resp import encode
from roostd.api.resp.cursors import CURSORS_MAX, Cursors
from roostd.api.resp.table import RespError, unknown_command
from roostd.credentials import Principal

# --- numbers --------------------------------------------------------------------------------------


@given(st.integers(numbers.INT64_MIN, numbers.INT64_MAX))
def test_integers_read_back(value: int) -> None:
    assert numbers.parse_int(b"%d" % value) == value


@pytest.mark.parametrize(
    "text", [b"", b"+1", b" 1", b"1 ", b"01", b"-0", b"1_0", b"1.0", b"9223372036854775808", b"x"]
)
def test_what_is_no_integer(text: bytes) -> None:
    with pytest.raises(numbers.NotANumber):
        numbers.parse_int(text)


@given(st.integers(numbers.INT64_MIN, numbers.INT64_MAX))
def test_scaled_numbers_read_back(scaled: int) -> None:
    text = numbers.scaled_text(scaled)
    assert numbers.parse_scaled(text) == scaled
    assert Decimal(text.decode()) * numbers.SCALE == scaled


@pytest.mark.parametrize(
    ("text", "scaled"),
    [(b"0.1", 100_000_000), (b"1e2", 10**11), (b"-.5", -(5 * 10**8)), (b"0.0000000004", 0)],
)
def test_scaled(text: bytes, scaled: int) -> None:
    assert numbers.parse_scaled(text) == scaled


@pytest.mark.parametrize("text", [b"", b"x", b"1e9999999", b"nan", b"1e30", b"inf", b"1" * 300])
def test_what_is_no_float(text: bytes) -> None:
    with pytest.raises(numbers.NotANumber):
        numbers.parse_scaled(text)


# --- globs ----------------------------------------------------------------------------------------

letters = st.text("ab*?", max_size=8)


@given(letters, st.text("ab", max_size=8))
def test_globs_agree_with_the_shell(glob: str, text: str) -> None:
    assert bool(compiled(glob.encode()).match(text.encode())) == fnmatch.fnmatchcase(text, glob)


@given(st.binary(max_size=12), st.binary(max_size=12))
def test_any_glob_compiles_and_its_prefix_is_true(glob: bytes, text: bytes) -> None:
    if compiled(glob).match(text):
        assert text.startswith(literal_prefix(glob))


@pytest.mark.parametrize(
    ("glob", "text", "matches"),
    [
        (b"h[ae]llo", b"hello", True),
        (b"h[^e]llo", b"hello", False),
        (b"h[a-c]llo", b"hbllo", True),
        (b"h[c-a]llo", b"hbllo", True),
        (rb"h\*llo", b"h*llo", True),
        (rb"h\*llo", b"hello", False),
        (b"a[", b"a", False),
        (b"*\n*", b"x\ny", True),
        (b"a]", b"a]", True),
    ],
)
def test_globs_of_redis(glob: bytes, text: bytes, matches: bool) -> None:
    assert bool(compiled(glob).match(text)) is matches


def test_a_glob_of_many_stars_is_quick() -> None:
    assert not compiled(b"*" * 5_000 + b"b").match(b"a" * 200)


# --- JSON texts -----------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
def test_json_passes(value: Any) -> None:
    try:
        data = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, UnicodeEncodeError):
        return  # infinities and lone surrogates are not JSON in UTF-8
    check_text(data, 64)


@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_refused(data: bytes) -> None:
    try:
        check_text(data, 64)
    except BadRequest:
        return
    json.loads(data)


@pytest.mark.parametrize("depth", [64, 65, 1_000, 100_000])
@pytest.mark.parametrize("kind", ["array", "object", "strings with brackets"])
def test_nesting(depth: int, kind: str) -> None:
    if kind == "array":
        data = b"[" * depth + b"]" * depth
    elif kind == "object":
        data = b'{"a":' * depth + b"1" + b"}" * depth
    else:
        check_text(json.dumps(["[" * depth, '\\"{' * depth]).encode(), 64)
        return
    if depth <= 64:
        check_text(data, 64)
    else:
        with pytest.raises(BadRequest, match="nested deeper than 64"):
            check_text(data, 64)


async def test_raw_parts_stay_as_they_came() -> None:
    text = b'{ "messages" : [ {"n": 1.50, "b":2, "a": [ ]} ], "put": {"p": {"f": null}} }'
    body = await decode(text, CommitTurn, 64)
    assert bytes(body.messages[0]) == b'{"n": 1.50, "b":2, "a": [ ]}'
    assert bytes(body.put["p"]["f"]) == b"null"
    assert is_object(b" \n{}")
    assert not is_object(b"[{}]")


async def test_a_large_body_is_checked_off_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    big = json.dumps({"value": [{"a": 1, "b": 2}] * 150_000}).encode()
    went_on, check = threading.Event(), jsontext.check_text

    def checked(data: bytes, *args: Any) -> None:
        check(data, *args)
        assert went_on.wait(60), "the loop waits for the check"

    monkeypatch.setattr(jsontext, "check_text", checked)
    asyncio.get_running_loop().call_later(0.001, went_on.set)
    body = await decode(big, PutValue, 64)
    assert len(bytes(body.value)) > 2_000_000


# --- replies --------------------------------------------------------------------------------------

plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.binary(), inner, max_size=4),
    max_leaves=12,
)


def read(data: bytes) -> Any:
    reader = hiredis.Reader(notEnoughData=Ellipsis)
    reader.feed(data)
    found = reader.gets()
    assert reader.gets() is Ellipsis
    return found


@given(plain_values)
def test_replies_read_back(value: Any) -> None:
    assert read(encode.encode(value, True)) == value


@given(st.text())
def test_errors_are_one_line(text: str) -> None:
    encoded = encode.error("ERR " + text)
    assert encoded.count(b"\n") == 1
    assert encoded.endswith(b"\r\n")


def test_flat_replies() -> None:
    result = {"a": 1, "b": [1, 2], "c": msgspec.Raw(b'{"x":1.50}'), "d": None, "e": True}
    assert read(encode.encode_flat(result, True)) == {
        b"a": 1,
        b"b_json": b"[1,2]",
        b"c_json": b'{"x":1.50}',
        b"d": None,
        b"e": True,
    }
    assert read(encode.encode_flat(result, False))[-1] == 1


def test_unknown_commands_are_named_within_bounds() -> None:
    text = str(unknown_command([b"x" * 10_000, b"y" * 10_000, b"\xff"]))
    assert len(text) < 500
    assert "SADD" in str(unknown_command([b"zadd"]))
    assert "PSUBSCRIBE" in str(unknown_command([b"BRPOPLPUSH"]))


# --- the rest -------------------------------------------------------------------------------------


def test_cursors_are_bounded() -> None:
    cursors = Cursors()
    first = cursors.give(b"a")
    assert cursors.place(b"%d" % first) == b"a"
    assert cursors.place(b"0") == b""
    for _ in range(CURSORS_MAX):
        last = cursors.give(b"b")
    with pytest.raises(RespError, match="invalid cursor"):
        cursors.place(b"%d" % first)
    assert cursors.place(b"%d" % last) == b"b"


async def test_repeats_run_once_and_forget_failures() -> None:
    repeats = Repeats()
    runs = 0

    async def act() -> dict[str, Any]:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0)
        if runs == 1:
            raise Busy("later")
        return {"run": runs}

    with pytest.raises(Busy):
        await repeats.once(("a",), b"x", act)
    both = await asyncio.gather(*(repeats.once(("a",), b"x", act) for _ in range(3)))
    assert both == [{"run": 2}] * 3
    with pytest.raises(BadRequest):
        await repeats.once(("a",), b"y", act)
    assert await repeats.once(("b",), b"x", act) == {"run": 3}


@pytest.mark.parametrize("key", [b"", b"x" * 201, b"a\0b"])
def test_bad_keys(key: bytes) -> None:
    with pytest.raises(BadRequest):
        check_key(key)
    with pytest.raises(BadRequest):
        Caller(Principal("a", "admin")).key(key)


def test_callers() -> None:
    free = Caller(Principal("a", "admin"))
    assert free.free
    limited = Caller(Principal("b", "write", ("p:x:*",), "p:"))
    assert limited.key(b"x:1") == b"p:x:1"
    assert limited.own(b"p:x:1") == b"x:1"
    assert limited.may("read", b"p:x:1")
    assert not limited.may("write", b"p:y:1")
    assert not limited.may("admin", b"p:x:1")
    with pytest.raises(BadRequest):
        limited.key(b"x" * 199)


def test_problem_documents() -> None:
    answer = problem(Exhausted("no more", retry_after_ms=1_500, period_ends=5, status="x"))
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "2"
    body = json.loads(bytes(answer.body))
    assert body["period_ends"] == 5
    assert body["status"] == 429
    assert body["retry_after_ms"] == 1_500
    for cls in RoostError.__subclasses__():
        titled = json.loads(bytes(problem(cls("x")).body))
        assert titled["title"] != titled["code"]
        assert titled["code"] == cls.code
