"""Verdicts on a candidate, by what it has shown so far: promoted, or taken back."""

from __future__ import annotations

from dataclasses import dataclass

from policy_server.serving.deployment import Deployment, Evidence
from policy_server.serving.slot import PolicySlot

__all__ = ["Verdict", "weigh"]

# A version that fails so often, of at least so many questions, is taken back.
_MOST_FAILURES = 0.01
_FEWEST_FAILURES = 5
# A version whose median call takes so many times as long as the live one's is taken back.
_MOST_SLOWER = 10.0


@dataclass(frozen=True)
class Verdict:
    """A change of the deployment that the server makes by itself.

    Attributes:
        version: the version's name.
        is_promoted: whether it is promoted; False takes it back.
        reason: why, in words.
    """

    version: str
    is_promoted: bool
    reason: str


def weigh(slot: PolicySlot, deployment: Deployment) -> Verdict | None:
    """Return the verdict on a candidate; None while there is none.

    Args:
        slot: the policy's slot.
        deployment: the deployment that it serves.
    """
    evidence = deployment.waiting_for
    trial = None if evidence is None else evidence.version
    for name in deployment.candidates:
        if name in deployment.percents or name == trial:
            fault = _fault_of(slot, name)
            if fault is not None:
                return _taken_back(name, fault)
    return None if evidence is None else _compared(slot, evidence)


def _compared(slot: PolicySlot, evidence: Evidence) -> Verdict | None:
    """Return the verdict on the agreement of a version that waits for its promotion."""
    report = slot.shadows[evidence.version].report()
    if report.copies < evidence.after or report.same_mode is None:
        return None
    disagreement = 1.0 - report.same_mode
    shown = f"{disagreement:.2%} of {report.copies} questions have another action"
    if disagreement > evidence.max_disagreement:
        return _taken_back(evidence.version, f"{shown}, more than {evidence.max_disagreement:.2%}")
    reason = f"{evidence.version} is promoted: {shown}"
    return Verdict(evidence.version, is_promoted=True, reason=reason)


def _taken_back(name: str, fault: str) -> Verdict:
    return Verdict(name, is_promoted=False, reason=f"{name} is taken back: {fault}")


def _fault_of(slot: PolicySlot, name: str) -> str | None:
    """Return why a candidate has to be taken back; None for no reason."""
    version, live = slot.versions.get(name), slot.live
    if version is None or live is None:
        return None
    asked, failed = version.record.asked, version.record.failed
    shadow = slot.shadows.get(name)
    if shadow is not None:
        report = shadow.report()
        asked, failed = asked + report.copies + report.failed, failed + report.failed
    if failed >= _FEWEST_FAILURES and failed > _MOST_FAILURES * asked:
        return f"it failed on {failed} of {asked} questions"
    mine, theirs = version.record.call_seconds, live.record.call_seconds
    if mine is not None and theirs is not None and mine > _MOST_SLOWER * theirs:
        return (
            f"a call takes {mine * 1000:.1f} ms, more than {_MOST_SLOWER:g} times "
            f"the {theirs * 1000:.1f} ms of {live.label}"
        )
    return None
