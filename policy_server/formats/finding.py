"""The policy that a server's folder holds: a zip or another file of any name, or a folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from policy_server.errors import ModelError
from policy_server.files.regular import check_system, is_there
from policy_server.formats.known_formats import FORMATS, Format, expected_formats, format_of
from policy_server.formats.model_files import files_of_model, may_be_looked_at, named_folder
from policy_server.formats.recognition import describe_file, describe_names
from policy_server.formats.unpacking import FolderCheck, choose_root, format_of_file, unpack_model
from policy_server.installation import command_for
from policy_server.settings import Settings

__all__ = [
    "describe_others",
    "find_model",
    "find_policy",
    "format_of_folder",
    "has_policy",
    "policy_at",
    "prepare_model",
    "prepare_policy",
    "served_names",
]

logger = logging.getLogger(__name__)

_SOME_FILES = 5
# The names under which training libraries write their files: others in the folder are no policy.
_ONE_FILE = (".keras", ".onnx")
_SUFFIXES = frozenset(
    (
        *(
            ".bin",
            ".ckpt",
            ".cleanrl_model",
            ".h5",
            ".joblib",
            ".keras",
            ".msgpack",
            ".npz",
            ".onnx",
            ".pb",
        ),
        *(".pickle", ".pkl", ".pt", ".pt2", ".pth", ".safetensors", ".tflite"),
        *(".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zst"),
    )
)


@dataclass(frozen=True)
class _Candidate:
    """A zip, another file or a folder that holds a policy."""

    path: Path
    form: Format


def prepare_model(
    settings: Settings,
    *,
    formats: Sequence[Format] = FORMATS,
    check: FolderCheck = lambda _folder: None,
) -> Path:
    """Make sure that the policy of the server's folder lies unzipped.

    Args:
        settings: the folder, and how much may be unpacked.
        formats: those that may read the policy.
        check: as `unpack_model` takes it.

    Returns:
        The folder that holds the policy's files, such as saved_model.pb: `models/` for a zip or
        another file.

    Raises:
        ModelError: if there is no policy or more than one, or its zip is refused.
        PolicyServerError: as `check` raises it.
    """
    found = find_policy(settings, formats=formats)
    if found is None:
        raise ModelError(
            describe_others(settings, formats=formats) or _nothing_found(settings, formats)
        )
    if found.is_dir() and found != settings.zip_path:
        if found.is_relative_to(settings.models_path):
            _tell_passed_over(settings, formats)
        return found
    most, target = settings.max_unpacked_bytes, settings.models_path
    return unpack_model(found, target, max_bytes=most, formats=formats, check=check)


def prepare_policy(
    path: Path,
    target: Path,
    settings: Settings,
    *,
    formats: Sequence[Format] = FORMATS,
    check: FolderCheck = lambda _folder: None,
) -> Path:
    """Make sure that the policy of a file or folder lies unzipped.

    Args:
        path: a zip or another file, or a folder that is or holds one policy.
        target: the folder that a file is unpacked to.
        settings: how much may be unpacked.
        formats: those that may read the policy.
        check: as `unpack_model` takes it.

    Returns:
        The folder that holds the policy's files.

    Raises:
        ModelError: if there is no policy or more than one, or the zip is refused.
        PolicyServerError: as `check` raises it.
    """
    if not is_there(path):
        given = _as_given(path, settings)
        raise ModelError(f"{given}: not found; expected {expected_formats(formats)}, or its zip")
    found: Path | None = path
    if path.is_dir():
        found = policy_at(path, settings, formats=formats) or find_model(path, formats=formats)
    if found is None:
        seems = _seeming_folder(path, settings, formats) or "a folder without a policy"
        folder = named_folder(_as_given(path, settings))
        raise ModelError(f"{folder}: is {seems}; expected {expected_formats(formats)}")
    if found.is_dir():
        return found
    most = settings.max_unpacked_bytes
    return unpack_model(found, target, max_bytes=most, formats=formats, check=check)


def find_policy(settings: Settings, *, formats: Sequence[Format] = FORMATS) -> Path | None:
    """Return the zip, other file or folder that a start would serve.

    Candidates are the files of the server's folder that hold a policy by their contents and, one
    level below it, the folders whose files a format reads. `models/` is one only where there is no
    such file, since files are unpacked there.
    Beside saved_model.zip a policy of the same format is taken for another version of it, such as
    the folder that was zipped, and left alone.

    Args:
        settings: the folder, and how much a zip may unpack to.
        formats: those that may read the policy.

    Returns:
        The path; None where there is no policy. A saved_model.zip that can't be read is returned
        too, so that its fault is told when it is unpacked.

    Raises:
        ModelError: if there is more than one candidate, or a disk fails to give a file that may be
            one: see `_candidates`.
    """
    first = settings.zip_path
    has_first = is_there(first)
    candidates = _candidates(settings, formats)
    if has_first:
        own = next((item for item in candidates if item.path == first), None)
        if own is None:
            return first
        candidates = [own, *(item for item in candidates if item.form is not own.form)]
    elif not any(item.path.is_file() for item in candidates):
        candidates.extend(_unzipped(settings, formats))
    if len(candidates) > 1:
        names = ", ".join(_shown(item) for item in candidates)
        place = named_folder(settings.home)
        raise ModelError(f"{place}: holds {len(candidates)} policies ({names}); keep one")
    return candidates[0].path if candidates else None


def policy_at(
    folder: Path, settings: Settings, *, formats: Sequence[Format] = FORMATS
) -> Path | None:
    """Return the policy that a folder is, or the only one that lies in it; None for none.

    Args:
        folder: such as an RLlib checkpoint, or a folder with policy.onnx and schema.yaml.
        settings: how much a zip may unpack to.
        formats: those that may read the policy.

    Raises:
        ModelError: as `find_policy`.
    """
    home = settings.model_copy(update={"home": folder})
    is_policy = format_of_folder(folder, formats) is not None
    if is_policy and not any(item.path.is_file() for item in _candidates(home, formats)):
        return folder
    return find_policy(home, formats=formats)


def has_policy(settings: Settings) -> bool:
    """Return whether a start would have a policy: on disk, or fetched from an address.

    Args:
        settings: where it lies or comes from.

    Raises:
        ModelError: as `find_policy`.
    """
    return settings.model_uri is not None or find_policy(settings) is not None


def served_names(settings: Settings) -> list[str]:
    """Return the names of the files in the server's folder that a start would read as the policy.

    These are the files that hold a policy, and those that belong to them, such as
    vec_normalize.pkl; a folder's files are none.

    Args:
        settings: the folder, and how much a zip may unpack to.
    """
    found = [item for item in _candidates(settings, FORMATS) if item.path.is_file()]
    beside = [name for item in found for name in item.form.beside(item.path.name)]
    return sorted({item.path.name for item in found} | set(beside))


def describe_others(settings: Settings, *, formats: Sequence[Format] = FORMATS) -> str | None:
    """Return the message for a folder whose files seem to be a policy, and can't be served.

    An example is `home: holds no policy, but page.zip (a web page); expected a TensorFlow
    SavedModel, zipped or not`.

    Args:
        settings: the folder, and how much a zip may unpack to.
        formats: those that may read a policy.

    Returns:
        The message; None where nothing in the folder seems to be a policy.
    """
    home, given = settings.home, named_folder(settings.given_folder)
    is_one_file = any(path.suffix.lower() in _ONE_FILE for path in _entries(home))
    if format_of_folder(home, formats) is not None and not is_one_file:
        return (
            f"{given}: holds the files of a policy beside others; move them to a folder of their "
            f"own, such as {_as_given(settings.models_path, settings)}"
        )
    seen = _seeming_policies(_entries(home), settings, formats)
    if not seen:
        return None
    found, expected = ", ".join(seen[:_SOME_FILES]), expected_formats(formats)
    return f"{given}: holds no policy, but {found}; expected {expected}, zipped or not"


def _nothing_found(settings: Settings, formats: Sequence[Format]) -> str:
    """Return the message for a folder in which nothing seems to be a policy."""
    if settings.given_folder == settings.home:
        example = command_for("copy_server_files examples/mouse_and_cheese")
        remedy = f"or try an example with `{example}`"
    else:
        remedy = "and start the server again"
    return (
        f"{_as_given(settings.zip_path, settings)}: not found; put your policy there, "
        f"{expected_formats(formats)}, zipped, {remedy}"
    )


def _as_given(path: Path, settings: Settings) -> Path:
    """Return a path of the server's folder as it is in the folder that a person put it into."""
    if path.is_relative_to(settings.home):
        return settings.given_folder / path.relative_to(settings.home)
    return path


def _seeming_policies(
    paths: Sequence[Path], settings: Settings, formats: Sequence[Format]
) -> list[str]:
    """Return which files and folders seem to be a policy, and can't be served."""
    return [
        f"{path.name} ({seems})"
        for path in paths
        if (seems := _seeming(path, settings, formats)) is not None
    ]


def _tell_passed_over(settings: Settings, formats: Sequence[Format]) -> None:
    """Log what seems to be the policy, such as a zip that was cut off, and isn't served."""
    others = [path for path in _entries(settings.home) if path != settings.models_path]
    if seen := _seeming_policies(others, settings, formats):
        served = str(settings.models_path)
        logger.warning("policy_passed_over", extra={"seen": seen[:_SOME_FILES], "served": served})


def find_model(folder: Path, *, formats: Sequence[Format] = FORMATS) -> Path | None:
    """Return the folder at or below `folder` whose files a format reads; None where there is none.

    Args:
        folder: where to look.
        formats: those that may read the files.

    Raises:
        ModelError: if several lie at the same depth.
    """
    paths = [PurePosixPath(name) for name in files_of_model(folder)]
    root = choose_root(paths, named_folder(folder), formats)
    return None if root is None else folder / root


def format_of_folder(folder: Path, formats: Sequence[Format] = FORMATS) -> Format | None:
    """Return the format of the policy whose files lie in a folder; None where there is none.

    Files in folders below are left aside: `learner_group/` in an RLlib checkpoint has a policy
    below it, and the checkpoint is more than that.

    Args:
        folder: where to look.
        formats: those that may read the files.
    """
    return format_of(_own_files(folder), formats)


def _candidates(settings: Settings, formats: Sequence[Format]) -> list[_Candidate]:
    """Return the files and folders with a policy, saved_model.zip among them, without models/.

    Args:
        settings: the folder.
        formats: those that may read the policies.

    Raises:
        ModelError: if the disk does not give a file that may be the policy. Beside saved_model.zip
            none other is; beside another policy none by a name that no training library writes.
    """
    paths = _visible(settings.home)
    found: list[_Candidate] = []
    unread: dict[Path, ModelError] = {}
    for path in paths:
        try:
            form = _format_at(path, settings, formats)
        except ModelError as error:
            unread[path] = error
        else:
            found += [] if form is None else [_Candidate(path, form)]
    has_first = settings.zip_path in paths
    for path, failure in unread.items():
        # A policy by any name is served where it is the only one.
        may_be_policy = path == settings.zip_path if has_first else _has_policys_name(path)
        if may_be_policy or not (has_first or found):
            raise failure
    return found


def _has_policys_name(path: Path) -> bool:
    """Return whether a training library may have written a file or folder of this name."""
    return path.suffix.lower() in {"", ".zip", *_SUFFIXES}


def _format_at(path: Path, settings: Settings, formats: Sequence[Format]) -> Format | None:
    """Return the format of the policy that a file or folder is; None where it is none.

    Raises:
        ModelError: if the disk fails.
    """
    try:
        if path.is_file():
            return format_of_file(path, max_bytes=settings.max_unpacked_bytes, formats=formats)
        if path.is_dir() and path.name != settings.models_path.name:
            return format_of_folder(path, formats)
    except (ModelError, OSError) as error:
        check_system(error, path)
    return None


def _unzipped(settings: Settings, formats: Sequence[Format]) -> Iterator[_Candidate]:
    model = find_model(settings.models_path, formats=formats)
    form = None if model is None else format_of_folder(model, formats)
    if model is not None and form is not None:
        yield _Candidate(model, form)


def _visible(folder: Path) -> list[Path]:
    """Return a folder's entries by name, without hidden ones; none where it may not be read."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        check_system(error, folder)
        return []


def _entries(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if may_be_looked_at(path)]


def _own_files(folder: Path) -> dict[str, Path]:
    """Return the files that lie in a folder itself, by name."""
    return {path.name: path for path in _entries(folder) if path.is_file()}


def _shown(item: _Candidate) -> str:
    seems = describe_file(item.path) if item.path.is_file() else None
    return f"{item.path.name}: {seems or expected_formats([item.form])}"


def _seeming(path: Path, settings: Settings, formats: Sequence[Format]) -> str | None:
    """Return a phrase for a file or folder that may have been meant as the policy."""
    if path.is_dir():
        return _seeming_folder(path, settings, formats)
    suffix = path.suffix.lower()
    if suffix != ".zip":
        unknown = f"no {suffix} file by its contents" if suffix in _ONE_FILE else None
        return describe_file(path) or unknown if suffix in _SUFFIXES else None
    if (seems := describe_file(path)) is not None:
        return seems
    try:
        format_of_file(path, max_bytes=settings.max_unpacked_bytes, formats=formats)
    except ModelError as error:
        return error.message.removeprefix(f"{path}: ")
    return "a zip without a policy"


def _seeming_folder(folder: Path, settings: Settings, formats: Sequence[Format]) -> str | None:
    """Return a phrase for a folder: what its files are together, or the first that can be told."""
    own = _own_files(folder)
    if (seems := describe_names(own)) is not None:
        return seems
    for name, path in own.items():
        if (seems := _seeming(path, settings, formats)) is not None:
            return f"a folder with {name}, {seems}"
    return None
