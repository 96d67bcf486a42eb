"""The signature of a deployed policy, by its replicas' list or by Ray Serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from policy_server.backends.ray.applications import Application
from policy_server.backends.ray.direct_calls import DirectCalls
from policy_server.backends.ray.replica_connections import ReplicaSource
from policy_server.backends.ray.replica_list import ReplicaAddress
from policy_server.backends.ray.serve_handle import Handle
from policy_server.backends.ray.signatures import ApplicationGoneError, find_signature
from policy_server.errors import ModelError, NotReadyError
from policy_server.policy import PolicySignature
from tests.support.call_replicas import Replicas, doubled, inputs_of, number_in
from tests.support.fakes import components_of, signature_of
from tests.support.ray_clusters import SETTINGS, version_of

LISTED = signature_of(components_of(("categorical", 2)))
ASKED = signature_of(components_of(("categorical", 3)))


class ServesHandle:
    """Ray Serve's handle, by which replicas describe their policy.

    Attributes:
        asked: how often they were asked.
    """

    def __init__(self) -> None:
        self.asked = 0

    def _init(self, **_: object) -> None:
        """Have a router."""

    def options(self, **_: object) -> ServesHandle:
        """Return the method of any replica."""
        return self

    async def remote(self) -> object:
        """Describe the policy."""
        self.asked += 1
        return ASKED


class Told(Application):
    """An application of which Ray Serve says always the same."""

    word = "RUNNING"

    def state(self) -> tuple[str, str]:
        return self.word, "no reason"


class Failed(Told):
    word = "DEPLOY_FAILED"


class Gone(Told):
    word = "DELETING"


class MovedList:
    """A list of replicas in a store that is not where it was."""

    async def addresses(self) -> Sequence[ReplicaAddress]:
        raise ImportError("internal_kv has moved")

    async def remove_dead(self, address: ReplicaAddress) -> None:
        """Remove nothing."""


@pytest.fixture
def replicas() -> Iterator[Replicas]:
    """Return the list of one replica that takes calls, and describes nothing yet."""
    replicas = Replicas(doubled)
    yield replicas
    replicas.end()


def application(tmp_path: Path, kind: type[Application] = Told) -> Application:
    """Return an application that was deployed."""
    return kind(version_of("ppo_discrete", tmp_path), SETTINGS, is_crowded=False)


@asynccontextmanager
async def calls_of(source: ReplicaSource) -> AsyncIterator[DirectCalls]:
    """Return the calls of replicas, and end their connections."""
    calls = DirectCalls(source, replicas=1, timeout_s=20)
    try:
        yield calls
    finally:
        await calls.aclose()


async def signature_of_application(
    application: Application, source: ReplicaSource
) -> PolicySignature:
    async with calls_of(source) as calls:
        return await find_signature(
            application, Handle(ServesHandle()), calls, call_ray=asyncio.to_thread
        )


async def test_signature_is_that_of_a_replica_that_takes_calls(
    tmp_path: Path, replicas: Replicas
) -> None:
    handle = ServesHandle()
    [address] = replicas.listed
    gone = replace(address, replica="gone", port=1, description=ASKED)
    replicas.listed[:] = [gone, replace(address, description=LISTED)]

    async with calls_of(replicas) as calls:
        found = await find_signature(
            application(tmp_path), Handle(handle), calls, call_ray=asyncio.to_thread
        )
        answer = await calls.infer(inputs_of(1.0))

    assert found == LISTED
    assert number_in(answer) == 2.0
    assert handle.asked == 0


async def test_replica_that_could_not_load_its_policy_says_so(
    tmp_path: Path, replicas: Replicas
) -> None:
    [address] = replicas.listed
    replicas.listed[:] = [replace(address, description=ModelError("saved_model.pb: damaged"))]

    with pytest.raises(ModelError, match=r"saved_model\.pb: damaged"):
        await signature_of_application(application(tmp_path), replicas)


async def test_ray_serve_is_asked_where_the_list_can_not_be_read(tmp_path: Path) -> None:
    found = await signature_of_application(application(tmp_path), MovedList())

    assert found == ASKED


async def test_ray_serve_is_asked_where_replicas_run_and_list_nothing(
    tmp_path: Path, replicas: Replicas
) -> None:
    replicas.listed.clear()

    found = await signature_of_application(application(tmp_path), replicas)

    assert found == ASKED


async def test_application_that_ray_serve_gives_up_has_no_signature(
    tmp_path: Path, replicas: Replicas
) -> None:
    replicas.listed.clear()
    with pytest.raises(NotReadyError, match="could not deploy the policy: no reason"):
        await signature_of_application(application(tmp_path, Failed), replicas)


async def test_application_that_is_removed_meanwhile_is_told_apart(
    tmp_path: Path, replicas: Replicas
) -> None:
    replicas.listed.clear()
    with pytest.raises(ApplicationGoneError):
        await signature_of_application(application(tmp_path, Gone), replicas)
