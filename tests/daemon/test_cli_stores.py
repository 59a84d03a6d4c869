"""`roost check` and `roost restore` on directories: what they print, and how they end."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import lmdb
import pytest
from click.testing import CliRunner, Result
from store_kit import NOW, Stores, applied, incr, put

from roost_crdt import fold
from roost_crdt.document import Document
from roost_crdt.home import Meta
from roost_crdt.logformat import KIND_SESSION
from roost_crdt.sessions.table import base_item, head_item, update_item, view_items
from roostd.cli.main import main
from roostd.index import Index
from roostd.store import Store, StoreFailed


def roost(*args: str | Path, status: int = 0) -> Result:
    done = CliRunner().invoke(main, [str(arg) for arg in args])
    assert done.exit_code == status, done.output
    return done


@pytest.fixture
def store(stores: Stores) -> Store:
    """A few keys and one session of two updates."""
    store = stores.open()
    for number in range(20):
        put(store, b"k:%02d" % number, b"v")
        incr(store, b"c")
    document = Document(7)
    epoch, more = (1, "a"), {"turn_id": None, "at_ms": NOW}
    texts = (b'{"content":"one"}', b'{"content":"two"}')
    one = dict([fold.turn_entry(epoch, 1, parent=None, messages=[texts[0]], **more)])
    two = dict([fold.turn_entry(epoch, 2, parent=(1, "a", 1), messages=[texts[1]], **more)])
    first, second = document.write(one, {}), document.write(two, {})
    meta = Meta("s-1", (1, "a"), None, n=2, base_n=1, turn=2, used_ms=NOW)
    items = {**head_item(meta), **base_item("s-1", first), **update_item("s-1", 2, second)}
    items |= view_items("s-1", {**one, **two}, {})
    store.put(KIND_SESSION, items)
    store.put(KIND_SESSION, head_item(Meta("s-2", (1, "a"), None, held=False, erased_ms=NOW)))
    store.flush()
    applied(store)
    return store


def write_backup(store: Store, file: Path) -> None:
    cursor = b""
    with file.open("wb") as out:
        while True:
            page = store.backup(cursor, {"node": "eu-1"}, NOW, os.urandom(16))
            out.write(page.chunk)
            cursor = page.cursor
            if not cursor:
                return


def test_check_of_a_sound_store_and_of_one_in_use(store: Store) -> None:
    where = store._path
    assert "in use by process" in roost("check", where, status=1).stderr
    told = json.loads(roost("check", where, "--json", status=1).stderr)
    assert told["code"] == "LOCKED"
    store.close()
    assert "sound; 21 rows, 2 sessions" in roost("check", where).stdout
    found = json.loads(roost("check", where, "--json").stdout)
    assert (found["sound"], found["rows"], found["problems"]) == (True, 21, [])
    assert "sound; 21 rows" in roost("check", where, "--repair").stdout


def test_check_of_what_is_no_store(tmp_path: Path) -> None:
    assert "there is no store" in roost("check", tmp_path, status=1).stderr
    assert list(tmp_path.iterdir()) == []
    roost("check", tmp_path / "nowhere", status=2)


def test_check_finds_a_damaged_row_and_repairs_it(store: Store) -> None:
    store.close()
    index = Index(store._path / "index", 16 << 20)
    ((name, sealed),) = index.rows(b"k:07\0")
    index.write([(name, sealed[:-1] + b"?")], {})
    index.close()
    told = roost("check", store._path, status=1).stdout
    assert "k:07" in told
    assert "1 problems" in told
    repaired = json.loads(roost("check", store._path, "--repair", "--json").stdout)
    assert repaired["sound"] is True
    assert len(repaired["problems"]) == 1
    assert "1 damaged rows are gone" in repaired["repaired"]
    assert "sound; 21 rows" in roost("check", store._path).stdout  # the log still had it


def broken(items: dict[bytes, bytes | None], what: str) -> None:
    """Damage one of a session's rows, in a way that MessagePack and pycrdt may not notice."""
    prefix = {"view": b"s\0s-1\0e", "update": b"s\0s-1\0u", "base": b"s\0s-1\0d", "head": b"m\0s-1"}
    key = next(key for key in items if key.startswith(prefix[what]))
    raw = items[key] or b""
    if what == "head":
        items[key] = raw.replace(b"s-1", b"s-9")
    else:
        items[key] = raw.replace(b"one", b"eno").replace(b"two", b"owt")


@pytest.mark.parametrize("what", ["view", "update", "base", "head"])
def test_check_finds_a_damaged_session_and_drops_it(store: Store, what: str) -> None:
    store.close()
    index = Index(store._path / "index", 16 << 20)
    items: dict[bytes, bytes | None] = dict(index.scan(KIND_SESSION, b"", b"", 100))
    before = dict(items)
    broken(items, what)
    assert items != before
    index.write((), {KIND_SESSION: sorted(items.items())})
    index.close()
    assert "session s-1:" in roost("check", store._path, status=1).stdout
    told = roost("check", store._path, "--repair").stdout
    assert "1 damaged sessions are gone here" in told
    assert "sound; 21 rows, 1 sessions" in roost("check", store._path).stdout


def test_a_repair_tells_what_was_lost_and_what_there_is_now(store: Store) -> None:
    store.close()
    data = store._path / "index" / "data.mdb"
    raw = data.read_bytes()
    data.write_bytes(raw.replace(b"k:03\0\x02", b"k:93\0\x02"))
    told = roost("check", store._path, "--repair").stdout
    assert "it lacks 1 of 21 rows\n" in told
    assert "repaired; 21 rows, 2 sessions, 0 entries in 0 log segments" in told
    assert "where there are none, or none has it, a backup may" in told
    data.write_bytes(b"noise" * 9_000)
    told = roost("check", store._path, "--repair", "--json").stdout
    assert "how many there were cannot be told" in told
    assert json.loads(told)["rows"] == 0


def test_restore_makes_a_store_and_says_whose(store: Store, tmp_path: Path) -> None:
    write_backup(store, tmp_path / "f")
    assert "the store of eu-1 as of" in roost("restore", tmp_path / "f", tmp_path / "b").stdout
    assert "sound; 21 rows, 2 sessions" in roost("check", tmp_path / "b").stdout
    found = json.loads(roost("restore", tmp_path / "f", tmp_path / "c", "--json").stdout)
    assert (found["node"], found["rows"], found["warnings"]) == ("eu-1", 21, [])
    refused = roost("restore", tmp_path / "f", tmp_path / "c", status=1).stderr
    assert "is not empty" in refused
    told = json.loads(roost("restore", tmp_path / "f", tmp_path / "c", "--json", status=1).stderr)
    assert told["code"] == "BADREQUEST"


def test_restore_of_a_damaged_file_names_the_place(store: Store, tmp_path: Path) -> None:
    write_backup(store, tmp_path / "f")
    (tmp_path / "f").write_bytes((tmp_path / "f").read_bytes()[:-1])
    refused = roost("restore", tmp_path / "f", tmp_path / "b", status=1).stderr
    assert "chunk 4 at byte" in refused or "chunk 3 at byte" in refused
    assert not (tmp_path / "b").exists()
    roost("restore", tmp_path / "nothing", tmp_path / "b", status=2)


def test_a_restore_that_did_not_finish_is_named_by_check(store: Store, tmp_path: Path) -> None:
    write_backup(store, tmp_path / "f")
    roost("restore", tmp_path / "f", tmp_path / "b")
    (tmp_path / "b" / "restoring").touch()
    assert "did not finish" in roost("check", tmp_path / "b", status=1).stderr
    roost("restore", tmp_path / "f", tmp_path / "b")
    assert "sound" in roost("check", tmp_path / "b").stdout


def test_progress_is_told_of_what_takes_long(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roostd.cli.stores.TOLD_EVERY_S", 0.0)
    write_backup(store, tmp_path / "f")
    told = roost("restore", tmp_path / "f", tmp_path / "b").stderr
    assert "checking 100%" in told
    assert "restoring 100%" in told
    assert "digests 100%" in told
    told = roost("check", tmp_path / "b").stderr
    assert "rows 100%" in told
    assert "digests 100%" in told
    assert "entries of sessions 100%" in told
    assert "sessions 2" in told
    assert roost("check", tmp_path / "b", "--json").stderr == ""


class Served:
    """A daemon's side of a backup, as far as the command asks it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, request: Any) -> dict[bytes, Any]:
        cursor = b"".join(request.commands[0][1:])
        page = self._store.backup(cursor, {"node": "eu-1"}, NOW, os.urandom(16))
        return {name.encode(): part for name, part in page._asdict().items()}


@pytest.fixture
def served(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roostd.cli.daemon.roost.connect", lambda *_, **__: Served(store))


@pytest.mark.usefixtures("served")
def test_a_backup_replaces_a_backup_and_nothing_else(tmp_path: Path) -> None:
    file, other, pipe = tmp_path / "f", tmp_path / "roost.toml", tmp_path / "pipe"
    (tmp_path / "f.partial").write_bytes(b"of a backup that was killed" * 99_999)
    (tmp_path / "f.partial").chmod(0o644)
    roost("backup", file)
    first = file.read_bytes()
    assert file.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "f.partial").exists()
    roost("backup", file)
    assert file.read_bytes() != first, "each has an id of its own"
    roost("restore", file, tmp_path / "b")
    other.write_text("[node]")
    assert "is not a backup of roost; give another name" in roost("backup", other, status=1).stderr
    assert other.read_text() == "[node]"
    os.mkfifo(pipe)
    for name in (pipe, "/dev/null", "-", "", tmp_path):
        roost("backup", name, status=2)
    assert pipe.is_fifo()
    assert Path("/dev/null").is_char_device()
    assert "File name too long" in roost("backup", tmp_path / ("n" * 300), status=1).stderr
    (tmp_path / "g.partial").symlink_to(other)
    roost("backup", tmp_path / "g", status=1)
    assert other.read_text() == "[node]"


@pytest.mark.usefixtures("served")
def test_a_full_disk_is_named_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("roostd.cli.stores.os.fsync", full)
    refused = roost("backup", tmp_path / "f", status=1).stderr
    assert f"{tmp_path / 'f.partial'}: [Errno 28] No space left on device (" in refused
    assert "bytes free on that disk); nothing is left" in refused
    assert list(tmp_path.glob("f*")) == []


def test_a_restore_from_a_stream_is_refused_before_anything_is_made(
    store: Store, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused = roost("restore", tmp_path / "pipe", tmp_path / "b", status=2).stderr
    assert "it is read twice, so it must be a file" in refused
    assert not (tmp_path / "b").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_makes_belongs_to_who_runs_the_daemon(store: Store, tmp_path: Path) -> None:
    write_backup(store, tmp_path / "f")
    (tmp_path / "b").mkdir()
    os.chown(tmp_path / "b", 65534, 65534)
    roost("restore", tmp_path / "f", tmp_path / "b")
    roost("check", tmp_path / "b")
    (tmp_path / "b" / "index" / "lock.mdb").chmod(0o660)
    (tmp_path / "b" / "index" / "data.mdb").write_bytes(b"noise" * 9_000)
    roost("check", tmp_path / "b", "--repair")
    made = [path for path in (tmp_path / "b").rglob("*") if "damaged" not in str(path)]
    assert {path.name for path in made} >= {"index", "log", "clean", "lock", "data.mdb"}
    assert {path.stat().st_uid for path in made} == {65534}
    assert (tmp_path / "b" / "index" / "lock.mdb").stat().st_mode & 0o777 == 0o660


def test_who_may_not_read_finds_no_damage(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repair would throw away what only its owner can read."""

    def refused(path: str, **_: object) -> object:
        denied = lmdb.Error(f"{path}: Permission denied")
        denied.code = errno.EACCES  # type: ignore[attr-defined]
        raise denied

    store.close()
    before = sorted(store._path.iterdir())
    monkeypatch.setattr("roostd.index.lmdb.open", refused)
    for repair in ((), ("--repair",)):
        told = roost("check", store._path, *repair, status=1).stderr
        assert "Permission denied" in told
        assert "run this as the user who may write there" in told
    assert sorted(store._path.iterdir()) == before
    with pytest.raises(StoreFailed, match="must belong to the user that roostd runs as"):
        Stores(tmp_path).open("a")
