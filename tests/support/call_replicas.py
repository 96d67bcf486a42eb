"""Replicas of direct calls, each with an event loop that can freeze: in threads, or in a process.

Run as `python -m tests.support.call_replicas FOLDER SECONDS`: a replica whose calls take so long.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from policy_server.backends.ray.call_server import CallServer
from policy_server.backends.ray.direct_calls import DirectCalls
from policy_server.backends.ray.replica_list import ReplicaAddress
from policy_server.backends.ray_processes import UseOf, use_of
from policy_server.policy import PolicyInputs, PolicyOutputs
from tests.support.waiting import until

__all__ = [
    "APPLICATION",
    "Infer",
    "ReplicaThread",
    "Replicas",
    "connected",
    "doubled",
    "inputs_of",
    "number_in",
    "replica_process",
]

APPLICATION = "policy-default-0123456789ab"
TIMEOUT_S = 20.0

_Result = TypeVar("_Result")
Infer = Callable[[PolicyInputs], PolicyOutputs]


def inputs_of(number: float, rows: int = 1) -> PolicyInputs:
    """Return inputs that tell calls apart."""
    return PolicyInputs.of(np.full((rows, 2), number, np.float32))


def number_in(outputs: PolicyOutputs) -> float:
    """Return the number by which answers of `doubled` are told apart."""
    return float(outputs.actions[0, 0])


def doubled(inputs: PolicyInputs) -> PolicyOutputs:
    """Answer as a policy would."""
    rows = len(inputs)
    return PolicyOutputs(2.0 * inputs.observations[:, :1].astype(float), np.ones(rows), None)


class ReplicaThread:
    """A replica in a thread.

    Attributes:
        address: where it takes calls.
        asked: what it has been asked, in order.
    """

    def __init__(self, infer: Infer, name: str, *, folder: Path | None = None) -> None:
        """Own the thread and its event loop, from now to `end`."""
        self.asked: list[PolicyInputs] = []
        self._infer = infer
        self._frozen = threading.Event()
        self._thawed = threading.Event()
        self._is_ending = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = CallServer(self._answer, application=APPLICATION, replica=name)
        self.address: ReplicaAddress = self._run(self._server.listen("127.0.0.1", folder=folder))

    def freeze(self) -> None:
        """Stand still, as a process that was stopped does, until `thaw`."""
        self._thawed.clear()
        self._frozen.clear()
        self._loop.call_soon_threadsafe(self._stand_still)
        assert self._frozen.wait(TIMEOUT_S)

    def thaw(self) -> None:
        """Go on."""
        self._thawed.set()

    def end_without_answers(self) -> None:
        """End the connections of a replica that is frozen, before it reads what has come."""
        self._is_ending = True
        self.thaw()

    def end_in_a_call(self) -> None:
        """End the connections from within a call, as a process does that a call ends."""
        self._server.close()

    def end(self) -> None:
        """End the replica, with its connections."""
        self.thaw()
        if self._thread.is_alive():
            self._run(self._server.aclose())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(TIMEOUT_S)
            self._loop.close()

    def _answer(self, inputs: PolicyInputs) -> PolicyOutputs:
        self.asked.append(inputs)
        return self._infer(inputs)

    def _stand_still(self) -> None:
        self._frozen.set()
        assert self._thawed.wait(TIMEOUT_S)
        if self._is_ending:
            self._server.close()

    def _run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(TIMEOUT_S)


class Replicas:
    """The replicas of an application, and the list of them; see `ReplicaSource`.

    Attributes:
        threads: the replicas.
        listed: the addresses in the list.
        removed: those that were asked to be removed.
        lost: those that `calls` has lost.
    """

    def __init__(self, *infers: Infer, folder: Path | None = None) -> None:
        """Own the replicas, until `end`."""
        self.threads = [
            ReplicaThread(infer, f"a{i}", folder=folder) for i, infer in enumerate(infers)
        ]
        self.listed = [thread.address for thread in self.threads]
        self.removed: list[ReplicaAddress] = []
        self.lost: list[str] = []

    def calls(
        self,
        count: int | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        use_of: UseOf = use_of,
    ) -> DirectCalls:
        """Return calls to them, not connected yet."""
        count = len(self.listed) if count is None else count
        calls = DirectCalls(self, replicas=count, timeout_s=timeout_s, use_of=use_of)
        calls.on_lost = self.lost.append
        return calls

    async def addresses(self) -> Sequence[ReplicaAddress]:
        return list(self.listed)

    async def remove_dead(self, address: ReplicaAddress) -> None:
        self.removed.append(address)

    def add(self, infer: Infer, name: str) -> ReplicaThread:
        """Have another replica appear in the list."""
        self.threads.append(ReplicaThread(infer, name))
        self.listed.append(self.threads[-1].address)
        return self.threads[-1]

    def end(self) -> None:
        """End them all."""
        for thread in self.threads:
            thread.end()


@asynccontextmanager
async def connected(
    replicas: Replicas, *, timeout_s: float = TIMEOUT_S, use_of: UseOf = use_of
) -> AsyncIterator[DirectCalls]:
    """Connect to all replicas; end the connections and the replicas."""
    calls = replicas.calls(timeout_s=timeout_s, use_of=use_of)
    try:
        await calls.open()
        await until(lambda: calls.capacity == len(replicas.listed))
        yield calls
    finally:
        await calls.aclose()
        replicas.end()


@contextmanager
def replica_process(
    folder: Path, *, call_s: float = 0.0
) -> Iterator[tuple[subprocess.Popen[str], ReplicaAddress]]:
    """Run a replica in a process of its own, and end it with the block."""
    command = [sys.executable, "-m", __name__, str(folder), str(call_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            path, key = process.stdout.readline().split()
            yield process, ReplicaAddress(APPLICATION, "own", "", 0, path, bytes.fromhex(key))
        finally:
            process.kill()


def _serve(folder: Path, call_s: float) -> None:
    def answer(inputs: PolicyInputs) -> PolicyOutputs:
        time.sleep(call_s)
        return doubled(inputs)

    address = ReplicaThread(answer, "own", folder=folder).address
    sys.stdout.write(f"{address.path} {address.key.hex()}\n")
    sys.stdout.flush()
    threading.Event().wait()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), float(sys.argv[2]))
