"""Turn a stable-baselines3 policy into saved_model.zip and a drafted schema.yaml.

The policy is read as the server reads it (`formats.stable_baselines3`), so that none of
stable-baselines3, PyTorch and gymnasium is needed, and no code of its files is run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from policy_server.errors import ExportError
from policy_server.files.atomic import write_whole
from policy_server.formats.model_files import files_of_model
from policy_server.formats.pickles.spaces import DictSpace, Space
from policy_server.formats.saved_model.mlp_policy import MlpPolicy, SquashedNormal
from policy_server.formats.saved_model.writing import export_policy_zip
from policy_server.formats.stable_baselines3 import StableBaselines3Format
from policy_server.formats.stable_baselines3.algorithms import algorithm_of
from policy_server.formats.stable_baselines3.file_names import STATISTICS_FILES
from policy_server.formats.stable_baselines3.vec_normalize import read_scaling, statistics_of
from policy_server.formats.stable_baselines3.zip_members import read_saved_policy
from policy_server.formats.unpacking import unpack_model
from policy_server.policy import Float32Array, Policy, distinct_names
from policy_server.sb3_export.describing import check_kind, describe_policy
from policy_server.sb3_export.draft import (
    draft_action_fields,
    draft_observation_fields,
    draft_schema,
    find_action_mask,
)
from policy_server.sb3_export.equality import prove_export, random_rows
from policy_server.schema import find_example_of, parse_schema

__all__ = ["export_policy"]

# More than any policy of stable-baselines3 that is no image's.
_MAX_BYTES = 2**30


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

    Understands PPO, A2C and TRPO (Discrete, MultiDiscrete and Box actions), MaskablePPO, DQN, SAC
    and TQC with MLP policies, of stable-baselines3 1.x too.

    Args:
        path: the .zip that `model.save` of stable-baselines3 wrote.
        output_dir: gets saved_model.zip and schema.yaml; made if missing.
        observation_names: names for the values of a Box observation in order, or a mapping from
            each name to how many values it has. The name `action_mask` is the mask of a
            maskable policy. The keys of a Dict observation are its names already.
        action_names: one name for each action component.
        vec_normalize: the statistics that `VecNormalize.save` wrote, if the policy was trained with
            them; None for the vec_normalize.pkl beside the policy, if there is one.
        is_unscaled: its observations were not scaled in training, whatever the file shows.
        overwrite: replace the files if they exist.
        on_note: is called with a line for each further fact about the two files.

    Returns:
        The paths of saved_model.zip and schema.yaml.

    Raises:
        ExportError: if the policy is of another kind, the names don't fit, a file exists, or the
            export answers otherwise than the policy. Nothing is written then.
        ModelError: if the policy's files can't be read, or the statistics are missing.
    """
    path, output_dir = Path(path), Path(output_dir)
    model_file, schema_file = output_dir / "saved_model.zip", output_dir / "schema.yaml"
    for file in (model_file, schema_file):
        if file.exists() and not overwrite and find_example_of(file) is None:
            raise ExportError(
                f"{file}: exists; give another folder, or overwrite it with --overwrite"
            )
    if not path.is_file():
        raise ExportError(
            f"{path}: not found; expected the .zip that stable-baselines3's model.save wrote"
        )
    with tempfile.TemporaryDirectory() as scratch:
        files = files_of_model(unpack_model(path, Path(scratch, "model"), max_bytes=_MAX_BYTES))
        if is_unscaled or vec_normalize is not None:
            files = {name: file for name, file in files.items() if name not in STATISTICS_FILES}
        if vec_normalize is not None:
            files[STATISTICS_FILES[0]] = Path(vec_normalize)
        draft = _read(files, path.name, observation_names, action_names, is_unscaled=is_unscaled)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        export_policy_zip(draft.described, model_file, prove=draft.prove)
        write_whole(schema_file, draft.schema, is_durable=True)
    except OSError as error:
        raise ExportError(f"{output_dir}: can't be written: {error.strerror or error}") from error
    for note in draft.notes:
        on_note(note)
    return [model_file, schema_file]


@dataclass(frozen=True)
class _Draft:
    """The contents of both files, and the policy that they have to answer as.

    Attributes:
        policy: the policy as the server computes it from its own file.
        described: the same, as the SavedModel will compute it.
        observations: float32[B, D], to compare both on.
        schema: the text of schema.yaml.
        notes: further facts, a line each.
    """

    policy: Policy
    described: MlpPolicy
    observations: Float32Array
    schema: str
    notes: tuple[str, ...]

    def prove(self, folder: Path) -> None:
        """Compare the policy with the one in a SavedModel's folder; see `prove_export`."""
        prove_export(folder, self.policy, parse_schema(self.schema), self.observations)


def _read(
    files: Mapping[str, Path],
    source: str,
    observation_names: Sequence[str] | Mapping[str, int] | None,
    action_names: Sequence[str] | None,
    *,
    is_unscaled: bool,
) -> _Draft:
    reader = StableBaselines3Format()
    if not reader.can_read(files):
        raise ExportError(f"{source}: is not what stable-baselines3's model.save writes")
    saved = read_saved_policy(files)
    algorithm = algorithm_of(saved)
    check_kind(saved)
    fields = draft_observation_fields(saved.observation_space, observation_names)
    scaling = read_scaling(
        files, saved, is_on_policy=algorithm.is_on_policy, is_unscaled=is_unscaled
    )
    described = describe_policy(
        saved,
        algorithm,
        scaling=scaling,
        mask_start=find_action_mask(fields, saved.action_space) if algorithm.is_maskable else None,
    )
    is_squashed = isinstance(described.distribution, SquashedNormal)
    actions = draft_action_fields(saved.action_space, action_names, is_normalized=is_squashed)
    schema = draft_schema(fields, actions, source=source)
    is_stated = is_unscaled or statistics_of(files) is not None
    has_unknown_scaling = not is_stated and not algorithm.is_on_policy
    return _Draft(
        reader.load(files, replace(parse_schema(schema), is_unscaled=is_unscaled), engine="numpy"),
        described,
        random_rows(saved.observation_space, described),
        schema,
        tuple(_notes(saved.observation_space, has_unknown_scaling=has_unknown_scaling)),
    )


def _notes(space: Space, *, has_unknown_scaling: bool) -> Iterator[str]:
    keys = list(space.parts) if isinstance(space, DictSpace) else []
    for key, name in zip(keys, distinct_names(keys), strict=True):
        if name != key:
            yield f"the observation {key!r} is called {name} in schema.yaml"
    if has_unknown_scaling:
        yield (
            "the file does not show whether VecNormalize scaled the observations in training; if "
            "it did, export again with its statistics: --normalization vec_normalize.pkl"
        )
