"""A policy version as an application of Ray Serve: its name, its replicas, its state."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from policy_server.backends.call_limit import SHARE_OF_DEADLINE
from policy_server.backends.ray.ledger import PolicyFiles
from policy_server.backends.ray.own_ray import REPLICA_ENVIRONMENT
from policy_server.backends.ray.replica_limits import ReplicaLimits
from policy_server.backends.ray.replica_list import remove_addresses
from policy_server.backends.ray.replicas import PolicyReplica
from policy_server.backends.replica_counts import ReplicaCounts
from policy_server.engine.cache import Outcome, digest_of, encode
from policy_server.engine.network import CompiledPolicy
from policy_server.formats.model_files import Model, files_of_model
from policy_server.schema import ServerSchema
from policy_server.settings import Settings
from policy_server.telemetry import adopt_loggers

__all__ = [
    "PRESENT",
    "Application",
    "VersionDescription",
    "application_names",
    "missing_room",
    "new_handle",
    "remove_application",
    "start_serve",
]

_DEPLOYMENT = "policy"
_CPU = "CPU"
_HEALTH_CHECK_PERIOD_S = 1.0
# Two calls are in flight from each web process; the rest leaves room for more of those.
_MAX_ONGOING_CALLS = 64
_CALLS_OF_A_REPLICA = 2
_QUIET = LoggingConfig(enable_access_log=False, log_level="WARNING")
# An application that is coming up, or gets a new replica, counts: deploying it again restarts it.
PRESENT = ("NOT_STARTED", "DEPLOYING", "RUNNING", "UNHEALTHY")
_UNDISTURBED_TRIES, _PAUSE_S = 50, 0.002
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class VersionDescription:
    """A policy version that is to be deployed.

    Attributes:
        name: the policy's name.
        model: the policy's file.
        schema: the contents of schema.yaml.
        replicas: how many compute it.
    """

    name: str
    model: Model
    schema: ServerSchema
    replicas: ReplicaCounts


@dataclass(frozen=True)
class Application:
    """A policy version as Ray Serve runs it.

    Server processes that serve the same version with as many replicas have one name for it, and so
    share its replicas.

    Attributes:
        version: the policy version.
        settings: the engine, the longest time of a request, and the memory of calls.
        is_crowded: whether replicas have to ask Ray for CPUs, because other programs use it too.
    """

    version: VersionDescription
    settings: Settings
    is_crowded: bool

    @property
    def name(self) -> str:
        """Return the application's name, such as `policy-default-1f2e3d4c5b6a`."""
        counts = self.version.replicas
        replicas = (counts.fewest, counts.most, counts.cpus)
        settings = (self.settings.engine, self.settings.max_call_memory_bytes)
        contents = f"{self.digest} {replicas} {settings}"
        digest = hashlib.sha256(contents.encode()).hexdigest()
        return f"policy-{self.version.name}-{digest[:12]}"

    @property
    def digest(self) -> str:
        """Return the digest of all that the compiled policy is made from."""
        return digest_of(self.version.model.digest, self.version.schema)

    def is_present(self) -> bool:
        """Return whether the application runs or is coming up."""
        return self.state()[0] in PRESENT

    def state(self) -> tuple[str, str]:
        """Return Ray Serve's word for the application's state, and its message about it."""
        known = _undisturbed(serve.status).applications.get(self.name)
        return ("", "") if known is None else (str(known.status.value), known.message)

    def files(self, compiled: CompiledPolicy | None) -> Mapping[str, Path | bytes]:
        """Return the files that a replica loads the policy from, by name.

        Args:
            compiled: the policy as NumPy computes it; None where TensorFlow has to.
        """
        if compiled is not None:
            return {PolicyReplica.COMPILED_FILE: encode(Outcome(compiled), self.digest)}
        return dict(files_of_model(self.version.model.folder))

    def run(self, files: PolicyFiles, *, socket_folder: Path | None) -> None:
        """Have Ray Serve start the replicas; they answer later.

        Args:
            files: the files of `files`, stored for the replicas.
            socket_folder: the folder for the replicas' sockets; None for ports.
        """
        _undisturbed(lambda: self._run(files, socket_folder))

    def _run(self, files: PolicyFiles, socket_folder: Path | None) -> None:
        bound = self._deployment().bind(
            files,
            self.version.schema.policy_part(),
            self.digest,
            # Ray Serve picks among replicas that it adds by itself: nobody connects to them.
            application="" if self.version.replicas.is_scaled else self.name,
            socket_folder=socket_folder,
            limits=ReplicaLimits(
                SHARE_OF_DEADLINE * self.settings.request_timeout_s,
                self.settings.max_call_memory_bytes,
            ),
        )
        target = serve.RunTarget(bound, name=self.name, route_prefix=None)
        # Ray Serve's own wait asks once a second; a call is answered as soon as a replica is up.
        serve.run_many([target], wait_for_applications_running=False)

    def _deployment(self) -> serve.Deployment:
        counts = self.version.replicas
        scaling: dict[str, Any] = {"num_replicas": counts.fewest}
        if counts.is_scaled:
            bounds = {"min_replicas": counts.fewest, "max_replicas": counts.most}
            load = {"target_ongoing_requests": _CALLS_OF_A_REPLICA}
            scaling = {"autoscaling_config": {**bounds, **load}}
        describe = serve.deployment(
            name=_DEPLOYMENT,
            ray_actor_options=self._needs(),
            max_ongoing_requests=_MAX_ONGOING_CALLS,
            health_check_period_s=_HEALTH_CHECK_PERIOD_S,
            graceful_shutdown_timeout_s=self.settings.request_timeout_s,
            logging_config=_QUIET,
            **scaling,
        )
        return describe(PolicyReplica)

    def _needs(self) -> dict[str, Any]:
        if not self.is_crowded:
            return {"num_cpus": 0}
        # A Ray that the server starts has the environment already.
        environment = {"env_vars": REPLICA_ENVIRONMENT}
        return {"num_cpus": self.version.replicas.cpus, "runtime_env": environment}


def _undisturbed(call: Callable[[], _Found]) -> _Found:
    """Call Ray Serve, and again where another thread's call has come in between.

    Ray Serve, as it describes deployments, changes for a moment how all threads pickle a module of
    its own, and fails where another thread has taken that back. A lock would be held by a call that
    waits for a Ray that has died.

    Args:
        call: uses Ray Serve.
    """
    for tries_left in reversed(range(_UNDISTURBED_TRIES)):
        try:
            return call()
        except ValueError as error:
            if not tries_left or "pickle by value" not in str(error):
                raise
            time.sleep(_PAUSE_S)
    raise AssertionError("the last try has returned or raised")


def start_serve() -> None:
    """Start Ray Serve, unless it runs, without an HTTP server."""
    serve.start(proxy_location="Disabled", logging_config=_QUIET)
    adopt_loggers()


def application_names() -> list[str]:
    """Return the names of the applications that Ray Serve has."""
    return list(_undisturbed(serve.status).applications)


def running_replicas() -> dict[str, int]:
    """Return how many replicas of each application Ray Serve finds healthy."""
    return {
        name: sum(
            count
            for deployment in status.deployments.values()
            for state, count in deployment.replica_states.items()
            # A text, or an enumeration of texts.
            if state == "RUNNING"
        )
        for name, status in _undisturbed(serve.status).applications.items()
    }


def new_handle(name: str) -> DeploymentHandle[Any]:
    """Return a handle of an application that has been deployed.

    Those of `serve.get_app_handle` Ray Serve keeps for good, each with the classes, the settings
    and the metrics of its application.

    Args:
        name: the application's.
    """
    return DeploymentHandle(_DEPLOYMENT, name)


def remove_application(name: str) -> None:
    """Remove an application: its replicas end once they have answered.

    Args:
        name: the application's.
    """
    try:
        # A replica that never found room takes as long to end as a request may last.
        serve.delete(name, _blocking=False)
    except TypeError:
        serve.delete(name)
    remove_addresses(name)


def missing_room(replica_cpus: float) -> str:
    """Return the CPUs that a full cluster lacks for a replica, in words; empty if it has room.

    Args:
        replica_cpus: the CPUs of a replica.
    """
    try:
        total = ray.cluster_resources().get(_CPU, 0.0)
        free = ray.available_resources().get(_CPU, 0.0)
        machines = [node["Resources"].get(_CPU, 0.0) for node in ray.nodes() if node["Alive"]]
    except RayError:
        return ""
    largest = max(machines, default=0.0)
    if min(free, largest) >= replica_cpus:
        return ""
    return (
        f"a replica needs {replica_cpus:g} CPUs on one machine, and the cluster has "
        f"{total:g}, of which {free:g} are free, at most {largest:g} on one machine; add machines, "
        "or lower POLICY_SERVER_REPLICA_CPUS"
    )
