"""Frozen graphs of functions of three numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from policy_server.formats.saved_model.graph import LoadedGraph
from policy_server.policy import SignatureTensor
from tests.support.hand_built import tf

__all__ = ["ROWS", "WEIGHTS", "graph_of"]

_v1 = tf.compat.v1
WEIGHTS = np.array([[0.5, -1.0], [0.25, 2.0], [1.0, 0.0]], np.float32)
ROWS = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)


def graph_of(build: Callable[[Any], Any], *, batch: int | None = None) -> LoadedGraph:
    """Return the frozen graph of a function of the observations, with version 1's control flow."""
    graph = tf.Graph()
    with graph.as_default():
        _v1.disable_control_flow_v2()
        _v1.disable_tensor_equality()
        rows = _v1.placeholder(tf.float32, [batch, 3], name="obs")
        output = tf.identity(build(rows), name="out")
    item = SignatureTensor("observations", "float32", (batch, 3))
    return LoadedGraph(graph.as_graph_def(), (item,), (), "obs:0", {"out": output.name})
