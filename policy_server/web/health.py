"""The health routes: whether the process lives, and whether it would answer an observation now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from fastapi import APIRouter

from policy_server.errors import NotReadyError
from policy_server.serving import PolicyRegistry

__all__ = ["HealthCheck", "health_checks", "health_routes"]

HealthCheck = Callable[[], Awaitable[str]]
"""Returns the JSON text of a healthy server's answer, or raises `NotReadyError`."""

_SUMMARIES = {
    "/": "Say that the server runs",
    "/livez": "Say that the process is alive",
    "/readyz": "Say whether an observation would be answered now",
}


def health_checks(registry: PolicyRegistry) -> Mapping[str, HealthCheck]:
    """Return the check behind each health route, by its address.

    Args:
        registry: the policies, all of which have to be ready.
    """

    async def root() -> str:
        return "ok"

    async def alive() -> str:
        if (name := registry.lost()) is not None:
            raise NotReadyError(
                f"each thread of the policy {name!r} hangs, for more than a minute by now; start "
                "the server anew"
            )
        return "ok"

    async def ready() -> str:
        if registry.is_ending:
            raise NotReadyError("the server is ending; ask another one")
        if not await registry.is_ready():
            raise NotReadyError("the policy is not ready; try again in a few seconds")
        # The route asks for no key, and the reasons name paths and addresses.
        return "; ".join(["ok", *(f"{name} is not served" for name in registry.failures)])

    return {"/": root, "/livez": alive, "/readyz": ready}


def health_routes(checks: Mapping[str, HealthCheck]) -> APIRouter:
    """Return the health routes.

    Args:
        checks: as `health_checks` gives them.
    """
    router = APIRouter(tags=["Health"])
    for path, check in checks.items():
        router.add_api_route(
            path, check, operation_id=path.strip("/") or "root", summary=_SUMMARIES[path]
        )
    # Load balancers ask so.
    for path, check in checks.items():
        router.add_api_route(path, check, methods=["HEAD"], include_in_schema=False)
    return router
