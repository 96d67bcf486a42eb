"""The parts that a graph's inputs and outputs play: observations, an action mask, and state."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.onnx.fixed_inputs import filled_with, reset_flags, switched
from policy_server.formats.onnx.model_file import Node, OnnxModel
from policy_server.formats.onnx.observed_inputs import in_schema_order
from policy_server.formats.onnx.plan import Feed
from policy_server.formats.onnx.state_pairs import (
    RECURRENT,
    StatePair,
    ancestors_of,
    flow_pairs,
    layer_pairs,
    moved_from,
    named_pairs,
)
from policy_server.policy import SignatureTensor, StateTensor
from policy_server.schema import ServerSchema

__all__ = ["Roles", "find_roles"]

_MASK = re.compile(r"(?:action|available_actions?|legal_actions?)_?masks?|avail_actions")
_ENDLESS = ("Loop", "Scan")


@dataclass(frozen=True)
class Roles:
    """The parts that a graph's inputs and outputs play.

    Attributes:
        feeds: all inputs; those of the observation take the first columns of a row in order, and
            those of the state the last.
        observations: the inputs that make an observation, in the order of a row.
        mask: the input that is an action mask; None where there is none.
        observed_masks: the inputs of an action mask's name that are observations.
        flags: the inputs that clear the state, filled with the number of a step that goes on.
        observed_flags: such inputs that are observations, since they do more than clear the state.
        states: the state's tensors, in the order of their inputs.
        outputs: the outputs that carry no state.
    """

    feeds: tuple[Feed, ...]
    observations: tuple[SignatureTensor, ...]
    mask: Feed | None
    states: tuple[StatePair, ...]
    outputs: tuple[SignatureTensor, ...]
    observed_masks: tuple[str, ...] = ()
    flags: tuple[Feed, ...] = ()
    observed_flags: tuple[Feed, ...] = ()

    @property
    def observation_width(self) -> int:
        """Return how many numbers an observation has."""
        names = {item.name for item in self.observations}
        return sum(feed.width for feed in self.feeds if feed.name in names)

    @property
    def fixed(self) -> Mapping[str, NDArray[Any]]:
        """Return the values of the inputs that are the same for every observation, by name."""
        mask = None if self.mask is None else self.mask.name
        return {
            feed.name: np.array(feed.value)
            for feed in self.feeds
            if feed.first is None and feed.name != mask
        }

    @property
    def memory(self) -> tuple[StateTensor, ...]:
        """Return the state's tensors as they are in one row."""
        shapes = {feed.name: feed.shape for feed in self.feeds}
        names = [pair.before.name for pair in self.states]
        return tuple(StateTensor(name, shapes[name]) for name in names)


def find_roles(
    model: OnnxModel,
    schema: ServerSchema | None,
    *,
    flow: Mapping[str, str] | None = None,
    masks: Collection[str] | None = None,
    observed: Collection[str] = (),
) -> Roles:
    """Return the parts that a graph's inputs and outputs play.

    Args:
        model: the graph.
        schema: the contents of schema.yaml, for the width of an observation that the file leaves
            open.
        flow: the outputs that become inputs of the next step, by the inputs' names; None to tell
            them by the names.
        masks: the names of the inputs that are action masks; None to tell them by the names.
        observed: the names of the inputs that are observations, though they are named as flags
            that clear a state.

    Raises:
        ModelError: if an input can't be filled, or a memory would be lost.
    """
    _refuse_endless(model.nodes, model.name)
    _refuse_mixed_state(model)
    pairs = _pairs(model) if flow is None else flow_pairs(model, flow)
    _refuse_merged_states(model, pairs)
    after = {pair.after for pair in pairs}
    outputs = tuple(item for item in model.outputs if item.name not in after)
    if not outputs and flow is not None:
        # An action that the next step takes is one still.
        outputs = model.outputs
    if not outputs:
        raise ModelError(f"{model.name}: no output holds an action{_taken(pairs)}")
    # A dummy state goes from its input to its output, and no action depends on it.
    needed = ancestors_of(model, [item.name for item in outputs])
    states = tuple(pair for pair in pairs if pair.before.name in needed)
    dummies = {pair.before.name for pair in pairs if pair not in states}
    _refuse_lost_memory(model, needed, pairs=pairs)
    before = {pair.before.name for pair in pairs}
    others = [item for item in model.inputs if item.name not in before]
    told = reset_flags(others, model.name, schema) if pairs else []
    flags = [feed for feed in told if feed.name not in observed]
    flagged = {feed.name for feed in flags}
    fixed = [
        *(
            feed
            for item in others
            if item.name not in flagged and (feed := switched(item, model.name)) is not None
        ),
        *flags,
    ]
    taken = _masks(others, needed) if masks is None else masks
    filled = [item for item in others if item.name in taken]
    mask = next((item.name for item in filled if item.name in needed), None)
    mask = filled[0].name if mask is None and filled else mask
    known = {feed.name for feed in fixed} | {item.name for item in filled}
    observations = in_schema_order(
        [item for item in others if item.name not in known], schema, mask
    )
    if not observations:
        names = ", ".join(repr(item.name) for item in model.inputs)
        raise ModelError(
            f"{model.name}: no input is an observation, got {names or 'none'}{_taken(pairs)}"
        )
    feeds = [
        *_observation_feeds(model, observations, schema, states),
        *fixed,
        *(filled_with(item, model.name, value=1.0) for item in filled),
        *(_state_feed(model, pair) for pair in states),
        *(filled_with(pair.before, model.name) for pair in pairs if pair.before.name in dummies),
    ]
    order = [*(item.name for item in observations), *(pair.before.name for pair in states)]
    return Roles(
        tuple(_placed(feeds, order)),
        observations,
        next((feed for feed in feeds if feed.name == mask), None),
        states,
        outputs,
        tuple(item.name for item in observations if _MASK.fullmatch(item.name.lower())),
        tuple(flags),
        tuple(feed for feed in told if feed.name in observed),
    )


def _masks(inputs: Sequence[SignatureTensor], needed: set[str]) -> list[str]:
    """Return the names of the action masks, of which the outputs need no more than one.

    A client gives one mask beside an observation; several are a part of it, such as one of the
    choices and one of the things that are seen.
    """
    names = [item.name for item in inputs if _MASK.fullmatch(item.name.lower())]
    used = needed.intersection(names)
    return names if len(used) < 2 else [name for name in names if name not in used]


def _pairs(model: OnnxModel) -> list[StatePair]:
    """Return the inputs and outputs that carry state, in the order of the inputs."""
    named = named_pairs(model)
    found = {pair.before.name: pair for pair in (*named, *layer_pairs(model, named))}
    return [found[item.name] for item in model.inputs if item.name in found]


def _taken(pairs: Sequence[StatePair]) -> str:
    """Return the end of a message that names what was taken for state; empty for nothing."""
    if not pairs:
        return ""
    found = ", ".join(f"{pair.before.name!r} and {pair.after!r}" for pair in pairs)
    return f": {found} are taken for the state before and after a step; name what is none otherwise"


def _refuse_endless(nodes: Sequence[Node], name: str) -> None:
    # A branch may be taken at one observation alone, which no probe has.
    every = (one.operator for node in nodes for one in (node, *node.inner))
    found = next((operator for operator in every if operator in _ENDLESS), None)
    if found is not None:
        raise ModelError(
            f"{name}: holds a {found}, whose turns are not bounded; export the network for one "
            "step, without a loop"
        )


def _refuse_mixed_state(model: OnnxModel) -> None:
    """Refuse the export of a recurrent policy by RLlib's old API stack, which runs for no step.

    It gives the cell's state to the input `seq_lens`, and keeps the batch that it was traced with.
    """
    names = {item.name for item in model.inputs}
    is_recurrent = any(node.operator in RECURRENT for node in model.nodes)
    if is_recurrent and {"state_ins", "seq_lens"} <= names:
        raise ModelError(
            f"{model.name}: is RLlib's ONNX export of a recurrent policy, which mixes its state up "
            "with 'seq_lens' and can't be run for one step; give RLlib's checkpoint itself"
        )


def _refuse_merged_states(model: OnnxModel, pairs: Sequence[StatePair]) -> None:
    """Refuse a state that nothing reads, and whose next value comes from another state.

    PyTorch's exporter reads two inputs as one where both were given as the same example tensor:
    `torch.onnx.export(network, (obs, zeros, zeros), ..., dynamo=True)`.
    """
    read = {name for node in model.nodes for name in node.inputs}
    for pair in pairs:
        others = {one.before.name for one in pairs} - {pair.before.name}
        if pair.before.name not in read and others & ancestors_of(model, [pair.after]):
            raise ModelError(
                f"{model.name}: the state {pair.before.name!r} is read by nothing, and "
                f"{pair.after!r} comes from {min(others)!r}; PyTorch's exporter merges inputs that "
                "are the same example tensor: export with a tensor for each"
            )


def _refuse_lost_memory(model: OnnxModel, needed: set[str], *, pairs: Sequence[StatePair]) -> None:
    """Refuse a recurrent layer whose state is no input, unless it reads a whole window."""
    sources = {item.name for item in model.inputs}
    for node in model.nodes:
        if node.operator not in RECURRENT or not needed.intersection(node.outputs):
            continue
        states = [name for name in node.inputs[5:7] if name]
        lost = {name for state in states for name in moved_from(model, state)} & sources
        for name in sorted(lost - {pair.before.name for pair in pairs}):
            raise ModelError(
                f"{model.name}: the input {name!r} is the state of its {node.operator}, and no "
                "output holds it after the step; export the network with both, such as h_in and "
                "h_out"
            )
        if not sources.intersection(ancestors_of(model, states)) and not pairs:
            raise ModelError(
                f"{model.name}: holds a {node.operator} whose state is no input, so that every "
                "step would forget the ones before; export the network with its state as inputs "
                "and outputs, such as h_in, c_in, h_out and c_out"
            )


def _observation_feeds(
    model: OnnxModel,
    observations: Sequence[SignatureTensor],
    schema: ServerSchema | None,
    states: Sequence[StatePair],
) -> list[Feed]:
    found = []
    for item in observations:
        shape = item.shape
        if shape is None:
            raise ModelError(
                f"{model.name}: the input {item.name!r} has no shape; export it with one"
            )
        if not re.fullmatch(r"(float|u?int)\d+|bool|bfloat16", item.dtype):
            raise ModelError(
                f"{model.name}: the input {item.name!r} holds {item.dtype}, expected numbers"
            )
        _refuse_steps_first(model, item, states)
        rest = _row_shape(item, shape, model, is_recurrent=bool(states))
        if None in rest:
            rest = _closed(model.name, item, rest, schema, is_only=len(observations) == 1)
        axis = None if _is_single(shape, model) else 0
        found.append(Feed(item.name, item.dtype, tuple(size or 0 for size in rest), axis, 0))
    return found


def _refuse_steps_first(
    model: OnnxModel, item: SignatureTensor, states: Sequence[StatePair]
) -> None:
    """Refuse an input of one step and any number of rows, told by states of any number of rows."""
    has_rows = any(None in (pair.before.shape or ()) for pair in states)
    if has_rows and (item.shape or ())[:2] == (1, None):
        raise ModelError(
            f"{model.name}: the input {item.name!r} has its steps before its rows; export it with "
            "the rows first (batch_first=True), or for a batch of 1"
        )


def _is_single(shape: tuple[int | None, ...], model: OnnxModel) -> bool:
    """Return whether an input takes a single observation, without an axis of rows.

    One dimension of a known size does; so do several, such as an image's of 3 x 16 x 16, where no
    output has a row for each of the first one's numbers.
    """
    if not shape or None in shape:
        return False
    if len(shape) == 1:
        return True
    outputs = [item.shape for item in model.outputs]
    return shape[0] != 1 and all(
        output is not None and None not in output and output[:1] != shape[:1] for output in outputs
    )


def _row_shape(
    item: SignatureTensor, shape: tuple[int | None, ...], model: OnnxModel, *, is_recurrent: bool
) -> tuple[int | None, ...]:
    if _is_single(shape, model):
        return shape
    if not shape or shape[0] not in (None, 1):
        raise ModelError(
            f"{model.name}: the input {item.name!r} takes {shape[0] if shape else 'no'} rows at "
            "once, expected one or any number; export it for a batch of 1"
        )
    rest = shape[1:]
    if is_recurrent and len(rest) > 1 and rest[0] is None:
        # The steps of a sequence, of which a policy takes one.
        return (1, *rest[1:])
    return rest


def _closed(
    name: str,
    item: SignatureTensor,
    rest: tuple[int | None, ...],
    schema: ServerSchema | None,
    *,
    is_only: bool,
) -> tuple[int | None, ...]:
    """Return a shape whose one open size is told by schema.yaml's width."""
    width = None if schema is None else schema.width
    known = math.prod(size for size in rest if size is not None)
    if not is_only or rest.count(None) > 1 or width is None or width % known:
        raise ModelError(
            f"{name}: leaves the size of its input {item.name!r} open; list the observations in "
            "schema.yaml, every list with min_items and max_items alike, or export it with its size"
        )
    return tuple(width // known if size is None else size for size in rest)


def _state_feed(model: OnnxModel, pair: StatePair) -> Feed:
    item, shape = pair.before, pair.before.shape
    if shape is None or shape.count(None) > 1:
        raise ModelError(
            f"{model.name}: the state {item.name!r} has no known size; export it with its shape"
        )
    axis = _rows_axis(model, item.name, shape)
    rest = tuple(size or 0 for at, size in enumerate(shape) if at != axis)
    return Feed(item.name, item.dtype, rest, axis, 0)


def _rows_axis(model: OnnxModel, name: str, shape: tuple[int | None, ...]) -> int | None:
    """Return the axis of a state along which the rows of a batch lie."""
    if None in shape:
        return shape.index(None)
    reader = next(
        (node for node in model.nodes if node.operator in RECURRENT and name in node.inputs[5:7]),
        None,
    )
    if reader is not None and shape[1] == 1:
        return 0 if reader.attributes.get("layout", 0) else 1
    single = [axis for axis, size in enumerate(shape) if size == 1]
    if not single:
        return None
    # PyTorch's recurrent layers have [layers, rows, hidden].
    is_layered = len(shape) == 3 and shape[1] == 1 and not name.startswith("recurrent")
    return 1 if is_layered else single[0]


def _placed(feeds: Sequence[Feed], order: Sequence[str]) -> Iterator[Feed]:
    """Yield the feeds with the columns of a row that they begin at, in an order of names."""
    widths = {feed.name: feed.width for feed in feeds}
    firsts, first = {}, 0
    for name in order:
        firsts[name] = first
        first += widths[name]
    for feed in feeds:
        yield replace(feed, first=firsts.get(feed.name))
