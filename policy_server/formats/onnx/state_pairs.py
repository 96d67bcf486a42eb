"""The tensors that carry a recurrent policy's state from one step to the next.

They are told by their names, or by the LSTM, GRU or RNN that reads the one and gives the other.
A name alone is enough only where no observation is called so.

Source of the names: those that RSL-RL, Isaac Lab, ML-Agents, Godot RL, RLlib, rl_games and Sample
Factory write, which are alike before and after the step: `h_in` and `h_out`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from policy_server.errors import ModelError
from policy_server.formats.onnx.model_file import OnnxModel
from policy_server.policy import SignatureTensor

__all__ = [
    "RECURRENT",
    "StatePair",
    "ancestors_of",
    "flow_pairs",
    "layer_pairs",
    "look_alikes",
    "moved_from",
    "named_pairs",
]

RECURRENT = ("GRU", "LSTM", "RNN")
"""ONNX's recurrent operators."""

# Words of a state's name that only tell whether it is the one before the step or after it.
_STEP_WORDS = frozenset(
    (
        *("in", "ins", "out", "outs", "input", "output", "next", "new", "prev", "previous"),
        *("init", "initial", "last"),
        # PyTorch's documentation: `h_0` and `h_n`.
        "n",
    )
)
_STEMS = {"hn": "h", "cn": "c", "hx": "h", "cx": "c", "state": "states", "hidden": "h", "cell": "c"}
_MEMORY_WORDS = frozenset(
    (
        *("c", "h", "hidden", "lstm", "gru", "memory", "recurrent", "rnn", "carry", "mem"),
        *("cell", "hn", "cn", "hx", "cx"),
    )
)
# An observation may be called so too, and the next one be predicted: `state` and `next_state`.
_STATE_WORDS = frozenset(("state", "states"))
_CARRIED_WORDS = frozenset(("in", "ins", "out", "outs"))
# The places of a recurrent layer's states among its inputs, and of the last ones among its outputs.
_STATE_PLACES = ((5, 1), (6, 2))
# They move numbers and compute none.
_MOVING = frozenset(
    (
        *("Cast", "Concat", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split"),
        *("Squeeze", "Transpose", "Unsqueeze"),
    )
)
# The action and reward of the step before are observed, and the environment may change them.
_OBSERVED_WORDS = frozenset(("action", "actions", "obs", "observation", "reward", "rewards"))


@dataclass(frozen=True)
class StatePair:
    """A tensor of a recurrent policy's state.

    Attributes:
        before: the graph's input.
        after: the graph's output of the same shape.
    """

    before: SignatureTensor
    after: str


def named_pairs(model: OnnxModel) -> list[StatePair]:
    """Return the inputs and outputs that carry state, by their names and shapes.

    Names that an observation may have too, such as `state` and `next_state`, are state only where
    the input goes into the state of a recurrent layer.

    Args:
        model: the graph.
    """
    given = [
        state
        for node in model.nodes
        if node.operator in RECURRENT
        for state in node.inputs[5:7]
        if state
    ]
    carried = ancestors_of(model, given)
    return _matched(model, lambda before, after: before in carried or _is_memory(before, after))


def look_alikes(model: OnnxModel) -> list[StatePair]:
    """Return the inputs and outputs whose names are those of a state, or of an observation.

    Args:
        model: the graph.
    """
    return _matched(model, lambda _before, _after: True)


def _matched(model: OnnxModel, accepts: Callable[[str, str], bool]) -> list[StatePair]:
    by_stem: dict[tuple[str, ...], list[str]] = {}
    for item in model.outputs:
        for stem in _stems(item.name):
            by_stem.setdefault(stem, []).append(item.name)
    pairs: list[StatePair] = []
    for item in model.inputs:
        taken = {pair.after for pair in pairs}
        found = [
            name
            for stem in _stems(item.name)
            for name in by_stem.get(stem, ())
            if name not in taken
        ]
        if found and _may_be_state(item, found[0], model) and accepts(item.name, found[0]):
            pairs.append(StatePair(item, found[0]))
    return pairs


def _is_memory(before: str, after: str) -> bool:
    """Return whether the names of an input and an output are those of a state alone."""
    words = _words(before, after)
    return bool(words & _MEMORY_WORDS) or bool(words & _STATE_WORDS and words & _CARRIED_WORDS)


def _words(*names: str) -> set[str]:
    return {word for name in names for word in re.findall(r"[a-z]+", name.lower())}


def _stems(name: str) -> Iterator[tuple[str, ...]]:
    """Yield the words of a name without those of its place in a step, with and without numbers."""
    words = re.findall(r"[a-z]+|\d+", re.sub(r":\d+$", "", name).lower())
    stem = tuple(_STEMS.get(word, word) for word in words if word not in _STEP_WORDS)
    if stem:
        yield stem
    without = tuple(word for word in stem if not word.isdigit())
    if without and without != stem:
        yield without


def _may_be_state(item: SignatureTensor, after: str, model: OnnxModel) -> bool:
    """Return whether an input and an output of the same stem carry state from step to step."""
    output = next(one for one in model.outputs if one.name == after)
    if not _are_alike(item, output):
        return False
    words = _words(item.name, after)
    if words & _OBSERVED_WORDS:
        return False
    return bool(words & (_MEMORY_WORDS | _STATE_WORDS | _STEP_WORDS))


def _are_alike(before: SignatureTensor, after: SignatureTensor) -> bool:
    """Return whether both hold floating-point numbers in the same shape, as far as that is told."""
    if not before.dtype.startswith("float") or not after.dtype.startswith("float"):
        return False
    if before.shape is None or after.shape is None:
        return True
    return len(before.shape) == len(after.shape) and all(
        None in sizes or sizes[0] == sizes[1]
        for sizes in zip(before.shape, after.shape, strict=True)
    )


def layer_pairs(model: OnnxModel, known: Sequence[StatePair]) -> list[StatePair]:
    """Return the states of recurrent layers that lie in an input and an output of other names.

    Args:
        model: the graph.
        known: the pairs that were found before.
    """
    pairs: list[StatePair] = []
    for node in model.nodes:
        for given, left in _STATE_PLACES if node.operator in RECURRENT else ():
            if max(given - len(node.inputs), left - len(node.outputs)) >= 0:
                continue
            source, result = moved_from(model, node.inputs[given]), node.outputs[left]
            taken = {name for one in (*known, *pairs) for name in (one.before.name, one.after)}
            befores = [one for one in model.inputs if one.name in source]
            afters = [one for one in model.outputs if result in moved_from(model, one.name)]
            if len(befores) != 1 or len(afters) != 1 or not _are_alike(befores[0], afters[0]):
                continue
            if not taken & {befores[0].name, afters[0].name}:
                pairs.append(StatePair(befores[0], afters[0].name))
    return pairs


def moved_from(model: OnnxModel, tensor: str) -> set[str]:
    """Return the names of the tensors whose numbers make up a tensor as they are, and its own.

    Args:
        model: the graph.
        tensor: the tensor's name.
    """
    found = {tensor} - {""}
    for node in reversed(model.nodes):
        if node.operator in _MOVING and found.intersection(node.outputs):
            found.update(name for name in node.inputs if name)
    return found


def ancestors_of(model: OnnxModel, tensors: Sequence[str]) -> set[str]:
    """Return the names of all tensors that some tensors are computed from, themselves among them.

    Args:
        model: the graph.
        tensors: the names of the tensors.
    """
    wanted = set(tensors)
    for node in reversed(model.nodes):
        if wanted.intersection(node.outputs):
            wanted.update(node.reads)
    return wanted


def flow_pairs(model: OnnxModel, flow: Mapping[str, str]) -> list[StatePair]:
    """Return the inputs and outputs that carry state, as a description says.

    Args:
        model: the graph.
        flow: the outputs by the names of the inputs that they become.

    Raises:
        ModelError: if the graph lacks one of them, or an output has another size than its input.
    """
    inputs = {item.name: item for item in model.inputs}
    outputs = {item.name: item for item in model.outputs}
    for before, after in flow.items():
        if before not in inputs or after not in outputs:
            raise ModelError(
                f"{model.name}: its description says that {after!r} becomes {before!r} of the next "
                "step, and the graph has no such output and input; export both again"
            )
        shapes = outputs[after].shape, inputs[before].shape
        if None not in shapes and _differ(*(shape or () for shape in shapes)):
            raise ModelError(
                f"{model.name}: its description says that {after!r} becomes {before!r} of the next "
                f"step, and their shapes are {_told(shapes[0])} and {_told(shapes[1])}; export "
                "both again"
            )
    return [StatePair(item, flow[name]) for name, item in inputs.items() if name in flow]


def _differ(one: tuple[int | None, ...], other: tuple[int | None, ...]) -> bool:
    """Return whether two shapes hold another number of numbers, as far as that is told."""
    if one.count(None) != other.count(None):
        return False
    sizes = (math.prod(size for size in shape if size is not None) for shape in (one, other))
    return len({*sizes}) > 1


def _told(shape: tuple[int | None, ...] | None) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in shape or ())}]"
