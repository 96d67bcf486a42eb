"""An RLModule's `model_config`: its settings, and RLlib's defaults where the file leaves them out.

The defaults are those of `ray.rllib.core.rl_module.default_model_config`, and for images of
`ray.rllib.models.utils.get_filter_config`. They are the same from Ray 2.40 to 2.60, but for the
depths of the convolutions of a 64 x 64 image, which the weights tell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from policy_server.errors import ModelError
from policy_server.formats.rllib.checkpoint import RlModule

__all__ = ["Convolution", "assumed_settings", "convolutions_of", "setting_of"]

_DEFAULTS: Mapping[str, Any] = {
    "fcnet_hiddens": [256, 256],
    "fcnet_activation": "tanh",
    "conv_filters": None,
    "conv_activation": "relu",
    "head_fcnet_hiddens": [],
    "head_fcnet_activation": "relu",
    "log_std_clip_param": 20.0,
    "num_atoms": 1,
    "v_min": -10.0,
    "v_max": 10.0,
}
# Kernel and stride of each convolution by the image's size.
_OF_IMAGES = {
    96: ((8, 4), (4, 2), (11, 2)),
    84: ((8, 4), (4, 2), (11, 1)),
    64: ((4, 2), (4, 2), (4, 2), (4, 2)),
    42: ((4, 2), (4, 2), (11, 1)),
    10: ((5, 2), (5, 2)),
}
_WITH_PADDING = 4


@dataclass(frozen=True)
class Convolution:
    """One convolution of an image.

    Attributes:
        filters: how many channels it gives; None where RLlib's default differs by version.
        kernel: its height and width.
        strides: the steps along height and width.
        is_same: the image is padded as TensorFlow's `same` does; otherwise not at all.
    """

    filters: int | None
    kernel: tuple[int, int]
    strides: tuple[int, int]
    is_same: bool = True

    def padding_of(self, sizes: Sequence[int]) -> list[tuple[int, int]]:
        """Return how many rows go above and below, and how many columns to the left and right.

        Where a kernel is smaller than its stride the numbers may be negative: RLlib cuts there.

        Args:
            sizes: height and width of the image.

        Source: `ray.rllib.models.torch.misc.same_padding`.
        """
        if not self.is_same:
            return [(0, 0), (0, 0)]
        along = [
            (math.ceil(size / stride) - 1) * stride + kernel - size
            for size, kernel, stride in zip(sizes, self.kernel, self.strides, strict=True)
        ]
        return [(all_ // 2, all_ - all_ // 2) for all_ in along]


def setting_of(module: RlModule, name: str) -> Any:  # noqa: ANN401 -- as in the file
    """Return a setting, or RLlib's default.

    Args:
        module: the RLModule.
        name: the setting's.
    """
    return module.settings.get(name, _DEFAULTS[name])


def convolutions_of(module: RlModule, shape: Sequence[int]) -> tuple[Convolution, ...]:
    """Return the convolutions of an image.

    Args:
        module: the RLModule.
        shape: height, width and channels of the image.

    Raises:
        ModelError: if the setting is none that RLlib takes, or RLlib has no default for the size.
    """
    stated = setting_of(module, "conv_filters")
    if not stated:
        return _default_convolutions(module, shape)
    try:
        return tuple(map(_convolution, stated))
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ModelError(
            f"{module.subject}: conv_filters: expected lists of filters, kernel, stride, and maybe "
            f"padding, got {str(stated)[:100]}; train RLlib's default network"
        ) from error


def assumed_settings(module: RlModule, names: Sequence[str]) -> Sequence[str]:
    """Return a line for the settings that the file leaves to RLlib's defaults.

    Args:
        module: the RLModule.
        names: the settings that its network depends on.
    """
    left = [name for name in names if name not in module.settings]
    if not left:
        return []
    version = f"Ray {module.ray_version}" if module.ray_version else "Ray 2.40 to 2.60"
    stated = ", ".join(f"{name} {_DEFAULTS[name]}" for name in left)
    return [f"by the defaults of {version}, as the file does not tell: {stated}"]


def _default_convolutions(module: RlModule, shape: Sequence[int]) -> tuple[Convolution, ...]:
    for size, layers in _OF_IMAGES.items():
        # RLlib looks at the last two dimensions too.
        if [*shape[:2]] == [size] * 2 or [*shape[1:]] == [size] * 2:
            return tuple(
                Convolution(None, (kernel, kernel), (stride, stride)) for kernel, stride in layers
            )
    raise ModelError(
        f"{module.subject}: has no conv_filters, and RLlib has no default for an image of "
        f"{list(shape)}; save the RLModule that was trained"
    )


def _convolution(stated: Sequence[Any]) -> Convolution:
    filters, kernel, stride = stated[:3]
    is_same = len(stated) < _WITH_PADDING or stated[3] == "same"
    return Convolution(int(filters), _pair(kernel), _pair(stride), is_same)


def _pair(value: Any) -> tuple[int, int]:  # noqa: ANN401 -- a number or two
    height, width = map(int, value if isinstance(value, list | tuple) else (value, value))
    if min(height, width) < 1:
        raise ValueError(f"expected positive numbers, got {value}")
    return height, width
