"""The options of `export` in words, for `policy_server.sb3_export`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from policy_server.commands.native_logs import hidden_native_logs
from policy_server.errors import UsageError
from policy_server.installation import require

__all__ = ["export_policy", "parse_names"]

_NONE = "none"


def export_policy(
    policy: Path,
    folder: Path,
    *,
    observation_names: str | None,
    action_names: str | None,
    normalization: str | None,
    overwrite: bool,
    on_note: Callable[[str], None],
) -> list[Path]:
    """Export a stable-baselines3 policy.

    Args:
        policy: the file that `model.save` wrote.
        folder: gets saved_model.zip and schema.yaml.
        observation_names: such as `speed,position:2`; None to draft them.
        action_names: such as `left,right`; None to draft them.
        normalization: the file that `VecNormalize.save` wrote, or `none` where the observations
            were not scaled; None to go by the policy's file.
        overwrite: replace the files if they exist.
        on_note: is called with a line for each further fact about the two files.

    Returns:
        The paths of saved_model.zip and schema.yaml.

    Raises:
        ExportError: if the policy can't be exported.
        MissingPackageError: if TensorFlow, which writes it, is not installed.
        UsageError: if the names can't be read.
    """
    observations = (
        None if observation_names is None else parse_names("observation-names", observation_names)
    )
    actions = None if action_names is None else list(parse_names("action-names", action_names))
    require("tensorflow", use="exporting a stable-baselines3 policy")
    with hidden_native_logs():
        # Imported here since it brings TensorFlow, which the other commands do without.
        from policy_server.sb3_export import export_policy as export

        return export(
            policy,
            folder,
            observation_names=observations,
            action_names=actions,
            vec_normalize=None if normalization in (None, _NONE) else Path(normalization),
            is_unscaled=normalization == _NONE,
            overwrite=overwrite,
            on_note=on_note,
        )


def parse_names(option: str, text: str) -> dict[str, int]:
    """Read a list of names.

    Args:
        option: the option's name, for messages.
        text: names with commas between them, each with a colon and its number of values if it has
            several.

    Returns:
        The number of values of each name, in order.

    Raises:
        UsageError: if a name is empty or given twice, or a number is no number.
    """
    names: dict[str, int] = {}
    for part in text.split(","):
        name, colon, count = part.strip().partition(":")
        if not name or name in names or (colon and not count.isdecimal()):
            raise UsageError(
                f"--{option}: expected names such as speed,position:2, each once, got {text!r}"
            )
        names[name] = int(count) if colon else 1
    return names
