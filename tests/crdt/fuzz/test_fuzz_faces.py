"""Foreign bytes at the daemon's faces: tokens, RESP, JSON bodies, calls between nodes."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fuzzing import MSGPACK, throw

from roost_crdt.errors import BadRequest, BadToken, PeerError, RoostError
from roost_crdt.limits import DEFAULT_LIMITS
from roost_crdt.rows.leaf import compact_json, leaf_of
from roost_crdt.token import Claims, claims_from_json, claims_to_json, lacks
from roostd.api import bodies, jsontext
from roostd.api.resp.parser import ProtocolFault, RequestParser
from roostd.keyring import Keyring, generate
from roostd.rpc import Rpc, _Channel

NOW_S = 1_000_000
CLAIMS = Claims(
    sid="s-1",
    home="eu",
    standby="us",
    epoch=(2, "eu"),
    turn=3,
    path=((1, "us", 0, 2), (2, "eu", 2, 3)),
    aud="prod",
    iss="eu",
    iat=NOW_S,
    exp=NOW_S + 3_600,
)
JSON_TOKENS = (
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"9" * 5_000,
    b"-0",
    b"0x1",
    b"1.",
    b"01",
    b"\\u0000",
    b"\\ud800",
    b"\xff",
    b"\xed\xa0\x80",
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"true",
    b'"turn":3,',
    b'"a":1,"a":2',
    b"/**/",
    b"\0",
    b"\xef\xbb\xbf",
)
RESP_TOKENS = (
    b"*",
    b"$",
    b"\r\n",
    b"\r",
    b"\n",
    b"*-1\r\n",
    b"$-1\r\n",
    b"*1\r\n",
    b"*1000000\r\n",
    b"$1073741824\r\n",
    b"$9223372036854775808\r\n",
    b"$+5\r\n",
    b"$ 5\r\n",
    b":1\r\n",
    b"GET / HTTP/1.1\r\n",
    b'"a\\x41',
    b"'",
    b"\0",
    b"PING\r\n",
)
BODIES: dict[type[msgspec.Struct], bytes] = {
    bodies.CommitTurn: json.dumps(
        {
            "messages": [{"role": "user", "content": 'h\u00e9 \\ " [{', "n": 1.50}, {"x": [[]]}],
            "turn_id": "t-1",
            "base": 3,
            "put": {"kv_cache_index": {"a": None, "b": {"c": [1, 2]}}},
            "on_conflict": "append",
        }
    ).encode(),
    bodies.CallStep: b'{"status":"finished","tool":"t","args":{"q":1e3},"result":"r","retry":true}',
    bodies.PutValue: b'{"value":{"w":0.25,"m":["a","b"]},"ttl_ms":5000}',
    bodies.PatchValue: b'{"put":{"a":"1"},"drop":["b"]}',
    bodies.Spend: b'{"n":5}',
}


def test_claims_are_read_or_refused() -> None:
    def check(raw: bytes) -> None:
        claims = claims_from_json(raw)
        assert claims_from_json(claims_to_json(claims)) == claims
        assert lacks(claims, {}) >= lacks(claims, {claims.epoch: claims.turn}) >= 0

    bare = CLAIMS._replace(standby=None, path=(), turn=0, epoch=(1, "eu"))
    seeds = [claims_to_json(CLAIMS), claims_to_json(bare)]
    throw("claims", seeds, check, (BadToken,), tokens=JSON_TOKENS, tree=False)


def test_tokens_verify_or_are_refused(tmp_path: Path) -> None:
    generate(tmp_path / "keys", "k1")
    ring = Keyring.load(tmp_path / "keys", node="eu", audience="prod")
    pem = (tmp_path / "keys" / "k1.pem").read_bytes()
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, Ed25519PrivateKey)
    genuine = ring.sign(CLAIMS, NOW_S)
    jws = jwt.PyJWS(algorithms=["EdDSA"])

    def verified(token: str) -> Claims:
        claims, expired = ring.verify(token, NOW_S)
        assert not expired or claims.exp < NOW_S
        return claims

    def check(raw: bytes) -> None:
        """The same damage to a token as it travels, and to a payload that a node did sign."""
        try:
            assert verified(raw.decode("latin-1")) == CLAIMS, "a token that nobody signed"
        except BadToken:
            _, payload, _ = (*raw.split(b"."), b"", b"")[:3]
            claims = base64.urlsafe_b64decode(payload + b"=" * (-len(payload) % 4))
            signed = jws.encode(claims, key, algorithm="EdDSA", headers={"kid": "k1"})
            assert claims_to_json(verified(signed))

    def total(raw: bytes) -> None:
        try:
            check(raw)
        except ValueError as error:  # the harness's own base64
            raise BadToken(f"not base64: {error}") from None

    tokens = (b".", b"..", b"eyJhbGciOiJub25lIn0", b"=", b"-", b"_", b"\xff", b"A" * 3_000)
    throw("tokens", [genuine.encode()], total, (BadToken,), tokens=tokens, tree=False)
    assert ring.public_keys().keys() == {"k1"}
    assert len(ring._verified) <= DEFAULT_LIMITS.token_cache_entries


def pack(*args: bytes) -> bytes:
    return b"*%d\r\n" % len(args) + b"".join(b"$%d\r\n%b\r\n" % (len(a), a) for a in args)


def parsed(chunks: list[bytes], *, restricted: bool) -> tuple[list[list[bytes]], str]:
    """Commands, and the fault that ended them."""
    parser, found = RequestParser(1 << 20), []
    parser.restricted = restricted
    given = 0
    try:
        for chunk in chunks:
            parser.feed(chunk)
            given += len(chunk)
            while (args := parser.pull()) is not None:
                assert args
                found.append(args)
            assert parser.buffered_bytes() <= given, "bytes that never came are counted"
    except ProtocolFault as fault:
        return found, str(fault)
    return found, ""


def test_resp_is_commands_or_one_fault_however_it_is_cut() -> None:
    random = Random(7)

    def check(raw: bytes) -> None:
        restricted = len(raw) % 4 == 0
        cuts = sorted(random.randrange(len(raw) + 1) for _ in range(random.choice((0, 1, 3))))
        chunks = [raw[a:b] for a, b in pairwise([0, *cuts, len(raw)])]
        found, fault = parsed([raw], restricted=restricted)
        assert parsed(chunks, restricted=restricted) == (found, fault)
        assert sum(map(len, found)) <= len(raw)
        if fault:
            raise ProtocolFault(fault)

    seeds = [
        pack(b"SET", b"session:1", b"a\r\n$3\r\nb"),
        pack(b"PING") * 3 + pack(b"HGETALL", b"x" * 200),
        pack(b"GET", b""),
        b"set a \"b c\\x41\"\r\nget 'a'\r\n",
        pack(*[b"MSET", *[b"k"] * 30]),
    ]
    throw("resp", seeds, check, (ProtocolFault,), tokens=RESP_TOKENS, tree=False)


def test_json_bodies_are_typed_or_refused() -> None:
    nesting_max = DEFAULT_LIMITS.nesting_max

    def check(raw: bytes) -> None:
        refusal: BadRequest | None = None
        try:
            jsontext.check_text(raw, nesting_max)
        except BadRequest as error:
            refusal = error
        leaf_refusal: BadRequest | None = None
        try:
            compact = compact_json(raw)
        except BadRequest as error:
            leaf_refusal = error
        assert (refusal is None) == (leaf_refusal is None), "two faces, two answers"
        if refusal is not None:
            raise refusal
        assert compact_json(compact) == compact
        assert leaf_of(raw) == leaf_of(compact)
        json.loads(raw, parse_int=len)
        typed = 0
        for shape in BODIES:
            try:
                jsontext.convert(raw, shape)
                typed += 1
            except BadRequest as error:
                refusal = error
        if not typed:
            assert refusal is not None
            raise refusal

    throw("json", list(BODIES.values()), check, (BadRequest,), tokens=JSON_TOKENS, tree=False)


# --- calls between nodes ------------------------------------------------------------------------


class Unplugged:
    """A connection that notes what is sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    async def send(self, data: bytes) -> None:
        self.sent.append(data)


def call_seeds() -> list[bytes]:
    encode = msgspec.msgpack.encode
    refusal = BadRequest("no", retry_after_ms=5, turn=7)
    return [
        encode([1, "echo", {"a": [1, b"x", None]}, 1_000, "us", 4, "eu"]),
        encode([2, "echo", {}, 1_000, "ap", 1, "eu", "later"]),
        encode([1, 0, {"ok": True}]),
        encode([1, 1, refusal.code, refusal.message, 5, refusal.details]),
        encode([2, 1, "BUSY", "later", None, {}]),
    ]


async def test_calls_are_served_or_break_the_protocol(caplog: pytest.LogCaptureFixture) -> None:
    rpc = Rpc(node="us", region="us", cluster="test")

    async def echo(origin: str, args: Mapping[str, Any]) -> Any:
        return [origin, dict(args)]

    rpc.register("echo", echo)
    wire = Unplugged()
    channel = _Channel("eu", wire)  # type: ignore[arg-type]
    loop = asyncio.get_running_loop()
    seeds = call_seeds()

    def check(raw: bytes) -> None:
        answers = {1: loop.create_future(), 2: loop.create_future()}
        channel.waiting = dict(answers)
        served = set(rpc._tasks)
        try:
            rpc._received(channel, raw)
        except PeerError:
            assert channel.waiting == answers
            assert rpc._tasks == served
            raise
        for answer in answers.values():
            if answer.done() and (error := answer.exception()) is not None:
                assert isinstance(error, RoostError)
        assert len(channel.waiting) >= 1
        channel.waiting.clear()
        while rpc._tasks:
            task = next(iter(rpc._tasks))
            loop_step(task)

    pending: list[asyncio.Task[None]] = []

    def loop_step(task: asyncio.Task[None]) -> None:
        """The loop is running already: calls are taken off and awaited at the end."""
        rpc._tasks.discard(task)
        channel.serving = 0
        pending.append(task)

    throw("rpc", seeds, check, (PeerError,), tokens=MSGPACK)
    await asyncio.gather(*pending)
    while rpc._tasks:
        await asyncio.gather(*rpc._tasks)
    for sent in wire.sent:
        assert msgspec.msgpack.decode(sent)[1] in (0, 1)
    assert not [r for r in caplog.records if r.exc_info], "a call ended in a bug"
    assert len(pending) > len(wire.sent) // 2
