"""The formats that a policy may be stored in, and the one way from its files to the policy."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from policy_server.engine.network import NetworkPolicy
from policy_server.errors import DistributionError, ModelError
from policy_server.files.regular import check_system
from policy_server.formats.keras import KerasFormat
from policy_server.formats.model_files import files_of_model
from policy_server.formats.onnx import OnnxFormat
from policy_server.formats.rllib import RllibFormat
from policy_server.formats.saved_model import SavedModelFormat
from policy_server.formats.stable_baselines3 import StableBaselines3Format
from policy_server.policy import Policy, PolicyInputs
from policy_server.schema import ServerSchema
from policy_server.settings import Engine

__all__ = ["FORMATS", "Format", "expected_formats", "format_of", "library_of", "load_policy"]


class Format(Protocol):
    """A way to store a trained policy in files, such as TensorFlow's SavedModel.

    Importing its package imports no training library; `load` does.
    """

    @property
    def name(self) -> str:
        """Return the format's name, such as `TensorFlow SavedModel`."""

    @property
    def mark(self) -> str:
        """Return the file that every policy of the format has, such as `saved_model.pb`."""

    @property
    def library(self) -> Engine:
        """Return the engine that computes a policy of the format where NumPy does not.

        It is `numpy` for a format whose policies NumPy alone computes.
        """

    def file_name(self, head: bytes) -> str | None:
        """Return a usual name of the policy that is one file and no zip, such as `policy.onnx`.

        Such a file is copied to a folder of its own: under its own name where `can_read` knows the
        format by that, else under this one.

        Args:
            head: the file's first `HEAD_BYTES` bytes, which decide whatever its name.

        Returns:
            The name; None where such a file is no policy of this format.
        """

    def beside(self, name: str) -> Sequence[str]:
        """Return the names of files that may lie beside a zip or file and belong to it.

        An example is `vec_normalize.pkl`; they are copied to the folder of the unpacked policy.

        Args:
            name: of the zip or file, such as `policy.onnx`.
        """

    def can_read(self, files: Mapping[str, Path]) -> bool:
        """Return whether the files are a policy of this format, by their names.

        Args:
            files: the model's files by their names below its folder, such as
                `variables/variables.index`. The folder's own name tells no format. Nothing is to be
                read from them: before a zip is unpacked, only the names are there. Those that lie
                in the folder itself have to suffice, since they tell it from the folders above.
        """

    def whole(self, folder: PurePosixPath, paths: Sequence[PurePosixPath]) -> PurePosixPath:
        """Return the folder of all that belongs to a policy: its own, or one that this lies in.

        An example is an RLlib checkpoint around the folder of its RLModule.

        Args:
            folder: the one whose own files `can_read` took.
            paths: those of all files that are there, by which the whole is told.
        """

    def load(
        self, files: Mapping[str, Path], schema: ServerSchema | None, *, engine: Engine
    ) -> Policy:
        """Load the policy that the files hold, check its distribution, and warm it up.

        Args:
            files: as `can_read` took them.
            schema: the contents of schema.yaml; None for a policy that has none yet.
            engine: `numpy`, `tensorflow`, or `auto` for the one that suits the policy.

        Returns:
            The policy, ready to answer.

        Raises:
            ModelError: if the files can't give a policy, or not by the engine that was asked for.
            SchemaError: if schema.yaml disagrees with the policy.
        """


# A further format needs its own package, and a line here.
FORMATS: Sequence[Format] = (
    SavedModelFormat(),
    RllibFormat(),
    StableBaselines3Format(),
    KerasFormat(),
    OnnxFormat(),
)


def format_of(files: Mapping[str, Path], formats: Sequence[Format] = FORMATS) -> Format | None:
    """Return the first format that reads the files; None where none does.

    Args:
        files: the model's files by their names below its folder.
        formats: those that may read the files.
    """
    return next((form for form in formats if form.can_read(files)), None)


def library_of(
    folder: Path, engine: Engine = "auto", *, formats: Sequence[Format] = FORMATS
) -> Engine:
    """Return the engine that computes the policy in a folder where NumPy does not.

    Args:
        folder: holds the model's files.
        engine: the engine that is asked for.
        formats: those that may read the files.

    Raises:
        ModelError: if another engine is asked for, which can't compute the policy.
    """
    form = format_of(files_of_model(folder), formats)
    library: Engine = "tensorflow" if form is None else form.library
    if form is not None and engine not in ("auto", "numpy", library):
        able = "numpy" if library == "numpy" else f"numpy or {library}"
        raise ModelError(
            f"{folder}: holds {expected_formats([form])}, which {engine} can't compute; set "
            f"POLICY_SERVER_ENGINE to auto, {able}"
        )
    return library


def expected_formats(formats: Sequence[Format] = FORMATS) -> str:
    """Return the formats' names in a phrase for messages, such as `a TensorFlow SavedModel`.

    Args:
        formats: those that may read a policy's files.
    """
    return " or ".join(
        f"an {form.name}" if form.name.startswith(("RL", "O", "A", "E")) else f"a {form.name}"
        for form in formats
    )


def load_policy(
    folder: Path,
    schema: ServerSchema | None = None,
    *,
    engine: Engine = "auto",
    formats: Sequence[Format] = FORMATS,
) -> Policy:
    """Load the policy in a folder, by the format that can read its files.

    Example:
        `load_policy(Path("models"), read_schema(Path("schema.yaml"))).signature.family` is
        `categorical(2)` for a policy that chooses one of two actions.

    Args:
        folder: holds the model's files.
        schema: the contents of schema.yaml; None for a policy that has none yet.
        engine: `numpy`, `tensorflow`, or `auto` for the one that suits the policy.
        formats: those that may read the files.

    Returns:
        The policy, ready to answer.

    Raises:
        ModelError: if no format reads the files, one can't be read, or they can't give a policy.
        SchemaError: if schema.yaml disagrees with the policy.
    """
    files = files_of_model(folder)
    if (form := format_of(files, formats)) is not None:
        try:
            policy = form.load(files, schema, engine=engine)
        except ModelError as error:
            check_system(error, folder)
            raise
        except OSError as error:
            check_system(error, folder)
            raise ModelError(f"{folder}: can't be read: {error.strerror or error}") from error
        _refuse_wrong_shapes(policy, form)
        return policy
    marks = " and no ".join(form.mark for form in formats)
    raise ModelError(f"{folder}: holds no {marks}; expected {expected_formats(formats)}")


def _refuse_wrong_shapes(policy: Policy, form: Format) -> None:
    """Refuse weights that don't fit each other, which shows when a row is computed."""
    signature = policy.signature
    width = signature.observation_width
    if not isinstance(policy, NetworkPolicy) or width is None:
        return
    row: NDArray[Any] = np.zeros((1, width), signature.row_dtype)
    memory = np.zeros((1, signature.memory_width), np.float32) if signature.memory else None
    try:
        # An index or a number that this row lacks is no fault of the file's.
        with contextlib.suppress(IndexError, OverflowError, ZeroDivisionError, DistributionError):
            policy.infer(PolicyInputs.of(row, state=memory))
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"the {form.name}: can't compute an observation: {error}; its weights are damaged or "
            "another network's: save the policy again"
        ) from error
