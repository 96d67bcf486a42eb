"""Policies in Ray Serve replicas, here or on a cluster. The only place that imports Ray.

Importing the package imports Ray Serve and nothing else: a replica needs little of the rest.
"""

from __future__ import annotations

import os
import secrets
import sys
from contextlib import suppress

# Compose and CI write an empty variable for one that is not set. Ray would take an empty
# RAY_AUTH_MODE for no token, with which everybody who reaches the dashboard runs code.
for _name in (
    "RAY_ADDRESS",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "RAY_ENABLE_AUTO_CONNECT",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",
    "RAY_ROTATION_BACKUP_COUNT",
    "RAY_ROTATION_MAX_BYTES",
    "RAY_TMPDIR",
    "RAY_USAGE_STATS_ENABLED",
    "RAY_enable_metrics_collection",
    "RAY_event_stats_print_interval_ms",
    "RAY_worker_niceness",
):
    if not os.environ.get(_name, "unset"):
        del os.environ[_name]
# Ray reads these when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# A call that still runs when Ray is shut down would start another Ray, and wait for it.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
# Ray's own default of 15 lets every other program go first, even the web process that asks: where
# the processor is busy, a replica would wait with each call.
os.environ.setdefault("RAY_worker_niceness", "0")
# Ray's logs would grow for as long as it runs: by statistics of itself each minute, which a day is
# often enough for (with -1 its GCS writes them without a pause), and to 3 GB a file.
os.environ.setdefault("RAY_event_stats_print_interval_ms", str(24 * 3600 * 1000))
os.environ.setdefault("RAY_ROTATION_MAX_BYTES", str(16 * 2**20))
os.environ.setdefault("RAY_ROTATION_BACKUP_COUNT", "1")
# A Ray that this process starts listens on this machine alone: Ray takes the address of loopback
# for its own where clusters are off. Linux has them on; the name is from systems that have not.
if "RAY_ADDRESS" not in os.environ:
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
# A Ray that this process starts asks for a secret. Ray would write one to the home
# folder, which a container may not have.
if "ray" not in sys.modules and not {"RAY_AUTH_MODE", "RAY_ADDRESS"} & os.environ.keys():
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
from policy_server.backends.ray.slim_serve import import_serve  # noqa: E402 -- reads the environment too

import_serve()
with suppress(ImportError):
    # A program that has imported Ray before has decided that already; see above.
    from ray._private import auto_init_hook

    auto_init_hook.enable_auto_connect = False
