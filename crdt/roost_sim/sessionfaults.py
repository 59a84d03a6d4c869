"""Faults aimed at sessions: at a home while it works, at a takeover, at two first contacts.

Random faults reach these rarely; here a session is picked first and its home or standby hit then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import Protocol

from roost_crdt.home import Meta

from .hosting import Surroundings
from .node import Node
from .sessions import Sessions
from .talkers import Talker, id_of
from .talks import Talks


class Cluster(Protocol):
    """What these faults need of the run."""

    world: Surroundings
    nodes: dict[str, Node]
    talks: Talks


class Tools(Protocol):
    """What they need of the other faults."""

    def later(
        self, low_ms: float, high_ms: float, call: Callable[..., None], *args: object
    ) -> None: ...

    def block(self, pairs: Iterable[tuple[str, str]], low_ms: float, high_ms: float) -> None: ...

    def kill(self, node: Node) -> None: ...

    def cut_power(self, node: Node) -> None: ...

    def drain(self, node: Node) -> None: ...

    def busy(self) -> bool: ...


class SessionFaults:
    """By kind: True if something was hit."""

    def __init__(self, cluster: Cluster, random: Random, tools: Tools) -> None:
        self._cluster = cluster
        self._random = random
        self._tools = tools
        self.kinds: dict[str, Callable[[], bool]] = {
            "two first contacts": self._two_first_contacts,
            "home paused": self._home_paused,
            "home cut from standby": self._home_cut,
            "drain in trouble": self._drain_in_trouble,
            "takeover in trouble": self._takeover_in_trouble,
        }

    def _pick(self) -> tuple[Node, Node | None, Meta] | None:
        """A session at home on a node that is up: home, standby, head."""
        nodes = self._cluster.nodes
        homes = [
            (node, meta)
            for _, node in sorted(nodes.items())
            if node.life is not None and isinstance(node.shell, Sessions)
            for sid in self._cluster.talks.sids
            if (meta := node.shell.shelf.meta(sid)) is not None and meta.held
            if meta.home == node.name
        ]
        if not homes:
            return None
        home, meta = self._random.choice(homes)
        return home, nodes.get(meta.standby or ""), meta

    def _say(self, text: str) -> None:
        world = self._cluster.world
        world.trace.say(world.loop.now_ms, "--", text)

    def _pause(self, node: Node, time_ms: float) -> None:
        if node.life is not None:
            node.life.paused_until_ms = self._cluster.world.loop.now_ms + time_ms
            node.say(f"stands still for {time_ms:.0f} ms")

    def _two_first_contacts(self) -> bool:
        """Two clients open one session id on the two sides of a cut."""
        names = [n for n, node in sorted(self._cluster.nodes.items()) if node.life is not None]
        if len(names) < 2:
            return False
        first, second = self._random.sample(names, 2)
        rest = [name for name in sorted(self._cluster.nodes) if name != first]
        side = [first, *(n for n in rest if n != second and self._random.random() < 0.5)]
        sid = f"two{id_of(self._random)[:6]}"
        self._say(f"two first contacts of {sid}: at {first} and at {second}")
        others = [name for name in sorted(self._cluster.nodes) if name not in side]
        pairs = [pair for a in side for b in others for pair in ((a, b), (b, a))]
        # Long enough for the links to be down: before that an open asks the other side.
        self._tools.block(pairs, 1_500, 4_000)
        world, talks = self._cluster.world, self._cluster.talks

        def begin() -> None:
            for at in (first, second):
                talker = Talker(
                    talks, self._cluster.nodes, world.loop, self._random, sid, at=at, rival=True
                )
                world.loop.spawn(talker.run(self._tools.busy, 60.0), None)

        self._tools.later(800, 1_200, begin)
        return True

    def _home_paused(self) -> bool:
        """Mid-turn: for longer than a takeover takes."""
        picked = self._pick()
        if picked is None:
            return False
        home = picked[0]
        pause_ms = self._random.uniform(500.0, 2_500.0)
        self._tools.later(0, 40, self._pause, home, pause_ms)
        return True

    def _home_cut(self) -> bool:
        """Long enough for another standby; the old one may take over meanwhile."""
        picked = self._pick()
        if picked is None or picked[1] is None:
            return False
        a, b = picked[0].name, picked[1].name
        self._say(f"home cut from standby: {a} | {b} ({picked[2].sid})")
        self._tools.block([(a, b), (b, a)], 3_500, 7_000)
        return True

    def _drain_in_trouble(self) -> bool:
        """A drain meets another one, a crash or a cut."""
        picked = self._pick()
        if picked is None:
            return False
        home, standby, _ = picked
        if standby is None:
            return False
        how = self._random.choice(("drain", "kill home", "kill standby", "power", "cut"))
        self._say(f"drain of {home.name} meets: {how}")
        self._tools.drain(home)
        if how == "drain":
            self._tools.later(0, 60, self._tools.drain, standby)
        elif how == "kill home":
            self._tools.later(0, 200, self._tools.kill, home)
        elif how == "kill standby":
            self._tools.later(0, 200, self._tools.kill, standby)
        elif how == "power":
            victim = self._random.choice((home, standby))
            self._tools.later(0, 200, self._tools.cut_power, victim)
        else:
            pairs = [(home.name, standby.name), (standby.name, home.name)]
            self._tools.later(0, 200, self._tools.block, pairs, 400, 3_000)
        return True

    def _takeover_in_trouble(self) -> bool:
        """Home dies, and while the standby takes over it dies, stands still or is cut off."""
        picked = self._pick()
        if picked is None:
            return False
        home, standby, meta = picked
        if standby is None:
            return False
        how = self._random.choice(("kill", "power", "pause", "home is back"))
        self._say(f"takeover of {meta.sid} from {home.name} by {standby.name} meets: {how}")
        if how == "home is back":
            self._pause(home, self._random.uniform(350.0, 900.0))
            return True
        self._tools.kill(home)
        if how == "kill":
            self._tools.later(300, 1_200, self._tools.kill, standby)
        elif how == "power":
            self._tools.later(300, 1_200, self._tools.cut_power, standby)
        else:
            self._tools.later(300, 900, self._pause, standby, self._random.uniform(300.0, 1_500.0))
        return True
