"""The registry of formats: which one reads a folder, and that asking imports no library."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import pytest

from policy_server.engine.network import NetworkPolicy
from policy_server.errors import ModelError
from policy_server.formats import load_policy
from policy_server.formats.known_formats import FORMATS, Format, expected_formats, library_of
from policy_server.policy import Policy
from policy_server.schema import ServerSchema, parse_schema
from policy_server.settings import Engine
from tests.support.hand_built import V1Policy, answer, observations
from tests.support.library_policies import unzipped

IMPORTS = """
import sys
from pathlib import Path, PurePosixPath
from policy_server.formats.known_formats import FORMATS
import policy_server.backends.local, policy_server.formats.compiling_process
print([form.name for form in FORMATS if form.can_read({"saved_model.pb": Path("saved_model.pb")})])
print([name for name in ("tensorflow", "google.protobuf") if name in sys.modules])
"""


class NamedFormat:
    """A format of a test's own: a policy is a file of one name."""

    name = "policy of a test"
    mark = "weights.txt"
    library: Engine = "numpy"

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.asked: list[tuple[list[str], ServerSchema | None, Engine]] = []

    def can_read(self, files: Mapping[str, Path]) -> bool:
        return self.mark in files

    def file_name(self, head: bytes) -> None:  # noqa: ARG002 -- of the format's signature
        return None

    def beside(self, name: str) -> Sequence[str]:  # noqa: ARG002 -- of the format's signature
        return ()

    def whole(self, folder: PurePosixPath, paths: Sequence[PurePosixPath]) -> PurePosixPath:  # noqa: ARG002 -- of the format's signature
        """Return the folder itself."""
        return folder

    def load(
        self, files: Mapping[str, Path], schema: ServerSchema | None, *, engine: Engine
    ) -> Policy:
        self.asked.append((list(files), schema, engine))
        return self.policy


def test_saved_model_is_read_from_a_folder_of_any_name(tmp_path: Path) -> None:
    built = V1Policy()
    rows = observations(8)

    policy = load_policy(built.save(tmp_path / "weights.txt"))

    assert isinstance(policy, NetworkPolicy)
    distribution = answer(policy, rows).distribution
    assert distribution == pytest.approx(built.expected_inputs(rows), abs=1e-5)


def test_schema_and_engine_reach_the_format(tmp_path: Path) -> None:
    folder = V1Policy().save(tmp_path / "m")
    schema = parse_schema("actions: {turn: {labels: [left, ahead, right]}}")

    signature = load_policy(folder, schema, engine="tensorflow").signature

    assert signature.engine == "tensorflow"
    assert signature.components is not None
    assert signature.components[0].labels == ("left", "ahead", "right")


def test_format_that_reads_the_files_is_asked_and_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    (folder / "sub").mkdir(parents=True)
    (folder / "weights.txt").write_text("0.5")
    (folder / "sub" / "more.txt").write_text("0.25")
    (folder / ".hidden").write_text("of an earlier start")
    stored = load_policy(V1Policy().save(tmp_path / "m"))
    other = NamedFormat(stored)
    schema = ServerSchema(discrete=True)
    formats: list[Format] = [*FORMATS, other]

    policy = load_policy(folder, schema, engine="numpy", formats=formats)

    assert policy is stored
    assert other.asked == [(["sub/more.txt", "weights.txt"], schema, "numpy")]


@pytest.mark.parametrize(
    ("policy", "archive", "name"),
    [
        ("sb3_ppo_box", "policy.zip", "_stable_baselines3_version"),
        ("sb3_ppo_box", "policy.zip", "data"),
        ("keras_actor_softmax", "actor.keras", "metadata.json"),
        ("keras_actor_softmax", "actor.keras", "config.json"),
        ("keras_actor_softmax", "actor.keras", "model.weights.h5"),
    ],
)
def test_file_that_the_disk_does_not_give_is_one_line(
    policy: str, archive: str, name: str, tmp_path: Path
) -> None:
    folder = unzipped(policy, archive, tmp_path)
    (folder / name).unlink()
    # It opens, and its first bytes can't be read: an error of the disk.
    (folder / name).symlink_to("/proc/self/mem")

    with pytest.raises(ModelError, match="Input/output error") as refused:
        load_policy(folder)

    assert "\n" not in refused.value.message


@pytest.mark.parametrize("name", ["absent", "empty", "below"])
def test_folder_that_no_format_reads_is_one_line_that_says_what_was_expected(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "below" / "sub").mkdir(parents=True)
    (tmp_path / "below" / "sub" / "saved_model.pb").write_bytes(b"graph")
    folder = tmp_path / name
    stored = load_policy(V1Policy().save(tmp_path / "m"))

    with pytest.raises(ModelError) as alone:
        load_policy(folder)
    with pytest.raises(ModelError) as both:
        load_policy(folder, formats=[*FORMATS, NamedFormat(stored)])

    marks = " and no ".join(form.mark for form in FORMATS)
    assert "saved_model.pb" in marks
    assert alone.value.message == f"{folder}: holds no {marks}; expected {expected_formats()}"
    assert both.value.message == (
        f"{folder}: holds no {marks} and no weights.txt; expected {expected_formats()} or a policy "
        "of a test"
    )


@pytest.mark.parametrize(
    ("file", "library"),
    [("saved_model.pb", "tensorflow"), ("policy.onnx", "onnxruntime"), ("policy.pth", "numpy")],
)
def test_each_format_has_its_library_beside_numpy(file: str, library: str, tmp_path: Path) -> None:
    (tmp_path / file).touch()
    (tmp_path / "data").touch()

    assert library_of(tmp_path) == library
    assert library_of(tmp_path, "numpy") == library


def test_engine_that_can_not_compute_a_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "policy.onnx").touch()

    with pytest.raises(ModelError) as caught:
        library_of(tmp_path, "tensorflow")

    assert caught.value.message == (
        f"{tmp_path}: holds an ONNX model, which tensorflow can't compute; set "
        "POLICY_SERVER_ENGINE to auto, numpy or onnxruntime"
    )


def test_asking_the_formats_imports_no_training_library() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines() == ["['TensorFlow SavedModel']", "[]"]
