"""Loading: from an .onnx file to a policy that answers, by the engine that suits it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.engine.building import NotCompiledError
from policy_server.engine.network import CompiledPolicy, NetworkPolicy
from policy_server.engine.proof import (
    EngineProof,
    batch_sizes,
    extreme_rows,
    hold_against_graph,
)
from policy_server.errors import ModelError
from policy_server.formats.onnx.answer_checks import check_mask, check_repeats
from policy_server.formats.onnx.document_reading import read_document
from policy_server.formats.onnx.graph_readings import Reading, read_by_graph, read_by_metadata
from policy_server.formats.onnx.graph_runs import GraphRuns, RowFunction
from policy_server.formats.onnx.inlining_check import check_inlined
from policy_server.formats.onnx.leapp import read_description
from policy_server.formats.onnx.model_file import OnnxModel, read_model
from policy_server.formats.onnx.onnxruntime_policy import OnnxRuntimePolicy
from policy_server.formats.onnx.plan import Plan
from policy_server.formats.onnx.plan_compiler import Compilation, compile_plan
from policy_server.formats.onnx.policy_vectors import check_vectors, vectors_in
from policy_server.formats.onnx.registers import TooLargeError
from policy_server.formats.onnx.runtimes import GraphRunError, has_onnxruntime
from policy_server.formats.onnx.step_checks import check_steps
from policy_server.formats.onnx.tensor_sizes import check_sizes
from policy_server.installation import require
from policy_server.policy import Policy, PolicySignature
from policy_server.schema import ServerSchema
from policy_server.settings import Engine

__all__ = ["load_policy"]

Array = NDArray[Any]

_LARGEST = np.float32(1e18)
# onnxruntime's own convolutions are faster above this many multiplications an observation.
_MOST_IN_CONVOLUTIONS = 1_000_000


def load_policy(
    files: Mapping[str, Path], schema: ServerSchema | None, *, engine: Engine
) -> Policy:
    """Load the policy, check that schema.yaml fits it, and build its network.

    Args:
        files: the model's files by name: an .onnx file, and those beside it.
        schema: the contents of schema.yaml; None for a policy that has none yet.
        engine: `numpy`, `onnxruntime`, or `auto` for NumPy where that agrees with the graph.

    Returns:
        The policy, ready to answer.

    Raises:
        ModelError: if the file can't give a policy, or not by the engine that was asked for.
        SchemaError: if schema.yaml disagrees with the policy.
        MissingPackageError: if a package is missing that the file needs.
    """
    model = read_model(files)
    check_sizes(model)
    document = read_document(model)
    if document is None:
        return _load(model, read_by_graph(model, read_description(files, model), schema), engine)
    policy = _load(model, read_by_metadata(model, document, schema), engine)
    found = check_vectors(model.name, vectors_in(model, policy), policy)
    signature = replace(policy.signature, findings=(*policy.signature.findings, found))
    if isinstance(policy, NetworkPolicy):
        return NetworkPolicy(replace(policy.compiled, signature=signature))
    policy.signature = signature
    return policy


def _load(model: OnnxModel, reading: Reading, engine: Engine) -> NetworkPolicy | OnnxRuntimePolicy:
    graph, plan, signature = reading.graph, reading.plan, reading.signature
    check_inlined(graph, plan)
    check_steps(graph, plan)
    if signature.mask_name is not None:
        check_mask(graph, plan, signature)
    if engine != "onnxruntime":
        try:
            is_forced = engine == "numpy"
            compiled = _compiled(graph, plan, signature, reading.function, is_forced=is_forced)
            return NetworkPolicy(compiled)
        except NotCompiledError as error:
            if engine == "numpy":
                raise ModelError(
                    f"{model.name}: can't be computed by NumPy: {error}; set POLICY_SERVER_ENGINE "
                    "to auto or onnxruntime"
                ) from error
            reason = str(error)
    else:
        reason = "POLICY_SERVER_ENGINE asks for it"
    require("onnxruntime", use=f"{model.name}, which NumPy can't compute ({reason})")
    signature = replace(signature, engine="onnxruntime", engine_reason=reason)
    operators = {one.operator for node in model.nodes for one in (node, *node.inner)}
    function = graph.function(plan, is_literal=False)
    check_repeats(model.name, function, graph.probes)
    return OnnxRuntimePolicy(signature, function, operators=operators)


def _compiled(
    graph: GraphRuns,
    plan: Plan,
    signature: PolicySignature,
    function: RowFunction,
    *,
    is_forced: bool,
) -> CompiledPolicy:
    """Return the policy as NumPy operations, after comparing its outputs with the runtime's.

    Raises:
        NotCompiledError: saying why NumPy can't compute it.
    """
    library = "onnxruntime" if has_onnxruntime() else "onnx's reference"
    reason = ""
    for is_row_by_row in (False, True):
        if not is_row_by_row and not plan.takes_batches:
            continue
        try:
            compilation = compile_plan(graph.model, plan, is_row_by_row=is_row_by_row)
            _check_cost(compilation.in_convolutions, is_forced=is_forced)
            proof = _hold(compilation, function, graph, plan, library)
        except TooLargeError as error:
            # onnxruntime would take the memory.
            raise ModelError(
                f"{graph.model.name}: {error}; export the network without it"
            ) from error
        except NotCompiledError as error:
            reason = reason or str(error)
            continue
        network = compilation.network
        reason = (
            f"{len(network.steps)} operations{', row by row' if is_row_by_row else ''}, "
            f"{proof.told(library)}"
        )
        return CompiledPolicy(replace(signature, engine="numpy", engine_reason=reason), network)
    raise NotCompiledError(reason)


def _hold(
    compilation: Compilation, function: RowFunction, graph: GraphRuns, plan: Plan, library: str
) -> EngineProof:
    """Compare a network's answers with a runtime's.

    Raises:
        NotCompiledError: saying where they differ.
    """
    if not compilation.is_row_wise:
        raise NotCompiledError("its network joins the observations of a batch")
    return hold_against_graph(
        compilation.network,
        function,
        graph.probes,
        _extremes(plan, sum(item.size for item in graph.roles.memory)),
        batch_sizes(compilation.in_convolutions),
        refusal=GraphRunError,
        library=library,
    )


def _extremes(plan: Plan, memory: int) -> Array:
    """Return extreme observations; a state stays near zero, as recurrent layers keep it.

    A sum of squares of larger numbers overflows or not by the order that it is taken in.
    """
    rows = extreme_rows(plan.width, "float32", np.float32).clip(-_LARGEST, _LARGEST)
    if memory:
        state = np.random.default_rng(22).uniform(-1, 1, (len(rows), memory))
        rows[:, -memory:] = state.astype(np.float32)
    return rows


def _check_cost(in_convolutions: int, *, is_forced: bool) -> None:
    if in_convolutions > _MOST_IN_CONVOLUTIONS and has_onnxruntime() and not is_forced:
        raise NotCompiledError(
            f"its convolutions take {in_convolutions / 1e6:.1f} million multiplications an "
            f"observation; NumPy is slower above {_MOST_IN_CONVOLUTIONS / 1e6:.1f}"
        )
