"""Ray, its controller, replicas or a web process die while the versions of a policy change.

A server goes through many rounds: in each one a version is deployed, promoted, rolled back or
unloaded, and something dies at some moment of that. After each it has to be whole again. In the end
it is started again, with the versions that it had.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from tests.faults.expectations import Expectation, Limits, connections_lost
from tests.faults.load import EXPORT, OK, Load, Question, is_distribution
from tests.faults.measuring import Fault, Scene, row, running_in, temporary
from tests.support import asking
from tests.support.folders import EXPORTS
from tests.support.processes import command_line
from tests.support.server_processes import Server, compiled_home_of, running_server
from tests.support.servers import status_of
from tests.support.waiting import wait_until

__all__ = ["FAULTS"]

# Policies with the observations of `EXPORT`.
_OTHERS = ("ray07_ppo_discrete", "ray10_ppo_discrete")
_ADMIN_KEY = "adminkey"
_ROUTE = "/admin/policies/default"
_CLIENTS = 16
_CALL_TIMEOUT_S = 300.0
_PAUSE_S = 0.5
_WHOLE_WITHIN_S = 15.0
# Until then the replicas of the Ray that has died answer, or the other web process.
_RESTART_WITHIN_S, _REPLICAS_WITHIN_S = 120.0, 30.0
# Each by a connection of its own, so that each web process is asked.
_LOOKS = 16
# The moments at which something dies, in seconds after the change has begun, or before it.
_MOMENTS_S = (-2.0, 0.0, 0.2, 1.0)
_RAYLET, _GCS, _CONTROLLER = "raylet/raylet", "gcs_server", "ServeController"
_REPLICA, _WEB = "ServeReplica", "spawn_main"
_CHANGES = ("deploy", "promote", "rollback", "unload")
_ROUNDS = ("change", "after", "answer", "took", "asked", "whole after")


class Call(NamedTuple):
    """A change of the versions, as the admin routes take it.

    Attributes:
        path: below the policy's.
        method: that of HTTP.
        model: the folder of the policy, for a deploy.
    """

    path: str
    method: str = "POST"
    model: Path | None = None


class Round(NamedTuple):
    """A change, and what dies meanwhile.

    Attributes:
        change: one of `_CHANGES`.
        after_s: when it dies, in seconds after the change has begun; negative for before.
    """

    change: str
    after_s: float


@dataclass
class Changes:
    """The rounds of a running server, and what did not hold in them.

    Attributes:
        server: the server.
        home: its folder.
        folders: the policies that can be deployed, by their names.
        killed: words of the command lines of the processes that die; of web processes, one does.
        times: how often they die in a round: those that follow them as soon as they are there.
        replicas: how many each version has; 0 where Ray Serve decides.
        lines: a line of the table for each round.
        broken: what did not hold, in words.
    """

    server: Server
    home: Path
    folders: Mapping[str, Path]
    killed: str
    times: int
    replicas: int
    lines: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    _deployed: int = 0

    def go_through(self, rounds: Sequence[Round]) -> None:
        """Go through rounds."""
        for each in rounds:
            self._go_through(each)

    def deploy(self, *, traffic: int = 100) -> str:
        """Deploy the next version while nothing dies, and return its name."""
        name, call = self._next(traffic)
        answer = self._ask(call)
        assert answer.is_success, answer.text
        self.wait_until_whole()
        return name

    def kept(self) -> Any:  # noqa: ANN401 -- JSON
        """Return the deployment in versions.json; None for none."""
        path = self.home / "versions.json"
        return json.loads(path.read_text())["default"]["deployment"] if path.exists() else None

    def wait_until_whole(self) -> None:
        """Wait until the server is ready, and each web process serves what versions.json says."""
        found = [""]

        def is_whole() -> bool:
            found[0] = self._fault()
            return not found[0]

        wait_until(is_whole, timeout_s=_WHOLE_WITHIN_S, told=lambda: found[0])

    def hold_refusal(self, told: str, answer: httpx.Response, before: object) -> None:
        """Note where a change that can't be carried out now is not 503 in one line, or is kept.

        Args:
            told: the round.
            answer: the refusal.
            before: what `kept` returned before the change.
        """
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or "\n" in answer.text:
            self.broken.append(f"{told}: {answer.status_code} {answer.text[:200]}")
        if self.kept() != before:
            self.broken.append(f"{told}: was refused, and is kept all the same")

    def _go_through(self, each: Round) -> None:
        told = f"{each.change}, {each.after_s:g} s"
        call, before = self._prepared(each.change), self.kept()
        restarts = self._restarts()
        first, seconds, died = self._changed_while_dying(call, each.after_s)
        answer, asked = first, 1
        while not answer.is_success and time.monotonic() < died + _WHOLE_WITHIN_S:
            self.hold_refusal(told, answer, before)
            time.sleep(_PAUSE_S)
            answer, asked = self._ask(call), asked + 1
        if not answer.is_success:
            self.broken.append(f"{told}: {answer.status_code} {answer.text[:200]}")
        whole = self._whole_after(told, died, restarts)
        said = f"{first.status_code} {first.json()['detail'] if first.is_error else ''}"
        told_s = f"{each.after_s:g} s"
        self.lines.append(
            row((each.change, told_s, said.strip(), f"{seconds:.2f} s", asked, whole))
        )

    def _changed_while_dying(
        self, call: Call, after_s: float
    ) -> tuple[httpx.Response, float, float]:
        """Return the answer, how long it took, and when the last process died."""
        # On a busy machine it takes a second to find them.
        found = wait_until(self._found)
        with ThreadPoolExecutor(1) as pool:
            dying = pool.submit(self._kill, found, max(after_s, 0.0))
            if after_s < 0:
                dying.result()
                time.sleep(-after_s)
            began = time.monotonic()
            answer = self._ask(call)
            seconds = time.monotonic() - began
            return answer, seconds, dying.result()

    def _kill(self, found: list[int], after_s: float) -> float:
        """Kill processes after some seconds, and those that follow them; return when they died."""
        time.sleep(after_s)
        for left in reversed(range(self.times)):
            for pid in found[:1] if self.killed == _WEB else found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if left:
                time.sleep(_PAUSE_S)
                found = wait_until(self._found)
        return time.monotonic()

    def _found(self) -> list[int]:
        return self._running(self.killed)

    def _running(self, words: str) -> list[int]:
        return [pid for pid in running_in(self.home.parent) if words in command_line(pid)]

    @property
    def _restart(self) -> str:
        """Return the words of the log that tell of what follows those that die; empty for none."""
        known = {_RAYLET: '"ray_restarted"', _GCS: '"ray_restarted"', _WEB: "startup complete"}
        return known.get(self.killed, "")

    def _restarts(self) -> int:
        return self.server.output().count(self._restart)

    def _whole_after(self, told: str, died: float, restarts: int) -> str:
        """Return how long it took until the server was whole; wait for what follows the dead."""
        whole = "never"
        try:
            self.wait_until_whole()
            whole = f"{time.monotonic() - died:.1f} s"
            if self._restart:
                wait_until(lambda: self._restarts() > restarts, timeout_s=_RESTART_WITHIN_S)
            if self.replicas:
                count = self.replicas * len({each["digest"] for each in self.kept()["versions"]})
                wait_until(
                    lambda: len(self._running(_REPLICA)) == count,
                    timeout_s=_REPLICAS_WITHIN_S,
                    told=lambda: f"{count} replicas; {len(self._running(_REPLICA))}",
                )
        except AssertionError as error:
            self.broken.append(f"{told}: {error}")
        return whole

    def _fault(self) -> str:
        """Return why the server is not whole; empty if it is."""
        if (status := status_of(f"{self.server.url}/readyz")) != OK:
            return f"/readyz: {status}"
        kept = self.kept()
        expected = (kept["serial"], kept["live"], {each["name"] for each in kept["versions"]})
        for _ in range(_LOOKS):
            try:
                known = self._ask(Call("", "GET")).json()
            except httpx.TransportError as error:
                return repr(error)
            listed = {each["name"] for each in known["versions"] if each["state"] != "failed"}
            if (known["serial"], known["live"], listed) != expected:
                return f"expected {expected}, got {known}"
        return ""

    def _prepared(self, change: str) -> Call:
        """Return the call of a change, once the versions are there that it needs."""
        if change == "deploy":
            return self._next(100)[1]
        if change == "promote":
            return Call(f"/promote?version={self.deploy(traffic=10)}")
        if change == "rollback":
            self.deploy()
            return Call("/rollback")
        return Call(f"/versions/{self.deploy(traffic=10)}", "DELETE")

    def _next(self, traffic: int) -> tuple[str, Call]:
        self._deployed += 1
        policy = _OTHERS[self._deployed % len(_OTHERS)]
        name = f"{policy}-{self._deployed}"
        return name, Call(f"/versions?version={name}&traffic={traffic}", model=self.folders[policy])

    def _ask(self, call: Call) -> httpx.Response:
        """Ask on a connection of its own; one that its web process's end takes is 503."""
        body = None if call.model is None else {"model": str(call.model)}
        headers = {"access-token": _ADMIN_KEY}
        with asking.client(timeout=_CALL_TIMEOUT_S) as client:
            try:
                return client.request(
                    call.method, f"{self.server.url}{_ROUTE}{call.path}", json=body, headers=headers
                )
            except httpx.TransportError:
                if self.killed != _WEB:
                    raise
                return httpx.Response(503, json={"detail": "the connection ended"})


@contextmanager
def _changing(
    folder: Path,
    rounds: Sequence[Round],
    killed: str,
    *,
    times: int = 1,
    replicas: int = 1,
    most: int = 0,
    workers: int = 1,
) -> Iterator[Scene]:
    """Serve a policy whose versions change."""
    home = compiled_home_of(EXPORT, folder / "home")
    folders = {name: compiled_home_of(name, folder / name) / "models" for name in _OTHERS}
    environment = {
        "TMPDIR": str(temporary(folder)),
        "POLICY_SERVER_BACKEND": "ray",
        "POLICY_SERVER_NUM_REPLICAS": str(replicas),
        "POLICY_SERVER_MAX_REPLICAS": str(most),
        "POLICY_SERVER_ADMIN_KEY": _ADMIN_KEY,
    }
    # A web process stands still while Ray's library connects to the next Ray: on a busy machine for
    # longer than uvicorn waits by itself.
    patience = ("--timeout-worker-healthcheck", "30")
    arguments = () if workers == 1 else ("--workers", str(workers), *patience)
    start = partial(running_server, home, *arguments, environment=environment)
    with start() as server:
        server.child.wait_until(lambda: server.output().count("startup complete") == workers)
        changes = Changes(server, home, folders, killed, times, 0 if most else replicas)
        # So that versions.json is there already.
        changes.deploy()

        def restarted() -> list[str]:
            before = changes.kept()
            with start() as changes.server:
                try:
                    changes.wait_until_whole()
                except AssertionError as error:
                    changes.broken.append(f"started again: {error}")
            if changes.kept() != before:
                changes.broken.append("started again: versions.json has changed")
            return changes.broken

        yield Scene(
            server,
            {"": Load(server.url, _questions(), _CLIENTS)},
            partial(changes.go_through, rounds),
            further=lambda: [row(_ROUNDS), *changes.lines],
            broken=restarted,
        )


def _questions() -> list[Question]:
    cases = {
        name: json.loads((EXPORTS / name / "cases.json").read_text()) for name in (EXPORT, *_OTHERS)
    }
    return [
        Question(
            "/distribution",
            json.dumps(case["observation"]),
            is_distribution(case),
            by_policy={name: is_distribution(cases[name][number]) for name in _OTHERS},
        )
        for number, case in enumerate(cases[EXPORT])
    ]


def _fault(
    told: str,
    killed: str,
    *,
    changes: Sequence[str] = _CHANGES,
    moments_s: Sequence[float] = _MOMENTS_S,
    limits: Limits | None = None,
    **options: Any,  # noqa: ANN401 -- those of `_changing`
) -> Fault:
    rounds = [Round(*each) for each in product(changes, moments_s)]
    # It is whole again after each round; the last one begins minutes after the first.
    expected = Expectation({"": limits or Limits()}, ready_s=math.inf)
    return Fault(told, partial(_changing, rounds=rounds, killed=killed, **options), expected)


_MEANWHILE = "while versions change"
_TWO = "two web processes"
_LOST = connections_lost(clients=_CLIENTS * len(_CHANGES) * 2, within_s=math.inf)

FAULTS = {
    "versions-raylet": _fault(f"raylet killed {_MEANWHILE}", _RAYLET),
    "versions-gcs": _fault(f"GCS killed {_MEANWHILE}", _GCS),
    "versions-controller": _fault(
        f"Ray Serve's controller killed twice in a row {_MEANWHILE}",
        _CONTROLLER,
        times=2,
        moments_s=(0.0, 0.3),
    ),
    "versions-replicas": _fault(
        f"both replicas of each version killed {_MEANWHILE}",
        _REPLICA,
        replicas=2,
        moments_s=(0.0, 0.05),
    ),
    "versions-scaled": _fault(
        f"raylet killed {_MEANWHILE} and replicas are scaled from one to three",
        _RAYLET,
        most=3,
        changes=("deploy", "promote"),
    ),
    "versions-raylet-workers": _fault(
        f"raylet killed {_MEANWHILE}, {_TWO}", _RAYLET, workers=2, moments_s=(0.1, 1.0)
    ),
    "versions-gcs-workers": _fault(
        f"GCS killed {_MEANWHILE}, {_TWO}", _GCS, workers=2, moments_s=(0.1, 1.0)
    ),
    "versions-controller-workers": _fault(
        f"Ray Serve's controller killed {_MEANWHILE}, {_TWO}",
        _CONTROLLER,
        workers=2,
        moments_s=(0.1, 1.0),
    ),
    "versions-worker": _fault(
        f"one of {_TWO} killed {_MEANWHILE}",
        _WEB,
        workers=2,
        moments_s=(0.0, 0.3),
        changes=("deploy", "promote", "rollback"),
        limits=_LOST,
    ),
}
