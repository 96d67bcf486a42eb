"""The policy in Ray Serve replicas, here or on a cluster. The only place that imports Ray."""

from __future__ import annotations

from policy_server.ray_backend.replicas import PolicyReplica, RayBackend, open_ray_backend
from policy_server.ray_backend.session import RAY_METRICS

__all__ = ["RAY_METRICS", "PolicyReplica", "RayBackend", "open_ray_backend"]
