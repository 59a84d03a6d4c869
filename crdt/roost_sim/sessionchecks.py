"""What must be true of every session at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from roost_crdt import logformat
from roost_crdt.entries import TurnEntry, TurnRef, read_summary
from roost_crdt.home import Meta
from roost_crdt.sessions.copy import SessionCopy

from .node import Node
from .sessions import Sessions
from .talks import Talks


def settled(nodes: Mapping[str, Node], sids: Iterable[str]) -> bool:
    """Whether every session has one home whose standby holds all of it, or is erased everywhere."""
    services = _services(nodes)
    return not any(_unsettled(nodes, services, sid) for sid in sids)


def _services(nodes: Mapping[str, Node]) -> dict[str, Sessions]:
    return {
        name: node.shell for name, node in sorted(nodes.items()) if isinstance(node.shell, Sessions)
    }


def _unsettled(nodes: Mapping[str, Node], services: Mapping[str, Sessions], sid: str) -> str:
    metas = {name: service.shelf.meta(sid) for name, service in services.items()}
    if any(m is not None and m.erased_ms for m in metas.values()):
        holders = [name for name, m in metas.items() if m is not None and m.held]
        return f"I10: {sid} was erased and is held by {holders}" if holders else ""
    homes = [name for name, m in metas.items() if m is not None and m.held and m.home == name]
    if not any(m is not None and m.held for m in metas.values()):
        return ""  # nobody has it any more: an error only if an answer binds
    newest = max((m for m in metas.values() if m is not None and m.held), key=lambda m: m.epoch)
    if not homes and nodes[newest.home].excused_rollbacks and newest.standby is None:
        return ""  # its home lost it and had no standby yet
    if len(homes) != 1:
        return f"I9: {sid} is at home at {homes}"
    home = homes[0]
    meta = metas[home]
    assert meta is not None
    unmerged = [name for name, m in metas.items() if m is not None and m.unmerged]
    if unmerged:
        return f"I9: {unmerged} hold turns of {sid} that {home} has not taken"
    beyond = [name for name, m in metas.items() if m is not None and m.epoch > meta.epoch]
    if beyond:
        return f"I9: {beyond} know a higher epoch of {sid} than its home {home}"
    copy = metas.get(meta.standby or "")
    if copy is None or not copy.held:
        return f"I9: {sid} has no copy at its standby {meta.standby}"
    if (copy.epoch, copy.n, copy.chain) != (meta.epoch, meta.n, meta.chain):
        return f"I9: the standby {meta.standby} of {sid} is behind"
    return ""


def check_sessions(nodes: Mapping[str, Node], talks: Talks) -> list[str]:
    """I7, I9 and I10 of every session."""
    problems = list(talks.problems)
    services = _services(nodes)
    for sid in talks.sids:
        unsettled = _unsettled(nodes, services, sid)
        if unsettled:
            problems.append(unsettled)
            continue
        metas = [service.shelf.meta(sid) for service in services.values()]
        if any(meta is not None and meta.erased_ms for meta in metas):
            problems += _check_erased(services, sid)
            continue
        if sid in talks.erased:
            problems.append(f"I10: {sid} was erased, which was answered, and nobody knows of it")
        home = next((s for s in services.values() if _is_home(s, s.shelf.meta(sid))), None)
        if home is not None:
            problems += _check_content(services, home, sid, talks)
        elif any(place[0] == sid for turn in talks.turns.values() for place in turn.refs):
            problems.append(f"I9: nobody is at home with {sid}, of which turns were answered")
    return problems


def _is_home(service: Sessions, meta: Meta | None) -> bool:
    return meta is not None and meta.held and meta.home == service.node.name


def _check_erased(services: Mapping[str, Sessions], sid: str) -> list[str]:
    """Nothing is left of it but the stub."""
    prefix = b"s\0" + sid.encode() + b"\0"
    return [
        f"I10: {name} holds rows of {sid}, which was erased"
        for name, service in services.items()
        if service.node.store.scan(logformat.KIND_SESSION, prefix, b"", 1)
    ]


def _check_content(
    services: Mapping[str, Sessions], home: Sessions, sid: str, talks: Talks
) -> list[str]:
    live = home.shelf.live(sid)
    assert live is not None
    path = live.fold.path()
    entries = {entry.ref: entry for entry in path}
    for branch in live.fold.branches():
        entries.update({entry.ref: entry for entry in branch.entries})
    problems = _check_turns(sid, [entry.turn_id for entry in path], entries, talks)
    problems += _check_forks(live, sid, entries, talks)
    problems += _check_calls(live, sid, talks)
    problems += _check_fields(live, sid, entries, talks)
    problems += _check_summaries(live, sid, talks)
    assert live.meta.standby is not None
    copy = services[live.meta.standby].shelf.live(sid)
    if copy is None or copy.fold.raw_entries() != live.fold.raw_entries():
        problems.append(f"I9: the standby's copy of {sid} has other content")
    elif copy.document.encode() and sorted(copy.fold.lineage()) != sorted(live.fold.lineage()):
        problems.append(f"I9: the standby's lineage of {sid} differs")
    elif copy.fold.raw_fields() != live.fold.raw_fields():
        problems.append(f"I9: the fields of {sid} differ at its standby")
    elif copy.fold.messages() != live.fold.messages():
        problems.append(f"I9: the messages of {sid} differ at its standby")
    for held in (live, copy):
        if held is not None and held.fold.collisions:
            problems.append(f"I7: an entry of {sid} was written twice")
    return problems


def _check_turns(
    sid: str, ids: list[str | None], entries: Mapping[TurnRef, TurnEntry], talks: Talks
) -> list[str]:
    problems = []
    if len(set(ids)) != len(ids):
        problems.append(f"I9: a turn id is on the active path of {sid} twice")
    for turn in talks.turns.values():
        for where, ref in turn.refs:
            if where != sid:
                continue
            found = entries.get(ref)
            if found is None:
                problems.append(f"I9: turn {ref} of {sid} was answered and is gone")
            elif found.turn_id != turn.turn_id or found.messages != [turn.message]:
                problems.append(f"I9: turn {ref} of {sid} was answered and is another one now")
    return problems


def _check_forks(
    live: SessionCopy, sid: str, entries: Mapping[TurnRef, TurnEntry], talks: Talks
) -> list[str]:
    """A fork keeps what it began with."""
    problems = []
    for fork in talks.forks:
        if fork.sid != sid:
            continue
        missing = [ref for ref in fork.path if ref not in entries]
        if missing:
            problems.append(f"I9: the fork {sid} lacks {missing[:3]}, with which it began")
        calls = live.fold.calls
        lost = [c for c in fork.finished if c not in calls or calls[c].status != "finished"]
        if lost:
            problems.append(f"I7: the fork {sid} took over finished calls and lacks {lost[:3]}")
    return problems


def _check_calls(live: SessionCopy, sid: str, talks: Talks) -> list[str]:
    problems = []
    for finish in talks.finishes:
        if finish.sid != sid:
            continue
        state = live.fold.calls.get(finish.call)
        if state is None or state.status != "finished":
            status = "unknown" if state is None else state.status
            problems.append(f"I7: {finish.call} of {sid} was finished and is {status} now")
        elif state.result not in talks.results[finish.call]:
            problems.append(f"I7: {finish.call} of {sid} has a result that nobody gave")
    return problems


def _check_fields(
    live: SessionCopy, sid: str, entries: Mapping[TurnRef, TurnEntry], talks: Talks
) -> list[str]:
    """A field has the value of the highest turn that wrote it: the epoch decides, then the order.

    What a fork took over may be of turns that it did not take.
    """
    newest: dict[str, tuple[TurnRef, bytes | None]] = {}
    for ref, entry in entries.items():
        turn = talks.turns.get(entry.turn_id or "")
        for name, value in turn.put if turn is not None else ():
            if name not in newest or ref > newest[name][0]:
                newest[name] = (ref, value)
    if sid in talks.children:
        epochs = [fork.epoch for fork in talks.forks if fork.sid == sid]
        if not epochs:
            return []
        newest = {name: put for name, put in newest.items() if put[0][:2] >= min(epochs)}
    return [
        f"I9: field {name} of {sid} is {live.fold.field('kv', name)!r}, turn {ref} wrote {value!r}"
        for name, (ref, value) in newest.items()
        if live.fold.field("kv", name) != value
    ]


def _check_summaries(live: SessionCopy, sid: str, talks: Talks) -> list[str]:
    held = {
        read_summary(key, leaf).covers
        for key, leaf in live.fold.raw_entries().items()
        if key.startswith("s/")
    }
    return [
        f"I9: the summary of {sid} up to {covered.ref} was answered and is gone"
        for covered in talks.covered
        if covered.sid == sid and covered.ref not in held
    ]
