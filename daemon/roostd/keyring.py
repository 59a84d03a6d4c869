"""The Ed25519 keys that sign and verify routing tokens.

A directory holds `<kid>.pem` (private, PKCS8: the newest signs, the others verify what they signed
before) and `<kid>.pub` (public, only verifies). Neighbours' public keys come with their greetings.
To rotate, add a newer file and reload; nothing is restarted, and old tokens stay good until the
old file goes.

- The algorithm is pinned: a token's header chooses nothing but a key of the table.
- A key speaks for the node that announced it: a token of issuer A does not verify under B's key.
- Signing takes 40 us and verifying 130, so both remember: the issuer what it signed, everybody
  what was verified, by the token's bytes.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from roost_crdt.errors import ConfigError
from roost_crdt.limits import DEFAULT_LIMITS, Limits
from roost_crdt.token import (
    Claims,
    bad_token,
    claims_from_json,
    claims_to_json,
    read_json_object,
)

ALGORITHM = "EdDSA"
LEEWAY_S = 30
KEYS_MAX = 64
"""Keys of one directory, and of one neighbour."""
PEERS_MAX = 1_000
_KEY_FILE_BYTES_MAX = 8_192
_KID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_HEADER = frozenset(["alg", "kid", "typ"])

_Value = TypeVar("_Value")
_jws = jwt.PyJWS(algorithms=[ALGORITHM])


class Verified(NamedTuple):
    """The claims of a token with a good signature; `expired` ones are renewed, not believed."""

    claims: Claims
    expired: bool


class _Signed(NamedTuple):
    what: Claims
    token: str
    kid: str


class _Files(NamedTuple):
    """What a directory held when it was read."""

    kid: str
    signer: Ed25519PrivateKey
    own: dict[str, Ed25519PublicKey]
    public: dict[str, Ed25519PublicKey]


class Keyring:
    """Keys of one node of one cluster."""

    def __init__(
        self, directory: Path, *, node: str, audience: str, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        """Reads the directory. Raises ConfigError, which names the file and the remedy."""
        self._directory = directory
        self._node = node
        self._audience = audience
        self._cache_entries = limits.token_cache_entries
        self._token_bytes_max = limits.token_bytes_max
        self._peers: OrderedDict[str, dict[str, Ed25519PublicKey]] = OrderedDict()
        self._signed: OrderedDict[str, _Signed] = OrderedDict()
        self._verified: OrderedDict[str, Claims] = OrderedDict()
        self._files = _read_directory(directory)

    @classmethod
    def load(
        cls, directory: Path, *, node: str, audience: str, limits: Limits = DEFAULT_LIMITS
    ) -> Keyring:
        """The keys in `directory`, for tokens that `node` issues to cluster `audience`."""
        return cls(directory, node=node, audience=audience, limits=limits)

    @staticmethod
    def generate(directory: Path, kid: str) -> Path:
        """See `roostd.keyring.generate`."""
        return generate(directory, kid)

    def reload(self) -> None:
        """Read the directory again. Raises ConfigError; the old keys stay in force then."""
        self._files = _read_directory(self._directory)
        self._signed.clear()
        self._verified.clear()

    @property
    def kid(self) -> str:
        """The id of the key that signs."""
        return self._files.kid

    def public_keys(self) -> dict[str, bytes]:
        """The 32-byte public keys of this node's own private keys, for greetings."""
        return {kid: _raw(key) for kid, key in self._files.own.items()}

    def add_peer_keys(self, node: str, keys: Mapping[str, bytes]) -> None:
        """Take a neighbour's own keys in place of what it announced before.

        `keys` came over an authenticated link. Raises BadToken for what is no such table.
        """
        if node == self._node:
            return
        if len(keys) > KEYS_MAX:
            raise bad_token("key", f"{node} announced more than {KEYS_MAX} keys")
        found: dict[str, Ed25519PublicKey] = {}
        for kid, raw in keys.items():
            if not _KID.fullmatch(kid) or len(raw) != 32:
                raise bad_token("key", f"{node} announced a key that is none")
            found[kid] = Ed25519PublicKey.from_public_bytes(raw)
        before = self._peers.pop(node, None)
        self._peers[node] = found
        if len(self._peers) > PEERS_MAX:
            self._peers.popitem(last=False)
        if before is not None and {k: _raw(v) for k, v in before.items()} != dict(keys):
            self._verified.clear()

    def keys_of(self, node: str) -> dict[str, bytes]:
        """The public keys known of a node, this one too; empty if none are."""
        if node == self._node:
            return self.public_keys()
        return {kid: _raw(key) for kid, key in self._peers.get(node, {}).items()}

    # --- signing ---------------------------------------------------------------------------

    def sign(self, claims: Claims, now_s: int) -> str:
        """A token of these claims.

        A session's last token is given again while its claims are the same and less than a
        quarter of its life has passed; `exp` is then that of the first.
        """
        assert claims.aud == self._audience, "a token is for its own cluster"
        assert claims.iss == self._node, "a node signs in its own name"
        held = self._signed.get(claims.sid)
        if held is not None and _same_but_times(held.what, claims):
            age_s, life_s = now_s - held.what.iat, held.what.exp - held.what.iat
            if 0 <= age_s < max(1, life_s // 4) and held.kid == self._files.kid:
                self._signed.move_to_end(claims.sid)
                return held.token
        token = _jws.encode(
            claims_to_json(claims),
            self._files.signer,
            algorithm=ALGORITHM,
            headers={"kid": self._files.kid},
        )
        assert len(token) <= self._token_bytes_max, f"a token of {len(token)} bytes"
        _remember(self._signed, claims.sid, _Signed(claims, token, self.kid), self._cache_entries)
        return token

    # --- verifying -------------------------------------------------------------------------

    def verify(self, token: str, now_s: int) -> Verified:
        """The claims of a token of this cluster. Raises BadToken by class of fault."""
        claims = self._verified.get(token)
        if claims is None:
            claims = self._verify(token)
            _remember(self._verified, token, claims, self._cache_entries)
        else:
            self._verified.move_to_end(token)
        if claims.iat > now_s + LEEWAY_S:
            raise bad_token(
                "time", f"issued at {claims.iat} and it is {now_s} here; set the clocks"
            )
        return Verified(claims, now_s > claims.exp + LEEWAY_S)

    def unknown_issuer(self, token: str) -> tuple[str, str] | None:
        """Who is to be asked for the key of a token: (issuer, key id), believed by nobody yet.

        None if the key is known here. Raises BadToken for what is no token.
        """
        kid, claims = self._read(token)
        known = kid in self.keys_of(claims.iss) or kid in self._files.public
        return None if known or claims.iss == self._node else (claims.iss, kid)

    def _read(self, token: str) -> tuple[str, Claims]:
        """The key id and the claims of a token whose signature is not checked."""
        if len(token) > self._token_bytes_max:
            raise bad_token("size", f"over {self._token_bytes_max} bytes")
        parts = token.split(".")
        if len(parts) != 3 or not token.isascii():
            raise bad_token("shape", "not three parts")
        header = read_json_object(_decoded(parts[0]))
        if header.get("alg") != ALGORITHM:
            raise bad_token("algorithm", f"only {ALGORITHM} is taken")
        if not header.keys() <= _HEADER or header.get("typ", "JWT") != "JWT":
            raise bad_token("shape", "the header asks for more than a key")
        kid = header.get("kid")
        if type(kid) is not str or not _KID.fullmatch(kid):
            raise bad_token("key", "the key id is none")
        return kid, claims_from_json(_decoded(parts[1]))

    def _verify(self, token: str) -> Claims:
        # Read before the signature is checked, but believed only after it.
        kid, claims = self._read(token)
        key = self._key(kid, claims.iss)
        try:
            _jws.decode(token, key, algorithms=[ALGORITHM])
        except jwt.InvalidTokenError as error:
            raise bad_token("signature", "it does not verify") from error
        if claims.aud != self._audience:
            raise bad_token("audience", "it is for another cluster")
        return claims

    def _key(self, kid: str, issuer: str) -> Ed25519PublicKey:
        """The key that `issuer` may use under this id."""
        files = self._files
        if issuer == self._node and kid in files.own:
            return files.own[kid]
        if kid in self._peers.get(issuer, {}):
            return self._peers[issuer][kid]
        if kid in files.public:
            return files.public[kid]
        if kid in files.own or any(kid in keys for keys in self._peers.values()):
            raise bad_token("issuer", "the key is not its issuer's")
        raise bad_token("key", "the key id is not known here")


def generate(directory: Path, kid: str) -> Path:
    """Write a new private key `<kid>.pem` that only its owner can read; its path.

    Raises ConfigError if the id is none or the file exists.
    """
    if not _KID.fullmatch(kid):
        raise ConfigError(f"{kid!r} is no key id: letters, digits, dot, dash and underscore")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / f"{kid}.pem"
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise ConfigError("the key exists; choose another key id", file=str(path)) from error
    with os.fdopen(handle, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(handle)
    return path


# --- files ---------------------------------------------------------------------------------


def _read_directory(directory: Path) -> _Files:
    try:
        paths = sorted(p for p in directory.iterdir() if p.suffix in (".pem", ".pub"))
    except OSError as error:
        raise ConfigError(
            f"the key directory cannot be read ({error.strerror}); "
            "`roost init` or `roost token rotate` makes one",
            file=str(directory),
        ) from error
    if len(paths) > KEYS_MAX:
        raise ConfigError(
            f"{len(paths)} keys, more than {KEYS_MAX}; remove the oldest", file=str(directory)
        )
    newest: tuple[int, str, Ed25519PrivateKey] | None = None
    own: dict[str, Ed25519PublicKey] = {}
    public: dict[str, Ed25519PublicKey] = {}
    for path in paths:
        kid = path.stem
        if not _KID.fullmatch(kid):
            raise ConfigError("the file's name is no key id", file=str(path))
        if path.suffix == ".pub":
            public[kid] = _read_public(path)
            continue
        private, mtime_ns = _read_private(path)
        own[kid] = private.public_key()
        if newest is None or (mtime_ns, kid) > newest[:2]:
            newest = (mtime_ns, kid, private)
    if newest is None:
        raise ConfigError(
            "no private key (<kid>.pem) to sign tokens with; `roost token rotate` makes one",
            file=str(directory),
        )
    return _Files(newest[1], newest[2], own, public)


def _read_private(path: Path) -> tuple[Ed25519PrivateKey, int]:
    """The key, and when its file was written (ns)."""
    pem, status = _read_file(path)
    if stat.S_IMODE(status.st_mode) & stat.S_IRWXO:
        raise ConfigError(f"everybody can read this private key; chmod 600 {path}", file=str(path))
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            "no Ed25519 private key (PKCS8 PEM, not encrypted); "
            f"openssl genpkey -algorithm ed25519 -out {path} makes one",
            file=str(path),
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            f"a private key of another kind; openssl genpkey -algorithm ed25519 -out {path}",
            file=str(path),
        )
    return key, status.st_mtime_ns


def _read_public(path: Path) -> Ed25519PublicKey:
    pem, _ = _read_file(path)
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            "no Ed25519 public key (PEM); openssl pkey -in KEY.pem -pubout makes one",
            file=str(path),
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError("a public key of another kind than Ed25519", file=str(path))
    return key


def _read_file(path: Path) -> tuple[bytes, os.stat_result]:
    """Content and status of one opened file, so that they belong together."""
    try:
        with path.open("rb") as file:
            return file.read(_KEY_FILE_BYTES_MAX), os.fstat(file.fileno())
    except OSError as error:
        raise ConfigError(f"the key cannot be read: {error.strerror}", file=str(path)) from error


# --- inside --------------------------------------------------------------------------------


def _same_but_times(one: Claims, other: Claims) -> bool:
    return one[:-2] == other[:-2]


def _remember(cache: OrderedDict[str, _Value], key: str, value: _Value, entries_max: int) -> None:
    cache[key] = value
    cache.move_to_end(key)
    if len(cache) > entries_max:
        cache.popitem(last=False)


def _decoded(part: str) -> bytes:
    try:
        return base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_token("shape", "not base64url") from error


def _raw(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
