"""The signature of TF-Agents' PolicySaver, in the names that the other SavedModels have.

Its function `action` takes a time step (`0/step_type`, `0/reward`, `0/discount`, `0/observation`
or an input for each part of an observation) and the policy's state (`1/...`), and gives `action`,
`state/...` and what the policy adds under `info/`.

Source: TF-Agents `PolicySaver`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["DISCOUNT", "FILLED", "STATE", "STEP_TYPE", "translated"]

STEP_TYPE, DISCOUNT = "time_step/step_type", "time_step/discount"
FILLED = (STEP_TYPE, DISCOUNT, "time_step/reward")
"""The inputs that have one right value in service: each observation is a step within an episode,
whose state is zero when it begins. TF-Agents takes no state at a step that is called the first."""

STATE = "policy_state/"
"""The names of the inputs that carry a policy's state begin so."""
_STATE_AFTER = "state/"
_OBSERVATION = "0/observation"
_INPUTS = {
    "0/step_type": STEP_TYPE,
    "0/discount": DISCOUNT,
    "0/reward": "time_step/reward",
    _OBSERVATION: "observations",
}
_OUTPUTS = {
    "info/dist_params/logits": "action_dist_inputs",
    "info/log_probability": "action_logp",
}


def translated(signatures: Any) -> Any | None:  # noqa: ANN401 -- TensorFlow is untyped
    """Return the signature of a policy of TF-Agents; None where the file is none.

    Args:
        signatures: the SignatureDef of each name.
    """
    if "action" not in signatures:
        return None
    signature = signatures["action"]
    if "0/step_type" not in signature.inputs or not signature.outputs:
        return None
    result = type(signature)()
    for key, info in signature.inputs.items():
        result.inputs[_input_name(key)].CopyFrom(info)
    actions = sorted(key for key in signature.outputs if key.split("/")[0] == "action")
    for key, info in signature.outputs.items():
        name = _output_name(key, actions)
        if name is not None:
            result.outputs[name].CopyFrom(info)
    return result


def _output_name(key: str, actions: Sequence[str]) -> str | None:
    if key in actions:
        return f"actions_{actions.index(key)}"
    if key.startswith(_STATE_AFTER):
        return key
    return _OUTPUTS.get(key) if len(actions) == 1 else None


def _input_name(key: str) -> str:
    if key in _INPUTS:
        return _INPUTS[key]
    part, _, rest = key.partition("/")
    return rest.removeprefix("observation/") if part == "0" else f"{STATE}{rest}"
