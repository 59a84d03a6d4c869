"""The public keys of nodes that are no neighbours: every node verifies every token.

Greetings bring the keys of direct neighbours. Those of the others are asked for: at the issuer
itself over calls that neighbours relay, as soon as it is seen behind them, so that its tokens
still verify when it is gone; or, for a key id that is not known, when a token shows it. A
neighbour is trusted with what it relays: it could sign with its own key whatever it wanted.

Questions are bounded: a few at a time, and one that brought nothing is not asked again for a while.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from roost_crdt.errors import BadToken, RoostError
from roostd.keyring import Keyring, Verified

log = logging.getLogger(__name__)

KEYS_OF = "keys.of"
DEADLINE_MS = 1_500
AT_ONCE = 16
ASKED_MAX = 8
AGAIN_MS = 5_000
FRUITLESS_MAX = 1_000

Call = Callable[[str, str, dict[str, Any], int], Awaitable[Any]]


class Issuers:
    """Verifies tokens of any node of the cluster."""

    def __init__(
        self,
        keyring: Keyring,
        *,
        node: str,
        call: Call,
        neighbours: Callable[[], Iterable[str]],
        beyond: Callable[[], Iterable[str]],
        keep: Callable[[str, Mapping[str, bytes]], None],
        now_ms: Callable[[], int],
    ) -> None:
        """`neighbours` are up, `beyond` are reached through them; `keep` stores what was found."""
        self._keyring = keyring
        self._node = node
        self._call = call
        self._neighbours = neighbours
        self._beyond = beyond
        self._keep = keep
        self._now_ms = now_ms
        self._asking: dict[tuple[str, str], asyncio.Task[bool]] = {}
        self._fruitless: OrderedDict[tuple[str, str], int] = OrderedDict()

    async def verify(self, token: str) -> Verified:
        """As Keyring.verify, once the issuer's key was asked for. Raises BadToken."""
        now_s = self._now_ms() // 1000
        try:
            return self._keyring.verify(token, now_s)
        except BadToken:
            unknown = self._keyring.unknown_issuer(token)
            if unknown is None or not await self._find(*unknown):
                raise
        return self._keyring.verify(token, now_s)

    async def answer(self, origin: str, args: dict[str, Any]) -> Any:
        """Another node asks for what is known of a third one's keys."""
        return self._keyring.keys_of(str(args.get("node", "")))

    def tick(self) -> None:
        """Ask for the keys of nodes that have come into reach."""
        for node in self._beyond():
            if node != self._node and not self._keyring.keys_of(node):
                self._ask(node, "")

    async def stop(self) -> None:
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    # --- inside ---

    async def _find(self, issuer: str, kid: str) -> bool:
        task = self._ask(issuer, kid)
        return task is not None and await asyncio.shield(task)

    def _ask(self, issuer: str, kid: str) -> asyncio.Task[bool] | None:
        """The question under way; None if there are too many, or it was fruitless just now."""
        which = (issuer, kid)
        task = self._asking.get(which)
        if task is None:
            again_ms = self._fruitless.get(which, 0)
            if self._now_ms() < again_ms or len(self._asking) >= AT_ONCE:
                return None
            task = asyncio.create_task(self._search(issuer, kid), name=f"keys of {issuer}")
            self._asking[which] = task
            task.add_done_callback(lambda _: self._asking.pop(which, None))
        return task

    async def _search(self, issuer: str, kid: str) -> bool:
        """Take the keys of `issuer` if they hold `kid` ("": any); whether they did."""
        others = list(self._neighbours())[:ASKED_MAX] if issuer not in self._beyond() else []
        for node in (issuer, *others):
            keys = await self._keys_from(node, issuer)
            if keys and (not kid or kid in keys):
                try:
                    self._keyring.add_peer_keys(issuer, keys)
                except BadToken as error:
                    log.warning("the keys of %s, as %s tells, are none: %s", issuer, node, error)
                    continue
                self._keep(issuer, keys)
                log.info("took the public keys of %s from %s", issuer, node)
                return True
        self._fruitless[issuer, kid] = self._now_ms() + AGAIN_MS
        self._fruitless.move_to_end((issuer, kid))
        if len(self._fruitless) > FRUITLESS_MAX:
            self._fruitless.popitem(last=False)
        return False

    async def _keys_from(self, node: str, issuer: str) -> dict[str, bytes]:
        try:
            raw = await self._call(node, KEYS_OF, {"node": issuer}, DEADLINE_MS)
        except RoostError as error:
            log.debug("%s does not tell the keys of %s: %s", node, issuer, error.message)
            return {}
        if not isinstance(raw, dict):
            return {}
        return {k: v for k, v in raw.items() if isinstance(k, str) and isinstance(v, bytes)}
