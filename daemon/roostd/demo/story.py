"""The scenes of the demo. Each claims only what it has just observed on the running regions."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from roost import aio
from roost.requests import Request
from roost_crdt.errors import Exhausted, Unavailable
from roost_crdt.policy import DEFAULT_POLICIES, Policy, PolicyTable
from roostd.cli.daemon import readable
from roostd.demo.regions import EXTRA_POLICIES, Regions, round_trip_ms
from roostd.demo.report import Report, percentile, shown_ms
from roostd.demo.transcript import Turn

DEADLINE_MS = 30_000
CONVERGE_S = 60.0
QUOTA_LIMIT = 1_200
SPEND = 50
"""Tokens of one request."""
GENERATION_S = 0.15
"""How long the model of the transcript takes to answer; users and models are not instant."""
LOCAL_READS = 300
CONSENSUS_READS = 25
FEW = 5
QUOTA = "usage_quota:demo"
WEIGHTS = "model_router_weights"


async def until(check: Callable[[], Awaitable[Any]], within_s: float, every_s: float = 0.02) -> Any:
    """The first true answer of `check`, or its last answer when the time is over."""
    ends = time.monotonic() + within_s
    while True:
        answer = await check()
        if answer or time.monotonic() > ends:
            return answer
        await asyncio.sleep(every_s)


class Story:
    """One run of the demo over three or more regions."""

    def __init__(self, regions: Regions, turns: list[Turn], report: Report) -> None:
        self._regions = regions
        self._turns = turns
        self._report = report
        self._clients: dict[str, aio.Client] = {}
        self._said: list[dict[str, Any]] = []
        """Every message that a node acknowledged."""

    async def play(self) -> None:
        """All scenes, in order."""
        for name in self._regions.names:
            self._clients[name] = await aio.connect(
                self._regions[name].url, mmap=False, deadline_ms=DEADLINE_MS
            )
        try:
            self.policies()
            await self.links()
            await self.conversation()
            await self.replica_reads()
            await self.weights()
            await self.quota()
            await self.lost_region()
            await self.return_of_the_region()
            await self.latencies()
        finally:
            for client in self._clients.values():
                await client.close()

    # --- scenes ---

    def policies(self) -> None:
        """The policy table, sorted by consistency."""
        self._report.scene("Each key gets the cheapest consistency that is still right")
        table = PolicyTable.parse(DEFAULT_POLICIES + EXTRA_POLICIES, "policies.toml")
        order = {"session-local": 0, "eventually-global": 1, "linearizable": 2}
        policies = sorted(table.policies.values(), key=lambda p: (order[p.consistency], p.name))
        self._report.table(
            "Policies",
            ("key", "type", "consistency", "because"),
            [(p.name, p.type, p.consistency, because(p)) for p in policies],
        )

    async def links(self) -> None:
        """All regions see each other."""
        names = self._regions.names
        self._report.scene("Regions " + ", ".join(names) + ": real daemons, simulated links")
        self._report.say(
            "One roostd process a region on this machine, each with its own store; websockets "
            "between them pass a user-space proxy that holds every byte back for half a round "
            "trip. Nothing else is simulated."
        )
        self._report.progress("waiting for the links")

        async def all_up() -> bool:
            for name in names:
                status = await self._cluster(name)
                up = [link for link in status["links"] if link["state"] == "up"]
                if len(up) < len(names) - 1 or any(not link["rtt_ms"] for link in up):
                    return False
            return True

        up = await until(all_up, CONVERGE_S)
        rows = []
        for name in names:
            for link in (await self._cluster(name))["links"]:
                peer = str(link["peer"]).removesuffix("-1")
                if name < peer:
                    simulated = f"{round_trip_ms(name, peer)} ms"
                    rtt = f"{link['rtt_ms'] or 0:.0f} ms"
                    rows.append((f"{name} - {peer}", simulated, rtt))
        self._report.end_progress()
        self._report.table("Links", ("between", "simulated round trip", "measured"), rows)
        self._report.claim("every region is linked to every other", f"{len(rows)} links", bool(up))
        self._report.say(
            f"Consensus is the embedded backend: one node, hosted by "
            f"{self._regions.consensus_host}, for development and this demo. What one deploys "
            "is etcd."
        )

    async def conversation(self) -> None:
        """A session opened in eu; its first turns, tools included."""
        self._report.scene("A conversation, at home in eu")
        session = await self._clients["eu"].open()
        self._session = session
        claims = token_claims(session.token)
        self._report.table(
            "The routing token, field by field (signed by eu, checked by every region)",
            ("claim", "value"),
            [(name, json.dumps(value)) for name, value in claims.items()],
        )
        self._report.claim(
            "the token names home and standby",
            f"home {claims.get('home')}, standby {claims.get('standby')}",
            claims.get("home") == "eu-1" and bool(claims.get("standby")),
        )
        half = max(1, len(self._turns) // 2)
        self._lost_at = half
        took: list[float] = []
        last = 0
        calls = 0
        for number, turn in enumerate(self._turns[:half], 1):
            self._report.progress(f"turn {number} of {half}")
            calls += await self._run_tools(session, turn)
            await asyncio.sleep(GENERATION_S)
            began = time.monotonic()
            committed = await session.commit(
                turn.messages, put={"kv_cache_index": {"prefix": {"turn": number, "gpu": 3}}}
            )
            took.append((time.monotonic() - began) * 1000)
            last = committed.number
            self._said += turn.messages
        self._report.end_progress()
        self._report.claim(
            "turns are durable in eu before they are acknowledged",
            f"{half} turns, {calls} tool calls in the ledger, "
            f"median {shown_ms(percentile(took, 0.5))}",
            last == half,
        )
        standby = self._standby = str(session.standby).removesuffix("-1")
        began = time.monotonic()

        async def caught_up() -> bool:
            copy = (await self._rows_at(standby)).get(session.sid)
            return copy is not None and copy["turn"] == half

        held = await until(caught_up, CONVERGE_S, 0.005)
        lag_ms = (time.monotonic() - began) * 1000
        self._report.claim(
            f"the copy at its standby {standby} has every turn",
            f"{lag_ms:.0f} ms after the last acknowledgement "
            f"(one way is {round_trip_ms('eu', standby) // 2} ms)",
            bool(held),
        )

    async def replica_reads(self) -> None:
        """The same session, read where the user is now."""
        standby = self._standby
        self._report.scene(f"The user is in {standby} for a moment: a fresh replica, no round trip")
        session = self._there = await self._clients[standby].open(self._session.token)
        read = await session.turns()
        took_ms = await median(session.turns)
        self._report.claim(
            f"{standby} serves the conversation itself",
            f"{len(read.messages)} messages, served by {read.served_by}, "
            f"stale_turns {read.stale_turns}, {shown_ms(took_ms)}",
            read.served_by == "replica"
            and read.stale_turns == 0
            and read.messages == self._said
            and took_ms < round_trip_ms("eu", standby),
        )

    async def weights(self) -> None:
        """Router weights written in all regions at once."""
        names = self._regions.names
        self._report.scene("Router weights: written everywhere at once, no coordination")
        began = time.monotonic()
        await asyncio.gather(
            *(
                self._clients[name].set(
                    f"{WEIGHTS}:{key}", {"weight": round(1 / len(names), 3), "by": name}
                )
                for name in names
                for key in ("shared", f"llama-70b-{name}")
            )
        )
        wrote_ms = (time.monotonic() - began) * 1000
        digests: set[str] = set()

        async def equal() -> bool:
            digests.clear()
            values = set()
            for name in names:
                status = await self._cluster(name)
                if not status["converged"]:
                    return False
                digests.add(status["digest"])
                for key in ("shared", *(f"llama-70b-{n}" for n in names)):
                    reading = await self._clients[name].get(f"{WEIGHTS}:{key}")
                    values.add((key, json.dumps(reading.value)))
            return len(digests) == 1 and len(values) == len(names) + 1

        converged = await until(equal, CONVERGE_S, 0.01)
        took_ms = (time.monotonic() - began) * 1000
        self._report.claim(
            "concurrent writes converge to the same value everywhere",
            f"written in {shown_ms(wrote_ms)}, equal digests {min(digests, default='-')[:12]} "
            f"in all regions after {took_ms:.0f} ms",
            bool(converged),
        )

    async def quota(self) -> None:
        """Spends from every region that end exactly at the limit."""
        names = self._regions.names
        host = self._regions.consensus_host
        self._report.scene("A quota: linearizable, spent locally out of grants")
        await self._ask("eu", "ROOST.QUOTA", "SET", QUOTA, QUOTA_LIMIT)
        spent = dict.fromkeys(names, 0)

        async def spend(name: str, most: int) -> None:
            for number in range(most):
                self._report.progress(f"spent {sum(spent.values())} of {QUOTA_LIMIT}")
                request_id = f"{name}-{number}-{most}"
                try:
                    await self._spend(name, request_id)
                except Exhausted:
                    return
                spent[name] += SPEND

        await asyncio.gather(*(spend(name, QUOTA_LIMIT // SPEND // len(names)) for name in names))
        for name in names:  # whatever is left, and one more than that
            await spend(name, QUOTA_LIMIT)
        self._report.end_progress()
        refused = 0
        for name in names:
            try:
                await self._clients[name].spend(QUOTA, 1, request_id=f"{name}-beyond")
            except Exhausted:
                refused += 1
        total = sum(spent.values())
        self._report.claim(
            f"spends from {len(names)} regions end exactly at the limit",
            f"{total} of {QUOTA_LIMIT} ({', '.join(f'{n} {c}' for n, c in spent.items())}), "
            f"then EXHAUSTED in {refused} regions",
            total == QUOTA_LIMIT and refused == len(names),
        )
        await self._clients[host].set("conversation_by_consensus:demo", self._said)
        linear = await median(lambda: self._clients["eu"].get("conversation_by_consensus:demo"))
        eventual = await median(lambda: self._clients["eu"].get(f"{WEIGHTS}:shared"))
        self._report.claim(
            "an eventual read is local, a linearizable one pays the round trip",
            f"in eu: {shown_ms(eventual)} beside {shown_ms(linear)} through {host}",
            eventual < linear and linear >= 0.9 * round_trip_ms("eu", host),
        )

    async def _spend(self, name: str, request_id: str) -> None:
        """Spend once; a lost race for the pool is repeated under the same id."""
        while True:
            try:
                await self._clients[name].spend(QUOTA, SPEND, request_id=request_id)
            except Unavailable:
                continue
            return

    async def lost_region(self) -> None:
        """kill -9 in the middle of the conversation."""
        standby = self._standby
        self._report.scene("eu is lost: its links go dark, one turn later kill -9")
        before = await self._clients["eu"].open(self._session.token)
        turn = self._turns[self._lost_at]
        await self._regions.cut("eu")
        lost = await before.commit(turn.messages)
        self._said += turn.messages
        self._lost_messages = turn.messages
        await self._regions.kill("eu")
        await self._clients["eu"].close()
        self._report.say(
            f"turn {lost.number} was acknowledged by eu, and died with it before it left; the "
            f"user goes on in {standby} with the token of that turn"
        )
        self._report.progress(f"{standby} makes sure that eu is gone")
        session = self._there
        session.follow(before.token)
        turn = self._turns[self._lost_at + 1]
        began = time.monotonic()
        committed = await session.commit(turn.messages)
        took_ms = (time.monotonic() - began) * 1000
        self._said += turn.messages
        self._session = session
        self._report.end_progress()
        self._report.claim(
            f"the next turn is served by the standby {standby}",
            f"{committed.served_by}, stale_turns {committed.stale_turns}, epoch {session.epoch}, "
            f"after {took_ms:.0f} ms",
            committed.served_by == "takeover" and committed.stale_turns in (0, 1),
        )
        for number, turn in enumerate(self._turns[self._lost_at + 2 :], self._lost_at + 2):
            self._report.progress(f"turn {number + 1} in {standby}")
            await self._run_tools(session, turn)
            await session.commit(turn.messages)
            self._said += turn.messages
        self._report.end_progress()

    async def return_of_the_region(self) -> None:
        """eu comes back and is reconciled forward."""
        standby = self._standby
        self._report.scene("eu comes back: its turn is merged forward, nothing is lost")
        await self._regions.heal("eu")
        began = time.monotonic()
        await self._regions.launch("eu")
        self._clients["eu"] = await aio.connect(
            self._regions["eu"].url, mmap=False, deadline_ms=DEADLINE_MS
        )
        self._report.progress("waiting for the reconciliation")

        async def reconciled() -> list[dict[str, Any]]:
            view = await self._session.show()
            return list(view["reconciled"])

        branches = await until(reconciled, CONVERGE_S)
        took_ms = (time.monotonic() - began) * 1000
        self._report.end_progress()
        kept = [message for branch in branches for message in branch["messages"]]
        read = await self._session.turns()
        missing = [m for m in self._said if m not in read.messages and m not in kept]
        self._report.claim(
            "the turn that died with eu is kept as a reconciled branch",
            f"{len(branches)} branch, turn {branches[0]['turn'] if branches else '-'} of epoch "
            f"{branches[0]['epoch'] if branches else '-'}, {took_ms:.0f} ms after the restart "
            "began",
            kept == self._lost_messages,
        )
        self._report.claim(
            "nothing that was acknowledged is lost",
            f"{len(self._said)} messages acknowledged, {len(read.messages)} on the active path, "
            f"{len(kept)} reconciled, {len(missing)} missing",
            not missing and len(read.messages) + len(kept) == len(self._said),
        )

        async def home_agreed() -> bool:
            rows = [(await self._rows_at(n)).get(self._session.sid) for n in ("eu", standby)]
            return {row["home"] if row else None for row in rows} == {f"{standby}-1"}

        agreed = await until(home_agreed, CONVERGE_S)
        self._report.claim(
            "one home, named alike by all",
            f"{standby}-1, and eu-1 is its standby again" if agreed else "they differ",
            bool(agreed),
        )

    async def latencies(self) -> None:
        """The same read, by session and by consensus, over the same links."""
        reader = "eu" if self._standby != "eu" else "us"
        host = self._regions.consensus_host
        self._report.scene("What a read of the conversation costs away from its home")
        session = await self._clients[reader].open(self._session.token)

        async def fresh() -> bool:
            read = await session.turns()
            return read.served_by == "replica" and read.stale_turns == 0

        await until(fresh, CONVERGE_S)
        by_session = []
        for number in range(LOCAL_READS):
            self._report.progress(f"read {number + 1} of {LOCAL_READS} by roost")
            by_session.append(await timed(session.turns))
        await self._clients[host].set("conversation_by_consensus:demo", self._said)
        by_consensus = []
        client = self._clients[reader]
        for number in range(CONSENSUS_READS):
            self._report.progress(f"read {number + 1} of {CONSENSUS_READS} by consensus")
            by_consensus.append(await timed(lambda: client.get("conversation_by_consensus:demo")))
        self._report.end_progress()
        rows = [
            (
                what,
                str(len(samples)),
                shown_ms(percentile(samples, 0.5)),
                shown_ms(percentile(samples, 0.99)),
            )
            for what, samples in (
                (f"roost: session read in {reader}, home {self._standby}", by_session),
                (f"consensus: the same messages, hosted by {host}", by_consensus),
            )
        ]
        self._report.table(
            f"Latency in {reader} (links simulated: {round_trip_ms(reader, host)} ms to {host}, "
            f"{round_trip_ms(reader, self._standby)} ms to {self._standby})",
            ("read", "samples", "p50", "p99"),
            rows,
        )
        ratio = percentile(by_consensus, 0.5) / percentile(by_session, 0.5)
        self._report.claim(
            "a cross-region session read costs no round trip",
            f"{rows[0][2]} against {rows[1][2]} through consensus: {ratio:.0f} times less",
            percentile(by_session, 0.5) < percentile(by_consensus, 0.5),
        )

    # --- inside ---

    async def _run_tools(self, session: aio.Session, turn: Turn) -> int:
        calls = turn.tool_calls()
        for key, tool, arguments, result in calls:
            call = await session.call(tool, arguments, key=key)
            if call.status == "fresh":
                await call.finish(result)
        return len(calls)

    async def _rows_at(self, name: str) -> dict[str, dict[str, Any]]:
        listed = await self._ask(name, "ROOST.SESSIONS", "", 100)
        return {row["sid"]: row for row in listed["sessions"]}

    async def _cluster(self, name: str) -> dict[str, Any]:
        status = await self._ask(name, "ROOST.STATUS")
        assert isinstance(status, dict), "ROOST.STATUS answers a map"
        return status

    async def _ask(self, name: str, *command: str | bytes | int) -> Any:
        return readable(await self._clients[name].run(Request((command,), lambda reply: reply)))


async def timed(call: Callable[[], Awaitable[Any]]) -> float:
    """Milliseconds that one call takes."""
    began = time.perf_counter()
    await call()
    return (time.perf_counter() - began) * 1000


async def median(call: Callable[[], Awaitable[Any]]) -> float:
    """Of a few calls: one alone may have waited for a busy machine."""
    return percentile([await timed(call) for _ in range(FEW)], 0.5)


def because(policy: Policy) -> str:
    """Why a policy has its consistency, in a few words."""
    return f"{policy.readers}, a stale read is {policy.stale_read_cost}"


def token_claims(token: str) -> dict[str, Any]:
    """The claims in a token, unverified, for showing."""
    payload = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert isinstance(claims, dict), "claims are an object"
    return claims
