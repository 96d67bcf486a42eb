"""The distributions that a graph draws its actions from, by the operations that draw them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from policy_server.errors import ModelError
from policy_server.formats.onnx.graph_view import GraphView
from policy_server.formats.onnx.measured import Measured
from policy_server.formats.onnx.model_file import Node
from policy_server.formats.onnx.normal_draws import NormalDraw, normal_draw
from policy_server.formats.onnx.plan import Piece, Transform
from policy_server.policy import ActionComponent, ActionOutput, ComponentKind

__all__ = ["Draws", "Part"]


@dataclass(frozen=True)
class Part:
    """One action with its component or components, before they are placed."""

    pieces: tuple[Piece, ...]
    components: tuple[ActionComponent, ...]
    output: ActionOutput
    finding: str


class Draws:
    """The draws of a graph."""

    def __init__(
        self,
        name: str,
        view: GraphView,
        measure: Callable[[Sequence[str]], Mapping[str, Measured]],
    ) -> None:
        """Own nothing.

        Args:
            name: the file's name, for messages.
            view: the graph.
            measure: runs the graph, and tells the sizes of tensors.
        """
        self._name = name
        self._view = view
        self._measure = measure

    def refuse_shared(self, drawn: Sequence[str]) -> None:
        """Refuse outputs that are drawn by the same random numbers, and so not independently."""
        users: dict[int, str] = {}
        for name in drawn:
            for node in self._view.random_nodes(name):
                if (other := users.setdefault(id(node), name)) != name:
                    raise ModelError(
                        f"{self._name}: its outputs {other!r} and {name!r} share the random "
                        f"numbers of a {node.operator}, expected a draw for each; export the "
                        "logits, or mean and log_std"
                    )

    def part(self, name: str) -> Part | None:
        """Return the distribution that an output is drawn from; None where it is not known."""
        draws = self._view.leaves(name, "Multinomial")
        if draws is not None and self._are_independent(draws):
            width = self._measure([name])[name].width
            if width != len(draws):
                raise ModelError(
                    f"{self._name}: its output {name!r} holds {width} integers of "
                    f"{len(draws)} Multinomial, expected one of each; export it with sample_size "
                    "1, and a Multinomial for each action"
                )
            tensors = [self._logits(node.inputs[0]) for node in draws]
            sizes = self._measure(tensors)
            widths = [sizes[tensor].width for tensor in tensors]
            return Part(
                tuple(Piece(tensor, width) for tensor, width in zip(tensors, widths, strict=True)),
                tuple(ActionComponent("categorical", width, 0, 0) for width in widths),
                ActionOutput(name, is_integer=True, columns=len(widths), is_vector=len(widths) > 1),
                f"the output {name!r} is drawn from {len(widths)} categorical distributions, whose "
                "logits are read; the graph's own draws are left out",
            )
        draw = normal_draw(self._view, name)
        if draw is None or not self._has_noise_each(name, draw):
            return None
        return self._normal(name, draw)

    def _are_independent(self, draws: Sequence[Node]) -> bool:
        """Return whether each action has a draw of its own, from logits that are none."""
        random = [node for draw in draws for node in self._view.random_nodes(draw.inputs[0])]
        return not random and len({id(draw) for draw in draws}) == len(draws)

    def _has_noise_each(self, name: str, draw: NormalDraw) -> bool:
        """Return whether each dimension of a draw has a mean and a random number of its own.

        And a deviation, which is no negative number.
        """
        tensors = [name, draw.mean, draw.noise, draw.std]
        sizes = self._measure(tensors)
        width, mean, noise, std = (sizes[tensor].width for tensor in tensors)
        is_deviation = std in (1, width) and bool((sizes[draw.std].rows >= 0).all())
        has_bounds = draw.bounds is None or draw.bounds[0].size in (1, width)
        return mean == noise == width and is_deviation and has_bounds

    def _normal(self, name: str, draw: NormalDraw) -> Part:
        width = self._measure([name])[name].width
        kind: ComponentKind = "squashed_normal" if draw.is_squashed else "normal"
        component = ActionComponent(kind, width, 0, 0)
        factor = draw.factor
        if draw.bounds is not None:
            low, high = (np.broadcast_to(side * factor, (width,)).tolist() for side in draw.bounds)
            component = replace(
                component, low=tuple(low), high=tuple(high), is_normalized=draw.is_squashed
            )
        offset = float(np.log(factor * draw.noise_scale))
        mean = Piece(draw.mean, width, rows_axis=self._axis(draw.mean), factor=factor)
        return Part(
            (mean, *self._log_std(draw, width, offset)),
            (component,),
            ActionOutput(name, is_integer=False, columns=width, is_vector=True),
            f"the output {name!r} is drawn from a {kind.replace('_', ' ')} distribution, whose "
            "mean and deviation are read; the graph's own draws are left out",
        )

    def _log_std(self, draw: NormalDraw, width: int, offset: float) -> tuple[Piece, ...]:
        """Return the log of the deviation: of exp(x) it is x itself."""
        node = self._view.node(draw.std)
        is_exp = node is not None and node.operator == "Exp"
        tensor = node.inputs[0] if node is not None and is_exp else draw.std
        transform: Transform = "as it is" if is_exp else "log"
        size = self._measure([tensor])[tensor].width
        piece = Piece(tensor, size, transform, self._axis(tensor), offset=offset)
        return (piece,) * width if size == 1 else (piece,)

    def _axis(self, tensor: str) -> int | None:
        return None if self._view.is_constant(tensor) else 0

    def _logits(self, tensor: str) -> str:
        """Return the logits that a log of probabilities comes from; itself where it is none."""
        node = self._view.node(tensor)
        if node is not None and node.operator == "Log":
            inner = self._view.node(node.inputs[0])
            if inner is not None and self._view.ending(inner.outputs[0]) == "softmax":
                return inner.inputs[0]
        return tensor
