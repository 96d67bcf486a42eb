"""Reading a SavedModel: the file of any version becomes a frozen graph with a signature.

RLlib's exports differ in the inputs that they list, in those that they forget to list, and in the
outputs. This module reads the signature; `freezing` makes the graph flat, and `runner`
fills every input but the observation in.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from policy_server.errors import ModelError
from policy_server.formats.input_order import in_stated_order
from policy_server.formats.row_types import mixed_columns
from policy_server.formats.saved_model import slim_tensorflow as tf
from policy_server.formats.saved_model import tf_agents
from policy_server.formats.saved_model.exploration import (
    changed_variables,
    exploration_state,
    find_switch,
    free_switch,
    is_exploration_scalar,
    is_switch,
    runs_callback,
)
from policy_server.formats.saved_model.freezing import freeze, node_of
from policy_server.formats.saved_model.joined_inputs import (
    JOINED,
    columns_of,
    join_inputs,
    joined_input,
)
from policy_server.formats.saved_model.loops import refuse_endless
from policy_server.formats.saved_model.state_steps import PREVIOUS, Memory, find_memory
from policy_server.policy import SignatureTensor

__all__ = [
    "ACTIONS",
    "DISTRIBUTION_INPUTS",
    "FILLED_INPUTS",
    "LOG_PROBABILITY",
    "OBSERVATIONS",
    "PROBABILITY",
    "Q_VALUES",
    "STATE",
    "LoadedGraph",
    "as_model_errors",
    "load_graph",
    "natural_key",
    "reason_of",
    "width_of",
]

OBSERVATIONS = "observations"
ACTIONS = "actions_"
DISTRIBUTION_INPUTS, LOG_PROBABILITY = "action_dist_inputs", "action_logp"
PROBABILITY, Q_VALUES = "action_prob", "q_values"
_VALUES = "vf_preds"
# The state after a step, among the fetches.
STATE = "policy_server/state"
# The inputs that have one right value in service; `runner` gives it.
FILLED_INPUTS = (
    *("is_training", "timestep", "prev_action", "prev_reward", "seq_lens"),
    *tf_agents.FILLED,
)
_SYNONYMS = {
    "prev_actions": "prev_action",
    "prev_rewards": "prev_reward",
    "seq_len": "seq_lens",
    "keras_learning_phase": "is_training",
}
# Before Ray 0.8.3 an only action has no number, and before 0.8.5 the inputs another name.
_OUTPUT_SYNONYMS = {"actions": "actions_0", "behaviour_logits": DISTRIBUTION_INPUTS}
# TensorFlow names the node and its Python stack around the reason.
_EXECUTION_ERROR = re.compile(r"\nNode: '[^']*'\n(.*?)(?:\n\t \[\[|$)", re.DOTALL)
_REASON_CHARACTERS = 200
# TensorFlow counts a node's outputs in 32 bits, and takes others for arguments that don't fit.
_INDEX = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class LoadedGraph:
    """A frozen policy.

    Attributes:
        graph_def: the flat graph, without variables and functions.
        inputs: the signature's inputs in natural order; the observation's is called `observations`.
        outputs: the signature's outputs in natural order.
        feeds: the inputs that have to be filled in; the key is the graph's tensor. Those that Ray
            1.0 leaves out of the signature are among them.
        observations: the graph's tensor that takes the observation.
        fetches: the graph's tensor for each output that is of use.
        exploring: the tensor of the switch that turns sampling on; None where there is none.
        exploration_state: the inputs and variables by which schedules change exploration.
        changed_variables: the variables that it changes at each call and answers by.
        observation_parts: the names of the inputs that make up an observation, in order; empty
            where it is one input.
        observation_columns: the type and the width of each of these; empty where they are of one
            type.
        memory: the state that it takes and gives; its fetch is called `STATE`.
        has_callback: the actions need a Python callback of training, so that they can't be run.
    """

    graph_def: Any
    inputs: tuple[SignatureTensor, ...]
    outputs: tuple[SignatureTensor, ...]
    observations: str
    fetches: Mapping[str, str]
    feeds: Mapping[str, SignatureTensor] = field(default_factory=dict)
    exploring: str | None = None
    exploration_state: tuple[str, ...] = ()
    has_callback: bool = False
    memory: Memory = field(default_factory=Memory)
    changed_variables: tuple[str, ...] = ()
    observation_parts: tuple[str, ...] = ()
    observation_columns: tuple[tuple[str, int], ...] = ()

    @property
    def observation_input(self) -> SignatureTensor:
        """Return the input that takes the observation."""
        return next(item for item in self.inputs if item.name == OBSERVATIONS)

    @property
    def only_batch(self) -> int | None:
        """Return the size of the only batch that the graph takes; None where it takes any."""
        shape = self.observation_input.shape
        return shape[0] if shape else None

    @property
    def recurrent_inputs(self) -> tuple[str, ...]:
        """Return the names of the inputs that carry recurrent state."""
        return tuple(item.name for item in _states(self.feeds).values())


def natural_key(name: str) -> list[tuple[bool, int, str]]:
    """Return a sort key that puts `actions_10` behind `actions_2`.

    Args:
        name: a key of the signature.
    """
    return [
        (part.isdigit(), int(part) if part.isdigit() else 0, part)
        for part in re.split(r"(\d+)", name)
    ]


def width_of(item: SignatureTensor) -> int | None:
    """Return how many numbers one row of an input has; None where that is open.

    Args:
        item: the input.
    """
    if item.shape is None or any(size is None for size in item.shape[1:]):
        return None
    return math.prod(size for size in item.shape[1:] if size is not None)


def reason_of(error: Exception) -> str:
    """Return the reason in an error of TensorFlow as one line, without its stack traces.

    Args:
        error: TensorFlow's error.
    """
    text = str(getattr(error, "message", error))
    found = _EXECUTION_ERROR.search(text)
    return " ".join((found[1] if found else text).split())[:_REASON_CHARACTERS]


@contextmanager
def as_model_errors() -> Iterator[None]:
    """Raise TensorFlow's errors as a ModelError of one line, and those that a damaged graph causes.

    Raises:
        ModelError: for every error of TensorFlow about a graph that it can't use, and where a graph
            lacks a part that every graph has.
    """
    try:
        yield
    except (
        tf.errors.OpError,
        OSError,
        ValueError,
        RuntimeError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        AssertionError,
        MemoryError,
    ) as error:
        reason = reason_of(error)
        raise ModelError(
            f"saved_model.pb: can't be restored by TensorFlow {tf.VERSION} ({reason}); export "
            "the policy again"
        ) from error


def load_graph(folder: Path, order: Sequence[str] = ()) -> LoadedGraph:
    """Read, freeze and flatten the SavedModel in a folder.

    Args:
        folder: holds saved_model.pb and variables/.
        order: the names of schema.yaml's observations, by which several inputs are put in order.

    Returns:
        The frozen graph with its signature.

    Raises:
        ModelError: if the files are no SavedModel that can be restored, or have no signature with
            an observation.
    """
    meta_graph = _read_meta_graph(folder)
    free_switch(meta_graph.graph_def)
    signature = _signature(meta_graph)
    parts = _observation_parts(signature, order)
    inputs, infos = _inputs(signature, parts)
    keys = {_output_name(key, signature.outputs): key for key in signature.outputs}
    outputs = tuple(
        _signature_tensor(name, signature.outputs[keys[name]])
        for name in sorted(keys, key=natural_key)
    )
    fetches = {
        item.name: _tensor(signature.outputs[keys[item.name]])
        for item in outputs
        if _is_used(item.name, outputs)
    }
    exploring = find_switch(infos, meta_graph.graph_def)
    others = {
        _tensor(signature.outputs[keys[item.name]]): item
        for item in outputs
        if item.name not in fetches and item.name != _VALUES
    }
    kept = [*fetches.values(), *infos.values(), *([exploring] if exploring else [])]
    # An observation that is several inputs has no tensor of its own yet.
    named = {infos[item.name]: item for item in inputs if item.name in infos}
    kept += [*others] if _states(named) else []
    with as_model_errors():
        graph_def = freeze(meta_graph, folder, kept)
    if parts:
        whole = next(item for item in inputs if item.name == OBSERVATIONS)
        join_inputs(graph_def, {infos.pop(item.name): item for item in parts}, whole)
        infos[OBSERVATIONS] = f"{JOINED}:0"
    needed = _ancestors(graph_def, fetches.values())
    feeds = {
        infos[item.name]: _with_training_shape(item, meta_graph.graph_def)
        for item in inputs
        if _is_filled(item, infos, needed)
    }
    known = {node_of(tensor) for tensor in (*infos.values(), *([exploring] if exploring else []))}
    feeds |= _unlisted(needed, known)
    given = (infos[OBSERVATIONS], *_states(feeds))
    refuse_endless(graph_def, {node_of(tensor) for tensor in given})
    memory = find_memory(
        graph_def,
        states=_states(feeds),
        previous={tensor: item for tensor, item in feeds.items() if item.name in PREVIOUS},
        outputs=others,
        results=tuple(fetches.values()),
        filled=(infos[OBSERVATIONS], *feeds),
    )
    state = {} if memory.after is None else {STATE: memory.after}
    return LoadedGraph(
        graph_def=graph_def,
        inputs=inputs,
        outputs=outputs,
        observations=infos[OBSERVATIONS],
        fetches=fetches | state,
        feeds=feeds,
        memory=memory,
        exploring=exploring if exploring is not None and node_of(exploring) in needed else None,
        exploration_state=exploration_state(needed, meta_graph.graph_def),
        changed_variables=changed_variables(meta_graph.graph_def, fetches.values()),
        observation_parts=tuple(item.name for item in parts),
        observation_columns=mixed_columns(columns_of(parts)),
        has_callback=runs_callback(
            _ancestors(
                graph_def, [tensor for name, tensor in fetches.items() if name.startswith(ACTIONS)]
            ).values()
        ),
    )


def _output_name(key: str, outputs: Mapping[str, Any]) -> str:
    name = _OUTPUT_SYNONYMS.get(key, key)
    return key if name in outputs else name


def _read_meta_graph(folder: Path) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    path = folder / "saved_model.pb"
    document = tf.saved_model_pb2.SavedModel()
    try:
        document.ParseFromString(path.read_bytes())
    except (DecodeError, OSError) as error:
        raise ModelError(
            f"{path.name}: is damaged or no SavedModel ({error}); export the policy again"
        ) from error
    graphs = [graph for graph in document.meta_graphs if "serve" in graph.meta_info_def.tags]
    if not graphs:
        raise ModelError(
            f"{path.name}: holds no graph for serving; expected the tag 'serve', as "
            "export_policy_model writes it"
        )
    return graphs[0]


def _signature(meta_graph: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    if (of_agents := tf_agents.translated(meta_graph.signature_def)) is not None:
        return of_agents
    usable = {
        key: item for key, item in meta_graph.signature_def.items() if item.inputs and item.outputs
    }
    name = "serving_default" if "serving_default" in usable else next(iter(usable), None)
    if name is None or (name != "serving_default" and len(usable) > 1):
        found = ", ".join(sorted(usable)) or "none"
        raise ModelError(
            f"saved_model.pb: has no signature 'serving_default', got {found}; export the policy "
            "with "
            "export_policy_model"
        )
    return usable[name]


def _states(inputs: Mapping[str, SignatureTensor]) -> dict[str, SignatureTensor]:
    """Return the inputs that carry recurrent state."""
    known = (OBSERVATIONS, *FILLED_INPUTS)
    return {
        tensor: item
        for tensor, item in inputs.items()
        if item.name not in known and not is_exploration_scalar(item.name)
    }


def _candidates(signature: Any) -> list[str]:  # noqa: ANN401 -- TensorFlow is untyped
    """Return the inputs that can be the observation, where none is called so."""
    if OBSERVATIONS in signature.inputs:
        return []
    keys = sorted(signature.inputs, key=natural_key)
    known = [key for key in keys if _SYNONYMS.get(key, key) not in FILLED_INPUTS]
    return [key for key in known if not is_switch(key) and not key.startswith(tf_agents.STATE)]


def _observation_parts(signature: Any, order: Sequence[str]) -> list[SignatureTensor]:  # noqa: ANN401 -- TensorFlow is untyped
    """Return the inputs that make up an observation, where there are several."""
    names = _candidates(signature)
    is_network = not any(key.startswith(ACTIONS.strip("_")) for key in signature.outputs)
    if len(names) < 2 or not (is_network or tf_agents.STEP_TYPE in signature.inputs):
        return []
    return [
        _signature_tensor(name, signature.inputs[name]) for name in in_stated_order(names, order)
    ]


def _inputs(
    signature: Any,  # noqa: ANN401 -- TensorFlow is untyped
    parts: Sequence[SignatureTensor],
) -> tuple[tuple[SignatureTensor, ...], dict[str, str]]:
    """Read the inputs, and name the observation's `observations`, as a Keras model may not."""
    keys = sorted(signature.inputs, key=natural_key)
    names = {key: _SYNONYMS.get(key, key) for key in keys}
    if OBSERVATIONS not in keys and not parts:
        candidates = _candidates(signature)
        if len(candidates) != 1:
            raise ModelError(
                f"saved_model.pb: expected an input 'observations', got {', '.join(keys)}; "
                "export a policy whose observation is one flat vector"
            )
        names[candidates[0]] = OBSERVATIONS
    inputs = tuple(_signature_tensor(names[key], signature.inputs[key]) for key in keys)
    for item in inputs:
        if not _is_number(item.dtype):
            raise ModelError(
                f"saved_model.pb: the input '{item.name}' takes {item.dtype}, expected numbers; "
                "export a policy whose "
                "observation is one flat vector"
            )
    infos = {names[key]: _tensor(signature.inputs[key]) for key in keys}
    if parts:
        own = {item.name for item in parts}
        others = tuple(item for item in inputs if item.name not in own)
        inputs = (joined_input(parts, OBSERVATIONS), *others)
    return inputs, infos


def _is_number(dtype: str) -> bool:
    known = tf.dtypes.as_dtype(dtype)
    return bool(known.is_floating or known.is_integer or known.is_bool)


def _tensor(info: Any) -> str:  # noqa: ANN401 -- TensorFlow is untyped
    name = str(info.name)
    _, colon, index = name.partition(":")
    if colon and not _INDEX.fullmatch(index):
        raise ModelError(
            f"saved_model.pb: the signature has {name[:60]!r}, expected a tensor, such as "
            "'logits:0'; export the policy again"
        )
    return name


def _signature_tensor(name: str, info: Any) -> SignatureTensor:  # noqa: ANN401 -- TensorFlow is untyped
    return SignatureTensor(name, tf.dtypes.as_dtype(info.dtype).name, _shape(info.tensor_shape))


def _shape(shape: Any) -> tuple[int | None, ...] | None:  # noqa: ANN401 -- TensorFlow is untyped
    if shape.unknown_rank:
        return None
    return tuple(dim.size if dim.size >= 0 else None for dim in shape.dim)


def _is_used(name: str, outputs: tuple[SignatureTensor, ...]) -> bool:
    """Return whether an output is used: value heads and states are not, where actions are named."""
    has_actions = any(item.name.startswith(ACTIONS) for item in outputs)
    used = (DISTRIBUTION_INPUTS, LOG_PROBABILITY, PROBABILITY, Q_VALUES)
    return not has_actions or name.startswith(ACTIONS) or name in used


def _ancestors(graph_def: Any, tensors: Any) -> dict[str, Any]:  # noqa: ANN401 -- TensorFlow is untyped
    nodes = {node.name: node for node in graph_def.node}
    found: dict[str, Any] = {}
    waiting = [node_of(tensor) for tensor in tensors]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = nodes[name]
            waiting += [node_of(item) for item in nodes[name].input]
    return found


def _is_filled(item: SignatureTensor, infos: Mapping[str, str], needed: Mapping[str, Any]) -> bool:
    """Return whether an input needs a value: an output depends on it, and it has no default."""
    if item.name == OBSERVATIONS or is_switch(item.name) or node_of(infos[item.name]) not in needed:
        return False
    return item.name in FILLED_INPUTS or needed[node_of(infos[item.name])].op == "Placeholder"


def _with_training_shape(item: SignatureTensor, graph_def: Any) -> SignatureTensor:  # noqa: ANN401 -- TensorFlow is untyped
    """Close an open length, as attention's memory has, by the placeholder that training fed.

    Source: RLlib `GTrXLNet`, whose view requirement has the length `memory_inference`.
    """
    if item.shape is None or None not in item.shape[1:]:
        return item
    found = {
        shape[1:]
        for node in graph_def.node
        if node.op == "Placeholder"
        if (shape := _shape(node.attr["shape"].shape)) is not None
        if len(shape) == len(item.shape) and None not in shape[1:]
        if all(
            mine in (None, theirs) for mine, theirs in zip(item.shape[1:], shape[1:], strict=True)
        )
    }
    return replace(item, shape=(item.shape[0], *found.pop())) if len(found) == 1 else item


def _unlisted(needed: Mapping[str, Any], known: set[str]) -> dict[str, SignatureTensor]:
    found = {}
    for name, node in needed.items():
        if name in known or node.op not in ("Placeholder", "PlaceholderWithDefault"):
            continue
        plain = re.sub(r"_\d+$", "", name.split("/")[-1])
        plain = _SYNONYMS.get(plain, plain)
        # A default is kept, but for the two that a policy in service needs otherwise.
        if node.op == "PlaceholderWithDefault" and plain not in ("timestep", "is_training"):
            continue
        if plain not in FILLED_INPUTS:
            raise ModelError(
                f"saved_model.pb: its actions need the input '{name}', which the signature leaves "
                "out; export the policy "
                "with export_policy_model"
            )
        dtype = tf.dtypes.as_dtype(node.attr["dtype"].type).name
        found[f"{name}:0"] = SignatureTensor(plain, dtype, _shape(node.attr["shape"].shape))
    return found
