"""The layers of RLlib's old API stack as NumPy steps, taken from a policy's weights by name.

Source: `ray.rllib.models.torch.misc` (SlimFC, SlimConv2d), whose layers lie in `_model`: a dense
layer or convolution, maybe behind a padding, and its activation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from policy_server.errors import ModelError
from policy_server.formats.rllib.checkpoint import RlModule
from policy_server.formats.rllib.model_settings import convolutions_of
from policy_server.formats.rllib.network_layers import Layers

__all__ = ["SlimLayers"]

# MODEL_DEFAULTS of Ray 2: SAC's settings of its model hold a part of them.
_DEFAULTS = {
    "fcnet_hiddens": [256, 256],
    "fcnet_activation": "tanh",
    "post_fcnet_hiddens": [],
    "post_fcnet_activation": "relu",
    "conv_activation": "relu",
}


class SlimLayers(Layers):
    """A network that grows by the layers of a policy of the old API stack."""

    def __init__(self, module: RlModule, width: int) -> None:
        """Own the network, until it is finished.

        Args:
            module: the policy's weights with the settings of its model.
            width: how many numbers an observation has, with the state of a recurrent policy.
        """
        super().__init__(module, width)
        self.subject = module.subject

    def setting(self, name: str) -> Any:  # noqa: ANN401 -- as in the file
        """Return a setting of the model, or RLlib's default.

        Args:
            name: the setting's.
        """
        return self._module.settings.get(name, _DEFAULTS.get(name))

    def sizes(self, name: str) -> list[int]:
        """Return the sizes of layers that a setting states.

        Args:
            name: the setting's.
        """
        return [int(size) for size in self.setting(name) or ()]

    def slim(self, x: int, name: str, outputs: int, *, activation: str | None = None) -> int:
        """Return the register of a SlimFC: a dense layer and its activation.

        Args:
            x: the register of its inputs.
            name: the layer's, without `._model`.
            outputs: how many it has.
            activation: the name of the setting that states the activation; None for none.

        Raises:
            ModelError: if there is no such layer, or one of another size.
        """
        inner = self._inner(name)
        weights = self.weight(f"{inner}.weight")
        if len(weights) != outputs:
            raise ModelError(
                f"{self.subject}: {name}: expected {outputs} outputs by settings and actions, got "
                f"{len(weights)}; train RLlib's default network"
            )
        # A convolution of one pixel is a dense layer too.
        matrix = np.ascontiguousarray(weights.reshape(len(weights), -1).T)
        x = self.by("AddV2", self.by("MatMul", x, matrix), self.weight(f"{inner}.bias", outputs))
        if activation is None:
            return x
        slope = f"{name}._model.1._beta"
        if slope not in self._weights:
            return self._activate(x, self._activation(activation))
        # RLlib's own swish of Ray 2.3 learns its slope.
        steep = self.by("Mul", x, self.weight(slope).reshape(()))
        return self.builder.add("Mul", (x, self.add("Sigmoid", steep)))

    def slims(self, x: int, prefix: str, sizes: Sequence[int], *, activation: str) -> int:
        """Return the register behind several SlimFCs.

        Args:
            x: the register of their inputs.
            prefix: their names ahead of their numbers.
            sizes: how many outputs each has.
            activation: the name of the setting that states the activation.

        Raises:
            ModelError: if there are more or fewer layers, or one is of another size.
        """
        names = self.places(prefix)
        if len(names) != len(sizes):
            raise ModelError(
                f"{self.subject}: {prefix}: expected {len(sizes)} layers by its settings, got "
                f"{len(names)}; train RLlib's default network"
            )
        for name, size in zip(names, sizes, strict=True):
            x = self.slim(x, name, size, activation=activation)
        return x

    def places(self, prefix: str) -> list[str]:
        """Return the names of layers, without `._model`, in the order of their numbers.

        Args:
            prefix: their names ahead of the number.
        """
        pattern = re.compile(rf"({re.escape(prefix)}(\d+))\._model\.[01]\.weight")
        found = {
            int(match[2]): match[1] for match in map(pattern.fullmatch, self._weights) if match
        }
        return [found[place] for place in sorted(found)]

    def is_convolution(self, name: str) -> bool:
        """Return whether a layer is a convolution, by its weights.

        Args:
            name: the layer's, without `._model`.
        """
        return len(self.shape_of(f"{self._inner(name)}.weight")) == 4

    def slim_convolutions(
        self, x: int, names: Sequence[str], shape: tuple[int, ...]
    ) -> tuple[int, tuple[int, ...]]:
        """Return the register behind the SlimConv2ds of an image, and the image's shape there.

        Args:
            x: the register of images, [B, height, width, channels].
            names: the layers', without `._model`.
            shape: height, width and channels of the image.

        Raises:
            ModelError: if the weights are of other sizes than the settings.
        """
        stated = convolutions_of(self._module, shape)
        # RLlib pads an image ahead of all convolutions but the last.
        stated = (*stated[:-1], replace(stated[-1], is_same=False))
        kernels = [self.shape_of(f"{self._inner(name)}.weight")[2:] for name in names]
        if kernels != [one.kernel for one in stated]:
            raise ModelError(
                f"{self.subject}: conv_filters: expected the kernels "
                f"{[one.kernel for one in stated]}, got {kernels}; train RLlib's default network"
            )
        activation = self._activation("conv_activation")
        sizes = shape[:2]
        for name, one in zip(names, stated, strict=True):
            x, sizes = self._convolved(x, sizes, self._inner(name), one)
            x = self._activate(x, activation)
        return x, (*sizes, self.shape_of(f"{self._inner(names[-1])}.weight")[0])

    def refuse_unused(self, others: re.Pattern[str]) -> None:
        """Refuse a policy with weights that are in no network that is known.

        Args:
            others: the names of weights that choose no action, as those of critics.

        Raises:
            ModelError: naming the first such weights.
        """
        for name in self._weights:
            if name not in self._used and not others.match(name):
                raise ModelError(
                    f"{self.subject}: has the weights {name}, which are no part of RLlib's default "
                    "networks; train one of those"
                )

    def _inner(self, name: str) -> str:
        """Return the name of a layer's own weights, which may stand behind a padding."""
        inner = f"{name}._model.{int(not self.has(f'{name}._model.0'))}"
        if f"{inner}.weight" not in self._weights:
            raise ModelError(
                f"{self.subject}: lacks the weights {name} of RLlib's default network; train that, "
                "or save the checkpoint anew"
            )
        return inner
