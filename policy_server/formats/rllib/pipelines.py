"""The effect of RLlib's connectors on observations and actions, ahead of and behind the network.

A connector that is not one of RLlib's own default pieces, or needs the episode's past, is refused
by name: the answers would not be those that were trained.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError, ObservationError
from policy_server.formats.rllib.actions import Scaling
from policy_server.formats.rllib.checkpoint import Connector
from policy_server.observations.npy_header import read_header

__all__ = [
    "FILTER",
    "FLATTENING",
    "ObservationFilter",
    "array_of_text",
    "describe_connectors",
    "filter_of",
    "read_filter",
    "read_scaling",
]

Array = NDArray[Any]

FILTER = "MeanStdFilter"
FLATTENING = "FlattenObservations"
_SCALING = "NormalizeAndClipActions"
# They bring observations to the network, and actions back, without changing a number: a client
# sends the flat vector that FlattenObservations makes.
_ENV_TO_MODULE = (
    FILTER,
    FLATTENING,
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
        deviation: float[width], with the small number that RLlib adds.
        limit: the largest size of a filtered number; None clips nothing.
        is_whole: bool[width], the numbers that it gives without their fraction; None for none.
    """

    mean: Array
    deviation: Array
    limit: float | None
    is_whole: Array | None = None


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
    filters = [item for item in connectors if item.name == FILTER]
    if not filters:
        return None
    states = filters[0].state or {}
    if len(filters) > 1 or not states:
        raise ModelError(
            f"{FILTER}: expected one with its statistics, got {len(filters)} "
            f"{'with' if states else 'without'}; save the whole checkpoint of a policy with one"
        )
    try:
        return _filter_of(_state_of_agent(states, width, module), width)
    except (ArithmeticError, LookupError, TypeError, ValueError, zlib.error) as error:
        raise ModelError(
            f"{FILTER}: its state can't be read: {error}; save the checkpoint anew"
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


def describe_connectors(connectors: Iterable[Connector]) -> list[str]:
    """Return a line for each connector ahead of the network that changes observations.

    Args:
        connectors: the pipeline's pieces in order.
    """
    found = []
    for item in connectors:
        if item.name == FILTER:
            found.append("observations pass the checkpoint's MeanStdFilter, which learns no more")
        elif item.name == FLATTENING:
            removed = [str(key) for key in item.settings.get("keys_to_remove") or ()]
            found.append(
                "observations are flat: the keys of a Dict in alphabetical order, integers one-hot"
                + (f", without {', '.join(removed)}" if removed else "")
            )
    return found


def _check_known(connectors: Iterable[Connector], known: tuple[str, ...], pipeline: str) -> None:
    for item in connectors:
        if item.name not in known:
            raise ModelError(
                f"the {pipeline} pipeline: has {item.name}, which changes what the policy sees or "
                "does, and is not served; train without it, or move it into the environment"
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
        if len(states) == 1
        or sum(mean.size for mean, _ in _moments(state["running_stats"])) == width
    }
    if module in fitting:
        return fitting[module]
    if len(fitting) != 1:
        raise ModelError(
            f"{FILTER}: has the statistics of the agents {', '.join(map(repr, states))}, and "
            f"none tells that its observations go to {module!r}; name the RLModule as its agent"
        )
    return next(iter(fitting.values()))


def _filter_of(state: Mapping[str, Any], width: int) -> ObservationFilter:
    return filter_of(
        state["running_stats"],
        width,
        is_centered=state["de_mean_to_zero"],
        is_scaled=state["de_std_to_one"],
        limit=state["clip_by_value"],
    )


def filter_of(
    stats: Iterable[Mapping[str, Any]],
    width: int,
    *,
    is_centered: bool,
    is_scaled: bool,
    limit: float | None,
) -> ObservationFilter:
    """Return a filter with the statistics of training.

    Args:
        stats: the state of a `RunningStat` for each part of an observation; arrays as NumPy's, or
            as text.
        width: how many numbers the network takes.
        is_centered: the filter takes the mean away.
        is_scaled: the filter divides by the deviation.
        limit: the largest size of a filtered number; None clips nothing.

    Raises:
        ModelError: if the statistics are of another width.
        ArithmeticError, LookupError, TypeError, ValueError, zlib.error: if the state is damaged.
    """
    mean, variance = (np.concatenate(parts) for parts in zip(*_moments(stats), strict=True))
    if mean.shape != (width,):
        raise ModelError(
            f"{FILTER}: has the statistics of {mean.size} numbers, the network takes {width}; "
            "put the filter behind FlattenObservations"
        )
    deviation = np.sqrt(np.maximum(variance, 0.0)) + np.float32(_SMALL)
    return ObservationFilter(
        mean if is_centered else np.zeros(width),
        deviation if is_scaled else np.ones(width),
        float(limit) if limit else None,
    )


def _moments(found: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Array, Array]]:
    """Return mean and variance of each part of an observation, float64[n] and float32[n].

    Source: `RunningStat` in `ray.rllib.utils.filter`: the unbiased variance. That of a single
    observation is 0; in files whose sum of squares is called `std_array`, the square of its mean.
    """
    for stats in found:
        is_old = "std_array" in stats
        names = ("mean_array", "std_array" if is_old else "sum_sq_diff_array")
        mean, squares = (
            _finite(array_of_text(value) if isinstance(value, str) else value).ravel()
            for value in (stats[name] for name in names)
        )
        if mean.shape != squares.shape:
            raise ValueError(f"its parts have {mean.size} and {squares.size} numbers")
        pushes = float(stats["num_pushes"])
        alone = np.square(mean) if is_old else np.zeros_like(mean)
        variance = squares / (pushes - 1) if pushes > 1 else alone
        yield mean, variance.astype(np.float32)


def array_of_text(text: str) -> Array:
    """Return an array that RLlib wrote as base64(zlib(npy)), as float64.

    Args:
        text: the text.

    Raises:
        ValueError, zlib.error: if it is damaged.
    """
    unpacking = zlib.decompressobj()
    content = unpacking.decompress(base64.b64decode(text), _LONGEST_ARRAY)
    try:
        header = read_header(content)
    except ObservationError as error:
        raise ValueError("holds no array of numbers in npy format") from error
    if header is None or min(header.shape, default=0) < 0:
        raise ValueError("holds no whole array in npy format")
    count = math.prod(header.shape)
    if len(content) < header.size + count * header.dtype.itemsize:
        raise ValueError(f"states {count} numbers, which is more than it has")
    found = np.frombuffer(content, header.dtype, count, header.size)
    return np.asarray(
        found.reshape(header.shape, order="F" if header.is_by_column else "C"), np.float64
    )


def _finite(found: Any) -> Array:  # noqa: ANN401 -- as the file has it
    try:
        array = np.asarray(found, np.float64)
    except OverflowError as error:
        raise ValueError("holds a number beyond all floats") from error
    if not np.isfinite(array).all():
        raise ValueError("holds NaN or infinity")
    return array
