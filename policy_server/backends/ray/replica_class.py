"""One class of actors for the replicas of all policy versions, in Ray Serve's controller.

Ray Serve makes a class for each deployment that there ever was, to have a name that tells the
deployment, and Ray forgets none: of each version that comes and goes its controller keeps some
70 KB and its GCS 70. Only the name differs, which a replica can take in its own process.

Ray Serve lets nobody choose the class, so that a property of its own is replaced, in the workers of
a Ray that this server has started: the classes of others' deployments stay as they are.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import ray
from ray import _raylet  # a compiled module
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.deployment_info import DeploymentInfo
from ray.serve._private.replica import ReplicaActor

__all__ = ["SharedReplica", "name_process", "share_replica_class", "unexpected_insides"]

# As Ray Serve names the classes of applications that `Application.name` names.
_OF_POLICIES = "ServeReplica:policy-"
_SHARED_NAME = "ServeReplica:policy"


class SharedReplica(ReplicaActor):
    """Ray Serve's replica, whose process has the deployment's name though its class has not.

    Ray's list of actors shows the class's name, and the deployment's in the name of the actor.
    """

    async def __init__(self, replica_id: ReplicaID, *arguments: Any, **named: Any) -> None:  # type: ignore[misc]  # noqa: ANN401 -- Ray Serve's own
        """Take the name that Ray Serve would have given to a class of the deployment's own.

        Args:
            replica_id: names the deployment.
            arguments: Ray Serve's own.
            named: as above.
        """
        name_process(replica_id.deployment_id.to_replica_actor_class_name())
        await super().__init__(replica_id, *arguments, **named)


def unexpected_insides() -> str:
    """Return in words what of Ray Serve is not as the shared class needs it; empty if all is."""
    if not isinstance(vars(DeploymentInfo).get("actor_def"), property):
        return "DeploymentInfo.actor_def is no property"
    if "replica_id" not in ReplicaActor.__init__.__annotations__:
        return "ReplicaActor takes no replica_id"
    if "deployment_id" not in {field.name for field in dataclasses.fields(ReplicaID)}:
        return "ReplicaID has no deployment_id"
    if not hasattr(DeploymentID, "to_replica_actor_class_name"):
        return "DeploymentID.to_replica_actor_class_name is missing"
    return ""


def share_replica_class() -> None:
    """Have replicas of policies that this process starts be of one class, where Ray allows it."""
    if unexpected_insides():
        return
    own: Any = vars(DeploymentInfo)["actor_def"]

    def actor_def(info: DeploymentInfo) -> Any:  # noqa: ANN401 -- Ray's own
        is_policy = str(info.actor_name).startswith(_OF_POLICIES)
        return _shared_class() if is_policy else own.fget(info)

    setattr(DeploymentInfo, "actor_def", property(actor_def))  # noqa: B010 -- typed as a method


def name_process(name: str) -> None:
    """Have Ray, which titles a process by the class and the method of each call, say another name.

    Where that goes no more, replicas of all versions have one title.

    Args:
        name: in place of the shared class's.
    """
    own = getattr(_raylet, "setproctitle", None)
    if own is not None:

        def set_title(title: str) -> None:
            own(title.replace(_SHARED_NAME, name, 1))

        setattr(_raylet, "setproctitle", set_title)  # noqa: B010 -- typed as a function


@cache
def _shared_class() -> Any:  # noqa: ANN401 -- Ray's own
    """Return the class of actors: made when the controller starts the first replica."""
    return ray.remote(type(_SHARED_NAME, (SharedReplica,), {}))
