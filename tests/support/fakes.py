"""Small fakes that stand on both sides of a policy: a backend over real arrays, and signatures."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.metrics import Metrics
from policy_server.policy import (
    DEFAULT_POLICY,
    ActionComponent,
    ActionOutput,
    ComponentKind,
    Policy,
    PolicyBackend,
    PolicyInputs,
    PolicyOutputs,
    PolicySignature,
    SignatureTensor,
    StateTensor,
)
from policy_server.schema import ServerSchema
from policy_server.serving import OpenedPolicy, PolicyOpener, PolicyRegistry, PolicySlot
from policy_server.serving.session_store import SessionStore
from policy_server.settings import Settings

Answered = Callable[[PolicyOutputs | Exception | None], None]


def components_of(*parts: tuple[ComponentKind, int]) -> tuple[ActionComponent, ...]:
    """Return components that follow each other in inputs and columns."""
    components: list[ActionComponent] = []
    first_input = first_column = 0
    for kind, size in parts:
        part = ActionComponent(kind, size, first_input, first_column)
        components.append(part)
        first_input += part.inputs
        first_column += part.columns
    return tuple(components)


def outputs_of(components: Sequence[ActionComponent]) -> tuple[ActionOutput, ...]:
    """Return one action a component, as a tuple policy gives them."""
    return tuple(
        ActionOutput(
            f"actions_{index}",
            is_integer=part.kind == "categorical",
            columns=part.columns,
            is_vector=part.kind != "categorical",
        )
        for index, part in enumerate(components)
    )


def signature_of(
    components: tuple[ActionComponent, ...] | None,
    *,
    width: int | None = 2,
    outputs: tuple[ActionOutput, ...] | None = None,
) -> PolicySignature:
    """Return a signature; without `outputs` each component is an action of its own."""
    return PolicySignature(
        observation_width=width,
        observation_dtype="float32",
        inputs=(SignatureTensor("observations", "float32", (None, width)),),
        outputs=(SignatureTensor("action_dist_inputs", "float32", (None, None)),),
        action_outputs=outputs_of(components or ()) if outputs is None else outputs,
        components=components,
        basis="graph" if components is None else "structure",
    )


@dataclass
class FakeBackend:
    """A policy whose `action_dist_inputs` are `bias`, plus the first value of the observation.

    Attributes:
        signature: what the policy says of itself.
        bias: the inputs of the distribution for an observation that starts with 0.
        weight: what the first value of the observation counts.
        policy: computes the answers in place of the bias.
        error: raised by each call for an observation that starts with `poison`.
        poison: what an observation starts with that makes the call fail.
        batches: how many observations each call had.
        calls: what each call was given.
        gate: calls wait for it.
        is_up: what `is_ready` answers.
        actions: the graph's own action and probability, where the family is unknown.
        capacity: how many calls it says that it computes at the same time.
    """

    signature: PolicySignature
    bias: Sequence[float]
    error: Exception | None = None
    poison: float = 666.0
    weight: float = 1.0
    policy: Policy | None = None
    batches: list[int] = field(default_factory=list)
    calls: list[PolicyInputs] = field(default_factory=list)
    gate: asyncio.Event | None = None
    is_up: bool = True
    actions: tuple[Sequence[float], float] = ((), float("nan"))
    capacity: int = 1

    async def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer as a real backend does, or fail."""
        observations = inputs.observations
        self.batches.append(len(observations))
        self.calls.append(inputs)
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None and (observations[:, 0] == self.poison).any():
            raise self.error
        if self.policy is not None:
            return self.policy.infer(inputs)
        rows = len(observations)
        if self.signature.components is None:
            actions, chance = self.actions
            return PolicyOutputs(np.tile(actions, (rows, 1)), np.full(rows, math.log(chance)), None)
        values = np.tile(np.array(self.bias, np.float32), (rows, 1))
        values[:, 0] += self.weight * observations[:, 0].astype(np.float32)
        distribution = ActionDistribution(
            self.signature.components, is_greedy=self.signature.is_value_based
        )
        if inputs.masks is not None:
            values = distribution.masked(values, inputs.masks)
        return distribution.answer(
            values,
            is_deterministic=inputs.is_deterministic,
            seeds=inputs.seeds,
            wants_distribution=inputs.wants_distribution,
        )

    async def is_ready(self) -> bool:
        """Return what the test set."""
        return self.is_up


def integer_backend(
    bias: Sequence[float] = (0.0, 1.0, 2.0),
    *,
    width: int = 2,
    **options: Any,  # noqa: ANN401 -- what a `FakeBackend` has
) -> FakeBackend:
    """Return a policy of one integer action over observations of `width` numbers."""
    action = ActionOutput("actions_0", is_integer=True, columns=1, is_vector=False)
    components = components_of(("categorical", len(bias)))
    return FakeBackend(signature_of(components, width=width, outputs=(action,)), bias, **options)


@dataclass
class Immediate(FakeBackend):
    """A backend whose calls of up to 4 rows are computed at once.

    Attributes:
        at_once: how many rows each of these had.
    """

    at_once: list[int] = field(default_factory=list)

    def is_immediate(self, rows: int) -> bool:
        """Return whether the call is short."""
        return rows <= 4

    def infer_at_once(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer as `infer` does, without a wait."""
        self.at_once.append(len(inputs))
        coroutine = self.infer(inputs)
        try:
            coroutine.send(None)
        except StopIteration as end:
            outputs: PolicyOutputs = end.value
            return outputs
        raise AssertionError("it waits for nothing")


def immediate_backend(error: Exception | None = None) -> Immediate:
    """Return such a backend."""
    known = integer_backend()
    return Immediate(known.signature, known.bias, error=error)


@dataclass
class Sending(FakeBackend):
    """A backend that is sent calls, and answers them when the gate is open.

    Attributes:
        sent: how many rows each call had that was sent.
        is_taking: whether calls can be sent.
        losses: so many calls are lost.
        within_s: the time that the last one was given.
    """

    sent: list[int] = field(default_factory=list)
    is_taking: bool = True
    losses: int = 0
    within_s: float = 0.0

    def send(self, inputs: PolicyInputs, answered: Answered, *, within_s: float) -> bool:
        """Send a call; see `SendingBackend.send`."""
        if not self.is_taking:
            return False
        self.sent.append(len(inputs))
        self.within_s = within_s
        # Held by nobody else: a task of its own, which no scheduler waits for.
        self.answering = asyncio.create_task(self._answer(inputs, answered))
        return True

    async def _answer(self, inputs: PolicyInputs, answered: Answered) -> None:
        outcome: PolicyOutputs | Exception | None
        try:
            outcome = await self.infer(inputs)
        except Exception as error:
            outcome = error
        if self.losses:
            self.losses -= 1
            outcome = None
        answered(outcome)


def sending_backend(**changes: Any) -> Sending:  # noqa: ANN401 -- of the fake
    """Return such a backend."""
    known = integer_backend()
    return Sending(known.signature, known.bias, **changes)


@dataclass(frozen=True)
class SummingPolicy:
    """A policy whose memory is the sum of the observations' first values, modulo 3: its mode.

    Attributes:
        signature: what the policy says of itself.
    """

    signature: PolicySignature

    def infer(self, inputs: PolicyInputs) -> PolicyOutputs:
        """Answer one step of each row's episode."""
        rows = len(inputs)
        before = np.zeros((rows, 1), np.float32) if inputs.state is None else inputs.state
        after = (before + inputs.observations[:, :1].astype(np.float32)) % 3
        values = np.zeros((rows, 3), np.float32)
        values[np.arange(rows), after[:, 0].astype(int) % 3] = 3.0
        outputs = ActionDistribution(self.signature.components or ()).answer(
            values,
            is_deterministic=inputs.is_deterministic,
            seeds=inputs.seeds,
            wants_distribution=inputs.wants_distribution,
        )
        return replace(outputs, state=None if inputs.state is None else after)

    def seconds_for(self, rows: int) -> float:
        """Return that a call is short."""
        return rows * 1e-9


def summing_backend(**options: Any) -> FakeBackend:  # noqa: ANN401 -- what a `FakeBackend` has
    """Return a policy with memory; see `SummingPolicy`."""
    plain = integer_backend(**options)
    signature = replace(plain.signature, memory=(StateTensor("sum", (1,)),))
    return replace(plain, signature=signature, policy=SummingPolicy(signature))


def previous_backend() -> FakeBackend:
    """Return a policy that takes the action and the reward of the step before."""
    backend = summing_backend()
    memory = (
        *backend.signature.memory,
        StateTensor("prev_actions", (1,), role="previous_action"),
        StateTensor("prev_rewards", (1,), role="previous_reward"),
    )
    return replace(backend, signature=replace(backend.signature, memory=memory))


def gated(backend: FakeBackend) -> FakeBackend:
    """Return the backend with a gate, which is open."""
    backend.gate = asyncio.Event()
    backend.gate.set()
    return backend


def hold(backend: FakeBackend) -> asyncio.Event:
    """Close a backend's gate, and return it."""
    assert backend.gate is not None
    backend.gate.clear()
    return backend.gate


def masked_backend(*sizes: int, mask_name: str = "action_mask") -> FakeBackend:
    """Return a policy of integer actions over two numbers, which takes a mask beside them.

    Each action's probabilities rise from choice to choice.
    """
    components = components_of(*(("categorical", size) for size in sizes))
    actions = ActionOutput("actions_0", is_integer=True, columns=len(sizes), is_vector=True)
    signature = replace(signature_of(components, outputs=(actions,)), mask_name=mask_name)
    return FakeBackend(signature, [float(c) for size in sizes for c in range(size)], weight=0.0)


def renamed(backend: FakeBackend, components: tuple[ActionComponent, ...]) -> FakeBackend:
    """Return the backend with other components."""
    return replace(backend, signature=replace(backend.signature, components=components))


@asynccontextmanager
async def opened(backend: PolicyBackend, *, digest: str = "") -> AsyncIterator[OpenedPolicy]:
    """Open a backend as the composition root does."""
    yield OpenedPolicy(backend, digest)


def slot_of(
    backend: PolicyBackend | PolicyOpener,
    schema: ServerSchema,
    *,
    name: str = DEFAULT_POLICY,
    settings: Settings | None = None,
    metrics: Metrics | None = None,
    sessions: SessionStore | None = None,
) -> PolicySlot:
    """Return the slot of a policy that computes in a fake backend, or is opened by a fake."""
    open_policy = backend if callable(backend) else lambda: opened(backend)
    return PolicySlot(
        name,
        schema,
        open_policy,
        settings=settings or Settings(),
        metrics=metrics or Metrics(),
        sessions=sessions,
    )


def registry_of(
    backend: PolicyBackend | PolicyOpener,
    schema: ServerSchema,
    *,
    settings: Settings | None = None,
    metrics: Metrics | None = None,
) -> PolicyRegistry:
    """Return a registry of one policy; see `slot_of`."""
    return PolicyRegistry([slot_of(backend, schema, settings=settings, metrics=metrics)])
