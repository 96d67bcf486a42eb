"""Reading a SavedModel: any version's file becomes one frozen graph whose only input is the observation.

TensorFlow 1 exports (Ray 1.0 to 2.0) and Keras ones (Ray 2.1 and later) take the same way: a v1 session restores them,
variables become constants, and functions are inlined, so that everything above sees one flat graph. Every input but the
observation is filled in inside the graph, from the signature alone: `is_training` False, `timestep` large, `seq_lens`
ones, previous actions, rewards and recurrent states zeros.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, saved_model_pb2
from tensorflow.python.grappler import tf_optimizer

from policy_server.errors import ModelError
from policy_server.policy import SignatureTensor

__all__ = ["GraphRunner", "LoadedGraph", "load_graph", "natural_key"]

logger = logging.getLogger(__name__)
v1 = tf.compat.v1

OBSERVATIONS = "observations"
# Exploration schedules (epsilon-greedy, random_timesteps) are long over at this step; it fits int32 too.
_LATE_TIMESTEP = 1_000_000_000
_VARIABLE_OPS = ("VarHandleOp", "VariableV2", "Variable")
_ASSIGNMENT_OPS = ("AssignVariableOp", "AssignAddVariableOp", "Assign", "AssignAdd")
_INLINED_OPS = ("PartitionedCall", "StatefulPartitionedCall")


@dataclass(frozen=True)
class LoadedGraph:
    """A frozen policy.

    Attributes:
        graph_def: the flat graph, without variables and functions.
        inputs: the signature's inputs; the tensor's name in the graph is in `tensors`.
        outputs: the signature's outputs, in natural order.
        tensors: the graph's tensor for each input and output.
        exploring: the tensor of the unlisted `is_exploring` switch; None where there is none.
        unlisted: placeholders that the policy needs and the signature leaves out, such as Ray 1.0's `timestep`; the key
            is the graph's tensor.
    """

    graph_def: Any
    inputs: tuple[SignatureTensor, ...]
    outputs: tuple[SignatureTensor, ...]
    tensors: Mapping[str, str]
    exploring: str | None
    unlisted: Mapping[str, SignatureTensor] = field(default_factory=dict)

    @property
    def observations(self) -> SignatureTensor:
        """Return the input that takes the observation."""
        return next(item for item in self.inputs if item.name == OBSERVATIONS)


def natural_key(name: str) -> list[tuple[bool, int, str]]:
    """Return a sort key that puts `actions_10` behind `actions_2`.

    Args:
        name: a key of the signature.
    """
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]


def load_graph(folder: Path) -> LoadedGraph:
    """Read, freeze and flatten the SavedModel in a folder.

    Args:
        folder: holds saved_model.pb and variables/.

    Returns:
        The frozen graph with its signature.

    Raises:
        ModelError: if the files are no SavedModel that can be restored, or have no signature with an observation.
    """
    tags, signature = _read_signature(folder)
    with _translated(folder), v1.Session(graph=tf.Graph(), config=session_config()) as session, session.graph.as_default():
        with _quiet():
            v1.saved_model.loader.load(session, tags, str(folder))
        graph_def = _without_assignments(session.graph.as_graph_def())
        exploring = _exploring(graph_def)
        tensors = {key: info.name for key, info in (*signature.inputs.items(), *signature.outputs.items())}
        # An input and an output may share a key; the input's tensor is kept under its own.
        tensors |= {key: info.name for key, info in signature.inputs.items()}
        kept = [tensor.split(":")[0] for tensor in tensors.values()]
        with _quiet():
            frozen = v1.graph_util.convert_variables_to_constants(session, graph_def, sorted(set(kept)))
        _end_schedules(frozen, {node.name for node in graph_def.node if node.op in _VARIABLE_OPS})
        frozen = _inline(frozen, [*tensors.values(), *([exploring] if exploring else [])])
    if exploring is not None and exploring.split(":")[0] not in {node.name for node in frozen.node}:
        exploring = None
    inputs = tuple(_signature_tensor(key, signature.inputs[key]) for key in sorted(signature.inputs, key=natural_key))
    outputs = tuple(_signature_tensor(key, signature.outputs[key]) for key in sorted(signature.outputs, key=natural_key))
    unlisted = _unlisted(frozen, {info.name for info in signature.inputs.values()} | {exploring})
    return _with_observations(LoadedGraph(frozen, inputs, outputs, tensors, exploring, unlisted))


def _read_signature(folder: Path) -> tuple[list[str], Any]:
    path = folder / "saved_model.pb"
    document = saved_model_pb2.SavedModel()
    try:
        document.ParseFromString(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelError(f"{folder}: holds no saved_model.pb; expected a TensorFlow SavedModel") from error
    except (DecodeError, OSError) as error:
        raise ModelError(f"{path.name}: is damaged or no SavedModel ({error}); export the policy again") from error
    graphs = [graph for graph in document.meta_graphs if "serve" in graph.meta_info_def.tags]
    if not graphs:
        raise ModelError(f"{path.name}: holds no graph for serving; expected the tag 'serve', as export_policy_model writes it")
    signatures = {key: item for key, item in graphs[0].signature_def.items() if item.inputs and item.outputs}
    name = "serving_default" if "serving_default" in signatures else next(iter(signatures), None)
    if name is None or (name != "serving_default" and len(signatures) > 1):
        found = ", ".join(sorted(signatures)) or "none"
        raise ModelError(f"{path.name}: has no signature 'serving_default', got {found}; export the policy with export_policy_model")
    return list(graphs[0].meta_info_def.tags), signatures[name]


@contextmanager
def _translated(folder: Path) -> Iterator[None]:
    try:
        yield
    except ModelError:
        raise
    except (tf.errors.OpError, OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(getattr(error, "message", error)).split())[:300]
        raise ModelError(f"{folder}: the SavedModel can't be restored: {reason}; export the policy again") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep TensorFlow's advice to use version 2's API, which can't do this, out of the server's log."""
    previous = v1.logging.get_verbosity()
    v1.logging.set_verbosity(v1.logging.ERROR)
    try:
        yield
    finally:
        v1.logging.set_verbosity(previous)


def session_config() -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Return a session's configuration: one thread, since a policy is small and replicas are many."""
    return v1.ConfigProto(
        intra_op_parallelism_threads=1, inter_op_parallelism_threads=1, use_per_session_threads=True, device_count={"GPU": 0}
    )


def _exploring(graph_def: Any) -> str | None:  # noqa: ANN401 -- TensorFlow is untyped
    names = [
        node.name
        for node in graph_def.node
        if node.op == "PlaceholderWithDefault" and node.name.split("/")[-1].startswith("is_exploring")
    ]
    return f"{min(names, key=len)}:0" if names else None


def _unlisted(graph_def: Any, listed: set[str | None]) -> dict[str, SignatureTensor]:  # noqa: ANN401 -- TensorFlow is untyped
    found = {}
    for node in graph_def.node:
        name = re.sub(r"_\d+$", "", node.name.split("/")[-1])
        # A default is kept, but for the two that a policy in service needs otherwise.
        is_needed = node.op == "Placeholder" or (node.op == "PlaceholderWithDefault" and name in ("timestep", "is_training"))
        if is_needed and f"{node.name}:0" not in listed:
            shape = node.attr["shape"].shape
            sizes = None if shape.unknown_rank else tuple(dim.size if dim.size >= 0 else None for dim in shape.dim)
            dtype = tf.dtypes.as_dtype(node.attr["dtype"].type).name
            found[f"{node.name}:0"] = SignatureTensor(name, dtype, sizes)
    return found


def _without_assignments(graph_def: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Cut the step counters' updates, which exploration hangs before each action: constants can't be assigned."""
    targets = {node.name: node.input[0] for node in graph_def.node if node.op in _ASSIGNMENT_OPS}
    for node in graph_def.node:
        kept = [name for name in node.input if name.removeprefix("^") not in targets]
        if len(kept) == len(node.input) or node.name in targets:
            continue
        # A TensorFlow 1 assignment also returns its variable.
        kept = [targets.get(name.split(":")[0], name) for name in node.input if not (name[0] == "^" and name[1:] in targets)]
        del node.input[:]
        node.input.extend(kept)
    return graph_def


def _end_schedules(graph_def: Any, variables: set[str]) -> None:  # noqa: ANN401 -- TensorFlow is untyped
    """Set the step counters that RLlib keeps in variables, so that random first steps and epsilon are over."""
    for node in graph_def.node:
        if node.op == "Const" and node.name in variables and node.name.split("/")[-1].startswith("timestep"):
            value = tf.make_ndarray(node.attr["value"].tensor)
            if value.shape == () and np.issubdtype(value.dtype, np.integer):
                late = np.array(_LATE_TIMESTEP, value.dtype)
                node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(late))


def _inline(graph_def: Any, kept: Sequence[str]) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    if not graph_def.library.function:
        return graph_def
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(graph_def, name="")
    meta = v1.train.export_meta_graph(graph_def=graph.as_graph_def(), graph=graph)
    fetches = meta_graph_pb2.CollectionDef()
    fetches.node_list.value.extend(kept)
    meta.collection_def["train_op"].CopyFrom(fetches)
    for function in meta.graph_def.library.function:
        if "api_implements" in function.attr:
            del function.attr["api_implements"]
        function.attr["_noinline"].b = False
    config = config_pb2.ConfigProto()
    config.graph_options.rewrite_options.min_graph_nodes = -1
    config.graph_options.rewrite_options.meta_optimizer_iterations = 1
    config.graph_options.rewrite_options.optimizers.append("function")
    flat = tf_optimizer.OptimizeGraph(config, meta)
    if not any(node.op in _INLINED_OPS for node in flat.node):
        del flat.library.function[:]
    return flat


def _signature_tensor(name: str, info: Any) -> SignatureTensor:  # noqa: ANN401 -- TensorFlow is untyped
    dtype = tf.dtypes.as_dtype(info.dtype).name
    if info.tensor_shape.unknown_rank:
        return SignatureTensor(name, dtype, None)
    return SignatureTensor(name, dtype, tuple(dim.size if dim.size >= 0 else None for dim in info.tensor_shape.dim))


def _with_observations(loaded: LoadedGraph) -> LoadedGraph:
    """Find the input that takes the observation, and call it so: a Keras model may name it otherwise."""
    names = [item.name for item in loaded.inputs]
    if OBSERVATIONS in names:
        return loaded
    known = ("is_training", "timestep", "prev_action", "prev_reward", "seq_lens")
    candidates = [item for item in loaded.inputs if item.name not in known and item.dtype != "string"]
    if len(candidates) != 1:
        raise ModelError(
            f"saved_model.pb: expected an input 'observations', got {', '.join(names) or 'none'}; "
            "export a policy whose observation is one flat vector"
        )
    found = candidates[0]
    renamed = SignatureTensor(OBSERVATIONS, found.dtype, found.shape)
    inputs = tuple(renamed if item is found else item for item in loaded.inputs)
    tensors = {**loaded.tensors, OBSERVATIONS: loaded.tensors[found.name]}
    return replace(loaded, inputs=inputs, tensors=tensors)


class GraphRunner:
    """A frozen policy in a session of its own: rows of observations in, arrays out."""

    def __init__(self, loaded: LoadedGraph, *, row_dtype: type[np.float32] | type[np.float64]) -> None:
        """Import the graph with every input but the observation filled in.

        Args:
            loaded: the frozen graph.
            row_dtype: the type that observations come in.

        Raises:
            ModelError: if the graph can't be imported.
        """
        self._graph = tf.Graph()
        fetched = {item.name: loaded.tensors[item.name] for item in loaded.outputs}
        with _translated(Path("saved_model.pb")), self._graph.as_default():
            shape = loaded.observations.shape
            self._rows = v1.placeholder(row_dtype, [None, None], name="policy_server/rows")
            batch = tf.shape(self._rows)[0]
            observations = tf.cast(self._rows, tf.dtypes.as_dtype(loaded.observations.dtype))
            if shape is not None and len(shape) != 2:
                observations = tf.reshape(observations, tf.stack([batch, *(size or -1 for size in shape[1:])]))
            feeds = {loaded.tensors[OBSERVATIONS]: observations}
            feeds |= {loaded.tensors[i.name]: _fill(i, batch) for i in loaded.inputs if i.name != OBSERVATIONS}
            feeds |= {tensor: _fill(item, batch) for tensor, item in loaded.unlisted.items()}
            self._is_exploring = v1.placeholder(tf.bool, [], name="policy_server/is_exploring")
            if loaded.exploring is not None:
                feeds[loaded.exploring] = self._is_exploring
            tensors = tf.import_graph_def(
                loaded.graph_def, input_map=feeds, return_elements=list(fetched.values()), name="policy"
            )
        self._outputs = dict(zip(fetched, tensors, strict=True))
        self._session = v1.Session(graph=self._graph, config=session_config())
        self._callables: dict[tuple[str, ...], Any] = {}

    def run(self, names: Sequence[str], rows: NDArray[np.floating[Any]], *, is_exploring: bool = False) -> list[NDArray[Any]]:
        """Compute outputs of the signature.

        Args:
            names: which outputs.
            rows: float[B, observation_width].
            is_exploring: whether the graph samples its actions.

        Returns:
            One array an output, with B rows.

        Raises:
            tf.errors.OpError: if the graph fails on these observations.
        """
        key = tuple(names)
        if key not in self._callables:
            fetches = [self._outputs[name] for name in names]
            self._callables[key] = self._session.make_callable(fetches, [self._rows, self._is_exploring])
        arrays: list[NDArray[Any]] = self._callables[key](rows, is_exploring)
        return arrays

    def close(self) -> None:
        """Free the session."""
        self._session.close()


def _fill(item: SignatureTensor, batch: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    dtype = tf.dtypes.as_dtype(item.dtype)
    if item.name == "is_training":
        return tf.constant(value=False, dtype=dtype)
    if item.name == "timestep":
        return tf.constant(min(_LATE_TIMESTEP, int(dtype.max)), dtype=dtype)
    if item.shape is None or item.shape == ():
        return tf.zeros([], dtype)
    # Zeros here crash a recurrent model: every row is a sequence of one step.
    fill = tf.ones if item.name == "seq_lens" else tf.zeros
    first = batch if item.shape[0] is None else item.shape[0]
    return fill(tf.stack([first, *(1 if size is None else size for size in item.shape[1:])]), dtype)


def width_of(item: SignatureTensor) -> int | None:
    """Return how many numbers one row of an input has; None where that is open.

    Args:
        item: the input.
    """
    if item.shape is None or any(size is None for size in item.shape[1:]):
        return None
    return math.prod(size for size in item.shape[1:] if size is not None)
