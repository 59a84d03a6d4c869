"""`roost`: the command line. See `roost COMMAND --help`.

Exit status: 0 done, 1 the thing failed, 2 usage, 3 no daemon.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import click

from roost_crdt.errors import RoostError
from roostd.cli import cluster, keys, policies, quotas, sessions, stores, tokens
from roostd.cli.daemon import fail
from roostd.cli.init import init

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("roost"), prog_name="roost")
def main() -> None:
    """State next to LLM servers: each key with the cheapest consistency that is still right.

    Commands that talk to a daemon take --url (unix:///path or redis://host:port; default
    $ROOST_URL, then /run/roost/roost.sock) and --json, and end with 0 (done), 1 (the thing
    failed), 2 (usage) or 3 (no daemon).
    """


@main.command()
@click.option(
    "--transcript",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A conversation in OpenAI chat format, JSON lines, to play instead of the built-in one.",
)
@click.option("--regions", type=click.IntRange(3), default=3, show_default=True)
def demo(transcript: Path | None, regions: int) -> None:
    """Three regions on this machine, a real conversation, a lost region; prints what happened."""
    # Only this command needs the demo, and every other one would pay for its import.
    from roostd.demo import run

    try:
        sys.exit(run(transcript, regions))
    except RoostError as error:
        fail(error, as_json=False)


for command in (
    init,
    cluster.status,
    keys.get,
    keys.set_,
    keys.incr_,
    keys.del_,
    keys.keys,
    keys.watch,
    sessions.session,
    policies.policy,
    quotas.quota,
    tokens.token,
    cluster.member,
    cluster.drain,
    stores.backup,
    stores.restore_,
    stores.check,
):
    main.add_command(command)


if __name__ == "__main__":
    main()
