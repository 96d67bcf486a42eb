"""The schema.yaml that the command `schema` drafts from a model."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

from policy_server.access_keys import random_key
from policy_server.commands.drafted_observations import draft_observations
from policy_server.commands.policy_files import find_source, signature_of, unzipped_model
from policy_server.errors import ModelError, SchemaError, SeveralPoliciesError, printable
from policy_server.files.atomic import write_whole
from policy_server.policy import ActionComponent, PolicySignature, distinct_names
from policy_server.schema import (
    ServerSchema,
    can_stand_in_an_address,
    find_example_of,
    parse_schema_file,
)
from policy_server.settings import Settings

__all__ = ["draft_schema", "write_draft"]

_SOME_LABELS = 4
_UNKNOWN_MEANING = """\
# The file does not say what the network's output means. This draft takes it for the
# logits of one integer action. If it is something else, write that:
#   Q values: `values: q_values` below choices
#   several integer actions: an entry for each, with its choices
#   continuous: discrete: False, and in place of choices `values: action` for the action
#   itself, normal or squashed_normal for means followed by logs of deviations
"""
_HINTS = """\
# Give each value a name of its own, in the order of training, such as
#   speed: {type: float, description: in m/s, minimum: 0, maximum: 30, example: 12.5}
# Types: int, float, bool, List[int], List[float], List[bool].
"""
_AGENTS = """\
multi_agent:
  # The rule by which an agent gets its policy is a function of your own, which the file does not
  # hold. Here each agent has the policy of its name. Give the ids of your agents; for several that
  # share a policy a pattern, such as hunter_*.
"""


def draft_schema(
    path: Path | None,
    settings: Settings,
    *,
    module: str | None = None,
    folder: Path | None = None,
) -> str:
    """Write the text of a schema.yaml that fits a model.

    Args:
        path: a policy's zip, other file or folder, or a folder that holds one; None for the served
            policy.
        settings: the path of the served policy.
        module: the policy's name in a file that holds several; None for the only one, or for a team
            of all of them.
        folder: the one that the schema.yaml is for, from which a team's models are named; None for
            the server's.

    Returns:
        YAML with a random access key.

    Raises:
        ModelError: if there is no model, or it can't give a policy.
    """
    source = find_source(path, settings)
    home = settings.home if folder is None else folder
    with unzipped_model(source, settings) as files:
        try:
            text = _HINTS + _draft_policy(files, module, settings)
        except SeveralPoliciesError as several:
            if module is not None:
                raise
            text = _HINTS + _draft_team(files, _model_of(source, home), several.names, settings)
            text += "parameters:\n"
    text = (
        f"# Drafted from {printable(source.name)}.\n{text}  api_key: {json.dumps(random_key(18))}\n"
    )
    parse_schema_file(text)
    return text


def write_draft(text: str, file: Path, *, overwrite: bool) -> None:
    """Write a drafted schema.yaml.

    Args:
        text: its text.
        file: the file to write.
        overwrite: replace the file if it exists.

    Raises:
        SchemaError: if the file exists and is no example's, or can't be written.
    """
    if file.exists() and not overwrite and find_example_of(file) is None:
        raise SchemaError(f"{file}: exists; give another file, or overwrite it with --overwrite")
    try:
        write_whole(file, text, is_durable=True)
    except OSError as error:
        raise SchemaError(f"{file}: can't be written: {error.strerror or error}") from error


def _model_of(source: Path, folder: Path) -> str:
    """Return the path of a model as schema.yaml has it: from its own folder, if it lies below."""
    whole, home = source.resolve(), folder.resolve()
    return str(whole.relative_to(home) if whole.is_relative_to(home) else whole)


def _draft_team(folder: Path, model: str, names: Sequence[str], settings: Settings) -> str:
    """Return the sections of all policies of a file, and of the agents that have them."""
    policies, agents = "policies:\n", _AGENTS
    for index, module in enumerate(names):
        name = module if can_stand_in_an_address(module) else f"policy_{index}"
        policy = f"model: {json.dumps(model)}\n{_draft_policy(folder, module, settings)}"
        policies += f"  {name}:\n{textwrap.indent(policy, '    ')}"
        agents += f"  {json.dumps(module)}: {name}\n"
    return policies + agents


def _draft_policy(folder: Path, module: str | None, settings: Settings) -> str:
    """Return the sections about one policy; those of its parameters come last."""
    note = ""
    try:
        signature = signature_of(
            folder, None if module is None else ServerSchema(module=module), settings
        )
    except SeveralPoliciesError:
        raise
    except ModelError:
        if module is not None:
            raise
        # A file that holds the network only: the most common kind of policy is the draft.
        signature = signature_of(folder, ServerSchema(discrete=True), settings)
        note = _UNKNOWN_MEANING
    if signature.mask_name is not None:
        mask = printable(signature.mask_name)
        note += (
            f"# Beside the observation a request may have {mask}, the action mask:\n"
            f"# 1 or 0 for each of the {sum(signature.mask_sizes)} choices. If listed below, it is "
            "required.\n"
        )
    actions = signature.action_outputs
    is_discrete = all(action.is_integer for action in actions)
    chosen = "" if module is None else f"module: {json.dumps(module)}\n"
    return f"""\
{note}{chosen}observations:
{draft_observations(signature)}{_draft_actions(signature)}parameters:
  discrete: {is_discrete}
  tuple: {len(actions) > 1}
"""


def _draft_actions(signature: PolicySignature) -> str:
    parts = signature.components or ()
    if not parts:
        return ""
    names = ["action"] if len(parts) == 1 else [f"action_{index}" for index in range(len(parts))]
    known = [part.name for part in parts if part.name is not None]
    if len(set(known)) == len(parts):
        # A policy that describes itself.
        names = list(distinct_names(known))
    return "actions:\n" + "".join(map(_draft_action, names, parts))


def _draft_action(name: str, part: ActionComponent) -> str:
    if part.labels is not None and len(set(part.labels)) == len(part.labels):
        return f"  {name}:\n    labels: {json.dumps(part.labels, ensure_ascii=False)}\n"
    if part.kind == "categorical":
        some = ", ".join(f"choice_{index}" for index in range(min(part.size, _SOME_LABELS)))
        labels = some if part.size <= _SOME_LABELS else f"{some}, ..."
        return f"  {name}:\n    choices: {part.size}\n    # labels: [{labels}]\n"
    if part.is_integer:
        return f"  {name}:\n    description: an integer; give it labels, in order\n"
    dimensions = f"  {name}:\n    dimensions: {part.size}\n"
    if part.low is not None:
        return f"{dimensions}    # The policy's file has the bounds, in the environment's units.\n"
    low, high = [-1.0] * part.size, [1.0] * part.size
    return (
        f"{dimensions}"
        "    # The bounds in the environment's units, to which the policy's [-1, 1] is rescaled:\n"
        f"    # low: {low}\n    # high: {high}\n"
    )
