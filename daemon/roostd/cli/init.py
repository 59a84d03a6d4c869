"""`roost init`: a directory from which a node starts as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import click

from roost_crdt.default_policies import DEFAULT_POLICIES
from roost_crdt.errors import ConfigError
from roostd.cli.certificates import Authority
from roostd.cli.keyfiles import new_signing_key, write_new
from roostd.config import load
from roostd.settings import (
    SETTINGS,
    UNIX_PATH_BYTES_MAX,
    Setting,
    is_loopback,
    name_of_node,
    neighbour_url,
)

__all__ = ["init"]

HEAD = """\
# roost.toml of the node {node}; start it with:  roostd --config {file}
#
# Relative paths are relative to this file. Unknown keys are refused, with file and line. Each
# value can also be given as an environment variable, which wins: ROOST_<SECTION>_<KEY>, here
# ROOST_NODE_ID, ROOST_LISTEN_HTTP, ... (ROOST_NEIGHBOUR="us-1=wss://us-1.example:7669,...").
# Sizes have a unit (KiB, MiB, GiB); numbers carry theirs in the key's name (ttl_s, deadline_ms).
# Check an edit with:  roostd --config {file} --check
"""

SECTION_NOTES = {
    "listen": "Where clients and neighbours connect.",
    "gossip": "Mutual TLS between nodes. Certificates for more nodes: roost init --ca DIRECTORY.",
    "token": "Routing tokens of sessions. A new key: roost token rotate --keys DIRECTORY.",
    "session": "When a session's home moves.",
    "consensus": "Only for linearizable keys; every other key works without it.",
    "store": "Bounds on disk.",
    "limits": "Bounds of requests.",
    "access": "Who may connect, and what each key promises.",
}

CREDENTIALS_NOTE = """\
# credentials.toml has one table a client:
#   [router]
#   secret_sha256 = "..."                 # printf %s "$SECRET" | sha256sum
#   rights = "write"                      # read | write | admin
#   keys = ["model_router_weights:*"]     # which keys; only * is special
#   prefix = "litellm:"                   # optional, put before each key of this client
"""

NEIGHBOUR_NOTE = """
# The nodes that this one links to. Any connected topology works; more links mean shorter ways.
"""

NEIGHBOUR_EXAMPLE = """\
# [[neighbour]]
# id = "us-1"
# url = "wss://us-1.example:7669"
"""

RESP_DB = """
# A key prefix for clients that SELECT a database, for programs that bring their own key names.
[resp.db]
# 3 = "litellm:"
"""


class Neighbour(NamedTuple):
    id: str
    url: str


def _neighbour(
    _ctx: click.Context, _param: click.Parameter, given: tuple[str, ...]
) -> list[Neighbour]:
    neighbours: list[Neighbour] = []
    for text in given:
        node, equals, url = text.partition("=")
        if not equals:
            raise click.BadParameter(f'"{text}" is not of the form ID=URL')
        neighbours.append(Neighbour(_checked(name_of_node, node), _checked(neighbour_url, url)))
    return neighbours


def _name(_ctx: click.Context, _param: click.Parameter, given: str) -> str:
    return _checked(name_of_node, given)


def _checked(convert: Callable[[str], str], given: str) -> str:
    try:
        return convert(given)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--node", required=True, callback=_name, help="This node's name.")
@click.option("--region", required=True, callback=_name, help="Its failure domain.")
@click.option(
    "--neighbour",
    "neighbours",
    multiple=True,
    callback=_neighbour,
    metavar="ID=URL",
    help="A node to link to, ws://127.0.0.1:PORT or wss://HOST:PORT; may be repeated.",
)
@click.option("--cluster", default="default", callback=_name, show_default=True)
@click.option("--resp", default="127.0.0.1:7667", show_default=True, help="[listen] resp")
@click.option("--http", default="127.0.0.1:7668", show_default=True, help="[listen] http")
@click.option("--gossip", default="127.0.0.1:7669", show_default=True, help="[listen] gossip")
@click.option(
    "--consensus",
    metavar="WHERE",
    help='Where linearizable keys live: "embedded" (this node hosts them), "roost://NODE" (that '
    'neighbour does), an etcd URL, or "none". Default: embedded without neighbours, else none.',
)
@click.option(
    "--ca",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory with the cluster's ca.pem and ca.key, to issue this node's certificate; made "
    "if it is not there. Without it, DIRECTORY/ca where TLS is needed.",
)
def init(
    directory: Path,
    node: str,
    region: str,
    neighbours: list[Neighbour],
    cluster: str,
    resp: str,
    http: str,
    gossip: str,
    consensus: str | None,
    ca: Path | None,
) -> None:
    """Write a complete, commented configuration to DIRECTORY.

    Makes roost.toml, policies.toml, a signing key in keys/, and certificates where neighbours
    are wss://. Nothing is overwritten. The node starts from it as it is:

        roostd --config DIRECTORY/roost.toml
    """
    tls = ca is not None or any(url.startswith("wss:") for _, url in neighbours)
    tls = tls or not is_loopback(gossip.rpartition(":")[0])
    backend, endpoints = _consensus(consensus, bool(neighbours))
    home = directory.absolute()
    socket_fits = len(str(home / "roost.sock").encode()) <= UNIX_PATH_BYTES_MAX
    values: dict[str, object] = {
        "node.id": node,
        "node.region": region,
        "node.cluster": cluster,
        "node.data": "data",
        "listen.unix": "roost.sock" if socket_fits else "",
        "listen.resp": resp,
        "listen.http": http,
        "listen.gossip": gossip,
        "gossip.insecure": any(url.startswith("ws:") for _, url in neighbours),
        "consensus.backend": backend,
        "consensus.endpoints": endpoints,
        "access.policies": "policies.toml",
    }
    if tls:
        values |= {"gossip.cert": "node.pem", "gossip.key": "node.key", "gossip.ca": "ca.pem"}
    _refuse_to_overwrite(home, tls)
    home.mkdir(parents=True, exist_ok=True)
    if tls:
        _certify(home, node, cluster, ca)
    keys = home / "keys"
    keys.mkdir(mode=0o700, exist_ok=True)
    new_signing_key(keys)
    write_new(home / "policies.toml", DEFAULT_POLICIES)
    file = directory / "roost.toml"
    text = HEAD.format(node=node, file=file) + _sections(values, neighbours) + RESP_DB
    write_new(home / "roost.toml", text)
    _say(file, home, backend, neighbours)


def _consensus(where: str | None, has_neighbours: bool) -> tuple[str, list[str]]:
    if where is None:
        # Two nodes that both host would each have a truth of their own: with neighbours the
        # operator says who does.
        return ("none" if has_neighbours else "embedded"), []
    if where in ("embedded", "none"):
        return where, []
    if where.startswith("roost://"):
        return "embedded", [where]
    if urlsplit(where).scheme in ("http", "https"):
        return "etcd", [where]
    raise click.BadParameter(f'"{where}": use embedded, roost://NODE, an etcd URL or none')


def _refuse_to_overwrite(home: Path, tls: bool) -> None:
    names = ["roost.toml", "policies.toml"]
    names += ["node.pem", "node.key", "ca.pem"] if tls else []
    there = [name for name in names if (home / name).exists()]
    there += ["keys"] if any((home / "keys").glob("*.pem")) else []
    if there:
        raise click.ClickException(f"{home} already holds {', '.join(there)}; nothing was written")


def _certify(home: Path, node: str, cluster: str, ca: Path | None) -> None:
    folder = home / "ca" if ca is None else ca
    if (folder / "ca.pem").exists():
        try:
            authority = Authority.load(folder)
        except ConfigError as error:
            raise click.ClickException(str(error)) from None
    else:
        authority = Authority.create(folder, cluster)
        click.echo(
            f"made the authority {folder}: give it to `roost init --ca` of the other nodes, then "
            "keep ca.key away from them",
            err=True,
        )
    authority.issue(node, home)


def _sections(values: dict[str, object], neighbours: list[Neighbour]) -> str:
    text, section = "", ""
    for setting in SETTINGS:
        if setting.section != section:
            if section == "listen":
                text += _neighbours(neighbours)
            section = setting.section
            note = SECTION_NOTES.get(section)
            text += "\n" + (f"# {note}\n" if note else "") + f"[{section}]\n"
        text += _line(setting, values)
        if (section, setting.key) == ("access", "credentials"):
            text += CREDENTIALS_NOTE
    return text


def _line(setting: Setting, values: dict[str, object]) -> str:
    value = values.get(f"{setting.section}.{setting.key}", setting.default)
    comment = "".join(f"# {line}\n" for line in _wrapped(setting.doc))
    if value in ("", []) and setting.example and setting.key != "unix":
        return f"{comment}# {setting.key} = {setting.example}\n"
    return f"{comment}{setting.key} = {json.dumps(value)}\n"


def _wrapped(text: str, width: int = 96) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > width and lines[-1]:
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + word
    return lines


def _neighbours(neighbours: list[Neighbour]) -> str:
    tables = "\n".join(
        f'[[neighbour]]\nid = "{neighbour.id}"\nurl = {json.dumps(neighbour.url)}\n'
        for neighbour in neighbours
    )
    return NEIGHBOUR_NOTE + (tables or NEIGHBOUR_EXAMPLE)


def _say(file: Path, home: Path, backend: str, neighbours: list[Neighbour]) -> None:
    try:
        config = load(home / "roost.toml", {})
    except ConfigError as error:
        raise click.ClickException(f"written, but it will not start as it is: {error}") from None
    click.echo(f"start it with:  roostd --config {file}")
    if config.listen.unix is not None:
        click.echo(f"talk to it with: roost status --url unix://{config.listen.unix}")
    if backend == "none" and neighbours:
        click.echo(
            "linearizable keys (usage_quota, billing) need [consensus]: etcd, or one node that "
            "hosts them",
            err=True,
        )
