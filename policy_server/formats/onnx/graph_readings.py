"""The meaning of a graph's inputs and outputs: from its own metadata, or from what it shows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from policy_server.errors import ModelError, SchemaError
from policy_server.formats.onnx.action_outputs import Actions, read_actions
from policy_server.formats.onnx.answer_checks import (
    checked_actions,
    flags_beyond_clearing,
    needs_mask_itself,
)
from policy_server.formats.onnx.described_graph import (
    described_actions,
    described_roles,
    described_signature,
)
from policy_server.formats.onnx.graph_runs import GraphRuns, RowFunction
from policy_server.formats.onnx.graph_view import GraphView
from policy_server.formats.onnx.kept_bounds import KeptBounds
from policy_server.formats.onnx.leapp import Description
from policy_server.formats.onnx.model_file import OnnxModel
from policy_server.formats.onnx.observed_inputs import check_places
from policy_server.formats.onnx.plan import Piece, Plan
from policy_server.formats.onnx.policy_metadata import POLICY_KEY, VECTORS_KEY, PolicyDocument
from policy_server.formats.onnx.random_nodes import RandomNodes
from policy_server.formats.onnx.roles import Roles, find_roles
from policy_server.formats.onnx.state_pairs import look_alikes
from policy_server.formats.row_types import common_dtype, mixed_columns
from policy_server.formats.scaled_actions import KeptPart, with_kept_bounds
from policy_server.policy import PolicySignature
from policy_server.schema import ServerSchema
from policy_server.schema_fit import check_schema_fits, describe_signature

__all__ = ["Reading", "read_by_graph", "read_by_metadata"]

_SHOWN_NAMES = 8


@dataclass(frozen=True)
class Reading:
    """A graph with the meaning of its inputs and outputs.

    Attributes:
        graph: the graph, which a runtime computes.
        plan: its inputs, and the tensors that make the distribution and the state after a step.
        function: the plan's function, as the runtime computes it.
        signature: the policy's signature, with the words of schema.yaml.
    """

    graph: GraphRuns
    plan: Plan
    function: RowFunction
    signature: PolicySignature


def read_by_graph(
    model: OnnxModel, description: Description | None, schema: ServerSchema | None
) -> Reading:
    """Read a graph by its operations and names, by a description beside it, and by schema.yaml.

    Args:
        model: the graph.
        description: the YAML beside it; None for none.
        schema: the contents of schema.yaml; None where there is none.

    Raises:
        ModelError: if nothing tells the meaning of an input or output.
        SchemaError: if schema.yaml disagrees with the graph.
    """
    flow = None if description is None else description.flow
    roles, masks = find_roles(model, schema, flow=flow), None
    if roles.mask is not None and _needs_mask_itself(model, roles, schema):
        masks = ()
        roles = find_roles(model, schema, flow=flow, masks=masks)
    if roles.flags and (observed := _flags_beyond_clearing(model, roles, schema)):
        roles = find_roles(model, schema, flow=flow, masks=masks, observed=observed)
    _check_width(roles, schema)
    _check_places(model, roles, schema)
    graph = GraphRuns(model, roles)
    # A graph that can't be run is refused before it is looked into.
    graph.measure([item.name for item in model.outputs])
    actions = read_actions(model, roles, schema, graph.measure)
    plan = _plan(roles, actions)
    _refuse_random(graph, plan)
    function = graph.function(plan)
    actions = checked_actions(graph, plan, actions, function, schema)
    signature = _signature(model, roles, actions)
    if description is not None:
        signature = replace(signature, findings=(*signature.findings, description.finding))
    bounded = _without_rescaling(graph, actions, schema)
    signature = describe_signature(signature, bounded, has_own_bounds=actions.has_own_bounds)
    return Reading(graph, plan, function, signature)


def _without_rescaling(
    graph: GraphRuns, actions: Actions, schema: ServerSchema | None
) -> ServerSchema | None:
    """Return schema.yaml, where bounds that a scaled tanh or a clipping keeps rescale nothing."""
    view = GraphView(
        graph.model,
        lambda name: graph.measure([name])[name].shape,
        lambda name: graph.measure([name])[name].has_integer_type,
        RandomNodes(graph.model, graph.roles.fixed),
    )
    kept = KeptBounds(graph.model, view, lambda name: graph.measure([name])[name].rows)
    parts = [
        kept.part(piece.tensor, piece.width) if piece.is_plain else KeptPart(piece.width, None)
        for piece in actions.pieces
    ]
    return with_kept_bounds(actions.components, parts, schema)


def read_by_metadata(
    model: OnnxModel, document: PolicyDocument, schema: ServerSchema | None
) -> Reading:
    """Read a graph by the description of its policy in its own metadata.

    Args:
        model: the graph.
        document: the description.
        schema: the contents of schema.yaml; None where there is none.

    Raises:
        ModelError: if the description is of another graph.
        SchemaError: if schema.yaml disagrees with the policy.
    """
    roles = described_roles(model, document)
    if not document.observation_parts():
        # Parts are held against schema.yaml by their own names.
        _check_places(model, roles, schema)
    graph = GraphRuns(model, roles)
    actions = described_actions(model, document, graph.measure)
    plan = _plan(roles, actions)
    _refuse_random(graph, plan)
    if roles.flags and (beyond := flags_beyond_clearing(graph, plan)):
        raise ModelError(
            f"{model.name}: {POLICY_KEY}: observation.inputs leaves {beyond[0]!r} out, which does "
            "more than clear the state; name it among them"
        )
    if needs_mask_itself(graph, plan, actions.components):
        raise ModelError(
            f"{model.name}: {POLICY_KEY}: mask is {document.mask!r}, which changes more than the "
            "logits of integer actions; name it among observation.inputs instead, or export the "
            "masked logits"
        )
    signature = described_signature(model, document, _signature(model, roles, actions))
    signature = describe_signature(signature, schema, has_own_bounds=True)
    return Reading(graph, plan, graph.function(plan), signature)


def _needs_mask_itself(model: OnnxModel, roles: Roles, schema: ServerSchema | None) -> bool:
    """Return whether a mask is a part of the observation, since it changes more than logits."""
    graph, actions = _tried(model, roles, schema)
    return needs_mask_itself(graph, _plan(roles, actions), actions.components)


def _flags_beyond_clearing(
    model: OnnxModel, roles: Roles, schema: ServerSchema | None
) -> list[str]:
    """Return the flags that are parts of the observation, since they do more than clear a state."""
    graph, actions = _tried(model, roles, schema)
    return flags_beyond_clearing(graph, _plan(roles, actions))


def _tried(
    model: OnnxModel, roles: Roles, schema: ServerSchema | None
) -> tuple[GraphRuns, Actions]:
    """Return a graph that runs, and its actions as some roles of its inputs have them."""
    graph = GraphRuns(model, roles)
    graph.measure([item.name for item in model.outputs])
    return graph, read_actions(model, roles, schema, graph.measure)


def _check_width(roles: Roles, schema: ServerSchema | None) -> None:
    """Hold schema.yaml's width against the graph's: a wrong one has the clearer words here."""
    if schema is None:
        return
    known = PolicySignature(
        observation_width=roles.observation_width,
        observation_dtype="float32",
        inputs=(),
        outputs=(),
        action_outputs=(),
        components=None,
    )
    mask = None if roles.mask is None else roles.mask.name
    if mask is not None and schema.observations is not None:
        kept = tuple(item for item in schema.observations if item.name != mask)
        schema = replace(schema, observations=kept)
    try:
        check_schema_fits(replace(schema, discrete=None, tuple=None), known)
    except SchemaError as error:
        if not roles.observed_masks:
            raise
        raise SchemaError(f"{error.message}; {_mask_words(roles)}") from error


def _mask_words(roles: Roles) -> str:
    names = " and ".join(map(repr, roles.observed_masks))
    is_one = len(roles.observed_masks) == 1
    return (
        f"the graph's {names} {'is a part' if is_one else 'are parts'} of the observation, as more "
        "than logits depends on it; export the masked logits for a mask beside the observation"
    )


def _check_places(model: OnnxModel, roles: Roles, schema: ServerSchema | None) -> None:
    widths = {feed.name: feed.width for feed in roles.feeds}
    check_places(
        {item.name: widths[item.name] for item in roles.observations},
        schema,
        None if roles.mask is None else roles.mask.name,
        subject=model.name,
    )


def _plan(roles: Roles, actions: Actions) -> Plan:
    widths = {feed.name: feed for feed in roles.feeds}
    states = [
        Piece(
            pair.after, widths[pair.before.name].width, rows_axis=widths[pair.before.name].rows_axis
        )
        for pair in roles.states
    ]
    memory = sum(piece.width for piece in states)
    return Plan(roles.observation_width + memory, roles.feeds, (*actions.pieces, *states))


def _refuse_random(graph: GraphRuns, plan: Plan) -> None:
    """Refuse what is read of a graph, such as a state, where each call gives other numbers."""
    random = RandomNodes(graph.model, graph.roles.fixed)
    for tensor in (piece.tensor for piece in plan.pieces):
        if nodes := random.before(tensor):
            raise ModelError(
                f"{graph.model.name}: its {tensor!r} depends on the random numbers of a "
                f"{nodes[0].operator}, and would be another at each call; export it in evaluation "
                "mode, without draws"
            )


def _signature(model: OnnxModel, roles: Roles, actions: Actions) -> PolicySignature:
    widths = {feed.name: feed.width for feed in roles.feeds}
    columns = tuple((item.dtype, widths[item.name]) for item in roles.observations)
    has_mask = roles.mask is not None and any(
        part.kind == "categorical" for part in actions.components
    )
    return PolicySignature(
        observation_width=roles.observation_width,
        observation_dtype=common_dtype([dtype for dtype, _ in columns]),
        observation_columns=mixed_columns(columns),
        inputs=model.inputs,
        outputs=model.outputs,
        action_outputs=actions.outputs,
        components=actions.components,
        is_value_based=actions.is_value_based,
        basis=actions.basis,
        memory=roles.memory,
        mask_name=roles.mask.name if roles.mask is not None and has_mask else None,
        findings=(*_read(model), *actions.findings, *_assumed(model, roles)),
    )


def _read(model: OnnxModel) -> list[str]:
    found = [f"read: the graph of {model.producer or 'an unknown exporter'}, opset {model.opset}"]
    others = sorted(model.metadata.keys() - {POLICY_KEY, VECTORS_KEY})
    if others:
        names = ", ".join(others[:_SHOWN_NAMES])
        found.append(f"its metadata ({names}) describe the environment, and change no answer")
    return found


def _assumed(model: OnnxModel, roles: Roles) -> list[str]:
    found = []
    if len(roles.observations) > 1:
        names = ", ".join(item.name for item in roles.observations)
        found.append(f"an observation is the inputs {names}, one after another")
    if roles.observed_masks:
        found.append(_mask_words(roles))
    observed = {item.name for item in roles.observations}
    found += [
        f"the input {pair.before.name} is an observation, and no state that {pair.after} follows; "
        "name them h_in and h_out if they are one"
        for pair in look_alikes(model)
        if pair.before.name in observed
    ]
    found += [
        f"the input {flag.name!r} is filled with {flag.value:g}, as for a step that goes on: the "
        "graph clears the state by it, and an episode begins with the zero state"
        for flag in roles.flags
    ]
    found += [
        f"the input {flag.name!r} is a part of the observation: it does more than clear the state, "
        "such as setting a trained first one, or clears it at another number than its name says; "
        "send it with each step as in training"
        for flag in roles.observed_flags
    ]
    if roles.memory:
        pairs = ", ".join(f"{pair.after} to {pair.before.name}" for pair in roles.states)
        found.append(f"a step's state goes from {pairs} of the next step")
        found.append("recurrent: every answer starts from the zero state")
    return found
