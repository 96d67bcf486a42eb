"""Prometheus metrics: recorded cheaply while requests run, added up when somebody looks."""

from policy_server.metrics.exporting import MetricsExporter
from policy_server.metrics.recording import Metrics, PolicyMetrics

__all__ = ["Metrics", "MetricsExporter", "PolicyMetrics"]
