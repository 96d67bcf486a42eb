"""The ledger of a Ray cluster: an actor that outlives the servers which use the cluster.

A replica that is restarted tomorrow needs the files of a server that has gone today: the actor owns
them. Where its machine dies, Ray restarts it empty, and the servers that are left store their
files anew.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from policy_server.backends.ray.ledger import PolicyFiles, Remove
from policy_server.backends.ray.pieces import (
    CALL_TIMEOUT_S,
    PieceKeeper,
    Pieces,
    call_actor,
    send_files,
    write_files,
)
from policy_server.errors import NotReadyError

__all__ = ["RENEWAL_PERIOD_S", "ClusterFiles", "ClusterLedger", "LedgerBook"]

# A new number for methods that older servers don't know.
_ACTOR = "policy-server-ledger-1"
_NAMESPACE = "policy_server"
RENEWAL_PERIOD_S = 5.0
# A server that has not renewed its entries for so long has ended.
_LEASE_S = 30.0
_DEPLOYING_S = 20.0
_POLL_S = 0.2
_LEAVE_TIMEOUT_S = 5.0


class LedgerBook(PieceKeeper):
    """The actor's contents: the servers that use each application, until when, and its files."""

    def __init__(
        self,
        remove: Remove,
        names: Callable[[], list[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Own the entries of all servers, and the files.

        Args:
            remove: removes an application from Ray Serve.
            names: returns the applications that Ray Serve has.
            clock: the time in seconds.
        """
        self._remove = remove
        self._names = names
        self._clock = clock
        self._since = clock()
        self._leases: dict[str, dict[str, float]] = {}
        self._deploying: dict[str, tuple[str, float]] = {}
        self._files: dict[str, Pieces] = {}

    def enter(self, server: str, applications: list[str]) -> list[str]:
        """Note that a server uses applications, and return those without files."""
        until = self._clock() + _LEASE_S
        for application in applications:
            self._leases.setdefault(application, {})[server] = until
        return [application for application in applications if application not in self._files]

    def leave(self, server: str, application: str, is_retired: bool) -> None:  # noqa: FBT001 -- Ray's calls are positional here
        """Note that a server uses an application no more; remove one that is retired."""
        self._leases.get(application, {}).pop(server, None)
        if is_retired and not self._is_used(application):
            self._drop(application)

    def remove_replaced(self, application: str) -> None:
        """Remove older applications of the same policies that no server uses any more."""
        if self._clock() < self._since + 2 * RENEWAL_PERIOD_S:
            # An actor that was restarted does not know all servers yet.
            return
        policy = _policy_of(application)
        for other in self._names():
            is_replaced = other != application and _policy_of(other) == policy
            if is_replaced and not self._is_used(other):
                self._drop(other)

    def begin(self, server: str, application: str) -> bool:
        """Return whether a server may deploy an application now: no other server is doing so."""
        holder, until = self._deploying.get(application, ("", 0.0))
        # Files of gigabytes take longer; a server that still stores them is heard of.
        until = max(until, self._leases.get(application, {}).get(holder, 0.0))
        if holder not in ("", server) and self._clock() < until:
            return False
        self._deploying[application] = (server, self._clock() + _DEPLOYING_S)
        return True

    def end(self, server: str, application: str) -> None:
        """Note that a server has deployed an application, or failed to."""
        if self._deploying.get(application, ("",))[0] == server:
            del self._deploying[application]

    def store(self, application: str, files: Pieces) -> None:
        """Store an application's files, as the references that `put` returned."""
        self._files[application] = files

    def files(self, application: str) -> Pieces | None:
        """Return the references of an application's files, by name; None where it has none."""
        return self._files.get(application)

    def _is_used(self, application: str) -> bool:
        leases = self._leases.get(application, {})
        return any(self._clock() < until for until in leases.values())

    def _drop(self, application: str) -> None:
        self._remove(application)
        self._files.pop(application, None)
        self._leases.pop(application, None)


def _policy_of(application: str) -> str:
    return application.rpartition("-")[0]


@dataclass(frozen=True)
class ClusterFiles:
    """Files that the cluster's actor keeps."""

    application: str

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """Give a folder with copies of the files while the block runs.

        Raises:
            NotReadyError: if no server has stored them again since they were lost.
        """
        files = self._find()
        with tempfile.TemporaryDirectory(prefix="policy-") as folder:
            write_files(files, Path(folder))
            yield Path(folder)

    def _find(self) -> Pieces:
        deadline = time.monotonic() + 2 * _LEASE_S
        while time.monotonic() < deadline:
            with suppress(RayError, ValueError):
                actor = ray.get_actor(_ACTOR, namespace=_NAMESPACE)
                files: Pieces | None = call_actor(actor.files, self.application)
                if files is not None:
                    return files
            time.sleep(_POLL_S)
        raise NotReadyError(
            f"ray: {self.application}: its files are nowhere in the cluster; start a server that "
            "deploys it"
        )


class ClusterLedger:
    """A server process's side of the cluster's ledger."""

    def __init__(self, remove: Remove, names: Callable[[], list[str]]) -> None:
        """Own this process's entries; the actor is started unless the cluster has it.

        Args:
            remove: removes an application from Ray Serve; it is called in the actor.
            names: returns the applications that Ray Serve has; it is called in the actor too.
        """
        self._server = uuid.uuid4().hex
        book: Any = ray.remote(LedgerBook)
        self._actor = book.options(
            name=_ACTOR,
            namespace=_NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
        ).remote(remove, names)

    def enter(self, application: str) -> None:
        """See `Ledger.enter`."""
        call_actor(self._actor.enter, self._server, [application])

    def leave(self, application: str, *, is_retired: bool) -> None:
        """See `Ledger.leave`."""
        # A server that ends, perhaps because the cluster has died, waits for no answer for long.
        timeout_s = CALL_TIMEOUT_S if is_retired else _LEAVE_TIMEOUT_S
        call_actor(self._actor.leave, self._server, application, is_retired, timeout_s=timeout_s)

    @contextmanager
    def deploying(self, application: str) -> Iterator[None]:
        """See `Ledger.deploying`."""
        while not call_actor(self._actor.begin, self._server, application):
            time.sleep(_POLL_S)
        try:
            yield
        finally:
            call_actor(self._actor.end, self._server, application)

    def store(self, application: str, files: Mapping[str, Path | bytes]) -> PolicyFiles:
        """See `Ledger.store`."""
        call_actor(self._actor.store, application, send_files(self._actor, files))
        return ClusterFiles(application)

    def renew(self, applications: list[str]) -> list[str]:
        """See `Ledger.renew`."""
        lost: list[str] = call_actor(self._actor.enter, self._server, applications)
        for application in applications:
            call_actor(self._actor.remove_replaced, application)
        return lost
