"""Metrics of a node, read when they are scraped: nothing is counted twice on a hot path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class NodeCollector(Collector):
    """Gauges out of what `GET /v1/cluster` says."""

    def __init__(self, cluster: Callable[[], dict[str, Any]]) -> None:
        self._cluster = cluster

    def collect(self) -> Iterator[Metric]:
        status = self._cluster()
        store = status["store"]
        for name, text in (
            ("bytes", "bytes of the size bound in use"),
            ("size_max", "the size bound, in bytes"),
            ("seq", "newest log entry"),
            ("durable_seq", "newest log entry that survives a crash"),
            ("applied_seq", "newest log entry in the index"),
            ("damaged", "rows that failed their checksum since the start"),
            ("suspect_buckets", "buckets of keys (of 4,096) that lack rows, refused until mended"),
            ("mended_buckets", "buckets of keys that got their rows back since the start"),
            ("damaged_pairs", "entries of sessions, spends and the like that are refused"),
            ("mended_pairs", "such entries that were put again since the start"),
            ("erasing", "erased sessions whose payloads are still on the disk"),
        ):
            yield GaugeMetricFamily(f"roost_store_{name}", text, value=store[name])
        yield GaugeMetricFamily(
            "roost_store_full",
            "1 = there is no room, on the disk or below the size bound: writes answer FULL",
            value=int(bool(store["full"])),
        )
        sessions = GaugeMetricFamily("roost_sessions", "sessions in memory", labels=["role"])
        for role, count in status["sessions"].items():
            sessions.add_metric([role], count)
        yield sessions
        yield GaugeMetricFamily(
            "roost_converged", "1 = equal digests on all links", value=int(status["converged"])
        )
        yield from self._links(status["links"])

    def _links(self, links: list[dict[str, Any]]) -> Iterator[Metric]:
        up = GaugeMetricFamily("roost_link_up", "1 = the link is up", labels=["peer"])
        families = {
            field: GaugeMetricFamily(f"roost_link_{field}", text, labels=["peer"])
            for field, text in (
                ("rtt_ms", "round trip, in milliseconds"),
                ("lag_ms", "since this node held all that the neighbour had reported"),
                ("lag_records", "records that the neighbour has and this node lacks"),
                ("received", "records received"),
                ("duplicates", "records received again"),
            )
        }
        for link in links:
            up.add_metric([link["peer"]], int(link["state"] == "up"))
            for field, family in families.items():
                family.add_metric([link["peer"]], link[field] or 0)
        yield up
        yield from families.values()


def registry(cluster: Callable[[], dict[str, Any]]) -> CollectorRegistry:
    """A registry of its own for one node, so that several fit in one process."""
    metrics = CollectorRegistry()
    metrics.register(NodeCollector(cluster))
    return metrics
