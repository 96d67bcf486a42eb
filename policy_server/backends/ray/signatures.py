"""The signature of a deployed policy, by its first replica that can be reached, or why none can.

Replicas list it with their addresses. So a web process that calls its replicas straight has no
router of Ray Serve's, which costs it some 0.4 MB for each version that is ever deployed.
"""

from __future__ import annotations

import asyncio
import logging

from ray.exceptions import RayError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException

from policy_server.backends.ray.applications import PRESENT, Application, missing_room
from policy_server.backends.ray.direct_calls import DirectCalls
from policy_server.backends.ray.ray_calls import CallRay
from policy_server.backends.ray.serve_handle import Handle
from policy_server.errors import NotReadyError, PolicyServerError
from policy_server.policy import PolicySignature

__all__ = ["ApplicationGoneError", "find_signature"]

logger = logging.getLogger(__name__)

_STATUS_PERIOD_S = 1.0
_HEARING_PERIOD_S = 0.05


class ApplicationGoneError(Exception):
    """The application was removed while its replicas came up."""


async def find_signature(
    application: Application,
    handle: Handle,
    calls: DirectCalls | None,
    *,
    call_ray: CallRay,
) -> PolicySignature:
    """Return the policy's signature once a replica takes calls.

    Args:
        application: one that has been deployed, and may be coming up still.
        handle: the application's.
        calls: those by connections to the replicas; None where Ray Serve calls them.
        call_ray: calls a function that uses Ray, in a thread.

    Raises:
        PolicyServerError: as a replica that can't load the policy says.
        NotReadyError: if Ray Serve gives the application up, or no replica is ready in time.
        ApplicationGoneError: if it is removed meanwhile.
    """
    watching = asyncio.create_task(_watch(application, handle, call_ray))
    answering = asyncio.create_task(calls.described() if calls else _describe(handle))
    try:
        async with asyncio.timeout(application.settings.start_timeout_s):
            await asyncio.wait([watching, answering], return_when=asyncio.FIRST_COMPLETED)
            return await (answering if answering.done() else watching)
    except PolicyServerError as error:
        if hasattr(error, "__notes__"):
            # The replica's own traceback, which is on another machine otherwise.
            logger.exception("policy_not_loaded")
        raise
    except (RayError, RayServeException) as error:
        raise _not_deployed(error) from error
    except TimeoutError as error:
        raise NotReadyError(await _late(application, call_ray)) from error
    finally:
        watching.cancel()
        answering.cancel()
        await asyncio.gather(watching, answering, return_exceptions=True)


async def _describe(handle: Handle) -> PolicySignature:
    """Return the signature; a handle hears late of an application that went and came again."""
    while True:
        try:
            signature: PolicySignature = await handle.call("describe")
        except DeploymentUnavailableError:
            await asyncio.sleep(_HEARING_PERIOD_S)
        else:
            return signature


async def _watch(application: Application, handle: Handle, call_ray: CallRay) -> PolicySignature:
    """Raise an error when Ray Serve gives the application up.

    Where it says twice that replicas run, and none is connected yet, Ray Serve is asked: they may
    take no calls but its, or their list can't be read.
    """
    was_running = False
    while True:
        state, message = await call_ray(application.state)
        if state == "DEPLOY_FAILED":
            raise _not_deployed(message)
        if state not in PRESENT:
            raise ApplicationGoneError
        if was_running and state == "RUNNING":
            return await _describe(handle)
        was_running = state == "RUNNING"
        await asyncio.sleep(_STATUS_PERIOD_S)


async def _late(application: Application, call_ray: CallRay) -> str:
    settings = application.settings
    late = f"no replica was ready within {settings.start_timeout_s:g} s"
    missing = ""
    if application.is_crowded:
        missing = await call_ray(missing_room, application.version.replicas.cpus)
    if missing:
        return f"{late}: {missing}"
    return f"{late}; see Ray's logs, or raise POLICY_SERVER_START_TIMEOUT_S"


def _not_deployed(reason: object) -> NotReadyError:
    return NotReadyError(f"ray: could not deploy the policy: {' '.join(str(reason).split())}")
