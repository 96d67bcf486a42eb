"""Holding a file's functions, as onnxruntime calls them, against their nodes in their place.

Whatever else is proved of a policy is proved of the graph without functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.errors import ModelError
from policy_server.formats.onnx.graph_runs import GraphRuns
from policy_server.formats.onnx.model_file import OnnxModel
from policy_server.formats.onnx.plan import Plan
from policy_server.formats.onnx.random_nodes import RandomNodes
from policy_server.formats.onnx.runtimes import has_onnxruntime

__all__ = ["check_inlined"]

Array = NDArray[Any]

_TOLERANCE = 1e-5
# NumPy's name of the type of texts.
_TEXT = "object"


def check_inlined(graph: GraphRuns, plan: Plan) -> None:
    """Refuse a file whose results onnxruntime computes as others than those without its functions.

    The graph's outputs are compared for the probes, and the plan's tensors; neither those within a
    function, nor those that depend on random numbers. Without onnxruntime nothing is compared:
    onnx's reference can't compute all functions.

    Args:
        graph: runs the graph without its functions.
        plan: its inputs and results.

    Raises:
        ModelError: if a result is another, or onnxruntime can't compute the file as it came.
    """
    model = graph.model
    if model.original is None or not has_onnxruntime():
        return
    tensors = _compared(graph, plan)
    if not tensors:
        return
    as_it_came = GraphRuns(replace(model, proto=_with_weights(model)), graph.roles)
    expected, found = as_it_came.values(tensors), graph.values(tensors)
    for theirs, ours in zip(expected, found, strict=True):
        for name in tensors:
            if not _is_equal(ours[name], theirs[name]):
                raise ModelError(
                    f"{model.name}: onnxruntime computes another {name!r} with its functions than "
                    "with their operations in the place of their calls; export it without functions"
                )


def _compared(graph: GraphRuns, plan: Plan) -> Sequence[str]:
    model = graph.model
    random = RandomNodes(model, graph.roles.fixed)
    drawn: set[str] = set()
    for node in model.nodes:
        is_random = any(random.is_random(one) for one in (node, *node.inner))
        if is_random or drawn.intersection(node.reads):
            drawn.update(node.outputs)
    written = {name for node in model.original.graph.node for name in node.output} - drawn
    outputs = (item.name for item in model.outputs if item.dtype != _TEXT)
    names = (*outputs, *(piece.tensor for piece in plan.pieces))
    return [name for name in dict.fromkeys(names) if name in written]


def _with_weights(model: OnnxModel) -> Any:  # noqa: ANN401 -- onnx is untyped
    proto = type(model.original)()
    proto.CopyFrom(model.original)
    proto.graph.initializer.extend(model.proto.graph.initializer)
    return proto


def _is_equal(ours: Array, theirs: Array) -> bool:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    with np.errstate(invalid="ignore"):
        return np.allclose(
            ours.astype(np.float64), theirs, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True
        )
