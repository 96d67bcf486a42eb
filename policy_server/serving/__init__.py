"""Policies that are served: each a version in its slot, all slots in one registry.

A scheduler in front of each version gathers many questions into few calls of its backend.
"""

from __future__ import annotations

from policy_server.serving.body_queue import BodyQueue
from policy_server.serving.deployer import Deployer
from policy_server.serving.deployment import DeployedVersion, Deployment, Evidence
from policy_server.serving.deployment_store import DeploymentStore
from policy_server.serving.loaded_versions import VersionOpener, check_files
from policy_server.serving.memory import EpisodeMemory, EpisodeSteps
from policy_server.serving.previous_step import NOTHING_STATED, StatedStep
from policy_server.serving.questions import Answer, AnsweredCall, Question, Waiting
from policy_server.serving.registry import PolicyRegistry
from policy_server.serving.scheduler import ROWS_PER_CALL, Limits, Scheduler
from policy_server.serving.session_store import SessionRecord
from policy_server.serving.sessions import Sessions, SessionTurn
from policy_server.serving.slot import PlannedVersion, PolicyOpener, PolicySlot
from policy_server.serving.traffic import ALL_TRAFFIC, Share, Traffic
from policy_server.serving.version import OpenedPolicy, PolicyVersion

__all__ = [
    "ALL_TRAFFIC",
    "NOTHING_STATED",
    "ROWS_PER_CALL",
    "Answer",
    "AnsweredCall",
    "BodyQueue",
    "DeployedVersion",
    "Deployer",
    "Deployment",
    "DeploymentStore",
    "EpisodeMemory",
    "EpisodeSteps",
    "Evidence",
    "Limits",
    "OpenedPolicy",
    "PlannedVersion",
    "PolicyOpener",
    "PolicyRegistry",
    "PolicySlot",
    "PolicyVersion",
    "Question",
    "Scheduler",
    "SessionRecord",
    "SessionTurn",
    "Sessions",
    "Share",
    "StatedStep",
    "Traffic",
    "VersionOpener",
    "Waiting",
    "check_files",
]
