"""From a graph's outputs to an action distribution: by its draws, its names, or schema.yaml."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.network_outputs import may_act
from policy_server.formats.onnx.beside_draws import refuse_beside_draws
from policy_server.formats.onnx.drawn_actions import Draws, Part
from policy_server.formats.onnx.graph_view import NORMALIZING, GraphView
from policy_server.formats.onnx.measured import Measured
from policy_server.formats.onnx.model_file import OnnxModel
from policy_server.formats.onnx.plan import Piece, Transform
from policy_server.formats.onnx.random_nodes import RandomNodes
from policy_server.formats.onnx.roles import Roles
from policy_server.formats.onnx.whole_numbers import WholeNumbers
from policy_server.formats.output_meaning import (
    Ending,
    Form,
    NetworkOutput,
    ReadOutput,
    read_meaning,
)
from policy_server.policy import ActionComponent, ActionOutput, Basis
from policy_server.schema import ServerSchema

__all__ = ["Actions", "read_actions"]

Array = NDArray[Any]

# ML-Agents' outputs that are no actions.
_CONSTANTS = re.compile(
    r"version_number|memory_size|is_continuous_control|(?:\w+_)?action_output_shape"
)
_NOISE = re.compile(r"(?:\w+_)?(?:noise|eps|epsilon)")
_DRAWN = ("continuous_actions", "discrete_actions")
_DETERMINISTIC = "deterministic_"
_TRANSFORMS: Mapping[Form, Transform] = {
    "one_hot": "index of the largest",
    "probabilities": "log",
    "std": "log",
}
# stable-baselines3's documented export gives action, value and log-probability, without names.
_RECIPE = ("actions", "values", "log_prob")


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
        self._draws = Draws(model.name, self._view, measure)
        self._whole = WholeNumbers(model, lambda name: measure([name])[name].has_integer_type)
        self._has_mask = roles.mask is not None
        self._noise = [item.name for item in model.inputs if _NOISE.fullmatch(item.name.lower())]
        self._names = [item.name for item in roles.outputs if not _CONSTANTS.fullmatch(item.name)]

    def read(self) -> Actions:
        drawn = [name for name in self._names if self._view.random_nodes(name)]
        plain = [name for name in self._names if name not in drawn]
        if not drawn:
            return self._plain(plain)
        # The log-probability of a draw is computed from it, and is none itself.
        drawn = [name for name in drawn if may_act(name)] or drawn
        drawn = [
            name
            for name in drawn
            if not self._view.written_before(
                [one for one in drawn if self._view.source(one) != self._view.source(name)], name
            )
        ]
        drawn = self._in_order(drawn)
        parts = [part for name in drawn if (part := self._draws.part(name)) is not None]
        if len(parts) == len(drawn):
            return self._of_draws(drawn, parts, plain)
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
        found = self._plain(plain)
        names = ", ".join(repr(name) for name in drawn)
        left = f"the draw {names} is left out: its distribution is not known"
        return replace(found, findings=(*found.findings, left))

    def _of_draws(
        self, drawn: Sequence[str], parts: Sequence[Part], plain: Sequence[str]
    ) -> Actions:
        """Return the distributions that the graph draws from, after a look at what is beside."""
        self._draws.refuse_shared(drawn)
        modes = tuple(f"{_DETERMINISTIC}{name}" for name in drawn)
        modes = modes if {*modes} <= {*plain} else ()
        names = [name for name in plain if name not in modes and may_act(name)]
        measured = self._measure(names)
        beside = [self._output(name, name, measured[name]) for name in names]
        left = refuse_beside_draws(self._model.name, parts, beside, self._measure)
        found = self._joined(parts)
        return replace(found, modes=modes, findings=(*found.findings, *left))

    @staticmethod
    def _in_order(names: Sequence[str]) -> list[str]:
        """Return ML-Agents' continuous actions before its discrete ones, as Unity has them."""
        return sorted(names, key=lambda name: _DRAWN.index(name) if name in _DRAWN else -1)

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
            piece
            for one in meaning.read
            for piece in self._pieces(tensors[one.output.name], one.output, one.form)
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
        if joined := self._view.joined(tensor, "Softmax"):
            rows = measured.rows
            return NetworkOutput(name, measured.width, ending="softmax", joined=joined, rows=rows)
        joined = self._view.joined(tensor, "LogSoftmax")
        ending, row_length = self._view.ending(tensor), self._view.row_length(tensor)
        is_whole = measured.has_integer_type or tensor in self._whole
        if ending in (None, "activation"):
            shown = self._ending_of_whole(measured) if is_whole else measured.ending
            ending = shown or ending
            if not joined and measured.may_join_log_probabilities:
                joined = measured.log_probability_sizes(self._told_sizes(tensor))
        if joined:
            ending, joined = "log_softmax", joined if len(joined) > 1 else ()
        # A one-hot vector holds integers too, and is one action.
        is_integer = measured.has_integer_type or (is_whole and not self._states_continuous)
        is_integer = is_integer and ending != "one_hot"
        row_length = row_length or measured.row_length
        return NetworkOutput(
            name,
            measured.width,
            is_integer,
            ending=ending,
            row_length=None if joined else row_length,
            joined=joined,
            is_inner=self._is_inner(tensor),
            has_noise=self._view.written_before(self._noise, tensor),
            rows=measured.rows,
        )

    def _ending_of_whole(self, measured: Measured) -> Ending | None:
        """Return the ending of whole numbers, which may be a one-hot vector of any type.

        Several integer actions of which one alone is 1 on all probes are told by schema.yaml.
        """
        schema = self._schema or ServerSchema()
        fields = schema.actions or ()
        if not measured.is_one_hot or len(fields) > 1 or schema.tuple:
            return None
        is_stated = schema.discrete is True or any(one.choices == measured.width for one in fields)
        is_told = not measured.has_integer_type or is_stated or measured.has_several_places
        return "one_hot" if is_told else None

    def _told_sizes(self, tensor: str) -> list[tuple[int, ...]]:
        """Return the sizes of a tensor's parts, as the graph and schema.yaml tell them."""
        fields = self._schema.actions or () if self._schema is not None else ()
        stated = [field.choices for field in fields if field.choices is not None]
        told = [
            self._widths(self._view.softmax_inputs(tensor)),
            self._widths(self._view.concatenated(tensor)),
        ]
        if len(stated) == len(fields):
            told.append(tuple(stated))
        return [one for one in told if one]

    def _widths(self, tensors: Sequence[str]) -> tuple[int, ...]:
        measured = self._measure(tensors)
        return tuple(measured[tensor].width for tensor in tensors)

    def _is_inner(self, tensor: str) -> bool:
        """Return whether another output is computed from one, as from a layer of features."""
        source = self._view.source(tensor)
        others = [name for name in self._names if self._view.source(name) != source]
        # In one pass over the graph, since each output is asked about.
        return self._view.written_before([tensor], *others)

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

    def _pieces(self, tensor: str, output: NetworkOutput, form: Form) -> list[Piece]:
        """Return the tensors that hold an output's numbers, or the logits that they come from.

        ML-Agents adds a tiny number to the probabilities before their logarithm, which a mask
        leaves of the choices that it forbids.
        """
        if form == "logits" and self._has_mask:
            inputs = self._view.softmax_inputs(tensor)
            widths = self._widths(inputs)
            if widths == (output.joined or (output.width,)):
                return [Piece(*one) for one in zip(inputs, widths, strict=True)]
        width = ReadOutput(output, form).width
        return [self._piece(tensor, width, form)]

    def _piece(self, tensor: str, width: int, form: Form) -> Piece:
        if form == "probabilities" and self._view.ending(tensor) == "softmax":
            node = self._view.node(tensor)
            assert node is not None, "it ends with a softmax"
            return Piece(node.inputs[0], width)
        axis = None if self._view.is_constant(tensor) else 0
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
    def _joined(parts: Sequence[Part]) -> Actions:
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
