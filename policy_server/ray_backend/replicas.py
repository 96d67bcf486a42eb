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
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from policy_server.compiled_cache import digest_of, read_compiled, write_compiled
from policy_server.errors import (
    NotReadyError,
    OverloadedError,
    PolicyFailedError,
    PolicyServerError,
)
from policy_server.metrics import Metrics
from policy_server.model_store import read_model_files
from policy_server.numpy_network import CompiledPolicy, NetworkPolicy
from policy_server.policy import (
    Float32Array,
    Float64Array,
    Int64Array,
    PolicyOutputs,
    PolicySignature,
)
from policy_server.ray_backend.session import joined_ray
from policy_server.schema import ServerSchema
from policy_server.settings import Engine, Settings

__all__ = ["PolicyReplica", "RayBackend", "open_ray_backend"]

logger = logging.getLogger(__name__)

_DEPLOYMENT = "policy"
_READY_TIMEOUT_S = 2.0
_HEALTH_CHECK_PERIOD_S = 1.0
_MOST_TRIES = 3
# Two calls are in flight from each web process; the rest leaves room for more of those.
_MAX_ONGOING_CALLS = 64
# One thread a replica: a policy is small, and replicas are many.
_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


class PolicyReplica:
    """The policy in a process of its own.

    A replica that can't load its policy says so, instead of being restarted for ever.
    """

    def __init__(
        self,
        files: Mapping[str, bytes],
        schema: ServerSchema,
        engine: Engine = "auto",
        compiled: CompiledPolicy | None = None,
    ) -> None:
        """Load the policy.

        Args:
            files: the SavedModel's files by relative path: a replica may run on a machine without
                them.
            schema: what schema.yaml says.
            engine: what computes the policy.
            compiled: what an earlier start proved of the same files; then TensorFlow is not needed.
        """
        self._policy: Any = None if compiled is None else NetworkPolicy(compiled)
        self._failure: PolicyServerError | None = None
        if compiled is None:
            self._load(files, schema, engine)

    def _load(self, files: Mapping[str, bytes], schema: ServerSchema, engine: Engine) -> None:
        with tempfile.TemporaryDirectory(prefix="policy-") as folder:
            for name, content in files.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            try:
                # TensorFlow is imported by replicas only.
                from policy_server.saved_model import load_policy

                self._policy = load_policy(Path(folder), schema, engine=engine)
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

    async def compiled(self) -> CompiledPolicy | None:
        """Return the compiled policy, to be kept for the next start; None where there is none."""
        compiled: CompiledPolicy | None = self._loaded().compiled
        return compiled

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

    def __init__(
        self,
        handle: Any,  # noqa: ANN401 -- Ray's handle is generic
        signature: PolicySignature,
        places: Mapping[str, str],
        metrics: Metrics,
        *,
        timeout_s: float,
    ) -> None:
        """Keep the handle.

        Args:
            handle: Ray Serve's handle of the deployment.
            signature: what the replicas serve.
            places: where people find what Ray serves, by name.
            metrics: where lost replicas are counted.
            timeout_s: the longest that a call may take, in seconds.
        """
        self.places = places
        self._metrics = metrics
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
                        self._metrics.count_replica_restart()
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
    folder: Path, schema: ServerSchema, settings: Settings, metrics: Metrics
) -> AsyncIterator[RayBackend]:
    """Start Ray on this machine, or join a cluster, and deploy the policy.

    Args:
        folder: holds saved_model.pb.
        schema: what schema.yaml says.
        settings: ports, replicas and deadlines; `RAY_ADDRESS` names a cluster to join.
        metrics: where lost replicas are counted.

    Yields:
        The backend, once a replica has answered its warm-up.

    Raises:
        ModelError: if the file can't give a policy.
        SchemaError: if schema.yaml disagrees with the policy.
        SettingsError: if Ray can't start with these settings.
        NotReadyError: if no replica is ready in time.
    """
    files = read_model_files(folder)
    digest = digest_of(files, schema)
    known = None if settings.engine == "tensorflow" else read_compiled(folder, digest)
    name = _application_name(digest, settings)
    replica = partial(
        serve.Deployment.bind, files=files, schema=schema, engine=settings.engine, compiled=known
    )
    async with joined_ray(settings, lambda: _deploy(name, replica, settings)) as places:
        handle = serve.get_app_handle(name)
        signature = await _signature(handle, settings)
        if known is None and signature.engine == "numpy":
            compiled = await handle.options(method_name="compiled").remote()
            write_compiled(folder, digest, compiled)
        yield RayBackend(handle, signature, places, metrics, timeout_s=settings.request_timeout_s)


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


def _application_name(digest: str, settings: Settings) -> str:
    """Return one name for one policy: web processes that serve the same share its replicas."""
    replicas = (
        settings.num_replicas,
        settings.max_replicas,
        settings.replica_cpus,
        settings.replica_gpus,
        settings.engine,
    )
    return f"policy-{hashlib.sha256(f'{digest} {replicas}'.encode()).hexdigest()[:12]}"


def _deploy(
    name: str, bind: Callable[[serve.Deployment], serve.Application], settings: Settings
) -> None:
    """Deploy the policy unless it runs already."""
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
            "runtime_env": {"env_vars": _ENVIRONMENT},
        },
        max_ongoing_requests=_MAX_ONGOING_CALLS,
        health_check_period_s=_HEALTH_CHECK_PERIOD_S,
        graceful_shutdown_timeout_s=settings.request_timeout_s,
        logging_config=quiet,
        **scaling,
    )(PolicyReplica)
    started = time.monotonic()
    try:
        serve.run(bind(deployment), name=name, route_prefix=None)
    except RuntimeError as error:
        raise NotReadyError(
            f"ray: could not deploy the policy: {' '.join(str(error).split())}"
        ) from error
    logger.info(
        "policy_deployed",
        extra={"application": name, "seconds": round(time.monotonic() - started, 1)},
    )
