"""Computing a graph by onnxruntime, or by the reference that comes with the package onnx."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.onnx.library_messages import reason_of, remedy_for
from policy_server.formats.onnx.model_file import OnnxModel
from policy_server.formats.onnx.plan import Plan
from policy_server.installation import is_installed

__all__ = ["GraphRunError", "Runtime", "has_onnxruntime", "open_runtime", "row_function"]

Array = NDArray[Any]
_QUIET = 4


class GraphRunError(Exception):
    """A runtime can't compute the graph for an observation."""


class Runtime(Protocol):
    """Computes tensors of one graph."""

    @property
    def name(self) -> str:
        """Return the library's name."""

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Return the tensors' values by their names.

        Args:
            feeds: the graph's inputs by name.

        Raises:
            GraphRunError: if they can't be computed.
        """


def has_onnxruntime() -> bool:
    """Return whether onnxruntime is installed."""
    return is_installed("onnxruntime")


def open_runtime(model: OnnxModel, tensors: Sequence[str], *, is_literal: bool = True) -> Runtime:
    """Return a runtime for some tensors of a graph: onnxruntime where it is installed.

    Args:
        model: the graph.
        tensors: the names of the tensors.
        is_literal: compute the graph's own operations. Else onnxruntime may join them to others,
            which are faster, and overflow for other numbers.

    Raises:
        ModelError: if the graph can't be computed at all.
    """
    proto = _asking_for(model, tensors)
    try:
        return _OnnxRuntime(proto, is_literal) if has_onnxruntime() else _Reference(proto)
    except Exception as error:
        reason = reason_of(error)
        raise ModelError(
            f"{model.name}: can't be computed: {reason}; {remedy_for(reason)}"
        ) from error


def row_function(
    runtime: Runtime, plan: Plan, constants: Mapping[str, Array], *, is_row_by_row: bool
) -> Callable[[Array], Array]:
    """Return the function of a plan, as a runtime computes it: float[B, D] -> float[B, K].

    Args:
        runtime: computes the plan's tensors.
        plan: the inputs and results.
        constants: the graph's own constants.
        is_row_by_row: whether the graph gets one observation at a time.
    """

    def at_once(rows: Array) -> Array:
        values = runtime.run({feed.name: feed.of(rows) for feed in plan.feeds})
        try:
            return plan.joined({**constants, **values}, len(rows))
        except ValueError as error:
            raise GraphRunError(str(error)) from error

    if not is_row_by_row:
        return at_once
    return lambda rows: np.concatenate([at_once(rows[i : i + 1]) for i in range(len(rows))])


def _asking_for(model: OnnxModel, tensors: Sequence[str]) -> Any:  # noqa: ANN401 -- onnx is untyped
    """Return the graph's message with some tensors as its only outputs, and what they need."""
    import onnx

    wanted = set(tensors)
    kept = []
    for node in reversed(model.proto.graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
            wanted.update(_outer_names(node))
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    del proto.graph.node[:], proto.graph.output[:], proto.graph.value_info[:]
    proto.graph.node.extend(reversed(kept))
    declared = {item.name: item for item in model.proto.graph.output}
    for name in dict.fromkeys(tensors):
        proto.graph.output.append(declared.get(name) or onnx.ValueInfoProto(name=name))
    return proto


def _outer_names(node: Any) -> set[str]:  # noqa: ANN401 -- onnx is untyped
    """Return the names that a node's own graphs, such as the branches of an If, read."""
    found: set[str] = set()
    for item in node.attribute:
        for graph in (item.g, *item.graphs):
            for inner in graph.node:
                found.update(inner.input)
                found |= _outer_names(inner)
    return found


class _OnnxRuntime:
    name = "onnxruntime"

    def __init__(self, proto: Any, is_literal: bool) -> None:  # noqa: ANN401, FBT001 -- onnx is untyped
        # Else its import begins to tell Microsoft of each session, by the network and by files in
        # the home folder; later is too late.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = _QUIET
        # It would keep what one large call took, and take more than that for the next.
        options.enable_cpu_mem_arena = False
        if is_literal:
            levels = onnxruntime.GraphOptimizationLevel
            options.graph_optimization_level = levels.ORT_DISABLE_ALL
        # A second try by the same provider would only print that it is one.
        self._session = onnxruntime.InferenceSession(
            proto.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            enable_fallback=0,
        )
        self._inputs = {item.name for item in self._session.get_inputs()}
        self._outputs = [item.name for item in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Return the tensors' values; see `Runtime.run`."""
        known = {name: value for name, value in feeds.items() if name in self._inputs}
        try:
            found = self._session.run(self._outputs, known)
        except Exception as error:
            raise GraphRunError(reason_of(error)) from error
        return dict(zip(self._outputs, map(np.asarray, found), strict=True))


class _Reference:
    name = "onnx's reference"

    def __init__(self, proto: Any) -> None:  # noqa: ANN401 -- onnx is untyped
        from onnx.reference import ReferenceEvaluator

        self._evaluator = ReferenceEvaluator(proto)

    def run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Return the tensors' values; see `Runtime.run`."""
        try:
            with np.errstate(all="ignore"):
                found = self._evaluator.run(None, dict(feeds))
        except Exception as error:
            raise GraphRunError(reason_of(error)) from error
        return dict(zip(self._evaluator.output_names, map(np.asarray, found), strict=True))
