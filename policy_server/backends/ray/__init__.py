"""Policies in Ray Serve replicas, here or on a cluster. The only place that imports Ray."""

from __future__ import annotations

import os
import secrets
import sys

# Ray reads these when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# A call that still runs when Ray is shut down would start another Ray, and wait for it.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
# Ray's own default of 15 lets every other program go first, even the web process that asks: where
# the processor is busy, a replica would wait with each call.
os.environ.setdefault("RAY_worker_niceness", "0")
# A Ray that this process starts asks for a secret. Ray would write one to the home
# folder, which a container may not have.
if "ray" not in sys.modules and not {"RAY_AUTH_MODE", "RAY_ADDRESS"} & os.environ.keys():
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
from policy_server.backends.ray.slim_serve import import_serve

import_serve()

from policy_server.backends.ray.backend import RayBackend  # noqa: E402 -- Ray Serve comes first
from policy_server.backends.ray.cluster import (  # noqa: E402 -- Ray Serve comes first
    RayCluster,
    VersionDescription,
    open_ray_cluster,
)
from policy_server.backends.ray.replicas import PolicyReplica  # noqa: E402 -- Ray Serve comes first

__all__ = [
    "PolicyReplica",
    "RayBackend",
    "RayCluster",
    "VersionDescription",
    "open_ray_cluster",
]
