"""RLlib's default models of the old API stack, built from a policy's settings and weights.

Source: `ray.rllib.models.torch` (FullyConnectedNetwork, VisionNetwork, ComplexInputNetwork).
"""

from __future__ import annotations

from dataclasses import dataclass

from policy_server.errors import ModelError
from policy_server.formats.pickles.spaces import BoxSpace, DiscreteSpace, MultiDiscreteSpace
from policy_server.formats.rllib.old_stack.row_parts import Observations, RowPart
from policy_server.formats.rllib.old_stack.slim_layers import SlimLayers

__all__ = ["Model"]

_FULLY_CONNECTED, _POST = "fcnet_activation", "post_fcnet_activation"
# Along an image's channels, which come first in RLlib's networks.
_ACROSS_CHANNELS = ("logsoftmax", "softmax", "softmin")


@dataclass(frozen=True, eq=False)
class Model:
    """A model of RLlib's, ahead of what an algorithm puts on it.

    Attributes:
        layers: the network that grows.
        observations: the observations that it takes.
    """

    layers: SlimLayers
    observations: Observations

    def add(
        self, x: int, prefix: str = "", *, outputs: int | None, is_ended_early: bool = False
    ) -> int:
        """Return the register of the model's outputs.

        Args:
            x: the register of the rows of observations.
            prefix: the start of the names of its weights.
            outputs: how many it has; None for the features of its last hidden layer.
            is_ended_early: the outputs are those of the last hidden layer (`no_final_linear`).

        Raises:
            ModelError: if weights and settings don't give the model.
        """
        parts = self.observations.parts
        is_ended_early |= bool(self.layers.setting("no_final_linear")) and outputs is not None
        if self.observations.is_flat:
            return self._fully_connected(x, prefix, outputs, is_ended_early=is_ended_early)
        if len(parts) == 1 and parts[0].is_image:
            return self._vision(x, prefix, parts[0], outputs, is_ended_early=is_ended_early)
        return self._complex(x, prefix, outputs)

    def _fully_connected(
        self, x: int, prefix: str, outputs: int | None, *, is_ended_early: bool
    ) -> int:
        layers = self.layers
        sizes = layers.sizes("fcnet_hiddens")
        activation = _FULLY_CONNECTED if sizes else _POST
        sizes += layers.sizes("post_fcnet_hiddens")
        if is_ended_early and outputs is not None:
            sizes = [*sizes[:-1], outputs]
        x = layers.slims(x, f"{prefix}_hidden_layers.", sizes, activation=activation)
        if outputs is None or is_ended_early:
            return x
        if not layers.setting("free_log_std"):
            return layers.slim(x, f"{prefix}_logits", outputs)
        x = layers.slim(x, f"{prefix}_logits", outputs // 2)
        # One deviation for all observations.
        log_std = layers.weight(f"{prefix}_append_free_log_std.log_std", outputs // 2)
        return layers.joined((x, layers.by("AddV2", layers.add("ZerosLike", x), log_std)))

    def _vision(
        self, x: int, prefix: str, part: RowPart, outputs: int | None, *, is_ended_early: bool
    ) -> int:
        """Return the register of the outputs of a convolutional network."""
        layers = self.layers
        if str(layers.setting("conv_activation")).lower() in _ACROSS_CHANNELS:
            raise ModelError(
                f"{layers.subject}: conv_activation: is {layers.setting('conv_activation')}, which "
                "is not served for images; train it with another"
            )
        assert isinstance(part.space, BoxSpace), "is_image holds of a Box alone"
        shape = part.space.shape
        row = layers.columns(x, part.first, part.columns)
        image = layers.by("Reshape", row, [-1, *shape])
        names = layers.places(f"{prefix}_convs.")
        # Behind them come the dense layers of `post_fcnet_hiddens`.
        convolutions = [name for name in names if layers.is_convolution(name)]
        image, (height, width, channels) = layers.slim_convolutions(image, convolutions, shape)
        if outputs is not None and (height, width) != (1, 1):
            raise ModelError(
                f"{layers.subject}: its convolutions leave {height} x {width} pixels of an image, "
                "expected one; save the checkpoint anew"
            )
        # RLlib's images have their channels first there.
        x = layers.by("Transpose", image, [0, 3, 1, 2])
        x = layers.by("Reshape", x, [-1, channels * height * width])
        if outputs is None or is_ended_early:
            return x
        return layers.slim(
            self._post_layers(x, names[len(convolutions) :]), f"{prefix}_logits", outputs
        )

    def _post_layers(self, x: int, names: list[str]) -> int:
        """Return the register behind the dense layers that follow an image's convolutions."""
        for name, size in zip(names, self.layers.sizes("post_fcnet_hiddens"), strict=True):
            # RLlib leaves the last one linear.
            activation = None if name == names[-1] else _POST
            x = self.layers.slim(x, name, size, activation=activation)
        return x

    def _complex(self, x: int, prefix: str, outputs: int | None) -> int:
        """Return the register of the outputs of a network with one of its own for each part."""
        layers = self.layers
        sizes = layers.sizes("fcnet_hiddens")
        found = []
        for place, part in enumerate(self.observations.parts):
            if part.is_image:
                own = f"{prefix}cnns.{place}."
                found.append(self._vision(x, own, part, None, is_ended_early=False))
                continue
            is_integer = isinstance(part.space, DiscreteSpace | MultiDiscreteSpace)
            own = f"{prefix}{'one_hot' if is_integer else 'flatten'}.{place}._hidden_layers."
            row = layers.columns(x, part.first, part.columns)
            found.append(layers.slims(row, own, sizes, activation=_FULLY_CONNECTED))
        x = found[0] if len(found) == 1 else layers.joined(found)
        sizes = layers.sizes("post_fcnet_hiddens")
        x = layers.slims(x, f"{prefix}post_fc_stack._hidden_layers.", sizes, activation=_POST)
        return x if outputs is None else layers.slim(x, f"{prefix}logits_layer", outputs)
