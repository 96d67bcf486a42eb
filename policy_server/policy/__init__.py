"""The core types: a policy's signature, its inputs and outputs, and where it computes."""

from __future__ import annotations

from policy_server.policy.boundaries import (
    ImmediateBackend,
    LosableBackend,
    Policy,
    PolicyBackend,
    SendingBackend,
)
from policy_server.policy.calls import (
    ANSWER_KINDS,
    LARGEST,
    LARGEST_SEED,
    NO_SEED,
    AnswerKind,
    Float32Array,
    Float64Array,
    Int64Array,
    PolicyInputs,
    PolicyOutputs,
    refuse_masks,
    refuse_state,
)
from policy_server.policy.observed_parts import (
    ObservationPart,
    distinct_names,
    part_names,
)
from policy_server.policy.signature import (
    ActionComponent,
    ActionOutput,
    Basis,
    ComponentKind,
    PolicySignature,
    SignatureTensor,
    StateRole,
    StateTensor,
)
from policy_server.schema import DEFAULT_POLICY

__all__ = [
    "ANSWER_KINDS",
    "DEFAULT_POLICY",
    "LARGEST",
    "LARGEST_SEED",
    "NO_SEED",
    "ActionComponent",
    "ActionOutput",
    "AnswerKind",
    "Basis",
    "ComponentKind",
    "Float32Array",
    "Float64Array",
    "ImmediateBackend",
    "Int64Array",
    "LosableBackend",
    "ObservationPart",
    "Policy",
    "PolicyBackend",
    "PolicyInputs",
    "PolicyOutputs",
    "PolicySignature",
    "SendingBackend",
    "SignatureTensor",
    "StateRole",
    "StateTensor",
    "distinct_names",
    "part_names",
    "refuse_masks",
    "refuse_state",
]
