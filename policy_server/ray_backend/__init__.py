"""The policy in Ray Serve replicas, here or on a cluster. The only place that imports Ray."""

from __future__ import annotations

from policy_server.ray_backend.replicas import PolicyReplica, RayBackend, open_ray_backend

__all__ = ["PolicyReplica", "RayBackend", "open_ray_backend"]
