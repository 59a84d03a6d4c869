"""INCRBYFLOAT to a node and to a real redis-server, over any decimal texts.

Redis adds in 80-bit floating point and shows 17 decimals; a float counter here is a whole number
of 1e-9, so that sums do not depend on the order in which regions' increments arrive. Hence:

- numbers of at most nine decimals whose sums stay below 32 give the same bytes (there the error
  of Redis is below what it shows);
- larger sums differ by that error only: rounded to nine decimals they are the same number;
- what an increment has beyond the ninth decimal is rounded half to even, each time;
- beyond +-9223372036.854775807 an increment is refused here and nothing has changed.

Not compared: numbers in hexadecimal (`0x1p3`), which Redis reads and nobody sends.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import ROUND_HALF_EVEN, Context, Decimal
from pathlib import Path
from typing import Any

import hiredis
import pytest
import pytest_asyncio
from api_node import Client, served
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from redis_server import running_redis

pytestmark = pytest.mark.asyncio(loop_scope="module")

NINTH = Decimal("1e-9")
EXACT = Context(prec=400)
BOUND = Decimal((1 << 63) - 1) * NINTH
SAME_TEXT_BELOW = 32
KEYS = ("flt:a", "lflt:a")
"""Eventually global and linearizable."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Client, Client]]:
    place: Path = tmp_path_factory.mktemp("floats")
    async with running_redis(place) as redis, served(place / "node") as node:
        yield await node.client(), redis


@st.composite
def decimals(draw: st.DrawFn, whole_max: int, places: int) -> str:
    """A number in one of the ways to write it: `1.50`, `+.5`, `5.`, `15e-1`, `-0`, `007`."""
    digits = draw(st.integers(0, places))
    units = draw(st.integers(-whole_max * 10**digits, whole_max * 10**digits))
    value = Decimal(units).scaleb(-digits, EXACT)
    sign = draw(st.sampled_from(["", "+"])) if units >= 0 else ""
    match draw(st.sampled_from(["plain", "plain", "exponent", "short"])):
        case "exponent":
            return f"{sign}{units}{draw(st.sampled_from('eE'))}{-digits}"
        case "short":
            text = f"{value:f}"
            text = text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text
            return sign + (text if "." in text else text + ".")
        case _:
            return f"{sign}{value:f}"


def numbers_of(texts: list[str]) -> list[Decimal]:
    return [Decimal(text) for text in texts]


async def fresh(pair: tuple[Client, Client]) -> None:
    for client in pair:
        await client.do("DEL", KEYS[0])
        await client.do("DEL", KEYS[1])


async def both(pair: tuple[Client, Client], *args: str) -> tuple[Any, Any]:
    return await pair[0].do(*args), await pair[1].do(*args)


def is_canonical(text: bytes) -> bool:
    """As Redis shows a number: no exponent, no zeros at the end, no minus before zero."""
    whole, dot, part = text.removeprefix(b"-").partition(b".")
    digits = whole.isdigit() and (whole == b"0" or whole[:1] != b"0")
    return digits and (part[-1:] not in (b"", b"0") if dot else True) and text != b"-0"


@pytest.mark.parametrize("key", KEYS)
@settings(max_examples=40)
@given(texts=st.lists(decimals(8, 9), min_size=1, max_size=12))
@example(texts=["10.50", "0.1", "-5.0e1", "-0", "200", "3.0e0"])
async def test_small_sums_are_the_same_bytes(
    pair: tuple[Client, Client], key: str, texts: list[str]
) -> None:
    await fresh(pair)
    total = Decimal(0)
    for text in texts:
        if abs(total + Decimal(text)) >= SAME_TEXT_BELOW:
            continue
        total += Decimal(text)
        ours, theirs = await both(pair, "INCRBYFLOAT", key, text)
        assert ours == theirs, (text, total)
        assert is_canonical(ours)
        assert Decimal(ours.decode()) == total
    for args in (("GET", key), ("STRLEN", key), ("EXISTS", key), ("TTL", key)):
        ours, theirs = await both(pair, *args)
        assert ours == theirs, args


@pytest.mark.parametrize("key", KEYS)
@settings(max_examples=25)
@given(texts=st.lists(decimals(10**6, 9), min_size=1, max_size=12))
async def test_larger_sums_are_those_of_redis_without_its_noise(
    pair: tuple[Client, Client], key: str, texts: list[str]
) -> None:
    await fresh(pair)
    for at, text in enumerate(texts, 1):
        ours, theirs = await both(pair, "INCRBYFLOAT", key, text)
        exact = sum(numbers_of(texts[:at]), Decimal(0))
        assert Decimal(ours.decode()) == exact
        assert Decimal(theirs.decode()).quantize(NINTH, ROUND_HALF_EVEN, EXACT) == exact
        assert is_canonical(ours)


@settings(max_examples=25)
@given(texts=st.lists(decimals(3, 30), min_size=1, max_size=12))
@example(texts=["0.00000000050000000000000000000000000000001"])
@example(texts=["0.0000000005", "0.0000000015", "-0.0000000025"])
async def test_what_is_finer_than_a_billionth_is_rounded_half_to_even(
    pair: tuple[Client, Client], texts: list[str]
) -> None:
    await fresh(pair)
    exact = Decimal(0)
    for at, text in enumerate(texts, 1):
        ours, theirs = await both(pair, "INCRBYFLOAT", KEYS[0], text)
        exact += Decimal(text).quantize(NINTH, ROUND_HALF_EVEN, EXACT)
        assert Decimal(ours.decode()) == exact
        assert abs(Decimal(theirs.decode()) - exact) <= at * NINTH / 2 + Decimal("1e-15")


@pytest.mark.parametrize("key", KEYS)
async def test_the_range_ends_with_an_error_that_changes_nothing(
    pair: tuple[Client, Client], key: str
) -> None:
    await fresh(pair)
    ours = pair[0]
    for end, step, back, moved in (
        ("9223372036.854775807", "0.000000001", "-0.000000007", "9223372036.8547758"),
        ("-9223372036.854775808", "-0.000000001", "0.000000008", "-9223372036.8547758"),
    ):
        await ours.do("DEL", key)
        assert await ours.do("INCRBYFLOAT", key, end) == end.encode()
        for further in (step, f"{step[:-11]}1e9", end):
            refused = await ours.do("INCRBYFLOAT", key, further)
            assert isinstance(refused, hiredis.ReplyError)
            assert "overflow" in str(refused)
            assert await ours.do("GET", key) == end.encode()
        assert await ours.do("INCRBYFLOAT", key, back) == moved.encode()
        for beyond in ("9223372036.854775808", "-9223372036.854775809", "1e10", "-1e4000"):
            refused = await ours.do("INCRBYFLOAT", key, beyond)
            assert isinstance(refused, hiredis.ReplyError)
            assert "9223372036" in str(refused), "it names the bound"


async def check_text(pair: tuple[Client, Client], text: str) -> None:
    await fresh(pair)
    ours, theirs = await both(pair, "INCRBYFLOAT", KEYS[0], text)
    if isinstance(theirs, hiredis.ReplyError):
        assert str(ours) == str(theirs)
        assert isinstance(ours, hiredis.ReplyError)
        assert await pair[0].do("EXISTS", KEYS[0]) == 0, "a refusal creates nothing"
    elif abs(Decimal(theirs.decode())) > BOUND:
        assert "9223372036" in str(ours)
    else:
        rounded = Decimal(theirs.decode()).quantize(NINTH, ROUND_HALF_EVEN, EXACT)
        assert isinstance(ours, bytes), ours
        assert Decimal(ours.decode()) == rounded


@settings(max_examples=150)
@given(text=st.text("0123456789+-.eEinfatyx \0", max_size=12))
async def test_what_is_no_number_is_refused_in_the_same_words(
    pair: tuple[Client, Client], text: str
) -> None:
    assume("x" not in text)
    await check_text(pair, text)


@pytest.mark.parametrize(
    "text",
    [
        *("", " 1", "1 ", "1\0", "+", "-", ".", "e5", "1e", "1e+", "1e+2", "1E-2", "--1", "1.2.3"),
        *("inf", "-INF", "+Infinity", "infinit", "nan", "-nan", "NaN(1)", "1,5", "１", "1_0", "0x"),
        *("1e4932", "1.2e4932", "1e5000", "-1e5000", "1e99999999999999", "0e99999999999999"),
        *("1e-4000", "4e-4951", "1e-4951", "1e-5000", "-1e-99999999999999", "0." + "0" * 4_999),
        *("0" * 300, "0." + "1" * 300, "1e00000000000000000002", "1e-0", "00012"),
        *("0" * 5_000 + "1", "0" * 5_118 + "1", "0" * 5_119 + "1", "1" * 6_000),
    ],
    ids=lambda text: text if len(text) < 20 else f"{text[:5]}...{len(text)}",
)
async def test_numbers_at_the_edge_of_being_one(pair: tuple[Client, Client], text: str) -> None:
    await check_text(pair, text)


async def test_other_commands_at_a_float_counter(pair: tuple[Client, Client]) -> None:
    await fresh(pair)
    key = KEYS[0]
    commands: list[tuple[str, ...]] = [
        ("INCRBYFLOAT", key, "3"),
        ("INCR", key),
        ("INCRBY", key, "10"),
        ("DECRBY", key, "4"),
        ("TYPE", key),
        ("EXPIRE", key, "100000"),
        ("INCRBYFLOAT", key, "0.5"),
        ("TTL", key),
        ("INCR", key),
        ("INCRBYFLOAT", key),
        ("INCRBYFLOAT", key, "1", "2"),
        ("SET", key, "2.5"),
        ("INCRBYFLOAT", key, "-2.5"),
        ("GET", key),
        ("INCR", key),
        ("GETDEL", key),
        ("INCRBYFLOAT", key, "1e-9"),
        ("EXPIRE", key, "-1"),
        ("INCRBYFLOAT", key, "-1"),
    ]
    for args in commands:
        ours, theirs = await both(pair, *args)
        if args[0] == "TTL":
            assert 0 <= 100_000 - min(ours, theirs) < 1_000
            continue
        assert str(ours) == str(theirs), args
