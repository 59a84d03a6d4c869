"""What the faces count: plain integers on the hot path, read when Prometheus asks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5)


class FaceMetrics(Collector):
    """Counters of both faces; `commands` maps a name to [calls, refusals, nanoseconds]."""

    def __init__(self) -> None:
        self.commands: dict[str, list[int]] = {}
        self.errors: dict[str, int] = {}
        self.requests: dict[tuple[str, str, int], int] = {}
        """HTTP requests by (method, route, status)."""
        self.connections = 0
        self.connections_total = 0
        self.connections_refused = 0
        self.protocol_faults = 0
        self.watchers = 0
        self.resp_latency = Histogram()
        """From the bytes that asked to the replies that left together."""
        self.http_latency = Histogram()

    def count_error(self, code: str) -> None:
        self.errors[code] = self.errors.get(code, 0) + 1

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        key = (method, route, status)
        self.requests[key] = self.requests.get(key, 0) + 1
        self.http_latency.add(seconds, 1)

    def collect(self) -> Iterator[Metric]:
        calls = CounterMetricFamily("roost_resp_commands", "RESP commands run.", labels=["command"])
        refused = CounterMetricFamily(
            "roost_resp_refusals", "RESP commands refused.", labels=["command"]
        )
        spent = CounterMetricFamily(
            "roost_resp_command_seconds",
            "Time on the loop by command, without waiting for disk or consensus.",
            labels=["command"],
        )
        for name, (count, errors, spent_ns) in sorted(self.commands.items()):
            if not count:
                continue
            calls.add_metric([name], count)
            refused.add_metric([name], errors)
            spent.add_metric([name], spent_ns / 1e9)
        yield from (calls, refused, spent)
        errors_ = CounterMetricFamily(
            "roost_face_errors", "Error replies of both faces by code.", labels=["code"]
        )
        for code, number in sorted(self.errors.items()):
            errors_.add_metric([code], number)
        yield errors_
        requests = CounterMetricFamily(
            "roost_http_requests", "HTTP requests.", labels=["method", "route", "status"]
        )
        for (method, route, status), number in sorted(self.requests.items()):
            requests.add_metric([method, route, str(status)], number)
        yield requests
        yield GaugeMetricFamily(
            "roost_resp_connections", "Open RESP connections.", value=self.connections
        )
        yield CounterMetricFamily(
            "roost_resp_connections_accepted",
            "RESP connections accepted.",
            value=self.connections_total,
        )
        yield CounterMetricFamily(
            "roost_resp_connections_refused",
            "RESP connections refused at the bound.",
            value=self.connections_refused,
        )
        yield CounterMetricFamily(
            "roost_resp_protocol_faults",
            "Connections closed because they did not speak RESP.",
            value=self.protocol_faults,
        )
        yield GaugeMetricFamily(
            "roost_watchers", "Watches and subscriptions to changes.", value=self.watchers
        )
        yield self.resp_latency.family(
            "roost_resp_latency_seconds", "From a command's bytes to its reply, durable."
        )
        yield self.http_latency.family("roost_http_latency_seconds", "HTTP requests.")


class Histogram:
    """Counts by upper bound, in seconds."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.sum = 0.0

    def add(self, seconds: float, times: int) -> None:
        self.counts[bisect_left(BUCKETS_S, seconds)] += times
        self.sum += seconds * times

    def family(self, name: str, text: str) -> HistogramMetricFamily:
        buckets: list[tuple[str, float]] = []
        total = 0
        for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, total))
        return HistogramMetricFamily(name, text, buckets=buckets, sum_value=self.sum)
