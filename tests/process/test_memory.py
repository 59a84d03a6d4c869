"""Memory stays bounded however much is stored: rows, and documents of sessions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from roost_crdt.limits import MIB

from . import memory_user as user


def test_resident_memory_is_bounded(tmp_path: Path) -> None:
    """A process with bounds of a few MiB stores 47 MiB of rows and 28 MiB of sessions."""
    stored = user.KEYS * user.VALUE_BYTES
    spoken = user.SESSIONS * user.TURNS * user.MESSAGE_BYTES
    assert min(stored, spoken) > 27 * MIB
    done = subprocess.run(
        [sys.executable, user.__file__, str(tmp_path / "a")],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    grown = json.loads(done.stdout.splitlines()[-1])
    print({name: f"{size / MIB:.1f} MiB" for name, size in grown.items()})
    # The bounds are of estimates; decoded rows in Python and freed pages come on top, more of them
    # where the index lags on a busy machine. Without the bounds all of it would be there.
    bound = user.LIMITS["rows_memory_bytes"] + user.LIMITS["pinned_bytes_max"]
    assert 3 * bound < stored, "the bounds would not show"
    assert grown["rows"] < 3 * bound, grown
    bound = 6 * user.LIMITS["documents_memory_bytes"]
    assert bound < spoken, "the bound would not show"
    assert grown["sessions"] < bound, grown
