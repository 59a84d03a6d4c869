from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost_crdt.errors import BadToken
from roost_crdt.fold import Fold, turn_entry
from roost_crdt.token import Claims, claims_from_json, claims_to_json, lacks, read_json_object

CLAIMS = Claims(
    sid="s-1",
    home="eu-1",
    standby="us-1",
    epoch=(3, "eu-1"),
    turn=12,
    path=((1, "eu-1", 0, 9), (2, "us-1", 9, 11), (3, "eu-1", 11, 12)),
    aud="prod",
    iss="eu-1",
    iat=1_000,
    exp=4_600,
)
BODY: dict[str, Any] = json.loads(claims_to_json(CLAIMS))


def payload(**changed: object) -> bytes:
    return json.dumps(BODY | changed).encode()


def raw(name: str, literal: str) -> bytes:
    """The payload with one claim as a literal that Python could not write."""
    rest = {k: v for k, v in BODY.items() if k != name}
    return f'{json.dumps(rest)[:-1]}, "{name}": {literal}}}'.encode()


def test_claims_come_back_as_they_went_in() -> None:
    assert claims_from_json(claims_to_json(CLAIMS)) == CLAIMS
    bare = CLAIMS._replace(standby=None, path=(), turn=0)
    assert claims_from_json(claims_to_json(bare)) == bare
    assert BODY["epoch"] == 3, "routers read the number; its node is home"


def test_unknown_claims_are_ignored() -> None:
    assert claims_from_json(payload(jti="x", nested={"a": [1]})) == CLAIMS


@pytest.mark.parametrize("name", sorted(BODY))
@pytest.mark.parametrize(
    "literal",
    [
        "true",
        "false",
        "-1",
        "1e30",
        "1E1",
        "3.0",
        "NaN",
        "Infinity",
        "-Infinity",
        "1" + "0" * 400,
        "1e400",
        "18446744073709551616",
        "{}",
        '{"n": 3}',
        "[]",
        '""',
        '"3"',
        '"\\u0000"',
        '"a\\nb"',
        "null",
        '["eu-1"]',
        '"' + "x" * 300 + '"',
    ],
)
def test_each_claim_has_its_type_and_range(name: str, literal: str) -> None:
    fine = {
        ("standby", "null"),
        ("path", "[]"),
        *((text, '"3"') for text in ("sid", "home", "standby", "aud", "iss")),
    }
    if (name, literal) in fine and name != "home":
        claims_from_json(raw(name, literal))
        return
    if name == "home" and literal == '"3"':
        literal = '"a"'  # below the path's newest epoch: a home that cannot be
    with pytest.raises(BadToken):
        claims_from_json(raw(name, literal))


@pytest.mark.parametrize("name", sorted(BODY))
def test_each_claim_is_required_and_given_once(name: str) -> None:
    with pytest.raises(BadToken, match="missing"):
        claims_from_json(json.dumps({k: v for k, v in BODY.items() if k != name}).encode())
    doubled = json.dumps(BODY)[:-1] + f', "{name}": {json.dumps(BODY[name])}}}'
    with pytest.raises(BadToken, match="twice"):
        claims_from_json(doubled.encode())


@pytest.mark.parametrize(
    "changed",
    [
        {"epoch": 0},
        {"epoch": 1 << 19},
        {"epoch": 2},
        {"turn": 1 << 32},
        {"turn": 11},
        {"exp": 999},
        {"iat": 1 << 41, "exp": 1 << 41},
        {"path": [[1, "eu-1", 0, 9, 1]]},
        {"path": [[1, "eu-1", 0]]},
        {"path": [{"n": 1}]},
        {"path": [[0, "eu-1", 0, 9]]},
        {"path": [[1, 5, 0, 9]]},
        {"path": [[1, "eu-1", 9, 9]]},
        {"path": [[1, "eu-1", -1, 9]]},
        {"path": [[1, "eu-1", True, 9]]},
        {"path": [[1, "eu-1", 0, 1 << 40]]},
        {"path": [[1, "eu-1", 0, 9], [1, "eu-1", 9, 12]]},
        {"path": [[2, "eu-1", 0, 9], [1, "eu-1", 9, 12]]},
        {"path": [[1, "eu-1", 0, 9], [2, "eu-1", 8, 12]]},
        {"path": [[n, "eu-1", n, n + 1] for n in range(1, 6)]},
        {"path": [[4, "eu-1", 0, 12]]},
        {"sid": "x" * 121},
    ],
)
def test_claims_that_contradict_themselves_are_refused(changed: dict[str, object]) -> None:
    with pytest.raises(BadToken):
        claims_from_json(payload(**changed))


@pytest.mark.parametrize(
    "hostile",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b"\xff\xfe",
        b"[" * 1_000,
        b'{"a":' * 400 + b"1" + b"}" * 400,
        b"[" * 2_040,
        b" " * 3_000,
        b"x" * 100_000,
    ],
)
def test_what_is_no_small_object_is_refused(hostile: bytes) -> None:
    with pytest.raises(BadToken) as caught:
        claims_from_json(hostile)
    assert caught.value.details["reason"] in ("size", "shape", "claims")
    assert hostile[:20].decode(errors="replace") not in str(caught.value) or len(hostile) < 3


def test_a_refusal_does_not_repeat_what_was_sent() -> None:
    with pytest.raises(BadToken) as caught:
        claims_from_json(payload(sid="<script>\x07"))
    assert "script" not in str(caught.value)


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_claims_or_a_bad_token(content: bytes) -> None:
    with pytest.raises(BadToken):
        claims_from_json(content)


@given(st.integers(0, 2_000), st.integers(0, 255))
def test_a_changed_byte_is_other_claims_or_a_bad_token(at: int, byte: int) -> None:
    content = bytearray(claims_to_json(CLAIMS))
    content[at % len(content)] = byte
    try:
        claims = claims_from_json(bytes(content))
    except BadToken:
        return
    assert claims_from_json(claims_to_json(claims)) == claims


def test_the_writer_checks_itself() -> None:
    with pytest.raises(AssertionError):
        claims_to_json(CLAIMS._replace(home="us-1"))
    with pytest.raises(AssertionError):
        claims_to_json(CLAIMS._replace(path=((1, "a", 0, 1),) * 5))


def test_the_same_reader_serves_headers() -> None:
    assert read_json_object(b'{"alg": "EdDSA"}') == {"alg": "EdDSA"}
    with pytest.raises(BadToken, match="twice"):
        read_json_object(b'{"alg": "EdDSA", "alg": "none"}')


# --- staleness ----------------------------------------------------------------------------


def test_staleness_is_counted_by_lineage_not_by_number() -> None:
    """In a split both homes commit a turn 10; the other's is one that is lacked."""
    seen_at_eu = CLAIMS._replace(path=((1, "eu", 0, 10),), turn=10)
    us = Fold()
    parent = None
    for turn in range(1, 10):
        us.add(*turn_entry((1, "eu"), turn, parent=parent, turn_id=None, messages=[], at_ms=1))
        parent = (1, "eu", turn)
    us.add(*turn_entry((2, "us"), 10, parent=parent, turn_id=None, messages=[], at_ms=1))
    assert us.turn == (2, "us", 10)
    assert lacks(seen_at_eu, us.lineage()) == 1


@pytest.mark.parametrize(
    ("lineage", "missing"),
    [
        ({}, 12),
        ({(1, "eu-1"): 9, (2, "us-1"): 11, (3, "eu-1"): 12}, 0),
        ({(1, "eu-1"): 99, (2, "us-1"): 99, (3, "eu-1"): 99}, 0),
        ({(1, "eu-1"): 9}, 3),
        ({(1, "eu-1"): 4}, 8),
        ({(1, "eu-1"): 9, (2, "us-1"): 10}, 2),
        ({(1, "us-1"): 9}, 12),
    ],
)
def test_each_epoch_counts_what_it_lacks(lineage: dict[tuple[int, str], int], missing: int) -> None:
    assert lacks(CLAIMS, lineage) == missing


def test_a_token_of_a_new_session_lacks_nothing() -> None:
    assert lacks(CLAIMS._replace(path=(), turn=0), {}) == 0
