"""The options of `export` in words, for `policy_server.sb3_export` and `onnx_export`."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from policy_server.commands.native_logs import hidden_native_logs
from policy_server.commands.policy_files import find_source, opened_model
from policy_server.errors import ExportError, UsageError
from policy_server.formats.finding import find_policy
from policy_server.formats.stable_baselines3.file_names import STATISTICS_FILES
from policy_server.installation import require
from policy_server.schema import ServerSchema, read_schema
from policy_server.settings import Settings

__all__ = ["default_folder", "export_onnx", "export_policy", "is_onnx", "parse_names"]

_NONE = "none"
_FORMATS = ("savedmodel", "onnx")
_ONNX_FILE = "policy.onnx"
# A start looks for policies in the server's folder and one level below it, not two.
_ONNX_FOLDER = "exports"


def default_folder(policy: Path, to: str) -> Path:
    """Return the folder for an export where none is named; it is named after the policy.

    Args:
        policy: the policy's file or folder.
        to: the format. A folder with an .onnx file is a policy, which the server's folder must not
            have beside its own; one with saved_model.zip is none.
    """
    name = policy.stem if policy.stem.strip(".") else policy.resolve().stem
    return Path(_ONNX_FOLDER, name) if to == "onnx" else Path(name)


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
    _check_other_folder(policy, folder)
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


def is_onnx(to: str, *, module: str | None, has_names: bool) -> bool:
    """Return whether ONNX is asked for, and not a SavedModel.

    Args:
        to: the format that is asked for.
        module: the name of a policy in a file of several, which is for ONNX.
        has_names: whether names are given, which are for a SavedModel.

    Raises:
        UsageError: if there is no such format, or an option is for the other.
    """
    if to not in _FORMATS:
        raise UsageError(f"--to: expected {' or '.join(_FORMATS)}, got {to!r}")
    if to == "onnx" and has_names:
        raise UsageError(
            "--observation-names and --action-names: are for --to savedmodel; an .onnx file has "
            "the names of the schema.yaml beside the policy"
        )
    if to != "onnx" and module is not None:
        raise UsageError("--module: is for --to onnx; leave it out")
    return to == "onnx"


def export_onnx(
    policy: Path,
    folder: Path,
    settings: Settings,
    *,
    module: str | None,
    normalization: str | None,
    overwrite: bool,
) -> Path:
    """Export any policy that NumPy computes as one .onnx file.

    Args:
        policy: a policy's zip, file or folder, or a folder that holds one; the schema.yaml beside
            it gives the names.
        folder: gets policy.onnx.
        settings: how much may be unpacked.
        module: the policy's name in a file that holds several; None for schema.yaml's, or the only
            one.
        normalization: as `export_policy` takes it.
        overwrite: replace the file if it exists.

    Returns:
        The path of policy.onnx.

    Raises:
        ExportError: if the policy can't be exported.
        ModelError: if there is no policy, or it can't be read.
        SchemaError: if schema.yaml is wrong, or does not fit the policy.
        MissingPackageError: if a package is missing that reads the policy or writes the file.
    """
    require("onnx", use="exporting to ONNX")
    target = folder / _ONNX_FILE
    _check_other_folder(policy, folder)
    if policy.is_dir():
        _check_other_folder(find_source(policy, settings), folder)
    _check_only_policy(target, settings)
    with opened_model(policy, settings) as (files, schema_path):
        schema = None if schema_path is None else read_schema(schema_path)
        if module is not None:
            schema = replace(schema or ServerSchema(), module=module)
        if normalization == _NONE:
            schema = replace(schema or ServerSchema(), is_unscaled=True)
        with hidden_native_logs(), _with_statistics(files, normalization) as source:
            # Imported here since it brings the package onnx, which few commands need.
            from policy_server.onnx_export import export_onnx as export

            export(source, schema, target, overwrite=overwrite)
    return target


def _check_other_folder(policy: Path, folder: Path) -> None:
    """Refuse to write beside a policy or into it, where two policies would lie afterwards."""
    own = policy if policy.is_dir() else policy.parent
    if own.resolve() == folder.resolve():
        raise ExportError(
            f"{os.path.relpath(folder)}: is the folder of the policy itself, and a folder with two "
            "can't be served; give another one with --output"
        )


def _check_only_policy(target: Path, settings: Settings) -> None:
    """Refuse a place where the server would find a second policy."""
    home, folder = settings.home.resolve(), target.parent.resolve()
    if home not in (folder, folder.parent) or target.exists():
        return
    served = find_policy(settings)
    if served is not None:
        raise ExportError(
            f"{target}: would be a second policy in the server's folder, beside {served}; give "
            "another folder with --output"
        )


@contextlib.contextmanager
def _with_statistics(files: Path, normalization: str | None) -> Iterator[Path]:
    """Give a folder with the policy's files, and those of VecNormalize that are named."""
    if normalization in (None, _NONE):
        yield files
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        try:
            shutil.copytree(files, folder)
            shutil.copyfile(normalization, folder / STATISTICS_FILES[0])
        except OSError as error:
            raise ExportError(f"{normalization}: can't be read: {error.strerror}") from error
        yield folder


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
