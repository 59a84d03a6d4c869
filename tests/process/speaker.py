"""A client of one region's HTTP face, and what is asked of all regions at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from roostd.demo.regions import Regions

QUIET_S = 60.0


class Refused(Exception):
    """A problem document: its code, status and body."""

    def __init__(self, answer: httpx.Response) -> None:
        self.body: dict[str, Any] = answer.json()
        self.code: str = self.body["code"]
        self.status = answer.status_code
        super().__init__(f"{self.status} {self.code}: {self.body.get('detail')}")


@dataclass
class Answered:
    """A reply and the token that came with it."""

    body: dict[str, Any]
    token: str | None
    headers: Mapping[str, str]
    status: int

    def __getitem__(self, name: str) -> Any:
        return self.body[name]


@dataclass
class Speaker:
    """Speaks to the regions; every method raises Refused, or httpx's errors for lost replies."""

    regions: Regions
    timeout_s: float = 30.0
    patient: bool = False
    """Ask again what changed nothing because a neighbour was out of reach: all regions run, and a
    machine that stands still for a second loses sight of them."""
    _http: httpx.AsyncClient = field(init=False)

    def __post_init__(self) -> None:
        self._http = httpx.AsyncClient(timeout=self.timeout_s, trust_env=False)

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(
        self,
        region: str,
        method: str,
        path: str,
        body: Any = None,
        token: str | None = None,
        **headers: str,
    ) -> Answered:
        sent = dict(headers)
        if token is not None:
            sent["Roost-Token"] = token
        ends = time.monotonic() + QUIET_S
        again = ["BUSY", "UNAVAILABLE"]
        if isinstance(body, dict) and "turn_id" in body:
            again.append("UNKNOWNOUTCOME")  # who repeats it gets the first answer
        while True:
            answer = await self._http.request(
                method, self.regions[region].http_url + path, json=body, headers=sent
            )
            if answer.status_code < 400:
                break
            refused = Refused(answer)
            late = not self.patient or time.monotonic() > ends
            if late or refused.code not in again:
                raise refused
            await asyncio.sleep(0.1)
        return Answered(
            answer.json() if answer.content else {},
            answer.headers.get("roost-token"),
            answer.headers,
            answer.status_code,
        )

    # --- sessions ---

    async def open(self, region: str, sid: str | None = None, token: str | None = None) -> Answered:
        body = {} if sid is None else {"sid": sid}
        return await self.ask(region, "POST", "/v1/sessions", body, token)

    async def turns(
        self, region: str, sid: str, token: str | None = None, last: int | None = None
    ) -> Answered:
        query = "" if last is None else f"?last={last}"
        return await self.ask(region, "GET", f"/v1/sessions/{sid}/turns{query}", token=token)

    async def texts(self, region: str, sid: str, token: str | None = None) -> list[str]:
        """The conversation as texts."""
        return [m["content"] for m in (await self.turns(region, sid, token))["messages"]]

    async def commit(
        self, region: str, sid: str, text: str, token: str | None = None, **more: Any
    ) -> Answered:
        """One turn whose turn_id is its text."""
        body = {"turn_id": text, "messages": [{"role": "user", "content": text}], **more}
        return await self.ask(region, "POST", f"/v1/sessions/{sid}/turns", body, token)

    async def call(
        self, region: str, sid: str, call: str, status: str, token: str | None = None, **more: Any
    ) -> Answered:
        body = {"status": status, "tool": "search", "args": {"q": 1}, **more}
        return await self.ask(region, "PUT", f"/v1/sessions/{sid}/calls/{call}", body, token)

    async def show(self, region: str, sid: str, token: str | None = None) -> Answered:
        return await self.ask(region, "GET", f"/v1/sessions/{sid}", token=token)

    async def held(self, region: str, sid: str) -> list[str]:
        """Every turn that a region's home knows: on the active path, or reconciled."""
        shown = await self.show(region, sid)
        beside = [m["content"] for branch in shown["reconciled"] for m in branch["messages"]]
        return [*await self.texts(region, sid), *beside]

    # --- keys ---

    async def put(self, region: str, key: str, value: Any, **more: Any) -> Answered:
        return await self.ask(region, "PUT", f"/v1/keys/{key}", {"value": value, **more})

    async def patch(self, region: str, key: str, **change: Any) -> Answered:
        return await self.ask(region, "PATCH", f"/v1/keys/{key}", change)

    async def value(self, region: str, key: str) -> Any:
        return (await self.ask(region, "GET", f"/v1/keys/{key}"))["value"]

    # --- the cluster ---

    async def cluster(self, region: str) -> Answered:
        return await self.ask(region, "GET", "/v1/cluster")

    async def linked(self, *names: str) -> None:
        """Wait until each region's configured links are up."""
        wanted = names or self.regions.names
        await self.until(
            lambda: self._links_up(wanted), "the links did not come up", timeout_s=QUIET_S
        )

    async def _links_up(self, names: tuple[str, ...]) -> bool:
        found = await asyncio.gather(*(self.cluster(name) for name in names))
        return all(
            link["state"] == "up"
            for shown in found
            for link in shown["links"]
            if link["peer"].partition("-")[0] in names
        )

    async def converged(self, *names: str) -> float:
        """Wait until the regions hold the same state and say so; how long that took (s)."""
        wanted = names or self.regions.names
        began = time.monotonic()

        async def same() -> bool:
            found = await asyncio.gather(*(self.cluster(name) for name in wanted))
            return (
                all(shown["converged"] for shown in found)
                and len({shown["digest"] for shown in found}) == 1
                and len({str(shown["version_vector"]) for shown in found}) == 1
            )

        await self.until(same, "the regions did not converge")
        return time.monotonic() - began

    async def until(
        self, done: Callable[[], Awaitable[bool]], why: str, timeout_s: float = QUIET_S
    ) -> None:
        """Wait for a condition; what is refused or lost meanwhile counts as not yet."""
        ends = time.monotonic() + timeout_s
        last: object = None
        while time.monotonic() < ends:
            try:
                if await done():
                    return
            except (Refused, httpx.HTTPError) as error:
                last = error
            await asyncio.sleep(0.1)
        raise AssertionError(f"{why} in {timeout_s} s" + (f": {last}" if last else ""))

    async def one_home(self, sid: str, *names: str) -> str:
        """Wait until all regions name one home of a session; its region."""
        homes: set[str] = set()

        async def alike() -> bool:
            homes.clear()
            for name in names or self.regions.names:
                homes.add((await self.show(name, sid))["home"])
            return len(homes) == 1

        await self.until(alike, f"no one home: {homes}")
        return homes.pop().partition("-")[0]


@asynccontextmanager
async def speaking(regions: Regions, *, patient: bool = False) -> AsyncIterator[Speaker]:
    """Start the regions, wait until they are linked, and stop them at the end."""
    try:
        await regions.start()
        speaker = Speaker(regions, patient=patient)
        await speaker.linked()
        yield speaker
        await speaker.close()
    finally:
        await regions.close()
