"""The numbers on a page of metrics."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from policy_server.metrics import Metrics, MetricsExporter


def samples(page: bytes) -> dict[str, float]:
    """Return a page's numbers by name and labels, such as `requests_total route=/ status=200`."""
    return {
        " ".join(
            [sample.name.removeprefix("policy_server_"), *_labels(sample.labels)]
        ): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def summed(page: str, name: str) -> float:
    """Return a number of a page, summed over the labels that `name` leaves open.

    Example: `summed(page, 'policy_server_requests_total{policy="default"')`.
    """
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith(name))


def rendered(metrics: Metrics) -> dict[str, float]:
    """Return the numbers of the page that an exporter would show."""
    return samples(MetricsExporter(metrics, port=0).render())


def _labels(labels: dict[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in sorted(labels.items())]
