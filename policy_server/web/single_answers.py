"""The answer to one row as JSON: `rendering` renders many at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from policy_server.distributions.action_distribution import ActionDistribution
from policy_server.errors import DistributionError
from policy_server.policy import LARGEST, ActionOutput, Float32Array, PolicyOutputs

__all__ = ["NOT_FINITE", "single_distribution", "single_prediction"]

NOT_FINITE = "the policy's action holds NaN or infinity; check the observation and the model"


def single_prediction(
    outputs: PolicyOutputs,
    index: int,
    layout: Sequence[ActionOutput],
    distribution: ActionDistribution | None,
) -> bytes:
    """Return the JSON of one row's action and probability; see `RenderedAnswers.prediction`.

    Args:
        outputs: the answers of one call.
        index: the row's index.
        layout: the actions in order.
        distribution: the policy's; None where the family is unknown.

    Raises:
        DistributionError: if the action holds NaN or infinity.
    """
    numbers = outputs.actions[index].tolist()
    if not all(map(math.isfinite, numbers)):
        raise DistributionError(NOT_FINITE)
    logarithm = min(max(outputs.log_probability.item(index), -LARGEST), LARGEST)
    answer = {
        "actions": _actions_of(numbers, layout),
        "probability": np.float32(outputs.probability_of(index)),
        "log_probability": np.float32(logarithm),
    }
    if distribution is not None and distribution.has_masses:
        answer["at_bound"] = distribution.columns_at_bound(numbers)
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def single_distribution(row: Float32Array, distribution: ActionDistribution) -> bytes | None:
    """Return the JSON of one row's distribution; see `RenderedAnswers.distribution`.

    Args:
        row: float32[K], `action_dist_inputs`.
        distribution: the policy's.

    Returns:
        The JSON; None where the row is no distribution.
    """
    described = distribution.few_rows.describe(row.tolist())
    if described is None:
        return None
    components = []
    for part, fields in zip(distribution.components, described, strict=True):
        component: dict[str, object] = {"kind": part.kind}
        if part.name is not None:
            component["name"] = part.name
        for name, numbers in fields.items():
            component[name] = np.array(numbers, np.float32)
        if part.labels is not None:
            component["labels"] = part.labels
        components.append(component)
    return orjson.dumps({"components": components}, option=orjson.OPT_SERIALIZE_NUMPY)


def _actions_of(numbers: list[float], layout: Sequence[ActionOutput]) -> object:
    """Return one row's actions, as orjson writes them."""
    if len(layout) == 1:
        return _values_of(numbers, layout[0])
    values: list[object] = []
    first = 0
    for output in layout:
        found = _values_of(numbers[first : first + output.columns], output)
        if output.is_vector:
            values.append(found)
        else:
            values.extend(found)
        first += output.columns
    return values


def _values_of(numbers: list[float], output: ActionOutput) -> Sequence[object] | NDArray[Any]:
    if output.is_integer:
        return [int(number) for number in numbers]
    return np.array(numbers, np.float32)
