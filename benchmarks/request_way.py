"""The way of a request through the server, up to any of its stages, without a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np

from benchmarks.hot_connections import BODY, HotConnections
from benchmarks.subjects import OBSERVATION
from policy_server.backends.local import LocalBackend
from policy_server.engine.network import CompiledPolicy, NetworkPolicy
from policy_server.metrics import Metrics
from policy_server.policy import DEFAULT_POLICY, PolicyBackend, PolicyInputs, PolicyOutputs
from policy_server.serving import (
    AnsweredCall,
    Limits,
    PolicyVersion,
    Question,
    Scheduler,
    Waiting,
)
from policy_server.web.answering import PolicyAnswering

__all__ = ["Way"]

_SECONDS = 0.001


class Way:
    """The way of some requests that come at once, up to any of their stages.

    Attributes:
        batch: how many requests come at once.
        stages: goes so far, by the name of the last stage.
    """

    def __init__(
        self,
        connections: HotConnections,
        compiled: CompiledPolicy,
        backend: LocalBackend,
        batch: int,
    ) -> None:
        """Own the queues; the application belongs to the caller.

        Args:
            connections: know the head of the requests.
            compiled: the policy.
            backend: the application's, which computes it.
            batch: how many requests come at once.
        """
        self.batch = batch
        self._find = connections.find_head
        route = connections.route
        self._policy, self._version = route.policy, route.policy.slot.choose()
        read = route.policy.reader(self._version, route.kind, is_raw=route.route.is_raw)
        self._read: Callable[[bytes], Question] = read
        self._observe_answer = route.observe_answer
        self._observe_validation = route.policy.slot.metrics.stage_recorder("validate")
        ready = _Ready(compiled, batch, computes=False)
        network = _Ready(compiled, batch, computes=True)
        self.stages: dict[str, Callable[[], Awaitable[None]]] = {
            "head: found among those that are known": self._find_heads,
            "body: validated, as a row": self._read_bodies,
            "queue: one call of all that have come, in the next turn of the event loop": (
                self._asking(_scheduler(ready), _Asked)
            ),
            "policy: the network": self._asking(_scheduler(network), _Asked),
            "policy: draw, probability, checks": self._asking(_scheduler(backend), _Asked),
            "answers as JSON": self._asking(_scheduler(backend), self._rendered),
            "metrics": self._asking(self._version.scheduler, self._counted),
        }

    async def _find_heads(self) -> None:
        for _ in range(self.batch):
            self._find()

    async def _read_bodies(self) -> None:
        for _ in range(self.batch):
            self._find()
            self._read(BODY)

    def _asking(
        self, scheduler: Scheduler, kind: Callable[[Question], Waiting]
    ) -> Callable[[], Awaitable[None]]:
        async def ask() -> None:
            waiting = None
            for _ in range(self.batch):
                self._find()
                waiting = kind(self._read(BODY))
                scheduler.put(waiting)
            while waiting is not None and not waiting.is_done:
                await asyncio.sleep(0)

        return ask

    def _rendered(self, question: Question) -> Waiting:
        return _Rendered(question, self._policy, self._version)

    def _counted(self, question: Question) -> Waiting:
        self._observe_validation(_SECONDS)
        return _Counted(question, self._policy, self._version, self._observe_answer)


def _scheduler(backend: PolicyBackend) -> Scheduler:
    limits = Limits(max_batch_size=256, max_queue_size=4096, timeout_s=30.0, max_wait_s=30.0)
    return Scheduler(backend, limits, Metrics().of(DEFAULT_POLICY))


class _Asked(Waiting):
    """Needs no answer."""

    def take(self, call: AnsweredCall, index: int) -> None:
        """Leave it."""


class _Rendered(Waiting):
    """Needs the JSON of its answer."""

    def __init__(self, question: Question, policy: PolicyAnswering, version: PolicyVersion) -> None:
        super().__init__(question)
        self._policy = policy
        self._version = version

    def take(self, call: AnsweredCall, index: int) -> None:
        self._policy.render(self._version, self.question, call, index, "")


class _Counted(_Rendered):
    """Is counted when it is answered."""

    def __init__(
        self,
        question: Question,
        policy: PolicyAnswering,
        version: PolicyVersion,
        observe: Callable[[float], None],
    ) -> None:
        super().__init__(question, policy, version)
        self._observe = observe

    def take(self, call: AnsweredCall, index: int) -> None:
        super().take(call, index)
        self._observe(_SECONDS)


class _Ready:
    """An `ImmediateBackend` that has its answers already, and may compute the network before."""

    capacity = 1

    def __init__(self, compiled: CompiledPolicy, batch: int, *, computes: bool) -> None:
        self.signature = compiled.signature
        self._network = compiled.network.compile() if computes else None
        rows = np.tile(np.array(list(OBSERVATION.values()), np.float32), (batch, 1))
        self._outputs = NetworkPolicy(compiled).infer(
            PolicyInputs.of(rows, wants_distribution=False)
        )

    def is_immediate(self, _rows: int) -> bool:
        return True

    def infer_at_once(self, inputs: PolicyInputs) -> PolicyOutputs:
        if self._network is not None:
            self._network(inputs.observations)
        return self._outputs

    async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        return self.infer_at_once(inputs)

    async def is_ready(self) -> bool:
        return True
