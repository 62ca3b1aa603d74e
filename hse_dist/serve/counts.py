"""What a server counts, and how the counts of its replicas become one page for Prometheus.

In: a request's path, status and seconds, from one replica; then the snapshots of all. Out: Prometheus' text format.
Replicas are asked in turn, so a page of one replica alone would jump up and down; therefore each page is the sum.

A snapshot is JSON: it crosses processes without pickled classes. Counters of a replica that has ended stay in the sum,
as counters may not fall; its gauges do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest

BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Upper ends, in seconds."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Snapshot = list[dict[str, Any]]


class Counts:
    """Of one replica."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        more: dict[str, Any] = {"registry": self.registry}
        self._requests = Counter("hse_serve_requests", "Requests that were answered.", ["path", "status"], **more)
        self._errors = Counter("hse_serve_errors", "Requests answered with 400 or more.", ["path", "status"], **more)
        self._seconds = Histogram(
            "hse_serve_seconds",
            "From the request's headers to the end of its answer.",
            ["path"],
            buckets=BUCKETS,
            **more,
        )
        self._unknown = Counter("hse_serve_unknown_ids", "Ids of histories that the export does not know.", **more)
        self._reloads = Counter("hse_serve_reloads", "Newer exports that were found.", ["result"], **more)
        self._in_flight = Gauge("hse_serve_in_flight", "Requests for recommendations under way.", **more)
        self._replicas = Gauge("hse_serve_replicas", "Replicas that answer from this export.", ["version"], **more)
        for result in ("taken", "refused"):
            self._reloads.labels(result)

    def request(self, path: str, status: int, seconds: float) -> None:
        """One has been answered."""
        self._requests.labels(path, str(status)).inc()
        if status >= 400:
            self._errors.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def unknown(self, count: int) -> None:
        """So many ids of a history were not in the export."""
        self._unknown.inc(count)

    def in_flight(self, count: int) -> None:
        """So many are under way now."""
        self._in_flight.set(count)

    def reload(self, *, taken: bool) -> None:
        """Another export was found."""
        self._reloads.labels("taken" if taken else "refused").inc()

    def version(self, name: str) -> None:
        """What is answered from, from now on."""
        self._replicas.clear()
        self._replicas.labels(name).set(1)

    def total(self, name: str) -> float:
        """The sum of all samples of this name."""
        found = self.snapshot()
        return sum(value for family in found for sample, _, value in family["samples"] if sample == name)

    def snapshot(self) -> Snapshot:
        """All of it, as JSON."""
        return [
            {
                "name": family.name,
                "help": family.documentation,
                "type": family.type,
                "samples": [
                    [sample.name, sample.labels, sample.value]
                    for sample in family.samples
                    # when a counter was made; the sum of these says nothing
                    if not sample.name.endswith("_created")
                ],
            }
            for family in self.registry.collect()
        ]


def page(snapshots: Iterable[Snapshot]) -> bytes:
    """The sum, as Prometheus reads it."""
    families: dict[str, Metric] = {}
    sums: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for snapshot in snapshots:
        for family in snapshot:
            name = family["name"]
            families.setdefault(name, Metric(name, family["help"], family["type"]))
            of_family = sums.setdefault(name, {})
            for sample, labels, value in family["samples"]:
                key = sample, tuple(labels.items())
                of_family[key] = of_family.get(key, 0.0) + value
    for name, metric in families.items():
        for (sample, labels), value in sums[name].items():
            metric.add_sample(sample, dict(labels), value)
    return generate_latest(_Families(list(families.values())))


class _Families:
    """What `generate_latest` asks of a registry."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def without_gauges(snapshot: Snapshot) -> Snapshot:
    """What still counts of a replica that has ended."""
    return [family for family in snapshot if family["type"] != "gauge"]
