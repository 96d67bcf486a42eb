"""The tensors that carry a recurrent policy's state from one step to the next, told by their names.

Source: the names that RSL-RL, Isaac Lab, ML-Agents, Godot RL, RLlib, rl_games and Sample Factory
write, which are alike before and after the step: `h_in` and `h_out`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from policy_server.errors import ModelError
from policy_server.formats.onnx.model_file import OnnxModel
from policy_server.policy import SignatureTensor

__all__ = ["StatePair", "flow_pairs", "named_pairs"]

# Words of a state's name that only tell whether it is the one before the step or after it.
_STEP_WORDS = frozenset(
    (
        *("in", "ins", "out", "outs", "input", "output", "next", "new", "prev", "previous"),
        *("init", "initial", "last"),
    )
)
_STEMS = {"hn": "h", "cn": "c", "hx": "h", "cx": "c", "state": "states", "hidden": "h", "cell": "c"}
_STATE_WORDS = frozenset(
    ("c", "h", "hidden", "lstm", "gru", "memory", "recurrent", "rnn", "state", "states")
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

    Args:
        model: the graph.
    """
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
        if found and _may_be_state(item, found[0], model):
            pairs.append(StatePair(item, found[0]))
    return pairs


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
    if not item.dtype.startswith("float") or not output.dtype.startswith("float"):
        return False
    shapes = item.shape, output.shape
    if None not in shapes:
        mine, theirs = shapes
        assert mine is not None and theirs is not None, "neither is None"  # noqa: PT018 -- one fact
        is_alike = len(mine) == len(theirs) and all(
            None in sizes or sizes[0] == sizes[1] for sizes in zip(mine, theirs, strict=True)
        )
        if not is_alike:
            return False
    words = set(re.findall(r"[a-z]+", f"{item.name} {after}".lower()))
    if words & _OBSERVED_WORDS:
        return False
    return bool(words & (_STATE_WORDS | _STEP_WORDS | set(_STEMS)))


def flow_pairs(model: OnnxModel, flow: Mapping[str, str]) -> list[StatePair]:
    """Return the inputs and outputs that carry state, as a description says.

    Args:
        model: the graph.
        flow: the outputs by the names of the inputs that they become.

    Raises:
        ModelError: if the graph lacks one of them.
    """
    inputs = {item.name: item for item in model.inputs}
    outputs = {item.name for item in model.outputs}
    for before, after in flow.items():
        if before not in inputs or after not in outputs:
            raise ModelError(
                f"{model.name}: its description says that {after!r} becomes {before!r} of the next "
                "step, and the graph has no such output and input; export both again"
            )
    return [StatePair(item, flow[name]) for name, item in inputs.items() if name in flow]
