"""One process that uses far more than it may keep in memory, and says what it kept (as JSON).

python memory_user.py DIR
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
from base64 import b64encode
from dataclasses import replace
from pathlib import Path

from roost_crdt.errors import Busy
from roost_crdt.limits import MIB
from roostd.config import load
from roostd.keyring import generate
from roostd.node import Node

KEYS = 6_000
VALUE_BYTES = 8 * 1024
SESSIONS = 120
TURNS = 6
MESSAGE_BYTES = 40 * 1024
LIMITS = {
    "rows_memory_bytes": 4 * MIB,
    "pinned_bytes_max": 8 * MIB,
    "documents_memory_bytes": 4 * MIB,
    "apply_interval_ms": 5,
}
CONFIG = """
[node]
id = "a"
region = "a"
data = "{home}/data"
cluster = "test"
[listen]
unix = "{home}/r.sock"
gossip = "127.0.0.1:0"
[gossip]
insecure = true
[token]
keys = "{home}/keys"
[store]
size_max = "512MiB"
log_retention = "16MiB"
"""


def own_bytes() -> int:
    """Memory of this process alone: pages of files that it maps are not in it."""
    text = Path("/proc/self/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) * 1024


class Peak:
    def __init__(self) -> None:
        self.start = self.highest = own_bytes()

    def look(self) -> None:
        self.highest = max(self.highest, own_bytes())

    @property
    def grown(self) -> int:
        return self.highest - self.start


async def rows(node: Node) -> int:
    """Keys written, then read at random, twice as often as there are."""
    rng, peak = random.Random(5), Peak()
    pad = rng.randbytes(VALUE_BYTES)
    for number in range(KEYS):
        while True:
            try:
                node.keys.put(b"model_router_weights:%d" % number, b"%d " % number + pad)
                break
            except Busy:
                await asyncio.sleep(0.01)
        if not number % 20:
            node.groups.flush()
            await asyncio.sleep(0)
            peak.look()
    await node.durable()
    for at in range(2 * KEYS):
        number = rng.randrange(KEYS)
        leaf = node.keys.get(b"model_router_weights:%d" % number)
        assert isinstance(leaf, bytes)
        assert leaf.startswith(b"%d " % number)
        if not at % 100:
            peak.look()
            await asyncio.sleep(0)
    return peak.grown


async def sessions(node: Node) -> int:
    """Sessions of several turns, then each of them read again."""
    rng, peak = random.Random(6), Peak()
    tokens: dict[str, str] = {}
    for number in range(SESSIONS):
        sid = f"sid-{number}"
        token = (await node.sessions.open(None, sid)).token
        for turn in range(TURNS):
            text = b64encode(rng.randbytes(MESSAGE_BYTES * 3 // 4)).decode()
            message = json.dumps({"role": "user", "content": f"{turn} {text}"}).encode()
            done = await node.sessions.commit(
                sid,
                token,
                messages=[message],
                turn_id=None,
                base=None,
                put={},
                on_conflict="append",
            )
            token = done.token
        tokens[sid] = token
        peak.look()
    for sid, token in tokens.items():
        found = await node.sessions.turns(sid, token, None)
        assert len(found.messages) == TURNS
        peak.look()
    return peak.grown


async def use(home: Path) -> dict[str, int]:
    (home / "keys").mkdir(parents=True)
    generate(home / "keys", "a-k1")
    (home / "roost.toml").write_text(CONFIG.format(home=home))
    node = Node(load(home / "roost.toml", {}))
    node.limits = replace(node.limits, **LIMITS)
    await node.start()
    try:
        return {"sessions": await sessions(node), "rows": await rows(node)}
    finally:
        await node.stop()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(use(Path(sys.argv[1])))))
