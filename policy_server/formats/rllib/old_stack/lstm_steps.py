"""The LSTM that RLlib's old API stack puts behind a model, and what it keeps between two steps.

Source: `ray.rllib.models.torch.recurrent_net.LSTMWrapper`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from policy_server.formats.rllib.actions import Actions
from policy_server.formats.rllib.old_stack.default_models import Model
from policy_server.formats.rllib.old_stack.slim_layers import SlimLayers
from policy_server.policy import StateTensor

__all__ = ["LstmSteps"]


@dataclass(frozen=True)
class LstmSteps:
    """The state of an LSTM, with the previous action and reward where the LSTM takes them.

    Attributes:
        cells: the size of the LSTM.
        actions: the policy's.
        takes_action: the previous action stands behind the features of the observation.
        takes_reward: the previous reward stands behind those.
    """

    cells: int
    actions: Actions
    takes_action: bool
    takes_reward: bool

    @classmethod
    def of(cls, settings: Mapping[str, Any], actions: Actions) -> LstmSteps:
        """Return the LSTM of a model that has one.

        Args:
            settings: the model's.
            actions: the policy's.
        """
        return cls(
            int(settings["lstm_cell_size"]),
            actions,
            takes_action=bool(settings.get("lstm_use_prev_action")),
            takes_reward=bool(settings.get("lstm_use_prev_reward")),
        )

    @property
    def memory(self) -> tuple[StateTensor, ...]:
        """Return the tensors of the state, in the order of the columns behind an observation's."""
        columns = sum(part.columns for part in self.actions.components)
        tensors = [StateTensor("h", (self.cells,)), StateTensor("c", (self.cells,))]
        if self.takes_action:
            tensors.append(StateTensor("prev_action", (columns,), "previous_action"))
        if self.takes_reward:
            tensors.append(StateTensor("prev_reward", (), "previous_reward"))
        return tuple(tensors)

    @property
    def width(self) -> int:
        """Return how many numbers the state has."""
        return sum(tensor.size for tensor in self.memory)

    def add(self, model: Model, x: int) -> int:
        """Return the register of the distribution's inputs and the state after one step.

        Args:
            model: the model ahead of the LSTM.
            x: the register of the rows of observations, as the model takes them.

        Raises:
            ModelError: if weights and settings don't give the model.
        """
        layers, first = model.layers, model.observations.width
        found: dict[str, int] = {}
        for tensor in self.memory:
            column = layers.columns(0, first, tensor.size)
            found[tensor.name] = layers.add("Cast", column, dtype="float32")
            first += tensor.size
        hidden, cell, *previous = found.values()
        features = [model.add(x, outputs=None)]
        if self.takes_action:
            features += self._numbers_of_action(layers, found["prev_action"])
        if self.takes_reward:
            features.append(found["prev_reward"])
        x = features[0] if len(features) == 1 else layers.joined(features)
        hidden, cell = layers.lstm(x, "lstm", hidden, cell)
        scores = layers.slim(hidden, "_logits_branch", self.actions.inputs)
        return layers.joined((scores, hidden, cell, *previous))

    def _numbers_of_action(self, layers: SlimLayers, action: int) -> Iterator[int]:
        """Yield the registers of an action's parts: integers one-hot, as they are otherwise."""
        for part in self.actions.components:
            columns = layers.columns(action, part.first_column, part.columns)
            if part.kind == "categorical":
                choices = np.arange(part.size, dtype=np.float32)
                columns = layers.add("Cast", layers.by("Equal", columns, choices), dtype="float32")
            yield columns
