"""From an observation to the features that a stable-baselines3 policy's layers take."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.pickles.spaces import BoxSpace, DictSpace, Space, TupleSpace, width_of
from policy_server.formats.stable_baselines3.layers import Layers
from policy_server.formats.stable_baselines3.vec_normalize import Scaling, parts_of
from policy_server.formats.stable_baselines3.zip_members import SavedPolicy, class_path

__all__ = ["add_features", "is_image"]

_KNOWN = ("FlattenExtractor", "CombinedExtractor", "NatureCNN")
# The strides of NatureCNN's convolutions by their places.
_STRIDES = {0: 4, 2: 2, 4: 1}


def add_features(layers: Layers, saved: SavedPolicy, scaling: Scaling | None, *, name: str) -> int:
    """Return the register of the features: normalised observations, of images by their network.

    Args:
        layers: the network, which holds the observations only.
        saved: the policy.
        scaling: its scaling by VecNormalize; None where it has none.
        name: the features extractor's, in the names of tensors.

    Raises:
        ModelError: if they are computed in a way that is not known.
    """
    extractor = saved.arguments.get("features_extractor_class")
    kind = None if extractor is None else (class_path(extractor) or "").rpartition(".")[2]
    if kind not in (None, *_KNOWN):
        raise ModelError(
            f"data: policy_kwargs: features_extractor_class: expected one of {', '.join(_KNOWN)}, "
            f"got {kind}"
        )
    space = saved.observation_space
    x = _prepared(layers, saved, scaling)
    if isinstance(space, DictSpace):
        if any(map(is_image, space.parts.values())):
            raise ModelError(
                "data: observation_space: a Dict with images is not computed; train on the image "
                "alone, or on numbers"
            )
    elif isinstance(space, BoxSpace) and len(space.shape) == 3:
        if layers.has(f"{name}.cnn."):
            return _nature_cnn(layers, x, space, name)
        if is_image(space):
            return _channel_by_channel(layers, x, space)
    return x


def is_image(space: Space) -> bool:
    """Return whether stable-baselines3 takes a space for an image, and divides it by 255.

    Args:
        space: the space of an observation, or of one of its parts.

    Source: `stable_baselines3.common.preprocessing.is_image_space`.
    """
    return (
        isinstance(space, BoxSpace)
        and len(space.shape) == 3
        and space.dtype == "uint8"
        and bool((space.low == 0).all() and (space.high == 255).all())
    )


def _prepared(layers: Layers, saved: SavedPolicy, scaling: Scaling | None) -> int:
    """Return the register of float32 observations: scaled by VecNormalize, and images by 255."""
    space = saved.observation_space
    if isinstance(space, TupleSpace):
        raise ModelError("data: observation_space: stable-baselines3 takes no Tuple")
    parts = parts_of(space)
    if scaling is not None and any(map(is_image, parts.values())):
        raise ModelError("vec_normalize.pkl: scales an image, which is not computed")
    x = 0
    if scaling is not None:
        # NumPy scales in float64, before PyTorch takes the numbers as float32.
        x = layers.add("Cast", x, attributes=(("dtype", "float64"),))
        x = layers.with_constant("Sub", x, scaling.mean)
        x = layers.with_constant("RealDiv", x, scaling.std)
        x = layers.with_constant("Minimum", x, scaling.limit)
        x = layers.with_constant("Maximum", x, -scaling.limit)
    x = layers.add("Cast", x, attributes=(("dtype", "float32"),))
    if not saved.arguments.get("normalize_images", True) or not any(map(is_image, parts.values())):
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


def _nature_cnn(layers: Layers, x: int, space: BoxSpace, name: str) -> int:
    """Return the features of an image.

    The file has the space with its channels first, as PyTorch takes it. An environment, and so a
    client, has them last, but for images that are not of whole numbers: stable-baselines3 turns
    none of those.

    Source: `stable_baselines3.common.torch_layers.NatureCNN`, `VecTransposeImage`.
    """
    channels, height, width = space.shape
    shape = (height, width, channels)
    if is_image(space):
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
        x = layers.activated(x, "ReLU")
        rows, columns = ((size - filters.shape[0]) // stride + 1 for size in shape[:2])
        shape = (rows, columns, filters.shape[3])
    x = layers.with_constant("Reshape", x, [-1, int(np.prod(shape))])
    weights, bias = layers.linear(f"{name}.linear.0")
    return layers.activated(layers.dense(x, _channels_last(weights, shape), bias), "ReLU")


def _channels_last(
    weights: NDArray[np.float32], shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Return a layer's weights for inputs in the order height, width, channel."""
    height, width, channels = shape
    ordered = weights.reshape(channels, height, width, -1).transpose(1, 2, 0, 3)
    return np.ascontiguousarray(ordered.reshape(weights.shape))
