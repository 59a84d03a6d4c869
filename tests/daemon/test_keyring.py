from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from roost_crdt.errors import BadToken, ConfigError
from roost_crdt.limits import DEFAULT_LIMITS
from roost_crdt.token import Claims, claims_to_json
from roostd.keyring import LEEWAY_S, PEERS_MAX, Keyring, generate

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


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    generate(tmp_path / "keys", "k1")
    return tmp_path / "keys"


def keyring(directory: Path, node: str = "eu") -> Keyring:
    return Keyring.load(directory, node=node, audience="prod")


def private_key(directory: Path, kid: str) -> Ed25519PrivateKey:
    key = serialization.load_pem_private_key((directory / f"{kid}.pem").read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    return key


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def forged(
    directory: Path,
    *,
    header: object = None,
    payload: bytes | None = None,
    sign: Callable[[bytes], bytes] | None = None,
) -> str:
    """A token of a chosen header and payload, signed with the key k1 unless `sign` is given."""
    head = header if header is not None else {"alg": "EdDSA", "typ": "JWT", "kid": "k1"}
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    body = claims_to_json(CLAIMS) if payload is None else payload
    signed = f"{b64(text)}.{b64(body)}".encode()
    return f"{signed.decode()}.{b64((sign or private_key(directory, 'k1').sign)(signed))}"


def reason(caught: pytest.ExceptionInfo[BadToken]) -> str:
    return str(caught.value.details["reason"])


# --- signing and verifying ------------------------------------------------------------------


def test_what_it_signs_it_verifies(keys: Path) -> None:
    ring = keyring(keys)
    token = ring.sign(CLAIMS, NOW_S)
    assert ring.verify(token, NOW_S) == (CLAIMS, False)
    assert ring.verify(token, NOW_S) == (CLAIMS, False), "also out of its memory"
    assert jwt.get_unverified_header(token) == {"alg": "EdDSA", "kid": "k1", "typ": "JWT"}
    standard = jwt.decode(
        token,
        private_key(keys, "k1").public_key(),
        algorithms=["EdDSA"],
        audience="prod",
        issuer="eu",
        options={"verify_exp": False, "verify_iat": False},
    )
    assert standard["sid"] == "s-1", "any JWT library reads it"


def test_a_token_is_signed_again_only_when_it_says_more_or_grows_old(keys: Path) -> None:
    ring = keyring(keys)
    first = ring.sign(CLAIMS, NOW_S)

    def later(s: int) -> Claims:
        return CLAIMS._replace(iat=NOW_S + s, exp=NOW_S + s + 3_600)

    assert ring.sign(later(899), NOW_S + 899) == first
    second = ring.sign(later(900), NOW_S + 900)
    assert second != first
    assert ring.verify(second, NOW_S + 900).claims.exp == NOW_S + 4_500
    more = later(900)._replace(turn=4, path=((1, "us", 0, 2), (2, "eu", 2, 4)))
    assert ring.sign(more, NOW_S + 900) not in (first, second)
    back = ring.sign(later(-100), NOW_S - 100)
    assert ring.verify(back, NOW_S - 100).claims.iat == NOW_S - 100, "a clock set back signs anew"


def test_an_expired_token_with_a_good_signature_says_so(keys: Path) -> None:
    ring = keyring(keys)
    token = ring.sign(CLAIMS, NOW_S)
    for now_s, expired in (
        (CLAIMS.exp + LEEWAY_S, False),
        (CLAIMS.exp + LEEWAY_S + 1, True),
        (CLAIMS.exp + 10**6, True),
    ):
        assert ring.verify(token, now_s) == (CLAIMS, expired)
        assert keyring(keys).verify(token, now_s) == (CLAIMS, expired)


def test_a_token_from_the_future_is_refused_naming_both_times(keys: Path) -> None:
    ring = keyring(keys)
    token = ring.sign(CLAIMS, NOW_S)
    assert not ring.verify(token, NOW_S - LEEWAY_S).expired
    with pytest.raises(BadToken, match=f"{NOW_S}.*{NOW_S - LEEWAY_S - 1}") as caught:
        ring.verify(token, NOW_S - LEEWAY_S - 1)
    assert reason(caught) == "time"
    assert not ring.verify(token, NOW_S).expired, "a refusal by time is not remembered"


def test_a_node_signs_in_its_own_name_for_its_own_cluster(keys: Path) -> None:
    ring = keyring(keys)
    for wrong in ({"iss": "us"}, {"aud": "test"}):
        with pytest.raises(AssertionError):
            ring.sign(CLAIMS._replace(**wrong), NOW_S)


def test_what_is_remembered_is_bounded(keys: Path) -> None:
    limits = replace(DEFAULT_LIMITS, token_cache_entries=3)
    ring = Keyring.load(keys, node="eu", audience="prod", limits=limits)
    tokens = [ring.sign(CLAIMS._replace(sid=f"s{n}"), NOW_S) for n in range(10)]
    for token in tokens:
        ring.verify(token, NOW_S)
    assert len(ring._signed) == len(ring._verified) == 3
    assert ring.verify(tokens[0], NOW_S).claims.sid == "s0"


# --- forgeries ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({"alg": "none", "kid": "k1"}, "algorithm"),
        ({"alg": "HS256", "kid": "k1"}, "algorithm"),
        ({"alg": "ES256", "kid": "k1"}, "algorithm"),
        ({"alg": "eddsa", "kid": "k1"}, "algorithm"),
        ({"alg": ["EdDSA"], "kid": "k1"}, "algorithm"),
        ({"kid": "k1"}, "algorithm"),
        ({"alg": "EdDSA"}, "key"),
        ({"alg": "EdDSA", "kid": {"k1": 1}}, "key"),
        ({"alg": "EdDSA", "kid": ["k1"]}, "key"),
        ({"alg": "EdDSA", "kid": None}, "key"),
        ({"alg": "EdDSA", "kid": 1}, "key"),
        ({"alg": "EdDSA", "kid": ""}, "key"),
        ({"alg": "EdDSA", "kid": "../../etc/passwd"}, "key"),
        ({"alg": "EdDSA", "kid": "k1.pem"}, "key"),
        ({"alg": "EdDSA", "kid": "/dev/null"}, "key"),
        ({"alg": "EdDSA", "kid": "k1\0"}, "key"),
        ({"alg": "EdDSA", "kid": "k2"}, "key"),
        ({"alg": "EdDSA", "kid": "k" * 1_000}, "key"),
        ({"alg": "EdDSA", "kid": "k1", "crit": ["b64"], "b64": False}, "shape"),
        ({"alg": "EdDSA", "kid": "k1", "jwk": {"kty": "OKP"}}, "shape"),
        ({"alg": "EdDSA", "kid": "k1", "typ": "JOSE"}, "shape"),
        (b'{"alg": "none", "alg": "EdDSA", "kid": "k1"}', "claims"),
        (b"[" * 1_000, "shape"),
        (b"", "shape"),
    ],
)
def test_the_header_chooses_nothing_but_a_known_key(
    keys: Path, header: object, expected: str
) -> None:
    with pytest.raises(BadToken) as caught:
        keyring(keys).verify(forged(keys, header=header), NOW_S)
    assert reason(caught) == expected


def test_the_public_key_is_no_shared_secret(keys: Path) -> None:
    public = private_key(keys, "k1").public_key()
    secrets = [
        public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw),
        public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
    ]
    for secret in secrets:
        for algorithm in ("HS256", "EdDSA"):
            token = forged(
                keys,
                header={"alg": algorithm, "kid": "k1", "typ": "JWT"},
                sign=lambda text, secret=secret: hmac.digest(secret, text, hashlib.sha256),
            )
            with pytest.raises(BadToken):
                keyring(keys).verify(token, NOW_S)


def test_a_bad_or_empty_signature_is_refused(keys: Path) -> None:
    ring = keyring(keys)
    good = ring.sign(CLAIMS, NOW_S)
    head, body, signature = good.split(".")
    other = ring.sign(CLAIMS._replace(sid="s-2"), NOW_S).split(".")
    for token in (
        f"{head}.{body}.",
        f"{head}.{body}",
        f"{head}.{body}.{signature[:-4]}",
        f"{head}.{body}.{signature[:40]}AAAA{signature[44:]}",
        f"{head}.{body}.{signature}.{signature}",
        f"{head}.{body}.{other[2]}",
        f"{head}.{other[1]}.{signature}",
        f"{head}.{body}.!!!!",
        f" {good}",
        f"{good}\n",
        good + "é",
        "",
        "..",
        "a.b.c",
    ):
        with pytest.raises(BadToken):
            ring.verify(token, NOW_S)
    assert not ring.verify(good, NOW_S).expired


def test_a_key_of_somebody_else_does_not_verify(keys: Path) -> None:
    token = forged(keys, sign=Ed25519PrivateKey.generate().sign)
    with pytest.raises(BadToken) as caught:
        keyring(keys).verify(token, NOW_S)
    assert reason(caught) == "signature"


@pytest.mark.parametrize(
    "literal", ['"3"', "-1", "true", "1e30", "1" + "0" * 400, "1e400", "NaN", "null", "[2]"]
)
@pytest.mark.parametrize("name", ["epoch", "exp", "iat", "turn"])
def test_a_good_signature_does_not_excuse_bad_claims(keys: Path, name: str, literal: str) -> None:
    body = json.loads(claims_to_json(CLAIMS))
    del body[name]
    text = f'{json.dumps(body)[:-1]}, "{name}": {literal}}}'
    with pytest.raises(BadToken) as caught:
        keyring(keys).verify(forged(keys, payload=text.encode()), NOW_S)
    assert reason(caught) == "claims"


def test_a_claim_twice_is_refused(keys: Path) -> None:
    text = claims_to_json(CLAIMS)[:-1] + b',"sid":"s-2"}'
    with pytest.raises(BadToken, match="twice"):
        keyring(keys).verify(forged(keys, payload=text), NOW_S)


def test_a_large_token_is_refused_unread(keys: Path) -> None:
    ring = keyring(keys)
    for size in (2_049, 100_000):
        with pytest.raises(BadToken) as caught:
            ring.verify("a" * size, NOW_S)
        assert reason(caught) == "size"


def test_audience_and_issuer_are_checked(keys: Path) -> None:
    ring = keyring(keys)
    for wrong, expected in (({"aud": "test"}, "audience"), ({"iss": "us"}, "issuer")):
        payload = claims_to_json(CLAIMS._replace(**wrong))
        with pytest.raises(BadToken) as caught:
            ring.verify(forged(keys, payload=payload), NOW_S)
        assert reason(caught) == expected
    body = json.loads(claims_to_json(CLAIMS)) | {"aud": ["prod"]}
    with pytest.raises(BadToken):
        ring.verify(forged(keys, payload=json.dumps(body).encode()), NOW_S)


@given(st.text(max_size=60) | st.text("abc.AQ-_=", max_size=60))
def test_any_text_is_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    directory = tmp_path_factory.getbasetemp() / "any"
    if not directory.exists():
        generate(directory, "k1")
    with pytest.raises(BadToken):
        keyring(directory).verify(text, NOW_S)


# --- neighbours -----------------------------------------------------------------------------


def test_a_neighbours_token_verifies_once_its_keys_are_known(tmp_path: Path, keys: Path) -> None:
    generate(tmp_path / "us", "k1")  # the same key id, as two nodes set up alike would have
    us, eu = keyring(tmp_path / "us", "us"), keyring(keys)
    token = us.sign(CLAIMS._replace(iss="us"), NOW_S)
    with pytest.raises(BadToken):
        eu.verify(token, NOW_S)
    eu.add_peer_keys("us", us.public_keys())
    assert eu.verify(token, NOW_S).claims.iss == "us"
    assert eu.verify(eu.sign(CLAIMS, NOW_S), NOW_S).claims == CLAIMS, "own k1 is another key"


def test_a_neighbour_speaks_only_for_itself(tmp_path: Path, keys: Path) -> None:
    generate(tmp_path / "us", "k-us")
    us = keyring(tmp_path / "us", "us")
    eu = keyring(keys)
    eu.add_peer_keys("us", us.public_keys())
    key = private_key(tmp_path / "us", "k-us")
    token = forged(
        tmp_path,
        header={"alg": "EdDSA", "kid": "k-us"},
        payload=claims_to_json(CLAIMS),
        sign=key.sign,
    )
    with pytest.raises(BadToken) as caught:
        eu.verify(token, NOW_S)
    assert reason(caught) == "issuer"
    eu.add_peer_keys("eu", {"k1": us.public_keys()["k-us"]})
    assert eu.verify(eu.sign(CLAIMS, NOW_S), NOW_S).claims == CLAIMS, "nobody announces my keys"


def test_keys_that_a_neighbour_gave_up_stop_verifying(tmp_path: Path, keys: Path) -> None:
    generate(tmp_path / "us", "old")
    us, eu = keyring(tmp_path / "us", "us"), keyring(keys)
    eu.add_peer_keys("us", us.public_keys())
    token = us.sign(CLAIMS._replace(iss="us"), NOW_S)
    eu.verify(token, NOW_S)
    generate(tmp_path / "us", "new")
    us.reload()
    eu.add_peer_keys("us", us.public_keys())
    assert not eu.verify(token, NOW_S).expired, "the old key is still announced"
    (tmp_path / "us" / "old.pem").unlink()
    us.reload()
    eu.add_peer_keys("us", us.public_keys())
    with pytest.raises(BadToken):
        eu.verify(token, NOW_S)


@pytest.mark.parametrize(
    "announced",
    [
        {"k": b""},
        {"k": b"x" * 31},
        {"../k": b"x" * 32},
        {"": b"x" * 32},
        {f"k{n}": b"x" * 32 for n in range(65)},
    ],
)
def test_a_table_of_keys_that_is_none_is_refused(keys: Path, announced: dict[str, bytes]) -> None:
    ring = keyring(keys)
    with pytest.raises(BadToken) as caught:
        ring.add_peer_keys("us", announced)
    assert reason(caught) == "key"


def test_neighbours_are_bounded_and_the_newest_stay(keys: Path) -> None:
    ring = keyring(keys)
    for number in range(PEERS_MAX + 5):
        ring.add_peer_keys(f"n{number}", ring.public_keys())
    assert len(ring._peers) == PEERS_MAX
    assert f"n{PEERS_MAX + 4}" in ring._peers


# --- files ----------------------------------------------------------------------------------


def test_keys_rotate_without_a_restart(keys: Path) -> None:
    ring = keyring(keys)
    old = ring.sign(CLAIMS, NOW_S)
    generate(keys, "k2")
    os.utime(keys / "k1.pem", (1, 1))
    assert ring.kid == "k1"
    ring.reload()
    assert ring.kid == "k2"
    new = ring.sign(CLAIMS, NOW_S)
    assert jwt.get_unverified_header(new)["kid"] == "k2"
    for token in (old, new):
        assert ring.verify(token, NOW_S).claims == CLAIMS
    assert ring.public_keys().keys() == {"k1", "k2"}
    (keys / "k1.pem").unlink()
    ring.reload()
    with pytest.raises(BadToken) as caught:
        ring.verify(old, NOW_S)
    assert reason(caught) == "key"
    assert ring.verify(new, NOW_S).claims == CLAIMS


def test_the_newest_file_signs_and_the_name_decides_between_equals(keys: Path) -> None:
    for kid in ("k2", "k3"):
        generate(keys, kid)
    for kid, at_s in (("k1", 50), ("k2", 90), ("k3", 90)):
        os.utime(keys / f"{kid}.pem", (at_s, at_s))
    assert keyring(keys).kid == "k3"
    os.utime(keys / "k1.pem", (91, 91))
    assert keyring(keys).kid == "k1"


def test_a_public_file_only_verifies(tmp_path: Path, keys: Path) -> None:
    generate(tmp_path / "us", "k-us")
    us = keyring(tmp_path / "us", "us")
    pem = (
        private_key(tmp_path / "us", "k-us")
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    (keys / "k-us.pub").write_bytes(pem)
    ring = keyring(keys)
    assert ring.kid == "k1"
    assert ring.public_keys().keys() == {"k1"}, "it is not ours to announce"
    assert ring.verify(us.sign(CLAIMS._replace(iss="us"), NOW_S), NOW_S).claims.iss == "us"


def test_a_private_key_that_everybody_can_read_is_refused_with_the_remedy(keys: Path) -> None:
    path = keys / "k1.pem"
    for mode in (0o644, 0o602, 0o604):
        path.chmod(mode)
        with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
            keyring(keys)
    path.chmod(0o640)
    assert keyring(keys).kid == "k1", "a group may hold secrets"


def test_a_reload_that_fails_leaves_the_old_keys_in_force(keys: Path) -> None:
    ring = keyring(keys)
    token = ring.sign(CLAIMS, NOW_S)
    (keys / "k2.pem").write_text("garbage")
    (keys / "k2.pem").chmod(0o600)
    with pytest.raises(ConfigError, match=r"k2\.pem"):
        ring.reload()
    assert ring.kid == "k1"
    assert ring.verify(token, NOW_S).claims == CLAIMS


def _pem(key: object) -> bytes:
    assert hasattr(key, "private_bytes")
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    assert isinstance(pem, bytes)
    return pem


def _public(key: EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _encrypted() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"x"),
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("k.pem", b""),
        ("k.pem", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
        ("k.pem", _pem(generate_private_key(SECP256R1()))),
        ("k.pem", _encrypted()),
        ("k.pub", b"garbage"),
        ("k.pub", _public(generate_private_key(SECP256R1()))),
        ("k.pub", _pem(Ed25519PrivateKey.generate())),
        ("a b.pem", _pem(Ed25519PrivateKey.generate())),
    ],
)
def test_a_file_that_is_no_key_is_named(keys: Path, name: str, content: bytes) -> None:
    (keys / name).write_bytes(content)
    (keys / name).chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        keyring(keys)
    assert str(keys / name) in str(caught.value)


def test_a_key_that_cannot_be_read_is_named(keys: Path) -> None:
    (keys / "k2.pem").mkdir()
    with pytest.raises(ConfigError, match=r"k2\.pem: the key cannot be read"):
        keyring(keys)


def test_no_directory_no_key_and_too_many_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        keyring(tmp_path / "none")
    (tmp_path / "README").write_text("other files are left alone")
    with pytest.raises(ConfigError, match="rotate"):
        keyring(tmp_path)
    for number in range(65):
        (tmp_path / f"k{number}.pub").write_bytes(b"")
    with pytest.raises(ConfigError, match="65 keys"):
        keyring(tmp_path)


def test_generate_writes_a_file_for_its_owner_and_never_over_another(tmp_path: Path) -> None:
    path = Keyring.generate(tmp_path / "new" / "keys", "k1")
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="exists"):
        generate(path.parent, "k1")
    assert path.read_bytes() == before
    for kid in ("", "../k", "a b", ".hidden", "k" * 65):
        with pytest.raises(ConfigError, match="key id"):
            generate(path.parent, kid)
