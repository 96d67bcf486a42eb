"""The parts that a graph's inputs and outputs play: observations, an action mask, and state.

Source: the names that RSL-RL, Isaac Lab, ML-Agents, Godot RL, RLlib, rl_games and Sample Factory
write, of which a state's are alike before and after the step: `h_in` and `h_out`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from policy_server.errors import ModelError
from policy_server.formats.onnx.model_file import Node, OnnxModel
from policy_server.formats.onnx.plan import Feed
from policy_server.policy import SignatureTensor, StateTensor
from policy_server.schema import ServerSchema

__all__ = ["Roles", "StatePair", "ancestors_of", "find_roles"]

_MASK = re.compile(r"(?:action|available_actions?|legal_actions?)_?masks?|avail_actions")
_LENGTHS = re.compile(r"seq_?lens?|sequence_lengths?")
_SWITCHES = re.compile(r"(?:is_)?training|train_mode|deterministic|explore")
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
_RECURRENT = ("GRU", "LSTM", "RNN")
_ENDLESS = ("Loop", "Scan")


@dataclass(frozen=True)
class StatePair:
    """A tensor of a recurrent policy's state.

    Attributes:
        before: the graph's input.
        after: the graph's output of the same shape.
    """

    before: SignatureTensor
    after: str


@dataclass(frozen=True)
class Roles:
    """The parts that a graph's inputs and outputs play.

    Attributes:
        feeds: all inputs; those of the observation take the first columns of a row in order, and
            those of the state the last.
        observations: the inputs that make an observation, in order.
        mask: the input that is an action mask; None where there is none.
        states: the state's tensors, in the order of their inputs.
        outputs: the outputs that carry no state.
    """

    feeds: tuple[Feed, ...]
    observations: tuple[SignatureTensor, ...]
    mask: Feed | None
    states: tuple[StatePair, ...]
    outputs: tuple[SignatureTensor, ...]

    @property
    def observation_width(self) -> int:
        """Return how many numbers an observation has."""
        names = {item.name for item in self.observations}
        return sum(feed.width for feed in self.feeds if feed.name in names)

    @property
    def memory(self) -> tuple[StateTensor, ...]:
        """Return the state's tensors as they are in one row."""
        shapes = {feed.name: feed.shape for feed in self.feeds}
        names = [pair.before.name for pair in self.states]
        return tuple(StateTensor(name, shapes[name]) for name in names)


def find_roles(
    model: OnnxModel, schema: ServerSchema | None, *, flow: Mapping[str, str] | None = None
) -> Roles:
    """Return the parts that a graph's inputs and outputs play.

    Args:
        model: the graph.
        schema: the contents of schema.yaml, for the width of an observation that the file leaves
            open.
        flow: the outputs that become inputs of the next step, by the inputs' names; None to tell
            them by the names.

    Raises:
        ModelError: if an input can't be filled, or a memory would be lost.
    """
    _refuse_endless(model.nodes, model.name)
    _refuse_mixed_state(model)
    pairs = _named_pairs(model) if flow is None else _flow_pairs(model, flow)
    after = {pair.after for pair in pairs}
    outputs = tuple(item for item in model.outputs if item.name not in after)
    # A dummy state goes from its input to its output, and no action depends on it.
    needed = ancestors_of(model, [item.name for item in outputs])
    states = tuple(pair for pair in pairs if pair.before.name in needed)
    dummies = {pair.before.name for pair in pairs if pair not in states}
    _refuse_lost_memory(model, needed, pairs=pairs)
    before = {pair.before.name for pair in pairs}
    others = [item for item in model.inputs if item.name not in before]
    fixed = [feed for item in others if (feed := _fixed(item, model.name)) is not None]
    masks = [item for item in others if _MASK.fullmatch(item.name.lower())]
    known = {feed.name for feed in fixed} | {item.name for item in masks}
    observations = tuple(item for item in others if item.name not in known)
    if not observations:
        names = ", ".join(repr(item.name) for item in model.inputs)
        raise ModelError(f"{model.name}: no input is an observation, got {names or 'none'}")
    feeds = [
        *_observation_feeds(model, observations, schema, is_recurrent=bool(states)),
        *fixed,
        *(_shaped(item, model.name, value=1.0) for item in masks),
        *(_state_feed(model, pair) for pair in states),
        *(_shaped(pair.before, model.name) for pair in pairs if pair.before.name in dummies),
    ]
    order = [*(item.name for item in observations), *(pair.before.name for pair in states)]
    return Roles(
        tuple(_placed(feeds, order)),
        observations,
        next((feed for feed in feeds if masks and feed.name == masks[0].name), None),
        states,
        outputs,
    )


def ancestors_of(model: OnnxModel, tensors: Sequence[str]) -> set[str]:
    """Return the names of all tensors that some tensors are computed from, themselves among them.

    Args:
        model: the graph.
        tensors: the names of the tensors.
    """
    wanted = set(tensors)
    for node in reversed(model.nodes):
        if wanted.intersection(node.outputs):
            wanted.update(name for name in node.inputs if name)
    return wanted


def _refuse_endless(nodes: Sequence[Node], name: str) -> None:
    found = next((node.operator for node in nodes if node.operator in _ENDLESS), None)
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
    is_recurrent = any(node.operator in _RECURRENT for node in model.nodes)
    if is_recurrent and {"state_ins", "seq_lens"} <= names:
        raise ModelError(
            f"{model.name}: is RLlib's ONNX export of a recurrent policy, which mixes its state up "
            "with 'seq_lens' and can't be run for one step; give RLlib's checkpoint itself"
        )


def _refuse_lost_memory(model: OnnxModel, needed: set[str], *, pairs: Sequence[StatePair]) -> None:
    """Refuse a recurrent layer whose state is no input, unless it reads a whole window."""
    sources = {item.name for item in model.inputs}
    for node in model.nodes:
        if node.operator not in _RECURRENT or not needed.intersection(node.outputs):
            continue
        states = [name for name in node.inputs[5:7] if name]
        if not sources.intersection(ancestors_of(model, states)) and not pairs:
            raise ModelError(
                f"{model.name}: holds a {node.operator} whose state is no input, so that every "
                "step would forget the ones before; export the network with its state as inputs "
                "and outputs, such as h_in, c_in, h_out and c_out"
            )


def _named_pairs(model: OnnxModel) -> list[StatePair]:
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


def _flow_pairs(model: OnnxModel, flow: Mapping[str, str]) -> list[StatePair]:
    inputs = {item.name: item for item in model.inputs}
    outputs = {item.name for item in model.outputs}
    for before, after in flow.items():
        if before not in inputs or after not in outputs:
            raise ModelError(
                f"{model.name}: its description says that {after!r} becomes {before!r} of the next "
                "step, and the graph has no such output and input; export both again"
            )
    return [StatePair(item, flow[name]) for name, item in inputs.items() if name in flow]


def _fixed(item: SignatureTensor, name: str) -> Feed | None:
    """Return the feed of an input that is no observation; None for one that may be."""
    plain = item.name.lower()
    if _LENGTHS.fullmatch(plain):
        return _shaped(item, name, value=1.0)
    if _SWITCHES.fullmatch(plain) and item.dtype == "bool":
        return _shaped(item, name, value=float(plain == "deterministic"))
    return None


def _shaped(item: SignatureTensor, name: str, *, value: float = 0.0) -> Feed:
    """Return an input that is always the same; its rows lie along its first open or single axis."""
    shape = item.shape
    if shape is None:
        raise ModelError(f"{name}: the input {item.name!r} has no shape; export it with one")
    axis = next((at for at, size in enumerate(shape) if size is None or size == 1), None)
    rest = tuple(1 if size is None else size for at, size in enumerate(shape) if at != axis)
    return Feed(item.name, item.dtype, rest, axis, None, value)


def _observation_feeds(
    model: OnnxModel,
    observations: Sequence[SignatureTensor],
    schema: ServerSchema | None,
    *,
    is_recurrent: bool,
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
        rest = _row_shape(item, shape, model, is_recurrent=is_recurrent)
        if None in rest:
            rest = _closed(model.name, item, rest, schema, is_only=len(observations) == 1)
        # One dimension of a known size is a single observation, without an axis of rows.
        axis = None if len(shape) == 1 and shape[0] is not None else 0
        found.append(Feed(item.name, item.dtype, tuple(size or 0 for size in rest), axis, 0))
    return found


def _row_shape(
    item: SignatureTensor, shape: tuple[int | None, ...], model: OnnxModel, *, is_recurrent: bool
) -> tuple[int | None, ...]:
    if len(shape) == 1 and shape[0] is not None:
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
        (node for node in model.nodes if node.operator in _RECURRENT and name in node.inputs[5:7]),
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
