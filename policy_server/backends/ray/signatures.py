"""The signature of a deployed policy: the first answer of its replicas, or why there is none."""

from __future__ import annotations

import asyncio
import logging

from ray.exceptions import RayError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException

from policy_server.backends.ray.applications import Application, missing_room
from policy_server.backends.ray.backend import Handle
from policy_server.errors import NotReadyError, PolicyServerError
from policy_server.policy import PolicySignature

__all__ = ["find_signature"]

logger = logging.getLogger(__name__)

_STATUS_PERIOD_S = 1.0
_HEARING_PERIOD_S = 0.05


async def find_signature(application: Application, handle: Handle) -> PolicySignature:
    """Return the policy's signature by the first replica that answers.

    Args:
        application: one that has been deployed, and may be coming up still.
        handle: the application's.

    Raises:
        PolicyServerError: as a replica that can't load the policy says.
        NotReadyError: if Ray Serve gives the application up, or no replica is ready in time.
    """
    watching = asyncio.create_task(_watch(application))
    answering = asyncio.create_task(_describe(handle))
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
        raise NotReadyError(await _late(application)) from error
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


async def _watch(application: Application) -> PolicySignature:
    """Raise an error when Ray Serve gives the application up."""
    while True:
        state, message = await asyncio.to_thread(application.state)
        if state == "DEPLOY_FAILED":
            raise _not_deployed(message)
        await asyncio.sleep(_STATUS_PERIOD_S)


async def _late(application: Application) -> str:
    settings = application.settings
    late = f"no replica was ready within {settings.start_timeout_s:g} s"
    missing = ""
    if application.is_crowded:
        missing = await asyncio.to_thread(missing_room, application.version.replicas.cpus)
    if missing:
        return f"{late}: {missing}"
    return f"{late}; see Ray's logs, or raise POLICY_SERVER_START_TIMEOUT_S"


def _not_deployed(reason: object) -> NotReadyError:
    return NotReadyError(f"ray: could not deploy the policy: {' '.join(str(reason).split())}")
