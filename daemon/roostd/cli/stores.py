"""`roost backup`, `roost restore`, `roost check`: a store as a whole.

A backup is taken through the daemon while it works, chunk by chunk, from this machine or another;
restore and check work on a directory that no daemon has open.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

from roost.wire import as_map
from roost_crdt.errors import ConfigError, CorruptData, RoostError
from roostd.cli.daemon import FAILED, Daemon, daemon_command, json_text, moment
from roostd.store import StoreFailed, StoreLocked, restore, verify_backup
from roostd.store import check as check_store
from roostd.store import repair as repair_store
from roostd.store.backupformat import MAGIC, open_backup
from roostd.store.checking import Findings

__all__ = ["backup", "check", "restore_"]

WAIT_S = 0.02
STALLED_S = 60.0
"""A daemon that has brought nothing new for so long cannot apply its log: its disk is full."""
TOLD_EVERY_S = 1.0
PROBLEMS_SHOWN = 50
_REMEDIES = {
    errno.EACCES: "; run this as the user who may write there",
    errno.EROFS: "; who reads a store takes its lock file: copy the directory and check the copy",
}


class Progress:
    """Says on stderr how far a long job is, once a second, unless results are JSON."""

    def __init__(self, quiet: bool) -> None:
        self._next_s = time.monotonic() + TOLD_EVERY_S
        self._quiet = quiet

    def __call__(self, what: str, done: int, total: int) -> None:
        now_s = time.monotonic()
        if self._quiet or now_s < self._next_s:
            return
        self._next_s = now_s + TOLD_EVERY_S
        share = f"{100 * done // total:3d}%" if total else f"{done}"
        click.echo(f"{what} {share}", err=True)


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@daemon_command
def backup(daemon: Daemon, file: Path) -> None:
    """Write a backup of a daemon's store to FILE while it works.

    FILE appears whole or not at all; a backup that is there already is replaced then. It shows
    the store as of one log entry, holds every tenant's data, and only its owner may read it.
    """
    with _failures(daemon.as_json):
        if file.name in ("", "-") or (file.exists() and not file.is_file()):
            raise click.UsageError(
                f"FILE is {str(file)!r}: a backup is put into the place of a file; give it a name"
            )
        aside = file.with_name(file.name + ".partial")
        _refuse_other_files(file)
    with _failures(daemon.as_json), _held(aside) as fd:
        progress = Progress(daemon.as_json)
        size = _copy(daemon, fd, progress)
        os.fsync(fd)
        verified = verify_backup(aside, progress)
        aside.rename(file)
        _sync_directory(file.parent)
    head, end = verified.head, verified.end
    found = {
        "file": str(file),
        "bytes": size,
        "seq": end.seq,
        "rows": end.rows,
        "pairs": end.pairs,
        "entries": end.entries,
        "digest": end.digest,
        "store_id": head.store_id.hex(),
        **head.about,
    }
    text = (
        f"{file}: {size} bytes, the store of {head.about.get('node', '?')} as of entry {end.seq} "
        f"({moment(end.ended_ms)})"
    )
    daemon.show(found, text)


def _refuse_other_files(file: Path) -> None:
    """A slip of the keyboard replaces no configuration, and no index of a store."""
    if not file.exists() or not file.stat().st_size:
        return
    with open_backup(file) as there:
        if there.read(len(MAGIC)) != MAGIC:
            raise StoreFailed(
                f"{file}: is there already and is not a backup of roost; give another name, or "
                "move it away"
            )


@contextmanager
def _held(path: Path) -> Iterator[int]:
    """The file that a backup grows in; gone if the backup fails, replaced if one was killed."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.fstat(fd)
            if not os.path.samestat(found, path.stat()):
                raise FileNotFoundError  # the other backup has just ended
        except OSError:
            raise StoreLocked(f"{path}: another backup is writing it") from None
        if found.st_uid != os.geteuid() or not stat.S_ISREG(found.st_mode):
            raise StoreFailed(f"{path}: belongs to somebody else; delete it, or give another name")
        os.fchmod(fd, 0o600)
        os.ftruncate(fd, 0)
        try:
            yield fd
        except BaseException as error:
            path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                room = os.statvfs(path.parent)
                raise StoreFailed(
                    f"{path}: {error} ({room.f_bavail * room.f_frsize} bytes free on that disk); "
                    "nothing is left of this backup"
                ) from error
            raise
    finally:
        os.close(fd)


def _copy(daemon: Daemon, fd: int, progress: Progress) -> int:
    """Bring chunk after chunk; the bytes written. An answer that is lost is asked for again."""
    cursor, size, moved_s = b"", 0, time.monotonic()
    while True:
        page = as_map(daemon.ask("ROOST.BACKUP", *([cursor] if cursor else [])))
        chunk = memoryview(page["chunk"])
        if chunk:
            size += len(chunk)
            while chunk:
                chunk = chunk[os.write(fd, chunk) :]
            moved_s = time.monotonic()
        elif time.monotonic() - moved_s > STALLED_S:
            raise StoreFailed(
                f"the daemon has not applied its log for {STALLED_S:.0f} s (it is at entry "
                f"{page['seq']}): look at its log, its disk may be full"
            )
        else:
            time.sleep(WAIT_S)
        progress(f"{page['rows']} rows, {page['pairs']} pairs, bytes", size, 0)
        if not page["cursor"]:
            return size
        cursor = page["cursor"]


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@click.command("restore")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def restore_(file: Path, directory: Path, as_json: bool) -> None:
    """Make a store out of a backup in DIR, which must be new or empty.

    All of FILE is checked first. The store has a new id and a new actor: start a daemon with DIR
    as node.data beside its old neighbours, and what was written since comes back from them. It
    serves sessions once each configured neighbour has said which were erased.
    """
    if not file.is_file():
        raise click.UsageError(f"FILE is {str(file)!r}: it is read twice, so it must be a file")
    with _failures(as_json, "; nothing can be made of it: restore another backup"):
        done = restore(file, directory, random_bytes=os.urandom, progress=Progress(as_json))
    head, end = done.verified.head, done.verified.end
    found = {
        "directory": str(directory),
        "store_id": done.store_id.hex(),
        "seq": end.seq,
        "ended_ms": end.ended_ms,
        "rows": end.rows,
        "warnings": done.warnings,
        **head.about,
    }
    if as_json:
        click.echo(json_text(found))
        return
    for warning in done.warnings:
        click.echo(f"roost: warning: {warning}", err=True)
    node = head.about.get("node", "?")
    click.echo(f"{directory}: the store of {node} as of {moment(end.ended_ms)}, under a new id")


@click.command()
@click.argument(
    "directory", metavar="DIR", type=click.Path(path_type=Path, file_okay=False, exists=True)
)
@click.option("--repair", is_flag=True, help="Keep what can be read; neighbours bring the rest.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(directory: Path, repair: bool, as_json: bool) -> None:
    """Read the whole store in DIR (node.data) that no daemon has open.

    Checksums of rows and log, digests, session documents. Ends with 0 if it is sound (or was
    repaired), 1 if not. A repaired store has a new id and a new actor.
    """
    done: list[str] = []
    with _failures(as_json):
        if not (directory / "index").is_dir() and not (directory / "log").is_dir():
            raise CorruptData(f"{directory}: there is no store (it is node.data of roost.toml)")
        progress = Progress(as_json)
        if repair:
            repaired = repair_store(directory, os.urandom, progress)
            findings, done = repaired.findings, repaired.done
        else:
            findings = check_store(directory, progress)
        now = check_store(directory, progress) if done else findings
    if as_json:
        click.echo(json_text(_as_dict(directory, findings, done, now)))
    else:
        _tell(directory, findings, done, now)
    sys.exit(FAILED if now.problems else 0)


def _as_dict(directory: Path, findings: Findings, done: list[str], now: Findings) -> dict[str, Any]:
    return {
        "directory": str(directory),
        "sound": not now.problems,
        "rows": now.rows,
        "sessions": now.sessions,
        "segments": now.segments,
        "entries": now.entries,
        "problems": findings.problems,
        "repaired": done,
    }


def _tell(directory: Path, findings: Findings, done: list[str], now: Findings) -> None:
    for problem in findings.problems[:PROBLEMS_SHOWN]:
        click.echo(problem)
    more = len(findings.problems) - PROBLEMS_SHOWN
    if more > 0:
        click.echo(f"... and {more} more (--json has all)")
    for sentence in done:
        click.echo(sentence)
    held = (
        f"{now.rows} rows, {now.sessions} sessions, {now.entries} entries in "
        f"{now.segments} log segments"
    )
    if not findings.problems:
        click.echo(f"{directory}: sound; {held}")
    elif now.problems:
        click.echo(f"{directory}: {len(now.problems)} problems; {held}; see roost check --repair")
    else:
        click.echo(f"{directory}: repaired; {held}")


@contextmanager
def _failures(as_json: bool, corrupt: str = "") -> Iterator[None]:
    """Print what went wrong and leave with 1; RoostErrors of commands with a daemon go on.
    `corrupt` is put behind what is said of damage."""
    try:
        yield
    except RoostError as error:
        if error.details.get("connected") is False:
            raise
        _fail(error.code, error.message, as_json)
    except CorruptData as error:
        _fail("CORRUPT", f"{error}{corrupt}", as_json)
    except StoreLocked as error:
        _fail("LOCKED", str(error), as_json)
    except (ConfigError, StoreFailed) as error:
        _fail("FAILED", str(error), as_json)
    except OSError as error:
        _fail("FAILED", f"{error}{_REMEDIES.get(error.errno or 0, '')}", as_json)


def _fail(code: str, message: str, as_json: bool) -> NoReturn:
    text = json_text({"code": code, "message": message}) if as_json else f"roost: {message}"
    click.echo(text, err=True)
    sys.exit(FAILED)
