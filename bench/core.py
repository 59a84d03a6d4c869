"""What the core costs: joins, records, metadata of rows, copies of a record per node.

    python bench/core.py [--seconds S] [--records N]

Prints one Markdown table per question. Times are the best of many runs of a millisecond of
processor time, in one process, without I/O; sizes and copies do not depend on the machine.
Copies come from the replicas of the tests' network in virtual time, in the steady state:
greetings, the first records and what they teach the links (PRUNE) are left out, and said beside
it.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import pycrdt
from replication_network import Network, edges_of

from roost_crdt import document, values
from roost_crdt.hlc import Stamp, hlc_from_ms
from roost_crdt.record import (
    Record,
    RowOp,
    decode_record,
    encode_record,
    record_hash,
)
from roost_crdt.rows import (
    Rows,
    counter,
    decode_row,
    doc,
    encode_row,
    join_row,
    map,  # noqa: A004
    rate,
    register,
    set,  # noqa: A004
)
from roost_crdt.rows.layout import TYPE_BY_NAME, row_key

NOW_MS = 1_790_000_000_000
KEY = b"model_router_weights:llama-70b"
VALUE = b"https://gpu-17.eu.example:8000/v1"
ACTORS = (1, 3, 10, 100)
TOPOLOGIES = ("line", "ring", "star", "mesh")
RUN_S = 0.001
FIRST_ACTOR = 1 << 62
"""Actors are random 64-bit numbers: small ones would flatter the sizes."""
FIRST_CLIENT = 1 << 31
"""And ids of Yjs clients random 32-bit numbers."""


def stamp_of(at: int, actor: int) -> Stamp:
    return hlc_from_ms(NOW_MS) + at, FIRST_ACTOR + actor


def write(name: str, rows: Rows, stamp: Stamp) -> Rows:
    """One typical operation of a type, applied."""
    if name == "register":
        delta = register.put(rows, VALUE, stamp)
    elif name == "counter":
        delta = counter.add(rows, 1, stamp, NOW_MS)
    elif name == "set":
        delta = set.add(rows, [VALUE], stamp, NOW_MS)
    elif name == "map":
        delta = map.put(rows, {b"weight": VALUE}, stamp, NOW_MS)
    elif name == "map counter":
        delta = map.add(rows, b"weight", 1, stamp, NOW_MS)
    elif name == "doc":
        update = typed(rows, stamp[1])
        delta = doc.put(rows, update, stamp, NOW_MS, yjs=document, vv={}, owner=bytes(8))
    else:
        delta = rate.add(rows, 1, stamp, NOW_MS, 60_000)
    return {**rows, **delta}


def typed(rows: Rows, actor: int) -> bytes:
    """The update of a Yjs client that appends VALUE to a text of what is there."""
    yjs: pycrdt.Doc[pycrdt.Text] = pycrdt.Doc(client_id=FIRST_CLIENT + actor % FIRST_ACTOR)
    yjs.apply_update(values.doc_update(rows, NOW_MS) or b"\0\0")
    made: list[bytes] = []
    yjs.observe(lambda event: made.append(event.update))
    text = yjs.get("t", type=pycrdt.Text)
    text += VALUE.decode()
    return made[0]


TYPES = ("register", "counter", "set", "map", "map counter", "rate", "doc")
PAYLOADS = {"register": len(VALUE), "set": len(VALUE), "map": len(VALUE) + len(b"weight")}
PAYLOADS |= {"map counter": len(b"weight") + 8, "counter": 8, "rate": 8, "doc": len(VALUE)}
"""What a caller has put in: a value, an element, a field and its value, a number of 8 bytes, a
text (each actor's own)."""


def type_code(name: str) -> int:
    return TYPE_BY_NAME[name.partition(" ")[0]]


def nanoseconds(call: Callable[[], object], seconds: float) -> float:
    """The best mean of many short runs: what else the machine does makes the others slower."""
    count = 16
    while True:
        began_s = time.perf_counter()
        for _ in range(count):
            call()
        if time.perf_counter() - began_s > RUN_S or count >= 1 << 20:
            break
        count *= 2
    best_ns, ends_s = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < ends_s:
        began_ns = time.thread_time_ns()
        for _ in range(count):
            call()
        best_ns = min(best_ns, (time.thread_time_ns() - began_ns) / count)
    return best_ns


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|---" + "|---:" * (len(head) - 1) + "|"
    for line in lines:
        yield "| " + " | ".join(line) + " |"
    yield ""


def joins(seconds: float) -> Iterator[str]:
    """ns per row: join of two rows that differ, of two that are equal, decode, encode."""
    lines = []
    for name in TYPES:
        code = type_code(name)
        a = write(name, {}, stamp_of(1, 1))
        part, mine = next(iter(a.items()))
        # The newer row of the same actor: what a node gets all day.
        (theirs,) = [row for p, row in write(name, a, stamp_of(2, 1)).items() if p == part]
        body = encode_row(code, part, theirs)
        costs = [
            nanoseconds(lambda c=code, p=part, m=mine, t=theirs: join_row(c, p, m, t), seconds),
            nanoseconds(lambda c=code, p=part, m=mine: join_row(c, p, m, m), seconds),
            nanoseconds(lambda c=code, p=part, b=body: decode_row(c, p, b), seconds),
            nanoseconds(lambda c=code, p=part, t=theirs: encode_row(c, p, t), seconds),
        ]
        lines.append([name, *(f"{cost:,.0f}" for cost in costs)])
    yield from table(["ns per row", "join, newer", "join, equal", "decode", "encode"], lines)


def record_of(name: str, rows: int) -> Record:
    code = type_code(name)
    ops = []
    for at in range(rows):
        for part, row in write(name, {}, stamp_of(1, 1)).items():
            ops.append(RowOp(row_key(KEY + b"%d" % at, part), code, encode_row(code, part, row)))
    hlc = hlc_from_ms(NOW_MS) + 5
    return Record(FIRST_ACTOR + 1, hlc, hlc - 1, tuple(ops))


def records(seconds: float) -> Iterator[str]:
    """ns per record: encode, decode with every check, hash; and its size."""
    lines = []
    for name, rows in [*((name, 1) for name in TYPES), ("register", 100)]:
        record = record_of(name, rows)
        raw = encode_record(record)
        costs = [
            nanoseconds(lambda r=record: encode_record(r), seconds),
            nanoseconds(lambda r=raw: decode_record(r), seconds),
            nanoseconds(lambda r=raw: record_hash(r), seconds),
        ]
        title = f"{name}, {rows} row{'s' if rows > 1 else ''}"
        lines.append([title, *(f"{cost:,.0f}" for cost in costs), f"{len(raw):,}"])
    yield from table(["ns per record", "encode", "decode", "hash", "bytes"], lines)


def metadata(name: str, actors: int) -> tuple[int, int]:
    """Bytes beyond key and payload of one value that `actors` have written, and its rows."""
    rows: Rows = {}
    for actor in range(1, actors + 1):
        rows = write(name, rows, stamp_of(actor, actor))
    code = type_code(name)
    size = sum(
        len(row_key(KEY, part)) - len(KEY) + 5 + len(encode_row(code, part, row))
        for part, row in rows.items()
    )
    return size - PAYLOADS[name] * (actors if name == "doc" else 1), len(rows)


def sizes() -> Iterator[str]:
    """Metadata bytes per value by type and number of actors; rows where there are several."""
    lines = []
    for name in TYPES:
        cells = []
        for actors in ACTORS:
            size, count = metadata(name, actors)
            cells.append(f"{size:,}" + (f" ({count} rows)" if count > 1 else ""))
        lines.append([name, *cells])
    head = ["metadata bytes per value", *(f"{actors} actors" for actors in ACTORS)]
    yield from table(head, lines)


def copies_of(topology: str, nodes: int, count: int) -> tuple[float, float]:
    """Copies of a record that a node other than its origin receives: steady state, warm-up."""
    names = [f"n{at}" for at in range(nodes)]
    network = Network(names, seed=1)
    for a, b in edges_of(topology, names):
        network.link(a, b)
    network.run(1_000)

    def spread(records: int) -> float:
        received, duplicates = network.copies()
        for at in range(records):
            network.put(names[at % nodes], b"k%d" % (at % 50), b"v")
            network.run(20)
        network.run_until_converged(20_000)
        after, after_duplicates = network.copies()
        taken, again = after - received, after_duplicates - duplicates
        assert taken == records * (nodes - 1), "every node takes every record once"
        return (taken + again) / taken

    warm_up = spread(5 * nodes)
    return spread(count), warm_up


def copies(count: int) -> Iterator[str]:
    lines = []
    for topology in TOPOLOGIES:
        cells = []
        for nodes in (3, 5, 10):
            steady, warm_up = copies_of(topology, nodes, count)
            cells.append(f"{steady:.3f} ({warm_up:.2f})")
        lines.append([topology, *cells])
    yield from table(
        ["copies per node and record (while links learn)", "3 nodes", "5 nodes", "10 nodes"], lines
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=0.5, help="about, per figure")
    parser.add_argument("--records", type=int, default=200, help="per topology")
    options = parser.parse_args()
    with suppress(BrokenPipeError):
        print(f"Python {platform.python_version()}, {platform.machine()}\n")
        for part in (
            joins(options.seconds),
            records(options.seconds),
            sizes(),
            copies(options.records),
        ):
            for line in part:
                print(line, flush=True)


if __name__ == "__main__":
    main()
