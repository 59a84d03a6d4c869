"""Power loss: a process's file calls, recorded, and the disks that a crash may leave behind.

`record` runs a command under strace and reads its writes, syncs and names back. `Disk.images`
then builds what may be on the disk if the power goes at a moment: all that a finished sync
covers, and of each 512-byte sector written since, its content after any number of those writes
(a cache writes back what it likes, when it likes, but a sector is whole). A name (file created,
removed) is durable after an fsync of its directory, and may or may not be there before. A
growing file may have its old size, its new one, or one between.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

SECTOR = 512
CALLS = (
    "openat,close,lseek,write,pwrite64,writev,pwritev,fdatasync,fsync,"
    "ftruncate,fallocate,rename,unlink,unlinkat,mkdir,rmdir"
)
_NOT_ON_DISK = ("lock", "lock.mdb")
"""Locks mean nothing after a power loss: they are written through mappings, and taken anew."""

_LINE = re.compile(r"(\d+) +(?:<\.\.\. (\w+) resumed>|(\w+)\()(.*)", re.DOTALL)
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_FD = re.compile(r"(\d+)<((?:\\x[0-9a-f]{2})*)>")


class Event(NamedTuple):
    """`call` begins or ends (`end`). `number`: which call; begin and end have the same."""

    number: int
    end: bool
    call: str
    path: str
    offset: int = 0
    data: bytes = b""
    through: bool = False
    """O_DSYNC: durable when it returns."""
    to: str = ""


def can_record() -> str:
    """Why file calls cannot be recorded here; "" if they can."""
    if shutil.which("strace") is None:
        return "strace is not on this machine"
    probe = subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], check=False)
    return "strace may not trace here" if probe.returncode else ""


def record(command: list[str], below: Path, trace: Path) -> tuple[list[Event], int]:
    """Run `command` to its end; the calls on files below a directory and on stdout (path "1"),
    and the exit status."""
    done = subprocess.run(
        [
            *("strace", "-f", "-y", "-qq", "-xx", "-s", "4194304", "--seccomp-bpf"),
            *("-e", f"trace={CALLS}", "-e", "signal=none", "-o", str(trace), *command),
        ],
        stdout=subprocess.DEVNULL,
        timeout=300,
        check=False,
    )
    with trace.open() as lines:
        events = list(_Reader(str(below)).events(lines))
    trace.unlink()
    return events, done.returncode


def _bytes(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


class _Reader:
    """Reads strace's lines. One call of a thread is open at a time."""

    def __init__(self, below: str) -> None:
        self._below = below
        self._needle = "".join(f"\\x{byte:02x}" for byte in below.encode())
        self._numbers = 0
        self._open: dict[str, Event | None] = {}
        self._texts: dict[str, str] = {}
        self._positions: dict[int, int] = {}
        self._through: set[int] = set()

    def events(self, lines: Iterator[str]) -> Iterator[Event]:
        for line in lines:
            found = _LINE.match(line)
            if found is None:
                continue
            thread, resumed, call, rest = found.groups()
            if resumed is None:
                self._texts[thread] = rest
                self._open[thread] = event = self._begin(call, rest)
                if event is not None:
                    yield event
                if rest.rstrip().endswith(("<unfinished ...>", "<detached ...>")):
                    continue
            result = rest.rpartition(") ")[2].strip().lstrip("= ").split("<")[0]
            event = self._open.pop(thread, None)
            ok = not result.startswith("-1") and result.split()[:1] != ["?"]
            if ok:
                self._ended(resumed or call, self._texts[thread], result)
            if event is not None:
                if not ok:
                    event = event._replace(call="failed")
                yield event._replace(end=True)

    def _begin(self, call: str, rest: str) -> Event | None:
        if call in ("close", "lseek"):
            return None
        self._numbers += 1
        number = self._numbers
        if call in ("openat", "unlink", "mkdir", "rmdir", "rename"):
            if self._needle not in rest:
                return None
            paths = [_bytes(text).decode() for text in _TEXT.findall(rest)]
            if not paths[0].startswith(self._below):
                return None
            if call == "openat":
                call = "create" if "O_CREAT" in rest else "open"
                if "O_TRUNC" in rest:
                    call = "empty"
            return Event(number, False, call, paths[0], to=paths[1] if paths[1:] else "")
        fd_text = _FD.match(rest)
        if fd_text is None and call == "unlinkat":
            return None  # from the working directory
        assert fd_text is not None, rest[:80]
        fd, path = int(fd_text[1]), _bytes(fd_text[2]).decode()
        if not path.startswith(self._below):
            data = b"".join(map(_bytes, _TEXT.findall(rest))) if fd == 1 else b""
            return Event(number, False, call, "1", data=data) if fd == 1 else None
        path = path.removesuffix(" (deleted)")
        if path.rpartition("/")[2] in _NOT_ON_DISK:
            return None
        if call == "unlinkat":
            text = _TEXT.search(rest)
            assert text is not None
            call = "rmdir" if "AT_REMOVEDIR" in rest else "unlink"
            return Event(number, False, call, f"{path}/{_bytes(text[1]).decode()}")
        if call in ("fdatasync", "fsync"):
            return Event(number, False, "sync", path)
        assert call in ("write", "pwrite64", "writev", "pwritev", "ftruncate"), call
        if call == "ftruncate":
            return Event(number, False, call, path, int(_after_text(rest, 1)))
        data = b"".join(map(_bytes, _TEXT.findall(rest)))
        if call in ("write", "writev"):
            offset = self._positions.get(fd, 0)
            self._positions[fd] = offset + len(data)
        else:
            offset = int(_after_text(rest, -1))
        return Event(number, False, "write", path, offset, data, fd in self._through)

    def _ended(self, call: str, text: str, result: str) -> None:
        if call == "openat":
            fd = int(result.split()[0])
            self._positions[fd] = 0
            self._through.discard(fd)
            if "O_DSYNC" in text:
                self._through.add(fd)
        elif call == "lseek":
            found = _FD.match(text)
            assert found is not None
            self._positions[int(found[1])] = int(result.split()[0])


def _after_text(rest: str, at: int) -> str:
    """An argument that is a number, of a call whose strings may hold anything but commas."""
    arguments = rest.split(") = ")[0].split(" <")[0].rstrip(")\n").split(", ")
    return arguments[at]


@dataclass(slots=True)
class File:
    """`durable` content, and what was written since: (offset, data, number of the call)."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes, int]] = field(default_factory=list)
    running: set[int] = field(default_factory=set)
    """Writes that have begun and not ended: a sync that begins now need not cover them."""
    syncs: dict[int, set[int]] = field(default_factory=dict)
    """Sync that has begun -> writes that it covers."""

    def settle(self, numbers: set[int]) -> None:
        """Make writes durable, in their order."""
        for offset, data, number in self.pending:
            if number in numbers:
                end = offset + len(data)
                if end > len(self.durable):
                    self.durable.extend(bytes(end - len(self.durable)))
                self.durable[offset:end] = data
        self.pending = [write for write in self.pending if write[2] not in numbers]


class Change(NamedTuple):
    """A name that came (`file`), went (None) or changed, not durable yet."""

    path: str
    file: File | None
    number: int
    directory: bool = False
    gone: bool = False
    """A directory that was removed."""
    to: str = ""


class Disk:
    """What is on the disk for sure, and what may be, after a run of events."""

    def __init__(self, below: Path, *, lies: bool = False) -> None:
        """`lies`: a disk that says it has synced a log segment and has not."""
        self.below = str(below)
        self.names: dict[str, File] = {}
        self.directories: set[str] = {self.below}
        self.acknowledged = b""
        self._lies = lies
        self._live: dict[str, File] = {}
        self._changes: list[Change] = []
        self._syncs: dict[int, set[int]] = {}

    def load(self, base: Path) -> None:
        """Begin with what is below a directory now, all of it durable."""
        for path in base.rglob("*"):
            name = self.below + str(path)[len(str(base)) :]
            if path.is_dir():
                self.directories.add(name)
            elif path.name not in _NOT_ON_DISK:
                self.names[name] = self._live[name] = File(bytearray(path.read_bytes()))

    def feed(self, event: Event) -> None:
        """One event happens."""
        if event.path == "1":
            if not event.end:
                self.acknowledged = event.data
            return
        if event.path.rpartition("/")[2] in _NOT_ON_DISK or event.call in ("failed", "open"):
            return
        if event.call == "write":
            self._write(event)
        elif event.call == "sync":
            self._sync(event)
        elif event.end:
            self._rename_or_make(event)

    def _write(self, event: Event) -> None:
        file = self._live[event.path]
        if not event.end:
            file.pending.append((event.offset, event.data, event.number))
            file.running.add(event.number)
            return
        file.running.discard(event.number)
        if event.through:
            file.settle({event.number})

    def _sync(self, event: Event) -> None:
        if event.path in self.directories or event.path not in self._live:
            if not event.end:
                covered = {c.number for c in self._changes if _parent(c.path) == event.path}
                self._syncs[event.number] = covered
            else:
                self._settle_names(self._syncs.pop(event.number))
            return
        file = self._live[event.path]
        if not event.end:
            covered = {number for _, _, number in file.pending} - file.running
            file.syncs[event.number] = covered
        else:
            covered = file.syncs.pop(event.number)
            if not (self._lies and event.path.endswith(".seg")):
                file.settle(covered)

    def _rename_or_make(self, event: Event) -> None:
        call, path, number = event.call, event.path, event.number
        if call in ("create", "empty"):
            file = self._live.get(path)
            if file is None:
                self._live[path] = file = File()
                self._changes.append(Change(path, file, number))
            assert call == "create" or not (file.durable or file.pending), "emptied in place"
        elif call == "mkdir":
            self._changes.append(Change(path, None, number, directory=True))
        elif call == "rmdir":
            self._changes.append(Change(path, None, number, gone=True))
        elif call == "unlink":
            del self._live[path]
            self._changes.append(Change(path, None, number))
        elif call == "rename":
            assert _parent(path) == _parent(event.to), "moved to another directory"
            change = Change(path, None, number, to=event.to)
            self._changes.append(change)
            self._apply(self._live, set(), change)
        else:
            raise AssertionError(f"{call} of {path} is not modelled")

    def _settle_names(self, numbers: set[int]) -> None:
        for change in self._changes:
            if change.number in numbers:
                self._apply(self.names, self.directories, change)
        self._changes = [c for c in self._changes if c.number not in numbers]

    @staticmethod
    def _apply(names: dict[str, File], directories: set[str], change: Change) -> None:
        if change.to:
            for held in (names, directories):
                for name in [n for n in held if f"{n}/".startswith(f"{change.path}/")]:
                    moved = change.to + name[len(change.path) :]
                    if isinstance(held, dict):
                        held[moved] = held.pop(name)
                    else:
                        held.remove(name)
                        held.add(moved)
        elif change.directory:
            directories.add(change.path)
        elif change.gone:
            directories.discard(change.path)
        elif change.file is None:
            names.pop(change.path, None)
        else:
            names[change.path] = change.file

    @property
    def uncertain(self) -> int:
        """How many sectors and names may or may not be there."""
        files = {id(f): f for f in [*self.names.values(), *self._live.values()]}
        sectors = sum(-(-len(data) // SECTOR) for f in files.values() for _, data, _ in f.pending)
        return sectors + len(self._changes)

    def build(self, target: Path, rng: random.Random) -> None:
        """One image below `target`, which does not exist yet."""
        names, directories = dict(self.names), set(self.directories)
        keep = _survival(rng)
        for change in self._changes:
            if keep():
                self._apply(names, directories, change)
        target.mkdir()
        for name in sorted(directories - {self.below}):
            if _parent(name) in directories:
                (target / name[len(self.below) + 1 :]).mkdir()
        for name, file in names.items():
            if _parent(name) in directories:
                (target / name[len(self.below) + 1 :]).write_bytes(_content(file, rng))


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


class _survival:  # noqa: N801 - reads as the function that it is
    """Whether the next thing survives: all, none, most, few, half, up to one, from one on."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._chance = rng.choice((0.0, 1.0, 0.5, 0.5, 0.1, 0.9))
        self._flip_in = rng.randrange(24) if rng.random() < 0.3 else -1

    def __call__(self) -> bool:
        if self._flip_in == 0:
            self._chance = 1.0 - self._chance
        self._flip_in -= 1
        return self._rng.random() < self._chance


def _content(file: File, rng: random.Random) -> bytes:
    """A file's bytes: of each sector any of its versions since the last sync."""
    if not file.pending:
        return bytes(file.durable)
    written = bytearray(file.durable)
    image = bytearray(file.durable)
    keep = _survival(rng)
    for offset, data, _ in file.pending:
        end = offset + len(data)
        if end > len(written):
            written.extend(bytes(end - len(written)))
        written[offset:end] = data
        if end > len(image):
            image.extend(bytes(end - len(image)))
        for sector in range(offset // SECTOR, -(-end // SECTOR)):
            # What was written back once may be written back again, or not.
            if keep():
                place = slice(sector * SECTOR, (sector + 1) * SECTOR)
                image[place] = written[place]
    if len(image) > len(file.durable) and rng.random() < 0.5:
        size = rng.choice((len(file.durable), rng.randrange(len(file.durable), len(image) + 1)))
        del image[max(size // SECTOR * SECTOR, len(file.durable)) :]
    return bytes(image)
