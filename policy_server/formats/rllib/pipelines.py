"""The effect of RLlib's connectors on observations and actions, ahead of and behind the network.

A connector that is not one of RLlib's own default pieces, or needs the episode's past, is refused
by name: the answers would not be those that were trained.
"""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.rllib.actions import Scaling
from policy_server.formats.rllib.checkpoint import Connector

__all__ = ["ObservationFilter", "read_filter", "read_scaling"]

Array = NDArray[Any]

_FILTER = "MeanStdFilter"
_SCALING = "NormalizeAndClipActions"
# They bring observations to the network, and actions back, without changing a number: a client
# sends the flat vector that FlattenObservations makes.
_ENV_TO_MODULE = (
    _FILTER,
    "FlattenObservations",
    "AddObservationsFromEpisodesToBatch",
    "AddTimeDimToBatchAndZeroPad",
    "AddStatesFromEpisodesToBatch",
    "AgentToModuleMapping",
    "BatchIndividualItems",
    "NumpyToTensor",
)
_MODULE_TO_ENV = (
    _SCALING,
    "GetActions",
    "TensorToNumpy",
    "UnBatchToIndividualItems",
    "ModuleToAgentUnmapping",
    "RemoveSingleTsTimeRankFromBatch",
    "ListifyDataForVectorEnv",
)
# `ray.rllib.utils.filter`: it keeps a constant number from dividing by zero.
_SMALL = 1e-6
_LONGEST_ARRAY = 1 << 26


@dataclass(frozen=True, eq=False)
class ObservationFilter:
    """A MeanStdFilter as trained: clip((observation - mean) / deviation, -limit, limit).

    Attributes:
        mean: float64[width].
        deviation: float64[width], with the small number that RLlib adds.
        limit: the largest size of a filtered number; None clips nothing.
    """

    mean: Array
    deviation: Array
    limit: float | None


def read_filter(
    connectors: Iterable[Connector], width: int, *, module: str | None = None
) -> ObservationFilter | None:
    """Return the filter of an env-to-module pipeline; None where it has none.

    Args:
        connectors: the pipeline's pieces in order.
        width: how many numbers the network takes.
        module: the RLModule's name, which tells its agent where there are several.

    Raises:
        ModelError: if a piece is not RLlib's own, or the filter does not fit the network.
    """
    _check_known(connectors, _ENV_TO_MODULE, "env-to-module")
    filters = [item for item in connectors if item.name == _FILTER]
    if not filters:
        return None
    states = filters[0].state or {}
    if len(filters) > 1 or not states:
        raise ModelError(
            f"{_FILTER}: expected one with its statistics, got {len(filters)} "
            f"{'with' if states else 'without'}; save the whole checkpoint of a policy with one"
        )
    try:
        return _filter_of(_state_of_agent(states, width, module), width)
    except (EOFError, KeyError, TypeError, ValueError, zlib.error) as error:
        raise ModelError(
            f"{_FILTER}: its state can't be read: {error}; save the checkpoint anew"
        ) from error


def read_scaling(connectors: Iterable[Connector]) -> Scaling:
    """Return how a module-to-env pipeline scales continuous actions.

    Args:
        connectors: the pipeline's pieces.

    Raises:
        ModelError: if a piece is not RLlib's own.
    """
    _check_known(connectors, _MODULE_TO_ENV, "module-to-env")
    for item in connectors:
        if item.name == _SCALING:
            if item.settings.get("normalize_actions"):
                return "normalized"
            return "clipped" if item.settings.get("clip_actions") else "none"
    return "none"


def _check_known(connectors: Iterable[Connector], known: tuple[str, ...], pipeline: str) -> None:
    for item in connectors:
        if item.name not in known:
            raise ModelError(
                f"the {pipeline} connector {item.name}: changes what the policy sees or does, and "
                "is not served; train without it, or move it into the environment"
            )


def _state_of_agent(
    states: Mapping[Any, Mapping[str, Any]], width: int, module: str | None
) -> Mapping[str, Any]:
    """Return the statistics of the agent whose observations go to an RLModule.

    The checkpoint maps agents to modules by a person's own code, which is not run.
    """
    fitting = {
        agent: state
        for agent, state in states.items()
        if len(states) == 1 or _array_of(state["running_stats"][0]["mean_array"]).size == width
    }
    if module in fitting:
        return fitting[module]
    if len(fitting) != 1:
        raise ModelError(
            f"{_FILTER}: has the statistics of the agents {', '.join(map(repr, states))}, and "
            f"none tells that its observations go to {module!r}; name the RLModule as its agent"
        )
    return next(iter(fitting.values()))


def _filter_of(state: Mapping[str, Any], width: int) -> ObservationFilter:
    (stats,) = state["running_stats"]
    mean, squares = (_array_of(stats[f"{name}_array"]) for name in ("mean", "sum_sq_diff"))
    if mean.shape != (width,) or squares.shape != (width,):
        raise ModelError(
            f"{_FILTER}: has the statistics of {mean.size} numbers, the network takes {width}; "
            "a filter ahead of FlattenObservations is not served"
        )
    pushes = int(stats["num_pushes"])
    # As RLlib's RunningStat: the unbiased variance, and none of one observation.
    variance = squares / (pushes - 1) if pushes > 1 else np.zeros(width)
    deviation = np.sqrt(np.maximum(variance, 0.0)) + _SMALL
    limit = state["clip_by_value"]
    return ObservationFilter(
        mean if state["de_mean_to_zero"] else np.zeros(width),
        deviation if state["de_std_to_one"] else np.ones(width),
        float(limit) if limit else None,
    )


def _array_of(text: str) -> Array:
    """Return an array that RLlib wrote as base64(zlib(npy))."""
    unpacking = zlib.decompressobj()
    content = unpacking.decompress(base64.b64decode(text), _LONGEST_ARRAY)
    array = np.load(io.BytesIO(content), allow_pickle=False).astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError("holds NaN or infinity")
    return np.asarray(array)
