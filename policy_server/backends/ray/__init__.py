"""The policy in Ray Serve replicas, here or on a cluster. The only place that imports Ray."""

from __future__ import annotations

import os

# Ray reads these when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# A call that still runs when Ray is shut down would start another Ray, and wait for it.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
from policy_server.backends.ray.deployment import open_ray_backend, open_ray_cluster
from policy_server.backends.ray.own_ray import RAY_METRICS
from policy_server.backends.ray.replicas import PolicyReplica, RayBackend

__all__ = ["RAY_METRICS", "PolicyReplica", "RayBackend", "open_ray_backend", "open_ray_cluster"]
