"""Keras-only exports (Ray after 2.0.1): the network without its action distribution.

Such a file does not tell the meaning of the network's output, so schema.yaml has to: `discrete`,
`tuple` and the `actions` section. A network that is certainly no policy (a recurrent trunk, a layer
of features, only a value) is refused in plain words.
"""

from __future__ import annotations

from dataclasses import replace

from policy_server.errors import ModelError
from policy_server.formats.saved_model.graph import DISTRIBUTION_INPUTS, Q_VALUES, LoadedGraph
from policy_server.formats.saved_model.weights import is_feature_layer, is_untrained
from policy_server.policy import (
    ActionComponent,
    ActionOutput,
    ComponentKind,
    PolicySignature,
    SignatureTensor,
)
from policy_server.schema import ServerSchema

__all__ = [
    "LOGITS_NAMES",
    "RLLIB_OUTPUTS",
    "check_inputs",
    "is_value",
    "logits_output",
    "read_from_schema",
    "refuse_untrained",
]

_RECURRENT_WORDS = ("state", "seq_len", "Placeholder", "memory")
_HARMLESS_INPUTS = ("is_training", "timestep")
LOGITS_NAMES = (DISTRIBUTION_INPUTS, "logits", "fc_out", Q_VALUES)
"""The outputs of RLlib's networks, and of those made like them, that hold logits or Q values."""
RLLIB_OUTPUTS = frozenset({"fc_out", "value_out"})
"""The names that RLlib's own networks give their outputs."""
_ASK_AGAIN = (
    "Ray 2.1 to 2.9 export the network alone; train and export with Ray 2.0.1 or older and "
    "framework 'tf', whose files hold the whole policy"
)
_NAME_IT = f"give the logits' output the name {DISTRIBUTION_INPUTS}, or, with RLlib: {_ASK_AGAIN}"


def logits_output(loaded: LoadedGraph) -> SignatureTensor:
    """Return the output that can be the distribution's inputs: the only one that is not the value.

    Args:
        loaded: the frozen graph, which has no `actions_*` outputs.

    Returns:
        The output.

    Raises:
        ModelError: if none or several can be, or if the network is a recurrent or feature trunk.
    """
    check_inputs(loaded)
    chosen, width = _candidate(loaded)
    if is_feature_layer(loaded, chosen.name):
        raise ModelError(_about_features(loaded, f"{chosen.name} ({width} wide)"))
    refuse_untrained(loaded)
    return chosen


def refuse_untrained(loaded: LoadedGraph) -> None:
    """Refuse a network of RLlib's whose weights are those that training started from.

    Args:
        loaded: the frozen graph.

    Raises:
        ModelError: if it is one.
    """
    if is_untrained(loaded):
        raise ModelError(
            "saved_model.pb: holds the weights that training started from, not the trained ones "
            "(Ray after 2.0.1 writes "
            "them with framework 'tf'); export inside `with policy.get_session().as_default():`, "
            "or train with framework 'tf2'"
        )


def _about_features(loaded: LoadedGraph, output: str) -> str:
    if RLLIB_OUTPUTS.isdisjoint(item.name for item in loaded.outputs):
        return (
            f"saved_model.pb: the output {output} comes out of an activation, or another output is "
            "computed from it, as with features and probabilities; expected action logits: export "
            "the layer ahead of it"
        )
    return (
        f"saved_model.pb: the output {output} is a layer of features, not action logits: only the "
        f"trunk of the policy was exported; {_ASK_AGAIN}"
    )


def check_inputs(loaded: LoadedGraph) -> None:
    """Refuse a network that takes more than one observation.

    Args:
        loaded: the frozen graph.

    Raises:
        ModelError: if it has states, or other inputs whose values can't be known.
    """
    others = [item.name for item in loaded.feeds.values() if item.name not in _HARMLESS_INPUTS]
    if any(word in name for name in others for word in _RECURRENT_WORDS):
        raise ModelError(
            "saved_model.pb: holds only the recurrent trunk of a policy (inputs "
            f"{', '.join(others)}), "
            f"which gives no actions; {_ASK_AGAIN}"
        )
    if others:
        raise ModelError(
            f"saved_model.pb: needs the inputs {', '.join(others)} beside the observation, and its "
            "values can't be known; export a network whose only input is one flat observation"
        )


def _candidate(loaded: LoadedGraph) -> tuple[SignatureTensor, int]:
    matrices = [item for item in loaded.outputs if item.shape is not None and len(item.shape) == 2]
    candidates = [item for item in matrices if not is_value(item)]
    if not candidates:
        found = ", ".join(item.name for item in loaded.outputs)
        raise ModelError(
            f"saved_model.pb: no output can be the action logits, got {found}; expected one of the "
            f"shape (N, K) beside the value; {_NAME_IT}"
        )
    named = [item for item in candidates if item.name in LOGITS_NAMES]
    chosen = named if len(candidates) > 1 else candidates
    if len(chosen) != 1:
        found = ", ".join(item.name for item in candidates)
        raise ModelError(
            f"saved_model.pb: several outputs can be the action logits, got {found}; {_NAME_IT}"
        )
    width = chosen[0].shape[1] if chosen[0].shape else None
    if width is None:
        raise ModelError(
            f"saved_model.pb: the output {chosen[0].name} has no fixed width, so it can't be read; "
            "export the network with a signature whose outputs have their sizes"
        )
    return chosen[0], width


def is_value(item: SignatureTensor) -> bool:
    """Return whether an output is called as RLlib calls the value of a state.

    Args:
        item: the output.
    """
    name = item.name.lower()
    return (
        name.startswith(("value", "vf_"))
        or name.endswith(("value_out", "vf_preds"))
        or name == "vf"
    )


def read_from_schema(
    signature: PolicySignature, schema: ServerSchema | None, output: SignatureTensor
) -> PolicySignature:
    """Give the network's output the meaning that schema.yaml states.

    Args:
        signature: the signature without components.
        schema: the contents of schema.yaml; None where there is none.
        output: the output that holds the distribution's inputs.

    Returns:
        The signature with components, which schema.yaml states and nothing in the file confirms.

    Raises:
        ModelError: if schema.yaml does not say enough, or contradicts the output's width.
    """
    width = output.shape[1] if output.shape is not None else None
    assert width is not None, "logits_output has looked"
    schema = schema or ServerSchema()
    parts = _stated_parts(schema, width) or [_single_part(schema, width, output.name)]
    components: list[ActionComponent] = []
    first_input = first_column = 0
    for is_integer, size in parts:
        kind: ComponentKind = "categorical" if is_integer else "normal"
        part = ActionComponent(kind, size, first_input, first_column)
        components.append(part)
        first_input += part.inputs
        first_column += part.columns
    if first_input != width:
        raise ModelError(
            f"saved_model.pb: the output {output.name} is {width} wide, schema.yaml's actions need "
            f"{first_input}; mend their choices and dimensions"
        )
    actions = tuple(
        ActionOutput(f"actions_{index}", is_integer, part.columns, not is_integer)
        for index, ((is_integer, _), part) in enumerate(zip(parts, components, strict=True))
    )
    known = replace(
        signature,
        action_outputs=actions,
        components=tuple(components),
        is_value_based=output.name == Q_VALUES,
        basis="schema",
    )
    source = "its name tells" if output.name == Q_VALUES else f"{schema.source} states"
    found = (
        f"the file holds the network only: its output {output.name} is read as {known.family}, as "
        f"{source}"
    )
    proof = "sampling is ours; there is nothing in the file to prove it with"
    return replace(known, findings=(found, proof))


def _stated_parts(schema: ServerSchema, width: int) -> list[tuple[bool, int]] | None:
    """Return (is integer, size) for each action, where the `actions` section gives all sizes."""
    if schema.actions is None or (len(schema.actions) == 1 and not schema.tuple):
        return None
    parts = []
    for action in schema.actions:
        dimensions = action.dimensions or (len(action.low) if action.low is not None else None)
        if action.choices is None and dimensions is None:
            raise ModelError(
                f"{schema.source}: actions.{action.name}: this model's file does not hold the size "
                f"of its {len(schema.actions)} "
                f"actions, {width} values together; give 'choices' (integer) or 'dimensions' "
                "(continuous)"
            )
        parts.append(
            (True, action.choices) if action.choices is not None else (False, dimensions or 1)
        )
    return parts


def _single_part(schema: ServerSchema, width: int, name: str) -> tuple[bool, int]:
    if schema.tuple:
        raise ModelError(
            f"saved_model.pb: holds the network only, without the sizes of its actions ({width} "
            "values together); "
            f"list them under 'actions' in {schema.source} with 'choices' or 'dimensions', or "
            f"{_ASK_AGAIN}"
        )
    is_discrete = schema.discrete
    if is_discrete is None and schema.actions is not None:
        is_discrete = schema.actions[0].choices is not None
    if is_discrete is None and name == Q_VALUES:
        return True, width
    if is_discrete is None:
        continuous = (
            f", or {width // 2} continuous values (discrete: False)" if width % 2 == 0 else ""
        )
        raise ModelError(
            f"{schema.source}: parameters.discrete: is missing, and this model's file does not say "
            f"what its output {name} ({width} wide) means: one action of {width} integer choices "
            f"(discrete: True){continuous}, or several actions (tuple: True, and 'actions' with "
            "the choices or dimensions of each); state it"
        )
    if not is_discrete and width % 2:
        raise ModelError(
            f"{schema.source}: parameters.discrete: is False, but the output {name} is {width} "
            "wide, which can't be "
            "mean and standard deviation; set it to True"
        )
    return (True, width) if is_discrete else (False, width // 2)
