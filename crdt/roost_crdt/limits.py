"""Every bound of roost in one place. Units end the names."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True)
class Limits:
    """What may grow, and how far. The defaults hold for every node; tests pass smaller ones."""

    key_bytes_max: int = 200
    field_bytes_max: int = 255
    value_bytes_max: int = 8 * MIB
    body_bytes_max: int = 16 * MIB
    nesting_max: int = 64
    """Depth of JSON values and of anything that foreign code parses."""

    batch_ops_max: int = 1_000
    """Operations of one MULTI, put or drop."""
    batch_rows_max: int = 4_000
    """Rows that one MULTI changes, here and at once at each neighbour."""
    batch_doc_bytes_max: int = 64 * KIB
    """Rows of documents among them, if there are several documents."""
    page_keys_max: int = 1_000
    """Keys of one page of a listing or scan."""

    frame_bytes: int = 128 * KIB
    """A gossip frame is closed at about this size, and the loop does other work after it: some
    3,000 of the smallest rows, 50 us each. `body_bytes_max` is the hard bound."""
    window_bytes: int = 4 * MIB
    """Bytes sent to a neighbour and not yet taken by its socket; above it sending stops."""
    heartbeat_ms: int = 250
    suspect_missed: int = 1
    down_missed: int = 3
    ihave_ms: int = 50
    want_slack_ms: int = 60
    clock_offset_max_ms: int = 500
    reconnect_min_ms: int = 100
    reconnect_max_ms: int = 10_000

    report_ms: int = 60_000
    """At least so long between two reports of a member's version vector."""
    report_idle_ms: int = 86_400_000
    """A sign of life, with nothing new to report."""
    member_silent_ms: int = 7 * 86_400_000
    """Without a report for so long, a member is removed and has to reseed."""
    gc_pause_ms: int = 600_000
    """Between two scans for dead rows."""
    gc_grace_ms: int = 3_600_000
    """A dead row stays at least so long."""
    gc_rows_max: int = 100_000
    """Dead rows that one collection round remembers."""

    rows_memory_bytes: int = 128 * MIB
    """Decoded clean rows kept in memory."""
    pinned_bytes_max: int = 256 * MIB
    """Rows acknowledged and not yet applied to the index; above it BUSY."""
    apply_interval_ms: int = 50
    apply_keys_max: int = 10_000

    scrub_bytes_per_s: int = 2 * MIB
    """The index is read through at this rate while nothing is being applied; faster after damage
    was found."""
    scrub_pause_ms: int = 6 * 3_600_000
    """Between the end of a scrub and the next."""
    start_check_bytes: int = 32 * MIB
    """An index no larger than this has all of its pages looked at before a start."""
    erase_pause_ms: int = 60_000
    """Between two rounds in which what was erased is taken out of the log: each ends a segment."""
    mend_bytes: int = 16 * MIB
    """Rows of the log held in memory while lost ones are looked for in it."""

    doc_bytes_max: int = 512 * KIB
    """A document key, all its updates; each write loads it whole."""
    doc_structs_max: int = 20_000
    """Changes in one update of a document key: reading so many takes 0.1 s."""
    session_bytes_max: int = 12 * MIB
    """One session document, encoded; it must fit into one frame."""
    session_writes_max: int = 12_000
    """Turns, calls and fields ever written in a session: loading so many takes 0.25 s."""
    documents_memory_bytes: int = 128 * MIB
    replica_cache_bytes: int = 64 * MIB
    """Read-through copies of sessions whose home is elsewhere."""
    turn_ids_kept: int = 256
    token_bytes_max: int = 2 * KIB
    token_cache_entries: int = 65_536
    sid_bytes_max: int = 120

    connections_max: int = 10_000
    output_bytes_max: int = 64 * MIB
    """Replies held for one client that does not read; above it the connection is closed."""
    watchers_max: int = 1_000
    watch_queue_max: int = 10_000
    request_ids_kept: int = 100_000
    request_id_bytes_max: int = 128


DEFAULT_LIMITS = Limits()
