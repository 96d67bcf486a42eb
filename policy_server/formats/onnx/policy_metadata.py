"""The description of a policy in an .onnx file's `metadata_props`: docs/onnx.md has the convention.

One key holds a JSON object that says what a server has to know beside the graph: the distribution
and its sizes, bounds and names, the observation's parts, and the memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from policy_server.policy import (
    ActionComponent,
    ActionOutput,
    ComponentKind,
    ObservationPart,
    PolicySignature,
    StateRole,
)

__all__ = ["POLICY_KEY", "VECTORS_KEY", "PolicyDocument", "policy_document"]

POLICY_KEY = "policy_server.policy.v1"
VECTORS_KEY = "policy_server.test_vectors.v1"

_NUMBERS = r"^(bool|bfloat16|float(16|32|64)|u?int(8|16|32|64))$"

Size = Annotated[int, Field(gt=0, le=10_000_000)]
Place = Annotated[int, Field(ge=0, le=10_000_000)]
# None stands for a bound that is infinite.
Bound = Annotated[float, Field(allow_inf_nan=False)] | None
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Part(_Strict):
    key: str = ""
    kind: Literal["box", "one_hot", "binary"] = "box"
    shape: list[Size] = []
    sizes: list[Size] = []
    is_integer: bool = False
    low: Bound = None
    high: Bound = None
    is_normalized: bool = False


class _Observation(_Strict):
    inputs: Annotated[list[str], Field(min_length=1)]
    dtype: Annotated[str, Field(pattern=_NUMBERS)] | None = None
    parts: list[_Part] = []


class _Component(_Strict):
    kind: ComponentKind
    size: Size
    first_input: Place | None = None
    first_column: Place | None = None
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    log_std_bounds: tuple[Bound, Bound] | None = None
    mean_bounds: tuple[Bound, Bound] | None = None
    std_floor: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    has_unsquashed_mode: bool = False
    name: str | None = None
    labels: list[str] | None = None
    low: list[Bound] | None = None
    high: list[Bound] | None = None
    is_normalized: bool = True
    has_integers: bool = False
    has_probability: bool = True


class _Distribution(_Strict):
    output: str
    components: Annotated[list[_Component], Field(min_length=1)]
    is_value_based: bool = False


class _Action(_Strict):
    name: str
    columns: Size = 1
    is_integer: bool
    is_vector: bool = False


class _Memory(_Strict):
    name: str
    input: str
    output: str
    role: StateRole = "state"


class PolicyDocument(_Strict):
    """The JSON object of `POLICY_KEY`.

    Attributes:
        observation: the inputs that make an observation, its type and its parts.
        distribution: the output with `action_dist_inputs`, and its components.
        actions: the actions in order; left out, each component is one.
        memory: the pairs of inputs and outputs that carry the state.
        mask: the input that is the action mask; None for none.
        module: the policy's name in the file that it was made of.
        is_tuple_of_one: its only action is a tuple's only component.
        findings: how it was identified, in words.
    """

    observation: _Observation
    distribution: _Distribution
    actions: list[_Action] | None = None
    memory: list[_Memory] = []
    mask: str | None = None
    module: str | None = None
    is_tuple_of_one: bool = False
    findings: list[str] = []

    def components(self) -> tuple[ActionComponent, ...]:
        """Return the distribution's components; each begins behind the one before."""
        found: list[ActionComponent] = []
        inputs = columns = 0
        for item in self.distribution.components:
            given = item.model_dump(exclude={"low", "high", "first_input", "first_column"})
            part = ActionComponent(
                **given | {"labels": None if item.labels is None else tuple(item.labels)},
                first_input=inputs if item.first_input is None else item.first_input,
                first_column=columns if item.first_column is None else item.first_column,
                low=_bounds(item.low, -math.inf),
                high=_bounds(item.high, math.inf),
            )
            found.append(part)
            inputs, columns = part.first_input + part.inputs, part.first_column + part.columns
        return tuple(found)

    def action_outputs(self) -> tuple[ActionOutput, ...]:
        """Return the actions in order."""
        if self.actions is not None:
            return tuple(ActionOutput(**item.model_dump()) for item in self.actions)
        return tuple(
            ActionOutput(
                f"actions_{place}", part.is_integer, part.columns, part.kind != "categorical"
            )
            for place, part in enumerate(self.components())
        )

    def observation_parts(self) -> tuple[ObservationPart, ...]:
        """Return the parts of the observation in order; empty where they are not told."""
        return tuple(
            ObservationPart(
                **item.model_dump() | {"shape": tuple(item.shape), "sizes": tuple(item.sizes)}
            )
            for item in self.observation.parts
        )


def _bounds(values: Sequence[float | None] | None, infinite: float) -> tuple[float, ...] | None:
    if values is None:
        return None
    return tuple(infinite if value is None else value for value in values)


def policy_document(
    signature: PolicySignature,
    *,
    inputs: Sequence[str],
    output: str,
    memory: Sequence[tuple[str, str]],
    mask: str | None,
) -> str:
    """Return the text of `POLICY_KEY` for a policy.

    Args:
        signature: the policy's signature, whose components are known.
        inputs: the graph's inputs that make an observation.
        output: the graph's output with `action_dist_inputs`.
        memory: the input and the output of each of the signature's state tensors.
        mask: the graph's input that is the action mask; None for none.
    """
    assert signature.components is not None, "only a policy of a known family is written"
    document = {
        "observation": {
            "inputs": list(inputs),
            "dtype": signature.observation_dtype,
            "parts": [_told(part, ("kind",)) for part in signature.observation_parts],
        },
        "distribution": {
            "output": output,
            "components": [
                _told(part, ("kind", "size", "first_input", "first_column"))
                for part in signature.components
            ],
            "is_value_based": signature.is_value_based,
        },
        "actions": [asdict(action) for action in signature.action_outputs],
        "memory": [
            {"name": tensor.name, "input": before, "output": after, "role": tensor.role}
            for tensor, (before, after) in zip(signature.memory, memory, strict=True)
        ],
        "mask": mask,
        "module": signature.module,
        "is_tuple_of_one": signature.is_tuple_of_one,
        "findings": list(signature.findings),
    }
    return json.dumps(document, ensure_ascii=False, allow_nan=False)


def _told(value: ActionComponent | ObservationPart, always: Sequence[str]) -> Mapping[str, Any]:
    """Return the attributes of a value that differ from what is taken where they are left out."""
    defaults = {item.name: item.default for item in fields(value)}
    return {
        key: _finite(found)
        for key, found in asdict(value).items()
        if key in always or found != defaults[key]
    }


def _finite(value: Any) -> Any:  # noqa: ANN401 -- an attribute of any type
    """Return a value for JSON: null for an infinite bound."""
    if isinstance(value, tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and math.isinf(value) else value
