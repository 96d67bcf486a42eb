"""The policy in Ray Serve replicas, here or on a cluster. The only place that imports Ray."""

from __future__ import annotations

from policy_server.ray_backend.deployment import open_ray_backend
from policy_server.ray_backend.node import RAY_METRICS
from policy_server.ray_backend.replicas import PolicyReplica, RayBackend

__all__ = ["RAY_METRICS", "PolicyReplica", "RayBackend", "open_ray_backend"]
