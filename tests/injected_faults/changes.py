"""A running server whose operations on files fail while its versions and keys change."""

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

from tests.injected_faults.layer import Control, Fault, Faults, Kind
from tests.injected_faults.outcomes import CONNECTION_ENDED, PROCESS_ENDED, Outcome, Step
from tests.injected_faults.served import (
    ADMIN_KEY,
    POLICY,
    answers,
    environment_of,
    fill,
    has_ended,
)
from tests.support import asking
from tests.support.library_policies import POLICIES, cases_of
from tests.support.server_processes import KEY, Server, running_server
from tests.support.waiting import wait_until

__all__ = ["STEPS", "Admin"]

_VERSIONS = "/admin/policies/default"
_UPLOAD = (POLICIES / POLICY / "policy.zip").read_bytes()
_BATCH = [case["observation"] for case in cases_of(POLICY)] * 500
_ALL = 100.0
_LATER_KEY = "a-key-that-comes-later"
_LATER = f"  api_keys: [{{name: later, key: {_LATER_KEY}}}]\n"

Act = Callable[["Admin"], httpx.Response]


class Admin:
    """A client with the admin key."""

    def __init__(self, server: Server, home: Path) -> None:
        """Own the connection, as long as the server runs.

        Args:
            server: the server.
            home: its folder.
        """
        self._schema = home / "schema.yaml"
        headers = {"access-token": ADMIN_KEY}
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

    def add_key(self) -> httpx.Response:
        """Give schema.yaml one more key, and ask by that as soon as it is valid."""
        self._schema.write_text((POLICIES / POLICY / "schema.yaml").read_text() + _LATER)
        wait_until(lambda: self._ask_by_later_key().is_success, timeout_s=60)
        return self._ask_by_later_key()

    def remove_key(self) -> None:
        """Give schema.yaml its first keys again, and wait until the one more is not valid."""
        shutil.copy(POLICIES / POLICY / "schema.yaml", self._schema)
        refused = httpx.codes.UNAUTHORIZED
        wait_until(lambda: self._ask_by_later_key().status_code == refused, timeout_s=60)

    def _ask_by_later_key(self) -> httpx.Response:
        key = {"access-token": _LATER_KEY}
        return self._client.post("/distribution", json=_BATCH[0], headers=key)

    def shares(self) -> dict[str, float]:
        """Return each version's share of the questions."""
        found: list[dict[str, Any]] = self._client.get(_VERSIONS).json()["versions"]
        return {item["name"]: item["traffic"] for item in found}


@dataclass(frozen=True)
class _Request:
    """A request to a server: most change its versions.

    Attributes:
        act: the request.
        before: the changes that come before it.
        is_change: whether it changes the versions.
    """

    act: Act
    before: tuple[Act, ...] = ()
    is_change: bool = True


def _outcomes_of(request: _Request, place: Path, faults: Faults) -> Iterator[Outcome]:
    """Send a request with one fault after the other; a server that it ends is started again."""
    control, home = Control.of_this_process(), place / "served" / "home"
    fill(home)
    coming: Iterator[Fault] | None = None
    is_over = False
    while not is_over:
        with running_server(home.parent, environment=environment_of(home)) as server:
            admin = Admin(server, home)
            coming = coming or faults.each(_operations(control, home, admin, request, faults))
            is_over = True
            for fault in coming:
                _undone(admin)
                _done(admin, request.before)
                outcome = _outcome(server, home, admin, request, fault)
                yield outcome
                if outcome.kind == PROCESS_ENDED:
                    is_over = False
                    break


def _operations(
    control: Control, home: Path, admin: Admin, request: _Request, faults: Faults
) -> int:
    """Return how many operations of a request may fail."""
    _undone(admin)
    _done(admin, request.before)
    control.arm(home, faults.never)
    request.act(admin).raise_for_status()
    control.disarm()
    return control.counted


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
    admin.remove_key()


def _outcome(server: Server, home: Path, admin: Admin, request: _Request, fault: Fault) -> Outcome:
    control, before, logged = Control.of_this_process(), admin.shares(), len(server.output())
    control.arm(home, fault)
    try:
        answer = request.act(admin)
    except httpx.TransportError:
        control.disarm()
        with suppress(AssertionError):
            wait_until(lambda: has_ended(server), timeout_s=2)
        return Outcome(fault, PROCESS_ENDED if has_ended(server) else CONNECTION_ENDED)
    control.disarm()
    if not control.failed:
        return Outcome(fault, "not reached")
    if answer.status_code == httpx.codes.BAD_REQUEST:
        # The parser's own answer to what it could not read, before it ends the connection.
        return Outcome(fault, CONNECTION_ENDED)
    is_change = answer.is_success and request.is_change
    told = f"{answer.status_code} {answer.text[:500]}"
    if half_done := _half_done(server, home, admin, before, is_change=is_change):
        return Outcome(fault, "half replaced", f"{told} {half_done}")
    lines = server.output()[logged:]
    # A request that gets no memory is a 500 with a traceback.
    is_short = "Traceback" not in lines or bool(fault.kinds & Kind.ALLOCATE)
    if not is_short or not (answer.is_success or _is_told(answer)):
        return Outcome(fault, "not told in one line", f"{told} {lines[-2000:]}")
    if not answer.is_success:
        wait_until(partial(_succeeds, request.act, admin), timeout_s=60)
    return Outcome(fault, "done all the same" if answer.is_success else "refused in one line")


def _half_done(
    server: Server,
    home: Path,
    admin: Admin,
    before: dict[str, float],
    *,
    is_change: bool,
) -> str | None:
    """Return in words what of a change is half done, or None.

    Args:
        server: the server.
        home: its folder.
        admin: its client.
        before: the shares of the versions before the request.
        is_change: whether the request says that it has changed them.
    """
    shares, kept = admin.shares(), _kept(home)
    if (shares != before) != is_change or (kept is not None and kept != shares):
        return f"before {before}, now {shares}, kept {kept}"
    # All versions have the same files.
    wrong = [name for name in shares if not answers(server, version=name, is_asked_for=True)]
    return f"another answer of {wrong}" if wrong else None


def _is_told(answer: httpx.Response) -> bool:
    """Return whether an error has the one shape of errors, and a line."""
    is_json = answer.headers.get("content-type") == "application/json"
    detail = answer.json()["detail"] if is_json else None
    return isinstance(detail, str) and "\n" not in detail


def _kept(home: Path) -> dict[str, float] | None:
    """Return the shares that the next start would give; None where nothing is kept."""
    file = home / "versions.json"
    if not file.exists():
        return None
    versions = json.loads(file.read_text())["default"]["deployment"]["versions"]
    return {item["name"]: item["percent"] for item in versions}


STEPS = {
    "deploy": Step(partial(_outcomes_of, _Request(Admin.deploy))),
    "promote": Step(partial(_outcomes_of, _Request(Admin.promote, (Admin.deploy,)))),
    "rollback": Step(
        partial(_outcomes_of, _Request(Admin.roll_back, (Admin.deploy, Admin.promote)))
    ),
    "undeploy": Step(partial(_outcomes_of, _Request(Admin.undeploy, (Admin.deploy,)))),
    "batch": Step(partial(_outcomes_of, _Request(Admin.ask, is_change=False)), Kind.ALLOCATE),
    "keys": Step(partial(_outcomes_of, _Request(Admin.add_key, is_change=False)), Kind.READ),
}
