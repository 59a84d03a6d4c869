"""`roost token`: routing tokens of sessions, read field by field, and the keys that sign them."""

from __future__ import annotations

import base64
import binascii
import json
import re
import sys
import time
from pathlib import Path
from typing import Any, Final

import click
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from roost_crdt.errors import BadToken, ConfigError
from roost_crdt.limits import DEFAULT_LIMITS
from roost_crdt.token import claims_from_json
from roostd.cli.daemon import Daemon, console, daemon_command, json_text, moment, print_table
from roostd.cli.keyfiles import new_signing_key
from roostd.configfiles import secret_fault

__all__ = ["token"]

MEANINGS: Final = {
    "alg": "signature algorithm; only EdDSA is accepted",
    "typ": "kind of token",
    "kid": "the key that signed it",
    "sid": "the session",
    "home": "the node that the session is pinned to",
    "standby": "the node with its asynchronous copy; null: none has acknowledged one yet",
    "epoch": "fencing number of home; compared together with the name of home",
    "turn": "the last turn that the bearer has seen",
    "path": "which turns of which epochs the bearer has seen: (n, node, after turn, last turn)",
    "aud": "audience: the cluster in which it is valid",
    "iss": "issuer: the node that signed it",
    "iat": "issued at",
    "exp": "expires at; renewed after that as long as the session lives",
    "nbf": "not valid before",
    "jti": "id of this token",
}


@click.group()
def token() -> None:
    """Routing tokens: issue, show, rotate."""


@token.command()
@click.argument("sid", required=False)
@daemon_command
def issue(daemon: Daemon, sid: str | None) -> None:
    """Print a fresh token of the session SID, or of a new session."""
    if sid is not None:
        daemon.fields("ROOST.SESSION", sid)  # an unknown session is an error, not a new one
    opened = daemon.fields("ROOST.OPEN", *(() if sid is None else (sid,)), effect=True)
    daemon.show(opened, str(opened["token"]))


@token.command()
@click.argument("token_text", metavar="TOKEN")
@click.option(
    "--keys",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Directory with the keys of [token] keys: check the signature.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(token_text: str, keys: Path | None, as_json: bool) -> None:
    """Print each field of a TOKEN (- is stdin) with its meaning.

    Ends with 1 if the token is malformed, or if keys are given and its signature is not good.
    """
    text = (sys.stdin.read() if token_text == "-" else token_text).strip()
    try:
        header, payload, signature = _parts(text)
    except BadToken as error:
        click.echo(f"roost: BADTOKEN: {error.message}", err=True)
        sys.exit(1)
    fault = _claims_fault(payload)
    checked, verdict = _verdict(text, header, signature, keys)
    claims = json.loads(payload)
    if as_json:
        facts = {"header": header, "claims": claims, "signature": checked, "fault": fault}
        click.echo(json_text(facts | {"verdict": verdict}))
    else:
        fields = [*header.items(), *claims.items()]
        rows = [(name, _shown(name, value), MEANINGS.get(name, "")) for name, value in fields]
        print_table(console(), ("field", "value", "meaning"), rows)
        click.echo(f"signature: {verdict}")
    if fault is not None:
        click.echo(f"roost: BADTOKEN: {fault}", err=True)
    sys.exit(1 if fault is not None or checked == "bad" else 0)


@token.command()
@click.option(
    "--keys",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=Path("keys"),
    show_default=True,
    help="Directory of [token] keys.",
)
def rotate(keys: Path) -> None:
    """Make a new signing key; older ones go on verifying until their files are removed.

    The daemon takes it up at SIGHUP. Remove the old <kid>.pem once its tokens have expired
    (token.ttl_s), or keep it as <kid>.pub.
    """
    kid = new_signing_key(keys)
    click.echo(kid)
    click.echo("send SIGHUP to roostd: it signs with this key from then on", err=True)


def _parts(text: str) -> tuple[dict[str, Any], bytes, bytes]:
    if len(text) > DEFAULT_LIMITS.token_bytes_max:
        raise BadToken(f"longer than {DEFAULT_LIMITS.token_bytes_max} bytes")
    pieces = text.split(".")
    if len(pieces) != 3:
        raise BadToken("a token is three parts with dots between them")
    try:
        decoded = [base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in pieces]
        header, claims = json.loads(decoded[0]), json.loads(decoded[1])
    except (binascii.Error, ValueError, RecursionError):
        raise BadToken("its parts are not base64 of JSON") from None
    if not isinstance(header, dict) or not isinstance(claims, dict):
        raise BadToken("its parts are not JSON objects")
    return header, decoded[1], decoded[2]


def _claims_fault(payload: bytes) -> str | None:
    try:
        claims_from_json(payload)
    except BadToken as error:
        return error.message
    return None


def _verdict(
    text: str, header: dict[str, Any], signature: bytes, keys: Path | None
) -> tuple[str, str]:
    """`good`, `bad` or `unchecked`, and a sentence."""
    if keys is None:
        return "unchecked", "not checked; give --keys DIRECTORY"
    kid = header.get("kid")
    if header.get("alg") != "EdDSA":
        return "bad", f"bad: the algorithm is {header.get('alg')!r}, not EdDSA"
    if not isinstance(kid, str) or not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", kid):
        return "bad", "bad: its key id is malformed"
    try:
        key = _public_key(keys, kid)
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    if key is None:
        return "bad", f"not verified: {keys} has no key {kid} (another node may have signed it)"
    try:
        key.verify(signature, text.rpartition(".")[0].encode())
    except InvalidSignature:
        return "bad", f"bad: the key {kid} did not sign this"
    return "good", f"good: signed by the key {kid}"


def _public_key(keys: Path, kid: str) -> Ed25519PublicKey | None:
    private, public = keys / f"{kid}.pem", keys / f"{kid}.pub"
    key: Any
    try:
        if public.exists():
            key = load_pem_public_key(public.read_bytes())
        elif private.exists():
            fault = secret_fault(private)
            if fault is not None:
                raise ConfigError(fault)
            key = load_pem_private_key(private.read_bytes(), None)
        else:
            return None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"cannot be read: {error}", file=str(keys)) from None
    if isinstance(key, Ed25519PrivateKey):
        return key.public_key()
    if isinstance(key, Ed25519PublicKey):
        return key
    raise ConfigError(f"{kid} is not an Ed25519 key", file=str(keys))


def _shown(name: str, value: Any) -> str:
    if name in ("iat", "exp", "nbf") and isinstance(value, int) and 0 <= value < 1 << 37:
        left_s = value - int(time.time())
        passed = f"{-left_s} s ago" if left_s < 0 else f"in {left_s} s"
        return f"{moment(value * 1000)} ({passed})"
    return value if isinstance(value, str) else json_text(value)
