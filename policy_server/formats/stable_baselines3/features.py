"""From an observation to the features that a stable-baselines3 policy's layers take."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.pickles.spaces import BoxSpace, DictSpace, Space, TupleSpace, width_of
from policy_server.formats.stable_baselines3.images import is_image, parts_of
from policy_server.formats.stable_baselines3.layers import Layers
from policy_server.formats.stable_baselines3.vec_normalize import Scaling
from policy_server.formats.stable_baselines3.zip_members import SavedPolicy, class_path
from policy_server.formats.torch_layers import add_activation

__all__ = ["add_features"]

_KNOWN = ("FlattenExtractor", "CombinedExtractor", "NatureCNN")
# The strides of NatureCNN's convolutions by their places.
_STRIDES = {0: 4, 2: 2, 4: 1}


def add_features(
    layers: Layers,
    saved: SavedPolicy,
    scaling: Scaling | None,
    *,
    turned: frozenset[str | None],
    name: str,
) -> int:
    """Return the register of the features: normalised observations, of images by their network.

    Args:
        layers: the network, which holds the observations only.
        saved: the policy.
        scaling: its scaling by VecNormalize; None where it has none.
        turned: the keys of images that come with their channels last; see `turned_images`.
        name: the features extractor's, in the names of tensors.

    Raises:
        ModelError: if they are computed in a way that is not known.
    """
    _check_extractor(saved)
    space = saved.observation_space
    if isinstance(space, TupleSpace):
        raise ModelError("data: observation_space: stable-baselines3 takes no Tuple")
    x = layers.columns(0, 0, width_of(space)) if layers.has_memory else 0
    x = _prepared(layers, x, saved, scaling)
    if isinstance(space, DictSpace):
        return _of_parts(layers, x, space, turned, f"{name}.extractors")
    return _of_array(layers, x, space, name, is_turned=None in turned)


def _check_extractor(saved: SavedPolicy) -> None:
    found = saved.arguments.get("features_extractor_class")
    if found is None:
        return
    module, _, kind = (class_path(found) or str(found)).rpartition(".")
    if kind not in _KNOWN or module != "stable_baselines3.common.torch_layers":
        raise ModelError(
            f"data: policy_kwargs: features_extractor_class: expected one of {', '.join(_KNOWN)}, "
            f"got {kind}"
        )


def _of_parts(
    layers: Layers, x: int, space: DictSpace, turned: frozenset[str | None], name: str
) -> int:
    """Return the features of a Dict: those of its images, and its other numbers, side by side.

    Source: `stable_baselines3.common.torch_layers.CombinedExtractor`.
    """
    found, first, begun = [], 0, 0
    for key, part in space.parts.items():
        end = first + width_of(part)
        if is_image(part) or layers.has(f"{name}.{key}."):
            if begun < first:
                found.append(layers.columns(x, begun, first - begun))
            image = layers.columns(x, first, end - first)
            found.append(_nature_cnn(layers, image, part, f"{name}.{key}", is_turned=key in turned))
            begun = end
        first = end
    if not begun:
        return x
    if begun < first:
        found.append(layers.columns(x, begun, first - begun))
    return layers.joined(found)


def _of_array(layers: Layers, x: int, space: Space, name: str, *, is_turned: bool) -> int:
    if layers.has(f"{name}.cnn."):
        return _nature_cnn(layers, x, space, name, is_turned=is_turned)
    if isinstance(space, BoxSpace) and is_turned:
        return _channel_by_channel(layers, x, space)
    return x


def _prepared(layers: Layers, x: int, saved: SavedPolicy, scaling: Scaling | None) -> int:
    """Return the register of float32 observations: scaled by VecNormalize, and images by 255."""
    parts = parts_of(saved.observation_space)
    if scaling is not None:
        # NumPy scales in float64, before PyTorch takes the numbers as float32.
        x = layers.add("Cast", x, attributes=(("dtype", "float64"),))
        x = layers.with_constant("Sub", x, scaling.mean)
        x = layers.with_constant("RealDiv", x, scaling.std)
        x = layers.with_constant("Minimum", x, scaling.limit)
        x = layers.with_constant("Maximum", x, -scaling.limit)
    x = layers.add("Cast", x, attributes=(("dtype", "float32"),))
    if not saved.flag("normalize_images", default=True) or not any(map(is_image, parts.values())):
        return x
    divisors = [
        np.full(width_of(part), 255 if is_image(part) else 1, np.float32) for part in parts.values()
    ]
    return layers.with_constant("RealDiv", x, np.concatenate(divisors))


def _channel_by_channel(layers: Layers, x: int, space: BoxSpace) -> int:
    """Return an image's numbers as a policy without convolutions takes them."""
    channels, height, width = space.shape
    x = layers.with_constant("Reshape", x, [-1, height, width, channels])
    x = layers.with_constant("Transpose", x, [0, 3, 1, 2])
    return layers.with_constant("Reshape", x, [-1, channels * height * width])


def _nature_cnn(layers: Layers, x: int, space: Space, name: str, *, is_turned: bool) -> int:
    """Return the features of an image.

    The file has the space with its channels first, as PyTorch takes it. An environment, and so a
    client, has them last where stable-baselines3 turns the image: it turns those of bytes alone.

    Source: `stable_baselines3.common.torch_layers.NatureCNN`, `VecTransposeImage`.
    """
    if not isinstance(space, BoxSpace) or len(space.shape) != 3:
        raise ModelError(
            f"policy.pth: has convolutions in {name}, whose observation is no Box of three "
            "dimensions"
        )
    channels, height, width = space.shape
    shape = (height, width, channels)
    if is_turned:
        x = layers.with_constant("Reshape", x, [-1, *shape])
    else:
        x = layers.with_constant("Reshape", x, [-1, *space.shape])
        x = layers.with_constant("Transpose", x, [0, 2, 3, 1])
    for place, stride in _STRIDES.items():
        filters = layers.tensor(f"{name}.cnn.{place}.weight").transpose(2, 3, 1, 0)
        attributes = (("strides", (1, stride, stride, 1)), ("padding", "VALID"))
        kept = layers.builder.keep(np.ascontiguousarray(filters))
        x = layers.add("Conv2D", x, kept, attributes=attributes)
        x = layers.with_constant("Add", x, layers.tensor(f"{name}.cnn.{place}.bias"))
        x = add_activation(layers.builder, x, "ReLU")
        rows, columns = ((size - filters.shape[0]) // stride + 1 for size in shape[:2])
        shape = (rows, columns, filters.shape[3])
    x = layers.with_constant("Reshape", x, [-1, int(np.prod(shape))])
    weights, bias = layers.linear(f"{name}.linear.0")
    x = layers.dense(x, _channels_last(weights, shape), bias)
    return add_activation(layers.builder, x, "ReLU")


def _channels_last(
    weights: NDArray[np.float32], shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Return a layer's weights for inputs in the order height, width, channel."""
    height, width, channels = shape
    ordered = weights.reshape(channels, height, width, -1).transpose(1, 2, 0, 3)
    return np.ascontiguousarray(ordered.reshape(weights.shape))
