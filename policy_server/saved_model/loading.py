"""Loading: from a SavedModel's folder to a policy that answers, by the engine that suits it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from policy_server.errors import ModelError
from policy_server.numpy_network import CompiledPolicy, NetworkPolicy
from policy_server.policy import PolicySignature, check_schema_fits, describe_components
from policy_server.saved_model.bare import logits_output, read_from_schema
from policy_server.saved_model.compiling import (
    NotCompiledError,
    compile_network,
    largest_difference,
)
from policy_server.saved_model.evidence import gather_evidence, probe_rows
from policy_server.saved_model.graph import (
    ACTIONS,
    DISTRIBUTION_INPUTS,
    LoadedGraph,
    load_graph,
    width_of,
)
from policy_server.saved_model.identify import identify_actions
from policy_server.saved_model.network import find_width
from policy_server.saved_model.policy import TensorFlowPolicy
from policy_server.saved_model.runner import GraphRunner
from policy_server.schema import ServerSchema
from policy_server.settings import Engine

__all__ = ["LoadedPolicy", "load_policy"]

# TensorFlow's own convolutions are twice as fast above this many multiplications an observation.
_MOST_IN_CONVOLUTIONS = 1_000_000

LoadedPolicy = TensorFlowPolicy | NetworkPolicy


def load_policy(
    folder: Path, schema: ServerSchema | None = None, *, engine: Engine = "auto"
) -> LoadedPolicy:
    """Load the SavedModel in a folder, identify its family, prove it, and warm it up.

    Args:
        folder: holds saved_model.pb and variables/.
        schema: what schema.yaml says; it names actions, gives bounds, and says what a keras-only
            export leaves out.
        engine: `numpy` serves the network by NumPy, `tensorflow` by TensorFlow, `auto` by NumPy
            where that is proved equal and no slower.

    Returns:
        The policy, ready to answer.

    Raises:
        ModelError: if the file can't give a policy, or not by the engine that was asked for.
        SchemaError: if schema.yaml disagrees with the policy.
    """
    loaded = load_graph(folder)
    signature = PolicySignature(
        observation_width=_width(loaded, schema),
        observation_dtype=loaded.observation_input.dtype,
        inputs=loaded.inputs,
        outputs=loaded.outputs,
        action_outputs=(),
        components=None,
        recurrent_inputs=loaded.recurrent_inputs,
    )
    if schema is not None:
        # Before the policy runs: a wrong width has the clearer words here.
        check_schema_fits(replace(schema, discrete=None, tuple=None), signature)
    if any(item.name.startswith(ACTIONS) for item in loaded.outputs):
        _check_inputs(loaded)
        runner = GraphRunner(loaded, row_dtype=signature.row_dtype)
        signature, distribution = _identify(loaded, runner, signature), DISTRIBUTION_INPUTS
    else:
        output = logits_output(loaded)
        runner = GraphRunner(loaded, row_dtype=signature.row_dtype)
        signature, distribution = read_from_schema(signature, schema, output), output.name
    policy = TensorFlowPolicy(runner, _described(signature, schema), distribution=distribution)
    policy.warm_up()
    if engine == "tensorflow":
        policy.explain_engine("POLICY_SERVER_ENGINE asks for it")
        return policy
    try:
        compiled = _compiled(loaded, policy, distribution, is_forced=engine == "numpy")
    except NotCompiledError as error:
        if engine == "numpy":
            raise ModelError(
                f"saved_model.pb: can't be computed by NumPy: {error}; set POLICY_SERVER_ENGINE to "
                "auto or tensorflow"
            ) from error
        policy.explain_engine(str(error))
        return policy
    return NetworkPolicy(compiled)


def _compiled(
    loaded: LoadedGraph, policy: TensorFlowPolicy, distribution: str, *, is_forced: bool
) -> CompiledPolicy:
    """Return the policy as NumPy operations, proved to give what the graph gives.

    Raises:
        NotCompiledError: saying why there are none.
    """
    width = policy.signature.observation_width
    assert width is not None, "load_policy has found it"
    if policy.signature.components is None:
        raise NotCompiledError("its family is unknown")
    most = None if is_forced else _MOST_IN_CONVOLUTIONS
    network = compile_network(loaded, distribution, width, most_in_convolutions=most)
    rows = policy.answered(probe_rows(width, policy.signature.row_dtype))
    if policy.signature.observation_dtype.startswith("uint"):
        # What a negative number becomes is not defined.
        rows = rows[(rows >= 0).all(axis=1)]
    error = largest_difference(network, rows, policy.distribution_inputs(rows))
    reason = (
        f"{len(network.steps)} operations, equal to TensorFlow on {len(rows)} probes "
        f"(within {error:.1e})"
    )
    signature = replace(policy.signature, engine="numpy", engine_reason=reason)
    return CompiledPolicy(signature, network)


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
    """Refuse what zeros can't stand for."""
    names = loaded.recurrent_inputs
    if names and not any(item.name == "seq_lens" for item in loaded.inputs):
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
) -> PolicySignature:
    assert signature.observation_width is not None, "load_policy has found it"
    rows = probe_rows(signature.observation_width, signature.row_dtype)
    evidence = gather_evidence(loaded, runner, rows)
    known = replace(
        signature,
        action_outputs=evidence.actions,
        has_deterministic_action=evidence.deterministic is not None,
    )
    identified = identify_actions(loaded, evidence, known)
    if identified.components is None:
        return identified
    return replace(identified, has_deterministic_action=True)


def _described(signature: PolicySignature, schema: ServerSchema | None) -> PolicySignature:
    if signature.recurrent_inputs:
        text = "recurrent: every answer starts from the zero state, without memory of earlier ones"
        signature = replace(signature, findings=(*signature.findings, text))
    if schema is None:
        return signature
    check_schema_fits(schema, signature)
    if schema.actions is None or signature.components is None:
        return signature
    components = describe_components(signature.components, schema.actions, schema.source)
    return replace(signature, components=components)
