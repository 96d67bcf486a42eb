"""Test vectors in an .onnx file's `metadata_props`: observations with the policy's answers.

A server asks its policy for them at its start, so that a file that was changed, or a runtime that
computes it otherwise, is found before it answers anybody.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.engine.network import FAILURES
from policy_server.errors import DistributionError, ModelError
from policy_server.formats.onnx.model_file import OnnxModel
from policy_server.formats.onnx.policy_metadata import VECTORS_KEY
from policy_server.policy import Policy, PolicyInputs, PolicyOutputs

__all__ = [
    "PolicyVectors",
    "check_vectors",
    "compare",
    "distances",
    "vectors_in",
    "vectors_text",
]

Array = NDArray[Any]

_TOLERANCE = 1e-5
_MOST_VECTORS = 1000


@dataclass(frozen=True, eq=False)
class PolicyVectors:
    """Observations with a policy's answers, one a row.

    Attributes:
        inputs: the questions, whose draws are not asked for.
        outputs: the answers: `action_dist_inputs`, modes, and the state after the step.
    """

    inputs: PolicyInputs
    outputs: PolicyOutputs

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.inputs)

    def first(self, rows: int) -> PolicyVectors:
        """Return the first of them.

        Args:
            rows: how many; all where there are fewer.
        """
        found = self.outputs
        after = None if found.state is None else found.state[:rows]
        distribution = None if found.distribution is None else found.distribution[:rows]
        return PolicyVectors(
            self.inputs.part(0, rows),
            PolicyOutputs(found.actions[:rows], found.log_probability[:rows], distribution, after),
        )


def vectors_text(vectors: PolicyVectors) -> str:
    """Return the text of `VECTORS_KEY`: minus infinity is null.

    Args:
        vectors: finite numbers, but for the inputs of choices that are forbidden.
    """
    inputs, outputs = vectors.inputs, vectors.outputs
    columns: dict[str, Array | None] = {
        "observations": inputs.observations,
        "states": inputs.state,
        "masks": None if inputs.masks is None else inputs.masks.astype(np.int64),
        "distributions": outputs.distribution,
        "actions": outputs.actions,
        "states_after": outputs.state,
    }
    # A float32's own shortest digits; as a float64 it would have twice as many.
    rows = {
        key: [[_number(number) for number in row] for row in values]
        for key, values in columns.items()
        if values is not None
    }
    return json.dumps(rows, allow_nan=False)


def _number(number: Any) -> float | int | None:  # noqa: ANN401 -- a number of NumPy's
    if isinstance(number, np.integer):
        return int(number)
    if np.isneginf(number):
        return None
    return int(number) if number == np.rint(number) and abs(number) < 1e6 else float(str(number))


def vectors_in(model: OnnxModel, policy: Policy) -> PolicyVectors:
    """Return the test vectors of a file that describes its policy.

    Args:
        model: the file's contents.
        policy: the policy that it gives.

    Raises:
        ModelError: if there are none, or they are of another policy's sizes.
    """
    text = model.metadata.get(VECTORS_KEY)
    if text is None:
        raise ModelError(
            f"{model.name}: has no {VECTORS_KEY}, the answers that its policy is checked by; write "
            "them as docs/onnx.md has it"
        )
    try:
        found = json.loads(text)
        return _read(found, policy)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelError(
            f"{model.name}: {VECTORS_KEY}: {error}; write it as docs/onnx.md has it"
        ) from error


def _read(found: Mapping[str, Any], policy: Policy) -> PolicyVectors:
    signature = policy.signature
    components = signature.components or ()
    rows = len(found["observations"])
    if not 0 < rows <= _MOST_VECTORS:
        raise ValueError(f"has {rows} observations, expected 1 to {_MOST_VECTORS}")
    width = signature.observation_width or 0
    numbers = max(part.first_input + part.inputs for part in components)
    columns = sum(part.columns for part in components)
    memory, choices = signature.memory_width, sum(signature.mask_sizes)
    names = {"observations", "distributions", "actions"}
    names |= {"states", "states_after"} if memory else set()
    names |= {"masks"} if choices else set()
    if set(found) != names:
        raise ValueError(f"has {', '.join(sorted(found))}, expected {', '.join(sorted(names))}")
    shape = {
        "observations": (width, signature.row_dtype),
        "states": (memory, np.float32),
        "states_after": (memory, np.float32),
        "masks": (choices, np.bool_),
        "distributions": (None, np.float32),
        "actions": (columns, np.float64),
    }
    tables = {
        name: _table(name, found[name], rows, *expected)
        for name, expected in shape.items()
        if name in names
    }
    if tables["distributions"].shape[1] < numbers:
        raise ValueError(f"distributions: has fewer than {numbers} numbers a row")
    deterministic = np.ones(rows, np.bool_)
    inputs = PolicyInputs(
        tables["observations"],
        deterministic,
        np.full(rows, -1),
        state=tables.get("states"),
        masks=tables.get("masks"),
    )
    outputs = PolicyOutputs(
        tables["actions"], np.zeros(rows), tables["distributions"], tables.get("states_after")
    )
    return PolicyVectors(inputs, outputs)


def _table(name: str, values: Sequence[Any], rows: int, width: int | None, dtype: Any) -> Array:  # noqa: ANN401 -- a type of NumPy's
    table = np.array(values, np.float64)
    if name == "distributions":
        table = np.where(np.isnan(table), -np.inf, table)
    elif not np.isfinite(table).all():
        raise ValueError(f"{name}: has null, expected numbers")
    if table.ndim != 2 or len(table) != rows or width not in (None, table.shape[1]):
        expected = f"{rows} rows" if width is None else f"{rows} rows of {width} numbers"
        raise ValueError(f"{name}: has the shape {table.shape}, expected {expected}")
    return table.astype(dtype)


def check_vectors(name: str, vectors: PolicyVectors, policy: Policy) -> str:
    """Hold a policy against the test vectors of its file, and return the outcome in words.

    Args:
        name: the file's name, for the message.
        vectors: observations with their answers.
        policy: the policy.

    Raises:
        ModelError: if an answer differs by more than 1e-5; see `compare`.
    """
    largest, problem = compare(vectors, policy)
    if problem is not None:
        raise ModelError(
            f"{name}: differs from its test vectors: {problem}; the file was changed or damaged, "
            "or this machine computes it otherwise: export it again"
        )
    return f"{len(vectors)} test vectors in the file agree (within {largest:.1e})"


def compare(vectors: PolicyVectors, policy: Policy) -> tuple[float, str | None]:
    """Compare a policy's distribution, mode and state with those of test vectors.

    Args:
        vectors: observations with their answers.
        policy: the policy.

    Returns:
        The largest difference, relative to the largest number of its row above 1; and in words the
        first that is larger than 1e-5, None for none.
    """
    try:
        found = policy.infer(vectors.inputs)
    except (*FAILURES, DistributionError) as error:
        return math.inf, f"no answer: {error}"
    expected, largest = vectors.outputs, 0.0
    for noun, ours, theirs in (
        ("the distribution", found.distribution, expected.distribution),
        ("the deterministic action", found.actions, expected.actions),
        ("the state after the step", _own(policy, found.state), _own(policy, expected.state)),
    ):
        if ours is None or theirs is None:
            continue
        if ours.shape != theirs.shape:
            return math.inf, f"{noun} has {ours.shape[1]} numbers, expected {theirs.shape[1]}"
        difference = _differences(ours, theirs)
        row = int(difference.argmax())
        largest = max(largest, float(difference[row]))
        if not difference[row] <= _TOLERANCE:
            column = int(np.argmax(distances(ours[row], theirs[row])))
            return largest, (
                f"number {column} of {noun} is {ours[row][column]:.7g} in row {row}, expected "
                f"{theirs[row][column]:.7g}"
            )
    return largest, None


def _own(policy: Policy, state: Array | None) -> Array | None:
    """Return a state without the previous action, which the graph does not write."""
    signature = policy.signature
    return None if state is None else np.delete(state, signature.places_of("previous_action"), 1)


def distances(ours: Array, theirs: Array) -> Array:
    """Return how far numbers lie apart: 0 for equal infinite ones, infinity for NaN."""
    with np.errstate(invalid="ignore"):
        found = np.where(ours == theirs, 0.0, np.abs(ours.astype(np.float64) - theirs))
    return np.where(np.isnan(found), np.inf, found)


def _differences(ours: Array, theirs: Array) -> Array:
    """Return the largest difference of each row, relative to its largest number above 1."""
    largest = np.abs(np.where(np.isfinite(theirs), theirs, 0.0)).max(axis=1, initial=0.0)
    found: Array = distances(ours, theirs).max(axis=1, initial=0.0) / np.maximum(largest, 1.0)
    return found
