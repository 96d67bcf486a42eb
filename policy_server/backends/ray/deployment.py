"""The policy as an application of Ray Serve: deployed once, shared by all who serve the same."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from policy_server.backends.ray.cluster import joined_ray
from policy_server.backends.ray.direct_calls import DirectCalls
from policy_server.backends.ray.own_ray import RAY_METRICS, REPLICA_ENVIRONMENT
from policy_server.backends.ray.replicas import PolicyReplica, RayBackend, cause_of
from policy_server.engine.cache import digest_of
from policy_server.engine.network import CompiledPolicy
from policy_server.errors import NotReadyError
from policy_server.formats.compiling_process import find_compiled
from policy_server.formats.model_files import Model, read_model_files
from policy_server.metrics import PolicyMetrics
from policy_server.policy import PolicySignature
from policy_server.schema import ServerSchema
from policy_server.settings import Settings
from policy_server.telemetry import adopt_loggers

__all__ = ["open_ray_backend"]

logger = logging.getLogger(__name__)

_DEPLOYMENT = "policy"
_HEALTH_CHECK_PERIOD_S = 1.0
_STATUS_PERIOD_S = 1.0
# Two calls are in flight from each web process; the rest leaves room for more of those.
_MAX_ONGOING_CALLS = 64
_QUIET = LoggingConfig(enable_access_log=False, log_level="WARNING")


@asynccontextmanager
async def open_ray_backend(
    model: Model, schema: ServerSchema, settings: Settings, metrics: PolicyMetrics
) -> AsyncIterator[RayBackend]:
    """Start Ray on this machine, or join a cluster, and deploy the policy.

    Args:
        model: the policy's file.
        schema: what schema.yaml says.
        settings: ports, replicas and deadlines; `RAY_ADDRESS` names a cluster to join.
        metrics: where lost replicas are counted.

    Yields:
        The backend, once a replica has answered.

    Raises:
        ModelError: if the file can't give a policy.
        SchemaError: if schema.yaml disagrees with the policy.
        SettingsError: if Ray can't start with these settings.
        NotReadyError: if no replica is ready in time.
    """
    deployed = PolicyDeployment(model, schema, settings)
    async with joined_ray(settings, deployed) as places, deployed.direct_calls() as direct:
        yield RayBackend(
            deployed.handle,
            deployed.signature,
            places,
            metrics,
            direct=direct,
            timeout_s=settings.request_timeout_s,
        )


class PolicyDeployment:
    """One policy on one Ray.

    Attributes:
        handle: Ray Serve's handle of the replicas; there once it is deployed.
        signature: what they serve; likewise.
    """

    handle: Any
    signature: PolicySignature

    def __init__(self, model: Model, schema: ServerSchema, settings: Settings) -> None:
        """Keep the parts; nothing is started."""
        self._model = model
        self._schema = schema
        self._settings = settings
        # Web processes that serve the same share its replicas.
        self._name = _application_name(model, schema, settings)

    async def prepare(self) -> CompiledPolicy | None:
        """Return the policy as NumPy computes it; None where TensorFlow has to."""
        return await find_compiled(self._model, self._schema, self._settings)

    async def deploy(self, prepared: Awaitable[CompiledPolicy | None]) -> None:
        """Deploy the policy unless it runs already, and wait until a replica answers.

        Raises:
            ModelError: if the file can't give a policy.
            SchemaError: if schema.yaml disagrees with the policy.
            NotReadyError: if no replica is ready in time.
        """
        started = time.monotonic()
        if not await asyncio.to_thread(self._is_running):
            await asyncio.to_thread(self._run, await prepared)
        self.handle = await asyncio.to_thread(serve.get_app_handle, self._name)
        # In this loop, and not in a thread that every call would be handed to and back.
        self.handle._init(_run_router_in_separate_loop=False)  # noqa: SLF001 -- Ray's own way to say so
        self.signature = await self._ask_signature()
        seconds = round(time.monotonic() - started, 1)
        logger.info("policy_deployed", extra={"application": self._name, "seconds": seconds})

    @asynccontextmanager
    async def direct_calls(self) -> AsyncIterator[DirectCalls | None]:
        """Connect to the replicas while the block runs; gives None where Ray Serve scales them.

        It counts the calls that go its way, and starts and ends replicas by that.
        """
        settings = self._settings
        if not settings.direct_calls or settings.max_replicas > settings.num_replicas:
            yield None
            return
        address = self.handle.options(method_name="address", _by_reference=False)
        find = partial(_ask, address)
        async with DirectCalls(find, replicas=settings.num_replicas) as direct:
            yield direct

    def _is_running(self) -> bool:
        """Start Ray Serve unless it runs, and return whether the policy does."""
        serve.start(proxy_location="Disabled", logging_config=_QUIET)
        adopt_loggers()
        return self._status() == "RUNNING"

    def _status(self) -> str:
        known = serve.status().applications.get(self._name)
        return "" if known is None else str(known.status.value)

    def _run(self, compiled: CompiledPolicy | None) -> None:
        settings = self._settings
        # The Ray that this server starts has it already.
        is_joined = "RAY_ADDRESS" in os.environ
        most = max(settings.max_replicas, settings.num_replicas)
        scaling: dict[str, Any] = {"num_replicas": settings.num_replicas}
        if most > settings.num_replicas:
            bounds = {"min_replicas": settings.num_replicas, "max_replicas": most}
            scaling = {"autoscaling_config": {**bounds, "target_ongoing_requests": 2}}
        deployment = serve.deployment(
            name=_DEPLOYMENT,
            ray_actor_options={
                "num_cpus": settings.replica_cpus,
                **({"runtime_env": {"env_vars": REPLICA_ENVIRONMENT}} if is_joined else {}),
            },
            max_ongoing_requests=_MAX_ONGOING_CALLS,
            health_check_period_s=_HEALTH_CHECK_PERIOD_S,
            graceful_shutdown_timeout_s=settings.request_timeout_s,
            logging_config=_QUIET,
            **scaling,
        )(PolicyReplica)
        files = {} if compiled is not None else read_model_files(self._model.folder)
        target = serve.RunTarget(
            deployment.bind(self._schema.policy_part(), compiled, files),
            name=self._name,
            route_prefix=None,
        )
        # Its own wait asks once a second; whoever asks the replicas is answered by the first.
        serve.run_many([target], wait_for_applications_running=False)

    async def _ask_signature(self) -> PolicySignature:
        describe = self.handle.options(method_name="describe", _by_reference=False)
        watching = asyncio.create_task(self._watch())
        answering = asyncio.create_task(_ask(describe))
        try:
            async with asyncio.timeout(self._settings.start_timeout_s):
                await asyncio.wait([watching, answering], return_when=asyncio.FIRST_COMPLETED)
                signature: PolicySignature = await (answering if answering.done() else watching)
        except RayTaskError as error:
            raise cause_of(error) from error
        except (RayError, RayServeException) as error:
            raise _not_deployed(error) from error
        except TimeoutError as error:
            raise NotReadyError(
                f"no replica was ready within {self._settings.start_timeout_s:g} s; "
                "see Ray's logs, or raise POLICY_SERVER_START_TIMEOUT_S"
            ) from error
        finally:
            watching.cancel()
            answering.cancel()
            await asyncio.gather(watching, answering, return_exceptions=True)
        return signature

    async def _watch(self) -> PolicySignature:
        """Raise an error when Ray Serve gives the deployment up."""
        while await asyncio.to_thread(self._status) != "DEPLOY_FAILED":
            await asyncio.sleep(_STATUS_PERIOD_S)
        message = serve.status().applications[self._name].message
        raise _not_deployed(message)


async def _ask(method: Any) -> Any:  # noqa: ANN401 -- Ray's handle is generic
    return await method.remote()


def _not_deployed(reason: object) -> NotReadyError:
    return NotReadyError(f"ray: could not deploy the policy: {' '.join(str(reason).split())}")


def _application_name(model: Model, schema: ServerSchema, settings: Settings) -> str:
    """Return one name for one policy: web processes that serve the same share its replicas."""
    replicas = (
        settings.num_replicas,
        settings.max_replicas,
        settings.replica_cpus,
        settings.engine,
    )
    contents = f"{digest_of(model.digest, schema)} {replicas}"
    return f"policy-{hashlib.sha256(contents.encode()).hexdigest()[:12]}"


@asynccontextmanager
async def open_ray_cluster(settings: Settings) -> AsyncIterator[RayCluster]:
    """Open the backends of policies that Ray Serve deploys; see `Backends`."""
    yield RayCluster(settings)


class RayCluster:
    """Deployments of policy versions; see `Backends`."""

    def __init__(self, settings: Settings) -> None:
        """Deploy by these settings."""
        self._settings = settings
        self.addresses: dict[str, str] = {}
        self.metrics_url: str | None = None

    @asynccontextmanager
    async def open(
        self, model: Model, schema: ServerSchema, metrics: PolicyMetrics
    ) -> AsyncIterator[RayBackend]:
        """Deploy a policy version; see `Backends.open`."""
        async with open_ray_backend(model, schema, self._settings, metrics) as backend:
            self.addresses = dict(backend.places)
            self.metrics_url = self.addresses.pop(RAY_METRICS, None)
            yield backend
