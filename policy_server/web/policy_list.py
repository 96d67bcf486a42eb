"""`GET /policies`: the policies of the server, and the state of each."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from policy_server.policy import PolicySignature
from policy_server.serving import PolicyRegistry, PolicySlot
from policy_server.web.problems import NOT_SERVED

__all__ = [
    "ListedAction",
    "ListedVersion",
    "listed_actions",
    "listed_versions",
    "policy_list_routes",
]


class ListedAction(BaseModel):
    """One independent part of a policy's actions."""

    kind: str = Field(description="The family of its distribution, such as `categorical`")
    size: int = Field(description="How many choices or dimensions it has")
    has_unsquashed_mode: bool = Field(
        description="Whether its deterministic action is a squashed normal's mean without the tanh"
    )
    name: str | None = Field(description="Its name in schema.yaml")
    labels: list[str] | None = Field(description="The names of its choices, in order")


class ListedAgreement(BaseModel):
    """How a shadow agrees with the versions that answer."""

    copies: int = Field(description="How many copies of questions it has answered")
    same_mode: float | None = Field(
        description="The share of these whose deterministic action is the answering version's"
    )
    mean_distance: float | None = Field(
        description="Their mean total variation distance, from 0 to 1"
    )
    failed: int = Field(description="How many copies it could not answer")
    dropped: int = Field(description="How many it never got, since there was no time for them")
    call_seconds: float | None = Field(description="The median time of its latest calls")
    reason: str | None = Field(description="Its last error")
    course: list[float] = Field(
        description="Of each of its latest calls the share of copies with the same action"
    )


class ListedVersion(BaseModel):
    """A version of a policy, and its state."""

    name: str = Field(description="Its name, as `x-policy-version` gives it")
    state: Literal["serving", "shadow", "loaded", "failed"] = Field(
        description="`loaded` for a version that gets no questions"
    )
    reason: str | None = Field(description="Why it could not be loaded")
    traffic: float = Field(description="Its share of the questions, in per cent")
    is_shadow: bool = Field(description="Whether it gets copies of questions, and answers nobody")
    digest: str | None = Field(description="The start of the digest of its files")
    agreement: ListedAgreement | None = Field(description="Of a shadow")


class ListedPolicy(BaseModel):
    """A policy and its state; what only a loaded policy tells is null before."""

    name: str = Field(description="The policy's name, as it stands in `/policies/{name}/predict`")
    is_default: bool = Field(description="Whether `/predict` and its siblings are this policy's")
    state: Literal["loading", "serving", "failed"] = Field(
        description="`failed` for a policy that could not be loaded"
    )
    reason: str | None = Field(description="Why it could not be loaded")
    width: int | None = Field(description="How many numbers an observation has")
    actions: list[ListedAction] | None = Field(
        description="The parts of its actions; null where the distribution is unknown"
    )
    family: str | None = Field(description="Its distribution in words, such as `categorical(4)`")
    engine: str | None = Field(description="The library that computes it")
    version: str | None = Field(description="The start of the digest of its files")
    versions: list[ListedVersion] = Field(description="All that are loaded, or could not be")


class PolicyList(BaseModel):
    """All policies of the server."""

    default: str = Field(description="The name of the policy behind `/predict`")
    policies: list[ListedPolicy]
    multi_agent: dict[str, str] | None = Field(
        description="The name of the policy for each agent or pattern of agents; null for no team"
    )


def policy_list_routes(registry: PolicyRegistry) -> APIRouter:
    """Return the route that lists the policies.

    Args:
        registry: the policies.
    """
    router = APIRouter(tags=["Policies"])

    @router.get("/policies", operation_id="get_policies", summary="List the policies")
    async def policies() -> PolicyList:
        listed = [_listed(slot, is_default=slot is registry.default) for slot in registry]
        return PolicyList(
            default=registry.default.name,
            policies=listed,
            multi_agent=None if registry.agents is None else dict(registry.agents.rules),
        )

    return router


def listed_actions(signature: PolicySignature) -> list[ListedAction] | None:
    """Return the parts of a policy's actions; None where its distribution is unknown.

    Args:
        signature: the policy's.
    """
    if signature.components is None:
        return None
    return [
        ListedAction(
            kind=part.kind,
            size=part.size,
            has_unsquashed_mode=part.has_unsquashed_mode,
            name=part.name,
            labels=None if part.labels is None else list(part.labels),
        )
        for part in signature.components
    ]


def _listed(slot: PolicySlot, *, is_default: bool) -> ListedPolicy:
    version = slot.live
    signature = None if version is None else version.signature
    waiting: Literal["loading", "failed"] = "loading" if slot.failure is None else "failed"
    return ListedPolicy(
        name=slot.name,
        is_default=is_default,
        state=waiting if version is None else "serving",
        reason=None if slot.failure is None else NOT_SERVED,
        width=slot.width,
        actions=None if signature is None else listed_actions(signature),
        family=None if signature is None else signature.family,
        engine=None if signature is None else signature.engine,
        version=None if version is None else version.digest or None,
        versions=listed_versions(slot, has_reasons=False),
    )


def listed_versions(slot: PolicySlot, *, has_reasons: bool) -> list[ListedVersion]:
    """Return the versions of a policy that are loaded, or could not be.

    Args:
        slot: the policy's.
        has_reasons: whether each that could not be loaded has its own reason, which may name files
            of the server's machine, or one that only points to the log.
    """
    failed = [
        _failed_version(name, reason if has_reasons else NOT_SERVED)
        for name, reason in slot.failures.items()
        if name
    ]
    return [*map(partial(_listed_version, slot), slot.versions), *failed]


def _listed_version(slot: PolicySlot, name: str) -> ListedVersion:
    version, shadow = slot.versions[name], slot.shadows.get(name)
    shares = () if slot.traffic is None else slot.traffic.shares
    percent = next((share.percent for share in shares if share.version is version), 0.0)
    state: Literal["serving", "shadow", "loaded"] = "serving"
    if not percent:
        state = "loaded" if shadow is None else "shadow"
    return ListedVersion(
        name=name,
        state=state,
        reason=None,
        traffic=percent,
        is_shadow=state == "shadow",
        digest=version.digest or None,
        agreement=None if shadow is None else ListedAgreement(**asdict(shadow.report())),
    )


def _failed_version(name: str, reason: str) -> ListedVersion:
    return ListedVersion(
        name=name,
        state="failed",
        reason=reason,
        traffic=0.0,
        is_shadow=False,
        digest=None,
        agreement=None,
    )
