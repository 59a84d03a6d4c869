"""Faults: what goes wrong, when, and how it ends. Each is counted by kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import Protocol

from roost_crdt.lineage import NODE
from roost_crdt.logformat import KIND_META

from .disk import Image
from .history import History
from .hosting import WHOLE_LOG, Surroundings
from .memberfaults import MemberFaults
from .node import Node
from .sessionfaults import SessionFaults
from .sessions import Sessions
from .talks import Talks


class Cluster(Protocol):
    """What faults need of the run."""

    world: Surroundings
    nodes: dict[str, Node]
    history: History
    talks: Talks
    edges: list[tuple[str, str]]

    def start(self, name: str) -> None: ...

    def join(self, name: str, neighbours: Iterable[str]) -> Node: ...

    def may_leave(self, name: str) -> bool: ...

    def leave(self, name: str) -> None: ...


class Faults:
    """Injects faults into a cluster until told to stop; `heal` undoes what is still wrong."""

    def __init__(self, cluster: Cluster, random: Random, kinds: dict[str, float]) -> None:
        self._cluster = cluster
        self._random = random
        self._kinds = kinds
        self._images: dict[str, tuple[float, Image]] = {}
        self._lies_since_ms: dict[str, float] = {}
        self._until_ms = 0.0
        self._do: dict[str, Callable[[], bool]] = {
            "kill": self._kill,
            "power cut": self._power,
            "crash between effects": self._crash_between,
            "sync fails": self._sync_fails,
            "clean restart": self._clean_restart,
            "partition": self._partition,
            "isolate": self._isolate,
            "one-way cut": self._one_way,
            "link reset": self._link_reset,
            "swizzle": self._swizzle,
            "clock jump": self._clock_jump,
            "pause": self._pause,
            "lying disk": self._lying_disk,
            "old copy restored": self._restore,
            "store cloned": self._clone,
            "node joins": self._join,
            "drain": self._drain,
            **SessionFaults(cluster, random, self).kinds,
            **MemberFaults(cluster, random, self.later, self._void).kinds,
        }
        assert kinds.keys() <= self._do.keys()

    def run(self, until_ms: float, every_ms: float) -> None:
        """One fault about every so often, from now until then."""
        self._until_ms = until_ms
        loop = self._cluster.world.loop

        def strike() -> None:
            if loop.now_ms >= self._until_ms:
                return
            kind = self._random.choices(list(self._kinds), list(self._kinds.values()))[0]
            if self._do[kind]():
                self._cluster.world.trace.count("fault", kind)
            loop.after(every_ms * (0.3 + 1.4 * self._random.random()), None, strike)

        loop.after(every_ms * self._random.random(), None, strike)

    def heal(self) -> None:
        """Every path whole, every node up, every clock right, every disk honest."""
        self._until_ms = 0.0
        world = self._cluster.world
        for source, target in sorted(world.network.cut):
            world.network.heal(source, target)
        world.network.loss = 0.0
        for name in sorted(self._cluster.nodes):
            node = self._cluster.nodes[name]
            node.steps_to_crash = 0
            node.disk.failing = False
            node.disk.come_clean()
            node.wall_offset_ms = 0
            if node.life is not None:
                node.life.paused_until_ms = 0.0
            self._cluster.start(name)

    # --- whom

    def _alive(self) -> Node | None:
        alive = [node for _, node in sorted(self._cluster.nodes.items()) if node.life is not None]
        return self._random.choice(alive) if alive else None

    def later(
        self, low_ms: float, high_ms: float, call: Callable[..., None], *args: object
    ) -> None:
        self._cluster.world.loop.after(self._random.uniform(low_ms, high_ms), None, call, *args)

    def _say(self, text: str) -> None:
        self._cluster.world.trace.say(self._cluster.world.loop.now_ms, "--", text)

    def _void(self, node: Node, since_ms: float) -> None:
        self._cluster.history.void(node.name, since_ms)
        self._cluster.talks.void(node.name, since_ms, self._cluster.world.loop.now_ms)

    # --- processes

    def _kill(self) -> bool:
        node = self._alive()
        if node is None:
            return False
        self.kill(node)
        return True

    def kill(self, node: Node) -> None:
        node.crash()
        self.later(50, 4_000, self._cluster.start, node.name)

    def busy(self) -> bool:
        """Whether faults still strike: until then clients have work."""
        return self._cluster.world.loop.now_ms < self._until_ms

    def _crash_between(self) -> bool:
        node = self._alive()
        if node is None:
            return False
        node.steps_to_crash = self._random.randint(1, 60)
        return True

    def _clean_restart(self) -> bool:
        node = self._alive()
        if node is None or node.disk.failing:
            return False
        node.stop()
        self.later(50, 2_000, self._cluster.start, node.name)
        return True

    def _drain(self) -> bool:
        node = self._alive()
        if node is None or node.disk.failing:
            return False
        self.drain(node)
        return True

    def drain(self, node: Node) -> None:
        """Hand all sessions over, then stop."""
        if node.disk.failing or not isinstance(node.shell, Sessions):
            return
        life = node.life
        node.say("drains")
        drained = self._cluster.world.loop.spawn(node.shell.drain(), life)

        def stop() -> None:
            if node.life is life and life is not None and life.alive and not node.disk.failing:
                node.stop()
                self.later(50, 2_000, self._cluster.start, node.name)

        drained.then(stop)

    def _pause(self) -> bool:
        node = self._alive()
        if node is None or node.life is None:
            return False
        pause_ms = self._random.choice((300.0, 900.0, 2_500.0, 5_000.0))
        node.life.paused_until_ms = self._cluster.world.loop.now_ms + pause_ms
        node.say(f"stands still for {pause_ms:.0f} ms")
        return True

    # --- disks

    def _power(self) -> bool:
        node = self._alive()
        if node is None:
            return False
        self.cut_power(node)
        return True

    def cut_power(self, node: Node) -> None:
        """What a lying disk had promised goes too."""
        since_ms = self._lies_since_ms.pop(node.name, None)
        if since_ms is not None:
            self._cluster.world.trace.count("rule", "lie found out")
            self._void(node, since_ms)
        if node.life is None:
            node.disk.lose_power(self._random)
            node.disk.boot_id = self._random.randbytes(8)
        else:
            node.crash(power=True)
        self.later(50, 4_000, self._cluster.start, node.name)

    def _sync_fails(self) -> bool:
        node = self._alive()
        if node is None:
            return False
        node.disk.failing = True
        return True

    def _lying_disk(self) -> bool:
        node = self._alive()
        if node is None or node.disk.lying or node.store.dirty:
            return False
        self._lies_since_ms[node.name] = self._cluster.world.loop.now_ms
        node.say("its disk begins to lie")
        node.disk.lie()
        node.excused_rollbacks += 1

        def cut() -> None:
            if node.disk.lying:
                self.cut_power(node)

        self.later(300, 3_000, cut)
        return True

    def _restore(self) -> bool:
        """An old copy comes back: an honest copy (other files), or one that looks untouched."""
        node = self._alive()
        if node is None or node.disk.lying or node.store.dirty:
            return False
        if node.name not in self._images:
            self._images[node.name] = (self._cluster.world.loop.now_ms, node.disk.image())
            return False
        since_ms, image = self._images.pop(node.name)
        node.crash()
        boot_id = node.disk.boot_id
        node.disk.restore(image)
        node.disk.index.meta[b"boot_id"] = boot_id
        forged = self._random.random() < 0.5
        if not forged:
            node.disk.file_id = self._random.randbytes(8)
        node.say(f"gets its copy of {since_ms / 1000:.3f} s back" + (", forged" if forged else ""))
        node.excused_rollbacks += 1
        node.may_write_before_greeting = not forged
        if forged:
            self._cluster.world.segments_kept = WHOLE_LOG
        self._void(node, since_ms)
        self.later(50, 2_000, self._cluster.start, node.name)
        return True

    def _clone(self) -> bool:
        """A block-level clone of a store joins as another node."""
        node = self._alive()
        name = f"x{len(self._cluster.edges)}"
        if node is None or node.disk.lying or node.store.dirty or len(self._cluster.nodes) > 6:
            return False
        if any(other.startswith("x") for other in self._cluster.nodes):
            return False
        twin = self._cluster.join(name, [node.name])
        twin.disk.restore(node.disk.image())
        twin.disk.boot_id, twin.disk.file_id = node.disk.boot_id, node.disk.file_id
        forged = self._random.random() < 0.5
        if forged:  # as if it had the original's name: its own store cannot tell
            self._cluster.world.segments_kept = WHOLE_LOG
            twin.disk.index.items.get(KIND_META, {}).pop(NODE, None)
        twin.may_write_before_greeting = node.may_write_before_greeting = False
        node.excused_rollbacks += 1
        twin.excused_rollbacks += 1
        twin.say(f"joins with a clone of {node.name}'s store" + (", forged" if forged else ""))
        self.later(50, 500, self._cluster.start, name)
        return True

    def _join(self) -> bool:
        name = f"j{len(self._cluster.edges)}"
        if len(self._cluster.nodes) > 6:
            return False
        names = sorted(self._cluster.nodes)
        chosen = self._random.sample(names, min(len(names), self._random.randint(1, 2)))
        node = self._cluster.join(name, chosen)
        node.say(f"joins beside {', '.join(chosen)}")
        self.later(10, 300, self._cluster.start, name)
        return True

    # --- clocks

    def _clock_jump(self) -> bool:
        node = self._alive()
        if node is None:
            return False
        node.wall_offset_ms = self._random.choice((-5_000, -900, -200, 0, 200, 450, 900, 3_000))
        node.say(f"its clock is {node.wall_offset_ms:+d} ms off")
        return True

    # --- paths

    def block(self, pairs: Iterable[tuple[str, str]], low_ms: float, high_ms: float) -> None:
        network = self._cluster.world.network
        for source, target in pairs:
            if network.blocked(source, target):
                continue
            network.block(source, target)
            self.later(low_ms, high_ms, network.heal, source, target)

    def _partition(self) -> bool:
        names = sorted(self._cluster.nodes)
        side = set(self._random.sample(names, self._random.randint(1, max(1, len(names) - 1))))
        pairs = [(a, b) for a in names for b in names if (a in side) != (b in side)]
        self._say(f"partition: {' '.join(sorted(side))}")
        self.block(pairs, 300, 5_000)
        return True

    def _isolate(self) -> bool:
        names = sorted(self._cluster.nodes)
        name = self._random.choice(names)
        self._say(f"isolated: {name}")
        pairs = [
            pair for other in names if other != name for pair in ((name, other), (other, name))
        ]
        self.block(pairs, 300, 4_000)
        return True

    def _one_way(self) -> bool:
        a, b = self._random.choice(self._cluster.edges)
        if self._random.random() < 0.5:
            a, b = b, a
        self._say(f"one-way cut: {a} -> {b}")
        self.block([(a, b)], 200, 4_000)
        return True

    def _link_reset(self) -> bool:
        a, b = self._random.choice(self._cluster.edges)
        self._say(f"link reset: {a} - {b}")
        self._cluster.world.network.break_all(a, b)
        return True

    def _swizzle(self) -> bool:
        """Cut nodes off one by one, heal them in another order."""
        names = sorted(self._cluster.nodes)
        chosen = self._random.sample(names, max(1, len(names) // 2))
        loop, network = self._cluster.world.loop, self._cluster.world.network
        self._say(f"swizzle: {' '.join(chosen)}")
        order = self._random.sample(chosen, len(chosen))
        for at, name in enumerate(chosen):
            pairs = [p for o in names if o != name for p in ((name, o), (o, name))]
            for pair in pairs:
                loop.after(200.0 * at, None, network.block, *pair)
                heal_ms = 200.0 * len(chosen) + 300.0 * (1 + order.index(name))
                loop.after(heal_ms, None, network.heal, *pair)
        return True
