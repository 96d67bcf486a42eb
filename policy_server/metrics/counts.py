"""The metrics that exist, and the counts of them in one process."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

__all__ = ["ALIKE_COUNTERS", "FAMILIES", "Counts", "Labels"]

Labels = tuple[str, ...]

_PREFIX = "policy_server_"
# So many values cost less in arrays than one by one.
_FEWEST_IN_ARRAYS = 64
# Answers take from tens of microseconds to seconds; three bounds a decade tell their median well.
_SECONDS = (
    *(5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)
_DISTANCES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)
_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


@dataclass(frozen=True)
class _Family:
    """One metric.

    Attributes:
        name: without the prefix, and without the suffix that Prometheus gives it by its kind.
        kind: a counter's and a histogram's numbers only grow.
        text: one line for a reader of the page.
        labels: names of its labels, in the order in which they are recorded.
        bounds: the upper bounds of a histogram's buckets.
        is_alike: whether each web process sees the same value, so that the page shows the largest
            and not the sum.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: Labels = ()
    bounds: tuple[float, ...] = ()
    is_alike: bool = False


FAMILIES = {
    family.name: family
    for family in (
        _Family(
            "requests",
            "counter",
            "Requests by route and status; policy is empty where the route belongs to none",
            ("route", "status", "policy"),
        ),
        _Family(
            "key_requests",
            "counter",
            "Requests, and frames of web sockets, by the name of the access key that let them in",
            ("key",),
        ),
        _Family(
            "request_seconds",
            "histogram",
            "Seconds from a request's arrival to its answer",
            ("route", "policy"),
            _SECONDS,
        ),
        _Family(
            "stage_seconds",
            "histogram",
            "Seconds by stage: validate (one an observation), queue and policy (one a call)",
            ("stage", "policy"),
            _SECONDS,
        ),
        _Family(
            "batch_size",
            "histogram",
            "Observations in one call of the policy",
            ("policy",),
            _SIZES,
        ),
        _Family(
            "queue_depth", "gauge", "Observations that wait or are being answered", ("policy",)
        ),
        _Family("stream_connections", "gauge", "Web sockets that are open"),
        _Family("sessions", "gauge", "Sessions that are open", ("policy",), is_alike=True),
        _Family(
            "session_changes",
            "counter",
            "Sessions that were opened, reset, deleted, expired or refused",
            ("change", "policy"),
        ),
        _Family(
            "rejected",
            "counter",
            "Observations that were not answered, by reason",
            ("reason", "policy"),
        ),
        _Family(
            "actions",
            "counter",
            "Integer actions answered, by component",
            ("component", "action", "policy"),
        ),
        _Family(
            "version_observations",
            "counter",
            "Observations that a version of a policy was asked, by result",
            ("version", "result", "policy"),
        ),
        _Family(
            "shadow_copies",
            "counter",
            "Copies of questions for a shadow version, by result",
            ("version", "result", "policy"),
        ),
        _Family(
            "shadow_distance",
            "histogram",
            "Total variation distance of a shadow's distribution from the answering version's",
            ("version", "policy"),
            _DISTANCES,
        ),
        _Family(
            "shadow_call_seconds",
            "histogram",
            "Seconds of one call of a shadow version",
            ("version", "policy"),
            _SECONDS,
        ),
        _Family("replicas", "gauge", "Replicas of the policies that answer"),
        _Family(
            "replica_restarts",
            "counter",
            "Replicas whose connection was lost",
            ("policy",),
            is_alike=True,
        ),
        _Family(
            "model_info",
            "gauge",
            "The policy that is served",
            ("version", "family", "policy"),
            is_alike=True,
        ),
        _Family(
            "model_load_seconds",
            "gauge",
            "Seconds from start to the first answer",
            ("policy",),
            is_alike=True,
        ),
    )
}

# Those of single versions: of `model_info` there is one a policy.
_OF_VERSIONS = [
    family.name
    for family in FAMILIES.values()
    if family.labels[:1] == ("version",) and family.kind != "gauge"
]

ALIKE_COUNTERS = tuple(
    family.name for family in FAMILIES.values() if family.is_alike and family.kind == "counter"
)
"""The counters of which the page shows the largest of all web processes."""


@dataclass
class _Histogram:
    counts: list[int]
    total: float = 0.0

    def add(self, other: _Histogram) -> None:
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.total += other.total


@dataclass
class Counts:
    """The counts of one process, or of several that were added up.

    Attributes:
        numbers: values of counters and gauges, by the metric's name and then by its labels.
        histograms: those of histograms.
    """

    numbers: dict[str, dict[Labels, float]] = field(default_factory=dict)
    histograms: dict[str, dict[Labels, _Histogram]] = field(default_factory=dict)

    def count(self, name: str, labels: Labels, amount: float = 1.0) -> None:
        """Add to a counter.

        Args:
            name: the metric's, without its prefix, such as `requests`.
            labels: their values, such as `("/predict", "200", "default")`.
            amount: how much.
        """
        series = self.numbers.setdefault(name, {})
        series[labels] = series.get(labels, 0.0) + amount

    def observe(self, name: str, labels: Labels, *values: float) -> None:
        """Add values to a histogram; `name` and `labels` as in `count`."""
        bounds = FAMILIES[name].bounds
        series = self.histograms.setdefault(name, {})
        histogram = series.get(labels)
        if histogram is None:
            histogram = series[labels] = _Histogram([0] * (len(bounds) + 1))
        counts = histogram.counts
        if len(values) < _FEWEST_IN_ARRAYS:
            for value in values:
                counts[bisect.bisect_left(bounds, value)] += 1
        else:
            found = np.bincount(np.searchsorted(bounds, values), minlength=len(counts))
            histogram.counts[:] = [a + b for a, b in zip(counts, found.tolist(), strict=True)]
        histogram.total += sum(values)

    def forget_version(self, policy: str, version: str) -> None:
        """Drop the counters and histograms of a policy's version.

        Args:
            policy: the policy's name.
            version: the version's own name.
        """
        for name in _OF_VERSIONS:
            series: dict[Labels, Any]
            for series in (self.numbers.get(name, {}), self.histograms.get(name, {})):
                for labels in [key for key in series if (key[0], key[-1]) == (version, policy)]:
                    del series[labels]

    def add(self, other: Counts) -> None:
        """Add another process's counts."""
        for name, numbers in other.numbers.items():
            for labels, value in numbers.items():
                if FAMILIES[name].is_alike:
                    series = self.numbers.setdefault(name, {})
                    series[labels] = max(value, series.get(labels, value))
                else:
                    self.count(name, labels, value)
        for name, histograms in other.histograms.items():
            for labels, histogram in histograms.items():
                known = self.histograms.setdefault(name, {}).get(labels)
                if known is None:
                    copy = _Histogram(list(histogram.counts), histogram.total)
                    self.histograms[name][labels] = copy
                else:
                    known.add(histogram)

    def without_gauges(self) -> Counts:
        """Return a copy without the gauges: counters and histograms, which only grow."""
        copy = Counts()
        copy.add(self)
        copy.numbers = {
            name: series
            for name, series in copy.numbers.items()
            if FAMILIES[name].kind == "counter"
        }
        return copy

    def to_document(self) -> dict[str, list[list[Any]]]:
        """Return the counts as JSON can hold them; `from_document` reads it."""
        numbers = [[n, list(k), v] for n, series in self.numbers.items() for k, v in series.items()]
        histograms = [
            [name, list(labels), item.counts, item.total]
            for name, series in self.histograms.items()
            for labels, item in series.items()
        ]
        return {"numbers": numbers, "histograms": histograms}

    @classmethod
    def from_document(cls, document: Any) -> Counts:  # noqa: ANN401 -- any JSON
        """Return the counts that `to_document` has given.

        Raises:
            ValueError: if the document is another one.
        """
        counts = cls()
        try:
            for name, labels, value in document["numbers"]:
                series = counts.numbers.setdefault(name, {})
                series[_known(name, labels, 0)] = float(value)
            for name, labels, buckets, total in document["histograms"]:
                item = _Histogram([int(count) for count in buckets], float(total))
                histograms = counts.histograms.setdefault(name, {})
                histograms[_known(name, labels, len(buckets))] = item
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"expected the counts of a worker: {error!r}") from error
        return counts

    def collect(self) -> Iterator[Metric]:
        """Yield every metric that exists, those without a value too, as Prometheus' client does."""
        for family in FAMILIES.values():
            if family.kind == "histogram":
                yield self._histogram(family)
            else:
                kind = GaugeMetricFamily if family.kind == "gauge" else CounterMetricFamily
                metric = kind(_PREFIX + family.name, family.text, labels=family.labels)
                for labels, value in self.numbers.get(family.name, {}).items():
                    metric.add_metric(labels, value)
                yield metric

    def _histogram(self, family: _Family) -> Metric:
        metric = HistogramMetricFamily(_PREFIX + family.name, family.text, labels=family.labels)
        for labels, item in self.histograms.get(family.name, {}).items():
            buckets, below = [], 0
            for bound, count in zip((*family.bounds, float("inf")), item.counts, strict=True):
                below += count
                buckets.append(("+Inf" if bound == float("inf") else str(bound), below))
            metric.add_metric(labels, buckets, item.total)
        return metric


def _known(name: str, labels: list[str], buckets: int) -> Labels:
    """Return the labels of a series; refuse labels that its metric does not have."""
    family = FAMILIES[name]
    expected = len(family.bounds) + 1 if family.kind == "histogram" else 0
    if len(labels) != len(family.labels) or buckets != expected:
        raise ValueError(f"{name}: {len(labels)} labels and {buckets} buckets")
    return tuple(map(str, labels))
