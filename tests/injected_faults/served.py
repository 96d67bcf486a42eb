"""The server of these measurements: its folder, its variables, and whether it answers rightly."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx

from tests.support.library_policies import POLICIES, cases_of
from tests.support.server_processes import Server
from tests.support.servers import status_of

__all__ = [
    "ADMIN_KEY",
    "POLICY",
    "answers",
    "environment_of",
    "fill",
    "has_ended",
    "is_ready",
]

POLICY = "sb3_ppo_box"
ADMIN_KEY = "admin-key-of-the-test"
_TOLERANCE = 1e-4


def environment_of(home: Path) -> dict[str, str]:
    """Return the variables of a server, whose log lies beside its home: it may not fail too."""
    return {
        "POLICY_SERVER_BACKEND": "local",
        "POLICY_SERVER_ADMIN_KEY": ADMIN_KEY,
        "POLICY_SERVER_HOME": str(home),
    }


def fill(home: Path) -> None:
    """Make a home with nothing but the policy and its schema.yaml."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    for name in ("policy.zip", "schema.yaml"):
        shutil.copy(POLICIES / POLICY / name, home / name)


def has_ended(server: Server) -> bool:
    """Return whether the server's process has ended."""
    return server.process.poll() is not None


def is_ready(server: Server) -> bool:
    """Return whether the server answers."""
    return status_of(f"{server.url}/readyz") == httpx.codes.OK


def answers(server: Server, *, version: str = "", is_asked_for: bool = False) -> bool:
    """Return whether a server answers as the library does.

    Args:
        server: the server.
        version: the version that has to answer; empty for any.
        is_asked_for: whether that version is asked for, whatever its share of the questions.
    """
    case = cases_of(POLICY)[0]
    headers = {"x-policy-version": version} if is_asked_for else {}
    with server.client() as client:
        answer = client.post("/distribution", json=case["observation"], headers=headers)
    if not answer.is_success or version not in ("", answer.headers["x-policy-version"]):
        return False
    [component] = answer.json()["components"]
    pairs = zip(component["mean"], case["expected"]["mean"], strict=True)
    return all(abs(found - wanted) < _TOLERANCE for found, wanted in pairs)
