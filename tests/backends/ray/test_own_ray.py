"""The Ray that a server starts for itself: limits with which the server outlives it."""

from __future__ import annotations

import os

from ray.serve._private.config import DeploymentConfig

from policy_server.backends.ray.own_ray import OwnRay
from policy_server.settings import Settings

_YEAR_S = 365 * 24 * 3600


def limit_of(name: str, *, by_itself: int) -> int:
    """Return a limit of a server's own Ray, else the one that Ray has by itself."""
    options = OwnRay(Settings(), server=os.getpid())._options()  # noqa: SLF001 -- Ray tells it nowhere
    limit: int = options["_system_config"].get(name, by_itself)
    return limit


def test_no_argument_of_a_deploy_goes_by_the_object_store_of_the_raylet() -> None:
    # Ray's library ends a process that reaches for the store of a raylet that has died.
    sent = DeploymentConfig().to_proto_bytes()

    assert 2 * len(sent) < limit_of("max_direct_call_object_size", by_itself=100 * 1024)


def test_call_of_a_dead_head_process_never_ends_the_server() -> None:
    assert limit_of("gcs_rpc_server_reconnect_timeout_s", by_itself=60) > _YEAR_S
