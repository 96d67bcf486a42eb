"""Keras's normalisation as steps: by statistics of training, and by each row's own moments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from policy_server.formats.keras.model_config import Part
from policy_server.formats.keras.network_steps import Steps
from policy_server.formats.keras.plain_layers import Arrays, Layer, shaped

__all__ = ["NORMALIZATIONS"]


def _normalization(steps: Steps, part: Part, inputs: Sequence[int], arrays: Arrays) -> int:
    """Normalise by statistics of training.

    Source: Keras `Normalization`, which divides by max(sqrt(variance), 1e-7).
    """
    x = steps.number(inputs[0])
    if part.settings.get("mean") is None:
        if len(arrays) != 3:
            part.refuse("has no statistics; call its adapt on observations before it is saved")
        mean, variance = (np.asarray(array, np.float64) for array in arrays[:2])
    else:
        mean, variance = part.numbers("mean"), part.numbers("variance")
    has_axes = part.settings.get("axis", -1) is not None
    kept = part.integers("axis", default=-1) if has_axes else ()
    places = [steps.axis(x, axis) for axis in kept]
    sizes = [size if at in places else 1 for at, size in enumerate(steps.shape(x))]
    if mean.size != math.prod(sizes) or variance.size != mean.size:
        if mean.size != 1 or variance.size != 1:
            part.refuse(
                f"has a mean of {mean.size} and a variance of {variance.size} numbers, expected "
                f"{math.prod(sizes)} of each"
            )
        sizes = [1] * len(sizes)
    if (variance < 0).any():
        part.refuse("has a variance below 0; save an earlier state of the policy")
    mean, deviation = mean.reshape(sizes), np.sqrt(variance.reshape(sizes).astype(steps.dtype))
    deviation = np.maximum(deviation, 1e-7)
    if part.get("invert", bool, default=False):
        return steps.with_constant("AddV2", steps.with_constant("Mul", x, deviation), mean)
    return steps.with_constant("RealDiv", steps.with_constant("Sub", x, mean), deviation)


def _batch_normalization(steps: Steps, part: Part, inputs: Sequence[int], arrays: Arrays) -> int:
    """Normalise by the moving moments of training.

    Source: Keras `BatchNormalization`; weights gamma, beta, moving mean, moving variance.
    """
    x = steps.number(inputs[0])
    place = steps.axis(x, part.integers("axis", 1)[0])
    size = steps.shape(x)[place]
    flags = [part.get(key, bool, default=True) for key in ("scale", "center")]
    found = [*shaped(part, arrays, *[(size,)] * (2 + sum(flags)))]
    gamma = found.pop(0) if flags[0] else np.ones(size)
    beta = found.pop(0) if flags[1] else np.zeros(size)
    mean, variance = (np.asarray(array, np.float64) for array in found)
    if (variance < 0).any():
        part.refuse("has a moving variance below 0; save an earlier state of the policy")
    factor = gamma / np.sqrt(variance + part.get("epsilon", float, 1e-3))
    form = [-1 if at == place else 1 for at in range(len(steps.shape(x)))]
    x = steps.with_constant("Sub", x, mean.reshape(form))
    x = steps.with_constant("Mul", x, factor.reshape(form))
    return steps.with_constant("AddV2", x, np.reshape(beta, form))


def _layer_normalization(steps: Steps, part: Part, inputs: Sequence[int], arrays: Arrays) -> int:
    """Normalise each row by its own moments.

    Source: Keras `LayerNormalization` and `RMSNormalization`; weights gamma, beta. With
    `rms_scaling` the former divides by the deviation about the mean, and leaves the mean in.
    """
    x = steps.number(inputs[0])
    places = tuple(sorted(steps.axis(x, axis) for axis in part.integers("axis")))
    is_rms = part.kind == "RMSNormalization"
    keeps_mean = is_rms or part.get("rms_scaling", bool, default=False)
    is_scaled = keeps_mean or part.get("scale", bool, default=True)
    is_moved = not keeps_mean and part.get("center", bool, default=True)
    sizes = tuple(steps.shape(x)[place] for place in places)
    found = shaped(part, arrays, *[sizes] * (is_scaled + is_moved))
    form = [size if at in places else 1 for at, size in enumerate(steps.shape(x))]
    centred = x if is_rms else steps.add("Sub", x, steps.reduced("Mean", x, places, keeps=True))
    spread = steps.reduced("Mean", steps.add("Square", centred), places, keeps=True)
    epsilon = part.get("epsilon", float, 1e-3)
    deviation = steps.add("Sqrt", steps.with_constant("AddV2", spread, epsilon))
    x = steps.add("RealDiv", x if keeps_mean else centred, deviation)
    if is_scaled:
        x = steps.with_constant("Mul", x, found[0].reshape(form))
    return steps.with_constant("AddV2", x, found[-1].reshape(form)) if is_moved else x


def _unit_normalization(steps: Steps, part: Part, inputs: Sequence[int], _arrays: Arrays) -> int:
    """Divide each row by its length, or by 1e-12 where that is less.

    Source: Keras `UnitNormalization`, which multiplies by min(1 / sqrt(sum of squares), 1e12).
    """
    x = steps.number(inputs[0])
    places = tuple(steps.axis(x, axis) for axis in part.integers("axis"))
    total = steps.reduced("Sum", steps.add("Square", x), places, keeps=True)
    factor = steps.with_constant("Minimum", steps.add("Rsqrt", total), 1e12)
    return steps.add("Mul", x, factor)


NORMALIZATIONS: Mapping[str, Layer] = {
    "BatchNormalization": _batch_normalization,
    "LayerNormalization": _layer_normalization,
    "Normalization": _normalization,
    "RMSNormalization": _layer_normalization,
    "UnitNormalization": _unit_normalization,
}
"""Keras's class names of normalisation, and the steps that compute them."""
