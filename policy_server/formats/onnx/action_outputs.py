"""From a graph's outputs to an action distribution: by its draws, its names, or schema.yaml."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.onnx.graph_view import NORMALIZING, GraphView, NormalDraw
from policy_server.formats.onnx.model_file import Node, OnnxModel
from policy_server.formats.onnx.plan import Piece, Transform
from policy_server.formats.onnx.random_nodes import RandomNodes
from policy_server.formats.onnx.roles import Roles
from policy_server.formats.onnx.whole_numbers import WholeNumbers
from policy_server.formats.output_meaning import Ending, Form, NetworkOutput, read_meaning
from policy_server.policy import ActionComponent, ActionOutput, Basis, ComponentKind
from policy_server.schema import ServerSchema

__all__ = ["Actions", "Measured", "read_actions"]

Array = NDArray[Any]

# ML-Agents' outputs that are no actions.
_CONSTANTS = re.compile(r"version_number|memory_size|(?:\w+_)?action_output_shape")
_DRAWN = ("continuous_actions", "discrete_actions")
_DETERMINISTIC = "deterministic_"
_SUM_TOLERANCE = 1e-4
_TRANSFORMS: Mapping[Form, Transform] = {
    "one_hot": "index of the largest",
    "probabilities": "log",
    "std": "log",
}
# stable-baselines3's documented export gives action, value and log-probability, without names.
_RECIPE = ("actions", "values", "log_prob")


@dataclass(frozen=True, eq=False)
class Measured:
    """A tensor as a runtime gave it for some observations.

    Attributes:
        rows: its numbers: float[B, width].
        has_integer_type: whether its type is an integer.
        is_one_a_row: whether it has no dimension but that of the rows.
        shape: its dimensions for a batch.
    """

    rows: Array
    has_integer_type: bool
    is_one_a_row: bool
    shape: tuple[int, ...]

    @property
    def width(self) -> int:
        """Return how many numbers it has in one row."""
        return int(self.rows.shape[1])

    @property
    def row_length(self) -> int:
        """Return how many numbers its last dimension has, leaving those of one number out."""
        return min(next((size for size in self.shape[::-1] if size > 1), 1), self.width)

    @property
    def ending(self) -> Ending | None:
        """Return the operation that its numbers show, where the graph spells it out in others.

        Zeros and ones show none: a clipped action holds them too, wherever the probes saturate it.
        """
        rows = self.rows
        if self.has_integer_type or self.width < 2 or not ((rows >= 0) & (rows <= 1)).all():
            return None
        sums = rows.reshape(len(rows), -1, self.row_length).sum(axis=2)
        if not np.allclose(sums, 1, atol=_SUM_TOLERANCE):
            return None
        return None if self.is_saturated else "softmax"

    @property
    def ending_of_whole(self) -> Ending | None:
        """Return the ending of whole numbers, which may be a one-hot vector."""
        rows = self.rows
        if self.has_integer_type or self.width < 2 or not ((rows == 0) | (rows == 1)).all():
            return None
        sums = rows.reshape(len(rows), -1, self.row_length).sum(axis=2)
        return "one_hot" if (sums == 1).all() else None

    @property
    def is_saturated(self) -> bool:
        """Return whether it holds nothing but zeros and ones, or the same for all observations."""
        rows = self.rows
        return bool(((rows == 0) | (rows == 1)).all() or (rows == rows[:1]).all())


@dataclass(frozen=True)
class Actions:
    """The action distribution of a graph.

    Attributes:
        pieces: the tensors that make `action_dist_inputs`, in order.
        components: the distribution's components.
        outputs: the actions in order.
        basis: where it was read.
        findings: how, in words.
        is_value_based: the best action is taken, as by Q values.
        has_own_bounds: the graph clips the draws, and schema.yaml may state no other bounds.
        modes: the outputs that give the graph's own deterministic action, in the order of the
            actions; empty for none.
    """

    pieces: tuple[Piece, ...]
    components: tuple[ActionComponent, ...]
    outputs: tuple[ActionOutput, ...]
    basis: Basis
    findings: tuple[str, ...]
    is_value_based: bool = False
    has_own_bounds: bool = False
    modes: tuple[str, ...] = ()


def read_actions(
    model: OnnxModel,
    roles: Roles,
    schema: ServerSchema | None,
    measure: Callable[[Sequence[str]], Mapping[str, Measured]],
) -> Actions:
    """Return the action distribution of a graph.

    Args:
        model: the graph.
        roles: the parts of its inputs and outputs.
        schema: the contents of schema.yaml; None where there is none.
        measure: runs the graph, and tells the sizes of tensors.

    Raises:
        ModelError: if nothing tells the actions' distribution, or the graph draws them in a way
            that is not known.
        SchemaError: if schema.yaml does not say enough, or contradicts the graph.
    """
    return _Reader(model, roles, schema, measure).read()


@dataclass(frozen=True)
class _Part:
    """One action with its component or components, before they are placed."""

    pieces: tuple[Piece, ...]
    components: tuple[ActionComponent, ...]
    output: ActionOutput
    finding: str


class _Reader:
    def __init__(
        self,
        model: OnnxModel,
        roles: Roles,
        schema: ServerSchema | None,
        measure: Callable[[Sequence[str]], Mapping[str, Measured]],
    ) -> None:
        self._model = model
        self._schema = schema
        self._measure = measure
        self._view = GraphView(
            model,
            lambda name: measure([name])[name].shape,
            lambda name: measure([name])[name].has_integer_type,
            RandomNodes(model, roles.fixed),
        )
        self._whole = WholeNumbers(model, lambda name: measure([name])[name].has_integer_type)
        self._names = [item.name for item in roles.outputs if not _CONSTANTS.fullmatch(item.name)]

    def read(self) -> Actions:
        drawn = [name for name in self._names if self._view.random_nodes(name)]
        plain = [name for name in self._names if name not in drawn]
        if not drawn:
            return self._plain(plain)
        # The log-probability of a draw is computed from it, and is none itself.
        drawn = [
            name
            for name in drawn
            if not self._view.written_before(
                [one for one in drawn if self._view.source(one) != self._view.source(name)], name
            )
        ]
        parts = [self._draw(name) for name in self._in_order(drawn)]
        if all(part is not None for part in parts):
            self._refuse_shared(drawn)
            modes = [f"{_DETERMINISTIC}{name}" for name in self._in_order(drawn)]
            found = self._joined([part for part in parts if part is not None])
            return replace(found, modes=tuple(modes) if {*modes} <= {*plain} else ())
        if not plain:
            operators = {node.operator for name in drawn for node in self._view.random_nodes(name)}
            remedy = (
                "export the logits, or mean and log_std, of SAC with 'values: squashed_normal' in "
                "schema.yaml"
            )
            if "Dropout" in operators:
                remedy = "export it in evaluation mode (model.eval())"
            raise ModelError(
                f"{self._model.name}: its output {drawn[0]!r} is a draw by "
                f"{', '.join(sorted(operators))}, and the graph does not show the distribution "
                f"that it comes from; {remedy}"
            )
        return self._plain(plain)

    def _refuse_shared(self, drawn: Sequence[str]) -> None:
        """Refuse outputs that are drawn by the same random numbers, and so not independently."""
        users: dict[int, str] = {}
        for name in drawn:
            for node in self._view.random_nodes(name):
                if (other := users.setdefault(id(node), name)) != name:
                    raise ModelError(
                        f"{self._model.name}: its outputs {other!r} and {name!r} share the random "
                        f"numbers of a {node.operator}, expected a draw for each; export the "
                        "logits, or mean and log_std"
                    )

    @staticmethod
    def _in_order(names: Sequence[str]) -> list[str]:
        """Return ML-Agents' continuous actions before its discrete ones, as Unity has them."""
        return sorted(names, key=lambda name: _DRAWN.index(name) if name in _DRAWN else -1)

    def _draw(self, name: str) -> _Part | None:
        """Return the distribution that an output is drawn from; None where it is not known."""
        draws = self._view.leaves(name, "Multinomial")
        if draws is not None and self._are_independent(draws):
            width = self._measure([name])[name].width
            if width != len(draws):
                raise ModelError(
                    f"{self._model.name}: its output {name!r} holds {width} integers of "
                    f"{len(draws)} Multinomial, expected one of each; export it with sample_size "
                    "1, and a Multinomial for each action"
                )
            tensors = [self._logits(node.inputs[0]) for node in draws]
            sizes = self._measure(tensors)
            widths = [sizes[tensor].width for tensor in tensors]
            return _Part(
                tuple(Piece(tensor, width) for tensor, width in zip(tensors, widths, strict=True)),
                tuple(ActionComponent("categorical", width, 0, 0) for width in widths),
                ActionOutput(name, is_integer=True, columns=len(widths), is_vector=len(widths) > 1),
                f"the output {name!r} is drawn from {len(widths)} categorical distributions, whose "
                "logits are read; the graph's own draws are left out",
            )
        draw = self._view.normal_draw(name)
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
        return mean == noise == width and is_deviation

    def _normal(self, name: str, draw: NormalDraw) -> _Part:
        width = self._measure([name])[name].width
        kind: ComponentKind = "squashed_normal" if draw.is_squashed else "normal"
        is_scaled = draw.factor != 1.0 and not draw.is_squashed
        bounds = draw.bounds
        component = ActionComponent(kind, width, 0, 0)
        if bounds is not None or (draw.is_squashed and draw.factor != 1.0):
            low, high = bounds if bounds is not None else (-1.0, 1.0)
            component = replace(
                component,
                low=(low * draw.factor,) * width,
                high=(high * draw.factor,) * width,
                is_normalized=draw.is_squashed,
            )
        factor = draw.factor if is_scaled else 1.0
        offset = float(np.log(abs(factor) * draw.noise_scale))
        mean = Piece(draw.mean, width, rows_axis=self._axis(draw.mean), factor=factor)
        return _Part(
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

    def _plain(self, names: Sequence[str]) -> Actions:
        """Return the meaning of outputs that hold no draw."""
        measured = self._measure(names)
        said = self._said(names, measured)
        outputs = [self._output(name, said[name], measured[name]) for name in names]
        tensors = {said[name]: name for name in names}
        meaning = read_meaning(outputs, self._schema, subject=self._model.name)
        for one in meaning.read:
            self._refuse_other_axis(tensors[one.output.name])
        pieces = tuple(
            self._piece(tensors[one.output.name], one.width, one.form) for one in meaning.read
        )
        return Actions(
            pieces,
            meaning.components,
            meaning.action_outputs,
            meaning.basis,
            meaning.findings,
            is_value_based=meaning.is_value_based,
            has_own_bounds=meaning.has_own_bounds,
        )

    def _output(self, tensor: str, name: str, measured: Measured) -> NetworkOutput:
        if joined := self._view.joined_softmaxes(tensor):
            rows = measured.rows
            return NetworkOutput(name, measured.width, ending="softmax", joined=joined, rows=rows)
        ending, row_length = self._view.ending(tensor), self._view.row_length(tensor)
        is_whole = measured.has_integer_type or tensor in self._whole
        if ending in (None, "activation"):
            ending = (measured.ending_of_whole if is_whole else measured.ending) or ending
        # A one-hot vector holds integers too, and is one action.
        is_integer = measured.has_integer_type or (is_whole and not self._states_continuous)
        is_integer = is_integer and ending != "one_hot"
        row_length = row_length or measured.row_length
        return NetworkOutput(
            name,
            measured.width,
            is_integer,
            ending=ending,
            row_length=row_length,
            rows=measured.rows,
        )

    @property
    def _states_continuous(self) -> bool:
        """Return whether schema.yaml states continuous actions, which whole floats may be too."""
        if self._schema is None or self._schema.discrete is not None:
            return self._schema is not None and self._schema.discrete is False
        fields = self._schema.actions or ()
        return any(field.low or field.high or field.dimensions for field in fields)

    def _refuse_other_axis(self, tensor: str) -> None:
        """Refuse an output that is normalized along another axis than its last."""
        node = self._view.node(tensor)
        if node is None or node.operator not in NORMALIZING or self._view.row_length(tensor):
            return
        shape = self._measure([node.outputs[0]])[node.outputs[0]].shape
        raise ModelError(
            f"{self._model.name}: its output {tensor!r} ends with a {node.operator} along axis "
            f"{node.attributes.get('axis', 'of its default')} of {len(shape)}, expected the last, "
            "where the choices of one action are; export it so"
        )

    def _piece(self, tensor: str, width: int, form: Form) -> Piece:
        if form == "probabilities" and self._view.ending(tensor) == "softmax":
            node = self._view.node(tensor)
            assert node is not None, "it ends with a softmax"
            return Piece(node.inputs[0], width)
        axis = self._axis(tensor)
        return Piece(tensor, width, _TRANSFORMS.get(form, "as it is"), axis)

    def _said(self, names: Sequence[str], measured: Mapping[str, Measured]) -> dict[str, str]:
        """Return the outputs' names, which stable-baselines3's documented export does not give."""
        known = dict(zip(names, names, strict=True))
        if len(names) != len(_RECIPE) or any(
            re.search("action|logit|prob|value", n) for n in names
        ):
            return known
        action, value, log_probability = names
        is_recipe = (
            measured[value].width == measured[log_probability].width == 1
            and measured[log_probability].is_one_a_row
            and not measured[value].is_one_a_row
            and self._view.written_before([action], log_probability)
            and not self._view.written_before([action], value)
        )
        return dict(zip(names, _RECIPE, strict=True)) if is_recipe else known

    @staticmethod
    def _joined(parts: Sequence[_Part]) -> Actions:
        components: list[ActionComponent] = []
        first_input = first_column = 0
        for component in (component for part in parts for component in part.components):
            components.append(
                replace(component, first_input=first_input, first_column=first_column)
            )
            first_input += component.inputs
            first_column += component.columns
        return Actions(
            tuple(piece for part in parts for piece in part.pieces),
            tuple(components),
            tuple(part.output for part in parts),
            "structure",
            tuple(part.finding for part in parts),
            has_own_bounds=any(component.low is not None for component in components),
        )
