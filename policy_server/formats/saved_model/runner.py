"""Running a frozen policy: rows of observations in, arrays out.

Every input but the observation is filled in inside the graph: `is_training` False, `timestep`
large, `seq_lens` ones; previous actions, rewards and recurrent states zeros, or the state that is
given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.formats.saved_model import slim_tensorflow as tf
from policy_server.formats.saved_model.freezing import LATE_TIMESTEP, session_config
from policy_server.formats.saved_model.graph import LoadedGraph, as_model_errors
from policy_server.formats.saved_model.tf_agents import DISCOUNT, STEP_TYPE
from policy_server.policy import SignatureTensor

__all__ = ["GraphRunner", "GraphSampler", "filled_value"]


class GraphRunner:
    """A frozen policy in a session of its own."""

    def __init__(
        self, loaded: LoadedGraph, *, row_dtype: type[np.float32] | type[np.float64]
    ) -> None:
        """Own a session over the graph, in which every input but the observation is filled in.

        Args:
            loaded: the frozen graph.
            row_dtype: the type that observations come in.

        Raises:
            ModelError: if the graph can't be imported.
        """
        self._graph = tf.Graph()
        item = loaded.observation_input
        self._batch = item.shape[0] if item.shape else None
        self._state_width = loaded.memory.width
        with as_model_errors(), self._graph.as_default():
            self._rows = tf.placeholder(row_dtype, [None, None], name="policy_server/rows")
            self._is_exploring = tf.placeholder(tf.bool, [], name="policy_server/is_exploring")
            batch = tf.shape(self._rows)[0]
            feeds = {loaded.observations: _observations(self._rows, batch, item)}
            feeds |= {tensor: _fill(part, batch) for tensor, part in loaded.feeds.items()}
            self._state = tf.placeholder(np.float32, [None, None], name="policy_server/state")
            for tensor, columns in loaded.memory.columns.items():
                feeds[tensor] = _part_of(self._state[:, columns], batch, loaded.feeds[tensor])
            if loaded.exploring is not None:
                feeds[loaded.exploring] = self._is_exploring
            self._fed = feeds
            tensors = tf.import_graph_def(
                loaded.graph_def,
                input_map=feeds,
                return_elements=list(loaded.fetches.values()),
                name="policy",
            )
        self._outputs: dict[str, Any] = dict(zip(loaded.fetches, tensors, strict=True))
        self._session = tf.Session(graph=self._graph, config=session_config())
        self._callables: dict[tuple[str, ...], Any] = {}

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the names of the outputs that can be computed, in natural order."""
        return tuple(self._outputs)

    def add_output(self, name: str, tensor: str) -> None:
        """Give an output to a tensor that the signature does not list.

        Args:
            name: the output's name in `run`.
            tensor: the graph's name of it.
        """
        self._outputs[name] = self._tensor(tensor)
        self._callables.clear()

    def evaluate(
        self, tensor: str, rows: NDArray[np.floating[Any]], *, is_exploring: bool
    ) -> NDArray[Any]:
        """Compute any tensor of the graph once.

        Args:
            tensor: the graph's name of it.
            rows: float[B, observation_width].
            is_exploring: whether the graph samples its actions.

        Raises:
            tf.errors.OpError: if it can't be computed.
        """
        feeds = self._filled(rows, None) | {self._is_exploring: is_exploring}
        value: NDArray[Any] = np.asarray(self._session.run(self._tensor(tensor), feeds))
        return value

    def run_from(
        self,
        tensor: str,
        values: NDArray[Any],
        names: Sequence[str],
        rows: NDArray[np.floating[Any]],
        *,
        is_exploring: bool,
    ) -> list[NDArray[Any]]:
        """Compute outputs of the signature from values for a tensor on the way.

        Args:
            tensor: the graph's name of the tensor.
            values: the values to use instead of the tensor's own.
            names: the outputs to compute.
            rows: float[B, observation_width].
            is_exploring: whether the graph samples its actions.

        Returns:
            One array an output, with B rows.

        Raises:
            tf.errors.OpError: if the graph fails on these values.
        """
        feeds = self._filled(rows, None)
        feeds |= {self._is_exploring: is_exploring, self._tensor(tensor): values}
        fetches = [self._outputs[name] for name in names]
        arrays: list[NDArray[Any]] = self._session.run(fetches, feeds)
        return arrays

    def _tensor(self, name: str) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
        """Return a tensor of the graph, or the placeholder that is fed in its stead."""
        known = self._fed.get(name)
        return self._graph.get_tensor_by_name(f"policy/{name}") if known is None else known

    def _filled(
        self, rows: NDArray[np.floating[Any]], state: NDArray[np.floating[Any]] | None
    ) -> dict[Any, NDArray[np.floating[Any]]]:
        """Return the placeholders' values for observations, and for the state before the step."""
        if state is None:
            state = np.zeros((len(rows), self._state_width), np.float32)
        return {self._rows: rows, self._state: state}

    def run(
        self,
        names: Sequence[str],
        rows: NDArray[np.floating[Any]],
        *,
        is_exploring: bool = False,
        state: NDArray[np.floating[Any]] | None = None,
    ) -> list[NDArray[Any]]:
        """Compute outputs of the signature.

        Args:
            names: the outputs to compute.
            rows: float[B, observation_width].
            is_exploring: whether the graph samples its actions.
            state: float[B, memory_width]; None for the zero state.

        Returns:
            One array an output, with B rows.

        Raises:
            tf.errors.OpError: if the graph fails on these observations.
        """
        filled = self._filled(rows, state)
        key = tuple(names)
        if key not in self._callables:
            fetches = [self._outputs[name] for name in names]
            self._callables[key] = self._session.make_callable(
                fetches, [self._rows, self._state, self._is_exploring]
            )
        call = self._callables[key]
        if self._batch is None or len(rows) == self._batch:
            arrays: list[NDArray[Any]] = call(*filled.values(), is_exploring)
            return arrays
        return _in_batches(call, [*filled.values()], self._batch, is_exploring=is_exploring)


class GraphSampler:
    """The part of a frozen policy that draws actions, from inputs of the distribution as given.

    It tries the sampler on any inputs, not only on those that some observation leads to.
    """

    def __init__(self, runner: GraphRunner, root: str, observation: NDArray[Any]) -> None:
        """Own the sampler of a policy, as part of the runner's session.

        Args:
            runner: runs the policy.
            root: the tensor of the distribution's inputs.
            observation: float[observation_width], one that the policy answers; it stands in for
                all, where the sampler asks for their number.
        """
        self._runner = runner
        self._root = root
        self._observation = observation

    def run(
        self, names: Sequence[str], inputs: NDArray[Any], *, is_exploring: bool
    ) -> list[NDArray[Any]]:
        """Compute outputs of the signature.

        Args:
            names: the outputs to compute.
            inputs: float[B, K], the distribution's inputs.
            is_exploring: whether the graph samples its actions.

        Returns:
            One array an output, with B rows.

        Raises:
            tf.errors.OpError: if the graph fails on these inputs.
        """
        rows = np.repeat(self._observation[None], len(inputs), axis=0)
        return self._runner.run_from(self._root, inputs, names, rows, is_exploring=is_exploring)


def _in_batches(
    call: Any,  # noqa: ANN401 -- TensorFlow is untyped
    filled: Sequence[NDArray[Any]],
    batch: int,
    *,
    is_exploring: bool,
) -> list[NDArray[Any]]:
    """Answer any number of rows by a graph for a fixed one; the last row fills its batch up."""
    total = len(filled[0])
    missing = -total % batch
    padded = [np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) for rows in filled]
    parts = [
        call(*(rows[at : at + batch] for rows in padded), is_exploring)
        for at in range(0, total + missing, batch)
    ]
    return [np.concatenate(arrays)[:total] for arrays in zip(*parts, strict=True)]


def _observations(rows: Any, batch: Any, item: SignatureTensor) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    values = tf.cast(rows, tf.dtypes.as_dtype(item.dtype))
    if item.shape is None or len(item.shape) == 2:
        return values
    return tf.reshape(values, tf.stack([batch, *(size or -1 for size in item.shape[1:])]))


def _part_of(columns: Any, batch: Any, item: SignatureTensor) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    """Return the numbers of a state that one input takes, in its shape."""
    values = tf.cast(columns, tf.dtypes.as_dtype(item.dtype))
    return tf.reshape(values, tf.stack([batch, *(item.shape or ())[1:]]))


def filled_value(item: SignatureTensor) -> NDArray[Any]:
    """Return the one value that an input other than the observation has in service.

    Args:
        item: the input.
    """
    dtype = tf.dtypes.as_dtype(item.dtype)
    if item.name == "timestep":
        return np.array(min(LATE_TIMESTEP, int(dtype.max)), dtype.as_numpy_dtype)
    # Zeros in seq_lens crash a recurrent model: every row is a sequence of one step. Of TF-Agents'
    # step types 1 is a step within an episode.
    return np.array(item.name in ("seq_lens", DISCOUNT, STEP_TYPE), dtype.as_numpy_dtype)


def _fill(item: SignatureTensor, batch: Any) -> Any:  # noqa: ANN401 -- TensorFlow is untyped
    value = tf.constant(filled_value(item))
    if not item.shape:
        return value
    first = batch if item.shape[0] is None else item.shape[0]
    return tf.fill(
        tf.stack([first, *(1 if size is None else size for size in item.shape[1:])]), value
    )
