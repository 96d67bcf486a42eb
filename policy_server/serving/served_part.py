"""The versions of a deployment that a process serves: it may lack some that others have."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from policy_server.serving.deployment import DeployedVersion, Deployment
from policy_server.serving.slot import PolicySlot
from policy_server.serving.traffic import ALL_TRAFFIC

__all__ = ["begun_deployment", "needed_versions", "served_part"]


def begun_deployment(slot: PolicySlot, *, serial: int) -> Deployment:
    """Return the deployment of the versions of schema.yaml that could be loaded.

    Args:
        slot: has loaded them.
        serial: how many changes there were before.
    """
    traffic = slot.traffic
    assert traffic is not None, "a version that answers was loaded"
    percents = {share.version.label: share.percent for share in traffic.shares}
    begun = Deployment.begin(
        [
            DeployedVersion(
                name,
                slot.models.get(name),
                percents.get(name, 0.0),
                is_shadow=name in slot.shadows,
                digest=version.digest,
            )
            for name, version in slot.versions.items()
        ]
    )
    return replace(begun, serial=serial)


def served_part(deployment: Deployment, missing: Collection[str]) -> Deployment | None:
    """Return a deployment without the versions that could not be loaded.

    The former version takes the share of the live one; other shares go to those that are there, in
    proportion. A promotion waits for no evidence without both versions that are compared.

    Args:
        deployment: the whole deployment.
        missing: the names of the versions that could not be loaded.

    Returns:
        The rest; None where nothing of it answers.
    """
    if not missing:
        return deployment
    stand_in = deployment.former if deployment.live in missing else None
    shares = {
        item.name: item.percent + (_share_of_live(deployment) if item.name == stand_in else 0.0)
        for item in deployment
        if item.name not in missing
    }
    whole = sum(shares.values())
    if not whole:
        return None
    live = deployment.live
    if live in missing:
        live = stand_in if stand_in in shares else max(shares, key=lambda name: shares[name])
    waiting = deployment.waiting_for
    has_both = waiting is not None and not {waiting.version, deployment.live} & {*missing}
    return replace(
        deployment,
        versions=tuple(
            replace(item, percent=shares[item.name] * ALL_TRAFFIC / whole)
            for item in deployment
            if item.name in shares
        ),
        live=live,
        former=deployment.former if deployment.former in shares.keys() - {live} else None,
        waiting_for=waiting if has_both else None,
    )


def needed_versions(before: Deployment, after: Deployment) -> Collection[str]:
    """Return the names of the versions that a process has to have loaded to make a change.

    They are those that the change is about: a new one, and one that it makes live or has compared.
    Another one may be missing, as it was before.

    Args:
        before: the deployment that is changed.
        after: the changed one.
    """
    needed = {*(after.names - before.names)}
    if after.live != before.live:
        needed.add(after.live)
    if after.waiting_for is not None and after.waiting_for != before.waiting_for:
        needed.add(after.waiting_for.version)
    return needed


def _share_of_live(deployment: Deployment) -> float:
    return next(item.percent for item in deployment if item.name == deployment.live)
