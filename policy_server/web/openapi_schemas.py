"""The JSON schemas of the OpenAPI document: those of exactly these policies, and errors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from policy_server.policy import LARGEST
from policy_server.serving import PolicySlot

__all__ = ["REWARD", "TypeNames", "error_schemas", "policy_schemas", "sized"]

Document = dict[str, Any]

REWARD: Document = {"type": "number", "minimum": -LARGEST, "maximum": LARGEST}
"""The type of the reward of the step before: policies take numbers of 32 bits."""
_AT_BOUND: Document = {
    "type": "array",
    "items": {"type": "integer", "format": "int32"},
    "description": "The indices, from 0, of the numbers in `actions`, nested lists flattened, that "
    "were cut at a bound of the schema; such a number counts in the probability with the mass at "
    "its bound, the others with their density",
}
_SIZES = {"integer": "int64", "number": "double"}


@dataclass(frozen=True)
class TypeNames:
    """The names of a policy's types.

    Attributes:
        namespace: the policy's name where others are served too; empty for the short addresses.
    """

    namespace: str = ""

    def of(self, name: str) -> str:
        """Return a type's name: `Observation`, or `DoorOpenerObservation` of `door-opener`."""
        words = re.split(r"[-_]", self.namespace)
        return "".join(word[:1].upper() + word[1:] for word in words) + name

    def reference(self, name: str) -> Document:
        """Return a JSON schema that refers to a type."""
        return {"$ref": f"#/components/schemas/{self.of(name)}"}


def policy_schemas(slot: PolicySlot, *, namespace: str = "") -> Document:
    """Return the schemas of one policy's observations and answers, by name.

    Args:
        slot: the policy; widths are exact once it is loaded.
        namespace: see `TypeNames`.
    """
    names = TypeNames(namespace)
    raw = slot.space.raw_json_schema(slot.width)
    schemas: Document = {
        "RawObservation": sized(raw),
        "Prediction": _prediction(slot),
        "Distribution": _components_of(names.reference("Component")),
        "Component": _component(is_batch=False),
        "RawObservationColumns": _columns_of(raw),
        "PredictionBatch": _prediction_batch(slot),
        "DistributionBatch": _components_of(names.reference("ComponentBatch")),
        "ComponentBatch": _component(is_batch=True),
    }
    observation = slot.space.json_schema()
    if observation is not None:
        columns = _columns_of(observation)
        schemas = {"Observation": sized(observation), **schemas, "ObservationColumns": columns}
    # openapi-generator takes types of one title and one form for one type, and writes one of them.
    return {names.of(name): {**schema, "title": names.of(name)} for name, schema in schemas.items()}


def _components_of(component: Document) -> Document:
    return _object({"components": {"type": "array", "items": component}})


def error_schemas() -> Document:
    """Return the schemas of errors, by name."""
    return {
        "Problem": _object(
            {"detail": {"type": "string", "description": "What is wrong, in one sentence"}}
        ),
        "HTTPValidationError": _object(
            {"detail": {"type": "array", "items": {"$ref": "#/components/schemas/ValidationError"}}}
        ),
        "ValidationError": _object(
            {
                "loc": {
                    "type": "array",
                    "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                },
                "msg": {"type": "string"},
                "type": {"type": "string"},
            }
        ),
    }


def _columns_of(observation: Document) -> Document:
    """Return the type of many observations by column."""
    properties = {
        name: {"type": "array", "items": sized(schema)}
        for name, schema in observation["properties"].items()
    }
    required = observation.get("required", [])
    return {**_object(properties, required=required), "additionalProperties": False}


def _object(properties: Document, *, required: list[str] | None = None) -> Document:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
    }


def _prediction(slot: PolicySlot) -> Document:
    return _object(
        {
            **_answer(slot),
            **({"at_bound": _AT_BOUND} if _is_clipped(slot) else {}),
        }
    )


def _is_clipped(slot: PolicySlot) -> bool:
    components = None if slot.signature is None else slot.signature.components
    return any(part.is_clipped for part in components or ())


def _answer(slot: PolicySlot) -> Document:
    return {
        "actions": {
            "type": "array",
            "items": _action_items(slot),
            "description": "The whole action: one value an action component, a nested list for "
            "a vector in a tuple",
        },
        "probability": {
            "type": ["number", "null"],
            "format": "float",
            "description": "The probability of the whole action: a density where actions are "
            "continuous, cut to float32's largest number; null where the model gives none, and "
            "for a deterministic action that the policy never draws",
        },
        "log_probability": {
            "type": ["number", "null"],
            "format": "float",
            "description": "The natural logarithm of the probability, which no product of many "
            "parts rounds to 0; null where `probability` is",
        },
    }


def _prediction_batch(slot: PolicySlot) -> Document:
    one = _prediction(slot)["properties"]
    return _object(
        {
            "actions": {
                "type": "array",
                "items": {"type": "array", "items": one["actions"]["items"]},
                "description": "For each observation its whole action, as `/predict` gives it",
            },
            "probability": {
                "type": "array",
                "items": {"type": ["number", "null"], "format": "float"},
                "description": "For each observation the probability of its whole action",
            },
            "log_probability": {
                "type": "array",
                "items": {"type": ["number", "null"], "format": "float"},
                "description": "For each observation the logarithm of that probability",
            },
            **({"at_bound": {"type": "array", "items": _AT_BOUND}} if _is_clipped(slot) else {}),
        }
    )


def _action_items(slot: PolicySlot) -> Document:
    signature = slot.signature
    number = {"type": "number", "format": "float"}
    if signature is None:
        return {"type": "integer"} if slot.schema.discrete else number
    kinds: list[Document] = []
    for action in signature.action_outputs:
        scalar: Document = {"type": "integer"} if action.is_integer else number
        is_nested = len(signature.action_outputs) > 1 and action.is_vector
        kind = {"type": "array", "items": scalar} if is_nested else scalar
        if kind not in kinds:
            kinds.append(kind)
    return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


def _component(*, is_batch: bool) -> Document:
    numbers: Document = {"type": "array", "items": {"type": "number", "format": "float"}}
    if is_batch:
        numbers = {"type": "array", "items": numbers}
    return _object(
        {
            "kind": {
                "type": "string",
                "enum": ["categorical", "normal", "squashed_normal", "deterministic"],
            },
            "name": {"type": "string", "description": "The component's name in the schema"},
            "probabilities": {
                **numbers,
                "description": "Categorical: one probability an action; the index is the action",
            },
            "labels": {
                "type": "array",
                "items": {"type": "string"},
                "description": "Names of the actions, in order",
            },
            "mean": {
                **numbers,
                "description": "Normal: the mean of each dimension; before the tanh where it is "
                "squashed",
            },
            "std": {
                **numbers,
                "description": "Normal: the standard deviation of each dimension; before the tanh "
                "where it is squashed",
            },
            "mass_at_low": {
                **numbers,
                "description": "Normal with bounds: the probability that each dimension is cut "
                "at its lower bound",
            },
            "mass_at_high": {
                **numbers,
                "description": "Normal with bounds: the probability that each dimension is cut "
                "at its upper bound",
            },
            "value": {**numbers, "description": "Deterministic: the action itself"},
        },
        required=["kind"],
    )


def sized(schema: Document) -> Document:
    """Return the schema with the size of its numbers, as typed languages need it.

    Without one, a generated client has 32-bit integers and decimal numbers of any length.

    Args:
        schema: a JSON schema.
    """
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = kind[0]
    result = {"format": _SIZES[kind], **schema} if kind in _SIZES else dict(schema)
    if "properties" in schema:
        result["properties"] = {name: sized(part) for name, part in schema["properties"].items()}
    if "items" in schema:
        result["items"] = sized(schema["items"])
    if "prefixItems" in schema:
        result["prefixItems"] = [sized(part) for part in schema["prefixItems"]]
    return result
