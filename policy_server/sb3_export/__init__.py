"""Turn a stable-baselines3 policy into saved_model.zip and a drafted schema.yaml.

The only package that imports stable-baselines3, sb3-contrib and PyTorch (requirements-train.txt),
and only inside its functions, so that everything else works without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from policy_server.errors import ExportError
from policy_server.files.atomic import write_whole
from policy_server.formats.saved_model.writing import export_policy_zip
from policy_server.sb3_export.describing import describe_policy
from policy_server.sb3_export.draft import (
    draft_action_fields,
    draft_observation_fields,
    draft_schema,
    find_action_mask,
)
from policy_server.sb3_export.equality import prove_export
from policy_server.sb3_export.saved_policy import TrainedPolicy, read_policy
from policy_server.sb3_export.training_spaces import name_keys
from policy_server.schema import find_example_of

__all__ = ["export_policy"]


def export_policy(
    path: Path | str,
    output_dir: Path | str,
    *,
    observation_names: Sequence[str] | Mapping[str, int] | None = None,
    action_names: Sequence[str] | None = None,
    vec_normalize: Path | str | None = None,
    is_unscaled: bool = False,
    overwrite: bool = False,
    on_note: Callable[[str], None] = lambda _note: None,
) -> list[Path]:
    """Export a trained policy, and check that the export answers as the policy does.

    Understands PPO and A2C (Discrete, MultiDiscrete and Box actions), MaskablePPO, DQN and SAC with
    MLP policies, of stable-baselines3 1.x too. No code of either file is run: their pickles may
    only name classes and functions that are on a list.

    Args:
        path: the .zip that `model.save` of stable-baselines3 wrote.
        output_dir: gets saved_model.zip and schema.yaml; made if missing.
        observation_names: names for the values of a Box observation in order, or a mapping from
            each name to how many values it has. The name `action_mask` is the mask of a
            maskable policy. The keys of a Dict observation are its names already.
        action_names: one name for each action component.
        vec_normalize: the statistics that `VecNormalize.save` wrote, if the policy was trained with
            them.
        is_unscaled: its observations were not scaled in training, whatever the file shows.
        overwrite: replace the files if they exist.
        on_note: is called with a line for each further fact about the two files.

    Returns:
        The paths of saved_model.zip and schema.yaml.

    Raises:
        MissingPackageError: if training's packages are not installed.
        ExportError: if the policy is of another kind, the names don't fit, a file exists, or the
            export answers otherwise than the policy. Nothing is written then.
    """
    output_dir = Path(output_dir)
    model_file, schema_file = output_dir / "saved_model.zip", output_dir / "schema.yaml"
    for file in (model_file, schema_file):
        if file.exists() and not overwrite and find_example_of(file) is None:
            raise ExportError(
                f"{file}: exists; give another folder, or overwrite it with --overwrite"
            )
    trained = read_policy(
        Path(path),
        vec_normalize=None if vec_normalize is None else Path(vec_normalize),
        is_unscaled=is_unscaled,
    )
    fields = draft_observation_fields(trained.observation_space, observation_names)
    mask_start = find_action_mask(fields, trained.action_space) if trained.is_maskable else None
    described = describe_policy(trained, mask_start=mask_start)
    actions = draft_action_fields(
        trained.action_space, action_names, is_normalized=trained.is_squashed
    )
    schema = draft_schema(fields, actions, source=Path(path).name)

    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        export_policy_zip(
            described, model_file, prove=lambda folder: prove_export(folder, trained, described)
        )
        write_whole(schema_file, schema, is_durable=True)
    except OSError as error:
        raise ExportError(f"{output_dir}: can't be written: {error.strerror or error}") from error
    for note in _notes(trained):
        on_note(note)
    return [model_file, schema_file]


def _notes(trained: TrainedPolicy) -> Iterator[str]:
    keys = list(getattr(trained.observation_space, "spaces", ()))
    for key, name in name_keys(keys).items():
        if name != key:
            yield f"the observation {key!r} is called {name} in schema.yaml"
    if not trained.is_scaling_known:
        yield (
            "the file does not show whether VecNormalize scaled the observations in training; if "
            "it did, export again with its statistics: --normalization vec_normalize.pkl"
        )
