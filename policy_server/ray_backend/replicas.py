"""Ray Serve replicas of the policy, and the backend that calls them.

Ray's HTTP proxies stay off: uvicorn is the only HTTP server, and one call of a deployment handle
carries a whole batch.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from policy_server.errors import (
    NotReadyError,
    OverloadedError,
    PolicyFailedError,
    PolicyServerError,
)
from policy_server.model_store import read_model_files
from policy_server.policy import (
    Float32Array,
    Float64Array,
    Int64Array,
    PolicyOutputs,
    PolicySignature,
)
from policy_server.ray_backend.session import joined_ray
from policy_server.schema import ServerSchema
from policy_server.settings import Settings

__all__ = ["PolicyReplica", "RayBackend", "open_ray_backend"]

logger = logging.getLogger(__name__)

_DEPLOYMENT = "policy"
_READY_TIMEOUT_S = 2.0
_HEALTH_CHECK_PERIOD_S = 1.0
_MOST_TRIES = 3
# Two calls are in flight from each web process; the rest leaves room for more of those.
_MAX_ONGOING_CALLS = 64


class PolicyReplica:
    """The policy in a process of its own.

    A replica that can't load its policy says so, instead of being restarted for ever.
    """

    def __init__(self, files: Mapping[str, bytes], schema: ServerSchema) -> None:
        """Load the policy.

        Args:
            files: the SavedModel's files by relative path: a replica may run on a machine without
                them.
            schema: what schema.yaml says.
        """
        self._policy = None
        self._failure: PolicyServerError | None = None
        with tempfile.TemporaryDirectory(prefix="policy-") as folder:
            for name, content in files.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            try:
                # TensorFlow is imported by replicas only.
                from policy_server.saved_model import load_policy

                self._policy = load_policy(Path(folder), schema)
            except PolicyServerError as error:
                self._failure = error
            except Exception as error:
                logger.exception("policy_not_loaded")
                self._failure = PolicyFailedError(
                    f"the policy can't be loaded: {type(error).__name__}: {error}"
                )

    async def describe(self) -> PolicySignature:
        """Return the policy's signature.

        Raises:
            PolicyServerError: why the policy could not be loaded.
        """
        signature: PolicySignature = self._loaded().signature
        return signature

    async def infer(
        self,
        observations: NDArray[np.floating[Any]],
        is_deterministic: NDArray[np.bool_],
        seeds: Int64Array,
    ) -> PolicyOutputs:
        """Answer B observations; see `PolicyBackend.infer`."""
        outputs: PolicyOutputs = self._loaded().infer(
            observations, is_deterministic=is_deterministic, seeds=seeds
        )
        return outputs

    def _loaded(self) -> Any:  # noqa: ANN401 -- naming the type would import TensorFlow here
        if self._policy is None:
            raise self._failure or NotReadyError("the policy is not loaded")
        return self._policy


class RayBackend:
    """A `PolicyBackend` over the replicas of one Ray Serve deployment."""

    def __init__(self, handle: Any, signature: PolicySignature, *, timeout_s: float) -> None:  # noqa: ANN401 -- Ray's handle is generic
        """Keep the handle.

        Args:
            handle: Ray Serve's handle of the deployment.
            signature: what the replicas serve.
            timeout_s: the longest that a call may take, in seconds.
        """
        self._infer = handle.options(method_name="infer", _by_reference=False)
        self._describe = handle.options(method_name="describe", _by_reference=False)
        self._signature = signature
        self._timeout_s = timeout_s

    @property
    def signature(self) -> PolicySignature:
        """Return the signature of the policy that is served."""
        return self._signature

    async def infer(
        self,
        observations: Float32Array | Float64Array,
        *,
        is_deterministic: NDArray[np.bool_],
        seeds: Int64Array,
    ) -> PolicyOutputs:
        """Answer B observations with one call of one replica; see `PolicyBackend.infer`.

        A replica that dies meanwhile is no error: a prediction has no side effect, so another one
        is asked.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                for _ in range(_MOST_TRIES - 1):
                    try:
                        return await self._call(observations, is_deterministic, seeds)
                    except RayError as error:
                        logger.warning("replica_lost", extra={"reason": type(error).__name__})
                return await self._call(observations, is_deterministic, seeds)
        except TimeoutError as error:
            raise OverloadedError(
                f"no replica answered within {self._timeout_s:g} s; try again in a second"
            ) from error
        except (RayError, RayServeException) as error:
            raise NotReadyError(
                "no replica of the policy is alive; try again in a few seconds"
            ) from error

    async def is_ready(self) -> bool:
        """Return whether an observation would be answered now."""
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                await self._describe.remote()
        except (TimeoutError, RayError, RayServeException, PolicyServerError):
            return False
        return True

    async def _call(
        self,
        observations: Float32Array | Float64Array,
        is_deterministic: NDArray[np.bool_],
        seeds: Int64Array,
    ) -> PolicyOutputs:
        try:
            outputs: PolicyOutputs = await self._infer.remote(observations, is_deterministic, seeds)
        except RayTaskError as error:
            raise _cause(error) from error
        return outputs


def _cause(error: RayTaskError) -> PolicyServerError:
    if isinstance(error.cause, PolicyServerError):
        return error.cause
    return PolicyFailedError(
        "the policy failed on this observation; the server's log has the reason"
    )


@asynccontextmanager
async def open_ray_backend(
    folder: Path, schema: ServerSchema, settings: Settings
) -> AsyncIterator[RayBackend]:
    """Start Ray on this machine, or join a cluster, and deploy the policy.

    Args:
        folder: holds saved_model.pb.
        schema: what schema.yaml says.
        settings: ports, replicas and deadlines; `RAY_ADDRESS` names a cluster to join.

    Yields:
        The backend, once a replica has answered its warm-up.

    Raises:
        ModelError: if the file can't give a policy.
        SchemaError: if schema.yaml disagrees with the policy.
        SettingsError: if Ray can't start with these settings.
        NotReadyError: if no replica is ready in time.
    """
    files = read_model_files(folder)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(
            joined_ray(settings, lambda: _deploy(files, schema, settings))
        )
        handle = serve.get_app_handle(_application_name(files, schema, settings))
        yield RayBackend(
            handle, await _signature(handle, settings), timeout_s=settings.request_timeout_s
        )


async def _signature(handle: Any, settings: Settings) -> PolicySignature:  # noqa: ANN401 -- Ray's handle is generic
    try:
        async with asyncio.timeout(settings.start_timeout_s):
            signature: PolicySignature = await handle.options(
                method_name="describe", _by_reference=False
            ).remote()
    except RayTaskError as error:
        raise _cause(error) from error
    except TimeoutError as error:
        raise NotReadyError(
            f"no replica was ready within {settings.start_timeout_s:g} s; "
            "see Ray's logs, or raise POLICY_SERVER_START_TIMEOUT_S"
        ) from error
    return signature


def _application_name(files: Mapping[str, bytes], schema: ServerSchema, settings: Settings) -> str:
    """Return one name for one policy: web processes that serve the same share its replicas."""
    digest = hashlib.sha256(
        repr((schema, settings.num_replicas, settings.max_replicas, settings.replica_cpus)).encode()
    )
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + files[name])
    return f"policy-{digest.hexdigest()[:12]}"


def _deploy(files: Mapping[str, bytes], schema: ServerSchema, settings: Settings) -> None:
    """Deploy the policy unless it runs already."""
    name = _application_name(files, schema, settings)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")
    serve.start(proxy_location="Disabled", logging_config=quiet)
    running = serve.status().applications.get(name)
    if running is not None and running.status == "RUNNING":
        return
    most = max(settings.max_replicas, settings.num_replicas)
    scaling: dict[str, Any] = {"num_replicas": settings.num_replicas}
    if most > settings.num_replicas:
        bounds = {"min_replicas": settings.num_replicas, "max_replicas": most}
        scaling = {"autoscaling_config": {**bounds, "target_ongoing_requests": 2}}
    deployment = serve.deployment(
        name=_DEPLOYMENT,
        ray_actor_options={
            "num_cpus": settings.replica_cpus,
            "num_gpus": settings.replica_gpus,
            "runtime_env": {
                "env_vars": {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
            },
        },
        max_ongoing_requests=_MAX_ONGOING_CALLS,
        health_check_period_s=_HEALTH_CHECK_PERIOD_S,
        graceful_shutdown_timeout_s=settings.request_timeout_s,
        logging_config=quiet,
        **scaling,
    )(PolicyReplica)
    started = time.monotonic()
    try:
        serve.run(deployment.bind(dict(files), schema), name=name, route_prefix=None)
    except RuntimeError as error:
        raise NotReadyError(
            f"ray: could not deploy the policy: {' '.join(str(error).split())}"
        ) from error
    logger.info(
        "policy_deployed",
        extra={"application": name, "seconds": round(time.monotonic() - started, 1)},
    )
