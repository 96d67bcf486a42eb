"""A running server whose operations on files fail while its versions change, and starts of one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from tests.injected_faults.layer import Control, Fault, Faults
from tests.injected_faults.outcomes import CONNECTION_ENDED, PROCESS_ENDED, Outcome
from tests.support import asking
from tests.support.library_policies import POLICIES, cases_of
from tests.support.server_processes import KEY, Server, running_server, started_server
from tests.support.servers import status_of
from tests.support.waiting import wait_until

__all__ = ["STEPS", "Step", "outcomes_of_steps"]

POLICY = "sb3_ppo_box"
_ADMIN_KEY = "admin-key-of-the-test"
_VERSIONS = "/admin/policies/default"
_UPLOAD = (POLICIES / POLICY / "policy.zip").read_bytes()
_START_TIMEOUT_S = 120.0
_BATCH = [case["observation"] for case in cases_of(POLICY)] * 500
_ALL = 100.0
# Of a start that ends: as it stands in the log, and on standard error before there is one.
_REASONS = ('"level": "ERROR"', '"level": "CRITICAL"', "policy server: ")
_TOLERANCE = 1e-4

Act = Callable[["Admin"], httpx.Response]


class Admin:
    """A client with the admin key."""

    def __init__(self, server: Server) -> None:
        """Own the connection, as long as the server runs."""
        headers = {"access-token": _ADMIN_KEY}
        self._client = asking.client(base_url=server.url, headers=headers, timeout=120)

    def deploy(self) -> httpx.Response:
        """Deploy version b, with a tenth of the traffic."""
        address = f"{_VERSIONS}/versions?version=b&traffic=10"
        return self._client.post(address, content=_UPLOAD)

    def promote(self) -> httpx.Response:
        """Make version b the live one."""
        return self._client.post(f"{_VERSIONS}/promote?version=b")

    def roll_back(self) -> httpx.Response:
        """Make the version before b the live one."""
        return self._client.post(f"{_VERSIONS}/rollback")

    def undeploy(self) -> httpx.Response:
        """Unload version b."""
        return self._client.delete(f"{_VERSIONS}/versions/b")

    def ask(self) -> httpx.Response:
        """Ask for the distributions of many observations."""
        key = {"access-token": KEY}
        return self._client.post("/distribution/batch", json=_BATCH, headers=key)

    def shares(self) -> dict[str, float]:
        """Return each version's share of the questions."""
        found: list[dict[str, Any]] = self._client.get(_VERSIONS).json()["versions"]
        return {item["name"]: item["traffic"] for item in found}


@dataclass(frozen=True)
class Step:
    """A request to a server: most change its versions.

    Attributes:
        act: the request; None for the start of a server.
        before: the changes that come before it.
        is_change: whether it changes the versions.
    """

    act: Act | None
    before: tuple[Act, ...] = ()
    is_change: bool = True


STEPS = {
    "start": Step(None),
    "deploy": Step(Admin.deploy),
    "promote": Step(Admin.promote, (Admin.deploy,)),
    "rollback": Step(Admin.roll_back, (Admin.deploy, Admin.promote)),
    "undeploy": Step(Admin.undeploy, (Admin.deploy,)),
    "batch": Step(Admin.ask, is_change=False),
}


def outcomes_of_steps(step: Step, place: Path, faults: Faults) -> Iterator[Outcome]:
    """Let a server do a step with one fault after the other.

    Args:
        step: the change, or the start.
        place: a folder for the server's files.
        faults: the faults.

    Yields:
        The outcome of each fault.
    """
    control, home = Control.of_this_process(), place / "served" / "home"
    if step.act is None:
        _fill(home)
        control.arm(home, faults.never)
        with running_server(home.parent, environment=_environment(home)):
            control.disarm()
        for fault in faults.each(control.counted):
            yield _outcome_of_a_start(control, home, fault)
        return
    _fill(home)
    coming: Iterator[Fault] | None = None
    has_ended = True
    while has_ended:
        with running_server(home.parent, environment=_environment(home)) as server:
            admin = Admin(server)
            coming = coming or faults.each(_operations(control, home, admin, step, faults))
            has_ended = False
            for fault in coming:
                _undone(admin)
                _done(admin, step.before)
                outcome = _outcome_of_a_change(server, home, admin, step, fault)
                yield outcome
                if outcome.kind == PROCESS_ENDED:
                    has_ended = True
                    break


def _operations(control: Control, home: Path, admin: Admin, step: Step, faults: Faults) -> int:
    """Return how many operations of a step may fail."""
    assert step.act is not None, "a start is counted apart"
    _undone(admin)
    _done(admin, step.before)
    control.arm(home, faults.never)
    step.act(admin).raise_for_status()
    control.disarm()
    return control.counted


def _environment(home: Path) -> dict[str, str]:
    """Return the variables of a server, whose log lies beside its home: it may not fail too."""
    return {
        "POLICY_SERVER_BACKEND": "local",
        "POLICY_SERVER_ADMIN_KEY": _ADMIN_KEY,
        "POLICY_SERVER_HOME": str(home),
    }


def _fill(home: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    for name in ("policy.zip", "schema.yaml"):
        shutil.copy(POLICIES / POLICY / name, home / name)


def _done(admin: Admin, acts: tuple[Act, ...]) -> None:
    for act in acts:
        # A version of this name may still be about to end.
        wait_until(partial(_succeeds, act, admin), timeout_s=60)


def _succeeds(act: Act, admin: Admin) -> bool:
    return act(admin).is_success


def _undone(admin: Admin) -> None:
    """Lead back to one live version, whatever was done."""
    if admin.shares().get("b") == _ALL:
        _done(admin, (Admin.roll_back,))
    if "b" in admin.shares():
        _done(admin, (Admin.undeploy,))


def _outcome_of_a_change(
    server: Server, home: Path, admin: Admin, step: Step, fault: Fault
) -> Outcome:
    assert step.act is not None, "a start is another function's"
    control, before = Control.of_this_process(), admin.shares()
    control.arm(home, fault)
    try:
        answer = step.act(admin)
    except httpx.TransportError:
        control.disarm()
        with suppress(AssertionError):
            wait_until(lambda: _has_ended(server), timeout_s=2)
        return Outcome(fault, PROCESS_ENDED if _has_ended(server) else CONNECTION_ENDED)
    control.disarm()
    if not control.failed:
        return Outcome(fault, "not reached")
    if answer.status_code == httpx.codes.BAD_REQUEST:
        # The parser's own answer to what it could not read, before it ends the connection.
        return Outcome(fault, CONNECTION_ENDED)
    told = f"{answer.status_code} {answer.text[:500]}"
    shares, kept = admin.shares(), _kept(home)
    is_new = shares != before
    if is_new != (answer.is_success and step.is_change) or (kept is not None and kept != shares):
        return Outcome(fault, "half replaced", f"{told} {before} {shares} {kept}")
    if not _answers(server):
        return Outcome(fault, "half replaced", f"{told}: another answer")
    if not answer.is_success and not _is_told(answer):
        return Outcome(fault, "not told in one line", told)
    if not answer.is_success:
        wait_until(partial(_succeeds, step.act, admin), timeout_s=60)
    return Outcome(fault, "done all the same" if answer.is_success else "refused in one line")


def _is_told(answer: httpx.Response) -> bool:
    """Return whether an error has the one shape of errors, and a line."""
    is_json = answer.headers.get("content-type") == "application/json"
    detail = answer.json()["detail"] if is_json else None
    return isinstance(detail, str) and "\n" not in detail


def _outcome_of_a_start(control: Control, home: Path, fault: Fault) -> Outcome:
    _fill(home)
    control.arm(home, fault)
    with started_server(home.parent, environment=_environment(home)) as server:
        wait_until(lambda: _has_ended(server) or _is_ready(server), timeout_s=_START_TIMEOUT_S)
        control.disarm()
        is_ready = not _has_ended(server)
        told, status = server.output(), server.process.poll()
        is_right = not is_ready or _answers(server)
    if not control.failed:
        return Outcome(fault, "not reached")
    if not is_right:
        return Outcome(fault, "half replaced", "another answer")
    is_told = any(words in told for words in _REASONS)
    if not is_ready and ("Traceback" in told or not is_told or not status):
        return Outcome(fault, "not told in one line", told[-500:])
    with running_server(home.parent, environment=_environment(home)) as server:
        if not _answers(server):
            return Outcome(fault, "not mended by the next try", server.output()[-500:])
    return Outcome(fault, "done all the same" if is_ready else "refused in one line")


def _has_ended(server: Server) -> bool:
    return server.process.poll() is not None


def _is_ready(server: Server) -> bool:
    return status_of(f"{server.url}/readyz") == httpx.codes.OK


def _answers(server: Server) -> bool:
    """Return whether the server answers as the library does."""
    case = cases_of(POLICY)[0]
    with server.client() as client:
        answer = client.post("/distribution", json=case["observation"])
    expected = case["expected"]["mean"]
    [component] = answer.json()["components"]
    pairs = zip(component["mean"], expected, strict=True)
    return all(abs(found - wanted) < _TOLERANCE for found, wanted in pairs)


def _kept(home: Path) -> dict[str, float] | None:
    """Return the shares that the next start would give; None where nothing is kept."""
    file = home / "versions.json"
    if not file.exists():
        return None
    versions = json.loads(file.read_text())["default"]["deployment"]["versions"]
    return {item["name"]: item["percent"] for item in versions}
