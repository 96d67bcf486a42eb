"""Loading: from a SavedModel's folder to a policy that answers, by the engine that suits it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy_server.engine.building import NotCompiledError
from policy_server.engine.network import CompiledPolicy, NetworkPolicy
from policy_server.engine.proof import (
    batch_sizes,
    extreme_rows,
    hold_against_graph,
    mixes_rows,
    probe_rows,
)
from policy_server.errors import ModelError
from policy_server.formats.probability_checks import refuse_hidden_probabilities
from policy_server.formats.saved_model import slim_tensorflow as tf
from policy_server.formats.saved_model.agent_actions import (
    is_of_tf_agents,
    plain_actions,
    with_bounds,
)
from policy_server.formats.saved_model.bare import logits_output, read_from_schema
from policy_server.formats.saved_model.evidence import GraphProbe
from policy_server.formats.saved_model.graph import (
    ACTIONS,
    DISTRIBUTION_INPUTS,
    LoadedGraph,
    load_graph,
    width_of,
)
from policy_server.formats.saved_model.graph_compiler import (
    Compilation,
    compile_network,
)
from policy_server.formats.saved_model.identify import identify_actions
from policy_server.formats.saved_model.plain_networks import is_plain_network, read_network
from policy_server.formats.saved_model.runner import GraphRunner, GraphSampler
from policy_server.formats.saved_model.state_probes import with_states
from policy_server.formats.saved_model.state_steps import describe_memory
from policy_server.formats.saved_model.structure import find_distribution_inputs, read_structure
from policy_server.formats.saved_model.tensorflow_policy import TensorFlowPolicy
from policy_server.formats.saved_model.tf_agents import STEP_TYPE
from policy_server.formats.saved_model.weights import find_width
from policy_server.policy import Policy, PolicySignature
from policy_server.schema import ServerSchema, number_range
from policy_server.schema_fit import check_schema_fits, describe_signature
from policy_server.settings import Engine

__all__ = ["load_policy"]

# TensorFlow's own convolutions are twice as fast above this many multiplications an observation.
_MOST_IN_CONVOLUTIONS = 1_000_000
# So many observations show whether one depends on the others. The number is one that the size of
# the distribution is no multiple of, so that the batch's size is told from other sizes.
_ROWS_READ = (3, 5, 7, 11)
_MOST_ROWS_READ = max(_ROWS_READ)


def load_policy(
    folder: Path, schema: ServerSchema | None = None, *, engine: Engine = "auto"
) -> Policy:
    """Load the SavedModel in a folder, identify and check its family, and warm it up.

    Args:
        folder: holds saved_model.pb and variables/.
        schema: the contents of schema.yaml: names and bounds of actions, and the distribution that
            a keras-only export leaves out.
        engine: `numpy` serves the network by NumPy, `tensorflow` by TensorFlow, `auto` by NumPy
            where that agrees with TensorFlow on probes and is no slower.

    Returns:
        The policy, ready to answer.

    Raises:
        ModelError: if the file can't give a policy, or not by the engine that was asked for.
        SchemaError: if schema.yaml disagrees with the policy.
    """
    order = [item.name for item in (schema.observations if schema else None) or ()]
    loaded = load_graph(folder, order)
    signature = PolicySignature(
        observation_width=_width(loaded, schema),
        observation_dtype=loaded.observation_input.dtype,
        observation_columns=loaded.observation_columns,
        inputs=loaded.inputs,
        outputs=loaded.outputs,
        action_outputs=(),
        components=None,
        memory=loaded.memory.tensors,
    )
    if schema is not None:
        # Before the policy runs: a wrong width has the clearer words here.
        check_schema_fits(replace(schema, discrete=None, tuple=None), signature)
    bounds, has_own_bounds = None, False
    if any(item.name.startswith(ACTIONS) for item in loaded.outputs):
        _check_inputs(loaded)
        runner = GraphRunner(loaded, row_dtype=signature.row_dtype)
        if is_of_tf_agents(loaded):
            assert signature.observation_width is not None, "found above"
            loaded, bounds = plain_actions(loaded, runner, signature.observation_width)
            runner = GraphRunner(loaded, row_dtype=signature.row_dtype)
        loaded, signature, compilation = _identify(loaded, runner, signature)
        signature = with_bounds(signature, bounds)
        has_own_bounds = bounds is not None
        distribution = DISTRIBUTION_INPUTS
    elif is_plain_network(loaded, schema):
        loaded, meaning, schema = read_network(loaded, schema, _common_rows(signature))
        runner = GraphRunner(loaded, row_dtype=signature.row_dtype)
        signature = replace(
            signature,
            action_outputs=meaning.action_outputs,
            components=meaning.components,
            is_value_based=meaning.is_value_based,
            basis=meaning.basis,
            findings=meaning.findings,
        )
        has_own_bounds = meaning.has_own_bounds
        distribution = DISTRIBUTION_INPUTS
        assert signature.observation_width is not None, "found above"
        compilation = compile_network(loaded, distribution, signature.observation_width)
    else:
        output = logits_output(loaded)
        runner = GraphRunner(loaded, row_dtype=signature.row_dtype)
        signature, distribution = read_from_schema(signature, schema, output), output.name
        assert signature.observation_width is not None, "found above"
        compilation = compile_network(loaded, distribution, signature.observation_width)
    policy = TensorFlowPolicy(
        runner,
        _described(signature, schema, loaded, has_own_bounds=has_own_bounds),
        distribution=distribution,
    )
    policy.warm_up()
    _refuse_hidden_probabilities(policy, schema)
    if engine == "tensorflow":
        policy.explain_engine("POLICY_SERVER_ENGINE asks for it")
        return policy
    try:
        compiled = _compiled(policy, compilation, is_forced=engine == "numpy")
    except NotCompiledError as error:
        if engine == "numpy":
            raise ModelError(
                f"saved_model.pb: can't be computed by NumPy: {error}; set POLICY_SERVER_ENGINE to "
                "auto or tensorflow"
            ) from error
        policy.explain_engine(str(error))
        return policy
    return NetworkPolicy(compiled)


def _refuse_hidden_probabilities(policy: TensorFlowPolicy, schema: ServerSchema | None) -> None:
    """Refuse a network whose numbers only its names or schema.yaml call logits."""
    signature = policy.signature
    components = signature.components
    if components is None or signature.memory or signature.basis not in ("names", "schema"):
        return
    if not signature.is_value_based and all(part.kind == "categorical" for part in components):
        rows = policy.results(policy.answered(_common_rows(signature)))
        refuse_hidden_probabilities("saved_model.pb", components, rows, schema)


def _compiled(
    policy: TensorFlowPolicy, compilation: Compilation, *, is_forced: bool
) -> CompiledPolicy:
    """Return the policy as NumPy operations, after comparing its outputs with the graph's.

    Raises:
        NotCompiledError: saying why NumPy can't compute it.
    """
    signature = policy.signature
    assert signature.observation_width is not None, "load_policy has found it"
    if signature.components is None:
        raise NotCompiledError("its family is unknown")
    if compilation.network is None:
        raise NotCompiledError(compilation.reason)
    found = compilation.in_convolutions
    if found > _MOST_IN_CONVOLUTIONS and not is_forced:
        raise NotCompiledError(
            f"its convolutions take {found / 1e6:.1f} million multiplications an observation; "
            f"NumPy is slower above {_MOST_IN_CONVOLUTIONS / 1e6:.1f}"
        )
    network = compilation.network
    answered = policy.answered(_common_rows(signature))
    proof = hold_against_graph(
        network,
        policy.results,
        with_states(policy, answered, answered),
        with_states(policy, _extreme_rows(signature), answered),
        batch_sizes(found),
        refusal=tf.errors.OpError,
        library="TensorFlow",
    )
    reason = f"{len(network.steps)} operations, {proof.told('TensorFlow')}"
    return CompiledPolicy(replace(signature, engine="numpy", engine_reason=reason), network)


def _common_rows(signature: PolicySignature) -> NDArray[Any]:
    assert signature.observation_width is not None, "load_policy has found it"
    rows = probe_rows(signature.observation_width, signature.row_dtype)
    if signature.observation_dtype.startswith("uint"):
        # The cast of a negative number is not defined.
        rows = rows[(rows >= 0).all(axis=1)]
    return _answerable(rows, signature)


def _extreme_rows(signature: PolicySignature) -> NDArray[Any]:
    assert signature.observation_width is not None, "load_policy has found it"
    return extreme_rows(
        signature.observation_width, signature.observation_dtype, signature.row_dtype
    )


def _answerable(rows: NDArray[Any], signature: PolicySignature) -> NDArray[Any]:
    """Return rows that each input's own type holds: no request has others.

    The cast of a number beyond its type is not defined, and libraries differ there.
    """
    numbers = number_range(signature.observation_dtype, signature.observation_columns)
    found = rows.copy()
    for first, stop, known in numbers.columns:
        part = rows[:, first:stop].clip(known.low, known.high)
        found[:, first:stop] = np.rint(part) if known.is_integer else part
    return found


def _width(loaded: LoadedGraph, schema: ServerSchema | None) -> int:
    """Return an observation's width: by the signature, else the weights, else schema.yaml."""
    width = width_of(loaded.observation_input)
    if width is None:
        width = find_width(loaded)
    if width is None and schema is not None:
        width = schema.width
    if width is None:
        raise ModelError(
            "saved_model.pb: leaves the width of an observation open, and its weights don't tell "
            "it; list the observations "
            "in schema.yaml, every list with min_items and max_items alike"
        )
    return width


def _check_inputs(loaded: LoadedGraph) -> None:
    """Refuse inputs that can't be filled with zeros."""
    names = loaded.recurrent_inputs
    if names and not any(item.name in ("seq_lens", STEP_TYPE) for item in loaded.inputs):
        raise ModelError(
            f"saved_model.pb: needs the input '{names[0]}' beside the observation; export a policy "
            "whose observation is one "
            "flat vector"
        )
    for item in loaded.feeds.values():
        if item.name in names and (item.shape is None or None in item.shape[1:]):
            raise ModelError(
                f"saved_model.pb: the input '{item.name}' is a memory of open length, as attention "
                "has, and the file does "
                "not hold the length that the policy was trained with; export a policy without "
                "memory, or with an LSTM"
            )


def _identify(
    loaded: LoadedGraph, runner: GraphRunner, signature: PolicySignature
) -> tuple[LoadedGraph, PolicySignature, Compilation]:
    """Return the graph with the distribution's inputs as an output, the policy, and its network."""
    assert signature.observation_width is not None, "load_policy has found it"
    probe = GraphProbe(loaded, runner)
    rows = probe.answered(probe_rows(signature.observation_width, signature.row_dtype))
    some = rows[: loaded.only_batch or _MOST_ROWS_READ]
    is_certain = probe.is_certain(rows)
    structure = sampler = None
    for tensor in find_distribution_inputs(loaded, runner):
        shape = runner.evaluate(tensor, some, is_exploring=False).shape
        if len(shape) != 2:
            continue
        few = some if loaded.only_batch else some[: _rows_read(shape[1])]
        found = read_structure(loaded, runner, tensor, few, shape[1], is_certain=is_certain)
        if found.family is not None or found.is_output:
            structure = found
        if found.family is not None:
            # Each further look costs TensorFlow tens of milliseconds.
            break
    if structure is not None:
        listed = loaded.fetches.get(DISTRIBUTION_INPUTS, structure.root)
        # The output itself may check observations; an unlisted output, or another tensor, is new.
        inputs = listed if structure.is_output else structure.root
        runner.add_output(DISTRIBUTION_INPUTS, inputs)
        loaded = replace(loaded, fetches={**loaded.fetches, DISTRIBUTION_INPUTS: inputs})
        sampler = GraphSampler(runner, structure.root, rows[0])
    compilation = Compilation(None, "its family is unknown")
    if structure is not None and structure.family is not None:
        compilation = compile_network(loaded, DISTRIBUTION_INPUTS, signature.observation_width)
        mixing = structure.row_mixing or _row_mixing(loaded, runner, compilation, rows, signature)
        structure = replace(structure, row_mixing=mixing)
    evidence = GraphProbe(loaded, runner).gather(rows)
    known = replace(
        signature,
        action_outputs=evidence.actions or (structure.outputs if structure else None) or (),
        has_deterministic_action=evidence.deterministic is not None,
    )
    identified = identify_actions(loaded, evidence, structure, sampler, known)
    if identified.components is not None:
        identified = replace(identified, has_deterministic_action=True)
    return loaded, identified, compilation


def _rows_read(width: int) -> int:
    return next((rows for rows in _ROWS_READ if width % rows), _MOST_ROWS_READ)


def _has_odd_shape(loaded: LoadedGraph) -> bool:
    """Return whether observations come in a shape that the engine has no network for."""
    shape = loaded.observation_input.shape
    return (
        shape is None
        or len(shape) < 2
        or shape[0] is not None
        or shape[1:].count(None) > 1
        or (len(shape) > 2 and None in shape[1:])
    )


def _row_mixing(
    loaded: LoadedGraph,
    runner: GraphRunner,
    compilation: Compilation,
    rows: NDArray[Any],
    signature: PolicySignature,
) -> str | None:
    """Return why an observation may change the answer to another of its batch; None if none may."""
    if compilation.is_row_wise is not None:
        return None if compilation.is_row_wise else "its network joins the observations of a batch"
    # The recurrent layers of TensorFlow 2 keep their steps in lists, which are not followed.
    is_recurrent = bool(loaded.recurrent_inputs) and "TensorList" in compilation.reason
    if not _has_odd_shape(loaded) and not is_recurrent:
        return (
            "it is not known whether its network joins the observations of a batch "
            f"({compilation.reason})"
        )

    def graph(batch: NDArray[Any]) -> NDArray[Any]:
        return runner.run([DISTRIBUTION_INPUTS], batch)[0]

    others = _extreme_rows(signature)
    sizes = batch_sizes(compilation.in_convolutions)
    size = mixes_rows(graph, rows, others, sizes, refusal=tf.errors.OpError)
    return None if size is None else f"its answer is another in a batch of {size}"


def _described(
    signature: PolicySignature,
    schema: ServerSchema | None,
    loaded: LoadedGraph,
    *,
    has_own_bounds: bool,
) -> PolicySignature:
    findings = [*signature.findings]
    if loaded.observation_parts:
        parts = ", ".join(loaded.observation_parts)
        findings.append(f"an observation is the inputs {parts}, one after another")
    findings += describe_memory(loaded.memory)
    signature = replace(signature, findings=tuple(findings))
    return describe_signature(signature, schema, has_own_bounds=has_own_bounds)
