"""Deployments as they are kept, in JSON: taken where they are sound, and refused otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pydantic import TypeAdapter, ValidationError

from policy_server.schema import can_stand_in_an_address
from policy_server.serving.deployment import DeployedVersion, Deployment, Evidence
from policy_server.serving.traffic import ALL_TRAFFIC

__all__ = ["kept_deployment"]

_ADAPTER = TypeAdapter(Deployment)
# In per cent: shares that were written by hand are rounded, such as three of 33.33.
_ROUNDING = 0.1
_SERIALS = range(2**63)


def kept_deployment(value: object) -> Deployment:
    """Return the deployment that a value of JSON describes.

    Another program, or a person, may have changed it: the types alone make no deployment that can
    be served, or rolled back.

    Args:
        value: the value, as `json` reads it.

    Raises:
        ValueError: if it is no sound deployment; the message says why.
    """
    try:
        deployment = _ADAPTER.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from error
    if deployment.former not in deployment.names:
        # Earlier releases kept the name of a former version that a rollback had taken back.
        deployment = replace(deployment, former=None)
    for fault in _faults(deployment):
        raise ValueError(fault)
    return deployment


def _faults(deployment: Deployment) -> Iterator[str]:
    """Yield the reasons why a deployment is not sound."""
    for version in deployment:
        yield from _faults_of_version(version)
    yield from _faults_of_names(deployment)
    whole = sum(version.percent for version in deployment)
    # Not a number, the sum is near nothing.
    if not abs(whole - ALL_TRAFFIC) <= _ROUNDING:
        yield f"the shares are {whole:g} per cent in all, expected {ALL_TRAFFIC:g}"
    if deployment.waiting_for is not None:
        yield from _faults_of_evidence(deployment.waiting_for, deployment)
    if not _is_text(deployment.reason):
        yield "reason: expected text"
    if deployment.serial not in _SERIALS:
        yield f"serial: expected a whole number from 0 to {_SERIALS[-1]}"


def _faults_of_names(deployment: Deployment) -> Iterator[str]:
    if len(deployment.versions) > len(deployment.names):
        yield "two versions have one name"
    if deployment.live not in deployment.percents:
        yield f"live names {deployment.live!r}, expected a version that has a share"
    if deployment.former == deployment.live:
        yield f"former names {deployment.former!r}, which is live"


def _faults_of_version(version: DeployedVersion) -> Iterator[str]:
    if not can_stand_in_an_address(version.name):
        yield f"{version.name!r} is no version's name"
    if not _is_text(version.model or "") or not _is_text(version.digest):
        yield f"version {version.name}: expected text for model and digest"
    if not version.percent >= 0.0:
        yield f"version {version.name}: a share of {version.percent:g} per cent"
    if version.is_shadow and version.percent:
        yield f"version {version.name}: is a shadow, and has a share"


def _faults_of_evidence(evidence: Evidence, deployment: Deployment) -> Iterator[str]:
    if evidence.version not in deployment.names - {deployment.live}:
        yield f"waiting_for names {evidence.version!r}, expected a version that is not live"
    if evidence.after < 1 or not 0.0 <= evidence.max_disagreement <= 1.0:
        yield "waiting_for: expected at least 1 question, and a disagreement from 0 to 1"


def _is_text(text: str) -> bool:
    """Return whether files and answers can have a text: it is UTF-8, and has no NUL."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
