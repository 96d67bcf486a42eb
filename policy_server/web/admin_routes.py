"""The routes that change the versions of policies, behind a key of their own."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from policy_server.errors import DeploymentError, ObservationError
from policy_server.observations import problem
from policy_server.serving import ALL_TRAFFIC, Deployment, Evidence
from policy_server.serving.administration import Administration
from policy_server.web.policy_list import ListedVersion, listed_versions
from policy_server.web.query import QueryCheckedRoute, in_digits
from policy_server.web.route_table import ADMIN

__all__ = ["admin_routes"]

_POLICY = f"{ADMIN}/policies/{{policy}}"
_JSON = "application/json"
# Of the body that has it.
_LONGEST_ADDRESS = 65_536
_NO_ADDRESS = (
    'the body is no {"model": "s3://..."}; send that, or the archive itself as application/zip'
)

Percent = Annotated[
    Annotated[float, Field(ge=0.0, le=ALL_TRAFFIC), BeforeValidator(in_digits)], Query()
]


class _Address(BaseModel):
    """The body that names a model in place of holding it."""

    model_config = ConfigDict(extra="forbid")

    model: str


class Policies(BaseModel):
    """The policies whose versions can be changed."""

    default: str
    policies: list[str]


class DeploymentStatus(BaseModel):
    """The versions of a policy, as `status` shows them."""

    policy: str
    live: str = Field(description="The version that the policy is known by")
    former: str | None = Field(description="The version that a rollback makes live again")
    waiting_for: Evidence | None = Field(description="What a promotion waits for")
    reason: str = Field(description="Why the server made the last change by itself")
    serial: int = Field(description="How many changes there have been")
    versions: list[ListedVersion]


def admin_routes(administration: Administration, *, default: str) -> APIRouter:
    """Return the routes that change versions.

    They are no part of OpenAPI, and so of no client library: `python generate.py` calls them.

    Args:
        administration: carries the changes out.
        default: the name of the default policy.
    """
    router = APIRouter(route_class=QueryCheckedRoute, include_in_schema=False)

    status_of = partial(_status_of, administration)

    @router.get(f"{ADMIN}/policies")
    async def policies() -> Policies:
        return Policies(default=default, policies=administration.names)

    @router.get(_POLICY)
    async def status(policy: str) -> DeploymentStatus:
        return status_of(policy, administration.deployer_of(policy).deployment)

    @router.post(f"{_POLICY}/versions", status_code=201)
    async def deploy(
        request: Request,
        policy: str,
        version: str | None = None,
        traffic: Percent = ALL_TRAFFIC,
        *,
        shadow: bool = False,
    ) -> DeploymentStatus:
        percent = 0.0 if shadow else traffic
        kind = request.headers.get("content-type", "").partition(";")[0]
        if kind.strip().lower() == _JSON:
            deployment = await administration.deploy_address(
                policy,
                version,
                await _address_in(request),
                percent=percent,
                is_shadow=shadow,
            )
        else:
            deployment = await administration.deploy_upload(
                policy, version, request.stream(), percent=percent, is_shadow=shadow
            )
        return status_of(policy, deployment)

    @router.post(f"{_POLICY}/promote")
    async def promote(
        policy: str,
        version: str | None = None,
        after: Annotated[
            Annotated[int, Field(ge=1), BeforeValidator(in_digits)] | None, Query()
        ] = None,
        max_disagreement: Annotated[
            Annotated[float, Field(ge=0.0, le=1.0), BeforeValidator(in_digits)] | None, Query()
        ] = None,
    ) -> DeploymentStatus:
        evidence = _evidence(version, after, max_disagreement)
        return status_of(policy, await administration.promote(policy, version, evidence))

    @router.post(f"{_POLICY}/rollback")
    async def roll_back(policy: str) -> DeploymentStatus:
        return status_of(policy, await administration.roll_back(policy))

    @router.delete(f"{_POLICY}/versions/{{version}}")
    async def undeploy(policy: str, version: str) -> DeploymentStatus:
        return status_of(policy, await administration.undeploy(policy, version))

    return router


def _evidence(
    version: str | None, after: int | None, max_disagreement: float | None
) -> Evidence | None:
    if after is not None:
        return Evidence(version or "", after, max_disagreement or 0.0)
    if max_disagreement is None:
        return None
    expected = "Say how many questions are compared before max_disagreement counts"
    raise ObservationError([problem("missing", ["query", "after"], expected)])


def _status_of(
    administration: Administration, policy: str, deployment: Deployment | None
) -> DeploymentStatus:
    slot = administration.deployer_of(policy).slot
    if deployment is None:
        raise DeploymentError(f"the policy {policy} could not be loaded: {slot.failure}")
    return DeploymentStatus(
        policy=policy,
        live=deployment.live,
        former=deployment.former,
        waiting_for=deployment.waiting_for,
        reason=deployment.reason,
        serial=deployment.serial,
        versions=listed_versions(slot, has_reasons=True),
    )


async def _address_in(request: Request) -> str:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _LONGEST_ADDRESS:
            # What follows may be gigabytes: the limit of this route is that of archives.
            raise DeploymentError(_NO_ADDRESS)
    try:
        address = _Address.model_validate_json(bytes(body)).model.strip()
    except ValidationError as error:
        raise DeploymentError(_NO_ADDRESS) from error
    if not address or "\0" in address:
        raise DeploymentError(_NO_ADDRESS)
    return address
